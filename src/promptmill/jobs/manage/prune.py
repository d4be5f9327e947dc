"""Removes old jobs. A running job is never removed; an unfinished job is removed only on request."""

from __future__ import annotations

import contextlib
import logging
import re
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from promptmill.core.bounds import LARGEST_CALL_JOBS, MOST_CALL_JOBS
from promptmill.core.errors import Code, Named, PromptmillError, input_error
from promptmill.files import disk
from promptmill.jobs.export import output
from promptmill.jobs.inputs import input_rows as given
from promptmill.jobs.store import progress, status
from promptmill.jobs.store.folder import Folder
from promptmill.jobs.store.index import JobFolders
from promptmill.jobs.store.lock import Lock

_LOG = logging.getLogger(__name__)
_LOOK_S = 60.0
_LOOK_AGAIN: dict[Path, float] = {}
"""The time at which the jobs of calls are checked next, by the root folder of the jobs."""
_UNITS_S = {"m": 60, "h": 3600, "d": 86_400, "w": 604_800}


def age_s(text: str) -> float:
    """Return the seconds in `30m`, `12h`, `7d` or `2w`. Raises `PromptmillError` (`invalid_input`).

    >>> age_s("1.5h")
    5400.0
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([mhdw])", text.strip())
    if match is None:
        raise input_error(Named("prune"), f" {text[:20]!r} is not a valid age; write 30m, 12h, 7d or 2w.")
    return float(match[1]) * _UNITS_S[match[2]]


def old(folders: JobFolders, older_than_s: float, *, unfinished: bool) -> list[Folder]:
    """Return the jobs that `prune` would remove if no process ran them."""
    before = time.time() - older_than_s
    found = (folders.folder_at(path) for path in folders.paths())
    return [folder for folder in found if folder is not None and _is_old(folder, before, unfinished=unfinished)]


def prune(folders: JobFolders, older_than_s: float, *, unfinished: bool) -> list[str]:
    """Remove the folders of jobs that have not changed for `older_than_s` seconds. Return the jobs' ids.

    With `unfinished`, jobs that could be resumed are removed as well, with their answers. The output file of a finished
    job belongs to the user and stays. Without `unfinished`, the job of a task is kept as long as the client may request
    the task. Raises `PromptmillError` (`storage`).
    """
    before = time.time() - older_than_s
    removed = []
    for path in folders.paths():
        folder = folders.folder_at(path)
        try:
            if folder is not None and _removed(folder, partial(_is_old, folder, before, unfinished=unfinished)):
                removed.append(path.stem)
                folder = None
            if folder is None:  # the job was moved, or is already removed
                path.unlink(missing_ok=True)
        except (FileNotFoundError, IsADirectoryError):  # another process is removing the job
            continue
        except OSError as error:
            raise PromptmillError(Code.STORAGE, f"{path} cannot be removed: {disk.why(error)}.", "") from None
    with contextlib.suppress(OSError):  # the next call removes the rest
        given.prune(folders, before)
    return removed


def make_room(folders: JobFolders) -> list[str]:
    """Remove the oldest finished jobs of calls until the rest is within the limits. Return the ids of the removed jobs.

    Checks once a minute at most, because a check of thousands of folders takes 50 ms. Raises `OSError`.
    """
    if time.monotonic() < _LOOK_AGAIN.get(folders.root, 0.0):
        return []
    _LOOK_AGAIN[folders.root] = time.monotonic() + _LOOK_S
    jobs = sorted(_sized(path) for path in folders.root.glob("call-*") if path.is_dir())
    count, size, removed = len(jobs), sum(size for _, size, _ in jobs), []
    for _, its, path in jobs:
        if count <= MOST_CALL_JOBS and size <= LARGEST_CALL_JOBS:
            break
        with contextlib.suppress(OSError):
            if _removed(folder := Folder(path), partial(_is_done, folder)):
                removed.append(path.name)
                count, size = count - 1, size - its
    return removed


def _sized(path: Path) -> tuple[float, int, Path]:
    """Return the time of the last change in a folder, the size of its files in bytes, and its path."""
    found = path.stat().st_mtime, 0
    for file in path.iterdir():
        with contextlib.suppress(FileNotFoundError):  # just removed by another process
            stat = file.stat()
            found = max(found[0], stat.st_mtime), found[1] + stat.st_size
    return *found, path


def _removed(folder: Folder, may: Callable[[], bool]) -> bool:
    """Remove a job that no process runs, if `may` returns True. Return whether the job is removed."""
    if not may() or (lock := Lock.take(folder.lock)) is None:
        return False
    try:
        if not may():  # the job has run since it was listed
            return False
        remove(folder)
    finally:
        lock.release()
    if sys.platform == "win32":
        with contextlib.suppress(OSError):  # another process checks the lock, or has started the job again
            folder.lock.unlink()
            folder.remove()
    return True


def _is_old(folder: Folder, before: float, *, unfinished: bool) -> bool:
    try:
        folder.check()
    except OSError:
        return False
    if _last_change(folder.path) > before:
        return False
    return unfinished or (_is_done(folder) and time.time() >= (folder.task or {}).get("expires", 0.0))


def _is_done(folder: Folder) -> bool:
    """Return whether nothing of the job is left to resume: it was removed, or its output has every row."""
    spec, result = folder.spec, folder.result
    if spec is None:
        return not folder.database.exists()
    is_whole = result is not None and result.holds(folder.row_count)  # unknown (None) does not count as complete
    return is_whole and status.read(folder)["state"] == progress.FINISHED


def remove(folder: Folder) -> None:
    """Remove all files of a job. The caller holds the lock, so no process can start the job meanwhile."""
    if (spec := folder.spec) is not None:
        output.discard(spec.output.path, spec.job_id)
        if awaited := folder.awaited:
            go_on = "continues at the provider, which bills it; cancel it there"
            _LOG.warning("promptmill: job %s is removed; its %s %s.", spec.job_id, awaited, go_on)
    for file in folder.path.iterdir():
        if file != folder.lock:
            file.unlink()
    if sys.platform != "win32":  # Windows does not remove the lock file while it is open
        folder.lock.unlink()
        with contextlib.suppress(OSError):  # another process is starting the job again
            folder.remove()


def forget(folder: Folder, folders: JobFolders) -> None:
    """Remove a new job whose order was refused. The caller holds the lock."""
    folder.close()
    folders.unregister(folder)
    remove(folder)


def forget_ended(folder: Folder, folders: JobFolders, *, unfinished: bool) -> None:
    """Remove a job that has ended. Raises `PromptmillError` (`invalid_input`) for a running or an unfinished job."""
    name = folder.job_id
    if not _removed(folder, lambda: unfinished or _is_done(folder)):
        if folder.alive or unfinished or _is_done(folder):
            state = "is paused, and its process waits" if folder.control.paused else "runs"
            raise input_error(f"Job {name} {state}; ", Named("cancel"), " ends it.")
        raise input_error(
            f"Job {name} could be resumed, and its answers are paid; ", Named("unfinished"), " forgets it."
        )
    folders.unregister(folder)


def _last_change(path: Path) -> float:
    """Return the time at which the job last worked. To read the job or to take its lock does not count as work."""
    folder = Folder(path)
    if (spec := folder.spec) is not None:
        updated = folder.status.get("updated")
        return float(updated if isinstance(updated, int | float) else spec.created)
    times = []
    for file in path.iterdir():
        if file.name != "lock":
            with contextlib.suppress(FileNotFoundError):  # just removed by another process
                times.append(file.stat().st_mtime)
    return max(times) if times else path.stat().st_mtime
