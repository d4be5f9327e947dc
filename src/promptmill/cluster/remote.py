"""A backend in another process: a worker process on this machine, or an actor of a cluster.

    RemoteBackend ── load, submit, idle, leave, lease ─▶ Replica ─▶ the backend in its process
                  ◀─ report: outcomes, `most`, `held` ──

Requests are sent in batches: `submit` sends all requests since the last batch, and each `report` waits until there is
something to report, at most a few seconds. A process that has not reported for a long time is assumed lost. Only the
links, which are in `fan_out` and in features, know how messages are transported.

An endpoint has one `Quota`, which leases `concurrency`, `rpm` and `tpm` to the processes that send to it. The account
of a request, which reserves the cost of each attempt, stays in the driver's process.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import sys
import weakref
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Protocol, TypeAlias, TypeVar

from promptmill.backends import protocol, registry
from promptmill.config.model_config import ModelConfig
from promptmill.core.errors import Code, PromptmillError, internal_error
from promptmill.core.request import Request
from promptmill.core.version import __version__
from promptmill.images.load import HeldImage, encode_held

_SILENCE_S = 60.0
"""After this time without a report, the process is assumed lost: it has stopped, or its machine is unreachable."""
_ALIVE_S = 5.0
_KEPT_IMAGES = 16  # max images from a program's memory that are kept in encoded form for further requests


def part_of(config: ModelConfig) -> ModelConfig:
    """Return the configuration of a replica. `Quota` divides the limits of the configuration's endpoint."""
    if not config.record.needs_endpoint:
        return config
    return replace(config, settings=config.settings.with_block(config.backend, num_workers=1, dedupe=False))


def environment_of(config: ModelConfig) -> dict[str, str]:
    """Return the variables of this process's environment that a replica needs."""
    if not config.record.needs_endpoint:
        return {}
    return {
        name: os.environ[name]
        for name in (*registry.key_variables(config), "PROMPTMILL_ENDPOINTS")
        if name in os.environ
    }


class LostError(Exception):
    """The process is lost, with all its requests. It may be available again after `load`."""


@dataclass(frozen=True, slots=True)
class ReplicaReport:
    """The news of the other process since its last report."""

    outcomes: list[tuple[int, protocol.Outcome | PromptmillError]]
    """Outcomes with the numbers of their requests, or errors if no request can continue in that process."""
    most: int
    """The number of requests that the backend takes at a time."""
    held: int = 0
    """The number of requests that wait for other requests."""
    refused: int = 0
    warnings: Sequence[str] = ()
    reserving: Sequence[int] = ()
    """The requests whose next attempt waits for a reservation."""
    waiting: str = ""
    """The reason why the replica's requests are stalled."""
    where: str = ""
    """The names of the endpoints that have requests."""
    needed_keys: int = 0
    """The number of renewed keys that the replica has requested so far. It waits for the last of these keys."""
    pace: float = 0.0
    """The limit of requests per second that was set after refusals; 0 if no requests are held back."""


class _DriversAccount:
    """A request's account in the replica, which asks the real account in the driver's process."""

    def __init__(self, replica: Replica, number: int) -> None:
        self._replica, self._number = replica, number

    def sent(self) -> float:
        """Do nothing: the driver has recorded the request."""
        return 0.0

    def not_billed(self) -> None:
        """Do nothing: the outcome reports what is billed."""

    async def reserve_again(self) -> bool:
        """Let the driver reserve the cost of another attempt."""
        return await self._replica.reserve(self._number)


@dataclass(slots=True)
class Orders:
    """The news from the driver to the replica since the last orders."""

    requests: list[Request] = field(default_factory=list)
    cancelled: list[int] = field(default_factory=list)
    reserved: list[tuple[int, bool]] = field(default_factory=list)
    """The requests whose next attempt waited for a reservation, each with True if the cost was reserved."""
    facts: protocol.Facts = field(default_factory=protocol.Facts)
    """Facts about the requests' call."""
    key: protocol.Key | PromptmillError | None = None
    """The renewed key that the replica has asked for, or the reason why there is none."""


