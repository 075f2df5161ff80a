"""What the program withstands, counted: `python -m tools.torture` writes docs/RELIABILITY.md. Linux and macOS; hours at full counts."""

from __future__ import annotations

import multiprocessing
import os
import random
import resource
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import timm
import torch
import tyro

import checkpoint
import dataset
from data.draw import draw_dataset
from photos import PhotoError, read_photo
from tools.bad_input import fuzzed

ROOT = Path(__file__).parents[1]
PATIENCE = 5  # seconds that a photo may take
EPOCHS = 3
SMALL = "test_efficientnet.r160_in1k"
FLAGS = ("--model", SMALL, "--image-size", "64", "--batch", "16", "--workers", "0", "--epochs", str(EPOCHS))
KILL_WAIT = 120  # seconds that the survivors may take to end


def main(fuzz: int = 20_000, kills: int = 200, workers: int = 10, rows: int = 1_000_000, seed: int = 0,
         out: Path = ROOT / "docs" / "RELIABILITY.md") -> None:
    """fuzz: byte strings around valid photos. kills: SIGKILLs of a small training, each followed by --resume. workers: SIGKILLs of
    one process among several, each followed by --resume with another number of processes. rows: of a table."""
    command = f"python -m tools.torture --fuzz {fuzz} --kills {kills} --workers {workers} --rows {rows} --seed {seed}"
    lines = ["# What was done to it, how often, and what was lost", "", f"Written by `{command}` on {time.strftime('%Y-%m-%d')}.", ""]
    if rows:
        with multiprocessing.get_context("spawn").Pool(1) as apart:  # its memory is measured
            lines += [f"- {apart.apply(large_table, (rows, seed))}"]
    if fuzz:
        lines += [f"- {fuzz_photos(fuzz, seed)}"]
    if kills:
        lines += [f"- {kill_and_resume(kills, seed)}"]
    if workers:
        lines += [f"- {line}" for line in several_processes(workers, seed)]
    out.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))


def large_table(rows: int, seed: int) -> str:
    """From a CSV to the split, but for the reading of photos, which is the disk's time: their hashes are drawn."""
    rng = np.random.default_rng(seed)
    with tempfile.TemporaryDirectory() as folder:
        for k in range(9):
            (Path(folder) / f"{k}.jpg").touch()
        table = pd.DataFrame({"label": rng.integers(0, 9, rows), "group": rng.integers(0, rows // 2, rows)})
        table.assign(image=table.label.map("{}.jpg".format)).to_csv(Path(folder) / "table.csv", index=False)
        began, before = time.monotonic(), _peak()
        table = dataset.load_table(Path(folder) / "table.csv")
        dataset.look_over = lambda paths, progress: (rng.integers(0, 2**63, len(paths)).astype(np.uint64), {})
        table = dataset.split(dataset.find_trouble(table), 0, 5, seed)
        text = dataset.describe(table)
    return (f"A table of {rows} rows in {rows // 2} groups: from the CSV to the split ({(table.side == 'val').sum()} validate) and its "
            f"description ({len(text.splitlines())} lines) {time.monotonic() - began:.0f} s, {(_peak() - before) / 1e9:.1f} GB. "
            "Reading the photos not counted.")


def _peak() -> int:
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
            pipe.send((outcome, _peak()))


def kill_and_resume(count: int, seed: int) -> str:
    """SIGKILLs a training at random moments, until it is through; again from the start until `count` kills were made."""
    rng, kills, runs, unreadable, different = random.Random(seed), 0, 0, 0, 0
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        draw_dataset(work / "photos", per_class=12, seed=0)
        command = [sys.executable, str(ROOT / "main.py")]
        first = [*command, "--data", "photos", "--weights", "none", *FLAGS, "--out"]
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


def several_processes(count: int, seed: int) -> list[str]:
    """Two processes, and two machines of two (two launchers on loopback), against one; then one of several is killed, `count` times."""
    rng, ends, said, resumed_by = random.Random(seed), [], 0, []
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        draw_dataset(work / "photos", per_class=12, seed=0)
        torch.save(timm.create_model(SMALL, num_classes=0).state_dict(), work / "backbone.pth")  # of a file: BatchNorm is kept
        first = ["--data", "photos", "--weights", "backbone.pth", *FLAGS, "--no-head-first", "--mixup", "0", "--sam-start", "0",
                 "--sam-whole"]
        for name, processes, machines in (("one", 1, 1), ("two", 2, 1), ("four", 4, 2)):
            for launcher in _launch(work, processes, machines, *first, "--out", name):
                if launcher.wait() != 0:
                    raise RuntimeError(f"{processes} processes on {machines} machines: {launcher.stdout.read()}")
        lines = [f"{what} against one process, {EPOCHS} epochs with SAM by the whole batch: losses and gradient norms differ by "
                 f"{_difference(work / 'one', work / name):.0e} of their size at most, weights by {_apart(work / 'one', work / name):.0e}."
                 for what, name in (("Two processes", "two"), ("Two machines of two processes (two launchers on loopback)", "four"))]
        apart = 0.0
        for kill in range(count):
            out = work / f"killed{kill}"
            launchers = _launch(work, 4 if kill % 2 else 2, 2 if kill % 2 else 1, *first, "--out", out.name)
            while not (out / "last.pt").exists():
                time.sleep(0.05)
            time.sleep(rng.uniform(0, 2))
            victims = [child for child in psutil.Process(launchers[0].pid).children() if "main.py" in " ".join(child.cmdline())]
            if not victims:  # it was through before
                continue
            rng.choice(victims).kill()
            began = time.monotonic()
            printed = "".join(launcher.communicate(timeout=KILL_WAIT)[0] for launcher in launchers)
            ends.append(time.monotonic() - began)
            said += "--resume" in printed
            resumed_by.append((1, 2, 4)[kill % 3])
            resumed, = _launch(work, resumed_by[-1], 1, "--resume", out.name)
            if resumed.wait() != 0:
                raise RuntimeError(f"resumed by {resumed_by[-1]} processes: {resumed.stdout.read()}")
            apart = max(apart, _apart(work / "one", out))
    return [*lines, f"{len(ends)} times one process of two, or of two machines of two, was killed: all others ended, after "
            f"{max(ends):.0f} s at most, {said} times with a word on --resume; gone on with by {sorted(set(resumed_by))} processes, "
            f"the weights end at most {apart:.0e} from those of the one process never killed."]


def _launch(work: Path, processes: int, machines: int, *arguments: str) -> list[subprocess.Popen]:
    """torchrun, one for each machine, on loopback."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return [subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", "--nnodes", str(machines), "--node-rank", str(rank), "--nproc-per-node",
         str(processes // machines), "--master-addr", "127.0.0.1", "--master-port", str(port), str(ROOT / "main.py"), *arguments],
        cwd=work, env=os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}, text=True, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT) for rank in range(machines)]


def _difference(one: Path, other: Path) -> float:
    """The largest relative difference of what the two runs logged."""
    names = ["train_loss", "grad_norm", "val_loss", "val_accuracy", "val_macro_f1"]
    ours, theirs = (pd.read_csv(run / "log.csv")[names] for run in (one, other))
    return float(((theirs - ours).abs() / ours).max().max())


def _apart(one: Path, other: Path) -> float:
    return float((_weights(one) - _weights(other)).abs().max())


def _weights(run: Path) -> torch.Tensor:
    return torch.cat([weight.flatten().double() for weight in checkpoint.load(run / "last.pt")["weights"].values()])


if __name__ == "__main__":
    os.environ["HF_HUB_OFFLINE"] = "1"
    tyro.cli(main, description=__doc__)
