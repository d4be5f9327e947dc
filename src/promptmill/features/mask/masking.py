"""The step that replaces values before a request is sent, and puts them back in its outcome.

    request ─▶ a row's cells, or all messages ─▶ spans ─▶ masks ─▶ request that is sent
    outcome ◀─ text, reasoning, tool calls, sources ◀─ values in place of masks ◀─ outcome

The steps that ask again and read quotes are outside of this step, and see the values. The steps that join rows are
inside of it, and see only masks. The words of a prompt and the system prompt of a job are masked, too, but keep names
of one word, which may be ordinary words (`Mark`, `Will`).
"""

from __future__ import annotations

import asyncio
import json
import operator
import secrets
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from promptmill.answers.response_format import asking_for, schema_of
from promptmill.backends.protocol import Call, Completion, Failure, Growing, Outcome
from promptmill.config.model_config import ModelConfig
from promptmill.core.bounds import MOST_KEPT
from promptmill.core.errors import Named, PromptmillError, config_error, input_error
from promptmill.core.request import (
    NOTHING_SHARED,
    SYSTEM_ROLES,
    Conversation,
    Fields,
    FileRow,
    Made,
    Message,
    Part,
    Request,
    Sampling,
    TextPart,
    nested,
    once,
)
from promptmill.core.values import JsonDict, JsonObject, cell_text, loads, read_json, text_of
from promptmill.core.wording import no_column
from promptmill.features.mask.detection import Detectors, ValueSpan, apart
from promptmill.features.mask.kinds import KEY, Kinds
from promptmill.features.mask.masks import Codes, Masks, in_json, mapped
from promptmill.features.mask.names import Names
from promptmill.features.mask.parameters import Masked, is_known, kinds_in
from promptmill.files import json_values
from promptmill.jobs.rows.template import alike
from promptmill.steps.step import Loading, Place, Sent, Step

_CONTEXT = 48
"""Characters of the prompt around a cell in which a value may begin or end: `{{user}}@example.com`."""
_OF_AUTHOR = frozenset({"model", "tools", "tool_choice", "response_format", "encoding_format"})
"""Parameters of `extra_params` that are instructions, and no data."""
_OF_FORM = "format", "pattern", "minLength", "maxLength"
"""Keywords that a mask in place of a value would break. The answer is checked by them once the value is put back."""


