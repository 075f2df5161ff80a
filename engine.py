"""The training step, an epoch of steps, and probabilities: what main.py and predict.py share."""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import time
from collections.abc import Callable, Iterable

import numpy as np
import psutil
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast, broadcast_object_list, gather_object
from accelerate.utils.memory import should_reduce_batch_size
from sklearn.linear_model import LogisticRegression
from timm.scheduler import CosineLRScheduler, MultiStepLRScheduler
from timm.utils import ModelEmaV3
from torch.utils.data import DataLoader

import metrics
import trust
from mixup import mixup
from sam import SAM, frozen_batchnorm

HEAD_C = 0.01  # inverse L2 strength of the head's fit; best of 0.003 to 0.15 over 5 folds of fungi9
SKIPS = 20     # steps skipped in a row that end a run; an fp16 scaler halves its factor 16 times on its way from 65536 to 1
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # names of glibc's malloc.h


class TrainingError(ValueError):
    """Training cannot go on; the message says why, and which knob to turn."""


def forward_backward(model, images: torch.Tensor, targets: torch.Tensor, loss_of: Callable, accelerator: Accelerator,
                     photos: float = 0, accumulate: int = 1) -> torch.Tensor:
    """Gradients of loss_of(logits, targets), a mean over photos; returns this process's share of it, a 0-d tensor on the device.

    photos: of the batch over all processes; 0 = as many as images, inf = none of them is here. Gradients are averaged over
    processes, so a share counts by its photos, times the processes. accumulate: parts that the share is cut into, to need less memory.
    """
    photos = photos or len(images)
    parts = list(zip(images.chunk(accumulate), targets.chunk(accumulate), strict=True))
    total = torch.zeros((), device=images.device)
    for i, (part, wanted) in enumerate(parts, 1):
        with contextlib.nullcontext() if i == len(parts) else accelerator.no_sync(model):
            loss = loss_of(model(part).float(), wanted) * (len(part) * accelerator.num_processes / photos)
            accelerator.backward(loss)
        total += loss.detach()
    return total / accelerator.num_processes


def train_step(model, images: torch.Tensor, targets: torch.Tensor, loss_of: Callable, optimizer: SAM, accelerator: Accelerator,
               clip: float = 0.0, *, photos: float = 0, accumulate: int = 1, sam_whole: bool = False) -> torch.Tensor:
    """One update on one mixed batch; returns its loss at w (this process's share), a 0-d tensor on the device.

    images uint8 or float (B, 3, H, W) in 0..255; targets (B, K), rows sum to 1; loss_of(logits, targets) as in loss.py.
    clip: largest gradient norm, 0 = any. photos, accumulate: see forward_backward. sam_whole: all processes climb by the whole
    batch, not each by its own photos.
    """
    def gradients() -> torch.Tensor:
        return forward_backward(model, images, targets, loss_of, accelerator, photos, accumulate)

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


