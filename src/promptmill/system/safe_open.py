"""Open an untrusted path without a race between check and use."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Sequence
from pathlib import Path

_FLAGS = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0) | getattr(os, "O_BINARY", 0)
_LONGEST_PATH = 1024  # macOS's PATH_MAX


class OutsideError(Exception):
    """The file lies outside the allowed roots; existence is not disclosed."""


class NoFileError(Exception):
    """There is something, but no regular file: a folder, a pipe, a device."""


def open_regular(path: Path, roots: Sequence[Path] | None) -> int:
    """Return a descriptor of the regular file that `path` leads to, inside one of `roots` (resolved; None: anywhere).

    Never waits for a pipe's writer. Raises `OutsideError`, `NoFileError`, `OSError`.
    """
    if is_remote(str(path)) and not any(path.is_relative_to(root) for root in roots or ()):
        raise OutsideError
    try:
        resolved = path.resolve()
    except (RuntimeError, ValueError):  # a ring of links, a NUL
        raise FileNotFoundError(path) from None
    if roots is not None and not _inside(resolved, roots):
        raise OutsideError
    if not stat.S_ISREG(resolved.stat().st_mode):  # a device may do something when it is opened
        raise NoFileError
    descriptor = os.open(resolved, _FLAGS)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise NoFileError
        if roots is not None and not _inside(_place_of(descriptor, resolved), roots):
            raise OutsideError
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def make_private(path: Path) -> None:
    """Make the folder `path` and every missing folder above it for this user alone, whatever the umask is.

    A folder that exists is left as it is. Raises `OSError`.
    """
    for folder in reversed((path, *path.parents)):
        if not folder.is_dir():
            folder.mkdir(mode=0o700, exist_ok=True)


def home_expanded(text: str) -> Path:
    """Return the path that `text` names, `~` being the user's home.

    `~name` is a name like any other: what becomes of it would tell which accounts there are.
    """
    return Path(text).expanduser() if text == "~" or text.startswith(("~/", "~\\")) else Path(text)


def is_remote(path: str, platform: str = sys.platform) -> bool:
    r"""Return whether Windows would ask another machine for `path` and prove who the user is: `\\host\share\…`."""
    return platform == "win32" and path[:2].replace("/", "\\") == "\\\\"


def _inside(path: Path, roots: Sequence[Path]) -> bool:
    if any(path.is_relative_to(root) for root in roots):
        return True
    # systems that do not tell capitals from small letters know a folder by several names
    return sys.platform in {"darwin", "win32"} and any(
        _same(above, root) for above in (path, *path.parents) for root in roots
    )


def _same(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except OSError:
        return False


def _place_of(descriptor: int, resolved: Path) -> Path:
    """Return where the open file lies, as the system says; `resolved` is where it was looked for."""
    try:
        if sys.platform == "linux":
            return Path(os.readlink(f"/proc/self/fd/{descriptor}"))  # noqa: PTH115 (a path beside the work)
        if sys.platform == "darwin":
            import fcntl

            found = fcntl.fcntl(descriptor, fcntl.F_GETPATH, bytes(_LONGEST_PATH))
            return Path(os.fsdecode(found.split(b"\0", 1)[0]))
    except OSError:  # no /proc here
        pass
    again = resolved.resolve(strict=True)
    if not os.path.samestat(os.fstat(descriptor), again.stat()):
        raise OutsideError
    return again
