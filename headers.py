"""What a photo's file says of itself, before anything is decoded: its size, and what would take a decoder too long or too much memory.

Decoders believe a file. Each rule here is one by which a file of some kilobytes took gigabytes or minutes: docs/RELIABILITY.md.
"""

from __future__ import annotations

import io
import re

import imagesize
import numpy as np

MARKER = re.compile(rb"\xff+([^\0\x01\xd0-\xd7\xff])", re.DOTALL)  # of a JPEG's segment, as libjpeg finds it
FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}         # markers of segments that say the size
SCAN, END = 0xDA, 0xD9
MAX_SEGMENTS, MAX_SCANS = 10_000, 100                              # honest files have some twenty, and ten
PICTURE = {b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"}            # the chunks of a PNG that make it
TURN = re.compile(rb"\0\0\0\x09irot([\0-\3])")                     # of an AVIF: its box of nine bytes, the last one quarter turns
MAX_EXIF = 65_536                                                  # bytes, as many as a JPEG can have
TILE_WIDTH, TILE_HEIGHT = 322, 323                                 # tags of a TIFF


class PhotoError(ValueError):
    """A photo cannot be read; the message says why, without the path."""


def examine(data: bytes) -> tuple[int, int, int, bytes]:
    """Width, height, scans (0 = it can be shrunk while it is unpacked), and what of it is to be decoded. Raises PhotoError.

    Known are JPEG, PNG, WEBP, TIFF, BMP and AVIF, whatever the file's name says. Not by Pillow, which fetches all metadata with the
    header: a file of 1 MB took it 15 GB.
    """
    try:
        if data.startswith(b"\xff\xd8"):
            return *_jpeg(data), data
        if data.startswith(b"\x89PNG\r\n\x1a\n"):
            return *_size(data), 1, _picture_of_png(data)
        if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
            _check_webp(data)
        elif data.startswith((b"II*\0", b"II+\0", b"MM\0*")):
            _check_tiff(data)
        elif data[4:8] == b"ftyp" and b"avif" in data[8:64]:
            # Its EXIF is not needed, as its turning is written elsewhere, and takes OpenCV time that grows with its square.
            data = re.sub(rb"(infe.{8}|infe.{10})Exif", rb"\1none", data, flags=re.DOTALL)
            return *_size(TURN.sub(b"\0\0\0\x09free\0", data)), 1, data  # imagesize stumbles over it
        elif not data.startswith(b"BM"):
            raise PhotoError("not a photo, or of a kind that is not supported")
        return *_size(data), 1, data
    except (ValueError, IndexError, OverflowError, ArithmeticError) as error:
        if isinstance(error, PhotoError):
            raise
        raise PhotoError("its header is broken") from error


def quarter_turns(data: bytes) -> int:
    """How often a photo is to be turned against the clock once it is decoded: an AVIF says it in a box of its own, which OpenCV does not
    heed, as it heeds the EXIF of other kinds."""
    found = TURN.search(data[:2**20]) if data[4:8] == b"ftyp" else None
    return found[1][0] if found else 0


def _size(data: bytes) -> tuple[int, int]:
    try:
        width, height = imagesize.get(io.BytesIO(data if data[:2] in (b"II", b"MM") else data[:2**20]), exif_rotation=False)
    except Exception as error:  # whatever it meets in a broken header
        raise PhotoError("its header is broken") from error
    if min(width, height) < 1:
        raise PhotoError(f"its header says {width} x {height} pixels")
    return width, height


def _jpeg(data: bytes) -> tuple[int, int, int]:
    """Width, height, scans: 0 where the first holds the whole picture, line by line."""
    at, size, scans, by_line = 2, None, 0, False
    for _ in range(MAX_SEGMENTS):
        found = MARKER.search(data, at)
        if not found or found[1][0] == END:
            break
        marker, at = found[1][0], found.end()
        if marker in FRAMES:
            if size:
                raise PhotoError("its header says its size twice")
            size = int.from_bytes(data[at + 5:at + 7]), int.from_bytes(data[at + 3:at + 5])
            colours, by_line = data[at + 7], marker % 4 != 2
        elif marker == SCAN:
            if not size:
                break
            if by_line and not scans and data[at + 2] == colours:
                return *size, 0
            scans += 1
        at += int.from_bytes(data[at:at + 2])
    else:
        raise PhotoError(f"more than {MAX_SEGMENTS} segments")
    if not size or not scans or min(size) < 1:
        raise PhotoError("not a photo, or it is cut off")
    if scans > MAX_SCANS:
        raise PhotoError(f"{scans} scans are more than {MAX_SCANS}: save it anew")
    return *size, scans


def _picture_of_png(data: bytes) -> bytes:
    """The chunks that make the picture. The others may each unpack to 8 MB, and an animation takes three pictures' memory.

    A chunk that says that it is longer than what is left is refused: OpenCV would fetch memory for all of it, up to 4 GB.
    """
    at, parts = 8, [data[:8]]  # behind the signature; a chunk is its length in 4 bytes, its name in 4, the data, a checksum in 4
    while True:
        end, name = at + 12 + int.from_bytes(data[at:at + 4]), data[at + 4:at + 8]
        if end > len(data) or not name:
            raise PhotoError("it is cut off or broken")
        if name in PICTURE or (name == b"eXIf" and end - at < MAX_EXIF):
            parts.append(data[at:end])
        if name == b"IEND":
            return b"".join(parts)
        at = end


def _check_webp(data: bytes) -> None:
    at = 12
    while at < len(data):
        length = int.from_bytes(data[at + 4:at + 8], "little")
        if data[at:at + 4] == b"EXIF" and length > MAX_EXIF:
            raise PhotoError("its EXIF is too long: save it without")
        at += 8 + length + length % 2


def _check_tiff(data: bytes) -> None:
    """Refuses tags that share their values, of each of which libtiff keeps a copy, or that come twice, of which imagesize takes another
    than libtiff; and tiles, which may be larger than the picture."""
    order, (word, count) = "<" if data.startswith(b"II") else ">", ("u8", "u8") if data[2:3] == b"+" else ("u4", "u2")
    at = int(np.frombuffer(data, order + word, 1, 8 if word == "u8" else 4)[0])
    number = int(np.frombuffer(data, order + count, 1, at)[0])
    kinds = np.dtype([("name", order + "u2"), ("kind", order + "u2"), ("values", order + word), ("where", order + word)])
    tags = np.frombuffer(data, kinds, number, at + int(count[1]))
    if tags["values"].sum(dtype=float) > len(data) or len(np.unique(tags["name"])) < number:
        raise PhotoError("its tags claim more than it holds")
    if np.isin((TILE_WIDTH, TILE_HEIGHT), tags["name"]).any():
        raise PhotoError("a TIFF in tiles, as maps and microscopes write it: save it as PNG")
