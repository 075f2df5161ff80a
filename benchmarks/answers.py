"""Many answers: photos/s over a folder, decoding included, of the exported model, of plain eager torch, the checkpoint, and OpenVINO."""

import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest import mock

import numpy as np

from benchmarks.answer import a_run
from benchmarks.timing import Options, a_second, command, in_turn, row


def openvino_way(file: Path, paths: list[str], exported):
    """OpenVINO on the same file in the same shape as exported.py: one stream a thread, each reads and answers."""
    import openvino
    settings = {"PERFORMANCE_HINT": "THROUGHPUT", "NUM_STREAMS": str(exported.workers), "INFERENCE_PRECISION_HINT": "f32"}
    network = openvino.Core().compile_model(file, "CPU", settings)
    own = threading.local()

    def one(path: str) -> np.ndarray:
        from photos import read_photo
        from trust import at_temperature, softmax
        if not hasattr(own, "request"):
            own.request = network.create_infer_request()
        views = exported.views(read_photo(path, exported.views.min_side), 0).transpose(0, 3, 1, 2)
        return at_temperature(softmax(own.request.infer({0: np.ascontiguousarray(views)})[0]).mean(0), exported.temperature)

    def answers() -> np.ndarray:
        with ThreadPoolExecutor(exported.workers) as pool:
            return np.stack(list(pool.map(one, paths)))
    return answers


def measure(options: Options):
    from predict import Predictor
    paths = options.photos(200)
    with tempfile.TemporaryDirectory() as folder:
        run = a_run(Path(folder))
        ours, exported = (Predictor(run / f"best.{kind}", workers=-1) for kind in ("pt", "onnx"))
        with mock.patch("trained.fold_batchnorm"):
            eager = Predictor(run / "best.pt", workers=-1)
        ways = {"eager": lambda: eager.probs(paths)[0], "exported": lambda: exported.probs(paths)[0],
                "checkpoint": lambda: ours.probs(paths)[0],
                "OpenVINO": openvino_way(run / "best.onnx", paths, exported.models[0])}
        wanted = ways["eager"]()
        differences = {name: np.abs(way() - wanted).max() for name, way in ways.items()}
        same = all((way().argmax(1) == wanted.argmax(1)).all() for way in ways.values())
        times = in_turn(ways, options.repeat)
    assert same, "a label differs"
    speeds = ", ".join(f"{name} {a_second(len(paths), seconds)}" for name, seconds in times.items())
    for name, goal in {"eager": ">= 2", "checkpoint": "", "OpenVINO": ""}.items():
        yield row(f"many answers: {name} / exported", times[name], times["exported"], goal, speeds)
    yield f"| many answers: largest difference of a probability | {max(differences.values()):.0e} | <= 1e-3 | | labels all the same |"


if __name__ == "__main__":
    command(measure)
