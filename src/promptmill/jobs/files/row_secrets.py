"""Keys and passwords in a file of rows, which a call may then not use; `system.call_files` has the reason.

The content is checked, not the prompts: the author of a template could take a key apart. All columns count, because a
result may show the whole row. The names of columns count, too: password managers export a column `password`.

The beginning is checked before a call returns, so that a refusal is its error and no error quotes a column that is a
password. The whole content is checked by the run of the job, before its first request.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from promptmill.core.errors import PromptmillError, input_error
from promptmill.core.secret_text import SecretFinder, find_field
from promptmill.jobs.files import row_files
from promptmill.jobs.files.row_files import InputFiles
from promptmill.jobs.files.spool import HaltedError
from promptmill.jobs.files.tables import CellTable, ParquetTable, texts_in
from promptmill.system.call_files import MAY_HOLD_SECRETS, FileRule

_BLOCK = 1 << 20
_BEGINNING = 4 << 20  # most files of a call are smaller; it takes 30 ms
OTHERWISE = "Name another file, or answer this one with `promptmill bulk` in a shell, which has no such limit."


def check_beginning(files: InputFiles, rule: FileRule) -> None:
    """Raise `PromptmillError` (`invalid_input`) for secrets in the first megabytes, unless the file is Parquet."""
    if rule.is_guarded and not _is_parquet(files):
        _check(files, rule.finder, _BEGINNING, None)


def check(files: InputFiles, rule: FileRule, halt: threading.Event | None = None) -> None:
    """Raise `PromptmillError` (`invalid_input`) for secrets anywhere; `HaltedError` once `halt` is set. Blocks."""
    if rule.is_guarded:
        _check(files, rule.finder, None, halt)


def check_columns(files: InputFiles, rule: FileRule) -> None:
    """Raise `PromptmillError` (`invalid_input`) if a column of Parquet has the name of a secret."""
    if rule.is_guarded and _is_parquet(files):
        _refuse_fields(files, 0, _names_in(ParquetTable(files).schema))


def _is_parquet(files: InputFiles) -> bool:
    return row_files.format_by_suffix(files.parts[0].path, "input file") == "parquet"


def _check(files: InputFiles, finder: SecretFinder, most: int | None, halt: threading.Event | None) -> None:
    if _is_parquet(files):
        table = ParquetTable(files)
        _refuse_fields(files, 0, _names_in(table.schema))
        for batch in table.batches():
            _look(halt)
            for column, text in texts_in(batch):
                if words := finder.find(text):
                    raise _refusal(files, 0, f"{words} in the column {column!r:.60}")
        return
    for at in range(len(files.parts)):
        with files.stream(at) as stream:
            size = 0

            def blocks() -> Iterator[bytes]:
                nonlocal size
                while (most is None or size < most) and (block := stream.read(_BLOCK)):
                    _look(halt)
                    size += len(block)
                    yield block

            words, line = finder.find_in(blocks())
            if words:
                raise _refusal(files, at, f"{words} in line {line}" if line else words)
    kind = row_files.format_of_input(files)
    if kind in row_files.CELLS:
        _refuse_fields(files, 0, CellTable(files, kind).header)
    else:
        _refuse_fields(files, 0, (name for row in row_files.first_objects(files) for name in _texts_of(row)))


def _look(halt: threading.Event | None) -> None:
    if halt is not None and halt.is_set():
        raise HaltedError


def _texts_of(value: Any) -> Iterator[str]:
    """Yield the names of the fields with texts in an object, at any depth."""
    if isinstance(value, Mapping):
        for name, inner in value.items():
            if isinstance(inner, str) and inner:
                yield name
            else:
                yield from _texts_of(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _texts_of(inner)


def _names_in(kind: Any) -> Iterator[str]:
    """Yield the names of the fields of an Arrow schema or type, at any depth."""
    for at in range(len(kind) if hasattr(kind, "names") and hasattr(kind, "metadata") else kind.num_fields):
        inner = kind.field(at)
        yield inner.name
        yield from _names_in(inner.type)


def _refuse_fields(files: InputFiles, at: int, names: Iterable[str]) -> None:
    if name := find_field(names):
        raise _refusal(files, at, f"its column {name!r:.60}")


def _refusal(files: InputFiles, at: int, words: str) -> PromptmillError:
    return input_error(f"{files.parts[at].path.name} {MAY_HOLD_SECRETS}: {words}. {OTHERWISE}")
