"""Train a classifier on a folder of photos: `python main.py --epochs 30 --batch 64`. Every knob stands in config.py."""

from __future__ import annotations

import copy
import dataclasses
import sys
import time
from pathlib import Path

import tyro

from config import Config, ConfigError

if __name__ == "__main__":  # before torch is loaded, which takes seconds: a misspelt flag, or --help, is answered at once
    options = tyro.cli(Config, description=__doc__)

import pandas as pd
import torch
from accelerate import PartialState

import checkpoint
import dataset
import engine
import fitting
import metrics
import record
import trust
from cache import PhotoCache
from console import Bar, StopRequest
from dataset import Batches, Photos, make_loader
from device import DeviceError, be_deterministic, keep_memory, make_accelerator, memory_ran_out
from folding import fold_batchnorm
from folds import train_each_fold
from loss import Loss
from model import CosineHead, ModelError, add_to_head, build_model, freeze, input_size, parameter_groups
from photos import SIDES, read_photo, sentence, spell_out
from prepare import announce_time, draw_a_batch, last_of, look_at_photos, rehearse, restore, resumed
from sam import SAM
from schedule import make_schedule, make_sizes
from tools.report import write_report
from transforms import RandomViews
from views import ANSWER_VIEWS, FixedViews
from wise import best_place, blend, place_name

USER_ERRORS = (ConfigError, DeviceError, dataset.DataError, ModelError, checkpoint.CheckpointError, checkpoint.WriteError,
               engine.TrainingError, record.RunError)
SINCE = "since that score, its head has learnt from these photos too (--no-refit leaves it)\n"


