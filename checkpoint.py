"""One file a checkpoint, read without running anything in it."""

from __future__ import annotations

import pickletools
import re
import zipfile
from pathlib import Path

from config import LARGEST_PHOTO, LARGEST_SCALE, MOST_DIRECTIONS
from files import atomic_file
from text import is_name
from trust import DANGERS
from views import VIEWS

FORMAT = 1
CENTRES = 8  # clusters of a class's training photos, that say what is known (known.Known)
ONE_FOR_ALL = ("temperature", "known_limit")  # what files of before hold in place of a list, by number of views
NEEDED = {"format", "model", "classes", "image_size", "crop", "temperatures", "known_limits", "notes", "config", "weights"}
# All that a pickle of ours names. torch's weights_only knows more, of which bytearray(10**9) is one.
GLOBALS = re.compile(r"collections OrderedDict|torch\._utils _rebuild_(tensor_v2|parameter)|torch \w+Storage")


class CheckpointError(ValueError):
    """A checkpoint cannot be used; the message names the file and the remedy."""


def save(path: Path, checkpoint: dict) -> None:
    """Replace `path` at once: a crash or a full disk leaves the old file whole. Tensors and plain types only."""
    import torch  # here, for it takes seconds and an exported model is asked without it
    with atomic_file(path) as file:
        torch.save({"format": FORMAT, **checkpoint}, file)


def models_of(place: Path) -> list[Path]:
    """The models that a path names: itself; in a run's folder best.pt, or those of its folds, all trained. Raises CheckpointError."""
    if not place.is_dir():
        return [place]
    alone, folds = place / "best.pt", sorted(place.glob("fold*/best.pt"))
    if alone.is_file() and folds:
        raise CheckpointError(f"{place}: holds a model of its own, and folds. Pass {alone}, or the folds, each by its name.")
    if alone.is_file():
        return [alone]
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
    path = Path(path)
    check_exists(path)
    try:
        checkpoint = read_archive(path)
    except Exception as error:  # torch raises a dozen kinds here; all mean the same to a user
        raise CheckpointError(f"{path}: not a checkpoint of this program, or a broken one. Use best.pt or last.pt of a run.") from error
    if isinstance(checkpoint, dict):
        cosine = 30.0 if checkpoint.get("head") == "cosine" else 0.0
        for name, before in (("covariance", 0), ("refit", {}), ("cosine", cosine)):  # a run of before there was any
            checkpoint.setdefault(name, before)
        for_all_views(checkpoint)
        if isinstance(checkpoint.get("config"), dict):
            checkpoint["config"].setdefault("augment", 0.5)  # what all had before it was a knob
    missing = NEEDED - set(checkpoint) if isinstance(checkpoint, dict) else NEEDED
    if missing:
        raise CheckpointError(f"{path}: holds no {', '.join(sorted(missing))}: not a checkpoint of this program. "
                              "Use best.pt or last.pt of a run.")
    if type(checkpoint["format"]) is not int or checkpoint["format"] != FORMAT:  # a stranger's may be a tensor, or a gigabyte to print
        raise CheckpointError(f"{path}: is not of format {FORMAT}, which this program reads. Use the version that wrote it.")
    broken = _broken(checkpoint, path.stat().st_size)
    if broken:
        raise CheckpointError(f"{path}: its {broken}: it was changed or is broken. Use best.pt or last.pt of a run.")
    for weights in (checkpoint["weights"], checkpoint.get("learner")):
        means = weights.get("known.means") if isinstance(weights, dict) else None
        if getattr(means, "shape", ())[:1] == (len(checkpoint["classes"]),):  # of before a class had several
            weights["known.means"] = means.repeat_interleave(CENTRES, 0)
    return checkpoint


def starts_as_archive(path: Path) -> bool:
    """By what torch tells its archives from its format of 2019."""
    with open(path, "rb") as file:
        return file.read(4) == b"PK\3\4"


