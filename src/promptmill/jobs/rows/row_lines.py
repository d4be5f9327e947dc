"""Converts rows of input files to requests. The conversion has no state, so that any process can do it.

| kind | a line is |
|---|---|
| `jsonl` | `{"prompt"}` or `{"messages"}`, with `images` and parameters (see `NAMES`); other fields are ignored |
| `batch` | a line of a Batch file in OpenAI's format, see `batch_lines` |
| `table` | the question of a CSV or Parquet row, as `{field: value}` |
| `messages` | promptmill's own request, `{"messages", "sampling", "extra"}`, without what all rows share; |
| | `{"path", "extra"}` for a path other than chats; or `{"problem"}` |
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias

from pydantic import ValidationError

from promptmill.answers.response_format import asking_for
from promptmill.answers.shown import shown_of
from promptmill.config.model_config import OTHER_LIMIT, TOKEN_LIMITS, named_models, numbers_of
from promptmill.core.errors import Code, PromptmillError, input_error
from promptmill.core.request import (
    APPLIED_NAMES,
    NOT_SHOWN,
    OF_FORM,
    OF_OPERATOR_NAMES,
    PROTECTING_NAMES,
    SYSTEM_ROLES,
    Conversation,
    FilePart,
    ImagePosition,
    Request,
    Sampling,
    Shown,
    check_of_data,
    conversation_from_messages,
    conversation_from_prompt,
    protected,
    replacing_choices,
    required_of,
)
from promptmill.core.values import (
    JsonDict,
    JsonObject,
    json_text,
    read_json,
)
from promptmill.core.wording import shape
from promptmill.files import json_values
from promptmill.images.load import from_folder, is_bare_base64, is_data
from promptmill.jobs.rows import batch_lines
from promptmill.jobs.rows.batch_lines import BatchLine

PROBLEM = "promptmill:problem"
"""The only field in the line of an unusable row. Its value is the reason."""
EMPTY = "promptmill:empty"
"""The only field of the line of a row with an empty prompt."""
_NOT_ASKED = b'{"promptmill:'  # `PROBLEM` or `EMPTY`
_SAMPLING_NAMES = frozenset(Sampling.model_fields)
_WHOLE_REQUESTS = frozenset({"batch", "messages"})
_LONG = 32 * 1024
_OF_NO_REQUEST = frozenset({"custom_id", "method", "metadata"})
_NOTHING: JsonObject = {}
_NO_CONVERSATION = Conversation(())
# These fields of a line are not parameters. Some tools write them in every line; `stream` does not change the answer.
_BATCH_IGNORED = frozenset({"messages", "stream", "stream_options"})


RequestParts: TypeAlias = tuple[Conversation, Sampling, JsonObject]
# `APPLIED_NAMES` are left out: `reasoning` is a field of outputs, which may be inputs; `choices` is often data.
_ROW_SAMPLING = frozenset(Sampling.model_fields) - APPLIED_NAMES | PROTECTING_NAMES
_ROW_BODY = frozenset({"model", "tools", "tool_choice", "max_completion_tokens"})
_SYSTEM = ("system_prompt", "system")
IMAGES = ("image", "images")
_SCHEMA = "answer_schema"
_STRUCTURED = frozenset({_SCHEMA, "response_format", "tools", "tool_choice", "stop"})
NAMES = frozenset({"prompt", "messages", "n", _SCHEMA, *_ROW_SAMPLING, *_ROW_BODY, *_SYSTEM, *IMAGES})
"""All fields that belong to a row's request. Any other field is data of the user, and is ignored."""
CONTENT = frozenset({"prompt", "messages", *IMAGES})
"""The fields of `NAMES` that form the prompt."""
SETTINGS = NAMES - CONTENT
"""The fields of `NAMES` that do not form the prompt: model, sampling, system prompt, …"""


@dataclass(frozen=True, slots=True)
class RowImages:
    """The positions of a row's images in the prompt, and the folders of their files."""

    tag: str | None = None
    position: ImagePosition = "after"
    folders: tuple[str, ...] = ()
    """The folders in which relative paths are searched: the input's folder, then the job's working folder."""


