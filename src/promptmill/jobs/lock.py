"""A job belongs to one process at a time, and is alive as long as that process is: the system frees the lock."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from promptmill.jobs.disk import PRIVATE_FILE

# Someone who only looks holds the lock for a moment; whoever wants it tries again for this long.
_PATIENCE_S = 0.5
_PAUSE_S = 0.02


class Lock:
    """The held lock of one job; it ends with `release` or with the process."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    @classmethod
    def take(cls, path: Path) -> Lock | None:
        """Return the lock, None when another process has it. Raises `OSError`."""
        end = time.monotonic() + _PATIENCE_S
        while True:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, PRIVATE_FILE)
            held = _try(descriptor)
            if held and _is_at(descriptor, path):
                return cls(descriptor)
            os.close(descriptor)
            if held:  # its holder removed it, with the job: what is there now, if anything, is another file
                continue
            if time.monotonic() > end:
                return None
            time.sleep(_PAUSE_S)

    @classmethod
    def adopt(cls, descriptor: int) -> Lock:
        """Return the lock that another process took and handed to this one at its start (POSIX)."""
        return cls(descriptor)

    @property
    def descriptor(self) -> int:
        """The open file that holds the lock; whoever inherits it holds the lock as well."""
        return self._descriptor

    def release(self) -> None:
        """Let others have it; a second time does nothing."""
        descriptor, self._descriptor = self._descriptor, -1
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