def read_archive(path: Path):
    """What torch.save wrote, on the CPU: nothing in it is run, and it takes about as much memory as the file is large. Raises all
    kinds of errors where it is anything else."""
    import torch
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        names = {entry.filename.lower() for entry in entries}  # torch's reader takes A for a
        plain = starts_as_archive(path) and min(entry.header_offset for entry in entries) == 0 and len(names) == len(entries)
        if not plain or any(entry.compress_type for entry in entries) or sum(entry.file_size for entry in entries) > path.stat().st_size:
            raise ValueError("an archive that torch.save does not write")
        for operation, argument, _ in pickletools.genops(archive.read(entries[0].filename.split("/")[0] + "/data.pkl")):
            foreign = operation.name == "GLOBAL" and not GLOBALS.fullmatch(argument)
            if foreign or (isinstance(argument, str) and "\0" in argument):  # to torch, the numbers under "0\0" are those under "0" again
                raise ValueError("a pickle that torch.save does not write")
    return torch.load(path, map_location="cpu", weights_only=True)


def _broken(checkpoint: dict, size: int) -> str:
    """What a stranger's file of `size` bytes may hold and no run of ours writes; "" if nothing."""
    import torch
    weights, config = checkpoint["weights"], checkpoint["config"]
    augment = config.get("augment") if isinstance(config, dict) else None
    if not (isinstance(augment, (int, float)) and 0 <= augment <= 1):  # the one setting that an answer may ask for
        return "config is not that of a run"
    for name in ("model", "kept"):
        if not (isinstance(checkpoint.get(name, ""), str) and is_name(checkpoint.get(name, ""))):
            return f"{name} is not a name"
    if not (isinstance(checkpoint["cosine"], (int, float)) and 0 <= checkpoint["cosine"] <= LARGEST_SCALE):
        return "cosine is not the scale of a head"
    if not (type(checkpoint["covariance"]) is int and 0 <= checkpoint["covariance"] <= MOST_DIRECTIONS):
        return "covariance is not a number of directions"
    if not (isinstance(weights, dict) and all(isinstance(name, str) and isinstance(w, torch.Tensor) for name, w in weights.items())):
        return "weights are not tensors by name"
    if sum(w.nbytes for w in weights.values()) > 2 * size:  # views of the same few numbers; some of timm's networks share a few
        return "weights are more than it holds"
    refit = checkpoint["refit"]
    if not isinstance(refit, dict) or not all(isinstance(w, torch.Tensor) and w.isfinite().all() for w in refit.values()) or (
            refit and shapes(refit) != {name[5:]: w.shape for name, w in weights.items() if name.startswith("head.")}):
        return "refit tensors do not fit its head"
    return implausible(checkpoint) if all(w.isfinite().all() for w in weights.values()) else "weights are not finite"


def shapes(weights: dict) -> dict:
    """What must agree for weights to fit a network, or one another."""
    return {name: w.shape for name, w in weights.items()}


def for_all_views(answering: dict) -> None:
    """One temperature and one limit of the known, of before each number of views had its own, become lists of them."""
    for name in ONE_FOR_ALL:
        if name in answering:
            answering[f"{name}s"] = [answering.pop(name)] * len(VIEWS)


def implausible(answering: dict) -> str:
    """What of classes, image_size, crop, temperatures, known_limits and notes is not as this program writes it; "" if nothing."""
    classes, size, notes = (answering[name] for name in ("classes", "image_size", "notes"))
    if not (isinstance(classes, list) and classes and all(isinstance(c, str) and is_name(c) for c in classes)
            and len(set(classes)) == len(classes)):
        return "classes are not a list of names"
    if not (isinstance(size, int) and 1 <= size <= LARGEST_PHOTO):
        return f"image_size is not 1 to {LARGEST_PHOTO} pixels"
    if not _between(answering["crop"], 0.1, 1):
        return "crop is not a number from 0.1 to 1"
    for name, low, high in (("temperatures", 1e-3, 1e3), ("known_limits", 0, 1)):
        if not (isinstance(answering[name], list) and len(answering[name]) == len(VIEWS)
                and all(_between(one, low, high) for one in answering[name])):
            return f"{name} are not {len(VIEWS)} numbers from {low} to {high}"
    if not (isinstance(notes, dict) and set(notes) <= set(classes) and all(
            isinstance(note, dict) and note.get("danger") in DANGERS and isinstance(note.get("note"), str) and note["note"].isprintable()
            for note in notes.values())):
        return "notes are not warnings of its classes"
    return ""


def _between(number, low: float, high: float) -> bool:
    return isinstance(number, (int, float)) and low <= number <= high
