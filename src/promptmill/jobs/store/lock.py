"""The lock of a job: one process at a time runs it.

The system frees the lock when its process ends. If the file system refuses locks (some network file systems do), a
lease takes its place, which has to be renewed. `filelock` was tried: with it, no child process can take over a lock.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import sys
import threading
import time
from pathlib import Path

from promptmill.jobs import disk

# A process that only looks holds the lock for a moment; a process that wants it tries again for this long.
_PATIENCE_S = 0.5
_PAUSE_S = 0.02
_REFUSED = frozenset({errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL})
_BEAT_S = 5.0
_LAPSE_S = 30.0
_SETTLE_S = 0.2


class Lock:
    """The held lock of one job; it ends with `release` or with the process."""

    def __init__(self, descriptor: int, held: Lease | None = None) -> None:
        """`descriptor`: the open file, perhaps locked by a process that handed it to this one at its start."""
        self._descriptor = descriptor
        self._lease = held

    @classmethod
    def take(cls, path: Path) -> Lock | None:
        """Return the lock, None when another process has it. Raises `OSError`."""
        end = time.monotonic() + _PATIENCE_S
        while True:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, disk.PRIVATE_FILE)
            try:
                held = _try(descriptor)
            except OSError as error:
                os.close(descriptor)
                if error.errno not in _REFUSED:
                    raise
                taken = Lease.take(_lease_of(path))
                return None if taken is None else cls(-1, taken)
            if held and _is_at(descriptor, path):
                _lease_of(path).unlink(missing_ok=True)  # of a file system without locks
                return cls(descriptor)
            os.close(descriptor)
            if held:  # the job was removed meanwhile, with this file: open a new one
                continue
            if time.monotonic() > end:
                return None
            time.sleep(_PAUSE_S)

    @property
    def descriptor(self) -> int | None:
        """The open file that holds the lock, None for a lease. A process that inherits the file holds the lock, too."""
        return None if self._lease or self._descriptor < 0 else self._descriptor

    @property
    def lost(self) -> bool:
        """Whether another process has taken the job over."""
        return self._lease is not None and self._lease.lost

    def release(self) -> None:
        """Let others have it; a second time does nothing."""
        if self._lease is not None:
            self._lease.release()
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)


def is_held(path: Path) -> bool:
    """Return whether some process has the lock now."""
    if not has_locks(path):
        return _is_alive(_lease_of(path))
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


def has_locks(path: Path) -> bool:
    """Return whether files beside the lock at `path` can be locked, as far as its last holder found out."""
    return not _lease_of(path).exists()


def _lease_of(path: Path) -> Path:
    return path.with_name("lease")


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


class Lease:
    """A held lease, a file that its holder touches; it ends with `release`, or half a minute after its process."""

    def __init__(self, path: Path, name: str, beat_s: float) -> None:
        self._path = path
        self._name = name
        self._ended = threading.Event()
        self.lost = False
        """Whether another process has taken it, as after this one was stopped for long."""
        threading.Thread(target=self._beat, args=(beat_s,), name="lease", daemon=True).start()

    @classmethod
    def take(cls, path: Path, *, beat_s: float = _BEAT_S, lapse_s: float = _LAPSE_S) -> Lease | None:
        """Return the lease, None when another process has it. Raises `OSError`."""
        if _is_alive(path, lapse_s=lapse_s):
            return None
        name = secrets.token_hex(16)
        beside = path.with_name(f"{path.name}.{name}")
        with os.fdopen(disk.created(beside), "w", encoding="ascii") as file:
            file.write(name)
        beside.replace(path)
        time.sleep(_SETTLE_S)  # of several that take a lapsed one at this moment, the last has it
        return cls(path, name, beat_s) if _holder(path) == name else None

    def release(self) -> None:
        """Let others have it; a second time does nothing."""
        if not self._ended.is_set():
            self._ended.set()
            if not self.lost and _holder(self._path) == self._name:
                with contextlib.suppress(OSError):
                    self._path.write_text("", encoding="ascii")

    def _beat(self, beat_s: float) -> None:
        while not self._ended.wait(beat_s):
            try:
                if _holder(self._path) != self._name:
                    self.lost = True
                    return
                os.utime(self._path)
            except OSError:  # the file system is away; it may come back
                continue


def _is_alive(path: Path, *, lapse_s: float = _LAPSE_S) -> bool:
    """Return whether a process has the lease at `path`. Its age is by the file system's own clock."""
    if not _holder(path):
        return False
    probe = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
    try:
        os.close(disk.created(probe))
        try:
            return probe.stat().st_mtime - path.stat().st_mtime < lapse_s
        finally:
            probe.unlink()
    except OSError:
        return False


def _holder(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii")
    except (OSError, ValueError):
        return ""
