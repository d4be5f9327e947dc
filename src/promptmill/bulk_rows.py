"""Rows that a program has, in any of the forms that programs have them, as lines of JSON."""

from __future__ import annotations

import base64
import io
from array import array
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import orjson

from promptmill.core.errors import input_error
from promptmill.core.wording import shape

_AT_ONCE = 1024
_OPTIONS = orjson.OPT_NON_STR_KEYS | orjson.OPT_SERIALIZE_NUMPY
ANSWERS = ("answer", "error", "finish_reason")


class Offsets:
    """Where each line of a file begins, noted while it is written."""

    def __init__(self) -> None:
        self._at = array("Q", [0])

    def __len__(self) -> int:
        return len(self._at) - 1

    def passed(self, line: bytes) -> bytes:
        """Note `line` and return it."""
        self._at.append(self._at[-1] + len(line))
        return line

    def read(self, file: Path, row: int) -> dict[str, Any]:
        """Return what is in line `row` of `file`."""
        with file.open("rb") as opened:
            opened.seek(self._at[row])
            found: dict[str, Any] = orjson.loads(opened.read(self._at[row + 1] - self._at[row]))
            return found


def lines(rows: Any) -> Iterator[bytes]:
    """Yield `rows` as lines of JSON: texts, dicts, lists of messages, or a table.

    Bytes and Pillow's images become base64. Raises `PromptmillError` (`invalid_input`).
    """
    for index, row in enumerate(_rows(rows)):
        match row:
            case str():
                found: Mapping[Any, Any] = {"prompt": row}
            case list() | tuple():
                found = {"messages": row}
            case Mapping():
                found = row
            case _:
                raise input_error(f"rows[{index}] is {shape(row)}; send a text, a dict or a list of messages.")
        try:
            yield orjson.dumps(found, option=_OPTIONS | orjson.OPT_APPEND_NEWLINE, default=_as_json)
        except TypeError as error:
            raise input_error(f"rows[{index}] cannot be written as JSON: {error}.") from None


def _rows(rows: Any) -> Iterable[Any]:
    if isinstance(rows, str | bytes | Mapping):
        raise input_error("rows is one row; send a list of rows, a table, or the path of a file as a pathlib.Path.")
    if hasattr(rows, "features") and hasattr(rows, "with_format"):  # of `datasets`: its images as they are kept
        return (row for table in rows.with_format("arrow").iter(_AT_ONCE) for row in table.to_pylist())
    if hasattr(rows, "to_batches"):  # pyarrow
        return (row for batch in rows.to_batches(_AT_ONCE) for row in batch.to_pylist())
    if hasattr(rows, "iter_rows"):  # polars
        return rows.iter_rows(named=True)  # type: ignore[no-any-return]
    if hasattr(rows, "to_dict") and hasattr(rows, "iloc"):  # pandas
        return (row for at in range(0, len(rows), _AT_ONCE) for row in rows.iloc[at : at + _AT_ONCE].to_dict("records"))
    if not isinstance(rows, Iterable):
        raise input_error(f"rows is {shape(rows)}; send a list of rows or a table.")
    return rows


def _as_json(value: Any) -> Any:
    if isinstance(value, bytes | bytearray | memoryview):
        return base64.b64encode(value).decode()
    if hasattr(value, "save") and hasattr(value, "getbands"):  # Pillow's
        buffer = io.BytesIO()
        value.save(buffer, "PNG")
        return base64.b64encode(buffer.getvalue()).decode()
    return str(value)


def joined(
    rows: Any,
    answers: Sequence[Mapping[str, Any]],
    names: Mapping[str, str] = MappingProxyType({}),
    left_out: Collection[int] = (),
) -> Any:
    """Return the table `rows` with the columns `answer`, `error` and `finish_reason`, as a table of the same kind.

    `names`: those of the columns that are not these. `left_out`: rows without an answer, which are left out.
    """
    called = [names.get(name, name) for name in ANSWERS]
    columns: dict[str, list[str | None]] = {name: [_cell(row.get(name)) for row in answers] for name in called}
    if left_out:
        rows = _without(rows, set(left_out))
    if hasattr(rows, "add_column") and hasattr(rows, "features"):
        for name, values in columns.items():
            rows = rows.add_column(name, values)
        return rows
    if hasattr(rows, "append_column"):
        import pyarrow as pa

        for name, values in columns.items():
            rows = rows.append_column(name, pa.array(values, pa.string()))
        return rows
    if hasattr(rows, "with_columns"):
        import polars as pl

        return rows.with_columns(*(pl.Series(name, values) for name, values in columns.items()))
    if hasattr(rows, "assign"):
        return rows.assign(**columns)
    raise input_error("The rows are no table; `rows` of the result has them with their answers.")


def _without(rows: Any, left_out: Collection[int]) -> Any:
    """Return a table without the rows at these places."""
    kept = [at for at in range(len(rows)) if at not in left_out]
    if hasattr(rows, "iloc"):
        return rows.iloc[kept]
    if hasattr(rows, "features"):  # of `datasets`
        return rows.select(kept)
    return rows.take(kept) if hasattr(rows, "append_column") else rows[kept]  # pyarrow, polars


def _cell(value: Any) -> str | None:
    if isinstance(value, Mapping):
        return f"{value['code']}: {value['message']}"
    return value if value is None else str(value)
