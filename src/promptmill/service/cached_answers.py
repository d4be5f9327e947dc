"""Answers not paid for twice: what was answered before, and what is in flight."""

from __future__ import annotations

import asyncio
import hashlib
from collections import deque
from collections.abc import Mapping
from dataclasses import astuple, replace

import orjson

from promptmill.backends.protocol import CallStats, Request, Sink, Source
from promptmill.config.models import ResolvedConfig
from promptmill.core.errors import PromptmillError
from promptmill.core.outcome import NO_USAGE, Completion, Outcome, Usage, sum_of
from promptmill.images import load as images
from promptmill.service.answer_cache import AnswerCache
from promptmill.service.wrapped_call import RunCall, WrappedCall

_COMPLETE = frozenset({"stop", "tool_calls"})
# Settings of a backend that change how an answer is got, never what it says.
_NOT_ASKED = frozenset(
    {
        "api_key",
        "api_key_env",
        "trust_env",
        "concurrency",
        "adaptive",
        "rpm",
        "tpm",
        "retries",
        "base_delay",
        "max_delay",
        "timeout",
        "item_timeout",
        "patience",
        "max_connections",
        "stream",
        "dedupe",
        "num_workers",
        "worker_concurrency",
        "bulk_threshold",
        "batch_size",
        "threads",
        "cache_gb",
    }
)


class CachedAnswers:
    """Answers from the cache where it has them; the same request in flight in several calls is sent once.

    Complete answers are kept, of requests at temperature 0; of all with `everything`.
    """

    def __init__(self, run: RunCall, plan: ResolvedConfig, cache: AnswerCache, *, everything: bool) -> None:
        self._run = run
        self._cache = cache
        self._everything = everything
        self._of_plan = _fingerprint_of(plan)
        settings = plan.settings
        self._image_rules = images.ImageRules.of(
            settings.allowed_roots, settings.max_image_pixels, settings.max_image_memory
        )
        self._flights: dict[bytes, _Flight] = {}
        self.unwritten: dict[bytes, bytes] = {}
        """Answers on their way to the disk."""

    async def run(self, source: Source, sink: Sink, stats: CallStats) -> None:
        """Answer what is known, send the rest, and wait for what other calls have in flight."""
        call = _Call(self, self._cache, source, sink, stats)
        try:
            await self._run(call, call, stats)
            while await call.goes_on():
                await self._run(call, call, stats)
        finally:
            call.leave()
            await asyncio.shield(call.flush())

    def flight(self, key: bytes) -> _Flight | None:
        """Return the request in flight that asks the same."""
        return self._flights.get(key)

    def begin(self, key: bytes) -> _Flight:
        """Note that a request is about to be sent."""
        flight = self._flights[key] = _Flight(key)
        return flight

    def end(self, flight: _Flight, outcome: Outcome | None) -> None:
        """Tell those who wait for a request what came of it; None: nothing, they have to ask themselves."""
        self._flights.pop(flight.key, None)
        for call, request in flight.followers:
            call.arrived.put_nowait((request, outcome if isinstance(outcome, Completion) else None))

    def key(self, request: Request, *, keep_raw: bool) -> bytes | None:
        """Return what tells the request apart from all that may be answered otherwise, None if it is not cached."""
        sampling = request.sampling
        if not self._everything and sampling.temperature != 0:
            return None
        sources = [image.source for image in request.conversation.images]
        if any(images.is_web(source) for source in sources):
            return None  # there may be another image tomorrow
        try:
            digest = hashlib.blake2b(self._of_plan, digest_size=24)
            extra = {name: value for name, value in request.extra.items() if name != "service_tier"}
            asked = (request.conversation.as_messages(), sampling.given(), extra, keep_raw, request.path)
            digest.update(orjson.dumps(asked, option=orjson.OPT_SORT_KEYS))
            for source in sources:
                if source[:5].lower() != "data:":
                    digest.update(hashlib.blake2b(images.load_image(source, self._image_rules).data).digest())
        except (TypeError, ValueError, PromptmillError):
            return None  # its own attempt will say what is wrong
        return digest.digest()


class _Flight:
    """One request that is being answered, and who waits for the same answer."""

    __slots__ = ("followers", "key")

    def __init__(self, key: bytes) -> None:
        self.key = key
        self.followers: list[tuple[_Call, Request]] = []


