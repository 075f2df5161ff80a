import pytest
import torch

from schedule import make_schedule, make_sizes, training_sizes


@pytest.mark.parametrize(("kind", "rates"), [
    # 20 steps, the first two climb from 0; rate 1
    ("cosine", {0: 0, 1: 0.5, 2: 1, 11: 0.5, 19: 0.0076}),
    ("restarts", {1: 0.5, 2: 1, 5: 0.5, 8: 0.5, 14: 0.25, 11: 0.25}),
    ("step", {1: 0.5, 2: 1, 11: 1, 12: 0.1, 15: 0.1, 16: 0.01, 19: 0.01}),
])
def test_schedules_by_hand(kind, rates):
    optimizer = torch.optim.SGD([{"params": [torch.zeros(1)]}, {"params": [torch.zeros(1)], "lr_scale": 0.5}], 1.0)
    schedule = make_schedule(kind, optimizer, 20, 0.1)
    for step, rate in rates.items():
        schedule(step)
        assert optimizer.param_groups[0]["lr"] == pytest.approx(rate, abs=1e-3)
        assert optimizer.param_groups[1]["lr"] == pytest.approx(rate / 2, abs=1e-3)


def test_sizes_grow_by_hand_to_all_of_it():
    resize = make_sizes(0.5, 1.0, 90)  # from 112 at step 0 to 224 at step 60
    images = torch.randint(0, 256, (2, 3, 224, 224), dtype=torch.uint8)
    assert [resize(images, step).shape[-1] for step in (0, 10, 30, 50, 59)] == [128, 128, 160, 192, 224]
    assert all(resize(images, step) is images for step in (59, 60, 89))
    board = torch.zeros(1, 3, 288, 288, dtype=torch.uint8)  # to 128: at half its size any way would do
    board[..., ::2] = 200  # stripes of one pixel become their mean, not a pattern of their own
    assert (resize(board, 0)[..., 4:-4] - 100).abs().max() < 25
    assert make_sizes(1.0, 1.0, 90)(images, 0) is images
    assert resize(images[..., :120, :120], 0).shape[-1] == 120  # small already


def test_training_may_end_below_the_size_that_is_asked():
    images = torch.zeros(1, 3, 320, 320, dtype=torch.uint8)
    for begin, sizes in [(0.6, [192, 192, 192, 192]), (0.4, [128, 160, 192, 192])]:
        resize = make_sizes(begin, 0.6, 90)
        assert [resize(images, step).shape[-1] for step in (0, 30, 60, 89)] == sizes


@pytest.mark.parametrize(("size", "begin", "end", "sizes"), [
    (320, 0.4, 0.6, [128, 160, 192]), (320, 0.6, 0.6, [192]), (300, 0.7, 1.0, [224, 256, 288, 300]),
    (224, 1.0, 1.0, [224]), (128, 0.5, 0.5, [128])])
def test_the_sizes_of_a_training_are_known_before(size, begin, end, sizes):
    resize, images = make_sizes(begin, end, 30), torch.zeros(1, 3, size, size, dtype=torch.uint8)
    assert training_sizes(size, begin, end) == sizes == sorted({resize(images, step).shape[-1] for step in range(31)})
