"""The table of photos, and the way from a row to a batch."""

from __future__ import annotations

import itertools
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePath, PureWindowsPath

import cv2
import joblib
import numpy as np
import pandas as pd
import torch
from torch.utils.data import DataLoader, Dataset

from photos import SIDES, THREE_WAYS, DataError, PhotoError, is_photo, photos_below, read_csv, read_photo
from text import class_name, is_name, shown

OTHER_VAL = ("valid", "validation", "eval")  # what others call val

# --- the table: one row a photo; path, label, group, and side where the folders say it ---

def load_table(data: Path) -> pd.DataFrame:
    """The photos of a folder of class folders, or of a CSV, as columns path, label, group, side (all text).

    A folder that holds a `photos.csv` is read through it, for the sake of its groups. group is "" where unknown, side
    is "train", "val" or "test" where folders of that name or the CSV's column side say it, else "". Raises DataError.
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
    table.path = [os.path.abspath(path) for path in table.path]  # what a run writes down holds wherever it is read
    if table.side.any():
        table.side = table.side.replace("", "train")
    odd = [label for label in table.label.unique() if not is_name(label)]
    if odd:
        raise DataError(f"{data}: the class {shown(odd[0][:50])} has control characters in its name, or more than 200 letters. Rename it.")
    taken = {"image", "label", "fold", "prob", "known", "unknown", "deadly"} & set(table.label)
    if taken:
        raise DataError(f"{data}: a class may not be called {min(taken)}, as tables of answers have a column of that name. Rename it.")
    if table.label.nunique() < 2:
        raise DataError(f"{data}: all photos are of one class, {table.label.iloc[0]}: there is nothing to tell apart. Add another class.")
    return table


def _from_folders(data: Path) -> list[dict]:
    try:
        sides, folders = _sides(data), _by_name(data)
        rows = [row | {"side": side} for side in sides for row in _class_folders(sides[side])] if sides else _class_folders(data)
        unknown = [folders[name] for name in (OTHER_VAL if sides else SIDES) if name in folders and _class_folders(folders[name])]
    except OSError as error:
        raise DataError(f"{error.filename}: cannot be opened ({error.strerror}). Make it readable, or move it out of {data}.") from error
    if rows and unknown:
        remedy = "Call it val" if sides else "Put the class folders beside it below train"
        raise DataError(f"{unknown[0]}: holds class folders, but would not be used. {remedy}, or move it out of {data}.")
    if not rows:
        raise DataError(f"{data}: no class folder with photos in it. {_where_photos_are(data)}")
    return rows


def _where_photos_are(data: Path) -> str:
    """What to do where `data` holds no class folders: there may be some further down, or photos without any."""
    photos = photos_below(data)
    inner = sorted({photo.parent.parent for photo in photos if photo.parent != data} - {data})
    if {folder.name.casefold() for folder in inner} & {*SIDES, *OTHER_VAL, "training"}:
        return f"But {', '.join(folder.name for folder in inner)} have some: call the sides of a split train, val and test."
    if inner:
        return f"But {inner[0]} has some: pass --data {inner[0]}."
    if photos:
        return (f"{len(photos)} photos lie in no class folder, e.g. {shown(photos[0])}: put those of each class into a folder of its name; "
                f"if {data.name} is a class itself, pass the folder above.")
    return THREE_WAYS


def _by_name(folder: Path) -> dict[str, Path]:
    """The folders in it by their names in small letters."""
    return {inner.name.casefold(): inner for inner in sorted(folder.iterdir()) if inner.is_dir()}


def _sides(data: Path) -> dict[str, Path]:
    """Folders in it that say on which side of the split their photos stand; none where its own folders are the classes."""
    found = _by_name(data)
    return {side: found[side] for side in SIDES if side in found} if "train" in found else {}


def _classes(folder: Path) -> list[Path]:
    """The folders of classes in it: .thumbnails and the like are other programs'."""
    return [inner for inner in sorted(folder.iterdir()) if inner.is_dir() and inner.name[0] != "." and inner.name != "__pycache__"]


def _class_folders(folder: Path) -> list[dict]:
    return [{"path": str(photo), "label": class_name(cls.name)}
            for cls in _classes(folder) for photo in sorted(cls.iterdir()) if is_photo(photo)]


