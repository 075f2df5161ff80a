"""Files are written whole or not at all, and never over what was read."""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from pathlib import Path


class WriteError(ValueError):
    """A file cannot be written; the message names it, and the old one is still there."""


def check_out(out: Path, *read: Path | str) -> None:
    """Raises WriteError if `out` could not be written where it is, or is one of the files that are read: asked before all the work."""
    place = Path(os.path.realpath(out))
    if not place.parent.is_dir():
        raise WriteError(f"{out}: there is no folder {out.parent}. Make it first, or name another file.")
    if place.exists() and not place.is_file():
        raise WriteError(f"{out}: is no file that could be replaced. Name another.")
    if not os.access(place.parent, os.W_OK):
        raise WriteError(f"{out}: its folder may not be written to. Name a file in another.")
    if str(place) in (os.path.realpath(path) for path in map(str, read) if "\0" not in path):  # what no file can be called
        raise WriteError(f"{out}: is one of the files that are read, and would be lost. Name another file.")


def picture_beside(out: Path, *read: Path | str) -> Path:
    """Where the picture goes that belongs to `out`. Raises WriteError if it would be `out`, or as check_out."""
    picture = out.with_suffix(".png")
    if out == picture:
        raise WriteError(f"{out}: its picture would take its place. Let it end otherwise than in .png.")
    check_out(out, *read)
    check_out(picture, *read)
    return picture


class atomic_file:
    """A binary file beside `path` that takes its name only when all is written and on the disk. Raises WriteError."""

    def __init__(self, path: Path):
        self.path = Path(os.path.realpath(path) if os.path.islink(path) else path)  # a link stays one

    def __enter__(self):
        try:
            self.file = tempfile.NamedTemporaryFile(dir=self.path.parent, prefix=f".{self.path.name}.", delete=False)
        except OSError as error:
            raise self.failed(error) from error
        return self.file

    def __exit__(self, kind, error, _) -> None:
        try:
            self.finish(kind)
        except OSError as late:  # a full disk may show only when the file is closed
            error = late
        written = error if isinstance(error, OSError) else getattr(error, "__context__", None)  # torch.save raises its own upon write()'s
        if isinstance(written, OSError) or "PytorchStreamWriter" in str(error):
            raise self.failed(written) from error

    def failed(self, error: BaseException | None) -> WriteError:
        reason = getattr(error, "strerror", None) or "writing failed, the disk may be full"
        kept = "; the one written before is still there" if self.path.exists() else ""
        return WriteError(f"{self.path}: cannot be written ({reason}){kept}. "
                          "Make room, make the folder writable, or close the program that has it open.")

    def finish(self, kind) -> None:
        try:
            if kind is None:
                self.file.flush()
                os.fsync(self.file.fileno())
                self.file.close()
                os.chmod(self.file.name, 0o644)  # temporary files are private, results are not
                self.replace()
        finally:
            with contextlib.suppress(OSError):  # closing flushes, which fails again on a full disk
                self.file.close()
            if os.path.exists(self.file.name):
                os.unlink(self.file.name)

    def replace(self) -> None:
        """Windows refuses while another program has the old file open: a virus scanner for a moment, a spreadsheet until it is closed."""
        for patience in (0.1, 0.3, 1, 3):
            try:
                return os.replace(self.file.name, self.path)
            except PermissionError:
                time.sleep(patience)
        os.replace(self.file.name, self.path)
