"""Replicas of a model on the machines of a cluster, as one backend: they answer, all else stays here."""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from promptmill.backends.protocol import Call, Request
from promptmill.cluster.rate_leases import LostError, RateLeases
from promptmill.cluster.replica import Report
from promptmill.core.errors import Code, PromptmillError
from promptmill.core.outcome import Failure, Outcome

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
class _Item:
    """One request on its way, with how often it was lost together with a replica."""

    request: Request
    call: Call
    outcome: asyncio.Future[Outcome]
    losses: int = 0
    losses_alone: int = 0

    @property
    def is_wanted(self) -> bool:
        """Whether the call still waits for it."""
        return not self.outcome.done()


@dataclass(slots=True, eq=False)
class _Place:
    """One replica as we see it."""

    link: Link
    ready: bool = False
    false_starts: int = 0
    hand: dict[int, _Item] = field(default_factory=dict)
    """The items that it holds, by their numbers there."""
    asked: int = 0
    """How many its backend takes at once."""
    holds_suspect: bool = False
    hungry: asyncio.Event = field(default_factory=asyncio.Event)
    emptied: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when it is to forget what it holds, because no call waits for that."""


class ReplicaShare:
    """A call's share of all replicas, which hold as much of it as they take."""

    def __init__(self, replicas: Replicas, call: Call) -> None:
        self.grown: Callable[[], None] = lambda: None
        self.wanted: int | None = None
        """How many items the call still has; None where that is not known."""
        self._replicas, self._call = replicas, call

    @property
    def most(self) -> int:
        """Answers to keep in flight now."""
        return self._replicas.most

    @property
    def limit(self) -> int:
        """How many requests the replicas can hold."""
        return self._replicas.most

    def want(self, items: int | None) -> None:
        """Note how many items the call still has."""
        self.wanted = items

    def idle(self) -> None:
        """No item waits for others here: the replicas decide by themselves."""

    def waiting(self) -> str:
        """Return why the call is stalled: no replica is ready; `""` otherwise."""
        return self._replicas.waiting()


