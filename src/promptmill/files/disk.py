"""Private files, replaced as a whole and synced to disk. This module hides the differences between platforms."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import sys
import time
from pathlib import Path
from typing import IO

from promptmill.core.errors import Code, PromptmillError
from promptmill.system.safe_open import make_private

PRIVATE_FOLDER = 0o700
PRIVATE_FILE = 0o600
PUBLIC_FILE = 0o666  # less the permissions that the user's umask removes
_READ_S = 0.5
_PAUSE_S = 0.005
_BINARY = getattr(os, "O_BINARY", 0)
_NETWORK = frozenset(
    {
        *("nfs", "nfs4", "cifs", "smb3", "smbfs", "lustre", "ceph", "gpfs", "beegfs", "afs", "9p"),
        *("virtiofs", "glusterfs"),
    }
)


def created(path: Path, mode: int = PRIVATE_FILE) -> int:
    """Create a file and return its descriptor. Raises `FileExistsError` if a file or a link has this path."""
    return os.open(path, _BINARY | os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)


def sync_file(file: IO[bytes]) -> None:
    """Sync `file` to disk. Its data must have been flushed."""
    os.fsync(file.fileno())


class ForeignError(PermissionError):
    """promptmill expects its own file at a path, but finds a link or another user's file."""

    def __init__(self, path: Path) -> None:
        super().__init__(errno.EACCES, f"{path} is a link or another user's")


def make_private_folder(path: Path) -> None:
    """Make the folder `path`, readable by this user only, and its missing parents.

    Raises `OSError`; `ForeignError` if the path is a link or belongs to another user.
    """
    make_private(path.parent)
    path.mkdir(exist_ok=True, mode=PRIVATE_FOLDER)
    if sys.platform == "win32":
        return
    _check_owner(path)
    with contextlib.suppress(OSError):  # some file systems have no permissions
        path.chmod(PRIVATE_FOLDER)


def check_private_folder(path: Path) -> None:
    """Raise `ForeignError` if the folder or a file in it belongs to another user or is a link.

    If several users can write to the folder, another user could have put such a file there.
    """
    if sys.platform == "win32":
        return
    _check_owner(path)
    with os.scandir(path) as entries:
        for entry in entries:
            try:
                entry_stat = entry.stat(follow_symlinks=False)
            except FileNotFoundError:  # another process has already removed the file
                continue
            if stat.S_ISLNK(entry_stat.st_mode) or entry_stat.st_uid != os.geteuid():
                raise ForeignError(Path(entry.path))


def _check_owner(path: Path) -> None:
    if sys.platform == "win32":
        return
    folder_stat = path.lstat()
    if not stat.S_ISDIR(folder_stat.st_mode) or folder_stat.st_uid != os.geteuid():
        raise ForeignError(path)


def replace(beside: Path, path: Path) -> None:
    """Rename `beside` to `path`. Windows refuses this while another process reads `path`; if so, retry."""
    end = time.monotonic() + _READ_S
    while True:
        try:
            beside.replace(path)
        except PermissionError:
            if sys.platform != "win32" or time.monotonic() > end:
                raise
        else:
            return
        time.sleep(_PAUSE_S)


def sync_path(path: Path) -> None:
    """Sync the file at `path` to disk, even if another process wrote its data."""
    descriptor = os.open(path, _BINARY | (os.O_RDWR if sys.platform == "win32" else os.O_RDONLY))
    try:
        if sys.platform == "linux":
            os.fdatasync(descriptor)
        else:
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def can_share_memory(folder: Path) -> bool:
    """Return whether only processes of this machine see `folder`, that is, whether its file system is local.

    Only Linux reports the file system; on other systems the answer is True.
    """
    if sys.platform != "linux":
        return True
    try:
        mounts = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return True
    longest, kind = "", ""
    for line in mounts:
        place, _, rest = line.partition(" - ")
        point = place.split()[4].encode("utf-8", "surrogateescape").decode("unicode_escape")  # /proc escapes spaces
        if len(point) >= len(longest) and folder.is_relative_to(point):
            longest, kind = point, rest.split()[0]
    return kind not in _NETWORK and not kind.startswith("fuse.")


def sync_folder(path: Path) -> None:
    """Sync the entries of the folder `path` to disk, where the platform supports it."""
    if sys.platform == "win32":
        return
    with contextlib.suppress(OSError):  # some network file systems do not support this
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def unusable(error: OSError, folder: Path | str | None) -> PromptmillError:
    """Return the error of a job whose files cannot be used. If `error` names no file, the message names `folder`."""
    place = f"The job's folder {folder}" if folder else "A file of the job"
    place = f"The job's file {error.filename}" if error.filename else place
    return PromptmillError(Code.STORAGE, f"{place} cannot be used: {why(error)}.")


def why(error: OSError) -> str:
    """Return the reason of `error` as text, without a path."""
    reason = error.strerror or type(error).__name__
    return reason[:1].lower() + reason[1:]
