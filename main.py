"""Train a classifier on a folder of photos: `python main.py --epochs 30 --batch 64`. Every knob stands in config.py."""

from __future__ import annotations

import dataclasses
import sys
import time
from pathlib import Path

import pandas as pd
import torch
import tyro
from accelerate import Accelerator
from timm.optim import param_groups_weight_decay
from timm.scheduler import CosineLRScheduler
from tqdm import tqdm

import checkpoint
import dataset
import engine
import metrics
import pictures
import record
from config import Config, ConfigError
from console import Bar, StopRequest
from dataset import Batches, Photos, make_loader
from mixup import mixup
from model import ModelError, build_model, native_size
from sam import SAM
from transforms import FixedViews, RandomViews

USER_ERRORS = (ConfigError, dataset.DataError, ModelError, checkpoint.CheckpointError, checkpoint.WriteError, engine.TrainingError,
               record.RunError)


def train(config: Config) -> Path:
    """Train as `config` says, or go on with config.resume; returns the run folder. Raises one of USER_ERRORS."""
    saved = checkpoint.load(config.resume / "last.pt") if config.resume else None
    if saved:
        config = resumed(config, saved)
    precision, why = choose_precision()
    accelerator = Accelerator(mixed_precision=precision)
    say = accelerator.print
    engine.keep_memory()
    if config.deterministic:
        engine.be_deterministic()
    run = config.resume or engine.from_main(lambda: record.new_folder(config.out, config.model), accelerator)
    _lock = accelerator.is_main_process and record.lock(run)  # until this name is gone
    say(f"{run}: {config.model} on {accelerator.device}, {why}")

    # The photos, cut into those to learn from and those to judge by.
    table = record.read_table(run / "photos.csv") if saved else engine.from_main(lambda: look_at_photos(config, run, say), accelerator)
    if saved:
        changed = dataset.changes(table, config.data)
        if changed:
            say(changed)
    classes = sorted(table.label.unique())
    labels = {side: torch.tensor([classes.index(label) for label in table.label[table.side == side]], dtype=torch.int64)
              for side in dataset.SIDES}
    native, crop = native_size(config.model)
    size = config.image_size or native
    world = dict(rank=accelerator.process_index, world=accelerator.num_processes)

    def loader_of(side: str, views: RandomViews | FixedViews, min_side: float, seed: int | None = None):
        photos = Photos(table.path[table.side == side], views, config.seed, round(min_side))
        batches = Batches(len(photos), config.batch, seed, **world)
        return make_loader(photos, batches, config.workers, pin=accelerator.device.type == "cuda")

    train_loader = loader_of("train", RandomViews(size, 1), size * RandomViews.DETAIL, config.seed)
    val_loader = loader_of("val", FixedViews(size, crop), size / crop)
    epoch_steps = train_loader.batch_sampler.batches

    # The model, and SAM around SGD; warm-up, then cosine.
    torch.manual_seed(config.seed)
    model = build_model(config.model, len(classes), "none" if saved else config.weights)
    if saved:
        model.load_state_dict(saved["weights"])
    groups = param_groups_weight_decay(model, config.weight_decay)
    sgd = torch.optim.SGD(groups, config.lr, config.momentum, nesterov=config.momentum > 0)
    model, sgd = accelerator.prepare(model, sgd)
    steps = config.epochs * epoch_steps
    optimizer = SAM(sgd, config.rho, config.asam, config.sam_every, round(config.sam_start * steps))
    schedule = CosineLRScheduler(sgd, steps, warmup_t=round(config.warmup * steps), warmup_prefix=True, t_in_epochs=False)

    # Where the run stands: all that `--resume` needs, beside the weights.
    progress = {"epoch": 0, "step": 0, "loss_sum": 0.0, "photos": 0, "minutes": 0.0, "accumulate": config.accumulate}
    history: list[dict] = []
    if saved:
        optimizer.load_state_dict(saved["optimizer"])
        if accelerator.scaler:
            accelerator.scaler.load_state_dict(saved["scaler"])
        progress, history = progress | saved["progress"], saved["history"]

    def save(name: str, **more) -> None:
        if accelerator.is_main_process:
            checkpoint.save(run / name, {
                "model": config.model, "classes": classes, "image_size": size, "crop": crop, "temperature": 1.0,
                "config": config.to_dict(), "weights": accelerator.unwrap_model(model).state_dict(), "history": history, **more})
        accelerator.wait_for_everyone()  # best.pt is read again at the end, by all

    def save_last() -> None:
        save("last.pt", optimizer=optimizer.state_dict(), progress=progress,
             scaler=accelerator.scaler.state_dict() if accelerator.scaler else {})

    def evaluate(side: str, loader) -> dict[str, float]:
        probs, _ = engine.predict_probs(model, loader, len(classes), accelerator)
        read = ~torch.tensor(probs).isnan().any(1)
        if not read.any():
            raise engine.TrainingError(f"no {side} photo got an answer: they are gone from {config.data}, or the model's numbers are no "
                                       "longer finite. Put the photos back, or start anew with a lower --lr.")
        return metrics.scores(probs[read], labels[side][read].numpy())

    def judge(epoch: int) -> None:
        """Add a row to the history, keep the model if it is the best so far."""
        scores = evaluate("val", val_loader)
        row = {"epoch": epoch, "lr": sgd.param_groups[0]["lr"],
               "train_loss": progress["loss_sum"] / progress["photos"] if progress["photos"] else float("nan"),
               **{f"val_{name}": score for name, score in scores.items()},
               "skipped_steps": optimizer.skipped, "minutes": (time.monotonic() - began) / 60}
        history.append(row)
        learnt = f"loss {row['train_loss']:.3f}" if epoch else "head alone"
        say(f"epoch {epoch}/{config.epochs}  {learnt}  val loss {row['val_loss']:.3f}  accuracy {row['val_accuracy']:.4f}  "
            f"macro-F1 {row['val_macro_f1']:.4f}  {row['minutes']:.1f} min")
        if best(history) is row:
            save("best.pt")
        if accelerator.is_main_process:
            record.write_table(run / "log.csv", pd.DataFrame(history))

    if accelerator.device.type == "cpu":
        announce_time(model, size, len(labels["train"]), config, accelerator, say)
    began = time.monotonic() - 60 * progress["minutes"]
    if not saved:
        if accelerator.is_main_process:
            record.write_settings(run, config.to_dict(), str(accelerator.device), precision)
            draw_a_batch(run, train_loader, labels["train"], classes, config)
        if config.head_first:
            with Bar("fitting the head on frozen features", len(labels["train"]), 0, accelerator) as bar:
                engine.fit_head(model, loader_of("train", FixedViews(size, crop), size / crop), labels["train"], accelerator, bar.update)
            judge(epoch=0)
        save_last()

    with StopRequest(accelerator) as stop:
        while progress["epoch"] < config.epochs and not stop():
            with Bar(f"epoch {progress['epoch'] + 1}/{config.epochs}", epoch_steps, progress["step"], accelerator) as bar:
                engine.train_one_epoch(
                    model, train_loader, labels["train"], optimizer, schedule.step_update, accelerator, progress,
                    num_classes=len(classes), alpha=config.mixup, clip=config.clip, seed=config.seed,
                    keep_batchnorm=config.keep_batchnorm and config.weights != "none",
                    sam_whole=config.sam_whole, stop=stop, tick=bar.tick)
            if progress["step"] == epoch_steps:
                judge(progress["epoch"] + 1)
                progress |= {"epoch": progress["epoch"] + 1, "step": 0, "loss_sum": 0.0, "photos": 0}
            progress["minutes"] = (time.monotonic() - began) / 60
            save_last()
    if progress["epoch"] < config.epochs:
        say(f"stopped; all is saved. Go on with: python main.py --resume {run}")
        sys.exit(130)

    # The end: the best epoch once more on photos set aside as a test, and a row in the record of experiments.
    row = best(history)
    scores = {name: row[name] for name in row if name.startswith("val_")}
    if len(labels["test"]):
        accelerator.unwrap_model(model).load_state_dict(checkpoint.load(run / "best.pt")["weights"])
        test = evaluate("test", loader_of("test", FixedViews(size, crop), size / crop))
        scores |= {f"test_{name}": score for name, score in test.items()}
        say(f"on the test photos: accuracy {test['accuracy']:.4f}, macro-F1 {test['macro_f1']:.4f}")
    if accelerator.is_main_process and not record.has_experiment(run):
        record.add_experiment(run, config.differences(), {k: f"{v:.4f}" for k, v in scores.items()}, progress["minutes"])
    say(f"best: epoch {row['epoch']}, accuracy {row['val_accuracy']:.4f} on {len(labels['val'])} photos it did not learn from\n"
        f"now: python predict.py PHOTO --checkpoint {run / 'best.pt'}")
    return run


