"""One mushroom, drawn: what tells nine genera, and how cap, underside, stem and trimmings of each are painted on a sprite."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from data.sprite import Sprite, blend, noise, pick, spots, weigh

OVERSAMPLE = 2  # mushrooms are drawn this many times larger, then shrunk

SHAPES = {  # z(r) of the cap, 1 at the highest
    "dome": lambda r: np.sqrt(np.maximum(1 - r**2, 0)),
    "cushion": lambda r: np.maximum(1 - r**3.2, 0) ** 0.6,
    "flat": lambda r: np.maximum(1 - r**7, 0) ** 0.7 - 0.45 * np.exp(-((r / 0.42) ** 2)),
    "funnel": lambda r: 1.02 * (0.08 + 0.92 * np.minimum(r / 0.8, 1) ** 2) * np.maximum(1 - r**12, 0) ** 0.6,
    "cone": lambda r: np.maximum(1 - np.sqrt(r**2 + 0.015) / 1.0075, 0) ** 0.82,
    "bell": lambda r: 0.62 * np.maximum(1 - r**2.2, 0) ** 0.75 + 0.4 * np.exp(-((r / 0.2) ** 2)),
}
WHITE, RUST, MILK = (0.97, 0.95, 0.9), (0.66, 0.3, 0.1), (1.0, 1.0, 0.97)


@dataclass(frozen=True)
class Genus:
    """What tells a genus. Colours are RGB in 0..1, lengths are in cap radii, pairs are (least, most)."""

    caps: tuple                 # colours that the cap may have
    unders: tuple               # colours of gills or pores
    stems: tuple                # colours of the stem
    shapes: tuple               # of the cap, keys of SHAPES
    height: tuple               # of the cap
    stem_width: tuple           # half of it, at the top
    stem_length: tuple
    size: float = 1.0           # of the cap, against other genera
    bulge: float = 0.3          # how much wider the stem is at its foot
    gloss: float = 0.12         # 0 = matt, 1 = wet
    pores: bool = False         # else gills
    marks: frozenset = frozenset()


GENERA = {
    "Agaricus": Genus(
        caps=((.96, .94, .9), (.93, .87, .77), (.84, .72, .56)),
        unders=((.83, .52, .5), (.55, .33, .28), (.4, .25, .2)), stems=(WHITE,), shapes=("dome", "cushion"),
        height=(.5, .85), stem_width=(.17, .24), stem_length=(1.3, 1.8),
        marks=frozenset({"ring", "scales"})),
    "Amanita": Genus(
        caps=((.86, .1, .06), (.9, .25, .05), (.93, .45, .08), (.52, .36, .24)), unders=(WHITE,),
        stems=(WHITE,), shapes=("dome", "cushion"), height=(.4, .95), stem_width=(.13, .19),
        stem_length=(1.6, 2.2), bulge=.6, gloss=.3, marks=frozenset({"ring", "volva", "warts"})),
    "Boletus": Genus(
        caps=((.47, .27, .13), (.6, .38, .2), (.36, .2, .11)),
        unders=((.9, .86, .66), (.78, .74, .36), (.66, .62, .28)), stems=((.85, .73, .55), (.76, .6, .42)),
        shapes=("cushion", "dome"), height=(.5, .8), stem_width=(.3, .42), stem_length=(1.2, 1.7),
        size=1.05, bulge=.55, gloss=.15, pores=True, marks=frozenset({"net"})),
    "Cortinarius": Genus(
        caps=((.45, .32, .5), (.5, .3, .22), (.58, .36, .2), (.36, .27, .42)),
        unders=((.6, .32, .14), (.52, .32, .36)), stems=((.72, .62, .74), (.74, .62, .55)),
        shapes=("dome", "bell"), height=(.5, .85), stem_width=(.15, .22), stem_length=(1.5, 2.1), size=.9,
        bulge=.7, gloss=.2, marks=frozenset({"cortina", "fibres"})),
    "Entoloma": Genus(
        caps=((.36, .42, .54), (.44, .48, .55), (.27, .33, .5), (.52, .47, .45)),
        unders=((.9, .62, .58), (.88, .7, .66)), stems=((.6, .64, .7), (.5, .55, .66)), shapes=("bell",),
        height=(.6, .95), stem_width=(.07, .12), stem_length=(1.9, 2.6), size=.8, bulge=.15, gloss=.14,
        marks=frozenset({"fibres"})),
    "Hygrocybe": Genus(
        caps=((.88, .12, .06), (.95, .5, .05), (.97, .76, .1), (.93, .32, .06)),
        unders=((.97, .8, .35), (.95, .6, .3)), stems=((.96, .74, .16), (.93, .5, .12)), shapes=("cone",),
        height=(.7, 1.15), stem_width=(.09, .14), stem_length=(1.7, 2.3), size=.66, bulge=0.0, gloss=.7),
    "Lactarius": Genus(
        caps=((.88, .5, .24), (.78, .4, .25), (.86, .6, .5), (.5, .47, .3)),
        unders=((.95, .78, .55), (.93, .68, .42)), stems=((.9, .64, .4), (.86, .7, .54)),
        shapes=("funnel",), height=(.3, .5), stem_width=(.2, .28), stem_length=(1.0, 1.4), bulge=0.0,
        gloss=.2, marks=frozenset({"drops", "zones"})),
    "Russula": Genus(
        caps=((.8, .14, .18), (.52, .2, .4), (.5, .58, .32), (.9, .72, .25), (.88, .5, .52), (.4, .42, .46)),
        unders=(WHITE, (.95, .9, .76)), stems=(WHITE,), shapes=("flat",), height=(.28, .42),
        stem_width=(.2, .27), stem_length=(1.1, 1.6), bulge=.05, gloss=.28),
    "Suillus": Genus(
        caps=((.68, .42, .13), (.8, .58, .2), (.48, .27, .11)), unders=((.95, .84, .35), (.85, .76, .28)),
        stems=((.93, .82, .45), (.88, .76, .5)), shapes=("cushion", "dome"), height=(.45, .75),
        stem_width=(.18, .25), stem_length=(1.2, 1.6), size=.95, bulge=.1, gloss=1.0, pores=True,
        marks=frozenset({"dots", "ring"})),
}


def draw_spots(sprite, r, theta, z, sizes):
    """The mask of round patches that lie on the surface z, foreshortened; sizes in cap radii."""
    flat = max(abs(sprite.sin), 0.5)

    def draw(picture):
        for (x, y), size in zip(sprite.project(r, theta, z(r)).tolist(), sizes * sprite.radius, strict=True):
            axes = max(1, round(size)), max(1, round(size * flat))
            cv2.ellipse(picture, (x, y), axes, 0, 0, 360, 255, -1)
    return sprite.mask(draw)


def draw_cap(sprite, genus, rng, z, light):
    """The cap's skin: its colour and marks, lit from `light`, a unit vector (right, to the viewer, up)."""
    r, mask = sprite.surface(z, inward=sprite.e > 0)
    cos = np.clip(sprite.x / r, -1, 1)
    front = np.sign(sprite.y + z(r) * sprite.cos) if sprite.e > 0 else 1
    sin = front * np.sqrt(1 - cos**2)
    colour, other = pick(rng, genus.caps), pick(rng, genus.caps)
    skin = blend(colour * rng.uniform(0.7, 0.95), np.clip(colour * 1.12, 0, 1), np.clip(r * 1.1, 0, 1))
    skin = blend(skin, other, 0.35 * noise(rng, r.shape, (5, 5)) ** 2)
    if "zones" in genus.marks:
        wave = np.sin(r * rng.uniform(24, 32) + 1.6 * noise(rng, r.shape, (7, 7)))
        skin = weigh(skin, 1 - 0.15 * np.clip(wave * 1.6, -0.4, 1))
    if "fibres" in genus.marks:
        around = (np.arctan2(sin, cos) * 20 + 64).astype(np.float32)
        streaks = cv2.remap(rng.random((1, 128), np.float32), around, np.zeros_like(around), cv2.INTER_LINEAR)
        skin = weigh(skin, 1 - 0.3 * streaks * r)
    if "scales" in genus.marks:
        rs, theta = spots(rng, 90, 0.15)
        scales = draw_spots(sprite, rs, theta, z, rng.uniform(0.01, 0.035, 90))
        skin = blend(skin, skin * np.float32((0.78, 0.68, 0.56)), 0.6 * scales)
    if "warts" in genus.marks:
        count = rng.integers(35, 75)
        rs, theta = spots(rng, count)
        warts = draw_spots(sprite, rs * 0.96, theta, z, rng.uniform(0.025, 0.075, count) * (1.1 - 0.4 * rs))
        skin = blend(weigh(skin, 1 - 0.4 * np.roll(warts, 5, 0)), WHITE, warts)
    slope = (z(np.clip(r + 0.02, 0, 0.995)) - z(np.clip(r - 0.02, 0, 0.955))) / 0.04
    up = 1 / np.sqrt(1 + slope**2)
    normal = -slope * cos * up, -slope * sin * up, up
    shade = sum(n * part for n, part in zip(normal, light, strict=True))
    half = np.array(light) + [0, sprite.cos, sprite.sin]
    half /= np.linalg.norm(half)
    shine = np.clip(sum(n * part for n, part in zip(normal, half.tolist(), strict=True)), 0, 1)
    lit = weigh(skin, 0.42 + 0.72 * np.clip(cv2.blur(shade, (7, 7)), 0, 1))
    glint = genus.gloss * (0.65 * cv2.blur(shine, (7, 7)) ** 60 + 0.2 * shine**12)
    sprite.paint(mask, np.clip(blend(lit, MILK, glint), 0, 1))


