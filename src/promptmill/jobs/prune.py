"""Old jobs forgotten. Never one that runs, and one that could still go on only when asked for."""

from __future__ import annotations

import re
import shutil
import time
from pathlib import Path

from promptmill.errors import Code, PromptmillError, input_error
from promptmill.jobs import disk, status
from promptmill.jobs.folder import Folder, paths
from promptmill.jobs.lock import Lock

_UNITS_S = {"m": 60, "h": 3600, "d": 86_400, "w": 604_800}


def age_s(text: str) -> float:
    """Read `30m`, `12h`, `7d` or `2w`. Raises `PromptmillError` (`invalid_input`)."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([mhdw])", text.strip())
    if found is None:
        raise input_error(f"--prune {text[:20]!r} is no age; write 30m, 12h, 7d or 2w.")
    return float(found[1]) * _UNITS_S[found[2]]


def prune(root: Path, older_than_s: float, *, unfinished: bool) -> list[str]:
    """Remove the folders of jobs in which nothing has happened for `older_than_s`; return their ids.

    With `unfinished` also those of jobs that could go on, answers included. A finished job's output file is the user's
    and stays, unless the job was the rest of a call, whose answers lie in its folder. Raises `PromptmillError`
    (`storage`).
    """
    before = time.time() - older_than_s
    removed = []
    for path in paths(root):
        folder = Folder(path)
        if not path.is_dir() or _last_change(path) > before:
            continue
        if folder.spec is not None and not unfinished and status.read(folder)["state"] != status.FINISHED:
            continue
        lock = Lock.take(folder.lock)
        if lock is None:
            continue
        try:
            if _last_change(path) <= before:
                _remove(folder)
                removed.append(path.name)
        except OSError as error:
            raise PromptmillError(Code.STORAGE, f"{path} cannot be removed: {disk.why(error)}.", "") from None
        finally:
            lock.release()
        shutil.rmtree(path, ignore_errors=True)
    return removed


def _remove(folder: Folder) -> None:
    """Remove everything but the lock, whose holder we are: Windows removes no open file."""
    for file in folder.path.iterdir():
        if file != folder.lock:
            file.unlink()


def _last_change(path: Path) -> float:
    """Return when something was last written in the folder; taking or looking at the lock does not count."""
    times = [file.stat().st_mtime for file in path.iterdir() if file.name != "lock"]
    return max(times, default=path.stat().st_mtime)
