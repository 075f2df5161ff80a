import functools
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd
import pytest

import record
from config import Config
from tools import compare


@pytest.fixture
def experiments(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    scores = {"val_accuracy": "0.7", "val_loss": "0.9"}
    record.add_experiment("runs/a", {"data": "my photos", "out": "runs/a"}, scores, 3.0)
    record.add_experiment("runs/b", {"data": "my photos", "lr": 0.01, "quiet": True}, {"val_accuracy": "0.8", "val_loss": "1.0"}, 9.0)
    record.add_experiment("runs/c", {"data": "my photos", "rho": 0.0}, scores | {"test_accuracy": "0.6"}, 5.0)
    return tmp_path / "runs" / "experiments.csv"


def test_only_knobs_that_differ_have_a_column_and_scores_stay_in_theirs(experiments):
    runs, same = compare.read_runs(experiments)
    assert same == "data=my photos"
    assert list(runs) == ["run", "accuracy", "loss", "minutes", "test_accuracy", "lr", "rho"]
    assert runs.lr.tolist() == ["0.008", "0.01", "0.008"]
    assert runs.test_accuracy.tolist() == ["", "", "0.6"]


def test_where_nothing_in_common_differs_from_the_defaults_it_says_so(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in "ab":
        record.add_experiment(f"runs/{name}", Config(data=Path(name)).to_dict(), {"val_accuracy": "0.5"}, 1.0)
    assert compare.read_runs(record.EXPERIMENTS)[1] == "the defaults, but for what the columns say"


def test_what_was_edited_in_config_py_is_told_apart_from_what_it_was_before(experiments, monkeypatch):
    record.add_experiment("runs/d", Config().to_dict() | {"data": "my photos", "lr": 0.02}, {"val_accuracy": "0.5"}, 1.0)
    monkeypatch.setattr(compare, "Config", functools.partial(Config, lr=0.02))  # its default, from now on
    assert compare.read_runs(experiments)[0].lr.iloc[-1] == "0.02"
    record.add_experiment("runs/e", Config().to_dict(), {"val_accuracy": "0.5"}, 1.0)
    assert compare.read_runs(experiments)[0].lr.tolist()[-2:] == ["0.02", "0.008"]


def test_a_record_that_a_spreadsheet_has_saved_goes_on(experiments):
    plain, _ = compare.read_runs(experiments)
    experiments.write_bytes(experiments.read_bytes().replace(b"\n", b"\r\n"))
    assert compare.read_runs(experiments)[0].equals(plain)
    record.add_experiment("runs/d", {"data": "my photos"}, {"val_accuracy": "0.5"}, 1.0)
    assert compare.read_runs(experiments)[0].lr.tolist() == ["0.008", "0.01", "0.008", "0.008"]


def test_the_best_of_each_column_is_marked_and_equals_share_it(experiments):
    marks = compare.best_values(compare.read_runs(experiments)[0])
    assert marks.accuracy.tolist() == [False, True, False]
    assert marks.loss.tolist() == [True, False, True]
    assert marks.minutes.tolist() == [True, False, False]
    assert not marks.lr.any()
    assert not marks.test_accuracy.any()  # nobody is to choose by it
    marks = compare.best_values(pd.DataFrame({"ece": ["0.1", "0.2"], "ece_calibrated": ["0.04", "0.03"]}))
    assert marks.to_numpy().tolist() == [[False, False], [False, True]]  # answers are given at their temperature


def test_the_table_is_printed_best_first_and_the_page_marks_it(experiments, capsys):
    compare.main()
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split()[:3] == ["2", "runs/b", "0.8*"]
    assert "data=my photos" in lines[4]
    assert "<td class=best>0.8</td>" in (experiments.parent / "compare.html").read_text()
    for name in ("f2", "minutes", "lr"):
        with pytest.raises(record.RunError, match=f"--score {name}: .* no such score. Take one of accuracy, loss, test_accuracy"):
            compare.main(score=name)


def test_a_calibration_error_is_better_low(experiments, capsys, monkeypatch):
    table = record.read_table(experiments)
    record.write_table(experiments, table.assign(val_ece_calibrated=["0.03", "0.01", "0.02"]))
    drawn, save = [], compare.plots.save_figure
    monkeypatch.setattr(compare.plots, "save_figure", lambda figure, path: drawn.append(figure) or save(figure, path))
    compare.main(score="ece_calibrated")
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:4]] == ["2", "3", "1"]
    assert drawn[0].axes[0].lines[0].get_ydata().tolist() == [0.03, 0.02, 0.01]  # the longer, the less


def test_runs_that_end_together_all_get_their_row(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda i: record.add_experiment(Path(f"runs/{i}"), {}, {}, i), range(40)))
    assert sorted(record.read_table(record.EXPERIMENTS).run) == sorted(f"runs/{i}" for i in range(40))


def test_a_long_word_takes_no_minutes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    record.add_experiment(Path("runs/a"), {}, {}, 1.0)
    record.write_table(record.EXPERIMENTS, record.read_table(record.EXPERIMENTS).assign(settings=f"{'x' * 60_000} lr=0.01"))
    began = time.perf_counter()
    assert compare.read_runs(record.EXPERIMENTS)[1] == "lr=0.01"
    assert time.perf_counter() - began < 2


@pytest.mark.parametrize("text", ["finished;run;minutes;settings\nnow;runs/a;1;lr=1\n", "finished,run,minutes,settings\n"])
def test_a_record_that_a_spreadsheet_saved_otherwise_or_that_is_empty_is_told(tmp_path, text):
    (tmp_path / "record.csv").write_text(text)
    with pytest.raises(record.RunError, match="not a record as main.py writes it|a record without a row"):
        compare.read_runs(tmp_path / "record.csv")


@pytest.mark.parametrize("content", [
    b"", b"finished;run;minutes;settings\nnow;runs/a;1;lr=1\n", b"finished,run,minutes,settings\n0,a,1,x\n0,b,2,y,z,more\n",
    b"run,minutes,settings,val_accuracy\na,1,x,1\n", "finished,run,minutes,settings\n0,a,1,x\n".encode("utf-16")])
def test_a_record_that_is_none_is_left_as_it_is_and_told(tmp_path, monkeypatch, content):
    monkeypatch.chdir(tmp_path)
    record.EXPERIMENTS.parent.mkdir()
    record.EXPERIMENTS.write_bytes(content)
    with pytest.raises(record.WriteError, match=r"experiments.csv: not a record .* Then `python main.py --resume runs/b` adds the row"):
        record.add_experiment(Path("runs/b"), {}, {}, 1)
    with pytest.raises(record.RunError, match="experiments.csv: not a record as main.py writes it"):
        record.has_experiment(Path("runs/b"))
    assert record.EXPERIMENTS.read_bytes() == content


@pytest.mark.parametrize("out", ["page.png", "runs/experiments.csv", "runs/page.html"])
def test_neither_page_nor_picture_takes_the_place_of_the_record_or_of_each_other(experiments, out):
    if out == "runs/page.html":
        experiments = experiments.rename(experiments.with_name("page.png"))
    with pytest.raises(ValueError, match="its picture would take its place|would be lost"):
        compare.main(experiments, Path(out))
    assert b"runs/a" in experiments.read_bytes()


def test_no_record_is_told(tmp_path):
    with pytest.raises(record.RunError, match="no such record"):
        compare.read_runs(tmp_path / "none.csv")