def best(history: list[dict]) -> dict:
    """The epoch of the highest validation accuracy; of equals, the one with the lowest loss."""
    return max(history, key=lambda row: (row["val_accuracy"], -row["val_loss"]))


def resumed(config: Config, saved: dict) -> Config:
    """The run's own settings; only --workers may be given anew, as it changes no result."""
    given = {k: v for k, v in config.differences().items() if k not in ("resume", "workers")}
    if given:
        flags = ", ".join("--" + k.replace("_", "-") for k in given)
        raise ConfigError(f"--resume goes on with the run's own settings: drop {flags}, or start a new run without --resume.")
    own = Config.from_dict(saved["config"])
    if saved["progress"]["epoch"] >= own.epochs and record.has_experiment(config.resume):
        raise ConfigError(f"--resume {config.resume}: this run has finished its {own.epochs} epochs. Start a new one without --resume.")
    return dataclasses.replace(own, resume=config.resume, workers=config.workers if config.workers >= 0 else own.workers)


def choose_precision() -> tuple[str, str]:
    """Accelerate's name of the precision, and the reason in words."""
    if not torch.cuda.is_available():
        return "no", "fp32 (no CUDA GPU)"
    if torch.cuda.is_bf16_supported(including_emulation=False):
        return "bf16", "bf16 mixed precision (the card has it)"
    return "fp16", "fp16 mixed precision with loss scaling (the card has no bf16)"


