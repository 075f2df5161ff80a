"""What a run leaves behind: its folder, the log, the settings, and a row in the record of all experiments."""

from __future__ import annotations

import contextlib
import itertools
import json
import platform
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd
from filelock import FileLock, Timeout

from files import WriteError, atomic_file
from text import shown

EXPERIMENTS = Path("runs/experiments.csv")
NO_RESULT = ("out", "resume", "workers", "cache", "quiet", "track")  # knobs that say where and how a run goes, not what comes of it
WRITTEN = ("photos.csv",  # the first one first
           "config.json", "batch.png", "log.csv", "head.pt", "best.pt", "val.csv", "report.html", "report")
LOCK_PATIENCE = 15  # seconds; workers notice after 5 that their run was killed


class RunError(ValueError):
    """The run folder cannot be used as asked; the message names the remedy."""


def new_folder(out: Path | None, model: str) -> Path:
    """A folder for a run: `out`, or a new runs/DATE-TIME-MODEL. Raises RunError if it cannot be made."""
    folder = out or Path("runs") / time.strftime(f"%Y%m%d-%H%M%S-{model.split('.')[0]}")
    try:
        if out:
            out.mkdir(parents=True, exist_ok=True)
        else:
            folder = make_unused(folder)
    except OSError as error:
        raise RunError(f"{folder}: cannot be made ({error.strerror}). Give another --out.") from error
    check_folder(folder)  # now, as its report at the end would be refused
    return folder


def make_unused(folder: Path) -> Path:
    """Makes `folder`, or, where another run began in the same second, FOLDER-2, or -3, ...; returns it."""
    for number in itertools.count(1):
        own = folder if number == 1 else folder.with_name(f"{folder.name}-{number}")
        with contextlib.suppress(FileExistsError):
            own.mkdir(parents=True)
            return own


def check_folder(folder: Path) -> None:
    """Raises RunError if `folder` holds anything but files and folders, at any depth: what a stranger's run links to would be shown in
    its report, or written over; a pipe would be waited for, a device read without end. The folder itself may be a link."""
    for path in folder.rglob("*"):
        if path.is_symlink() or (path.exists() and not (path.is_file() or path.is_dir())):  # not there: another process's, just removed
            raise RunError(f"{shown(path)}: neither a file nor a folder, and a run must not lead out of its own. "
                           "Delete it, or keep the run in a folder of its own.")


def check_finished(folder: Path, *names: str) -> None:
    """Raises RunError if `folder` lacks one of these files of a finished run, or as check_folder."""
    check_folder(folder)
    for name in names:
        if not (folder / name).is_file():
            raise RunError(f"{folder}: no finished run, it holds no {name}. Pass a folder that main.py made under runs/; one that was "
                           f"stopped ends by main.py --resume {folder}.")


def lock(folder: Path, new: bool) -> FileLock:
    """The right to write to a run folder, held while the object lives. Raises RunError if another process has it, or new = True and
    the folder holds a run, or files of the user's that a run would replace: asked with the lock in hand, as another run may end while
    this one waits.

    The system frees it when the process ends, however it ends; workers of a killed run live on for some seconds.
    """
    held = FileLock(folder / ".lock", timeout=LOCK_PATIENCE, is_singleton=True)
    try:
        held.acquire()
    except Timeout:
        raise RunError(f"{folder}: another process is training into it. Wait for its end, or give another --out.") from None
    except OSError as error:
        raise RunError(f"{folder}: cannot be written to ({error.strerror}). Give another --out.") from error
    for name in ("best.pt", "head.pt", "last.pt"):
        for part in folder.glob(f".{name}.*"):  # a kill came while it was written
            part.unlink()
    if new and any((folder / name).exists() for name in ("last.pt", "val.csv")):  # of a finished one the first may be deleted
        raise RunError(f"{folder}: holds a run already. If it was stopped, go on with it by --resume {folder}; else give another --out.")
    theirs = [name for name in WRITTEN if new and (folder / name).exists()]
    if theirs and not is_run(folder):
        raise RunError(f"{folder}: holds a {theirs[0]} that no run wrote, and a run would replace it. Give another --out.")
    return held


def write_settings(folder: Path, config: dict, device: str, precision: str) -> None:
    packages = ("torch", "torchvision", "timm", "albumentations", "opencv-python-headless", "numpy", "accelerate")
    versions = {"python": platform.python_version()} | {p: version(p) for p in packages}
    settings = {"config": config, "device": device, "precision": precision, "versions": versions}
    with atomic_file(folder / "config.json") as file:
        file.write(json.dumps(settings, indent=2, ensure_ascii=False).encode(errors="backslashreplace"))  # as JSON has it


