"""One call through the pool: items from a source, attempts through the gate, outcomes into a sink."""

from __future__ import annotations

import asyncio
import random
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import replace

from promptmill.backends.openai.attachments import Attachments
from promptmill.backends.openai.endpoint import refusal_hint
from promptmill.backends.openai.gate import Gate
from promptmill.backends.openai.lane import Lane, Ticket
from promptmill.backends.openai.pool import Pool
from promptmill.backends.openai.retry import Blame, Verdict, backoff_s, judge_exception
from promptmill.backends.openai.wire import read_reply
from promptmill.backends.protocol import Request, Scope, Sink, Source
from promptmill.errors import Code, PromptmillError
from promptmill.outcome import Completion, Failure, Outcome
from promptmill.settings import OpenAISettings

# However often an item is put back for the endpoint's sake, it is not sent more often than this times `retries`.
_HARD_CAP = 5
_NO_IMAGES: Mapping[str, bytes] = {}


class Item:
    """A request on its way, with its one ledger of attempts: `attempts` sent in all, `counted` against `retries`."""

    __slots__ = ("attempts", "counted", "refusals", "request", "since")

    def __init__(self, request: Request) -> None:
        self.request = request
        self.attempts = 0
        self.counted = 0
        self.refusals = 0
        self.since = 0.0


