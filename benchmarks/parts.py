"""What each trick of a training step brings on this machine: the step without it, or with another, against the step as it is."""

import torch

from benchmarks.step import CLASSES, MODEL, ours
from benchmarks.timing import Apart, Options, command, in_turn, row


def contiguous(photos: int):
    """Ours, but photos and weights lie channel after channel."""
    import device
    device.to_device = lambda images, accelerator: images.to(accelerator.device)
    return ours(photos, keep_batchnorm=True, change=lambda network: network.to(memory_format=torch.contiguous_format))


def unfolded(photos: int):
    """Ours, but BatchNorm is a pass of its own."""
    import folding
    folding.fold_batchnorm = lambda *_: 0
    return ours(photos, keep_batchnorm=True)


def fresh_pages(photos: int):
    """Ours, but the system gets back what a step frees, and is asked for it again by the next."""
    import device
    device.keep_memory = lambda: None
    return ours(photos, keep_batchnorm=True)


def compiled(photos: int):
    """Ours by torch.compile, in whose time compiling itself does not count."""
    return ours(photos, keep_batchnorm=True, change=torch.compile)


def half_learn(photos: int):
    """The first half of the layers frozen."""
    from model import freeze
    return ours(photos, keep_batchnorm=True, change=lambda network: freeze(network, 0.5) or network)


def averaging(foreach: bool):
    """A step of the moving average of the weights."""
    import engine
    from config import Config
    from model import build_model
    network = build_model(MODEL, CLASSES, "none", covariance=Config.covariance)
    ema = engine.make_ema(network, 0.98)
    ema.foreach = foreach
    return lambda: [ema.update(network, step) for step in range(10)]


def measure(options: Options):
    photos = 2 if options.small else 32
    ways = {"without channels_last": contiguous, "BatchNorm not folded": unfolded,
            "without memory that glibc keeps": fresh_pages, "by torch.compile": compiled}
    times = in_turn({"ours": Apart(ours, photos, True), **{name: Apart(way, photos) for name, way in ways.items()}}, options.repeat)
    for name in ways:
        yield row(f"step: {name} / ours", times[name], times["ours"], ">= 1.0")
    times = in_turn({"all": Apart(ours, photos, True), "half": Apart(half_learn, photos)}, options.repeat)
    yield row("step: no layer frozen / the first half frozen", times["all"], times["half"], ">= 1.0")
    times = in_turn({foreach: averaging(foreach) for foreach in (True, False)}, options.repeat)
    yield row("moving average: by a loop / foreach", times[False], times[True], ">= 1.0")


if __name__ == "__main__":
    command(measure)
