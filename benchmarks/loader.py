"""The loader on one core, from files to uint8 squares: ours against albumentations in the entry's order, torchvision, and bare decoding."""

import tempfile

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
    crop, *others, erase = training_transform(size, 0.5).transforms
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


def enlarged(paths: list[str], folder: str, megapixels: float = 12) -> list[str]:
    """The photos at that size, as JPEG; 12 megapixels are what a phone's camera stores, but for its finest detail."""
    from photos import read_photo
    for i, path in enumerate(paths):
        photo = read_photo(path)
        side = (megapixels * 1e6 / (photo.shape[0] * photo.shape[1])) ** 0.5
        large = cv2.resize(photo, None, fx=side, fy=side, interpolation=cv2.INTER_CUBIC)
        cv2.imwrite(f"{folder}/{i}.jpg", large[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 90])
    return [f"{folder}/{i}.jpg" for i in range(len(paths))]


def measure(options: Options):
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    paths = options.photos(100)
    with tempfile.TemporaryDirectory() as folder:
        large = enlarged(paths[:2 if options.small else 15], folder)
        for size in (224, 528):
            yield from compare(f"{size} px", size, paths, options.repeat)
            yield from compare(f"{size} px, 12 megapixels", size, large, options.repeat)


def compare(name: str, size: int, paths: list[str], repeat: int):
    from dataset import Photos
    from photos import read_photo
    from transforms import RandomViews
    views = RandomViews(size, 1, 0.5)
    photos, entry, vision = Photos(paths, views, 0, views.min_side), entry_order(size), torchvision_way(size)
    times = in_turn({"ours": lambda: [photos[0, i] for i in range(len(paths))],
                     "albumentations in the entry's order": lambda: [np.ascontiguousarray(entry(path)) for path in paths],
                     "torchvision v2": lambda: [vision(path) for path in paths],
                     "bare decoding": lambda: [read_photo(path, views.min_side) for path in paths]}, repeat)
    for other, goal in {"albumentations in the entry's order": ">= 4", "torchvision v2": ">= 1.0", "bare decoding": ">= 0.6"}.items():
        speeds = f"{a_second(len(paths), times['ours'])} a core against {a_second(len(paths), times[other])}"
        yield row(f"loader, {name}: {other} / ours", times[other], times["ours"], goal, speeds)


if __name__ == "__main__":
    command(measure)