def draw_underside(sprite, genus, rng, z):
    """Gills: many rays. Pores: many dots. Milk gathers on it in drops."""
    r, mask = sprite.surface(z, inward=True)
    colour = pick(rng, genus.unders)
    shade = 0.5 + 0.45 * r**1.5
    if genus.pores:
        rs, theta = spots(rng, 700)
        shade = shade * (1 - 0.38 * draw_spots(sprite, rs, theta, z, np.full(700, 0.013)))
    else:
        count = rng.integers(75, 110)
        theta = np.arange(count) * 2 * np.pi / count + rng.normal(0, 0.012, count)
        inner = np.where(np.arange(count) % 2, 0.5, 0.1)   # every other gill stops halfway, as real ones do
        ends = [sprite.project(at, theta, z(at)) for at in (inner, np.full(count, 0.985))]
        rays = sprite.mask(lambda picture: cv2.polylines(picture, np.stack(ends, 1), False, 255, 2))
        shade = shade * (1.04 - 0.4 * rays)
    rim = np.clip((r - 0.955) / 0.03, 0, 1)
    sprite.paint(mask, np.clip(weigh(colour, shade * (1 - 0.12 * rim)), 0, 1))
    if "drops" in genus.marks:
        rs, theta = spots(rng, rng.integers(9, 18), 0.35)
        for size, tone in ((0.032, MILK), (0.014, (0.8, 0.82, 0.8))):
            sprite.paint(draw_spots(sprite, rs, theta, z, np.full(len(rs), size)), np.float32(tone))