class _Call(WrappedCall):
    """Source and sink around a call's own."""

    def __init__(self, owner: CachedAnswers, cache: AnswerCache, source: Source, sink: Sink, stats: CallStats) -> None:
        self.arrived: asyncio.Queue[tuple[Request, Completion | None]] = asyncio.Queue()
        """What came of requests that other calls, or other items of this one, have in flight."""
        self._owner, self._cache = owner, cache
        super().__init__(source, sink, stats)
        self._leads: dict[int, _Flight] = {}
        self._follows = 0
        self._alone: deque[Request] = deque()
        self._ended = False
        self._to_keep: list[tuple[bytes, bytes]] = []
        self._keeping: asyncio.Task[None] | None = None
        self._keep_raw = source.keep_raw

    async def take(self, n: int) -> list[Request]:
        """Return requests that nobody has answered and nobody is asking."""
        if self._alone:
            return [self._alone.popleft() for _ in range(min(n, len(self._alone)))]
        while not self._ended:
            requests = await self._source.take(n)
            self._ended = not requests
            if new := await self._new(requests):
                return new
        return []

    async def put(self, key: int, outcome: Outcome) -> None:
        """Pass the outcome on, keep it if it is complete, and tell those who wait for the same."""
        flight = self._leads.pop(key, None)
        if flight is not None:
            if isinstance(outcome, Completion) and outcome.finish_reason in _COMPLETE:
                self._keep(flight.key, outcome)
            self._owner.end(flight, outcome)
        await self._sink.put(key, outcome)

    async def goes_on(self) -> bool:
        """Settle what others answered; return whether some of it has to be asked here after all."""
        while self._follows and not self._alone:
            request, answer = await self.arrived.get()
            self._follows -= 1
            if answer is None:
                self._alone.append(request)
            else:
                await self._settle(request.key, answer)
        return bool(self._alone)

    def leave(self) -> None:
        """Let those who wait for requests of this call ask themselves."""
        for flight in tuple(self._leads.values()):
            self._owner.end(flight, None)
        self._leads.clear()

    async def flush(self) -> None:
        """Return when what is to be kept is on disk."""
        if self._keeping is not None:
            await asyncio.wait({self._keeping})

    async def _new(self, requests: list[Request]) -> list[Request]:
        keys = await asyncio.to_thread(self._keys, requests)
        known: Mapping[bytes, bytes] = {}
        try:
            known = await asyncio.to_thread(self._cache.get, [key for key in keys if key is not None])
        except PromptmillError as error:
            self._stats.warn(f"{error} Nothing was answered from it.")
        new = []
        for request, key in zip(requests, keys, strict=True):
            if key is None:
                new.append(request)
            elif (kept := known.get(key) or self._owner.unwritten.get(key)) and (answer := _unpacked(kept)) is not None:
                await self._settle(request.key, answer)
            elif (flight := self._owner.flight(key)) is not None:
                flight.followers.append((self, request))
                self._follows += 1
            else:
                self._leads[request.key] = self._owner.begin(key)
                new.append(request)
        return new

    def _keys(self, requests: list[Request]) -> list[bytes | None]:
        return [self._owner.key(request, keep_raw=self._keep_raw) for request in requests]

    async def _settle(self, key: int, answer: Completion) -> None:
        stats = self._stats
        if stats.hides_hits:
            copy = replace(answer, attempts=1)
            stats.requests += 1
            stats.cost = sum_of(stats.cost, copy.cost)
        else:
            cost = None if stats.cost is None else 0.0
            copy = replace(answer, attempts=0, latency_s=0.0, usage=NO_USAGE, cost=cost)
            stats.cached += 1
        await self._sink.put(key, copy)
        stats.settle(copy)

    def _keep(self, key: bytes, answer: Completion) -> None:
        try:
            self._owner.unwritten[key] = packed = _packed(answer)
        except TypeError:  # what JSON cannot carry
            return
        self._to_keep.append((key, packed))
        if self._keeping is None or self._keeping.done():
            self._keeping = asyncio.ensure_future(self._keep_all())

    async def _keep_all(self) -> None:
        while self._to_keep:
            some, self._to_keep = self._to_keep, []
            try:
                await asyncio.to_thread(self._cache.put, some)
            except PromptmillError as error:
                self._stats.warn(f"{error} The answers were not kept.")
            for key, _ in some:
                self._owner.unwritten.pop(key, None)


def _fingerprint_of(plan: ResolvedConfig) -> bytes:
    """Return what of the configuration changes answers, beside what each request says itself."""
    block = plan.block
    assert block is not None
    asked = block.model_dump(mode="json", exclude={*_NOT_ASKED, "headers"})
    headers = getattr(block, "headers", {})
    values = [(name, hashlib.sha256(headers[name].get_secret_value().encode()).hexdigest()) for name in sorted(headers)]
    return orjson.dumps((3, plan.backend, asked, values), option=orjson.OPT_SORT_KEYS)


def _packed(answer: Completion) -> bytes:
    return orjson.dumps(
        (
            answer.text,
            answer.finish_reason,
            answer.reasoning,
            [dict(call) for call in answer.tool_calls],
            answer.logprobs,
            answer.details,
            answer.answers,
            astuple(answer.usage),
            answer.latency_s,
            answer.cost,
        )
    )


def _unpacked(data: bytes) -> Completion | None:
    try:
        text, finish_reason, reasoning, tool_calls, logprobs, details, answers, usage, latency_s, cost = orjson.loads(
            data
        )
    except (ValueError, TypeError):
        return None
    return Completion(
        text,
        finish_reason,
        reasoning=reasoning,
        tool_calls=tuple(tool_calls),
        logprobs=logprobs,
        details=details,
        answers=tuple(answers),
        usage=Usage(*usage),
        latency_s=latency_s,
        cost=cost,
    )
