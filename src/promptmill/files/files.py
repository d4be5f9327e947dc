"""The files of an input: finds them by path, folder or pattern, and reads them one after the other."""

from __future__ import annotations

import codecs
import glob
import gzip
import hashlib
import io
import itertools
import os
import re
import shutil
import tempfile
import threading
import zlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import IO, Any, Protocol
from urllib.parse import unquote

from promptmill.core.bounds import MOST_RATIO
from promptmill.core.errors import Named, PromptmillError, input_error
from promptmill.core.wording import close_matches
from promptmill.files import path_formats
from promptmill.files.disk import why
from promptmill.files.format_table import database, is_image
from promptmill.files.path_formats import check_installed, compression_of, plain
from promptmill.files.table_paths import file_of, log_of, split
from promptmill.system.runtime import HaltedError
from promptmill.system.safe_open import NoFileError, OutsideError, open_regular, real_path

FILE_COLUMN = "source_file"
_NO_COLUMNS: Mapping[str, str] = MappingProxyType({})
_SURROGATE = re.compile("[\ud800-\udfff]")  # Python's replacement for a byte of a file name that is not UTF-8
_HIDDEN = (".", "~$", "_committed_", "_started_")  # Excel creates `~$…` while a workbook is open
_MARKERS = frozenset(  # markers of Spark, Databricks and Hive
    {
        *("_SUCCESS", "_metadata", "_common_metadata", "_temporary", "_spark_metadata"),
        *("_delta_log", "_change_data", "_symlink_format_manifest"),
    }
)
_COPY = 1 << 20
_BUFFER = 1 << 18
_HARMLESS_BYTES = 1 << 30
_OF_IMAGES = (" For images, write a table with a column of their paths: ", Named("image_column"), ".")


@dataclass(frozen=True, slots=True)
class InputFile:
    """One file of an input."""

    path: Path
    columns: Mapping[str, str] = field(default_factory=dict)
    """Columns that the path adds to each row: `source_file`, and one for a folder such as `year=2025`."""
    member: str = ""
    """The sheet or table to read; `""`: the only one."""
    query: str = ""
    """The database query whose result is the rows; `""` if there is no query."""
    most_rows: int | None = None
    """The maximum number of rows that are read from the query's result; a query may return any number."""

    @property
    def within(self) -> str:
        """The query with its limit of rows; without a query, the sheet or table."""
        return self.member if not self.query else f"{self.query}\n{self.most_rows or ''}".rstrip()


def find(given: Sequence[Path], output: Path) -> list[InputFile]:
    """Return the files for the paths, folders and patterns `given`, in that order. A folder's files are sorted by name.

    A single path that is neither folder nor pattern is returned even if no such file exists. In a folder, files of
    other formats, databases, hidden files and folders, and `output` are left out.

    Raises `PromptmillError` (`invalid_input`) if there is no file.
    """
    for path in given:
        _check_kind(path)
    if len(given) == 1 and not is_several(given[0]):
        path, member = split(given[0])
        return [InputFile(real_path(path), member=member)]
    members_and_columns: list[tuple[Path, Mapping[str, str]]] = []
    for path in given:
        if is_several(path):
            known, is_folder = all_files(path), path.is_dir()
            others = [file for file in known if real_path(file) != output]
            files = (file for file in others if _is_known(file) and not database(file))
            new = [
                (file, _partitions(file.relative_to(path).parts[:-1]) if is_folder else _NO_COLUMNS) for file in files
            ]
        else:
            new = [(path, _NO_COLUMNS)]
        if not new and known and not others:
            raise input_error(f"Only the output {output.name} is at {path}, and it is no input; name other files.")
        if not new and not is_folder and not known:
            raise input_error(f"No file matches {path}: check the folder and the pattern.")
        if not new:
            kinds = ", ".join(path_formats.read_names())
            holds = f"There is no file of rows at {path}; it may hold {kinds} files, images and PDFs."
            raise input_error(holds, *(_OF_IMAGES if _has_images(path) else ()))
        members_and_columns += new
    if wrong := next((path for path, _ in members_and_columns if _SURROGATE.search(str(path))), None):
        shown = os.fsencode(wrong).decode("utf-8", "replace")
        raise input_error(f"{shown} has a name that is not UTF-8; rename it.")
    members = [split(path)[1] for path, _ in members_and_columns]
    paths = [real_path(file_of(path)) for path, _ in members_and_columns]
    common = Path(os.path.commonpath([path.parent for path in paths]))
    return [
        InputFile(path, {FILE_COLUMN: path.relative_to(common).as_posix(), **columns}, member)
        for path, member, (_, columns) in zip(paths, members, members_and_columns, strict=True)
    ]


def _has_images(path: Path) -> bool:
    inside = path.iterdir() if path.is_dir() else _matching(path)
    return any(map(is_image, itertools.islice(inside, 1000)))


