"""A lease in place of a lock where files cannot be locked: a file that its holder touches every few seconds."""

from __future__ import annotations

import contextlib
import os
import secrets
import threading
import time
from pathlib import Path

from promptmill.jobs.files import disk

_BEAT_S = 5.0
_LAPSE_S = 30.0
_SETTLE_S = 0.2


class Lease:
    """A held lease; it ends with `release`, or half a minute after its process."""

    def __init__(self, path: Path, name: str, beat_s: float) -> None:
        self._path = path
        self._name = name
        self._ended = threading.Event()
        self.lost = False
        """Whether somebody else has taken it, as after this process was stopped for long."""
        threading.Thread(target=self._beat, args=(beat_s,), name="lease", daemon=True).start()

    @classmethod
    def take(cls, path: Path, *, beat_s: float = _BEAT_S, lapse_s: float = _LAPSE_S) -> Lease | None:
        """Return the lease, None when it is somebody else's and alive. Raises `OSError`."""
        if is_alive(path, lapse_s=lapse_s):
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


def is_alive(path: Path, *, lapse_s: float = _LAPSE_S) -> bool:
    """Return whether a process has the lease at `path`. Its age is that of the file system's own clock."""
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
