"""The only table of formats: promptmill's own formats and those of features, by suffix and by name.

    `labels.csv.gz` ─ without `.gz` ─▶ `.csv` ─┬─▶ `reading`: how rows are read       ─▶ `.key` ─▶ the job's database
                                               ├─▶ `writing`: how rows are written    ─▶ `.key` ─▶ the job's database
                                               └─▶ `whole`: what the whole file is, if it is one row
    the job's database ─ name ─▶ `of_input`, `of_output`

A suffix may have one format for `reading`, another for `writing`, and a third for `whole`. `path_formats` applies the
table to paths. A job looks a format up once, not for each row.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from promptmill.core.errors import config_error
from promptmill.core.feature import WITHOUT, Format, formats

COMPRESSED: Mapping[str, Sequence[str]] = MappingProxyType({".gz": (), ".zst": ("pyarrow",)})
"""The suffixes of compressed files, which follow the suffix of a format, and the modules that each needs."""
_FILES, _EXPORT = "promptmill.files", "promptmill.jobs.export"
_LINES, _CELLS = f"{_EXPORT}.text:text_form", "columns `prompt`, `messages` (JSON), `images` (one path, or a JSON list)"
_OWN = (
    Format(
        names=(".jsonl", ".ndjson"),
        input=f"{_FILES}.json_lines:JsonLines",
        lines=_LINES,
        is_text=True,
        is_followed=True,
        is_read_by_calls=True,
        is_written_by_calls=True,
        words='`{"prompt": "…"}` or `{"messages": […]}`, with `image` or `images`; also lines of a Batch file, as '
        "OpenAI, vLLM, Azure, Mistral and Together have them",
    ),
    Format(
        names=(".json",),
        read_as="jsonl",
        output=f"{_EXPORT}.text:write_array",
        is_text=True,
        is_list=True,
        is_followed=True,
        words="the same, as one array or as lines",
    ),
    Format(
        names=(".csv",),
        rows="texts",
        input=f"{_FILES}.delimited:CSV",
        lines=_LINES,
        delimiter=",",
        is_text=True,
        has_header=True,
        is_read_by_calls=True,
        is_written_by_calls=True,
        words=_CELLS,
    ),
    Format(
        names=(".tsv",),
        rows="texts",
        input=f"{_FILES}.delimited:TSV",
        lines=_LINES,
        delimiter="\t",
        is_text=True,
        has_header=True,
        is_read_by_calls=True,
        is_written_by_calls=True,
        words="the columns of CSV",
    ),
    Format(
        names=(".txt",),
        rows="texts",
        input=f"{_FILES}.delimited:TEXT",
        whole="text",
        is_text=True,
        words="a line, which is the prompt, or `{{text}}` in a template",
    ),
    Format(
        names=(".parquet",),
        rows="cells",
        input=f"{_FILES}.parquet:ParquetTable",
        output=f"{_EXPORT}.parquet_file:write_parquet",
        is_read_by_calls=True,
        is_written_by_calls=True,
        packages=("pyarrow",),
        extra="files",
        title="Parquet",
        words="the columns of CSV",
    ),
    Format(
        names=(".arrow", ".feather"),
        rows="cells",
        output=f"{_EXPORT}.parquet_file:write_arrow",
        packages=("pyarrow",),
        extra="files",
        title="Arrow",
    ),
    Format(
        names=(".xlsx",),
        only_read=(".xlsm", ".xlsb", ".xls", ".ods"),
        rows="cells",
        input=f"{_FILES}.workbook:SheetTable",
        output=f"{_EXPORT}.workbook_file:write_workbook",
        has_header=True,
        has_sheets=True,
        is_read_by_calls=True,
        is_written_by_calls=True,
        packages=("python_calamine",),
        extra="files",
        words="a row of a sheet; `book.xlsx#Mails` names the sheet",
    ),
    Format(
        names=(".db", ".sqlite", ".sqlite3"),
        name="sql",
        rows="cells",
        input=f"{_FILES}.sql_table:SqlTable",
        database="promptmill.files.databases:Database",
        is_read_by_calls=True,
        words="a row of a table, `mails.db#inbox`, or of a query (`sql`)",
    ),
    Format(
        name="batch",
        rows="requests",
        input=f"{_FILES}.json_lines:JsonLines",
        lines=_LINES,
        is_text=True,
        is_followed=True,
    ),
    Format(name="messages", rows="requests"),
    Format(names=(".md", ".markdown", ".rst", ".rtf"), name="text", whole="text"),
    Format(
        names=(".docx",),
        whole="document",
        text=f"{_FILES}.word:word_text",
        packages=("docx",),
        extra="files",
        title="python-docx",
    ),
    Format(names=(".html", ".htm", ".xhtml"), whole="document", text=f"{_FILES}.web_pages:page_text"),
    Format(names=(".eml", ".emlx", ".mht", ".mhtml"), whole="document", text=f"{_FILES}.mails:mail_text"),
    Format(names=(".mbox",), whole="mailbox", text=f"{_FILES}.mails:mail_text"),
    Format(names=(".pdf",), whole="pdf"),
    Format(names=(".wav", ".mp3", ".m4a", ".flac", ".ogg"), whole="audio"),
    Format(names=(".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".avif", ".ico"), whole="image"),
    Format(names=(".tif", ".tiff"), whole="images"),
)
"""promptmill's own formats."""


