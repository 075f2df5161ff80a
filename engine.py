"""The training step, an epoch of steps, and probabilities: what main.py and predict.py share."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast, broadcast_object_list, gather_object
from accelerate.utils.memory import clear_device_cache
from timm.utils import ModelEmaV3
from torch.utils.data import DataLoader

import trust
from device import memory_ran_out, to_device
from mixup import mixup
from sam import SAM, frozen_batchnorm

EPOCH_START = {"step": 0, "loss_sum": 0.0, "norm_sum": 0.0, "photos": 0, "read": 0}  # of train_one_epoch's progress
NOT_FINITE = "the network's answer is not a finite number"
SKIPS = 20  # steps skipped in a row that end a run; an fp16 scaler halves its factor 16 times on its way from 65536 to 1


class TrainingError(ValueError):
    """Training cannot go on; the message says why, and which knob to turn."""


def forward_backward(model, images: torch.Tensor, targets: torch.Tensor, loss_of: Callable, accelerator: Accelerator,
                     share: float = 1.0, accumulate: int = 1) -> torch.Tensor:
    """Gradients of loss_of(logits, targets), a mean over photos; returns this process's share of it, a 0-d tensor on the device.

    share: how much these images count. Gradients are averaged over processes, so it is the processes times this one's part of the
    batch's photos: 1 where that is all, 0 where it has none. accumulate: parts that the images are cut into, to need less memory.
    """
    parts = list(zip(images.chunk(accumulate), targets.chunk(accumulate), strict=True))
    total = torch.zeros((), device=images.device)
    for i, (part, wanted) in enumerate(parts, 1):
        with contextlib.nullcontext() if i == len(parts) else accelerator.no_sync(model):
            loss = loss_of(model(part).float(), wanted) * (share * len(part) / len(images))
            accelerator.backward(loss)
        total += loss.detach()
    return total / accelerator.num_processes


def train_step(model, images: torch.Tensor, targets: torch.Tensor, loss_of: Callable, optimizer: SAM, accelerator: Accelerator,
               clip: float = 0.0, *, share: float = 1.0, accumulate: int = 1, sam_whole: bool = False) -> torch.Tensor:
    """One update on one mixed batch; returns its loss at w (this process's share), a 0-d tensor on the device.

    images uint8 or float (B, 3, H, W) in 0..255; targets (B, K), rows sum to 1; loss_of(logits, targets) as in loss.py.
    clip: largest gradient norm, 0 = any. share, accumulate: see forward_backward. sam_whole: all processes climb by the whole
    batch, not each by its own photos.
    """
    def gradients() -> torch.Tensor:
        return forward_backward(model, images, targets, loss_of, accelerator, share, accumulate)

    if optimizer.due():
        with contextlib.nullcontext() if sam_whole else accelerator.no_sync(model):
            loss = gradients()                                             # g(w)
        optimizer.ascend()                                                 # w -> w + e(w)
        with frozen_batchnorm(model):
            gradients()                                                    # g(w + e(w))
        optimizer.descend()                                                # back to w
    else:
        loss = gradients()
    norm = accelerator.clip_grad_norm_(model.parameters(), clip or float("inf"))
    optimizer.step(norm)
    return loss


def train_one_epoch(model, loader: DataLoader, batches: Iterator, labels: torch.Tensor, loss_of: Callable, optimizer: SAM,
                    schedule: Callable[[int], None], ema: ModelEmaV3 | None, accelerator: Accelerator, progress: dict, *, num_classes: int,
                    alpha: float, clip: float, seed: int, keep_batchnorm: bool, stop: Callable[[], bool], tick: Callable[[float], None],
                    sam_whole: bool = False, resize: Callable[[torch.Tensor, int], torch.Tensor] = lambda images, step: images) -> None:
    """The rest of an epoch; `progress` is kept up to date, so it can be saved at any step.

    batches: one pass of the loader, through all epochs, from progress["step"] of this one on. progress: {"epoch", "step", "loss_sum",
    "norm_sum", "photos", "read", "accumulate"}, plain numbers; "photos" are those in the sums, "read" those that could be.
    labels int64 (N,) by index of photo.
    schedule sets the rate for a step, counted from the start of training; resize gives its photos the size of that step: see schedule.py.
    ema follows the weights. keep_batchnorm: see training_mode; sam_whole: see train_step. stop is asked after each step; tick is told
    each loss. Raises TrainingError.
    """
    training_mode(model, keep_batchnorm)
    for images, index, _ in itertools.islice(batches, loader.batch_sampler.batches - progress["step"]):
        rng = step_rng(seed, progress["epoch"], progress["step"], accelerator.process_index)
        torch.manual_seed(int(rng.integers(2**31)))                        # dropout's draws, so that a resumed run repeats them
        steps = progress["epoch"] * loader.batch_sampler.batches + progress["step"]
        schedule(steps)
        photos = int(sum_over_processes(len(index), accelerator))
        progress["read"] += photos
        if photos:
            if len(index):
                images = resize(to_device(images, accelerator), steps)  # a photo is one view here
                mixed, targets = mixup(images, labels[index].to(accelerator.device), num_classes, alpha, rng)
            else:                                                          # no share in this batch: the others wait for its gradients
                mixed = to_device(blank_photo(loader), accelerator).float()
                targets = torch.zeros(1, num_classes, device=accelerator.device)
            loss = step_in_memory(model, mixed, targets, loss_of, optimizer, accelerator, progress, clip=clip,
                                  share=accelerator.num_processes * len(index) / photos, sam_whole=sam_whole)
            if ema:
                ema.update(accelerator.unwrap_model(model), steps + 1)
            loss = sum_over_processes(loss.item(), accelerator)            # waits for the GPU
            if np.isfinite(loss) and np.isfinite(optimizer.norm):
                progress["loss_sum"] += loss * photos
                progress["norm_sum"] += optimizer.norm * photos
                progress["photos"] += photos
            if optimizer.skipped_in_a_row >= SKIPS:
                knob = "--rho" if np.isfinite(loss) and optimizer.rho else "--lr"
                raise TrainingError(f"{SKIPS} steps in a row had no finite gradient (loss {loss:.3g}), so training stopped; last.pt is "
                                    f"of before them. Start anew with a lower {knob}.")
            tick(loss)
        progress["step"] += 1
        if stop():
            break
    as_in_main([*model.buffers(), *(ema.buffers() if ema else [])])         # BatchNorm's: each process saw other photos


def step_in_memory(model, images: torch.Tensor, targets: torch.Tensor, loss_of: Callable, optimizer: SAM, accelerator: Accelerator,
                   progress: dict, **more) -> torch.Tensor:
    """train_step; where memory runs out, again in twice as many parts, which progress["accumulate"] keeps for the steps to come."""
    while True:
        try:
            return train_step(model, images, targets, loss_of, optimizer, accelerator, accumulate=progress["accumulate"], **more)
        except RuntimeError as error:
            if not memory_ran_out(error):
                raise
            if accelerator.num_processes > 1:                              # the others would wait for ever
                raise TrainingError(f"memory ran out with --accumulate {progress['accumulate']}. "
                                    "Give a higher one, or a smaller --image-size or --batch.") from error
            if progress["accumulate"] >= len(images):
                raise TrainingError("memory ran out, even for one photo at a time. Give a smaller --image-size or --model.") from error
        optimizer.descend()
        optimizer.zero_grad()
        clear_device_cache()                                               # cuDNN and cuBLAS cannot use what torch has laid by
        progress["accumulate"] *= 2
        accelerator.print(f"memory ran out: each batch goes through in {progress['accumulate']} parts from here on")


def sum_over_processes(number: float, accelerator: Accelerator) -> float:
    if accelerator.num_processes == 1:
        return number                                                      # the GPU need not be waited for
    return accelerator.reduce(torch.tensor(float(number), device=accelerator.device)).item()


def from_main(make: Callable, accelerator: Accelerator):
    """What make() returns in the main process, in all of them: one looks and writes, the others wait."""
    return broadcast_object_list([make() if accelerator.is_main_process else None])[0]


def as_in_main(tensors: Iterable[torch.Tensor]) -> None:
    """In place, the main process's values: the others saw other photos, or their machine differs in the last bit."""
    for tensor in tensors:
        broadcast(tensor)


def blank_photo(loader: DataLoader) -> torch.Tensor:
    """(1, 3, S, S), black, as large as the loader's photos."""
    return torch.from_numpy(loader.dataset.transform(np.zeros((32, 32, 3), np.uint8), 0)[:1]).movedim(-1, 1)


def make_ema(model, decay: float) -> ModelEmaV3:
    """A moving average of the weights; over the first steps it is shorter, so that it is not held back by where it began."""
    return ModelEmaV3(model, decay, use_warmup=True, foreach=True)


def training_mode(model, keep_batchnorm: bool) -> None:
    """Training mode; keep_batchnorm: but BatchNorm goes on normalising by the statistics it was pretrained with; frozen, it always does.

    Statistics of a small batch of other photos shift all features, and the head was fitted on the unshifted ones.
    """
    model.train()
    for layer in model.modules():
        if isinstance(layer, torch.nn.modules.batchnorm._BatchNorm):
            frozen = layer.weight is not None and not layer.weight.requires_grad  # some have no weight to learn
            if keep_batchnorm or frozen:
                layer.eval()


def step_rng(seed: int, epoch: int, step: int, process: int = 0) -> np.random.Generator:
    """The draws of one step, of mixup and dropout: the same whenever and however often the step is taken."""
    return np.random.default_rng((seed, epoch, step, process))


def predict_probs(model, loader: DataLoader, num_classes: int, accelerator: Accelerator,
                  temperature: float = 1.0) -> tuple[np.ndarray, dict[int, str]]:
    """Probabilities float (N, K) of all photos of the loader, averaged over their views, and {index: why} of failures.

    The row of a photo that could not be read is NaN. temperature: of the mean (trust.at_temperature).
    """
    probs, _, errors = predict(model, loader, num_classes, accelerator, temperature)
    return probs, errors


def predict(model, loader: DataLoader, num_classes: int, accelerator: Accelerator, temperature: float = 1.0,
            tick: Callable[[int], None] = lambda photos: None) -> tuple[np.ndarray, np.ndarray, dict[int, str]]:
    """As predict_probs, with the score float (N,) of being known (Classifier.judge) in the middle, averaged over views too. tick is told
    the photos done."""
    def answers_to(views: torch.Tensor) -> torch.Tensor:
        logits, known = model.judge(views)
        return torch.cat([logits.softmax(1), known[:, None]], 1)

    model.eval()
    table, errors = np.full((len(loader.dataset), num_classes + 1), np.nan, np.float32), {}
    for images, index, failed in loader:
        errors.update(failed)
        if len(index):
            answers = ask(answers_to, to_device(images, accelerator), accelerator)
            answers = answers.view(len(index), -1, num_classes + 1).mean(1).cpu().numpy()
            answers[:, :-1] = trust.at_temperature(answers[:, :-1], temperature)
            finite = np.isfinite(answers).all(1)
            table[index[finite]] = answers[finite]  # nothing of a batch is kept: it would hold a worker's file, and memory, in pieces
            errors.update(dict.fromkeys(index[~finite].tolist(), NOT_FINITE))
        tick(len(index) + len(failed))
    for other in gather_object([table]):
        table = np.where(np.isnan(table), other, table)
    for other in gather_object([errors]):
        errors.update(other)
    return table[:, :-1], table[:, -1], errors


@torch.inference_mode()
def ask(network: Callable[[torch.Tensor], torch.Tensor], views: torch.Tensor, accelerator: Accelerator) -> torch.Tensor:
    """network(views), for views (B, 3, H, W) on the device, with a row for each; without gradients, and in halves where memory runs out."""
    try:
        with accelerator.autocast():
            return network(views)
    except RuntimeError as error:
        if len(views) == 1 or not memory_ran_out(error):
            raise
    clear_device_cache()                                                   # out here, where the error no longer holds what was made
    return torch.cat([ask(network, half, accelerator) for half in views.chunk(2)])
