from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mixup import mixup


def test_mixed_image_and_target_share_lam(rng):
    # photo i is its own one-hot label, painted over 3 x K pixels
    labels = torch.arange(6)
    images = torch.eye(6).view(6, 1, 1, 6).expand(6, 3, 1, 6)
    mixed, targets = mixup(images, labels, 6, 0.5, rng)
    torch.testing.assert_close(mixed[:, 0, 0], targets)
    assert not torch.equal(targets, torch.eye(6))


def rng_of_halves(seed: int) -> SimpleNamespace:
    return SimpleNamespace(beta=lambda a, b, n: np.full(n, 0.5), permutation=np.random.default_rng(seed).permutation)


@given(st.integers(1, 20), st.integers(2, 9), st.floats(0, 4), st.integers(0, 1000))
def test_rows_sum_to_one_and_all_photos_weigh_the_same(batch, classes, alpha, seed):
    labels = torch.from_numpy(np.random.default_rng(seed).integers(0, classes, batch))
    images = torch.arange(batch, dtype=torch.float32).view(-1, 1, 1, 1).expand(-1, 3, 2, 2)
    before = images.clone()
    mixed, targets = mixup(images, labels, classes, alpha, np.random.default_rng(seed))
    assert targets.sum(1).numpy() == pytest.approx(np.ones(batch), abs=1e-6)
    assert targets.min() >= 0
    half, _ = mixup(images, labels, classes, 0.5, rng_of_halves(seed))
    assert half[:, 0, 0, 0].sum().item() == pytest.approx(sum(range(batch)))  # each photo is the partner of one
    assert mixed.shape == images.shape
    torch.testing.assert_close(images, before)


def test_alpha_zero_changes_nothing(rng):
    images, labels = torch.randint(0, 256, (4, 3, 5, 5), dtype=torch.uint8), torch.tensor([0, 1, 2, 0])
    mixed, targets = mixup(images, labels, 3, 0.0, rng)
    torch.testing.assert_close(mixed, images.float())
    torch.testing.assert_close(targets, torch.eye(3)[labels])


def test_the_same_generator_gives_the_same_mix():
    images, labels = torch.rand(8, 3, 4, 4), torch.arange(8) % 3
    one, two = (mixup(images, labels, 3, 0.4, np.random.default_rng(5)) for _ in range(2))
    torch.testing.assert_close(one, two, rtol=0, atol=0)


def test_lam_follows_the_beta_distribution(rng):
    # Own share = lam + (1 - lam) [partner has the same label]. With 2 classes in equal parts: mean 1/2 + 1/2 * 1/2.
    # Where partners differ it is lam itself: variance of Beta(0.2, 0.2) = 1 / (4 (2 * 0.2 + 1)) = 0.1786.
    labels = torch.arange(20_000) % 2
    _, targets = mixup(torch.zeros(20_000, 3, 1, 1), labels, 2, 0.2, rng)
    own = targets[torch.arange(20_000), labels]
    assert own.mean().item() == pytest.approx(0.75, abs=0.01)
    assert own[own < 1].var().item() == pytest.approx(0.1786, abs=0.02)
