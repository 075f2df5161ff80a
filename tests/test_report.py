import os
import re
import shutil

import cv2
import numpy as np
import pandas as pd
import pytest
import torch

import checkpoint
import photos
import plots
import record
import report
from config import Config
from dataset import DataError
from explain import Explainer
from report import write_report
from run import resumed
from tools.publish import card, publish


def test_a_report_tells_the_scores_of_the_log_and_needs_no_other_file(run):
    text = write_report(run).read_text(encoding="utf-8")
    answers = pd.read_csv(run / "val.csv")
    right = answers.drop(columns=["image", "label"]).idxmax(axis=1) == answers.label
    assert f"<b>{right.mean():.1%}</b>accuracy" in text
    assert set(re.findall(r'(?:src|href)="([^,"]*)', text)) == {"data:image/png;base64"}
    assert f"Each epoch. Kept as best.pt: {checkpoint.load(run / 'best.pt')['kept']}. Since it was scored, its head has learnt" in text
    pictures = {"curves", "confusion", "confusion_share", "classes", "calibration", "worst", "surest", "balance"}
    assert {path.stem for path in (run / "report").glob("*.png")} == pictures
    assert text.count("<img") == len(pictures) + 1  # and batch.png
    for knob in ("image_size", "torch", "rho"):
        assert f"<td>{knob}</td>" in text


def test_heat_maps_are_of_the_head_that_gave_the_answers(run, monkeypatch):
    made = []
    monkeypatch.setattr(report, "Explainer", lambda *given, **more: made.append(Explainer(*given, **more)) or made[-1])
    write_report(run)
    scored, answering = checkpoint.load(run / "best.pt")["weights"]["head.weight"], Explainer(run / "best.pt").model.head.weight
    torch.testing.assert_close(made[0].model.head.weight.cpu(), scored)
    assert not torch.allclose(answering.cpu(), scored)  # it has learnt from the validation photos since


def test_names_cannot_break_the_page(run, drawn, tmp_path):
    copy = shutil.copytree(run, tmp_path / "<b>run\udcff")  # no UTF-8, as an old disk's names
    settings = (copy / "config.json").read_text(encoding="utf-8")
    (copy / "config.json").write_text(settings.replace('"cpu"', '"<b>run"').replace('"precision": "', '"precision": "<b>run'))
    assert "<b>run" not in write_report(copy).read_text(encoding="utf-8")


@pytest.mark.parametrize("use", [write_report, publish, lambda run: resumed(Config(resume=run), checkpoint.load(run / "last.pt")),
                                 lambda run: record.new_folder(run, "a model")], ids=["report", "publish", "resume", "out"])
def test_a_run_that_leads_out_of_its_folder_is_refused(run, tmp_path, use):
    copy, elsewhere = shutil.copytree(run, tmp_path / "run"), tmp_path / "elsewhere"
    elsewhere.mkdir()
    for make, name in ((os.symlink, "report"), (os.symlink, "model"), (os.symlink, "batch.png"), (os.symlink, "fold1/val.csv"),
                       (lambda _, path: os.mkfifo(path), "fold1/config.json")):
        path = copy / name
        path.parent.mkdir(exist_ok=True)
        shutil.rmtree(path, ignore_errors=True)
        path.unlink(missing_ok=True)
        make(elsewhere, path)
        with pytest.raises(record.RunError, match=f"run/{name}: neither a file nor a folder.* Delete it"):
            use(copy)
        path.unlink()
    assert not list(elsewhere.iterdir())


def test_a_run_may_be_reached_through_a_link(run, tmp_path):
    os.symlink(run, tmp_path / "link")
    record.check_folder(tmp_path / "link")


def test_mistakes_too_large_to_be_read_whole_are_shown(run, tmp_path, rng, monkeypatch):
    copy, big = shutil.copytree(run, tmp_path / "run"), tmp_path / "big.jpg"
    cv2.imwrite(str(big), rng.integers(0, 256, (600, 600, 3), np.uint8))
    record.write_table(copy / "val.csv", record.read_table(copy / "val.csv").assign(image=str(big)))
    monkeypatch.setattr(photos, "MAX_PIXELS", 200_000)
    assert "The heat shows" in write_report(copy).read_text(encoding="utf-8")
    big.write_bytes(b"x")
    with pytest.raises(photos.PhotoError, match=r"big.jpg: not a photo"):
        write_report(copy)