def draw_stem(sprite, genus, rng, top, length, light):
    """A stem from y = top down to length, rounded at the foot. Returns its half width at y, a function."""
    width, bend = rng.uniform(*genus.stem_width), rng.normal(0, 0.1)
    bulge = genus.bulge * rng.uniform(0.7, 1.3)
    t = np.clip((sprite.y - top) / (length - top), 0, 1)           # (H, 1): 0 at the cap, 1 at the foot
    half = width * (1 + bulge * t**2.5) * np.sqrt(np.clip((1 - t) / 0.06, 0, 1))
    across = (sprite.x - bend * t**2) / np.maximum(half, 1e-3)                 # (H, W): -1 and 1 at the edges
    mask = np.clip((1 - abs(across)) * half * sprite.radius, 0, 1) * (sprite.y >= top)
    across, shape = np.clip(across, -1, 1), across.shape
    shade = 0.55 + 0.5 * np.clip(across * light[0] + np.sqrt(1 - across**2) * max(light[1], 0.5), 0, 1)
    shade = shade * (0.88 + 0.18 * noise(rng, shape, (6, shape[1] / 3)))
    shade = shade * (0.72 + 0.28 * np.clip(t / 0.12, 0, 1))                    # the shadow of the cap
    if "net" in genus.marks:
        around, along = np.arcsin(across) * 5, (sprite.y - top) * 16
        net = np.minimum(abs(np.sin(around + along)), abs(np.sin(around - along)))
        shade *= 1 - 0.3 * np.clip(1 - net / 0.3, 0, 1) * (1 - 0.7 * t)
    if "dots" in genus.marks:
        shade *= 1 - 0.35 * (noise(rng, shape, (shape[0] / 5, shape[1] / 5)) > 0.82)
    colour = pick(rng, genus.stems)
    if "cortina" in genus.marks:
        rusty = np.exp(-(((t - 0.3) / 0.07) ** 2)) * noise(rng, shape, (40, 20)) * 1.2
        colour = blend(colour, RUST, np.clip(rusty, 0, 0.9))
    sprite.paint(mask, np.clip(weigh(colour, shade), 0, 1))
    return lambda y: width * (1 + bulge * np.clip((y - top) / (length - top), 0, 1) ** 2.5)


