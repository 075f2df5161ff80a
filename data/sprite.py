"""What a mushroom is drawn on: a canvas that knows the perspective, and what mixes colours and noise.

A mushroom is two surfaces of revolution, the cap and its underside, on a bent cylinder. Each is a height z(r)
over the distance r from the axis, both in cap radii, the rim at r = 1, z near 0. Seen from an elevation e:

    x = r cos(theta),   y = r sin(theta) sin(e) - z(r) cos(e)          (y points down, as in a picture)
"""

from __future__ import annotations

import copy
import math

import cv2
import numpy as np

RINGS = 72  # circles that a surface is built of; fewer show as bands


def noise(rng, shape, cells):
    """Soft noise float32 shape = (H, W) in 0..1, of cells = (rows, columns) of grains."""
    grid = rng.random((max(2, int(cells[0])), max(2, int(cells[1]))), np.float32)
    return np.clip(cv2.resize(grid, shape[::-1], interpolation=cv2.INTER_CUBIC), 0, 1)


def pick(rng, colours):
    """One of the colours, a little changed: float32 (3,)."""
    colour = colours[rng.integers(len(colours))] + rng.normal(0, 0.025, 3)
    return np.clip(colour, 0, 1).astype(np.float32)


def weigh(rgb, share):
    """A colour (3,) or picture (H, W, 3) times share (H, W), float32."""
    share = np.asarray(share, np.float32)            # planes are merged: numpy broadcasts slower
    return cv2.merge([share * float(c) for c in rgb]) if np.ndim(rgb) == 1 else rgb * cv2.merge([share] * 3)


def blend(below, above, share):
    """below where share (H, W) is 0, above where it is 1; each (H, W, 3) or a colour (3,)."""
    return weigh(below, 1 - share) + weigh(above, share)


class Sprite:
    """One mushroom, upright: rgba float32 (H, W, 4), colours times alpha; the rim lies around (0, 0)."""

    def __init__(self, radius, length, elevation):
        self.radius, self.e = radius, elevation                       # pixels, radians (> 0 from above)
        self.sin, self.cos = math.sin(elevation), math.cos(elevation)
        self.centre = np.array([1.2, 1.3]) * radius
        self.rgba = np.zeros((int((1.3 + length + 0.5) * radius), int(2.4 * radius), 4), np.float32)
        rows, columns = np.ogrid[:self.rgba.shape[0], :self.rgba.shape[1]]
        self.x = ((columns - self.centre[0]) / radius).astype(np.float32)   # (1, W)
        self.y = ((rows - self.centre[1]) / radius).astype(np.float32)      # (H, 1)

    def pixels(self, x, y, bits=0):
        """Points in cap radii as integer pixels (..., 2), with `bits` bits after the point."""
        return np.rint((np.stack([x, y], -1) * self.radius + self.centre) * 2**bits).astype(np.int32)

    def project(self, r, theta, z):
        return self.pixels(r * np.cos(theta), r * np.sin(theta) * self.sin - z * self.cos)

    def paint(self, alpha, rgb):
        """Lay a colour (3,) or (H, W, 3) over what is there, where alpha (H, W) says."""
        left, top, width, height = cv2.boundingRect((alpha > 0).astype(np.uint8))
        box = np.s_[top:top + height, left:left + width]
        a = np.asarray(alpha[box], np.float32)
        over = cv2.merge([*cv2.split(weigh(rgb if np.ndim(rgb) == 1 else rgb[box], a)), a])
        self.rgba[box] = self.rgba[box] * cv2.merge([1 - a] * 4) + over

    def head(self):
        """The same sprite without the rows that no cap reaches: less to compute."""
        part, rows = copy.copy(self), int(2.05 * self.radius)
        part.rgba, part.y = self.rgba[:rows], self.y[:rows]
        return part

    def mask(self, draw):
        """What draw(picture uint8 (H, W)) leaves in it, a little softened: float32 (H, W) in 0..1."""
        picture = np.zeros(self.rgba.shape[:2], np.uint8)
        draw(picture)
        return cv2.GaussianBlur(picture, (5, 5), 0).astype(np.float32) / 255

    def surface(self, z, inward):
        """Paint order hides what is hidden: rings from the rim inward, or from the axis outward.

        Returns r (H, W) of each pixel's point and the surface's mask (H, W).
        """
        r = np.full(self.rgba.shape[:2], -1, np.float32)
        for ring in np.linspace(1, 0.01, RINGS)[::1 if inward else -1]:
            axes = [round(16 * max(ring * self.radius * flat, 1.5)) for flat in (1, abs(self.sin))]
            centre = self.pixels(0, -z(ring) * self.cos, bits=4)
            cv2.ellipse(r, centre.tolist(), axes, 0, 0, 360, float(ring), -1, cv2.LINE_8, 4)
        mask = cv2.GaussianBlur((r >= 0).astype(np.float32), (3, 3), 0)
        return cv2.blur(np.where(r < 0, 1, r), (5, 5)), mask


def spots(rng, count, inner=0.05):
    """Evenly strewn points of the unit disc, like a sunflower's seeds, shaken: r and theta, each (count,)."""
    k = np.arange(count) + rng.uniform(0.2, 0.8, count)
    return np.sqrt(inner**2 + (1 - inner**2) * k / count), k * 2.39996 + rng.normal(0, 0.12, count)