@dataclass(frozen=True, slots=True)
class RowLimits:
    """The limits for a row's request; None: no limit."""

    models: frozenset[str] | None = None
    """The models that a row may name, according to the operator's `client_limits`."""
    tokens: int | None = None
    """The largest `max_tokens` that a row may set, according to `client_limits`; it is also the default."""
    values: int | None = None
    """The most values that a row may have. It is limited because a process does nothing else while it parses JSON."""
    only_model: str = ""
    """The only model that a row may name; `""` if the endpoint has several models."""
    paths: frozenset[str] = frozenset()
    """The paths, other than chats, that a Batch line may request."""


@dataclass(frozen=True, slots=True)
class RowReader:
    """Converts lines of one file to requests. It has only plain values, so other processes can receive it."""

    kind: str
    sampling: Sampling = field(default_factory=Sampling)
    extra: JsonObject = field(default_factory=dict)
    system_prompt: str = ""
    shows: bool = True
    """Whether the server shows the model the form of its answer, so that prompts need not describe the form."""
    shown: Shown = NOT_SHOWN
    """The words that prompts have about the form of answers, see `answers.shown`."""
    decided: str | None = None
    """The part of `shown` that each prompt of the template gets; None if this part depends on the row."""
    images: RowImages = RowImages()
    keep_raw: bool = False
    """Whether answers keep all other fields of the endpoint's reply, for outputs in the Batch format."""
    prompt_column: str | None = None
    """The field of a `jsonl` row that holds the prompt, if its name is not `prompt`."""
    row_settings: bool = True
    """Whether plain rows (which are not whole requests) may set their model, sampling, system prompt, …"""
    models: Mapping[str, RowReader] = field(default_factory=dict)
    """The readers for rows that name another model, by the model's name."""
    limits: RowLimits = RowLimits()
    has_evidence: bool = False
    """Whether the model gets the columns of a row as evidence, apart from the words of the prompt."""
    has_lines: bool = True
    """Whether messages call a row of JSON a line; if False, rows are elements of a list."""
    above: int = 0
    """The number of rows above the first row in a workbook's sheet. (Messages count these rows, too.)"""
    required: frozenset[str] = frozenset()
    """The parameters of `sampling` and `extra` that a backend must not leave out."""

    def of_template(self, texts: Sequence[str]) -> RowReader:
        """Return the reader for the prompts of a plain template. `texts`: the template's texts around its fields."""
        return replace(self, decided=self.shown.beside([self.system_prompt, *texts]))

    def digest(self, line: bytes) -> bytes | None:
        """Return the digest of a line that this reader reads."""
        return digest(self.kind, line, self.prompt_column, row_settings=self.row_settings)

    def request(self, row: int, line: bytes, attempts: int = 0) -> Request:
        """Return the request of line `row` (from 0). Raises as `request_of` does."""
        where = self.checked(row, line)
        return self.request_of(row, json_values.load(line, where), where, attempts)

    def checked(self, row: int, line: bytes) -> str:
        """Return the name of line `row`. Raises `PromptmillError` (`invalid_input`) if it may have too many values."""
        where = place(self.kind, row, has_lines=self.has_lines, above=self.above)
        if self.limits.values is not None and may_exceed(self.limits.values, line):
            raise input_error(f"{where} may hold more than {self.limits.values:,} values.")
        return where

    def request_of(self, row: int, value: Any, where: str, attempts: int) -> Request:
        """Return the request of line `row`. `value`: the parsed JSON of the line. `where`: the line's name in errors.

        Raises `PromptmillError` (`invalid_input`, `unsupported`) that names the line.
        """
        if not isinstance(value, dict):
            todo = "one JSON object per line" if self.has_lines else "a list of objects"
            raise input_error(f"{where} is {shape(value)}. Write {todo}.")
        if self.kind in _WHOLE_REQUESTS and (other := self._other_request(value, where)) is not None:
            body = dict(self._limited_body(other, where))
            own = {name: body.pop(name) for name in PROTECTING_NAMES & body.keys()}
            sampling = self._protected(_sampling(own, f"{where}: body."), where)
            return Request(row, _NO_CONVERSATION, sampling, body, attempts, other.path)
        conversation, sampling, extra = self._read(value, where)
        return Request(row, conversation, sampling, extra, attempts, required=self._required(sampling, extra))

    def _required(self, sampling: Sampling, extra: JsonObject) -> frozenset[str]:
        """Return the parameters that must not be left out: those whose values in the row differ from the model's."""
        if self.kind == "messages" or (sampling is self.sampling and extra is self.extra):
            return self.required
        model = self.models.get(str(extra.get("model")), self)
        ours = model.sampling.given() | dict(model.extra)
        own = sampling.given() | dict(extra)
        return required_of({name: value for name, value in own.items() if value != ours.get(name)})

    def _read(self, row: JsonObject, where: str) -> RequestParts:
        """Return the conversation, sampling and extra parameters of a row."""
        if self.models and (other := self._named_model(row)) is not None:
            conversation, sampling, extra = self.models[other]._read(row, where)
            return conversation, sampling, {**extra, "model": other}
        read = self._whole_request if self.kind in _WHOLE_REQUESTS else self._plain_row
        conversation, sampling, extra = read(row, where)
        if folders := self.images.folders:
            conversation = conversation.with_sources(lambda part: from_folder(part.source, folders))
        if self.kind != "messages":  # the limits of a call's messages were already checked
            sampling = self._limited(sampling, extra, where)
        return conversation, sampling, extra

    def _limited(self, sampling: Sampling, extra: JsonObject, where: str) -> Sampling:
        """Return a row's sampling with default limits. Raises `PromptmillError` if the row exceeds `client_limits`."""
        if self.limits.models is not None:
            self._check_models(extra, self.limits.models, where)
        most = self.limits.tokens
        if most is None:
            return sampling
        asked = {"max_tokens": sampling.max_tokens, **{name: extra[name] for name in extra.keys() & TOKEN_LIMITS}}
        ours = {"max_tokens": self.sampling.max_tokens, **self.extra}
        _check_tokens({name: value for name, value in asked.items() if value != ours.get(name)}, most, where)
        _check_limits({name: value for name, value in extra.items() if value != ours.get(name)}, most, where)
        if asked["max_tokens"] is None and asked.get("max_completion_tokens") is None:
            return sampling.model_copy(update={"max_tokens": most})
        return sampling

    def _limited_body(self, line: BatchLine, where: str) -> JsonObject:
        """Return the body of a request that is not a chat, with the limits of `client_limits`. Raises as `_limited`."""
        body, most = line.body, self.limits.tokens
        if self.limits.models is not None:
            self._check_models(body, self.limits.models, where)
        if most is None:
            return body
        _check_tokens({name: body[name] for name in body.keys() & TOKEN_LIMITS}, most, where)
        _check_limits(body, most, where)
        name = batch_lines.TOKEN_LIMITS.get(line.path)
        return body if name is None or body.get(name) is not None else {**body, name: most}

    def _check_models(self, extra: JsonObject, allowed: frozenset[str], where: str) -> None:
        # The models that the configuration names are allowed, because the operator chose them.
        if unknown := {*named_models(extra)} - {*named_models(self.extra)} - allowed:
            known = ", ".join(sorted(allowed))
            raise input_error(f"{where}: there is no model {min(unknown)[:60]!r}; models here: {known:.500}.")

    def _other_request(self, row: JsonObject, where: str) -> BatchLine | None:
        """Return the request of a row that is not a chat; None for a chat or an unreadable row."""
        if self.kind == "messages":
            return BatchLine(row["path"], row["extra"]) if "path" in row else None
        if not self.limits.paths:
            return None
        try:
            asked = batch_lines.read(row, where)
        except PromptmillError:
            return None
        return asked if asked.path in self.limits.paths else None

    def _plain_row(self, row: JsonObject, where: str) -> RequestParts:
        """Read a plain row: a prompt or messages, and optional parameters that override the job's."""
        if PROBLEM in row:
            raise input_error(f"{where}: {row[PROBLEM]}")
        if EMPTY in row:
            raise PromptmillError(Code.EMPTY_PROMPT, f"{where}: {row[EMPTY]}")
        column = self.prompt_column
        if column is not None:
            if column not in row:
                raise input_error(f"{where} has no field {column[:60]!r}, which `prompt_column` names.")
            row = _with_prompt(row, column)
        if not self.row_settings:
            row = {name: row[name] for name in CONTENT & row.keys()}
        conversation = _row(row, where, self.images, column or "")
        system_prompt, own, body = "", _NOTHING, _NOTHING
        if len(row) > 1:
            own, body = _own_parameters(row, where, self.limits.only_model)
            system_prompt = _own_system_prompt(row, where)
        sampling = self.sampling
        if own:
            self._check_of_data(own, where)
            sampling = sampling.model_copy(update=protected(replacing_choices(own), sampling.given()))
        has_own_form = not (self.shows or own.keys().isdisjoint(OF_FORM))
        has_system = bool(system_prompt) or conversation.messages[0].role in SYSTEM_ROLES
        if self.decided is not None and not (has_system or has_own_form):
            conversation = conversation.with_system(self.system_prompt).with_words(self.decided)
        else:
            shown = shown_of(sampling, shows=False) if has_own_form else self.shown
            conversation = conversation.composed(system_prompt if has_system else self.system_prompt, shown)
        return conversation, sampling, {**self.extra, **body} if body else self.extra

    def _whole_request(self, row: JsonObject, where: str) -> RequestParts:
        """Read a row that is a whole request. A Batch line contains all parameters of its request."""
        shown = NOT_SHOWN
        if self.kind == "batch":
            conversation, sampling, extra = _batch(row, where)
            sampling = self._protected(sampling, where)
            shown = shown_of(sampling, shows=False) if not self.shows and sampling.sets(OF_FORM) else NOT_SHOWN
        else:
            if "problem" in row:
                raise input_error(f"{where}: {row['problem']}")
            conversation, sampling, extra = _conversation(row["messages"], where), self.sampling, self.extra
            if (own := row.get("sampling")) is not None:
                sampling, extra = self._protected(Sampling.model_validate(own), where), row.get("extra", _NOTHING)
        if sampling.reasoning is None and self.sampling.reasoning is not None:
            sampling = sampling.model_copy(update={"reasoning": self.sampling.reasoning})
        return conversation.composed(self.system_prompt, shown), sampling, extra

    def _protected(self, own: Sampling, where: str) -> Sampling:
        """Return the parameters of a row that has all of its parameters, with what protects the job. Raises as
        `_check_of_data`."""
        self._check_of_data(own.given(), where)
        ours = self.sampling.protection().given()
        return own.model_copy(update=protected({name: getattr(own, name) for name in ours}, ours)) if ours else own

    def _check_of_data(self, own: JsonObject, where: str) -> None:
        """Raise `PromptmillError` (`invalid_input`) if a row sets a parameter that is the operator's alone."""
        for name in sorted(OF_OPERATOR_NAMES & own.keys()):
            if own[name] != getattr(self.sampling, name):
                raise input_error(f"{where} sets {name}, which is for all rows of a job; leave it out of the row.")
        try:
            check_of_data(own, self.sampling)
        except PromptmillError as error:
            raise input_error(f"{where}: {error.message}") from None

    def _named_model(self, row: JsonObject) -> str | None:
        """Return the model that a row names, if it is in `models`; else None."""
        if not self.row_settings:
            return None
        asked = row.get("body") if self.kind == "batch" else row
        name = asked.get("model") if isinstance(asked, dict) else None
        return name if isinstance(name, str) and name in self.models else None


