"""Contact sheets for a person to judge: `python -m tools.look augmentations PHOTO...` and `... predictions RUN/best.pt PHOTO...`."""

from __future__ import annotations

from pathlib import Path

import tyro
from tyro.conf import Positional

from config import Config
from files import check_out
from photos import read_named
from pictures import contact_sheet
from predict import Predictor
from text import as_program, shown
from transforms import RandomViews, training_transform
from views import crop_view


def augmentations(photos: Positional[tuple[Path, ...]], out: Path = Path("augmentations.png"), size: int = 224) -> None:
    """Each photo as it is, then after each augmentation alone, then three draws of the whole pipeline.

    Args:
        photos: to draw, two rows each.
        out: the picture.
        size: pixels of a square.
    """
    check_any(photos)
    if size < 1:
        raise ValueError(f"--size {size}: use 1 or more.")
    check_out(out, *photos)
    images, captions = [], []
    for path in photos:
        photo = read_named(path)
        square = crop_view(photo, size, 1.0)
        images.append(square)
        captions.append(shown(path.stem))
        steps = training_transform(size, Config.augment).transforms
        for step in [step for outer in steps for step in getattr(outer, "transforms", [outer])]:
            step.p = 1.0
            step.set_random_seed(0)
            images.append(step(image=photo if step is steps[0] else square)["image"])
            captions.append(type(step).__name__)
        images += list(RandomViews(size, 3, Config.augment)(photo, 0))
        captions += [f"all, draw {draw + 1}" for draw in range(3)]
    contact_sheet(out, images, captions, columns=len(images) // len(photos) // 2)
    print(out)


def predictions(checkpoint: Positional[Path], photos: Positional[tuple[Path, ...]], out: Path = Path("predictions.png"),
                columns: int = 6) -> None:
    """Photos with the answer and its probability; the folder's name beside it where the two differ.

    Args:
        checkpoint: whose answers.
        photos: to ask.
        out: the picture.
        columns: photos in a row.
    """
    check_any(photos)
    if columns < 1:
        raise ValueError(f"--columns {columns}: use 1 or more.")
    check_out(out, checkpoint, *photos)
    predictor = Predictor(checkpoint)
    images, captions = [], []
    for path in photos:
        label, prob = next(iter(predictor(path).items()))
        images.append(crop_view(read_named(path), 224, 1.0))
        captions.append(f"{label} {prob:.0%}" + ("" if label == path.parent.name else f"\n({path.parent.name})"))
    contact_sheet(out, images, captions, columns)
    print(out)


def check_any(photos: tuple[Path, ...]) -> None:
    """Raises ValueError."""
    if not photos:
        raise ValueError("no photo given: name some after the command.")


if __name__ == "__main__":
    pages = {"augmentations": augmentations, "predictions": predictions}
    as_program(lambda: tyro.extras.subcommand_cli_from_dict(pages, description=__doc__))
