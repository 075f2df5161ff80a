"""What the program withstands, counted: `python -m tools.torture` writes docs/RELIABILITY.md.

Linux and macOS; half an hour at full counts.
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import tyro

import dataset
import split
from photos import PhotoError, read_photo
from tools.bad_input import fuzzed
from tools.interruptions import fill_the_disk, kill_and_resume, several_processes

ROOT = Path(__file__).parents[1]
PATIENCE = 5  # seconds that a photo may take
BY_HAND = "## By hand"  # what a person wrote below it stays


def main(fuzz: int = 20_000, kills: int = 200, disks: int = 12, workers: int = 10, rows: int = 1_000_000, seed: int = 0,
         out: Path = ROOT / "docs" / "RELIABILITY.md") -> None:
    """Do all of it, and write the record.

    Args:
        fuzz: byte strings around valid photos.
        kills: SIGKILLs of a small training, each followed by --resume.
        disks: full ones, of 1, 2, ... MB.
        workers: SIGKILLs of one process among several, each followed by --resume with another number.
        rows: of a table.
        seed: of all that is drawn.
        out: the record; what a person wrote below its "By hand" stays.
    """
    command = f"python -m tools.torture --fuzz {fuzz} --kills {kills} --disks {disks} --workers {workers} --rows {rows} --seed {seed}"
    lines = ["# What was done to it, how often, and what was lost", "", f"Written by `{command}` on {time.strftime('%Y-%m-%d')}.", ""]
    if rows:
        with multiprocessing.get_context("spawn").Pool(1) as apart:  # its memory is measured
            lines += [f"- {apart.apply(large_table, (rows, seed))}"]
    if fuzz:
        lines += [f"- {fuzz_photos(fuzz, seed)}"]
    if kills:
        lines += [f"- {kill_and_resume(kills, seed)}"]
    if disks:
        lines += [f"- {fill_the_disk(disks)}"]
    if workers:
        lines += [f"- {line}" for line in several_processes(workers, seed)]
    by_hand = out.read_text(encoding="utf-8").partition(BY_HAND)[2] if out.exists() else "\n"
    out.write_text("\n".join([*lines, "", BY_HAND]) + by_hand, encoding="utf-8")
    print("\n".join(lines))


def large_table(rows: int, seed: int) -> str:
    """From a CSV to the split, but for the reading of photos, which is the disk's time: their hashes are drawn."""
    rng = np.random.default_rng(seed)
    with tempfile.TemporaryDirectory() as folder:
        for k in range(9):
            (Path(folder) / f"{k}.jpg").touch()
        table = pd.DataFrame({"label": rng.integers(0, 9, rows), "group": rng.integers(0, rows // 2, rows)})
        table.assign(image=table.label.map("{}.jpg".format)).to_csv(Path(folder) / "table.csv", index=False)
        began, before = time.monotonic(), peak_memory()
        table = dataset.load_table(Path(folder) / "table.csv")
        split.look_over = lambda paths, progress: (rng.integers(0, 2**63, len(paths)).astype(np.uint64), {})
        table = split.split(split.find_trouble(table), 0, 5, seed)
        text = split.describe(table)
    return (f"A table of {rows} rows in {rows // 2} groups: from the CSV to the split ({(table.side == 'val').sum()} validate) and its "
            f"description ({len(text.splitlines())} lines) {time.monotonic() - began:.0f} s, {(peak_memory() - before) / 1e9:.1f} GB. "
            "Reading the photos not counted.")


def peak_memory() -> int:
    """The most bytes that this process ever held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def fuzz_photos(count: int, seed: int) -> str:
    """Reads each input in a child process, which a crash or a hang ends and the next input begins anew."""
    outcomes, slowest, peak, child, ours = Counter(), 0.0, 0, None, None
    for data in fuzzed(count, seed):
        if child is None:
            ours, theirs = multiprocessing.get_context("fork").Pipe()
            child = multiprocessing.get_context("fork").Process(target=_read_each, args=(theirs,), daemon=True)
            child.start()
            theirs.close()
        began = time.monotonic()
        ours.send_bytes(data)
        try:
            outcome, memory = ours.recv() if ours.poll(PATIENCE) else ("hung", 0)
        except EOFError:
            outcome, memory = "crashed", 0
        outcomes[outcome] += 1
        slowest, peak = max(slowest, time.monotonic() - began), max(peak, memory)
        if outcome in ("hung", "crashed"):
            child.kill()
            child = None
    counts = ", ".join(f"{outcomes[outcome]} {outcome}" for outcome in ("read", "refused", "crashed", "hung", "other error"))
    return (f"{count} byte strings fuzzed around valid JPEG, PNG, WEBP, TIFF, AVIF and BMP files: {counts}; the slowest took "
            f"{slowest:.1f} s, the reading process never held more than {peak / 1e6:.0f} MB.")


def _read_each(pipe) -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # what libjpeg and libpng say of each
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "x.jpg"
        while True:
            file.write_bytes(pipe.recv_bytes())
            try:
                read_photo(file, min_side=32)
                outcome = "read"
            except PhotoError:
                outcome = "refused"
            except Exception:
                outcome = "other error"
            pipe.send((outcome, peak_memory()))


if __name__ == "__main__":
    os.environ["HF_HUB_OFFLINE"] = "1"
    tyro.cli(main, description=__doc__)
