import math

import pytest
import torch
import torch.nn.functional as F

from loss import Loss


@pytest.fixture
def batch():
    torch.manual_seed(0)
    targets = torch.lerp(F.one_hot(torch.arange(5) % 3, 3).float(), F.one_hot(torch.arange(5) % 2, 3).float(), 0.3)
    return torch.randn(5, 3), targets


EQUAL = torch.tensor([4, 4, 4])


def test_the_default_is_cross_entropy_with_soft_targets(batch):
    torch.testing.assert_close(Loss(EQUAL)(*batch), F.cross_entropy(*batch))


def test_smoothing_is_torch_s(batch):
    torch.testing.assert_close(Loss(EQUAL, smoothing=0.1)(*batch), F.cross_entropy(*batch, label_smoothing=0.1))


def test_focal_by_hand():
    # p = (1/4, 3/4), truth 0, gamma 2: (3/4)^2 * log 4
    logits = torch.tensor([[0.0, math.log(3)]])
    assert Loss(torch.tensor([1, 1]), focal=2)(logits, torch.tensor([[1.0, 0.0]])).item() == pytest.approx(0.5625 * math.log(4))


def test_focal_below_one_has_a_gradient_where_the_model_is_certain():
    logits = torch.tensor([[20.0, 0.0]], requires_grad=True)                # p = 1 in fp32
    Loss(torch.tensor([1, 1]), focal=0.5)(logits, torch.tensor([[1.0, 0.0]])).backward()
    assert logits.grad.isfinite().all()


def test_class_weights_are_inverse_to_the_counts_and_one_in_the_mean_over_photos():
    loss = Loss(torch.tensor([30, 10]), balance="weights")
    assert loss.weights.tolist() == pytest.approx([2 / 3, 2])
    assert (30 * loss.weights[0] + 10 * loss.weights[1]).item() == pytest.approx(40)


def test_logit_adjustment_adds_the_log_of_the_shares(batch):
    counts = torch.tensor([6, 3, 1])
    adjusted = batch[0] + torch.tensor([0.6, 0.3, 0.1]).log()
    torch.testing.assert_close(Loss(counts, balance="logits")(*batch), F.cross_entropy(adjusted, batch[1]))


def test_arcface_by_hand():
    # angles 60 and 90 degrees, margin 30 degrees, scale 2: the true class's angle becomes 90 degrees, so both logits are 0
    logits = 2 * torch.tensor([[0.5, 0.0]])
    loss = Loss(torch.tensor([1, 1]), margin=math.pi / 6, scale=2.0)
    assert loss(logits, torch.tensor([[1.0, 0.0]])).item() == pytest.approx(math.log(2), abs=1e-5)
    # a photo mixed half and half: as class 1, its angle becomes 120 degrees, logits (1, -1)
    other = math.log(1 + math.exp(2))
    assert loss(logits, torch.tensor([[0.5, 0.5]])).item() == pytest.approx((math.log(2) + other) / 2, abs=1e-5)


def test_arcface_s_angles_are_of_the_logits_before_their_adjustment(batch):
    counts, logits = torch.tensor([6, 3, 1]), 2 * batch[0].tanh()
    adjusted = F.cross_entropy(logits + (counts / 10).log(), batch[1])
    torch.testing.assert_close(Loss(counts, balance="logits", margin=1e-9, scale=2.0)(logits, batch[1]), adjusted, atol=1e-5, rtol=0)


def test_arcface_without_margin_is_cross_entropy_and_its_gradient_is_finite_at_the_ends():
    logits = torch.tensor([[30.0, -30.0, 0.0]], requires_grad=True)
    for margin in (1e-9, 0.5):
        loss = Loss(EQUAL, margin=margin, scale=30.0)(logits, torch.tensor([[0.0, 1.0, 0.0]]))
        assert loss.item() == pytest.approx(60, abs=0.1)  # the angle is 180 degrees already
        assert torch.autograd.grad(loss, logits)[0].isfinite().all()
