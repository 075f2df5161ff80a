"""find_lr and tune, in small."""

import dataclasses
import re
import runpy
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT

import engine
import prepare
from config import Config
from files import WriteError
from text import ending_signals
from tools import export, find_lr, soup


@pytest.mark.parametrize("words", [
    ["app", "--checkpoint", "gone"], ["compare", "--file", "gone"], ["export", "gone"], ["find_lr", "--data", "gone"],
    ["look", "augmentations", "gone"], ["look", "predictions", "gone", "x.jpg"], ["publish", "gone"], ["quantize", "gone"],
    ["report", "gone"], ["soup", "gone"], ["suspects", "gone"]], ids=" ".join)
def test_what_is_not_there_is_one_sentence_that_names_it(words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", words)
    monkeypatch.delitem(sys.modules, f"tools.{words[0]}", raising=False)
    with pytest.raises(SystemExit) as ended:
        runpy.run_module(f"tools.{words[0]}", run_name="__main__", alter_sys=True)
    assert re.match("gone.*: .+", ended.value.code)


def test_the_suggested_rate_is_a_tenth_of_where_the_loss_is_least():
    rates = np.geomspace(1e-5, 1, 101)
    losses = (np.log10(rates) + 2) ** 2           # least at 0.01
    smooth, best = find_lr.suggest(rates, losses, memory=0.0)
    np.testing.assert_allclose(smooth, losses)
    assert best == pytest.approx(0.001)
    assert find_lr.suggest(np.array([1e-3, 1e-2]), np.array([1.0, 0.0]), memory=0.5)[0].tolist() == [1, pytest.approx(1 / 3)]


def test_a_loss_that_never_falls_lends_its_luckiest_step_no_weight():
    rates, draw = np.geomspace(1e-5, 1, 101), np.random.default_rng(0)
    losses = 0.6 + draw.normal(0, 0.1, 101) + 10 * np.log10(rates / 0.01).clip(0)   # a fitted head's: flat, then up from 0.01 on
    losses[0] = 0.2
    assert 5e-4 < find_lr.suggest(rates, losses)[1] < 2e-3


def test_the_rate_climbs_over_more_than_an_epoch_and_is_drawn(small_config, tmp_path, capsys):
    config = dataclasses.replace(small_config, batch=32, rho=0.0, head_first=False)   # 3 steps an epoch
    rates, losses = find_lr.find_lr(config, steps=7)
    np.testing.assert_allclose(rates, np.geomspace(1e-5, 1, 7)[:len(rates)])
    assert 4 <= len(losses) <= 7


def test_the_rate_climbs_from_a_fitted_head(small_config, monkeypatch):
    taken, fitted, step, fit = [], [], engine.train_step, find_lr.fitting.start_head

    def noted(model, images, targets, loss_of, optimizer, *given, **more):
        taken.append([group["lr"] for group in optimizer.param_groups])
        return step(model, images, targets, loss_of, optimizer, *given, **more)

    monkeypatch.setattr(engine, "train_step", noted)
    monkeypatch.setattr(find_lr.fitting, "start_head", lambda *given: fitted.append(fit(*given)))
    find_lr.find_lr(dataclasses.replace(small_config, rho=0.0), steps=4)
    assert len(fitted) == 1
    climb = np.geomspace(1e-5, 1, 4)[:len(taken)]
    np.testing.assert_allclose([max(rates) for rates in taken], climb)
    np.testing.assert_allclose([rates[-1] for rates in taken], climb * Config.head_lr)  # a fitted head learns slowly


def test_flags_that_mean_nothing_to_a_search_for_the_rate_are_refused(small_config):
    with pytest.raises(ValueError, match="nothing is trained or kept: drop"):
        find_lr.main(small_config)  # it has --out


def test_the_rate_is_found_for_the_layers_that_learn(small_config, monkeypatch):
    built, build = [], prepare.build_model
    monkeypatch.setattr(prepare, "build_model", lambda *given: built.append(build(*given)) or built[0])
    find_lr.find_lr(dataclasses.replace(small_config, freeze=0.5, head_first=False), steps=2)
    assert [built[0].backbone.conv_stem.weight.requires_grad, built[0].backbone.conv_head.weight.requires_grad] == [False, True]


def test_a_study_starts_with_the_defaults_and_goes_on(small_config, tmp_path):
    from test_main import flags

    from tools.tune import tune
    own = tuple(flags(dataclasses.replace(small_config, epochs=1, out=None, rho=0.05)))
    own = tuple(part for part in own if part != "None")
    study = tune(own, 1, tmp_path / "study")
    assert study.trials[0].params == {"lr": 0.008, "rho": 0.05, "mixup": 0.05, "weight_decay": 1e-4}
    log = pd.read_csv(tmp_path / "study" / "trial-000" / "log.csv")
    assert log.epoch.tolist() == [0, 1]
    assert study.trials[0].intermediate_values == {1: log.val_loss[1]}   # the head alone tells trials not apart
    answers = pd.read_csv(tmp_path / "study" / "trial-000" / "val.csv")
    kept = -np.log([row[row.label] for _, row in answers.iterrows()])
    assert study.best_value == pytest.approx(kept.mean())                # not the log's least: that is the head's in all trials
    with pytest.raises(ValueError, match=r"study: its trials have other flags .+ Give another --out"):
        tune((*own, "--seed", "1"), 1, tmp_path / "study")


def test_a_trial_that_cannot_run_is_one_sentence_and_the_study_begins_when_the_flags_are_mended(tmp_path):
    import optuna
    for number, data in enumerate(["gone", "mended"]):
        words = [sys.executable, "-m", "tools.tune", "--out", str(tmp_path), "--", "--data", data]
        ended = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
        trial = tmp_path / f"trial-{number:03d}"
        assert ended.stderr == f"{trial}: main.py ended with code 1; {trial}.txt says why.\n"
        assert f"{data}: no such folder" in Path(f"{trial}.txt").read_text()
    study = optuna.load_study(study_name=tmp_path.name, storage=f"sqlite:///{tmp_path / 'study.db'}")
    assert [trial.params["lr"] for trial in study.trials] == [Config.lr] * 2  # the defaults still come first
    assert study.user_attrs["flags"] == ["--data", "mended"]


RUN = """import sys, time
from pathlib import Path
given = dict(zip(sys.argv, sys.argv[1:]))
Path(given["--out"]).mkdir()
time.sleep(float(given.get("--epochs", 0)))
if given["--lr"] != "0.008":
    sys.exit("diverged")
Path(given["--out"], "log.csv").write_text("epoch,val_loss\\n0,1\\n1,0.5\\n")
Path(given["--out"], "val.csv").write_text("image,label,a,b\\nx,a,0.5,0.5\\n")
"""


def test_a_trial_that_fails_after_one_that_went_well_is_told_and_what_the_flags_say_is_not_tried(tmp_path, monkeypatch, capsys):
    from tools import tune
    (tmp_path / "run.py").write_text(RUN)
    monkeypatch.setattr(tune, "MAIN", tmp_path / "run.py")
    study = tune.tune(("--rho", "0", "--mixup=0"), 3, tmp_path / "study")
    assert [(trial.state.name, trial.value) for trial in study.trials] == [("COMPLETE", pytest.approx(np.log(2))), *[("FAIL", None)] * 2]
    assert all(trial.params.keys() == {"lr", "weight_decay"} for trial in study.trials)
    assert re.search(r"trial   2  failed: trial-002.txt says why  lr", capsys.readouterr().out)
    assert (tmp_path / "study" / "trial-002.txt").read_text() == "diverged\n"
    for flags, trials, out, message in [((), 0, "a", "--trials 0"), ((), 1, "run.py", "run.py: cannot be made"),
                                        (("--out", "b"), 1, "a", "drop .*--out"),
                                        (("--lr", "1", "--rho", "0", "--mixup", "0", "--weight-decay", "0"), 1, "a", "drop one of --lr, ")]:
        with pytest.raises(ValueError, match=message):
            tune.tune(flags, trials, tmp_path / out)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_a_study_that_is_ended_ends_its_run_and_says_how_to_go_on(tmp_path, name):
    import optuna
    (tmp_path / "run.py").write_text(RUN)
    code = "import sys; from pathlib import Path; from tools import tune; tune.MAIN = Path(sys.argv[1], 'run.py'); " \
           "tune.main(('--epochs', '50'), 1, Path(sys.argv[1], 'study'))"
    ended = subprocess.Popen([sys.executable, "-c", code, tmp_path], cwd=ROOT, stderr=subprocess.PIPE, text=True)
    while not (tmp_path / "study" / "trial-000").exists():
        assert ended.poll() is None
        time.sleep(0.1)
    ended.send_signal(getattr(signal, name))
    assert ended.communicate(timeout=40) == (None, "stopped; the same command goes on with further trials\n")  # the run sleeps 50 s
    assert ended.returncode == 130
    study = optuna.load_study(study_name="study", storage=f"sqlite:///{tmp_path / 'study' / 'study.db'}")
    assert [trial.state.name for trial in study.trials] == ["FAIL"]  # so that the defaults come once more


def test_under_nohup_a_closed_terminal_ends_nothing(monkeypatch):
    assert signal.SIGHUP in ending_signals()
    monkeypatch.setattr(signal, "getsignal", {signal.SIGHUP: signal.SIG_IGN}.get)
    assert ending_signals() == [signal.SIGINT, signal.SIGTERM]


def test_of_two_studies_that_begin_at_once_the_second_waits_until_the_first_has_begun(tmp_path, monkeypatch):
    import optuna  # noqa: F401  # before the clock runs, for it takes seconds
    from filelock import FileLock

    from tools import tune
    (tmp_path / "run.py").write_text(RUN)
    monkeypatch.setattr(tune, "MAIN", tmp_path / "run.py")
    study = tmp_path / "study"
    study.mkdir()
    with FileLock(study / ".lock"):
        second = threading.Thread(target=tune.tune, args=((), 1, study))
        second.start()
        second.join(5)
        assert second.is_alive()
        assert not (study / "study.db").exists()
    second.join(60)
    assert (study / "trial-000" / "val.csv").exists()


def test_the_rate_of_all_folds_is_that_of_the_first(small_config):
    config = dataclasses.replace(small_config, head_first=False)
    one, first = (find_lr.find_lr(dataclasses.replace(config, fold=fold), steps=2)[1] for fold in (-1, 0))
    np.testing.assert_array_equal(one, first)


@pytest.mark.parametrize("arguments", [((),), ("best.pt", ())])
def test_pictures_of_no_photo_are_refused(arguments):
    from tools import look
    with pytest.raises(ValueError, match="no photo given"):
        (look.augmentations if len(arguments) == 1 else look.predictions)(*arguments)


@pytest.mark.parametrize("draw", ["augmentations", "predictions"])
def test_a_picture_takes_the_place_of_no_photo(drawn, tmp_path, draw):
    from tools import look
    photo = Path(shutil.copy(next(drawn.rglob("*.jpg")), tmp_path))
    before = photo.read_bytes()
    with pytest.raises(ValueError, match="would be lost"):
        look.augmentations((photo,), photo) if draw == "augmentations" else look.predictions(tmp_path / "best.pt", (photo,), photo)
    assert photo.read_bytes() == before


def test_a_trial_s_knobs_read_as_a_user_would_write_them():
    from tools.tune import arguments
    assert arguments({"mixup": 14 * 0.05, "weight_decay": 1e-4}) == ["--mixup", "0.7", "--weight-decay", "0.0001"]


@pytest.mark.parametrize("flags", [("--fold", "-1"), ("--dry-run",)])
def test_what_is_not_one_training_cannot_be_tried(tmp_path, flags):
    from tools.tune import tune
    with pytest.raises(ValueError, match="a trial is one training"):
        tune(flags, 1, tmp_path)


def test_a_place_that_cannot_be_written_is_told_before_the_work(small_config, run, tmp_path, monkeypatch):
    for module, work in ((find_lr, "find_lr"), (export, "load_model"), (soup, "fitting")):
        monkeypatch.delattr(module, work)
    small_config = dataclasses.replace(small_config, out=None)
    for begin in (lambda out: find_lr.main(small_config, picture=out), lambda out: export.export(run, out=out),
                  lambda out: soup.main((run,), out=out)):
        with pytest.raises(WriteError, match="x.onnx: there is no folder .*void. Make it first, or name another file."):
            begin(tmp_path / "void" / "x.onnx")
        (tmp_path / "x.onnx").mkdir(exist_ok=True)
        with pytest.raises(WriteError, match="x.onnx: is no file that could be replaced"):
            begin(tmp_path / "x.onnx")
    photo = next(small_config.data.rglob("*.jpg"))
    with pytest.raises(WriteError, match="is one of the files that are read, and would be lost"):
        find_lr.main(small_config, picture=photo)
