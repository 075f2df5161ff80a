"""Write a run's exported model in 8 bits, and say what that costs: `python -m tools.quantize RUN` makes RUN/best.int8.onnx.

Static quantisation by ONNX Runtime: weights int8 by channel, and what flows between layers by the ranges seen on training
photos. The head stays fp32. Needs RUN/best.onnx (`python -m tools.export RUN`), and the photos where they were.
"""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path

import numpy as np
import tyro
from tyro.conf import Positional

import metrics
import record
from checkpoint import CheckpointError
from files import atomic_file
from photos import PhotoError, read_photo
from predict import Predictor
from text import as_program, shown

CALIBRATE = 128  # training photos, drawn at random, whose ranges are taken
LAYERS = ["Conv", "Clip", "Relu"]  # convolutions with the ReLU behind them: what it cuts off must not take up any of the 256 steps


def quantize(run: Positional[Path]) -> Path:
    """Write RUN/best.int8.onnx, and say what it costs; returns its path. Raises CheckpointError.

    Args:
        run: a run's folder.
    """
    try:
        import onnx
        from onnxruntime.quantization import quantize_static, shape_inference
    except ImportError as error:
        raise CheckpointError(f"quantize needs the package {error.name}: pip install -r requirements-extra.txt") from error
    source, out = run / "best.onnx", run / "best.int8.onnx"
    if not source.is_file():
        raise CheckpointError(f"{source}: no such file. Write it first: python -m tools.export {run}")
    plain = Predictor(source, tta=1)
    record.check_finished(run, "photos.csv")
    table = record.read_photos(run)
    learnt = table.path[table.side == "train"].sample(frac=1, random_state=0)
    if not any(map(os.path.isfile, table.path[table.side == "val"])) or not any(map(os.path.isfile, learnt[:CALIBRATE])):
        raise CheckpointError(f"{run}: its photos are not where they were ({shown(learnt.iloc[0])}). Put them back.")
    with tempfile.TemporaryDirectory() as folder:
        prepared, small = Path(folder) / "prepared.onnx", Path(folder) / "small.onnx"
        shape_inference.quant_pre_process(source, prepared, skip_symbolic_shape=True)  # it knows not all that the head does
        quantize_static(prepared, small, Ranges(learnt[:CALIBRATE], plain.models[0]), per_channel=True, op_types_to_quantize=LAYERS)
        network = onnx.load(small)
    network.metadata_props.extend(onnx.load(source).metadata_props)
    with atomic_file(out) as file:
        file.write(network.SerializeToString())
    print(f"{out}: {out.stat().st_size / 1e6:.1f} MB, where {source} has {source.stat().st_size / 1e6:.1f} MB\n"
          f"{cost(plain, Predictor(out, tta=1), table[table.side == 'val'])}")
    return out


class Ranges:
    """Photos, one by one, as quantize_static asks for them; those that cannot be read are left out."""

    def __init__(self, paths, model):
        self.inputs = iter(self._images(paths, model))

    @staticmethod
    def _images(paths, model):
        for path in paths:
            try:
                yield {"images": model.views(read_photo(path, model.views.min_side), seed=0).transpose(0, 3, 1, 2)}
            except PhotoError:
                continue

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self.inputs, None)


def cost(plain: Predictor, small: Predictor, photos) -> str:
    """What 8 bits cost on the validation photos: accuracy, log loss, answers that differ, and the time."""
    labels, answers, lines = photos.label.map(plain.classes.index).to_numpy(), [], []
    for name, predictor in (("fp32", plain), ("int8", small)):
        began = time.perf_counter()
        probs = predictor.probs(photos.path.tolist())[0]
        read, seconds = ~np.isnan(probs).any(1), time.perf_counter() - began
        answers.append(probs[read].argmax(1))
        score = metrics.scores(probs[read], labels[read])
        lines.append(f"{name}: accuracy {score['accuracy']:.4f}, log loss {score['loss']:.3f} on {read.sum()} photos, {seconds:.1f} s")
    same = f"{(answers[0] == answers[1]).mean():.1%} of the answers are the same"
    return "\n".join([*lines, f"{same}. The difference counts; the run's score is in its report"])


if __name__ == "__main__":
    as_program(lambda: tyro.cli(quantize, description=__doc__))
