"""learn_trust is tested with what it fits: test_known.py, test_trust.py."""

import numpy as np
import pytest
import torch
from conftest import SMALL
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_info, threadpool_limits

import fitting
from dataset import Batches, Photos, make_loader
from engine import TrainingError
from model import build_model
from views import FixedViews


@pytest.mark.parametrize("classes", [2, 9])
def test_the_fitted_head_is_the_logistic_regression_on_the_features(accelerator, drawn, classes):
    torch.manual_seed(0)
    model = build_model(SMALL, classes, "none")
    paths = [str(p) for folder in sorted(drawn.iterdir())[:classes] if folder.is_dir() for p in sorted(folder.glob("*.jpg"))]
    labels = torch.arange(len(paths)) // 12
    loader = make_loader(Photos(paths, FixedViews(64, 1.0), 0, 0), Batches(len(paths), 8), 0)
    prior = torch.linspace(-3, 0, classes)                                  # what the loss would add to the logits: taken off before
    fitting.fit_head(model, loader, labels, prior, accelerator, lambda photos: None)
    with torch.inference_mode():
        features = torch.cat([model.features(images.flatten(0, -4)) for images, _, _ in loader])
        probs = (model.head(features) + prior).softmax(1)
    scaled = (features / features.std()).numpy()
    reference = LogisticRegression(C=fitting.HEAD_C, max_iter=1000).fit(scaled, labels)
    np.testing.assert_allclose(probs, reference.predict_proba(scaled), atol=2e-3)


def test_features_that_are_not_finite_are_an_error(accelerator, drawn):
    model = build_model(SMALL, 9, "none")
    model.mean.fill_(torch.inf)                                             # as where fp16 is too small for a backbone
    paths = [str(path) for path in sorted(drawn.glob("*/*_0001.jpg"))]
    loader = make_loader(Photos(paths, FixedViews(64, 1.0), 0, 0), Batches(len(paths), 8), 0)
    with pytest.raises(TrainingError, match="not finite"):
        fitting.fit_head(model, loader, torch.arange(9), torch.zeros(9), accelerator, lambda photos: None)


@pytest.mark.parametrize(("order", "rows"), [(0, 48), (None, 108)])             # three batches make 40; in order, the last class comes last
def test_of_very_many_photos_a_part_is_enough(accelerator, drawn, monkeypatch, order, rows):
    monkeypatch.setattr(fitting, "HEAD_ROWS", 40)
    assert [fitting.head_views(photos) for photos in (1, 3, 10, 40, 1000)] == [12, 12, 4, 1, 1]
    torch.manual_seed(0)
    model = build_model(SMALL, 9, "none")
    paths = [str(path) for path in sorted(drawn.glob("*/*.jpg"))]
    labels, seen, threads, fit = torch.arange(len(paths)) // 12, [], [], LogisticRegression.fit
    loader = make_loader(Photos(paths, FixedViews(64, 1.0), 0, 0), Batches(len(paths), 16, order), 0)

    def watched(self, *given):
        seen.extend(given)
        threads.extend(pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas")
        return fit(self, *given)

    monkeypatch.setattr(LogisticRegression, "fit", watched)
    with threadpool_limits(2, "blas"):
        fitting.fit_head(model, loader, labels, torch.zeros(9), accelerator, lambda photos: None)
    assert set(threads) <= {1}  # none where numpy has no BLAS of its own
    assert len(seen[0]) == rows
    assert len(np.unique(seen[1])) == 9