def unused(data: Path, table: pd.DataFrame) -> str:
    """What a look through the folder `data` finds beside the table made of it; "" if nothing, or where a CSV says which photos count."""
    if not data.is_dir() or (data / "photos.csv").is_file():
        return ""
    used, folders = {*table.path}, [cls for above in _sides(data).values() or [data] for cls in _classes(above)]
    outside = [path for path in map(os.path.abspath, photos_below(data)) if path not in used]
    others = [os.path.abspath(file) for cls in folders for file in cls.iterdir()
              if file.is_file() and file.name[0] != "." and not is_photo(file)]
    empty = [os.path.abspath(cls) for cls in folders if not any(cls.iterdir())]
    reasons = {"they lie in no class folder: {} photos": outside, "their names end as no photo's: {} files": others,
               "they are empty: {} folders": empty}
    return "\n".join(f"not used, as {why.format(len(paths))}, e.g. {shown(min(paths))}" for why, paths in reasons.items() if paths)


def file_sizes(paths: Sequence[str]) -> list[int]:
    """Bytes of each photo, -1 where it is gone."""
    return [os.path.getsize(path) if os.path.isfile(path) else -1 for path in paths]


def found_again(table: pd.DataFrame, data: Path, file: Path, named: bool = False) -> pd.DataFrame:
    """A run's table, read from `file`, with its photos where most of them are now, by name and size: in the folder of `data`, or where they
    were. named: somebody named that folder, so that some must be in it. Raises DataError."""
    first, folder = table.path.iloc[0], os.path.abspath(data if data.is_dir() else data.parent)
    from_windows = PureWindowsPath(first).drive and not first.startswith("/")  # such a run may go on elsewhere
    parts = [(PureWindowsPath if from_windows else PurePath)(path).parts for path in table.path]
    shared = len([*itertools.takewhile(lambda names: len({*names}) == 1, zip(*(part[:-1] for part in parts), strict=False))])
    paths, most = [], (-1, -1)
    for skipped in range(shared, -1, -1):  # none skipped: from the root, where it was
        here = [os.path.join(folder, *part[skipped:]) for part in parts]
        sizes = np.array(file_sizes(here))
        count = int((sizes == table.bytes).sum()), int((sizes >= 0).sum())
        if count > most:
            paths, most = here, count
        if most[0] == len(table):
            break
    there, known = most[1], int((table.bytes >= 0).sum())
    if not there or (paths != table.path.tolist() and 2 * there < known):
        raise DataError(f"{file}: {there} of its {known} photos are in {data}, or where they were ({shown(first)}). Put them "
                        "back, or pass the full path of the folder they are in now as --data.")
    if named and data.is_dir() and not (data / "photos.csv").is_file() and not any(Path(path).is_relative_to(folder) for path in paths):
        raise DataError(f"{data}: holds none of the photos of {file}, which are where they were ({shown(first)}). Leave --data out.")
    return table.assign(path=paths)


def changes(table: pd.DataFrame, data: Path) -> str:
    """What changed in the photos since `table` was written, judged by the size of their files; "" if nothing."""
    now, then = np.array(file_sizes(table.path)), table.bytes.to_numpy()
    try:
        new = len(set(load_table(data).path) - set(table.path))
    except DataError:
        new = 0
    found = {"gone": int(((now < 0) & (then >= 0)).sum()), "changed": int(((now >= 0) & (now != then)).sum()), "new, not used": new}
    told = ", ".join(f"{count} {what}" for what, count in found.items() if count)
    differs = " The result will differ from that of a run never stopped." if found["gone"] or found["changed"] else ""
    return told and f"{data}: photos since the run began: {told}.{differs}"


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

    def __init__(self, photos: int, batch: int, seed: int | None = None, epochs: int = 1, rank: int = 0, world: int = 1,
                 views: int = 1):
        """batch: views of all processes; views: of a photo. seed: None keeps the order of the table, for evaluation."""
        batch = max(1, min(batch, world), batch // views)  # where it is large enough, each process has a photo of it
        self.photos, self.seed, self.epochs, self.rank, self.world = photos, seed, epochs, rank, world
        self.batches = max(1, -(-photos // batch))  # of no photo, an empty one
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