T = TypeVar("T")
_Create: TypeAlias = Callable[[ModelConfig], Awaitable[protocol.Backend]]


class Replica:
    """The remote end: a backend that takes requests and returns reports. It returns errors instead of raising them."""

    def __init__(self) -> None:
        self._backend: protocol.Backend | None = None
        self._share: protocol.Share | None = None
        """Set while the replica answers a call's requests."""
        self._call = protocol.Call()
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._outcomes: list[tuple[int, protocol.Outcome | PromptmillError]] = []
        self._refused = 0
        """The number of refusals already reported."""
        self._reserving: dict[int, asyncio.Future[bool]] = {}
        self._to_reserve: list[int] = []
        self._needed_key: asyncio.Future[protocol.Key] | None = None
        self._needed_keys = 0
        self._news = asyncio.Event()

    async def load(
        self, create: _Create, config: ModelConfig, environment: Mapping[str, str], version: str
    ) -> PromptmillError | None:
        """Load the backend of `config` again. Return the reason if it cannot be loaded."""
        if version != __version__:
            problem = f"A replica has promptmill {__version__}, the driver {version}; install the same on every node."
            return PromptmillError(Code.INVALID_CONFIG, problem, "")
        os.environ.update(environment)
        return await _or_error(self._load(create, config), "A replica could not load the model")

    async def _load(self, create: _Create, config: ModelConfig) -> None:
        await self.aclose()
        self._backend = await create(config)
        if isinstance(self._backend, protocol.Renewing) and self._backend.key is not None:
            self._backend.key.fetch = self._fetch_key
        await self._backend.load(lambda _: None)

    async def submit(self, orders: Orders) -> None:
        """Start, stop and continue requests. A request's `key` is the driver's number for it."""
        assert self._backend is not None
        for number in orders.cancelled:
            if (task := self._tasks.get(number)) is not None:
                task.cancel()
        for number, is_reserved in orders.reserved:
            if (reserving := self._reserving.get(number)) is not None and not reserving.done():
                reserving.set_result(is_reserved)
        if orders.key is not None and self._needed_key is not None and not self._needed_key.done():
            if isinstance(orders.key, PromptmillError):
                self._needed_key.set_exception(orders.key)
            else:
                self._needed_key.set_result(orders.key)
        requests = orders.requests
        if self._share is None and requests:
            self._call.facts = orders.facts
            try:
                self._share = self._backend.enter(self._call)
            except PromptmillError as error:
                self._outcomes += [(request.key, error) for request in requests]
                self._news.set()
                return
            self._share.grown = self._call.waits.freed = self._news.set
            self._news.set()
        for request in requests:
            request.account = _DriversAccount(self, request.key)
            self._tasks[request.key] = asyncio.create_task(self._answer(request, self._backend))

    async def reserve(self, number: int) -> bool:
        """Return whether the driver has reserved the cost of another attempt."""
        reserving: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._reserving[number] = reserving
        self._to_reserve.append(number)
        self._news.set()
        try:
            return await reserving
        finally:
            del self._reserving[number]

    async def _fetch_key(self, before: str) -> protocol.Key:
        """Return a new key from the driver, which runs the operator's program for all replicas."""
        del before  # the driver knows the previous key
        self._needed_key = asyncio.get_running_loop().create_future()
        self._needed_keys += 1
        self._news.set()
        return await self._needed_key

    async def report(self) -> ReplicaReport:
        """Return the news as soon as there is any, or an empty report after a few seconds."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_ALIVE_S):
                await self._news.wait()
        self._news.clear()
        call, share = self._call, self._share
        outcomes, self._outcomes = self._outcomes, []
        refused, self._refused = call.counts.refused - self._refused, call.counts.refused
        warnings = list(call.warnings)
        call.warnings.clear()
        reserving, self._to_reserve = self._to_reserve, []
        most, flow = 1 if share is None else share.most, call.flow
        where, pace = ("", 0.0) if flow is None else (flow.where, flow.pace)
        held, keys = call.waits.held, self._needed_keys
        return ReplicaReport(outcomes, most, held, refused, warnings, reserving, call.waiting, where, keys, pace)

    async def idle(self) -> None:
        """Let the backend decide about held requests, because all remaining requests wait for others."""
        if self._share is not None:
            self._share.idle()

    async def leave(self) -> None:
        """Drop all requests, because the calls have ended."""
        tasks = [*self._tasks.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._outcomes.clear()
        if self._share is not None and self._backend is not None:
            self._share.grown, self._share = protocol.ignored, None
            await self._backend.leave(self._call)
        self._call, self._refused = protocol.Call(), 0

    async def widen(self, most: int) -> None:
        """From now on, allow `most` requests in flight, as far as the lease permits."""
        if isinstance(self._backend, protocol.Widening):
            self._backend.widen(most)

    async def lease(self, most: int, rates: float) -> None:
        """From now on, use only this part of the endpoint's limits: see `Leased`."""
        assert isinstance(self._backend, protocol.Leased), "nothing of it can be leased"
        await self._backend.lease(most, rates)

    async def aclose(self) -> None:
        """Drop all requests and close the backend."""
        await self.leave()
        if self._backend is not None:
            backend, self._backend = self._backend, None
            await backend.aclose()

    async def _answer(self, request: Request, backend: protocol.Backend) -> None:
        try:
            outcome = await _or_error(backend.answer(request, self._call), "A replica's backend failed")
        finally:
            del self._tasks[request.key]
        self._outcomes.append((request.key, outcome))
        self._call.counts.done += 1  # without this count, this process's backend would report a silent endpoint
        self._news.set()


