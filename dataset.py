"""The table of photos, its split, and the way from a row to a batch."""

from __future__ import annotations

import os
import signal
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import cv2
import joblib
import numpy as np
import pandas as pd
import torch
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from sklearn.model_selection import StratifiedGroupKFold
from torch.utils.data import DataLoader, Dataset

from duplicates import look_over, near_duplicates
from photos import THREE_WAYS, DataError, PhotoError, is_name, is_photo, read_csv, read_photo, shown

SIDES = ("train", "val", "test")
MANY = 10_000  # independent photos: above, dealt out at random they lie evenly, and weighing each takes 0.6 ms


# --- the table: one row a photo; path, label, group, and side where the folders say it ---

def load_table(data: Path) -> pd.DataFrame:
    """The photos of a folder of class folders, or of a CSV, as columns path, label, group, side (all text).

    A folder that holds a `photos.csv` is read through it, for the sake of its groups. group is "" where unknown, side
    is "train", "val" or "test" where folders of that name say it, else "". Raises DataError.
    """
    if data.is_file():
        rows = read_csv(data)
    elif (data / "photos.csv").is_file():
        rows = read_csv(data / "photos.csv")
    elif data.is_dir():
        rows = _from_folders(data)
    else:
        raise DataError(f"{data}: no such folder or CSV. {THREE_WAYS}")
    table = pd.DataFrame(rows).reindex(columns=["path", "label", "group", "side"], fill_value="")
    odd = [label for label in table.label.unique() if not is_name(label)]
    if odd:
        raise DataError(f"{data}: the class {shown(odd[0][:50])} has control characters in its name, or more than 200 letters. Rename it.")
    taken = {"image", "label", "fold"} & set(table.label)
    if taken:
        raise DataError(f"{data}: a class may not be called {taken.pop()}, as val.csv has a column of that name. Rename it.")
    if table.label.nunique() < 2:
        raise DataError(f"{data}: all photos are of one class, {table.label.iloc[0]}: there is nothing to tell apart. Add another class.")
    return table


def _from_folders(data: Path) -> list[dict]:
    sides = [side for side in SIDES if (data / side).is_dir()] if (data / "train").is_dir() else []
    rows = [row | {"side": side} for side in sides for row in _class_folders(data / side)] if sides else _class_folders(data)
    if not rows:
        inner = [folder for folder in sorted(data.iterdir()) if folder.is_dir() and _class_folders(folder)]
        hint = f"But {inner[0]} has some: pass --data {inner[0]}." if inner else THREE_WAYS
        raise DataError(f"{data}: no class folder with photos in it. {hint}")
    return rows


def _class_folders(folder: Path) -> list[dict]:
    return [{"path": str(photo), "label": cls.name} for cls in sorted(folder.iterdir()) if cls.is_dir()
            for photo in sorted(cls.iterdir()) if is_photo(photo)]


# --- the split ---

def find_trouble(table: pd.DataFrame, progress: Callable = iter) -> pd.DataFrame:
    """Look at each photo once. Adds the columns

    error: why it cannot be read, or "". twin: int, shared by near-duplicates alone. cluster: int, shared by
    near-duplicates and by photos of one group, in chains: what must stay on one side of a split.
    """
    hashes, errors = look_over(table.path.tolist(), progress)
    readable = np.setdiff1d(np.arange(len(table)), list(errors))
    twins = readable[near_duplicates(hashes[readable])]
    named = np.flatnonzero(table.group != "")
    _, first, of = np.unique(pd.factorize(table.group.iloc[named])[0], return_index=True, return_inverse=True)
    table = table.assign(error=pd.Series(errors, dtype=str).reindex(range(len(table)), fill_value="").to_numpy(),
                         twin=_components(len(table), twins))
    return table.assign(cluster=_components(len(table), np.concatenate([twins, np.stack([named[first][of], named], axis=1)])))


def _components(nodes: int, edges: np.ndarray) -> np.ndarray:
    """The connected component int (nodes,) of each; edges int (M, 2)."""
    return connected_components(coo_matrix((np.ones(len(edges)), edges.T), shape=(nodes, nodes)), directed=False)[1]


