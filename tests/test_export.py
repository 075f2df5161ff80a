"""tools/export.py and exported.py: the same answers as the checkpoint's, without torch, and nothing else's file."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import joblib
import numpy as np
import onnx
import pytest
import torch
from conftest import REAL, ROOT, save_random_model

import checkpoint
import exported
import predict
from checkpoint import CheckpointError
from exported import Exported
from photos import is_photo
from predict import Predictor, newest_checkpoint
from tools import export

HEAVY = ("torch", "timm", "albumentations", "accelerate", "sklearn", "scipy", "pandas")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """best.pt of a random network whose answers differ from photo to photo, and its export."""
    folder = tmp_path_factory.mktemp("runs") / "one"
    folder.mkdir()
    save_random_model(folder / "best.pt", [*"ABCDEFGH", "Мухомор"], {"H": {"danger": "deadly", "note": "by a letter"}}, covariance=8)
    export.export(folder)
    return folder


@pytest.fixture
def paths(drawn):
    return sorted(drawn.rglob("*.jpg"))[::12]


@pytest.mark.parametrize("tta", [1, 4])
def test_the_exported_model_agrees_with_the_checkpoint(run, paths, tta):
    ours, theirs = (Predictor(run / f"best.{kind}", tta=tta).probs(paths)[0] for kind in ("onnx", "pt"))
    assert np.abs(ours - theirs).max() < 1e-4
    assert (ours.argmax(1) == theirs.argmax(1)).all()
    assert ours.std(0).max() > 0.01  # it is no constant
    one, other = (Predictor(run / f"best.{kind}", tta=tta) for kind in ("onnx", "pt"))
    known, same = one.answers(paths)[1], other.answers(paths)[1]
    assert np.abs(known - same).max() < 1e-4
    assert known.std() > 1e-3
    assert one.limit == other.limit == checkpoint.load(run / "best.pt")["known_limits"][tta - 1]
    assert list(Predictor(run / "best.onnx")(paths[0])) == list(Predictor(run / "best.pt")(paths[0]))


def test_all_photos_of_a_real_set_get_the_same_labels(run, drawn):
    photos = sorted(str(path) for path in (REAL / "fungi9" if (REAL / "fungi9").is_dir() else drawn).rglob("*") if is_photo(path))
    ours, theirs = (Predictor(run / f"best.{kind}", tta=1).probs(photos)[0] for kind in ("onnx", "pt"))
    assert len(photos) >= 108
    assert len(set(theirs.argmax(1))) > 1
    assert (ours.argmax(1) == theirs.argmax(1)).all()
    assert np.abs(ours - theirs).max() < 1e-3


def test_both_kinds_are_averaged_together(run, paths):
    both = Predictor(run / "best.onnx", run / "best.pt").probs(paths)[0]
    np.testing.assert_allclose(both, Predictor(run / "best.pt").probs(paths)[0], atol=1e-4)


def test_threads_change_nothing(run, paths, monkeypatch):
    done, together, answer = [], [], Exported.answer
    monkeypatch.setattr(Exported, "answer", lambda self, images: together.append(len(images)) or answer(self, images))
    one, two = (Predictor(run / "best.onnx", tta=5, workers=w).probs(paths, done.append)[0] for w in (0, 3))
    np.testing.assert_allclose(one, two, atol=1e-6)
    assert sum(done) == 2 * len(paths)
    assert sorted(together) == sorted(len(paths) * [5, 2, 2, 1])  # many photos: two views at a time, what a core's cache holds


@pytest.mark.parametrize(("workers", "threads", "of_the_network"), [(-1, 3, 1), (0, 0, 3), (5, 5, 1)])
def test_it_takes_the_cores_that_a_container_lets_it_have(run, monkeypatch, workers, threads, of_the_network):
    monkeypatch.setattr(joblib, "cpu_count", lambda: 3)
    model = Exported(run / "best.onnx", 8, workers)
    assert (model.workers, model.session.get_session_options().intra_op_num_threads) == (threads, of_the_network)


def test_a_photo_that_cannot_be_read_is_told_as_the_checkpoint_tells_it(run, paths, tmp_path, monkeypatch):
    monkeypatch.setattr(exported, "QUEUED", 2)  # photos wait in two queues, the bad one in the second
    (tmp_path / "bad.jpg").write_bytes(b"x")
    (ours, our_errors), (theirs, their_errors) = (
        Predictor(run / f"best.{kind}").probs([*paths[:2], tmp_path / "bad.jpg", paths[2]]) for kind in ("onnx", "pt"))
    assert our_errors == their_errors
    assert list(our_errors) == [2]
    np.testing.assert_allclose(ours, theirs, atol=1e-4)
    assert np.isnan(ours).all(1).tolist() == [False, False, True, False]


def test_an_exported_model_is_asked_without_torch_or_anything_slow(run, paths, tmp_path):
    labelled = tmp_path / "photos"
    for name, path in zip("AB", paths, strict=False):
        (labelled / name).mkdir(parents=True)
        shutil.copy(path, labelled / name)
    blocked = f"import sys; sys.modules.update(dict.fromkeys({HEAVY}))\n"  # None there makes an import fail
    one, folders = (subprocess.run(
        [sys.executable, "-c", blocked + "import predict, pathlib; sys.exit(predict.main(predict.Options("
         f"(pathlib.Path({str(asked)!r}),), checkpoint=(pathlib.Path({str(run / 'best.onnx')!r}),))))"],
        cwd=ROOT, capture_output=True, text=True) for asked in (paths[0], labelled))
    assert one.returncode == folders.returncode == 0, one.stderr + folders.stderr
    assert one.stdout.count("%  ") == 3
    assert "genera with deadly species. H: by a letter." in one.stdout  # what the checkpoint knows of danger travels too
    assert "to have the answers scored: pip install pandas scikit-learn" in folders.stdout


def test_the_newest_checkpoint_answers_be_it_exported_or_not(run, tmp_path):
    for age, name in enumerate(["a/best.pt", "a/best.onnx", "b/best.pt"]):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (age, age))
        assert newest_checkpoint(tmp_path) == tmp_path / name
    (tmp_path / "folds").mkdir()
    (tmp_path / "folds/oof.csv").touch()
    os.utime(tmp_path / "folds/oof.csv", (2e9, 2e9))
    assert newest_checkpoint(tmp_path) == tmp_path / "folds"


# --- files of others ---

def without_properties(model):
    del model.metadata_props[:]


def with_property(name, value):
    def change(model):
        next(p for p in model.metadata_props if p.key == name).value = value
    return change


def test_an_export_of_before_there_was_a_temperature_for_each_number_of_views_answers(run, paths, tmp_path):
    model, kept = onnx.load(run / "best.onnx"), {"temperatures": ("temperature", "1.7"), "known_limits": ("known_limit", "0.3")}
    for found in model.metadata_props:
        if found.key in kept:
            found.key, found.value = kept[found.key]
    onnx.save(model, tmp_path / "old.onnx")
    checkpoint.save(tmp_path / "new.pt", checkpoint.load(run / "best.pt") | {"temperatures": [1.7] * 16, "known_limits": [0.3] * 16})
    old, new = (Predictor(tmp_path / name, tta=3) for name in ("old.onnx", "new.pt"))
    assert np.abs(old.probs(paths)[0] - new.probs(paths)[0]).max() < 1e-4
    assert old.limit == 0.3


def with_weights_elsewhere(place):
    def change(model):
        tensor = model.graph.initializer[0]
        tensor.ClearField("raw_data")
        tensor.data_location = onnx.TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value=place)
    return change


@pytest.mark.parametrize(("change", "message"), [
    (without_properties, "not a model that this program exported"),
    (with_property("classes", '["A", "B"]'), "not a model that this program exported"),
    (with_property("classes", '"ABCDEFGHI"'), "not a model that this program exported"),
    (with_property("classes", str(["A"] * 9).replace("'", '"')), "not a model that this program exported"),
    (with_property("classes", '["\\u001b[2J", "B", "C", "D", "E", "F", "G", "H", "I"]'), "not a model that this program exported"),
    (with_property("classes", "no json"), "not a model that this program exported"),
    (with_property("image_size", "1000000"), "not a model that this program exported"),
    (with_property("crop", "0"), "not a model that this program exported"),
    (with_property("crop", '"all"'), "not a model that this program exported"),
    (with_property("temperatures", "NaN"), "not a model that this program exported"),
    (with_property("format", "99"), "has format 99, this program reads format 1"),
    (with_weights_elsewhere("../secret.bin"), "wants weights from a file outside its folder"),
    (with_weights_elsewhere(str(ROOT / "LICENSE")), "wants weights from a file outside its folder")])
def test_a_foreign_or_hostile_file_is_refused_in_one_sentence(run, tmp_path, change, message):
    model = onnx.load(run / "best.onnx")
    change(model)
    (tmp_path / "secret.bin").write_bytes(bytes(10**6))
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "x.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(CheckpointError, match=f"x.onnx: .*{message}"):
        Predictor(tmp_path / "sub" / "x.onnx")


def test_answers_that_are_no_numbers_are_refused(run, paths, tmp_path):
    model = onnx.load(run / "best.onnx")
    bias = next(t for t in model.graph.initializer if t.name == "model.head.bias")
    bias.CopyFrom(onnx.numpy_helper.from_array(np.full(9, np.nan, np.float32), bias.name))
    onnx.save(model, tmp_path / "nan.onnx")
    with pytest.raises(CheckpointError, match=r"nan.onnx: its answers are no finite numbers"):
        Predictor(tmp_path / "nan.onnx").probs(paths)


def test_a_missing_or_broken_file_and_random_views_are_refused(run, tmp_path):
    (tmp_path / "text.onnx").write_text("hello")
    (tmp_path / "cut.onnx").write_bytes((run / "best.onnx").read_bytes()[:100_000])
    for name, message in {"none.onnx": "no such checkpoint", "text.onnx": "broken, or not ONNX", "cut.onnx": "broken, or not ONNX"}.items():
        with pytest.raises(CheckpointError, match=f"{name}: .*{message}"):
            Predictor(tmp_path / name)
    with pytest.raises(CheckpointError, match="--tta-random draws from the training pipeline"):
        Predictor(run / "best.onnx", tta_random=True)


# --- the tool ---

def test_an_export_that_answers_otherwise_is_not_kept(run, tmp_path, monkeypatch):
    changed = onnx.load(run / "best.onnx")
    without_properties(changed)
    bias = next(t for t in changed.graph.initializer if t.name == "model.head.bias")
    bias.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(bias) + np.arange(9, dtype=np.float32), bias.name))
    monkeypatch.setattr(torch.onnx, "export", lambda *_, **__: SimpleNamespace(model_proto=changed))
    shutil.copy(run / "best.pt", tmp_path)
    with pytest.raises(CheckpointError, match="answers otherwise .* was not kept"):
        export.export(tmp_path)
    assert os.listdir(tmp_path) == ["best.pt"]


def test_what_is_missing_or_misnamed_is_said_before_the_work(run, tmp_path, monkeypatch):
    with pytest.raises(CheckpointError, match=r"--out x.bin: .*name it .onnx"):
        export.export(run, out=Path("x.bin"))
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        export.export(tmp_path)
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(CheckpointError, match=r"onnxscript: pip install -r requirements-extra.txt"):
        export.export(run)


def test_predict_says_what_to_install(run):
    done = subprocess.run([sys.executable, "-c", "import sys; sys.modules['onnxruntime'] = None; import predict; "
                           "predict.Predictor(sys.argv[1])", run / "best.onnx"], cwd=ROOT, capture_output=True, text=True)
    assert "CheckpointError: an exported model needs onnxruntime" in done.stderr
    assert "pip install onnxruntime" in done.stderr


def test_properties_survive_any_script(run):
    assert predict.Predictor(run / "best.onnx").classes[-1] == "Мухомор"
