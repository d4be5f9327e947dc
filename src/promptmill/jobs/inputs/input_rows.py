"""Rows that are not in the user's files, but from standard input, from a program, or from a URL.

The rows are written to a temporary file, which is removed when the job's database has the rows.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import hashlib
import json
import math
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from promptmill.config.model_config import ModelConfig
from promptmill.core.errors import Code, Named, PromptmillError, input_error
from promptmill.core.wording import shape
from promptmill.files import disk
from promptmill.files.files import InputFile
from promptmill.files.row import Style
from promptmill.jobs.rows import row_lines
from promptmill.jobs.store.fingerprint import fingerprint
from promptmill.jobs.store.index import JobFolders
from promptmill.jobs.store.order import JobOrder
from promptmill.jobs.store.spec import digest
from promptmill.system.state import GIVEN

_OPTIONS = orjson.OPT_NON_STR_KEYS | orjson.OPT_APPEND_NEWLINE
_SNIFFED = 4096
_BLOCK = 1 << 20


class InputRows(NamedTuple):
    """Rows from standard input, from a program, or from a URL."""

    parts: Sequence[InputFile]
    """Temporary files with the rows; empty if the job has already read equal rows."""
    key: str
    """The digest of the rows' content."""
    name: str = "rows"
    """The name of the input in messages; it is not a path."""
    has_lines: bool = True
    """Whether a row is a line of text for the user, so that messages call it a line."""
    style: Style = Style()
    """The style of the files from which the rows were made."""


@contextlib.contextmanager
def written(
    folders: JobFolders, blocks: Iterable[bytes], suffix: str, name: str = "rows", *, has_lines: bool = True
) -> Iterator[InputRows]:
    """Write blocks of bytes to a temporary file whose name ends in `suffix`, and yield the rows in it. Raises
    `PromptmillError` (`storage`)."""
    content = hashlib.sha256(suffix.encode())
    with temporary_folder(folders) as place:
        file = place / f"{name}{suffix}"
        with _errors(place), os.fdopen(disk.created(file), "wb") as out:
            for block in blocks:
                content.update(block)
                out.write(block)
        yield InputRows([InputFile(file)], content.hexdigest(), name, has_lines)


@contextlib.contextmanager
def temporary_folder(folders: JobFolders) -> Iterator[Path]:
    """Yield a new temporary folder, which is removed after the `with` block. Raises `PromptmillError` (`storage`)."""
    root = root_of(folders)
    with _errors(root):
        disk.make_private_folder(root)
        place = Path(tempfile.mkdtemp(dir=root)).resolve()
    try:
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)


@contextlib.contextmanager
def _errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise PromptmillError(Code.STORAGE, f"{folder} cannot be written: {disk.why(error)}.") from None


def root_of(folders: JobFolders) -> Path:
    """Return the folder for the temporary files of rows."""
    return (folders.every or folders).root.parent / GIVEN


def loose_id(given: InputRows, config: ModelConfig, order: JobOrder) -> str:
    """Return the id of a job without an output file. Equal rows, questions and settings give equal ids."""
    settings = fingerprint(config, order.system_prompt, "jsonl")
    question = order.question.model_dump(mode="json")
    variants = [variant.model_dump() for variant in order.variants]
    if order.plan.chooses:
        variants.append(order.plan.model_dump(mode="json"))
    return f"{_slug(given.name)}-{digest(given.key, settings, question, variants, order.limits.limit)}"


def _slug(name: str) -> str:
    # The slug is short, because an id has at most 60 characters.
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:40].strip("-") or "rows"


def prune(folders: JobFolders, before: float) -> None:
    """Remove temporary files that are older than the time `before` and that no job uses. Raises `OSError`."""
    root = root_of(folders).resolve()
    used = {spec.output.path.parent for folder in folders.all() if (spec := folder.spec) is not None}
    with contextlib.suppress(FileNotFoundError):
        for path in root.iterdir():
            if path not in used and path.stat().st_mtime <= before:
                shutil.rmtree(path, ignore_errors=True)


def suffix_of(first: bytes) -> str:
    """Return the file suffix for content that starts with `first`. Raises `PromptmillError` (`invalid_input`)."""
    if first.startswith(b"PAR1"):
        return ".parquet"
    match first.removeprefix(b"\xef\xbb\xbf").lstrip()[:1]:
        case b"{" | b"":
            return ".jsonl"
        case b"[":
            return ".json"
    known = Named("input_format", "txt")
    raise input_error("Standard input is not JSON; name its format: ", known, ", csv, tsv, jsonl.gz, …")


def blocks_of_stdin(descriptor: int) -> Iterable[bytes]:
    """Yield blocks of standard input. The first block is large enough to detect the format."""
    first = b""
    while len(first) < _SNIFFED and (block := os.read(descriptor, _BLOCK)):
        first += block
    yield first
    while block := os.read(descriptor, _BLOCK):
        yield block


def lines_of(
    rows: Iterable[Any], name: str, argument: str, default: Callable[[Any], Any] | None = None
) -> Iterator[bytes]:
    """Yield the rows of an argument as lines of JSON. A row is a text (its field is `name`), an object, or messages.

    None and NaN are missing texts. `default` converts a value of another type to JSON, or to None if it is missing.
    Raises `PromptmillError` (`invalid_input`).
    """
    for index, row in enumerate(rows):
        match row:
            case str():
                fields: Mapping[Any, Any] = {name: row}
            case {"role": str(), "content": _} if len(row) == 2 and name == "prompt":  # a single message
                fields = {"messages": [row]}
            case Mapping():
                fields = row
            case list() | tuple():
                fields = {"messages": row}
            case _ if row_lines.emptiness(row) or (default is not None and default(row) is None):
                fields = {name: None}
            case _:
                raise input_error(f"{argument}[{index}] is {shape(row)}; send a text, a row or a list of messages.")
        try:
            yield _line(fields, default)
        except TypeError as error:
            problem = error.__cause__ or error
            raise input_error(f"{argument}[{index}] cannot be written as JSON: {problem}.") from None


def _line(fields: Any, default: Callable[[Any], Any] | None) -> bytes:
    """Return fields as a line of JSON. orjson refuses numbers of more than 64 bits, and writes infinity as null."""
    try:
        line = orjson.dumps(fields, option=_OPTIONS, default=default)
        if b"null" not in line or not _has_infinity(fields):
            return line
    except TypeError as error:
        if "64-bit" not in str(error):
            raise

    def plain(value: Any) -> Any:
        if default is None or isinstance(value, dt.date | dt.time | Enum):
            return orjson.loads(orjson.dumps(value, default))
        return default(value)

    return json.dumps(fields, default=plain).encode() + b"\n"


def _has_infinity(value: Any) -> bool:
    """Return whether a value is or contains infinity, or may contain it, because only `default` can write the value."""
    if isinstance(value, float):
        return math.isinf(value)
    if value is None or isinstance(value, str | int | dt.date):
        return False
    inner = value.values() if isinstance(value, Mapping) else value
    return not isinstance(value, Mapping | list | tuple) or any(map(_has_infinity, inner))
