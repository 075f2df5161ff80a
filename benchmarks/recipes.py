"""What each knob of the recipe brings: every way is trained on the same folds and compared with the defaults photo by photo.

`python -m benchmarks.recipes --data ../shared/data/fungi9 --out /tmp/recipes` prints a table in Markdown, the record's rows. Small photos
and few epochs, as there are many ways: what is large here is worth a run at full size. The same command goes on where it was stopped.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import tyro

import dataset
import fitting
import main
import record
from config import Config
from sam import SAM


class MomentumSAM(SAM):
    """Climb along the momentum, which costs no second pass (Becker et al. 2024, arXiv 2401.12033): e(w) = -rho v / |v|."""

    def due(self) -> bool:
        if super().due():
            for group in self.param_groups:
                for param in group["params"]:
                    param.grad = self.optimizer.state[param]["momentum_buffer"].neg()
            self.ascend()
        return False

    def step(self, norm: torch.Tensor) -> bool:
        self.descend()
        return super().step(norm)


class NormSAM(SAM):
    """Climb by normalisation layers and biases alone (Mueller et al. 2023, arXiv 2306.04226)."""

    def ascend(self) -> None:
        for group in self.param_groups:
            for param in group["params"]:
                if param.ndim > 1:
                    param.grad = None
        super().ascend()


WAYS: dict[str, dict] = {  # name: knobs that differ from the defaults; "sam" = the class that wraps SGD
    "the defaults": {},
    "plain SGD": {"rho": 0.0},
    "plain SGD, twice the epochs": {"rho": 0.0, "epochs": 10},  # about as long as SAM on every step
    "SAM on every step": {"sam_every": 1, "sam_start": 0.0},
    "SAM 0.02 on every step": {"rho": 0.02, "sam_every": 1, "sam_start": 0.0},
    "SAM 0.1 on every step": {"rho": 0.1, "sam_every": 1, "sam_start": 0.0},
    "no mixup": {"mixup": 0.0},
    "label smoothing 0.1": {"smoothing": 0.1},
    "classes as they are": {"balance": "none"},
    "class weights": {"balance": "weights"},
    "ArcFace 0.3": {"arcface": 0.3},
    "ArcFace 0.3, no mixup": {"arcface": 0.3, "mixup": 0.0},
    "ArcFace 0.1": {"arcface": 0.1},
    "ArcFace 0.1, scale 15": {"arcface": 0.1, "arcface_scale": 15.0},
    "ArcFace 0.1, scale 30": {"arcface": 0.1, "arcface_scale": 30.0},
    "ArcFace 0.1, scale 120": {"arcface": 0.1, "arcface_scale": 120.0},
    "ArcFace 0.3, scale 30": {"arcface": 0.3, "arcface_scale": 30.0},
    "one-cycle (warm-up 0.3)": {"warmup": 0.3},
    "no moving average": {"ema": 0.0},
    "the best epoch, no way back": {"wise": False},
    "random head": {"head_first": False},
    "no covariances": {"covariance": 0},
    "BatchNorm by batch": {"keep_batchnorm": False},
    "lite1": {"model": "tf_efficientnet_lite1"},
    "lite2": {"model": "tf_efficientnet_lite2"},
    "crop and mirror alone": {"augment": 0.0},
    "augmentation twice as often": {"augment": 1.0},
    "progressive from half size": {"progressive": 0.5},  # tells only above 128 pixels
    "SAM on every step of the last quarter": {"sam_every": 1},
    "ASAM 0.5": {"asam": True, "rho": 0.5},
    "momentum-SAM 0.3 in the last quarter": {"sam": MomentumSAM, "rho": 0.3, "sam_every": 1},
    "SAM 0.5 by normalisation layers": {"sam": NormSAM, "rho": 0.5},
    "focal loss 2": {"focal": 2.0},
    "step": {"schedule": "step"},
    "restarts": {"schedule": "restarts"},
    "all layers at the same rate": {"layer_decay": 1.0},
    "a quarter of the layers frozen": {"freeze": 0.25},
    "half of the layers frozen": {"freeze": 0.5},
    "three quarters of the layers frozen": {"freeze": 0.75},
    "twice the rate": {"lr": 0.016},
    "half the rate": {"lr": 0.004},
    "mixup 0.2": {"mixup": 0.2},
    "mixup 0.4": {"mixup": 0.4},
    "mixup 0.2, none in the last two epochs": {"mixup": 0.2, "mixup_end": 0.6},
}
TOGETHER = {"lite0, lite1 and lite2 averaged": ("the defaults", "lite1", "lite2")}  # their probabilities
TABLE = "| what | accuracy | log loss | balanced accuracy | accuracy: more than the defaults | log loss | seconds |\n" + "| --- " * 7 + "|"
FIT = fitting.fit_heads


@dataclasses.dataclass(frozen=True)
class Options:
    data: Path
    out: Path  # a folder for the runs
    photos: int = 622  # of a larger set so many, drawn at random
    folds: int = 3  # of five
    size: int = 128  # pixels
    epochs: int = 5
    jobs: int = 1  # runs at a time, with one core each
    only: tuple[str, ...] = tuple(WAYS)[1:]  # ways to compare with the defaults

    def folder(self, way: str, fold: int) -> Path:
        return self.out / f"{way}, fold {fold}"


def head_kept(stem: str) -> Callable:
    """fit_heads, but a head that was fitted before is read from `stem`, of photos and backbone."""
    def fit_heads(model, parts, balance, accelerator, tick):
        kept = Path(f"{stem}, {type(model.head).__name__}, {balance}.pt")
        if not kept.exists():
            FIT(model, parts, balance, accelerator, tick)
            torch.save(model.head.state_dict(), kept)
        model.head.load_state_dict(torch.load(kept, weights_only=True))
        return [model.head.state_dict()]
    return fit_heads


def train(job: tuple[Options, Path, str, int]) -> None:
    """One run, unless it is there already."""
    options, table, way, fold = job
    if options.folder(way, fold).exists():
        return
    torch.set_num_threads(1)
    knobs = dict(WAYS[way])
    main.SAM = knobs.pop("sam", SAM)
    record.EXPERIMENTS = options.out / "experiments.csv"
    config = Config(data=table, model="tf_efficientnet_lite0", image_size=options.size, epochs=options.epochs, batch=32, fold=fold,
                    refit=False, workers=0, cache=1, quiet=True, out=Path(tempfile.mkdtemp(dir=options.out)))
    config = dataclasses.replace(config, **knobs)
    fitting.fit_heads = head_kept(f"{options.out}/head, {config.model}, {config.covariance}, fold {fold}")
    main.train(config).rename(options.folder(way, fold))


def answers(options: Options, *ways: str) -> pd.DataFrame:
    """The judged photos of all folds, by the mean of the ways' probabilities: label, fold, right, loss, and seconds of its training."""
    found = []
    for fold in range(options.folds):
        tables, probs, labels = zip(*(record.read_answers(options.folder(way, fold) / "val.csv") for way in ways), strict=True)
        logs = [pd.read_csv(options.folder(way, fold) / "log.csv") for way in ways]
        mean = np.mean(probs, 0)
        own = mean[np.arange(len(mean)), labels[0]].clip(1e-7)
        right = (own == mean.max(1)).astype(float)
        minutes = sum(log.minutes.max() - log.minutes[log.epoch == 0].sum() for log in logs)
        found.append(pd.DataFrame({"label": tables[0].label, "fold": fold, "right": right, "loss": -np.log(own), "seconds": 60 * minutes}))
    return pd.concat(found)


