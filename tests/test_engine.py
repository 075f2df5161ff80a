import copy
import os
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import SMALL, loader_of

import engine
import fitting
import prepare
import trust
from config import Config
from model import build_model
from sam import SAM
from views import VIEWS, crop_view


@pytest.fixture
def batch():
    torch.manual_seed(0)
    return torch.randint(0, 256, (6, 3, 64, 64), dtype=torch.uint8), F.one_hot(torch.arange(6) % 3, 3).float()


def test_a_sam_step_climbs_by_the_same_batch_and_moves_batchnorm_once(accelerator, batch):
    torch.manual_seed(1)
    model = build_model(SMALL, 3, "none").train()
    plain, frozen = copy.deepcopy(model), copy.deepcopy(model)
    loss = engine.train_step(model, *batch, F.cross_entropy, SAM(torch.optim.SGD(model.parameters(), 0.1), rho=0.1), accelerator)

    # worked by hand, from the paper
    F.cross_entropy(frozen(batch[0]), batch[1]).backward()
    grads = {n: p.grad.clone() for n, p in frozen.named_parameters()}
    norm = torch.cat([g.flatten() for g in grads.values()]).norm()
    with torch.no_grad():
        for name, p in frozen.named_parameters():
            p.add_(0.1 * grads[name] / norm)
    frozen.zero_grad()
    F.cross_entropy(frozen(batch[0]), batch[1]).backward()
    climbed = {n: p.grad for n, p in frozen.named_parameters()}
    assert loss.item() == pytest.approx(F.cross_entropy(plain(batch[0]), batch[1]).item(), rel=1e-5)
    for name, p in plain.named_parameters():
        torch.testing.assert_close(model.get_parameter(name), p - 0.1 * climbed[name], rtol=1e-3, atol=1e-5)
    for name, buffer in plain.named_buffers():  # plain saw the batch once
        torch.testing.assert_close(model.get_buffer(name), buffer, rtol=1e-4, atol=1e-5)


def test_channels_last_and_uint8_give_the_plain_numbers(batch):
    model = build_model(SMALL, 3, "none").eval()
    plain = copy.deepcopy(model).to(memory_format=torch.contiguous_format)
    with torch.inference_mode():
        torch.testing.assert_close(model(batch[0].to(memory_format=torch.channels_last)), plain(batch[0].float()), rtol=1e-3, atol=1e-4)


def test_clipping_bounds_the_gradient_that_is_trained_on(accelerator, batch):
    model = build_model(SMALL, 3, "none").train()
    before = [p.detach().clone() for p in model.parameters()]
    engine.train_step(model, *batch, F.cross_entropy, SAM(torch.optim.SGD(model.parameters(), 1.0), rho=0.0), accelerator, clip=1e-3)
    moved = torch.cat([(p - b).flatten() for p, b in zip(model.parameters(), before, strict=True)]).norm()
    assert moved.item() == pytest.approx(1e-3, rel=0.01)


def test_probabilities_are_averaged_over_views_in_the_order_of_the_table(accelerator, drawn):
    model = build_model(SMALL, 9, "none")
    paths = sorted(map(str, drawn.rglob("*.jpg")))[:12]
    probs, errors = engine.predict_probs(model, loader_of(paths, 5, views=3), 9, accelerator)
    assert not errors
    from photos import read_photo
    for i in (0, 7, 11):
        views = np.stack([crop_view(read_photo(paths[i]), 64, 1.0, view) for view in VIEWS[:3]])
        with torch.inference_mode():
            expected = model(torch.from_numpy(views).permute(0, 3, 1, 2)).softmax(1).mean(0)
        torch.testing.assert_close(torch.from_numpy(probs[i]), expected, rtol=1e-3, atol=1e-4)


def test_a_temperature_flattens(accelerator, drawn):
    model, paths = build_model(SMALL, 9, "none"), sorted(map(str, drawn.rglob("*.jpg")))[:5]
    sharp, flat = (engine.predict_probs(model, loader_of(paths, 5), 9, accelerator, t)[0].max() for t in (0.5, 50.0))
    assert flat < sharp
    assert flat == pytest.approx(1 / 9, abs=0.01)


def test_views_are_averaged_before_the_temperature(accelerator, drawn):
    torch.manual_seed(1)
    model, paths = build_model(SMALL, 9, "none"), sorted(map(str, drawn.rglob("*.jpg")))[:5]
    torch.nn.init.normal_(model.head.weight, std=30.0)  # views that disagree
    plain, cold = (engine.predict_probs(model, loader_of(paths, 5, views=6), 9, accelerator, t)[0] for t in (1.0, 0.3))
    np.testing.assert_allclose(cold, trust.at_temperature(plain, 0.3), atol=1e-5)
    assert np.abs(cold - plain).max() > 0.01


