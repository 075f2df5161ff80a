"""A run's report once more: `python -m tools.report RUN` writes RUN/report.html, as main.py does at the end of training."""

from __future__ import annotations

from pathlib import Path

import tyro
from tyro.conf import Positional

from report import write_report
from text import as_program


def main(run: Positional[Path], data: Path | None = None) -> None:
    """Write the report, and say where it is.

    Args:
        run: a folder under runs/ that main.py made.
        data: the folder that its photos are in now, if they have moved.
    """
    print(write_report(run, data))


if __name__ == "__main__":
    as_program(lambda: tyro.cli(main, description=__doc__))