class Run:
    """The life of one `Backend.run`: as many workers as requests may be in flight, items put back wait without one."""

    def __init__(
        self,
        source: Source,
        sink: Sink,
        scope: Scope,
        *,
        settings: OpenAISettings,
        unsupported_is_error: bool,
        concurrency: int,
        gate: Gate,
        pool: Pool,
        attachments: Attachments,
        chance: random.Random,
    ) -> None:
        self._source, self._sink, self._scope = source, sink, scope
        self._settings = settings
        self._unsupported_is_error = unsupported_is_error
        self._most_workers = concurrency
        self._gate, self._pool, self._attachments, self._chance = gate, pool, attachments, chance
        self._fresh: deque[Item] = deque()
        self._back: deque[Item] = deque()
        self._ended = False
        self._taking = asyncio.Lock()
        self._open = 0
        self._waiting = 0
        self._workers = 0
        self._finished = asyncio.Event()
        self._prefer_back = False
        self._closed = False

    async def run(self) -> None:
        """Work until the source is at its end and every item has its outcome."""
        self._gate.opened()
        try:
            async with asyncio.TaskGroup() as self._group:
                await self._take()
                self._employ()
                if self._open or not self._ended:
                    await self._finished.wait()
        finally:
            self._closed = True
            self._gate.closed()

    def _employ(self) -> None:
        """Have a worker for every item that can be worked on, up to the bound."""
        for _ in range(min(len(self._fresh) + len(self._back), self._most_workers) - self._workers):
            self._workers += 1
            self._group.create_task(self._work())

    async def _work(self) -> None:
        try:
            while (item := await self._next()) is not None:
                await self._advance(item)
        finally:
            self._workers -= 1
        if self._ended and not self._open:
            self._finished.set()

    async def _next(self) -> Item | None:
        """Return an item to work on: new ones and those put back in turn, so that neither keeps the other waiting."""
        if not self._fresh and not self._ended and self._waiting < 2 * self._most_workers:
            await self._take()
        self._prefer_back = not self._prefer_back
        if self._back and (self._prefer_back or not self._fresh):
            return self._back.popleft()
        return self._fresh.popleft() if self._fresh else None

    async def _take(self) -> None:
        async with self._taking:
            if self._fresh or self._ended:
                return
            requests = await self._source.take(min(self._most_workers, 256))
            self._ended = not requests
            self._open += len(requests)
            self._fresh.extend([Item(request) for request in requests])
        if self._workers:
            self._employ()

    async def _advance(self, item: Item) -> None:
        """Make one attempt and settle the item or put it back."""
        request = item.request
        try:
            pictures = request.conversation.images
            images = await self._attachments.read(pictures) if pictures else _NO_IMAGES
            # a rough four bytes a token, for `tpm` alone; what was really used is charged afterwards
            size = sum(len(m.content) for m in request.conversation.messages if isinstance(m.content, str)) // 4
            ticket = self._gate.enter_now(self._scope, size) or await self._gate.enter(self._scope, size)
        except PromptmillError as error:
            return await self._settle(item, Failure(error, item.attempts, self._age(item)))
        lane = ticket.lane
        try:
            if request.sampling or request.extra:
                self._check_supported(lane, request)
            body = lane.encoder.encode(request, images)
            result = await self._attempt(item, lane, body)
        except PromptmillError as error:
            self._gate.leave(ticket, self._scope)
            return await self._settle(item, Failure(error, item.attempts, self._age(item)))
        except BaseException:
            self._gate.leave(ticket, self._scope)
            raise
        if isinstance(result, Completion):
            lane.succeeded()
            self._gate.leave(ticket, self._scope)
            usage = result.usage
            self._gate.settle_tokens(usage.prompt_tokens + usage.completion_tokens - size)
            done = replace(result, attempts=item.attempts, latency_s=self._age(item))
            return await self._settle(item, done)
        counts = not self._blame(lane, ticket, result)
        self._gate.leave(ticket, self._scope)
        return await self._after_failure(item, lane, result, counts=counts)

    def _check_supported(self, lane: Lane, request: Request) -> None:
        for name in lane.encoder.refused(request):
            text = f"{lane.endpoint.name} takes no `{name}`"
            if self._unsupported_is_error:
                raise PromptmillError(Code.UNSUPPORTED, f"{text}.")
            self._scope.warn(f"{text}; it was left out.")

    async def _attempt(self, item: Item, lane: Lane, body: bytes) -> Completion | Verdict:
        """Send once. Raises only what ends the item (`item_timeout`) or the task."""
        now = time.monotonic()
        item.since = item.since or now
        limit_s = self._settings.item_timeout
        if limit_s is not None and now >= item.since + limit_s:
            raise _too_slow(limit_s)
        item.attempts += 1
        self._scope.requests += 1
        if item.attempts > 1:
            self._scope.retries += 1
        try:
            if limit_s is None:
                reply = await self._pool.send(lane.endpoint, body)
            else:
                try:
                    async with asyncio.timeout(item.since + limit_s - now) as limit:
                        reply = await self._pool.send(lane.endpoint, body)
                except TimeoutError:
                    if limit.expired():
                        raise _too_slow(limit_s) from None
                    raise
        except PromptmillError:
            raise
        except Exception as error:  # noqa: BLE001 (whatever the library raises is judged, and one item never ends a run)
            return judge_exception(error, lane.endpoint)
        return read_reply(reply.status, reply.headers, reply.body, lane.endpoint)

    def _blame(self, lane: Lane, ticket: Ticket, verdict: Verdict) -> bool:
        """Tell the lane; return whether the failure is not held against the item."""
        if verdict.blame is Blame.ITEM:
            lane.succeeded()  # it answered; what it said concerns this item alone
            return False
        return lane.failed(ticket, verdict)

    async def _after_failure(self, item: Item, lane: Lane, verdict: Verdict, *, counts: bool) -> None:
        error = verdict.error
        if verdict.blame is Blame.KEY:
            error = refusal_hint(lane.endpoint, error)
            lane.blocked = error
            self._gate.serve()
        settings = self._settings
        item.counted += counts
        final = verdict.blame is Blame.ITEM or (verdict.blame is Blame.KEY and self._gate.only(lane))
        if final or item.counted >= settings.retries or item.attempts >= _HARD_CAP * settings.retries:
            return await self._settle(item, Failure(error, item.attempts, self._age(item)))
        wait_s = 0.0
        if verdict.blame is Blame.LOAD:
            item.refusals += 1
            wait_s = backoff_s(item.refusals, settings.base_delay, settings.max_delay, self._chance)
        elif counts and not lane.ailing:  # else the pauses between its probes are wait enough
            wait_s = backoff_s(item.counted, settings.base_delay, settings.max_delay, self._chance)
        wait_s = max(wait_s, lane.wished(verdict))
        if settings.item_timeout is not None and item.since + settings.item_timeout <= time.monotonic() + wait_s:
            return await self._settle(item, Failure(_too_slow(settings.item_timeout), item.attempts, self._age(item)))
        if wait_s <= 0:
            self._back.append(item)
        else:
            self._waiting += 1
            asyncio.get_running_loop().call_later(wait_s, self._return, item)
        return None

    def _return(self, item: Item) -> None:
        self._waiting -= 1
        if not self._closed:
            self._back.append(item)
            self._employ()

    async def _settle(self, item: Item, outcome: Outcome) -> None:
        await self._sink.put(item.request.key, outcome)
        self._scope.settle(outcome)
        self._open -= 1

    @staticmethod
    def _age(item: Item) -> float:
        return round(time.monotonic() - item.since, 4) if item.since else 0.0


def _too_slow(limit_s: float) -> PromptmillError:
    return PromptmillError(Code.ITEM_TIMEOUT, f"The item took longer than `item_timeout` ({limit_s:g} s).")