def train(config: Config) -> Path:
    """Train as `config` says, or go on with config.resume; returns the run folder. Raises one of USER_ERRORS."""
    given, saved = config, last_of(config.resume) if config.resume else None
    if saved:
        config = resumed(given, saved)
    size, crop = input_size(config.model, config.image_size, config.progressive < 1)
    accelerator, why = make_accelerator(log_with=None if config.track == "none" else config.track, project_dir=".")
    tell = accelerator.on_main_process(print)  # not accelerator.print, which speaks once on each machine
    say = (lambda text: None) if config.quiet else tell
    keep_memory()
    if config.deterministic:
        be_deterministic()
    listed = None if saved else engine.from_main(lambda: dataset.load_table(config.data), accelerator)  # no photos, no run folder
    run = config.resume or engine.from_main(lambda: record.new_folder(config.out, config.model), accelerator)
    _lock = accelerator.is_main_process and record.lock(run, new=not saved)  # until this name is gone
    if saved:  # once more: another process may have trained on while this one waited for its folder
        accelerator.wait_for_everyone()
        saved = last_of(run)
        resumed(given, saved)
    accelerator.project_configuration.logging_dir = run       # known only now: all processes must agree on it
    settings = {knob: value for knob, value in config.to_dict().items() if value is not None}
    accelerator.init_trackers("mushrooms", settings, {tracker: {"name": run.name} for tracker in ("trackio", "wandb")})
    say(f"{run}: {config.model} on {accelerator.device}, {why}")

    # The photos, cut into those to learn from and those to judge by.
    table = (record.read_photos(run) if saved
             else engine.from_main(lambda: look_at_photos(listed, config, run, say), accelerator))
    if saved:
        changed = dataset.changes(table, config.data)
        if changed:
            say(changed)
    classes = sorted(table.label.unique())
    labels = {side: torch.tensor([classes.index(label) for label in table.label[table.side == side]], dtype=torch.int64)
              for side in SIDES}
    world = dict(rank=accelerator.process_index, world=accelerator.num_processes)
    cached = PhotoCache(run.parent / ".decoded", int(config.cache * 1e9) // accelerator.num_processes).read if config.cache else read_photo

    train_views = RandomViews(size, 1, config.augment)

    def loader_of(side: str, views: RandomViews | FixedViews, seed: int | None = None, epochs=1, stay=False):
        least = train_views.min_side  # of training photos: one size for all passes, for the cache's sake
        min_side = max(views.min_side, least if side == "train" else 0)
        read = cached if min_side <= least else read_photo  # the head's near views need more, and are asked once
        photos = Photos(table.path[table.side == side], views, config.seed, min_side, read)
        batches = Batches(len(photos), max(1, config.batch // views.count), seed, epochs, **world)
        return make_loader(photos, batches, config.workers, accelerator.device.type == "cuda", stay)

    train_loader = loader_of("train", train_views, config.seed, max(1, config.epochs))
    val_loader = loader_of("val", FixedViews(size, crop), stay=True)
    epoch_steps = train_loader.batch_sampler.batches

    # The model, and SAM around SGD; warm-up, then cosine.
    torch.manual_seed(config.seed)
    head = "cosine" if config.arcface else "linear"
    model = build_model(config.model, len(classes), "none" if saved else config.weights, head, config.directions).to(accelerator.device)
    freeze(model, config.freeze)
    if config.batchnorm_kept:
        fold_batchnorm(model, torch.zeros(1, 3, size, size, device=accelerator.device))
    groups = parameter_groups(model, config.weight_decay, config.layer_decay, config.head_lr if config.head_first else 1.0)
    sgd = torch.optim.SGD(groups, config.lr, config.momentum, nesterov=config.momentum > 0)
    ema = engine.make_ema(model, config.ema) if config.ema else None
    judged = ema.module if ema else model  # the weights that are scored, kept as the best, and asked later
    learner = model
    model, sgd = accelerator.prepare(model, sgd)
    steps = config.epochs * epoch_steps
    optimizer = SAM(sgd, config.rho, config.asam, config.sam_every, round(config.sam_start * steps))
    schedule = make_schedule(config.schedule, sgd, steps, config.warmup)
    shown = make_sizes(config.progressive, steps)
    counts = labels["train"].bincount(minlength=len(classes))
    loss_of = Loss(counts, config.smoothing, config.focal, config.balance, config.arcface, CosineHead.SCALE).to(accelerator.device)

    # Where the run stands: all that `--resume` needs, beside the weights.
    progress = {"epoch": 0, "step": 0, "loss_sum": 0.0, "norm_sum": 0.0, "photos": 0, "minutes": 0.0, "accumulate": config.accumulate}
    history: list[dict] = []
    refit: dict[str, torch.Tensor] = {}  # what the head that answers has more than the one that is scored
    if saved:
        restore(saved, run, learner, judged, optimizer, accelerator.scaler)
        progress, history, refit = progress | saved["progress"], saved["history"], saved["refit"]

    def save(name: str, **more) -> None:
        if accelerator.is_main_process:
            checkpoint.save(run / name, {
                "model": config.model, "head": head, "covariance": config.directions, "classes": classes, "image_size": size,
                "crop": crop, "temperature": 1.0, "known_limit": 0.0, "notes": trust.read_notes(classes), "config": config.to_dict(),
                "weights": judged.state_dict(), "refit": refit, "history": history, **more})

    def save_last() -> None:
        save("last.pt", learner=learner.state_dict(), optimizer=optimizer.state_dict(), progress=progress,
             scaler=accelerator.scaler.state_dict() if accelerator.scaler else {})

    def scores_of(probs, side: str) -> dict[str, float]:
        read = ~torch.tensor(probs).isnan().any(1)
        if not read.any():
            raise engine.TrainingError(f"no {side} photo got an answer: they are gone from {config.data}, or the model's numbers are no "
                                       "longer finite. Put the photos back, or start anew with a lower --lr.")
        if not read.all():
            say(f"{(~read).sum()} of {len(read)} {side} photos got no answer, and do not count: gone, or an answer that is not finite")
        return metrics.scores(probs[read], labels[side][read].numpy())

    def judge(epoch: int) -> None:
        """Add a row to the history, keep the model if it is the best so far."""
        scores = scores_of(engine.predict_probs(judged, val_loader, len(classes), accelerator)[0], "val")
        mean = {name: progress[name] / progress["photos"] if progress["photos"] else float("nan") for name in ("loss_sum", "norm_sum")}
        row = {"epoch": epoch, "lr": max(group["lr"] for group in sgd.param_groups),
               "train_loss": mean["loss_sum"], "grad_norm": mean["norm_sum"],
               **{f"val_{name}": score for name, score in scores.items()},
               "skipped_steps": optimizer.skipped, "minutes": (time.monotonic() - began) / 60}
        history.append(row)
        accelerator.log(row, step=epoch)
        learnt = f"loss {row['train_loss']:.3f}" if epoch else "head alone"
        say(f"epoch {epoch}/{config.epochs}  {learnt}  val loss {row['val_loss']:.3f}  accuracy {row['val_accuracy']:.4f}  "
            f"macro-F1 {row['val_macro_f1']:.4f}  {row['minutes']:.1f} min")
        if best(history) is row:
            save("best.pt")
        if accelerator.is_main_process:
            record.write_table(run / "log.csv", pd.DataFrame(history))

    if accelerator.device.type == "cpu" and config.epochs:
        announce_time(model, size, len(labels["train"]), config, accelerator, say)
    if not saved and accelerator.is_main_process:
        draw_a_batch(run, train_loader, labels["train"], classes, config)
    if config.dry_run:
        say(rehearse(model, train_loader, val_loader, labels["train"], loss_of, optimizer, accelerator, config,
                     num_classes=len(classes), steps=steps))
        say(f"a dry run: nothing is trained or saved; what the model would be shown is in {run / 'batch.png'}")
        return run
    began = time.monotonic() - 60 * progress["minutes"]
    if not saved:
        if accelerator.is_main_process:
            record.write_settings(run, config.to_dict(), str(accelerator.device), accelerator.mixed_precision)
        if config.head_first:
            sides = ("train", "val") if config.refit else ("train",)
            refit |= fitting.start_head(learner, lambda side, views: loader_of(side, views, config.seed), size, crop,
                                        {side: labels[side] for side in sides}, config.balance, accelerator, config.quiet)
            if ema:
                ema.set(learner)
            judge(epoch=0)
            save("head.pt")
            progress["minutes"] = history[0]["minutes"]
        save_last()

    with StopRequest(accelerator, run) as stop:
        train_loader.batch_sampler.start = progress["epoch"] * epoch_steps + progress["step"]
        batches = iter(train_loader)  # one for all epochs: workers read on while an epoch is judged
        while progress["epoch"] < config.epochs and not stop():
            with Bar(f"epoch {progress['epoch'] + 1}/{config.epochs}", epoch_steps, progress["step"], accelerator, config.quiet) as bar:
                engine.train_one_epoch(
                    model, train_loader, batches, labels["train"], loss_of, optimizer, schedule, ema, accelerator, progress,
                    num_classes=len(classes), alpha=config.mixup, clip=config.clip, seed=config.seed,
                    keep_batchnorm=config.batchnorm_kept, sam_whole=config.sam_whole, stop=stop, tick=bar.tick,
                    shown=shown)
            if progress["step"] == epoch_steps:
                judge(progress["epoch"] + 1)
                progress |= {"epoch": progress["epoch"] + 1, "step": 0, "loss_sum": 0.0, "norm_sum": 0.0, "photos": 0}
            progress["minutes"] = (time.monotonic() - began) / 60
            save_last()
    del batches  # its workers end with it
    for tracker in accelerator.trackers:
        tracker.finish()  # not end_training: it would part the processes, which go on
    if progress["epoch"] < config.epochs:
        tell(f"stopped; all is saved. Go on with: python main.py --resume {run}")
        sys.exit(130)

    # The end: what is kept, asked as predict.py asks, how far its answers may be trusted, and a row in the record of experiments.
    accelerator.wait_for_everyone()  # best.pt is read by all
    winner, epoch = checkpoint.load(run / "best.pt"), best(history)["epoch"]
    chosen = place_name(min(epoch, 1), epoch)
    answer_views = FixedViews(size, crop, ANSWER_VIEWS)
    answer_loader = loader_of("val", answer_views)
    if config.wise and config.head_first and config.epochs:
        start, end = checkpoint.load(run / "head.pt")["weights"], copy.deepcopy(judged.state_dict())

        def val_loss(weights: dict, loader) -> float:
            judged.load_state_dict(weights)
            return scores_of(engine.predict_probs(judged, loader, len(classes), accelerator)[0], "val")["loss"]

        share, loss = best_place(start, end, lambda weights: val_loss(weights, val_loader), say)
        place = blend(start, end, share)
        # Of many epochs at one view, one looks good by luck: where it beats all places, all views decide.
        if loss <= best(history)["val_loss"] or val_loss(place, answer_loader) <= val_loss(winner["weights"], answer_loader):
            winner["weights"], chosen = place, place_name(share, config.epochs)
    judged.load_state_dict(winner["weights"])
    with Bar("how far to trust it", len(labels["train"]) + len(labels["val"]), 0, accelerator, config.quiet) as bar:
        one_view = loader_of("train", FixedViews(size, crop))
        answers, trusted = fitting.learn_trust(judged, one_view, labels["train"], answer_loader, labels["val"], accelerator, bar.update)
    scores = {f"val_{name}": score for name, score in scores_of(answers, "val").items()}
    scores |= {"val_ece": trusted["ece"], "val_ece_calibrated": trusted["ece_calibrated"]}
    if accelerator.is_main_process:
        checkpoint.save(run / "best.pt", winner | {"weights": judged.state_dict(), "temperature": trusted["temperature"],
                                                   "known_limit": trusted["known_limit"], "kept": chosen})
    if len(labels["test"]):
        add_to_head(judged, refit)
        tested, _ = engine.predict_probs(judged, loader_of("test", answer_views), len(classes), accelerator, trusted["temperature"])
        scores |= {f"test_{name}": score for name, score in scores_of(tested, "test").items()}
        say(f"on the test photos: accuracy {scores['test_accuracy']:.4f}, macro-F1 {scores['test_macro_f1']:.4f}")
    if accelerator.is_main_process:
        record.write_answers(run / "val.csv", table[table.side == "val"], answers, classes)
        try:
            record.add_experiment(run, config.to_dict(), {k: f"{v:.4f}" for k, v in scores.items()}, progress["minutes"])
        except checkpoint.WriteError as error:
            tell(sentence(error))  # the run is whole without its row
    say(f"calibration error {trusted['ece']:.3f}; at temperature {trusted['temperature']:.2f}, {trusted['ece_calibrated']:.3f}, "
        f"where chance alone makes {trusted['ece_chance']:.3f} on as many photos")
    tell(
        f"best: {chosen}; with {ANSWER_VIEWS} views, as predict.py asks, accuracy {scores['val_accuracy']:.4f}, "
        f"macro-F1 {scores['val_macro_f1']:.4f} on {len(labels['val'])} photos it did not learn from\n{SINCE if refit else ''}"
        f"now: python predict.py PHOTO --checkpoint {run / 'best.pt'}")
    return run


def best(history: list[dict]) -> dict:
    """The epoch of the lowest validation loss: it weighs how sure each answer was, where accuracy's highest value is often luck."""
    return min(history, key=lambda row: row["val_loss"])


if __name__ == "__main__":
    spell_out()
    try:
        if options.dry_run:
            train(dataclasses.replace(options, fold=max(options.fold, 0)))
        elif options.fold < 0:
            train_each_fold(options, train)
        else:
            run = train(options)
            alone = PartialState().num_processes == 1  # the report is one process's work: of several, the others would wait for it
            PartialState().on_main_process(print)(f"look: {write_report(run) if alone else f'python -m tools.report {run}'}")
    except USER_ERRORS as error:
        sys.exit(sentence(error))
    except RuntimeError as error:
        if not memory_ran_out(error):
            raise
        sys.exit("memory ran out, even for one photo. Give a smaller --image-size or --model, or close what else uses the memory.")
    except KeyboardInterrupt:
        sys.exit("stopped before or after training; nothing was lost. Once epochs are done, python main.py --resume RUN ends the run")
