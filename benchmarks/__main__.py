"""Run the benchmarks and write benchmarks/results.md: `python -m benchmarks [NAME ...] [--data FOLDER] [--repeat N]`, or `make bench`.

Each is a script that also runs alone (`python -m benchmarks.step`). `accuracy` takes an hour and runs only when named.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

ROWS = ("step", "sam", "loader", "cache", "answer", "answers", "views", "memory")
PACKAGES = ("torch", "torchvision", "timm", "albumentations", "opencv-python-headless", "numpy", "pytorch_optimizer", "ttach", "fastai",
            "onnxruntime", "openvino")
FINDINGS = "## Findings"


def main(names: list[str], flags: list[str]) -> None:
    began, lines = time.time(), []
    for name in names or ROWS:
        done = subprocess.run([sys.executable, "-m", f"benchmarks.{name}", *flags], stdout=subprocess.PIPE, text=True)
        sys.stdout.write(done.stdout)
        lines += [line for line in done.stdout.splitlines() if line.startswith("|")]
        if done.returncode:
            lines.append(f"| {name} failed | | | | |")
    file = Path(__file__).with_name("results.md")
    findings = file.read_text(encoding="utf-8").partition(FINDINGS)[2] if file.exists() else "\n"
    head = [
        "# Side by side", "",
        f"`{' '.join(['python -m benchmarks', *names, *flags])}`, {time.strftime('%Y-%m-%d')}, {(time.time() - began) / 60:.0f} min.",
        f"{machine()}.", "", "Ratios of things timed in turn in one run: the median of the rounds (lowest to highest).", "",
        "| what | ratio | goal | holds | in figures |", "| --- | --- | --- | --- | --- |", *lines, "", FINDINGS]
    file.write_text("\n".join(head) + findings, encoding="utf-8")
    print(file)


def machine() -> str:
    """Processor, cores, system, and the versions of what is compared."""
    cpu = [line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")] \
        if os.path.exists("/proc/cpuinfo") else [platform.processor()]
    found = []
    for package in PACKAGES:
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            found.append(f"no {package}")
    return f"{os.cpu_count()} cores of {cpu[0]}, {platform.system()}, Python {platform.python_version()}, {', '.join(found)}"


if __name__ == "__main__":
    split = next((i for i, argument in enumerate(sys.argv) if argument.startswith("--")), len(sys.argv))
    main(sys.argv[1:split], sys.argv[split:])
