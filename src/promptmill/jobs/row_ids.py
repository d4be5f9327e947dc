"""The field that tells rows apart (`--id-column`): looked at before anything is paid."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from promptmill.backends import rows
from promptmill.core.errors import PromptmillError, input_error
from promptmill.jobs import formats, json_rows
from promptmill.jobs.cell_table import CellTable
from promptmill.jobs.duplicates import CustomIds
from promptmill.jobs.input_files import InputFiles
from promptmill.jobs.parquet_table import ParquetTable

_SHOWN = 10


def problems(files: InputFiles, input_format: str, name: str, scratch: Path, most: int) -> tuple[int, list[str]]:
    """Return how many rows have no id of their own in the field `name`, and of `most` of them why. Blocks.

    `scratch` is where a table may lie meanwhile. Raises `PromptmillError` (`invalid_input`) for a table without that
    column; `OSError`.
    """
    ids, count = CustomIds(scratch, name), 0
    found: list[str] = []
    where = rows.row_word(formats.row_kind(input_format))
    try:
        for row, value in _values(files, input_format, name):
            if value is None or value == "":
                count += 1
                if len(found) < most:
                    found.append(f"{where} {row + 1} has no `{name}`.")
            else:
                ids.note(value, row)
        repeated, examples = ids.repeated(most - len(found))
    finally:
        ids.close()
    found += [f"{where} {row + 1} has the `{name}` of {where} {first + 1}." for row, first in examples]
    return count + repeated, found


def check(files: InputFiles, input_format: str, name: str, scratch: Path) -> None:
    """Raise `PromptmillError` (`invalid_input`) unless each row has an id of its own."""
    count, found = problems(files, input_format, name, scratch, 1)
    if count:
        if input_format in formats.LINES and (names := _names_without(files, name)):
            raise input_error(
                f"No row has {name!r}; the fields are: {', '.join(names)}. --id-column names one of them."
            )
        others = f" So it is with {count} rows." if count > 1 else ""
        raise input_error(f"{found[0].capitalize()}{others} Give each row one of its own, or leave --id-column out.")


def _values(files: InputFiles, input_format: str, name: str) -> Iterator[tuple[int, Any]]:
    if input_format in formats.CELLS:
        table = CellTable(files, input_format)
        at = _column(table.header, name)
        for row, cells in enumerate(table.rows()):
            yield row, cells.cells[at] if at < len(cells.cells) else None
    elif input_format == "parquet":
        parquet = ParquetTable(files)
        _column(parquet.schema.names, name)
        row = 0
        for batch in parquet.batches([name]):
            for value in batch.column(0).to_pylist():
                yield row, value
                row += 1
    else:
        for row, line in enumerate(json_rows.lines(files)):
            if line.strip():
                yield row, _field(line, name)


def _names_without(files: InputFiles, name: str) -> list[str]:
    """Return the fields that the rows have, none where some row has `name`."""
    found: dict[str, None] = {}
    for line in json_rows.lines(files):
        with contextlib.suppress(PromptmillError):
            value = rows.load(line, "") if line.strip() else None
            if isinstance(value, dict):
                if name in value:
                    return []
                if len(found) < _SHOWN:
                    found.update(dict.fromkeys(key[:40] for key in value))
    return list(found)[:_SHOWN]


def _column(names: list[str], name: str) -> int:
    if name not in names:
        raise input_error(f"The input has no column {name!r}; --id-column names one of {', '.join(names[:10])}.")
    return names.index(name)


def _field(line: bytes, name: str) -> object:
    try:
        value = rows.load(line, "")
    except PromptmillError:
        return None
    return value.get(name) if isinstance(value, dict) else None
