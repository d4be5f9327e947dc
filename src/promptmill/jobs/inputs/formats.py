"""Formats of inputs and outputs by suffix, and their compression."""

from __future__ import annotations

import gzip
import importlib.util
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import IO, cast

from promptmill.core.errors import Code, PromptmillError, input_error
from promptmill.core.feature import format_of
from promptmill.jobs import members
from promptmill.jobs.databases import DATABASES, SQLITE
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
        **members.WORKBOOKS,
        **DATABASES,
    }
)
"""The format for each suffix. A suffix of `COMPRESSED` may follow it."""
COMPRESSED = MappingProxyType({".gz": "gz", ".zst": "zst"})
LINES = frozenset({"jsonl", "batch", "messages"})
"""Formats of an input whose rows are lines of JSON."""
CELLS = frozenset({"csv", "tsv", "txt"})
OF_CALLS = frozenset({"jsonl", "csv", "tsv", "parquet", "xlsx"})
"""Formats of files that a call may name. Other formats (texts, JSON, databases) may be files of a program."""
TABLES = CELLS | {"parquet", "xlsx", "sql"}
_LEVEL = 6  # the default of `gzip`; Python's, 9, takes three times as long and saves 1 %
_OTHERS = [f"{suffix}#TABLE" for suffix in DATABASES if suffix not in SQLITE]
_OUTPUTS = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".xlsx", ".db#TABLE", *_OTHERS)
_WRITTEN = frozenset({"jsonl", "json", "csv", "tsv", "parquet", "xlsx", "sql"})
ONLY_READ = frozenset({".xls", ".xlsb", ".xlsm", ".ods"})
_PACKAGES = MappingProxyType(
    {
        ".parquet": ("pyarrow",),
        ".zst": ("pyarrow",),
        **dict.fromkeys(members.WORKBOOKS, ("python_calamine",)),
    }
)
"""The modules that are needed to read or write files with a suffix."""
_URL = re.compile(r"[a-z][a-z0-9+.-]+://", re.IGNORECASE)
_TITLES = MappingProxyType({".parquet": "Parquet"})


def is_elsewhere(name: str) -> bool:
    """Return whether `name` is a file that must be fetched or converted first: a URL, or a feature's format."""
    file_format = format_of(name)
    return is_url(name) or (file_format is not None and bool(file_format.read or file_format.write))


def is_url(name: str) -> bool:
    """Return whether `name` is a URL."""
    return _URL.match(name) is not None


def format_by_suffix(path: Path) -> str:
    """Return the format of an input by its suffix. Raises `PromptmillError` (`invalid_input`) for an unknown suffix.

    >>> format_by_suffix(Path("Labels.CSV.gz"))
    'csv'
    """
    suffix = plain(path).suffix
    kind = SUFFIXES.get(suffix.lower())
    if kind is None:
        ending = f"ends with {suffix!r:.20}" if suffix else "has no suffix"
        raise input_error(
            f"The input file {path.name} {ending}; use one of {', '.join(SUFFIXES)}, with .gz or .zst behind it or not."
        )
    return kind


def compression_of(path: Path) -> str:
    """Return `gz`, `zst`, or `""` for a file that is not compressed.

    >>> compression_of(Path("answers.jsonl.gz"))
    'gz'
    """
    return COMPRESSED.get(path.suffix.lower(), "")


def plain(path: Path) -> Path:
    """Return the path without the name of a table and without the suffix of the compression."""
    return path.with_suffix("") if compression_of(path) else members.file_of(path)


def format_of_output(path: Path, input_format: str) -> str:
    """Return the format of the output. Raises `PromptmillError` (`invalid_input`) if no output can have this format."""
    suffix = plain(path).suffix.lower()
    kind = SUFFIXES.get(suffix, "")
    if kind not in _WRITTEN or suffix in ONLY_READ:
        raise input_error(
            f"An output ends with {', '.join(_OUTPUTS)}; name it {plain(path).stem}.csv, not {path.name}."
        )
    if kind == "sql" and not members.split(path)[1]:
        raise input_error(f"The output {path.name} is a database; name a table in it: '{path.name}#answers'.")
    return "batch" if input_format == "batch" and kind == "jsonl" else kind


def row_kind(input_format: str) -> str:
    """Return the `kind` of `rows.RowReader` for rows of this format."""
    return input_format if input_format in LINES else "table"


def check_installed(*paths: Path) -> None:
    """Raise `PromptmillError` (`missing_dependency`) if one of `paths` needs a package that is not installed."""
    for path in paths:
        suffixes = {suffix.lower() for suffix in (path.suffix, plain(path).suffix)}
        needed: dict[str, tuple[Sequence[str], str, str]] = {
            suffix: (_PACKAGES[suffix], "files", _TITLES.get(suffix, suffix)) for suffix in suffixes & _PACKAGES.keys()
        }
        if (kind := format_of(plain(path).name)) is not None and kind.packages:
            needed[plain(path).suffix] = kind.packages, kind.extra, kind.title or plain(path).suffix
        for modules, extra, title in needed.values():
            for module in modules:
                if importlib.util.find_spec(module) is None:
                    package = module.replace("_", "-")
                    raise PromptmillError(Code.MISSING_DEPENDENCY, f"{title} files need {package}.", adding(extra))


@contextmanager
def compressed(out: IO[bytes], kind: str) -> Iterator[IO[bytes]]:
    """Yield a file that compresses its content into `out`. `kind`: see `compression_of`. `out` stays open.

    Equal content gives equal bytes. Without compression (`kind` is `""`), yield `out` itself.
    """
    if not kind:
        yield out
    elif kind == "gz":
        with gzip.GzipFile("", "wb", _LEVEL, out, mtime=0) as packed:
            yield cast("IO[bytes]", packed)
    else:
        import pyarrow as pa

        with (
            open(out.fileno(), "wb", closefd=False) as unclosed,
            pa.CompressedOutputStream(pa.PythonFile(unclosed, "w"), "zstd") as packed,
        ):
            yield packed
