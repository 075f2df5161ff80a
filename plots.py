"""Numbers as pictures, each written to a PNG: legible at their own size, in colours that the colour-blind tell apart."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

import metrics
from pictures import FONTS, save_figure

BLUE, ORANGE, GREY = "#0072b2", "#d55e00", "#8c8c8c"  # of Okabe and Ito's palette
STYLE = {"font.family": FONTS, "font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True,
         "grid.color": "#e6e6e6", "axes.axisbelow": True, "axes.titlesize": 10, "axes.titlelocation": "left", "lines.linewidth": 1.8,
         "legend.frameon": False, "text.parse_math": False}
MOST = 60  # classes of a picture: of more, those that need a look, or it would take all memory and nobody could read it


class picture:
    """Within: a Figure of width x height inches in the house's style; after: the PNG `path`."""

    def __init__(self, path: Path, width: float, height: float):
        self.path, self.size = path, (width, height)

    def __enter__(self) -> Figure:
        self.style = rc_context(STYLE)
        self.style.__enter__()
        self.figure = Figure(figsize=self.size, dpi=110, layout="constrained")
        return self.figure

    def __exit__(self, kind, *_) -> None:
        try:
            if kind is None:
                save_figure(self.figure, self.path)
        finally:
            self.style.__exit__(None, None, None)


def curves(path: Path, log: pd.DataFrame, sam: tuple[float, int] | None) -> None:
    """Loss, accuracy, rate and gradient norm of each epoch; columns as in log.csv. sam: (from which epoch, on each k-th step), or none."""
    epochs = log.epoch
    with picture(path, 9, 5.6) as figure:
        (loss, score), (rate, norm) = figure.subplots(2, 2, sharex=True)
        loss.plot(epochs, log.train_loss, color=GREY, marker=".", label="training (mixed, augmented)")
        loss.plot(epochs, log.val_loss, color=BLUE, marker=".", label="validation")
        loss.set(title="cross-entropy, nats", ylim=(0, None))
        score.plot(epochs, log.val_accuracy, color=BLUE, marker=".", label="accuracy")
        score.plot(epochs, log.val_macro_f1, color=ORANGE, marker=".", linestyle="--", label="macro-F1")
        score.set_title("validation")
        score.yaxis.set_major_formatter(PercentFormatter(1))
        rate.plot(epochs, log.lr, color=BLUE, marker=".", label="at the end of the epoch")
        rate.set(title="learning rate", xlabel="epoch (0 = the head alone)", ylim=(0, 1.08 * log.lr.max() or 1))
        if sam:
            rate.axvspan(min(sam[0], epochs.iloc[-1]), epochs.iloc[-1], color=ORANGE, alpha=0.15, linewidth=0,
                         label="SAM" if sam[1] == 1 else f"SAM, one step in {sam[1]}")
        norm.plot(epochs, log.grad_norm, color=BLUE, marker=".", label="mean over the epoch, before clipping")
        norm.set(title="gradient norm", xlabel="epoch (0 = the head alone)", ylim=(0, None))
        for axes in (loss, score, rate, norm):
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            axes.legend(fontsize=8)


def confusion(path: Path, counts: np.ndarray, classes: Sequence[str], share: bool) -> None:
    """Rows are the truth, columns the answer; counts int (K, K). share: coloured and labelled by the share of each row.

    Of more than MOST classes, those with the most mistakes.
    """
    shares = counts / counts.sum(1, keepdims=True).clip(1)
    some, title = np.arange(len(classes)), ""
    if len(classes) > MOST:
        mistakes = counts.sum(0) + counts.sum(1) - 2 * counts.diagonal()
        some, title = np.sort(np.argsort(-mistakes, kind="stable")[:MOST]), f"the {MOST} with the most mistakes, of {len(classes)} classes"
    counts, shares, classes = counts[np.ix_(some, some)], shares[np.ix_(some, some)], [classes[i] for i in some]
    k = len(classes)
    side = 2.2 + max(1.6, 0.42 * k)
    with picture(path, side, side) as figure:
        axes = figure.subplots()
        shown = axes.imshow(shares if share else counts, cmap="Blues", vmin=0, vmax=1 if share else max(counts.max(), 1))
        axes.set(xticks=range(k), yticks=range(k), xlabel="answer", ylabel="truth", title=title)
        axes.set_xticklabels(classes, rotation=90)
        axes.set_yticklabels(classes)
        axes.grid(visible=False)
        dark = shown.norm(shown.get_array()) > 0.5
        for i, j in np.argwhere(counts):
            axes.text(j, i, f"{shares[i, j] * 100:.0f}" if share else counts[i, j], ha="center", va="center", fontsize=8,
                      color="white" if dark[i, j] else "black")


