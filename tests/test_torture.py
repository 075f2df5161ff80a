"""tools.torture in small: what the long form counts, it can count."""

import os
import re
import shutil
import subprocess
import sys
import time

import pandas as pd
import pytest

import checkpoint
from photos import PhotoError
from tools import interruptions, torture


def test_the_long_form_in_small(tmp_path, monkeypatch):
    monkeypatch.setattr(interruptions, "EPOCHS", 1)
    monkeypatch.setattr(interruptions, "NEW", [*interruptions.NEW[:-1], "--epochs", "1", "--out"])
    report = tmp_path / "RELIABILITY.md"
    report.write_text("- of yesterday\n\n## By hand\n\nseen once\n")
    torture.main(fuzz=30, kills=2, disks=1, workers=0, rows=2_000, out=report)
    text = report.read_text()
    assert "of yesterday" not in text
    assert text.endswith("\n\n## By hand\n\nseen once\n")
    assert "A table of 2000 rows" in text
    assert "0 crashed, 0 hung, 0 other error" in text
    assert int(re.search(r"(\d+) SIGKILLs", text)[1]) >= 2
    assert "0 unreadable checkpoints, 0 that ended with another model" in text
    assert "A full disk: not tried" in text or "1 were full, 1 before the first checkpoint; 1 times one sentence said so" in text


def test_a_crash_and_a_hang_are_counted_and_the_next_photo_is_read(monkeypatch):
    def read(file, min_side):
        data = file.read_bytes()
        if data == b"crash":
            os._exit(1)
        if data == b"hang":
            time.sleep(60)
        if data == b"bug":
            raise KeyError
        if data == b"bad":
            raise PhotoError

    monkeypatch.setattr(torture, "read_photo", read)
    monkeypatch.setattr(torture, "PATIENCE", 0.5)
    monkeypatch.setattr(torture, "fuzzed", lambda count, seed: [b"crash", b"good", b"hang", b"bad", b"bug", b"good"])
    assert "2 read, 1 refused, 1 crashed, 1 hung, 1 other error" in torture.fuzz_photos(6, 0)


def test_a_training_that_fails_by_itself_ends_the_count_instead_of_being_tried_for_ever(monkeypatch):
    """As on a full disk, where the tests once ran until CI's time was over."""
    failing = [*interruptions.NEW[:-1], "--epochs", "-1", "--out"]
    with monkeypatch.context() as patch:
        patch.setattr(interruptions, "_reference", lambda work: (60, ""))
        patch.setattr(interruptions, "NEW", failing)
        with pytest.raises(RuntimeError, match="--epochs -1: a head that is not fitted first"):
            interruptions.kill_and_resume(1, seed=0)

    def launch(work, processes, machines, *arguments):
        code = f"print('No space left on device'); raise SystemExit({int('killed' in arguments[-1])})"
        return [subprocess.Popen([sys.executable, "-c", code], text=True, stdout=subprocess.PIPE)]

    for name, fake in (("_launch", launch), ("_difference", lambda *_: 0.0), ("_apart", lambda *_: 0.0)):
        monkeypatch.setattr(interruptions, name, fake)
    with pytest.raises(RuntimeError, match="before its first checkpoint: No space left on device"):
        interruptions.several_processes(1, seed=0)


def test_runs_that_differ_are_told_apart(tmp_path, run):
    assert interruptions._apart(run, run) == 0
    assert interruptions._difference(run, run) == 0
    other = tmp_path / "other"
    shutil.copytree(run, other)
    saved = checkpoint.load(other / "last.pt")
    next(iter(saved["weights"].values())).view(-1)[0] += 0.25
    checkpoint.save(other / "last.pt", saved)
    log = pd.read_csv(other / "log.csv")
    log.assign(val_loss=log.val_loss * 1.5).to_csv(other / "log.csv", index=False)
    assert interruptions._apart(run, other) == pytest.approx(0.25)
    assert interruptions._difference(run, other) == pytest.approx(0.5)


def test_what_a_run_leaves_to_its_user_is_told_apart(tmp_path, run):
    other, results = shutil.copytree(run, tmp_path / "other"), interruptions._results(run)
    assert interruptions._results(other) == results
    saved = checkpoint.load(run / "best.pt")
    shifted = {**saved["weights"], "head.bias": saved["weights"]["head.bias"] + 1}
    poorer = {name: tensor * 0 for name, tensor in saved["refit"].items()}
    for changed in ({"temperatures": [*saved["temperatures"][:-1], 9.0]}, {"weights": shifted}, {"refit": poorer}):
        checkpoint.save(other / "best.pt", {**saved, **changed})
        assert interruptions._results(other) != results
    shutil.copy(run / "best.pt", other)
    (other / "val.csv").write_text((run / "val.csv").read_text().replace("0.1", "0.2", 1))
    assert interruptions._results(other) != results