def place(kind: str, row: int, *, has_lines: bool = True, above: int = 0) -> str:
    """Return the name that messages have for row `row` (from 0): by kind, `line 7` or `row 7`, counted from 1.

    `above`: see `RowReader`; if there are rows above, the name is `row 8 of the sheet`.
    """
    sheet = " of the sheet" if above else ""
    return f"{row_word(kind, has_lines=has_lines)} {row + 1 + above}{sheet}"


def row_word(kind: str, *, has_lines: bool = True) -> str:
    """Return the word for a row of this kind. `has_lines`: see `RowReader`."""
    return "line" if kind != "table" and has_lines else "row"


def may_exceed(most: int, line: bytes) -> bool:
    """Return whether the JSON of a line may have more than `most` values. Commas inside texts count as well."""
    return len(line) > most and sum(map(line.count, (b"[", b"{", b","))) > most


def digest(
    kind: str, line: bytes, prompt_column: str | None = None, *, row_settings: bool = True, value: Any = None
) -> bytes | None:
    """Return the digest (16 bytes) of a row's question, without the row's other fields; None without a question.

    `row_settings`: whether the row's settings belong to the question. `value`: the parsed line, if the caller has it.
    For a long line, the digest of its bytes is used, because parsing would take too long.
    """
    if line.startswith(_NOT_ASKED):
        return None
    if kind == "table":  # a table's line contains only the question, with its fields in order
        return hashlib.blake2b(line, digest_size=16).digest()
    if len(line) > _LONG:
        return hashlib.blake2b(line.strip(), digest_size=16).digest()
    try:
        if value is None:
            value = json_values.load(line, "")
        if prompt_column is not None:
            value = _with_prompt(value, prompt_column)
        if kind == "batch":
            asked = {name: inner for name, inner in value.items() if name not in _OF_NO_REQUEST}
        else:
            asked = {name: value[name] for name in (NAMES if row_settings else CONTENT) & value.keys()}
        text = json_text(asked, sort_keys=True).encode()
    except (PromptmillError, TypeError, KeyError, AttributeError, UnicodeEncodeError):
        return None
    return hashlib.blake2b(text, digest_size=16).digest()