async def _or_error(work: Awaitable[T], problem: str) -> T | PromptmillError:
    """Return the result of `work`, or its error as `PromptmillError`. `problem`: the message of an unexpected error."""
    try:
        return await work
    except PromptmillError as error:
        return error
    except Exception as error:  # noqa: BLE001 (a backend may raise any)
        return internal_error(problem, error)


class Link(Protocol):
    """The connection to one `Replica`."""

    async def call(self, method: str, *arguments: Any) -> Any:
        """Call a method of the replica and return its result. Raises `LostError`."""
        ...

    def kill(self, *, again: bool) -> None:
        """Kill the process immediately. `again`: a new process is to be started."""
        ...


class _RemoteShare(protocol.FixedShare):
    """A call's share of a remote backend: as many requests as the backend takes, and a few that wait in its process."""

    def __init__(self, remote: RemoteBackend, most: int) -> None:
        super().__init__(most)
        self.wanted: int | None = None
        """The number of items that remain for the call; None if it is unknown."""
        self.remote = remote

    def want(self, items: int | None) -> None:
        """Set the number of items that remain for the call."""
        self.wanted = items
        self.remote.decide_if_idle()

    @property
    def limit(self) -> int:
        """The same as `most`."""
        return self.most

    @property
    def pace(self) -> float:
        """The limit of requests per second that the replica has set after refusals; 0 if it holds no requests back."""
        return self.remote.last.pace

    @property
    def where(self) -> str:
        """The names of the endpoints that have requests of the replica."""
        return self.remote.last.where

    def waiting(self) -> str:
        """Return the reason why the replica's requests are stalled."""
        return self.remote.last.waiting


class _Open(NamedTuple):
    """A request that was sent to the replica."""

    request: Request
    call: protocol.Call
    outcome: asyncio.Future[protocol.Outcome]


