import re
import shutil

import numpy as np
import pandas as pd
import pytest

import checkpoint
import plots
import record
from tools.report import write_report


def test_a_report_tells_the_scores_of_the_log_and_needs_no_other_file(run):
    text = write_report(run).read_text(encoding="utf-8")
    answers = pd.read_csv(run / "val.csv")
    right = answers.drop(columns=["image", "label"]).idxmax(axis=1) == answers.label
    assert f"<b>{right.mean():.1%}</b>accuracy" in text
    assert set(re.findall(r'(?:src|href)="([^,"]*)', text)) == {"data:image/png;base64"}
    assert f"Kept as best.pt: {checkpoint.load(run / 'best.pt')['kept']}." in text
    pictures = {"curves", "confusion", "confusion_share", "classes", "calibration", "worst", "surest", "balance"}
    assert {path.stem for path in (run / "report").glob("*.png")} == pictures
    assert text.count("<img") == len(pictures) + 1  # and batch.png
    for knob in ("image_size", "torch", "rho"):
        assert f"<td>{knob}</td>" in text


def test_names_cannot_break_the_page(run, drawn, tmp_path):
    copy = shutil.copytree(run, tmp_path / "<b>run")
    assert "<b>run" not in write_report(copy).read_text(encoding="utf-8")


def test_no_run_and_no_photos_are_told(run, tmp_path):
    with pytest.raises(record.RunError, match=r"holds no val.csv"):
        write_report(tmp_path)
    copy = shutil.copytree(run, tmp_path / "run")
    answers = record.read_table(copy / "val.csv")
    record.write_table(copy / "val.csv", answers.assign(image="gone/" + answers.image))
    with pytest.raises(record.RunError, match="none of its .* validation photos is where it was"):
        write_report(copy)


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
