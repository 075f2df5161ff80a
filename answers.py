"""Answers about many photos as others read them: JSON lines, a CSV, scores where the truth is known.

Imports little at the top, as predict.py does, so that an exported model answers at once.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from files import atomic_file
from text import shown


def print_json(paths: Sequence[str], probs: np.ndarray, more: dict[str, np.ndarray], errors: dict[int, str], classes: list[str]) -> None:
    """A line a photo: {"image", "label", "prob", the keys of `more`, "probs": {class: probability, likeliest first}}, or
    {"image", "error"}.
    """
    for i, path in enumerate(paths):
        line = {"image": path, "error": errors[i]} if i in errors else {
            "image": path, "label": classes[probs[i].argmax()], "prob": round(float(probs[i].max()), 6),
            **{name: str(column[i]) if column.dtype.kind == "U" else round(float(column[i]), 6) for name, column in more.items()},
            "probs": {classes[k]: round(float(probs[i, k]), 6) for k in probs[i].argsort()[::-1]}}
        plain = path.isprintable() and "utf" in (sys.stdout.encoding or "").lower()  # a name that is no UTF-8 cannot be printed
        print(json.dumps(line, ensure_ascii=not plain))


def write_csv(file: Path, paths: Sequence[str], probs: np.ndarray, more: dict[str, np.ndarray], errors: dict[int, str],
              classes: list[str]) -> None:
    """image,label,prob, the columns of `more`, and one for each class; of a photo that cannot be read, the label is "error: why"
    and the rest is empty.
    """
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["image", "label", "prob", *more, *classes])
    for i, path in enumerate(paths):
        best = probs[i].argmax()
        cells = (probs[i, best], *(column[i] for column in more.values()), *probs[i])
        written = [""] * len(cells) if i in errors else [cell if isinstance(cell, str) else f"{cell:.6f}" for cell in cells]
        writer.writerow([path, f"error: {errors[i]}" if i in errors else classes[best], *written])
    with atomic_file(file) as out:
        out.write(text.getvalue().encode(errors="surrogateescape"))  # names as the disk has them


def report(probs: np.ndarray, labels: np.ndarray, classes: list[str]) -> str:
    """Scores of photos whose folder or CSV tells the truth."""
    import pandas as pd  # these two take longer than a photo's answer

    import metrics
    table = pd.DataFrame(metrics.confusion(probs, labels), index=classes, columns=[f"{i}" for i in range(len(classes))])
    table.index = [f"{i} {name}" for i, name in enumerate(classes)]
    with pd.option_context("display.unicode.east_asian_width", True, "display.width", None):
        return (f"\naccuracy {metrics.accuracy(probs, labels):.4f}, macro-F1 {metrics.macro_f1(probs, labels):.4f} on {len(labels)} photos"
                f" (rows: the truth; columns: the answer)\n{table.to_string()}")


def left_out(labels: Sequence[str], counted: Sequence[int], classes: Sequence[str]) -> str:
    """Of photos that have a label, how many are not among those `counted`, and why; "" if none."""
    labelled = sum(map(bool, labels))
    strange = sorted({label for label in labels if label and label not in classes})
    named = ", ".join(map(shown, strange[:3])) + ", ..." * (len(strange) > 3)
    why = f"of classes that the model does not know ({named}), or " if strange else ""
    return f"{labelled - len(counted)} of {labelled} photos do not count: {why}unreadable" if labelled > len(counted) else ""


def no_score(paths: Sequence[str], runs: Sequence[Path]) -> str:
    """A warning where one of the runs, or of those it began with, learnt from photos of these, or was picked by them, or cannot tell;
    "" where none did."""
    runs = [run for last in runs for run in lineage(last)]
    learnt = set().union(*map(learnt_from, runs))
    seen = sum(not learnt.isdisjoint(_marks(path)) for path in paths)
    these = "these photos" if seen == len(paths) else f"{seen} of these photos"
    if seen:
        return f"not a fair score: the model learnt from {these}, or was chosen by them"
    silent = next((run for run in runs if not (run / "photos.csv").is_file()), None)
    return f"a fair score? {silent} holds no photos.csv, which says what the model learnt from" if silent else ""


def no_score_after(weights: str, paths: Sequence[str]) -> str:
    """no_score of a run that begins with those --weights: a best.pt is another run's; the rest, as far as one can tell, never met them."""
    return no_score(paths, [Path(weights).parent]) if weights.endswith(".pt") else ""


def lineage(run: Path) -> list[Path]:
    """The run, and those whose backbone it began with, by --weights RUN/best.pt, the last first."""
    found = {}
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # anybody may have written it
        while run.resolve() not in found:  # a round ends
            found[run.resolve()] = run
            weights = Path(json.loads((run / "config.json").read_text(encoding="utf-8"))["config"]["weights"])
            if weights.suffix != ".pt":
                break
            run = weights.parent
    return [*found.values()]


def learnt_from(folder: Path) -> set:
    """The marks of the photos that a run trained on or validated with; none where a model lies without its run."""
    if not (folder / "photos.csv").is_file():
        return set()
    with open(folder / "photos.csv", encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row.get("path") and row.get("side") in ("train", "val")]
    return {mark for row in rows for mark in (os.path.realpath(row["path"]), (os.path.basename(row["path"]), row.get("bytes")))}


def _marks(path: str) -> set:
    """What a photo is known by: its place; and, as it may have been moved or copied, its name with its bytes."""
    size = str(os.path.getsize(path)) if os.path.isfile(path) else ""
    return {os.path.realpath(path), (os.path.basename(path), size)}