class RemoteBackend:
    """A backend that runs in another process. `quota`, if any, leases it a part of the endpoint's limits."""

    def __init__(
        self,
        link: Link,
        arguments: tuple[Any, ...],
        quota: Quota | None = None,
        *,
        wanted: int = sys.maxsize,
        facts: protocol.Facts | None = None,
        key: protocol.KeyHolder | None = None,
    ) -> None:
        """`arguments`: the arguments of `Replica.load`. `facts`: facts about the replica's calls.

        `wanted`: the number of places of `quota` that the replica can use. `key`: the renewed key of the endpoint.
        """
        self._link, self._arguments, self._quota, self._facts = link, arguments, quota, facts or protocol.Facts()
        self._wanted = wanted
        self.last = ReplicaReport([], 1)
        """The newest report."""
        self._shares: dict[protocol.Call, _RemoteShare] = {}
        self._open: dict[int, _Open] = {}
        self._numbers = itertools.count(1)
        self._orders = Orders()
        self._has_orders = asyncio.Event()
        self._images = _SentImages()
        self._serving: asyncio.Task[None] | None = None
        self._key, self._sent_key, self._needed_keys = key, "", 0
        self._renewing: asyncio.Task[None] | None = None

    async def load(self, report: Callable[[str], None]) -> None:
        """Load the model in the replica's present process. Raises `PromptmillError`."""
        del report  # unused: the replica reports nothing during its load
        try:
            error: PromptmillError | None = await self._link.call("load", *self._arguments)
        except LostError:
            raise _lost() from None
        if error is not None:
            raise error
        if self._quota is not None and not await self._quota.join(self, self._wanted):
            raise _lost()
        self.last, self._sent_key, self._needed_keys = ReplicaReport([], 1), "", 0
        self._serving = asyncio.create_task(self._serve())

    def enter(self, call: protocol.Call) -> _RemoteShare:
        """Record the start of a call. Raises `PromptmillError` (`engine_died`)."""
        if self._serving is None or self._serving.done():
            raise _lost()
        share = self._shares[call] = _RemoteShare(self, _most(self.last))
        return share

    async def answer(self, request: Request, call: protocol.Call) -> protocol.Outcome:
        """Let the replica answer one request. Raises `PromptmillError` (`engine_died`) if the process is lost."""
        if (images := request.conversation.images) and any(isinstance(image.source, HeldImage) for image in images):
            request = await self._images.sendable(request)
        if self._serving is None or self._serving.done():
            raise _lost()
        number = next(self._numbers)
        outcome: asyncio.Future[protocol.Outcome] = asyncio.get_running_loop().create_future()
        self._open[number] = _Open(request, call, outcome)
        call.in_flight += 1
        call.ledger.sent(request)  # not `call.sending`: the outcome will state how many requests were sent
        self._orders.requests.append(request.changed(key=number, account=None))
        self._has_orders.set()
        try:
            result = await outcome
        except asyncio.CancelledError:
            self._orders.cancelled.append(number)
            self._has_orders.set()
            raise
        finally:
            call.in_flight -= 1
            del self._open[number]
        if self._quota is not None and isinstance(result, protocol.Completion):
            self._quota.answered.add(call)
        attempts = result.attempts - request.attempts
        call.counts.requests += attempts
        call.counts.retries += max(0, attempts - 1)
        return result

    async def leave(self, call: protocol.Call) -> None:
        """Record the end of a call, which has no answer in flight."""
        del self._shares[call]
        if not self._shares and self._serving is not None and not self._serving.done():
            with contextlib.suppress(LostError, TimeoutError):
                async with asyncio.timeout(_ALIVE_S):
                    await self._link.call("leave")

    async def lease(self, most: int, rates: float) -> None:
        """Let the replica use only this part of the endpoint's limits: see `Leased`. Raises `LostError`."""
        await self._link.call("lease", most, rates)

    async def aclose(self) -> None:
        """Kill the process immediately. May be called twice."""
        self._link.kill(again=False)
        if self._quota is not None:
            self._quota.leave(self)
        if self._serving is not None:
            self._serving.cancel()
            await asyncio.wait({self._serving})

    def decide_if_idle(self) -> None:
        """If all remaining requests of the replica wait for other requests, let the replica decide about them."""
        held = self.last.held
        if held and held >= len(self._open) and all(share.wanted is not None for share in self._shares.values()):
            deciding = asyncio.ensure_future(self._link.call("idle"))
            deciding.add_done_callback(lambda task: task.cancelled() or task.exception())

    async def _serve(self) -> None:
        """Exchange requests and reports until the process is lost."""
        working = {asyncio.ensure_future(self._send()), asyncio.ensure_future(self._hear())}
        try:
            await asyncio.wait(working, return_when=asyncio.FIRST_COMPLETED)
        finally:
            if self._renewing is not None:
                working.add(self._renewing)
            for task in working:
                task.cancel()
            await asyncio.gather(*working, return_exceptions=True)
            if self._quota is not None:
                self._quota.leave(self)
            for one in self._open.values():
                if not one.outcome.done():
                    one.outcome.set_exception(_lost())
            self._orders = Orders()

    async def _send(self) -> None:
        while True:
            await self._has_orders.wait()
            self._has_orders.clear()
            orders, self._orders = self._orders, Orders()
            orders.facts = self._facts_now()
            await self._link.call("submit", orders)

    def _facts_now(self) -> protocol.Facts:
        keep_raw = any(call.facts.keep_raw for call in self._shares)
        has_answered = self._quota is not None and not self._quota.answered.isdisjoint(self._shares)
        return replace(self._facts, keep_raw=keep_raw, has_answered=has_answered)

    async def _reserve(self, number: int, one: _Open) -> None:
        account = one.request.account
        is_reserved = account is None or await account.reserve_again()
        if is_reserved:
            one.call.ledger.sent(one.request)
        self._orders.reserved.append((number, is_reserved))
        self._has_orders.set()

    async def _renew(self, key: protocol.KeyHolder) -> None:
        """Send a newer key to the replica, or the reason why there is none."""
        try:
            found = self._orders.key = await key.after(self._sent_key)
            self._sent_key = found.text
        except PromptmillError as error:
            self._orders.key = error
        self._has_orders.set()

    async def _hear(self) -> None:
        while True:
            try:
                async with asyncio.timeout(_SILENCE_S):
                    report: ReplicaReport = await self._link.call("report")
            except TimeoutError:
                self._link.kill(again=True)
                raise LostError from None
            await self._take(report)

    async def _take(self, report: ReplicaReport) -> None:
        has_changed = _most(report) != _most(self.last)
        self.last = report
        for call in self._shares:
            call.counts.refused += report.refused
            for warning in report.warnings:
                call.warn(warning)
        if report.needed_keys > self._needed_keys and self._key is not None:
            self._needed_keys = report.needed_keys
            self._renewing = asyncio.create_task(self._renew(self._key))
        for number in report.reserving:
            if (one := self._open.get(number)) is not None:
                await self._reserve(number, one)
        for number, found in report.outcomes:
            one = self._open.get(number)
            if one is None or one.outcome.done():
                continue
            if isinstance(found, PromptmillError):
                one.outcome.set_exception(found)
            else:
                one.outcome.set_result(found)
        if has_changed:
            for share in self._shares.values():
                share.most = _most(report)
                share.grown()
        self.decide_if_idle()


