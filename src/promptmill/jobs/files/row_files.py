"""Files of rows: those of an input, read as one, and the formats and compression of inputs and outputs."""

from __future__ import annotations

import codecs
import glob
import gzip
import hashlib
import importlib.util
import io
import itertools
import os
import re
import tempfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import IO, Any, cast
from urllib.parse import unquote

from promptmill.backends import rows
from promptmill.backends.batch_lines import is_batch
from promptmill.core.errors import Code, Named, PromptmillError, input_error
from promptmill.core.wording import close_matches
from promptmill.jobs.files.disk import RandomFile, why
from promptmill.system.installation import adding
from promptmill.system.safe_open import NoFileError, OutsideError, real_path

FILE_COLUMN = "source_file"
_NO_COLUMNS: Mapping[str, str] = MappingProxyType({})
_COPY = 1 << 20
SUFFIXES = MappingProxyType(
    {
        ".jsonl": "jsonl",
        ".ndjson": "jsonl",
        ".json": "json",
        ".txt": "txt",
        ".csv": "csv",
        ".tsv": "tsv",
        ".parquet": "parquet",
    }
)
"""Each may be followed by one of `COMPRESSED`."""
COMPRESSED = MappingProxyType({".gz": "gz", ".zst": "zst"})
LINES = frozenset({"jsonl", "batch", "messages"})
"""Formats of an input whose rows are lines of JSON."""
CELLS = frozenset({"csv", "tsv", "txt"})
TABLES = CELLS | {"parquet"}
_LOOKED_AT = 100  # lines
_FIRST_BYTES, _FIRST_BYTES_OF_ALL = 1 << 20, 4 << 20
_LIST_OF_ROWS = re.compile(rb'\s*"([\w-]{1,40})"\s*:\s*\[\s*\{')
_HARMLESS_BYTES = 1 << 30
_MOST_RATIO = 200  # rows that differ in a number alone have a ratio of about 100
_LEVEL = 6  # gzip's own default; Python's is 9, three times slower for one percent
# First bytes of other files that are named like a text file.
_SIGNS = MappingProxyType(
    {
        b"\x1f\x8b": "compressed with gzip; name it {}.gz",
        b"\x28\xb5\x2f\xfd": "compressed with zstd; name it {}.zst",
        b"PK\x03\x04": "a ZIP archive or a spreadsheet such as .xlsx; unpack it, or save its sheet as CSV",
        b"PAR1": "a Parquet file; give it the suffix .parquet",
    }
)
_SHEETS = frozenset({".xlsx", ".xls", ".ods", ".xlsm"})
_OUTPUTS = ("jsonl", "json", "csv", "tsv", "parquet")
_OF_IMAGES = (" For images, write a table with a column of their paths: ", Named("image_column"), ".")
_MOST_LOOKED_AT = 1000
IMAGES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff")
"""The suffixes of images."""


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
            holds = f"There is no file of rows at {path}; it may hold {', '.join(SUFFIXES)} files."
            raise input_error(holds, *(_OF_IMAGES if _has_images(path) else ()))
        found += new
    paths = [real_path(path) for path, _ in found]
    common = Path(os.path.commonpath([path.parent for path in paths]))
    return [
        Part(path, {FILE_COLUMN: path.relative_to(common).as_posix(), **columns})
        for path, (_, columns) in zip(paths, found, strict=True)
    ]


def _has_images(path: Path) -> bool:
    """Return whether a folder or a pattern finds an image among its first files."""
    found = path.iterdir() if path.is_dir() else map(Path, glob.iglob(str(path), recursive=True))  # noqa: PTH207 (an absolute one)
    return any(one.name.lower().endswith(IMAGES) for one in itertools.islice(found, _MOST_LOOKED_AT))


