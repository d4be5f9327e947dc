"""The lock of a job: one process at a time runs it.

The system frees the lock when its process ends. `filelock` was tried: with it, no child process can take over a lock.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from promptmill.jobs import disk

# A process that only looks holds the lock for a moment; a process that wants it tries again for this long.
_PATIENCE_S = 0.5
_PAUSE_S = 0.02


class Lock:
    """The held lock of one job; it ends with `release` or with the process."""

    def __init__(self, descriptor: int) -> None:
        """`descriptor`: the open file, perhaps locked by a process that handed it to this one at its start."""
        self.descriptor = descriptor
        """A process that inherits the open file holds the lock, too."""

    @classmethod
    def take(cls, path: Path) -> Lock | None:
        """Return the lock, None when another process has it. Raises `OSError`."""
        end = time.monotonic() + _PATIENCE_S
        while True:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, disk.PRIVATE_FILE)
            try:
                held = _try(descriptor)
            except OSError:  # some network file systems refuse locks
                os.close(descriptor)
                raise
            if held and _is_at(descriptor, path):
                return cls(descriptor)
            os.close(descriptor)
            if held:  # the job was removed meanwhile, with this file: open a new one
                continue
            if time.monotonic() > end:
                return None
            time.sleep(_PAUSE_S)

    def release(self) -> None:
        """Let others have it; a second time does nothing."""
        descriptor, self.descriptor = self.descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)


def is_held(path: Path) -> bool:
    """Return whether some process has the lock now."""
    try:
        descriptor = os.open(path, os.O_RDWR)
    except OSError:
        return False
    try:
        return not _try(descriptor)
    except OSError:
        return False
    finally:
        os.close(descriptor)


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _try(descriptor: int) -> bool:
    if sys.platform == "win32":
        import msvcrt

        try:
            os.lseek(descriptor, 0, os.SEEK_SET)
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True
    import fcntl

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
