"""Which format a file has, how it is compressed, and which outputs an input can have."""

from __future__ import annotations

import codecs
import gzip
import importlib.util
import io
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import IO, TYPE_CHECKING, Any, cast

from promptmill.backends import rows
from promptmill.backends.batch_lines import is_batch
from promptmill.core.errors import Code, PromptmillError, input_error
from promptmill.system.installation import adding

if TYPE_CHECKING:
    from promptmill.jobs.files.input_files import InputFiles

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
_FIRST_BYTES = 1 << 20
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
_OUTPUTS = MappingProxyType(
    {
        "jsonl": ("jsonl", "json"),
        "batch": ("jsonl",),
        "messages": ("jsonl",),
        **dict.fromkeys(CELLS, ("csv", "tsv", "jsonl", "json")),
        "parquet": ("parquet", "jsonl", "json"),
    }
)


def is_known(path: Path) -> bool:
    """Return whether the file has the suffix of a file of rows."""
    return _plain(path).suffix.lower() in SUFFIXES


def by_suffix(path: Path, role: str) -> str:
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


def of_input(files: InputFiles) -> str:
    """Return `jsonl`, `batch`, `csv`, `tsv`, `txt` or `parquet`, by suffix and first lines.

    Raises `PromptmillError` (`invalid_input`) for another suffix, files of several kinds, and text that is not UTF-8
    throughout.
    """
    kinds = {_as_read(by_suffix(part.path, "input file")): part.path.name for part in files.parts}
    if len(kinds) > 1:
        (one, first), (other, second) = list(kinds.items())[:2]
        raise input_error(f"The input holds both {one} ({first}) and {other} files ({second}); name those of one kind.")
    (kind,) = kinds
    path = files.parts[0].path
    with files.stream() as stream:
        start = stream.read(4)
    if start[:2] in {codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE}:  # as `>` of some shells writes
        raise input_error(f"The input file {path.name} is UTF-16 text; save it as UTF-8.")
    if kind != "parquet" and (found := next((what for sign, what in _SIGNS.items() if start.startswith(sign)), None)):
        raise input_error(f"The input file {path.name} is {found.format(path.name)}.")
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
    with files.stream() as stream:
        for _ in range(_LOOKED_AT):
            try:
                value = rows.load(stream.readline(_FIRST_BYTES).strip(), "")
            except PromptmillError:
                continue
            if isinstance(value, dict):
                yield value


def is_array(path: Path, stream: IO[bytes]) -> bool:
    """Return whether a JSON file, whose beginning is read, is an array of rows; else it has one in each line.

    Raises `PromptmillError` (`invalid_input`) for an object over several lines.
    """
    if by_suffix(path, "input file") not in {"json", "jsonl"}:
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


def of_output(path: Path, input_format: str) -> str:
    """Return the format of the output. Raises `PromptmillError` (`invalid_input`) for one that is not possible."""
    kind = by_suffix(path, "output file")
    if kind not in _OUTPUTS[input_format]:
        possible = " or ".join(f".{kind}" for kind in _OUTPUTS[input_format])
        raise input_error(f"The output of a {input_format} file ends with {possible}, not {_plain(path).suffix}.")
    return "batch" if input_format == "batch" else kind


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
def compression_errors(path: Path) -> Iterator[None]:
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
