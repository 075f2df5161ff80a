"""How far an answer may be trusted: the temperature of its probabilities, the limit of the unknown, the deadly look-alikes.

numpy alone, so that an exported model's answers are judged by the same lines as a checkpoint's.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

GENERA = Path(__file__).parent / "data/genera.csv"
KEPT = 0.95        # share of validation photos that are not called unknown
NOTICEABLE = 0.05  # probability from which a danger is named
DANGERS = ("deadly", "poisonous")
CAUTION = "A guess by a program from a photo: never eat a mushroom because of it."


def fit_temperature(probs: np.ndarray, labels: np.ndarray) -> float:
    """The T that makes softmax(log p / T) least surprised by the labels (Guo et al. 2017, arXiv 1706.04599).

        T = argmin mean over photos of -log softmax(log p / T)[label]  +  (log T)^2 / N

    probs float (N, K): the mean over a photo's views, as answers are pooled first and calibrated then (Rahaman and Thiery 2021,
    arXiv 2007.08792); labels int (N,). The last term, a normal prior on log T around 0, keeps a few lucky photos from making the
    model boast. T lies in 0.1 to 10; above 1, the model was too sure.
    """
    from scipy.optimize import minimize_scalar  # takes longer than an exported model's answer, which does without

    def surprise(log_t: float) -> float:
        losses = -np.log(at_temperature(probs, np.exp(log_t))[np.arange(len(labels)), labels].clip(1e-30))
        return float(losses.mean() + log_t**2 / len(labels))

    return float(np.exp(minimize_scalar(surprise, bounds=(np.log(0.1), np.log(10)), method="bounded").x))


def at_temperature(probs: np.ndarray, temperature: float) -> np.ndarray:
    """softmax(log p / T) of probs float (..., K), whose logarithms are their logits but for a constant. The likeliest stays so."""
    return softmax(np.log(probs.clip(1e-30)) / temperature)


def softmax(logits: np.ndarray) -> np.ndarray:
    """exp(x_k) / sum_j exp(x_j) over the last axis; the largest is taken off first, so that nothing overflows."""
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def known_limit(known: np.ndarray) -> float:
    """The score below which a photo is called unknown: KEPT of these photos, float (N,), of the classes lie above it."""
    return float(np.quantile(known, 1 - KEPT))


def read_notes(classes: Sequence[str]) -> dict[str, dict[str, str]]:
    """{class: {"danger": "deadly" or "poisonous", "note"}} of those classes that GENERA warns of: genera, by any of their names, in any
    case, and species by their genus ("Amanita phalloides", "01_amanita", in Chinese at the end: "毒蝇鹅膏菌").

    A class that is missing here is not harmless: it is only not on this list.
    """
    with GENERA.open(encoding="utf-8", newline="") as rows:
        notes = {row[name].casefold(): {"danger": row["danger"], "note": row["note"]} for row in csv.DictReader(rows) if row["danger"]
                 for name in ("genus", "english", "chinese") if row[name]}
    endings = sorted((name.removesuffix("属") for name in notes if name.endswith("属")), key=len, reverse=True)  # 乳牛肝菌 before 牛肝菌
    found = {}
    for name in classes:
        plain = name.strip().casefold()
        genus = [ending + "属" for ending in endings if plain.removesuffix("属").endswith(ending)][:1]
        known = [notes[way] for way in (plain, *genus, *re.split(r"[\W_]+", plain)) if way in notes]
        if known:  # of two genera, the worse
            found[name] = min(known, key=lambda note: DANGERS.index(note["danger"]))
    return found


def deadly_share(probs: np.ndarray, classes: Sequence[str], notes: dict[str, dict[str, str]]) -> np.ndarray:
    """Probability float (N,) that lies on genera with deadly species, of probs float (N, K)."""
    return probs @ np.array([notes.get(name, {}).get("danger") == "deadly" for name in classes], probs.dtype)


def danger(probs: np.ndarray, classes: Sequence[str], notes: dict[str, dict[str, str]]) -> tuple[str, float, list[str]] | None:
    """The worst that is noticeable in probs float (K,): "deadly" or "poisonous", the share of all such classes, and their names, the
    likeliest first."""
    for kind in DANGERS:
        found = [i for i in probs.argsort()[::-1] if notes.get(classes[i], {}).get("danger") == kind]
        if probs[found].sum() >= NOTICEABLE:
            return kind, float(probs[found].sum()), [classes[i] for i in found]
    return None


def warning(probs: np.ndarray, classes: Sequence[str], notes: dict[str, dict[str, str]]) -> str:
    """One line on that danger, with the note of the likeliest class; "" where there is none."""
    if not (found := danger(probs, classes, notes)):
        return ""
    kind, share, (worst, *_) = found
    return f"{share:.0%} on genera with {kind} species. {worst}: {notes[worst]['note']}."