def split(table: pd.DataFrame, fold: int, folds: int, seed: int) -> pd.DataFrame:
    """Fills the column side: "val" for the photos of one fold, "train" for the rest; "" for those that cannot be read, or are set aside.

    Stratified by label, and a cluster (from find_trouble) never stands on both sides. Where folders say which photos
    validate or test, they do, and what is of one cluster with them is set aside. A class that would have nothing to learn from, as its
    photos are one find, say, validates nothing instead. Raises DataError if a class has no photo, or none is left to validate.
    """
    side = table.side.where(table.error == "", "")
    judges = side.map(("", *SIDES).index)                                   # the later, the less it may be known
    side = side.where(judges == judges.groupby(table.cluster).transform("max"), "")
    free = (table.error == "") & ((side == "train") | (table.side == ""))
    if not (side == "val").any():
        if ((table.side == "val") & (table.error == "")).any():
            raise DataError("each photo of val/ is like one of test/: give val/ others, or remove it, and a part of train/ validates.")
        if free.any() and table.label[free].value_counts().max() < folds:
            raise DataError(f"no class has {folds} photos, so they cannot be cut into {folds} folds: add photos, or lower --folds.")
        if table.cluster[free].nunique() < folds:
            raise DataError(f"{table.cluster[free].nunique()} independent photos (finds, or near-duplicates, count once) cannot be cut "
                            f"into {folds} folds: add photos, or lower --folds.")
        side = side.where(~free, "train")
        side[free] = np.where(_folds(table[free], folds, seed) == fold, "val", "train")
        unlearnt = free & ~table.label.isin(table.label[side == "train"])
        side[free & table.cluster.isin(table.cluster[unlearnt])] = "train"
        if not (side == "val").any():
            raise DataError("no photo is left to validate, as each class has one find or one photo: add photos, or take another --fold.")
    missing = sorted(set(table.label) - set(table.label[side == "train"]))
    if missing:
        raise DataError(f"no photo to train on for: {', '.join(missing)} (one that cannot be read, or is like one that judges, is none). "
                        "Add photos of it, or remove the class.")
    return table.assign(side=side)


def _folds(table: pd.DataFrame, folds: int, seed: int) -> np.ndarray:
    """Fold int (N,) of each photo: a cluster lies in one, labels lie evenly over all."""
    clusters = table.groupby("cluster").label.agg(["first", "size"])
    if len(clusters) > MANY:
        dealt = clusters.sample(frac=1, random_state=seed).sort_values(["first", "size"], kind="stable")
        return pd.Series(np.arange(len(dealt)) % folds, dealt.index)[table.cluster].to_numpy()
    found = np.empty(len(table), int)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The least populated class")  # what follows from it, `split` says
        cuts = StratifiedGroupKFold(folds, shuffle=True, random_state=seed).split(table, table.label, table.cluster)
        for fold, (_, rows) in enumerate(cuts):
            found[rows] = fold
    return found


def describe(table: pd.DataFrame) -> str:
    """What a person should know before training: photos per class and side, duplicates, two labels, unreadable."""
    counts = pd.crosstab(table.label, table.side[table.side != ""])
    counts = counts.reindex(columns=[s for s in SIDES if s in counts])
    counts = pd.concat([counts, counts.sum().to_frame("all").T])  # by place: a class may be called so
    with pd.option_context("display.unicode.east_asian_width", True):
        lines = [counts.rename_axis(index="photos", columns=None).to_string()]
    read = table[table.error == ""]
    named = read.group[read.group != ""].nunique()
    lines.append(f"{len(read)} photos, {read.cluster.nunique()} independent"
                 + (f" ({named} finds named by the table)" if named else "")
                 + f"; {int(read.duplicated('twin').sum())} near-duplicates, kept on one side")
    labels = read.groupby("twin").label.nunique()
    torn = read[read.twin.isin(labels[labels > 1].index)]
    if len(torn):
        example = torn[torn.twin == torn.twin.iloc[0]].drop_duplicates("label").path.tolist()
        lines.append(f"{torn.twin.nunique()} photos stand under two labels, e.g. {shown(example[0])} and {shown(example[1])}")
    unjudged = sorted(set(read.label) - set(read.label[read.side == "val"]))
    if unjudged:
        lines.append(f"no photo validates {', '.join(unjudged)}: too few, or of one find")
    aside = read[read.side == ""]
    if len(aside):
        lines.append(f"{len(aside)} photos set aside, as they are like some that validate or test, e.g. {shown(aside.path.iloc[0])}")
    lines += [f"left out, cannot be read: {shown(row.path)}: {row.error}" for row in table[table.error != ""].itertuples()]
    return "\n".join(lines)


def file_sizes(table: pd.DataFrame) -> list[int]:
    """Bytes of each photo, -1 where it is gone."""
    return [os.path.getsize(path) if os.path.isfile(path) else -1 for path in table.path]


