"""One file a checkpoint: written whole or not at all, and read without running anything in it."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

FORMAT = 1
NEEDED = {"format", "model", "classes", "image_size", "crop", "temperature", "config", "head", "weights"}


class CheckpointError(ValueError):
    """A checkpoint cannot be used; the message names the file and the remedy."""


def save(path: Path, checkpoint: dict) -> None:
    """Replace `path` at once: a crash or a full disk leaves the old file whole. Tensors and plain types only."""
    import torch  # here, for it takes seconds and an exported model is asked without it
    with atomic_file(path) as file:
        torch.save({"format": FORMAT, **checkpoint}, file)


class atomic_file:
    """A binary file beside `path` that takes its name only when all is written and on the disk."""

    def __init__(self, path: Path):
        self.path = Path(path)

    def __enter__(self):
        self.file = tempfile.NamedTemporaryFile(dir=self.path.parent, prefix=f".{self.path.name}.", delete=False)
        return self.file

    def __exit__(self, kind, *_) -> None:
        try:
            if kind is None:
                self.file.flush()
                os.fsync(self.file.fileno())
            self.file.close()
            if kind is None:
                os.chmod(self.file.name, 0o644)  # temporary files are private, results are not
                os.replace(self.file.name, self.path)
        finally:
            if os.path.exists(self.file.name):
                os.unlink(self.file.name)


def load(path: Path) -> dict:
    """What `save` wrote, on the CPU. Raises CheckpointError when it is missing, broken, or something else."""
    import torch
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such checkpoint. Train one with `python main.py`, or pass --checkpoint RUN/best.pt.")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises a dozen kinds here; all mean the same to a user
        raise CheckpointError(f"{path}: not a checkpoint of this program, or a broken one. Use best.pt or last.pt of a run.") from error
    missing = NEEDED - set(checkpoint) if isinstance(checkpoint, dict) else NEEDED
    if missing:
        raise CheckpointError(f"{path}: holds no {', '.join(sorted(missing))}: not a checkpoint of this program. "
                              "Use best.pt or last.pt of a run.")
    if checkpoint["format"] != FORMAT:
        raise CheckpointError(f"{path}: has format {checkpoint['format']}, this program reads format {FORMAT}. "
                              "Use the version that wrote it.")
    return checkpoint
