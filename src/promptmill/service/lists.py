"""A source over a list, and a sink that restores its order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from promptmill.backends.protocol import Request, Sink, Source
from promptmill.core.conversation import Conversation
from promptmill.core.errors import PromptmillError
from promptmill.core.outcome import Failure, Outcome
from promptmill.core.sampling import Sampling


class ListSource(Source):
    """The conversations of a call, in order. Items that are errors already are passed over."""

    def __init__(
        self,
        items: Sequence[Conversation | PromptmillError],
        system_prompt: str,
        sampling: Sampling,
        extra: Mapping[str, Any],
    ) -> None:
        self._items = items
        self._system_prompt = system_prompt
        self._sampling = sampling
        self._extra = extra
        self._next = 0

    @property
    def sampling(self) -> Sampling:
        """The sampling parameters of all requests."""
        return self._sampling

    @property
    def size(self) -> int:
        """The length of all texts together, in characters."""
        texts = (message.content for item in self._items if isinstance(item, Conversation) for message in item.messages)
        return sum(len(text) for text in texts if isinstance(text, str))

    @property
    def untouched(self) -> bool:
        """Whether nothing was taken yet."""
        return self._next == 0

    async def take(self, n: int) -> list[Request]:
        """Return the next up to `n` requests."""
        requests: list[Request] = []
        while len(requests) < n and self._next < len(self._items):
            item = self._items[self._next]
            if isinstance(item, Conversation):
                conversation = item.with_system(self._system_prompt)
                requests.append(Request(self._next, conversation, self._sampling, self._extra))
            self._next += 1
        return requests


class ListSink(Sink):
    """Outcomes by position."""

    def __init__(self, size: int) -> None:
        self._outcomes: list[Outcome | None] = [None] * size

    async def put(self, key: int, outcome: Outcome) -> None:
        """Keep the outcome of item `key`."""
        self._outcomes[key] = outcome

    @property
    def missing(self) -> list[int]:
        """The items without an outcome."""
        return [key for key, outcome in enumerate(self._outcomes) if outcome is None]

    def result(self, unanswered: PromptmillError | None) -> list[Outcome]:
        """Return the outcomes in order; what has none failed for the reason `unanswered`."""
        if unanswered is None:
            assert None not in self._outcomes, "a backend returned without settling every item"
            return [outcome for outcome in self._outcomes if outcome is not None]
        left = Failure(unanswered)
        return [left if outcome is None else outcome for outcome in self._outcomes]