def train_one_epoch(model, loader: DataLoader, labels: torch.Tensor, loss_of: Callable, optimizer: SAM, schedule: Callable[[int], None],
                    ema: ModelEmaV3 | None, accelerator: Accelerator, progress: dict, *, num_classes: int, alpha: float, clip: float,
                    seed: int, keep_batchnorm: bool, stop: Callable[[], bool], tick: Callable[[float], None],
                    sam_whole: bool = False) -> None:
    """The rest of an epoch, from batch progress["step"] on; `progress` is kept up to date, so it can be saved at any step.

    progress: {"epoch", "step", "loss_sum", "norm_sum", "photos", "accumulate"}, plain numbers. labels int64 (N,) by index of photo.
    schedule sets the rate for a step, counted from the start of training. ema follows the weights. keep_batchnorm: see
    training_mode; sam_whole: see train_step. stop is asked after each step; tick is told each loss. Raises TrainingError.
    """
    training_mode(model, keep_batchnorm)
    batches = loader.batch_sampler
    batches.epoch, batches.start = progress["epoch"], progress["step"]
    for images, index, _ in loader:
        rng = step_rng(seed, progress["epoch"], progress["step"], accelerator.process_index)
        torch.manual_seed(int(rng.integers(2**31)))                        # dropout's draws, so that a resumed run repeats them
        steps = progress["epoch"] * batches.batches + progress["step"]
        schedule(steps)
        photos = int(sum_over_processes(len(index), accelerator))
        if photos:
            if len(index):
                images = to_device(images.flatten(0, -4), accelerator)     # a photo is one view here
                mixed, targets = mixup(images, labels[index].to(accelerator.device), num_classes, alpha, rng)
            else:                                                          # no share in this batch: the others wait for its gradients
                mixed = to_device(blank_photo(loader), accelerator).float()
                targets = torch.zeros(1, num_classes, device=accelerator.device)
            loss = step_in_memory(model, mixed, targets, loss_of, optimizer, accelerator, progress, clip=clip,
                                  photos=photos if len(index) else float("inf"), sam_whole=sam_whole)
            loss = sum_over_processes(loss.item(), accelerator)
            if ema:
                ema.update(accelerator.unwrap_model(model), steps + 1)
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
            if not should_reduce_batch_size(error):
                raise
            if progress["accumulate"] >= len(images) or accelerator.num_processes > 1:  # of several, the others would wait for ever
                raise TrainingError(f"memory ran out with --accumulate {progress['accumulate']}. "
                                    "Give a higher one, or a smaller --image-size or --batch.") from error
        optimizer.descend()
        optimizer.zero_grad()
        progress["accumulate"] *= 2
        accelerator.print(f"memory ran out: each batch goes through in {progress['accumulate']} parts from here on")


def sum_over_processes(number: float, accelerator: Accelerator) -> float:
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


