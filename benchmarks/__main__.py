"""Run benchmarks: `python -m benchmarks [NAME ...] [--data FOLDER] [--repeat N]`, or `make bench`. Writes benchmarks/results.md.

Each is a script that also runs alone (`python -m benchmarks.step`). `accuracy` takes half an hour or more, and runs only when named;
`gpu`, which needs one, and `recipes`, which compares the recipe with itself, run alone and write no section.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

ROWS = ("step", "parts", "sam", "loader", "cache", "answer", "answers", "views", "memory")
PACKAGES = ("torch", "torchvision", "timm", "albumentations", "opencv-python-headless", "numpy", "pytorch_optimizer", "ttach", "fastai",
            "onnxruntime", "openvino")
HEAD = "Ratios of things timed in turn in one run: the median of the rounds (lowest to highest)."
TABLE = ["| what | ratio | goal | holds | in figures |", "| --- | --- | --- | --- | --- |"]
FINDINGS = "Findings"


def main(names: list[str], flags: list[str]) -> None:
    """A section of results.md for each benchmark; older ones of others stay, unless made on another machine or with other versions."""
    file = Path(__file__).with_name("results.md")
    start = f"# Side by side\n\n{machine()}.\n\n{HEAD}\n"
    before, *old = (file.read_text(encoding="utf-8") if file.exists() else "").split("\n## ")
    sections = dict(section.split("\n", 1) for section in old)
    findings = sections.pop(FINDINGS, "\n")
    if before != start:
        sections.clear()
    for name in names or ROWS:
        began, command = time.time(), [f"benchmarks.{name}", *flags]
        done = subprocess.run([sys.executable, "-m", *command], stdout=subprocess.PIPE, text=True)
        sys.stdout.write(done.stdout)
        rows = [line for line in done.stdout.splitlines() if line.startswith("|")]
        if done.returncode:
            rows.append(f"| {name} failed | | | | |")
        made = f"`python -m {' '.join(command)}`, {time.strftime('%Y-%m-%d')}, {(time.time() - began) / 60:.1f} min."
        sections[name] = "\n".join(["", made, "", *TABLE, *rows, ""])
    text = "".join(f"\n## {name}\n{body}" for name, body in (sections | {FINDINGS: findings}).items())
    file.write_text(start + text, encoding="utf-8")
    print(file)


def machine() -> str:
    """Processor, cores, system, and the versions of what is compared."""
    cpu = [line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")] \
        if os.path.exists("/proc/cpuinfo") else []
    found = []
    for package in PACKAGES:
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            found.append(f"no {package}")
    name = cpu[0] if cpu else platform.processor() or platform.machine()  # ARM's /proc/cpuinfo has no name
    return f"{os.cpu_count()} cores of {name}, {platform.system()}, Python {platform.python_version()}, {', '.join(found)}"


if __name__ == "__main__":
    split = next((i for i, argument in enumerate(sys.argv) if argument.startswith("--")), len(sys.argv))
    main(sys.argv[1:split], sys.argv[split:])
