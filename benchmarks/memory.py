"""Peak memory of the commands: training over 100,000 rows against 1,000, predicting 10,000 photos against 1,000.

In turn, as what stands in queues depends on who waits for whom; training once, for ten minutes, and without the head's fit, which would
take hours at 100,000 rows of lite0: what it holds ends with fitting.HEAD_ROWS, and was read by hand (results.md).
"""

import itertools
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from benchmarks.answer import a_run
from benchmarks.timing import Options, command, row

MODEL, SIZE = "test_efficientnet.r160_in1k", 64  # timm's smallest: what grows with the table shows best beside it


# In a small process, as Linux counts in what the process held that started the command: ours has loaded torch.
ASK = "import os, sys; _, status, usage = os.wait4(os.posix_spawn(sys.argv[1], sys.argv[1:], os.environ), 0); " \
      "print(usage.ru_maxrss / 1024); sys.exit(os.waitstatus_to_exitcode(status))"


def peak(folder: Path, script: str, *arguments) -> float:
    """Megabytes of the command, run in `folder`, or of its largest worker, whichever is more."""
    words = [sys.executable, "-c", ASK, sys.executable, os.path.abspath(script), *map(str, arguments)]
    return float(subprocess.run(words, cwd=folder, stdout=subprocess.PIPE, check=True).stdout.split()[-1])


def table(file: Path, options: Options, rows: int) -> Path:
    """A CSV of that many rows, the same photos again and again."""
    photos = [(os.path.abspath(path), Path(path).parent.name) for path in options.photos(300)]
    file.write_text("image,label\n" + "".join(f'"{path}",{label}\n' for path, label in itertools.islice(itertools.cycle(photos), rows)))
    return file


def measure(options: Options):
    few, rows, photos = (100, 200, 200) if options.small else (1_000, 100_000, 10_000)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run = a_run(folder, MODEL, SIZE, "none")

        def training(count: int) -> float:
            return peak(folder, "main.py", "--data", table(folder / f"{count}.csv", options, count), "--out", tempfile.mkdtemp(dir=folder),
                        "--model", MODEL, "--weights", "none", "--image-size", SIZE, "--epochs", 1, "--rho", 0, "--no-head-first")

        def predicting(kind: str) -> Callable[[int], float]:
            return lambda count: peak(folder, "predict.py", table(folder / f"p{count}.csv", options, count),
                                      "--checkpoint", run / f"best.{kind}")

        def compared(name: str, way: Callable[[int], float], many: int, rounds: int, goal: str) -> str:
            most, least = zip(*((way(many), way(few)) for _ in range(rounds)), strict=True)
            return row(f"memory of {name} / {few:,}", most, least, goal, f"at most {max(most):.0f} MB against at least {min(least):.0f} MB")

        yield compared(f"training without the head's fit, {rows:,} rows", training, rows, 1, "<= 1.10")
        for kind in ("pt", "onnx"):
            yield compared(f"predicting by .{kind}, {photos:,} photos", predicting(kind), photos, options.repeat, "<= 1.05")


if __name__ == "__main__":
    command(measure)
