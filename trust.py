"""How far an answer may be trusted: the temperature of its probabilities, the limit of the unknown, the deadly look-alikes.

numpy alone, so that an exported model's answers are judged by the same lines as a checkpoint's.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy.optimize import minimize_scalar

GENERA = Path(__file__).parent / "data/genera.csv"
KEPT = 0.95        # share of validation photos that are not called unknown
NOTICEABLE = 0.05  # probability from which a deadly class is named


def fit_temperature(probs: np.ndarray, labels: np.ndarray) -> float:
    """The T that makes softmax(log p / T) least surprised by the labels (Guo et al. 2017, arXiv 1706.04599).

        T = argmin mean of -log softmax(log p / T)[label]

    probs float (N, K) from softmax, whose logarithms are its logits but for a constant; labels int (N,). T lies in 0.1 to
    10; above 1, the model was too sure.
    """
    logits = np.log(probs.clip(1e-30))

    def surprise(log_t: float) -> float:
        scaled = logits / np.exp(log_t)
        top = scaled.max(1, keepdims=True)
        return float((np.log(np.exp(scaled - top).sum(1)) + top[:, 0] - scaled[np.arange(len(labels)), labels]).mean())

    return float(np.exp(minimize_scalar(surprise, bounds=(np.log(0.1), np.log(10)), method="bounded").x))


def at_temperature(probs: np.ndarray, temperature: float) -> np.ndarray:
    """softmax(log p / T) of probs float (N, K): what the model would say at that temperature, of one view."""
    scaled = np.log(probs.clip(1e-30)) / temperature
    powers = np.exp(scaled - scaled.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


def known_limit(known: np.ndarray) -> float:
    """The score below which a photo is called unknown: KEPT of these photos, float (N,), of the classes lie above it."""
    return float(np.quantile(known, 1 - KEPT))


def read_dangers(classes: Sequence[str], file: Path = GENERA) -> dict[str, str]:
    """{class: note} of those classes that are genera with deadly species, by any of their names in `file`, in any case.

    A class that is missing here is not harmless: it is only not on this list.
    """
    with file.open(encoding="utf-8", newline="") as rows:
        notes = {row[name].casefold(): row["note"] for row in csv.DictReader(rows) if row["danger"] == "deadly"
                 for name in ("genus", "english", "chinese") if row[name]}
    return {name: notes[name.strip().casefold()] for name in classes if name.strip().casefold() in notes}


def warning(probs: np.ndarray, classes: Sequence[str], dangers: dict[str, str]) -> str:
    """One line on the deadly genera among probs float (K,), or "" where none is noticeable.

    It gives the share that lies on all of them together, and the note of the likeliest.
    """
    deadly = np.array([name in dangers for name in classes])
    share = float(probs[deadly].sum())
    if share < NOTICEABLE:
        return ""
    worst = classes[int(np.where(deadly, probs, -1).argmax())]
    return f"{share:.0%} on genera with deadly species. {worst}: {dangers[worst]}."
