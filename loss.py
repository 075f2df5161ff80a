"""What training minimises: cross-entropy with soft targets, and the variations on it that the record of experiments compares."""

from __future__ import annotations

import torch
import torch.nn.functional as F


class Loss(torch.nn.Module):
    """logits (B, K), targets (B, K) with rows that sum to 1 → their mean loss, 0-d, in fp32.

        loss = mean over photos of sum_k  y_k w_k (1 - p_k)^focal (-log p_k)

    At its defaults this is cross-entropy. counts: int (K,) training photos of each class, for `balance`.
    smoothing: share of each target spread over all classes (Szegedy et al. 2016, arXiv 1512.00567).
    focal: exponent that turns the loss down where the model is sure already (Lin et al. 2017, arXiv 1708.02002).
    balance: "weights" = w_k inverse to the class's photos, 1 in the mean over photos; "logits" = log p of logits plus the
    log of the class's share, so that at test time, without it, rare classes get their due (Menon et al. 2021, arXiv 2007.07314).
    margin: ArcFace's, in radians, for logits that are scale * cos(angle) (Deng et al. 2019, arXiv 1801.07698): p_k is
    computed with class k's angle made larger by the margin; for a mixed photo, with each of its classes in turn.
    """

    def __init__(self, counts: torch.Tensor, smoothing: float = 0.0, focal: float = 0.0, balance: str = "none",
                 margin: float = 0.0, scale: float = 1.0):
        super().__init__()
        shares = counts / counts.sum()
        weights = 1 / (shares * len(counts)) if balance == "weights" else torch.ones(len(counts))
        self.register_buffer("weights", weights)
        self.register_buffer("prior", shares.log() if balance == "logits" else torch.zeros(len(counts)))
        self.smoothing, self.focal, self.margin, self.scale = smoothing, focal, margin, scale

    def forward(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        logits = logits.float()
        log_probs = self._with_margin(logits) if self.margin else (logits + self.prior).log_softmax(1)
        targets = torch.lerp(targets, torch.full_like(targets, 1 / targets.shape[1]), self.smoothing)
        losses = -targets * self.weights * log_probs
        if self.focal:
            losses = losses * (1 - log_probs.exp()).clamp(min=1e-6) ** self.focal  # at 0, a root has no gradient
        return losses.sum(1).mean()

    def _with_margin(self, logits: torch.Tensor) -> torch.Tensor:
        """Column k: log p_k where class k alone carries the margin. Past pi - margin its cosine would rise again: it stays there."""
        cos = (logits / self.scale).clamp(-1 + 1e-6, 1 - 1e-6)
        target = self.scale * torch.cos((cos.acos() + self.margin).clamp(max=torch.pi)) + self.prior
        same = torch.eye(logits.shape[1], dtype=torch.bool, device=logits.device)
        others = (logits + self.prior).unsqueeze(1).masked_fill(same, -torch.inf)
        return -F.softplus(others.logsumexp(2) - target)
