"""The driver: takes the requests of a call from a source, has them answered, and puts the outcomes into a sink.

It keeps `share.most` answers in flight, with one worker for each: a worker takes a request, awaits its answer, puts the
outcome away, counts it, and takes the next request. A request that has to wait does so in one of three ways:

    for a place at an endpoint    its worker waits with it: it will be its turn soon
    for a time (`Call.park`)      another worker starts in its place, as long as fewer than 2 x `most` wait so
    for others (`Call.hold`)      another worker starts in its place; those others decide, whatever else waits

The last kind must not count against the bound of the second: two requests that wait for each other's verdict would
otherwise block the third, whose answer is the verdict. When the source has ended and every request that is left waits
for others, nothing will happen by itself, and the driver reports that: `share.idle()`.

Memory holds only the requests in flight. A sink applies back-pressure by returning late.
"""

from __future__ import annotations

import asyncio
from collections import deque

from promptmill.backends.protocol import Answer, Call, Request, Share, Sink, Source, Stoppable, ignored

_MOST_TAKEN = 256
_MOST_HELD = 1024
"""Requests that wait for others; beyond that no more are taken, so that a slow leader does not fill the memory."""


class Driver:
    """One run of a call: the only place that counts its outcomes."""

    def __init__(self, source: Source, sink: Sink, call: Call) -> None:
        self._source, self._sink, self._call, self._waits = source, sink, call, call.waits
        self._fresh: deque[Request] = deque()
        self._ended = False
        self._short = False
        """Whether the source returned fewer than requested, so that the open requests are all that is left."""
        self._open = 0
        self._workers = 0
        self._taking = asyncio.Lock()
        self._closed = True
        self.stoppable = Stoppable()
        """Has `run` raise a reason from outside."""

    async def run(self, answer: Answer, share: Share) -> None:
        """Answer until the source ends and every request has its outcome.

        Raises what the source, the sink or `answer` raises: then no request can continue, and those without an outcome
        are the caller's.
        """
        self._answer, self._share = answer, share
        self._closed = False
        share.grown = self._waits.freed = self._start_workers
        try:
            with self.stoppable:
                async with asyncio.TaskGroup() as self._group:
                    self._workers += 1
                    await self._work()  # the first worker needs no task, and a call of one prompt no other worker
        except BaseExceptionGroup as group:
            raise _first(group) from None
        finally:
            self._closed = True
            share.grown = self._waits.freed = ignored

    @property
    def _running(self) -> int:
        """How many answers compete for a place."""
        waits = self._waits
        return self._workers + waits.forked - waits.parked - waits.held

    @property
    def _may_take(self) -> bool:
        waits = self._waits
        return not self._ended and waits.parked < 2 * self._share.most and waits.held < _MOST_HELD

    def _start_workers(self) -> None:
        """Start a worker for each request that waits for one, up to the share; called when a place becomes free."""
        if self._closed:
            return
        wanted = len(self._fresh) or (self._may_take and not self._taking.locked())
        for _ in range(min(wanted, self._share.most - self._running)):
            work = self._work()
            try:
                self._group.create_task(work)
            except RuntimeError:  # the run is being ended
                work.close()
                self._closed = True
                return
            self._workers += 1
        self._look()

    async def _work(self) -> None:
        call, waits, share, sink, fresh = self._call, self._waits, self._share, self._sink, self._fresh
        try:
            # the share may shrink for the sake of another call
            while self._workers + waits.forked - waits.parked - waits.held <= share.most:
                if not fresh and (not self._may_take or not await self._take()):
                    break
                request = fresh.popleft()
                outcome = await self._answer(request, call)
                await sink.put(request.key, outcome)
                call.count(outcome)
                self._open -= 1
                if self._short:
                    share.want(self._open)
        finally:
            self._workers -= 1
        self._start_workers()

    async def _take(self) -> bool:
        """Have requests ready; return whether there are some."""
        async with self._taking:
            if self._fresh or not self._may_take:
                return bool(self._fresh)
            wanted = min(self._share.most, _MOST_TAKEN)
            requests = await self._source.take(wanted)
            await asyncio.sleep(0)  # neither a list nor a request that fails at once lets the event loop go on
            self._ended = not requests
            self._short = len(requests) < wanted
            self._open += len(requests)
            self._fresh.extend(requests)
            self._share.want(self._open if self._short else None)
        if len(requests) > 1:
            self._start_workers()
        return bool(self._fresh)

    def _look(self) -> None:
        """Have the share decide when nothing will happen by itself."""
        waits = self._waits
        if waits.held and not waits.parked and not self._running and not self._fresh and not self._may_take:
            self._share.idle()


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """Return the first exception of `group` that is not one itself."""
    error = group.exceptions[0]
    return _first(error) if isinstance(error, BaseExceptionGroup) else error
