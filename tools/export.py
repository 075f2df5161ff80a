"""Write a run's model as ONNX, for answers without torch: `python -m tools.export RUN` makes RUN/best.onnx for predict.py.

One file: fp32, uint8 photos (any number, 3, S, S) in, logits and `known` out, normalisation inside; the class names,
image_size, crop, temperatures, limits of the unknown and notes are its properties, as JSON. It replaces an older one only
after it has answered as the checkpoint does.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import numpy as np
import torch
import tyro
from tyro.conf import Positional

from checkpoint import CheckpointError
from files import atomic_file, check_out
from model import Classifier
from text import as_program
from trained import load_model

LARGEST_DIFFERENCE = 1e-4  # of a probability, against the checkpoint's


def export(run: Positional[Path], out: Path | None = None) -> Path:
    """Write the ONNX file, after it has answered as the checkpoint does; returns its path. Raises CheckpointError.

    Args:
        run: a run's folder (its best.pt is taken) or a checkpoint.
        out: none = beside the checkpoint, as .onnx.
    """
    try:
        import onnx  # noqa: F401  what torch's exporter misses only when it is halfway
        import onnxscript  # noqa: F401

        import exported
    except ImportError as error:
        raise CheckpointError(f"export needs the package {error.name}: pip install -r requirements-extra.txt") from error
    path = run / "best.pt" if run.is_dir() else run
    out = out or path.with_suffix(".onnx")
    if out.suffix != ".onnx":
        raise CheckpointError(f"--out {out}: predict.py knows an exported model by its suffix: name it .onnx.")
    check_out(out, path)
    model, saved = load_model(path)
    images = some_images(saved["image_size"])
    network = torch.onnx.export(Judge(model).eval(), (images,), input_names=["images"], output_names=["logits", "known"], dynamo=True,
                                verbose=False, dynamic_shapes={"images": {0: torch.export.Dim("photos")}}).model_proto
    for name, value in {"format": exported.FORMAT, **{name: saved[name] for name in exported.PROPERTIES[1:]}}.items():
        network.metadata_props.add(key=name, value=json.dumps(value, ensure_ascii=False))
    with tempfile.TemporaryDirectory() as folder:  # a file still open for writing is one that Windows opens to nobody else
        trial = Path(folder) / out.name
        trial.write_bytes(network.SerializeToString())
        difference = compare(model, exported.Exported(trial, tta=1, workers=0), images)
        if not difference < LARGEST_DIFFERENCE:
            raise CheckpointError(f"{path}: its export answers otherwise (a score differs by {difference:.1g}) and was not kept. "
                                  "Try another version of onnxscript.")
        with atomic_file(out) as file:
            file.write(trial.read_bytes())
    print(f"{out}: answers as {path} does, to {difference:.0e}\nnow: python predict.py PHOTO --checkpoint {out}")
    return out


class Judge(torch.nn.Module):
    """images → logits, known: a Classifier whose forward is its judge, as the exporter follows forward alone."""

    def __init__(self, model: Classifier):
        super().__init__()
        self.model = model

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.model.judge(images)


@torch.inference_mode()
def compare(model: torch.nn.Module, other, images: torch.Tensor) -> float:
    """The largest difference of a probability, or of `known`, between the checkpoint's network and the Exported `other`: one image
    alone, then the rest."""
    logits, known = model.judge(images)
    ours = np.column_stack([logits.softmax(1).numpy(), known.numpy()])
    return max(np.abs(np.column_stack(other.answer(images[part].numpy())) - ours[part]).max() for part in (slice(0, 1), slice(1, None)))


def some_images(size: int, count: int = 4) -> torch.Tensor:
    """uint8 (count, 3, size, size): coarse noise, from flat to wild, whose answers differ."""
    noise = torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(0)) - 0.5
    smooth = torch.nn.functional.interpolate(noise, (size, size), mode="bilinear")
    return (127.5 + 255 * smooth * torch.linspace(0.1, 1, count).view(-1, 1, 1, 1)).byte()


if __name__ == "__main__":
    as_program(lambda: tyro.cli(export, description=__doc__))
