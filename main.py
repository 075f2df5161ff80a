"""Train a classifier on a folder of photos: `python main.py --epochs 30 --batch 64`. Every knob stands in config.py."""

from __future__ import annotations

import dataclasses
import signal
import sys
from pathlib import Path

import tyro

from config import Config, ConfigError

if __name__ == "__main__":  # before torch is loaded, which takes seconds: a misspelt flag, or --help, is answered at once
    options = tyro.cli(Config, description=__doc__)
    on_ctrl_c = signal.signal(signal.SIGINT, signal.SIG_DFL)  # until it is: ends the program without a word

import torch
from accelerate import PartialState

import checkpoint
import dataset
import engine
import fitting
import record
import trust
from cache import PhotoCache
from console import Bar, StopRequest
from dataset import Batches, Photos, make_loader
from device import DeviceError, be_deterministic, keep_memory, make_accelerator, memory_ran_out
from files import WriteError
from folds import train_each_fold
from judging import Judge
from model import ModelError, check_weights, input_size
from photos import SIDES, PhotoError, read_photo
from prepare import announce_time, build_learner, draw_a_batch, list_photos, look_again, look_at_photos, rehearse
from report import write_report
from run import Run, check_flags, last_of, resumed
from sam import SAM
from schedule import make_schedule, make_sizes
from text import INTERRUPTED, sentence, spell_out
from transforms import RandomViews
from views import FixedViews

USER_ERRORS = (ConfigError, DeviceError, dataset.DataError, ModelError, PhotoError, checkpoint.CheckpointError,
               WriteError, engine.TrainingError, record.RunError, PermissionError)


