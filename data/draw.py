"""Photos of nine mushroom genera, drawn: something to train on without a network, and for the tests.

    python data/draw.py --out data/drawn --per-class 40 --seed 0
"""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))  # run as a script, Python looks beside the script alone
from data.mushroom import GENERA, OVERSAMPLE, draw_mushroom
from data.sprite import blend, noise, pick, weigh

SIZES = (300, 320, 340), (320, 360, 400)  # heights and widths of photos, pixels
JPEG_QUALITY = 84, 95                     # from, below

# --- the forest ---

GROUNDS = {  # dark and light ground, dark and light distance
    "grass": ((.1, .2, .05), (.38, .52, .16), (.12, .24, .1), (.62, .74, .36)),
    "moss": ((.08, .15, .04), (.4, .46, .12), (.06, .12, .07), (.36, .46, .26)),
    "litter": ((.14, .08, .04), (.52, .35, .18), (.12, .12, .07), (.56, .5, .3)),
    "soil": ((.1, .07, .05), (.34, .25, .18), (.1, .13, .1), (.45, .5, .42)),
}


def draw_ground(kind, rng, shape, horizon):
    """Background float32 (H, W, 3): blurred distance with spots of light, ground from row `horizon` on."""
    dark, light, far_dark, far_light = (np.float32(c) * rng.uniform(0.85, 1.15) for c in GROUNDS[kind])
    height, width = shape
    fade = np.linspace(1, 0.3, height, dtype=np.float32)[:, None]
    far = blend(far_dark, far_light, noise(rng, shape, (4, 5)) * fade)
    bokeh = np.zeros(shape, np.float32)
    for _ in range(rng.integers(6, 22)):
        at = rng.integers(0, width), rng.integers(0, max(horizon, 1))
        cv2.circle(bokeh, [int(v) for v in at], int(rng.integers(5, 20)), float(rng.uniform(0.1, 0.4)), -1)
    far = blend(far, np.minimum(far_light * 1.5, 1), cv2.GaussianBlur(bokeh, (9, 9), 0))
    grain = sum(noise(rng, shape, cells) for cells in ((8, 10), (30, 40), (90, 110))) / 3
    near = blend(dark, light, grain * 1.3 - 0.15)
    rows = np.arange(height, dtype=np.float32)[:, None] + 14 * noise(rng, shape, (2, 12))
    return blend(far, near, np.clip((rows - horizon) / 30, 0, 1))


def strew(picture, kind, rng, low, high, count):
    """Grass, moss, leaves or crumbs, their feet in the rows low to high; far ones first."""
    dark, light = (np.float32(c) for c in GROUNDS[kind][:2])
    rise, turn = np.linspace(0, 1, 5), np.linspace(0, 2 * np.pi, 10)
    disc, waist = np.stack([np.cos(turn), np.sin(turn)], 1), abs(np.sin(turn))
    for y in np.sort(rng.uniform(low, high, count)):
        near = 0.5 + 0.7 * y / picture.shape[0]
        x, share = rng.uniform(0, picture.shape[1]), rng.uniform(0.2, 1.3)
        colour = np.clip(dark + (light - dark) * share + rng.normal(0, 0.03, 3), 0, 1).tolist()
        if kind in ("grass", "moss"):
            tall = near * (rng.uniform(16, 50) if kind == "grass" else rng.uniform(4, 13))
            middle, thick = x + rng.normal(0, 0.4) * tall * rise**2, 1.7 * near * (1 - rise)
            left, right = ((middle + side, y - tall * rise) for side in (-thick, thick))
            points = np.array([np.append(a, b[::-1]) for a, b in zip(left, right, strict=True)]).T
        elif kind == "litter":
            leaf = disc * near * [13, rng.uniform(3, 7)]
            leaf[:, 1] *= waist                                               # pointed at both ends
            sin, cos = np.sin(angle := rng.uniform(0, np.pi)), np.cos(angle)
            points = leaf @ np.array([[cos, sin], [-sin, cos]]) * [1, 0.6] + [x, y]
            tint = ((1, 1, 1), (1.3, 0.85, 0.6), (1.2, 1.05, 0.6))[rng.integers(3)]
            colour = np.clip(np.array(colour) * tint, 0, 1).tolist()
        else:
            points = disc * [1, 0.6] * rng.uniform(0.8, 3.5) * near + [x, y]
        cv2.fillPoly(picture, [np.rint(points * 16).astype(np.int32)], colour, cv2.LINE_8, 4)


def plant(picture, sprite, foot, x, y, tilt):
    """Shrink the sprite, tilt it about its foot, set that at pixel (x, y) of picture, float32 (H, W, 3)."""
    height, width = picture.shape[:2]
    pivot = sprite.centre + [0, foot * sprite.radius]
    turn = cv2.getRotationMatrix2D(pivot.tolist(), tilt, 1.0)
    turn[:, 2] += np.array([x, y]) * OVERSAMPLE - pivot
    big = cv2.warpAffine(sprite.rgba, turn, (width * OVERSAMPLE, height * OVERSAMPLE))
    rgba = cv2.resize(big, (width, height), interpolation=cv2.INTER_AREA)
    shadow = np.zeros((height, width), np.float32)
    reach = sprite.radius / OVERSAMPLE
    axes = int(reach * 0.9), int(reach * 0.22)
    cv2.ellipse(shadow, (int(x + 0.2 * reach), int(y)), axes, 0, 0, 360, 0.6, -1)
    keep = (1 - cv2.blur(cv2.blur(shadow, (25, 13)), (25, 13))) * (1 - rgba[..., 3])
    picture *= cv2.merge([keep] * 3)
    picture += rgba[..., :3]


