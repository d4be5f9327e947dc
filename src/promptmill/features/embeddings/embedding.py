"""The step that answers rows with vectors, many rows by one request."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import orjson

from promptmill.answering.gathered import Bounds, Gathering, Part
from promptmill.answering.step import Loading, Sent
from promptmill.backends.protocol import Call, Completion, Failure, Outcome
from promptmill.config.resolved_config import ResolvedConfig
from promptmill.core.errors import Code, PromptmillError, input_error
from promptmill.core.request import EMBEDDINGS, Conversation, Request, Sampling
from promptmill.features.embeddings.parameters import Embedded

_AT_ONCE = Bounds(items=256, size=600_000)
"""The size is in bytes of UTF-8: at two bytes a token, the 300,000 tokens that OpenAI takes in a request."""
_BOUNDS: Mapping[str, Bounds] = {
    "cohere": Bounds(96, 600_000),
    "dashscope": Bounds(10, 160_000),
    "gemini": Bounds(100, 400_000),
    "mistral": Bounds(128, 32_000),
    "siliconflow": Bounds(32, 500_000),
    "voyage": Bounds(256, 240_000),
    "zhipu": Bounds(64, 380_000),
}
"""The bounds by provider. A request that an endpoint refuses as too large is halved in any case."""
_OTHER_NAMES: Mapping[str, str] = {"mistral": "output_dimension", "voyage": "output_dimension"}
"""The name of the parameter `dimensions`, by provider."""
_NO_CONVERSATION, _NO_SAMPLING = Conversation(()), Sampling()
_ENCODING = "encoding_format"


class Embedding(Gathering):
    """Requests the embeddings of rows. The text of a row is its prompt; no system prompt is sent."""

    wanted_by = ("embed",)
    path = EMBEDDINGS

    @classmethod
    def sending(cls, plan: ResolvedConfig, *, by_batch: bool) -> Callable[[Request], Sent]:
        """Return the function from a row to the request for its vector, and the row's part of a request for many."""
        step = cls(Loading(plan, None, is_shared=False))
        return lambda request: Sent(step.joined([request]), 1.0 if by_batch else 1 / step.bounds(request).items)

    def __init__(self, loading: Loading) -> None:
        super().__init__(loading)
        self._plan = plan = loading.plan
        self._encoding: dict[str, str] = {_ENCODING: "base64"}
        """Base64 takes a third of the bytes of numbers; `{}` after an endpoint has refused it."""
        self._extra: tuple[Mapping[str, Any], bytes] = {}, b"{}"
        provider = plan.settings.backend_configs.openai.provider or ""
        self._dimensions = _OTHER_NAMES.get(provider, "dimensions")
        self._bounds = _BOUNDS.get(provider, _AT_ONCE) if plan.record.needs_endpoint else _AT_ONCE
        self._length: dict[int | None, int] = {}
        """The bytes of the first vector, by the wanted number of dimensions."""

    async def answer(self, request: Request, call: Call) -> Outcome:
        """Answer a row of a job with its vector."""
        if not call.facts.of_job:
            error = PromptmillError(
                Code.UNSUPPORTED, "Vectors are for rows of a job, or requests to /v1/embeddings.", ""
            )
            return Failure(error, request.attempts, concerns_all=True)
        if EMBEDDINGS not in self._plan.record.other_paths:
            remedy = "Choose an endpoint with embeddings, or `backend: encoder`, which runs on this machine."
            error = PromptmillError(Code.UNSUPPORTED, f"The backend {self._plan.backend} makes no embeddings.", remedy)
            return Failure(error, request.attempts, concerns_all=True)
        outcome = await super().answer(request, call)
        is_live = call.exchange is None
        if is_live and isinstance(outcome, Failure) and outcome.error.code is Code.NOT_FOUND:
            return Failure(outcome.error, outcome.attempts, concerns_all=True)  # no row would find it
        return outcome

    def kind(self, request: Request, call: Call) -> Hashable | None:
        """Return the parameters: all texts with the same go together. A row of another form goes alone, and fails."""
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
        """Return the request for the embeddings of several texts. Raises `PromptmillError` for another form."""
        first = requests[0]
        body = {**first.extra, **self._encoding, "input": [_text(one) for one in requests]}
        if (dimensions := _dimensions(first)) is not None:
            body[self._dimensions] = dimensions
        changes = {"conversation": _NO_CONVERSATION, "sampling": _NO_SAMPLING, "shared": None, "required": frozenset()}
        return first.changed(**changes, extra=body, path=self.path)

    async def send(self, joined: Request, call: Call) -> Outcome:
        """Answer a request for embeddings, as numbers if the endpoint knows no base64."""
        outcome = await self.following(joined, call)
        had_encoding = _ENCODING in joined.extra or call.exchange is not None  # the batch was sent with it
        if isinstance(outcome, Failure) and had_encoding and _ENCODING in str(outcome.error):
            self._encoding = {}
            extra = {name: value for name, value in joined.extra.items() if name != _ENCODING}
            return await self.following(joined.changed(extra=extra, attempts=outcome.attempts), call)
        return outcome

    def divided(self, requests: Sequence[Request], reply: Completion) -> Sequence[Part]:
        """Return the vectors. One whose length differs from that of the first vector is none."""
        wanted = _dimensions(requests[0])
        length = self._length.setdefault(wanted, max(map(len, reply.vectors), default=0)) or self._length.pop(wanted)
        return [
            Part(Completion("", "stop", vectors=(vector,)) if len(vector) == length else None, self.size(one) + 1)
            for one, vector in zip(requests, reply.vectors, strict=True)
        ]

    def missing(self, request: Request) -> PromptmillError:
        """Return the error of a text that the reply has no vector for."""
        numbers = self._length.get(_dimensions(request), 0) // 4
        of = f" of {numbers:,} numbers, as the others have" if numbers else ""
        return PromptmillError(Code.BAD_RESPONSE, f"The reply of the endpoint has no vector{of}.")


def _dimensions(request: Request) -> int | None:
    wanted = request.sampling
    assert isinstance(wanted, Embedded)
    dimensions: int | None = wanted.dimensions
    return dimensions


def _text(request: Request) -> str:
    """Return the text of a row. Raises `PromptmillError` (`invalid_input`)."""
    if not _is_text(request):
        raise input_error("A vector is of one text: this row has images, sounds or several messages.")
    return str(request.conversation.messages[-1].content)


def _is_text(request: Request) -> bool:
    *before, last = request.conversation.messages
    return isinstance(last.content, str) and all(message.role in {"system", "developer"} for message in before)
