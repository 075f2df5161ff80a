"""How like the classes a photo is: a photo of something else has a likeliest class too."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from checkpoint import CENTRES


class Known(nn.Module):
    """features (B, F), logits (B, K) → (B,) in 0..1, higher for photos like those of the classes; fp32.

        sure = -entropy(softmax(logits));  near = max over classes k and clusters j of cos(features, centre j of class k)
        known = sigmoid(z(sure) + z(near)),   z by mean and deviation over validation photos

    A photo of a class that is missing leaves the model in doubt between its own; a photo of no fungus at all may not, but
    lies far from all of them. A genus has several looks (from above, its gills, young, old), hence several centres; all of its
    photos would tell a little better, and take as much room as the network (docs/EXPERIMENTS.md). Buffers alone, so they travel with
    the weights and into an exported graph; until fitting.learn_trust has set them the score says nothing.
    """

    def __init__(self, num_classes: int, num_features: int):
        super().__init__()
        self.register_buffer("means", torch.zeros(num_classes * CENTRES, num_features))
        self.register_buffer("centre", torch.zeros(2))
        self.register_buffer("spread", torch.ones(2))

    def signs(self, features: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        """(B, 2): sure, near."""
        log_probs = logits.float().log_softmax(1)
        sure = (log_probs.exp() * log_probs).sum(1)
        near = (F.normalize(features.float(), dim=1) @ F.normalize(self.means, dim=1).T).amax(1)  # no (B, K, F) in between
        return torch.stack([sure, near], 1)

    def score(self, signs: torch.Tensor) -> torch.Tensor:
        """signs (B, 2) → (B,)."""
        return ((signs - self.centre) / self.spread).sum(1).sigmoid()

    def forward(self, features: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        return self.score(self.signs(features, logits))

    def set_scale(self, signs: torch.Tensor) -> None:
        """z from the signs (M, 2) of validation photos' views; `means` must be those of the training photos by then."""
        self.centre.copy_(signs.mean(0))
        self.spread.copy_(signs.std(0, correction=0).clamp(min=0.01))  # random weights' are less, and would make much of rounding
