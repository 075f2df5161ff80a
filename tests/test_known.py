import copy

import numpy as np
import pytest
import torch
from conftest import SMALL, loader_of

import checkpoint
import engine
import fitting
from checkpoint import CENTRES
from known import Known
from model import build_model
from predict import Predictor


def test_known_by_hand():
    known = Known(2, 2)
    logits = torch.tensor([[50.0, 0.0], [0.0, 0.0]])            # certain: entropy 0; torn: entropy log 2
    val = torch.tensor([[5.0, 0.0], [1.0, 1.0]])                # cosine 1, and 1 / sqrt 2
    known.means[:CENTRES], known.means[CENTRES:] = torch.tensor([2.0, 0.0]), torch.tensor([0.0, 2.0])
    known.set_scale(known.signs(val, logits))
    torch.testing.assert_close(known.centre, torch.tensor([-np.log(2) / 2, (1 + 2**-0.5) / 2], dtype=torch.float32))
    # both signs of both photos lie one deviation from their mean: z = (1, 1) and (-1, -1)
    torch.testing.assert_close(known(val, logits), torch.tensor([2.0, -2.0]).sigmoid(), atol=1e-4, rtol=0)
    # as certain as the first, but across both classes' means: lower
    assert known(torch.tensor([[-1.0, -1.0]]), logits[:1]) < known(val, logits).min()


def test_the_length_of_features_and_shifted_logits_change_nothing():
    torch.manual_seed(0)
    known, features, logits = Known(3, 8), torch.rand(9, 8), torch.randn(9, 3)
    known.means.copy_(features[:3].repeat(CENTRES, 1))
    known.set_scale(known.signs(features, logits))
    torch.testing.assert_close(known(7 * features, logits + 5), known(features, logits))


@pytest.fixture(scope="module")
def learnt(drawn, accelerator):
    """A small model whose head knows five genera, and what learn_trust found with all photos on both sides."""
    torch.manual_seed(0)
    model = build_model(SMALL, 5, "none")
    paths = [str(path) for folder in sorted(drawn.iterdir())[:5] for path in sorted(folder.glob("*.jpg"))]
    loader = loader_of(paths, 16)
    labels = torch.arange(60) // 12
    fitting.fit_heads(model, [(loader, labels)], "none", accelerator, lambda photos: None)
    return model, loader, *fitting.learn_trust(model, loader, labels, loader, labels, accelerator)


def test_each_number_of_views_has_the_temperature_and_limit_of_its_own_answers(learnt, accelerator, drawn):
    model, labels = copy.deepcopy(learnt[0]), torch.arange(60) // 12
    paths = [str(path) for folder in sorted(drawn.iterdir())[:5] for path in sorted(folder.glob("*.jpg"))]
    train_loader = loader_of(paths, 16)

    def trusted(views: int) -> dict:
        return fitting.learn_trust(model, train_loader, labels, loader_of(paths, 16, views=views), labels, accelerator)[1]

    of_four, of_two = trusted(4), trusted(2)
    assert of_four["temperatures"][:2] == pytest.approx(of_two["temperatures"], rel=1e-3)
    assert len(set(of_four["temperatures"])) == len(set(of_four["known_limits"])) == 4
    assert all(0 < limit < 1 for limit in of_four["known_limits"])


def test_the_centres_are_those_of_each_class_s_photos(learnt):
    model, loader, *_ = learnt
    with torch.inference_mode():
        features = torch.cat([model.features(images.flatten(0, -4)) for images, _, _ in loader])
    features = torch.nn.functional.normalize(features).view(5, 12, -1)
    centres = model.known.means.view(5, CENTRES, -1)
    for photos, own in zip(features, centres, strict=True):
        nearest = torch.cdist(photos, own).argmin(1)
        assert len(nearest.unique()) == CENTRES
        torch.testing.assert_close(own, torch.stack([photos[nearest == j].mean(0) for j in range(CENTRES)]), atol=1e-5, rtol=1e-4)


def test_a_class_of_two_looks_knows_both_and_nothing_in_between():
    features = np.repeat([[1.0, 0], [0, 1], [-1, 0]], 20, axis=0).astype(np.float32)
    labels = np.repeat([0, 0, 1], 20)
    labels[-1] = 2                                                          # a class of one photo
    known = Known(4, 2)                                                     # and one without
    known.means.copy_(torch.from_numpy(fitting.class_centres(features, labels, 4)))
    near = known.signs(torch.tensor([[1.0, 0], [0, 1], [1, 1], [-1, 0]]), torch.zeros(4, 4))[:, 1]
    torch.testing.assert_close(near, torch.tensor([1, 1, 2**-0.5, 1]))
    assert (known.means.view(4, CENTRES, 2)[2] == torch.tensor([-1.0, 0])).all()
    assert (known.means.view(4, CENTRES, 2)[3] == 0).all()


