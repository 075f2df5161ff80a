"""Accuracy beside peers, and time to accuracy: seconds until ours reaches what fastai's fine_tune has in the end, at its best rate.

    python -m benchmarks accuracy --data FOLDER     # class folders; half an hour on two cores

All on our grouped split, with the same backbone, size, batch and number of epochs. Ours: the whole of `python main.py` with the laptop's
flags of the README, from looking at the photos on; its accuracy on the way is of one view, as theirs, in the end of as many as
predict.py asks. Theirs: training alone.
"""

import functools
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch.utils.data import DataLoader

from benchmarks.timing import Options, command, row

MODEL, SIZE, BATCH, EPOCHS = "tf_efficientnet_lite0", 224, 32, 10
NORM = {"mean": (0.5,) * 3, "std": (0.5,) * 3}  # what the backbone was trained with
RATES = (2e-3, 6e-3)  # of fastai's fine_tune: its default, and three times as much


def ours(options: Options, out: Path) -> tuple[pd.DataFrame, pd.DataFrame, float, float]:
    """The log, with seconds since the command began; the table of photos and their sides; accuracy and seconds in the end."""
    import main
    from config import Config
    began = time.time()
    epochs = 2 if options.small else EPOCHS
    main.train(Config(data=options.data, model=MODEL, image_size=SIZE, batch=BATCH, epochs=epochs, mixup=0, rho=0, out=out))
    seconds, log, answers = time.time() - began, pd.read_csv(out / "log.csv"), pd.read_csv(out / "val.csv")
    right = answers.iloc[:, 2:].idxmax(axis=1) == answers.label
    before = (out / "config.json").stat().st_mtime - began  # it is written as the log's clock starts
    return log.assign(seconds=before + 60 * log.minutes), pd.read_csv(out / "photos.csv"), right.mean(), seconds


def begin_pretrained(network: torch.nn.Module) -> None:
    """Our backbone's weights into a peer's, whose own would come from the hub."""
    from model import build_model
    missing, strange = network.load_state_dict(build_model(MODEL, 9).backbone.state_dict(), strict=False)
    assert not strange, strange
    assert {name.split(".")[0] for name in missing} <= {"classifier"}, missing


def fastai(table: pd.DataFrame, epochs: int, rate: float) -> float:
    """fine_tune: one epoch of the head alone, then the rest."""
    from fastai.vision.all import (
        CategoryBlock,
        ColReader,
        ColSplitter,
        DataBlock,
        ImageBlock,
        Normalize,
        Resize,
        accuracy,
        aug_transforms,
        set_seed,
        vision_learner,
    )

    set_seed(0)
    photos = DataBlock((ImageBlock, CategoryBlock), get_x=ColReader("path"), get_y=ColReader("label"), splitter=ColSplitter(),
                       item_tfms=Resize(460), batch_tfms=[*aug_transforms(size=SIZE, min_scale=0.75), Normalize.from_stats(*NORM.values())])
    learner = vision_learner(photos.dataloaders(table, bs=BATCH), MODEL, pretrained=False, metrics=accuracy)
    begin_pretrained(learner.model[0].model)
    learner.fine_tune(epochs - 1, rate)
    return float(learner.validate()[1])


class Pictures(torch.utils.data.Dataset):
    """(float (3, S, S), class) of one side of the table, by timm's transforms."""

    def __init__(self, table: pd.DataFrame, validates: bool, train: bool):
        from timm.data import create_transform
        self.table, self.classes = table[table.is_valid == validates], sorted(table.label.unique())
        erasing = {"re_prob": 0.25, "re_mode": "pixel", "scale": (0.35, 1)} if train else {"crop_pct": 0.875}
        self.transform = create_transform(SIZE, is_training=train, interpolation="bicubic", **NORM, **erasing)

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        from PIL import Image
        with Image.open(self.table.path.iloc[index]) as photo:
            return self.transform(photo.convert("RGB")), self.classes.index(self.table.label.iloc[index])


def timm_loop(table: pd.DataFrame, epochs: int) -> float:
    """What timm's own script does on few photos: all layers from a new head, AdamW, cosine, mixup, erasing."""
    import timm.data
    from timm.loss import SoftTargetCrossEntropy
    torch.manual_seed(0)
    learner = timm.create_model(MODEL, num_classes=table.label.nunique())
    begin_pretrained(learner)
    photos = DataLoader(Pictures(table, False, train=True), BATCH, shuffle=True, num_workers=2, drop_last=True, persistent_workers=True)
    optimizer = torch.optim.AdamW(learner.parameters(), 5e-4, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-4, total_steps=epochs * len(photos), pct_start=0.1)
    mixup, loss_of = timm.data.Mixup(mixup_alpha=0.2, num_classes=table.label.nunique()), SoftTargetCrossEntropy()
    learner.train()
    for _ in range(epochs):
        for images, labels in photos:
            images, targets = mixup(images, labels)
            loss_of(learner(images), targets).backward()
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
    answers, labels = asked(learner.eval(), table, validates=True)
    return float((answers.argmax(1) == labels).mean())


def logistic(table: pd.DataFrame, _: int) -> float:
    """Logistic regression on the frozen features of the centre crop, its strength found by cross-validation of the training photos."""
    from sklearn.linear_model import LogisticRegressionCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    from model import build_model
    backbone = build_model(MODEL, table.label.nunique()).backbone.eval()
    fit = make_pipeline(StandardScaler(), LogisticRegressionCV(Cs=np.logspace(-4, 0, 9), max_iter=1000))
    fit.fit(*asked(backbone, table, validates=False))
    return float(fit.score(*asked(backbone, table, validates=True)))


@torch.inference_mode()
def asked(network: torch.nn.Module, table: pd.DataFrame, validates: bool) -> tuple[np.ndarray, np.ndarray]:
    """What the network says of one side's centre crops, (N, ...), and their classes int (N,)."""
    found = [(network(images), labels) for images, labels in DataLoader(Pictures(table, validates, train=False), BATCH, num_workers=2)]
    return tuple(torch.cat(column).numpy() for column in zip(*found, strict=True))


def measure(options: Options):
    with tempfile.TemporaryDirectory() as folder:
        log, table, kept, whole = ours(options, Path(folder) / "run")
    table = table[table.side.isin(["train", "val"])].assign(is_valid=lambda t: t.side == "val")
    ways = {"logistic regression": logistic, "a timm loop, AdamW 5e-4": timm_loop,
            **{f"fastai's fine_tune, {rate:g}": functools.partial(fastai, rate=rate) for rate in RATES}}
    found = []
    for name, way in ways.items():
        began = time.perf_counter()
        accuracy = way(table, 2 if options.small else EPOCHS)
        found.append((accuracy, time.perf_counter() - began))
        yield row(f"error: ours / {name}", [1 - kept], [1 - accuracy], "<= 0.5",
                  f"accuracy {kept:.3f} in {whole:.0f} s against {accuracy:.3f} in {found[-1][1]:.0f} s")
    accuracy, seconds = max(found[-len(RATES):])
    there = log[log.val_accuracy >= accuracy]
    if len(there):
        yield row("time to accuracy: ours / fastai", [there.seconds.iloc[0]], [seconds], "<= 0.25", f"{accuracy:.3f} in {seconds:.0f} s")
    else:
        yield f"| time to accuracy: ours / fastai | never reached | <= 0.25 | no | {accuracy:.3f}, ours {log.val_accuracy.max():.3f} |"


if __name__ == "__main__":
    command(measure)
