"""One answer: whole-process seconds of `python predict.py image.jpg`, from the checkpoint and from the exported model."""

import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.timing import Options, command, in_turn, row

MODEL = "tf_efficientnet_lite0"


def a_run(folder: Path, model: str = MODEL, size: int = 224, weights: str = "auto") -> Path:
    """best.pt and best.onnx in `folder`: pretrained, with a head that no one has taught."""
    import torch

    import checkpoint
    from config import Config
    from model import build_model, input_size
    from tools.export import export
    from views import VIEWS
    torch.manual_seed(0)
    network = build_model(model, 9, weights, covariance=Config.covariance)
    for weight in (network.head.weight, *(stage.W for stage in network.covariances)):
        torch.nn.init.normal_(weight, std=0.1)  # answers that differ
    checkpoint.save(folder / "best.pt", {
        "model": model, "cosine": 0.0, "covariance": Config.covariance, "classes": list("ABCDEFGHI"), "image_size": size,
        "crop": input_size(model)[1], "temperatures": [1.0] * len(VIEWS), "known_limits": [0.0] * len(VIEWS), "notes": {},
        "config": Config().to_dict(), "weights": network.state_dict()})
    export(folder)
    return folder


def measure(options: Options):
    (photo,) = options.photos(1)[:1]
    with tempfile.TemporaryDirectory() as folder:
        run = a_run(Path(folder))

        def ask(file: str):
            whole = [sys.executable, "predict.py", photo, "--checkpoint", run / file]
            return lambda: subprocess.run(whole, check=True, capture_output=True)
        times = in_turn({"checkpoint": ask("best.pt"), "exported": ask("best.onnx")}, options.repeat)
    yield row("one answer: checkpoint / exported", times["checkpoint"], times["exported"], ">= 6",
              f"{statistics.median(times['exported']):.2f} s (goal 0.9) against {statistics.median(times['checkpoint']):.2f} s")


if __name__ == "__main__":
    command(measure)
