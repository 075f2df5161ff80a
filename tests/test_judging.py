from types import SimpleNamespace

import numpy as np
import pytest
import torch

from engine import TrainingError
from judging import Judge

LABELS = {"val": torch.tensor([0, 1, 1, 0])}
PROBS = np.array([[0.9, 0.1], [0.2, 0.8], [0.7, 0.3], [0.6, 0.4]], np.float32)


def judge(said: list[str]) -> Judge:
    return Judge(None, SimpleNamespace(data="photos"), None, None, LABELS, said.append)


def test_photos_without_an_answer_are_told_and_do_not_count():
    said = []
    assert judge(said).scores(PROBS, "val")["accuracy"] == 0.75
    assert not said
    gone = PROBS.copy()
    gone[2] = np.nan
    scores = judge(said).scores(gone, "val")
    assert scores["accuracy"] == 1
    assert scores["loss"] == pytest.approx(-np.log([0.9, 0.8, 0.6]).mean(), rel=1e-6)
    assert said == ["1 of 4 val photos got no answer, and do not count: gone, or an answer that is not finite"]


def test_no_answer_at_all_ends_the_run_with_a_sentence():
    with pytest.raises(TrainingError, match="no val photo got an answer: they are gone from photos"):
        judge([]).scores(PROBS * np.nan, "val")