def test_a_photo_that_cannot_be_read_is_a_nan_row_with_a_reason(accelerator, drawn, tmp_path):
    (tmp_path / "bad.jpg").write_bytes(b"x")
    paths = [*sorted(map(str, drawn.rglob("*.jpg")))[:2], str(tmp_path / "bad.jpg")]
    probs, errors = engine.predict_probs(build_model(SMALL, 9, "none"), loader_of(paths, 1), 9, accelerator)
    assert np.isnan(probs).any(1).tolist() == [False, False, True]
    assert "not a photo" in errors[2]


def test_an_answer_that_is_not_finite_is_none(accelerator, drawn):
    model = build_model(SMALL, 9, "none")
    judge = model.judge

    def overflows(views):
        logits, known = judge(views)
        logits[1, 4] = float("nan")
        return logits, known

    model.judge = overflows
    probs, errors = engine.predict_probs(model, loader_of(sorted(map(str, drawn.rglob("*.jpg")))[:3], 5), 9, accelerator)
    assert np.isnan(probs).all(1).tolist() == [False, True, False]
    assert errors == {1: "the network's answer is not a finite number"}


def test_where_memory_runs_out_photos_are_asked_in_halves(accelerator, batch):
    asked = []

    def network(views):
        asked.append(len(views))
        if len(views) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return views.float().mean((2, 3))

    answers = engine.ask(network, batch[0], accelerator)
    assert torch.equal(answers, batch[0].float().mean((2, 3)))
    assert asked == [6, 3, 2, 1, 3, 2, 1]


