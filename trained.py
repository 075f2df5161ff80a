"""A checkpoint, ready to answer: predict.py's way through torch and timm."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

import checkpoint
import engine
from checkpoint import CheckpointError, shapes
from dataset import Batches, Photos, make_loader
from device import enough_memory, keep_memory, make_accelerator
from folding import fold_batchnorm
from model import Classifier, add_to_head, build_model
from transforms import RandomViews
from views import FixedViews


class Trained:
    """A best.pt on the best device there is. Raises CheckpointError.

    tta: views of each photo; tta_random: draws of the training augmentation instead of fixed ones. workers: processes
    that read photos while the network works.
    """

    def __init__(self, path: Path, tta: int, tta_random: bool, batch: int, workers: int):
        keep_memory()
        model, saved = load_model(path)
        self.classes: list[str] = saved["classes"]
        size, crop = saved["image_size"], saved["crop"]
        self.views = RandomViews(size, tta, saved["config"]["augment"]) if tta_random else FixedViews(size, crop, tta)
        self.accelerator, _ = make_accelerator()
        self.temperature, self.limit = saved["temperatures"][tta - 1], saved["known_limits"][tta - 1]
        self.notes, self.batch, self.workers = saved["notes"], batch, workers
        with enough_memory(self.accelerator.device):
            self.model = model.to(self.accelerator.device)
            fold_batchnorm(self.model, torch.zeros(1, 3, size, size, device=self.accelerator.device))

    def answers(self, paths: Sequence[str], tick: Callable[[int], None]) -> tuple[np.ndarray, np.ndarray, dict[int, str]]:
        """Probabilities (N, K) and `known` (N,), averaged over the views, and {index: why} of photos that cannot be read (rows NaN)."""
        photos = Photos(paths, self.views, seed=0, min_side=self.views.min_side)
        workers = self.workers if len(paths) > self.batch else 0  # to start them takes longer than to read so few
        on_gpu = self.accelerator.device.type == "cuda"
        loader = make_loader(photos, Batches(len(photos), self.batch, views=self.views.count), workers, on_gpu)
        with enough_memory(self.accelerator.device):
            return engine.predict(self.model, loader, len(self.classes), self.accelerator, self.temperature, tick)


def load_model(path: Path, refit: bool = True) -> tuple[Classifier, dict]:
    """The network of a checkpoint, ready to answer on the CPU, and all that the checkpoint holds. refit: its head has learnt from the
    validation photos too, where the run let it; False = as it was scored. Raises CheckpointError."""
    saved = checkpoint.load(path)
    model = network(path, saved)
    if refit:
        add_to_head(model, saved["refit"])
    return model, saved


def network(path: Path, saved: dict) -> Classifier:
    """The network as it was scored, of a checkpoint that is loaded. Raises CheckpointError."""
    asked = saved["model"], len(saved["classes"]), "none", saved["cosine"], saved["covariance"]
    with torch.device("meta"):  # of no memory: a small file may name a network of 17 GB
        outline = build_model(*asked)
    if shapes(outline.state_dict()) != shapes(saved["weights"]):
        raise CheckpointError(f"{path}: its weights do not fit {saved['model']}: it was changed or is broken.")
    model = build_model(*asked)  # anew, for some buffers are not among the weights
    model.load_state_dict(saved["weights"])
    return model.eval()