def train(config: Config) -> Path:
    """Train as `config` says, or go on with config.resume; returns the run folder. Raises one of USER_ERRORS."""
    given, saved = config, last_of(config.resume) if config.resume else None
    if saved:
        config = resumed(given, saved)
    size, crop = input_size(config.model, config.image_size, config.size_shares[0] < 1)
    weights = "none" if saved else config.weights
    check_weights(weights)
    if config.deterministic:
        be_deterministic()
    log_with = None if config.track == "none" or config.dry_run else config.track
    accelerator, why = make_accelerator(log_with=log_with, project_dir=".")
    tell = accelerator.on_main_process(print)  # not accelerator.print, which speaks once on each machine
    say = (lambda text: None) if config.quiet else tell
    keep_memory()
    listed = None if saved else engine.from_main(lambda: list_photos(config), accelerator)  # no photos, no run folder
    folder = config.resume or engine.from_main(lambda: record.new_folder(config.out, config.model), accelerator)
    _lock = accelerator.is_main_process and record.lock(folder, new=not saved)  # held until train() returns
    if saved:  # once more: another process may have trained on while this one waited for its folder
        accelerator.wait_for_everyone()
        saved = last_of(folder)
        resumed(given, saved)  # raises where that one has ended it
    accelerator.project_configuration.logging_dir = folder  # known only now: all processes must agree on it
    settings = {knob: value for knob, value in config.to_dict().items() if value is not None}
    accelerator.init_trackers("mushrooms", settings, {tracker: {"name": folder.name} for tracker in ("trackio", "wandb")})
    say(f"{folder}: {config.model} on {accelerator.device}, {why}")

    # The photos, cut into those to learn from and those to judge by.
    table = engine.from_main(lambda: look_again(config, folder, say, "data" in given.differences()) if saved else
                             look_at_photos(listed, config, folder, say), accelerator)
    classes = sorted(table.label.unique())
    labels = {side: torch.tensor([classes.index(label) for label in table.label[table.side == side]], dtype=torch.int64)
              for side in SIDES}
    world = dict(rank=accelerator.process_index, world=accelerator.num_processes)
    cached = PhotoCache(folder.parent / ".decoded", int(config.cache * 1e9)).read if config.cache else read_photo

    train_views = RandomViews(size, 1, config.augment)

    def loader_of(side: str, views: RandomViews | FixedViews, seed: int | None = None, epochs=1, stay=False):
        kept = train_views.min_side  # what is decoded of a training photo in all passes, so that the cache has it once
        min_side = max(views.min_side, kept) if side == "train" else views.min_side
        read = cached if min_side <= kept else read_photo  # the head's near views need more, and are asked once
        photos = Photos(table.path[table.side == side], views, config.seed, min_side, read)
        batches = Batches(len(photos), config.batch, seed, epochs, **world, views=views.count)
        return make_loader(photos, batches, config.workers, accelerator.device.type == "cuda", stay)

    train_loader = loader_of("train", train_views, config.seed, max(1, config.epochs))
    val_loader = loader_of("val", FixedViews(size, crop), stay=True)
    epoch_steps = train_loader.batch_sampler.batches

    # The model, and SAM around SGD; warm-up, then cosine.
    counts = labels["train"].bincount(minlength=len(classes))
    learner, sgd, loss_of = build_learner(config, weights, counts, size, accelerator.device)
    ema = engine.make_ema(learner, config.ema) if config.ema else None
    model, sgd = accelerator.prepare(learner, sgd)
    steps = config.epochs * epoch_steps
    optimizer = SAM(sgd, config.rho, config.asam, config.sam_every, round(config.sam_start * steps))
    schedule = make_schedule(config.schedule, sgd, steps, config.warmup)
    resize = make_sizes(*config.size_shares, steps)

    # Where the run stands, and who judges it.
    progress = {"epoch": 0, **engine.EPOCH_START, "minutes": 0.0, "accumulate": config.accumulate}
    about = {"model": config.model, "cosine": config.cosine, "covariance": config.directions, "classes": classes, "image_size": size,
             "crop": crop, "notes": trust.read_notes(classes), "config": config.to_dict()}
    run = Run(folder, learner, ema.module if ema else learner, optimizer, accelerator, about, progress)
    if saved:
        run.restore(saved)
        say(f"goes on in epoch {min(progress['epoch'] + 1, config.epochs)} of {config.epochs}, photos from {config.data}")
    judge = Judge(run, config, loader_of, val_loader, labels, say)

    if accelerator.device.type == "cpu" and config.epochs:
        announce_time(model, size, len(labels["train"]), config, accelerator, say)
    if not saved and accelerator.is_main_process:
        draw_a_batch(folder, train_loader, labels["train"], classes, config)
    if config.dry_run:
        say(rehearse(model, train_loader, val_loader, labels["train"], loss_of, optimizer, accelerator, config,
                     num_classes=len(classes), steps=steps, resize=resize))
        say(f"a dry run: nothing is trained or saved; what the model would be shown is in {folder / 'batch.png'}")
        return folder
    run.start_clock()
    if not saved:
        if accelerator.is_main_process:
            record.write_settings(folder, config.to_dict(), str(accelerator.device), accelerator.mixed_precision)
        if config.fits_head:
            sides = ("train", "val") if config.refit else ("train",)
            run.refit = fitting.start_head(learner, lambda side, views: loader_of(side, views, config.seed), size, crop,
                                           {side: labels[side] for side in sides}, config.balance, accelerator, config.quiet)
            if ema:
                ema.set(learner)
            judge.after_epoch(0)
            run.save("head.pt")
        run.save_last()

    with StopRequest(accelerator, folder) as stop:
        train_loader.batch_sampler.start = progress["epoch"] * epoch_steps + progress["step"]
        batches = iter(train_loader if progress["epoch"] < config.epochs else ())  # of all epochs: workers read on while one is judged
        while progress["epoch"] < config.epochs and not stop():
            alpha = config.mixup if progress["epoch"] < max(1, round(config.mixup_end * config.epochs)) else 0.0
            with Bar(f"epoch {progress['epoch'] + 1}/{config.epochs}", epoch_steps, progress["step"], accelerator, config.quiet) as bar:
                engine.train_one_epoch(
                    model, train_loader, batches, labels["train"], loss_of, optimizer, schedule, ema, accelerator, progress,
                    num_classes=len(classes), alpha=alpha, clip=config.clip, seed=config.seed,
                    keep_batchnorm=config.batchnorm_kept, sam_whole=config.sam_whole, stop=stop, tick=bar.tick,
                    resize=resize)
            if progress["step"] == epoch_steps:
                judge.after_epoch(progress["epoch"] + 1)
                progress |= {"epoch": progress["epoch"] + 1, **engine.EPOCH_START}
            progress["minutes"] = run.minutes()
            run.save_last()
    del batches  # its workers end with it
    for tracker in accelerator.trackers:
        tracker.finish()  # not end_training: it would end the process group, which is still needed
    if progress["epoch"] < config.epochs:
        tell(f"stopped; all is saved. Go on with: python main.py --resume {folder}")
        sys.exit(INTERRUPTED)

    accelerator.wait_for_everyone()  # best.pt is read by all
    judge.conclude(table, tell)
    return folder


def train_and_report(config: Config) -> Path:
    """As train; then report.html. It is one process's work: of several, the others would wait for it."""
    folder, alone = train(config), PartialState().num_processes == 1
    PartialState().on_main_process(print)(f"look: {write_report(folder) if alone else f'python -m tools.report {folder}'}")
    return folder


if __name__ == "__main__":
    signal.signal(signal.SIGINT, on_ctrl_c)
    spell_out()
    try:
        if options.dry_run:
            train(dataclasses.replace(options, fold=max(options.fold, 0)))
        elif options.fold < 0 and not options.resume:
            train_each_fold(options, train_and_report)
        else:
            if options.resume:  # as typed: a flag whose value is the default's would go unseen
                typed = [word.partition("=")[0] for word in sys.argv[1:] if word.startswith("--")]
                check_flags(typed)
                options = dataclasses.replace(options, data=options.data.absolute()) if "--data" in typed else options
            train_and_report(options)
    except USER_ERRORS as error:
        sys.exit(sentence(error))
    except RuntimeError as error:
        if not memory_ran_out(error):
            raise
        sys.exit("memory ran out, even for one photo. Give a smaller --image-size or --model, or close what else uses the memory.")
    except KeyboardInterrupt:
        print("stopped. Before the first epoch: start again. After the last: python main.py --resume RUN", file=sys.stderr)
        sys.exit(INTERRUPTED)
