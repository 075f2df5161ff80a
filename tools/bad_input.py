"""Bad input, made by a script: photos, tables, checkpoints. tests/ feed it to the program in short, tools/torture.py at length."""

from __future__ import annotations

import io
import os
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image, PngImagePlugin

from views import VIEWS

HTML = b"<!DOCTYPE html><html><body>404 Not Found</body></html>"


def scene(width: int = 160, height: int = 120, mode: str = "RGB") -> Image.Image:
    """Coarse colours that no other kind below shares."""
    noise = np.random.default_rng(width * height).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((width, height)).convert(mode)


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def png_header(width: int, height: int) -> bytes:
    """A PNG that promises width x height pixels and holds none."""
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
            + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b""))


def tiff_of_shared_tags(tags: int, size: int) -> bytes:
    """A TIFF of `size` bytes, 64 x 64 pixels it says; each of its tags says that the whole file is its value."""
    entries = struct.pack("<HHIIHHII", 256, 4, 1, 64, 257, 4, 1, 64)
    entries += b"".join(struct.pack("<HHII", 40_000 + i, 7, size - 8, 8) for i in range(tags))
    return (b"II*\0" + struct.pack("<IH", 8, tags + 2) + entries + bytes(4)).ljust(size, b"\0")


def with_exif(jpeg: bytes, exif: bytes) -> bytes:
    """The JPEG with `exif` in front of all else, in as many parts as it takes."""
    parts = [b"Exif\0\0" + exif[at:at + 65_000] for at in range(0, len(exif), 65_000)]
    return jpeg[:2] + b"".join(b"\xff\xe1" + struct.pack(">H", len(part) + 2) + part for part in parts) + jpeg[20:]


