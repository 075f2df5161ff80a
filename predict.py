"""Name what is on photos: `python predict.py image.jpg`; also folders, a CSV, several models, several views.

In a notebook: `Predictor("runs/x/best.pt")("photo.jpg")`.
"""

from __future__ import annotations

# Little is imported up here, and no torch: an exported model answers at once.
import dataclasses
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import tyro
from tqdm import tqdm

import trust
from answers import left_out, no_score, print_json, report, write_csv
from checkpoint import CheckpointError, check_exists, models_of
from files import WriteError, check_out
from photos import DataError, photos_below, read_csv
from text import INTERRUPTED, class_name, sentence, shown, spell_out
from views import ANSWER_VIEWS, VIEWS

PICTURES = (".png", ".jpg", ".pdf", ".svg")

if TYPE_CHECKING:
    from exported import Exported
    from trained import Trained


@dataclasses.dataclass(frozen=True)
class Options:
    photos: Annotated[tuple[Path, ...], tyro.conf.Positional]  # photos, folders (to any depth), a CSV image[,label]; - = paths from stdin
    checkpoint: tuple[Path, ...] = ()  # one or many best.pt, .onnx or run folders (all folds), averaged; none = the newest under runs/
    tta: int = ANSWER_VIEWS  # views of each photo, averaged: 1 to 16; 8 = twice as fast
    tta_random: bool = False  # the views are random training augmentations instead, the entry's way
    csv: Path | None = None  # write image,label,prob,known,unknown,deadly and a column of probability for each class here
    explain: Path | None = None  # draw the answers here (.png), with heat maps of what spoke for them; of many photos the first 60
    json: bool = False  # JSON lines instead of text: one object a photo, all probabilities in it
    quiet: bool = False  # the answers alone: no progress, no word of the model, no scores
    batch: int = 32  # views at a time: 32 = two photos of sixteen views (.onnx: one photo a thread)
    workers: int = -1  # processes (.onnx: threads) for many photos; 0 = none but the main one; -1 = one a core


class Predictor:
    """One or many models, ready to name photos: best.pt, an .onnx of tools/export.py, a run's folder (each of its folds answers, the mean
    counts); all must know the same classes.

    workers: 0 = read and answer in turn; more, or -1 (one a core), pays for many photos. Raises CheckpointError, ValueError.
    """

    def __init__(self, *models: str | Path, tta: int = ANSWER_VIEWS, tta_random: bool = False, batch: int = 32, workers: int = 0):
        if not models:
            raise CheckpointError("no checkpoint given. Train one with `python main.py`, or pass --checkpoint RUN/best.pt.")
        if not 1 <= tta <= len(VIEWS):
            raise ValueError(f"--tta {tta}: there are 1 to {len(VIEWS)} views")
        self.paths = [path for place in models for path in models_of(Path(place))]
        self.models = [open_model(path, tta, tta_random, batch, workers) for path in self.paths]
        self.classes: list[str] = self.models[0].classes
        for path, model in zip(self.paths, self.models, strict=True):
            if model.classes != self.classes:
                raise CheckpointError(f"{path}: knows other classes than {self.paths[0]}. Average models of the same classes.")
        self.limit = sum(model.limit for model in self.models) / len(self.models)  # of `known`, below which a photo is called unknown
        self.notes = {name: note for model in self.models for name, note in model.notes.items()}  # of dangerous classes (trust.read_notes)

    def probs(self, paths: Sequence[str | Path], tick: Callable[[int], None] = lambda photos: None) -> tuple[np.ndarray, dict[int, str]]:
        """Probabilities (N, K), averaged over models and views, and {index: why} of photos that cannot be read (rows NaN).

        tick is told the photos done, once for each model.
        """
        probs, _, errors = self.answers(paths, tick)
        return probs, errors

    def answers(self, paths: Sequence[str | Path],
                tick: Callable[[int], None] = lambda photos: None) -> tuple[np.ndarray, np.ndarray, dict[int, str]]:
        """As probs, with the score float (N,) in the middle: how like the classes the photo is; below self.limit, unknown."""
        probs, known, errors = 0.0, 0.0, {}
        for model in self.models:
            own_probs, own_known, failed = model.answers([str(path) for path in paths], tick)
            probs, known, errors = probs + own_probs / len(self.models), known + own_known / len(self.models), errors | failed
        return probs, known, errors

    def __call__(self, path: str | Path) -> dict[str, float]:
        """Probabilities of one photo by class name, likeliest first. Raises ValueError if it cannot be read."""
        probs, errors = self.probs([path])
        if errors:
            raise ValueError(f"{path}: {errors[0]}")
        return {self.classes[i]: float(probs[0, i]) for i in probs[0].argsort()[::-1]}


def open_model(path: Path, tta: int, tta_random: bool, batch: int, workers: int) -> Trained | Exported:
    """By the file's suffix; what one kind needs is imported only for it: torch takes seconds."""
    check_exists(path)
    if path.suffix != ".onnx":
        from trained import Trained
        return Trained(path, tta, tta_random, batch, workers)
    if tta_random:
        raise CheckpointError(f"{path}: --tta-random draws from the training pipeline, which an exported model does without. "
                              "Pass best.pt, or --tta alone.")
    from exported import Exported
    return Exported(path, tta, workers)


