"""Rows of any input as lines in a file, written once, before the job: the only time that a table is parsed.

A line has what the row asks and, of CSV, TSV and text, the row's cells (`rows.with_row`), so that requests, digests and
the output are made from it. The output of Parquet needs the types of its columns, and is made from the Parquet file.
"""

from __future__ import annotations

import base64
import json
import os
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import orjson

from promptmill.backends import rows
from promptmill.backends.rows import CONTENT, IMAGES, NAMES
from promptmill.core.errors import PromptmillError, input_error
from promptmill.jobs.files import disk, formats, json_rows
from promptmill.jobs.files.cell_table import CellRow, CellTable, is_utf8
from promptmill.jobs.files.input_files import InputFiles
from promptmill.jobs.files.parquet_table import ParquetTable
from promptmill.jobs.files.prompt_template import PromptTemplate

_BUFFER = 1 << 18
_PROMPTS = frozenset({"prompt", "messages"})


class Halted(Exception):  # noqa: N818 (a finding, told to the runner alone)
    """Nobody wants the result any more."""


def spool(
    files: InputFiles,
    input_format: str,
    target: Path,
    halt: threading.Event | None = None,
    *,
    prompt_column: str | None = None,
    prompt_template: str | None = None,
    row_settings: bool = True,
) -> int:
    """Write the rows of the input into `target`, one line each, and return how many there are.

    Of tables, only the columns that are asked about are kept, with `prompt_column` as `prompt`, or what
    `prompt_template` makes of a row; with `row_settings` those that are settings as well. `target` is there whole or
    not at all. Raises `PromptmillError` (`invalid_input`) for what is not of its format, or a table without a
    `prompt` or `messages` column; `OSError`; `Halted` once `halt` is set.
    """
    beside = target.with_name(f"{target.name}.new")
    read = NAMES if row_settings else CONTENT
    template = None if prompt_template is None else PromptTemplate(prompt_template, read)
    if input_format in formats.CELLS:
        lines = _cell_lines(CellTable(files, input_format), prompt_column, template, read)
    elif input_format == "parquet":
        lines = _parquet_lines(ParquetTable(files), prompt_column, template, read)
    else:
        lines = json_rows.lines(files)
        if template is not None:
            lines = template.lines(lines)
    count = size = 0
    given = files.stamp()[0]
    beside.unlink(missing_ok=True)
    with os.fdopen(disk.created(beside), "wb", _BUFFER) as out:
        for line in lines:
            if halt is not None and halt.is_set():
                raise Halted
            out.write(line + b"\n")
            count += 1
            size += len(line) + 1
            if template is None:  # which makes more of a row than there was
                formats.check_ratio(size, given)
        out.flush()
        disk.sync_file(out)
    beside.replace(target)
    disk.sync_folder(target.parent)
    return count


def _prompt_columns(
    names: list[str], prompt_column: str | None, template: PromptTemplate | None, read: frozenset[str]
) -> list[tuple[int, str]]:
    """Return the columns that are asked about, by their place and what they mean. Raises `PromptmillError`.

    `read`: the names that mean something.
    """
    if template is not None:
        template.check(names)
        return [(at, name) for at, name in enumerate(names) if template.takes_all or name in template.names | read]
    meant = list(names)
    if prompt_column is not None:
        if prompt_column not in names:
            raise input_error(f"The input has no column {prompt_column!r}; its columns: {_list_names(names)}.")
        meant = ["prompt" if name == prompt_column else "" if name in _PROMPTS else name for name in names]
    asked = [(at, name) for at, name in enumerate(meant) if name in read]
    twice = {name for _, name in asked if meant.count(name) > 1}
    if twice:
        raise input_error(f"The input has two columns `{min(twice)}`; rename one of them.")
    if not {"prompt", "messages"} & set(meant):
        if not all(map(is_utf8, names)):
            raise input_error(f"The first line of the input is not UTF-8 text. {rows.AS_UTF8}")
        raise input_error(
            f"The input has no column `prompt` or `messages`; its columns: {_list_names(names)}. "
            "--prompt-column names the one to ask."
        )
    return asked


def _list_names(names: list[str]) -> str:
    return ", ".join(name[:40] for name in names[:10]) or "none"


def _cell_lines(
    table: CellTable, prompt_column: str | None, template: PromptTemplate | None, read: frozenset[str]
) -> Iterator[bytes]:
    asked = _prompt_columns(table.header, prompt_column, template, read)
    for row in table.rows():
        found = _cell_row(row, asked, prompt_column) if template is None else _written_out(row, asked, template)
        if isinstance(found, str):
            found = {rows.PROBLEM: _placed(found, row.line)}
        yield rows.with_row(orjson.dumps(found, option=orjson.OPT_SORT_KEYS), _kept(row, asked, found))


