import numpy as np
import pytest
from conftest import gradient
from hypothesis import given
from hypothesis import strategies as st

from views import ANSWER_VIEWS, HEAD_VIEWS, VIEWS, FixedViews, View, crop_view


@given(st.integers(1, 400), st.integers(1, 400), st.integers(8, 96), st.sampled_from(VIEWS))
def test_any_photo_becomes_a_square_in_any_view(height, width, size, view):
    square = crop_view(np.zeros((height, width, 3), np.uint8), size, 0.875, view)
    assert square.shape == (size, size, 3)
    assert square.dtype == np.uint8


def test_the_first_view_is_the_evaluation_crop_and_the_second_its_mirror_image(rng):
    noise = rng.integers(0, 256, (240, 320, 3), dtype=np.uint8)
    one, two = FixedViews(64, 0.875, 2)(noise, 0)
    np.testing.assert_array_equal(one, crop_view(noise, 64, 0.875))
    np.testing.assert_array_equal(two, one[:, ::-1])
    assert len({view.tobytes() for view in FixedViews(64, 0.875, len(VIEWS))(noise, 0)}) == len(VIEWS)


def test_the_evaluation_crop_is_the_middle():
    square = crop_view(gradient(), 50, 0.5)[..., :2].astype(float)
    assert square.mean((0, 1)) == pytest.approx([99.5, 49.5], abs=0.6)
    assert square[0, 0] == pytest.approx([75, 25], abs=1)


def test_corner_views_reach_the_corners():
    square = crop_view(gradient(), 50, 1.0, View(2.0, -1, 1))
    assert square[-1, 0, :2].tolist() == pytest.approx([0, 99], abs=1)


def test_a_blurred_view_shows_the_same_with_fewer_pixels(rng):
    noise = rng.integers(0, 256, (256, 256, 3), dtype=np.uint8)
    sharp, blurred = crop_view(noise, 64, 1.0), crop_view(noise, 64, 1.0, View(detail=1 / 2))
    np.testing.assert_allclose(blurred.reshape(4, 16, 4, 16, 3).mean((1, 3)), sharp.reshape(4, 16, 4, 16, 3).mean((1, 3)), atol=2)
    assert blurred.std() < 0.6 * sharp.std()
    assert [view.detail < 1 for view in VIEWS].index(True) < ANSWER_VIEWS  # an answer asks some
    flat = np.full((40, 40, 3), 77, np.uint8)
    assert (crop_view(flat, 64, 1.0, View(detail=1 / 3)) == 77).all()


@pytest.mark.parametrize("views", [0, 17])
def test_there_are_sixteen_views(views):
    with pytest.raises(ValueError, match=f"{views} views: there are 1 to 16"):
        FixedViews(64, 1.0, views)


def test_a_photo_is_as_large_as_the_nearest_view_needs():
    assert FixedViews(224, 0.875).min_side == 256           # 224 / 0.875
    assert FixedViews(224, 0.875, HEAD_VIEWS).min_side == 512    # 1 / 2
    assert FixedViews(224, 0.875, 8).min_side == 307        # of which the nearest shows 1 / 1.2 a side