def look_at_photos(config: Config, run: Path, say) -> pd.DataFrame:
    """Table, trouble, split; what was found goes to the screen and to photos.csv in the run folder."""
    table = dataset.load_table(config.data)
    table = dataset.find_trouble(table, lambda photos: tqdm(photos, "looking at photos", len(table), leave=False, disable=None))
    table = dataset.split(table, config.fold, config.folds, config.seed)
    say(dataset.describe(table))
    record.write_table(run / "photos.csv", table.assign(bytes=dataset.file_sizes(table)))
    return table


def draw_a_batch(run: Path, loader, labels: torch.Tensor, classes: list[str], config: Config) -> None:
    """batch.png: what the model will be shown."""
    photos = [loader.dataset[key] for key in next(iter(loader.batch_sampler))[:16]]
    images = torch.cat([image for image, _ in photos if not isinstance(image, str)])
    index = torch.tensor([index for image, index in photos if not isinstance(image, str)])
    mixed, targets = mixup(images, labels[index], len(classes), config.mixup, engine.step_rng(config.seed, 0, 0))
    pictures.batch_sheet(run / "batch.png", mixed, targets, classes)


def announce_time(model, size: int, photos: int, config: Config, accelerator: Accelerator, say) -> None:
    """A CPU may need days for what a GPU does in an hour: better to know before."""
    passes = 1 + (config.rho > 0) / config.sam_every
    seconds = photos * engine.seconds_a_photo(model, size, passes, accelerator)
    advice = "" if seconds < 3600 else "; on a GPU, or with --model tf_efficientnet_lite0 --image-size 224, it is minutes"
    say(f"an epoch will take about {seconds / 60:.1f} min on this CPU ({photos} photos of {size} x {size}){advice}")


if __name__ == "__main__":
    try:
        train(tyro.cli(Config, description=__doc__))
    except USER_ERRORS as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        sys.exit("stopped before training began; nothing was lost")
