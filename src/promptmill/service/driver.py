"""The driver: takes a call's requests from a source, passes them to `answer`, and puts the outcomes into a sink.

It keeps `share.most` answers in flight, with one worker for each: a worker takes a request, awaits its answer, records
the outcome (see `record_outcome`), and takes the next request. A request can wait in three ways:

    for a place at an endpoint    its worker waits too, because a place is free soon
    for a time (`Call.park`)      another worker starts in its place, while fewer than 2 x `most` requests are parked
    for others (`Call.hold`)      another worker starts in its place, however many requests are parked

Held requests must not count against the limit of parked requests: if they did, two requests that are held until an
answer of the call arrives could block the third request, which would bring this answer. If only held requests are left,
no event will release them, so the driver calls `share.idle()`, which decides about them.

Only the requests in flight are in memory. A sink applies back-pressure if its `put` returns late.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable

from promptmill.backends.protocol import Answer, Call, Outcome, Share, Sink, Source, Stoppable, ignored
from promptmill.core.bounds import MOST_HELD
from promptmill.core.errors import PromptmillError
from promptmill.core.request import Request

_TAKEN_AT_ONCE = 256


def record_outcome(key: int, outcome: Outcome, sink: Sink, call: Call) -> Awaitable[None] | None:
    """Put the outcome of item `key` into the sink, and count it. No other function counts outcomes.

    Return the awaitable of `put`. This is no coroutine function, because awaiting a coroutine takes 5,000 instructions.
    """
    try:
        waits = sink.put(key, outcome)
    except PromptmillError:  # counted, because the sink has accepted this outcome, but it accepts no further one
        call.count(outcome)
        raise
    call.count(outcome)
    return waits


class Driver:
    """One run of a call."""

    def __init__(self, source: Source, sink: Sink, call: Call) -> None:
        self._source, self._sink, self._call, self._waits = source, sink, call, call.waits
        self._fresh: deque[Request] = deque()
        self._ended = False
        self._short = False
        """Whether the source returned fewer requests than wanted, so that only the requests already taken are left."""
        self._open = 0
        self._workers = 0
        self._taking = asyncio.Lock()
        self._loop_ran = False
        self._closed = True
        self._over = asyncio.Event()
        """Set when the source has ended. `run` waits for it, because a paused call has no worker."""
        self.stoppable = Stoppable()
        """Stops `run` from outside; `run` then raises the given reason."""

    async def run(self, answer: Answer, share: Share) -> None:
        """Run until the source has ended and every request has its outcome.

        Raises the exceptions of the source, the sink and `answer`: then no request can continue, and the caller decides
        about requests without an outcome.
        """
        self._answer, self._share = answer, share
        self._closed = False
        share.grown = self._waits.freed = self._start_workers
        try:
            with self.stoppable:
                async with asyncio.TaskGroup() as self._group:
                    self._workers += 1
                    await self._work()  # the first worker runs in this task: one prompt needs no other worker
                    if not self._ended:
                        await self._over.wait()
        except BaseExceptionGroup as group:
            raise _first(group) from None
        finally:
            self._closed = True
            share.grown = self._waits.freed = ignored

    @property
    def _running(self) -> int:
        """The number of requests that use a part of the share."""
        waits = self._waits
        return self._workers + waits.forked - waits.parked - waits.held

    @property
    def _may_take(self) -> bool:
        waits = self._waits
        return not self._ended and waits.parked < 2 * self._most and waits.held < MOST_HELD

    @property
    def _most(self) -> int:
        """The most answers to keep in flight."""
        return min(self._share.most, self._waits.most)

    def _start_workers(self) -> None:
        """Start workers for waiting requests, up to the share. This is called when a part of the share becomes free."""
        if self._closed:
            return
        wanted = len(self._fresh) or (self._may_take and not self._taking.locked())
        for _ in range(min(wanted, self._most - self._running)):
            work = self._work()
            try:
                self._group.create_task(work)
            except RuntimeError:  # the run is ending, so no worker starts
                work.close()
                self._closed = True
                return
            self._workers += 1
        self._look()

    async def _work(self) -> None:
        call, waits, share, sink, fresh = self._call, self._waits, self._share, self._sink, self._fresh
        try:
            # The share is read each time, because it may shrink when another call starts.
            while (
                running := self._workers + waits.forked - waits.parked - waits.held
            ) <= share.most and running <= waits.most:
                if not fresh and not await self._take():
                    break
                request = fresh.popleft()
                outcome = await self._answer(request, call)
                if (taken := record_outcome(request.key, outcome, sink, call)) is not None:
                    await taken
                self._open -= 1
                if self._short:
                    share.want(self._open)
        finally:
            self._workers -= 1
        self._start_workers()

    async def _take(self) -> bool:
        """Take requests from the source if no request is ready. Return whether a request is ready afterwards."""
        async with self._taking:
            if self._fresh or not self._may_take:
                return bool(self._fresh)
            wanted = max(1, min(self._most, _TAKEN_AT_ONCE))
            requests = await self._source.take(wanted)
            await self._let_loop_run()
            self._ended = not requests
            if self._ended:
                self._over.set()
            self._short = len(requests) < wanted
            self._open += len(requests)
            self._fresh.extend(requests)
            self._share.want(self._open if self._short else None)
        if len(requests) > 1:
            self._start_workers()
        return bool(self._fresh)

    async def _let_loop_run(self) -> None:
        """Let the event loop run, unless it has run since the last call. (Failing requests would never let it run.)

        If the loop has run, this wait would only delay the other workers (with 8 requests in flight, once per request).
        """
        if not self._loop_ran:
            await asyncio.sleep(0)
        self._loop_ran = False
        asyncio.get_running_loop().call_soon(self._note_loop_ran)

    def _note_loop_ran(self) -> None:
        self._loop_ran = True

    def _look(self) -> None:
        """Release held requests that no event will release: call `share.idle` if only such requests are left.

        Requests that wait for further requests continue as soon as no further request can come and a place is free.
        """
        waits = self._waits
        if not waits.held or self._fresh or self._may_take:
            return
        are_inside = self._ended and self._open <= waits.inside and self._running < self._most
        if waits.starved and (are_inside or not self._running):
            for send in tuple(waits.starved):
                send()
        elif not waits.parked and not self._running:
            self._share.idle()


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """Return the first exception in `group` that is not a group."""
    error = group.exceptions[0]
    return _first(error) if isinstance(error, BaseExceptionGroup) else error
