"""What main.py does before the first epoch: settings of a run that goes on, the precision, a look at the photos, the time it will take."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pandas as pd
import torch
from accelerate import Accelerator
from tqdm import tqdm

import dataset
import engine
import pictures
import record
from config import Config, ConfigError
from mixup import mixup


def resumed(config: Config, saved: dict) -> Config:
    """The run's own settings; only --workers and --quiet may be given anew, as they change no result."""
    given = {k: v for k, v in config.differences().items() if k not in ("resume", "workers", "quiet")}
    if given:
        flags = ", ".join("--" + k.replace("_", "-") for k in given)
        raise ConfigError(f"--resume goes on with the run's own settings: drop {flags}, or start a new run without --resume.")
    own = Config.from_dict(saved["config"])
    if saved["progress"]["epoch"] >= own.epochs and record.has_experiment(config.resume):
        raise ConfigError(f"--resume {config.resume}: this run has finished its {own.epochs} epochs. Start a new one without --resume.")
    workers = config.workers if config.workers >= 0 else own.workers
    return dataclasses.replace(own, resume=config.resume, workers=workers, quiet=config.quiet)


def choose_precision() -> tuple[str, str]:
    """Accelerate's name of the precision, and the reason in words."""
    if not torch.cuda.is_available():
        return "no", "fp32 (no CUDA GPU)"
    if torch.cuda.is_bf16_supported(including_emulation=False):
        return "bf16", "bf16 mixed precision (the card has it)"
    return "fp16", "fp16 mixed precision with loss scaling (the card has no bf16)"


def look_at_photos(config: Config, run: Path, say) -> pd.DataFrame:
    """Table, trouble, split; what was found goes to the screen and to photos.csv in the run folder."""
    table = dataset.load_table(config.data)
    quiet = config.quiet or None  # none = where no person watches
    table = dataset.find_trouble(table, lambda photos: tqdm(photos, "looking at photos", len(table), leave=False, disable=quiet))
    table = dataset.split(table, config.fold, config.folds, config.seed)
    say(dataset.describe(table))
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
    seconds = photos * engine.seconds_a_photo(model, size, passes, accelerator)
    advice = "" if seconds < 3600 else "; on a GPU, or with --model tf_efficientnet_lite0 --image-size 224, it is minutes"
    say(f"an epoch will take about {seconds / 60:.1f} min on this CPU ({photos} photos of {size} x {size}){advice}")
