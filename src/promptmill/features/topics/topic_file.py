"""The file of the topics, in several formats."""

from __future__ import annotations

import csv
import functools
import io
import itertools
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType
from typing import IO

import orjson

from promptmill.core.errors import PromptmillError, input_error
from promptmill.core.feature import Format, part
from promptmill.core.values import JsonDict, JsonObject
from promptmill.features.topics.lists import QUOTES
from promptmill.files import disk, format_table, table_paths
from promptmill.files.path_formats import check_installed
from promptmill.jobs.inputs.any_format import objects_in
from promptmill.jobs.manage.series_file import SeriesFile
from promptmill.system.safe_open import real_path


def _write_cells(out: IO[bytes], rows: Sequence[JsonObject], delimiter: str) -> None:
    text = io.StringIO(newline="")
    table = csv.DictWriter(text, [*rows[0]], delimiter=delimiter, lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    out.write(text.getvalue().encode())


def _write_lines(out: IO[bytes], rows: Sequence[JsonObject]) -> None:
    out.writelines(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE) for row in rows)


def _write_array(out: IO[bytes], rows: Sequence[JsonObject]) -> None:
    out.write(orjson.dumps(rows, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))


def _write_sheet(out: IO[bytes], rows: Sequence[JsonObject]) -> None:
    from promptmill.jobs.export.workbook_file import write_sheet  # imported on use, by few searches

    write_sheet(out, "Topics", [[*rows[0]], *([*row.values()] for row in rows)])


def _write_parquet(out: IO[bytes], rows: Sequence[JsonObject]) -> None:
    from pyarrow import Table, parquet

    from promptmill.jobs.export.parquet_file import ColumnTypes  # imported on use, because it needs pyarrow

    types = ColumnTypes()
    for row in rows:
        types.include(row)
    parquet.write_table(Table.from_batches([types.batch(rows)]), out)


_WRITERS: Mapping[str, Callable[[IO[bytes], Sequence[JsonObject]], None]] = MappingProxyType(
    {
        "jsonl": _write_lines,
        "json": _write_array,
        "csv": functools.partial(_write_cells, delimiter=","),
        "tsv": functools.partial(_write_cells, delimiter="\t"),
        "parquet": _write_parquet,
        "xlsx": _write_sheet,
    }
)
"""The writers of promptmill's own formats, see `Format.key`. (Jobs write rows of their database instead.)"""


def _is_for_topics(its: Format | None) -> bool:
    """Return whether topics can be written in a format, and read as labels."""
    return its is not None and its.is_read and bool(its.write or its.key in _WRITERS)


class TopicFile(SeriesFile):
    """The file that a search writes."""

    def check(self, sources: Sequence[Path]) -> None:
        """Raise `PromptmillError` (`invalid_input`, `missing_dependency`) for a file that cannot be written, or that is
        one of `sources`."""
        path = self.path
        if not _is_for_topics(format_table.writing(path.name)):
            known = (each.names[0] for each in format_table.all_formats() if _is_for_topics(each))
            raise input_error(f"{path.name} is no name for topics: it ends in {', '.join(known)}.")
        if not path.absolute().parent.is_dir():
            raise input_error(
                f"The folder {path.absolute().parent} of the output is missing; make it, or name another."
            )
        if real_path(path.absolute()) in {real_path(table_paths.file_of(source).absolute()) for source in sources}:
            raise input_error("Input and output are the same file; name another output.")
        check_installed(path)

    def write(self, figures: JsonObject) -> None:
        """Write the topics. Raises `PromptmillError`, also if the file has other content and must not be replaced."""
        its = format_table.writing(self.path.name)
        assert its is not None  # `check` has refused other files
        with self.new(its.names[0]) as path:
            _write(its, [_row(topic) for topic in figures["topics"]], path)

    def is_equal(self, written: Path) -> bool:
        """Return whether the file has the topics of `written`. (Workbooks also store a time, so bytes may differ.)"""
        with suppress(PromptmillError):
            pairs = itertools.zip_longest(objects_in(self.path), objects_in(written))
            return all(one == other for one, other in pairs)
        return False


def _write(its: Format, rows: Sequence[JsonDict], path: Path) -> None:
    """Write rows into a new file. Raises `OSError`, `PromptmillError`."""
    if its.write:
        part(its.write)(rows, path)
        return
    with os.fdopen(disk.created(path, disk.PUBLIC_FILE), "wb") as file:
        _WRITERS[its.key](file, rows)


def _row(topic: JsonObject) -> JsonDict:
    """Return the row of a topic, with its share and the ends of the share's interval, from 0 to 1."""
    low, high = topic["interval"] or (None, None)
    shares = {"share": topic["share"], "share_from": low, "share_to": high}
    rounded = {name: None if value is None else round(value, 4) for name, value in shares.items()}
    texts = [quote["text"] for quote in topic["quotes"]]
    quotes = {f"quote_{at + 1}": texts[at] if at < len(texts) else "" for at in range(QUOTES)}
    return {"label": topic["label"], "definition": topic["definition"], **rounded, **quotes}