def test_answers_and_features_are_the_same_where_memory_is_short(accelerator, drawn):
    model, loader = build_model(SMALL, 9, "none"), loader_of(sorted(map(str, drawn.rglob("*.jpg")))[:5], 5, views=3)
    features = model.features

    def asked():
        found = next(fitting.each_features(model, loader, accelerator, lambda photos: None))[0]
        return torch.from_numpy(engine.predict_probs(model, loader, 9, accelerator)[0]), found

    def short(views):
        if len(views) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return features(views)

    whole, model.features = asked(), short
    torch.testing.assert_close(asked(), whole, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory."), RuntimeError("shapes do not match")])
def test_what_halves_do_not_mend_is_raised(accelerator, batch, error):
    def network(views):
        asked.append(len(views))
        raise error

    asked = []
    with pytest.raises(RuntimeError, match=str(error)):
        engine.ask(network, batch[0], accelerator)
    assert asked == ([6, 3, 2, 1] if isinstance(error, torch.OutOfMemoryError) else [6])


def test_processes_share_the_time_of_an_epoch(monkeypatch):
    monkeypatch.setattr(prepare, "seconds_a_photo", lambda *_: 6.0)
    said = []
    for processes in (1, 2):
        prepare.announce_time(None, 224, 100, Config(rho=0.0, train_share=0.7), SimpleNamespace(num_processes=processes), said.append)
    assert [text.split(" on this")[0] for text in said] == ["an epoch will take about 10.0 min", "an epoch will take about 5.0 min"]
    assert all(text.endswith("(100 photos of 160 x 160)") for text in said)


def test_timing_an_epoch_leaves_the_model_as_it_was(accelerator):
    model = build_model(SMALL, 3, "none")
    before = copy.deepcopy(model.state_dict())
    assert 0 < prepare.seconds_a_photo(model, 64, 2, accelerator, keep_batchnorm=False) < 5
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    assert all(p.grad is None for p in model.parameters())


def test_kept_batchnorm_normalises_by_its_own_statistics_in_training_and_learns_no_others(accelerator, batch):
    model = build_model(SMALL, 3, "none")
    reference = copy.deepcopy(model).eval()
    engine.training_mode(model, keep_batchnorm=True)
    assert model.training
    with torch.no_grad():
        torch.testing.assert_close(model.features(batch[0]), reference.features(batch[0]))
    engine.train_step(model, *batch, F.cross_entropy, SAM(torch.optim.SGD(model.parameters(), 0.1)), accelerator)
    for name, buffer in reference.named_buffers():
        assert torch.equal(model.get_buffer(name), buffer)
    assert not torch.equal(model.head.weight, reference.head.weight)
    engine.training_mode(model, keep_batchnorm=False)
    before = model.get_buffer("backbone.bn1.running_mean").clone()
    model(batch[0])
    assert not torch.equal(model.get_buffer("backbone.bn1.running_mean"), before)
    model.backbone.bn1.requires_grad_(False)  # by --freeze
    engine.training_mode(model, keep_batchnorm=False)
    before = {name: model.get_buffer(f"backbone.{name}.running_mean").clone() for name in ("bn1", "bn2")}
    model(batch[0])
    assert {name: torch.equal(model.get_buffer(f"backbone.{name}.running_mean"), mean) for name, mean in before.items()} == {
        "bn1": True, "bn2": False}
    plain = torch.nn.BatchNorm2d(3, affine=False)  # without weights, as in some backbones
    for keep in (True, False):
        engine.training_mode(plain, keep)
        assert plain.training is not keep


@pytest.mark.parametrize("rho", [0.0, 0.1])
def test_a_batch_in_three_parts_takes_the_step_of_the_whole_batch(accelerator, batch, rho):
    torch.manual_seed(1)
    whole = build_model(SMALL, 3, "none")
    parts = copy.deepcopy(whole)
    for model, accumulate in ((whole, 1), (parts, 3)):
        engine.training_mode(model, keep_batchnorm=True)  # by the batch's own statistics the parts would differ
        engine.train_step(model, *batch, F.cross_entropy, SAM(torch.optim.SGD(model.parameters(), 0.1), rho), accelerator,
                          accumulate=accumulate)
    for a, b in zip(whole.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_memory_that_runs_out_halves_the_parts_and_leaves_no_trace(accelerator, batch, monkeypatch, capsys):
    torch.manual_seed(1)
    model = build_model(SMALL, 3, "none")
    engine.training_mode(model, keep_batchnorm=True)
    reference, step = copy.deepcopy(model), engine.train_step
    engine.train_step(reference, *batch, F.cross_entropy, SAM(torch.optim.SGD(reference.parameters(), 0.1)), accelerator, accumulate=2)

    def small_card(model, images, targets, loss_of, optimizer, accelerator, accumulate):
        if accumulate == 1:  # runs out after the climb
            engine.forward_backward(model, images, targets, loss_of, accelerator)
            optimizer.ascend()
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return step(model, images, targets, loss_of, optimizer, accelerator, accumulate=accumulate)

    monkeypatch.setattr(engine, "train_step", small_card)
    progress = {"accumulate": 1}
    engine.step_in_memory(model, *batch, F.cross_entropy, SAM(torch.optim.SGD(model.parameters(), 0.1)), accelerator, progress)
    assert progress == {"accumulate": 2}
    assert "in 2 parts" in capsys.readouterr().out
    for a, b in zip(model.parameters(), reference.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(("processes", "remedy"), [(1, "even for one photo at a time. Give a smaller --image-size or --model"),
                                                   (2, "with --accumulate 99. Give a higher one")])
def test_memory_that_runs_out_for_one_photo_is_told(batch, monkeypatch, processes, remedy):
    def small_card(*given, **more):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    monkeypatch.setattr(engine, "train_step", small_card)
    with pytest.raises(engine.TrainingError, match=remedy):
        engine.step_in_memory(None, *batch, F.cross_entropy, None, SimpleNamespace(num_processes=processes), {"accumulate": 99})


@pytest.mark.parametrize("rho", [0.0, 0.05])
@pytest.mark.parametrize("accumulate", [1, 3])
def test_a_scaled_loss_takes_the_step_of_the_plain_one(fp16, batch, rho, accumulate):
    torch.manual_seed(1)
    model = build_model(SMALL, 3, "none").eval()  # BatchNorm by its own statistics, so that parts are the whole
    plain = copy.deepcopy(model)
    scaled = fp16.prepare(torch.optim.SGD(model.parameters(), 0.1, momentum=0.9))
    engine.train_step(model, *batch, F.cross_entropy, SAM(scaled, rho), fp16, clip=1.0, accumulate=accumulate)
    fp16.scaler, fp16.native_amp = None, False  # back to what it was
    engine.train_step(plain, *batch, F.cross_entropy, SAM(torch.optim.SGD(plain.parameters(), 0.1, momentum=0.9), rho), fp16, clip=1.0)
    for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("rho", [0.0, 0.05])
def test_a_scaled_loss_that_overflows_skips_the_step_and_lowers_the_scale(fp16, batch, rho):
    torch.manual_seed(1)
    model = build_model(SMALL, 3, "none").eval()
    optimizer = SAM(fp16.prepare(torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)), rho)
    before = copy.deepcopy(model.state_dict())
    engine.train_step(model, *batch, lambda logits, targets: 1e36 * F.cross_entropy(logits, targets), optimizer, fp16, clip=1.0,
                      accumulate=2)
    assert (optimizer.skipped, fp16.scaler.get_scale()) == (1, 2.0**15)
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in before.items())
    engine.train_step(model, *batch, F.cross_entropy, optimizer, fp16, clip=1.0)
    assert (optimizer.skipped, optimizer.skipped_in_a_row) == (1, 0)
    assert not torch.equal(model.head.weight, before["head.weight"])


def test_the_moving_average_starts_at_the_weights_and_forgets_by_its_decay():
    model = torch.nn.Linear(1, 1)
    ema = engine.make_ema(model, 0.9)
    torch.nn.init.constant_(model.weight, 1.0)
    ema.update(model, 1)
    assert ema.module.weight.item() == 1.0
    torch.nn.init.constant_(model.weight, 0.0)
    left = [1.0]
    for step in range(2, 50):
        ema.update(model, step)
        left.append(ema.module.weight.item())
    assert left[1] == pytest.approx(1 - 2 ** (-2 / 3))  # short at first: 1 - (1 + step) ** (-2/3)
    assert left[-1] / left[-2] == pytest.approx(0.9)


def test_an_epoch_moves_the_average_behind_the_weights(accelerator, drawn):
    torch.manual_seed(0)
    model = build_model(SMALL, 9, "none")
    paths = sorted(map(str, drawn.rglob("*.jpg")))[:12]
    ema = engine.make_ema(model, 0.9)
    start, mean, step = model.head.weight.detach().clone(), None, 0

    def follow() -> bool:  # asked after each step: the average by hand, 1 - (1 + step) ** (-2/3) of the old, at most 0.9
        nonlocal mean, step
        keep = min(1 - (1 + step) ** (-2 / 3), 0.9) if step else 0.0
        now = model.head.weight.detach().clone()
        mean, step = now if mean is None else keep * mean + (1 - keep) * now, step + 1
        return False

    seen = []
    model.register_forward_pre_hook(lambda _, images: seen.append(images[0].shape[-1]))
    loader = loader_of(paths, 3)
    engine.train_one_epoch(
        model, loader, iter(loader), torch.arange(12) % 9, F.cross_entropy, SAM(torch.optim.SGD(model.parameters(), 0.1), rho=0.0),
        lambda step: None, ema, accelerator, {"epoch": 0, **engine.EPOCH_START, "accumulate": 1},
        num_classes=9, alpha=0.0, clip=5.0, seed=0, keep_batchnorm=False, stop=follow, tick=lambda loss: None,
        resize=lambda images, step: images[..., :32 * (step + 1), :32 * (step + 1)])
    assert step == 4
    assert seen == [32, 64, 64, 64]  # what is shown grows to the loader's size
    torch.testing.assert_close(ema.module.head.weight, mean)
    assert not torch.allclose(ema.module.head.weight, model.head.weight, atol=1e-4)
    assert not torch.allclose(ema.module.head.weight, start, atol=1e-4)


def test_answers_hold_no_file_of_a_worker_open(drawn, accelerator):
    """Of each batch one stayed open once: 1024, the usual limit, is reached by 4000 photos of eight views."""
    paths, model, opened = sorted(map(str, drawn.rglob("*.jpg")))[:40], build_model(SMALL, 9, "none"), []
    loader = loader_of(paths, 1, workers=1)
    engine.predict(model, loader, 9, accelerator, tick=lambda photos: opened.append(len(os.listdir("/dev/fd"))))
    assert len(opened) == 40
    assert max(opened[20:]) <= max(opened[:20])


def test_the_draws_of_each_step_are_its_own():
    steps = [(seed, epoch, step, process) for seed in (0, 1) for epoch in (0, 1) for step in (0, 1) for process in (0, 1)]
    assert len({engine.step_rng(*step).random() for step in steps}) == len(steps)


def test_who_has_no_photo_of_a_batch_adds_nothing_to_its_gradient(accelerator):
    model = torch.nn.Linear(3, 2)
    engine.forward_backward(model, torch.rand(1, 3), torch.zeros(1, 2), lambda logits, wanted: logits.square().mean(), accelerator,
                            share=0.0)
    assert [parameter.grad.abs().max().item() for parameter in model.parameters()] == [0, 0]


def test_a_row_in_which_any_number_is_not_finite_is_no_answer(accelerator, drawn):
    paths = [str(path) for path in sorted(drawn.glob("*/*_0001.jpg"))[:3]]
    loader = loader_of(paths, 3)

    class Half(torch.nn.Module):
        def judge(self, views):
            return torch.zeros(len(views), 2), torch.tensor([0.5, torch.inf, 0.5])  # sure of its classes, and of nothing else

    probs, known, errors = engine.predict(Half(), loader, 2, accelerator)
    assert errors == {1: engine.NOT_FINITE}
    np.testing.assert_array_equal(probs, [[0.5, 0.5], [np.nan, np.nan], [0.5, 0.5]])
    np.testing.assert_array_equal(known, np.float32([0.5, np.nan, 0.5]))
