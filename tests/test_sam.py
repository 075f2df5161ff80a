import copy

import pytest
import torch
from pytorch_optimizer import SAM as OtherSAM
from torch import nn

from sam import SAM, frozen_batchnorm


def norm_of(params) -> torch.Tensor:
    return torch.nn.utils.get_total_norm([p.grad for p in params])


def sam_step(optimizer: SAM, params, loss_of) -> None:
    loss_of().backward()
    if optimizer.due():
        optimizer.ascend()
        loss_of().backward()
        optimizer.descend()
    optimizer.step(norm_of(params))


def test_sam_step_by_hand():
    # f(w) = w^2 / 2 at w = 2: g = 2, e = rho = 0.5, g(w + e) = 2.5, w' = 2 - 0.1 * 2.5
    w = nn.Parameter(torch.tensor(2.0))
    sam_step(SAM(torch.optim.SGD([w], 0.1), rho=0.5), [w], lambda: w**2 / 2)
    assert w.item() == pytest.approx(1.75)


def test_asam_step_by_hand():
    # f(w) = w^2 / 2 at w = 2: T = 2.01, T g = 4.02 = |T g|, e = rho T^2 g / |T g| = 0.5 * 2.01 = 1.005, g(w + e) = 3.005
    w = nn.Parameter(torch.tensor(2.0))
    sam_step(SAM(torch.optim.SGD([w], 0.1), rho=0.5, adaptive=True), [w], lambda: w**2 / 2)
    assert w.item() == pytest.approx(2 - 0.3005)


def small_network() -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 16), nn.Tanh(), nn.Linear(16, 3)), torch.randn(32, 5), torch.randint(3, (32,))


@pytest.mark.parametrize("adaptive", [False, True])
def test_twenty_steps_equal_pytorch_optimizer_s(adaptive):
    model, x, y = small_network()
    other = copy.deepcopy(model)
    ours = SAM(torch.optim.SGD(model.parameters(), 0.1, 0.9), rho=0.05, adaptive=adaptive)
    theirs = OtherSAM(other.parameters(), torch.optim.SGD, rho=0.05, adaptive=adaptive, lr=0.1, momentum=0.9)
    for _ in range(20):
        sam_step(ours, list(model.parameters()), lambda: nn.functional.cross_entropy(model(x), y))
        nn.functional.cross_entropy(other(x), y).backward()
        theirs.first_step(zero_grad=True)
        nn.functional.cross_entropy(other(x), y).backward()
        theirs.second_step(zero_grad=True)
    for a, b in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=5e-4 if adaptive else 1e-6)  # their ASAM has T = |w|, without + 0.01


def test_rho_zero_is_plain_sgd():
    model, x, y = small_network()
    other = copy.deepcopy(model)
    ours, sgd = SAM(torch.optim.SGD(model.parameters(), 0.1, 0.9), rho=0), torch.optim.SGD(other.parameters(), 0.1, 0.9)
    for _ in range(5):
        sam_step(ours, list(model.parameters()), lambda: nn.functional.cross_entropy(model(x), y))
        sgd.zero_grad()
        nn.functional.cross_entropy(other(x), y).backward()
        sgd.step()
    for a, b in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_ascent_has_length_rho_and_descent_returns_bit_for_bit():
    model, x, y = small_network()
    before = copy.deepcopy(model.state_dict())
    optimizer = SAM(torch.optim.SGD(model.parameters(), 0.1), rho=0.05)
    nn.functional.cross_entropy(model(x), y).backward()
    optimizer.ascend()
    moved = torch.cat([(p - before[n]).flatten() for n, p in model.named_parameters()])
    assert moved.norm().item() == pytest.approx(0.05, rel=1e-4)
    optimizer.descend()
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, before[name])


def test_the_ascent_does_not_change_with_the_scale_of_the_gradient():
    w, v = nn.Parameter(torch.tensor([1.0, 2.0])), nn.Parameter(torch.tensor([1.0, 2.0]))
    for p, scale in ((w, 1), (v, 65536)):
        (scale * (p**2).sum()).backward()
        SAM(torch.optim.SGD([p], 0.1)).ascend()
    torch.testing.assert_close(w, v)


