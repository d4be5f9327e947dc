"""The formats of paths. A path names a file, a table in a file or a compressed file; see `files.format_table`."""

from __future__ import annotations

import gzip
import importlib.util
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Literal, cast

from promptmill.core.errors import Code, Named, PromptmillError, input_error
from promptmill.core.feature import Format
from promptmill.files import format_table, table_paths
from promptmill.files.format_table import COMPRESSED
from promptmill.system.installation import adding, command_for_package

_LEVEL = 6  # the default of `gzip`; Python's default, 9, takes three times as long and saves 1 %
_URL = re.compile(r"[a-z][a-z0-9+.-]+://", re.IGNORECASE)


def is_url(name: str) -> bool:
    """Return whether `name` is a URL."""
    return _URL.match(name) is not None


def reading(path: Path) -> Format | None:
    """Return the format in which the rows of the input at `path` are read; None if there is no such format."""
    return format_table.reading(plain(path))


def format_of_input(path: Path) -> Format:
    """Return the format of an input by its suffix. Raises `PromptmillError` (`invalid_input`) for an unknown suffix.

    >>> format_of_input(Path("Labels.CSV.gz")).key
    'csv'
    """
    if (found := reading(path)) is not None:
        return found
    suffix, usable = plain(path).suffix, ", ".join(read_names())
    if format_table.writing(plain(path)) is not None:
        raise input_error(f"{path.name}: {suffix} files are written, not read; use one of {usable}.")
    ending = f"ends with {suffix!r:.20}" if suffix else "has no suffix"
    raise input_error(
        f"The input file {path.name} {ending}; use one of {usable}, with {' or '.join(COMPRESSED)} behind it or not."
    )


def read_names() -> list[str]:
    """Return the suffixes of files that can be read as rows."""
    each = (each for each in format_table.all_formats() if each.is_read)
    return [suffix for known in each for suffix in (*known.names, *known.only_read)]


def names_of_outputs() -> list[str]:
    """Return the name of each format of an output: its first suffix, with `#TABLE` for a table of a database."""
    written = (each for each in format_table.all_formats() if each.is_written and each.names)
    return [f"{each.names[0]}{'#TABLE' if each.database else ''}" for each in written]


def names_for_calls(use: Literal["read", "write"], *, with_databases: bool = False) -> list[str]:
    """Return the first suffix of each format in which calls may read (or write) files."""
    return [
        each.names[0]
        for each in format_table.all_formats()
        if (each.is_read_by_calls if use == "read" else each.is_written_by_calls)
        and (with_databases or not each.database)
    ]


def compression_of(path: Path) -> str:
    """Return `gz`, `zst`, or `""` for a file that is not compressed.

    >>> compression_of(Path("answers.jsonl.gz"))
    'gz'
    """
    suffix = path.suffix.lower()
    return suffix.removeprefix(".") if suffix in COMPRESSED else ""


def plain(path: Path) -> Path:
    """Return the path without the name of a table and without the suffix of the compression."""
    return path.with_suffix("") if compression_of(path) else table_paths.file_of(path)


def format_of_output(path: Path, input_format: str) -> Format:
    """Return the format of the output. Raises `PromptmillError` (`invalid_input`) if no output can have this format."""
    found = format_table.writing(plain(path))
    if found is None and "{{" in path.name:
        raise input_error(f"{path.name} is no name of an output; a prompt is ", Named("prompt", path.name), ".")
    if found is None:
        suffix = plain(path).suffix
        problem = f"{suffix} is no format of an output" if suffix else f"The output {path.name} has no suffix"
        names = ", ".join(names_of_outputs())
        raise input_error(f"{problem}. An output ends with {names}; name it {plain(path).stem}.csv, not {path.name}.")
    if found.database and not table_paths.split(path)[1]:
        raise input_error(f"The output {path.name} is a database; name a table in it: '{path.name}#answers'.")
    is_batch = input_format == "batch" and found.key == "jsonl"
    return format_table.of_output("batch") if is_batch else found


def row_kind(input_format: str) -> str:
    """Return the `kind` of `rows.RowReader` for rows of this format."""
    found = format_table.of_input(input_format)
    return {"objects": "jsonl", "requests": input_format}.get(found.rows, "table")


def check_installed(*paths: Path) -> None:
    """Raise `PromptmillError` (`missing_dependency`) if one of `paths` needs a package that is not installed."""
    for path in paths:
        name = plain(path)
        suffix = name.suffix.lower()
        needed: list[tuple[Sequence[str], str, str]] = [
            (COMPRESSED.get(path.suffix.lower(), ()), "files", path.suffix.lower())
        ]
        for each in (format_table.reading(name), format_table.writing(name)):
            needed += [] if each is None else [(each.packages, each.extra, each.title or suffix)]
        for modules, extra, title in needed:
            for module in modules:
                if importlib.util.find_spec(module) is None:
                    package = module.replace("_", "-")
                    hint = adding(extra) if extra else f"Run: {command_for_package(package)}"
                    raise PromptmillError(Code.MISSING_DEPENDENCY, f"{title} files need {package}.", hint)


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
