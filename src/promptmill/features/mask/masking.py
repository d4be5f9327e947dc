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
import secrets
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from promptmill.answers.response_format import asking_for, schema_of
from promptmill.backends.protocol import Call, Completion, Failure, Growing, Outcome
from promptmill.config.model_config import ModelConfig
from promptmill.core.bounds import MOST_KEPT
from promptmill.core.errors import Code, Named, PromptmillError, config_error, input_error, internal_error
from promptmill.core.request import (
    NOTHING_SHARED,
    CommonParts,
    Conversation,
    Fields,
    FileRow,
    Made,
    Request,
    Sampling,
    is_longer,
    nested,
    once,
)
from promptmill.core.texts import TextKind, changed
from promptmill.core.values import cell_text, loads, read_json, text_of
from promptmill.core.wording import no_column
from promptmill.features.mask.detection import Detectors, ValueSpan, apart
from promptmill.features.mask.kinds import KEY, Kinds
from promptmill.features.mask.mask_counts import COUNTS, counts_of
from promptmill.features.mask.masks import Codes, Masks
from promptmill.features.mask.names import Names
from promptmill.features.mask.parameters import Masked, is_known, kinds_in
from promptmill.files import json_values
from promptmill.jobs.rows.template import alike
from promptmill.steps.step import Loading, Place, Sent, Step

