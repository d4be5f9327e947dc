"""Steps that change files of other programs. Each step has a description, which is shown before it runs.

A file is replaced completely or not at all, and a copy of the original is kept next to it.
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
class FileStep:
    """One change: `words` describes it to the user; `act` applies it and may raise `OSError`."""

    words: str
    act: Callable[[], None]


def backup_of(file: Path) -> Path:
    """Return the path of the copy of `file`."""
    return file.with_name(file.name + _SUFFIX)


def keep(file: Path) -> list[FileStep]:
    """Copy `file`, if it exists, to its backup. An existing backup is kept, because it is the original file."""
    if not file.exists() or (copy := backup_of(file)).exists():
        return []
    return [FileStep(f"keep the original as {copy}", lambda: _copy(file, copy))]


def keep_at(copy: Path, file: Path) -> FileStep:
    """Copy `file` to `copy`, replacing an earlier copy. Use it for a file that `put_back` restores as a whole."""
    return FileStep(f"keep the original as {copy}", lambda: _write(copy, file.read_bytes()))


def put_back(file: Path, copy: Path) -> FileStep:
    """Restore `file` from its copy and remove the copy."""

    def act() -> None:
        _write(file, copy.read_bytes())
        copy.unlink()

    return FileStep(f"restore {file}", act)


def write(file: Path, content: bytes, words: str = "") -> FileStep:
    """Replace the content of `file`, and keep its permissions."""
    return FileStep(words or f"write {file}", lambda: _write(file, content))


def make_folder(folder: Path) -> FileStep:
    """Make `folder`, readable by this user only."""
    return FileStep(f"make the folder {folder}", lambda: make_private(folder))


def remove(file: Path) -> FileStep:
    """Remove `file`."""
    return FileStep(f"remove {file}", file.unlink)


def _copy(file: Path, copy: Path) -> None:
    shutil.copy2(file, copy)


def _write(file: Path, content: bytes) -> None:
    file = file.resolve()  # the target of a link is replaced, not the link
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