def _with_prompt(row: JsonObject, column: str) -> JsonDict:
    """Return a row in which the field `column` is renamed to `prompt` or `messages`."""
    asked = row.get(column)
    rest = {name: value for name, value in row.items() if name not in {"prompt", "messages", column}}
    return rest | {"messages" if _are_messages(asked) else "prompt": asked}


def emptiness(value: object) -> str:
    """Return `empty` or `NaN` if a cell has no text or value for a prompt; `""` if it has one."""
    if isinstance(value, float) and math.isnan(value):
        return "NaN"
    return "empty" if value is None or (isinstance(value, str | bytes) and not value.strip()) else ""


def _are_messages(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(one, dict) and "role" in one for one in value)


def _check_tokens(asked: JsonObject, most: int, where: str) -> None:
    """Raise `PromptmillError` (`invalid_input`) if one of the token limits in `asked` is invalid or above `most`."""
    for name, value in asked.items():
        if value is not None and (type(value) is not int or not 1 <= value <= most):
            raise input_error(f"{where}: {name} must be 1 to {most} tokens on this server.")


def _check_limits(body: JsonObject, most: int, where: str) -> None:
    """Raise `PromptmillError` (`invalid_input`) if `body` has a token limit above `most`, under any name."""
    _check_tokens({name: limit for name, limit in numbers_of(body, OTHER_LIMIT) if limit > most}, most, where)


