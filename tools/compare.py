"""All runs side by side: `python -m tools.compare` reads runs/experiments.csv, prints the table and writes runs/compare.html."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pandas as pd
import tyro

import metrics
import plots
import record
from config import Config
from files import picture_beside
from page import image, section, table, write_page
from text import as_program


def read_runs(file: Path) -> tuple[pd.DataFrame, str]:
    """The record as text with a column for each knob in which runs differ, and what is the same in all but not today's default."""
    if not file.is_file():
        raise record.RunError(f"{file}: no such record. Each finished training adds a row; run main.py, or pass --file FILE.")
    rows = record.read_experiments(file)
    if not len(rows):
        raise record.RunError(f"{file}: a record without a row. Each finished training adds one; run main.py, or pass --file FILE.")
    defaults = {knob: str(value) for knob, value in Config().to_dict().items()}  # rows of before 2026-11-26 leave out what is at them
    knobs = pd.DataFrame([defaults | dict(re.findall(r"\b(\w+)=(.*?)(?= \w+=|$)", settings)) for settings in rows.settings], rows.index)
    same = [knob for knob in knobs if knobs[knob].nunique(dropna=False) == 1]
    scores = rows.drop(columns=["settings", "finished"]).rename(columns=lambda name: name.removeprefix("val_"))
    told = {knob: value for knob, value in knobs[same].iloc[0].items() if value != defaults.get(knob)}
    in_all = " ".join(f"{knob}={value}" for knob, value in told.items())
    return scores.join(knobs.drop(columns=same).fillna("")), in_all or "the defaults, but for what the columns say"


def best_values(runs: pd.DataFrame) -> pd.DataFrame:
    """bool, of the same shape: the highest accuracy and F1, the lowest loss, calibration error of the answers
    as they are given, and minutes; equals share it. Test photos have no best: who chose by them would have no test left."""
    marks = pd.DataFrame(False, index=runs.index, columns=runs.columns)
    for name in runs.columns[~runs.columns.str.startswith("test_")]:
        values = pd.to_numeric(runs[name], errors="coerce")
        if name.endswith(("accuracy", "f1")):
            marks[name] = values == values.max()
        elif name.endswith(("loss", "ece_calibrated")) or name == "minutes":
            marks[name] = values == values.min()
    return marks


def main(file: Path = record.EXPERIMENTS, out: Path = Path("runs/compare.html"), score: str = "accuracy") -> None:
    """Print the record as a table, and draw it as a page.

    Args:
        file: the record.
        out: the page.
        score: what the plot shows against minutes: accuracy, macro_f1, loss, test_accuracy, ...
    """
    runs, same = read_runs(file)
    picture = picture_beside(out, file)
    scores = runs.columns.difference(["run", "minutes", *Config().to_dict()], sort=False)
    if score not in scores:
        raise record.RunError(f"--score {score}: the record has no such score. Take one of {', '.join(scores)}.")
    marks = best_values(runs)
    points = pd.DataFrame({"minutes": pd.to_numeric(runs.minutes), score: pd.to_numeric(runs[score])}).dropna()
    order = points[score].sort_values(ascending=metrics.is_better_low(score), kind="stable").index
    runs.insert(0, "no", np.arange(1, len(runs) + 1).astype(str))
    marks.insert(0, "no", False)
    listed = [*order, *runs.index.difference(order)]
    starred = runs.where(~marks, runs + "*").loc[listed]
    with pd.option_context("display.width", None, "display.max_colwidth", None, "display.unicode.east_asian_width", True):
        print(starred.to_string(index=False))
    print(f"* the best of its column. In all runs: {same}")
    plots.scores(picture, points, runs.no[points.index].tolist())
    write_page(out, "Runs side by side",
               section("Score and time", "Each number is a run of the table; the line joins those that none beats in both.",
                       image(picture, f"{score} against minutes")),
               section("All runs", f"Best first, the best of each column marked. In all runs: {same}.",
                       table(runs.loc[listed], marks.loc[listed])))
    print(out)


if __name__ == "__main__":
    as_program(lambda: tyro.cli(main, description=__doc__))