def class_scores(path: Path, scores: np.ndarray, classes: Sequence[str]) -> None:
    """Precision, recall and F1 of each class, worst F1 below; scores float (K, 4) of metrics.per_class. Of more than MOST, the worst."""
    order = np.argsort(-np.nan_to_num(scores[:, 2], nan=2.0), kind="stable")[::-1][:MOST]  # those that no photo judges come first
    with picture(path, 7.5, 1 + 0.3 * len(order)) as figure:
        axes = figure.subplots()
        rows, (precision, recall, f1, _) = np.arange(len(order)), scores[order].T
        axes.hlines(rows, np.fmin(precision, recall), np.fmax(precision, recall), color="#cccccc", linewidth=2)
        axes.scatter(precision, rows, color=BLUE, label="precision: of these answers, right")
        axes.scatter(recall, rows, facecolor="white", edgecolor=ORANGE, linewidth=1.8, marker="s", label="recall: of these photos, found")
        axes.scatter(f1, rows, color="black", marker="|", s=90, label="F1")
        axes.set(yticks=rows, xlim=(-0.02, 1.02), ylim=(-0.7, len(order) - 0.3))
        axes.set_yticklabels([f"{classes[i]} ({scores[i, 3]:.0f})" for i in order])
        axes.set_title(f"the worst {MOST} of {len(classes)} classes" if len(classes) > MOST else "")
        axes.xaxis.set_major_formatter(PercentFormatter(1))
        figure.legend(loc="outside upper left", ncols=3, fontsize=8)


def calibration(path: Path, probs: np.ndarray, labels: np.ndarray) -> None:
    """How often answers of each probability are right, and how many there are; the diagonal is a trustworthy model."""
    bins = metrics.BINS
    sure, right, photos = metrics.reliability(probs, labels).T
    with picture(path, 4.6, 5) as figure:
        axes, below = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
        error = np.sqrt(right * (1 - right) / photos)
        axes.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle="--", label="as sure as right")
        axes.errorbar(sure, right, error, color=BLUE, marker="o", capsize=2, label="answers, with one standard error")
        error = metrics.calibration_error(probs, labels)
        axes.set(title=f"expected calibration error {error:.3f}", ylabel="share that is right", ylim=(0, 1.02))
        below.bar((np.floor(sure * bins).clip(0, bins - 1) + 0.5) / bins, photos, width=0.9 / bins, color=BLUE)
        below.set(xlabel="probability of the answer", ylabel="photos", xlim=(0, 1))
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(PercentFormatter(1))
        figure.legend(loc="outside upper left", ncols=2, fontsize=8)


def balance(path: Path, photos: pd.DataFrame) -> None:
    """Photos of each class and side, stacked; a row a class, a column a side. Of more than MOST, the classes with the fewest."""
    title = f"the {MOST} with the fewest photos, of {len(photos)} classes" if len(photos) > MOST else ""
    if title:
        photos = photos.loc[photos.sum(axis=1).sort_values(kind="stable").index[:MOST]]
    with picture(path, 7.5, 1 + 0.27 * len(photos)) as figure:
        axes = figure.subplots()
        left = np.zeros(len(photos))
        for side, colour in zip(photos, (BLUE, ORANGE, GREY), strict=False):
            axes.barh(photos.index, photos[side], left=left, color=colour, label=side)
            left += photos[side].to_numpy()
        axes.set_title(title)
        axes.bar_label(axes.containers[-1], [f"{n:.0f}" for n in left], padding=3, fontsize=8)
        axes.invert_yaxis()
        axes.margins(y=0.01)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        figure.legend(loc="outside upper left", ncols=3, fontsize=8)


def scores(path: Path, runs: pd.DataFrame, names: Sequence[str]) -> None:
    """Runs by minutes and score (metrics.is_better_low), each its name; a line joins those that no other beats in both."""
    score = runs.columns[1]
    down = metrics.is_better_low(score)
    fast_first = runs.sort_values(["minutes", score], ascending=[True, down])
    reached = fast_first[score].cummin() if down else fast_first[score].cummax()
    front = fast_first[(fast_first[score] == reached) & ~reached.duplicated()]
    with picture(path, 7.5, 4.5) as figure:
        axes = figure.subplots()
        axes.plot(front.minutes, front[score], color=ORANGE, drawstyle="steps-post", linewidth=1.2)
        axes.scatter(runs.minutes, runs[score], color=BLUE, s=150, zorder=3)
        for minutes, value, name in zip(runs.minutes, runs[score], names, strict=True):
            axes.text(minutes, value, name, color="white", fontsize=7, ha="center", va="center", zorder=4)
        axes.set(xlabel="minutes of training", ylabel=score.replace("_", " "))


def rate_search(path: Path, rates: Sequence[float], losses: Sequence[float], smooth: Sequence[float], suggested: float) -> None:
    """The loss of each step while the rate climbs, smoothed, and the rate to take."""
    with picture(path, 7.5, 4.2) as figure:
        axes = figure.subplots()
        axes.plot(rates, losses, color=GREY, linewidth=0.8, alpha=0.7, label="loss of each batch")
        axes.plot(rates, smooth, color=BLUE, label="smoothed")
        axes.axvline(suggested, color=ORANGE, linestyle="--", label=f"suggested: {suggested:.2g}")
        axes.set(xscale="log", xlabel="learning rate", ylabel="training loss, nats", ylim=(0, 1.05 * max(losses)))
        axes.legend(fontsize=8)
