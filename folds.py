"""Cross-validation in one command: a training for each fold, and every photo answered by a model that did not see it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pandas as pd

import dataset
import engine
import metrics
import record
from config import Config
from device import make_accelerator
from prepare import check_folds, list_photos, photos_of
from run import check_settings


def train_each_fold(config: Config, train: Callable[[Config], Path]) -> Path:
    """A run for each fold, below one folder; then oof.csv, the answers to all photos, each by the model that did not learn from it.

    train: as main.train. Returns the folder of all.
    The same command with the same --out goes on where it was stopped.
    """
    accelerator, _ = make_accelerator()
    table = engine.from_main(lambda: list_photos(config), accelerator)
    if config.out and (config.out / "photos.csv").exists():
        raise record.RunError(f"{config.out}: holds a run of its own, whose model would answer in place of the folds'. Give another --out.")
    if config.out and (config.out / "fold0" / "photos.csv").exists():
        _, found = photos_of(config.out / "fold0", config.data)
        changed = dataset.changes(found, config.data)
        if changed or not same_photos(found, table):
            raise record.RunError(f"{config.out}: its folds would be of different photos. {changed} Put back what is "
                                  "gone, take out what is new, or give another --out.")
    elif config.out and (config.out / "oof.csv").exists():
        raise record.RunError(f"{config.out}: holds an oof.csv that no run wrote, and it would be replaced. Give another --out.")
    else:
        engine.from_main(lambda: check_folds(table, config), accelerator)
    run = config.out or engine.from_main(lambda: record.new_folder(None, config.model), accelerator)
    for fold in range(config.folds):
        own = dataclasses.replace(config, fold=fold, out=run / f"fold{fold}")
        check_settings(own.out, own)
        begun = (own.out / "last.pt").exists()
        done = record.is_finished(own.out) if begun else (own.out / "val.csv").exists()  # last.pt may be deleted, it is large
        if not done:
            try:
                train(Config(resume=own.out, data=config.data.absolute(), workers=config.workers, quiet=config.quiet) if begun else own)
            except (SystemExit, KeyboardInterrupt):
                accelerator.on_main_process(print)(f"all folds go on by the same command as before, with --out {run}")
                raise
    accelerator.wait_for_everyone()  # the last val.csv is written by one
    answers = [record.read_answers(run / f"fold{fold}" / "val.csv") for fold in range(config.folds)]
    if accelerator.is_main_process:
        tables = []
        for fold, (answered, *_) in enumerate(answers):
            written, found = photos_of(run / f"fold{fold}", config.data)
            tables.append(answered.assign(image=answered.image.map(dict(zip(written.path, found.path, strict=True))), fold=fold))
        record.write_table(run / "oof.csv", pd.concat(tables))
    scores = pd.DataFrame([metrics.scores(probs, truth) for _, probs, truth in answers])
    lines = [f"{name} of {config.folds} folds: {scores[name].mean():.4f} +- {scores[name].std():.4f}" for name in scores]
    accelerator.on_main_process(print)("\n".join([*lines, f"now, all folds' models together: python predict.py PHOTO --checkpoint {run}"]))
    return run


def same_photos(begun: pd.DataFrame, table: pd.DataFrame) -> bool:
    """Whether a begun fold's table, which is cut, says of each photo what the whole table says: its label, find and whether it tests."""
    def described(photos: pd.DataFrame) -> set[tuple[str, str, str]]:
        return {*zip(photos.path, photos.label, photos.group, strict=True)}

    before, now = ({*photos.path[photos.side == "test"]} for photos in (begun, table))  # those that test
    learnt_or_judged = begun.path[begun.side.isin(["train", "val"])]
    return described(begun) == described(table) and before <= now and now.isdisjoint(learnt_or_judged)
