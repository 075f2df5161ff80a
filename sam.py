"""Sharpness-aware minimisation: step by the gradient of the worst point nearby, not of the point itself."""

from __future__ import annotations

import contextlib
import math

import torch
from torch.nn.modules.batchnorm import _BatchNorm


class SAM:
    """SAM around any torch optimizer (Foret et al. 2021, arXiv 2010.01412).

        e(w) = rho g(w) / |g(w)|;   w' = step of the base optimizer at w, by the gradient g(w + e(w))

    optimizer: any torch.optim.Optimizer, or Accelerate's wrapper of one. rho: ascent radius; 0 = the base optimizer alone.
    adaptive: ASAM (Kwon et al. 2021, arXiv 2102.11600): e(w) = rho T^2 g / |T g| with T = |w| + 0.01, so that the radius
    does not depend on the scale of the weights. every, start: SAM on each `every`-th step, from step `start` on.

    A step is skipped, and counted in `skipped`, when its gradient is not finite. Between `ascend` and `descend` the old
    weights are kept aside, one copy in all, and come back exactly.
    """

    def __init__(self, optimizer, rho: float = 0.05, adaptive: bool = False, every: int = 1, start: int = 0):
        if not 0 <= rho < math.inf:
            raise ValueError(f"rho {rho}: SAM's radius must be 0 or a positive number; the paper's is 0.05")
        if every < 1:
            raise ValueError(f"every {every}: use 1 for SAM on every step, k for each k-th")
        self.optimizer, self.rho, self.adaptive, self.every, self.start = optimizer, rho, adaptive, every, start
        self.steps = self.skipped = self.skipped_in_a_row = 0
        self.norm = 0.0                                          # of the last step's gradient
        self._old: list[tuple[torch.nn.Parameter, torch.Tensor]] = []

    def due(self) -> bool:
        """Whether the coming step takes SAM's second pass."""
        return self.rho > 0 and self.steps >= self.start and (self.steps - self.start) % self.every == 0

    @torch.no_grad()
    def ascend(self) -> None:
        """w -> w + e(w), and forget the gradients. Their scale cancels, so an fp16 scaler's factor may still be on them.

        Where the gradient is zero or not finite there is no direction to climb: w stays, the second pass repeats the
        first, and `step` decides.
        """
        params = [p for group in self.optimizer.param_groups for p in group["params"] if p.grad is not None]
        grads, weights = [p.grad for p in params], [p.data for p in params]
        if self.adaptive:
            size = torch._foreach_abs(weights)
            torch._foreach_add_(size, 0.01)
            torch._foreach_mul_(grads, size)                     # T g
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(grads))).item() if grads else 0.0
        if math.isfinite(norm) and norm > 0:
            if self.adaptive:
                torch._foreach_mul_(grads, size)                 # T^2 g
            self._old = list(zip(params, weights, strict=True))
            torch._foreach_mul_(grads, self.rho / norm)
            for param, climbed in zip(params, torch._foreach_add(weights, grads), strict=True):
                param.data = climbed
        for param in params:
            param.grad = None

    def descend(self) -> None:
        """Back to w, bit for bit. The gradients, those of w + e(w), stay for `step`."""
        for param, weight in self._old:
            param.data = weight
        self._old = []

    def zero_grad(self) -> None:
        self.optimizer.zero_grad()

    def step(self, norm: torch.Tensor) -> None:
        """One step of the base optimizer; then the gradients are gone.

        norm: () the norm of all gradients; when it is not finite, weights and momentum stay as they are.
        """
        self.norm = norm.item()
        finite = math.isfinite(self.norm)
        scaler = getattr(self.optimizer, "scaler", None)         # fp16: it skips by itself, and lowers its factor for it
        if finite or scaler is not None:
            self.optimizer.step()
        self.optimizer.zero_grad()
        self.steps += 1
        self.skipped += not finite
        self.skipped_in_a_row = 0 if finite else self.skipped_in_a_row + 1

    @property
    def param_groups(self) -> list[dict]:
        return self.optimizer.param_groups

    def state_dict(self) -> dict:
        """The base optimizer's state (momentum) and the counters; rho and the like belong to the config."""
        return {"base": self.optimizer.state_dict(), "steps": self.steps, "skipped": self.skipped}

    def load_state_dict(self, state: dict) -> None:
        self.optimizer.load_state_dict(state["base"])
        self.steps, self.skipped = state["steps"], state["skipped"]


@contextlib.contextmanager
def frozen_batchnorm(model: torch.nn.Module):
    """Within, BatchNorm normalises by the batch but leaves its running statistics alone, so they move once a SAM step.

    Not tracking beats a momentum of 0, which still lets a NaN through (0 * NaN) and counts the batch.
    """
    layers = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats and m.training]
    try:
        for layer in layers:
            layer.track_running_stats = False
        yield
    finally:
        for layer in layers:
            layer.track_running_stats = True