_CONTEXT = 48
"""Characters of the prompt around a cell in which a value may begin or end: `{{user}}@example.com`."""
_LONG = 8_000
"""Characters from which on masks are made, and put back, in a thread. With all kinds and digits alone, as many take
some 0.1 s; with ordinary text 1 ms, of which a thread takes 0.1."""
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
        self._config = config
        self._forced = tuple(_mask_of(config.operator.sampling_params))
        whole = config.file or config.operator
        every = [whole.sampling_params, *(each.sampling_params for each in whole.models.values())]
        # a request that another model could not answer has the kinds of both models
        self._operators = {*self._forced, *(kind for sampling in every for kind in _mask_of(sampling))}
        """The kinds that the operator has configured, also for other models."""
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
            if not (kind in self._operators or is_known(kind)):  # the doors refuse it before; this is the last one
                raise input_error("Only the operator's configuration may name a file or function to mask by.")
        if (known := self._by_kinds.get(own)) is not None:
            return known
        if len(self._by_kinds) >= MOST_KEPT:  # calls and rows may name any columns
            self._by_kinds.clear()
            self._instructions.clear()  # its keys have the ids of detectors
        try:
            known = self._by_kinds[own] = Kinds.of(own)
        except PromptmillError as error:
            if self._operators.issuperset(own):
                raise
            raise PromptmillError(Code.INVALID_INPUT, error.parts, error.remedy) from None  # of a call or a row
        return known

    async def answer(self, request: Request, call: Call) -> Outcome:
        """Answer a request without sending its values. A request with an image or a file fails."""
        try:
            sent, masks = await self._masked_apart(request, self._secret_of(call))
        except PromptmillError as error:
            return Failure(error, request.attempts, concerns_all=error.code != "invalid_input")
        except Exception as error:  # noqa: BLE001 (a bug costs one row, and the row is not sent)
            return Failure(internal_error("The masking of a request failed", error), request.attempts)
        outcome = await self._unmasked(sent, masks, call) if masks.values else await self.following(sent, call)
        if not call.facts.of_job:
            return outcome
        counts = counts_of(sent, masks, has_countries=self.kinds_of(request.sampling).has_countries)
        return replace(outcome, details={**(outcome.details or {}), COUNTS: counts}) if counts else outcome

    async def _unmasked(self, sent: Request, masks: Masks, call: Call) -> Outcome:
        """Return the outcome of a request with masks, with the values in their place."""
        shown = call.preview
        if shown is not None:
            call.preview = wrapped = _unmasked_preview(shown, masks)
        try:
            outcome = await self.following(sent, call)
        finally:
            if shown is not None and call.preview is wrapped:  # a sender may have ended the preview
                call.preview = shown
        if max(len(outcome.text), len(outcome.reasoning or "")) > _LONG:
            return await asyncio.to_thread(_unmasked, outcome, masks, call)
        return _unmasked(outcome, masks, call)

    async def _masked_apart(self, request: Request, secret: bytes) -> tuple[Request, Masks]:
        """Return the result of `masked`, which needs a thread for long texts."""
        size = sum(map(len, request.conversation.texts))
        if request.path or size > _LONG or self._has_long_parameters(request, secret):
            return await asyncio.to_thread(self.masked, request, secret)
        return self.masked(request, secret)

    def _has_long_parameters(self, request: Request, secret: bytes) -> bool:
        """Return whether a request has long parameters that are not masked yet."""
        is_known = tuple(map(id, (*request.common, secret))) in self._plans
        return not is_known and is_longer([request.sampling.given(), request.extra, request.form], _LONG)

    def _secret_of(self, call: Call) -> bytes:
        """Return the secret of a call's job, which the first request of a run reads."""
        return self._secret if call.facts.secret is None else call.facts.secret()

    def masked(self, request: Request, secret: bytes) -> tuple[Request, Masks]:
        """Return the request as it is sent, and its masks. Raises `PromptmillError`."""
        try:
            return self._masked(request, secret)
        except RecursionError:
            raise input_error("The request is nested too deeply to be masked. Send fewer levels.") from None

    def _masked(self, request: Request, secret: bytes) -> tuple[Request, Masks]:
        conversation = request.conversation
        if conversation.sourced or conversation.file_kinds:
            raise _unmaskable(TextKind.SOURCE)
        if request.path:  # each such request has a body of its own
            plan = self._plan(request.common, secret, is_body=True)
        else:
            of = request.sampling, request.extra, request.form, secret
            plan = once(self._plans, lambda: self._plan(request.common, secret, is_body=False), *of)
        masks = Masks(plan.codes, conversation.texts, plan.masks)
        own = _detectors_of(_values_of(request.row, plan.kinds.columns)) if plan.kinds.columns else None
        if plan.masks.values and masks.is_ambiguous:
            masks = Masks(plan.codes, conversation.texts)
            sent = request.with_texts(_Masking(self, plan.kinds, masks, own))
            sent = sent.changed(sampling=_with_form(sent.sampling))
        else:
            sent = request.with_texts(_Masking(self, plan.kinds, masks, own), plan.common)
        if request.shared and sent.conversation is not conversation:
            is_same = _has_beginning(conversation, sent.conversation, request.shared.characters)
            sent = sent.changed(shared=request.shared if is_same else NOTHING_SHARED)
        return sent, masks

    def _plan(self, common: CommonParts, secret: bytes, *, is_body: bool) -> _Plan:
        kinds, codes = self.kinds_of(common.sampling), Codes(secret)
        masks = Masks(codes, ())
        try:
            parts = common.with_texts(_Masking(self, kinds, masks, None), is_body=is_body)
        except PromptmillError as error:
            where = _first_with(common, _Masking(self, kinds, masks, None))
            code = Code.INVALID_CONFIG if self._is_of_all(common) else Code.INVALID_INPUT
            raise PromptmillError(
                code, (*error.parts, f" It is in `{where}`." if where else ""), error.remedy
            ) from None
        return _Plan(kinds, codes, masks, parts._replace(sampling=_with_form(parts.sampling)))

    def _is_of_all(self, common: CommonParts) -> bool:
        """Return whether the parameters are those of all requests, so that a mistake in them ends a job."""
        own, usual = common.sampling, self._config.settings.sampling_params
        is_same_form = own.choices == usual.choices and (own.choices or own.response_format == usual.response_format)
        is_same = own.stop == usual.stop and common.extra == self._config.settings.extra_params
        return bool(is_same_form) and is_same

    def words_of(self, parts: Sequence[str], kinds: Kinds) -> _Words:
        """Return the words around the cells of a prompt."""
        return once(self._parts, lambda: _Words.of(parts, kinds), parts, kinds)

    def spans_of_words(self, text: str, detectors: Detectors) -> list[ValueSpan]:
        """Return the values found in a text that many requests have in common."""
        key = id(detectors), text
        if (known := self._instructions.get(key)) is None:
            if len(self._instructions) >= MOST_KEPT:
                self._instructions.clear()
            known = self._instructions[key] = detectors.spans(text)
        return known


