"""Rows of any input as lines in a file, written once, before the job: the only time that a table is parsed.

A line has what the row asks and, of CSV, TSV and text, the row's cells (`rows.with_row`), so that requests, digests and
the output are made from it. The output of Parquet needs the types of its columns, and is made from the Parquet file.
"""

from __future__ import annotations

import base64
import codecs
import contextlib
import itertools
import json
import math
import os
import threading
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from operator import itemgetter
from pathlib import Path
from types import MappingProxyType
from typing import IO, Any

import orjson

from promptmill.backends import rows
from promptmill.backends.rows import CONTENT, IMAGES, NAMES
from promptmill.core.errors import Code, Named, PromptmillError, input_error
from promptmill.core.wording import close_matches
from promptmill.jobs.files import disk, row_files
from promptmill.jobs.files.disk import LONGEST_LINE, TOO_LONG
from promptmill.jobs.files.prompt_template import PromptTemplate
from promptmill.jobs.files.row_files import InputFiles
from promptmill.jobs.files.tables import CellRow, CellTable, ParquetTable, distinct, is_utf8, objects, readable

_BUFFER = 1 << 18
_QUOTES = 4  # times that a row may be longer with its quotes and commas
_PROMPTS = frozenset({"prompt", "messages"})
# Usual names of the field with the prompt; errors suggest the first one that the rows have.
_USUAL = ("question", "text", "input", "query", "instruction", "content", "user", "request")
_BLOCK = 1 << 20
_NOT_UTF8 = "is not UTF-8 text."
_FIRST_ROWS = 20
_TEXTS = frozenset({"string", "large_string"})  # types of Arrow
_SPACE = " \t\r\n"
# Programs, ours among them, write a missing value of CSV or TSV as an empty cell or as one of these texts.
_MISSING: Mapping[str, float | None] = MappingProxyType({"NaN": math.nan, "nan": math.nan, "null": None, "NULL": None})
_NOTHING: Mapping[str, float | None] = MappingProxyType({})


class HaltedError(Exception):
    """The run has ended: its result is not needed any more."""


def spool(
    files: InputFiles,
    input_format: str,
    target: Path,
    halt: threading.Event | None = None,
    *,
    prompt_column: str | None = None,
    prompt_template: str | None = None,
    prompt_only: Collection[str] = (),
    image_column: str | None = None,
    row_settings: bool = True,
    most_bytes: int | None = None,
) -> int:
    """Write the rows of the input into `target`, one line each, and return their number.

    A row of a table asks by its `prompt_column` or `prompt_template`, else by its `prompt` or `messages`; with
    `row_settings`, its settings are part of the question. Fields of JSON in `prompt_only` are for the template alone.
    `target` is written whole or not at all. Raises `PromptmillError`: `invalid_input` for a file that is not of its
    format, or a table without such a column, `storage` for more than `most_bytes`; `OSError`; `HaltedError` once `halt`
    is set.
    """
    beside = _beside(target)
    read = NAMES if row_settings else CONTENT
    template = None if prompt_template is None else PromptTemplate(prompt_template, read, image_column)
    if input_format in row_files.CELLS:
        lines = _cell_lines(CellTable(files, input_format), files.stamp()[0], prompt_column, template, read)
    elif input_format == "parquet":
        lines = _parquet_lines(ParquetTable(files), files.stamp()[0], prompt_column, template, read)
    else:
        lines = _json_lines(files)
        if template is not None:
            lines = template.lines(lines, prompt_only)
    count = size = 0
    discard(target)
    try:
        with os.fdopen(disk.created(beside), "wb", _BUFFER) as out:
            for line in lines:
                if halt is not None and halt.is_set():
                    raise HaltedError
                size += out.write(_fitting(line) + b"\n")
                if most_bytes is not None and size > most_bytes:
                    raise _too_large(most_bytes)
                count += 1
            out.flush()
            disk.sync_file(out)
        beside.replace(target)
    except BaseException:
        discard(target)
        raise
    disk.sync_folder(target.parent)
    return count


def _fitting(line: bytes) -> bytes:
    """Return `line`; in place of one that no reader takes, a failure with its row."""
    if len(line) <= LONGEST_LINE:
        return line
    problem = orjson.dumps({rows.PROBLEM: f"it {TOO_LONG} with its prompt."})
    row = rows.row_of(line)
    if row.startswith(b"["):
        row = _as_json(cells_of(line))
    if row is line or len(problem) + len(row) >= LONGEST_LINE:
        row = b"[]" if row.startswith(b"[") else b"{}"
    return rows.with_row(problem, row)


