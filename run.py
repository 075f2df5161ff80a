"""Where a training stands: all that `--resume` needs, and what its checkpoints hold beside weights."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Iterable
from pathlib import Path

import pandas as pd
import torch
from accelerate import Accelerator

import checkpoint
import record
from config import Config, ConfigError
from sam import SAM
from views import VIEWS

NOT_OURS = "does not fit its own settings and photos: it was changed or is broken. Start a new run."


@dataclasses.dataclass
class Run:
    """A training and its folder. learner: the model that learns. judged: the one that is scored, kept as the best, and asked later: the
    moving average of its weights, or itself. about: what each checkpoint says beside what stands here, by name; judging.py asks it for
    "classes", "image_size" and "crop". Only the main process writes.

    progress: as for engine.train_one_epoch, and "minutes". history: a row for each epoch, as in log.csv; 0 is the head alone. refit: what
    the head that answers has more than the one that is scored (fitting.start_head).
    """

    folder: Path
    learner: torch.nn.Module
    judged: torch.nn.Module
    optimizer: SAM
    accelerator: Accelerator
    about: dict
    progress: dict
    history: list[dict] = dataclasses.field(default_factory=list)
    refit: dict[str, torch.Tensor] = dataclasses.field(default_factory=dict)
    began: float = dataclasses.field(default=0.0, init=False)  # seconds of time.monotonic

    def restore(self, saved: dict) -> None:
        """Stand where last.pt was saved. Raises CheckpointError."""
        scaler = self.accelerator.scaler
        try:
            self.learner.load_state_dict(saved["learner"])
            self.judged.load_state_dict(saved["weights"])
            self.optimizer.load_state_dict(saved["optimizer"])
            if scaler and saved["scaler"]:  # none where the run began on a device without one
                scaler.load_state_dict(saved["scaler"])
            self.progress |= saved["progress"]
            self.history, self.refit = list(saved["history"]), saved["refit"]
            if self.history:
                self.best()
        except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
            raise checkpoint.CheckpointError(f"{self.folder / 'last.pt'}: {NOT_OURS}") from error

    def start_clock(self) -> None:
        self.began = time.monotonic() - 60 * self.progress["minutes"]

    def minutes(self) -> float:
        """Of training so far, those before an interruption too."""
        return (time.monotonic() - self.began) / 60

    def best(self) -> dict:
        """The epoch of the lowest validation loss: it weighs how sure each answer was, where accuracy's highest value is often luck."""
        return min(self.history, key=lambda row: row["val_loss"])

    def add(self, row: dict) -> None:
        """An epoch to the history and log.csv; best.pt, if it is the best so far."""
        self.history.append(row)
        self.progress["minutes"] = row["minutes"]
        if self.best() is row:
            self.save("best.pt")
        if self.accelerator.is_main_process:
            record.write_table(self.folder / "log.csv", pd.DataFrame(self.history))

    def save(self, name: str, **more) -> None:
        if self.accelerator.is_main_process:
            checkpoint.save(self.folder / name, self.about | {
                "temperatures": [1.0] * len(VIEWS), "known_limits": [0.0] * len(VIEWS), "history": self.history,
                "weights": self.judged.state_dict(), "refit": self.refit, **more})

    def save_last(self) -> None:
        scaler = self.accelerator.scaler
        self.save("last.pt", learner=self.learner.state_dict(), optimizer=self.optimizer.state_dict(), progress=self.progress,
                  scaler=scaler.state_dict() if scaler else {})


def last_of(folder: Path) -> dict:
    """What the run in there saved last. Raises ConfigError, CheckpointError."""
    if not (folder / "last.pt").is_file():
        raise ConfigError(f"--resume {folder}: holds no last.pt. Give the folder of a stopped run; one of all folds goes on by the command "
                          "that began it, with its --out.")
    return checkpoint.load(folder / "last.pt")


def check_flags(flags: Iterable[str]) -> None:
    """Raises ConfigError if a flag beside --resume is one that a run may not be given anew."""
    others = [flag for flag in flags if flag.replace("--no-", "--") not in ("--resume", "--workers", "--quiet", "--data")]
    if others:
        raise ConfigError(f"--resume goes on with the run's own settings: drop {', '.join(others)}, or start a new run without --resume.")


def resumed(config: Config, saved: dict) -> Config:
    """The run's own settings; only --workers, --quiet, and --data, where its photos are now, may be given anew. Raises ConfigError,
    CheckpointError, RunError."""
    given = config.differences()
    check_flags("--" + knob.replace("_", "-") for knob in given)
    if "data" in given and not config.data.exists():
        raise ConfigError(f"--data {config.data}: no such folder or CSV. Give the place where the run's photos are now.")
    record.check_folder(config.resume)
    try:
        own = Config.from_dict(saved["config"])
        finished = saved["progress"]["epoch"] >= own.epochs
    except (AttributeError, KeyError, TypeError) as error:
        raise checkpoint.CheckpointError(f"{config.resume / 'last.pt'}: {NOT_OURS}") from error
    if finished and record.is_finished(config.resume):  # its row alone may be an older run's
        raise ConfigError(f"--resume {config.resume}: this run has finished its {own.epochs} epochs. Start a new one without "
                          f"--resume; `python -m tools.report {config.resume}` writes its report again.")
    workers = config.workers if config.workers >= 0 else own.workers
    data = config.data if "data" in given else own.data
    return dataclasses.replace(own, resume=config.resume, data=data, workers=workers, quiet=config.quiet)


def check_settings(folder: Path, config: Config) -> None:
    """Raises RunError if `folder` holds a run of other settings than `config`, but for the place of its photos, which may have moved."""
    if (folder / "config.json").exists():
        found = Config.from_dict(json.loads((folder / "config.json").read_text(encoding="utf-8"))["config"]).to_dict()
        other = sorted(knob for knob, value in config.to_dict().items()
                       if value != found[knob] and knob not in (*record.NO_RESULT, "data"))
        if other:
            raise record.RunError(f"{folder}: was trained with other settings ({', '.join(other)}). Give those it began with, or another "
                                  "--out.")
