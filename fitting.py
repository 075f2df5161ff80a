"""What is fitted on the features of a frozen backbone: the head before training, and after it how far the answers may be trusted."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits
from torch.utils.data import DataLoader

import metrics
import trust
from checkpoint import CENTRES
from console import Bar
from device import to_device
from engine import TrainingError, as_in_main, ask
from loss import Loss
from model import full_precision
from views import HEAD_VIEWS, FixedViews

COVARIANCE_PHOTOS = 1000  # that directions are found in, at most; 130 of fungi9 did nearly as well as 520
HEAD_ROWS = 20_000  # views of training photos that the head is fitted on, at most: B6's are 0.4 GB, and as much while they are put in order
NO_PHOTO = "of the photos to learn from, or to judge by, none can be read: they are gone, or broken. Put them back."
HEAD_C = 0.06  # scikit-learn's C, shared by a photo's views, so that each photo counts once: half as much, or twice, changes little


def head_views(photos: int) -> int:
    """Of each photo, to fit the head on: HEAD_VIEWS, or fewer where so many photos' would be more than HEAD_ROWS."""
    return max(1, min(HEAD_VIEWS, HEAD_ROWS // photos))


def start_head(model, loader_of: Callable[[str, FixedViews], DataLoader], size: int, crop: float, labels: dict[str, torch.Tensor],
               balance: str, accelerator: Accelerator, quiet: bool) -> dict[str, torch.Tensor]:
    """What the head is to see, then its fit to the training photos, with a progress bar. Returns, by name, what the validation photos add
    to its weights where `labels` has them: for later, when they have told how good it is without (model.add_to_head).

    loader_of: the loader of a side's photos in these views, in random order. labels: int64 (N,) by side, "train" first; balance: as for
    loss.Loss.
    """
    once = min(len(labels["train"]), COVARIANCE_PHOTOS) if model.covariances else 0
    with Bar("fitting the head on frozen features", once + sum(map(len, labels.values())), 0, accelerator, quiet) as bar:
        if model.covariances:
            fit_covariances(model, loader_of("train", FixedViews(size, crop)), accelerator, bar.update)
        views = FixedViews(size, crop, head_views(len(labels["train"])))
        parts = [(loader_of(side, views), own) for side, own in labels.items()]
        heads = fit_heads(model, parts, balance, accelerator, bar.update)
    return {name: heads[-1][name] - first for name, first in heads[0].items()} if heads[1:] else {}


@torch.inference_mode()
def fit_covariances(model, loader: DataLoader, accelerator: Accelerator, tick: Callable[[int], None]) -> None:
    """Find the directions of model.covariances: those in which the maps of COVARIANCE_PHOTOS of the loader's photos vary most. Their
    labels are not asked. Each stage's covariances get the pooled features' root mean square length, so that the head's fit heeds all alike.
    loader: training photos in random order, one view each."""
    def sums(views: torch.Tensor) -> torch.Tensor:
        """One row: of all views, pooled features' squares, then each stage's covariances (C, C)."""
        pooled, maps = model.pooled_and_maps(views)
        with full_precision(pooled):
            maps = [x.float().flatten(2) for x in maps]
            maps = [(x - x.mean(2, keepdim=True)).movedim(1, 0).flatten(1) * x.shape[2] ** -0.5 for x in maps]
            return torch.cat([pooled.float().square().sum().view(1), *((x @ x.T).flatten() for x in maps)])[None]

    model.eval()
    total, photos = 0, 0
    for images, index, failed in loader:
        if len(index):
            total = total + ask(sums, to_device(images, accelerator), accelerator).sum(0).cpu().double()
            photos += len(index)
        tick(len(index) + len(failed))
        if photos >= COVARIANCE_PHOTOS / accelerator.num_processes:
            break
    total, photos = (sum(parts) for parts in zip(*gather_object([(total, photos)]), strict=True))
    if not photos:
        raise TrainingError(NO_PHOTO)
    check_finite(total.numpy(), accelerator)
    squares, *stages = (total / photos).split([1, *(stage.W.shape[1] ** 2 for stage in model.covariances)])
    for stage, covariance in zip(model.covariances, stages, strict=True):
        stage.fit(covariance.view(stage.W.shape[1], -1), squares.sqrt().item())
    as_in_main(model.covariances.buffers())


def fit_heads(model, parts: Sequence[tuple[DataLoader, torch.Tensor]], balance: str, accelerator: Accelerator,
              tick: Callable[[int], None]) -> list[dict[str, torch.Tensor]]:
    """Start the head as the logistic regression on the backbone's features, in place of random numbers.

    A random head sends noise down into the pretrained layers until it has learnt; a fitted one lets them keep what they
    know (Kumar et al. 2022, arXiv 2202.10054). parts: loaders of photos in one or many fixed views (the more, the less it learns by
    heart), and their labels int64 (N,). It is fitted to the first part, then to the first two, and so on; returns the weights of each,
    by name, and leaves the first in the model. A part is read until there are HEAD_ROWS of it, of others than the first in proportion,
    and each class is among them; give more than that in random order. balance: as the loss will hold the head (loss.Loss), so it begins:
    "logits" takes the classes' shares out of its bias, "weights" weighs their photos, and so does "logits" for a cosine head, which has
    no bias. Raises TrainingError.
    Features are scaled by one number, not each to unit variance: that would give the rarest features the largest
    weights, and the first steps, where BatchNorm's statistics shift, would blow the logits up.
    """
    weighed = balance == "weights" or (balance == "logits" and not isinstance(model.head, torch.nn.Linear))
    fit = LogisticRegression(max_iter=1000, warm_start=True, class_weight="balanced" if weighed else None)
    heads, classes, scale = [], len(model.head.weight), 0.0
    features, truth = np.empty((0, model.head.weight.shape[1]), np.float32), np.empty(0, np.int64)
    for loader, labels in parts:
        index, more = gathered(some_features(model, loader, labels, HEAD_ROWS * len(labels) / len(parts[0][1]), accelerator, tick))
        check_finite(more, accelerator)
        scale = scale or more.std()
        more /= scale
        features = np.concatenate([features, more]) if heads else more     # no copy of the first part
        truth = np.concatenate([truth, labels[index].numpy()])
        if gone := sorted({*range(classes)} - {*truth.tolist()}):
            raise TrainingError(f"no photo to learn class {gone[0]} from can be read any more (they count from 0, by name). Put them back.")
        if accelerator.is_main_process:
            views = len(index) / len(np.unique(index))
            with threadpool_limits(1):                                     # many wait for each other: 16 took minutes
                fit.set_params(C=HEAD_C / views).fit(features, truth)
            prior = Loss(torch.from_numpy(truth).bincount(minlength=classes), balance=balance).prior
            set_head(model.head, fit.coef_ / scale, fit.intercept_, prior)
        with torch.no_grad():
            as_in_main(model.head.parameters())
        heads.append(copy.deepcopy(model.head.state_dict()))
    model.head.load_state_dict(heads[0])
    return heads


@torch.no_grad()
def set_head(head: torch.nn.Module, weight: np.ndarray, bias: np.ndarray, prior: torch.Tensor) -> None:
    """A logistic regression's weight (K, F) and bias (K,) into the head, less what the loss adds to the logits, float (K,)."""
    if len(weight) == 1:                                                   # two classes: one row tells both apart
        weight, bias = np.vstack([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
    head.weight.copy_(torch.from_numpy(weight))
    if isinstance(head, torch.nn.Linear):                                  # a cosine head has directions only
        head.bias.copy_(torch.from_numpy(bias) - prior)


def some_features(model, loader: DataLoader, labels: torch.Tensor, most: float, accelerator: Accelerator,
                  tick: Callable[[int], None]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Photos int (M,) and features float (M, F) of their views, batch by batch, until there are `most` of all processes and each class."""
    found, rows, wanted, enough = [], 0, set(labels.tolist()), most / accelerator.num_processes
    for features, index in each_features(model, loader, accelerator, tick):
        if rows >= enough:  # from here on only what is of a class that is still missing
            missing = np.isin(labels[index], list(wanted))
            features, index = features[missing], index[missing]
        found.append((index, features.cpu().numpy()))
        rows += len(index)
        wanted -= set(labels[index].tolist())
        if rows >= enough and not wanted:
            break
    return found


def check_finite(features: np.ndarray, accelerator: Accelerator) -> None:
    """Raises TrainingError where they are not."""
    if not np.isfinite(features).all():
        raise TrainingError(f"the backbone's features are not finite numbers (precision: {accelerator.mixed_precision}). "
                            "Take another --model.")


def each_features(model, loader: DataLoader, accelerator: Accelerator,
                  tick: Callable[[int], None]) -> Iterator[tuple[torch.Tensor, np.ndarray]]:
    """Batch by batch, pooled features float (M, F) of all views of the readable photos, on the device, and their photos, int (M,)."""
    model.eval()
    for images, index, failed in loader:
        if len(index):
            features = ask(model.features, to_device(images, accelerator), accelerator)
            yield features, index.repeat_interleave(len(features) // len(index)).numpy()
        tick(len(index) + len(failed))


def whole_photos(rows: torch.Tensor, index: np.ndarray) -> tuple[torch.Tensor, np.ndarray]:
    """Of rows (M, ...) of views and their photos, int (M,), those of photos all of whose views' numbers are finite, as for an answer."""
    fine = ~np.isin(index, index[~rows.isfinite().all(1).cpu().numpy()])
    return rows[torch.from_numpy(fine).to(rows.device)], index[fine]


def gathered(found: list[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """Photos int (M,), ascending, and their rows float (M, ...), of all batches (photos, rows) of all processes."""
    batches = gather_object(found)
    if not batches:
        raise TrainingError(NO_PHOTO)
    index = np.concatenate([photos for photos, _ in batches])
    order = index.argsort(kind="stable")                                   # the same sums however many processes
    rows, place, done = np.empty((len(index), *batches[0][1].shape[1:]), np.float32), np.empty_like(order), 0
    place[order] = np.arange(len(order))
    for photos, part in batches:                                           # no copy of all in between: they may be a GB
        rows[place[done:done + len(photos)]] = part
        done += len(photos)
    return index[order], rows


def class_centres(features: np.ndarray, labels: np.ndarray, classes: int) -> np.ndarray:
    """Features float (N, F) and labels int (N,) → float (classes * CENTRES, F), class by class: k-means of its features, of length 1 each.

    A class of fewer than CENTRES photos has some twice; one without any has zeros, to which nothing is near.
    """
    found = np.zeros((classes, CENTRES, features.shape[1]), np.float32)
    with warnings.catch_warnings(), threadpool_limits(1):                  # one thread: the same sums each time
        warnings.filterwarnings("ignore", category=ConvergenceWarning)     # a photo may be there twice
        for label in np.unique(labels):
            own = features[labels == label]
            own = own / np.linalg.norm(own, axis=1, keepdims=True).clip(1e-12)
            fit = KMeans(min(CENTRES, len(own)), n_init=1, random_state=0).fit(own)
            found[label] = np.resize(fit.cluster_centers_, found[label].shape)
    return found.reshape(-1, features.shape[1])


@torch.inference_mode()
def learn_trust(model, train_loader: DataLoader, train_labels: torch.Tensor, val_loader: DataLoader, val_labels: torch.Tensor,
                accelerator: Accelerator, tick: Callable[[int], None] = lambda photos: None) -> tuple[np.ndarray, dict]:
    """After training: fit model.known to the training photos; from the validation photos the temperatures and the limits of `known`.

    Loaders show photos as predict.py sees them, those of many training photos in random order (as for fit_heads); labels int64 by index
    of photo. Returns engine.predict's answers to the validation photos by all views that val_loader shows, V, at their temperature, float
    (N, K), NaN where there is none; and for the checkpoint "temperatures" and "known_limits", [n - 1] for answers by the first n of the V,
    with the calibration error of those by all: "ece" before, "ece_calibrated" after, "ece_chance" at best.
    """
    known, device = model.known, accelerator.device
    index, features = gathered(some_features(model, train_loader, train_labels, HEAD_ROWS, accelerator, tick))
    fine = np.isfinite(features).all(1)
    known.means.copy_(torch.from_numpy(class_centres(features[fine], train_labels[index[fine]].numpy(), len(model.head.weight))))
    del features

    found = []
    for features, index in each_features(model, val_loader, accelerator, tick):
        logits = model.head(features)
        rows, index = whole_photos(torch.cat([logits, known.signs(features, logits)], 1), index)
        if len(index):
            found.append((index, rows.cpu().numpy()))
    index, rows = gathered(found)
    photos, views = np.unique(index), len(index) // len(np.unique(index))
    logits, signs = torch.from_numpy(rows).tensor_split((-2,), 1)
    known.set_scale(signs.to(device))
    as_in_main(known.buffers())
    scores = known.score(signs.to(device)).view(-1, views).cpu().numpy()
    probs, truth = logits.softmax(1).view(len(photos), views, -1).numpy(), val_labels[photos].numpy()
    temperatures = [trust.fit_temperature(probs[:, :few].mean(1), truth) for few in range(1, views + 1)]
    limits = [trust.known_limit(scores[:, :few].mean(1)) for few in range(1, views + 1)]
    plain = probs.mean(1)
    calibrated = trust.at_temperature(plain, temperatures[-1])
    answers = np.full((len(val_labels), probs.shape[2]), np.nan, np.float32)
    answers[photos] = calibrated
    return answers, {"temperatures": temperatures, "known_limits": limits, "ece": metrics.calibration_error(plain, truth),
                     "ece_calibrated": metrics.calibration_error(calibrated, truth), "ece_chance": metrics.chance_error(calibrated)}
