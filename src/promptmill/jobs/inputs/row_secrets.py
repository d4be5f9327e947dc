"""Keys and passwords in a file of rows: a call may not use such a file, see `system.call_files` for the reason.

The content is checked, not the prompts: the author of a template could take a key apart. All columns count, because a
result may show the whole row. The names of columns count, too: password managers export a column `password`.

The beginning is checked before a call returns, so that a refusal is its error and no error quotes a column that is a
password. All rows are checked in the database of the job, before its first request.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from promptmill.core import values
from promptmill.core.errors import PromptmillError, input_error
from promptmill.core.secret_text import find_field
from promptmill.jobs.inputs.any_format import format_of_input, input_of
from promptmill.jobs.inputs.cells import CellTable
from promptmill.jobs.inputs.files import InputFiles
from promptmill.jobs.inputs.formats import CELLS, format_by_suffix
from promptmill.jobs.inputs.json_lines import first_objects
from promptmill.jobs.store.database import HaltedError, JobDatabase
from promptmill.jobs.store.spec import InputSpec
from promptmill.system.call_files import MAY_HOLD_SECRETS, FileRule

_PACKED = frozenset({"parquet", "xlsx"})  # calls may name no database
_BLOCK = 1 << 20
_BYTES = b"promptmill:bytes"  # the tag of `values`
_BEGINNING = 4 << 20  # most files of a call are smaller; it takes 30 ms
OTHERWISE = "Name another file, or answer this one with `promptmill bulk` in a shell, which has no such limit."


def check_beginning(files: InputFiles, rule: FileRule) -> None:
    """Raise `PromptmillError` (`invalid_input`) for secrets in the first megabytes of text."""
    if not rule.is_guarded or _format(files) in _PACKED:
        return
    with files.stream() as stream:
        blocks = (stream.read(_BLOCK) for _ in range(_BEGINNING // _BLOCK))
        words, line = rule.finder.find_in(blocks)
        if words:
            raise _refusal(files.parts[0].path.name, f"{words} in line {line}" if line else words)
    kind = format_of_input(files)
    names = CellTable(files, kind).header if kind in CELLS else _names_of_texts(first_objects(files))
    _check_names(files.parts[0].path.name, names)


def check_columns(files: InputFiles, rule: FileRule) -> None:
    """Raise `PromptmillError` (`invalid_input`) if columns of Parquet or of a sheet have names of secrets."""
    if rule.is_guarded and _format(files) == "xlsx":
        _check_names(files.parts[0].path.name, input_of(files, "xlsx").header)
    if rule.is_guarded and _format(files) == "parquet":
        from promptmill.jobs.inputs.parquet import ParquetTable  # imported where it is needed

        _check_names(files.parts[0].path.name, _names_in(ParquetTable(files).schema))


def check(
    store: JobDatabase, source: InputSpec, rule: FileRule, note: Callable[[int], None], halt: threading.Event
) -> None:
    """Look for secrets in all rows of a job. `note` gets the number of rows so far. Blocks, 10 s per gigabyte.

    Raises `PromptmillError` (`invalid_input`), `HaltedError` once `halt` is set.
    """
    if not rule.is_guarded:
        return
    name = source.path.name
    _check_names(name, source.header)
    if source.arrow_schema:
        from promptmill.jobs.inputs.parquet import unpacked_schema  # imported where it is needed

        _check_names(name, _names_in(unpacked_schema(source.arrow_schema)))

    def lines() -> Iterator[bytes]:
        first = 0
        while page := store.row_page(first):
            if halt.is_set():
                raise HaltedError
            yield b"".join(b"%b\n" % _readable(row.cells or b"") for row in page)
            first = page[-1].n + 1
            note(first)

    words, line = rule.finder.find_in(lines())
    if words:
        raise _refusal(name, f"{words} in row {line}" if line else words)


def _readable(cells: bytes) -> bytes:
    """Return the cells of a row on one line, with the bytes among them as they are."""
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


def _format(files: InputFiles) -> str:
    return format_by_suffix(files.parts[0].path, "input file")


def _names_of_texts(value: Any) -> Iterator[str]:
    """Yield the names of the fields with texts in objects, at any depth."""
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
    """Yield the names of the fields of an Arrow schema or type, at any depth."""
    for at in range(len(kind) if hasattr(kind, "names") and hasattr(kind, "metadata") else kind.num_fields):
        inner = kind.field(at)
        yield inner.name
        yield from _names_in(inner.type)


def _check_names(file: str, names: Iterable[str]) -> None:
    if name := find_field(names):
        raise _refusal(file, f"its column {name!r:.60}")


def _refusal(file: str, words: str) -> PromptmillError:
    return input_error(f"{file} {MAY_HOLD_SECRETS}: {words}. {OTHERWISE}")
