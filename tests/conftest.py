"""Drawn photos, a small backbone, and the real photos where this checkout has them."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

signal.signal(signal.SIGINT, signal.default_int_handler)  # what is tested hears them, though pytest may run under nohup, or by `&`
signal.signal(signal.SIGHUP, signal.SIG_DFL)
os.environ["CUDA_VISIBLE_DEVICES"], os.environ["ACCELERATE_USE_CPU"] = "", "true"  # the same numbers on every machine
os.environ["HF_HUB_OFFLINE"] = "1"  # no test may reach for a hub; the one that tests the hub brings a stand-in
ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import pandas as pd  # noqa: E402
import pytest  # noqa: E402
import timm  # noqa: E402
import torch  # noqa: E402
from accelerate import Accelerator  # noqa: E402
from hypothesis import settings  # noqa: E402
from PIL import Image  # noqa: E402
from torch.utils.data import DataLoader  # noqa: E402

import checkpoint  # noqa: E402
from config import Config  # noqa: E402
from data.draw import draw_dataset  # noqa: E402
from dataset import Batches, Photos, load_table, make_loader  # noqa: E402
from model import build_model  # noqa: E402
from split import find_trouble, split  # noqa: E402
from views import FixedViews  # noqa: E402

REAL = ROOT.parent / "shared" / "data"  # real photos, in some checkouts
SMALL = "test_efficientnet.r160_in1k"  # timm's 0.4 M parameter network for tests: BatchNorm, squeeze-excite and all


settings.register_profile("the same each time", deadline=None, derandomize=True, database=None)
settings.load_profile("the same each time")


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Whatever ran before, a test's random networks are the same."""
    torch.manual_seed(0)


def loader_of(paths: list, batch: int, views: int = 1, seed: int | None = None, workers: int = 0) -> DataLoader:
    """Photos of 64 x 64 pixels. batch: photos; seed: of their order, None = as given."""
    return make_loader(Photos(paths, FixedViews(64, 1.0, views), 0, 0), Batches(len(paths), batch, seed), workers)


def save_random_model(path: Path, classes: list[str], notes: dict, name: str = SMALL, weights: str = "none",
                      covariance: int = 0) -> None:
    """A checkpoint of a random network, or a pretrained one with a random head, whose answers differ from photo to photo."""
    torch.manual_seed(0)
    model = build_model(name, len(classes), weights, covariance=covariance)
    for stage in model.covariances:
        torch.nn.init.normal_(stage.W)
    torch.nn.init.normal_(model.head.weight, std=30.0)
    checkpoint.save(path, {
        "model": name, "cosine": 0.0, "covariance": covariance, "classes": classes, "image_size": 64, "crop": 0.9,
        "temperatures": np.linspace(1.7, 1.2, 16).tolist(), "known_limits": np.linspace(1.0, 0.1, 16).tolist(), "notes": notes,
        "config": Config().to_dict(), "weights": model.state_dict()})


def make_photos(folder: Path, counts: dict[str, int], seed: int = 0) -> Path:
    """Photos of coarse noise: no two alike."""
    rng = np.random.default_rng(seed)
    for label, count in counts.items():
        (folder / label).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)).resize((80, 60)).save(folder / label / f"{i}.jpg")
    return folder


def ready(data: Path, fold: int = 0, folds: int = 5) -> pd.DataFrame:
    """The table of photos, looked over and cut."""
    return split(find_trouble(load_table(data)), fold, folds, seed=0)


def gradient() -> np.ndarray:
    """Red counts columns, green counts rows: a crop tells where it came from. 100 x 200."""
    y, x = np.mgrid[:100, :200]
    return np.dstack([x, y, np.zeros_like(x)]).astype(np.uint8)


@pytest.fixture(scope="session")
def drawn(tmp_path_factory) -> Path:
    """108 drawn photos, 12 of each genus."""
    return draw_dataset(tmp_path_factory.mktemp("photos") / "drawn", per_class=12, seed=0)


@pytest.fixture(scope="session")
def backbone(tmp_path_factory) -> Path:
    """Weights for SMALL in a file. They are random, but main.py takes them for pretrained, and fits a head to them."""
    torch.manual_seed(0)
    file = tmp_path_factory.mktemp("weights") / "backbone.pth"
    torch.save(timm.create_model(SMALL, num_classes=0).state_dict(), file)
    return file


@pytest.fixture(scope="session")
def small(drawn, backbone) -> dict:
    """A training of seconds."""
    return {"data": drawn, "model": SMALL, "weights": str(backbone), "keep_batchnorm": False, "covariance": 0, "image_size": 64,
            "batch": 16, "workers": 0}


@pytest.fixture(scope="session")
def run(small, tmp_path_factory) -> Path:
    """A run on 64 px, one epoch; what it predicts is poor, how it predicts is what is tested."""
    import main
    folder = tmp_path_factory.mktemp("work")
    before = os.getcwd()
    os.chdir(folder)
    try:
        return folder / main.train(Config(**small, epochs=1))
    finally:
        os.chdir(before)


@pytest.fixture(scope="session")
def accelerator() -> Accelerator:
    return Accelerator(mixed_precision="no")


@pytest.fixture
def fp16(accelerator, monkeypatch):
    """The accelerator as on a GPU without bf16, but for the fp16 itself: losses are scaled, gradients unscaled before they are clipped."""
    monkeypatch.setattr(accelerator, "scaler", torch.amp.GradScaler("cpu", init_scale=2.0**16))
    monkeypatch.setattr(accelerator, "native_amp", True)
    monkeypatch.setattr(accelerator, "_optimizers", [])
    monkeypatch.setattr(accelerator.state, "_mixed_precision", "fp16")
    return accelerator


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture
def small_config(small, tmp_path, monkeypatch) -> Config:
    """For one test: its runs/experiments.csv goes to the test's own folder."""
    monkeypatch.chdir(tmp_path)
    return Config(**small, epochs=2, sam_start=0.0, out=tmp_path / "run")
