"""learn_trust is tested with what it fits: test_known.py, test_trust.py."""

import numpy as np
import pytest
import torch
from conftest import SMALL, loader_of
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_info, threadpool_limits

import fitting
from engine import TrainingError
from model import add_to_head, build_model


@pytest.mark.parametrize(("classes", "balance", "cosine"), [(2, "logits", 0), (9, "logits", 0), (9, "weights", 0), (9, "none", 0),
                                                             (9, "logits", 64), (9, "none", 64)])
def test_the_fitted_head_is_the_logistic_regression_on_the_features(accelerator, drawn, classes, balance, cosine):
    torch.manual_seed(0)
    model = build_model(SMALL, classes, "none", cosine)
    paths = [str(p) for folder in sorted(drawn.iterdir())[:classes] if folder.is_dir() for p in sorted(folder.glob("*.jpg"))]
    labels = torch.arange(len(paths)) // 12
    loader = loader_of(paths, 8)
    keep = [i for i in range(len(paths)) if i % 12 > i // 12]                # 11 photos of the first class, 10 of the second, ...
    paths, labels = [paths[i] for i in keep], labels[keep]
    few = [i for i in range(len(paths)) if i % 3]                           # two thirds learn, the rest is heard afterwards
    rest = sorted({*range(len(paths))} - {*few})
    parts = [(loader_of([paths[i] for i in part], 8, views=2), labels[part]) for part in (few, rest)]
    heads = fitting.fit_heads(model, parts, balance, accelerator, lambda photos: None)
    weighed = "balanced" if balance == "weights" or (balance == "logits" and cosine) else None
    features = []
    with torch.inference_mode():
        for loader, own in parts:
            batches = [(model.features(images.flatten(0, -4)).unflatten(0, (-1, 2)), index) for images, index, _ in loader]
            features += [torch.cat([rows for rows, _ in batches])[torch.cat([index for _, index in batches]).argsort()].flatten(0, 1)]
            assert len(features[-1]) == 2 * len(own)
    scale = features[0].std()
    for head, seen in zip(heads, ([few], [few, rest]), strict=True):
        rows, truth = torch.cat(features[:len(seen)]), torch.cat([labels[part] for part in seen]).repeat_interleave(2)
        model.head.load_state_dict(head)
        scaled = (rows / scale).numpy()
        reference = LogisticRegression(C=fitting.HEAD_C / 2, max_iter=1000, class_weight=weighed).fit(scaled, truth)
        if cosine:                                                          # the same directions
            np.testing.assert_allclose(model.head.weight.detach() * scale, reference.coef_, atol=5e-3)
            continue
        prior = (truth.bincount() / len(truth)).log() if balance == "logits" else 0  # what the loss adds to the logits: taken off before
        with torch.inference_mode():
            probs = (model.head(rows) + prior).softmax(1)
        np.testing.assert_allclose(probs, reference.predict_proba(scaled), atol=1e-2 if weighed else 5e-3)  # as far as both were fitted


def test_the_head_is_left_as_fitted_to_the_training_photos(accelerator, drawn):
    model = build_model(SMALL, 9, "none", covariance=4)
    paths = [str(path) for path in sorted(drawn.glob("*/*.jpg"))]
    labels = torch.arange(len(paths)) // 12
    sides = {"train": [i for i in range(len(paths)) if i % 4], "val": [i for i in range(len(paths)) if i % 4 == 0]}

    def side_of(side, views):
        return loader_of([paths[i] for i in sides[side]], 16, views.count, seed=0)

    found = []
    for heard in (["train"], ["train", "val"]):
        own = {side: labels[sides[side]] for side in heard}
        found.append((fitting.start_head(model, side_of, 64, 1.0, own, "none", accelerator, quiet=True), model.head.weight.clone()))
    assert found[0][0] == {}
    torch.testing.assert_close(found[0][1], found[1][1])
    assert {name: tensor.shape for name, tensor in found[1][0].items()} == {"weight": model.head.weight.shape, "bias": (9,)}
    assert found[1][0]["weight"].norm() > 0.01 * model.head.weight.norm()
    add_to_head(model, found[1][0])
    torch.testing.assert_close(model.head.weight, found[0][1] + found[1][0]["weight"])


def test_features_that_are_not_finite_are_an_error(accelerator, drawn):
    model = build_model(SMALL, 9, "none")
    model.mean.fill_(torch.inf)                                             # as where fp16 is too small for a backbone
    paths = [str(path) for path in sorted(drawn.glob("*/*_0001.jpg"))]
    loader = loader_of(paths, 8)
    with pytest.raises(TrainingError, match="not finite"):
        fitting.fit_heads(model, [(loader, torch.arange(9))], "none", accelerator, lambda photos: None)


def test_a_class_whose_photos_are_gone_by_the_head_s_fit_is_told(accelerator, drawn):
    model = build_model(SMALL, 9, "none")
    paths = ["gone.jpg", *(str(path) for path in sorted(drawn.glob("*/*_0001.jpg"))[1:])]
    loader = loader_of(paths, 8)
    with pytest.raises(TrainingError, match="no photo to learn class 0 from can be read any more"):
        fitting.fit_heads(model, [(loader, torch.arange(9))], "none", accelerator, lambda photos: None)


@pytest.mark.parametrize("covariance", [0, 4])
def test_photos_that_are_gone_are_named_as_the_reason(accelerator, covariance):
    model, gone = build_model(SMALL, 9, "none", covariance=covariance), loader_of(["gone.jpg"] * 9, 8)
    with pytest.raises(TrainingError, match="none can be read"):
        fitting.start_head(model, lambda side, views: gone, 64, 1.0, {"train": torch.arange(9)}, "none", accelerator, quiet=True)


@pytest.mark.parametrize(("order", "rows"), [(0, 48), (None, 90)])  # three batches make 40; in order, classes still come: 15 + 6 + 9 + 12
def test_of_very_many_photos_a_part_is_enough(accelerator, drawn, monkeypatch, order, rows):
    assert [fitting.head_views(photos) for photos in (496, 1250, 2284)] == [16, 16, 8]  # fungi9 has 496 to learn from, genera9 2284
    monkeypatch.setattr(fitting, "HEAD_ROWS", 40)
    assert [fitting.head_views(photos) for photos in (1, 3, 10, 40, 1000)] == [16, 13, 4, 1, 1]
    torch.manual_seed(0)
    model = build_model(SMALL, 9, "none")
    paths = [str(path) for path in sorted(drawn.glob("*/*.jpg"))]
    labels, seen, threads, fit = torch.arange(len(paths)) // 12, [], [], LogisticRegression.fit
    loader = loader_of(paths, 16, seed=order)

    def watched(self, *given):
        seen.extend(given)
        threads.extend(pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas")
        return fit(self, *given)

    monkeypatch.setattr(LogisticRegression, "fit", watched)
    with threadpool_limits(2, "blas"):
        less = loader_of(paths[::4], 3, seed=0)
        fitting.fit_heads(model, [(loader, labels), (less, labels[::4])], "none", accelerator, lambda photos: None)
    assert set(threads) <= {1}  # none where numpy has no BLAS of its own
    assert len(seen[0]) == rows
    assert len(np.unique(seen[1])) == 9
    assert rows + 12 <= len(seen[2]) <= rows + 12 + 8  # a quarter of 40, in batches of 3, and what classes were missing
