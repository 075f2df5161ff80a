"""The evaluation crop and the test-time views: from a photo uint8 (H, W, 3) to squares uint8 (S, S, 3), nothing drawn at random."""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np


class View(NamedTuple):
    """One way to look at a photo: how much closer than the evaluation crop, where, and whether mirrored."""

    zoom: float = 1.0   # 1 = the evaluation crop; below 1 shows more of the photo
    x: float = 0.0      # -1 = the window at the left edge, 0 = in the middle, 1 = at the right
    y: float = 0.0      # -1 = top, 1 = bottom
    mirrored: bool = False


# Identity first, then mirrored, then nearer, farther and off-centre, each with its mirror image.
VIEWS = tuple(View(*place, mirrored) for place in [
    (1.0, 0, 0), (1.2, 0, 0), (0.85, 0, 0), (1.2, -1, -1), (1.2, 1, 1), (1.2, 1, -1), (1.2, -1, 1), (1.4, 0, 0)
] for mirrored in (False, True))
ANSWER_VIEWS = 8  # of each photo in an answer, unless --tta says otherwise; docs/EXPERIMENTS.md has what they bring


class FixedViews:
    """(photo uint8 (H, W, 3), any seed) → the first `views` of VIEWS, uint8 (views, size, size, 3). 1 = the evaluation crop."""

    def __init__(self, size: int, crop: float, views: int = 1):
        if not 1 <= views <= len(VIEWS):
            raise ValueError(f"{views} views: there are 1 to {len(VIEWS)}")
        self.size, self.crop, self.count = size, crop, views

    def __call__(self, photo: np.ndarray, seed: int) -> np.ndarray:
        return np.stack([crop_view(photo, self.size, self.crop, view) for view in VIEWS[:self.count]])


def crop_view(photo: np.ndarray, size: int, crop: float, view: View = VIEWS[0]) -> np.ndarray:
    """The square that `view` sees of a photo uint8 (H, W, 3), as uint8 (size, size, 3).

    crop: share of the short side that the evaluation crop shows (timm's crop_pct). The window stays inside the photo.
    """
    height, width = photo.shape[:2]
    side = max(1, min(round(min(height, width) * crop / view.zoom), height, width))
    top, left = round((height - side) * (1 + view.y) / 2), round((width - side) * (1 + view.x) / 2)
    square = resize(photo[top:top + side, left:left + side], size, size)
    return cv2.flip(square, 1) if view.mirrored else square


def resize(img: np.ndarray, height: int, width: int) -> np.ndarray:
    """Averages where it shrinks to half or less, so that no detail turns into noise. Above that, each pixel that comes out is mixed from
    its four neighbours, which then leaves no pixel out; averaging takes OpenCV eight times as long at such sizes."""
    halves = img.shape[0] >= 2 * height and img.shape[1] >= 2 * width
    return cv2.resize(img, (width, height), interpolation=cv2.INTER_AREA if halves else cv2.INTER_LINEAR)
