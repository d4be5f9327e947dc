"""The file of the topics: its formats, and when a search may replace it."""

from __future__ import annotations

import csv
import functools
import hashlib
import io
import itertools
import os
import secrets
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import IO

import orjson

from promptmill.core.errors import Code, Named, PromptmillError, input_error
from promptmill.core.feature import Format, part
from promptmill.core.values import JsonDict, JsonObject
from promptmill.features.topics.lists import QUOTES
from promptmill.jobs import disk, format_table, members
from promptmill.jobs.door import OpenJob
from promptmill.jobs.inputs.any_format import objects_in
from promptmill.jobs.inputs.formats import check_installed
from promptmill.jobs.store.folder import Folder
from promptmill.system.safe_open import real_path

_MARK = "topics.json"
"""A file in the folder of the first job of a search: the digest of each file that the search wrote."""


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
"""The writers of promptmill's own formats, see `Format.key`. Other jobs write rows of a database."""


def _is_for_topics(its: Format | None) -> bool:
    """Return whether topics can be written in a format, and read as labels."""
    return its is not None and its.is_read and bool(its.write or its.key in _WRITERS)


@dataclass
class TopicFile:
    """The file that a search writes. It does not replace another file, unless the user wishes it.

    With `sends_again`, the topics may differ from the topics of an earlier run of the search, whose file is replaced if
    it is unchanged.
    """

    path: Path
    overwrite: bool = False
    """Whether any file may be replaced."""
    sends_again: bool = False
    """Whether failed requests are sent again."""
    _first: Folder | None = field(default=None, repr=False)
    """The folder of the first job of the search."""

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
        if real_path(path.absolute()) in {real_path(members.file_of(source).absolute()) for source in sources}:
            raise input_error("Input and output are the same file; name another output.")
        check_installed(path)

    def check_free(self, job: OpenJob) -> None:
        """Raise `PromptmillError` (`invalid_input`) before the first request of a step if another file would be
        replaced.

        A search all of whose jobs are there may have written the file itself; one with a new job has not.
        """
        assert job.loose is not None
        self._first = self._first or job.loose
        may_change = self.sends_again or not job.loose.path.exists()
        if may_change and self.path.exists() and not self._may_replace():
            whose = ", and is not as this search wrote it" if self.sends_again else ""
            raise input_error(
                f"{self.path} exists{whose}; name another file", Named("overwrite", text="; {} replaces it"), "."
            )

    def write(self, figures: JsonObject) -> None:
        """Write the topics. Raises `PromptmillError`, also if the file has another content and must stay."""
        its = format_table.writing(self.path.name)
        assert its is not None  # `check` has looked
        beside = self.path.with_name(f".promptmill-{secrets.token_hex(8)}{its.names[0]}")
        try:
            try:
                _write(its, [_row(topic) for topic in figures["topics"]], beside)
                if self._is_other_than(beside) and not self._may_replace():
                    raise input_error(
                        f"{self.path} exists and has another content; name another file, or move it away",
                        Named("overwrite", text="; {} replaces it"),
                        ". The answers are kept: the same search pays for nothing again.",
                    )
                disk.replace(beside, self.path)
            finally:
                beside.unlink(missing_ok=True)
            self._mark()
        except OSError as error:
            raise PromptmillError(Code.STORAGE, f"{self.path} cannot be written: {disk.why(error)}.", "") from None

    def _is_other_than(self, written: Path) -> bool:
        """Return whether the file exists with other topics. (Two workbooks with equal cells differ in their time.)"""
        if not self.path.exists():
            return False
        with suppress(PromptmillError):
            pairs = itertools.zip_longest(objects_in(self.path), objects_in(written))
            return any(one != other for one, other in pairs)
        return True

    def _may_replace(self) -> bool:
        return self.overwrite or (self.sends_again and self._marks().get(self._name) == self._digest())

    @property
    def _name(self) -> str:
        return str(real_path(self.path.absolute()))

    def _digest(self) -> str:
        with suppress(OSError), self.path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
        return ""

    def _marks(self) -> JsonDict:
        """Return the digests of the files that this search wrote, by their names."""
        assert self._first is not None
        with suppress(OSError, orjson.JSONDecodeError):
            marks: JsonDict = orjson.loads((self._first.path / _MARK).read_bytes())
            return marks
        return {}

    def _mark(self) -> None:
        assert self._first is not None
        with suppress(FileNotFoundError):  # the jobs have been removed meanwhile
            (self._first.path / _MARK).write_bytes(orjson.dumps(self._marks() | {self._name: self._digest()}))


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