def _row(row: JsonObject, where: str, images: RowImages, column: str = "") -> Conversation:
    """Return the conversation of a row. `column`: the original name of the field with the prompt or the messages."""
    prompt, messages = row.get("prompt"), row.get("messages")
    sources = [part for name in IMAGES if name in row for part in _sources(row[name], f"{where}: {name}")]
    if "prompt" in row and "messages" not in row and (what := emptiness(prompt)) and (column or not sources):
        raise PromptmillError(Code.EMPTY_PROMPT, f"{where}: its {column or 'prompt'} is {what}.")
    if isinstance(prompt, int | float) and not isinstance(prompt, bool):
        prompt = str(prompt)
    elif messages is None and _are_messages(prompt):  # the column that the user chose has conversations
        prompt, messages = None, prompt
    if isinstance(messages, str) and messages.lstrip()[:1] in {"", "["}:
        messages = _read_messages(messages, where)
    if (prompt is None) == (messages is None):
        given = "both `prompt` and `messages`" if prompt is not None else "neither `prompt` nor `messages`"
        raise input_error(f"{where} has {given}; give it one of the two.")
    if prompt is not None:
        conversation = conversation_from_prompt(prompt, f"{where}: {column or 'prompt'}")
    else:
        conversation = _conversation(messages, f"{where}: {column or 'messages'}")
    if not sources:
        return conversation
    try:
        return conversation.with_images(sources, images.tag, images.position)
    except PromptmillError as error:
        raise PromptmillError(error.code, f"{where}: {error.message}", error.hint) from None


def _read_messages(text: str, where: str) -> object:
    """Return the messages in a field whose text is JSON; None if the text is blank."""
    try:
        return read_json(text) if text.strip() else None
    except json.JSONDecodeError as error:
        raise input_error(f"{where}: messages is not valid JSON: {error.msg}.") from None


def _conversation(messages: object, where: str) -> Conversation:
    if not isinstance(messages, list):
        raise input_error(f"{where} is {shape(messages)}; send a list of messages.")
    return conversation_from_messages(messages, where)


def _batch(row: JsonObject, where: str) -> RequestParts:
    path, body = batch_lines.read(row, where)
    if path != batch_lines.CHAT:
        raise PromptmillError(
            Code.UNSUPPORTED, f"{where}: the model's backend has no /v1{path}.", "Leave this line out."
        )
    conversation = _conversation(body.get("messages"), f"{where}: body.messages")
    own = {name: value for name, value in body.items() if name in _SAMPLING_NAMES}
    if not isinstance(own.get("reasoning"), str):  # OpenRouter's reasoning is an object
        own.pop("reasoning", None)
    extra = {name: value for name, value in body.items() if name not in own and name not in _BATCH_IGNORED}
    return conversation, _sampling(own, f"{where}: body."), extra


