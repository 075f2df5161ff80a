"""Contact sheets, so that a person can look at what the model is shown."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib import font_manager, rc_context
from matplotlib.figure import Figure  # not pyplot: no screen, no global state

from files import atomic_file

logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)  # it tells of each weight that a font lacks
# Those of these that are installed; between them they show class names in any script.
FONTS = [name for name in ["DejaVu Sans", "Noto Sans CJK SC", "Noto Sans CJK JP", "PingFang SC", "Microsoft YaHei", "WenQuanYi Zen Hei"]
         if name in font_manager.get_font_names()]


def contact_sheet(path: Path, images: Sequence[np.ndarray], captions: Sequence[str], columns: int = 8, inch: float = 1.6) -> None:
    """Write a picture of many: images uint8 (H, W, 3), a caption under each; inch: the width of one."""
    rows = -(-len(images) // columns)
    tall = max(image.shape[0] / image.shape[1] for image in images)
    with rc_context({"font.family": FONTS, "text.parse_math": False}):
        figure = Figure(figsize=(columns * inch, rows * (inch * tall + 0.32)), dpi=110, layout="constrained")
        for i, axes in enumerate(figure.subplots(rows, columns, squeeze=False).flat):
            axes.axis("off")
            if i < len(images):
                axes.imshow(images[i])
                axes.set_title(captions[i], fontsize=7, y=-0.06, va="top")
        save_figure(figure, path)


def save_figure(figure: Figure, path: Path) -> None:
    """Replace `path` at once, in the format of its ending. Raises WriteError."""
    with atomic_file(path) as file:
        figure.savefig(file, format=Path(path).suffix[1:] or "png")


def batch_sheet(path: Path, images: torch.Tensor, targets: torch.Tensor, classes: Sequence[str]) -> None:
    """A training batch as the model sees it: images (B, 3, H, W) in 0..255; under each its labels and their shares (lambda)."""
    pictures = images.clamp(0, 255).byte().permute(0, 2, 3, 1).cpu().numpy()
    captions = []
    for row in targets.cpu():
        share, index = row.topk(2)
        captions.append("\n".join(f"{classes[i]} {s:.2f}" for s, i in zip(share, index, strict=True) if s > 0))
    contact_sheet(path, list(pictures), captions)