def _check_kind(path: Path) -> None:
    """Raise `PromptmillError` (`invalid_input`) for a broken link, a pipe or a saved dataset."""
    if path.is_symlink() and not path.exists():
        raise input_error(f"{path} is a link to {path.readlink()}, which does not exist.")
    if path.is_fifo():
        command = Named("command", "bulk - FILE", ", or pipe them into {}")
        raise input_error(f"{path} is a pipe; write its rows into a file", command, ".")
    if (path / "dataset_dict.json").is_file() or ((path / "state.json").is_file() and any(path.glob("*.arrow"))):
        raise input_error(
            f"{path} is a folder that `save_to_disk` of the library datasets wrote; write rows with "
            '`dataset.to_parquet("rows.parquet")` instead.'
        )


def is_several(path: Path) -> bool:
    """Return whether `path` is a folder or a pattern."""
    return path.is_dir() or (glob.has_magic(str(path)) and not path.exists())


def holds_output(given: Sequence[Path], output: Path) -> bool:
    """Return whether a folder or a pattern in `given` includes the file `output`, which `find` leaves out."""
    if not (output.is_file() and _is_known(output)):
        return False
    target = real_path(output)
    return any(real_path(file) == target for path in given if is_several(path) for file in all_files(path))


def all_files(given: Path) -> list[Path]:
    """Return the files of a path, a folder or a pattern, sorted by name, without hidden files."""
    if not given.is_dir():
        return sorted(filter(_counts, _matching(given) if is_several(given) else [given]))
    inside = []
    for name, folders, files in os.walk(given):
        folders[:] = sorted(folder for folder in folders if not _is_hidden(folder))
        inside += [path for path in (Path(name, file) for file in files) if _counts(path)]
    return sorted(inside)


def _matching(pattern: Path) -> Iterator[Path]:
    return map(Path, glob.iglob(str(pattern), recursive=True))  # noqa: PTH207 (an absolute pattern)


def _counts(path: Path) -> bool:
    """Return whether a file belongs to the input: it is neither hidden nor a marker such as `_SUCCESS`."""
    return not _is_hidden(path.name) and path.is_file()


def _is_hidden(name: str) -> bool:
    """Return whether a name belongs to a hidden file or folder, or to a file that a program adds to its data."""
    return name.startswith(_HIDDEN) or name in _MARKERS


def _partitions(folders: Sequence[str]) -> Mapping[str, str]:
    pairs = (folder.partition("=") for folder in folders if "=" in folder)
    return {unquote(name): unquote(value) for name, _, value in pairs if value != "__HIVE_DEFAULT_PARTITION__"}


class ReadBy(Protocol):
    """The options for reading a text or a table."""

    @property
    def encoding(self) -> str | None:
        """The encoding of the text; None: UTF-8."""
        ...

    @property
    def header_row(self) -> int | None:
        """The line of a file, or the row of a sheet, that holds the header, from 1; None: the first one."""
        ...


class InputFiles:
    """The files of an input, opened one after the other."""

    def __init__(self, parts: Sequence[InputFile], encoding: str | None = None, header_row: int | None = None) -> None:
        """`encoding`, `header_row`: see `ReadBy`. Raises `OSError`, `NoFileError`, `OutsideError`."""
        self.parts = tuple(parts)
        self.encoding, self.header_row = encoding, header_row
        self.without: Collection[str] = ()
        """The columns of a workbook to omit: the job's own columns."""
        for part in parts[:1]:
            os.close(open_regular(part.path, (part.path,)))
        for part in parts[1:]:
            part.path.stat()

    @property
    def is_plain(self) -> bool:
        """Whether the rows are read unchanged from disk: the input is a single uncompressed file in UTF-8."""
        is_utf8 = self.encoding is None or codecs.lookup(self.encoding).name == "utf-8"
        return len(self.parts) == 1 and is_utf8 and not compression_of(self.parts[0].path)

    def stamp(self) -> tuple[int, int]:
        """Return `(size in bytes, version)`. The version is the time of the file's last change in ns; for several files
        or a table, it is a digest."""
        call = [path.stat() for part in self.parts for path in _with_log(part.path)]
        if len(call) == 1 and not self.parts[0].within:
            return call[0].st_size, call[0].st_mtime_ns
        names = [(part.within, dict(part.columns)) for part in self.parts]
        seen = repr([names, *((stat.st_size, stat.st_mtime_ns) for stat in call)]).encode()
        return sum(stat.st_size for stat in call), int.from_bytes(hashlib.blake2b(seen, digest_size=7).digest())

    def sha256(self, halt: threading.Event | None = None) -> str:
        """Return the digest of the content and of the columns that paths add. Blocks for about 1 s per gigabyte.

        Raises `OSError`, `HaltedError`.
        """
        digest = hashlib.sha256()
        for part in self.parts:
            if part.columns or part.within:
                digest.update(repr((part.within, dict(part.columns))).encode())
            for path in _with_log(part.path):
                with self._opened(path) as file:
                    while block := file.read(_COPY):
                        digest.update(block)
                        if halt is not None and halt.is_set():
                            raise HaltedError
        return digest.hexdigest()

    @contextmanager
    def stream(self, at: int = 0, *, seekable: bool = False) -> Iterator[IO[bytes]]:
        """Open the decompressed content of file number `at`. `seekable`: whether the stream must be able to seek."""
        part = self.parts[at]
        kind = compression_of(part.path)
        with self._opened(part.path) as file:
            if not kind:
                yield file
                return
            with _compression_errors(part.path):
                stream = decompressed(file, kind)
                if not seekable:
                    yield stream
                    return
                with tempfile.TemporaryFile() as copy:
                    while block := stream.read(_COPY):
                        copy.write(block)
                    copy.seek(0)
                    yield copy

    @contextmanager
    def local(self, at: int = 0) -> Iterator[Path]:
        """Yield the path of file number `at`; for a compressed file, the path of its decompressed content."""
        path = self.parts[at].path
        with self.stream(at) as stream:
            if not compression_of(path):
                yield path
                return
            with tempfile.TemporaryDirectory() as folder:
                copy = Path(folder, plain(path).name)
                with copy.open("wb") as out:
                    shutil.copyfileobj(stream, out, _COPY)
                yield copy

    @staticmethod
    def _opened(path: Path) -> IO[bytes]:
        """Open a file. Raises `OSError` if a part of its path is a link."""
        return os.fdopen(open_regular(path, (path,)), "rb", _BUFFER)


