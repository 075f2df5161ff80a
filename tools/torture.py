"""What the program withstands, counted: `python -m tools.torture` writes docs/RELIABILITY.md. Linux and macOS; hours at full counts."""

from __future__ import annotations

import multiprocessing
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import torch
import tyro

import checkpoint
from data.draw import draw_dataset
from photos import PhotoError, read_photo
from tools.bad_input import fuzzed

ROOT = Path(__file__).parents[1]
PATIENCE = 5  # seconds that a photo may take
EPOCHS = 3
FLAGS = ("--model", "test_efficientnet.r160_in1k", "--weights", "none", "--image-size", "64", "--batch", "16", "--workers", "0",
         "--epochs", str(EPOCHS))


def main(fuzz: int = 20_000, kills: int = 200, seed: int = 0, out: Path = ROOT / "docs" / "RELIABILITY.md") -> None:
    """fuzz: byte strings around valid photos. kills: SIGKILLs of a small training, each followed by --resume."""
    lines = ["# What was done to it, how often, and what was lost", "",
             f"Written by `python -m tools.torture --fuzz {fuzz} --kills {kills} --seed {seed}` on {time.strftime('%Y-%m-%d')}.", ""]
    if fuzz:
        lines += [f"- {fuzz_photos(fuzz, seed)}"]
    if kills:
        lines += [f"- {kill_and_resume(kills, seed)}"]
    out.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))


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
    return (f"{count} byte strings fuzzed around valid JPEG, PNG, WEBP, GIF and TIFF files: {counts}; the slowest took {slowest:.1f} s, "
            f"the reading process never held more than {peak / 1e6:.0f} MB.")


def _read_each(pipe) -> None:
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
            unit = 1 if sys.platform == "darwin" else 1024
            pipe.send((outcome, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit))


def kill_and_resume(count: int, seed: int) -> str:
    """SIGKILLs a training at random moments, until it is through; again from the start until `count` kills were made."""
    rng, kills, runs, unreadable, different = random.Random(seed), 0, 0, 0, 0
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        draw_dataset(work / "photos", per_class=12, seed=0)
        command = [sys.executable, str(ROOT / "main.py")]
        first = [*command, "--data", "photos", *FLAGS, "--out"]
        began = time.monotonic()
        subprocess.run([*first, "reference"], cwd=work, check=True, capture_output=True)
        length, reference = time.monotonic() - began, _weights(work / "reference")
        while kills < count:
            out, again, done = work / f"run{runs}", first, False
            while not done:
                process = subprocess.Popen([*again, out.name], cwd=work, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
                try:
                    done = process.wait(rng.uniform(0, length)) == 0
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
                    kills += 1
                if (out / "last.pt").exists():
                    again = [*command, "--resume"]
                    try:
                        done = checkpoint.load(out / "last.pt")["progress"]["epoch"] == EPOCHS  # killed when all but the exit was done
                    except checkpoint.CheckpointError:
                        unreadable += 1
                        break
            runs += 1
            different += not done or not torch.equal(_weights(out), reference)
    return (f"{kills} SIGKILLs at random moments of a small training, each followed by --resume, until {runs} runs were through: "
            f"{unreadable} unreadable checkpoints, {different} runs that ended with other weights than the run never killed.")


def _weights(run: Path) -> torch.Tensor:
    return torch.cat([weight.flatten().double() for weight in checkpoint.load(run / "last.pt")["weights"].values()])


if __name__ == "__main__":
    os.environ["HF_HUB_OFFLINE"] = "1"
    tyro.cli(main, description=__doc__)