def _check_kind(path: Path) -> None:
    """Raise `PromptmillError` (`invalid_input`) for a path that is often given by mistake for a file of rows."""
    if path.is_symlink() and not path.exists():
        raise input_error(f"{path} is a link to {path.readlink()}, which does not exist.")
    if path.is_fifo():
        raise input_error(f"{path} is a pipe; `-` in its place reads rows from standard input: … | promptmill bulk -")
    if (path / "dataset_dict.json").is_file() or ((path / "state.json").is_file() and any(path.glob("*.arrow"))):
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
        folders[:] = sorted(one for one in folders if not one.startswith((".", "_")))
        found += [path for path in (Path(name, file) for file in files) if _counts(path, output)]
    return sorted(found)


def _counts(path: Path, output: Path) -> bool:
    """Return whether a file of a folder belongs to the input: writers add `_SUCCESS` and hidden files."""
    if path.name.startswith((".", "_")) or not _is_known(path) or not path.is_file():
        return False
    return real_path(path) != output


def _partitions(folders: Sequence[str]) -> Mapping[str, str]:
    pairs = (folder.partition("=") for folder in folders if "=" in folder)
    return {unquote(name): unquote(value) for name, _, value in pairs if value != "__HIVE_DEFAULT_PARTITION__"}


class InputFiles:
    """Files that are open for reading by any thread; several are read as one, in their order."""

    def __init__(self, parts: Sequence[Part], encoding: str | None = None) -> None:
        """Open them; `encoding` is that of their text, None for UTF-8. Raises what `RandomFile.given` raises."""
        self.parts = tuple(parts)
        self.encoding = encoding
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
        kind = compression_of(part.path)
        if not kind:
            yield stream
            return
        with _compression_errors(part.path):
            stream = decompressed(stream, kind)
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
        return None if compression_of(self.parts[at].path) else self._opened(at).shared_path()

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


def opened(parts: Sequence[Part], *, known: bool, encoding: str | None = None) -> InputFiles:
    """Open the files of the input; `known`: an earlier run of the job read them. Raises `PromptmillError`."""
    source = parts[0].path
    try:
        return InputFiles(parts, encoding)
    except (NoFileError, OutsideError):  # outside: the path has just become a link
        raise input_error(f"{source} is not a regular file.") from None
    except FileNotFoundError as error:
        missing = Path(error.filename or source)
        gone = "The answers so far are kept; put it back and run the job again." if known else "Check the path."
        raise input_error(f"There is no input file {missing}. {_nearest(missing) or gone}") from None
    except OSError as error:
        raise input_error(f"{source} cannot be read: {why(error)}.") from None


def _nearest(missing: Path) -> str:
    """Return a hint with the file of rows whose name is nearest to that of a missing one."""
    with suppress(OSError):
        names = [path.name for path in missing.parent.iterdir() if _is_known(path)]
        if near := close_matches(missing.name, names, n=1):
            return f"Did you mean {missing.with_name(near[0])}?"
    return ""


def _is_known(path: Path) -> bool:
    """Return whether the file has the suffix of a file of rows."""
    return _plain(path).suffix.lower() in SUFFIXES


def format_by_suffix(path: Path, role: str) -> str:
    """Return the format by the suffix. Raises `PromptmillError` (`invalid_input`) for an unknown suffix."""
    suffix = _plain(path).suffix
    kind = SUFFIXES.get(suffix.lower())
    if kind is None:
        if suffix.lower() in _SHEETS and role.startswith("output"):
            named = path.with_suffix(".csv").name
            raise input_error(f"Spreadsheets are not written: name the {role} {named}, which every spreadsheet opens.")
        if suffix.lower() in _SHEETS:
            raise input_error(f"The {role} {path.name} is a spreadsheet; save it as CSV (or .tsv, .parquet, .jsonl).")
        found = f"ends with {suffix!r:.20}" if suffix else "has no suffix"
        raise input_error(
            f"The {role} {path.name} {found}; use one of {', '.join(SUFFIXES)}, with .gz or .zst behind it or not."
        )
    return kind