def reading(name: str | Path) -> Format | None:
    """Return the format in which rows are read from a file with this name; None if it cannot be read as rows."""
    return _found(_table().read, name)


def writing(name: str | Path) -> Format | None:
    """Return the format in which rows are written to a file with this name; None if no rows can be written to it."""
    return _found(_table().written, name)


def whole(name: str | Path) -> Format | None:
    """Return the format of a whole file with this name, see `Format.whole`; None for other files, such as programs."""
    return _found(_table().whole, name)


def is_image(name: str | Path) -> bool:
    """Return whether a file with this name is an image."""
    found = whole(name)
    return found is not None and found.whole in {"image", "images"}


def image_suffixes() -> tuple[str, ...]:
    """Return the suffixes of images, for a comparison with many names."""
    return tuple(suffix for suffix, each in _table().whole.items() if each.whole in {"image", "images"})


def has_tables(name: str | Path) -> bool:
    """Return whether a file with this name may have several tables, such as `labels.xlsx#Sheet2`."""
    return any(found is not None and found.has_tables for found in (reading(name), writing(name)))


def database(name: str | Path) -> str:
    """Return the kind of the database with this file name, see `Format.database`; `""` if it is no database."""
    found = reading(name)
    return "" if found is None else found.database


def of_input(key: str) -> Format:
    """Return an input's format by its key in a job's database. If its feature is missing, nothing is read."""
    return _table().inputs.get(key) or Format(name=key)


def of_output(key: str) -> Format:
    """Return an output's format by its key in a job's database. If its feature is missing, nothing is written."""
    return _table().outputs.get(key) or Format(name=key)


def store(url: str) -> str:
    """Return the store for the scheme of a URL, see `Format.store`; `""` if no feature has a store for the scheme."""
    return _table().stores.get(url.partition("://")[0].lower(), "")


def all_formats() -> Sequence[Format]:
    """Return all formats, with the features' formats last."""
    return _table().formats


@dataclass(frozen=True, slots=True)
class _Table:
    formats: Sequence[Format] = field(default_factory=list)
    read: dict[str, Format] = field(default_factory=dict)
    written: dict[str, Format] = field(default_factory=dict)
    whole: dict[str, Format] = field(default_factory=dict)
    inputs: dict[str, Format] = field(default_factory=dict)
    outputs: dict[str, Format] = field(default_factory=dict)
    stores: dict[str, str] = field(default_factory=dict)

    def add(self, each: Format) -> str:
        """Add a format. Return the suffix or the name that another format has already; `""` if there is none."""
        if each.store:
            self.stores.update(dict.fromkeys((name.removesuffix("://").lower() for name in each.names), each.store))
            return ""
        roles = [(self.whole, each.names if each.whole else ())]
        if each.is_read or not each.names:
            roles += [(self.read, (*each.names, *each.only_read)), (self.inputs, (each.key,))]
        if each.is_written or not each.names:
            roles += [(self.written, each.names), (self.outputs, (each.key,))]
        for known, names in roles:
            for name in map(str.lower, names):
                if known.setdefault(name, each) is not each:
                    return name
        return ""


def _table() -> _Table:
    return _table_without(os.environ.get(WITHOUT, ""))


@functools.cache
def _table_without(hidden: str) -> _Table:
    """Return the table. `hidden`: the features that are hidden. Raises `PromptmillError` (`invalid_config`)."""
    del hidden  # `formats` reads the environment variable itself
    own = [("", each) for each in _OWN]
    table = _Table([each for _, each in (*own, *formats())])
    for feature, each in (*own, *formats()):
        if taken := table.add(each):
            raise config_error(
                "",
                f"The feature {feature!r} adds the format {taken!r}, which another format has already. Uninstall one "
                f"of the two, or set {WITHOUT}={feature}.",
            )
    return table


def _found(known: Mapping[str, Format], name: str | Path) -> Format | None:
    """Return the format of the longest known suffix of a name. The name may be any text, such as a long prompt."""
    file = Path(name).name.lower()
    first = max(1, len(file) - max(map(len, known), default=0))  # at least one letter precedes a suffix
    ends = (file[at:] for at in range(first, len(file)) if file[at] == ".")
    return next((known[end] for end in ends if end in known), None)