class MaskedRequests(Step):
    """Replaces values by masks. The kinds that the operator has configured are masked in every request."""

    place = Place.MASKED
    wanted_by: Collection[str] | None = ("mask",)

    @classmethod
    async def of(cls, loading: Loading) -> Step | None:
        """Return the step, after reading lists of names. Raises `PromptmillError`."""
        step = cls(loading.config)
        if step._forced:
            await asyncio.to_thread(step.kinds_of, loading.config.operator.sampling_params)
        return step

    @classmethod
    def sending(cls, config: ModelConfig, *, by_batch: bool) -> Callable[[Request], Sent]:
        """Return the function from an item to the masked request, which raises `PromptmillError`."""
        del by_batch
        step = cls(config)
        return lambda request: Sent(step.masked(request, step._secret)[0])

    def __init__(self, config: ModelConfig) -> None:
        self._forced = tuple(_mask_of(config.operator.sampling_params))
        self._takes_all = config.call_files is None
        """Whether requests are the operator's own, and may name files and functions."""
        if self._forced:
            self.wanted_by = None  # no request skips the step
        self._secret = secrets.token_bytes(32)
        """The secret for calls that belong to no job."""
        self._plans: Made[_Plan] = {}
        self._by_kinds: dict[tuple[str, ...], Kinds] = {}
        self._kinds: Made[Kinds] = {}
        self._parts: Made[_Words] = {}
        self._instructions: dict[tuple[int, str], list[ValueSpan]] = {}

    def kinds_of(self, sampling: Sampling) -> Kinds:
        """Return the kinds that these parameters and the operator ask for. Raises `PromptmillError`."""
        return once(self._kinds, lambda: self._made(tuple(_mask_of(sampling))), sampling)

    def _made(self, wanted: tuple[str, ...]) -> Kinds:
        own = tuple(dict.fromkeys((*self._forced, *wanted)))
        for kind in own:
            if not (self._takes_all or kind in self._forced or is_known(kind)):
                raise config_error(KEY, f"only the operator's configuration may name a file or function: {kind[:60]}.")
        if own not in self._by_kinds:
            self._by_kinds[own] = Kinds.of(own)
        return self._by_kinds[own]

    async def answer(self, request: Request, call: Call) -> Outcome:
        """Answer a request without sending its values. A request with an image or a file fails."""
        try:
            sent, masks = self.masked(request, self._secret_of(call))
        except PromptmillError as error:
            return Failure(error, request.attempts, concerns_all=error.code != "invalid_input")
        if not masks.values:
            return await self.following(sent, call)
        shown = call.preview
        if shown is not None:
            call.preview = wrapped = _unmasked_preview(shown, masks)
        try:
            outcome = await self.following(sent, call)
        finally:
            if shown is not None and call.preview is wrapped:  # a sender may have ended the preview
                call.preview = shown
        return _unmasked(outcome, masks, call)

    def _secret_of(self, call: Call) -> bytes:
        """Return the secret of a call's job, which the first request of a run reads."""
        return self._secret if call.facts.secret is None else call.facts.secret()

    def masked(self, request: Request, secret: bytes) -> tuple[Request, Masks]:
        """Return the request as it is sent, and its masks. Raises `PromptmillError`."""
        conversation, given, extra = request.conversation, request.sampling, request.extra
        if conversation.sourced or conversation.file_kinds:
            raise input_error(
                "An image, a PDF or a recording cannot be masked. Send its text, or leave out ", Named("mask"), "."
            )
        plan = once(self._plans, lambda: self._plan(given, extra, secret), given, extra, secret)
        masks = Masks(plan.codes, conversation.texts)
        own = _detectors_of(_values_of(request.row, plan.kinds.columns)) if plan.kinds.columns else None
        masking = _Masking(plan.kinds, masks, self._spans_of_words, own)
        changes = self._of_conversation(request, masking)
        if plan.sampling is not given:
            changes["sampling"] = plan.sampling
        if plan.has_parameters or request.path:
            changes["extra"] = masking.parameters(extra, is_instruction=not request.path)
        if request.shared and "conversation" in changes:
            is_same = _has_beginning(conversation, changes["conversation"], request.shared.characters)
            changes["shared"] = request.shared if is_same else NOTHING_SHARED
        return request.changed(**changes) if changes else request, masks

    def _plan(self, sampling: Sampling, extra: JsonObject, secret: bytes) -> _Plan:
        kinds = self.kinds_of(sampling)
        has_parameters = bool(_values_in(extra, kinds.of_instructions))
        return _Plan(kinds, _with_form(sampling, kinds), has_parameters, Codes(secret))

    def _of_conversation(self, request: Request, masking: _Masking) -> dict[str, Any]:
        """Return the changes to the messages and fields of a request."""
        before, fields, changes = request.conversation.messages, request.fields, dict[str, Any]()
        added = len(before) - request.corrections
        row = added - 1 if fields is not None else -1
        after = [
            message
            if at == row
            else masking.message(message, is_instruction=request.is_filled and message.role in SYSTEM_ROLES)
            for at, message in enumerate(before[:added])
        ]
        if fields is not None and row >= 0:
            words = self._words_of(fields.parts, masking.kinds.of_instructions)
            last, written = before[row], masking.fields(fields, words, is_part=request.is_part)
            if written is not fields:
                changes["fields"] = written
            if last.content != _text_of(fields):  # a step has put the fields into a message of its own
                after[row] = masking.message(last, is_instruction=False)
            elif written is not fields:
                after[row] = Message(last.role, _text_of(written), last.extra)
        if request.corrections:
            masking = masking.of_corrections()
            after += [masking.message(message, is_instruction=False) for message in before[added:]]
        if any(map(operator.is_not, before, after)):
            changes["conversation"] = Conversation(tuple(after))
        return changes

    def _words_of(self, parts: Sequence[str], detectors: Detectors) -> _Words:
        return once(self._parts, lambda: _Words.of(parts, detectors), parts, detectors)

    def _spans_of_words(self, text: str, detectors: Detectors) -> list[ValueSpan]:
        """Return the values found in a text that many requests have in common."""
        key = id(detectors), text
        if key not in self._instructions:
            if len(self._instructions) >= MOST_KEPT:
                self._instructions.clear()
            self._instructions[key] = detectors.spans(text)
        return self._instructions[key]


