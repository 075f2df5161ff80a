"""Scores of probabilities (N, K) against labels int (N,)."""

from __future__ import annotations

import numpy as np
from sklearn.metrics import confusion_matrix, f1_score

BINS = 15  # of equal width, for the calibration error, as in the paper


def accuracy(probs: np.ndarray, labels: np.ndarray) -> float:
    """Share of photos whose likeliest class is the true one."""
    return float((probs.argmax(1) == labels).mean())


def macro_f1(probs: np.ndarray, labels: np.ndarray) -> float:
    """F1 of each class, averaged with equal weight; a class that is neither present nor predicted does not count."""
    predicted = probs.argmax(1)
    present = np.union1d(labels, predicted)
    return float(f1_score(labels, predicted, labels=present, average="macro", zero_division=0))


def log_loss(probs: np.ndarray, labels: np.ndarray) -> float:
    """Mean of -log p(true class), in nats; p is kept above 1e-7, as one certain error would else be infinite."""
    return float(-np.log(probs[np.arange(len(labels)), labels].clip(1e-7)).mean() + 0.0)  # of certain answers 0, not -0


def calibration_error(probs: np.ndarray, labels: np.ndarray, bins: int = BINS) -> float:
    """Expected calibration error (Guo et al. 2017, arXiv 1706.04599): how far sureness and accuracy lie apart.

        sum over bins b of |b| / N * |accuracy(b) - mean top probability(b)|

    bins: of equal width in the top probability, as in the paper. 0 = of photos called 80 % sure, 80 % are right.
    """
    sure, right, photos = reliability(probs, labels, bins).T
    return float((abs(sure - right) * photos).sum() / photos.sum())


def chance_error(probs: np.ndarray) -> float:
    """The calibration error that chance alone leaves: its mean where labels are drawn as probs (N, K) say."""
    rng, edges = np.random.default_rng(0), probs.cumsum(1)
    drawn = ((edges < rng.random((len(probs), 1)) * edges[:, -1:]).sum(1) for _ in range(100))
    return float(np.mean([calibration_error(probs, labels) for labels in drawn]))


def confusion(probs: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Counts int (K, K): rows are the truth, columns the answer."""
    return confusion_matrix(labels, probs.argmax(1), labels=np.arange(probs.shape[1]))


def scores(probs: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """The three numbers that the log and the experiment record keep."""
    return {"accuracy": accuracy(probs, labels), "macro_f1": macro_f1(probs, labels), "loss": log_loss(probs, labels)}


def is_better_low(score: str) -> bool:
    """Whether a score of that name, as the record of experiments has it, is a loss or an error."""
    return score.endswith(("loss", "ece", "ece_calibrated"))


def per_class(probs: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Precision, recall, F1 and photos of each class, float (K, 4); a share of no photos is NaN."""
    table = confusion(probs, labels)
    hits, present, answered = table.diagonal(), table.sum(1), table.sum(0)
    with np.errstate(invalid="ignore"):
        return np.stack([hits / answered, hits / present, 2 * hits / (present + answered), present], 1)


def reliability(probs: np.ndarray, labels: np.ndarray, bins: int = BINS) -> np.ndarray:
    """Of the answers whose probability falls into each of `bins` equal bins: mean probability, accuracy, photos; float (B, 3).

    Empty bins are left out. A trustworthy model's two first columns agree.
    """
    sure, right = probs.max(1), probs.argmax(1) == labels
    at = np.minimum((sure * bins).astype(int), bins - 1)
    return np.array([(sure[at == b].mean(), right[at == b].mean(), (at == b).sum()) for b in np.unique(at)])
