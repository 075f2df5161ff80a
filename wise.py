"""Mixing the weights before and after training (WiSE-FT, Wortsman et al. 2022, arXiv 2109.01903): on the way from the head alone to
the last epoch lie weights that are often better than both, most of all on photos from elsewhere, where training first loses what the
frozen backbone knew."""

from __future__ import annotations

from collections.abc import Callable

import torch

SHARES = (0, 0.25, 0.5, 0.75, 1)  # of the way from the head alone to the last epoch


def blend(start: dict[str, torch.Tensor], end: dict[str, torch.Tensor], share: float) -> dict[str, torch.Tensor]:
    """Weights on the way from `start` (share 0) to `end` (1), on the device of the end; counters are those of the end."""
    return {name: torch.lerp(start[name].to(last.device), last, share) if last.is_floating_point() else last for name, last in end.items()}


def best_place(start: dict[str, torch.Tensor], end: dict[str, torch.Tensor], loss_of: Callable[[dict[str, torch.Tensor]], float],
               say: Callable[[str], None]) -> tuple[float, float]:
    """Of SHARES, the one whose weights have the lowest loss_of, and that loss; says them all."""
    losses = {share: loss_of(blend(start, end, share)) for share in SHARES}
    say("val loss on the way from the head alone to the last epoch: "
        + ", ".join(f"at {share:.0%} {loss:.3f}" for share, loss in losses.items()))
    share = min(losses, key=losses.get)
    return share, losses[share]


def place_name(share: float, epoch: int) -> str:
    """Of the weights at `share` of the way from the head alone to that epoch."""
    return {0: "the head alone", 1: f"epoch {epoch}"}.get(share, f"{share:.0%} of the way from the head alone to epoch {epoch}")