def draw_skirt(sprite, rng, y, width, drop, colour):
    """A ring: a frilled skirt that hangs from the stem at y, `drop` long."""
    side = np.linspace(-1, 1, 41)
    sag = np.sqrt(1 - side**2)
    frill = 0.018 * np.sin(side * rng.uniform(14, 20) + rng.uniform(0, 6))
    upper = sprite.pixels(side * width * 1.02, y + sag * 0.02, bits=4)
    lower = sprite.pixels(side * width * 1.65, y + drop * (0.7 + 0.5 * sag) + frill, bits=4)
    mask = sprite.mask(lambda picture: cv2.fillPoly(picture, [np.r_[upper, lower[::-1]]], 255, 16, 4))
    folds = 0.9 + 0.09 * np.sin(sprite.x / width * 11) - 0.28 * np.clip(abs(sprite.x) / width - 0.5, 0, 1)
    sprite.paint(0.35 * np.roll(mask, 6, 0), np.float32((0.25, 0.2, 0.16)))
    sprite.paint(mask, np.clip(weigh(colour, np.broadcast_to(folds, mask.shape)), 0, 1))


def draw_volva(sprite, rng, y, width):
    """The torn white bag that an Amanita stands in."""
    side = np.linspace(-1, 1, 41)
    upper = sprite.pixels(side * width * 1.3, y - 0.26 + rng.uniform(-0.05, 0.05, 41), bits=4)
    lower = sprite.pixels(side * width * 1.55, y + 0.22 * np.sqrt(1 - side**2), bits=4)
    mask = sprite.mask(lambda picture: cv2.fillPoly(picture, [np.r_[upper, lower[::-1]]], 255, 16, 4))
    shade = 0.95 - 0.35 * np.clip(abs(sprite.x) / width / 1.5, 0, 1) ** 2
    shade = shade - 0.1 * noise(rng, mask.shape, (30, 20))
    sprite.paint(mask, weigh((0.95, 0.91, 0.82), shade))


def draw_cortina(sprite, rng, width):
    """A Cortinarius' cobweb: rusty threads from the cap's rim to the stem."""
    theta = rng.uniform(0, 2 * np.pi, 44)
    rim = sprite.project(0.93, theta, np.zeros(44))
    on_stem = sprite.pixels(np.cos(theta) * width, rng.uniform(0.35, 0.6, 44))
    threads = sprite.mask(lambda picture: cv2.polylines(picture, np.stack([rim, on_stem], 1), False, 255, 1))
    sprite.paint(0.75 * threads, np.float32((0.8, 0.5, 0.28)))


def draw_mushroom(genus, rng, radius, elevation, light):
    """One upright mushroom, its cap `radius` pixels: a Sprite and the y of its foot in cap radii."""
    length, height = rng.uniform(*genus.stem_length), rng.uniform(*genus.height)
    shape = SHAPES[genus.shapes[rng.integers(len(genus.shapes))]]
    sprite = Sprite(radius, length, elevation)
    funnel = shape is SHAPES["funnel"]

    def skin(r): return height * (shape(np.float32(r)) - funnel * 0.3)
    def under(r): return height * 0.55 * (np.float32(r) - 1) if funnel else 0.1 * (1 - np.float32(r))

    foot = length * np.cos(elevation)
    top = -under(0.1) * np.cos(elevation)
    above = elevation > 0
    parts = [lambda: draw_cap(sprite.head(), genus, rng, skin, light),
             lambda: draw_underside(sprite.head(), genus, rng, under),
             lambda: draw_stem_and_trimmings(sprite, genus, rng, top, foot, light)]
    for part in parts[::-1] if above else parts:       # what is nearer comes later
        part()
    return sprite, foot


def draw_stem_and_trimmings(sprite, genus, rng, top, foot, light):
    width = draw_stem(sprite, genus, rng, top, foot, light)
    if "volva" in genus.marks:
        draw_volva(sprite, rng, foot - 0.1, width(foot))
    if "ring" in genus.marks:
        y = max(top, 0) + abs(sprite.sin) * 0.55 + rng.uniform(0.12, 0.25)
        drop = rng.uniform(0.13, 0.24) * (0.6 if genus.pores else 1)
        draw_skirt(sprite, rng, y, width(y), drop, pick(rng, genus.stems))
    if "cortina" in genus.marks:
        draw_cortina(sprite, rng, width(0.4))
