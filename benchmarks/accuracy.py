"""Time to accuracy: seconds until validation accuracy reaches what fastai's fine_tune reaches in 10 epochs at its best rate.

    python -m benchmarks accuracy --data FOLDER     # class folders; an hour on two cores

Ours: the whole of `python main.py`, from looking at the photos on. Theirs: fine_tune alone, on our split, same backbone, size and batch.
"""

import tempfile
import time
from pathlib import Path

import pandas as pd

from benchmarks.timing import Options, command, row

MODEL, SIZE, BATCH, EPOCHS = "tf_efficientnet_lite0", 224, 32, 10
STATS = [0.5] * 3, [0.5] * 3  # mean and std that the backbone was trained with
RATES = (5e-4, 1e-3, 2e-3, 4e-3)  # of fine_tune; its own default is 2e-3


def ours(options: Options, out: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The log, with seconds since the start of the command, and the table of photos with their sides."""
    import main
    from config import Config
    began = time.perf_counter()
    main.train(Config(data=options.data, model=MODEL, image_size=SIZE, batch=BATCH, epochs=2 if options.small else EPOCHS, out=out))
    log = pd.read_csv(out / "log.csv")
    before = time.perf_counter() - began - 60 * log.minutes.iloc[-1]  # what came before the first epoch's clock
    return log.assign(seconds=before + 60 * log.minutes), pd.read_csv(out / "photos.csv")


def theirs(table: pd.DataFrame, rate: float, epochs: int) -> tuple[float, float]:
    """fastai's accuracy at the end, and its seconds: one epoch of the head alone, then the rest."""
    from fastai.vision.all import (
        CategoryBlock,
        ColReader,
        ColSplitter,
        DataBlock,
        ImageBlock,
        Normalize,
        Resize,
        accuracy,
        aug_transforms,
        set_seed,
        vision_learner,
    )

    from model import build_model
    set_seed(0)
    table = table[table.side.isin(["train", "val"])].assign(is_valid=lambda t: t.side == "val")
    photos = DataBlock((ImageBlock, CategoryBlock), get_x=ColReader("path"), get_y=ColReader("label"), splitter=ColSplitter(),
                       item_tfms=Resize(460), batch_tfms=[*aug_transforms(size=SIZE, min_scale=0.75), Normalize.from_stats(*STATS)])
    learner = vision_learner(photos.dataloaders(table, bs=BATCH), MODEL, pretrained=False, metrics=accuracy)
    learner.model[0].model.load_state_dict(build_model(MODEL, 9).backbone.state_dict(), strict=False)  # its own would come from the hub
    began = time.perf_counter()
    learner.fine_tune(epochs - 1, rate)
    return float(learner.validate()[1]), time.perf_counter() - began


def measure(options: Options):
    with tempfile.TemporaryDirectory() as folder:
        log, table = ours(options, Path(folder) / "run")
    runs = {rate: theirs(table, rate, 2 if options.small else EPOCHS) for rate in (RATES[:1] if options.small else RATES)}
    best = max(runs, key=lambda rate: runs[rate][0])
    accuracy, seconds = runs[best]
    reached = log[log.val_accuracy >= accuracy]
    detail = f"fastai {accuracy:.3f} in {seconds:.0f} s at rate {best:g}; ours at best {log.val_accuracy.max():.3f}"
    if len(reached):
        yield row("time to accuracy: ours / fastai", [reached.seconds.iloc[0]], [seconds], "<= 0.25", detail)
    else:
        yield f"| time to accuracy: ours / fastai | never reached | <= 0.25 | no | {detail} |"


if __name__ == "__main__":
    command(measure)
