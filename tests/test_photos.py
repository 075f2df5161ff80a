import contextlib
import io
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import ROOT
from PIL import Image

from photos import MAX_PIXELS, DataError, PhotoError, is_photo, read_photo
from text import as_program, spell_out


@pytest.fixture
def scene() -> Image.Image:
    """Red left, green right, blue at the bottom; 160 x 120."""
    array = np.zeros((120, 160, 3), np.uint8)
    array[:, :80, 0], array[:, 80:, 1], array[90:] = 200, 200, (0, 0, 200)
    return Image.fromarray(array)


def assert_is_scene(photo: np.ndarray) -> None:
    assert photo.dtype == np.uint8
    assert photo.shape == (120, 160, 3)
    for (y, x), colour in {(40, 20): (200, 0, 0), (40, 140): (0, 200, 0), (110, 80): (0, 0, 200)}.items():
        assert np.abs(photo[y, x].astype(int) - colour).max() < 12


def test_names_come_in_as_the_disk_has_them_and_go_out_as_the_pipe_can_say_them():
    code = ("import sys; from text import spell_out; spell_out(); "
            "print(sys.stdin.readline().encode(errors='surrogateescape'), chr(0x8611))")
    done = subprocess.run([sys.executable, "-c", code], input=b"\xff.jpg", capture_output=True, cwd=ROOT, check=False,
                          env=os.environ | {"PYTHONIOENCODING": "ascii:strict"})
    assert done.stdout.decode().strip() == r"b'\xff.jpg' \u8611", done.stderr


def test_a_tool_s_error_is_one_sentence(capsys):
    def refuse() -> None:
        raise DataError("no photo\x1b")

    with pytest.raises(SystemExit) as stopped:
        as_program(refuse)
    assert stopped.value.code == "no photo\\x1b"

    def forbidden():
        raise PermissionError(13, "Permission denied", "private/1.jpg")  # what pathlib raises when it looks below a folder of another's

    with pytest.raises(SystemExit) as stopped:
        as_program(forbidden)
    assert stopped.value.code == "private/1.jpg: may not be opened by you (Permission denied). Ask its owner, or give another."


def test_a_notebook_s_screen_is_left_as_it_is(monkeypatch):
    monkeypatch.setattr(sys, "stdout", io.StringIO())                       # as little a file as a notebook's
    spell_out()


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp", "a.bmp", "a.tif", "a.avif", "грибы 蘑菇 🍄.jpg"])
def test_kinds_of_files_and_names(scene, tmp_path, name):
    scene.save(tmp_path / name, **({"quality": 95} if Path(name).suffix in {".jpg", ".webp", ".avif"} else {}))
    assert_is_scene(read_photo(tmp_path / name))


@pytest.mark.parametrize("orientation", [3, 6, 8])
@pytest.mark.parametrize("kind", ["png", "webp", "tif", "avif"])
def test_photos_of_other_kinds_are_turned_upright_too(scene, tmp_path, kind, orientation):
    exif = Image.Exif()
    exif[274] = orientation
    turned = scene.transpose({3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}[orientation])
    turned.save(tmp_path / f"a.{kind}", exif=exif, **({"quality": 95} if kind in ("webp", "avif") else {}))
    photo = read_photo(tmp_path / f"a.{kind}")
    assert_is_scene(photo)
    assert photo.flags.c_contiguous


@pytest.mark.parametrize(("mode", "suffix"), [("CMYK", "jpg"), ("RGBA", "png"), ("P", "png")])
def test_colour_modes(scene, tmp_path, mode, suffix):
    scene.convert(mode).save(tmp_path / f"a.{suffix}")
    photo = read_photo(tmp_path / f"a.{suffix}")
    assert photo.shape == (120, 160, 3)
    assert photo[40, 20].argmax() == 0
    assert photo[40, 140].argmax() == 1


@pytest.mark.parametrize("mode", ["L", "1", "LA", "I;16"])
def test_grey_modes(tmp_path, mode):
    grey = Image.linear_gradient("L")
    (Image.fromarray(np.asarray(grey).astype(np.uint16) * 257) if mode == "I;16" else grey.convert(mode)).save(tmp_path / "a.png")
    photo = read_photo(tmp_path / "a.png")
    assert photo.shape == (256, 256, 3)
    assert photo[:20].mean() < 30
    assert photo[-20:].mean() > 220


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("min_side", [0, 60])
def test_exif_orientation_is_undone_at_any_scale(scene, tmp_path, orientation, min_side):
    undo = {2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
            5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE, 8: Image.Transpose.ROTATE_270}
    exif = scene.getexif()
    exif[0x0112] = orientation
    stored = scene.transpose(undo[orientation]) if orientation in undo else scene
    stored.save(tmp_path / "a.jpg", exif=exif, quality=95)
    photo = read_photo(tmp_path / "a.jpg", min_side)
    assert photo.shape[:2] == ((60, 80) if min_side else (120, 160))
    assert_is_scene(cv2.resize(photo, (160, 120)))


