"""Questions about rows: computes the question about a row, as JSON, from the row's cells.

Every process computes the same question, so a job need not store a prompt that has only fixed text and cells. A prompt
with expressions is computed once, when the input is read, and is stored, because its template may take any time.

    line ─▶ NULL                 the row's cells contain the whole question
            `\x1e{field: value}`  a plain prompt: the cells that the row lacks, such as the text of its file
            `{"prompt": …}`       the question; older versions also stored it for plain prompts
"""

from __future__ import annotations

import base64
import contextlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from types import MappingProxyType
from typing import Any

import orjson

from promptmill.core.errors import Code, PromptmillError, input_error
from promptmill.core.request import Conversation, Fields, FileRow, Message, Request, TextPart
from promptmill.core.values import JsonDict, JsonObject, loads, plain_text, read_json
from promptmill.files import json_values
from promptmill.images.load import from_folder
from promptmill.jobs.rows import row_lines
from promptmill.jobs.rows.plain_template import PlainTemplate, Template
from promptmill.jobs.rows.row_lines import IMAGES, RowReader
from promptmill.jobs.rows.template import ExpressionTemplate

_APART = b"\x1f"  # separates the questions in a line; JSON never contains this byte, because texts escape it
_CELLS = b"\x1e"  # begins the cells that a stored row lacks
# Programs write a missing value in CSV or TSV as an empty cell or as one of these texts.
_MISSING: Mapping[str, float | None] = MappingProxyType({"NaN": math.nan, "nan": math.nan, "null": None, "NULL": None})


