"""Private files, replaced whole and brought to the disk; the differences between platforms stay here."""

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
PUBLIC_FILE = 0o666  # before the user's umask
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
    """Return the descriptor of a new file for writing. Raises `FileExistsError` if a file or a link is there."""
    return os.open(path, _BINARY | os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)


def sync_file(file: IO[bytes]) -> None:
    """Wait until the flushed data of `file` is on the disk itself."""
    os.fsync(file.fileno())


class ForeignError(PermissionError):
    """A link or another user's file is in the place of one of promptmill's own."""

    def __init__(self, path: Path) -> None:
        super().__init__(errno.EACCES, f"{path} is a link or another user's")


def make_private_folder(path: Path) -> None:
    """Make folder `path` for this user alone, and the missing folders above it.

    Raises `OSError`; `ForeignError` when a link or another user's file is in its place.
    """
    make_private(path.parent)
    path.mkdir(exist_ok=True, mode=PRIVATE_FOLDER)
    if sys.platform == "win32":
        return
    _check_owner(path)
    with contextlib.suppress(OSError):  # a file system without permissions
        path.chmod(PRIVATE_FOLDER)


def check_private_folder(path: Path) -> None:
    """Raise `ForeignError` when the folder or a file in it is another user's, or a link.

    In a folder that several users can write to, any of them could have put it there.
    """
    if sys.platform == "win32":
        return
    _check_owner(path)
    with os.scandir(path) as entries:
        for entry in entries:
            try:
                entry_stat = entry.stat(follow_symlinks=False)
            except FileNotFoundError:  # it was removed since
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
    """Rename `beside` to `path`. Windows refuses while another process reads the file at `path`: tries again."""
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
    """Wait until the data of the file at `path` is on the disk itself, also if another process wrote it."""
    descriptor = os.open(path, _BINARY | (os.O_RDWR if sys.platform == "win32" else os.O_RDONLY))
    try:
        if sys.platform == "linux":
            os.fdatasync(descriptor)
        else:
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def can_share_memory(folder: Path) -> bool:
    """Return whether only this machine's processes see `folder`: it is on no network file system.

    Only Linux reports it; other systems are assumed to.
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
        point = place.split()[4].encode("utf-8", "surrogateescape").decode("unicode_escape")  # a space is written \\040
        if len(point) >= len(longest) and folder.is_relative_to(point):
            longest, kind = point, rest.split()[0]
    return kind not in _NETWORK and not kind.startswith("fuse.")


def sync_folder(path: Path) -> None:
    """Wait until the names in folder `path` are on the disk itself, where the platform can do that."""
    if sys.platform == "win32":
        return
    with contextlib.suppress(OSError):  # some network file systems cannot
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def unusable(error: OSError, folder: Path | str | None) -> PromptmillError:
    """Return the error of a job whose files cannot be used; its `folder` is named if `error` names no file."""
    place = f"The job's folder {folder}" if folder else "A file of the job"
    place = f"The job's file {error.filename}" if error.filename else place
    return PromptmillError(Code.STORAGE, f"{place} cannot be used: {why(error)}.")


def why(error: OSError) -> str:
    """Return the reason of `error` in words, without a path."""
    reason = error.strerror or type(error).__name__
    return reason[:1].lower() + reason[1:]
