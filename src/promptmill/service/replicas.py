"""Replicas of a model on the machines of a cluster, as one backend: they answer, all else stays here."""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from promptmill.backends.protocol import CallStats, Request, Sink, Source
from promptmill.core.errors import Code, PromptmillError
from promptmill.core.outcome import Failure, Outcome
from promptmill.service.rate_leases import LostError, RateLeases
from promptmill.service.replica import Report

# A request that was on so many replicas when they were lost is suspected to be what loses them, and goes to one alone.
_SUSPECTED = 2
# One that was alone on so many is known to be.
_CERTAIN = 2
# A replica that is lost so often before it has answered anything will not do better the next time.
_FALSE_STARTS = 3
_MOST_AT_ONCE = 256
SILENCE_S = 60.0
"""A replica that reports nothing for so long is stopped, or its node is gone."""


class Link(Protocol):
    """The way to one replica. Everything but `kill` raises `LostError`."""

    async def load(self) -> PromptmillError | None:
        """Have the model loaded, wherever the replica is now; it holds nothing then."""
        ...

    async def submit(self, requests: Sequence[Request], *, is_last: bool) -> None:
        """Hand `requests` over."""
        ...

    async def report(self) -> Report:
        """Wait for what there is to tell."""
        ...

    async def lease(self, share: float) -> None:
        """Let the replica use this part of `rpm` and `tpm` from now on."""
        ...

    def kill(self, *, again: bool) -> None:
        """End the replica at once; `again`: it is to be started anew."""
        ...


@dataclass(slots=True, eq=False)
class _Place:
    """One replica as we see it."""

    link: Link
    ready: bool = False
    false_starts: int = 0
    hand: dict[int, Request] = field(default_factory=dict)
    """What it holds, by key."""
    asked: int = 0
    """How many its backend takes at once."""
    holds_suspect: bool = False
    hungry: asyncio.Event = field(default_factory=asyncio.Event)


class Replicas:
    """A backend over many. A replica that is lost costs what it held, which others take up."""

    def __init__(
        self,
        connect: Callable[[], Coroutine[Any, Any, Sequence[Link]]],
        disconnect: Callable[[], None],
        *,
        share_rates: bool = False,
    ) -> None:
        """`connect` gives the links, once; `disconnect`, which may block, is called at the end.

        `share_rates`: there are `rpm` or `tpm`, which hold for all replicas together.
        """
        self._connect, self._disconnect, self._share_rates = connect, disconnect, share_rates
        self._places: list[_Place] = []
        self._loading: dict[_Place, asyncio.Task[PromptmillError | None]] = {}
        self._closed = False

    async def load(self, report: Callable[[str], None]) -> None:
        """Have all replicas load and wait for the first. Raises `PromptmillError` when none can."""
        report("connecting to the cluster")
        self._places = [_Place(link) for link in await self._connect()]
        report(f"waiting for {len(self._places)} replicas")
        self._loading = {place: asyncio.ensure_future(place.link.load()) for place in self._places}
        waiting = set(self._loading.values())
        error: PromptmillError | None = None
        while waiting:
            done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for one in done:
                if one.exception() is None and one.result() is None:
                    return
                error = (one.result() if one.exception() is None else None) or error
        raise error or _gone("All replicas were lost while they loaded the model.")

    async def run(self, source: Source, sink: Sink, stats: CallStats) -> None:
        """Answer every request of `source`. Raises `engine_died` when no replica is left."""
        if self._closed:
            raise PromptmillError(Code.SHUTDOWN, "The replicas are gone.")
        await _Run(self._places, self._loading, source, sink, stats, share_rates=self._share_rates).run()

    async def aclose(self) -> None:
        """End all replicas at once; a second time does nothing."""
        if self._closed:
            return
        self._closed = True
        for loading in self._loading.values():
            loading.cancel()
        for place in self._places:
            place.link.kill(again=False)
        await asyncio.to_thread(self._disconnect)


