"""tools/publish.py and tools/quantize.py: a model that leaves its run folder answers as it did there."""

import os
import shutil
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import timm
import torch
from conftest import save_random_model

import checkpoint
import record
from checkpoint import CheckpointError
from predict import Predictor
from tools import export, publish, quantize
from trained import load_model

CLASSES = ["Amanita", "Boletus", "Suillus"]


@pytest.fixture(scope="module")
def run(drawn, tmp_path_factory):
    """A run folder as main.py leaves it, of a random network whose answers differ from photo to photo."""
    folder = tmp_path_factory.mktemp("runs") / "three"
    folder.mkdir()
    save_random_model(folder / "best.pt", CLASSES, {"Amanita": {"danger": "deadly", "note": "the liver fails"}})
    photos = [(str(path), name, "val" if k < 4 else "train") for name in CLASSES for k, path in enumerate(sorted((drawn / name).iterdir()))]
    table = pd.DataFrame(photos, columns=["path", "label", "side"]).assign(bytes=1)
    record.write_table(folder / "photos.csv", table)
    val = table[table.side == "val"]
    record.write_answers(folder / "val.csv", val, Predictor(folder / "best.pt").probs(val.path.tolist())[0], CLASSES)
    export.export(folder)
    return folder


@pytest.fixture(scope="module")
def published(run):
    return publish.publish(run)


def test_timm_reads_the_published_weights_and_answers_as_the_checkpoint(run, published, drawn):
    network = timm.create_model(f"local-dir:{published}", pretrained=True).eval()
    config = network.pretrained_cfg
    assert (config["input_size"], config["crop_pct"]) == ((3, 64, 64), 0.9)
    model, saved = load_model(run / "best.pt")
    images = export.some_images(64)
    mean, std = (torch.tensor(config[name]).view(3, 1, 1) for name in ("mean", "std"))
    with torch.inference_mode():
        theirs = network((images / 255 - mean) / std).softmax(1)
        ours = (model(images) / saved["temperatures"][0]).softmax(1)
    torch.testing.assert_close(theirs, ours, atol=1e-5, rtol=0)
    assert ours.std(0).max() > 0.01  # it is no constant


def test_the_example_of_the_card_runs_without_torch_and_answers_as_predict(published, drawn):
    card = (published / "README.md").read_text(encoding="utf-8")
    code = card.split("```python\n")[1].split("```")[0]
    assert not set(code.replace(",", " ").split()) & {"torch", "timm", "predict"}
    photo = sorted((drawn / "Boletus").iterdir())[0]
    command = [sys.executable, "-c", code, str(photo)]
    said = subprocess.run(command, cwd=published, check=True, capture_output=True, text=True).stdout.split()
    answer = Predictor(published / "best.onnx", tta=1)(photo)
    assert said[0] == max(answer, key=answer.get)
    assert said[2:] == ["unknown"]                                          # by the limit of one view
    assert float(said[1]) == pytest.approx(max(answer.values()), abs=0.05)  # Pillow and OpenCV shrink a little differently


def test_the_example_of_the_card_bears_large_logits(published):
    code = (published / "README.md").read_text(encoding="utf-8").split("```python\n")[1].split("```")[0]
    found = {"np": np, "logits": np.float32([[30, 20, -30]]), "about": {"temperatures": [0.1]}}
    exec("\n".join(line for line in code.splitlines() if line.startswith(("logits = ", "probs = "))), found)
    np.testing.assert_allclose(found["probs"], [1, 0, 0], atol=1e-6)


def test_the_card_says_how_good_it_is_and_what_is_deadly(run, published):
    card = (published / "README.md").read_text(encoding="utf-8")
    answers = record.read_table(run / "val.csv")
    right = answers[CLASSES].astype(float).idxmax(axis=1) == answers.label
    error = np.sqrt(right.mean() * (1 - right.mean()) / 12)
    assert f"accuracy **{right.mean():.3f}** (standard error {error:.3f})" in card
    assert "On 12 photos" in card
    assert "Amanita: the liver fails." in card
    assert "Never eat a mushroom" in card
    cards = [publish.card(run, checkpoint.load(run / "best.pt") | {"refit": refit}, "me/x", "mit", timm_reads=True)
             for refit in ({}, {"bias": torch.zeros(9)})]
    assert ["its head has learnt from these photos too" in text for text in cards] == [False, True]


def test_a_card_that_was_edited_stays(run, tmp_path, capsys):
    folder = shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns("model"))
    page = publish.publish(folder) / "README.md"
    made = page.read_text(encoding="utf-8")
    page.write_text(made + "My photos are mine.\n", encoding="utf-8")
    publish.publish(folder, license="mit")
    assert page.read_text(encoding="utf-8") == made + "My photos are mine.\n"
    told = capsys.readouterr().out
    assert f"{page}: stays as it is" in told
    assert "Its example" not in told
    page.write_text(made.replace('["temperatures"][0]', '["temperature"]'), encoding="utf-8")  # as it was written before
    publish.publish(folder)
    assert "Its example is not the one that reads this best.onnx. To have it written anew, delete it." in capsys.readouterr().out
    page.write_text(made, encoding="utf-8")
    publish.publish(folder, license="mit")  # nobody has edited it
    assert "license: mit" in page.read_text(encoding="utf-8")


def test_the_card_says_where_the_backbone_had_met_the_photos(run):
    saved = checkpoint.load(run / "best.pt")
    card = publish.card(run, saved | {"config": {"weights": str(run / "best.pt")}}, "me/x", "mit", timm_reads=True)
    assert "photos (not a fair score: the model learnt from these photos, or was chosen by them), 16 views" in card
    assert "photos that it did not learn from, 16 views" in publish.card(run, saved, "me/x", "mit", timm_reads=True)