def compression_of(path: Path) -> str:
    """Return `gz`, `zst`, or `""` for a file that is not compressed."""
    return COMPRESSED.get(path.suffix.lower(), "")


def _plain(path: Path) -> Path:
    return path.with_suffix("") if compression_of(path) else path


def format_of_input(files: InputFiles) -> str:
    """Return `jsonl`, `batch`, `csv`, `tsv`, `txt` or `parquet`, by suffix and first lines.

    Raises `PromptmillError` (`invalid_input`) for another suffix, files of several kinds, and text that is not UTF-8
    throughout.
    """
    kinds = {_as_read(format_by_suffix(part.path, "input file")): part.path.name for part in files.parts}
    if len(kinds) > 1:
        (one, first), (other, second) = list(kinds.items())[:2]
        raise input_error(f"The input holds both {one} ({first}) and {other} files ({second}); name those of one kind.")
    (kind,) = kinds
    path = files.parts[0].path
    with files.stream() as stream:
        start = stream.read(4)
    if files.encoding is not None and kind not in CELLS:
        raise input_error(Named("encoding"), f" goes with {', '.join(sorted(CELLS))} files; {kind} has its own.")
    if files.encoding is None and start[:2] in {
        codecs.BOM_UTF16_LE,
        codecs.BOM_UTF16_BE,
    }:  # as `>` of some shells writes
        raise input_error(f"The input file {path.name} is UTF-16 text; save it as UTF-8.")
    if kind != "parquet" and (found := next((what for sign, what in _SIGNS.items() if start.startswith(sign)), None)):
        once_more = found.startswith("compressed") and compression_of(path)
        what = "compressed twice; decompress it once" if once_more else found.format(path.name)
        raise input_error(f"The input file {path.name} is {what}.")
    return "batch" if kind == "jsonl" and _is_batch(files) else kind


def _as_read(kind: str) -> str:
    return "jsonl" if kind == "json" else kind


def _is_batch(files: InputFiles) -> bool:
    with files.stream() as stream:
        if is_array(files.parts[0].path, stream):
            return False
    first = next(first_objects(files), None)
    return first is not None and is_batch(first)


def first_objects(files: InputFiles) -> Iterator[dict[str, Any]]:
    """Yield the objects in the first lines; unreadable lines are left out."""
    size = 0
    with files.stream() as stream:
        for _ in range(_LOOKED_AT):
            line = stream.readline(_FIRST_BYTES)
            size += len(line)
            if size > _FIRST_BYTES_OF_ALL:
                return
            try:
                value = rows.load(line.strip(), "")
            except PromptmillError:
                continue
            if isinstance(value, dict):
                yield value


def is_array(path: Path, stream: IO[bytes]) -> bool:
    """Return whether a JSON file, whose beginning is read, is an array of rows; else it has one in each line.

    Raises `PromptmillError` (`invalid_input`) for an object over several lines.
    """
    if format_by_suffix(path, "input file") not in {"json", "jsonl"}:
        return False
    first = stream.readline(_FIRST_BYTES).removeprefix(rows.BOM)
    while first and not first.strip():
        first = stream.readline(_FIRST_BYTES)
    if first.strip() == b"{":
        if found := _LIST_OF_ROWS.match(stream.readline(_FIRST_BYTES) + stream.readline(_FIRST_BYTES)):
            raise input_error(f"{path.name} holds one JSON object; save the list in {found[1].decode()!r} alone.")
        raise input_error(f"{path.name} holds one JSON object; write an array of rows, or one object per line.")
    return first.lstrip().startswith(b"[")


def is_read_directly(files: InputFiles, input_format: str) -> bool:
    """Return whether the input's own lines are the rows, so that they need not be written out first."""
    if input_format not in LINES or len(files.parts) > 1 or compression_of(files.parts[0].path):
        return False
    with files.stream() as stream:
        return not is_array(files.parts[0].path, stream)


