"""From a photo uint8 (H, W, 3) to a square uint8 (S, S, 3), augmented for training; views.py crops for evaluation."""

from __future__ import annotations

import os
import random
import warnings

import cv2
import numpy as np

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # else its import asks PyPI for news
import albumentations as A

from views import resize

TRAIN_SCALE = (0.9, 1.5)  # how large the training crop shows the photo, beside a crop that its short side just fills


class RandomScaleCrop(A.ImageOnlyTransform):
    """Zoom by a random factor, then cut a square of `size` pixels at a random place.

    scale: (low, high) the photo's short side is low to high times the crop's, drawn log-uniformly; below 1 the photo
    does not fill the crop and is mirrored at its borders. The window is cut from the photo first and resized after, so
    the cost does not grow with the photo.
    """

    def __init__(self, size: int, scale: tuple[float, float] = TRAIN_SCALE, p: float = 1.0):
        super().__init__(p=p)
        if not 0.25 <= scale[0] <= scale[1]:
            raise ValueError(f"scale {scale}: give (low, high) with 0.25 <= low <= high, e.g. {TRAIN_SCALE}")
        self.size, self.scale = size, scale

    def get_params_dependent_on_data(self, params: dict, data: dict) -> dict:
        height, width = params["shape"][:2]
        zoom = np.exp(self.py_random.uniform(*np.log(self.scale)))
        side = max(1, round(min(height, width) / zoom))          # of the window, in pixels of the photo
        free_y, free_x = height - side, width - side             # negative: the window sticks out of the photo
        return {"top": round(self.py_random.random() * free_y), "left": round(self.py_random.random() * free_x), "side": side}

    def apply(self, img: np.ndarray, top: int, left: int, side: int, **_) -> np.ndarray:
        height, width = img.shape[:2]
        y0, y1, x0, x1 = max(top, 0), min(top + side, height), max(left, 0), min(left + side, width)
        scale = self.size / side
        inner_h, inner_w = max(1, round((y1 - y0) * scale)), max(1, round((x1 - x0) * scale))
        inner = resize(img[y0:y1, x0:x1], inner_h, inner_w)
        above, before = round((y0 - top) * scale), round((x0 - left) * scale)
        above, before = min(above, self.size - inner_h), min(before, self.size - inner_w)
        return cv2.copyMakeBorder(inner, above, self.size - inner_h - above, before, self.size - inner_w - before,
                                  cv2.BORDER_REFLECT)


class RandomErasing(A.ImageOnlyTransform):
    """Paint a random rectangle with noise, so that no single part decides (Zhong et al. 2020, arXiv 1708.04896).

    area: (low, high) share of the picture; ratio: (low, high) height over width, drawn log-uniformly. A rectangle that
    would stick out is trimmed to the picture's side.
    """

    def __init__(self, area: tuple[float, float] = (0.02, 0.15), ratio: tuple[float, float] = (0.3, 3.3), p: float = 0.2):
        super().__init__(p=p)
        if not 0 < area[0] <= area[1] < 1:
            raise ValueError(f"area {area}: give (low, high) shares of the picture, 0 < low <= high < 1")
        if not 0 < ratio[0] <= ratio[1]:
            raise ValueError(f"ratio {ratio}: give (low, high) with 0 < low <= high")
        self.area, self.ratio = area, ratio

    def get_params_dependent_on_data(self, params: dict, data: dict) -> dict:
        height, width, channels = params["shape"]
        area = self.py_random.uniform(*self.area) * height * width
        ratio = np.exp(self.py_random.uniform(*np.log(self.ratio)))
        h = min(height, max(1, round(np.sqrt(area * ratio))))
        w = min(width, max(1, round(np.sqrt(area / ratio))))
        top, left = self.py_random.randint(0, height - h), self.py_random.randint(0, width - w)
        noise = self.random_generator.integers(0, 256, (h, w, channels), dtype=np.uint8)
        return {"top": top, "left": left, "noise": noise}

    def apply(self, img: np.ndarray, top: int, left: int, noise: np.ndarray, **_) -> np.ndarray:
        img = img.copy()
        img[top:top + noise.shape[0], left:left + noise.shape[1]] = noise
        return img


def training_transform(size: int, augment: float) -> A.Compose:
    """The entry's augmentations at strengths a photographer would call plausible. Crop first: the rest costs less then.

    augment: 0 to 1, the probability of turning, and of changing brightness and contrast; noise has 0.6 of it, erasing 0.4.
    albumentations 2 only warns of a wrong argument and goes on without it; here the warning is an error.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message="ShiftScaleRotate is a special case")  # true, and the entry's name
        return A.Compose([
            RandomScaleCrop(size),
            A.HorizontalFlip(p=0.5),
            A.VerticalFlip(p=0.1),                                # photos from above have no up; most others do
            A.ShiftScaleRotate(shift_limit=0.05, scale_limit=0.1, rotate_limit=20, border_mode=cv2.BORDER_REFLECT_101, p=augment),
            A.RandomBrightnessContrast(brightness_limit=0.15, contrast_limit=0.15, p=augment),
            A.OneOf([
                A.GaussNoise(std_range=(0.012, 0.028)),           # share of 255: a high-ISO sensor
                A.CLAHE(clip_limit=(1, 2)),
                A.ImageCompression(quality_range=(40, 90)),
                A.RandomGamma(gamma_limit=(80, 125)),             # percent
                A.Posterize(num_bits=(5, 7)),
                A.Blur(blur_limit=(3, 5)),                        # pixels
            ], p=0.6 * augment),
            RandomErasing(p=0.4 * augment),
        ])


class RandomViews:
    """(photo uint8 (H, W, 3), seed) → `views` draws of the training pipeline, uint8 (views, size, size, 3).

    min_side: pixels of a photo's short side below which its nearest zoom would be blurred.
    """

    def __init__(self, size: int, views: int, augment: float):
        self.pipeline, self.count, self.min_side = training_transform(size, augment), views, round(size * TRAIN_SCALE[1])

    def __call__(self, photo: np.ndarray, seed: int) -> np.ndarray:
        # One pair of generators for all: set_random_seed would start each transform at the same number, so that the photos that
        # are mirrored would be those that are turned, brightened and erased as well, and the others would stay plain.
        self.pipeline.set_random_state(np.random.default_rng(seed), random.Random(seed))
        return np.stack([self.pipeline(image=photo)["image"] for _ in range(self.count)])
