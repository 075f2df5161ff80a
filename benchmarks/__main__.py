"""Run benchmarks, all but accuracy where none is named, and write benchmarks/results.md: `python -m benchmarks NAME`, or `make bench`.

Each is a script that also runs alone, and only prints (`python -m benchmarks.step`). `accuracy` takes half an hour or more; `gpu`, which
needs one, and `recipes`, which compares the recipe with itself, run alone and write no section.
"""

from __future__ import annotations

import dataclasses
import os
import platform
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

import tyro

from benchmarks.timing import Options

ROWS = ("step", "parts", "sam", "loader", "cache", "answer", "answers", "views", "memory")
PACKAGES = ("torch", "torchvision", "timm", "albumentations", "opencv-python-headless", "numpy", "pytorch_optimizer", "ttach", "fastai",
            "onnxruntime", "openvino")
HEAD = "Ratios of things timed in turn in one run: the median of the rounds (lowest to highest)."
TABLE = ["| what | ratio | goal | holds | in figures |", "| --- | --- | --- | --- | --- |"]
FINDINGS = "Findings"


@dataclasses.dataclass(frozen=True)
class Chosen:
    names: tyro.conf.Positional[tuple[Literal["accuracy", *ROWS], ...]] = ROWS  # which, one after the other
    data: Path = Options.data  # a folder of photos, at any depth
    repeat: int = Options.repeat  # rounds; in each, everything is timed once, one after the other


def main(chosen: Chosen) -> None:
    """A section of results.md for each benchmark. Older ones of others stay, unless made on another machine or with other versions; so does
    that of one that fails, which ends the program."""
    file = Path(__file__).with_name("results.md")
    start = f"# Side by side\n\n{machine()}.\n\n{HEAD}\n"
    before, *old = (file.read_text(encoding="utf-8") if file.exists() else "").split("\n## ")
    sections = dict(section.split("\n", 1) for section in old)
    findings = sections.pop(FINDINGS, "\n")
    if before != start:
        sections.clear()
    for name in chosen.names:
        began, command = time.time(), [f"benchmarks.{name}", "--data", str(chosen.data), "--repeat", str(chosen.repeat)]
        done = subprocess.run([sys.executable, "-m", *command], stdout=subprocess.PIPE, text=True)
        sys.stdout.write(done.stdout)
        if done.returncode:
            sys.exit(f"{name} failed, for the reason above: what {file} may hold of it is of before.")
        rows = [line for line in done.stdout.splitlines() if line.startswith("|")]
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
    main(tyro.cli(Chosen, description=__doc__))