def format_of_output(path: Path, input_format: str) -> str:
    """Return the format of the output. Raises `PromptmillError` (`invalid_input`) for one that is not possible."""
    kind = format_by_suffix(path, "output file")
    if kind not in _OUTPUTS:
        possible = ", ".join(f".{kind}" for kind in _OUTPUTS)
        raise input_error(f"An output ends with {possible}, not {_plain(path).suffix}: a row has several columns.")
    return "batch" if input_format == "batch" and kind == "jsonl" else kind


def row_kind(input_format: str) -> str:
    """Return the kind that `rows.RowReader` reads the rows of this format as."""
    return input_format if input_format in LINES else "table"


def check_installed(*paths: Path) -> None:
    """Raise `PromptmillError` (`missing_dependency`) when some of `paths` cannot be read or written here."""
    for path in paths:
        needed = next((suffix for suffix in (".parquet", ".zst") if suffix in path.name.lower()), None)
        if needed is not None and importlib.util.find_spec("pyarrow") is None:
            name = "Parquet" if needed == ".parquet" else needed
            raise PromptmillError(Code.MISSING_DEPENDENCY, f"{name} files need pyarrow.", adding("files"))


def decompressed(stream: IO[bytes], kind: str) -> IO[bytes]:
    """Return the decompressed content of `stream`; several members or frames count as one.

    Reading raises `PromptmillError` (`invalid_input`) when the content is too large for its compressed size.
    """
    if kind == "gz":
        return io.BufferedReader(_Readable(stream, gzip.GzipFile(fileobj=stream, mode="rb")))
    import pyarrow as pa

    return io.BufferedReader(_Readable(stream, pa.CompressedInputStream(pa.PythonFile(stream, "r"), "zstd")))


def check_ratio(size: int, compressed_size: int) -> None:
    """Raise `PromptmillError` (`invalid_input`) if the content is so large for its compressed size as in an attack."""
    if size > _HARMLESS_BYTES and size > _MOST_RATIO * compressed_size:
        raise input_error(
            f"The input decompresses to more than {_MOST_RATIO} times its size, which files of rows do not; decompress "
            "it yourself if you trust it."
        )


@contextmanager
def compressed(out: IO[bytes], kind: str) -> Iterator[IO[bytes]]:
    """Give a file whose content is written to `out`, compressed as `kind` says; `out` stays open.

    Equal content gives equal bytes. `""` gives `out` itself.
    """
    if not kind:
        yield out
    elif kind == "gz":
        with gzip.GzipFile("", "wb", _LEVEL, out, mtime=0) as packed:
            yield cast("IO[bytes]", packed)
    else:
        import pyarrow as pa

        with pa.CompressedOutputStream(pa.PythonFile(_Unclosed(out), "w"), "zstd") as packed:
            yield packed


@contextmanager
def _compression_errors(path: Path) -> Iterator[None]:
    """Turn errors of a damaged compressed file into a `PromptmillError` (`invalid_input`) that names it."""
    try:
        yield
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise _broken(path, error) from None
    except OSError as error:
        if error.errno is None:  # pyarrow's; those of the disk have a number
            raise _broken(path, error) from None
        raise


def _broken(path: Path, error: Exception) -> PromptmillError:
    return input_error(f"{path.name} is not a whole {path.suffix} file: {str(error).splitlines()[0]:.200}.")


class _Readable(io.RawIOBase):
    """A decompressing `stream` over the file `packed`, as a Python file whose size is checked."""

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


class _Unclosed:
    """A file that `close` leaves open."""

    closed = False

    def __init__(self, out: IO[bytes]) -> None:
        self._out = out

    def write(self, data: Any) -> int:
        return self._out.write(data)

    def flush(self) -> None:
        self._out.flush()

    def tell(self) -> int:
        return self._out.tell()

    def close(self) -> None:
        """Leave it open."""
