"""SAM on every batch: the time of a step against SGD's, ours and pytorch_optimizer's, and the memory between its two passes."""

import gc

import torch
import torch.nn.functional as F

from benchmarks.step import CLASSES, MODEL, SIZE, a_batch, ours
from benchmarks.timing import Apart, Options, command, in_turn, row


def theirs(photos: int):
    """pytorch_optimizer's SAM around the same network in the same layout and mode."""
    from pytorch_optimizer import SAM

    import device
    import engine
    from config import Config
    from folding import fold_batchnorm
    from model import build_model
    device.keep_memory()
    model = build_model(MODEL, CLASSES, "none", covariance=Config.covariance)
    fold_batchnorm(model, torch.zeros(1, 3, SIZE, SIZE))
    engine.training_mode(model, keep_batchnorm=True)
    optimizer = SAM(model.parameters(), torch.optim.SGD, rho=0.05, lr=1e-3, momentum=0.9, nesterov=True)
    images, targets = a_batch(photos)
    images = images.contiguous(memory_format=torch.channels_last)

    def passes() -> torch.Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(images), targets)
        loss.backward()
        return loss

    def step() -> float:
        loss = passes()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step(passes)
        return loss.item()
    return step


def copies_of_the_weights() -> float:
    """Bytes that ascend adds, in copies of the weights; the gradients' own bytes are free by then."""
    from config import Config
    from model import build_model
    from sam import SAM
    model = build_model(MODEL, CLASSES, "none", covariance=Config.covariance)
    optimizer = SAM(torch.optim.SGD(model.parameters(), 1e-3), rho=0.05)
    before = live_bytes()
    F.cross_entropy(model(a_batch(2)[0]), a_batch(2)[1]).backward()
    optimizer.ascend()
    return (live_bytes() - before) / sum(p.nbytes for p in model.parameters())


def live_bytes() -> int:
    """Of all tensors there are, each memory counted once."""
    gc.collect()
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in gc.get_objects() if isinstance(t, torch.Tensor)}
    return sum(storages.values())


def measure(options: Options):
    from config import Config
    photos = 2 if options.small else 32
    times = in_turn({"SGD": Apart(ours, photos, True), "SAM": Apart(ours, photos, True, 0.05), "their SAM": Apart(theirs, photos)},
                    options.repeat)
    yield row("SAM: our step / SGD step", times["SAM"], times["SGD"], "<= 2.0", f"{copies_of_the_weights():.2f} copies of the weights more")
    climbing = (1 - Config.sam_start) / Config.sam_every  # share of the default schedule's steps
    epoch = [sgd + climbing * (sam - sgd) for sgd, sam in zip(times["SGD"], times["SAM"], strict=True)]
    yield row("cheap SAM: an average step of the defaults / SGD step", epoch, times["SGD"], "<= 1.15",
              f"reckoned: {climbing:.1%} of the steps climb")
    yield row("SAM: pytorch_optimizer's step / ours", times["their SAM"], times["SAM"], ">= 1.0")


if __name__ == "__main__":
    command(measure)
