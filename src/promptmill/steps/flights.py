"""One flight for equal requests: of all requests with the same question, one is sent; the others copy its outcome.

    known        copies the known outcome
    in flight    waits for the outcome of the request that was sent, then copies it
    new          is sent; its outcome is shared, and known from then on

Three steps do this, with different questions and sources. The cache reads answers from a file; `dedupe` of a call uses
the call's outcomes; `dedupe` of a job uses the job's database. A copy costs nothing.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Awaitable
from typing import Any, Generic, Self, TypeAlias, TypeVar
from weakref import WeakKeyDictionary

import orjson

from promptmill.backends import registry
from promptmill.backends.protocol import Call, Completion, Outcome, copied
from promptmill.core.parameter import REPEATABLE
from promptmill.core.request import OF_FIELDS_NAMES, Request, Sampling
from promptmill.steps.step import Loading, Place, Step

_REPEATABLE = Sampling.marked(REPEATABLE)
K = TypeVar("K")
Flight: TypeAlias = "asyncio.Future[Outcome | None]"
"""The future of a sent request. Its result is the outcome, or None if there is no outcome to share."""


class OneFlight(Step, Generic[K]):
    """Sends one request for each question at a time. Other requests with this question get copies of the outcome."""

    one_by_one = True
    """Whether requests that waited in vain are sent one after another instead of all at once."""

    def __init__(self) -> None:
        self._flights: dict[K, Flight] = {}

    async def once(self, request: Request, call: Call) -> Outcome:
        """Return the outcome of a request: send the request, or copy the outcome of an equal request."""
        began = time.monotonic()
        if (question := await self.question(request, call)) is None:
            return await self.following(request, call)
        is_second = False
        while (flight := self._flights.get(question)) is not None:
            outcome = await self.shared(flight, call)
            if outcome is not None and (copy := self.copied(outcome, request, call, began)) is not None:
                return copy
            if not self.one_by_one:
                return await self.following(request, call)
            is_second = True
        flight = self._flights[question] = asyncio.get_running_loop().create_future()
        try:
            if (known := await self.known(question, request, call)) is not None:
                flight.set_result(known)
                if (copy := self.copied(known, request, call, began)) is not None:
                    return copy
            outcome = await self.following(request, call)
            if self.learn(question, outcome, request, call, is_second=is_second) and not flight.done():
                flight.set_result(outcome)
            return outcome
        finally:
            del self._flights[question]
            if not flight.done():
                flight.set_result(None)

    async def question(self, request: Request, call: Call) -> K | None:
        """Return the key that equal requests share; None for a request that is sent in any case."""
        raise NotImplementedError

    async def shared(self, flight: Flight, call: Call) -> Outcome | None:
        """Wait for the outcome of an equal request. While this request waits, another request may use its place."""
        with call.hold():
            return await asyncio.shield(flight)

    async def known(self, question: K, request: Request, call: Call) -> Outcome | None:
        """Return the outcome that is known for a question; None if the request must be sent."""
        raise NotImplementedError

    def learn(self, question: K, outcome: Outcome, request: Request, call: Call, *, is_second: bool) -> bool:
        """Keep the outcome of a sent request. Return whether waiting requests get a copy.

        `is_second`: the request had itself waited for an equal request, and got no copy.
        """
        raise NotImplementedError

    def copied(self, outcome: Outcome, request: Request, call: Call, began: float) -> Outcome | None:
        """Return the copy of an outcome for a request that arrived at `began`; None if the outcome does not serve the
        request."""
        del began
        call.counts.cached += 1
        return copied(outcome, request.attempts)


class SameRequests(OneFlight[tuple[Call, bytes]]):
    """Sends only one of the identical requests of a call at temperature 0."""

    place = Place.EQUAL

    @classmethod
    async def of(cls, loading: Loading) -> Self | None:
        """Return the step if `dedupe` is configured."""
        config = loading.config
        is_wanted = config.record.needs_endpoint and config.settings.backend_configs.openai.dedupe
        return cls(decides=registry.decides(config)) if is_wanted else None

    def __init__(self, *, decides: bool = False) -> None:
        super().__init__()
        self._decides = decides
        self._outcomes: WeakKeyDictionary[Call, dict[bytes, Outcome]] = WeakKeyDictionary()
        """The outcomes of earlier requests, by call and digest."""

    def answer(self, request: Request, call: Call) -> Awaitable[Outcome]:
        """Answer a request. A request whose answer may vary is always sent."""
        is_same = self._decides or is_repeatable(request)
        return self.once(request, call) if is_same else self.following(request, call)

    async def question(self, request: Request, call: Call) -> tuple[Call, bytes] | None:
        """Return the call and the digest of the request."""
        try:
            return call, request_digest(request, decides=self._decides)
        except (TypeError, ValueError):
            return None  # the request's own attempt will report the error

    async def known(self, question: tuple[Call, bytes], request: Request, call: Call) -> Outcome | None:
        """Return the outcome of an earlier request of the call."""
        del request
        return self._outcomes.get(call, {}).get(question[1])

    def learn(
        self, question: tuple[Call, bytes], outcome: Outcome, request: Request, call: Call, *, is_second: bool
    ) -> bool:
        """Keep an outcome for the call. A temporary failure is kept only if a second request fails, too, because the
        failure may not recur."""
        del request
        if isinstance(outcome, Completion) or not outcome.error.retryable or outcome.concerns_all or is_second:
            self._outcomes.setdefault(call, {})[question[1]] = outcome
            return True
        return False


def is_repeatable(request: Request) -> bool:
    """Return whether the request has temperature 0, or wants no text. Then its answer should always be the same."""
    sampling = request.sampling
    return bool(request.extra.get("temperature", sampling.temperature) == 0) or sampling.sets(_REPEATABLE)


def request_digest(request: Request, *context: Any, decides: bool = False) -> bytes:
    """Return a digest of a request's contents and of its `context`.

    `decides`: the answering model decides. Then the digest also depends on columns, definitions and questions.

    Raises `TypeError` or `ValueError` for values that JSON cannot represent.
    """
    extra = {name: value for name, value in request.extra.items() if name != "service_tier"}
    sampling = request.sampling.given() if decides else request.sampling.beside_prompt()
    asked = (
        *(request.conversation.as_messages(), sampling, extra, request.path, request.choice),
        # An answer may state places in the fields, so the same text divided into other fields is another question.
        [*request.fields[:2]] if request.fields and (decides or request.sampling.sets(OF_FIELDS_NAMES)) else None,
    )
    digest = hashlib.blake2b(orjson.dumps(asked, option=orjson.OPT_SORT_KEYS), digest_size=24)
    if decides and request.form is not None:
        digest.update(f"{request.form!r}{request.state or ''}".encode("utf-8", "backslashreplace"))
    for value in context:
        digest.update(value if isinstance(value, bytes) else orjson.dumps(value))
    return digest.digest()
