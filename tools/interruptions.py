"""What tools/torture.py does to running trainings: kills, full disks, one of several processes ended. Each returns what was counted."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import random
import runpy
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import pandas as pd
import psutil
import timm
import torch

import checkpoint
from data.draw import draw_dataset

ROOT = Path(__file__).parents[1]
EPOCHS = 3
SMALL = "test_efficientnet.r160_in1k"
FLAGS = ("--model", SMALL, "--image-size", "64", "--batch", "16", "--workers", "0", "--epochs", str(EPOCHS))
NEW = ["--data", "photos", "--weights", "backbone.pth", *FLAGS, "--out"]
KILL_WAIT = 120  # seconds that the survivors may take to end


def kill_and_resume(count: int, seed: int) -> str:
    """SIGKILLs a training at random moments, until it is through; again from the start until `count` kills were made."""
    rng, kills, runs, unreadable, different = random.Random(seed), 0, 0, 0, 0
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        _prepare(work)
        length, reference = _reference(work)
        while kills < count:
            out, again, done = work / f"run{runs}", NEW, False
            while not done:
                process = _start(work, *again, out.name)
                process.join(rng.uniform(0, length))
                if process.is_alive():
                    process.kill()
                    process.join()
                    kills += 1
                elif process.exitcode and "has finished" not in (work / "screen.txt").read_text():  # by itself; else all was done by a kill
                    raise RuntimeError((work / "screen.txt").read_text())
                else:
                    done = True
                if (out / "last.pt").exists():
                    again = ["--resume"]
                    try:
                        checkpoint.load(out / "last.pt")
                    except checkpoint.CheckpointError:
                        unreadable += 1
                        break
            runs += 1
            different += not done or _results(out) != reference
            shutil.rmtree(out)
    return (f"{kills} SIGKILLs at random moments of a small training, each followed by --resume, until {runs} runs were through: "
            f"{unreadable} unreadable checkpoints, {different} that ended with another model, or other answers, than the one never killed.")


def fill_the_disk(most: int) -> str:
    """Trains onto disks of 1 to `most` MB, all in memory; where one is full, it is made larger and the run goes on."""
    stopped, ends, different = Counter(), [], 0
    with tempfile.TemporaryDirectory() as folder:
        work, disk = Path(folder), Path(folder) / "disk"
        disk.mkdir()
        _prepare(work)
        _, reference = _reference(work)
        for size in range(1, most + 1):
            try:
                subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}m", "tmpfs", disk], check=True, capture_output=True)
            except (OSError, subprocess.CalledProcessError):
                return "A full disk: not tried, this user may not mount one (Linux, as root)."
            try:
                process = _start(work, *NEW, "disk/run")
                process.join()
                said = (work / "screen.txt").read_text()
                if process.exitcode:
                    ends.append(process.exitcode == 1 and "No space left on device" in said and "Traceback" not in said)
                    stopped["later" if (disk / "run" / "last.pt").exists() else "before the first checkpoint"] += 1
                    subprocess.run(["mount", "-o", "remount,size=1g", disk], check=True)
                    again = ["--resume"] if (disk / "run" / "last.pt").exists() else NEW
                    if again == NEW:
                        shutil.rmtree(disk / "run", ignore_errors=True)
                    process = _start(work, *again, "disk/run")
                    process.join()
                through = not process.exitcode or "has finished" in (work / "screen.txt").read_text()
                different += not through or _results(disk / "run") != reference
            finally:
                subprocess.run(["umount", disk], check=True)
    return (f"Disks of 1 to {most} MB: {len(ends)} were full, {', '.join(f'{count} {when}' for when, count in stopped.items())}; "
            f"{sum(ends)} times one sentence said so, with exit code 1. Given space, {different} of {most} runs ended otherwise "
            "than the run on a large disk.")


def _prepare(work: Path) -> None:
    """Photos, and weights for main.py to fit a head to."""
    draw_dataset(work / "photos", per_class=12, seed=0)
    torch.manual_seed(0)
    torch.save(timm.create_model(SMALL, num_classes=0).state_dict(), work / "backbone.pth")


def _reference(work: Path) -> tuple[float, str]:
    """Seconds, and the results, of the training that nothing befalls. The first only warms up the server."""
    for name in ("warm", "reference"):
        began = time.monotonic()
        process = _start(work, *NEW, name)
        process.join()
        if process.exitcode:
            raise RuntimeError((work / "screen.txt").read_text())
    return time.monotonic() - began, _results(work / "reference")


def _results(run: Path) -> str:
    """One hash of what a run leaves to its user: the model, how far it may be trusted, its answers; and of the last weights."""
    best = checkpoint.load(run / "best.pt")
    refit = [tensor.numpy().tobytes() for tensor in best["refit"].values()]
    trust = f"{best['temperatures']} {best['known_limits']} {best['kept']}\n".encode()
    parts = [_weights(run).numpy().tobytes(), _weights(run, "best.pt").numpy().tobytes(), *refit, trust, (run / "val.csv").read_bytes()]
    return hashlib.sha256(b"".join(parts)).hexdigest()


def _start(work: Path, *arguments: str) -> multiprocessing.Process:
    """main.py on the command line, in a process that has the imports behind it: 10 s less, and no kill is wasted on them."""
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(["main"])
    process = server.Process(target=_command, args=(work, arguments))
    process.start()
    return process


def _command(work: Path, arguments: tuple[str, ...]) -> None:
    os.chdir(work)
    with open("screen.txt", "w") as screen:
        os.dup2(screen.fileno(), 1)
        os.dup2(screen.fileno(), 2)
    sys.argv = ["main.py", *arguments]
    runpy.run_path(str(ROOT / "main.py"), run_name="__main__")


def several_processes(count: int, seed: int) -> list[str]:
    """Two processes, and two machines of two (two launchers on loopback), against one; then one of several is killed, `count` times."""
    rng, ends, said, resumed_by = random.Random(seed), [], 0, []
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        _prepare(work)
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
                if launchers[0].poll():
                    raise RuntimeError(f"before its first checkpoint: {launchers[0].stdout.read()}")
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
        cwd=work, env=os.environ | {"OMP_NUM_THREADS": "1"}, text=True, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT) for rank in range(machines)]


def _difference(one: Path, other: Path) -> float:
    """The largest relative difference of what the two runs logged."""
    names = ["train_loss", "grad_norm", "val_loss", "val_accuracy", "val_macro_f1"]
    ours, theirs = (pd.read_csv(run / "log.csv")[names] for run in (one, other))
    return float(((theirs - ours).abs() / ours).max().max())


def _apart(one: Path, other: Path) -> float:
    return float((_weights(one) - _weights(other)).abs().max())


def _weights(run: Path, name: str = "last.pt") -> torch.Tensor:
    return torch.cat([weight.flatten().double() for weight in checkpoint.load(run / name)["weights"].values()])
