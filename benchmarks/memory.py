"""Peak memory of the commands: training over 100,000 rows against 1,000, predicting 10,000 photos against 1,000.

Once each: memory varies less than time.
"""

import itertools
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.answer import a_run
from benchmarks.timing import Options, command, row

MODEL, SIZE = "test_efficientnet.r160_in1k", 64  # timm's smallest: what grows with the table shows best beside it


def peak(folder: Path, script: str, *arguments) -> float:
    """Megabytes of the command, run in `folder`, or of its largest worker, whichever is more."""
    process = subprocess.Popen([sys.executable, os.path.abspath(script), *map(str, arguments)], cwd=folder, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{script} failed")
    return usage.ru_maxrss / 1024


def table(file: Path, options: Options, rows: int) -> Path:
    """A CSV of that many rows, the same photos again and again."""
    photos = [(os.path.abspath(path), Path(path).parent.name) for path in options.photos(300)]
    file.write_text("image,label\n" + "".join(f'"{path}",{label}\n' for path, label in itertools.islice(itertools.cycle(photos), rows)))
    return file


def measure(options: Options):
    few, rows, many = (100, 200, 200) if options.small else (1_000, 100_000, 10_000)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run = a_run(folder, MODEL, SIZE, "none")

        def training(count: int) -> float:
            return peak(folder, "main.py", "--data", table(folder / f"{count}.csv", options, count), "--out", folder / f"train{count}",
                        "--model", MODEL, "--weights", "none", "--image-size", SIZE, "--epochs", 1, "--rho", 0, "--no-head-first")

        def predicting(count: int, kind: str) -> float:
            return peak(folder, "predict.py", table(folder / f"p{count}.csv", options, count), "--checkpoint", run / f"best.{kind}")

        less, more = training(few), training(rows)
        yield row(f"memory of training, {rows:,} rows / {few:,}", [more], [less], "<= 1.10", f"{more:.0f} MB against {less:.0f} MB")
        for kind in ("pt", "onnx"):
            less, more = predicting(few, kind), predicting(many, kind)
            yield row(f"memory of predicting by .{kind}, {many:,} photos / {few:,}", [more], [less], "<= 1.05",
                      f"{more:.0f} MB against {less:.0f} MB")


if __name__ == "__main__":
    command(measure)
