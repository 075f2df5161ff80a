"""An exported model, ready to answer: predict.py's way through ONNX Runtime, which starts in a fraction of torch's time."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import joblib
import numpy as np

import trust
from checkpoint import ONE_FOR_ALL, CheckpointError, for_all_views, implausible
from photos import PhotoError, read_photo
from views import FixedViews

try:
    import onnxruntime
except ImportError as error:
    raise CheckpointError(f"an exported model needs onnxruntime ({error}). Run pip install onnxruntime, or ask a best.pt.") from error

FORMAT = 1  # of the properties that tools/export.py writes beside the network
QUEUED = 500  # photos at a time: each that waits takes 2 KB
PROPERTIES = ("format", "classes", "image_size", "crop", "temperatures", "known_limits", "notes")


class Exported:
    """An ONNX file of tools/export.py on the CPU. Raises CheckpointError if it is anything else.

    tta: views of each photo. workers: threads, each of which reads photos and answers them on one core, so that neither
    reading nor the network ever waits; 0 = none but the main one, and the network takes all cores; -1 = one a core.
    """

    def __init__(self, path: Path, tta: int, workers: int):
        cores = joblib.cpu_count()  # those it may use: a container's quota counts
        self.workers = workers if workers >= 0 else cores
        self.path, self.session = path, _open(path, threads=cores if self.workers <= 1 else 1)
        properties = _properties(path, self.session)
        self.classes: list[str] = properties["classes"]
        size, crop, self.notes = properties["image_size"], properties["crop"], properties["notes"]
        self.temperature, self.limit = properties["temperatures"][tta - 1], properties["known_limits"][tta - 1]
        self.views = FixedViews(size, crop, tta)
        self.together = tta if self.workers <= 1 else 2  # views: what two make stays in a core's cache, by which it is 4 % faster

    def answers(self, paths: Sequence[str], tick: Callable[[int], None]) -> tuple[np.ndarray, np.ndarray, dict[int, str]]:
        """Probabilities (N, K) and `known` (N,), averaged over the views, and {index: why} of photos that cannot be read (rows NaN)."""
        cv2.setNumThreads(0)  # the workers are the parallelism
        table, errors = np.full((len(paths), len(self.classes) + 1), np.nan, np.float32), {}
        with ThreadPoolExecutor(max(1, self.workers)) as pool:
            for start in range(0, len(paths), QUEUED):
                for i, answer in enumerate(pool.map(self._one, paths[start:start + QUEUED]), start):
                    if isinstance(answer, str):
                        errors[i] = answer
                    else:
                        table[i] = answer
                    tick(1)
        return table[:, :-1], table[:, -1], errors

    def _one(self, path: str) -> np.ndarray | str:
        try:
            views = self.views(read_photo(path, self.views.min_side), seed=0)
        except PhotoError as error:
            return str(error)
        images = np.ascontiguousarray(views.transpose(0, 3, 1, 2))
        parts = (images[i:i + self.together] for i in range(0, len(images), self.together))
        mean = np.concatenate([np.column_stack(self.answer(part)) for part in parts]).mean(0)
        return np.append(trust.at_temperature(mean[:-1], self.temperature), mean[-1])

    def answer(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Of each view alone: uint8 (B, 3, S, S) → probabilities before the temperature (B, K), known (B,)."""
        logits, known = self.session.run(None, {"images": images})
        if not (np.isfinite(logits).all() and np.isfinite(known).all()):
            raise CheckpointError(f"{self.path}: its answers are no finite numbers: it was changed or is broken. "
                                  "Make it anew with `python -m tools.export RUN`.")
        return trust.softmax(logits), known


def _open(path: Path, threads: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # a thread that spins while it waits takes a core from reading
    options.log_severity_level = 4  # what is wrong is said below, once
    try:  # by its path, not its bytes: so that it may not take weights from files outside its folder
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime has a dozen kinds
        why = "it wants weights from a file outside its folder, or missing" if "xternal data path" in str(error) else "broken, or not ONNX"
        raise CheckpointError(f"{path}: cannot be loaded: {why}. Make it anew with `python -m tools.export RUN`.") from error


def _properties(path: Path, session: onnxruntime.InferenceSession) -> dict:
    """What the file says of its network, checked, since anybody can have written it."""
    foreign = CheckpointError(f"{path}: not a model that this program exported. Make one with `python -m tools.export RUN`.")
    try:
        written = session.get_modelmeta().custom_metadata_map
        found = {key: json.loads(written[key]) for key in {*PROPERTIES, *ONE_FOR_ALL} & written.keys()}
        for_all_views(found)
        found = {key: found[key] for key in PROPERTIES}
        version, classes, size = found["format"], found["classes"], found["image_size"]
        (images,), (logits, known) = session.get_inputs(), session.get_outputs()
        fits = (images.name, images.type, images.shape[1:], logits.type, logits.shape[1:], known.type, known.shape[1:]) == (
            "images", "tensor(uint8)", [3, size, size], "tensor(float)", [len(classes)], "tensor(float)", [])
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise foreign from error
    if version != FORMAT:
        raise CheckpointError(f"{path}: has format {version}, this program reads format {FORMAT}. Use the version that wrote it.")
    if not fits or implausible(found):
        raise foreign
    return found