def line(name: str, own: pd.DataFrame, base: pd.DataFrame) -> str:
    """Mean and deviation over the folds; then the difference from the defaults, and its standard error over the photos."""
    folds = own.groupby("fold")[["right", "loss", "seconds"]].mean()
    cells = [f"{folds[what].mean():.3f} ± {folds[what].std():.3f}" for what in ("right", "loss")]
    cells.append(f"{own.groupby('label').right.mean().mean():.3f}")
    more = own[["right", "loss"]].to_numpy() - base[["right", "loss"]].to_numpy()
    cells += [f"{mean:+.3f} ± {error:.3f}" for mean, error in zip(more.mean(0), more.std(0) / len(more) ** 0.5, strict=True)]
    return f"| {name} | {' | '.join(cells)} | {folds.seconds.mean():.0f} |"


def measure(options: Options) -> Iterator[str]:
    """The lines of the table."""
    options.out.mkdir(parents=True, exist_ok=True)
    photos, table = dataset.load_table(options.data), options.out / "photos.csv"
    photos = photos.sample(min(options.photos, len(photos)), random_state=0).sort_index()
    photos["image"] = [str(Path(path).resolve()) for path in photos.path]
    record.write_table(table, photos[["image", "label", "group"]])
    ways = ["the defaults", *options.only]
    with multiprocessing.get_context("spawn").Pool(options.jobs) as pool:
        pool.map(train, [(options, table, way, fold) for way in ways for fold in range(options.folds)], chunksize=1)
    base = answers(options, ways[0])
    yield TABLE
    for way in ways:
        yield line(way, answers(options, way), base)
    for name, several in TOGETHER.items():
        if {*several} <= {*ways}:
            yield line(name, answers(options, *several), base)


if __name__ == "__main__":
    for row in measure(tyro.cli(Options, description=__doc__)):
        print(row)
