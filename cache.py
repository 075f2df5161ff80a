"""Decoded photos kept on the disk, so that no epoch after the first decodes them again."""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import multiprocessing
import os
import shutil
import tempfile
from pathlib import Path

import numpy as np

from photos import DataError, read_photo

RECOUNT = 16  # photos kept by a run, after which the folder is counted anew: other runs and processes keep theirs there too


class PhotoCache:
    """read_photo with a memory: a photo is decoded once, by whichever worker or process comes first, and then mapped from a file.

    folder: where the files lie until the program ends, for all its runs (folds); a run that was killed leaves it, and uses it
    when it goes on.
    limit: bytes in all, of all runs and processes together (to within RECOUNT photos of each), and never more than half of what the disk
    has free without them, as checkpoints need room too; what does not fit is decoded each time. The system keeps the files in memory that
    is free, and takes it back when it needs it.
    A file is found by the photo's path, time of change, size, and the detail asked for, so what comes out is byte for byte
    what read_photo would give. Raises DataError where the folder cannot be made.
    """

    def __init__(self, folder: Path, limit: int):
        try:
            folder.mkdir(exist_ok=True)
        except OSError as error:
            raise DataError(f"--cache: {folder} cannot be made ({error.strerror}). Give an --out in a folder that can be written to, or "
                            "--cache 0.") from error
        atexit.register(shutil.rmtree, folder, ignore_errors=True)  # workers leave by another door
        self.folder = folder
        self.used, self.kept = multiprocessing.Value("q", self._bytes()), multiprocessing.Value("q", 0)  # bytes there; photos of this run
        self.limit = min(limit, (shutil.disk_usage(folder).free + self.used.value) // 2)

    def read(self, path: str | os.PathLike, min_side: int = 0) -> np.ndarray:
        """The photo, read-only if it was kept. Raises PhotoError."""
        try:
            state = os.stat(path)
        except (OSError, ValueError):  # what is wrong, read_photo says
            return read_photo(path, min_side)
        key = f"{os.path.abspath(path)} {state.st_mtime_ns} {state.st_size} {min_side}"
        file = self.folder / f"{hashlib.sha256(key.encode('utf-8', 'surrogateescape')).hexdigest()}.npy"
        try:
            return np.load(file, mmap_mode="r").view(np.ndarray)
        except OSError:  # not there, or another user's
            pass
        except (EOFError, ValueError):  # empty, or cut off, since the power failed
            with contextlib.suppress(OSError):
                file.unlink(missing_ok=True)
        photo = read_photo(path, min_side)
        with contextlib.suppress(OSError):  # a disk that fills up all the same ends the keeping, not the training
            self._keep(file, photo)
        return photo

    def _keep(self, file: Path, photo: np.ndarray) -> None:
        with contextlib.suppress(FileExistsError), self.used.get_lock():
            self.folder.mkdir()  # another run that ended has taken it along, with all that was in it
            self.used.value = 0
        if not self._has_room(file, photo):
            return
        handle, part = tempfile.mkstemp(dir=self.folder)
        try:
            with open(handle, "wb") as out:
                np.save(out, photo)
            os.chmod(part, 0o644)  # temporary files are private; this one serves whoever trains beside
            with self.used.get_lock():
                if self._has_room(file, photo):  # still: another worker may have kept the same photo, or filled the room
                    os.replace(part, file)  # another worker sees all of it or nothing
                    self.used.value += file.stat().st_size
                    self.kept.value += 1
                    if self.kept.value % RECOUNT == 0:
                        self.used.value = self._bytes()
        finally:
            Path(part).unlink(missing_ok=True)

    def _bytes(self) -> int:
        used = 0
        for file in self.folder.iterdir():
            with contextlib.suppress(FileNotFoundError):  # another run's, just renamed
                used += file.stat().st_size
        return used

    def _has_room(self, file: Path, photo: np.ndarray) -> bool:
        return not file.exists() and self.used.value + photo.nbytes <= self.limit
