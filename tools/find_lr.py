"""The learning rate to take: `python -m tools.find_lr --data FOLDER ...`, with main.py's own flags.

The rate climbs from 1e-5 to 1 over some steps of the training that would follow (head fitted first, mixup, SAM if it is on from the
start; photos at full size) until the loss is twice its first and a nat more (Smith 2017, arXiv 1506.01186). Suggested is a tenth of the
highest rate at which the smoothed loss is as low as anywhere, within four times its noise: it goes on falling for some steps at a rate
that is already too high, and where the head was fitted first there is little left to fall.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import torch
import tyro

import engine
import fitting
import plots
from config import Config
from console import Bar
from dataset import Batches, Photos, load_table, make_loader
from device import keep_memory, make_accelerator
from files import check_out
from model import input_size
from prepare import build_learner, cut, examined, list_photos
from sam import SAM
from text import as_program
from transforms import RandomViews

LOWEST, HIGHEST, STEPS = 1e-5, 1.0, 100


def suggest(rates: np.ndarray, losses: np.ndarray, memory: float = 0.9) -> tuple[np.ndarray, float]:
    """The losses as an exponential mean without its bias towards the first, and the rate to take.

    The noise of a loss is what its second differences leave over: a curve has little of them.
    """
    weights = memory ** np.arange(len(losses))
    smooth = np.array([weights[:i + 1][::-1] @ losses[:i + 1] / weights[:i + 1].sum() for i in range(len(losses))])
    noise = np.diff(losses, 2).std() / 6**0.5 * ((1 - memory) / (1 + memory))**0.5 if len(losses) > 2 else 0.0
    settled = smooth[min(round(1 / (1 - memory)), len(smooth) - 1):]       # the first are means of few
    return smooth, float(rates[np.flatnonzero(smooth <= settled.min() + 4 * noise)[-1]] / 10)


def find_lr(config: Config, steps: int = STEPS) -> tuple[np.ndarray, np.ndarray]:
    """Rates and losses of up to `steps` steps, until the loss has left its range."""
    accelerator, _ = make_accelerator()
    keep_memory()
    config = dataclasses.replace(config, fold=max(config.fold, 0))
    photos = cut(examined(list_photos(config), config.quiet), config)
    photos = photos[photos.side == "train"]
    classes = sorted(photos.label.unique())
    labels = torch.tensor([classes.index(label) for label in photos.label])
    size, crop = input_size(config.model, config.image_size)

    def loader_of(_side: str, views, epochs: int = 1):
        read = Photos(photos.path, views, config.seed, views.min_side)
        batches = Batches(len(photos), config.batch, config.seed, epochs, accelerator.process_index, accelerator.num_processes, views.count)
        return make_loader(read, batches, config.workers)

    learner, sgd, loss_of = build_learner(config, config.weights, labels.bincount(minlength=len(classes)), size, accelerator.device)
    model, sgd = accelerator.prepare(learner, sgd)
    optimizer = SAM(sgd, 0.0 if config.sam_start else config.rho, config.asam, config.sam_every)  # a late SAM meets lower rates
    if config.fits_head:
        fitting.start_head(learner, loader_of, size, crop, {"train": labels}, config.balance, accelerator, config.quiet)
    rates, losses = np.geomspace(LOWEST, HIGHEST, steps), []

    def climb(step: int) -> None:
        for group in sgd.param_groups:
            group["lr"] = rates[step] * group.get("lr_scale", 1.0)

    def too_high() -> bool:
        return len(losses) == steps or not losses[-1] < 2 * np.mean(losses[:5]) + 1

    loader = loader_of("train", RandomViews(size, 1, config.augment), epochs=steps)
    batches = iter(loader)
    progress = {"epoch": 0, **engine.EPOCH_START, "accumulate": config.accumulate}
    with Bar("climbing", steps, 0, accelerator, config.quiet) as bar:
        def tick(loss: float) -> None:
            losses.append(loss)
            bar.tick(loss)

        while not (losses and too_high()):
            engine.train_one_epoch(
                model, loader, batches, labels, loss_of, optimizer, climb, None, accelerator, progress,
                num_classes=len(classes), alpha=config.mixup, clip=config.clip, seed=config.seed,
                keep_batchnorm=config.batchnorm_kept, stop=too_high, tick=tick)
            progress |= {"epoch": progress["epoch"] + 1, **engine.EPOCH_START}
    finite = np.isfinite(losses)
    return rates[:len(losses)][finite], np.array(losses)[finite]


def main(config: Config, picture: Path = Path("rate.png")) -> None:
    """Draw the loss over the rate, and say which rate to take.

    Args:
        picture: where the curve goes.
    """
    if config.resume or config.dry_run or config.out:
        raise ValueError("nothing is trained or kept: drop --resume, --dry-run and --out.")
    check_out(picture, *load_table(config.data).path)
    rates, losses = find_lr(config)
    smooth, best = suggest(rates, losses)
    print(f"the loss is low up to a rate of {10 * best:.2g}. Try --lr {best:.2g}; the default is {Config.lr}.")  # whatever the picture does
    plots.rate_search(picture, rates, losses, smooth, best)
    print(picture)


if __name__ == "__main__":
    as_program(lambda: tyro.cli(main, description=__doc__, config=(tyro.conf.OmitArgPrefixes,)))