def test_the_card_survives_the_names_of_classes(run, tmp_path):
    folder, odd = shutil.copytree(run, tmp_path / "run"), "<b>Amanita|1"
    for table in ("photos.csv", "val.csv"):
        record.write_table(folder / table, record.read_table(folder / table).replace("Amanita", odd).rename(columns={"Amanita": odd}))
    card = publish.card(folder, checkpoint.load(run / "best.pt") | {
        "classes": [odd, *CLASSES[1:]], "notes": {odd: {"danger": "deadly", "note": "<b>the liver fails"}}}, "me/x", "mit", timm_reads=True)
    assert "the liver fails" in card
    assert [line.count("|") - line.count("\\|") for line in card.splitlines() if "Amanita" in line and line.startswith("|")] == [5]
    assert "<b>" not in card


def test_push_hands_the_folder_to_the_hub_and_an_error_leaves_it_on_the_disk(run, monkeypatch):
    told = []

    class Hub:
        def create_repo(self, repo, *, private, exist_ok):
            told.append((repo, private, exist_ok))

        def upload_folder(self, *, repo_id, folder_path):
            told.append((repo_id, sorted(file.name for file in folder_path.iterdir())))

    monkeypatch.setattr(publish, "HfApi", Hub)
    publish.publish(run, push="me/mushrooms", private=True)
    assert told == [("me/mushrooms", True, True), ("me/mushrooms", ["README.md", "best.onnx", "config.json", "model.safetensors"])]
    monkeypatch.setattr(Hub, "create_repo", lambda *_, **__: (_ for _ in ()).throw(OSError("401 Unauthorized")))
    with pytest.raises(CheckpointError, match=r"me/mushrooms: the hub did not take it \(401 Unauthorized\).*hf auth login"):
        publish.publish(run, push="me/mushrooms")


def test_a_classifier_that_is_a_convolution_takes_our_head_and_another_kind_is_told(tmp_path):
    for name, fits in (("resnetv2_18", True), ("swiftformer_xs", False)):
        save_random_model(tmp_path / "best.pt", CLASSES, {}, name)
        model, saved = load_model(tmp_path / "best.pt")
        if not fits:
            with pytest.raises(CheckpointError, match=f"{name}: timm's classifier is of another kind"):
                publish.as_timm(model, saved)
        else:
            images = torch.rand(1, 3, 64, 64)
            with torch.inference_mode():
                ours = model.head(model.backbone(images)) / saved["temperatures"][0]
                torch.testing.assert_close(publish.as_timm(model, saved)(images), ours, rtol=1e-4, atol=1e-3)


def test_an_unfinished_run_leaves_no_empty_folder(run, tmp_path):
    shutil.copy(run / "best.pt", tmp_path)
    with pytest.raises(record.RunError, match=r"no finished run, it holds no val.csv\. .* main.py --resume"):
        publish.publish(tmp_path)
    assert os.listdir(tmp_path) == ["best.pt"]


def test_eight_bits_need_the_photos_and_say_so(tmp_path):
    save_random_model(tmp_path / "best.pt", CLASSES, {})
    export.export(tmp_path)
    with pytest.raises(record.RunError, match=r"no finished run, it holds no photos.csv"):
        quantize.quantize(tmp_path)
    record.write_table(tmp_path / "photos.csv", pd.DataFrame({
        "path": ["a.jpg", "b.jpg"], "label": ["a", "b"], "side": ["train", "val"], "bytes": 1}))
    with pytest.raises(CheckpointError, match=r"its photos are not where they were \(a.jpg\). Put them back"):
        quantize.quantize(tmp_path)


def test_a_head_that_timm_has_no_place_for_travels_as_onnx_alone(run, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    for table in ("photos.csv", "val.csv"):
        shutil.copy(run / table, folder)
    save_random_model(folder / "best.pt", CLASSES, {}, covariance=4)
    out = publish.publish(folder)
    assert sorted(os.listdir(out)) == ["README.md", "best.onnx"]
    card = (out / "README.md").read_text(encoding="utf-8")
    assert card.startswith("---\nlibrary_name: onnx\n")
    assert "timm" not in card.split("## Use")[1]
    assert "import timm" in publish.card(folder, checkpoint.load(folder / "best.pt"), "me/x", "mit", timm_reads=True)


def test_eight_bits_keep_nearly_all_answers_and_what_the_file_says_of_itself(run, drawn, capsys):
    out = quantize.quantize(run)
    plain, small = Predictor(run / "best.onnx", tta=1), Predictor(out, tta=1)
    assert (small.classes, small.limit, small.notes) == (plain.classes, plain.limit, plain.notes)
    paths = sorted(map(str, drawn.rglob("*.jpg")))
    ours, theirs = plain.probs(paths)[0], small.probs(paths)[0]
    assert (ours.argmax(1) == theirs.argmax(1)).mean() > 0.9
    assert np.abs(ours - theirs).max() > 1e-6  # it is another network
    assert "on 12 photos" in capsys.readouterr().out


def test_eight_bits_spend_no_step_on_what_a_relu_cuts_off(run, drawn, tmp_path):
    save_random_model(tmp_path / "best.pt", CLASSES, {}, "tf_efficientnet_lite0", "auto")
    shutil.copy(run / "photos.csv", tmp_path)
    plain, small = Predictor(export.export(tmp_path), tta=1), Predictor(quantize.quantize(tmp_path), tta=1)
    paths = sorted(map(str, drawn.rglob("*.jpg")))
    assert np.abs(plain.probs(paths)[0] - small.probs(paths)[0]).mean() < 0.05
