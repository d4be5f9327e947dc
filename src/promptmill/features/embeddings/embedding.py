"""The step that answers rows with vectors, many rows in one request."""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import orjson

from promptmill.backends import registry
from promptmill.backends.protocol import Call, Completion, Failure, Outcome, Totals
from promptmill.config.model_config import ModelConfig
from promptmill.core.errors import Code, Named, PromptmillError, input_error
from promptmill.core.request import EMBEDDINGS, SYSTEM_ROLES, Conversation, Request, Sampling
from promptmill.features.embeddings import pictures
from promptmill.features.embeddings.parameters import Embedded
from promptmill.features.packs.packed_rows import Bounds, Gathering, ReplyPart
from promptmill.steps.step import Loading, Sent

_AT_ONCE = Bounds(items=256, size=600_000)
"""The size is in bytes of UTF-8. At two bytes a token, it is the 300,000 tokens that OpenAI allows in a request."""
_BOUNDS: Mapping[str, Bounds] = {
    "cohere": Bounds(96, 600_000),
    "dashscope": Bounds(10, 160_000),
    "gemini": Bounds(100, 400_000),
    "mistral": Bounds(128, 32_000),
    "siliconflow": Bounds(32, 500_000),
    "voyage": Bounds(256, 240_000),
    "zhipu": Bounds(64, 380_000),
}
"""The bounds by provider. A request that an endpoint refuses as too large is divided into halves in any case."""
_OTHER_NAMES: Mapping[str, str] = {"mistral": "output_dimension", "voyage": "output_dimension"}
"""The name of the parameter `dimensions`, by provider."""
_NO_CONVERSATION, _NO_SAMPLING = Conversation(()), Sampling()
_ENCODING = "encoding_format"
_OF_ENCODING = re.compile(r"encoding.?format|base64", re.IGNORECASE)
_PERHAPS_OF_ENCODING = frozenset({Code.BAD_REQUEST, Code.INVALID_INPUT, Code.BAD_RESPONSE, Code.SERVER_ERROR})
_DOUBTS = 2
"""The maximum number of failed requests that are sent again without base64. If a pack fails for another reason, it
suffices for the pack, and for one of its items sent alone. An endpoint that is down gets no more useless requests."""