def test_every_and_start_say_which_steps_climb():
    w = nn.Parameter(torch.tensor(1.0))
    optimizer, due = SAM(torch.optim.SGD([w], 0.1), every=3, start=4), []
    for _ in range(12):
        due.append(optimizer.due())
        sam_step(optimizer, [w], lambda: w**2)
    assert [i for i, d in enumerate(due) if d] == [4, 7, 10]


@pytest.mark.parametrize("bad_pass", [1, 2])
def test_a_gradient_that_is_not_finite_skips_the_step_and_is_counted(bad_pass):
    w = nn.Parameter(torch.tensor([1.0, 2.0]))
    optimizer = SAM(torch.optim.SGD([w], 0.1, 0.9), rho=0.5)
    sam_step(optimizer, [w], lambda: (w**2).sum())
    weight, momentum = w.detach().clone(), copy.deepcopy(optimizer.state_dict()["base"])
    passes = iter([float("inf") if bad_pass == 1 else 1.0, float("nan")])
    sam_step(optimizer, [w], lambda: (w**2).sum() * next(passes))
    assert torch.equal(w, weight)
    torch.testing.assert_close(optimizer.state_dict()["base"], momentum, rtol=0, atol=0)
    assert (optimizer.steps, optimizer.skipped, optimizer.skipped_in_a_row) == (2, 1, 1)
    sam_step(optimizer, [w], lambda: (w**2).sum())
    assert (optimizer.skipped, optimizer.skipped_in_a_row) == (1, 0)
    assert not torch.equal(w, weight)


def test_momentum_and_counters_survive_a_restart():
    def run(restart: bool) -> torch.Tensor:
        model, x, y = small_network()
        optimizer = SAM(torch.optim.SGD(model.parameters(), 0.1, 0.9), every=2)
        for step in range(6):
            if restart and step == 3:
                state = copy.deepcopy(optimizer.state_dict())
                optimizer = SAM(torch.optim.SGD(model.parameters(), 0.1, 0.9), every=2)
                optimizer.load_state_dict(state)
            sam_step(optimizer, list(model.parameters()), lambda: nn.functional.cross_entropy(model(x), y))
        return torch.cat([p.flatten() for p in model.parameters()])
    assert torch.equal(run(True), run(False))


def test_it_wraps_any_torch_optimizer():
    w = nn.Parameter(torch.tensor(2.0))
    optimizer = SAM(torch.optim.AdamW([w], 0.1))
    for _ in range(50):
        sam_step(optimizer, [w], lambda: w**2)
    assert abs(w.item()) < 0.5


def test_frozen_batchnorm_normalises_by_the_batch_but_learns_nothing_from_it():
    layer = nn.Sequential(nn.BatchNorm2d(3))
    x = torch.randn(8, 3, 4, 4) * 5 + 2
    before = copy.deepcopy(layer.state_dict())
    with frozen_batchnorm(layer):
        y = layer(x)
    torch.testing.assert_close(layer.state_dict(), before, rtol=0, atol=0)
    assert y.mean().abs() < 1e-5
    layer(x)
    assert not torch.equal(layer[0].running_mean, before["0.running_mean"])


def test_frozen_batchnorm_ends_on_an_error_too():
    layer = nn.Sequential(nn.BatchNorm2d(3))

    def fail():
        with frozen_batchnorm(layer):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert layer[0].track_running_stats


@pytest.mark.parametrize(("arguments", "name"), [({"rho": -1}, "rho -1"), ({"rho": float("nan")}, "rho nan"), ({"every": 0}, "every 0")])
def test_wrong_arguments_are_named(arguments, name):
    with pytest.raises(ValueError, match=name):
        SAM(torch.optim.SGD([nn.Parameter(torch.ones(1))], 0.1), **arguments)
