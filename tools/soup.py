"""One model of several: `python -m tools.soup RUN/best.pt RUN/best.pt ... --out soup.pt` averages their weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import tyro
from torch.optim.swa_utils import update_bn
from tyro.conf import Positional

import checkpoint
import engine
import fitting
import metrics
import record
from checkpoint import CheckpointError, models_of, shapes
from dataset import Batches, Photos, make_loader
from device import make_accelerator, to_device
from files import check_out
from text import as_program
from trained import network
from transforms import RandomViews
from views import ANSWER_VIEWS, FixedViews


def main(checkpoints: Positional[tuple[Path, ...]], out: Path = Path("soup.pt"), greedy: bool = False, batch: int = 32,
         workers: int = -1) -> None:
    """The mean of the checkpoints' weights (Wortsman et al. 2022, arXiv 2203.05482), judged on their validation photos.

    Where their splits differ, as folds' do, no photo is left to judge the mean by: its temperatures are the means of theirs, and what
    is known to it, the first's.
    Raises CheckpointError.

    Args:
        checkpoints: best.pt of runs, or run folders, that began at the same pretrained weights, with the same classes.
        out: the mean, a checkpoint.
        greedy: best first, each is added only if the accuracy does not fall.
        batch: photos at a time.
        workers: processes that read photos; 0 = none but the main one; -1 = one a core.
    """
    checkpoints = tuple(model for place in checkpoints for model in models_of(place))
    if not checkpoints:
        raise CheckpointError("no checkpoint given. Pass best.pt of two runs or more.")
    check_out(out, *checkpoints)
    saved = [checkpoint.load(path) for path in checkpoints]
    check_alike(checkpoints, saved)
    one_split = of_one_split(checkpoints, saved)
    if greedy and not one_split:
        raise CheckpointError("--greedy: the runs have other splits, so that each photo was learnt from by one of them. Leave it out.")
    first, accelerator = saved[0], make_accelerator()[0]
    home = checkpoints[0].parent
    if not (home / "photos.csv").is_file():
        raise CheckpointError(f"{home}: no photos.csv. Leave {checkpoints[0].name} in its run's folder, beside the list of its photos.")
    table = record.read_photos(home)
    labels = {side: torch.tensor([first["classes"].index(label) for label in table.label[table.side == side]]) for side in ("train", "val")}
    size, crop = first["image_size"], first["crop"]
    model = network(checkpoints[0], first).to(accelerator.device)

    def loader_of(side: str, views: RandomViews | FixedViews):
        paths = table.path[table.side == side]
        return make_loader(Photos(paths, views, 0, views.min_side), Batches(len(paths), batch, 0, views=views.count), workers)

    val_loader = loader_of("val", FixedViews(size, crop))
    by_batch = any(not other["config"]["keep_batchnorm"] or other["config"]["weights"] == "none" for other in saved)

    def judge() -> float:
        """The model's accuracy."""
        probs, _ = engine.predict_probs(model, val_loader, len(first["classes"]), accelerator)
        read = ~np.isnan(probs).any(1)
        if not read.any():
            gone = table.path[table.side == "val"].iloc[0]
            raise CheckpointError(f"{home}: none of its validation photos is where it was ({gone}). Put them back.")
        return metrics.accuracy(probs[read], labels["val"].numpy()[read])

    def accuracy(*weights: dict[str, torch.Tensor]) -> float:
        """Of the mean of these weights, which the model has afterwards. Where BatchNorm learnt statistics, they have a mean as well; those
        of the mean's own features take its place where they do better, which they may not where the head was fitted on pretrained ones."""
        mean = mean_weights(weights)
        model.load_state_dict(mean)
        score = judge()
        if by_batch and len(weights) > 1:
            views = loader_of("train", RandomViews(size, 1, first["config"]["augment"]))
            update_bn((to_device(images, accelerator) for images, index, _ in views if len(index)), model)
            fresh = judge()
            if fresh <= score:
                model.load_state_dict(mean)
            score = max(score, fresh)
        return score

    if not one_split:
        model.load_state_dict(mean_weights([other["weights"] for other in saved]))
        temperatures = np.mean([other["temperatures"] for other in saved], axis=0).tolist()
        checkpoint.save(out, {**first, "weights": model.state_dict(), "refit": mean_refit(saved), "temperatures": temperatures})
        print(f"{out}: the mean of {len(saved)} models; no score, as each photo was learnt from by some of them")
        return
    alone = [accuracy(other["weights"]) for other in saved]
    for path, score in zip(checkpoints, alone, strict=True):
        print(f"{path}: accuracy {score:.4f}")
    order = sorted(range(len(saved)), key=lambda i: -alone[i])
    chosen, score = (order[:1], alone[order[0]]) if greedy else (order, 0.0)
    for i in order[1:] if greedy else []:
        with_it = accuracy(*(saved[k]["weights"] for k in [*chosen, i]))
        if with_it >= score:
            chosen, score = [*chosen, i], with_it
    score = accuracy(*(saved[k]["weights"] for k in chosen))
    eval_loader = loader_of("train", FixedViews(size, crop))
    answer_loader = loader_of("val", FixedViews(size, crop, ANSWER_VIEWS))
    _, learnt = fitting.learn_trust(model, eval_loader, labels["train"], answer_loader, labels["val"], accelerator)
    trusted = {name: learnt[name] for name in ("temperatures", "known_limits")}
    checkpoint.save(out, {**first, "weights": model.state_dict(), "refit": mean_refit([saved[k] for k in chosen]), **trusted})
    print(f"{out}: accuracy {score:.4f}, the mean of {' '.join(str(checkpoints[k]) for k in chosen)}")


