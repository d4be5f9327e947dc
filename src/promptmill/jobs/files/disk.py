"""Files as jobs need them: private, read by offset or by lines, replaced whole. Platform differences stay here."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import stat
import sys
import threading
import time
from pathlib import Path
from typing import IO, Any, NamedTuple

from promptmill.system.safe_open import make_private, open_regular

PRIVATE_FOLDER = 0o700
PRIVATE_FILE = 0o600
PUBLIC_FILE = 0o666  # less what the user's umask takes away
LONGEST_LINE = 64 * 1024 * 1024
"""Of a file of rows, in bytes; a cell of a table is no longer either."""
TOO_LONG = "is longer than 64 MiB"
_BLOCK = 128 * 1024
_READ_S = 0.5
_PAUSE_S = 0.005
_BINARY = getattr(os, "O_BINARY", 0)
_NO_LINK = getattr(os, "O_NOFOLLOW", 0)
_NETWORK = frozenset(
    {
        *("nfs", "nfs4", "cifs", "smb3", "smbfs", "lustre", "ceph", "gpfs", "beegfs", "afs", "9p"),
        *("virtiofs", "glusterfs"),
    }
)


class RandomFile:
    """A file read at offsets by any thread."""

    def __init__(self, path: Path) -> None:
        """Open the file at `path`, one of promptmill's own, for reading. Raises `OSError`, for a link as well."""
        self.end: int | None = None
        """The offset at which reading ends, None for the end of the file."""
        self._descriptor = os.open(path, _BINARY | _NO_LINK | os.O_RDONLY)
        self._seeking = threading.Lock()

    @classmethod
    def given(cls, path: Path) -> RandomFile:
        """Open the regular file at `path` for reading, without a link anywhere on its way.

        Raises what `safe_open.open_regular` raises.
        """
        file = cls.__new__(cls)
        file.end = None
        file._descriptor = open_regular(path, (path,))
        file._seeking = threading.Lock()
        return file

    def read_at(self, offset: int, size: int) -> bytes:
        """Return up to `size` bytes from `offset`; fewer at the end."""
        if self.end is not None:
            size = min(size, max(0, self.end - offset))
        if sys.platform != "win32":
            return os.pread(self._descriptor, size, offset)
        with self._seeking:
            os.lseek(self._descriptor, offset, os.SEEK_SET)
            return os.read(self._descriptor, size)

    def stamp(self) -> tuple[int, int]:
        """Return `(size in bytes, time of the last change in ns)`, also when the file was deleted meanwhile."""
        status = os.fstat(self._descriptor)
        return status.st_size, status.st_mtime_ns

    def shared_path(self) -> Path | None:
        """Return a path at which processes of this user find this very file, even deleted or replaced, if there is one.

        It works as long as the file is open here.
        """
        if sys.platform != "linux":
            return None
        path = Path(f"/proc/{os.getpid()}/fd/{self._descriptor}")
        return path if path.exists() else None

    def stream(self) -> io.BufferedReader:
        """Return the content as a file of its own from the beginning, for libraries; closing it closes nothing here."""
        return io.BufferedReader(_Stream(self), 1 << 18)

    def close(self) -> None:
        """Close; a second time does nothing."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)


class _Stream(io.RawIOBase):
    def __init__(self, file: RandomFile) -> None:
        self._file = file
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        end = self._file.stamp()[0] if self._file.end is None else self._file.end
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._at}.get(whence, end)
        self._at = start + offset
        return self._at

    def readinto(self, buffer: Any) -> int:
        data = self._file.read_at(self._at, len(buffer))
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)


class Line(NamedTuple):
    """Line `row` (from 0) without its line feed. `data` is None when it is longer than `LONGEST_LINE`."""

    row: int
    offset: int
    length: int
    data: bytes | None

    @property
    def blank(self) -> bool:
        """Whether it has white space alone: a line, but not a row."""
        return self.data is not None and (not self.length or self.data.isspace())


class LineRange(NamedTuple):
    """Lines of a file: from line `row`, which begins at `offset`, to the `end` of `file`; their number, if known."""

    file: RandomFile
    row: int = 0
    offset: int = 0
    lines: int | None = None


class Lines:
    """Reads the lines of a file from its beginning, or from a known offset. Blocks: call it off the event loop."""

    def __init__(self, file: RandomFile, row: int = 0, offset: int = 0) -> None:
        self._file = file
        self._row = row
        self._offset = offset

    def read(self) -> list[Line]:
        """Return the next lines, about 128 KiB of them and at least one; `[]` at the end."""
        block = self._file.read_at(self._offset, _BLOCK)
        end = block.rfind(b"\n") + 1
        if not end:
            return self._read_long(block) if block else []
        found = []
        row, offset = self._row, self._offset
        for data in block[: end - 1].split(b"\n"):
            length = len(data)
            found.append(Line(row, offset, length, data))
            row += 1
            offset += length + 1
        self._row, self._offset = row, offset
        return found

    def skip(self, rows: int) -> None:
        """Skip `rows` lines."""
        while rows > 0 and (block := self._file.read_at(self._offset, _BLOCK)):
            count = block.count(b"\n")
            if count > rows:
                end = 0
                for _ in range(rows):
                    end = block.index(b"\n", end) + 1
                self._row, self._offset = self._row + rows, self._offset + end
                return
            if not count:
                self._read_long(block)
                rows -= 1
                continue
            self._row += count
            self._offset += block.rfind(b"\n") + 1
            rows -= count

    def _read_long(self, block: bytes) -> list[Line]:
        """Return the line that begins here: it is longer than a block, or the last one."""
        parts: list[bytes] = []
        length = 0
        while block and (stop := block.find(b"\n")) < 0:
            length += len(block)
            if length <= LONGEST_LINE:
                parts.append(block)
            block = self._file.read_at(self._offset + length, _BLOCK * 8)
        if block:
            parts.append(block[:stop])
            length += stop
        line = Line(self._row, self._offset, length, b"".join(parts) if length <= LONGEST_LINE else None)
        self._row += 1
        self._offset += length + bool(block)
        return [line]


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
                found = entry.stat(follow_symlinks=False)
            except FileNotFoundError:  # it was removed since
                continue
            if stat.S_ISLNK(found.st_mode) or found.st_uid != os.geteuid():
                raise ForeignError(Path(entry.path))


def _check_owner(path: Path) -> None:
    if sys.platform == "win32":
        return
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
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
    """Return whether processes of all machines that see `folder` are those of this one: no network file system.

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


def why(error: OSError) -> str:
    """Return the reason of `error` in words, without a path."""
    reason = error.strerror or type(error).__name__
    return reason[:1].lower() + reason[1:]