def make_schedule(kind: str, optimizer: torch.optim.Optimizer, steps: int, warmup: float) -> Callable[[int], None]:
    """A function that sets the rate for a step, from 0 to steps - 1: a climb over the share `warmup` of training, then

    "cosine": down to 0 (with warmup 0.3: one-cycle); "restarts": three times down to 0, each from half the last height;
    "step": to a tenth at 60 % and to a hundredth at 85 % of the rest.
    """
    climb = round(warmup * steps)
    rest = steps - climb
    common = dict(warmup_t=climb, warmup_prefix=True, t_in_epochs=False)
    if kind == "step":
        return MultiStepLRScheduler(optimizer, [round(0.6 * rest), round(0.85 * rest)], 0.1, **common).step_update
    cycles = 3 if kind == "restarts" else 1
    return CosineLRScheduler(optimizer, max(1, -(-rest // cycles)), cycle_limit=cycles, cycle_decay=0.5, **common).step_update


def make_ema(model, decay: float) -> ModelEmaV3:
    """A moving average of the weights; over the first steps it is shorter, so that it is not held back by where it began."""
    return ModelEmaV3(model, decay, use_warmup=True, foreach=True)


def training_mode(model, keep_batchnorm: bool) -> None:
    """Training mode; keep_batchnorm: but BatchNorm goes on normalising by the statistics it was pretrained with.

    Statistics of a small batch of other photos shift all features, and the head was fitted on the unshifted ones.
    """
    model.train()
    if keep_batchnorm:
        for layer in model.modules():
            if isinstance(layer, torch.nn.modules.batchnorm._BatchNorm):
                layer.eval()


def step_rng(seed: int, epoch: int, step: int, process: int = 0) -> np.random.Generator:
    """The draws of one step, of mixup and dropout: the same whenever and however often the step is taken."""
    return np.random.default_rng((seed, epoch, step, process))


def predict_probs(model, loader: DataLoader, num_classes: int, accelerator: Accelerator, temperature: float = 1.0,
                  tick: Callable[[int], None] = lambda photos: None) -> tuple[np.ndarray, dict[int, str]]:
    """Probabilities float (N, K) of all photos of the loader, averaged over their views, and {index: why} of failures.

    The row of a photo that could not be read is NaN. temperature divides the logits. tick is told the photos done.
    """
    probs, _, errors = predict(model, loader, num_classes, accelerator, temperature, tick)
    return probs, errors


@torch.inference_mode()
def predict(model, loader: DataLoader, num_classes: int, accelerator: Accelerator, temperature: float = 1.0,
            tick: Callable[[int], None] = lambda photos: None) -> tuple[np.ndarray, np.ndarray, dict[int, str]]:
    """As predict_probs, with the score float (N,) of being known (Classifier.judge) in the middle, averaged over views too."""
    model.eval()
    found, errors = [], {}
    for images, index, failed in loader:
        errors.update(failed)
        if len(index):
            views = to_device(images.flatten(0, -4), accelerator)          # (B, V, 3, S, S) or (B, 3, S, S)
            with accelerator.autocast():
                logits, known = model.judge(views)
            probs = (logits / temperature).softmax(1)
            answers = torch.cat([probs, known[:, None]], 1).view(len(index), -1, num_classes + 1).mean(1)
            found.append((index.numpy(), answers.cpu().numpy()))
        tick(len(index) + len(failed))
    table = np.full((len(loader.dataset), num_classes + 1), np.nan, np.float32)
    for index, answers in gather_object(found):
        table[index] = answers
    for other in gather_object([errors]):
        errors.update(other)
    return table[:, :-1], table[:, -1], errors


@torch.inference_mode()
def fit_head(model, loader: DataLoader, labels: torch.Tensor, accelerator: Accelerator, tick: Callable[[int], None]) -> None:
    """Start the head as the logistic regression on the backbone's features, in place of random numbers.

    A random head sends noise down into the pretrained layers until it has learnt; a fitted one lets them keep what they
    know (Kumar et al. 2022, arXiv 2202.10054). loader: training photos in one or many fixed views, each of which counts as
    a photo: the more the head has seen, the less it learns by heart. labels int64 (N,).
    Features are scaled by one number, not each to unit variance: that would give the rarest features the largest
    weights, and the first steps, where BatchNorm's statistics shift, would blow the logits up.
    """
    features, index = all_features(model, loader, accelerator, tick)
    scale = features.std()
    fit = LogisticRegression(C=HEAD_C, max_iter=1000).fit(features / scale, labels[index].numpy())
    weight, bias = fit.coef_, fit.intercept_
    if len(weight) == 1:                                                   # two classes: one row tells both apart
        weight, bias = np.vstack([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
    model.head.weight.copy_(torch.from_numpy(weight / scale))
    if isinstance(model.head, torch.nn.Linear):                            # a cosine head has directions only
        model.head.bias.copy_(torch.from_numpy(bias))
    as_in_main(model.head.parameters())


@torch.inference_mode()
def all_features(model, loader: DataLoader, accelerator: Accelerator, tick: Callable[[int], None]) -> tuple[np.ndarray, np.ndarray]:
    """Pooled features float (M, F) of all views of all readable photos, from all processes, and their photos, int (M,), ascending."""
    model.eval()
    found = []
    for images, index, failed in loader:
        if len(index):
            with accelerator.autocast():
                features = model.features(to_device(images.flatten(0, -4), accelerator)).float()
            found.append((index.repeat_interleave(len(features) // len(index)).numpy(), features.cpu().numpy()))
        tick(len(index) + len(failed))
    index, features = (np.concatenate(column) for column in zip(*gather_object(found), strict=True))
    order = index.argsort(kind="stable")                                   # the same sums however many processes
    return features[order], index[order]


@torch.inference_mode()
def learn_trust(model, train_loader: DataLoader, train_labels: torch.Tensor, val_loader: DataLoader, val_labels: torch.Tensor,
                accelerator: Accelerator, tick: Callable[[int], None] = lambda photos: None) -> tuple[np.ndarray, dict[str, float]]:
    """After training: fit model.known to the training photos; from the validation photos the temperature and the limit of `known`.

    Loaders show photos as predict.py sees them; labels int64 by index of photo. Returns the answers to the validation photos at that
    temperature, float (N, K), NaN where one could not be read; and "temperature", "known_limit" for the checkpoint, with the
    calibration error: "ece" before, "ece_calibrated" after, "ece_chance" at best.
    """
    features, index = all_features(model, train_loader, accelerator, tick)
    val_features, val_index = all_features(model, val_loader, accelerator, tick)
    photos, views = np.unique(val_index), len(val_index) // len(np.unique(val_index))
    val_features, truth = torch.from_numpy(val_features).to(accelerator.device), val_labels[photos].numpy()
    logits = model.head(val_features)
    model.known.fit(torch.from_numpy(features).to(accelerator.device), train_labels[index].to(accelerator.device), val_features, logits)
    as_in_main(model.known.buffers())
    known = model.known(val_features, logits).view(-1, views).mean(1).cpu().numpy()
    probs = logits.softmax(1).view(len(photos), views, -1).cpu().numpy()
    temperature = trust.fit_temperature(probs, truth)
    plain, calibrated = probs.mean(1), trust.at_temperature(probs, temperature).mean(1)
    answers = np.full((len(val_labels), probs.shape[2]), np.nan, np.float32)
    answers[photos] = calibrated
    return answers, {"temperature": temperature, "known_limit": trust.known_limit(known), "ece": metrics.calibration_error(plain, truth),
                     "ece_calibrated": metrics.calibration_error(calibrated, truth), "ece_chance": metrics.chance_error(calibrated)}


def seconds_a_photo(model, size: int, passes: int, accelerator: Accelerator, batch: int = 2) -> float:
    """Time of a forward and backward pass for one photo, times the passes of a step; the model is left as it was."""
    images = torch.zeros(batch, 3, size, size, device=accelerator.device).to(memory_format=torch.channels_last)
    model.train()
    for _ in range(2):                                                     # the first also sets things up
        began = time.perf_counter()
        with frozen_batchnorm(model):
            accelerator.backward(model(images).sum())
        model.zero_grad()
    return passes * (time.perf_counter() - began) / batch


def be_deterministic() -> None:
    """Only algorithms that give the same bits each time; slower on a GPU. An operation that has none raises."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")            # cuBLAS reads it when CUDA starts
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False


def rehearse(model, train_loader: DataLoader, val_loader: DataLoader, labels: torch.Tensor, loss_of: Callable, optimizer: SAM,
             accelerator: Accelerator, num_classes: int, alpha: float, clip: float) -> str:
    """One batch of training and one of validation through everything; what they were, took and held, in words."""
    lines, began = [], time.perf_counter()

    def tell(what: str, tensor: torch.Tensor) -> None:
        nonlocal began
        lines.append(f"{what:28} {tuple(tensor.shape)!s:20} {str(tensor.dtype)[6:]:8} {time.perf_counter() - began:6.2f} s")
        began = time.perf_counter()

    images, index, _ = next(iter(train_loader))
    tell("photos read and augmented", images)
    images, own = to_device(images.flatten(0, -4), accelerator), labels[index].to(accelerator.device)
    mixed, targets = mixup(images, own, num_classes, alpha, step_rng(0, 0, 0))
    tell("mixed; targets below", mixed)
    tell("", targets)
    training_mode(model, keep_batchnorm=True)
    loss = train_step(model, mixed, targets, loss_of, optimizer, accelerator, clip)
    tell(f"trained, loss {loss:.3f}", loss)
    images, _, _ = next(iter(val_loader))
    tell("validation photos read", images)
    model.eval()
    with torch.inference_mode(), accelerator.autocast():
        logits = model(to_device(images.flatten(0, -4), accelerator))
    tell("answered", logits)
    held = torch.cuda.max_memory_allocated() if accelerator.device.type == "cuda" else psutil.Process().memory_info().rss
    return "\n".join([*lines, f"memory of the {accelerator.device.type}: {held / 2**30:.2f} GiB"])


def keep_memory() -> None:
    """Let glibc keep what it frees: a CPU step allocates the same tensors again, and fetching fresh pages from the
    system took a third of its time. Elsewhere (macOS, Windows, musl) allocators do so by themselves."""
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def to_device(images: torch.Tensor, accelerator: Accelerator) -> torch.Tensor:
    return images.to(accelerator.device, memory_format=torch.channels_last, non_blocking=True)
