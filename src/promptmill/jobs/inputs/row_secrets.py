"""Finds keys and passwords in files of rows. A call may not use a file that has any, see `system.call_files`.

The check reads the content, not the prompts, because a template could split a key into pieces. It reads all columns,
because a result may show whole rows, and all column names, because password managers export a column `password`.

The beginning of the file is checked before the call returns, so that the call itself can be refused, and so that no
error about columns quotes a password. All rows are checked in the job's database, before the first request.

A query could also split a key into pieces, so all tables of its database are checked.
"""

from __future__ import annotations

import codecs
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from promptmill.core import values
from promptmill.core.errors import Named, PromptmillError, input_error
from promptmill.core.secret_text import find_field
from promptmill.core.values import JsonObject, json_text
from promptmill.files import path_formats
from promptmill.files.files import InputFiles
from promptmill.files.format_table import of_input
from promptmill.files.row import Style
from promptmill.files.sql_table import blocks_of_tables, columns_of_tables
from promptmill.jobs.inputs.any_format import first_rows, format_of_input, input_of
from promptmill.jobs.store.database import JobDatabase, Work
from promptmill.jobs.store.spec import InputSpec
from promptmill.system.call_files import MAY_HOLD_SECRETS, FileRule

_BLOCK = 1 << 20
_BYTES = b"promptmill:bytes"  # the mark of bytes in the JSON of `values`
_BEGINNING = 4 << 20  # the number of bytes that are checked first, which takes 30 ms; most files of calls are smaller
_SMALL_BLOCK = 16 << 10  # the size of the smallest block that is read of each file, if there are many files
_ASCII = bytes(range(128))
_MARKS = {
    "utf-16": (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE),
    "utf-32": (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE),
}
"""The byte-order marks with which a text begins, for the encodings that do not extend ASCII."""
OTHERWISE = "Name another file, or answer this one with `promptmill bulk` in a shell, which has no such limit."