def discard(target: Path) -> None:
    """Remove the file that an interrupted `spool` may have left next to `target`."""
    with contextlib.suppress(OSError):
        _beside(target).unlink(missing_ok=True)


def _beside(target: Path) -> Path:
    return target.with_name(f"{target.name}.new")


def _too_large(most_bytes: int) -> PromptmillError:
    said = f"The rows with their prompts take more than {most_bytes:,} bytes, the most that this job may write here."
    return PromptmillError(Code.STORAGE, said, "Free disk space, shorten the template, or split the input.")


def objects_in(path: Path, encoding: str | None = None, *, strict: bool = False) -> Iterator[Mapping[str, Any]]:
    """Yield the rows of a file of any format as objects, those of a table by its columns.

    Raises `PromptmillError`, also for a row with too many or too few cells if `strict`; `OSError`.
    """
    files = row_files.opened(row_files.find([path.absolute()], path), known=False, encoding=encoding)
    with contextlib.closing(files):
        kind = row_files.format_of_input(files)
        row_files.check_installed(path)
        if kind == "parquet":
            for batch in ParquetTable(files).batches():
                yield from objects(batch)
            return
        if kind in row_files.CELLS:
            table = CellTable(files, kind)
            for row in table.rows():
                if strict and row.problem:
                    raise input_error(f"{path.name}: {_placed(row.problem, row.line)}")
                yield dict(zip(table.header, row.cells, strict=False))
            return
        for number, line in enumerate(_json_lines(files), 1):
            if line.strip():
                value = rows.load(rows.question(line), f"line {number}")
                if isinstance(value, dict) and rows.PROBLEM in value:
                    raise input_error(f"line {number}: {value[rows.PROBLEM]}")
                yield value if isinstance(value, dict) else {"row": value}


def check_columns(
    files: InputFiles,
    input_format: str,
    *,
    prompt_column: str | None,
    prompt_template: str | None,
    image_column: str | None,
    row_settings: bool,
) -> None:
    """Raise `PromptmillError` (`invalid_input`) if the input lacks a column of the prompt."""
    read = NAMES if row_settings else CONTENT
    template = None if prompt_template is None else PromptTemplate(prompt_template, read, image_column)
    if input_format in row_files.CELLS:
        _prompt_columns(_names(CellTable(files, input_format), template), prompt_column, template, read)
    elif input_format == "parquet":
        _prompt_columns(ParquetTable(files).schema.names, prompt_column, template, read)
    elif template is None:
        _check_first_rows(files, prompt_column)
    elif names := {name for row in row_files.first_objects(files) for name in row}:
        template.check(names)


def unsent_image(files: InputFiles, input_format: str) -> str:
    """Return the column whose cells in the first rows are paths of images; `""` if there is none, or images are sent.

    `files` is an input without a column of images.
    """
    found: Iterator[Mapping[str, Any]]
    if input_format in row_files.CELLS:
        table = CellTable(files, input_format)
        found = (dict(zip(table.header, row.cells, strict=False)) for row in table.rows())
    elif input_format == "parquet":
        parquet = ParquetTable(files)
        if not set(IMAGES).isdisjoint(parquet.schema.names):
            return ""
        texts = [field.name for field in parquet.schema if str(field.type) in _TEXTS]
        found = (row for batch in parquet.batches(texts) for row in batch.slice(0, _FIRST_ROWS).to_pylist())
    elif input_format == "jsonl":
        found = row_files.first_objects(files)
    else:
        return ""
    for row in itertools.islice(found, _FIRST_ROWS):
        if not row.keys().isdisjoint(IMAGES):
            return ""
        for name, cell in row.items():
            if isinstance(cell, str) and cell.lower().endswith(row_files.IMAGES) and os.path.isfile(cell):  # noqa: PTH113 (too long a name is no error)
                return name
    return ""


