"""Opens an untrusted path without a race between check and use."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from promptmill.core.bounds import LONGEST_PATH

_FLAGS = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0) | getattr(os, "O_BINARY", 0)
CASE_COUNTS = sys.platform not in {"darwin", "win32"}
"""Whether `A` and `a` are different files; otherwise a folder has several spellings."""


class OutsideError(Exception):
    """The file is outside the allowed roots. The error does not reveal whether it exists."""


class NoFileError(Exception):
    """The path exists but is not a regular file: a folder, a pipe, a device."""


def is_file(path: str | Path) -> bool:
    """Return whether `path` is a file. `path` may be any text, such as a long prompt."""
    try:
        return Path(path).is_file()
    except (OSError, ValueError):
        return False


def open_regular(path: Path, roots: Sequence[Path] | None, check: Callable[[Path], None] = lambda _: None) -> int:
    """Return a descriptor of the regular file at `path`, which must be in one of the resolved `roots` if they are set.

    `check` gets the resolved path, and then the open file's path. It raises an error to refuse the file.

    This never waits for a pipe's writer. Raises `OutsideError`, `NoFileError`, `OSError`.
    """
    if is_remote(str(path)) and not any(path.is_relative_to(root) for root in roots or ()):
        raise OutsideError
    if len(str(path)) > LONGEST_PATH:
        raise FileNotFoundError(path)
    try:
        resolved = path.resolve()
    except (RuntimeError, ValueError):  # a cycle of links, or a NUL character
        raise FileNotFoundError(path) from None
    if roots is not None and not is_inside(resolved, roots):
        raise OutsideError
    check(resolved)
    if not stat.S_ISREG(resolved.stat().st_mode):  # never opened, because opening a device may have side effects
        raise NoFileError
    descriptor = os.open(resolved, _FLAGS)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise NoFileError
        if roots is not None:
            place = _place_of(descriptor, resolved)
            if not is_inside(place, roots):
                raise OutsideError
            check(place)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def roots_of(folders: Sequence[str] | None) -> tuple[Path, ...] | None:
    """Return the resolved folders of `allowed_roots`; `~` is the user's home. None if all folders are permitted."""
    return None if folders is None else tuple(home_expanded(folder).resolve() for folder in folders)


def is_inside(path: Path, roots: Sequence[Path]) -> bool:
    """Return whether `path` is in one of `roots`. All of these paths must be resolved."""
    if any(path.is_relative_to(root) for root in roots):
        return True
    return not CASE_COUNTS and any(is_same(above, root) for above in (path, *path.parents) for root in roots)


def real_path(path: Path) -> Path:
    """Return the absolute, resolved path of `path`. A link that leads to itself stays unchanged.

    Before Python 3.13, `Path.resolve` raises `RuntimeError` for such a link. A relative path stays relative if the
    working directory was removed; then it is in no root.
    """
    try:
        return Path(os.path.realpath(path))
    except FileNotFoundError:
        return path


def make_private(path: Path) -> None:
    """Create the folder `path` and its missing parents with access for this user only, whatever the umask.

    Existing folders are not changed. Raises `OSError`.
    """
    for folder in reversed((path, *path.parents)):
        if not folder.is_dir():
            folder.mkdir(mode=0o700, exist_ok=True)


def home_expanded(path: str | Path) -> Path:
    """Return `path` with a leading `~` expanded to the user's home.

    `~name` stays unchanged: expanding it would reveal which accounts exist, and fails for missing accounts.
    """
    text = os.fspath(path)
    return Path(text).expanduser() if text == "~" or text.startswith(("~/", "~\\")) else Path(text)


def is_remote(path: str, platform: str = sys.platform) -> bool:
    r"""Return whether `path` is a UNC path (`\\host\share\…`), which would leak the user's Windows credentials."""
    return platform == "win32" and path[:2].replace("/", "\\") == "\\\\"


def is_same(one: Path, other: Path) -> bool:
    """Return whether both paths lead to the same existing file or folder."""
    try:
        return one.samefile(other)
    except OSError:
        return False


def _place_of(descriptor: int, resolved: Path) -> Path:
    """Return the path of an open file, as the system reports it. `resolved`: the path that was opened."""
    try:
        if sys.platform == "linux":
            return Path(f"/proc/self/fd/{descriptor}").readlink()
        if sys.platform == "darwin":
            import fcntl

            found = fcntl.fcntl(descriptor, fcntl.F_GETPATH, bytes(1024))
            return Path(os.fsdecode(found.split(b"\0", 1)[0]))
    except OSError:  # a system without /proc
        pass
    again = resolved.resolve(strict=True)
    if not os.path.samestat(os.fstat(descriptor), again.stat()):
        raise OutsideError
    return again
