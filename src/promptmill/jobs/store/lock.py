"""The lock of a job, so that only one process at a time runs the job.

The system frees the lock when the holding process ends. The package `filelock` is not used, because a child process
cannot inherit its locks.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from promptmill.files import disk

_PATIENCE_S = 0.5  # seconds of retries, because a process that only checks the lock also holds it for a moment
_PAUSE_S = 0.02


class Lock:
    """The held lock of one job. `release` or the end of the process frees it."""

    def __init__(self, descriptor: int) -> None:
        """`descriptor`: an open descriptor of the file, which this process or its parent process has locked."""
        self.descriptor = descriptor
        """The descriptor of the locked file. A process that inherits it holds the lock too."""

    @classmethod
    def take(cls, path: Path) -> Lock | None:
        """Return the lock; None if another process holds it. Raises `OSError`."""
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
            if held:  # the job was removed together with its lock file, so a new file is opened
                continue
            if time.monotonic() > end:
                return None
            time.sleep(_PAUSE_S)

    def release(self) -> None:
        """Free the lock; a second call does nothing."""
        descriptor, self.descriptor = self.descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)


def is_held(path: Path) -> bool:
    """Return whether any process holds the lock now."""
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