class Replicas:
    """A backend over many. A replica that is lost costs what it held, which others take up.

    Each replica has one task that feeds it from a common queue, as much as it takes, and one that hears its reports.
    """

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
        self._connect, self._disconnect = connect, disconnect
        self._leases = RateLeases() if share_rates else None
        self._places: list[_Place] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._calls: dict[Call, ReplicaShare] = {}
        self._queue: deque[_Item] = deque()
        self._again: deque[_Item] = deque()
        self._suspects: deque[_Item] = deque()
        self._numbers = itertools.count(1)
        self._changed = asyncio.Event()
        self._given_up = 0
        self._troubles: dict[str, None] = {}
        """Warnings for every call: which replicas could not be used."""
        self._error: PromptmillError | None = None
        self._closed = False

    async def load(self, report: Callable[[str], None]) -> None:
        """Have all replicas load and wait for the first. Raises `PromptmillError` when none can."""
        report("connecting to the cluster")
        self._places = [_Place(link) for link in await self._connect()]
        report(f"waiting for {len(self._places)} replicas")
        self._tasks = [asyncio.create_task(self._mind(place)) for place in self._places]
        if self._leases is not None:
            self._tasks.append(asyncio.create_task(self._leases.run()))
        while self._error is None and not any(place.ready for place in self._places):
            await self._change()
        if self._error is not None:
            raise self._error

    def enter(self, call: Call) -> ReplicaShare:
        """Note that a call starts. Raises `PromptmillError` (`shutdown`, `engine_died`)."""
        if self._closed:
            raise PromptmillError(Code.SHUTDOWN, "The replicas are gone.")
        if self._error is not None:
            raise self._error
        share = self._calls[call] = ReplicaShare(self, call)
        call.warnings |= self._troubles
        if call.flow is None:
            call.flow = share
        return share

    async def answer(self, request: Request, call: Call) -> Outcome:
        """Have a replica answer one request. Raises `PromptmillError` (`engine_died`) when no replica is left."""
        item = _Item(request, call, asyncio.get_running_loop().create_future())
        call.in_flight += 1
        try:
            if self._error is not None:
                raise self._error
            self._queue.append(item)
            self._notify()
            outcome = await item.outcome
        finally:
            call.in_flight -= 1
        if item.losses:  # what was lost with a replica may be billed
            outcome = replace(outcome, unmetered=outcome.unmetered + item.losses)
        sent = outcome.attempts - request.attempts
        call.requests += sent
        call.retries += max(0, sent - 1)
        return outcome

    async def leave(self, call: Call) -> None:
        """Note that a call has ended; replicas that hold nothing else forget what is left of it."""
        share = self._calls.pop(call)
        if call.flow is share:
            call.flow = None
        for place in self._places:
            if place.hand and not any(item.is_wanted for item in place.hand.values()):
                place.emptied.set()

    async def aclose(self) -> None:
        """End all replicas at once; a second time does nothing."""
        if self._closed:
            return
        self._closed = True
        for task in self._tasks:
            task.cancel()
        for place in self._places:
            place.link.kill(again=False)
        await asyncio.to_thread(self._disconnect)

    @property
    def most(self) -> int:
        """How many requests the replicas can hold."""
        return max(1, sum(2 * max(1, min(place.asked, _MOST_AT_ONCE)) for place in self._places if place.ready))

    def waiting(self) -> str:
        """Return why the call is stalled: no replica is ready; `""` otherwise."""
        if any(place.ready for place in self._places):
            return ""
        return f"waiting for one of {len(self._places)} replicas"

    def _notify(self) -> None:
        self._changed.set()

    async def _change(self) -> None:
        self._changed.clear()
        await self._changed.wait()

    async def _mind(self, place: _Place) -> None:
        """Keep one replica at work until the end."""
        while True:
            error: PromptmillError | None = None
            was_emptied = False
            try:
                error = await place.link.load()
                if error is None:
                    place.ready = True
                    self._notify()
                    was_emptied = await self._serve(place)
            except LostError:
                pass
            finally:
                place.ready, place.asked = False, 0
                if self._leases is not None:
                    self._leases.left(place.link)
            place.false_starts += not place.holds_suspect and not was_emptied
            self._take_back(place)
            if error is None and place.false_starts < _FALSE_STARTS:
                continue
            self._given_up += 1
            if self._given_up == len(self._places):
                self._fail(error or _gone("The replicas end before they answer anything."))
            else:
                why = f": {error.message}" if error is not None else ""
                warning = f"{self._given_up} of {len(self._places)} replicas could not be used{why}"
                self._troubles[warning] = None
                for call in self._calls:
                    call.warn(warning)
            self._notify()
            return

    async def _serve(self, place: _Place) -> bool:
        """Feed and hear the replica until it is to forget what it holds: True. Raises `LostError`."""
        place.emptied.clear()
        feeding, hearing = asyncio.ensure_future(self._feed(place)), asyncio.ensure_future(self._hear(place))
        emptied = asyncio.ensure_future(place.emptied.wait())
        tasks = {feeding, hearing, emptied}
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for one in done - {emptied}:
                await one
            return emptied in done
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)

    async def _feed(self, place: _Place) -> None:
        told_last = False
        if self._leases is not None:
            await self._leases.joined(place.link).wait()
        while True:
            await place.hungry.wait()
            place.hungry.clear()
            while self._wants(place) > 0:
                items = await self._items(place, wait=told_last)
                told_last = self._are_last
                numbered = {next(self._numbers): item for item in items}
                place.hand.update(numbered)
                for item in items:
                    item.call.sending(item.request, 0)  # its outcome says how many requests were sent
                requests = [
                    replace(item.request, key=number, row=None, account=None) for number, item in numbered.items()
                ]
                await place.link.submit(requests, is_last=told_last)

    @property
    def _are_last(self) -> bool:
        """Whether no call has items that it has not sent here yet."""
        return not self._queue and all(share.wanted is not None for share in self._calls.values())

    def _wants(self, place: _Place) -> int:
        """Return how many more the replica should hold: what its backend takes at once, and as many that wait.

        Of the last ones it gets half of its part, so that those that are faster or have shorter rows take the other
        half and all end together; but an engine's batch is filled (an engine takes two), as far as its part goes.
        """
        if place.holds_suspect:
            return 0
        most = 2 * min(place.asked, _MOST_AT_ONCE)
        if all(call.total is not None for call in self._calls):
            left = sum((call.total or 0) - call.done for call in self._calls)
            part = -(-left // max(1, sum(place.ready for place in self._places)))
            most = min(most, max(1, -(-part // 2), min(place.asked // 2, part)))
        return max(0, most - len(place.hand))

    async def _items(self, place: _Place, *, wait: bool) -> list[_Item]:
        """Return items for a replica, lost ones first; with `wait` at least one."""
        while True:
            n = max(1, self._wants(place))
            for queue in (self._again, self._queue):
                if items := _taken(queue, n):
                    return items
            if not place.hand and (items := _taken(self._suspects, 1)):
                place.holds_suspect = True
                return items
            if not wait and self._are_last:
                return []
            await self._change()

    async def _hear(self, place: _Place) -> None:
        while True:
            try:
                async with asyncio.timeout(SILENCE_S):
                    report = await place.link.report()
            except TimeoutError:
                place.link.kill(again=True)
                raise LostError from None
            self._settle(place, report)
            if report.error is not None:
                if report.error.code is not Code.ENGINE_DIED:
                    self._fail(report.error)
                place.link.kill(again=True)
                raise LostError
            if place.asked != report.asked:
                place.asked = report.asked
                for share in self._calls.values():
                    share.grown()
            if self._wants(place):
                place.hungry.set()

    def _settle(self, place: _Place, report: Report) -> None:
        for call in self._calls:
            call.refused += report.refused
            for warning in report.warnings:
                call.warn(warning)
        for number, outcome in report.outcomes:
            place.holds_suspect = False
            item = place.hand.pop(number, None)
            if item is None:
                continue
            place.false_starts = 0
            if item.is_wanted:
                item.outcome.set_result(outcome)
        if self._suspects and not place.hand:
            self._notify()

    def _take_back(self, place: _Place) -> None:
        """Have others answer what a lost replica held, but not what loses every replica."""
        lost, place.hand, place.holds_suspect = [*place.hand.values()], {}, False
        for item in lost:
            if not item.is_wanted:
                continue
            item.losses += 1
            item.losses_alone += len(lost) == 1
            attempts, account = item.request.attempts + item.losses, item.request.account
            if item.losses_alone >= _CERTAIN:
                error = _gone(f"{item.losses} replicas were lost while they had it.")
                item.outcome.set_result(Failure(error, attempts))
            elif account is not None and not account.reserve_again():
                error = PromptmillError(Code.BUDGET, "The budget has no room to send it again.")
                item.outcome.set_result(Failure(error, attempts))
            else:
                (self._suspects if item.losses >= _SUSPECTED else self._again).append(item)
        self._notify()

    def _fail(self, error: PromptmillError) -> None:
        """End everything: no replica is of use any more."""
        self._error = error
        held = [item for place in self._places for item in place.hand.values()]
        for item in (*self._queue, *self._again, *self._suspects, *held):
            if item.is_wanted:
                item.outcome.set_exception(error)
        self._notify()


def _taken(queue: deque[_Item], n: int) -> list[_Item]:
    """Take up to `n` items that are still wanted."""
    items: list[_Item] = []
    while queue and len(items) < n:
        item = queue.popleft()
        if item.is_wanted:
            items.append(item)
    return items


def _gone(said: str) -> PromptmillError:
    return PromptmillError(Code.ENGINE_DIED, said, "Look at the cluster: `ray status`, and the logs of its actors.")
