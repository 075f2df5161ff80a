"""One file a checkpoint: written whole or not at all, and read without running anything in it."""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
import zipfile
from pathlib import Path

from photos import is_name
from trust import DANGERS

FORMAT = 1
NEEDED = {"format", "model", "classes", "image_size", "crop", "temperature", "known_limit", "notes", "config", "head", "weights"}
LARGEST_PHOTO = 4096  # pixels; a broken or hostile file may ask for more memory than there is


class WriteError(ValueError):
    """A file cannot be written; the message names it, and the old one is still there."""


class CheckpointError(ValueError):
    """A checkpoint cannot be used; the message names the file and the remedy."""


def save(path: Path, checkpoint: dict) -> None:
    """Replace `path` at once: a crash or a full disk leaves the old file whole. Tensors and plain types only."""
    import torch  # here, for it takes seconds and an exported model is asked without it
    with atomic_file(path) as file:
        torch.save({"format": FORMAT, **checkpoint}, file)


class atomic_file:
    """A binary file beside `path` that takes its name only when all is written and on the disk. Raises WriteError."""

    def __init__(self, path: Path):
        self.path = Path(path)

    def __enter__(self):
        try:
            self.file = tempfile.NamedTemporaryFile(dir=self.path.parent, prefix=f".{self.path.name}.", delete=False)
        except OSError as error:
            raise self.failed(error) from error
        return self.file

    def __exit__(self, kind, error, _) -> None:
        try:
            self.finish(kind)
        except OSError as late:  # a full disk may show only when the file is closed
            error = late
        written = error if isinstance(error, OSError) else getattr(error, "__context__", None)  # torch.save raises its own upon write()'s
        if isinstance(written, OSError) or "PytorchStreamWriter" in str(error):
            raise self.failed(written) from error

    def failed(self, error: BaseException | None) -> WriteError:
        reason = getattr(error, "strerror", None) or "writing failed, the disk may be full"
        kept = "; the one written before is still there" if self.path.exists() else ""
        return WriteError(f"{self.path}: cannot be written ({reason}){kept}. "
                          "Make room, make the folder writable, or close the program that has it open.")

    def finish(self, kind) -> None:
        try:
            if kind is None:
                self.file.flush()
                os.fsync(self.file.fileno())
                self.file.close()
                os.chmod(self.file.name, 0o644)  # temporary files are private, results are not
                self.replace()
        finally:
            with contextlib.suppress(OSError):  # closing flushes, which fails again on a full disk
                self.file.close()
            if os.path.exists(self.file.name):
                os.unlink(self.file.name)

    def replace(self) -> None:
        """Windows refuses while another program has the old file open: a virus scanner for a moment, a spreadsheet until it is closed."""
        for patience in (0.1, 0.3, 1, 3):
            try:
                return os.replace(self.file.name, self.path)
            except PermissionError:
                time.sleep(patience)
        os.replace(self.file.name, self.path)


def models_of(place: Path) -> list[Path]:
    """The models that a path names: itself; in a run's folder best.pt, or those of its folds, all trained. Raises CheckpointError."""
    if not place.is_dir():
        return [place]
    if (place / "best.pt").is_file():
        return [place / "best.pt"]
    folds = sorted(place.glob("fold*/best.pt"))
    if not folds:
        raise CheckpointError(f"{place}: holds no best.pt, nor a fold with one. Pass --checkpoint a run's folder, or a model in it.")
    if not (place / "oof.csv").is_file():  # until its end a model does not know what is unknown to it
        raise CheckpointError(f"{place}: not all of its folds are trained. Go on by the command that began it, or pass one: {folds[0]}")
    return folds


def check_exists(path: Path) -> None:
    """Raises CheckpointError; without torch, so that who mistyped a name waits for nothing."""
    if not path.is_file():
        raise CheckpointError(f"{path}: no such checkpoint. Train one with `python main.py`, or pass --checkpoint RUN/best.pt.")


def load(path: Path) -> dict:
    """What `save` wrote, on the CPU. Raises CheckpointError when it is missing, broken, or something else."""
    import torch
    path = Path(path)
    check_exists(path)
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
        packed = unpacked > path.stat().st_size
        checkpoint = None if packed else torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises a dozen kinds here; all mean the same to a user
        raise CheckpointError(f"{path}: not a checkpoint of this program, or a broken one. Use best.pt or last.pt of a run.") from error
    if packed:  # torch.save never does that
        raise CheckpointError(f"{path}: is packed, and would unpack to {unpacked / 1e9:.1f} GB. Use best.pt or last.pt of a run.")
    missing = NEEDED - set(checkpoint) if isinstance(checkpoint, dict) else NEEDED
    if missing:
        raise CheckpointError(f"{path}: holds no {', '.join(sorted(missing))}: not a checkpoint of this program. "
                              "Use best.pt or last.pt of a run.")
    if checkpoint["format"] != FORMAT:
        raise CheckpointError(f"{path}: has format {checkpoint['format']}, this program reads format {FORMAT}. "
                              "Use the version that wrote it.")
    broken = _broken(checkpoint)
    if broken:
        raise CheckpointError(f"{path}: its {broken}: it was changed or is broken. Use best.pt or last.pt of a run.")
    return checkpoint


def _broken(checkpoint: dict) -> str:
    """What a stranger's file may hold and no run of ours writes; "" if nothing."""
    import torch
    weights = checkpoint["weights"]
    if not isinstance(checkpoint["model"], str):
        return "model is not a name"
    if checkpoint["head"] not in ("linear", "cosine"):
        return "head is of no kind that there is"
    if not (isinstance(weights, dict) and all(isinstance(w, torch.Tensor) for w in weights.values())):
        return "weights are not tensors by name"
    # an expanded tensor may claim more numbers than memory holds: those it stores are what counts
    stored = [torch.tensor([], dtype=w.dtype).set_(w.untyped_storage()) for w in weights.values() if w.is_floating_point()]
    return implausible(checkpoint) if all(numbers.isfinite().all() for numbers in stored) else "weights are not finite"


def implausible(answering: dict) -> str:
    """What of classes, image_size, crop, temperature, known_limit and notes is not as this program writes it; "" if nothing."""
    classes, size, notes = (answering[name] for name in ("classes", "image_size", "notes"))
    if not (isinstance(classes, list) and classes and all(isinstance(c, str) and is_name(c) for c in classes)
            and len(set(classes)) == len(classes)):
        return "classes are not a list of names"
    if not (isinstance(size, int) and 1 <= size <= LARGEST_PHOTO):
        return f"image_size is not 1 to {LARGEST_PHOTO} pixels"
    for name, low, high in (("crop", 0.1, 1), ("temperature", 1e-3, 1e3), ("known_limit", 0, 1)):
        if not (isinstance(answering[name], (int, float)) and low <= answering[name] <= high):
            return f"{name} is not a number from {low} to {high}"
    if not (isinstance(notes, dict) and set(notes) <= set(classes) and all(
            isinstance(note, dict) and note.get("danger") in DANGERS and isinstance(note.get("note"), str) and note["note"].isprintable()
            for note in notes.values())):
        return "notes are not warnings of its classes"
    return ""
