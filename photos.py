"""Reading a photo, and looking over many: which cannot be read, which are near-duplicates of each other."""

from __future__ import annotations

import io
import itertools
import os
import stat
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import imagehash
import numpy as np
from PIL import Image

EXTENSIONS = {".jpg", ".jpeg", ".jpe", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif"}
MAX_PIXELS = 150_000_000      # decoded; a 3-channel photo of this size takes 450 MB, the largest phones make 200 MP JPEGs
MAX_BYTES = 500_000_000       # of a file; the largest scans are smaller
DUPLICATE_BITS = 8            # of 64; looked at on web photos: up to 6 all pairs were one photo saved twice, at 8 nearly all, at 10 half

Image.MAX_IMAGE_PIXELS = None  # a header that promises a huge picture is our MAX_PIXELS' business: decoding happens after the check
warnings.filterwarnings("ignore", module=r"PIL\.")  # what a broken photo lacks, PhotoError says with its name
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)  # likewise


class PhotoError(ValueError):
    """A photo cannot be read; the message says why, without the path."""


def is_photo(path: Path) -> bool:
    """By its name alone. Names that begin with a dot are the file system's own (macOS writes ._photo.jpg)."""
    return path.suffix.lower() in EXTENSIONS and not path.name.startswith(".")


def shown(path: str | os.PathLike) -> str:
    """A path for the screen: one line, whatever characters (newlines, escape codes, broken UTF-8) its name holds."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in str(path))


def read_photo(path: str | os.PathLike, min_side: int = 0) -> np.ndarray:
    """A photo as uint8 RGB (H, W, 3), turned upright as its EXIF tag says.

    min_side: the pixels that the short side must keep; a JPEG much larger is decoded at 1/2, 1/4 or 1/8, which is
    faster and loses nothing that a later shrinking would keep. 0 = full size.
    Greyscale, CMYK, palette, alpha (dropped) and 16 bit all come out as 3 x 8 bit; of an animation, the first frame.
    Raises PhotoError: not found, empty, cut off, too large, or not a photo.
    """
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
    try:
        with Image.open(io.BytesIO(data)) as header:  # reads only the header
            kind, (width, height), progressive = header.format, header.size, "progressive" in header.info
    except Exception as error:  # PIL raises whatever its plugins do on broken headers
        raise PhotoError("not a photo, or of a kind that is not supported") from error
    shrink = 1
    while kind == "JPEG" and min_side and shrink < 8 and min(width, height) // (2 * shrink) >= min_side:
        shrink *= 2
    if width * height / (1 if progressive else shrink**2) > MAX_PIXELS:  # a progressive JPEG is unpacked whole, then shrunk
        raise PhotoError(f"{width} x {height} pixels are more than {MAX_PIXELS // 10**6} million: make it smaller")
    flags = {1: cv2.IMREAD_COLOR, 2: cv2.IMREAD_REDUCED_COLOR_2, 4: cv2.IMREAD_REDUCED_COLOR_4, 8: cv2.IMREAD_REDUCED_COLOR_8}
    try:
        photo = cv2.imdecode(np.frombuffer(data, np.uint8), flags[shrink])
    except cv2.error as error:
        raise PhotoError("its data is broken") from error
    if photo is None:
        raise PhotoError("it is cut off or broken")
    return cv2.cvtColor(photo, cv2.COLOR_BGR2RGB)


def perceptual_hash(photo: np.ndarray) -> int:
    """64 bits that change little when a photo is resized or compressed again (the DCT hash of the imagehash library)."""
    return int(str(imagehash.phash(Image.fromarray(photo))), 16)


def look_over(paths: Sequence[str], progress: Callable[[Iterator], Iterator] = iter) -> tuple[np.ndarray, dict[int, str]]:
    """Read each photo once, small. Returns hashes uint64 (N,), and for those that cannot be read {index: why}."""
    def one(path: str) -> int | str:
        try:
            return perceptual_hash(read_photo(path, min_side=64))
        except PhotoError as error:
            return str(error)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found = list(progress(pool.map(one, paths)))
    errors = {i: why for i, why in enumerate(found) if isinstance(why, str)}
    return np.array([0 if i in errors else h for i, h in enumerate(found)], np.uint64), errors


def near_duplicates(hashes: np.ndarray, bits: int = DUPLICATE_BITS) -> Iterator[tuple[int, int]]:
    """Pairs (i, j) of indices whose hashes uint64 (N,) differ in at most `bits` bits; enough pairs to connect them all.

    Of bits + 1 bands of a hash, one at least must be equal then, so only photos that share a band are compared: the
    time grows with the photos, not with their pairs.
    """
    unique, first, inverse = np.unique(hashes, return_index=True, return_inverse=True)
    yield from ((int(first[inverse[i]]), i) for i in range(len(hashes)) if first[inverse[i]] != i)
    edges = np.linspace(0, 64, bits + 2).astype(np.uint64)
    for low, high in itertools.pairwise(edges):
        band = (unique >> low) & np.uint64((1 << int(high - low)) - 1)
        order = np.argsort(band, kind="stable")
        for members in np.split(order, np.flatnonzero(np.diff(band[order])) + 1):
            if len(members) > 1:
                distance = np.bitwise_count(unique[members, None] ^ unique[members])
                yield from ((int(first[members[a]]), int(first[members[b]])) for a, b in np.argwhere(distance <= bits) if a < b)
