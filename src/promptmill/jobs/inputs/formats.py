"""Formats of inputs and outputs, by suffix and first lines, and their compression."""

from __future__ import annotations

import gzip
import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import IO, Any, cast

from promptmill.core.errors import Code, PromptmillError, input_error
from promptmill.system.installation import adding

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
_LEVEL = 6  # gzip's own default; Python's is 9, three times slower for one percent
_SHEETS = frozenset({".xlsx", ".xls", ".ods", ".xlsm"})
_OUTPUTS = ("jsonl", "json", "csv", "tsv", "parquet")


def format_by_suffix(path: Path, role: str) -> str:
    """Return the format by the suffix. Raises `PromptmillError` (`invalid_input`) for an unknown suffix.

    >>> format_by_suffix(Path("Labels.CSV.gz"), "output file")
    'csv'
    """
    suffix = plain(path).suffix
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
    """Return `gz`, `zst`, or `""` for a file that is not compressed.

    >>> compression_of(Path("answers.jsonl.gz"))
    'gz'
    """
    return COMPRESSED.get(path.suffix.lower(), "")


def plain(path: Path) -> Path:
    return path.with_suffix("") if compression_of(path) else path


def format_of_output(path: Path, input_format: str) -> str:
    """Return the format of the output. Raises `PromptmillError` (`invalid_input`) if an output cannot have it."""
    kind = format_by_suffix(path, "output file")
    if kind not in _OUTPUTS:
        possible = ", ".join(f".{kind}" for kind in _OUTPUTS)
        raise input_error(f"An output ends with {possible}, not {plain(path).suffix}: a row has several columns.")
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