def check_alike(paths: Sequence[Path], saved: Sequence[dict]) -> None:
    """Raises CheckpointError where one differs from the first in more than its weights, or these have no mean."""
    (origin, first), *others = zip(paths, saved, strict=True)
    for path, other in others:
        for what in ("model", "cosine", "covariance", "classes", "image_size", "crop"):
            if other[what] != first[what]:
                raise CheckpointError(f"{path}: differs from {origin} in its {what}. Average models that differ in weights alone.")
        if shapes(other["weights"]) != shapes(first["weights"]):
            raise CheckpointError(f"{path}: its weights do not fit those of {origin}: one was changed or is broken.")
        if not same_directions(other["weights"], first["weights"]):
            raise CheckpointError(f"{path}: its directions of covariance and those of {origin} were found in different photos, "
                                  "as folds' are: such heads have no mean. Ask both by predict.py, or train with --covariance 0.")


def of_one_split(paths: Sequence[Path], saved: Sequence[dict]) -> bool:
    """Whether all learnt from the same photos: else each photo was learnt from by one of them, and none is left to judge their mean by."""
    tables = [record.read_photos(run) for run in {path.parent for path in paths} if (run / "photos.csv").is_file()]
    same = all(table[["path", "side"]].equals(tables[0][["path", "side"]]) for table in tables)
    if len(tables) < len(paths):  # some lie without their run, or together
        same &= len({tuple(other["config"][knob] for knob in ("data", "folds", "fold", "seed")) for other in saved}) == 1
    return same


def same_directions(weights: dict[str, torch.Tensor], others: dict[str, torch.Tensor]) -> bool:
    """Up to rounding, which the size of a batch changes."""
    found = [(weights[name], others[name]) for name in weights if name.startswith("covariances.") and name.endswith(".W")]
    return all((one - other).abs().max() <= 1e-2 * one.abs().max() for one, other in found)


def mean_refit(saved: Sequence[dict]) -> dict[str, torch.Tensor]:
    """What the validation photos add to the head, in the mean: the mean itself is scored without (model.add_to_head). Where one of the
    models has no such addition, there is none, which is told."""
    having = sum(bool(other["refit"]) for other in saved)
    if having == len(saved):
        return mean_weights([other["refit"] for other in saved])
    if having:
        print(f"{len(saved) - having} of the {len(saved)} heads were not refitted (--no-refit): the mean's has not learnt from the "
              "validation photos")
    return {}


def mean_weights(weights: Sequence[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """The mean of each tensor; counters (whole numbers), and the centres of what is known, which have no order, are the first's."""
    return {name: torch.stack([other[name] for other in weights]).mean(0)
            if first.is_floating_point() and not name.startswith("known.") else first for name, first in weights[0].items()}


if __name__ == "__main__":
    as_program(lambda: tyro.cli(main, description=__doc__))
