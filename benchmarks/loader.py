"""The loader on one core, from files to uint8 squares: ours against albumentations in the entry's order, torchvision, and bare decoding."""

import cv2
import numpy as np
import torch
from PIL import Image
from torchvision.transforms import InterpolationMode, v2

from benchmarks.timing import Options, a_second, command, in_turn, row


def entry_order(size: int):
    """Our augmentations as the entry lists them: at the photo's full size, the crop last but erasing."""
    import albumentations as A

    from photos import read_photo
    from transforms import training_transform
    crop, *others, erase = training_transform(size).transforms
    pipeline = A.Compose([*others, crop, erase])
    return lambda path: pipeline(image=read_photo(path))["image"]


def torchvision_way(size: int):
    """The same kinds of change in torchvision.transforms.v2, crop first, from PIL as its datasets read."""
    pipeline = v2.Compose([
        v2.PILToTensor(), v2.RandomResizedCrop(size, (0.4, 1.0), (1.0, 1.0), antialias=True),
        v2.RandomHorizontalFlip(), v2.RandomVerticalFlip(0.1),
        v2.RandomApply([v2.RandomAffine(20, (0.05, 0.05), (0.9, 1.1), interpolation=InterpolationMode.BILINEAR)], 0.5),
        v2.RandomApply([v2.ColorJitter(0.15, 0.15)], 0.5), v2.RandomApply([v2.GaussianBlur(3)], 0.3), v2.RandomErasing(0.2, (0.02, 0.15))])

    def read(path: str) -> torch.Tensor:
        with Image.open(path) as photo:
            return pipeline(photo.convert("RGB"))
    return read


def measure(options: Options):
    from dataset import Photos
    from photos import read_photo
    from transforms import RandomViews
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    paths = options.photos(100)
    for size in (224, 528):
        detail = round(size * RandomViews.DETAIL)
        photos, entry, vision = Photos(paths, RandomViews(size, 1), 0, detail), entry_order(size), torchvision_way(size)
        times = in_turn({"ours": lambda photos=photos: [photos[0, i] for i in range(len(paths))],
                         "albumentations in the entry's order": lambda entry=entry: [np.ascontiguousarray(entry(path)) for path in paths],
                         "torchvision v2": lambda vision=vision: [vision(path) for path in paths],
                         "bare decoding": lambda detail=detail: [read_photo(path, detail) for path in paths]}, options.repeat)
        for name, goal in {"albumentations in the entry's order": ">= 4", "torchvision v2": ">= 1.0", "bare decoding": ">= 0.6"}.items():
            speeds = f"{a_second(len(paths), times['ours'])} a core against {a_second(len(paths), times[name])}"
            yield row(f"loader, {size} px: {name} / ours", times[name], times["ours"], goal, speeds)


if __name__ == "__main__":
    command(measure)
