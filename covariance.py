"""What the mean over a photo leaves out: how the channels of a feature map vary together from place to place, its texture."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn


class Covariance(nn.Module):
    """maps (B, C, H, W) → (B, d (d + 1) / 2), fp32: how d directions of the channels vary together over each photo.

        z = W (x - mean over the photo of x);   S = z z^T / (H W);   s = S / sqrt(|S| + 0.1);   length s / |s|

    Second-order pooling (Lin et al. 2015, arXiv 1504.07889) with its signed roots, softened so that their gradient is bounded near 0.
    W (d, C) and length are buffers, for `fit` to set: W holds the directions in which photos of the set vary most, each to variance 1.
    """

    SOFT = 0.1  # of variances that are 1 on average; with hard roots the log loss was 0.02 worse (docs/EXPERIMENTS.md)

    def __init__(self, channels: int, directions: int):
        super().__init__()
        directions = min(directions, channels)
        self.register_buffer("W", torch.zeros(directions, channels))
        self.register_buffer("length", torch.ones(()))
        self.size = directions * (directions + 1) // 2

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        x = self.W @ maps.float().flatten(2)
        z = x - x.mean(2, keepdim=True)
        rows, columns = torch.triu_indices(len(self.W), len(self.W), device=maps.device)
        values = (z @ z.mT / z.shape[2])[:, rows, columns]
        return self.length * F.normalize(values * (values.abs() + self.SOFT).rsqrt(), eps=1e-3)  # of a black photo, rounding alone

    def fit(self, covariance: torch.Tensor, length: float) -> None:
        """covariance: (C, C), of the maps within photos, the photos' mean; float64, on the CPU."""
        variances, directions = torch.linalg.eigh(covariance)                     # ascending
        whitened = directions / (variances.clamp(min=1e-6 * variances[-1]) + 1e-9).sqrt()  # + : maps of 1 x 1 vary by nothing
        self.W.copy_(whitened.T.flip(0)[:len(self.W)].float())                    # float: mps has no float64
        self.length.fill_(length)