def draw_photo(genus: str, rng: np.random.Generator, size: tuple[int, int] = (320, 360)) -> np.ndarray:
    """A photo of one to three mushrooms of a genus, uint8 RGB (H, W, 3); size = (H, W), pixels."""
    if genus not in GENERA:
        raise DrawError(f"{genus}: no such genus here. There are {', '.join(GENERA)}.")
    height, width = size
    traits, kind = GENERA[genus], list(GROUNDS)[rng.integers(len(GROUNDS))]
    # radians; from below, gills or pores show
    elevation = rng.uniform(-0.5, -0.16) if rng.random() < 0.6 else rng.uniform(0.12, 0.6)
    traits = replace(traits, caps=(pick(rng, traits.caps),))       # mushrooms of one photo are of one kind
    horizon = int(height * rng.uniform(0.45, 0.7))
    picture = draw_ground(kind, rng, size, horizon)
    strew(picture, kind, rng, horizon + 10, height, 120)
    picture = cv2.GaussianBlur(picture, (0, 0), rng.uniform(0.6, 1.8))
    side = rng.uniform(-0.75, 0.75)
    light = (np.array([side, 0.45, 0.8]) / np.linalg.norm([side, 0.45, 0.8])).tolist()
    count = rng.choice([1, 1, 1, 2, 2, 3])
    where = np.linspace(0, 1, count + 2)[1:-1] * width + rng.normal(0, 0.05, count) * width
    for x, y in zip(rng.permutation(where), np.sort(rng.uniform(0.82, 0.97, count)) * height, strict=True):
        radius = traits.size * rng.uniform(0.24, 0.36) * min(height, width) * (1, 0.74, 0.58)[count - 1]
        tallest = 0.9 * y / (traits.stem_length[1] + traits.height[1])        # all of it fits into the photo
        sprite, foot = draw_mushroom(traits, rng, OVERSAMPLE * min(radius, tallest), elevation, light)
        plant(picture, sprite, foot, x, y, rng.normal(0, 9))
        strew(picture, kind, rng, y + 2, y + 16, 30)
    strew(picture, kind, rng, height - 10, height + 20, 40)
    return develop(picture, rng)


def develop(picture, rng):
    """The camera: warm or cold light, exposure, dark corners, grain. float (H, W, 3) in 0..1 to uint8."""
    height, width = picture.shape[:2]
    y, x = np.ogrid[-1:1:height * 1j, -1:1:width * 1j]
    warm = rng.normal(0, 0.05)
    gain = np.array([1 + warm, 1, 1 - warm]) * rng.uniform(0.92, 1.16)
    grain = rng.standard_normal((height, width), np.float32) * rng.uniform(0.006, 0.02)
    picture = picture * weigh(gain, 1 - 0.16 * (x**2 + y**2)) + cv2.merge([grain] * 3)
    return cv2.convertScaleAbs(np.clip(picture, 0, 1), alpha=255)


# --- files ---

class DrawError(ValueError):
    """Nothing was drawn; the message says why."""


def write_photos(folder: Path, per_class: int, seed: int) -> None:
    """GENUS/genus_0001.jpg and so on; photo i of genus g depends on (seed, g, i) alone."""
    for g, genus in enumerate(GENERA):
        (folder / genus).mkdir(parents=True)
        for i in range(1, per_class + 1):
            rng = np.random.default_rng((seed, g, i))
            photo = draw_photo(genus, rng, tuple(int(rng.choice(sides)) for sides in SIZES))
            quality = [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(*JPEG_QUALITY))]
            data = cv2.imencode(".jpg", photo[..., ::-1], quality)[1]  # not imwrite: it fails on some paths
            (folder / genus / f"{genus.lower()}_{i:04d}.jpg").write_bytes(data)


def is_drawn(out: Path, arguments: dict) -> bool:
    """Whether this script drew `out` with these arguments: its drawn.json says so."""
    try:
        return json.loads((out / "drawn.json").read_text()) == arguments
    except (OSError, ValueError):
        return False


def draw_dataset(out: Path = Path("data/drawn"), per_class: int = 40, seed: int = 0) -> Path:
    """Draw nine genera as a folder of class folders.

    Returns out. What is there already is left alone: if it is just this, nothing is done, else DrawError.

    Args:
        out: a new or empty folder.
        per_class: photos of each genus.
        seed: 0 or more; another gives other photos.
    """
    out, part = Path(out), Path(f"{out}.part")          # an interrupted draw leaves only the latter
    arguments = {"per_class": per_class, "seed": seed}
    if per_class < 1 or seed < 0:
        raise DrawError(f"--per-class {per_class} --seed {seed}: the least are 1 and 0.")
    if is_drawn(out, arguments):
        print(f"{out}: already drawn")
        return out
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DrawError(f"{out}: there is something else in it already. Pass another --out, or move it away.")
    if part.exists() and not (part / ".drawing").exists():
        raise DrawError(f"{part}: in the way, and not this script's. Move it away, or pass another --out.")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    (part / ".drawing").touch()                         # says that this folder may be deleted
    write_photos(part, per_class, seed)
    (part / "drawn.json").write_text(json.dumps(arguments))
    if out.exists():
        out.rmdir()                                     # empty, and Windows renames onto nothing that exists
    part.rename(out)
    (out / ".drawing").unlink()
    print(f"drew {per_class * len(GENERA)} photos of {len(GENERA)} genera into {out}")
    return out


if __name__ == "__main__":
    import tyro

    from text import as_program
    try:
        as_program(lambda: tyro.cli(draw_dataset))
    except OSError as problem:  # a full disk
        sys.exit(str(problem))
