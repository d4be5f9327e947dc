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

from promptmill.system.safe_open import make_private

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
    if not file.exists() or (copy := backup_of(file)).exists():
        return []
    return [Step(f"keep what was there as {copy}", lambda: _copy(file, copy))]


def keep_at(copy: Path, file: Path) -> Step:
    """Copy `file` to `copy`, over an earlier copy: for a file that `put_back` restores whole."""
    return Step(f"keep what was there as {copy}", lambda: _write(copy, file.read_bytes()))


def put_back(file: Path, copy: Path) -> Step:
    """Make `file` what it was when it was kept; the copy goes."""

    def act() -> None:
        _write(file, copy.read_bytes())
        copy.unlink()

    return Step(f"put back {file}", act)


def write(file: Path, content: bytes, words: str = "") -> Step:
    """Make `content` what `file` holds; its permissions stay."""
    return Step(words or f"write {file}", lambda: _write(file, content))


def remove(file: Path) -> Step:
    """Remove `file`."""
    return Step(f"remove {file}", file.unlink)


def _copy(file: Path, copy: Path) -> None:
    shutil.copy2(file, copy)


def _write(file: Path, content: bytes) -> None:
    file = file.resolve()  # the file that a link leads to, not the link
    make_private(file.parent)
    descriptor, name = tempfile.mkstemp(dir=file.parent, prefix=file.name, suffix=".part")
    part = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        if file.exists():
            shutil.copymode(file, part)
        part.replace(file)
    except BaseException:
        with contextlib.suppress(OSError):
            part.unlink()
        raise