def unreadable_files() -> dict[str, bytes]:
    """File name: content that is no photo, or part of one."""
    jpeg, png, webp, gif, tiff = (encoded(scene(), kind) for kind in ("JPEG", "PNG", "WEBP", "GIF", "TIFF"))
    files = {"empty.jpg": b"", "one byte.jpg": b"\xff", "text.jpg": b"hello, I am a mushroom", "page.jpg": HTML, "page.png": HTML,
             "zeros.jpg": bytes(5000), "noise.png": np.random.default_rng(0).bytes(5000), "archive.jpg": b"PK\x03\x04" + bytes(100),
             "script.gif": b"GIF89a<script>alert(1)</script>", "vector.png": b'<svg xmlns="http://www.w3.org/2000/svg"/>',
             "0 wide.png": png_header(0, 10), "0 high.png": png_header(10, 0), "promise.png": png_header(400, 300),
             "30000 x 30000.png": png_header(30_000, 30_000), "2 billion wide.png": png_header(2**31 - 1, 2**31 - 1),
             "bomb.png": encoded(Image.new("1", (13_000, 13_000)), "PNG"), "only soi.jpg": jpeg[:2], "header alone.jpg": jpeg[:200],
             "shared tags.tif": tiff_of_shared_tags(2_000, 2_000_000), "jpeg 2000.jpg": encoded(scene(), "JPEG2000"),
             "portable.png": encoded(scene(), "PPM"), "broken crc.png": png[:29] + b"\0\0\0\0" + png[33:],
             "broken idat.png": png[:60] + b"\0" * 40 + png[100:],
             "cut.webp": webp[:len(webp) // 2], "riff alone.webp": webp[:12], "whole.gif": gif, "cut.gif": gif[:20], "cut.tif": tiff[:100],
             "nan.tif": encoded(Image.fromarray(np.full((60, 80), np.nan, np.float32)), "TIFF")}
    files |= {f"cut at {tenth} tenths.jpg": jpeg[:len(jpeg) * tenth // 10] for tenth in range(1, 10)}
    files |= {f"cut at {tenth} tenths.png": png[:len(png) * tenth // 10] for tenth in range(1, 10)}
    return files


def odd_files() -> dict[str, bytes]:
    """File name: content that is a photo, if a strange one, and must be read."""
    exif = scene().getexif()
    text = PngImagePlugin.PngInfo()
    text.add_text("comment", "x" * 100_000, zip=True)
    frames = [scene(80, 60), scene(81, 60).resize((80, 60))]
    files = {"1 x 1.png": encoded(scene(1, 1), "PNG"), "1 x 20000.png": encoded(scene(1, 20_000), "PNG"),
             "20000 x 1.jpg": encoded(scene(20_000, 1), "JPEG"), "cmyk.jpg": encoded(scene(mode="CMYK"), "JPEG"),
             "grey.jpg": encoded(scene(mode="L"), "JPEG"), "1 bit.png": encoded(scene(mode="1"), "PNG"),
             "palette.png": encoded(scene(mode="P"), "PNG"), "alpha.png": encoded(scene(mode="RGBA"), "PNG"),
             "grey alpha.png": encoded(scene(mode="LA"), "PNG"),
             "16 bit.png": encoded(Image.fromarray(np.full((60, 80), 40_000, np.uint16)), "PNG"),
             "a png.jpg": encoded(scene(), "PNG"), "a jpg.png": encoded(scene(), "JPEG"),
             "progressive.jpg": encoded(scene(), "JPEG", progressive=True),
             "exif again and again.jpg": with_exif(encoded(scene(), "JPEG"), b"Exif\0\0" * 650_000),
             "shared exif tags.jpg": with_exif(encoded(scene(), "JPEG"), tiff_of_shared_tags(20_000, 730_000)),
             "text chunk.png": encoded(scene(), "PNG", pnginfo=text), "tail.jpg": encoded(scene(), "JPEG") + HTML}
    for kind in ("png", "webp", "tiff"):
        files[f"animated.{kind}"] = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
    for orientation in range(9):  # 0 is none that exists
        exif[0x0112] = orientation
        files[f"exif {orientation}.jpg"] = encoded(scene(), "JPEG", exif=exif)
    names = ["new\nline.jpg", "tab\t.jpg", "emoji 🍄👩‍🔬.jpg", "escape \x1b[31m.jpg", "quote\".jpg", "comma, and; .jpg",
             "percent %s {}.jpg", "-flag.jpg", " space .jpg", "蘑菇.jpg", "right to left \u202e.jpg", "CAPITAL.JPG", "carriage\rreturn.jpg"]
    return files | {name: encoded(scene(90 + i, 70), "JPEG") for i, name in enumerate(names)}


def write_bad_photos(folder: Path) -> tuple[list[str], list[str]]:
    """Fills `folder`; returns the names that must be refused and those that must be read. Linux and macOS only (pipes, links)."""
    folder.mkdir(parents=True, exist_ok=True)
    refused, read = unreadable_files(), odd_files()
    for name, data in (refused | read).items():
        (folder / name).write_bytes(data)
    (folder / "folder.jpg").mkdir()
    os.mkfifo(folder / "pipe.jpg")
    with (folder / "sparse.jpg").open("wb") as file:
        file.truncate(2**40)
    for name, target in {"nowhere.jpg": "missing", "itself.jpg": "itself.jpg", "endless.jpg": "/dev/zero", "upwards.jpg": ".."}.items():
        (folder / name).symlink_to(target)
    (folder / "loop").symlink_to(".")
    (folder / "no mode.jpg").write_bytes(encoded(scene(), "JPEG"))
    (folder / "no mode.jpg").chmod(0)
    broken_name = os.fsdecode(b"not utf-8 \xff.jpg")
    (folder / broken_name).write_bytes(encoded(scene(123, 77), "JPEG"))
    special = ["folder.jpg", "pipe.jpg", "sparse.jpg", "nowhere.jpg", "itself.jpg", "endless.jpg", "upwards.jpg"]
    may_read = os.access(folder / "no mode.jpg", os.R_OK)  # root may
    return [*refused, *special, *([] if may_read else ["no mode.jpg"])], [*read, broken_name, *(["no mode.jpg"] if may_read else [])]


def bad_tables(photo: str) -> dict[str, tuple[bytes, str]]:
    """Name: (a CSV's content, a pattern that the error must match). `photo` is a readable photo beside the CSV."""
    row = f"{photo},a\n"
    return {name: (text.encode() if isinstance(text, str) else text, pattern) for name, (text, pattern) in {
        "empty": ("", "no column image"), "blank lines": ("\n\n\n", "no column image"), "header alone": ("image,label\n", "no rows"),
        "no image": (f"photo,label\n{row}", "no column image"), "no label": (f"image\n{photo}\n", "no column label"),
        "no header": (f"{row}{photo},b\n", "no column image"), "semicolons": (f"image;label\n{photo};a\n", "no column image"),
        "utf-16": (f"image,label\n{row}".encode("utf-16"), "not a CSV in UTF-8"),
        "latin-1": ("image,label\nSteinpilz é.jpg,a\n".encode("latin-1"), "not a CSV in UTF-8"),
        "binary": (bytes(range(256)) * 20, "not a CSV|no column"), "zero bytes": (bytes(100), "not a CSV|no column"),
        "missing photo": (f"image,label\n{row}none.jpg,b\n", "row 3: no such photo none.jpg"),
        "empty label": (f"image,label\n{row}{photo},\n", "row 3: label is empty"),
        "empty image": (f"image,label\n{row},b\n", "row 3: image is empty"),
        "spaces": (f"image,label\n{row}{photo},  \n", "row 3: label is empty"),
        "one class": (f"image,label\n{row}", "all photos are of one class"),
        "a field too many": (f"image,label\n{photo},a,b,c\n{photo},b,c,d\n", "row 2: more cells"),
        "a field too many once": (f"image,label\n{row}{photo},a,b,c\n", "row 3: more cells"),
        "open quote": (f'image,label\n{row}"{photo},b\n', "row 3: label is empty"),
        "column twice": (f"image,label,label\n{photo},a,b\n", "column label twice"),
        "zero in a path": (b"image,label\nno\0where.jpg,a\n", "no such photo"), "a folder": ("image,label\n.,a\n..,b\n", "no such photo"),
        "an address": ("image,label\nhttps://example.org/a.jpg,a\n", "no such photo"), "html": (HTML, "no rows|no column"),
    }.items()}


def fuzzed(count: int, seed: int = 0) -> Iterator[bytes]:
    """`count` byte strings near valid JPEG, PNG, WEBP, TIFF, AVIF and BMP files: bits flipped, bytes replaced, cut, doubled."""
    rng = np.random.default_rng(seed)
    kinds = [("JPEG", {}), ("JPEG", {"progressive": True}), ("PNG", {}), ("WEBP", {}), ("WEBP", {"lossless": True}), ("TIFF", {}),
             ("AVIF", {}), ("BMP", {})]
    wholes = [encoded(scene(64, 48), kind, **more) for kind, more in kinds]
    for i in range(count):
        data = bytearray(wholes[i % len(wholes)])
        for _ in range(rng.integers(1, 6)):
            reach = len(data) if rng.random() < 0.5 else min(len(data), 64)  # half of the harm goes to the header
            at, length = int(rng.integers(reach)), int(rng.integers(1, 16))
            part = bytes(data[at:at + length])
            number = struct.pack(">I", int(rng.choice([0, 1, 2**16 - 1, 2**31 - 1, 2**32 - 1])))
            flipped = bytes(byte ^ 1 << int(rng.integers(8)) for byte in part)
            data[at:at + length] = (flipped, rng.bytes(length), b"", part + part, number)[rng.integers(5)]
            data = data or bytearray(b"\0")
        yield bytes(data[:int(rng.integers(1, len(data) + 1))] if rng.random() < 0.1 else data)


class Call:
    """Unpickled without care, it calls a function."""

    def __init__(self, function: Callable, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def write_hostile_checkpoints(folder: Path, good: Path) -> dict[str, str]:
    """Changed copies of the checkpoint `good`; returns file name: a pattern that the error must match."""
    folder.mkdir(parents=True, exist_ok=True)
    whole = torch.load(good, map_location="cpu", weights_only=True)
    weights = whole["weights"]

    def with_weights(**changed) -> dict:
        return whole | {"weights": weights | {name.replace("__", "."): value for name, value in changed.items()}}

    head, bomb, one = weights["head.weight"], Call(os.mkdir, "exploded"), torch.zeros(1)
    laughs = "x" * 100
    for _ in range(7):  # a gigabyte when it is printed
        laughs = [laughs] * 10
    changed = {
        "bomb.pt": (whole | {"bomb": bomb}, "not a checkpoint"),
        "bomb in weights.pt": (with_weights(head__weight=bomb), "not a checkpoint"),
        "bytes.pt": (whole | {"more": Call(bytearray, 3 * 10**9)}, "not a checkpoint"),
        "laughs.pt": (whole | {"format": laughs}, "not of format"), "kept.pt": (whole | {"kept": laughs}, "kept is not"),
        "many formats.pt": (whole | {"format": one.expand(3 * 10**9)}, "not of format"),
        "views.pt": (with_weights(**{f"view {i}": torch.zeros(10**6).expand(3000, 10**6) for i in range(3)}), "more than it holds"),
        "17 GB.pt": (whole | {"model": "eva02_enormous_patch14_clip_224.laion2b"}, "do not fit"),
        "long name.pt": (whole | {"classes": ["a" * 30_000, *whole["classes"][1:]]}, "classes"),
        "long model.pt": (whole | {"model": "a" * 30_000}, "model is not"),
        "large photo.pt": (whole | {"image_size": 4096}, "image_size"),
        "sparse.pt": (with_weights(more=one.to_sparse()), "not a checkpoint"),
        "list.pt": ([1, 2], "holds no"), "weights alone.pt": (weights, "holds no"), "newer.pt": (whole | {"format": 99}, "not of format"),
        "nan.pt": (with_weights(head__weight=head * float("nan")), "not finite"),
        "inf.pt": (with_weights(head__bias=weights["head.bias"] / 0), "not finite"),
        "narrow.pt": (with_weights(head__weight=head[:, :3]), "do not fit"),
        "fewer.pt": (with_weights(head__weight=head[:3]), "do not fit"),
        "classes.pt": (whole | {"classes": [*whole["classes"], "another"]}, "do not fit"),
        "wide.pt": (with_weights(head__weight=one.expand(10**6, 10**6)), "more than it holds"),
        "path in keys.pt": (with_weights(**{"../../outside": head}), "do not fit"),
        "no weights.pt": (whole | {"weights": {}}, "do not fit"),
        "directions.pt": (whole | {"covariance": 10**6}, "covariance"), "other head.pt": (whole | {"covariance": 8}, "do not fit"),
        "config.pt": (whole | {"config": {"augment": "much"}}, "config is not"), "bare.pt": (whole | {"config": 0}, "config is not"),
        "cosine.pt": (whole | {"cosine": "64"}, "cosine"), "bent.pt": (whole | {"cosine": 1e30}, "cosine"),
        "refit.pt": (whole | {"refit": {"weight": head[:3], "bias": weights["head.bias"]}}, "refit tensors do not fit"),
        "listed refit.pt": (whole | {"refit": [head]}, "refit tensors"),
        "refit nan.pt": (whole | {"refit": {"weight": head * float("nan"), "bias": weights["head.bias"]}}, "refit tensors"),
        "other model.pt": (whole | {"model": "tf_efficientnet_lite0"}, "do not fit"),
        "no such model.pt": (whole | {"model": "none"}, "no such backbone"),
        "hub.pt": (whole | {"model": "hf-hub:somebody/something"}, "no such backbone"),
        "huge photo.pt": (whole | {"image_size": 10**9}, "image_size"), "no photo.pt": (whole | {"image_size": -1}, "image_size"),
        "word.pt": (whole | {"image_size": "large"}, "image_size"), "crop.pt": (whole | {"crop": 0.0}, "crop"),
        "temperature.pt": (whole | {"temperatures": [float("nan")] * len(VIEWS)}, "temperatures"),
        "limits.pt": (whole | {"known_limits": [0.5]}, "known_limits"), "no classes.pt": (whole | {"classes": []}, "classes"),
        "numbers.pt": (whole | {"classes": [1] * len(whole["classes"])}, "classes"), "weights.pt": (whole | {"weights": [head]}, "weights"),
        "model.pt": (whole | {"model": 5}, "model"),
    }
    for name, (content, _) in changed.items():
        torch.save(content, folder / name)
    data = good.read_bytes()
    files = {"half.pt": data[:len(data) // 2], "empty.pt": b"", "page.pt": HTML, "flipped.pt": data[:500] + bytes(2000) + data[2500:]}
    for name, content in files.items():
        (folder / name).write_bytes(content)
    with zipfile.ZipFile(good) as source, zipfile.ZipFile(folder / "packed.pt", "w", zipfile.ZIP_DEFLATED) as packed:
        for entry in source.namelist():
            packed.writestr(entry, source.read(entry))
        packed.writestr(source.namelist()[0].split("/")[0] + "/data/bomb", bytes(50_000_000))
    return {name: pattern for name, (_, pattern) in changed.items()} | dict.fromkeys([*files, "packed.pt"], "not a checkpoint")