def changes(table: pd.DataFrame, data: Path) -> str:
    """What is other in the photos than when `table` was made, by its column bytes; "" if nothing."""
    now, then = np.array(file_sizes(table)), table.bytes.to_numpy()
    try:
        new = len(set(load_table(data).path) - set(table.path))
    except DataError:
        new = 0
    found = {"gone": int(((now < 0) & (then >= 0)).sum()), "changed": int(((now >= 0) & (now != then)).sum()), "new, not used": new}
    told = ", ".join(f"{count} {what}" for what, count in found.items() if count)
    return told and f"{data}: photos since the run began: {told}. The result will differ from that of a run never stopped."


# --- from a row to a batch ---

class Photos(Dataset):
    """Item (epoch, index) → (tensor uint8, index); a photo that cannot be read → (why, index).

    transform: (photo uint8 (H, W, 3), seed) → uint8 (..., S, S, 3). The seed is the photo's own in this epoch, so its
    draws depend on (seed, epoch, photo) alone: not on the worker, the number of workers, or a restart.
    min_side: pixels that the photo's short side must keep when decoded. read: read_photo, or a PhotoCache's way to do the same.
    """

    def __init__(self, paths: Sequence[str], transform: Callable[[np.ndarray, int], np.ndarray], seed: int, min_side: int,
                 read: Callable[[str, int], np.ndarray] = read_photo):
        self.paths, self.transform, self.seed, self.min_side, self.read = list(paths), transform, seed, min_side, read

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, key: tuple[int, int]) -> tuple[torch.Tensor | str, int]:
        epoch, index = key
        try:
            photo = self.read(self.paths[index], self.min_side)
        except PhotoError as error:
            return str(error), index
        own_seed = int(np.random.default_rng((self.seed, epoch, index)).integers(2**31))
        return torch.from_numpy(self.transform(photo, own_seed)).movedim(-1, -3), index


class Batches:
    """Batch sampler of (epoch, index) keys: each photo once an epoch, in batches as equal as can be.

    One pass goes through all epochs, so that workers never wait for one to end. Order depends on (seed, epoch) alone. With several
    processes each takes its share of every batch. batches: of an epoch. start: batches that are left out, to go on anywhere.
    """

    def __init__(self, photos: int, batch: int, seed: int | None = None, epochs: int = 1, rank: int = 0, world: int = 1):
        """seed: None keeps the order of the table, for evaluation."""
        self.photos, self.seed, self.epochs, self.rank, self.world = photos, seed, epochs, rank, world
        self.batches = -(-photos // batch)
        self.start = 0

    def __len__(self) -> int:
        return self.epochs * self.batches - self.start

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        first, done = divmod(self.start, self.batches)
        for epoch in range(first, self.epochs):
            order = np.arange(self.photos)
            if self.seed is not None:
                order = np.random.default_rng((self.seed, epoch)).permutation(self.photos)
            for batch in np.array_split(order, self.batches)[done if epoch == first else 0:]:
                yield [(epoch, int(index)) for index in np.array_split(batch, self.world)[self.rank]]


def make_loader(photos: Photos, batches: Batches, workers: int, pin: bool = False, stay: bool = False) -> DataLoader:
    """Batches (images uint8 (B, ..., 3, S, S), index int64 (B,), errors {index: why}), the unreadable left out.

    workers: processes; -1 = one for each core that may be used, at most 16, shared with the other trainings of an `accelerate launch`
    on this machine. stay: they wait for the next pass, for loaders that have many.
    """
    if workers < 0:
        workers = max(1, min(joblib.cpu_count() // int(os.environ.get("LOCAL_WORLD_SIZE", 1)), 16))
    return DataLoader(photos, batch_sampler=batches, num_workers=workers, collate_fn=_collate, pin_memory=pin,
                      worker_init_fn=_start_worker, persistent_workers=stay and workers > 0)


def _collate(items: list) -> tuple[torch.Tensor, torch.Tensor, dict[int, str]]:
    read = [(image, index) for image, index in items if not isinstance(image, str)]
    # Colours stay innermost in memory, as photos are decoded and as the network takes them (channels_last): nothing is transposed.
    images = torch.stack([image.movedim(-3, -1) for image, _ in read]).movedim(-1, -3) if read else torch.empty(0)
    return images, torch.tensor([index for _, index in read], dtype=torch.int64), {i: e for e, i in items if isinstance(e, str)}


def _start_worker(_: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to every process; the main one decides what it means
    if hasattr(os, "setpgrp"):
        os.setpgrp()                              # accelerate launch hands SIGTERM to its whole group: the main process is still to save
    cv2.setNumThreads(0)                          # the workers are the parallelism
    torch.set_num_threads(1)
