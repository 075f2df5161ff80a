import albumentations as A
import cv2
import numpy as np
import pytest
from conftest import gradient
from hypothesis import given
from hypothesis import strategies as st

import transforms
from transforms import RandomErasing, RandomScaleCrop, RandomViews, training_transform
from views import crop_view


@pytest.fixture
def photo(rng) -> np.ndarray:
    return cv2.resize(rng.integers(0, 256, (15, 20, 3), dtype=np.uint8), (320, 240), interpolation=cv2.INTER_CUBIC)


@given(st.integers(1, 400), st.integers(1, 400), st.integers(8, 96), st.integers(0, 50))
def test_any_photo_becomes_a_square(height, width, size, seed):
    image = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    crop = A.Compose([RandomScaleCrop(size)])
    crop.set_random_seed(seed)
    square = crop(image=image)["image"]
    assert square.shape == (size, size, 3)
    assert square.dtype == np.uint8


def test_the_window_lies_inside_the_photo_and_the_zoom_inside_its_range():
    crop = A.Compose([RandomScaleCrop(50, scale=(1.0, 2.0))])
    sides = []
    for seed in range(200):
        crop.set_random_seed(seed)
        square = crop(image=gradient())["image"].astype(int)
        assert square[..., 1].max() <= 99
        sides.append(square[-1, 0, 1] - square[0, 0, 1] + 1)
        assert abs((square[0, -1, 0] - square[0, 0, 0]) - (square[-1, 0, 1] - square[0, 0, 1])) <= 3  # not stretched
    assert min(sides) < 55
    assert max(sides) > 92
    assert max(sides) <= 101


def test_a_photo_that_does_not_fill_the_crop_is_mirrored_not_blackened():
    crop = A.Compose([RandomScaleCrop(64, scale=(0.5, 0.5))])
    crop.set_random_seed(0)
    assert crop(image=np.full((40, 40, 3), 77, np.uint8))["image"].min() == 77


def test_erasing_paints_one_rectangle_of_the_asked_share():
    erase = A.Compose([RandomErasing(area=(0.1, 0.2), p=1)])
    shares = []
    for seed in range(50):
        erase.set_random_seed(seed)
        changed = (erase(image=np.zeros((100, 100, 3), np.uint8))["image"] > 0).any(2)
        rows, columns = np.flatnonzero(changed.any(1)), np.flatnonzero(changed.any(0))
        box = changed[rows[0]:rows[-1] + 1, columns[0]:columns[-1] + 1]
        assert box.mean() > 0.99
        shares.append(box.size / changed.size)
    assert 0.09 < min(shares) < 0.13
    assert 0.17 < max(shares) < 0.21


def test_erasing_leaves_the_original_alone():
    image = np.zeros((20, 20, 3), np.uint8)
    A.Compose([RandomErasing(p=1)])(image=image)
    assert image.max() == 0


def test_draws_depend_on_the_seed_alone(photo):
    one, two = RandomViews(64, 2, 0.5), RandomViews(64, 2, 0.5)
    two(photo, 99)  # what was drawn before does not matter
    np.testing.assert_array_equal(one(photo, 5), two(photo, 5))
    assert not np.array_equal(one(photo, 5)[0], one(photo, 5)[1])
    assert not np.array_equal(one(photo, 5), one(photo, 6))


def test_each_augmentation_draws_for_itself(monkeypatch):
    monkeypatch.setattr(transforms, "training_transform", lambda *_: A.Compose([A.HorizontalFlip(p=0.5), A.VerticalFlip(p=0.5)]))
    corner = np.zeros((2, 2, 3), np.uint8)
    corner[0, 0] = 255
    views = RandomViews(2, 1, 0.5)
    found = [tuple(np.argwhere(views(corner, seed)[0, ..., 0])[0]) for seed in range(400)]
    shares = [found.count(place) / 400 for place in [(0, 0), (0, 1), (1, 0), (1, 1)]]  # plain, mirrored, upside down, both
    assert min(shares) > 0.18
    assert max(shares) < 0.32


def test_each_augmentation_of_the_entry_is_there_and_acts(photo):
    pipeline = training_transform(64, 0.5)
    names = [type(t).__name__ for t in pipeline.transforms]
    assert names == ["RandomScaleCrop", "HorizontalFlip", "VerticalFlip", "ShiftScaleRotate", "RandomBrightnessContrast", "OneOf",
                     "RandomErasing"]
    noises = pipeline.transforms[5].transforms
    assert [type(t).__name__ for t in noises] == ["GaussNoise", "CLAHE", "ImageCompression", "RandomGamma", "Posterize", "Blur"]
    square = crop_view(photo, 64, 1.0)
    for t in [*pipeline.transforms[1:5], *noises, pipeline.transforms[6]]:
        t.p = 1
        t.set_random_seed(1)
        changed = t(image=square)["image"]
        assert not np.array_equal(changed, square), t
        if t in noises:  # plausible: the eye sees the same photo
            assert np.abs(changed.astype(int) - square).mean() < 30, t


def test_how_often_by_hand():
    _, mirror, _, turn, light, noise, erase = training_transform(64, augment=0.25).transforms
    assert [t.p for t in (mirror, turn, light, noise, erase)] == pytest.approx([0.5, 0.25, 0.25, 0.15, 0.1])


def test_a_wrong_argument_raises(monkeypatch):
    monkeypatch.setattr(transforms.A, "GaussNoise", lambda **_: A.GaussNoise.__call__ and A.Blur(var_limit=(10, 50)))
    with pytest.raises(UserWarning, match="var_limit"):
        training_transform(64, 0.5)


@pytest.mark.parametrize("make", [lambda: RandomScaleCrop(64, scale=(2, 1)), lambda: RandomErasing(area=(0.5, 1.5)),
                                  lambda: RandomErasing(ratio=(0, 1))])
def test_wrong_ranges_raise(make):
    with pytest.raises(ValueError, match=r"scale|area|ratio"):
        make()


def test_the_colours_stay_those_of_the_photo():
    photo = np.full((90, 120, 3), (200, 50, 10), np.uint8)
    assert (np.abs(RandomViews(64, 4, 0.0)(photo, 0).astype(int) - photo[0, 0]) <= 1).all()