class Embedding(Gathering):
    """Requests the embeddings of rows. The text of a row is its prompt; no system prompt is sent."""

    wanted_by = ("embed",)
    path = EMBEDDINGS

    @classmethod
    def sending(cls, config: ModelConfig, *, by_batch: bool) -> Callable[[Request], Sent]:
        """Return a function that converts a row to the request for its vector, and to its share of the request."""
        step = cls(Loading(config, None, is_shared=False))

        def sent(request: Request) -> Sent:
            is_alone = by_batch or bool(request.conversation.images)
            return Sent(step.joined([request]), 1.0 if is_alone else 1 / step.bounds(request).items)

        return sent

    def __init__(self, loading: Loading) -> None:
        super().__init__(loading)
        self._config = config = loading.config
        self._encoding: dict[str, str] = {_ENCODING: "base64"}
        """The parameter that requests base64, which takes a third of the bytes; `{}` if the endpoint refuses it."""
        self._doubts = _DOUBTS
        """How many failed requests may still be sent again without base64, in case base64 is the cause."""
        self._extra: tuple[Mapping[str, Any], bytes] = {}, b"{}"
        provider = config.settings.backend_configs.openai.provider or ""
        self._dimensions = _OTHER_NAMES.get(provider, "dimensions")
        self._bounds = _BOUNDS.get(provider, _AT_ONCE) if config.record.needs_endpoint else _AT_ONCE
        self._lengths: WeakKeyDictionary[Call, dict[int | None, int]] = WeakKeyDictionary()
        """The length in bytes of the first vectors of each call, by the wanted number of dimensions."""

    async def answer(self, request: Request, call: Call) -> Outcome:
        """Answer a row of a job with its vector."""
        if not call.facts.of_job:
            error = PromptmillError(
                Code.UNSUPPORTED, "Vectors are for rows of a job, or requests to /v1/embeddings.", ""
            )
            return Failure(error, request.attempts, concerns_all=True)
        try:
            registry.check_path(self._config, EMBEDDINGS)
        except PromptmillError as refusal:
            return Failure(refusal, request.attempts, concerns_all=True)
        if call.exchange is not None and request.conversation.sourced:
            error = PromptmillError(Code.UNSUPPORTED, "Vectors of pictures are not made by batch.", "")
            return Failure(error, request.attempts)
        outcome = await super().answer(request, call)
        is_live = call.exchange is None
        if is_live and isinstance(outcome, Failure) and outcome.error.code is Code.NOT_FOUND:
            return Failure(outcome.error, outcome.attempts, concerns_all=True)  # other rows would fail, too
        return outcome

    def kind(self, request: Request, call: Call) -> Hashable | None:
        """Return the parameters: texts with the same parameters share a request. A row that is not a text is sent
        alone; it fails unless it has pictures."""
        del call
        if not _is_text(request):
            return None
        extra = request.extra
        if extra is not self._extra[0]:
            self._extra = extra, orjson.dumps(extra, option=orjson.OPT_SORT_KEYS)
        return _dimensions(request), self._extra[1]

    def bounds(self, request: Request) -> Bounds:
        """Return the bounds of a request at the model's provider."""
        del request
        return self._bounds

    def size(self, request: Request) -> int:
        """Return the bytes of a row's text."""
        text = str(request.conversation.messages[-1].content)
        return len(text) if text.isascii() else len(text.encode("utf-8", "replace"))

    def joined(self, requests: Sequence[Request]) -> Request:
        """Return the request for the embeddings of several texts. Raises `PromptmillError` if a row is not a text."""
        first = requests[0]
        if first.conversation.images:
            return pictures.request_for(first, self._config, _dimensions(first))
        body = {**first.extra, **self._encoding, "input": [_text(one) for one in requests]}
        if (dimensions := _dimensions(first)) is not None:
            body[self._dimensions] = dimensions
        changes = {"conversation": _NO_CONVERSATION, "sampling": _NO_SAMPLING, "shared": None, "required": frozenset()}
        return first.changed(**changes, extra=body, path=self.path)

    async def send(self, joined: Request, call: Call) -> Outcome:
        """Answer a request for embeddings. If the endpoint does not send base64, ask it for numbers. A reply without a
        usable vector is a failure."""
        outcome = self._checked(pictures.with_vector(await self.following(joined, call)), joined, call)
        if not isinstance(outcome, Failure):
            self._doubts = 0
            return outcome
        had_encoding = _ENCODING in joined.extra or call.exchange is not None  # the batch was sent with base64
        is_named = had_encoding and _OF_ENCODING.search(f"{outcome.error} {outcome.error.said}") is not None
        is_doubted = had_encoding and call.exchange is None and outcome.error.code in _PERHAPS_OF_ENCODING
        if outcome.concerns_all or not (is_named or (is_doubted and self._doubts)):
            return outcome
        self._doubts -= not is_named
        extra = {name: value for name, value in joined.extra.items() if name != _ENCODING}
        plain = joined.changed(extra=extra, attempts=outcome.attempts)
        again = self._checked(await self.following(plain, call), plain, call)
        if is_named or isinstance(again, Completion):
            self._encoding = {}
        return Totals().and_(outcome).and_(again).on(again)

    def _checked(self, outcome: Outcome, joined: Request, call: Call) -> Outcome:
        """Drop each vector without the requested length or, if none is requested, that of the call's first vector."""
        if isinstance(outcome, Failure):
            return outcome
        wanted, known = joined.extra.get(self._dimensions), self._lengths.setdefault(call, {})
        wanted = wanted if type(wanted) is int else None
        lengths = {len(vector) for vector in outcome.vectors} - {0}
        length = 4 * wanted if wanted else known.get(None, call.facts.vector_bytes) or max(lengths, default=0)
        if length in lengths:
            known[wanted] = length
            outcome.vectors = tuple(vector if len(vector) == length else b"" for vector in outcome.vectors)
            return outcome
        error = _other_length(max(lengths), length, wanted) if lengths else _unusable()
        # If this error did not end the call, each request would cost money, and no row would get a vector.
        is_ignored = bool(lengths and wanted and not known) and call.exchange is None
        failure = Failure(error, outcome.attempts, outcome.latency_s, concerns_all=is_ignored, came=outcome.came)
        return Totals().and_(outcome).on(failure)

    def divided(self, requests: Sequence[Request], reply: Completion) -> Sequence[ReplyPart]:
        """Return each row's vector as its part of the reply."""
        return [
            ReplyPart(Completion("", "stop", vectors=(vector,)) if vector else None, self.size(one) + 1)
            for one, vector in zip(requests, reply.vectors, strict=True)
        ]


def _unusable() -> PromptmillError:
    problem = "The reply of the endpoint has no usable vector for this text"
    remedy = "Look at the text and at the endpoint: does it make vectors, and one for each text?"
    return PromptmillError(Code.BAD_RESPONSE, f"{problem}: none that is its own, nulls, or only zeros.", remedy)


def _other_length(found: int, length: int, wanted: int | None) -> PromptmillError:
    """Return the error for a vector of `found` bytes instead of `length`. `wanted`: the requested dimensions."""
    sent = f"The endpoint sends vectors of {found // 4:,} numbers"
    if wanted:
        remedy = "Leave ", Named("dimensions"), " out, or choose a model that shortens its vectors."
        return PromptmillError(Code.BAD_RESPONSE, f"{sent}, although {wanted:,} dimensions are requested.", remedy)
    other = f"{sent}, but has sent vectors of {length // 4:,} for other rows, with which they cannot be compared."
    remedy = "See which models answer there. ", Named("again", "all"), " requests all vectors anew."
    return PromptmillError(Code.BAD_RESPONSE, other, remedy)


def _dimensions(request: Request) -> int | None:
    wanted = request.sampling
    assert isinstance(wanted, Embedded)
    dimensions: int | None = wanted.dimensions
    return dimensions


def _text(request: Request) -> str:
    """Return the text of a row. Raises `PromptmillError` (`invalid_input`)."""
    if not _is_text(request):
        raise input_error("A vector is of one text: this row has sounds, files or several messages.")
    return str(request.conversation.messages[-1].content)


def _is_text(request: Request) -> bool:
    *before, last = request.conversation.messages
    return isinstance(last.content, str) and all(message.role in SYSTEM_ROLES for message in before)
