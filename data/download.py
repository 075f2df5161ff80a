"""The public nine-genus set of some 6,700 mushroom photos, from Kaggle.

    python data/download.py --out data/mushrooms9
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

HANDLE = "maysee/mushrooms-classification-common-genuss-images"
GENERA = ("Agaricus", "Amanita", "Boletus", "Cortinarius", "Entoloma",
          "Hygrocybe", "Lactarius", "Russula", "Suillus")


class DownloadError(ValueError):
    """Nothing was downloaded; the message says why and what to do."""


def fetch() -> Path:
    """The folder of kagglehub's own cache that the set was downloaded to."""
    try:
        import kagglehub
    except ImportError as error:
        raise DownloadError("kagglehub is missing: pip install kagglehub") from error
    try:
        return Path(kagglehub.dataset_download(HANDLE))
    except Exception as error:  # kagglehub raises what requests, its own client and the zip reader do
        raise DownloadError(
            f"{HANDLE}: could not be downloaded ({type(error).__name__}). Check the network; if Kaggle "
            "asks who you are, put an API token from kaggle.com/settings into ~/.kaggle/kaggle.json; or get "
            f"the set by hand from kaggle.com/datasets/{HANDLE}, or draw some: python data/draw.py"
        ) from error


def find_classes(folder: Path) -> Path:
    """The folder, at any depth, that holds the nine class folders; the outermost, if several do."""
    inside = (f for f in folder.rglob("*") if f.is_dir())
    for inner in [folder, *sorted(inside, key=lambda f: (len(f.parts), f))]:
        if all((inner / genus).is_dir() for genus in GENERA):
            return inner
    raise DownloadError(f"{folder}: downloaded, but no folder in it holds the classes {', '.join(GENERA)}.")


def download(out: Path = Path("data/mushrooms9")) -> Path:
    """Fetch the set and copy its nine class folders to out. Raises DownloadError.

    Args:
        out: a new folder.
    """
    out, part = Path(out), Path(f"{out}.part")
    for folder in (out, part):
        if folder.exists():
            raise DownloadError(f"{folder}: exists already. Pass another --out, or move it away.")
    source = find_classes(fetch())
    try:
        for genus in GENERA:
            shutil.copytree(source / genus, part / genus)
        part.rename(out)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    print(f"copied {sum(f.is_file() for f in out.rglob('*'))} photos of {len(GENERA)} genera into {out}")
    return out


if __name__ == "__main__":
    import tyro

    sys.path.insert(0, str(Path(__file__).parents[1]))  # run as a script, Python looks beside the script alone
    from text import as_program
    try:
        as_program(lambda: tyro.cli(download))
    except OSError as problem:  # a full disk
        sys.exit(str(problem))
