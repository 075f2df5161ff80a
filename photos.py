"""Photos on the disk: what counts as one, a CSV that lists them, and reading one.

Imports little, so that predict.py answers from an exported model in less time than torch takes to import.
"""

from __future__ import annotations

import csv
import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np

from headers import PhotoError, examine, quarter_turns
from text import class_name, shown

EXTENSIONS = {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff", ".avif",
              ".gif", ".heic", ".heif"}  # the last row cannot be read, but is named: a phone's photos should not vanish without a word
MAX_PIXELS = 100_000_000  # decoded; a 3-channel photo of this size takes 300 MB, the largest phones make 200 MP JPEGs
MAX_BYTES = 500_000_000  # of a file; the largest scans are smaller
SIDES = ("train", "val", "test")
THREE_WAYS = ("Three ways to get some: put one folder of photos per class into it; "
              "`python data/download.py` (nine genera, from Kaggle); `python data/draw.py` (drawn, no network).")

cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)  # what a broken photo lacks, PhotoError says with its name


class DataError(ValueError):
    """The photos cannot be used; the message names the file and the remedy."""


def is_photo(path: Path) -> bool:
    """By its name alone. Names that begin with a dot are the file system's own (macOS writes ._photo.jpg)."""
    return path.suffix.lower() in EXTENSIONS and not path.name.startswith(".")


def photos_below(folder: Path) -> list[Path]:
    """At any depth, links followed (but none twice), in order; of hidden folders none."""
    found, entered = [], set()
    for place, inner, names in os.walk(folder, followlinks=True):
        if os.path.realpath(place) in entered:  # a link to what lies above would be followed for ever
            inner.clear()
            continue
        entered.add(os.path.realpath(place))
        inner[:] = sorted(name for name in inner if not name.startswith("."))
        found += [Path(place, name) for name in names if is_photo(Path(name)) and Path(place, name).is_file()]
    return sorted(found)


def read_csv(file: Path, needed: Sequence[str] = ("image", "label")) -> dict[str, list[str]]:
    """A CSV image[,label][,group][,side], paths relative to it, as the columns path, label, group, side. Raises DataError."""
    try:
        if not stat.S_ISREG(os.stat(file).st_mode):  # as in read_photo
            raise DataError(f"{file}: cannot be opened (not a file).")
        with open(file, encoding="utf-8-sig", newline="") as text:
            return _columns(csv.reader(text), file, needed)
    except OSError as error:
        raise DataError(f"{file}: cannot be opened ({error.strerror}).") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: not a CSV in UTF-8. Save a table as CSV UTF-8; of a photo, or of an archive once it is unpacked, give "
                        "the folder.") from error
    except csv.Error as error:
        raise DataError(f"{file}: not a CSV ({error}). Its first line must be image,label or image,label,group.") from error


def _columns(rows: Iterator[list[str]], file: Path, needed: Sequence[str]) -> dict[str, list[str]]:
    header = next(rows, [])
    for column in needed:
        if column not in header:
            commas = " Put commas between the cells, where there are others now." if len(header) == 1 and header[0].count(column) else ""
            raise DataError(f"{file}: no column {column} (found: {shown(', '.join(header)) or 'none'}). "
                            f"Its first line must be image,label or image,label,group.{commas}")
        if header.count(column) > 1:
            raise DataError(f"{file}: column {column} twice: which one is meant? Delete the other.")
    folder = "" if file.parent == Path() else str(file.parent)
    missing = len(header)  # past the last cell of a row
    image, label, group, side = (header.index(name) if name in header else missing for name in ("image", "label", "group", "side"))
    if "prob" in header and "label" not in needed:  # predict.py's own answers: a guess is no truth, and paths are as it was given them
        label, folder = missing, ""
    table = {"path": [], "label": [], "group": [], "side": []}
    for number, row in enumerate(rows, 2):
        if not row:
            continue  # an empty line
        if len(row) > len(header):
            raise DataError(f"{file}: row {number}: more cells than columns. Put a name that holds a comma into quotes.")
        row += [""] * (missing + 1 - len(row))
        for column in needed:
            if not row[header.index(column)].strip():
                raise DataError(f"{file}: row {number}: {column} is empty. Fill it in or delete the row.")
        path = os.path.join(folder, row[image])  # Path's own joining takes seconds for a million
        if "label" in needed and not os.path.isfile(path):  # who only asks gets a row that says so
            raise DataError(f"{file}: row {number}: no such photo {shown(row[image])} (looked in {file.parent}/). "
                            "Paths are relative to the CSV.")
        if "label" in needed and row[side].strip() not in ("", *SIDES):  # who only asks may call a column so
            raise DataError(f"{file}: row {number}: side {shown(row[side][:50])}. Use train, val or test, or leave it empty for train.")
        table["path"].append(path)
        table["label"].append(class_name(row[label]))
        table["group"].append(row[group].strip())
        table["side"].append(row[side].strip())
    if not table["path"]:
        raise DataError(f"{file}: no rows. {THREE_WAYS}")
    return table