@dataclass(frozen=True, slots=True)
class Questions:
    """Makes the question about a row from the row's cells, for one of the prompts."""

    columns: tuple[tuple[int, str], ...] | None = None
    """For a table: the index of each cell that is used, and the cell's field; None if rows are JSON objects."""
    template: Template | None = None
    fields: tuple[str, ...] = ()
    """The fields, in addition to the prompt, that belong to the question: settings and images."""
    column: str | None = None
    """The name of the column that is used as `prompt`, for error messages."""
    image_column: str | None = None
    audio_column: str | None = None
    are_texts: bool = False
    """Whether all cells are texts. If so, lists are written as JSON in a cell, and empty settings are ignored."""
    has_missing: bool = False
    """Whether some texts, such as `NaN`, mean missing values."""

    @property
    def is_plain(self) -> bool:
        """Whether any process may compute the questions, because computing takes time in proportion to the row."""
        return self.template is None or isinstance(self.template, PlainTemplate)

    def asked(self, cells: bytes, where: str, lacking: bytes = b"") -> tuple[Any, Fields | None]:
        """Return the question about a stored row as a JSON value and, for a plain template, the fields in the prompt.
        `lacking`: the cells that the row lacks, as a JSON object. Raises `PromptmillError` as `of` does."""
        if self.columns is None:
            value = json_values.load(cells, where)
            if self.template is None or not isinstance(value, dict):
                return value, None
            question, fields = self._filled(value | json_values.load(lacking, where) if lacking else value)
            return question, fields._replace(file=str(value.get("path", ""))) if lacking and fields else fields
        values = loads(cells)
        question, fields = self._filled({name: values[at] for at, name in self.columns})
        if not {*map(type, question.values())} <= {str}:
            question = json_values.load(question_json(question), where)
        return question, fields

    def fields_in(self, prompt: Sequence[str], cells: bytes) -> Fields | None:
        """Return the fields in the prompt of a stored row whose template has expressions; None if the prompt has images
        between its texts, or if it is not made from the stored cells alone."""
        if not isinstance(self.template, ExpressionTemplate):
            return None
        with contextlib.suppress(PromptmillError):
            row = json_values.load(cells, "") if self.columns is None else loads(cells)
            row = row if self.columns is None else {name: row[at] for at, name in self.columns}
            fields = self.template.divided(self._with_missing(row))
            return fields if [fields.whole] == [*prompt] else None
        return None

    def digest(self, line: bytes | None, cells: bytes, *, rows_set: bool) -> bytes | None:
        """Return the digest of the question about a stored row, see `row_lines.digest`; None if the row has no
        question. `line`: the row's stored line, which may belong to another prompt. `rows_set`: see `JobPrompts`."""
        lacking = line[1:] if line is not None and line.startswith(_CELLS) else b""
        try:
            question, _ = self.asked(cells, "", lacking)
            if self.columns is not None:
                return row_lines.digest("table", question_json(question))
            return row_lines.digest("jsonl", json_values.json_line(question)[:-1], row_settings=rows_set)
        except (PromptmillError, TypeError):  # for example because this input lacks a column of the prompt
            return None

    def of(self, row: JsonObject, blank: set[str] | None = None) -> JsonDict:
        """Return the question about a row with these fields. `blank` gets the fields whose placeholders stay blank.

        Raises `PromptmillError` (`invalid_input`).
        """
        return self._filled(row, blank)[0]

    def _filled(self, row: JsonObject, blank: set[str] | None = None) -> tuple[JsonDict, Fields | None]:
        row = self._with_missing(row)
        if self.template is None:
            return self._of_columns(row), None
        question, fields = self._settings(row) if self.fields else {}, None
        try:
            empty: dict[str, str] = {}
            images = None if self.image_column is None else self._images(row, self.image_column)
            if self.audio_column is not None:
                own = question.get("images") if images is None else images
                given = own if isinstance(own, list) else [own] if own else []
                images = [*given, {"audio": self._images(row, self.audio_column)}]
            if isinstance(self.template, PlainTemplate):
                question["prompt"], fields = self.template.filled(row, empty, has_more=bool(images))
            else:
                question["prompt"] = self.template.render(row, empty, has_more=bool(images))
            if self.image_column is not None or self.audio_column is not None:
                question["images"] = images
            if blank is not None:
                blank.update(empty)
            return question, fields
        except PromptmillError as error:
            if error.code is Code.EMPTY_PROMPT:
                return {row_lines.EMPTY: error.message}, None
            raise

    def _with_missing(self, row: JsonObject) -> JsonObject:
        if self.has_missing and not _MISSING.keys().isdisjoint(row.values()):
            return {name: _MISSING.get(value, value) for name, value in row.items()}
        return row

    def _of_columns(self, row: JsonObject) -> JsonDict:
        if self.column is not None and (what := row_lines.emptiness(row.get("prompt"))):
            return {row_lines.EMPTY: f"its {self.column} is {what}."}
        if self.are_texts:
            return _read(row, has_messages="messages" in row)
        images = {name: row[name] for name in IMAGES if name in row}
        question = {name: value for name, value in row.items() if name not in images}
        for name in ("messages", "prompt"):
            if isinstance(question.get(name), list):
                question[name] = _without_nulls(question[name])
        if isinstance(question.get("prompt"), Decimal):
            question["prompt"] = plain_text(question["prompt"])
        return question | images

    def _settings(self, row: JsonObject) -> JsonDict:
        """Return those fields of a row, in addition to the prompt, that belong to the question."""
        own = {name: row[name] for name in self.fields if name in row}
        return _read(own, has_messages=True) if self.are_texts else own

    @staticmethod
    def _images(row: JsonObject, column: str) -> Any:
        value = row.get(column)
        if what := row_lines.emptiness(value):
            raise PromptmillError(Code.EMPTY_PROMPT, f"its {column} is {what}.")
        if isinstance(value, str) and value.lstrip().startswith("["):
            with contextlib.suppress(orjson.JSONDecodeError):  # if it is not JSON, the text is the name of a file
                return orjson.loads(value)
        return value


