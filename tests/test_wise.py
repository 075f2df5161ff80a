import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from wise import best_place, blend, place_name


def test_a_blend_of_weights_from_a_file_with_those_on_a_gpu():
    """A checkpoint is loaded to the CPU; torch's fake tensors know of devices that are not here."""
    with FakeTensorMode():
        mixed = blend({"w": torch.zeros(2)}, {"w": torch.ones(2, device="cuda")}, 0.25)
    assert mixed["w"].device.type == "cuda"


def test_a_blend_by_hand():
    start, end = ({"w": torch.tensor([w]), "seen": torch.tensor(n)} for w, n in ((0.0, 3), (4.0, 9)))
    assert {name: value.item() for name, value in blend(start, end, 0.25).items()} == {"w": 1.0, "seen": 9}


def test_the_place_of_the_lowest_loss_is_told_and_all_are_said():
    start, end, said = {"w": torch.zeros(())}, {"w": torch.full((), 4.0)}, []
    assert best_place(start, end, lambda weights: abs(weights["w"].item() - 2.5), said.append) == (0.5, 0.5)
    assert said == ["val loss on the way from the head alone to the last epoch: "
                    "at 0% 2.500, at 25% 1.500, at 50% 0.500, at 75% 0.500, at 100% 1.500"]  # of two alike, the lesser change


def test_a_place_is_named_as_a_person_would():
    names = ["the head alone", "75% of the way from the head alone to epoch 8", "epoch 8"]
    assert [place_name(share, 8) for share in (0, 0.75, 1)] == names
