import copy

import pytest
import timm
import torch

import engine
from folding import fold_batchnorm
from model import build_model

# {network: BatchNorms behind a convolution}; densenet's others are behind what several layers made, convnext has none
NETWORKS = {"a bias": 1, "tf_efficientnet_lite0": 49, "tf_efficientnet_b0": 49, "resnet18": 20, "densenet121": 59, "convnext_atto": 0}


@pytest.mark.parametrize("name", NETWORKS)
def test_features_and_gradients_stay_what_they_were(name):
    torch.manual_seed(0)
    biased = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    plain = (biased if name == "a bias" else timm.create_model(name, num_classes=0)).double()
    for layer in plain.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):  # as after pretraining: not at 0 and 1
            for tensor in (layer.weight.data, layer.bias.data, layer.running_mean, layer.running_var):
                tensor += 0.2 * torch.rand(len(tensor))
    folded = copy.deepcopy(plain)
    images = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    assert fold_batchnorm(folded, images[:1]) == NETWORKS[name]
    assert list(folded.state_dict()) == list(plain.state_dict())
    activations = [layer.act for layer in folded.modules() if hasattr(layer, "running_mean") and hasattr(layer, "act")]
    assert not any(act.inplace for act in activations if isinstance(act, torch.nn.SiLU))  # it would copy first, for the gradient
    answers = {}
    for network in (plain, folded):
        engine.training_mode(network, keep_batchnorm=True)
        torch.manual_seed(0)  # dropout's
        answers[network] = network(images)
        answers[network].square().mean().backward()
    torch.testing.assert_close(answers[folded], answers[plain])
    for ours, theirs in zip(folded.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-6, atol=1e-9 * theirs.grad.abs().max().item())


def test_a_batchnorm_that_trains_is_left_alone():
    torch.manual_seed(0)
    plain = build_model("tf_efficientnet_lite0", 2, "none")
    folded, images = copy.deepcopy(plain), torch.randint(0, 256, (4, 3, 64, 64), dtype=torch.uint8)
    fold_batchnorm(folded, torch.zeros(1, 3, 64, 64))
    assert torch.equal(folded.train()(images), plain.train()(images))
    torch.testing.assert_close(folded.state_dict(), plain.state_dict(), rtol=0, atol=0)  # statistics moved alike
    torch.testing.assert_close(folded.eval()(images), plain.eval()(images))


def test_a_copy_folds_its_own_weights():
    model = build_model("tf_efficientnet_lite0", 2, "none").eval()
    fold_batchnorm(model, torch.zeros(1, 3, 64, 64))
    before = model(torch.ones(1, 3, 64, 64))
    other = copy.deepcopy(model)
    for tensor in other.backbone.parameters():
        tensor.data.add_(0.1)
    assert torch.equal(model(torch.ones(1, 3, 64, 64)), before)
    assert not torch.allclose(other(torch.ones(1, 3, 64, 64)), before)


class Unusual(torch.nn.Module):
    """Ways in which a BatchNorm does not have a convolution's output for itself, or more than scaling lies between."""

    def __init__(self, way: str):
        super().__init__()
        self.way, self.norm = way, torch.nn.BatchNorm2d(4)
        self.conv = torch.nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect" if way == "other padding" else "zeros")
        self.other = torch.nn.BatchNorm2d(4)

    def forward(self, images):
        made = self.conv(images)
        if self.way == "changed in place":
            made.relu_()
        after = self.norm(made)
        if self.way == "taken twice":
            return torch.cat([made, after])
        if self.way == "two norms":
            return after + self.other(made)
        if self.way == "used twice":
            return after + self.conv(images + 1)
        return after


@pytest.mark.parametrize("way", ["other padding", "changed in place", "taken twice", "two norms", "used twice"])
def test_what_is_not_alone_with_its_convolution_is_not_folded(way):
    """Told before the weights are loaded, as where a run goes on: a fresh BatchNorm changes nothing, and hides what is wrong."""
    model = Unusual(way).eval()
    assert fold_batchnorm(model, torch.zeros(1, 3, 8, 8)) == 0
    assert fold_batchnorm(Unusual("none of these"), torch.zeros(1, 3, 8, 8)) == 1
