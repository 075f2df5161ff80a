import runpy
import subprocess
import sys
from fnmatch import fnmatch

import kagglehub
import pytest
from conftest import ROOT

from data.download import GENERA, DownloadError, download
from data.draw import DrawError, draw_dataset
from photos import read_photo
from trust import GENERA as NOTES


def test_a_photo_depends_on_seed_genus_and_number_alone(drawn, tmp_path):
    fewer = draw_dataset(tmp_path / "fewer", per_class=1, seed=0)
    for photo in fewer.rglob("*.jpg"):
        assert photo.read_bytes() == (drawn / photo.relative_to(fewer)).read_bytes()
    other = draw_dataset(tmp_path / "other", per_class=1, seed=1)
    assert all(photo.read_bytes() != (drawn / photo.relative_to(other)).read_bytes() for photo in other.rglob("*.jpg"))


def test_nine_genera_of_photos_that_can_be_read(drawn):
    assert {folder.name for folder in drawn.iterdir() if folder.is_dir()} == set(GENERA)
    assert len(list(drawn.rglob("*.jpg"))) == 108
    height, width, _ = read_photo(drawn / "Amanita" / "amanita_0001.jpg").shape
    assert 300 <= height <= 400
    assert 300 <= width <= 400


def test_drawing_again_does_nothing_and_over_other_photos_is_refused(tmp_path):
    out = draw_dataset(tmp_path / "d", per_class=1, seed=0)
    photo = next(out.rglob("*.jpg"))
    before = photo.stat().st_mtime_ns
    draw_dataset(out, per_class=1, seed=0)
    assert photo.stat().st_mtime_ns == before
    with pytest.raises(DrawError, match="d"):
        draw_dataset(out, per_class=2, seed=0)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "photo.jpg").write_bytes(b"precious")
    done = subprocess.run([sys.executable, ROOT / "data" / "draw.py", "--out", tmp_path / "mine"], capture_output=True, text=True)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert (tmp_path / "mine" / "photo.jpg").read_bytes() == b"precious"


def test_download_copies_the_nine_class_folders_from_wherever_they_are(tmp_path, monkeypatch):
    for genus in GENERA:
        (tmp_path / "cache" / "Mushrooms" / "deeper" / genus).mkdir(parents=True)
        (tmp_path / "cache" / "Mushrooms" / "deeper" / genus / "1.jpg").write_bytes(b"x")
    monkeypatch.setattr(kagglehub, "dataset_download", lambda handle: str(tmp_path / "cache"))
    out = download(tmp_path / "out")
    assert sorted(str(photo.relative_to(out)) for photo in out.rglob("*.jpg")) == sorted(f"{genus}/1.jpg" for genus in GENERA)
    with pytest.raises(DownloadError, match="exists already"):
        download(tmp_path / "out")


@pytest.mark.parametrize(("script", "work"), [("draw", "data.mushroom.draw_mushroom"), ("download", "kagglehub.dataset_download")])
def test_ctrl_c_ends_without_a_traceback(tmp_path, monkeypatch, script, work):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(work, interrupted)
    monkeypatch.setattr(sys, "argv", [script, "--out", str(tmp_path / "out")])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / "data" / f"{script}.py"), run_name="__main__")
    assert ended.value.code == 130


def test_no_network_no_kagglehub_and_another_set_are_told_apart(tmp_path, monkeypatch):
    def offline(handle):
        raise ConnectionError("no route")

    monkeypatch.setattr(kagglehub, "dataset_download", offline)
    with pytest.raises(DownloadError, match=r"ConnectionError.*kaggle\.json.*draw\.py"):
        download(tmp_path / "out")
    (tmp_path / "else").mkdir()
    monkeypatch.setattr(kagglehub, "dataset_download", lambda handle: str(tmp_path / "else"))
    with pytest.raises(DownloadError, match="no folder in it holds the classes"):
        download(tmp_path / "out")
    monkeypatch.setitem(sys.modules, "kagglehub", None)
    with pytest.raises(DownloadError, match="pip install kagglehub"):
        download(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_docker_image_has_all_that_the_program_reads():
    rules = (ROOT / ".dockerignore").read_text().splitlines()
    for file in [NOTES, *ROOT.glob("*.py"), *(ROOT / "data").glob("*.py"), *(ROOT / "tools").glob("*.py")]:
        said = [not rule.startswith("!") for rule in rules if fnmatch(file.relative_to(ROOT).as_posix(), rule.removeprefix("!"))]
        assert not any(said[-1:]), f"{file} is left out"  # the last rule that matches decides