def _check_first_rows(file: InputFiles, prompt_column: str | None) -> None:
    """Raise `PromptmillError` (`invalid_input`) if no row of a file of JSON lines has a prompt.

    Only the first rows are read: one row without a prompt is that row's failure.
    """
    asked = {prompt_column} if prompt_column is not None else {"prompt", "messages"}
    names: dict[str, None] = {}
    read: list[Mapping[str, Any]] = []
    for row in row_files.first_objects(file):
        names |= dict.fromkeys(row)
        read.append(row)
        if len(read) > 1 and asked & names.keys():
            return
    inner = _rows_inside(read[0]) if len(read) == 1 and not names.keys() & set(_USUAL) else ""
    if inner and not (asked - {inner}) & names.keys():
        raise input_error(f"The file holds one object, whose rows are in the list {inner!r}: save that list alone.")
    if not names or asked & names.keys():
        return
    shown = ", ".join(name[:40] for name in list(names)[:10])
    if prompt_column is not None:
        near = close_matches(prompt_column, names, n=1, cutoff=0.5)
        meant = ["did you mean ", Named("prompt_column", near[0]), "?"] if near else [f"the rows have: {shown}."]
        raise input_error(f"No row has {prompt_column[:60]!r}; ", *meant)
    lacks = f"No row has `prompt` or `messages`; the rows have: {shown}."
    usual = next((name for name in _USUAL if name in names), None)
    column = Named("prompt_column", usual or "NAME", ", or name it with {}")
    raise input_error(f"{lacks} Rename {usual or 'the one with the prompts'} to `prompt` in the file", column, ".")


def _rows_inside(row: Mapping[str, Any]) -> str:
    """Return the name of the only field that is a list of objects, `""` if there is no such field or several."""
    lists = [
        name
        for name, value in row.items()
        if isinstance(value, list)
        and value
        and isinstance(value[0], dict)
        and "role" not in value[0]
        and name != "tools"
    ]
    return lists[0][:40] if len(lists) == 1 else ""


def _names(table: CellTable, template: PromptTemplate | None) -> list[str]:
    """Return the names of the columns; a template may call a line of a text file `text`."""
    return ["text"] if template is not None and table.is_text and "text" in template.names else table.header


def _prompt_columns(
    names: list[str], prompt_column: str | None, template: PromptTemplate | None, read: frozenset[str]
) -> list[tuple[int, str]]:
    """Return the columns of the question, each with its place and the field that it is. Raises `PromptmillError`.

    `read`: the fields that are part of a request.
    """
    if template is not None:
        template.check(names)
        wanted = template.names | read
        _check_once(names, wanted - (_PROMPTS - template.names))
        return [(at, name) for at, name in enumerate(distinct(names)) if template.takes_all or name in wanted]
    meant = list(names)
    if prompt_column is not None:
        if prompt_column not in names:
            raise input_error(f"The input has no column {prompt_column!r}; its columns: {_list_names(names)}.")
        meant = ["prompt" if name == prompt_column else "" if name in _PROMPTS else name for name in names]
        _check_once(names, {prompt_column})
    _check_once(meant, read)
    asked = [(at, name) for at, name in enumerate(meant) if name in read]
    if not {"prompt", "messages"} & set(meant):
        if not all(map(is_utf8, names)):
            latin = Named("encoding", "latin-1", ", or add {}")
            raise input_error(f"The first line of the input is not UTF-8 text. {rows.AS_UTF8}", latin, ".")
        column = Named("prompt_column", text=" {} names the one with the prompts.")
        raise input_error(f"The input has no column `prompt` or `messages`; its columns: {_list_names(names)}.", column)
    return sorted(asked, key=itemgetter(1))  # moved columns leave the question as it is


def _check_once(names: list[str], read: Collection[str]) -> None:
    """Raise `PromptmillError` (`invalid_input`) if two of the columns have one of the names that are read."""
    counts = Counter(names)
    twice = {name for name in read if counts[name] > 1}
    if twice:
        raise input_error(f"The input has two columns `{min(twice)[:60]}`; rename one of them.")


def _list_names(names: list[str]) -> str:
    return ", ".join(name[:40] for name in names[:10]) or "none"


