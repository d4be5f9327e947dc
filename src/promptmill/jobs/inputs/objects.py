"""The rows of a file of any format: as an `Input`, and as objects with the values of their columns."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from promptmill.backends import rows
from promptmill.core import values
from promptmill.core.errors import PromptmillError, input_error
from promptmill.core.values import JsonObject
from promptmill.jobs.inputs import files as input_files
from promptmill.jobs.inputs import formats
from promptmill.jobs.inputs.cells import CellTable
from promptmill.jobs.inputs.files import InputFiles
from promptmill.jobs.inputs.first_rows import format_of_input
from promptmill.jobs.inputs.json_lines import JsonLines, first_objects
from promptmill.jobs.inputs.questions import distinct
from promptmill.jobs.inputs.row import Input, InputRow


def input_of(files: InputFiles, input_format: str) -> Input:
    """Return the rows of files. Raises `PromptmillError` (`invalid_input`)."""
    if input_format in formats.CELLS:
        return CellTable(files, input_format)
    if input_format == "parquet":
        from promptmill.jobs.inputs.parquet import ParquetTable  # imported where it is needed

        return ParquetTable(files)
    return JsonLines(files)


def objects_in(path: Path, encoding: str | None = None) -> Iterator[JsonObject]:
    """Yield the rows of a file as objects; columns of a table are fields. Raises `PromptmillError`, `OSError`."""
    formats.check_installed(path)
    files = input_files.opened(input_files.find([path.absolute()], path), encoding=encoding)
    source = input_of(files, format_of_input(files))
    header = distinct(source.header)
    columns = list(enumerate(header))
    for stretch in source.stretches(columns):
        for row in stretch.rows:
            yield _of_cells(row, header) if header else _of_json(row)


def readable_objects_in(path: Path, encoding: str | None = None) -> Iterator[JsonObject]:
    """Yield the first rows of a file as objects; unreadable ones are left out."""
    with contextlib.suppress(PromptmillError, OSError):
        files = input_files.opened(input_files.find([path.absolute()], path), encoding=encoding)
        is_table = formats.format_by_suffix(path, "input file") in formats.TABLES
        yield from objects_in(path, encoding) if is_table else first_objects(files)


def _of_cells(row: InputRow, header: list[str]) -> JsonObject:
    return row.fields or dict(zip(header, values.loads(row.cells), strict=False))


def _of_json(row: InputRow) -> JsonObject:
    where = f"line {row.n + 1}"
    if row.problem:
        raise input_error(f"{where}: {row.problem}")
    value = rows.load(row.cells, where)
    return value if isinstance(value, dict) else {"row": value}
