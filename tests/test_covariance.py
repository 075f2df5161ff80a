"""covariance.py, and what fitting.py finds for it."""

import copy
from functools import partial

import numpy as np
import pytest
import torch
from conftest import SMALL, loader_of

import fitting
from covariance import Covariance
from engine import TrainingError
from model import build_model


def test_covariances_by_hand():
    # two channels over four places, seen as they are: about their means 1 -1 1 -1 and 2 2 -2 -2; variances 1 and 4, no covariance
    layer = Covariance(2, 2)
    layer.W.copy_(torch.eye(2))
    layer.length.fill_(3.0)
    maps = torch.tensor([[[[11.0, 9], [11, 9]], [[2, 2], [-2, -2]]]])
    soft = torch.tensor([1 / 1.1 ** 0.5, 0, 4 / 4.1 ** 0.5])                # each by the root of itself and 0.1
    torch.testing.assert_close(layer(maps), 3 * soft[None] / soft.norm())
    torch.testing.assert_close(layer(maps + 7), layer(maps))                # not where the channels lie, only how they vary
    assert layer(maps).shape == (1, layer.size)
    assert Covariance(2, 48).W.shape == (2, 2)                              # no more directions than channels


def test_a_map_that_does_not_vary_has_no_length_and_a_finite_gradient():
    layer = Covariance(3, 2)
    layer.W.normal_()
    maps = torch.ones(1, 3, 4, 4, requires_grad=True)
    layer(maps).sum().backward()
    assert layer(maps).abs().max() < 1e-3                                   # not what rounding leaves, blown up
    assert maps.grad.isfinite().all()


def test_maps_of_one_place_tell_nothing():
    layer = Covariance(3, 2)
    layer.fit(torch.zeros(3, 3, dtype=torch.float64), 5.0)
    assert layer(torch.rand(4, 3, 1, 1)).tolist() == [[0, 0, 0]] * 4


def photos_of(drawn, seed=None, part=slice(None)):
    paths = [str(path) for path in sorted(drawn.glob("*/*_000[1-4].jpg"))][part]
    return loader_of(paths, 8, seed=seed)


@pytest.mark.parametrize("bf16", [False, True])
def test_directions_are_those_of_most_variance_within_photos_and_whitened(accelerator, drawn, monkeypatch, bf16):
    autocast = partial(torch.autocast, "cpu", torch.bfloat16, enabled=bf16)
    monkeypatch.setattr(accelerator, "autocast", autocast)                  # where the backbone computes in bf16, sums of squares do not
    torch.manual_seed(0)
    model, loader, ticks = build_model(SMALL, 9, "none", covariance=6), photos_of(drawn), []
    fitting.fit_covariances(model, loader, accelerator, ticks.append)
    assert sum(ticks) == 36
    with torch.inference_mode(), autocast():
        found = [model.pooled_and_maps(images.flatten(0, -4)) for images, _, _ in loader]
    length = torch.cat([pooled for pooled, _ in found]).float().square().sum(1).mean().sqrt()
    for k, layer in enumerate(model.covariances):
        maps = torch.cat([maps[k] for _, maps in found]).double().flatten(2).numpy()
        within = (maps - maps.mean(2, keepdims=True)).swapaxes(0, 1).reshape(maps.shape[1], -1)
        covariance = np.cov(within, bias=True)
        W = layer.W.double().numpy()
        np.testing.assert_allclose(W @ covariance @ W.T, np.eye(6), atol=1e-4)      # each to variance 1, none with another
        kept = np.trace(np.linalg.pinv(W @ W.T))                            # eigenvalues 1 / |w|^2 of orthogonal rows
        assert kept == pytest.approx(np.linalg.eigvalsh(covariance)[-6:].sum(), rel=1e-3)
        assert layer.length.item() == pytest.approx(length.item(), rel=1e-3)
    features = model.features(torch.from_numpy(np.zeros((1, 3, 64, 64), np.uint8)))
    assert features.shape == (1, model.head.in_features)
    assert model.head.in_features == model.backbone.head_hidden_size + 2 * 21


def test_of_many_photos_the_directions_are_found_in_a_part(accelerator, drawn, monkeypatch):
    monkeypatch.setattr(fitting, "COVARIANCE_PHOTOS", 10)
    ticks = []
    fitting.fit_covariances(build_model(SMALL, 9, "none", covariance=4), photos_of(drawn, seed=0), accelerator, ticks.append)
    assert ticks == [8, 7]


def test_several_processes_find_together_what_one_does(accelerator, drawn, monkeypatch):
    torch.manual_seed(0)
    one, told = build_model(SMALL, 9, "none", covariance=4), []
    two = copy.deepcopy(one)
    fitting.fit_covariances(one, photos_of(drawn), accelerator, lambda photos: None)
    for part in (slice(0, 10), slice(10, None)):  # in turn; the second hears of the first
        monkeypatch.setattr(fitting, "gather_object", lambda found: told.extend(found) or told)
        fitting.fit_covariances(two, photos_of(drawn, part=part), accelerator, lambda photos: None)
    for whole, parts in zip(one.covariances, two.covariances, strict=True):
        torch.testing.assert_close(parts.W, whole.W, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(parts.length, whole.length)


def test_maps_that_are_not_finite_are_an_error(accelerator, drawn):
    model = build_model(SMALL, 9, "none", covariance=4)
    model.mean.fill_(torch.inf)
    with pytest.raises(TrainingError, match="not finite"):
        fitting.fit_covariances(model, photos_of(drawn), accelerator, lambda photos: None)


@pytest.mark.parametrize("name", [
    "tf_efficientnet_lite0", "resnet18", "convnext_atto", "vit_tiny_patch16_224", "swin_tiny_patch4_window7_224"])
def test_the_backbone_s_own_features_come_first(name):
    model = build_model(name, 3, "none", covariance=4).eval()
    for layer in model.covariances:
        layer.W.normal_()
    images = 255 * torch.rand(2, 3, 224, 224)
    with torch.inference_mode():
        features, own = model.features(images), model.backbone((images - model.mean) / model.std)
    torch.testing.assert_close(features[:, :own.shape[1]], own)
    assert features.shape[1] == own.shape[1] + 2 * 10
    assert features[:, own.shape[1]:].std(0).min() > 0