class _Plan(NamedTuple):
    """The detectors, codes and sent parameters of requests with equal parameters."""

    kinds: Kinds
    sampling: Sampling
    """The parameters that are sent."""
    has_parameters: bool
    """Whether parameters of the body have values."""
    codes: Codes


class _Words(NamedTuple):
    """The words of a prompt around its cells."""

    around: Sequence[str]
    """The end of the words before the first cell, the words between cells, and the beginning of the words after the
    last cell. With them, values are found that begin in a cell and end in the prompt, or the other way round."""
    have_values: bool
    """Whether the words themselves have values."""

    @classmethod
    def of(cls, parts: Sequence[str], detectors: Detectors) -> _Words:
        first, *between = parts[::2]
        shortened = [part if len(part) < 2 * _CONTEXT else f"{part[:_CONTEXT]}\0{part[-_CONTEXT:]}" for part in between]
        if between:
            shortened[-1] = between[-1][:_CONTEXT]
        return cls((first[-_CONTEXT:], *shortened), any(map(detectors.spans, parts[::2])))


class _Masking(NamedTuple):
    """The masking of one request."""

    kinds: Kinds
    masks: Masks
    spans_of_words: Callable[[str, Detectors], list[ValueSpan]]
    own: Detectors | None
    """The detectors of the row's values in masked columns."""

    def of_corrections(self) -> _Masking:
        """Return the masking of the messages that ask again. An answer in them may have a value alone that is no value
        by itself, such as `jane` of `{{user}}@{{host}}`, so each value that the request has is masked."""
        known, own = _detectors_of(self.masks.values.values()), self.own
        if known is None:
            return self
        return self._replace(own=known if own is None else Detectors([*own.of_folded, *known.of_folded]))

    def evidence(self, text: str) -> str:
        """Return a text of data with masks."""
        spans = self.kinds.of_evidence.spans(text)
        return self.masks.masked(text, spans if self.own is None else apart([*spans, *self.own.spans(text)]))

    def instruction(self, text: str) -> str:
        """Return the words of an instruction with masks."""
        return self.masks.masked(text, self.spans_of_words(text, self.kinds.of_instructions))

    def message(self, message: Message, *, is_instruction: bool) -> Message:
        """Return a message with masks; the message itself if it has no values."""
        change = self.instruction if is_instruction else self.evidence
        content, extra = message.content, message.extra
        if isinstance(content, tuple):
            parts = tuple(_changed(part, change) for part in content)
            content = content if all(new is old for new, old in zip(parts, content, strict=True)) else parts
        elif content:
            content = change(content)
        if extra:
            extra = {name: _changed_field(name, value, change) for name, value in extra.items()}
        if content == message.content and extra == message.extra:
            return message
        return Message(message.role, content, extra)

    def fields(self, fields: Fields, words: _Words, *, is_part: bool) -> Fields:
        """Return the parts of a row's prompt with masks; `fields` itself if they have no values. `is_part`: whether a
        text of the row is divided, perhaps inside of a value."""
        pieces = _interleaved(words.around, fields.texts)
        spans, own = self.kinds.of_evidence.spans("".join(pieces)), self.own
        texts, end = list[str](), 0
        for at, piece in enumerate(pieces if spans or own or is_part else ()):
            start, end = end, end + len(piece)
            if at % 2:
                inside = [span for span in spans if span[0] < end and span[1] > start]
                further = [] if own is None else own.spans(piece)
                for detectors in (self.kinds.of_evidence, own) if is_part else ():
                    further += () if detectors is None else detectors.parts_at_ends(piece)
                if further:
                    moved = [ValueSpan(start + first, start + last, label) for first, last, label in further]
                    inside = apart([*inside, *moved])
                texts.append(self.masks.masked(piece, inside, start))
        parts = fields.parts
        if words.have_values:
            parts = tuple(part if at % 2 else self.instruction(part) for at, part in enumerate(parts))
        if parts is fields.parts and (not texts or (*texts,) == fields.texts):
            return fields
        return Fields(parts, (*texts,) or fields.texts)

    def parameters(self, extra: JsonObject, *, is_instruction: bool) -> JsonDict:
        """Return parameters of a request's body with masks in their texts."""
        change = self.instruction if is_instruction else self.evidence
        return {name: value if name in _OF_AUTHOR else mapped(value, change) for name, value in extra.items()}


