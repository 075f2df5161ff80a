"""Where a model looked: heat maps over photos, and pictures of answers with their reasons."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from matplotlib import colormaps

from photos import read_named
from pictures import contact_sheet
from plots import BLUE, GREY, picture
from text import shown
from trained import load_model
from views import FixedViews, crop_view

SHEET_MOST = 60  # photos of a contact sheet: beyond, nobody looks


class ExplainError(ValueError):
    """There is no heat map; the message says why and what to do."""


class Explainer:
    """Grad-CAM (Selvaraju et al. 2017, arXiv 1610.02391) on the backbone's last stage. path: a best.pt, or its export beside it. refit: as
    for trained.load_model."""

    def __init__(self, path: str | Path, refit: bool = True):
        try:
            from pytorch_grad_cam import GradCAM
        except ImportError as error:
            raise ExplainError("heat maps need the package grad-cam: pip install -r requirements-extra.txt") from error
        weights = Path(path)
        if weights.suffix == ".onnx":  # it has no gradients: what it was made from has
            weights = weights.with_name(weights.name.removesuffix(".onnx").removesuffix(".int8") + ".pt")
            if not weights.is_file():
                raise ExplainError(f"{path}: heat maps need {weights.name}, which is not beside it. Pass a best.pt by --checkpoint.")
        self.model, saved = load_model(weights, refit)
        self.size, self.crop, self.name = saved["image_size"], saved["crop"], saved["model"]
        self.min_side = FixedViews(self.size, self.crop).min_side
        self.model.to("cuda" if torch.cuda.is_available() else "cpu")
        try:
            stage = self.model.backbone.get_submodule(self.model.backbone.feature_info[-1]["module"])
        except (AttributeError, IndexError) as error:
            raise ExplainError(f"{self.name}: no heat map, timm does not name its last stage. Take another --model.") from error
        self.cam = GradCAM(self.model, [stage], reshape_transform=self._picture)

    def _picture(self, activations: torch.Tensor) -> torch.Tensor:
        if not isinstance(activations, torch.Tensor) or activations.ndim != 4:
            raise ExplainError(f"{self.name}: no heat map, its last stage is not one picture but several, or tokens. Take another --model.")
        backbone = self.model.backbone
        channels_last = getattr(backbone, "output_fmt", "") == "NHWC" or activations.shape[3] == backbone.num_features
        return activations.permute(0, 3, 1, 2) if channels_last else activations

    def __call__(self, photo: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """photo uint8 (H, W, 3), class k → what the model saw, uint8 (S, S, 3), and what spoke for k there, float (S, S) in 0..1."""
        from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
        square = crop_view(photo, self.size, self.crop)
        images = torch.from_numpy(square).permute(2, 0, 1)[None].float()
        try:
            return square, self.cam(images, [ClassifierOutputTarget(k)])[0]
        except ExplainError:
            raise
        except Exception as error:  # grad-cam raises whatever comes where a backbone is built otherwise than it thinks
            raise ExplainError(f"{self.name}: no heat map, Grad-CAM does not get through it ({error}). Take another --model.") from error


def draw_reasons(path: Path, checkpoint: Path, photos: Sequence[str], probs: np.ndarray, classes: Sequence[str]) -> None:
    """The picture of predict.py's --explain: one photo large, of several a contact sheet. probs: (N, K) of the photos."""
    explainer = Explainer(checkpoint)
    pairs = [explainer(read_named(photo, explainer.min_side), int(row.argmax()))
             for photo, row in zip(photos[:SHEET_MOST], probs, strict=False)]
    if len(pairs) == 1:
        reasons(path, *pairs[0], [(classes[k], probs[0, k]) for k in probs[0].argsort()[::-1][:3]])
    elif pairs:
        answers = [f"{classes[row.argmax()]} {row.max():.0%}" for row in probs[:SHEET_MOST]]
        reasons_sheet(path, pairs, [f"{answer}\n{shown(Path(photo).name)}" for answer, photo in zip(answers, photos, strict=False)])


def overlay(square: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """The photo in grey, coloured where it is hot: uint8 (S, S, 3) and float (S, S) → uint8 (S, S, 3)."""
    grey = np.repeat(cv2.cvtColor(square, cv2.COLOR_RGB2GRAY)[..., None], 3, 2)
    colours = 255 * colormaps["inferno"](heat)[..., :3]
    return cv2.addWeighted(grey, 0.5, colours.astype(np.uint8), 0.6, 0)


def reasons(path: Path, square: np.ndarray, heat: np.ndarray, answer: Sequence[tuple[str, float]]) -> None:
    """One answer as a picture: the photo as the model saw it, its heat map, and the likeliest classes with bars.

    answer: (class, probability), likeliest first.
    """
    names, probs = zip(*answer, strict=True)
    with picture(path, 9.5, 3.4) as figure:
        photo, hot, bars = figure.subplots(1, 3, width_ratios=(3, 3, 3.2))
        photo.imshow(square)
        photo.set_title("as the model saw it")
        hot.imshow(overlay(square, heat))
        hot.set_title(f"what spoke for {names[0]}")
        for axes in (photo, hot):
            axes.axis("off")
        rows = range(len(names))
        bars.barh(rows, probs, height=0.3, color=[BLUE] + [GREY] * (len(names) - 1))
        for row, name, prob in zip(rows, names, probs, strict=True):
            bars.text(0, row - 0.22, f"{name}  {prob:.1%}", fontsize=11, va="bottom")
        bars.set(xlim=(0, 1), ylim=(len(names) - 0.7, -0.7))
        bars.axis("off")


def reasons_sheet(path: Path, pairs: Sequence[tuple[np.ndarray, np.ndarray]], captions: Sequence[str]) -> None:
    """Many answers: each photo beside its heat map, a caption under both. pairs: (square, heat)."""
    contact_sheet(path, [np.hstack([square, overlay(square, heat)]) for square, heat in pairs], captions, columns=3, inch=2.9)
