"""On a GPU: B6 at 528 pixels with SAM and mixup against a plain loop of the same parts, what fits, and how long it waits for photos.

`python -m benchmarks.gpu --data FOLDER`; the weights are random, which changes no time. `--small` runs on a CPU too.
"""

import gc
import itertools
import tempfile
import time

import cv2
import numpy as np
import timm
import torch
import torch.nn.functional as F

from benchmarks.loader import enlarged
from benchmarks.timing import Options, a_second, command, in_turn, row

MODEL, SIZE, BATCH, CLASSES, ALPHA = "tf_efficientnet_b6", 528, 64, 9, 0.2
# timm's own table results/benchmark-train-amp-nhwc-pt112-cu113-rtx3090.csv: SGD, 528 px, batch 16
TIMM_A_SECOND = 63.1


def a_batch(photos: int, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """As the loader gives it: uint8 (B, 3, S, S) with colours innermost, pinned where there is a GPU; labels int64 (B,)."""
    torch.manual_seed(0)
    images = torch.randint(0, 256, (photos, size, size, 3), dtype=torch.uint8).movedim(-1, 1)
    return images.pin_memory() if torch.cuda.is_available() else images, torch.arange(photos) % CLASSES


def ours(name: str, size: int, photos: int, rho: float = 0.05, accumulate: int = 1, keep_batchnorm: bool = True,
         fold: bool = True, change=lambda network: network):
    import device
    import engine
    from config import Config
    from folding import fold_batchnorm
    from loss import Loss
    from mixup import mixup
    from model import build_model
    from sam import SAM
    accelerator, _ = device.make_accelerator()
    model = build_model(name, CLASSES, "none", covariance=Config.covariance).to(accelerator.device)
    if fold:
        fold_batchnorm(model, torch.zeros(1, 3, size, size, device=accelerator.device))
    model = change(model)
    model, sgd = accelerator.prepare(model, torch.optim.SGD(model.parameters(), 1e-3, 0.9, nesterov=True))
    engine.training_mode(model, keep_batchnorm)
    optimizer, loss_of, rng = SAM(sgd, rho), Loss(torch.ones(CLASSES)).to(accelerator.device), np.random.default_rng(0)
    images, labels = a_batch(photos, size)

    def step() -> float:
        mixed, targets = mixup(device.to_device(images, accelerator), labels.to(accelerator.device), CLASSES, ALPHA, rng)
        return engine.train_step(model, mixed, targets, loss_of, optimizer, accelerator, clip=5.0, accumulate=accumulate).item()
    return step


def plain(name: str, size: int, photos: int):
    """The same parts as one would write them down: timm's network, autocast, mixup, pytorch_optimizer's SAM around SGD."""
    from pytorch_optimizer import SAM
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = timm.create_model(name, num_classes=CLASSES).to(device, memory_format=torch.channels_last).train()
    optimizer = SAM(model.parameters(), torch.optim.SGD, rho=0.05, lr=1e-3, momentum=0.9, nesterov=True)
    images, labels = a_batch(photos, size)
    rng = np.random.default_rng(0)

    def step() -> float:
        pixels = images.to(device, non_blocking=True).float() / 127.5 - 1
        targets = F.one_hot(labels.to(device), CLASSES).float()
        share, other = rng.beta(ALPHA, ALPHA), torch.randperm(photos, device=device)
        pixels, targets = share * pixels + (1 - share) * pixels[other], share * targets + (1 - share) * targets[other]

        def passes() -> torch.Tensor:
            optimizer.zero_grad()
            with torch.autocast(device, torch.bfloat16):
                logits = model(pixels)
            loss = F.cross_entropy(logits.float(), targets)
            loss.backward()
            return loss

        loss = passes()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step(passes)
        return loss.item()
    return step


def choosing(step):
    """cuDNN tries each of its algorithms once for each shape, and takes the fastest."""
    def chosen() -> float:
        torch.backends.cudnn.benchmark = True
        try:
            return step()
        finally:
            torch.backends.cudnn.benchmark = False
    return chosen


def to_the_end(step):
    """So that what one way leaves in the GPU's queue does not count as the next one's."""
    def whole() -> None:
        step()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
    return whole


def steps(name: str, size: int, photos: int, repeat: int):
    def contiguous(network):
        return network.to(memory_format=torch.contiguous_format)

    make = {"SAM": lambda: ours(name, size, photos), "SGD": lambda: ours(name, size, photos, rho=0.0),
            "BatchNorm by batch": lambda: ours(name, size, photos, keep_batchnorm=False), "plain": lambda: plain(name, size, photos),
            "BatchNorm not folded": lambda: ours(name, size, photos, fold=False),
            "weights not channels_last": lambda: ours(name, size, photos, change=contiguous),
            "cudnn.benchmark": lambda: choosing(ours(name, size, photos)),
            "2 parts": lambda: ours(name, size, photos, accumulate=2), "4 parts": lambda: ours(name, size, photos, accumulate=4)}
    times = in_turn({way: to_the_end(prepare()) for way, prepare in make.items()}, repeat)
    speed = {way: a_second(photos, seconds) for way, seconds in times.items()}
    named = f"{name}, {size} px, batch {photos}"
    yield row(f"{named}: plain loop with SAM / ours", times["plain"], times["SAM"], ">= 1.0", f"{speed['SAM']} against {speed['plain']}")
    yield row(f"{named}: the same, BatchNorm by batch, as theirs", times["plain"], times["BatchNorm by batch"], ">= 1.0",
              f"{speed['BatchNorm by batch']} against {speed['plain']}")
    yield row(f"{named}: SAM step / SGD step", times["SAM"], times["SGD"], "<= 2.0",
              f"SGD {speed['SGD']}; timm's own table has {TIMM_A_SECOND} on an RTX 3090")
    for way in ("BatchNorm not folded", "weights not channels_last", "cudnn.benchmark"):
        yield row(f"{named}: {way} / ours", times[way], times["SAM"], ">= 1.0", speed[way])
    for way in ("2 parts", "4 parts"):
        yield row(f"{named}: batch in {way} / at once", times[way], times["SAM"], "", speed[way])


def compiled(name: str, size: int, photos: int, repeat: int):
    began = time.perf_counter()
    way = ours(name, size, photos, change=torch.compile)
    way()
    took = time.perf_counter() - began
    times = in_turn({"compiled": to_the_end(way), "ours": to_the_end(ours(name, size, photos))}, repeat)
    yield row(f"{name}, {size} px, batch {photos}: by torch.compile / ours", times["compiled"], times["ours"], ">= 1.0",
              f"{a_second(photos, times['compiled'])}; the first step takes {took:.0f} s")


def largest(name: str, size: int, by: int):
    """Batches by `by` photos more, until one does not fit."""
    told = []
    for photos in itertools.count(by, by):
        gc.collect()  # networks before
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        try:
            step = ours(name, size, photos)
            step()
            began = time.perf_counter()
            to_the_end(step)()
        except torch.OutOfMemoryError:
            break
        told.append(f"{photos}: {torch.cuda.max_memory_allocated() / 1e9:.0f} GB, {photos / (time.perf_counter() - began):.3g} photos/s")
        del step
    yield f"| {name}, {size} px: largest batch | {photos - by} | | | SAM; {'; '.join(told)} |"


def waiting(name: str, size: int, photos: int, paths: list[str], kind: str):
    """train_one_epoch without SAM, until far more than the loader reads ahead is used up; the share of the time that it asks for photos
    and gets none."""
    import device
    import engine
    from config import Config
    from dataset import Batches, Photos, make_loader
    from folding import fold_batchnorm
    from loss import Loss
    from model import build_model
    from sam import SAM
    from transforms import RandomViews
    accelerator, _ = device.make_accelerator()
    model = build_model(name, CLASSES, "none", covariance=Config.covariance).to(accelerator.device)
    fold_batchnorm(model, torch.zeros(1, 3, size, size, device=accelerator.device))
    ema = engine.make_ema(model, 0.98)
    model, sgd = accelerator.prepare(model, torch.optim.SGD(model.parameters(), 1e-3, 0.9, nesterov=True))
    optimizer, loss_of = SAM(sgd, 0.0), Loss(torch.ones(CLASSES)).to(accelerator.device)
    views = RandomViews(size, 1, 0.5)
    read = Photos(paths, views, 0, views.min_side)
    loader = make_loader(read, Batches(len(paths), photos, 0, epochs=10**6), -1, torch.cuda.is_available())
    labels, first = torch.arange(len(paths)) % CLASSES, 3 * loader.num_workers  # before, what was read while the GPU started is used up
    waits, asked = [], []

    def watched(batches):
        while True:
            asked.append(time.perf_counter())
            batch = next(batches)
            waits.append(time.perf_counter() - asked[-1])
            yield batch

    batches, epoch = watched(iter(loader)), 0
    while len(waits) < 2 * first:
        progress = {"epoch": epoch, **engine.EPOCH_START, "accumulate": 1}
        epoch += 1
        engine.train_one_epoch(model, loader, batches, labels, loss_of, optimizer, lambda step: None, ema, accelerator, progress,
                               num_classes=CLASSES, alpha=ALPHA, clip=5.0, seed=0, keep_batchnorm=True, stop=lambda: False,
                               tick=lambda loss: None)
    whole = asked[-1] - asked[first]
    share, speed = sum(waits[first:-1]) / whole, photos * (len(asked) - 1 - first) / whole
    yield (f"| {name}, {size} px, batch {photos}, {kind}: share of the time it waits for photos | {share:.3g} | <= 0.03 | "
           f"{'yes' if share <= 0.03 else 'no'} | SGD, {speed:.3g} photos/s by {loader.num_workers} workers |")


def measure(options: Options):
    name, size, photos = ("tf_efficientnet_lite0", 64, 4) if options.small else (MODEL, SIZE, BATCH)
    if not (torch.cuda.is_available() or options.small):
        raise SystemExit("no CUDA GPU here, of which this tells: run it on a machine that has one.")
    yield from steps(name, size, photos, options.repeat)
    paths = options.photos(640)
    cv2.setNumThreads(0)
    with tempfile.TemporaryDirectory() as folder:
        for kind, megapixels in {"0.8 megapixels": 0.76, "12 megapixels": 12}.items():
            large = enlarged(paths[:8 if options.small else 32], folder, megapixels)
            many = (large * len(paths))[:len(paths)]
            yield from waiting(name, size, photos, many, kind)
            yield from waiting("tf_efficientnet_lite0", min(size, 224), photos, many, kind)
    if torch.cuda.is_available():
        yield from largest(name, size, photos // 2)
        yield from compiled(name, size, photos, options.repeat)


if __name__ == "__main__":
    command(measure)