def main(options: Options) -> int:
    """Returns the exit code: 0, or 1 if a photo could not be read."""
    paths, labels = find_photos(options.photos)
    places = options.checkpoint or (newest_checkpoint(),)
    models = [model for place in places for model in models_of(place)]
    for file in filter(None, (options.csv, options.explain)):
        check_out(file, *options.photos, *paths, *models)
    if options.explain and options.explain.suffix.lower() not in PICTURES:
        raise WriteError(f"{options.explain}: no kind of picture. Let it end in {', '.join(PICTURES)}.")
    if not options.checkpoint and not options.quiet:
        print(f"model: {places[0]}", file=sys.stderr)
    if options.explain and len(models) > 1 and not options.quiet:
        print(f"{options.explain}: its heat maps are of {models[0]} alone, the answers of all", file=sys.stderr)
    workers = options.workers if len(paths) > 1 else 0
    predictor = Predictor(*models, tta=options.tta, tta_random=options.tta_random, batch=options.batch, workers=workers)
    for path, model in zip(predictor.paths, predictor.models, strict=True):
        if model.limit == 0 and not options.quiet:
            print(f"{path}: nothing is called unknown: that limit is fitted last, into best.pt, when training ends", file=sys.stderr)
    with tqdm(total=len(paths) * len(predictor.models), unit="photo", leave=False, disable=options.quiet or None) as bar:
        probs, known, errors = predictor.answers(paths, bar.update)

    unknown, deadly = known < predictor.limit, trust.deadly_share(probs, predictor.classes, predictor.notes)
    more = {"known": known, "unknown": np.where(unknown, "yes", "no"), "deadly": deadly}
    if options.csv:
        write_csv(options.csv, paths, probs, more, errors, predictor.classes)
    try:
        tell(options, predictor, paths, labels, probs, more, errors)
        sys.stdout.flush()  # here, where a closed pipe is caught
    except BrokenPipeError:  # `| head` has seen enough; Python would complain once more when it closes what is left
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    if options.explain:
        from explain import draw_reasons  # it needs matplotlib and grad-cam: only who asks waits for them
        read = [i for i in range(len(paths)) if i not in errors]
        draw_reasons(options.explain, predictor.paths[0], [paths[i] for i in read], probs[read], predictor.classes)
    return 1 if errors else 0


def tell(options: Options, predictor: Predictor, paths: Sequence[str], labels: Sequence[str], probs: np.ndarray,
         more: dict[str, np.ndarray], errors: dict[int, str]) -> None:
    """The answers on the screen: of one photo the three likeliest classes, of many a line each; scores where `labels` tell the truth."""
    if options.json:
        print_json(paths, probs, more, errors, predictor.classes)
        return
    if len(paths) == 1 and not errors:
        for i in probs[0].argsort()[::-1][:3]:
            print(f"{probs[0, i]:6.1%}  {predictor.classes[i]}")
        if more["unknown"][0] == "yes":
            print(f"unknown: it looks like none of the classes (known {more['known'][0]:.2f}, below {predictor.limit:.2f})")
        if warning := trust.warning(probs[0], predictor.classes, predictor.notes):
            print(warning)
    else:
        for i, path in enumerate(paths):
            answer = f"{predictor.classes[probs[i].argmax()]} {probs[i].max():.1%}" if i not in errors else f"error: {errors[i]}"
            remarks = ["unknown"] * (more["unknown"][i] == "yes")
            remarks += [f"deadly genera {more['deadly'][i]:.0%}"] * bool(more["deadly"][i] >= trust.NOTICEABLE)
            print(f"{shown(path)}: {', '.join([answer, *remarks])}")
    if options.quiet:
        return
    print(trust.CAUTION)
    told = [i for i, label in enumerate(labels) if label in predictor.classes and i not in errors]
    if any(labels) and not told:
        print(f"no score: {left_out(labels, told, predictor.classes)}")
    if told:
        try:
            print(report(probs[told], np.array([predictor.classes.index(labels[i]) for i in told]), predictor.classes))
            if strange := left_out(labels, told, predictor.classes):
                print(strange)
            if warning := no_score([paths[i] for i in told], [path.parent for path in predictor.paths]):
                print(warning)
        except ImportError:  # an exported model answers without
            print("\nthe photos' folders say their classes; to have the answers scored: pip install pandas scikit-learn")


def find_photos(places: Sequence[Path]) -> tuple[list[str], list[str]]:
    """The photos named by files, folders and CSVs: paths and labels; a label is "" where nothing says it."""
    rows = []
    for place in places:
        if str(place).startswith(("http:/", "https:/")):
            raise DataError(f"{place}: an address, not a file. Fetch the photo first, and name the file.")
        if place == Path("-"):
            rows += [(line.rstrip("\r\n"), "") for line in sys.stdin if line.strip()]
        elif place.suffix.lower() == ".csv":
            table = read_csv(place, needed=["image"])
            rows += zip(table["path"], table["label"], strict=True)
        elif place.is_dir():
            found = photos_below(place)
            if not found:
                raise DataError(f"{place}: no photo in it, at any depth.")
            rows += [(str(path), class_name(path.parent.name) if path.parent != place else "") for path in found]
        else:
            rows.append((str(place), ""))
    if not rows:
        raise DataError("no photo given. Name photos before the flags (--checkpoint takes all that follows it), or pass - and paths.")
    return [path for path, _ in rows], [label for _, label in rows]


def newest_checkpoint(runs: Path = Path("runs")) -> Path:
    """Of all runs' best.pt and best.onnx (newer than its checkpoint until the run finds a better epoch), and folders of finished folds."""
    found = sorted((file for name in ("best.pt", "best.onnx", "oof.csv") for file in runs.glob(f"*/{name}")),
                   key=lambda file: file.stat().st_mtime)
    if not found:
        raise CheckpointError(f"{runs.absolute()}: no trained model in it. Train one with `python main.py`, or pass --checkpoint FILE.")
    return found[-1].parent if found[-1].name == "oof.csv" else found[-1]


if __name__ == "__main__":
    spell_out()
    try:
        sys.exit(main(tyro.cli(Options, description=__doc__)))
    except (ValueError, PermissionError) as error:
        sys.exit(sentence(error))
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
