"""What main.py does before the first epoch: a look at the photos, the network and what it will be shown, the time it takes, a
rehearsal."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd
import psutil
import torch
from accelerate import Accelerator
from torch.optim import SGD
from torch.utils.data import DataLoader
from tqdm import tqdm

import dataset
import engine
import pictures
import record
from answers import no_score_after
from config import Config
from device import memory_ran_out, to_device
from folding import fold_batchnorm
from loss import Loss
from mixup import mixup
from model import Classifier, ModelError, build_model, freeze, parameter_groups
from sam import SAM, frozen_batchnorm
from schedule import side_at, training_sizes
from split import describe, find_trouble, split
from text import shown


def list_photos(config: Config) -> pd.DataFrame:
    """dataset.load_table's. Raises DataError, too where a fold is asked for, and the data says itself which photos validate."""
    table = dataset.load_table(config.data)
    if config.fold and (table.side == "val").any():
        raise dataset.DataError(f"--fold {config.fold}: {config.data} says itself which photos validate, the same in each fold. "
                                "Take --fold 0, or leave the choice to the folds: without val/, or val in the column side.")
    return table


def look_at_photos(table: pd.DataFrame, config: Config, folder: Path, say) -> pd.DataFrame:
    """Trouble, split; what was found goes to the screen and to photos.csv in the run folder."""
    table = cut(examined(table, config.quiet), config)
    met = no_score_after(config.weights, table.path[table.side == "val"])
    say("\n".join(filter(None, [describe(table), dataset.unused(config.data, table), met and f"--weights {config.weights}: {met}"])))
    record.write_table(folder / "photos.csv", table.assign(bytes=dataset.file_sizes(table.path)))
    return table


def photos_of(folder: Path, data: Path, named: bool = False) -> tuple[pd.DataFrame, pd.DataFrame]:
    """A run's photos as its photos.csv has them, and where they are now, as dataset.found_again finds them. Raises DataError, RunError."""
    written = record.read_photos(folder)
    return written, dataset.found_again(written, data, folder / "photos.csv", named)


def look_again(config: Config, folder: Path, say, named: bool) -> pd.DataFrame:
    """The photos of a stopped run; where they are now goes to photos.csv, and what is other than it was to the screen. named: as for
    dataset.found_again."""
    table, found = photos_of(folder, config.data, named)
    if not found.path.equals(table.path):
        say(f"the photos have moved: {shown(table.path.iloc[0])} is {shown(found.path.iloc[0])} now")
        record.write_table(folder / "photos.csv", found)
    if changed := dataset.changes(found, config.data):
        say(changed)
    return found


def examined(table: pd.DataFrame, quiet: bool) -> pd.DataFrame:
    """split.find_trouble with a progress bar where a person watches."""
    return find_trouble(table, lambda photos: tqdm(photos, "looking at photos", len(table), leave=False, disable=quiet or None))


def cut(table: pd.DataFrame, config: Config) -> pd.DataFrame:
    """split.split of an examined table; where it cannot be, photos that cannot be read are named too. Raises DataError."""
    try:
        return split(table, config.fold, config.folds, config.seed)
    except dataset.DataError as error:
        bad = table[table.error != ""]
        if not len(bad):
            raise
        example = f"{shown(bad.path.iloc[0])}: {bad.error.iloc[0]}"
        raise dataset.DataError(f"{error} {len(bad)} of {len(table)} photos cannot be read, e.g. {example}.") from error


def check_folds(table: pd.DataFrame, config: Config) -> None:
    """All folds can be cut: asked before the first is trained, for the last may be hours away. Raises DataError."""
    table = examined(table, config.quiet)
    for fold in range(config.folds):
        try:
            cut(table, dataclasses.replace(config, fold=fold))
        except dataset.DataError as error:
            raise dataset.DataError(f"--fold -1: fold {fold} of {config.folds} cannot be: {error} For all folds, try another --folds or "
                                    "--seed.") from error


def build_learner(config: Config, weights: str, counts: torch.Tensor, size: int, device: torch.device) -> tuple[Classifier, SGD, Loss]:
    """The network that learns, its optimizer without SAM, and its loss. weights: as for build_model. counts: training photos of each class,
    int (K,). size: of the photos, in pixels. Raises ModelError."""
    torch.manual_seed(config.seed)
    model = build_model(config.model, len(counts), weights, config.cosine, config.directions).to(device)
    check_sizes(model, size, training_sizes(size, *config.size_shares))
    freeze(model, config.freeze)
    if config.batchnorm_kept:
        fold_batchnorm(model, torch.zeros(1, 3, size, size, device=device))
    groups = parameter_groups(model, config.weight_decay, config.layer_decay, config.head_lr if config.fits_head else 1.0)
    sgd = SGD(groups, config.lr, config.momentum, nesterov=config.momentum > 0)
    return model, sgd, Loss(counts, config.smoothing, config.focal, config.balance, config.arcface, config.cosine).to(device)


