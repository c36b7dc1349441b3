"""A private temporary folder that never outlives its owner by much.

The owner holds a lock on a file in it. Whoever can take that lock knows that the owner is gone, however it ended:
the child process watches it, and the next start sweeps what a machine that went down has left.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import time
from pathlib import Path

from .errors import FileError

PREFIX = "MedFusion-"
LOCK = "owner"
SETTLED = 60.0
"""Seconds after which an unlocked folder is a leftover and not one that is just being made."""


class PrivateFolder:
    """A new folder that only this user can read; `remove` it when done. Raises FileError if none can be made."""

    def __init__(self):
        self.path = self._lock = None
        try:
            self.path = Path(tempfile.mkdtemp(prefix=PREFIX))
            self._lock = open(self.path / LOCK, "wb")  # noqa: SIM115 - held as long as the folder lives
            _lock(self._lock)
        except OSError as error:
            # A network folder may take files and no locks.
            if self._lock is not None:
                self._lock.close()
            if self.path is not None:
                shutil.rmtree(self.path, ignore_errors=True)
            raise FileError(
                f"no temporary folder can be made ({error.strerror}): set TMPDIR to a writable one on a disk of this"
                " machine."
            ) from error

    def remove(self):
        """Give up the folder and all that is in it; more than once does no harm."""
        self._lock.close()
        clear(self.path)


def clear(path):
    """Remove a private folder, as far as that can be done now: Windows keeps a file that is open or mapped anywhere.

    The file of the lock goes last, since by it `sweep` tells what has been left from what others have put there.
    """
    with contextlib.suppress(FileNotFoundError):
        for name in os.listdir(path):
            if name != LOCK:
                with contextlib.suppress(OSError):
                    os.unlink(os.path.join(path, name))
        if os.listdir(path) in ([], [LOCK]):
            shutil.rmtree(path, ignore_errors=True)


def is_orphaned(path):
    """Whether the owner of a folder is gone (or the folder itself)."""
    try:
        with open(Path(path) / LOCK, "rb+") as file:
            _lock(file)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


def sweep():
    """Remove this user's folders whose owners are gone."""
    for path in Path(tempfile.gettempdir()).glob(PREFIX + "*"):
        try:
            state = path.lstat()
        except OSError:
            continue
        mine = not hasattr(os, "getuid") or state.st_uid == os.getuid()
        settled = mine and time.time() - state.st_mtime > SETTLED and not path.is_symlink()
        # Without the lock it is somebody's own: MedFusion-results, say, or MedFusion-main as archives unpack to.
        if settled and (path / LOCK).is_file() and is_orphaned(path):
            clear(path)


if os.name == "nt":
    import msvcrt

    def _lock(file):
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
else:
    import fcntl

    def _lock(file):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
