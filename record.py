"""What a run leaves behind: its folder, the log, the settings, and a row in the record of all experiments."""

from __future__ import annotations

import csv
import json
import platform
import time
from importlib.metadata import version
from pathlib import Path

import pandas as pd
from filelock import FileLock, Timeout

from checkpoint import atomic_file

EXPERIMENTS = Path("runs/experiments.csv")
LOCK_PATIENCE = 15  # seconds; workers notice after 5 that their run was killed


class RunError(ValueError):
    """The run folder cannot be used as asked; the message names the remedy."""


def new_folder(out: Path | None, model: str) -> Path:
    """An empty folder for a run: `out`, or runs/DATE-TIME-MODEL. Raises RunError if it holds a run already."""
    folder = out or Path("runs") / time.strftime(f"%Y%m%d-%H%M%S-{model.split('.')[0]}")
    if (folder / "last.pt").exists():
        raise RunError(f"{folder}: holds a run already. Go on with it by --resume {folder}, or give another --out.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"{folder}: cannot be made ({error.strerror}). Give another --out.") from error
    return folder


def lock(folder: Path) -> FileLock:
    """The right to write to a run folder, held while the object lives. Raises RunError if another process has it.

    The system frees it when the process ends, however it ends; workers of a killed run live on for some seconds.
    """
    held = FileLock(folder / ".lock", timeout=LOCK_PATIENCE, is_singleton=True)
    try:
        held.acquire()
    except Timeout:
        raise RunError(f"{folder}: another process is training into it. Wait for its end, or give another --out.") from None
    except OSError as error:
        raise RunError(f"{folder}: cannot be written to ({error.strerror}). Give another --out.") from error
    return held


def write_settings(folder: Path, config: dict, device: str, precision: str) -> None:
    packages = ("torch", "torchvision", "timm", "albumentations", "opencv-python-headless", "numpy", "accelerate")
    versions = {"python": platform.python_version()} | {p: version(p) for p in packages}
    settings = {"config": config, "device": device, "precision": precision, "versions": versions}
    with atomic_file(folder / "config.json") as file:
        file.write(json.dumps(settings, indent=2, ensure_ascii=False).encode())


def write_table(path: Path, table: pd.DataFrame) -> None:
    with atomic_file(path) as file:
        table.to_csv(file, index=False, lineterminator="\n", errors="surrogateescape")  # names of photos as the disk has them


def read_table(path: Path) -> pd.DataFrame:
    """What write_table wrote: all columns text, nothing missing."""
    return pd.read_csv(path, dtype=str, keep_default_na=False, lineterminator="\n", encoding_errors="surrogateescape")


def has_experiment(run: Path) -> bool:
    """Whether the run has its row: a kill after the last epoch may come before it."""
    if not EXPERIMENTS.exists():
        return False
    with EXPERIMENTS.open(newline="", encoding="utf-8") as file:
        return any(Path(row["run"] or "").resolve() == run.resolve() for row in csv.DictReader(file))


def add_experiment(run: Path, changed: dict, scores: dict, minutes: float) -> None:
    """One row: when, where, the settings that differ from the defaults, the best epoch's scores, minutes of training."""
    settings = " ".join(f"{k}={v}" for k, v in changed.items() if k != "out")
    row = {"finished": time.strftime("%Y-%m-%d %H:%M"), "run": str(run), **scores, "minutes": f"{minutes:.1f}", "settings": settings}
    EXPERIMENTS.parent.mkdir(exist_ok=True)
    fresh = not EXPERIMENTS.exists()
    with EXPERIMENTS.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, row)
        if fresh:
            writer.writeheader()
        writer.writerow(row)
