"""The files that a job reads: one, or several as one, found by a folder, a pattern or their names."""

from __future__ import annotations

import glob
import hashlib
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import IO
from urllib.parse import unquote

from promptmill.core.errors import input_error
from promptmill.jobs.files import formats
from promptmill.jobs.files.disk import RandomFile, why
from promptmill.system.safe_open import NoFileError, OutsideError, real_path

FILE_COLUMN = "source_file"
_NO_COLUMNS: Mapping[str, str] = MappingProxyType({})
_COPY = 1 << 20


@dataclass(frozen=True, slots=True)
class Part:
    """One file."""

    path: Path
    columns: Mapping[str, str] = field(default_factory=dict)
    """Columns that its path adds to its rows: `source_file`, and folders such as `year=2025`."""


def find(given: Sequence[Path], output: Path) -> list[Part]:
    """Return the files of the paths, folders and patterns `given`, in their order; those of a folder by name.

    A single path of a file is that file, whether it exists or not. In a folder, files of other kinds, hidden ones,
    `output` and the folders of jobs are left out. Raises `PromptmillError` (`invalid_input`) when there is none.
    """
    for path in given:
        _check_kind(path)
    if len(given) == 1 and not is_several(given[0]):
        return [Part(real_path(given[0]))]
    found: list[tuple[Path, Mapping[str, str]]] = []
    for path in given:
        if path.is_dir():
            new = [(file, _partitions(file.relative_to(path).parts[:-1])) for file in _inside(path, output)]
        elif is_several(path):
            matched = sorted(Path(name) for name in glob.glob(str(path), recursive=True))  # noqa: PTH207 (an absolute one)
            new = [(file, _NO_COLUMNS) for file in matched if _counts(file, output)]
        else:
            new = [(path, _NO_COLUMNS)]
        if not new:
            raise input_error(f"There is no file of rows at {path}; it may hold {', '.join(formats.SUFFIXES)} files.")
        found += new
    paths = [real_path(path) for path, _ in found]
    common = Path(os.path.commonpath([path.parent for path in paths]))
    return [
        Part(path, {FILE_COLUMN: path.relative_to(common).as_posix(), **columns})
        for path, (_, columns) in zip(paths, found, strict=True)
    ]


def _check_kind(path: Path) -> None:
    """Raise `PromptmillError` (`invalid_input`) for a path that is often given by mistake for a file of rows."""
    if path.is_symlink() and not path.exists():
        raise input_error(f"{path} is a link to {path.readlink()}, which does not exist.")
    if path.is_fifo():
        raise input_error(f"{path} is a pipe; `-` in its place reads rows from standard input: … | promptmill bulk -")
    if (path / "state.json").is_file() and any(path.glob("*.arrow")):
        raise input_error(
            f"{path} is a folder that `save_to_disk` of the library datasets wrote; write rows with "
            '`dataset.to_parquet("rows.parquet")` instead.'
        )


def is_several(path: Path) -> bool:
    """Return whether `path` is a folder or a pattern."""
    return path.is_dir() or (glob.has_magic(str(path)) and not path.exists())


def _inside(folder: Path, output: Path) -> list[Path]:
    found = []
    for name, folders, files in os.walk(folder):
        folders[:] = sorted(
            one for one in folders if not one.startswith((".", "_")) and not one.endswith(".promptmill")
        )
        found += [path for path in (Path(name, file) for file in files) if _counts(path, output)]
    return sorted(found)


def _counts(path: Path, output: Path) -> bool:
    """Return whether a file of a folder belongs to the input: writers add `_SUCCESS` and hidden files."""
    if path.name.startswith((".", "_")) or not formats.is_known(path) or not path.is_file():
        return False
    return real_path(path) != output


def _partitions(folders: Sequence[str]) -> Mapping[str, str]:
    pairs = (folder.partition("=") for folder in folders if "=" in folder)
    return {unquote(name): unquote(value) for name, _, value in pairs if value != "__HIVE_DEFAULT_PARTITION__"}


class InputFiles:
    """Files that are open for reading by any thread; several are read as one, in their order."""

    def __init__(self, parts: Sequence[Part]) -> None:
        """Open them. Raises what `RandomFile.given` raises."""
        self.parts = tuple(parts)
        self._current = (0, RandomFile.given(parts[0].path))  # of many, one is kept open
        self._sizes = [self._current[1].stamp()[0]] if len(parts) == 1 else [stat.st_size for stat in self._stats()]

    @property
    def first(self) -> RandomFile:
        """The only file of an input that has one."""
        assert len(self.parts) == 1
        return self._current[1]

    @property
    def end(self) -> int | None:
        """The offset at which reading ends, None for the end of the file; for an input of one file."""
        return self._current[1].end if len(self.parts) == 1 else None

    @end.setter
    def end(self, end: int) -> None:
        self.first.end = end

    def stamp(self) -> tuple[int, int]:
        """Return `(size in bytes, version)`: for one file, the version is the time of its last change in ns."""
        if len(self.parts) == 1:
            return self.first.stamp()
        stats = self._stats()
        seen = repr([(stat.st_size, stat.st_mtime_ns) for stat in stats]).encode()
        digest = int.from_bytes(hashlib.blake2b(seen, digest_size=7).digest())
        return sum(stat.st_size for stat in stats), digest

    def read_at(self, offset: int, size: int) -> bytes:
        """Return up to `size` bytes from `offset` of all files together; fewer at the end of one."""
        if len(self.parts) == 1:
            return self.first.read_at(offset, size)
        for at, length in enumerate(self._sizes):
            if offset < length:
                return self._opened(at).read_at(offset, min(size, length - offset))
            offset -= length
        return b""

    @contextmanager
    def stream(self, at: int = 0, *, seekable: bool = False) -> Iterator[IO[bytes]]:
        """Give the decompressed content of one file; `seekable` for a reader that seeks."""
        part = self.parts[at]
        stream: IO[bytes] = self._opened(at).stream()
        kind = formats.compression_of(part.path)
        if not kind:
            yield stream
            return
        with formats.compression_errors(part.path):
            stream = formats.decompressed(stream, kind)
            if not seekable:
                yield stream
                return
            with tempfile.TemporaryFile() as copy:
                while block := stream.read(_COPY):
                    copy.write(block)
                copy.seek(0)
                yield copy

    def shared_path(self, at: int = 0) -> Path | None:
        """Return a path at which libraries find that very file while its stream is open; None if there is none."""
        return None if formats.compression_of(self.parts[at].path) else self._opened(at).shared_path()

    def close(self) -> None:
        """Close; a second time does nothing."""
        self._current[1].close()

    def _opened(self, at: int) -> RandomFile:
        if self._current[0] != at:
            file = RandomFile.given(self.parts[at].path)
            self._current[1].close()
            self._current = (at, file)
        return self._current[1]

    def _stats(self) -> list[os.stat_result]:
        return [part.path.stat() for part in self.parts]


def opened(parts: Sequence[Part], *, known: bool) -> InputFiles:
    """Open the files of the input; `known`: an earlier run of the job read them. Raises `PromptmillError`."""
    source = parts[0].path
    try:
        return InputFiles(parts)
    except (NoFileError, OutsideError):  # outside: the path has just become a link
        raise input_error(f"{source} is not a regular file.") from None
    except FileNotFoundError as error:
        gone = "The answers so far are kept; put it back and run the job again." if known else "Check the path."
        raise input_error(f"There is no input file {error.filename or source}. {gone}") from None
    except OSError as error:
        raise input_error(f"{source} cannot be read: {why(error)}.") from None
