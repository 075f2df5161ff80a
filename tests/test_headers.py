"""Files that say one thing and do another; the sizes of honest ones."""

import re
import struct
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image

from headers import MAX_SCANS, MAX_SEGMENTS, PhotoError, examine
from tools.bad_input import encoded, scene


def segment(marker: int, body: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", len(body) + 2) + body


def frame(width: int, height: int, marker: int = 0xC0, colours: int = 3) -> bytes:
    return segment(marker, struct.pack(">BHHB", 8, height, width, colours) + bytes(3 * colours))


def scan(colours: int = 3) -> bytes:
    return segment(0xDA, bytes([colours]) + bytes(2 * colours + 3)) + b"data \xff\x00 of a scan \xff\xd0 and more of it"


def test_honest_files_say_their_size():
    for kind in ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "AVIF"):
        data = encoded(scene(91, 67), kind)
        assert examine(data) == (91, 67, 0 if kind == "JPEG" else 1, data)
    assert examine(encoded(scene(91, 67), "JPEG", progressive=True))[:3] == (91, 67, 10)
    assert examine(encoded(scene(91, 67, "L"), "JPEG"))[:3] == (91, 67, 0)


def test_a_jpeg_s_size_is_the_one_that_its_decoder_finds():
    large, small = frame(30_000, 20_000) + scan(), frame(64, 64) + scan()
    assert examine(b"\xff\xd8" + b"\xff\x00" + struct.pack(">H", len(large) + 2) + large + small)[:2] == (30_000, 20_000)
    assert examine(b"\xff\xd8" + segment(0xE1, large) + small)[:2] == (64, 64)  # a thumbnail is none
    with pytest.raises(PhotoError, match="twice"):
        examine(b"\xff\xd8" + frame(64, 64) + large)


def test_a_jpeg_s_scans_are_counted():
    assert examine(b"\xff\xd8" + frame(64, 64) + 3 * scan(colours=1) + b"\xff\xd9" + scan())[2] == 3
    assert examine(b"\xff\xd8" + frame(64, 64, 0xC2) + MAX_SCANS * scan())[2] == MAX_SCANS
    with pytest.raises(PhotoError, match="scans"):
        examine(b"\xff\xd8" + frame(64, 64, 0xC2) + (MAX_SCANS + 1) * scan())
    with pytest.raises(PhotoError, match="segments"):
        examine(b"\xff\xd8" + MAX_SEGMENTS * segment(0xFE, b"") + frame(64, 64) + scan())


def test_a_png_is_left_with_its_picture():
    exif = scene().getexif()
    exif[0x0112] = 6
    data = encoded(scene(), "PNG", exif=exif)
    packed = zlib.compress(bytes(1000))
    text = struct.pack(">I", len(packed) + 2) + b"zTXt" + b"a\0" + packed + struct.pack(">I", zlib.crc32(b"zTXta\0" + packed))
    animated = encoded(scene(), "PNG", save_all=True, append_images=[scene(161, 120).resize((160, 120))], exif=exif)
    for odd in (data[:33] + text + data[33:], animated):
        picture = examine(odd)[3]
        assert re.findall(b"zTXt|acTL|fcTL|fdAT", odd)
        assert not re.findall(b"zTXt|acTL|fcTL|fdAT", picture)
        np.testing.assert_array_equal(*(cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR) for png in (picture, data)))


@pytest.mark.parametrize("length", [60_000, 70_000])
def test_exif_that_takes_a_decoder_minutes_is_refused_or_left_out(length):
    exif = b"Exif\0\0II*\0\x08\0\0\0" + bytes(length)
    for kind in ("WEBP", "AVIF", "PNG"):
        data = encoded(scene(), kind, exif=exif)
        if kind == "WEBP" and length > 2**16:
            with pytest.raises(PhotoError, match="EXIF"):
                examine(data)
        else:
            decoded = cv2.imdecode(np.frombuffer(examine(data)[3], np.uint8), cv2.IMREAD_COLOR)
            assert decoded.shape == (120, 160, 3)
            assert (b"eXIf" in examine(data)[3]) is (kind == "PNG" and length < 2**16)
            assert not re.search(b"infe.{8}Exif", examine(data)[3], re.DOTALL)


def test_a_tiff_s_tag_that_comes_twice_and_tiles_are_refused():
    data = encoded(Image.new("L", (64, 64)), "TIFF")
    at = struct.unpack("<I", data[4:8])[0]
    number = struct.unpack("<H", data[at:at + 2])[0]
    names = [struct.unpack("<H", data[at + 2 + 12 * i:at + 4 + 12 * i])[0] for i in range(number)]
    for instead, word in ((256, "claim more"), (322, "tiles"), (323, "tiles")):
        place = at + 2 + 12 * names.index(262)
        with pytest.raises(PhotoError, match=word):
            examine(data[:place] + struct.pack("<H", instead) + data[place + 2:])
