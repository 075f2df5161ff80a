"""Photos that may stand under a wrong label: `python -m tools.suspects RUN/oof.csv` writes suspects.csv and suspects.png to look at."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import tyro
from tyro.conf import Positional

from dataset import DataError
from files import picture_beside
from photos import read_named
from pictures import contact_sheet
from record import read_table, write_table
from text import as_program
from views import crop_view

COLUMNS = ["image", "label", "fold"]  # of oof.csv, beside a column of probability for each class


def suspects(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of a table image, label, CLASS..., fold that confident learning doubts (Northcutt et al. 2021, arXiv 1911.00068),
    most suspicious first, as columns image, label, prob (of the label), answer (the likeliest class), answer_prob.

    The probabilities must be out of fold: a model knows by heart what it trained on, errors too.
    """
    try:
        from cleanlab.filter import find_label_issues
    except ImportError as error:
        raise DataError("tools.suspects needs cleanlab: pip install cleanlab") from error
    classes = [column for column in table.columns if column not in COLUMNS]
    probs = table[classes].to_numpy(float)
    labels = pd.Categorical(table.label, classes).codes.astype(int)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="May not flag all")       # of a class with few photos it doubts fewer labels
        doubted = find_label_issues(labels, probs, return_indices_ranked_by="self_confidence", n_jobs=1)
    return pd.DataFrame({"image": table.image.iloc[doubted], "label": table.label.iloc[doubted], "prob": probs[doubted, labels[doubted]],
                         "answer": np.array(classes)[probs[doubted].argmax(1)], "answer_prob": probs[doubted].max(1)})


def main(predictions: Positional[Path], out: Path = Path("suspects.csv"), most: int = 48) -> None:
    """Write the list and its picture.

    Args:
        predictions: oof.csv: image, label, a column for each class, and fold.
        out: the list; its picture lies beside it.
        most: photos in the picture, the most suspicious first.
    """
    if most < 1:
        raise ValueError(f"--most {most}: use 1 or more.")
    if not predictions.is_file():
        raise DataError(f"{predictions}: no such table. Give the oof.csv of a run over all folds.")
    table = read_table(predictions)
    strange = set(table.get("label", [])) - set(table.columns)
    if not {*COLUMNS} <= set(table.columns) or strange or table.empty:
        raise DataError(f"{predictions}: not a table of out-of-fold predictions ({', '.join(table.columns[:4])}, ...). "
                        "Its first line must be image,label, the name of each class, and fold; a line for each photo.")
    if not any(os.path.isfile(photo) for photo in table.image):
        raise DataError(f"{predictions}: none of its photos is where it was ({table.image[0]}). Put them back; or give the command that "
                        f"trained the folds once more, with --out {predictions.parent} and, as --data, the folder they are in now: it "
                        "writes this table anew.")
    picture = picture_beside(out, predictions, *table.image)
    found = suspects(table)
    write_table(out, found.round(4))
    if found.empty:
        print(f"{out}: none of {len(table)} labels is in doubt; there is nothing to draw")
        return
    there = found[[os.path.isfile(photo) for photo in found.image]]  # who has moved some to where they belong looks at the rest
    gone = f"; {len(found) - len(there)} are no longer where they were" if len(there) < len(found) else ""
    if there.empty:
        print(f"{out}: {len(found)} of {len(table)} labels in doubt{gone}; there is nothing to draw")
        return
    shown = there.head(most)
    contact_sheet(picture, [crop_view(read_named(image, 224), 224, 1.0) for image in shown.image],
                  [f"{row.label} {row.prob:.0%}\n{row.answer} {row.answer_prob:.0%}?" for row in shown.itertuples()])
    print(f"{out}: {len(found)} of {len(table)} labels in doubt; {picture} shows the first {len(shown)}{gone}")


if __name__ == "__main__":
    as_program(lambda: tyro.cli(main, description=__doc__))