def _placed(problem: str, line: int) -> str:
    what, _, todo = problem.removesuffix(".").partition(". ")
    return f"{what} (line {line}).{todo and f' {todo}.'}"


def _kept(row: CellRow, asked: list[tuple[int, str]], question: Mapping[str, Any]) -> bytes:
    """Return the cells of a row, the surplus ones last; `[name]` for a cell that is a field of the question."""
    cells: list[Any] = [*row.cells, *row.surplus]
    for at, name in asked:
        if at < len(row.cells) and question.get(name) is row.cells[at]:
            cells[at] = [name]
    try:
        return orjson.dumps(cells)
    except TypeError:  # not UTF-8
        return json.dumps(cells).encode()


def cells_of(line: bytes) -> list[str]:
    """Return the cells of a row of a table, the surplus ones last."""
    cells: list[Any] = rows.load(rows.row_of(line), "")
    fields = None
    for at, cell in enumerate(cells):
        if type(cell) is list:
            fields = fields or rows.load(rows.question(line), "")
            cells[at] = fields[cell[0]]
    return cells


def _cell_row(found: CellRow, asked: list[tuple[int, str]], prompt_column: str | None = None) -> dict[str, Any] | str:
    has_messages = any(name == "messages" for _, name in asked)
    if found.problem:
        return found.problem
    row: dict[str, Any] = {}
    for at, name in asked:
        text = found.cells[at]
        if not is_utf8(text):
            return f"{name} is not UTF-8 text. {rows.AS_UTF8}"
        if name == "prompt" and prompt_column is not None and (what := rows.emptiness(text)):
            return {rows.EMPTY: f"its {prompt_column} is {what}."}
        if not text and (name != "prompt" or has_messages):  # which may ask
            continue
        if name == "messages" or (name in IMAGES and text.lstrip().startswith("[")):
            try:
                row[name] = orjson.loads(text)
            except orjson.JSONDecodeError as error:
                return f"{name} is not valid JSON: {error.msg}."
        else:
            row[name] = text
    return row


def _written_out(found: CellRow, asked: list[tuple[int, str]], template: PromptTemplate) -> dict[str, Any] | str:
    """Return what a row asks by `template`, or why it cannot be asked."""
    if found.problem:
        return found.problem
    texts = {name: found.cells[at] for at, name in asked}
    if wrong := next((name for name, text in texts.items() if not is_utf8(text)), None):
        return f"{wrong} is not UTF-8 text. {rows.AS_UTF8}"
    own = _cell_row(found, [(at, name) for at, name in asked if name in template.read - _PROMPTS])
    if isinstance(own, str):
        return own
    try:
        return own | template.prompt(texts)
    except PromptmillError as error:
        return error.message


def _parquet_lines(
    table: ParquetTable, prompt_column: str | None, template: PromptTemplate | None, read: frozenset[str]
) -> Iterator[bytes]:
    names = table.schema.names
    asked = {names[at]: name for at, name in _prompt_columns(names, prompt_column, template, read)}
    for batch in table.batches(list(asked)):
        for found in batch.to_pylist():
            row = {asked[name]: value for name, value in found.items()}
            if template is not None:
                try:
                    row = template.asked(row)
                except PromptmillError as error:
                    yield orjson.dumps({rows.PROBLEM: error.message})
                    continue
            elif prompt_column is not None and (what := rows.emptiness(row.get("prompt"))):
                row = {rows.EMPTY: f"its {prompt_column} is {what}."}
            images = {name: row.pop(name) for name in IMAGES if name in row}
            for name in ("messages", "prompt"):
                if isinstance(row.get(name), list):
                    row[name] = _without_nulls(row[name])
            try:
                line = orjson.dumps(row, option=orjson.OPT_SORT_KEYS)
                if images:
                    line = orjson.dumps(row | images, option=orjson.OPT_SORT_KEYS, default=_as_base64)
                yield line
            except TypeError:
                yield orjson.dumps({rows.PROBLEM: "prompt, messages or images hold values that are not text."})


def _without_nulls(value: Any) -> Any:
    """Return messages without what a column's type adds to them: a field that others have is null here."""
    match value:
        case dict():
            return {
                name: _without_nulls(inner)
                for name, inner in value.items()
                if inner is not None or name == "content"  # beside calls of tools there is none
            }
        case list():
            return [_without_nulls(inner) for inner in value]
    return value


def _as_base64(value: object) -> str:
    """Return the bytes of an image as JSON can hold them."""
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    raise TypeError