class _Plan(NamedTuple):
    """The detectors and codes of requests with equal parameters, and the parameters that are sent."""

    kinds: Kinds
    codes: Codes
    masks: Masks
    """The masks in the parameters."""
    common: CommonParts


class _Words(NamedTuple):
    """The words of a prompt around its cells."""

    around: Sequence[str]
    """The end of the words before the first cell, the words between cells, and the beginning of the words after the
    last cell. With them, values are found that begin in a cell and end in the prompt, or the other way round."""
    have_values: bool
    """Whether the words themselves have values."""

    @classmethod
    def of(cls, parts: Sequence[str], kinds: Kinds) -> _Words:
        """Raises `PromptmillError` if the name of a field has a value: some requests have the names of fields."""
        if any(map(kinds.of_names.spans, parts[1::2])):
            raise _unmaskable(TextKind.NAME, Code.INVALID_CONFIG)
        first, *between = parts[::2]
        shortened = [part if len(part) < 2 * _CONTEXT else f"{part[:_CONTEXT]}\0{part[-_CONTEXT:]}" for part in between]
        if between:
            shortened[-1] = between[-1][:_CONTEXT]
        return cls((first[-_CONTEXT:], *shortened), any(map(kinds.of_instructions.spans, parts[::2])))


class _Masking:
    """The masking of one request: the change of `Request.with_texts`."""

    __slots__ = ("_kinds", "_masks", "_own", "_step")

    def __init__(self, step: MaskedRequests, kinds: Kinds, masks: Masks, own: Detectors | None) -> None:
        """`own`: the detectors of the row's values in masked columns."""
        self._step, self._kinds, self._masks, self._own = step, kinds, masks, own

    def __call__(self, text: str, kind: TextKind, /) -> str:
        """Return a text with masks. Raises `PromptmillError` for a value in a text that cannot have a mask."""
        kinds, masks = self._kinds, self._masks
        if kind is TextKind.EVIDENCE:
            return masks.masked(text, self._spans(text, self._own))
        if kind is TextKind.INSTRUCTION:
            return masks.shared(text, self._step.spans_of_words(text, kinds.of_instructions))
        if kind is TextKind.CORRECTION:
            # An answer may have a value alone that is no value by itself, such as `jane` of `{{user}}@{{host}}`.
            known, own = _detectors_of(masks.values.values()), self._own
            if known is not None and own is not None:
                known = Detectors([*own.of_folded, *known.of_folded])
            return masks.masked(text, self._spans(text, known or own))
        detectors = kinds.of_names if kind is TextKind.NAME else kinds.of_evidence
        if kind is TextKind.SOURCE or self._step.spans_of_words(text, detectors):
            raise _unmaskable(kind)
        return text

    def _spans(self, text: str, further: Detectors | None) -> Sequence[ValueSpan]:
        spans = self._kinds.of_evidence.spans(text)
        return spans if further is None else apart([*spans, *further.spans(text)])

    def fields(self, fields: Fields, /) -> Fields:
        """Return the parts of a row's prompt with masks; `fields` itself if they have no values. In a piece of a long
        text, the mask of a value that is cut stands for the whole value."""
        words = self._step.words_of(fields.parts, self._kinds)
        pieces, cut = _interleaved(words.around, fields.texts), fields.cut
        if cut is not None:
            pieces[2 * cut.at] += cut.before
            pieces[2 * cut.at + 2] = cut.after + pieces[2 * cut.at + 2]
        whole = "".join(pieces)
        spans, own = self._kinds.of_evidence.spans(whole), self._own
        texts, end = list[str](), 0
        for at, piece in enumerate(pieces if spans or own else ()):
            start, end = end, end + len(piece)
            if at % 2:
                is_cut = cut is not None and at == 2 * cut.at + 1
                inside = spans
                if own is not None:  # in a cell alone: the cell next to it may end with a letter
                    further = own.spans(whole) if is_cut else _moved(own.spans(piece), start)
                    inside = apart([*spans, *further]) if further else spans
                inside = [span for span in inside if span[0] < end and span[1] > start]
                texts.append(self._masks.masked(piece, inside, start, whole if is_cut else ""))
        parts = fields.parts
        if words.have_values:
            parts = tuple(part if at % 2 else self(part, TextKind.INSTRUCTION) for at, part in enumerate(parts))
        if parts is fields.parts and (not texts or (*texts,) == fields.texts):
            return fields
        return fields._replace(parts=parts, texts=(*texts,) or fields.texts)


