"""What changes while a model is trained: the learning rate, and the size of the photos it is shown."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from timm.scheduler import CosineLRScheduler, MultiStepLRScheduler

SMALLEST = 128  # pixels: at 64 drawn mushrooms of 96 were unlearnt rather than learnt, and real photos won nothing


def make_schedule(kind: str, optimizer: torch.optim.Optimizer, steps: int, warmup: float) -> Callable[[int], None]:
    """A function that sets the rate for a step, from 0 to steps - 1: a climb over the share `warmup` of training, then

    "cosine": down to 0 (with warmup 0.3: one-cycle); "restarts": three times down to 0, each from half the last height;
    "step": to a tenth at 60 % and to a hundredth at 85 % of the rest.
    """
    climb = round(warmup * steps)
    rest = steps - climb
    common = dict(warmup_t=climb, warmup_prefix=True, t_in_epochs=False)
    if kind == "step":
        return MultiStepLRScheduler(optimizer, [round(0.6 * rest), round(0.85 * rest)], 0.1, **common).step_update
    cycles = 3 if kind == "restarts" else 1
    return CosineLRScheduler(optimizer, max(1, -(-rest // cycles)), cycle_limit=cycles, cycle_decay=0.5, **common).step_update


def side_at(size: int, share: float) -> int:
    """Pixels of a side at `share` of size: a multiple of 32, as backbones halve a photo five times, at least SMALLEST, at most size."""
    return min(size, max(SMALLEST, round(share * size / 32) * 32)) if share < 1 else size


def training_sizes(size: int, begin: float, end: float) -> list[int]:
    """All that make_sizes will show photos of that size at."""
    return sorted({*range(side_at(size, begin), side_at(size, end), 32), side_at(size, end)})


def make_sizes(begin: float, end: float, steps: int) -> Callable[[torch.Tensor, int], torch.Tensor]:
    """A function (images (B, 3, S, S), step) → the same, smaller: from `begin` of S to `end` of S, no less, in the last third of training.

    Small photos cost less, and the strength of what is learnt from them carries over (progressive resizing; Tan and Le 2021,
    arXiv 2104.00298). What is cut at random to train on looks larger than what is asked, which an `end` below 1 makes good (FixRes; Touvron
    et al. 2019, arXiv 1906.06423). Resized on the device, so that the loader's work, and what each photo draws, stay as they are.
    """
    def resize(images: torch.Tensor, step: int) -> torch.Tensor:
        side = side_at(images.shape[-1], min(end, begin + (end - begin) * step / max(1, 2 / 3 * steps)))
        return F.interpolate(images.float(), side, mode="bilinear", antialias=True) if side < images.shape[-1] else images

    return resize
