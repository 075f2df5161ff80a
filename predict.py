"""Name what is on photos: `python predict.py image.jpg`; also folders, a CSV, several checkpoints, several views.

In a notebook: `Predictor("runs/x/best.pt")("photo.jpg")`.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import pandas as pd
import tyro
from accelerate import Accelerator
from tqdm import tqdm

import checkpoint
import engine
import metrics
from checkpoint import CheckpointError
from dataset import Batches, DataError, Photos, make_loader, read_csv
from model import build_model
from photos import is_photo, shown
from transforms import VIEWS, FixedViews, RandomViews

CAUTION = "A guess by a program from a photo: never eat a mushroom because of it."


@dataclasses.dataclass(frozen=True)
class Options:
    photos: Annotated[tuple[Path, ...], tyro.conf.Positional]  # photos, folders (searched to any depth), or a CSV image[,label]
    checkpoint: tuple[Path, ...] = ()  # one or many best.pt, averaged; none = that of the newest run under runs/
    tta: int = 1  # views of each photo, averaged, 1 to 16; the first is the photo as it is
    tta_random: bool = False  # the views are random training augmentations instead, the entry's way
    csv: Path | None = None  # write image,label,prob and a column of probability for each class here
    batch: int = 32  # photos at a time
    workers: int = -1  # processes that read photos; 0 = none but the main one; -1 = one a core, at most 8


class Predictor:
    """One or many checkpoints, ready to name photos. checkpoints: paths of best.pt; all must know the same classes."""

    def __init__(self, *checkpoints: str | Path, tta: int = 1, tta_random: bool = False, batch: int = 32, workers: int = 0):
        if not checkpoints:
            raise CheckpointError("no checkpoint given. Train one with `python main.py`, or pass --checkpoint RUN/best.pt.")
        if not 1 <= tta <= len(VIEWS):
            raise ValueError(f"--tta {tta}: there are 1 to {len(VIEWS)} views")
        self.accelerator = Accelerator()
        self.batch, self.workers = batch, workers
        self.models = []
        for path in checkpoints:
            saved = checkpoint.load(Path(path))
            if self.models and saved["classes"] != self.classes:
                raise CheckpointError(f"{path}: knows other classes than {checkpoints[0]}. Average models of the same classes.")
            self.classes: list[str] = saved["classes"]
            model = build_model(saved["model"], len(self.classes), weights="none")
            try:
                model.load_state_dict(saved["weights"])
            except RuntimeError as error:
                raise CheckpointError(f"{path}: its weights do not fit {saved['model']}: it was changed or is broken.") from error
            size, crop = saved["image_size"], saved["crop"]
            views = RandomViews(size, tta) if tta_random else FixedViews(size, crop, tta)
            detail = size * RandomViews.DETAIL if tta_random else size / crop * max(view.zoom for view in VIEWS[:tta])
            self.models.append((model.to(self.accelerator.device).eval(), views, round(detail), saved["temperature"]))

    def probs(self, paths: Sequence[str | Path], tick: Callable[[int], None] = lambda photos: None) -> tuple[np.ndarray, dict[int, str]]:
        """Probabilities (N, K), averaged over models and views, and {index: why} of photos that cannot be read (rows NaN).

        tick is told the photos done, once for each model.
        """
        total, errors = 0.0, {}
        for model, views, detail, temperature in self.models:
            photos = Photos([str(path) for path in paths], views, seed=0, min_side=detail)
            loader = make_loader(photos, Batches(len(photos), self.batch), min(self.workers, len(photos) // self.batch))
            probs, failed = engine.predict_probs(model, loader, len(self.classes), self.accelerator, temperature, tick)
            total, errors = total + probs / len(self.models), errors | failed
        return total, errors

    def __call__(self, path: str | Path) -> dict[str, float]:
        """Probabilities of one photo by class name, likeliest first. Raises ValueError if it cannot be read."""
        probs, errors = self.probs([path])
        if errors:
            raise ValueError(f"{path}: {errors[0]}")
        return {self.classes[i]: float(probs[0, i]) for i in probs[0].argsort()[::-1]}


def main(options: Options) -> int:
    """Returns the exit code: 0, or 1 if a photo could not be read."""
    table = find_photos(options.photos)
    checkpoints = options.checkpoint or (newest_checkpoint(),)
    if not options.checkpoint:
        print(f"model: {checkpoints[0]}", file=sys.stderr)
    predictor = Predictor(*checkpoints, tta=options.tta, tta_random=options.tta_random, batch=options.batch, workers=options.workers)
    engine.keep_memory()
    with tqdm(total=len(table) * len(checkpoints), unit="photo", leave=False, disable=None) as bar:
        probs, errors = predictor.probs(table.path, bar.update)

    if len(table) == 1 and not errors:
        for i in probs[0].argsort()[::-1][:3]:
            print(f"{probs[0, i]:6.1%}  {predictor.classes[i]}")
        print(CAUTION)
    else:
        for i, path in enumerate(map(shown, table.path)):
            print(f"{path}: error: {errors[i]}" if i in errors else f"{path}: {predictor.classes[probs[i].argmax()]} {probs[i].max():.1%}")
    if options.csv:
        write_csv(options.csv, table.path, probs, errors, predictor.classes)
    known = table.label.isin(predictor.classes) & ~table.index.isin(errors)
    if known.any() and table.label.nunique() > 1:
        print(report(probs[known], table.label[known].map(predictor.classes.index).to_numpy(), predictor.classes))
    return 1 if errors else 0


def find_photos(places: Sequence[Path]) -> pd.DataFrame:
    """The photos named by files, folders and CSVs as columns path, label; label is "" where nothing says it."""
    rows = []
    for place in places:
        if place.suffix.lower() == ".csv":
            rows += read_csv(place, needed=["image"])[["path", "label"]].to_dict("records")
        elif place.is_dir():
            found = sorted(path for path in place.rglob("*") if is_photo(path) and path.is_file())
            if not found:
                raise DataError(f"{place}: no photo in it, at any depth.")
            rows += [{"path": str(path), "label": path.parent.name if path.parent != place else ""} for path in found]
        else:
            rows.append({"path": str(place), "label": ""})
    return pd.DataFrame(rows)


def newest_checkpoint(runs: Path = Path("runs")) -> Path:
    found = sorted(runs.glob("*/best.pt"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise CheckpointError(f"{runs}/: no trained model in it. Train one with `python main.py`, or pass --checkpoint FILE.")
    return found[-1]


def write_csv(file: Path, paths: Sequence[str], probs: np.ndarray, errors: dict[int, str], classes: list[str]) -> None:
    """image,label,prob and a column for each class; of a photo that cannot be read, the label is "error: why"."""
    best = np.nan_to_num(probs).argmax(1)
    table = pd.DataFrame({"image": list(paths), "label": [f"error: {errors[i]}" if i in errors else classes[k] for i, k in enumerate(best)],
                          "prob": probs[np.arange(len(probs)), best]})
    table = pd.concat([table, pd.DataFrame(probs, columns=classes)], axis=1)
    with checkpoint.atomic_file(file) as out:
        table.to_csv(out, index=False, float_format="%.6f", errors="surrogateescape")  # names as the disk has them


def report(probs: np.ndarray, labels: np.ndarray, classes: list[str]) -> str:
    """Scores of photos whose folder or CSV tells the truth."""
    table = pd.DataFrame(metrics.confusion(probs, labels), index=classes, columns=[f"{i}" for i in range(len(classes))])
    table.index = [f"{i} {name}" for i, name in enumerate(classes)]
    with pd.option_context("display.unicode.east_asian_width", True, "display.width", None):
        return (f"\naccuracy {metrics.accuracy(probs, labels):.4f}, macro-F1 {metrics.macro_f1(probs, labels):.4f} on {len(labels)} photos"
                f" (rows: the truth; columns: the answer)\n{table.to_string()}")


if __name__ == "__main__":
    try:
        sys.exit(main(tyro.cli(Options, description=__doc__)))
    except ValueError as error:
        sys.exit(str(error))