def _first_with(common: CommonParts, masking: _Masking) -> str:
    """Return the first parameter with a value that cannot have a mask; `""` for a question of a client."""
    given = {**common.sampling.given(), **common.extra}
    if "choices" in given:
        given.pop("response_format", None)  # it is made from the choices
    for name, value in given.items():
        try:
            common._replace(sampling=Sampling(), extra={name: value}, form=None).with_texts(masking, is_body=False)
        except PromptmillError:
            return "schema" if name == "response_format" else name
    return ""


def _moved(spans: Iterable[ValueSpan], start: int) -> list[ValueSpan]:
    return [ValueSpan(start + first, start + last, label) for first, last, label in spans]


def _unmaskable(kind: TextKind, code: Code = Code.INVALID_INPUT) -> PromptmillError:
    """Return the error for a value in a text that cannot have a mask."""
    if kind is TextKind.SOURCE:
        said = "An image, a PDF or a recording cannot be masked. Send its text, or leave out "
        return input_error(said, Named("mask"), ".")
    said = (
        "the name of a field, a tool or a parameter has a value that is masked in the rows, and no mask can be a name"
    )
    remedy = "Use another name, or mask fewer kinds."
    if kind is TextKind.ANSWER:
        said = "a choice, or an allowed value of the schema, has a value that is masked in the rows"
        said, remedy = f"{said}, so no answer could be it", "Use labels without personal data, or mask fewer kinds."
    return PromptmillError(code, (f"{KEY}: ", f"{said}. {remedy}"), "")


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
    return Detectors([Names(names)]) if names else None


def _interleaved(words: Sequence[str], texts: Sequence[str]) -> list[str]:
    """Return the words of a prompt and the texts of its cells, in order."""
    pieces = [""] * (2 * len(texts) + 1)
    pieces[::2], pieces[1::2] = words, texts
    return pieces


def _has_beginning(before: Conversation, after: Conversation, characters: int) -> bool:
    """Return whether masks leave the first `characters` of a conversation, which other requests share, unchanged."""
    return "".join(before.texts)[:characters] == "".join(after.texts)[:characters]


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
        calls = changed(growing.tool_calls, lambda text, _: masks.growing(text), TextKind.EVIDENCE)
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
            changes["tool_calls"] = changed(outcome.tool_calls, lambda text, _: back(text), TextKind.EVIDENCE)
        if outcome.reply:
            changes["reply"] = back(outcome.reply)
        if not call.facts.of_job and (strays := masks.strays(outcome.text)):
            call.warn(f"An answer has {strays[0][:40]}, which is no mask of its prompt: the model changed or made it.")
    elif outcome.part:
        changes["part"] = back(outcome.part)
    return replace(outcome, **changes) if len(changes) > 1 or changes["text"] != outcome.text else outcome


def _with_form(sampling: Sampling) -> Sampling:
    """Return parameters whose schema allows masks."""
    schema = schema_of(sampling.response_format) if sampling.response_format else None
    if schema is None or not any(isinstance(node, Mapping) and _narrows(node) for node in nested(schema)):
        return sampling
    relaxed = asking_for(_relaxed(schema))
    return sampling.model_copy(update={"response_format": {**(sampling.response_format or {}), **relaxed}})