def _mask_of(sampling: Sampling) -> Sequence[str]:
    assert isinstance(sampling, Masked)
    return kinds_in(sampling.mask) if sampling.mask else ()


def _values_of(row: FileRow | None, columns: Sequence[str]) -> Iterator[str]:
    """Yield the values that a row has in masked columns: of a list or an object, each text and number in it.

    Raises `PromptmillError`: `invalid_config` without a row, or for a table without the column; `invalid_input` for an
    object without the field.
    """
    if row is None:
        said = (
            f"`column:{columns[0]}` masks a value of a file's row, and this request is about no such row; leave it out"
        )
        raise config_error(KEY, f"{said}.")
    cells = loads(row.cells) if row.header else json_values.load(row.cells, "The row")
    names = row.header or (cells if isinstance(cells, dict) else ())
    for column in columns:
        name = column if column in names else alike(column, names)
        if not name:
            said = no_column(column, columns=names, file="the input" if row.header else "the row")
            raise config_error(KEY, said) if row.header else input_error(Named("mask"), f": {said}")
        # a header may repeat a name
        own = [cell for each, cell in zip(names, cells, strict=False) if each == name] if row.header else [cells[name]]
        yield from _texts_in(own)


def _texts_in(value: Any) -> Iterator[str]:
    """Yield the texts and numbers of a value, also of JSON in a text.

    >>> sorted(_texts_in(['["Jane Doe", 5]', {"name": "Bob"}, None]))
    ['5', 'Bob', 'Jane Doe']
    """
    waiting = [value]
    while waiting:
        match waiting.pop():
            case Mapping() as inner:
                waiting += inner.values()
            case list() as inner:
                waiting += inner
            case None | bool():
                continue
            case str() as text if text.lstrip()[:1] in {"[", "{"} and (inside := _json_in(text)) is not None:
                waiting.append(inside)
            case inner:
                yield from {cell_text(inner), text_of(inner)}


def _json_in(text: str) -> Any:
    """Return the list or object of a text of JSON; None for another text."""
    try:
        return read_json(text)
    except json.JSONDecodeError:
        return None


def _detectors_of(values: Iterable[str]) -> Detectors | None:
    """Return the detectors of values as whole words, in any case; None if there is no value."""
    names = dict.fromkeys(values)
    return Detectors([Names(names).detector]) if names else None


def _interleaved(words: Sequence[str], texts: Sequence[str]) -> Sequence[str]:
    """Return the words of a prompt and the texts of its cells, in order."""
    pieces = [""] * (2 * len(texts) + 1)
    pieces[::2], pieces[1::2] = words, texts
    return pieces


def _text_of(fields: Fields) -> str:
    return "".join(_interleaved(fields.parts[::2], fields.texts))


def _changed(part: Part, change: Callable[[str], str]) -> Part:
    if not isinstance(part, TextPart) or (text := change(part.text)) == part.text:
        return part
    return replace(part, text=text)


def _changed_field(name: str, value: Any, change: Callable[[str], str]) -> Any:
    """Return a field of a message, such as its tool calls, with each text changed. The arguments of calls are JSON."""
    if name == "arguments" and isinstance(value, str):
        return in_json(value, change)
    if name in {"id", "tool_call_id"}:  # the endpoint's own
        return value
    if isinstance(value, Mapping):
        return {inner: _changed_field(inner, each, change) for inner, each in value.items()}
    if isinstance(value, list | tuple):
        return [_changed_field(name, each, change) for each in value]
    return change(value) if isinstance(value, str) else value


