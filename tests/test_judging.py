from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

import checkpoint
import engine
from engine import TrainingError
from judging import Judge
from run import Run

LABELS = {"train": torch.tensor([0, 0, 1, 1]), "val": torch.tensor([0, 1, 1, 0])}
PROBS = np.array([[0.9, 0.1], [0.2, 0.8], [0.7, 0.3], [0.6, 0.4]], np.float32)


def judge(said: list[str]) -> Judge:
    return Judge(None, SimpleNamespace(data="photos"), None, None, LABELS, said.append)


def test_answers_that_are_missing_are_told_and_do_not_count():
    said = []
    assert judge(said).scores(PROBS, "val")["accuracy"] == 0.75
    assert not said
    gone = PROBS.copy()
    gone[2] = np.nan
    scores = judge(said).scores(gone, "val")
    assert scores["accuracy"] == 1
    assert scores["loss"] == pytest.approx(-np.log([0.9, 0.8, 0.6]).mean(), rel=1e-6)
    assert said == ["1 of 4 val photos do not count: gone, or the model's numbers are not finite"]


def test_after_an_epoch_the_log_has_its_scores_and_best_pt_stays_that_of_the_lowest_loss(tmp_path, monkeypatch):
    optimizer = SimpleNamespace(param_groups=[{"lr": 0.1}, {"lr": 0.2}], skipped=3)
    logged, said, network = [], [], torch.nn.Linear(1, 1)
    accelerator = SimpleNamespace(is_main_process=True, log=lambda row, step: logged.append(step))
    progress = {"loss_sum": 6.0, "norm_sum": 8.0, "photos": 4, "read": 4}
    run = Run(tmp_path, network, network, optimizer, accelerator, {"classes": ["a", "b"]}, progress)
    told = Judge(run, SimpleNamespace(data="photos", epochs=2), None, None, LABELS, said.append)
    saved = []
    monkeypatch.setattr(checkpoint, "save", lambda path, what: saved.append((path.name, what["history"][-1]["epoch"])))
    for epoch, probs in enumerate((PROBS[:, ::-1], PROBS, np.full_like(PROBS, 0.5))):
        monkeypatch.setattr(engine, "predict_probs", lambda *_, probs=probs: (probs, {}))
        told.after_epoch(epoch)
    log = pd.read_csv(tmp_path / "log.csv")
    assert logged == log.epoch.tolist() == [0, 1, 2]
    assert log.val_accuracy.tolist() == [0.25, 0.75, 0.5]
    assert log[["train_loss", "grad_norm", "lr", "skipped_steps"]].to_numpy().tolist() == [[1.5, 2, 0.2, 3]] * 3
    assert saved == [("best.pt", 0), ("best.pt", 1)]
    assert said[0].startswith("epoch 0/2  head alone  val loss")
    assert said[1].startswith("epoch 1/2  loss 1.500  val loss")


def test_weights_that_fail_on_the_hard_photos_are_not_the_best(monkeypatch):
    run = SimpleNamespace(judged=None, about={"classes": ["a", "b"]}, accelerator=None)
    told, gone = Judge(run, SimpleNamespace(data="photos"), None, None, LABELS, lambda text: None), PROBS.copy()
    gone[2] = np.nan
    for error, loss in (("cannot be opened", -np.log([0.9, 0.8, 0.6]).mean()), (engine.NOT_FINITE, np.inf)):
        monkeypatch.setattr(engine, "predict_probs", lambda *_, error=error: (gone, {2: error}))
        assert told.scores_on(None)["loss"] == pytest.approx(loss, rel=1e-6)


def test_no_answer_at_all_ends_the_run_with_a_sentence():
    with pytest.raises(TrainingError, match="no val photo counts: they are gone from photos"):
        judge([]).scores(PROBS * np.nan, "val")


def test_training_photos_that_are_gone_are_told_after_the_epoch(tmp_path, monkeypatch):
    optimizer = SimpleNamespace(param_groups=[{"lr": 0.1}], skipped=0)
    run = Run(tmp_path, None, None, optimizer, SimpleNamespace(is_main_process=False, log=lambda row, step: None), {"classes": ["a", "b"]},
              {"loss_sum": 6.0, "norm_sum": 8.0, "photos": 2, "read": 3})
    said = []
    told = Judge(run, SimpleNamespace(data="photos", epochs=2), None, None, LABELS, said.append)
    monkeypatch.setattr(engine, "predict_probs", lambda *_: (PROBS, {}))
    told.after_epoch(0)  # the head alone learnt from them long before
    assert len(said) == 1
    told.after_epoch(1)
    assert said[1] == "1 of 4 train photos do not count: gone, or the model's numbers are not finite"
    run.progress["read"] = 0
    with pytest.raises(TrainingError, match="no train photo counts: they are gone from photos"):
        told.after_epoch(2)