def _with_log(path: Path) -> list[Path]:
    """Return a file and, if the file has a log that is not empty, the log."""
    log = log_of(path)
    return [path, log] if log is not None and log.is_file() and log.stat().st_size else [path]


def opened(parts: Sequence[InputFile], *, known: bool = False, reading: ReadBy | None = None) -> InputFiles:
    """Return the files of an input. `known`: whether the job has read them in an earlier run.

    Raises `PromptmillError` (`invalid_input`, `missing_dependency`).
    """
    source = parts[0].path
    check_installed(*(part.path for part in parts))
    try:
        files = InputFiles(parts) if reading is None else InputFiles(parts, reading.encoding, reading.header_row)
        found = path_formats.reading(source)
        if files.encoding is None and found is not None and found.rows == "texts" and _is_utf_16(files):
            files.encoding = "utf-16"  # proved by the byte-order mark
        return files
    except (NoFileError, OutsideError):  # `OutsideError`: the path has just become a link
        raise input_error(f"{source} is not a regular file.") from None
    except FileNotFoundError as error:
        gone = "The answers so far are kept; put it back and run the job again." if known else "Check the path."
        raise missing(Path(error.filename or source), gone) from None
    except OSError as error:
        raise input_error(f"{source} cannot be read: {why(error)}.") from None


def _is_utf_16(files: InputFiles) -> bool:
    with files.stream() as stream:
        return stream.read(2) in {codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE}


def missing(file: Path, remedy: str = "Check the path.") -> PromptmillError:
    """Return the error for a missing input file. It suggests a file with a similar name; if there is none, `remedy`."""
    with suppress(OSError):
        known = sorted(filter(_is_known, file.parent.iterdir()), key=lambda path: path.suffix == file.suffix)
        names = {path.stem: path.name for path in known}  # stems only: equal suffixes do not make names similar
        if near := close_matches(file.stem, names, n=1):
            remedy = f"Did you mean {file.with_name(names[near[0]])}?"
    return input_error(f"There is no input file {file}. {remedy}")


def _is_known(path: Path) -> bool:
    return path_formats.reading(path) is not None


def decompressed(stream: IO[bytes], kind: str) -> IO[bytes]:
    """Return the decompressed content of `stream`, with several members (gzip) or frames (zstd) joined.

    Reading may raise the error of `check_ratio`.
    """
    if kind == "gz":
        return io.BufferedReader(_Readable(stream, gzip.GzipFile(fileobj=stream, mode="rb")))
    import pyarrow as pa

    return io.BufferedReader(_Readable(stream, pa.CompressedInputStream(pa.PythonFile(stream, "r"), "zstd")))


def check_ratio(size: int, compressed_size: int) -> None:
    """Raise `PromptmillError` (`invalid_input`) for a decompression bomb: content over 200 times its compressed
    size."""
    if size > _HARMLESS_BYTES and size > MOST_RATIO * compressed_size:
        raise input_error(
            f"The input decompresses to more than {MOST_RATIO} times its size, which files of rows do not; decompress "
            "it yourself if you trust it."
        )


@contextmanager
def _compression_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise _broken(path, error) from None
    except OSError as error:
        if error.errno is None:  # an error of pyarrow; errors of the disk have a number
            raise _broken(path, error) from None
        raise


def _broken(path: Path, error: Exception) -> PromptmillError:
    return input_error(f"{path.name} is not a whole {path.suffix} file: {str(error).splitlines()[0]:.200}.")


class _Readable(io.RawIOBase):
    """Reads `stream`, which decompresses `packed`, and checks the compression ratio."""

    def __init__(self, packed: IO[bytes], stream: Any) -> None:
        self._packed, self._stream, self._size = packed, stream, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._stream.read(len(buffer))
        buffer[: len(data)] = data
        self._size += len(data)
        check_ratio(self._size, self._packed.tell())
        return len(data)
