"""The split: what must stay on one side of it, who validates, and what a person should know of it before training."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np
import pandas as pd
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from sklearn.model_selection import StratifiedGroupKFold

from duplicates import look_over, near_duplicates
from photos import SIDES, DataError
from text import shown

MANY = 10_000  # independent photos: above, dealt out at random they lie evenly, and weighing each takes 0.6 ms


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

    Stratified by label, and a cluster (from find_trouble) never stands on both sides. Where folders or the CSV say which photos
    validate or test, they do, and what is of one cluster with them is set aside. A class that would have nothing to learn from, as its
    photos are one find, say, validates nothing instead. Raises DataError if a class has no photo, or none is left to validate.
    """
    side = table.side.where(table.error == "", "")
    if (table.error != "").all():
        raise DataError("no photo can be read.")
    for name in ("val", "test"):
        if (table.side == name).any() and not (side == name).any():
            raise DataError(f"none of the photos of {name} can be read: put others in their place, or take them away.")
    judges = side.map(("", *SIDES).index)                                   # the later, the less it may be known
    side = side.where(judges == judges.groupby(table.cluster).transform("max"), "")
    free = (table.error == "") & ((side == "train") | (table.side == ""))
    if not (side == "val").any():
        if (table.side == "val").any():
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
        lines.append(f"no photo validates {', '.join(unjudged)}: too few, of one find, or none in val/")
    aside = read[read.side == ""]
    if len(aside):
        lines.append(f"{len(aside)} photos set aside, as they are like some that validate or test, e.g. {shown(aside.path.iloc[0])}")
    lines += [f"left out, cannot be read: {shown(row.path)}: {row.error}" for row in table[table.error != ""].itertuples()]
    return "\n".join(lines)