def test_a_class_that_no_photo_judges_has_a_dash(run, tmp_path):
    copy = shutil.copytree(run, tmp_path / "run")
    answers = record.read_table(copy / "val.csv")
    record.write_table(copy / "val.csv", answers[answers.label != "Amanita"])
    page = write_report(copy).read_text(encoding="utf-8")
    row = page[page.index("<td>Amanita</td>"):].split("</tr>")[0]
    assert "–" in row
    assert "nan" not in row
    line, = (line for line in card(copy, checkpoint.load(run / "best.pt"), "me/x", "mit", timm_reads=True).splitlines()
             if line.startswith("| Amanita"))
    assert line.endswith("| 0 | – |")


def test_mistakes_that_are_gone_count_as_mistakes(run, tmp_path):
    copy = shutil.copytree(run, tmp_path / "run")
    answers, (_, probs, labels) = record.read_table(copy / "val.csv"), record.read_answers(copy / "val.csv")
    wrong = np.flatnonzero(probs.argmax(1) != labels)
    for kept, said in ((wrong[:1], f"got the most probability; {len(wrong)} mistakes in all."),
                       ([], f"{len(wrong)}, and none of these photos is where it was.")):
        gone = [i in wrong and i not in kept for i in range(len(answers))]
        record.write_table(copy / "val.csv", answers.assign(image=answers.image.mask(gone, "gone/" + answers.image)))
        assert said in write_report(copy).read_text(encoding="utf-8")


def test_no_run_and_no_photos_are_told(run, tmp_path):
    with pytest.raises(record.RunError, match=r"holds no val.csv"):
        write_report(tmp_path)
    copy = shutil.copytree(run, tmp_path / "run")
    for name in ("log.csv", "config.json", "photos.csv"):
        (copy / name).rename(tmp_path / name)
        with pytest.raises(record.RunError, match=f"holds no {name}"):
            write_report(copy)
        (tmp_path / name).rename(copy / name)
    answers = record.read_table(copy / "val.csv")
    record.write_table(copy / "val.csv", answers.assign(image="gone/" + answers.image))
    with pytest.raises(record.RunError, match="none of its .* validation photos is where it was .+ --data FOLDER"):
        write_report(copy)
    with pytest.raises(record.RunError, match="--data .*typo: no such folder"):
        write_report(copy, tmp_path / "typo")


def test_a_report_of_photos_that_have_moved_finds_them_in_the_folder_given(run, drawn, tmp_path):
    copy = shutil.copytree(run, tmp_path / "run")
    for name, column in [("val.csv", "image"), ("photos.csv", "path")]:
        table = record.read_table(copy / name)
        record.write_table(copy / name, table.assign(**{column: table[column].str.replace(str(drawn), "/of/another/machine")}))
    shown = {}
    for folder, data in [(run, None), (copy, drawn)]:
        write_report(folder, data)
        shown[folder] = (folder / "report" / "surest.png").read_bytes()
    assert shown[run] == shown[copy]
    assert "/of/another/machine" in (copy / "val.csv").read_text()        # the run itself is left as it was
    with pytest.raises(DataError, match="photos are in"):
        write_report(copy, tmp_path)


@pytest.mark.parametrize("classes", [["edible", "deadly"], [f"Pseudoclitocybe cyathiformis {i}" for i in range(30)],
                                     [f"Pseudoclitocybe cyathiformis {i}" for i in range(100)]], ids=len)
def test_nothing_of_a_picture_is_cut_off_or_overlaps(classes, rng, tmp_path, monkeypatch):
    """Text stays inside the picture and off other text of its axes."""
    seen = []
    monkeypatch.setattr(plots, "save_figure", lambda figure, path: seen.append(figure))
    counts = rng.integers(0, 100, (len(classes), len(classes)))
    plots.confusion(tmp_path / "x.png", counts, classes, share=False)
    plots.class_scores(tmp_path / "x.png", np.c_[rng.random((len(classes), 3)), counts[0]], classes)
    plots.balance(tmp_path / "x.png", pd.DataFrame({"train": counts[0], "val": counts[1]}, index=classes))
    for figure in seen:
        assert (figure.get_size_inches() < 30).all()  # or its pixels would take all memory
        figure.draw_without_rendering()
        for axes in figure.axes:
            for axis in (axes.xaxis, axes.yaxis):
                low, high = sorted(axis.get_view_interval())
                shown = [tick.label1 for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high]  # there are some beyond both ends
                boxes = [label.get_window_extent() for label in shown if label.get_text()]
                assert all(box.x0 >= 0 and box.y0 >= 0 and box.x1 <= figure.bbox.x1 and box.y1 <= figure.bbox.y1 for box in boxes)
                assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