def read_named(path: str | os.PathLike, min_side: int = 0) -> np.ndarray:
    """As read_photo, for who does not go on without the photo: the PhotoError names it."""
    try:
        return read_photo(path, min_side)
    except PhotoError as error:
        raise PhotoError(f"{shown(path)}: {error}") from error


def read_photo(path: str | os.PathLike, min_side: int = 0) -> np.ndarray:
    """A photo as uint8 RGB (H, W, 3), turned upright as its EXIF tag, or an AVIF's own, says.

    min_side: the pixels that the short side must keep; a JPEG much larger is decoded at 1/2, 1/4 or 1/8, which is
    faster and loses nothing that a later shrinking would keep. 0 = full size.
    Greyscale, CMYK, palette, alpha (dropped) and 16 bit all come out as 3 x 8 bit; of an animation, the first frame.
    Raises PhotoError: not found, empty, cut off, too large, or not a photo.
    """
    if "\0" in str(path):
        raise PhotoError("cannot be opened (its name holds a zero byte)")
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):  # a pipe would be waited for, a device read without end
            raise PhotoError("cannot be opened (not a file)")
        if status.st_size > MAX_BYTES:
            raise PhotoError(f"{status.st_size // 10**6} MB are more than {MAX_BYTES // 10**6}: make it smaller")
        data = Path(path).read_bytes()  # not cv2.imread: it fails on some paths, and shows cut-off JPEGs as whole
    except OSError as error:
        raise PhotoError(f"cannot be opened ({error.strerror})") from error
    if not data:
        raise PhotoError("the file is empty")
    width, height, scans, data = examine(data)
    shrink = 1
    while data.startswith(b"\xff\xd8") and min_side and shrink < 8 and min(width, height) // (2 * shrink) >= min_side:
        shrink *= 2
    unpacked = width * height if scans else width * height / shrink**2  # a JPEG of several scans is unpacked whole, then shrunk
    gone_over = width * height * max(scans, 5)
    if unpacked > MAX_PIXELS or gone_over > 20 * MAX_PIXELS:
        raise PhotoError(f"{width} x {height} pixels are more than {MAX_PIXELS // 10**6} million: make it smaller")
    flags = {1: cv2.IMREAD_COLOR, 2: cv2.IMREAD_REDUCED_COLOR_2, 4: cv2.IMREAD_REDUCED_COLOR_4, 8: cv2.IMREAD_REDUCED_COLOR_8}
    try:
        photo = cv2.imdecode(np.frombuffer(data, np.uint8), flags[shrink])
    except cv2.error as error:
        raise PhotoError("its data is broken") from error
    if photo is None:
        raise PhotoError("it is cut off or broken")
    return np.ascontiguousarray(np.rot90(cv2.cvtColor(photo, cv2.COLOR_BGR2RGB), quarter_turns(data)))