def write_table(path: Path, table: pd.DataFrame) -> None:
    with atomic_file(path) as file:
        table.to_csv(file, index=False, lineterminator="\n", errors="surrogateescape")  # names of photos as the disk has them


def write_answers(path: Path, photos: pd.DataFrame, probs: np.ndarray, classes: list[str]) -> None:
    """image,label and a column of probability for each class; photos that could not be read are left out."""
    table = pd.DataFrame({"image": photos.path.to_numpy(), "label": photos.label.to_numpy()})
    table = pd.concat([table, pd.DataFrame(probs, columns=classes)], axis=1)
    write_table(path, table[~np.isnan(probs).any(1)])


def read_table(path: Path) -> pd.DataFrame:
    """What write_table wrote: all columns text, nothing missing. It may have been saved by a spreadsheet since."""
    table = pd.read_csv(path, dtype=str, keep_default_na=False, lineterminator="\n", encoding_errors="surrogateescape")
    last = table.columns[-1]
    if last.endswith("\r"):
        table[last] = table[last].str.removesuffix("\r")
    return table.rename(columns={last: last.removesuffix("\r")})


def is_run(folder: Path) -> bool:
    """A run wrote its photos.csv: the first thing that it writes."""
    with contextlib.suppress(RunError):
        return bool(len(read_photos(folder)))
    return False


def read_photos(folder: Path) -> pd.DataFrame:
    """The run's photos.csv. Raises RunError."""
    file, table = folder / "photos.csv", pd.DataFrame()
    with contextlib.suppress(KeyError, OSError, ValueError):  # pandas' errors are ValueErrors
        table = read_table(file).astype({"bytes": int})
    if not ({"path", "label", "side"} <= {*table} and {"train", "val"} <= {*table.side}):
        raise RunError(f"{file}: missing, or not as the run wrote it. Put it back, or start a new run.")
    return table


def read_answers(path: Path) -> tuple[pd.DataFrame, np.ndarray, np.ndarray]:
    """What write_answers wrote: the table, its probabilities float (N, K), and the labels int (N,) as columns of them. Raises RunError."""
    with contextlib.suppress(AttributeError, OSError, ValueError):
        table = read_table(path)
        classes = table.columns[2:].tolist()
        return table, table[classes].to_numpy(float), table.label.map(classes.index).to_numpy()
    raise RunError(f"{path}: missing, or not as the run wrote it. Put it back.")


def read_experiments(file: Path) -> pd.DataFrame:
    """The rows of a record of experiments. Raises RunError where it is not as add_experiment wrote it."""
    rows = pd.DataFrame()
    with contextlib.suppress(ValueError):  # pandas' errors are
        rows = read_table(file)
    if not {"finished", "run", "minutes", "settings"} <= {*rows}:
        raise RunError(f"{file}: not a record as main.py writes it. Save it as text with commas, or move it away.")
    return rows


def has_experiment(folder: Path) -> bool:
    """Whether the run has its row: a kill after the last epoch may come before it. Raises RunError."""
    return EXPERIMENTS.exists() and any(Path(other).resolve() == folder.resolve() for other in read_experiments(EXPERIMENTS).run)


def is_finished(folder: Path) -> bool:
    """Whether the run has told its score and has its row in the record. Raises RunError."""
    return (folder / "val.csv").exists() and has_experiment(folder)


def add_experiment(folder: Path, config: dict, scores: dict, minutes: float) -> None:
    """One row: when, where, every setting (whoever edits config.py changes the defaults), the kept model's scores, minutes of training.
    Raises WriteError."""
    settings = " ".join(f"{k}={v}" for k, v in config.items() if k not in NO_RESULT)
    row = {"finished": time.strftime("%Y-%m-%d %H:%M"), "run": str(folder), **scores, "minutes": f"{minutes:.1f}", "settings": settings}
    try:
        EXPERIMENTS.parent.mkdir(exist_ok=True)
        with FileLock(EXPERIMENTS.with_name(".experiments.lock")):             # two runs may end together
            before = [read_experiments(EXPERIMENTS)] if EXPERIMENTS.exists() else []
            write_table(EXPERIMENTS, pd.concat([*before, pd.DataFrame([row])]))  # by name: runs with test photos have more scores
    except (OSError, RunError, WriteError) as error:
        why = f"{EXPERIMENTS}: cannot be written to ({error.strerror}). Make its folder writable." if isinstance(error, OSError) else error
        raise WriteError(f"{why} Then `python main.py --resume {folder}` adds the row that is missing.") from error
