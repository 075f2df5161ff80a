"""Timing things in turn, so that whatever else the machine does meets all of them alike, and what every script needs for it."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import tyro


@dataclasses.dataclass(frozen=True)
class Options:
    data: Path = Path("data/drawn")  # a folder of photos, at any depth
    repeat: int = 5  # rounds; in each, everything is timed once, one after the other
    small: bool = False  # little of everything: to see that a script works, not to measure

    def photos(self, most: int) -> list[str]:
        """Up to `most` photos, spread over the folder."""
        from photos import is_photo
        found = sorted(str(path) for path in self.data.rglob("*") if is_photo(path))
        if not found:
            raise SystemExit(f"{self.data}: no photo in it. Draw some with `python data/draw.py --out data/drawn`, or pass --data FOLDER.")
        most = min(most, 40) if self.small else most
        return found[::max(1, len(found) // most)][:most]


class Apart:
    """A way that runs in a process of its own, as its settings (allocator, threads) would leak into the others.

    prepare(*args) runs there once and returns what is to be timed.
    """

    def __init__(self, prepare: Callable, *args):
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        context.Process(target=_serve, args=(theirs, prepare, args), daemon=True).start()
        theirs.close()
        self.pipe.recv()

    def __call__(self) -> object:
        """What the way returned there."""
        self.pipe.send(True)
        return self.pipe.recv()


def _serve(pipe, prepare: Callable, args: tuple) -> None:
    way = prepare(*args)
    pipe.send("ready")
    try:
        while pipe.recv():
            pipe.send(way())
    except EOFError:  # the measuring is over
        os._exit(0)


def in_turn(ways: dict[str, Callable], repeat: int) -> dict[str, list[float]]:
    """Seconds of each way, `repeat` times; a round before warms up and does not count."""
    seconds = {name: [] for name in ways}
    for turn in range(repeat + 1):
        for name, way in ways.items():
            began = time.perf_counter()
            way()
            if turn:
                seconds[name].append(time.perf_counter() - began)
    return seconds


def row(name: str, over: list[float], under: list[float], goal: str, detail: str = "") -> str:
    """A line of results.md: the median of over / under, round by round, lowest and highest, and whether the goal holds.

    goal: ">= 1.3" or "<= 2.0", of the median; "" = none.
    """
    ratios = [a / b for a, b in zip(over, under, strict=True)]
    median = statistics.median(ratios)
    holds = "" if not goal else "yes" if (median >= float(goal[3:]) if goal.startswith(">=") else median <= float(goal[3:])) else "no"
    return f"| {name} | {median:.3g} ({min(ratios):.3g} to {max(ratios):.3g}) | {goal} | {holds} | {detail} |"


def a_second(photos: int, seconds: list[float]) -> str:
    return f"{photos / statistics.median(seconds):.3g} photos/s"


def command(measure: Callable[[Options], Iterator[str]]) -> None:
    for line in measure(tyro.cli(Options)):
        print(line, flush=True)
