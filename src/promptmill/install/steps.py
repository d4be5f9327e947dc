"""Installation steps on other programs' files; each can say what it will do before doing it.

A file is changed whole or not at all, and what it held before is kept beside it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

_SUFFIX = ".before-promptmill"


@dataclass(frozen=True, slots=True)
class Step:
    """One change: `words` for people, `act` does it and may raise `OSError`."""

    words: str
    act: Callable[[], None]


def backup_of(file: Path) -> Path:
    """Return where a copy of `file` is kept."""
    return file.with_name(file.name + _SUFFIX)


def keep(file: Path) -> list[Step]:
    """Copy `file`, if there is one, beside itself. The first copy stays: it is what was there before promptmill."""
    return [keep_latest(file)] if file.exists() and not backup_of(file).exists() else []


def keep_latest(file: Path) -> Step:
    """Copy `file` beside itself, over an earlier copy: for a file that `put_back` restores whole."""
    copy = backup_of(file)
    return Step(f"keep what was there as {copy}", lambda: _copy(file, copy))


def put_back(file: Path) -> Step:
    """Make `file` what it was when it was kept; the copy goes."""
    return Step(f"put back {file}", lambda: _rename(backup_of(file), file))


def write(file: Path, content: bytes, *, like: Path | None = None) -> Step:
    """Make `content` what `file` holds; its permissions stay, those of a new file are the ones of `like`."""
    return Step(f"write {file}", lambda: _write(file, content, like))


def remove(file: Path) -> Step:
    """Remove `file`."""
    return Step(f"remove {file}", file.unlink)


def _copy(file: Path, copy: Path) -> None:
    shutil.copy2(file, copy)


def _rename(old: Path, new: Path) -> None:
    old.replace(new)


def _write(file: Path, content: bytes, like: Path | None) -> None:
    file = file.resolve()  # the file that a link leads to, not the link
    file.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=file.parent, prefix=file.name, suffix=".part")
    part = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        if file.exists():
            shutil.copymode(file, part)
        elif like is not None:
            shutil.copymode(like, part)
        part.replace(file)
    except BaseException:
        with contextlib.suppress(OSError):
            part.unlink()
        raise
