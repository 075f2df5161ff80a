"""Mixup: train on blends of two photos and of their labels."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F


def mixup(images: torch.Tensor, labels: torch.Tensor, num_classes: int, alpha: float, rng: np.random.Generator):
    """Blend each photo with a partner from the same batch (Zhang et al. 2018, arXiv 1710.09412).

        lam ~ Beta(alpha, alpha);  x = lam x_i + (1 - lam) x_j;  y = lam y_i + (1 - lam) y_j

    images: uint8 or float (B, 3, H, W), left unchanged. labels: int64 (B,) in [0, num_classes). alpha: 0 turns it off.
    Each photo draws a lam of its own; partners are a permutation of the batch, so all photos weigh the same.
    Returns mixed images, float (B, 3, H, W), and targets (B, num_classes), rows sum to 1.
    """
    images = images.float()
    targets = F.one_hot(labels, num_classes).float()
    if alpha == 0:
        return images, targets
    lam = torch.from_numpy(rng.beta(alpha, alpha, len(images)).astype(np.float32)).to(images.device)
    partner = torch.from_numpy(rng.permutation(len(images))).to(images.device)
    images = torch.lerp(images[partner], images, lam.view(-1, 1, 1, 1))
    return images, torch.lerp(targets[partner], targets, lam.view(-1, 1))