def _cell_lines(
    table: CellTable, given: int, prompt_column: str | None, template: PromptTemplate | None, read: frozenset[str]
) -> Iterator[bytes]:
    """Yield the lines of a table. `given`: the size of its files in bytes."""
    asked = _prompt_columns(_names(table, template), prompt_column, template, read)
    missing = _NOTHING if table.is_text else _MISSING
    size = wrong = first = 0
    for row in table.rows():
        if template is None:
            found = _cell_row(row, asked, missing, prompt_column)
        else:
            found = _written_out(row, asked, missing, template)
        if isinstance(found, str):
            if _NOT_UTF8 in found:
                first, wrong = first or row.line, wrong + 1
            found = {rows.PROBLEM: _placed(found, row.line)}
        question = orjson.dumps(found)
        if not table.is_utf8 and rows.PROBLEM not in found:
            table.is_utf8 = not question.isascii()
        kept = _kept(row, asked, found)
        size += len(kept)
        row_files.check_ratio(size // _QUOTES, given)  # a row gets an empty cell for each column of the other files
        yield rows.with_row(question, kept)
    if wrong and not table.is_utf8:
        count = "a row is" if wrong == 1 else f"{wrong:,} rows are"
        raise input_error(
            f"The input is not UTF-8 text: {count} in another encoding, the first in line {first}",
            Named("encoding", "latin-1", "; {} reads it as Latin-1"),
            Named("encoding", "utf-8", "; with {} such a row is a failure"),
            ".",
        )


def _placed(problem: str, line: int) -> str:
    what, _, todo = problem.removesuffix(".").partition(". ")
    return f"{what} (line {line}).{todo and f' {todo}.'}"


def _kept(row: CellRow, asked: list[tuple[int, str]], question: Mapping[str, Any]) -> bytes:
    """Return the cells of a row, the surplus ones last; `[name]` for a cell that is a field of the question."""
    cells: list[Any] = [*row.cells, *row.surplus]
    for at, name in asked:
        if at < len(row.cells) and question.get(name) is row.cells[at]:
            cells[at] = [name]
    return _as_json(cells)


def _as_json(cells: list[Any]) -> bytes:
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


def _cell_row(
    found: CellRow,
    asked: list[tuple[int, str]],
    missing: Mapping[str, float | None],
    prompt_column: str | None = None,
) -> dict[str, Any] | str:
    """Return the question of a row, or the reason why it has none. `missing`: texts that stand for no value."""
    if found.problem:
        return found.problem
    row: dict[str, Any] = {}
    for at, name in asked:
        text = found.cells[at]
        if not is_utf8(text):
            return f"{name} {_NOT_UTF8} {rows.AS_UTF8}"
        value = missing.get(text, text)
        if name == "prompt" and prompt_column is not None and (what := rows.emptiness(value)):
            return {rows.EMPTY: f"its {prompt_column} is {what}."}
        if rows.is_null(value) and (name != "prompt" or any(other == "messages" for _, other in asked)):
            continue  # with both columns, the messages may be the question
        if name == "messages" or (name in IMAGES and text.lstrip().startswith("[")):
            try:
                row[name] = orjson.loads(text)
            except orjson.JSONDecodeError as error:
                return f"{name} is not valid JSON: {error.msg}."
        else:
            row[name] = value
    return row


def _written_out(
    found: CellRow, asked: list[tuple[int, str]], missing: Mapping[str, float | None], template: PromptTemplate
) -> dict[str, Any] | str:
    """Return the question of a row by `template`, or the reason why it has none."""
    if found.problem:
        return found.problem
    texts = {name: found.cells[at] for at, name in asked}
    if wrong := next((name for name, text in texts.items() if not is_utf8(text)), None):
        return f"{readable(wrong)} {_NOT_UTF8} {rows.AS_UTF8}"
    settings = [(at, name) for at, name in asked if name in template.read - _PROMPTS]
    own = _cell_row(found, sorted(settings, key=itemgetter(1)), missing)
    if isinstance(own, str):
        return own
    try:
        return own | template.prompt({name: missing.get(text, text) for name, text in texts.items()})
    except PromptmillError as error:
        return error.message


def _parquet_lines(
    table: ParquetTable, given: int, prompt_column: str | None, template: PromptTemplate | None, read: frozenset[str]
) -> Iterator[bytes]:
    size = 0
    names = table.schema.names
    asked = {names[at]: name for at, name in _prompt_columns(names, prompt_column, template, read)}
    for batch in table.batches(list(asked)):
        for found in objects(batch):
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
                line = orjson.dumps(row)
                if images:
                    line = orjson.dumps(row | images, default=_as_base64)
                if template is None:  # which may be longer than its row
                    size += len(line)
                    row_files.check_ratio(size, given)
                yield line
            except TypeError:
                yield orjson.dumps({rows.PROBLEM: "prompt, messages or images hold values that are not text."})


def _without_nulls(value: Any) -> Any:
    """Return messages without the nulls that a column's type adds to them, for fields of other messages."""
    match value:
        case dict():
            return {
                name: _without_nulls(inner)
                for name, inner in value.items()
                if inner is not None or name == "content"  # null next to tool calls
            }
        case list():
            return [_without_nulls(inner) for inner in value]
    return value


def _as_base64(value: object) -> str:
    """Return the bytes of an image as base64."""
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    raise TypeError


def _json_lines(files: InputFiles) -> Iterator[bytes]:
    """Yield the rows of all files, one line each, blank lines too, with the columns that the path of a file adds.

    Raises `PromptmillError` (`invalid_input`).
    """
    for at, part in enumerate(files.parts):
        with files.stream(at) as stream:
            is_array = row_files.is_array(part.path, stream)
        with files.stream(at) as stream:
            found = _items(stream, part.path.name) if is_array else _text_lines(stream)
            yield from (_with(line, part.columns) for line in found) if part.columns else found


def _text_lines(stream: IO[bytes]) -> Iterator[bytes]:
    first = True
    while line := stream.readline(LONGEST_LINE + 1):
        if len(line) > LONGEST_LINE:
            while line and not line.endswith(b"\n"):
                line = stream.readline(_BLOCK)
            line = rows.with_row(orjson.dumps({rows.PROBLEM: f"it {TOO_LONG}."}), b"{}")
        yield (line.removeprefix(rows.BOM) if first else line).removesuffix(b"\n")
        first = False


def _with(line: bytes, columns: Mapping[str, str]) -> bytes:
    try:
        value = rows.load(line, "")
    except PromptmillError:
        return line
    if not isinstance(value, dict) or not (new := {name: columns[name] for name in columns if name not in value}):
        return line
    return b"%b%b%b" % (line.strip()[:-1].rstrip(), b"," if value else b"", orjson.dumps(new)[1:])


def _items(stream: IO[bytes], name: str) -> Iterator[bytes]:
    """Yield the items of an array, each as it is written but in one line; memory for a block and one item."""
    decoder, text = json.JSONDecoder(), codecs.getincrementaldecoder("utf-8-sig")(errors="surrogateescape")
    held, at, block, is_open, is_first = "", 0, _BLOCK, False, True
    before = 0  # characters that were dropped, for messages

    def more() -> bool:
        nonlocal held, at, block, before
        data = stream.read(block)
        held, before, at = held[at:] + text.decode(data, final=not data), before + at, 0
        return bool(data)

    def skip() -> str:
        """Return the next character that is not white space, "" at the end."""
        nonlocal at
        while True:
            while at < len(held) and held[at] in _SPACE:
                at += 1
            if at < len(held):
                return held[at]
            if not more():
                return ""

    def wrong(place: int, why: str) -> PromptmillError:
        return input_error(f"{name} is not a valid JSON array: {why} at character {before + place + 1}.")

    while True:
        sign = skip()
        if not is_open:
            is_open, at = True, at + 1  # the opening bracket
            continue
        if sign == "]":
            return
        if not is_first:
            if sign != ",":
                raise wrong(at, "a comma or the closing bracket is missing")
            at += 1
            sign = skip()
        while True:
            try:
                _, end = decoder.raw_decode(held, at)
                problem = "" if end < len(held) else "it ends too early"  # a number may continue in the next block
            except (json.JSONDecodeError, RecursionError) as error:
                problem = getattr(error, "msg", "too deep a nesting")
                place = getattr(error, "pos", at)
                if place < len(held) - 16 and not problem.startswith("Unterminated string"):
                    raise wrong(place, problem) from None
            if not problem:
                break
            if len(held) - at > LONGEST_LINE:
                raise wrong(at, f"the item {TOO_LONG},")
            block *= 2
            if not more():
                raise wrong(at, problem)
        block, item = _BLOCK, held[at:end]
        at, is_first = end, False
        # line breaks inside texts are escaped: these separate the parts of the item
        yield item.replace("\r", " ").replace("\n", " ").encode("utf-8", "surrogateescape")