class _Run:
    """One run: each replica has one task that feeds it and one that hears it."""

    def __init__(
        self,
        places: Sequence[_Place],
        loading: dict[_Place, asyncio.Task[PromptmillError | None]],
        source: Source,
        sink: Sink,
        stats: CallStats,
        *,
        share_rates: bool,
    ) -> None:
        self._places, self._loading = places, loading
        self._leases = RateLeases() if share_rates else None
        self._source, self._sink, self._stats = source, sink, stats
        self._ended = False
        self._again: deque[Request] = deque()
        self._suspects: deque[Request] = deque()
        self._losses: Counter[int] = Counter()
        self._losses_alone: Counter[int] = Counter()
        self._given_up = 0
        self._taking = asyncio.Lock()
        self._changed = asyncio.Event()
        self._done = asyncio.Event()
        self._error: PromptmillError | None = None

    async def run(self) -> None:
        self._stats.flow = self
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._mind(place)) for place in self._places]
                if self._leases is not None:
                    tasks.append(group.create_task(self._leases.run()))
                await self._done.wait()
                for task in tasks:
                    task.cancel()
        except BaseExceptionGroup as found:
            raise found.exceptions[0] from None
        finally:
            self._stats.flow = None
            self._stats.in_flight = 0
            for place in self._places:
                place.hand.clear()
        if self._error is not None:
            raise self._error

    # What those who watch the call see, see `protocol.Flow`

    @property
    def limit(self) -> int:
        """How many requests the replicas can hold."""
        return sum(len(place.hand) + self._wants(place) for place in self._places if place.ready)

    def waiting(self) -> str:
        """Say so while no replica is there."""
        if any(place.ready for place in self._places):
            return ""
        return f"waiting for one of {len(self._places)} replicas"

    async def _mind(self, place: _Place) -> None:
        """Keep one replica at work until the run is over."""
        while True:
            error: PromptmillError | None = None
            try:
                error = await self._loaded(place)
                if error is None:
                    place.ready = True
                    await self._serve(place)
            except LostError:
                pass
            finally:
                place.ready, place.asked = False, 0
                if self._leases is not None:
                    self._leases.left(place.link)
            place.false_starts += not place.holds_suspect
            await self._take_back(place)
            if error is None and place.false_starts < _FALSE_STARTS:
                continue
            self._given_up += 1
            if self._given_up == len(self._places):
                self._error = error or _gone("The replicas end before they answer anything.")
                self._done.set()
            else:
                why = f": {error.message}" if error is not None else ""
                self._stats.warn(f"{self._given_up} of {len(self._places)} replicas could not be used{why}")
            return

    async def _loaded(self, place: _Place) -> PromptmillError | None:
        """Have the replica hold nothing, with its model loaded; return why that cannot be."""
        loading = self._loading.pop(place, None)
        return await (place.link.load() if loading is None else loading)

    async def _serve(self, place: _Place) -> None:
        """Feed and hear the replica until it is lost. Raises `LostError`."""
        feeding = asyncio.ensure_future(self._feed(place))
        hearing = asyncio.ensure_future(self._hear(place))
        try:
            done, _ = await asyncio.wait({feeding, hearing}, return_when=asyncio.FIRST_COMPLETED)
            for one in done:
                await one
        finally:
            for task in (feeding, hearing):
                task.cancel()
            await asyncio.wait({feeding, hearing})

    async def _feed(self, place: _Place) -> None:
        told_last = False
        if self._leases is not None:
            await self._leases.joined(place.link).wait()
        while True:
            await place.hungry.wait()
            place.hungry.clear()
            while self._wants(place) > 0:
                requests = await self._requests(place, wait=told_last)
                told_last = self._ended
                place.hand.update((request.key, request) for request in requests)
                self._stats.in_flight += len(requests)
                for request in requests:
                    self._stats.sending(request.key, 0)  # its report counts how many were sent
                await place.link.submit(requests, is_last=self._ended)

    def _wants(self, place: _Place) -> int:
        """Return how many more the replica should hold: what its backend takes at once, and as many that wait.

        Of the last ones it gets half of its part, so that those that are faster or have shorter rows take the other
        half and all end together; but an engine's batch is filled (an engine takes two), as far as its part goes.
        """
        if place.holds_suspect:
            return 0
        most, total = 2 * min(place.asked, _MOST_AT_ONCE), self._stats.total
        if total is not None:
            part = -(-(total - self._stats.done) // max(1, sum(place.ready for place in self._places)))
            most = min(most, max(1, -(-part // 2), min(place.asked // 2, part)))
        return max(0, most - len(place.hand))

    async def _requests(self, place: _Place, *, wait: bool) -> list[Request]:
        """Return requests for a replica, lost ones first; with `wait` not none of them."""
        while True:
            n = max(1, self._wants(place))
            if self._again:
                return [self._again.popleft() for _ in range(min(n, len(self._again)))]
            if self._suspects and not place.hand:
                place.holds_suspect = True
                return [self._suspects.popleft()]
            if not self._ended:
                async with self._taking:
                    if not self._ended and not self._again:
                        requests = await self._source.take(n)
                        self._ended = not requests
                        self._look()
                        if requests:
                            return requests
                continue
            if not wait:
                return []
            self._changed.clear()
            await self._changed.wait()

    async def _hear(self, place: _Place) -> None:
        while True:
            try:
                async with asyncio.timeout(SILENCE_S):
                    report = await place.link.report()
            except TimeoutError:
                place.link.kill(again=True)
                raise LostError from None
            await self._settle(place, report)
            if report.error is not None:
                if report.error.code is not Code.ENGINE_DIED:
                    self._error = report.error
                    self._done.set()
                place.link.kill(again=True)
                raise LostError
            place.asked = report.asked
            if self._wants(place):
                place.hungry.set()

    async def _settle(self, place: _Place, report: Report) -> None:
        stats = self._stats
        stats.requests += report.requests
        stats.retries += report.retries
        stats.refused += report.refused
        for warning in report.warnings:
            stats.warn(warning)
        for key, outcome in report.outcomes:
            place.holds_suspect = False
            if place.hand.pop(key, None) is None:
                continue
            place.false_starts = 0
            await self._put(key, outcome)
        if self._suspects and not place.hand:
            self._changed.set()
        self._look()

    async def _put(self, key: int, outcome: Outcome) -> None:
        self._stats.in_flight -= 1
        if losses := self._losses[key]:  # what was lost with a replica may be billed
            outcome = replace(outcome, unmetered=outcome.unmetered + losses)
        await self._sink.put(key, outcome)
        self._stats.settle(outcome)

    async def _take_back(self, place: _Place) -> None:
        """Have others answer what a lost replica held, but not what loses every replica."""
        lost, place.hand, place.holds_suspect = place.hand, {}, False
        for key, request in lost.items():
            self._losses[key] += 1
            self._losses_alone[key] += len(lost) == 1
            if self._losses_alone[key] >= _CERTAIN:
                error = _gone(f"{self._losses[key]} replicas were lost while they had it.")
                await self._put(key, Failure(error, request.attempts + self._losses[key]))
                continue
            charges = self._stats.charges
            if charges is not None and not charges.again(key):
                await self._put(key, Failure(PromptmillError(Code.BUDGET, "The budget has no room to send it again.")))
                del self._losses[key]  # it is charged
                continue
            self._stats.in_flight -= 1
            (self._suspects if self._losses[key] >= _SUSPECTED else self._again).append(request)
        self._changed.set()
        self._look()

    def _look(self) -> None:
        """Note the end once all is settled."""
        if self._ended and not self._again and not self._suspects and not any(place.hand for place in self._places):
            self._done.set()


def _gone(said: str) -> PromptmillError:
    return PromptmillError(Code.ENGINE_DIED, said, "Look at the cluster: `ray status`, and the logs of its actors.")