@dataclass(frozen=True, slots=True)
class RowRequests:
    """Makes requests from stored rows."""

    reader: RowReader
    questions: Questions
    prompt: int = 0
    """The index of this prompt's question among the stored questions of a row."""
    extra: JsonObject = field(default_factory=dict)
    """Parameters that are added to each request."""
    header: tuple[str, ...] = ()
    """The columns of a table."""

    def request(self, n: int, line: bytes | None, cells: bytes, attempts: int = 0) -> Request:
        """Return the request of row `n`. Raises `PromptmillError` (`invalid_input`, `unsupported`) naming the row."""
        stored = _CELLS if line is None else question_of(line, self.prompt)
        if stored.startswith(_CELLS):
            where = self.reader.checked(n, cells)
            question, fields = self.questions.asked(cells, where, stored[1:])
            request = self.reader.request_of(n, question, where, attempts)
            if fields is not None and fields.file:
                fields = fields._replace(file=from_folder(fields.file, self.reader.images.folders))
            request.fields, request.is_filled = fields, self.questions.template is not None
        else:
            request = self.reader.request(n, stored, attempts)
            request.is_filled = not self.questions.is_plain
            if self.reader.has_evidence and request.is_filled:
                prompt = Conversation(request.conversation.messages[-1:]).texts
                request.fields = self.questions.fields_in(prompt, cells)
        if self.reader.kind != "messages":  # those are the requests of a call
            request.row = FileRow(cells, self.header)
        return request.changed(extra={**request.extra, **self.extra}) if self.extra else request

    @property
    def constant(self) -> int:
        """The number of characters that the requests of all rows have in common."""
        template = self.questions.template
        own = 0 if template is None else len(template.start)
        reader = self.reader
        return own + len(reader.system_prompt) + len(reader.shown.words if reader.decided is None else reader.decided)

    def pieces(self, n: int, line: bytes | None, cells: bytes) -> list[str]:
        """Return the texts at the beginning of row `n`'s request, which the requests of other rows may share.

        These are the messages before the last message and, for a plain template, each field with the text after it,
        except the last field. They end before the first image, sound or tool call. Raises as `request` does.
        """
        request = self.request(n, line, cells)
        if not request.conversation.messages:
            return []
        *before, last = request.conversation.messages
        pieces = list[str]()
        for message in before:
            texts = _texts_of(message)
            pieces += texts or ()
            if texts is None:
                return pieces
        if not isinstance(last.content, str):
            return pieces
        if (fields := request.fields) is not None:
            ends = map("".join, zip(fields.texts, fields.parts[2::2], strict=True))
            return [*pieces, fields.parts[0], *ends][:-1]
        start = "" if self.questions.template is None or line is None else self.questions.template.start
        return [*pieces, start] if start and last.content.startswith(start) else pieces


def _texts_of(message: Message) -> list[str] | None:
    """Return the texts of a message that has only texts; None for any other message."""
    parts = message.content if isinstance(message.content, tuple) else (TextPart(message.content or ""),)
    texts = [part.text for part in parts if isinstance(part, TextPart)]
    return texts if len(texts) == len(parts) and not message.extra else None


def question_json(question: JsonObject) -> bytes:
    """Return a question as JSON; images may be bytes. Raises `PromptmillError` (`invalid_input`) if it is not JSON."""
    try:
        if "images" not in question and "image" not in question:
            return _json(question, _as_number)
        _json({name: value for name, value in question.items() if name not in IMAGES}, _as_number)
        return _json(question, _as_base64)
    except TypeError:
        raise input_error("prompt, messages or images hold values that are not text.") from None


def _json(question: JsonObject, default: Callable[[object], float | str]) -> bytes:
    try:
        return orjson.dumps(question, default)
    except TypeError:  # orjson also raises this for a number of more than 64 bits
        return json.dumps(question, default=default, separators=(",", ":")).encode()


def cells_of(row: JsonObject, lacking: Sequence[str]) -> bytes:
    """Return the stored form of a plain prompt's question: the fields of a row that the stored cells lack."""
    return _CELLS + json_values.json_line({name: row[name] for name in lacking if name in row})[:-1]


def joined(questions: Sequence[bytes]) -> bytes:
    """Join the questions about a row, one for each prompt, to one line that is stored."""
    return _APART.join(questions)


def question_of(line: bytes, prompt: int) -> bytes:
    """Return the question with this index from a stored line."""
    return line.split(_APART, prompt + 1)[prompt]


def _read(row: JsonObject, *, has_messages: bool) -> JsonDict:
    """Convert a row of texts to the fields of a question, without null values. Lists are parsed from JSON."""
    question: JsonDict = {}
    for name, cell in row.items():
        value = cell
        if row_lines.is_null(value) and (name != "prompt" or has_messages):
            continue  # a blank prompt is left out, because the messages may be the question
        if name == "messages" or (name in IMAGES and isinstance(value, str) and value.lstrip().startswith("[")):
            try:
                value = read_json(value)
            except json.JSONDecodeError as error:
                raise input_error(f"{name} is not valid JSON: {error.msg}.") from None
        question[name] = value
    return question


def _without_nulls(value: Any) -> Any:
    """Return messages without nulls. (The column's type gives each message the fields of all others, as nulls.)"""
    match value:
        case dict():
            return {
                name: _without_nulls(inner)
                for name, inner in value.items()
                if inner is not None or name == "content"  # a null `content` is valid next to tool calls
            }
        case list():
            return [_without_nulls(inner) for inner in value]
    return value


def _as_number(value: object) -> float:
    """Convert a setting's decimal to a float."""
    if isinstance(value, Decimal):
        return float(value)
    raise TypeError


def _as_base64(value: object) -> float | str:
    """Convert an image's bytes to base64."""
    return base64.b64encode(value).decode() if isinstance(value, bytes) else _as_number(value)
