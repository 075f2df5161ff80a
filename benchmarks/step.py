"""A training step without SAM: train_step against a plain timm + torch loop, contiguous as timm's own script is on a CPU."""

import timm
import torch
import torch.nn.functional as F
from accelerate import Accelerator

from benchmarks.timing import Apart, Options, a_second, command, in_turn, row

MODEL, SIZE, CLASSES = "tf_efficientnet_lite0", 224, 9


def a_batch(photos: int):
    torch.manual_seed(0)
    return torch.randint(0, 256, (photos, 3, SIZE, SIZE), dtype=torch.uint8), torch.eye(CLASSES)[torch.arange(photos) % CLASSES]


def ours(photos: int, keep_batchnorm: bool, rho: float = 0.0, change=lambda network: network):
    import device
    import engine
    from config import Config
    from folding import fold_batchnorm
    from loss import Loss
    from model import build_model
    from sam import SAM
    device.keep_memory()
    accelerator = Accelerator(mixed_precision="no", cpu=True)
    model = build_model(MODEL, CLASSES, "none", covariance=Config.covariance)
    if keep_batchnorm:
        fold_batchnorm(model, torch.zeros(1, 3, SIZE, SIZE))
    model = change(model)
    engine.training_mode(model, keep_batchnorm)
    optimizer = SAM(torch.optim.SGD(model.parameters(), 1e-3, 0.9, nesterov=True), rho)
    images, targets = a_batch(photos)
    loss_of = Loss(torch.ones(CLASSES))
    return lambda: engine.train_step(
        model, device.to_device(images, accelerator), targets, loss_of, optimizer, accelerator, clip=5.0).item()


def plain(photos: int):
    model = timm.create_model(MODEL, num_classes=CLASSES).train()
    optimizer = torch.optim.SGD(model.parameters(), 1e-3, 0.9, nesterov=True)
    images, targets = a_batch(photos)
    images = images.float() / 127.5 - 1  # its loader does this in the workers

    def step() -> float:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(images), targets)
        loss.backward()
        optimizer.step()
        return loss.item()
    return step


def measure(options: Options):
    photos = 2 if options.small else 32
    ways = {"kept": Apart(ours, photos, True), "by batch, as theirs": Apart(ours, photos, False), "plain": Apart(plain, photos)}
    times = in_turn(ways, options.repeat)
    for way in ("kept", "by batch, as theirs"):
        speeds = f"{a_second(photos, times[way])} against {a_second(photos, times['plain'])}"
        yield row(f"training step: plain loop / ours, BatchNorm {way}", times["plain"], times[way], ">= 1.3", speeds)


if __name__ == "__main__":
    command(measure)
