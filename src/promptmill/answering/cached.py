"""Answers that are not paid for twice: what was answered before, and what is in flight."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable
from dataclasses import astuple, replace
from typing import Any
from weakref import WeakKeyDictionary

import orjson

from promptmill.answering.answer_cache import AnswerCache
from promptmill.backends.protocol import Answer, Call, Request
from promptmill.config.models import ResolvedConfig
from promptmill.core.errors import PromptmillError
from promptmill.core.outcome import NO_USAGE, Completion, Outcome, Usage
from promptmill.images import load as images
from promptmill.images.load import ImageRules, load_image

_COMPLETE = frozenset({"stop", "tool_calls"})
# Settings of a backend that change how an answer is obtained, never what it says.
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

    def __init__(self, following: Answer, plan: ResolvedConfig, cache: AnswerCache, *, everything: bool) -> None:
        self._following = following
        self._everything = everything
        self._of_plan = _fingerprint_of(plan)
        self._rules = ImageRules.of(
            plan.settings.allowed_roots, plan.settings.max_image_pixels, plan.settings.max_image_memory
        )
        self._batches = _Batches(cache)
        self._flights: dict[bytes, asyncio.Future[Completion | None]] = {}

    def answer(self, request: Request, call: Call) -> Awaitable[Outcome]:
        """Answer a request; one whose answer may differ the next time passes through."""
        if not self._everything and request.sampling.temperature != 0:
            return self._following(request, call)
        return self._once(request, call)

    async def flush(self) -> None:
        """Return when all answers so far are on disk."""
        await self._batches.flush()

    async def aclose(self) -> None:
        """Write what is to be kept, and close the cache."""
        await self._batches.aclose()

    async def _once(self, request: Request, call: Call) -> Outcome:
        key = await self._key(request, call)
        if key is None:
            return await self._following(request, call)
        flight = self._flights.get(key)
        if flight is None:
            return await self._lead(key, request, call)
        with call.hold():
            answer = await asyncio.shield(flight)
        # each follower of a failed leader sends its request by itself, or the failures would come one after the other
        return await self._following(request, call) if answer is None else _copied(answer, call)

    async def _lead(self, key: bytes, request: Request, call: Call) -> Outcome:
        """Answer a request, from the cache if it is there, for all that ask the same meanwhile."""
        flight = self._flights[key] = asyncio.get_running_loop().create_future()
        answer: Completion | None = None
        try:
            kept = await self._batches.look_up(key, call)
            if kept is not None and (answer := _unpacked(kept)) is not None:
                return _copied(answer, call)
            outcome = await self._following(request, call)
            if isinstance(outcome, Completion):
                answer = outcome
                if outcome.finish_reason in _COMPLETE:
                    self._batches.keep(key, outcome, call)
            return outcome
        finally:
            del self._flights[key]
            flight.set_result(answer)

    async def _key(self, request: Request, call: Call) -> bytes | None:
        """Return the cache key of a request, None if its answer is not cached."""
        sources = [image.source for image in request.conversation.images]
        if any(images.is_web(source) for source in sources):
            return None  # there may be another image tomorrow
        try:
            asked = request_digest(request, self._of_plan, call.keep_raw)
            files = [source for source in sources if source[:5].lower() != "data:"]
            return await asyncio.to_thread(self._with_files, asked, files) if files else asked
        except (OSError, TypeError, ValueError, PromptmillError):
            return None  # its own attempt will report the error

    def _with_files(self, asked: bytes, files: list[str]) -> bytes:
        """Return a digest of `asked` and of the images in `files`, which are read by the rules for images. Blocks."""
        digest = hashlib.blake2b(asked, digest_size=24)
        for source in files:
            digest.update(hashlib.blake2b(load_image(source, self._rules).data).digest())
        return digest.digest()


class _Batches:
    """Looks answers up and keeps them, all of one turn of the event loop at once, in a thread."""

    def __init__(self, cache: AnswerCache) -> None:
        self._cache = cache
        self._wanted: dict[bytes, asyncio.Future[bytes | None]] = {}
        self._unwritten: dict[bytes, bytes] = {}
        """Answers on their way to the disk."""
        self._to_keep: list[tuple[bytes, bytes, Call]] = []
        self._looking: set[asyncio.Task[None]] = set()
        self._keeping: asyncio.Task[None] | None = None

    async def look_up(self, key: bytes, call: Call) -> bytes | None:
        """Return the answer that is kept under `key`, None if there is none."""
        if (kept := self._unwritten.get(key)) is not None:
            return kept
        loop = asyncio.get_running_loop()
        if not self._wanted:
            loop.call_soon(self._look)
        found = self._wanted.get(key) or self._wanted.setdefault(key, loop.create_future())
        try:
            return await found
        except PromptmillError as error:
            call.warn(f"{error} Nothing was answered from it.")
            return None

    def keep(self, key: bytes, answer: Completion, call: Call) -> None:
        """Have an answer written."""
        try:
            self._unwritten[key] = packed = _packed(answer)
        except TypeError:  # what JSON cannot carry
            return
        self._to_keep.append((key, packed, call))
        if self._keeping is None or self._keeping.done():
            self._keeping = asyncio.ensure_future(self._keep_all())

    async def flush(self) -> None:
        """Return when all answers so far are on disk."""
        if self._keeping is not None:
            await asyncio.wait({self._keeping})

    async def aclose(self) -> None:
        """Write what is to be kept, and close the cache."""
        await self.flush()
        await asyncio.to_thread(self._cache.close)

    def _look(self) -> None:
        wanted, self._wanted = self._wanted, {}
        looking = asyncio.ensure_future(self._look_up_all(wanted))
        self._looking.add(looking)
        looking.add_done_callback(self._looking.discard)

    async def _look_up_all(self, wanted: dict[bytes, asyncio.Future[bytes | None]]) -> None:
        try:
            known = await asyncio.to_thread(self._cache.get, list(wanted))
        except PromptmillError as error:
            for future in wanted.values():
                if not future.done():
                    future.set_exception(error)
            return
        for key, future in wanted.items():
            if not future.done():
                future.set_result(known.get(key))

    async def _keep_all(self) -> None:
        while self._to_keep:
            some, self._to_keep = self._to_keep, []
            try:
                await asyncio.to_thread(self._cache.put, [(key, packed) for key, packed, _ in some])
            except PromptmillError as error:
                for call in {call for _, _, call in some}:
                    call.warn(f"{error} The answers were not kept.")
            for key, _, _ in some:
                self._unwritten.pop(key, None)


class SameRequests:
    """Sends identical requests of one call, at temperature 0, only once."""

    def __init__(self, following: Answer) -> None:
        self._following = following
        self._calls: WeakKeyDictionary[Call, dict[bytes, asyncio.Future[Outcome | None]]] = WeakKeyDictionary()

    def answer(self, request: Request, call: Call) -> Awaitable[Outcome]:
        """Answer a request; one whose answer may differ the next time passes through."""
        if request.extra.get("temperature", request.sampling.temperature) != 0:
            return self._following(request, call)
        return self._once(request, call)

    async def _once(self, request: Request, call: Call) -> Outcome:
        try:
            key = request_digest(request)
        except (TypeError, ValueError):
            return await self._following(request, call)  # its own attempt will report the error
        answers = self._calls.setdefault(call, {})
        is_last = False
        while (earlier := answers.get(key)) is not None:
            with call.hold():
                outcome = await asyncio.shield(earlier)
            if outcome is not None:
                cost = None if outcome.cost is None else 0.0  # it was paid once
                return replace(outcome, attempts=0, latency_s=0.0, usage=NO_USAGE, unmetered=0, cost=cost)
            is_last = True
        flight = answers[key] = asyncio.get_running_loop().create_future()
        shared: Outcome | None = None
        try:
            outcome = await self._following(request, call)
            # another request need not meet the passing trouble of the first one; the failure of the second is shared
            if isinstance(outcome, Completion) or not outcome.error.retryable or outcome.concerns_all or is_last:
                shared = outcome
            return outcome
        finally:
            if shared is None:
                del answers[key]
            flight.set_result(shared)


def request_digest(request: Request, *context: Any) -> bytes:
    """Return a digest of the request's contents and of its `context`.

    Raises `TypeError` or `ValueError` for what JSON cannot carry.
    """
    extra = {name: value for name, value in request.extra.items() if name != "service_tier"}
    asked = (request.conversation.as_messages(), request.sampling.given(), extra, request.path)
    digest = hashlib.blake2b(orjson.dumps(asked, option=orjson.OPT_SORT_KEYS), digest_size=24)
    for value in context:
        digest.update(value if isinstance(value, bytes) else orjson.dumps(value))
    return digest.digest()


def _fingerprint_of(plan: ResolvedConfig) -> bytes:
    """Return a digest of the settings that change answers, other than those that each request carries."""
    block = plan.block
    assert block is not None
    asked = block.model_dump(mode="json", exclude={*_NOT_ASKED, "headers"})
    headers = getattr(block, "headers", {})
    values = [(name, hashlib.sha256(headers[name].get_secret_value().encode()).hexdigest()) for name in sorted(headers)]
    return orjson.dumps((3, plan.backend, asked, values), option=orjson.OPT_SORT_KEYS)


def _copied(answer: Completion, call: Call) -> Completion:
    """Return an answer that costs nothing again."""
    if call.hides_hits:
        call.requests += 1
        return replace(answer, attempts=1)
    call.cached += 1
    cost = None if call.cost is None else 0.0
    return replace(answer, attempts=0, latency_s=0.0, usage=NO_USAGE, cost=cost, unmetered=0)


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
        text, finish_reason, reasoning, tool_calls, logprobs, details, answers, *spent = orjson.loads(data)
        usage, latency_s, cost = spent
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