def test_a_checkpoint_of_before_there_were_several_centres_answers_as_it_did(run, drawn, tmp_path):
    saved = {name: value for name, value in checkpoint.load(run / "best.pt").items() if name != "format"}
    several = saved["weights"]["known.means"]
    checkpoint.save(tmp_path / "old.pt", saved | {"weights": saved["weights"] | {"known.means": several[::CENTRES].clone()}})
    checkpoint.save(tmp_path / "same.pt", saved | {"weights": saved["weights"] | {"known.means": several[::CENTRES].repeat(CENTRES, 1)}})
    paths = sorted(drawn.rglob("*.jpg"))[:9]
    last = {name: value for name, value in checkpoint.load(run / "last.pt").items() if name != "format"}
    last["learner"] = last["learner"] | {"known.means": several[::CENTRES].clone()}
    checkpoint.save(tmp_path / "last.pt", last)                             # such a run goes on
    assert checkpoint.load(tmp_path / "last.pt")["learner"]["known.means"].shape == several.shape
    old, same, new = (Predictor(file).answers(paths)[1] for file in (tmp_path / "old.pt", tmp_path / "same.pt", run / "best.pt"))
    np.testing.assert_allclose(old, same, atol=1e-6)
    assert not np.allclose(old, new)


def test_the_limit_calls_one_photo_in_twenty_unknown(learnt, accelerator):
    model, loader, answers, trust = learnt
    probs, known, errors = engine.predict(model, loader, 5, accelerator, trust["temperatures"][-1])
    assert not errors
    assert ((known > 0) & (known < 1)).all()
    assert (known < trust["known_limits"][-1]).sum() == 3
    assert 0.1 <= min(trust["temperatures"]) <= max(trust["temperatures"]) <= 10
    assert trust["ece"] >= 0
    np.testing.assert_allclose(probs, engine.predict_probs(model, loader, 5, accelerator, trust["temperatures"][-1])[0])
    np.testing.assert_allclose(answers, probs, atol=1e-4)  # what was judged is what will be answered


def test_a_class_whose_photos_are_all_gone_by_the_end_has_no_mean_and_breaks_no_score(learnt, accelerator, tmp_path):
    model, loader, *_ = learnt
    model = copy.deepcopy(model)
    paths = [tmp_path / "gone.jpg"] * 12 + loader.dataset.paths[12:]
    torn = loader_of(paths, 16)
    fitting.learn_trust(model, torn, torch.arange(60) // 12, loader, torch.arange(60) // 12, accelerator)
    assert (model.known.means[:CENTRES] == 0).all()
    assert all(tensor.isfinite().all() for tensor in model.state_dict().values())


@pytest.mark.parametrize("side", ["train", "val"])
def test_a_photo_whose_numbers_are_not_finite_does_not_count(learnt, accelerator, monkeypatch, side):
    model, loader, answers, _ = learnt
    model = copy.deepcopy(model)
    features, asked = model.features, []

    def one_breaks(views):
        asked.append(len(views))
        out = features(views)
        if len(asked) == {"train": 1, "val": 5}[side]:  # of four batches each
            out[3] = float("inf")
        return out

    monkeypatch.setattr(model, "features", one_breaks)
    found, learnt_now = fitting.learn_trust(model, loader, torch.arange(60) // 12, loader, torch.arange(60) // 12, accelerator)
    assert len(asked) == 8
    assert all(tensor.isfinite().all() for tensor in model.state_dict().values())
    assert all(np.isfinite(number) for number in learnt_now.values())
    gone = [3] if side == "val" else []
    assert np.isnan(found).any(1).nonzero()[0].tolist() == gone
    np.testing.assert_allclose(np.delete(found, gone, 0), np.delete(answers, gone, 0), atol=0.02)


def test_features_nearly_alike_do_not_make_rounding_count():
    known = Known(2, 3)
    known.set_scale(torch.tensor([[-0.5, 1.0], [-0.5, 1.0 - 1e-3]]))       # as random weights see photos
    score = known.score(torch.tensor([[-0.5, 1.0], [-0.5, 1.0 - 2e-7]]))
    assert (score[0] - score[1]).abs() < 1e-5                              # export.py allows 1e-4 of a probability


def test_what_is_known_travels_with_the_weights_and_through_views(learnt, accelerator):
    model, loader, *_ = learnt
    other = build_model(SMALL, 5, "none")
    other.load_state_dict(copy.deepcopy(model.state_dict()))
    two = loader_of(loader.dataset.paths[:4], 4, views=2)
    _, known, _ = engine.predict(other, two, 5, accelerator)
    with torch.inference_mode():
        each = torch.stack([model.judge(images[0])[1] for images in (two.dataset[0, i][0][None] for i in range(4))])
    np.testing.assert_allclose(known, each.mean(1), atol=1e-4)