def check_beginning(files: InputFiles, rule: FileRule) -> None:
    """Raise `PromptmillError` (`invalid_input`) if the first megabytes of the text contain secrets."""
    if not path_formats.format_of_input(files.parts[0].path).is_text:
        return
    block = max(_SMALL_BLOCK, _BLOCK // len(files.parts))
    for at, part in enumerate(files.parts):
        with files.stream(at) as stream:
            blocks = [stream.read(block) for _ in range(_BEGINNING // _BLOCK)]
        words, line = rule.finder.find_in(blocks)
        if words:
            raise _refusal(part.path.name, f"{words} in line {line}" if line else words)
        marks = _MARKS.get(_codec(files.encoding), ())
        if marks and blocks[0] and not blocks[0].startswith(marks):  # without a mark, text could become random letters
            raise input_error(f"{part.path.name} has no byte-order mark of ", Named("encoding", files.encoding), ".")
    check_names(files, format_of_input(files), rule)


def check_names(files: InputFiles, input_format: str, rule: FileRule) -> None:
    """Raise `PromptmillError` (`invalid_input`) if a column, or a field of the first rows, is named like a secret."""
    name = files.parts[0].path.name
    if of_input(input_format).is_table:
        table = input_of(files, input_format)
        check_columns(name, table.header, table.style, rule)
    elif rule.is_guarded:
        _check_names(name, _names_of_texts(first_rows(files, input_format)))


def check_encoding(encoding: str | None) -> None:
    """Raise `PromptmillError` (`invalid_input`) for an encoding that would hide the secrets of an ASCII text.

    EBCDIC, for example, reads ASCII text as other characters, which the receiver can convert back.
    """
    if _codec(encoding) in _MARKS:
        return
    try:
        is_ascii = _ASCII.decode(encoding or "utf-8") == _ASCII.decode("ascii")
    except (LookupError, ValueError):
        is_ascii = False
    if not is_ascii:
        usable = "; a call takes utf-16, utf-32, and encodings that extend ASCII, such as cp1252."
        raise input_error(Named("encoding"), f": {str(encoding)[:20]!r} is not for calls{usable}")


def _codec(encoding: str | None) -> str:
    return codecs.lookup(encoding or "utf-8").name


def check_columns(file: str, header: Sequence[str], style: Style, rule: FileRule) -> None:
    """Raise `PromptmillError` (`invalid_input`) if a column, or a field inside it, is named like a secret.

    Texts above the header count as column names: a call must not be able to hide them by a header in a later row.
    """
    if not rule.is_guarded:
        return
    _check_names(file, [*header, *style.above])
    if style.arrow_schema:
        from promptmill.files.parquet import unpacked_schema  # imported on use: it needs pyarrow

        _check_names(file, _names_in(unpacked_schema(style.arrow_schema)))


def check(store: JobDatabase, source: InputSpec, rule: FileRule, work: Work) -> None:
    """Look for secrets in all rows of a job. Blocks for 10 s per gigabyte.

    Raises `PromptmillError` (`invalid_input`), `HaltedError`.
    """
    if not rule.is_guarded:
        return
    name = source.path.name
    check_columns(name, source.header, source.style, rule)
    for part in source.parts:
        if part.query:
            _check_tables(part.path, rule)

    def lines() -> Iterator[bytes]:
        first = 0
        while page := store.row_page(first):
            yield b"".join(b"%b\n" % _readable(row.cells or b"") for row in page)
            first = page[-1].n + 1
            work.done(first)

    words, line = rule.finder.find_in(lines())
    if words:
        raise _refusal(name, f"{words} in row {line}" if line else words)


def check_rows(file: str, rows: Sequence[JsonObject], rule: FileRule) -> None:
    """Look for secrets in rows that are in memory. Raises `PromptmillError` (`invalid_input`)."""
    if not rule.is_guarded:
        return
    _check_names(file, (name for row in rows for name in row))
    _check_names(file, _names_of_texts(rows))
    words, line = rule.finder.find_in(f"{json_text(row)}\n".encode() for row in rows)
    if words:
        raise _refusal(file, f"{words} in row {line}" if line else words)


def _check_tables(database: Path, rule: FileRule) -> None:
    try:
        _check_names(database.name, columns_of_tables(database))
        words, _ = rule.finder.find_in(blocks_of_tables(database))
    except sqlite3.Error as error:
        raise input_error(f"{database.name} cannot be read: {error}.") from None
    if words:
        raise _refusal(database.name, words)


def _readable(cells: bytes) -> bytes:
    """Return the cells of a row as one line of text, followed by the content of those cells that are bytes."""
    if _BYTES not in cells:
        return cells
    return b" ".join([cells, *(data.replace(b"\n", b" ") for data in _bytes_in(values.loads(cells)))])


def _bytes_in(value: Any) -> Iterator[bytes]:
    match value:
        case bytes():
            yield value
        case list() | dict():
            for inner in value if isinstance(value, list) else value.values():
                yield from _bytes_in(inner)


def _names_of_texts(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        for name, inner in value.items():
            if isinstance(inner, str) and inner:
                yield name
            else:
                yield from _names_of_texts(inner)
    elif isinstance(value, Iterable) and not isinstance(value, str):
        for inner in value:
            yield from _names_of_texts(inner)


def _names_in(kind: Any) -> Iterator[str]:
    for at in range(len(kind) if hasattr(kind, "names") and hasattr(kind, "metadata") else kind.num_fields):
        inner = kind.field(at)
        yield inner.name
        yield from _names_in(inner.type)


def _check_names(file: str, names: Iterable[str]) -> None:
    if name := find_field(names):
        raise _refusal(file, f"its column {name!r:.60}")


def _refusal(file: str, words: str) -> PromptmillError:
    return input_error(f"{file} {MAY_HOLD_SECRETS}: {words}. {OTHERWISE}")
