import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from files import WriteError
from pictures import contact_sheet, save_figure
from plots import picture


def test_a_sheet_shows_each_photo_over_its_caption(tmp_path):
    red, blue = np.full((40, 40, 3), (220, 0, 0), np.uint8), np.full((40, 40, 3), (0, 0, 220), np.uint8)
    contact_sheet(tmp_path / "sheet.png", [red, blue, red], ["one", "two", "three"], columns=2)
    sheet = np.asarray(Image.open(tmp_path / "sheet.png").convert("RGB"))
    height, width = sheet.shape[:2]
    assert sheet[height // 5, width // 4].tolist() == [220, 0, 0]
    assert sheet[height // 5, 3 * width // 4].tolist() == [0, 0, 220]
    assert sheet[7 * height // 10, width // 4].tolist() == [220, 0, 0]
    assert sheet[7 * height // 10, 3 * width // 4].tolist() == [255, 255, 255]


def test_dollars_in_a_name_are_no_formula(tmp_path):
    contact_sheet(tmp_path / "sheet.png", [np.zeros((8, 8, 3), np.uint8)], [r"a $\foo$ b"], columns=1)
    with picture(tmp_path / "figure.png", 2, 2) as figure:
        figure.subplots().set_title(r"a $\foo$ b")
    assert (tmp_path / "sheet.png").exists()
    assert (tmp_path / "figure.png").exists()


def test_a_picture_has_the_format_of_its_ending(tmp_path):
    for name, kind in {"a.png": "PNG", "a.jpg": "JPEG", "a": "PNG"}.items():
        save_figure(Figure(), tmp_path / name)
        assert Image.open(tmp_path / name).format == kind


def test_a_picture_that_cannot_be_written_is_told_and_the_one_before_stays(tmp_path, monkeypatch):
    (tmp_path / "a.png").write_text("yesterday's")

    def full(self, file, **_):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Figure, "savefig", full)
    with pytest.raises(WriteError, match=r"a\.png: cannot be written \(No space left on device\); the one written before is still there"):
        save_figure(Figure(), tmp_path / "a.png")
    assert (tmp_path / "a.png").read_text() == "yesterday's"
    assert [file.name for file in tmp_path.iterdir()] == ["a.png"]