def test_a_large_jpeg_is_decoded_small_but_not_smaller_than_needed(scene, tmp_path):
    scene.resize((1600, 1200)).save(tmp_path / "a.jpg")
    assert [read_photo(tmp_path / "a.jpg", side).shape[0] for side in (0, 601, 600, 300, 150, 10)] == [1200, 1200, 600, 300, 150, 150]


def broken_files(folder: Path, scene: Image.Image) -> dict[str, str]:
    """File name: a word of the reason."""
    whole = io.BytesIO()
    scene.save(whole, "JPEG")
    files = {"empty.jpg": b"", "text.jpg": b"hello", "page.png": b"<html></html>"}
    files |= {f"cut{tenth}.jpg": whole.getvalue()[:len(whole.getvalue()) * tenth // 10] for tenth in range(1, 10)}
    for name, data in files.items():
        (folder / name).write_bytes(data)
    (folder / "folder.jpg").mkdir()
    os.symlink("nowhere", folder / "link.jpg")
    reasons = dict.fromkeys(files, "cut off|not a photo") | {"empty.jpg": "empty", "text.jpg": "not a photo", "page.png": "not a photo"}
    return reasons | {"folder.jpg": "cannot be opened", "link.jpg": "cannot be opened"}


def test_broken_files_are_refused_with_a_reason(scene, tmp_path):
    for name, reason in broken_files(tmp_path, scene).items():
        with pytest.raises(PhotoError, match=reason):
            read_photo(tmp_path / name)


def test_a_picture_too_large_is_refused_before_it_is_decoded(tmp_path):
    side = int(MAX_PIXELS**0.5) + 1
    Image.new("1", (side, side)).save(tmp_path / "bomb.png")
    assert (tmp_path / "bomb.png").stat().st_size < 100_000
    with pytest.raises(PhotoError, match=f"{side} x {side} pixels are more than"):
        read_photo(tmp_path / "bomb.png")


@pytest.mark.parametrize(("size", "scans", "refused"), [
    ((19_000, 20_000), 0, False), ((21_000, 20_000), 0, True), ((9_000, 10_000), 22, False), ((9_000, 10_000), 23, True)])
def test_a_jpeg_that_takes_too_long_even_when_it_is_decoded_small_is_refused(tmp_path, monkeypatch, size, scans, refused):
    (tmp_path / "a.jpg").write_bytes(b"\xff\xd8")
    monkeypatch.setattr("photos.examine", lambda data: (*size, scans, data))
    monkeypatch.setattr(cv2, "imdecode", lambda *_: np.zeros((8, 8, 3), np.uint8))
    with pytest.raises(PhotoError, match="million") if refused else contextlib.nullcontext():
        read_photo(tmp_path / "a.jpg", min_side=1_000)


def test_a_zero_byte_in_a_name_is_an_error_of_that_photo():
    with pytest.raises(PhotoError, match="zero byte"):
        read_photo("a\0b.jpg")


def test_a_png_whose_chunk_claims_gigabytes_is_refused_before_memory_is_fetched_for_it(scene, tmp_path, monkeypatch):
    scene.save(tmp_path / "a.png")
    data = (tmp_path / "a.png").read_bytes()
    (tmp_path / "junk.png").write_bytes(data + b"junk behind the end")
    assert_is_scene(read_photo(tmp_path / "junk.png"))
    at = data.index(b"IDAT") - 4
    monkeypatch.setattr(cv2, "imdecode", lambda *_: pytest.fail("decoded"))
    for broken in (data[:at] + b"\xcc\x16\x15\x47" + data[at + 4:], data[:-1]):
        (tmp_path / "a.png").write_bytes(broken)
        with pytest.raises(PhotoError, match="cut off"):
            read_photo(tmp_path / "a.png")


@pytest.mark.parametrize("big", [False, True])
def test_a_tiff_whose_tags_share_their_values_is_refused_before_it_is_decoded(tmp_path, monkeypatch, big):
    scene = Image.linear_gradient("L")
    scene.save(tmp_path / "a.tif", big_tiff=big, tiffinfo={270: "an honest tag " * 5_000})
    assert read_photo(tmp_path / "a.tif").shape == (256, 256, 3)
    data = (tmp_path / "a.tif").read_bytes()
    count = (70_001).to_bytes(8 if big else 4, "little")
    assert data.count(count) == 1
    (tmp_path / "a.tif").write_bytes(data.replace(count, (150_000).to_bytes(len(count), "little")))
    monkeypatch.setattr(cv2, "imdecode", lambda *_: pytest.fail("decoded"))
    with pytest.raises(PhotoError, match="claim more"):
        read_photo(tmp_path / "a.tif")


@pytest.mark.parametrize(("name", "expected"), [("a.jpg", True), ("A.JPEG", True), ("a.txt", False), ("._a.jpg", False), ("jpg", False)])
def test_what_counts_as_a_photo(name, expected):
    assert is_photo(Path(name)) is expected