def _sampling(given: JsonObject, where: str) -> Sampling:
    try:
        return Sampling.model_validate(given)
    except ValidationError as error:
        problem = error.errors(include_url=False, include_context=False, include_input=False)[0]
        name = ".".join(str(part) for part in problem["loc"])
        raise input_error(f"{where}{name}: {problem['msg'].removeprefix('Input ')}.") from None


def _own_parameters(row: JsonObject, where: str, loaded_model: str) -> tuple[JsonDict, JsonDict]:
    """Return the validated sampling parameters that a row sets, and the fields that it sets in the request's body.

    `loaded_model`: the only available model; `""` if the endpoint has several models. Raises `PromptmillError`
    (`invalid_input`, `unsupported`) that names the field.
    """
    given = {name: row[name] for name in row if name in NAMES and not is_null(row[name])}
    if given.get("n", 1) not in {1, "1"}:
        raise PromptmillError(
            Code.UNSUPPORTED,
            f"{where}: `n` is above 1, which a row may not set.",
            "Set `sampling_params: {n: …}` for all rows, or rename the column if it means something else.",
        )
    body = {name: _structured(name, given[name], where) for name in _ROW_BODY & given.keys()}
    if loaded_model and "model" in body and body.pop("model") != loaded_model:
        raise PromptmillError(
            Code.UNSUPPORTED,
            f"{where} names a model other than the loaded one.",
            "Rename the column if it means something else.",
        )
    sampling = {name: _structured(name, given[name], where) for name in _ROW_SAMPLING & given.keys()}
    if _SCHEMA in given:
        schema = _structured(_SCHEMA, given[_SCHEMA], where)
        if not isinstance(schema, Mapping):
            raise input_error(f"{where}: {_SCHEMA} is {shape(schema)}; send a JSON Schema object.")
        if schema:
            sampling["response_format"] = asking_for(schema)
    return _sampling(sampling, f"{where}: ").given() if sampling else {}, body


def _own_system_prompt(row: JsonObject, where: str) -> str:
    """Return the system prompt that a row sets; `""` if it sets none. Raises `PromptmillError` (`invalid_input`)."""
    for name in _SYSTEM:
        value = row.get(name)
        if value is not None and not isinstance(value, str):
            raise input_error(f"{where}: {name} is {shape(value)}, not a text.")
        if value:
            return str(value)
    return ""


def _sources(value: Any, where: str, kind: Literal["image", "pdf", "audio"] = "image") -> Iterator[str | FilePart]:
    """Yield a row's images and files: paths, URLs, `data:` URLs, and objects such as `{"pdf": "a.pdf"}` for files.

    Raises `PromptmillError` (`invalid_input`).
    """
    if value is None or value in ("", []):
        return
    if isinstance(value, list):
        for at, inner in enumerate(value):
            if isinstance(inner, list):
                raise input_error(f"{where}[{at}] is {shape(inner)}; send one list of images.")
            yield from _sources(inner, f"{where}[{at}]", kind)
        return
    match value:
        case str():
            source = f"data:;base64,{value}" if is_bare_base64(value) else value
        case {"bytes": str(data)} if data:  # the form in which the library `datasets` has images
            source = data if is_data(data) else f"data:;base64,{data}"
        case {"path": str(path)} | {"url": str(path)} | {"image_url": str(path) | {"url": str(path)}} if path:
            source = path
        case {"pdf": inner} | {"audio": inner} if kind == "image":
            yield from _sources(inner, where, "pdf" if "pdf" in value else "audio")
            return
        case _:
            raise input_error(f"{where} is {shape(value)}; send a path, a URL, base64, or a list of those.")
    yield source if kind == "image" else FilePart(source, kind)


def _structured(name: str, value: Any, where: str) -> Any:
    """Return `value`, or the parsed value if it is a cell whose text is a JSON object or list."""
    if name in _STRUCTURED and isinstance(value, str) and value.lstrip()[:1] in {"{", "["}:
        try:
            return read_json(value)
        except json.JSONDecodeError as error:
            if name != "stop":
                raise input_error(f"{where}: {name} is not valid JSON: {error.msg}.") from None
    return value


def is_null(value: Any) -> bool:
    """Return whether a cell is empty: null, NaN or an empty text."""
    return value is None or value == "" or (isinstance(value, float) and math.isnan(value))