def _most(report: ReplicaReport) -> int:
    """Return the limit of sent requests: the backend's places, the held requests, and a few that wait in its process.

    Waiting requests count as sent, and are charged after a kill, so only a few may wait.
    """
    most = max(1, report.most)
    return most + max(1, most // 8) + report.held


class _SentImages:
    """Converts images that a program holds in memory to the bytes of a file, which other processes can read."""

    def __init__(self) -> None:
        self._encoded: OrderedDict[str, HeldImage] = OrderedDict()

    async def sendable(self, request: Request) -> Request:
        """Return `request` with its images converted."""
        encoded_images: dict[str, HeldImage] = {}
        for image in request.conversation.images:
            if isinstance(source := image.source, HeldImage):
                if (encoded := self._encoded.get(source)) is None:
                    encoded = self._encoded[source] = HeldImage(await asyncio.to_thread(_bytes_of, source), source)
                encoded_images[source] = encoded
        while len(self._encoded) > _KEPT_IMAGES:
            self._encoded.popitem(last=False)
        conversation = request.conversation.with_sources(lambda part: encoded_images.get(part.source, part.source))
        return replace(request, conversation=conversation)


def _bytes_of(image: HeldImage) -> bytes:
    try:
        return encode_held(image)
    except PromptmillError:  # the replica reports that it is not an image
        return b"?"


class Lessee(Protocol):
    """A process that sends requests to an endpoint. This process can be a lessee, too."""

    async def lease(self, most: int, rates: float) -> None:
        """Use only this part of the endpoint's limits: see `Leased`. Raises `LostError`."""
        ...


class _Part(NamedTuple):
    most: int = 0
    """The number of requests in flight."""
    rates: float = 0.0
    """The fraction of `rpm` and `tpm`."""

    def smaller_of(self, other: _Part) -> _Part:
        """Return a part with the smaller value of each limit."""
        return _Part(min(self.most, other.most), min(self.rates, other.rates))


class Quota:
    """The `concurrency`, `rpm` and `tpm` of an endpoint, leased to processes without ever exceeding the whole.

    Parts are equal, but no process gets more places than it wants. Parts shrink before others grow, and a new process
    waits for its part. A process that does not reply keeps its part until it is known to be lost.
    """

    def __init__(self, whole: int, here: Lessee | None = None) -> None:
        """`whole`: the limit of requests in flight. `here`: this process, if it begins with the whole limit."""
        self.whole = whole
        self.answered: weakref.WeakSet[protocol.Call] = weakref.WeakSet()
        """The calls that the endpoint has answered."""
        self._parts: dict[Lessee, _Part] = {} if here is None else {here: _Part(whole, 1.0)}
        self._wanted = dict.fromkeys(self._parts, 0)
        self._lost: weakref.WeakSet[Lessee] = weakref.WeakSet()
        self._changing = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()

    async def join(self, one: Lessee, wanted: int) -> bool:
        """Add a process that can use `wanted` places. Return False if it was lost before it got its part."""
        self._lost.discard(one)
        self._parts[one], self._wanted[one] = _Part(), wanted
        await asyncio.shield(self._changed())  # shielded, because a part that a process has received must be recorded
        if one in self._lost:
            self.leave(one)
        return one in self._parts

    def leave(self, one: Lessee) -> None:
        """Remove a process, if it is a member. The other processes get its part."""
        if self._parts.pop(one, None) is not None:
            del self._wanted[one]
            self._changed()

    def resize(self, whole: int) -> None:
        """From now on, lease `whole` places."""
        self.whole = whole
        self._changed()

    def want(self, one: Lessee, wanted: int) -> None:
        """Set the number of places that a process can use now."""
        self._wanted[one] = wanted
        if len(self._parts) > 1:
            self._changed()

    def _changed(self) -> asyncio.Task[None]:
        task = asyncio.ensure_future(self._lease_out())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _lease_out(self) -> None:
        async with self._changing:
            after = self._divided()
            smaller = {one: self._parts[one].smaller_of(part) for one, part in after.items()}
            for parts in (smaller, after):
                await asyncio.gather(*(self._lease(one, part) for one, part in parts.items()))

    def _divided(self) -> dict[Lessee, _Part]:
        """Return each process's part: equal numbers of places, but at most the number that the process wants."""
        if len(self._parts) == 1:
            return dict.fromkeys(self._parts, _Part(self.whole, 1.0))
        places = protocol.fair_parts(self.whole, [*self._wanted.values()])
        sending = sum(map(bool, places))
        return {one: _Part(most, 1 / sending if most else 0.0) for one, most in zip(self._wanted, places, strict=True)}

    async def _lease(self, one: Lessee, part: _Part) -> None:
        if self._parts.get(one) in {None, part}:
            return
        try:
            await one.lease(*part)
        except LostError:  # the caller then removes the process
            self._lost.add(one)
        else:
            if one in self._parts:
                self._parts[one] = part


def _lost() -> PromptmillError:
    return PromptmillError(Code.ENGINE_DIED, "The replica's process is gone.")
