"""Later epochs: the loader with decoded photos kept, against decoding them anew."""

import tempfile
from pathlib import Path

from benchmarks.timing import Options, a_second, command, in_turn, row

SIZE = 224


def an_epoch(paths: list[str], read):
    from dataset import Batches, Photos, make_loader
    from transforms import RandomViews
    views = RandomViews(SIZE, 1, 0.5)
    photos = Photos(paths, views, 0, views.min_side, read)
    loader = make_loader(photos, Batches(len(paths), 32, seed=0), workers=-1, stay=True)
    return lambda: sum(len(index) for _, index, _ in loader)


def measure(options: Options):
    from cache import PhotoCache
    from photos import read_photo
    paths = options.photos(10**6)
    with tempfile.TemporaryDirectory(dir=".") as folder:
        kept = PhotoCache(Path(folder) / "decoded", 10**10)
        times = in_turn({"decoded": an_epoch(paths, read_photo), "kept": an_epoch(paths, kept.read)}, options.repeat)
        yield row("later epochs: loader / loader with --cache", times["decoded"], times["kept"], ">= 1.5",
                  f"{a_second(len(paths), times['kept'])} against {a_second(len(paths), times['decoded'])}; {kept.used.value / 1e9:.2f} GB")


if __name__ == "__main__":
    command(measure)