@torch.no_grad()
def check_sizes(model: Classifier, size: int, smaller: Sequence[int]) -> None:
    """A forward pass of each. Raises ModelError where the backbone cannot take photos of size x size pixels, as some want a multiple of 32,
    or of those smaller sizes that it is to be trained at."""
    for side in dict.fromkeys((size, *smaller)):
        try:
            model.eval()(torch.zeros(1, 3, side, side, device=model.mean.device))
        except (AssertionError, RuntimeError, ValueError) as error:
            if isinstance(error, RuntimeError) and memory_ran_out(error):
                raise
            reason, near = (str(error) or type(error).__name__).splitlines()[0], max(1, round(side / 32)) * 32
            remedy = f"Try {near}, or 0 for its own size." if near != side else "Take 0, its own size, or another backbone."
            if side != size:
                remedy = f"It would be shown {side} x {side} in training: leave --progressive and --train-share at 1."
            raise ModelError(f"--image-size {size}: this backbone cannot take it ({reason}). {remedy}") from error


def draw_a_batch(folder: Path, loader, labels: torch.Tensor, classes: list[str], config: Config) -> None:
    """batch.png: what the model will be shown; none where none of its photos can be read any more."""
    photos = [loader.dataset[key] for key in next(iter(loader.batch_sampler))[:16]]
    readable = [(image, index) for image, index in photos if not isinstance(image, str)]
    if not readable:
        return
    images, index = torch.cat([image for image, _ in readable]), torch.tensor([index for _, index in readable])
    mixed, targets = mixup(images, labels[index], len(classes), config.mixup, engine.step_rng(config.seed, 0, 0))
    pictures.batch_sheet(folder / "batch.png", mixed, targets, classes)


def announce_time(model, size: int, photos: int, config: Config, accelerator: Accelerator, say) -> None:
    """A CPU may need days for what a GPU does in an hour: better to know before."""
    size = side_at(size, config.train_share)
    passes = 1 + (config.rho > 0) * (1 - config.sam_start) / config.sam_every
    seconds = photos / accelerator.num_processes * seconds_a_photo(model, size, passes, accelerator, config.batchnorm_kept)
    advice = "" if seconds < 3600 else "; on a GPU, or with --model tf_efficientnet_lite0 --image-size 224, it is minutes"
    say(f"an epoch will take about {seconds / 60:.1f} min on this CPU ({photos} photos of {size} x {size}){advice}")


def seconds_a_photo(model, size: int, passes: float, accelerator: Accelerator, keep_batchnorm: bool) -> float:
    """Time of a forward and backward pass for one photo, times the passes of a step; the weights stay as they are."""
    images = to_device(torch.zeros(2, 3, size, size), accelerator)
    engine.training_mode(model, keep_batchnorm)
    for _ in range(2):                                                     # the first also sets things up
        began = time.perf_counter()
        with frozen_batchnorm(model):
            accelerator.backward(model(images).sum())
        model.zero_grad()
    return passes * (time.perf_counter() - began) / len(images)


def rehearse(model, train_loader: DataLoader, val_loader: DataLoader, labels: torch.Tensor, loss_of: Callable, optimizer: SAM,
             accelerator: Accelerator, config: Config, *, num_classes: int, steps: int, resize: Callable) -> str:
    """One batch of training and one of validation through everything; what they were, took and held, in words.

    The step is the dearest that there will be: at the last size (resize: see schedule.make_sizes), with SAM's second pass, where it
    comes at all within `steps`.
    """
    lines, began = [], time.perf_counter()

    def tell(what: str, tensor: torch.Tensor) -> None:
        nonlocal began
        lines.append(f"{what:28} {tuple(tensor.shape)!s:20} {str(tensor.dtype)[6:]:8} {time.perf_counter() - began:6.2f} s")
        began = time.perf_counter()

    def batch_of(loader: DataLoader) -> tuple[torch.Tensor, torch.Tensor]:
        images, index, _ = next(iter(loader))
        if not len(index):                                                 # of several processes one may have no share
            return engine.blank_photo(loader)[None], torch.zeros(1, dtype=torch.int64)
        return images, index

    images, index = batch_of(train_loader)
    tell("photos read and augmented", images)
    images, own = resize(to_device(images, accelerator), steps), labels[index].to(accelerator.device)
    mixed, targets = mixup(images, own, num_classes, config.mixup, engine.step_rng(0, 0, 0))
    tell("mixed; targets below", mixed)
    tell("", targets)
    engine.training_mode(model, config.batchnorm_kept)
    optimizer.steps = optimizer.start if optimizer.start < steps else 0
    sam = " with SAM" * optimizer.due()
    loss = engine.step_in_memory(model, mixed, targets, loss_of, optimizer, accelerator, {"accumulate": config.accumulate},
                                 clip=config.clip, sam_whole=config.sam_whole)
    tell(f"trained{sam}, loss {engine.sum_over_processes(loss.item(), accelerator):.3f}", loss)
    images, _ = batch_of(val_loader)
    tell("validation photos read", images)
    model.eval()
    logits = engine.ask(model, to_device(images, accelerator), accelerator)
    tell("answered", logits)
    held = torch.cuda.max_memory_allocated() if accelerator.device.type == "cuda" else psutil.Process().memory_info().rss
    return "\n".join([*lines, f"memory of the {accelerator.device.type}: {held / 2**30:.2f} GiB"])
