"""What a person at the terminal sees and does: the progress bar, Ctrl-C, and a terminal that is closed."""

from __future__ import annotations

import os
import signal
import stat
import sys
import time
from pathlib import Path

from accelerate import Accelerator
from tqdm import tqdm

from engine import sum_over_processes
from text import ending_signals


class StopRequest:
    """Within: Ctrl-C, SIGTERM or a closed terminal means finish the step, save, say how to go on. A second one ends the program at once.

    Asked in any of several processes, all stop at the same step. Their launcher hands the signal on once more, at the
    same moment: that one is no second.
    """

    def __init__(self, accelerator: Accelerator, folder: Path):
        self.accelerator, self.folder = accelerator, folder

    def __enter__(self) -> StopRequest:
        self.asked = 0.0
        self.before = {number: signal.signal(number, self.ask) for number in ending_signals()}
        return self

    def __exit__(self, kind, error: BaseException | None, trace) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)
        if isinstance(error, RuntimeError) and self.accelerator.num_processes > 1:  # gloo and NCCL know no kind of their own for it
            print(f"one of the {self.accelerator.num_processes} processes has ended, or the network between them fails. "
                  f"Go on, with as many processes as you like: python main.py --resume {self.folder}", file=sys.stderr, flush=True)

    def ask(self, number: int, _) -> None:
        if self.asked and time.monotonic() - self.asked > 1:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        self.asked = self.asked or time.monotonic()
        if number not in (signal.SIGINT, signal.SIGTERM):
            for stream in (1, 2):
                if stat.S_ISCHR(os.fstat(stream).st_mode):  # the terminal that is no more: what prints there would end before it is saved
                    os.dup2(os.open(os.devnull, os.O_WRONLY), stream)

    def __call__(self) -> bool:
        return sum_over_processes(float(self.asked > 0), self.accelerator) > 0


class Bar(tqdm):
    """Progress through an epoch, with the time left and the last loss; silent where no person watches."""

    def __init__(self, name: str, steps: int, done: int, accelerator: Accelerator, quiet: bool):
        super().__init__(desc=name, total=steps, initial=done, leave=False, disable=quiet or not accelerator.is_main_process or None)

    def tick(self, loss: float) -> None:
        self.set_postfix_str(f"loss {loss:.3f}", refresh=False)
        self.update()