def _values_in(extra: JsonObject, detectors: Detectors) -> JsonObject:
    """Return the parameters of a request's body that have values to mask."""

    def has_values(given: Any) -> bool:
        return any(isinstance(text, str) and detectors.spans(text) for text in nested(given))

    return {name: value for name, value in extra.items() if name not in _OF_AUTHOR and has_values(value)}


def _has_beginning(before: Conversation, after: Conversation, characters: int) -> bool:
    """Return whether masks leave the first `characters` of a conversation, which other requests share, unchanged."""
    return "".join(before.texts)[:characters] == "".join(after.texts)[:characters]


def _allowed_in(schema: JsonObject | None) -> Iterator[str]:
    """Yield the texts that a schema allows as values."""
    for node in nested(schema):
        if isinstance(node, Mapping):
            values = node.get("enum")
            allowed = [*(values if isinstance(values, list) else ()), node.get("const")]
            yield from (value for value in allowed if isinstance(value, str))


def _narrows(node: Mapping[str, Any]) -> bool:
    return node.get("type", "string") in ("string", ["string", "null"]) and any(name in node for name in _OF_FORM)


def _relaxed(node: Any) -> Any:
    """Return a schema without the keywords that a mask in place of a value would break."""
    if isinstance(node, Mapping):
        left_out = _OF_FORM if _narrows(node) and "properties" not in node else ()
        return {name: _relaxed(each) for name, each in node.items() if name not in left_out}
    return [_relaxed(each) for each in node] if isinstance(node, list) else node


def _unmasked_preview(show: Callable[[Growing], None], masks: Masks) -> Callable[[Growing], None]:
    """Return the preview that shows values. If the end of a text may become a mask, it is held back."""

    def shown(growing: Growing) -> None:
        calls = [_changed_field("", call, masks.growing) for call in growing.tool_calls]
        show(Growing(masks.growing(growing.text), masks.growing(growing.reasoning), calls))

    return shown


def _unmasked(outcome: Outcome, masks: Masks, call: Call) -> Outcome:
    """Return an outcome with the values in place of their masks."""
    back = masks.put_back
    changes: dict[str, Any] = {"text": back(outcome.text)}
    if outcome.reasoning:
        changes["reasoning"] = back(outcome.reasoning)
    if outcome.sources is not None:
        changes["sources"] = masks.put_back_in(outcome.sources)
    if outcome.details is not None:
        changes["details"] = masks.put_back_in(outcome.details)
    if isinstance(outcome, Completion):
        if outcome.tool_calls:
            changes["tool_calls"] = tuple(_changed_field("", one, back) for one in outcome.tool_calls)
        if outcome.reply:
            changes["reply"] = back(outcome.reply)
        if not call.facts.of_job and (strays := masks.strays(outcome.text)):
            call.warn(f"An answer has {strays[0][:40]}, which is no mask of its prompt: the model changed or made it.")
    elif outcome.part:
        changes["part"] = back(outcome.part)
    return replace(outcome, **changes) if len(changes) > 1 or changes["text"] != outcome.text else outcome


def _with_form(sampling: Sampling, kinds: Kinds) -> Sampling:
    """Return parameters whose schema allows masks. Raises `PromptmillError` if an allowed answer has a value."""
    schema = schema_of(sampling.response_format) if sampling.response_format else None
    for text in (*(sampling.choices or ()), *_allowed_in(schema)):
        if kinds.of_evidence.spans(text):
            raise config_error(
                KEY,
                "a choice, or an allowed value of the schema, has a value that is masked in the rows, so no answer "
                "could be it. Use labels without personal data, or mask fewer kinds.",
            )
    if schema is None or not any(isinstance(node, Mapping) and _narrows(node) for node in nested(schema)):
        return sampling
    relaxed = asking_for(_relaxed(schema))
    return sampling.model_copy(update={"response_format": {**(sampling.response_format or {}), **relaxed}})
