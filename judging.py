"""What the model answers to photos that it did not learn from: scored after each epoch; at the end, what stays and how far to trust it."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable

import numpy as np
import pandas as pd
import torch
from torch.utils.data import DataLoader

import checkpoint
import engine
import fitting
import metrics
import record
from answers import no_score_after
from config import Config
from console import Bar
from files import WriteError
from model import add_to_head
from run import Run
from text import sentence
from views import ANSWER_VIEWS, FixedViews
from wise import best_place, blend, place_name

SINCE = "since that score, its head has learnt from these photos too (--no-refit leaves it)\n"


@dataclasses.dataclass(frozen=True)
class Judge:
    """Scores a run's model. loader_of: the loader of a side's photos in these views; with a seed, in random order. val_loader: that of
    "val" in one view. labels: int64 (N,) by side. say: prints what only somebody who watches wants to read."""

    run: Run
    config: Config
    loader_of: Callable[..., DataLoader]
    val_loader: DataLoader
    labels: dict[str, torch.Tensor]
    say: Callable[[str], None]

    def scores(self, probs: np.ndarray, side: str) -> dict[str, float]:
        """Of answers float (N, K) to a side's photos; NaN = no answer, which is said. Raises TrainingError where there is none at all."""
        read = ~np.isnan(probs).any(1)
        self.count(int(read.sum()), len(read), side)
        return metrics.scores(probs[read], self.labels[side].numpy()[read])

    def count(self, counted: int, photos: int, side: str) -> None:
        """Says how many of a side's photos do not count. Raises TrainingError where none does."""
        if not counted:
            raise engine.TrainingError(f"no {side} photo counts: they are gone from {self.config.data}, or the model's numbers are "
                                       "no longer finite. Put the photos back, or start anew with a lower --lr.")
        if counted < photos:
            self.say(f"{photos - counted} of {photos} {side} photos do not count: gone, or the model's numbers are not finite")

    def scores_on(self, loader: DataLoader, side: str = "val", temperature: float = 1.0) -> dict[str, float]:
        """The scores of the run's judged weights on the loader's photos. Without a finite answer to one that can be read, the loss is
        infinite: else weights that fail on the hard photos would look best."""
        run = self.run
        probs, errors = engine.predict_probs(run.judged, loader, len(run.about["classes"]), run.accelerator, temperature)
        return self.scores(probs, side) | ({"loss": math.inf} if engine.NOT_FINITE in errors.values() else {})

    def after_epoch(self, epoch: int) -> None:
        """Add a row to the history, keep the model if it is the best so far."""
        run, learnt = self.run, self.run.progress["photos"]
        if epoch:
            self.count(run.progress["read"], len(self.labels["train"]), "train")
        scores = self.scores_on(self.val_loader)
        mean = {name: run.progress[name] / learnt if learnt else float("nan") for name in ("loss_sum", "norm_sum")}
        row = {"epoch": epoch, "lr": max(group["lr"] for group in run.optimizer.param_groups),
               "train_loss": mean["loss_sum"], "grad_norm": mean["norm_sum"],
               **{f"val_{name}": score for name, score in scores.items()},
               "skipped_steps": run.optimizer.skipped, "minutes": run.minutes()}
        run.accelerator.log(row, step=epoch)
        what = f"loss {row['train_loss']:.3f}" if epoch else "head alone"
        self.say(f"epoch {epoch}/{self.config.epochs}  {what}  val loss {row['val_loss']:.3f}  accuracy {row['val_accuracy']:.4f}  "
                 f"macro-F1 {row['val_macro_f1']:.4f}  {row['minutes']:.1f} min")
        run.add(row)

    def choose(self, answer_loader: DataLoader) -> tuple[dict, str]:
        """The checkpoint that stays, its weights in run.judged, and what they are: the best epoch's, or a place on the way back. It is
        chosen without run.refit, with which it will answer: no photos are left that could judge that."""
        run, config, winner = self.run, self.config, checkpoint.load(self.run.folder / "best.pt")
        best = winner["history"][-1]  # the epoch that is in there: on a GPU one that was killed and repeated may be another in the log
        chosen = place_name(float(best["epoch"] > 0), best["epoch"])
        if config.wise and config.fits_head and config.epochs:
            start, end = checkpoint.load(run.folder / "head.pt")["weights"], copy.deepcopy(run.judged.state_dict())

            def val_loss(weights: dict, loader: DataLoader) -> float:
                run.judged.load_state_dict(weights)
                return self.scores_on(loader)["loss"]

            found = best_place(start, end, lambda weights: val_loss(weights, self.val_loader), self.say)
            share, loss = engine.from_main(lambda: found, run.accelerator)  # one verdict: losses may differ in the last bit by machine
            place = blend(start, end, share)
            # Of many epochs at one view, one looks good by luck: where it beats all places, all views decide.
            wins = loss <= best["val_loss"] or val_loss(place, answer_loader) <= val_loss(winner["weights"], answer_loader)
            if engine.from_main(lambda: wins, run.accelerator):
                winner["weights"], chosen = place, place_name(share, config.epochs)
        run.judged.load_state_dict(winner["weights"])
        return winner, chosen

    def conclude(self, table: pd.DataFrame, tell: Callable[[str], None]) -> None:
        """The end: what stays, asked as predict.py asks; how far its answers may be trusted; a row in the record of experiments."""
        run, config, labels, accelerator = self.run, self.config, self.labels, self.run.accelerator
        classes, size, crop = (run.about[name] for name in ("classes", "image_size", "crop"))
        answer_views = FixedViews(size, crop, ANSWER_VIEWS)
        answer_loader = self.loader_of("val", answer_views)
        winner, chosen = self.choose(answer_loader)
        photos = min(len(labels["train"]), fitting.HEAD_ROWS) + len(labels["val"])
        with Bar("how far to trust it", photos, 0, accelerator, config.quiet) as bar:
            one_view = self.loader_of("train", FixedViews(size, crop), config.seed)
            answers, trusted = fitting.learn_trust(run.judged, one_view, labels["train"], answer_loader, labels["val"], accelerator,
                                                   bar.update)
        temperature = trusted["temperatures"][ANSWER_VIEWS - 1]
        scores = {f"val_{name}": score for name, score in self.scores(answers, "val").items()}
        scores |= {"val_ece": trusted["ece"], "val_ece_calibrated": trusted["ece_calibrated"]}
        if accelerator.is_main_process:
            checkpoint.save(run.folder / "best.pt", winner | {
                "weights": run.judged.state_dict(), "temperatures": trusted["temperatures"],
                "known_limits": trusted["known_limits"], "kept": chosen})
        if len(labels["test"]):
            add_to_head(run.judged, run.refit)
            tested = self.scores_on(self.loader_of("test", answer_views), "test", temperature)
            scores |= {f"test_{name}": score for name, score in tested.items()}
            met = no_score_after(config.weights, table.path[table.side == "test"])
            tell(f"on the test photos{f' ({met})' if met else ''}: accuracy {tested['accuracy']:.4f}, macro-F1 {tested['macro_f1']:.4f}")
        if accelerator.is_main_process:
            record.write_answers(run.folder / "val.csv", table[table.side == "val"], answers, classes)
            try:
                record.add_experiment(run.folder, config.to_dict(), {k: f"{v:.4f}" for k, v in scores.items()}, run.progress["minutes"])
            except WriteError as error:
                tell(sentence(error))  # the run is whole without its row
        self.say(f"calibration error {trusted['ece']:.3f}; at temperature {temperature:.2f}, {trusted['ece_calibrated']:.3f}, "
                 f"where chance alone makes {trusted['ece_chance']:.3f} on as many photos")
        met = no_score_after(config.weights, table.path[table.side == "val"])
        unseen = f"({met})" if met else "it did not learn from"
        tell(f"best: {chosen}; with {ANSWER_VIEWS} views, as predict.py asks, accuracy {scores['val_accuracy']:.4f}, "
             f"macro-F1 {scores['val_macro_f1']:.4f} on {len(labels['val'])} photos {unseen}\n{SINCE if run.refit else ''}"
             f"now: python predict.py PHOTO --checkpoint {run.folder / 'best.pt'}")
