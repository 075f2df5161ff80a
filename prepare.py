"""What main.py does before the first epoch: settings of a run that goes on, a look at the photos, the time it will take."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import psutil
import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader
from tqdm import tqdm

import checkpoint
import dataset
import engine
import pictures
import record
from checkpoint import CheckpointError
from config import Config, ConfigError
from device import to_device
from mixup import mixup
from photos import shown
from sam import SAM, frozen_batchnorm
from split import describe, find_trouble, split

NOT_OURS = "does not fit its own settings and photos: it was changed or is broken. Start a new run."


def last_of(run: Path) -> dict:
    """What the run saved last. Raises ConfigError, CheckpointError."""
    if not (run / "last.pt").is_file():
        raise ConfigError(f"--resume {run}: holds no last.pt. Give the folder of a stopped run; one of all folds goes on by the command "
                          "that began it, with its --out.")
    return checkpoint.load(run / "last.pt")


def resumed(config: Config, saved: dict) -> Config:
    """The run's own settings; only --workers and --quiet may be given anew, as they change no result. Raises ConfigError,
    CheckpointError, RunError."""
    given = {k: v for k, v in config.differences().items() if k not in ("resume", "workers", "quiet")}
    if given:
        flags = ", ".join("--" + k.replace("_", "-") for k in given)
        raise ConfigError(f"--resume goes on with the run's own settings: drop {flags}, or start a new run without --resume.")
    record.check_folder(config.resume)
    try:
        own = Config.from_dict({"covariance": saved["covariance"], **saved["config"]})
        finished = saved["progress"]["epoch"] >= own.epochs
    except (AttributeError, KeyError, TypeError) as error:
        raise CheckpointError(f"{config.resume / 'last.pt'}: {NOT_OURS}") from error
    if finished and (config.resume / "val.csv").exists() and record.has_experiment(config.resume):  # a row may be an older run's
        raise ConfigError(f"--resume {config.resume}: this run has finished its {own.epochs} epochs. Start a new one without "
                          f"--resume; `python -m tools.report {config.resume}` writes its report again.")
    workers = config.workers if config.workers >= 0 else own.workers
    return dataclasses.replace(own, resume=config.resume, workers=workers, quiet=config.quiet)


def restore(saved: dict, run: Path, learner, judged, optimizer: SAM, scaler: torch.amp.GradScaler | None) -> None:
    """What last.pt holds, into what trains on. Raises CheckpointError."""
    try:
        learner.load_state_dict(saved["learner"])
        judged.load_state_dict(saved["weights"])
        optimizer.load_state_dict(saved["optimizer"])
        if scaler and saved["scaler"]:  # none where the run began on a device without one
            scaler.load_state_dict(saved["scaler"])
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise CheckpointError(f"{run / 'last.pt'}: {NOT_OURS}") from error


def look_at_photos(table: pd.DataFrame, config: Config, run: Path, say) -> pd.DataFrame:
    """Trouble, split; what was found goes to the screen and to photos.csv in the run folder."""
    quiet = config.quiet or None  # none = where no person watches
    table = find_trouble(table, lambda photos: tqdm(photos, "looking at photos", len(table), leave=False, disable=quiet))
    try:
        table = split(table, config.fold, config.folds, config.seed)
    except dataset.DataError as error:
        bad = table[table.error != ""]
        if not len(bad):
            raise
        example = f"{shown(bad.path.iloc[0])}: {bad.error.iloc[0]}"
        raise dataset.DataError(f"{error} {len(bad)} of {len(table)} photos cannot be read, e.g. {example}.") from error
    say(describe(table))
    record.write_table(run / "photos.csv", table.assign(bytes=dataset.file_sizes(table)))
    return table


def draw_a_batch(run: Path, loader, labels: torch.Tensor, classes: list[str], config: Config) -> None:
    """batch.png: what the model will be shown."""
    photos = [loader.dataset[key] for key in next(iter(loader.batch_sampler))[:16]]
    images = torch.cat([image for image, _ in photos if not isinstance(image, str)])
    index = torch.tensor([index for image, index in photos if not isinstance(image, str)])
    mixed, targets = mixup(images, labels[index], len(classes), config.mixup, engine.step_rng(config.seed, 0, 0))
    pictures.batch_sheet(run / "batch.png", mixed, targets, classes)


def announce_time(model, size: int, photos: int, config: Config, accelerator: Accelerator, say) -> None:
    """A CPU may need days for what a GPU does in an hour: better to know before."""
    passes = 1 + (config.rho > 0) * (1 - config.sam_start) / config.sam_every
    seconds = photos / accelerator.num_processes * seconds_a_photo(model, size, passes, accelerator, config.batchnorm_kept)
    advice = "" if seconds < 3600 else "; on a GPU, or with --model tf_efficientnet_lite0 --image-size 224, it is minutes"
    say(f"an epoch will take about {seconds / 60:.1f} min on this CPU ({photos} photos of {size} x {size}){advice}")


def seconds_a_photo(model, size: int, passes: float, accelerator: Accelerator, keep_batchnorm: bool, batch: int = 2) -> float:
    """Time of a forward and backward pass for one photo, times the passes of a step; the model is left as it was."""
    images = torch.zeros(batch, 3, size, size, device=accelerator.device).to(memory_format=torch.channels_last)
    engine.training_mode(model, keep_batchnorm)
    for _ in range(2):                                                     # the first also sets things up
        began = time.perf_counter()
        with frozen_batchnorm(model):
            accelerator.backward(model(images).sum())
        model.zero_grad()
    return passes * (time.perf_counter() - began) / batch


def rehearse(model, train_loader: DataLoader, val_loader: DataLoader, labels: torch.Tensor, loss_of: Callable, optimizer: SAM,
             accelerator: Accelerator, config: Config, *, num_classes: int, steps: int) -> str:
    """One batch of training and one of validation through everything; what they were, took and held, in words.

    The step is the dearest that there will be: with SAM's second pass, where it comes at all within `steps`.
    """
    lines, began = [], time.perf_counter()

    def tell(what: str, tensor: torch.Tensor) -> None:
        nonlocal began
        lines.append(f"{what:28} {tuple(tensor.shape)!s:20} {str(tensor.dtype)[6:]:8} {time.perf_counter() - began:6.2f} s")
        began = time.perf_counter()

    images, index, _ = next(iter(train_loader))
    tell("photos read and augmented", images)
    images, own = to_device(images.flatten(0, -4), accelerator), labels[index].to(accelerator.device)
    mixed, targets = mixup(images, own, num_classes, config.mixup, engine.step_rng(0, 0, 0))
    tell("mixed; targets below", mixed)
    tell("", targets)
    engine.training_mode(model, config.batchnorm_kept)
    optimizer.steps = optimizer.start if optimizer.start < steps else 0
    sam = " with SAM" * optimizer.due()
    loss = engine.step_in_memory(model, mixed, targets, loss_of, optimizer, accelerator, {"accumulate": config.accumulate},
                                 clip=config.clip, sam_whole=config.sam_whole)
    tell(f"trained{sam}, loss {loss:.3f}", loss)
    images, _, _ = next(iter(val_loader))
    tell("validation photos read", images)
    model.eval()
    logits = engine.ask(model, to_device(images.flatten(0, -4), accelerator), accelerator)
    tell("answered", logits)
    held = torch.cuda.max_memory_allocated() if accelerator.device.type == "cuda" else psutil.Process().memory_info().rss
    return "\n".join([*lines, f"memory of the {accelerator.device.type}: {held / 2**30:.2f} GiB"])
