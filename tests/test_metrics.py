import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics as sk

import metrics


def test_by_hand():
    probs = np.array([[0.7, 0.2, 0.1], [0.5, 0.4, 0.1], [0.1, 0.6, 0.3], [0.2, 0.2, 0.6]])
    labels = np.array([0, 1, 1, 2])
    assert metrics.accuracy(probs, labels) == 0.75
    assert metrics.macro_f1(probs, labels) == pytest.approx((2 / 3 + 2 / 3 + 1) / 3)  # F1 = 2 tp / (2 tp + fp + fn)
    assert metrics.log_loss(probs, labels) == pytest.approx(-np.log([0.7, 0.4, 0.6, 0.6]).mean())
    assert metrics.confusion(probs, labels).tolist() == [[1, 0, 0], [1, 1, 0], [0, 0, 1]]


def test_one_certain_error_is_dear_but_finite():
    assert str(metrics.log_loss(np.array([[1.0, 0.0]]), np.array([0]))) == "0.0"
    assert metrics.log_loss(np.array([[1.0, 0.0]]), np.array([1])) == pytest.approx(16.118, abs=1e-3)  # -log 1e-7


@given(st.integers(0, 10_000), st.integers(2, 6), st.integers(2, 60))
def test_they_equal_scikit_learn_s(seed, classes, photos):
    rng = np.random.default_rng(seed)
    probs, labels = rng.dirichlet(np.ones(classes), photos), rng.integers(0, classes, photos)
    assert metrics.accuracy(probs, labels) == pytest.approx(sk.accuracy_score(labels, probs.argmax(1)))
    assert metrics.log_loss(probs, labels) == pytest.approx(sk.log_loss(labels, probs.clip(1e-7), labels=range(classes)), rel=1e-4)
    assert metrics.macro_f1(probs, labels) == pytest.approx(sk.f1_score(labels, probs.argmax(1), average="macro"))


def test_calibration_error_by_hand():
    # two photos 0.9 sure, one right: 2/4 * |0.5 - 0.9|; two 0.6 sure, both right: 2/4 * |1 - 0.6|
    probs = np.array([[0.9, 0.1], [0.9, 0.1], [0.6, 0.4], [0.4, 0.6]])
    assert metrics.calibration_error(probs, np.array([0, 1, 0, 1])) == pytest.approx(0.4)
    assert metrics.calibration_error(np.eye(3), np.arange(3)) == 0


def test_chance_leaves_a_calibration_error_that_shrinks_with_the_photos(rng):
    probs = rng.dirichlet(np.ones(3), 6400)
    few, many = metrics.chance_error(probs[:100]), metrics.chance_error(probs)
    assert few / many == pytest.approx(8, rel=0.25)  # as 1 / sqrt(photos)
    labels = (probs.cumsum(1) < rng.random((6400, 1))).sum(1)
    assert metrics.calibration_error(probs, labels) == pytest.approx(many, rel=0.6)


def test_reliability_by_hand():
    # Sure by 0.62 and 0.66, one of two right; sure by 1.0, right. |0.64 - 0.5| * 2/3 + |1 - 1| * 1/3
    probs = np.array([[0.62, 0.38], [0.34, 0.66], [0.0, 1.0]])
    labels = np.array([0, 0, 1])
    np.testing.assert_allclose(metrics.reliability(probs, labels, bins=10), [[0.64, 0.5, 2], [1.0, 1.0, 1]])
    assert metrics.calibration_error(probs, labels, bins=10) == pytest.approx(0.14 * 2 / 3)


def test_precision_recall_and_f1_of_each_class_by_hand():
    # Truth 0 0 0 1, answers 0 0 1 1; class 2 is neither present nor answered.
    scores = metrics.per_class(np.eye(3)[[0, 0, 1, 1]], np.array([0, 0, 0, 1]))
    np.testing.assert_allclose(scores, [[1, 2 / 3, 0.8, 3], [0.5, 1, 2 / 3, 1], [np.nan, np.nan, np.nan, 0]])
