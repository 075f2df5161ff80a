"""The evaluation crop and the test-time views: from a photo uint8 (H, W, 3) to squares uint8 (S, S, 3), nothing drawn at random."""

from __future__ import annotations

import functools
from typing import NamedTuple

import cv2
import numpy as np


class View(NamedTuple):
    """One way to look at a photo: how much closer than the evaluation crop, where, whether mirrored, and how sharp."""

    zoom: float = 1.0    # 1 = the evaluation crop; below 1 shows more of the photo
    x: float = 0.0       # -1 = the window at the left edge, 0 = in the middle, 1 = at the right
    y: float = 0.0       # -1 = top, 1 = bottom
    mirrored: bool = False
    detail: float = 1.0  # share of its pixels a side that are left: below 1, a photo that was small, and enlarged


# The evaluation crop first, then mirrored, nearer and farther. A quarter are blurred: photos from elsewhere are small or large, and where
# a class's photos were all of one kind, that must not give it away.
VIEWS = (
    View(), View(mirrored=True), View(1.2), View(1.2, mirrored=True), View(0.85), View(0.85, mirrored=True),
    View(detail=1 / 2), View(1.2, mirrored=True, detail=1 / 3),
    View(1.2, -1, -1), View(1.2, -1, -1, mirrored=True), View(0.85, detail=1 / 2), View(1.2, -1, -1, mirrored=True, detail=1 / 3),
    View(1.5), View(1.5, mirrored=True), View(2.0), View(2.0, mirrored=True))
ANSWER_VIEWS = len(VIEWS)  # of each photo in an answer, unless --tta says otherwise: all, as each number up to it gets a temperature
HEAD_VIEWS = 16            # of each photo that the head is fitted on


class FixedViews:
    """(photo uint8 (H, W, 3), any seed) → the first `views` of VIEWS, uint8 (views, size, size, 3). 1 = the evaluation crop.

    min_side: pixels of a photo's short side below which its nearest view would be blurred.
    """

    def __init__(self, size: int, crop: float, views: int = 1):
        if not 1 <= views <= len(VIEWS):
            raise ValueError(f"{views} views: there are 1 to {len(VIEWS)}")
        self.size, self.crop, self.count = size, crop, views
        self.min_side = round(size / crop * max(view.zoom for view in VIEWS[:views]))

    def __call__(self, photo: np.ndarray, seed: int) -> np.ndarray:
        cut = functools.cache(lambda view: crop_view(photo, self.size, self.crop, view))  # a mirrored view is another's crop
        return np.stack([cv2.flip(cut(view._replace(mirrored=False)), 1) if view.mirrored else cut(view) for view in VIEWS[:self.count]])


def crop_view(photo: np.ndarray, size: int, crop: float, view: View = VIEWS[0]) -> np.ndarray:
    """The square that `view` sees of a photo uint8 (H, W, 3), as uint8 (size, size, 3).

    crop: share of the short side that the evaluation crop shows (timm's crop_pct). The window stays inside the photo.
    """
    height, width = photo.shape[:2]
    side = max(1, min(round(min(height, width) * crop / view.zoom), height, width))
    top, left = round((height - side) * (1 + view.y) / 2), round((width - side) * (1 + view.x) / 2)
    square = photo[top:top + side, left:left + side]
    if view.detail < 1:
        few = max(1, round(size * view.detail))
        square = resize(square, few, few)
    square = resize(square, size, size)
    return cv2.flip(square, 1) if view.mirrored else square


def resize(img: np.ndarray, height: int, width: int) -> np.ndarray:
    """Averages where it shrinks to half or less, so that no detail turns into noise. Above that, each pixel that comes out is mixed from
    its four neighbours, which then leaves no pixel out; averaging takes OpenCV eight times as long at such sizes."""
    halves = img.shape[0] >= 2 * height and img.shape[1] >= 2 * width
    return cv2.resize(img, (width, height), interpolation=cv2.INTER_AREA if halves else cv2.INTER_LINEAR)
