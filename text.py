"""Text as people read it: what a terminal shows, how a program ends there, and what classes may be called.

Imports nothing but Python's own, for predict.py's sake.
"""

from __future__ import annotations

import io
import os
import signal
import sys
import unicodedata
from collections.abc import Callable

INTERRUPTED = 130  # the exit code of who is stopped by Ctrl-C, as of any program


def shown(path: str | os.PathLike) -> str:
    """A path for the screen: one line, whatever characters (newlines, escape codes, broken UTF-8) its name holds."""
    return "".join(c if is_plain(c) else repr(c)[1:-1] for c in str(path))


def decimals(number: float, places: int) -> str:
    """A number for a table; a dash for what there is none of, a share of no photos."""
    return "–" if number != number else f"{number:.{places}f}"


def sentence(error: BaseException) -> str:
    """What an error says, for the screen: it may quote what a stranger's file holds."""
    if isinstance(error, PermissionError):
        return f"{shown(error.filename)}: may not be opened by you ({error.strerror}). Ask its owner, or give another."
    return "\n".join(map(shown, str(error).split("\n")))[:2000]


def spell_out() -> None:
    """From here on, letters that the terminal or pipe has not are printed as their numbers: Windows' pipes are seldom UTF-8. Names of
    photos come in as the disk has them, UTF-8 or not."""
    for stream, errors in ((sys.stdin, "surrogateescape"), (sys.stdout, "backslashreplace"), (sys.stderr, "backslashreplace")):
        if isinstance(stream, io.TextIOWrapper):  # a notebook's is not, and has all letters
            stream.reconfigure(errors=errors)


def as_program(command: Callable[[], object]) -> None:
    """What a script under tools/ does when it is run: an error is one sentence, and exit code 1."""
    spell_out()
    try:
        command()
    except (ValueError, PermissionError) as error:
        sys.exit(sentence(error))
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


def ending_signals() -> list[signal.Signals]:
    """What asks a program to end: Ctrl-C, SIGTERM, and the end of its terminal; not under nohup, which has that ignored."""
    hangup = [signal.SIGHUP] if hasattr(signal, "SIGHUP") else []  # Windows has none
    return [signal.SIGINT, signal.SIGTERM, *(sign for sign in hangup if signal.getsignal(sign) != signal.SIG_IGN)]


def is_name(text: str) -> bool:
    """Whether a class may be called so: control characters could steer the terminal, and 200 letters fill a screen's width; \u200d only
    joins emoji."""
    return len(text) <= 200 and all(map(is_plain, text.replace("\u200d", "")))


def class_name(text: str) -> str:
    """A class as it is compared: no space around it, and a letter with an accent as one sign, where macOS' file names have two."""
    return unicodedata.normalize("NFC", text.strip(" "))


def is_plain(letter: str) -> bool:
    """Whether the screen shows it as it is: a letter, or a space of any script (Python calls only the ASCII one printable)."""
    return letter.isprintable() or unicodedata.category(letter) == "Zs"
