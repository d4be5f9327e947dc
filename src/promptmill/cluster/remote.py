"""A backend in another process, which answers the requests of this one.

    RemoteBackend ── load, submit, idle, leave, lease ─▶ Replica ─▶ the backend there
                  ◀─ report: outcomes, `most`, `held` ──

Requests go over in batches: `submit` brings all that came since the last one, and each `report` waits until there is
something to report, every few seconds at the latest. A process that does not report for long is taken for lost. Neither
end knows how messages get to the other: the links do.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeAlias

from promptmill import __version__
from promptmill.backends import registry
from promptmill.backends.protocol import Backend, Call, FixedShare, Outcome, RateLimited, Share, ignored
from promptmill.cluster.replicas import changed_block
from promptmill.config.resolved_config import ResolvedConfig
from promptmill.core.errors import Code, PromptmillError, internal_error
from promptmill.core.request import Request

_SILENCE_S = 60.0
"""Without a report for so long, the process has stopped or its machine is gone."""
_ALIVE_S = 5.0


def part_of(plan: ResolvedConfig, count: int) -> ResolvedConfig:
    """Return the plan of one of `count` replicas, with its part of `concurrency`.

    `RateLeases` divides `rpm` and `tpm` among the running replicas.
    """
    if plan.backend != "openai":
        return plan
    concurrency = plan.settings.backend_configs.openai.concurrency // count
    return changed_block(plan, concurrency=concurrency, num_workers=1, dedupe=False)


def has_rates(plan: ResolvedConfig) -> bool:
    openai = plan.settings.backend_configs.openai
    return plan.backend == "openai" and (openai.rpm is not None or openai.tpm is not None)


def keys_of(plan: ResolvedConfig) -> Sequence[str]:
    """Return the variables that a replica needs of our environment."""
    if plan.backend != "openai":
        return ()
    return (*registry.key_variables(plan), "PROMPTMILL_ENDPOINTS")


class LostError(Exception):
    """The process is gone, with all that it held; it may be there again after `load`."""


@dataclass(frozen=True, slots=True)
class Report:
    """The news of the other end since its last report."""

    outcomes: list[tuple[int, Outcome | PromptmillError]]
    """By the numbers of the requests; an error where no request can continue there."""
    most: int
    """How many requests the backend takes at once."""
    held: int = 0
    """How many requests wait for others."""
    refused: int = 0
    warnings: Sequence[str] = ()


_Create: TypeAlias = Callable[[ResolvedConfig], Awaitable[Backend]]


class Replica:
    """The other end: a backend that gets requests and returns reports. Errors are returned: others may not pickle."""

    def __init__(self) -> None:
        self._backend: Backend | None = None
        self._share: Share | None = None
        """Set while it answers requests of a call."""
        self._call = Call()
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._outcomes: list[tuple[int, Outcome | PromptmillError]] = []
        self._refused = 0
        """Refusals that were reported."""
        self._news = asyncio.Event()

    async def load(
        self, create: _Create, plan: ResolvedConfig, environment: Mapping[str, str], version: str
    ) -> PromptmillError | None:
        """Load the backend of `plan` anew; return why it cannot be loaded."""
        if version != __version__:
            problem = f"A replica has promptmill {__version__}, the driver {version}; install the same on every node."
            return PromptmillError(Code.INVALID_CONFIG, problem, "")
        os.environ.update(environment)
        try:
            await self.aclose()
            self._backend = await create(plan)
            await self._backend.load(lambda _: None)
        except PromptmillError as error:
            return error
        except Exception as error:  # noqa: BLE001 (any error must reach the driver in a form that it can read)
            return internal_error("A replica could not load the model", error)
        return None

    async def submit(self, requests: Sequence[Request], cancelled: Sequence[int]) -> None:
        """Answer `requests`, whose keys are the driver's numbers, and stop those that are `cancelled`."""
        assert self._backend is not None
        for number in cancelled:
            if (task := self._tasks.get(number)) is not None:
                task.cancel()
        if self._share is None and requests:
            try:
                self._share = self._backend.enter(self._call)
            except PromptmillError as error:
                self._outcomes += [(request.key, error) for request in requests]
                self._news.set()
                return
            self._share.grown = self._call.waits.freed = self._news.set
            self._news.set()
        for request in requests:
            self._tasks[request.key] = asyncio.create_task(self._answer(request, self._backend))

    async def report(self) -> Report:
        """Return the news, as soon as there is some; an empty report every few seconds."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_ALIVE_S):
                await self._news.wait()
        self._news.clear()
        call, share = self._call, self._share
        outcomes, self._outcomes = self._outcomes, []
        refused, self._refused = call.counts.refused - self._refused, call.counts.refused
        warnings = list(call.warnings)
        call.warnings.clear()
        return Report(outcomes, 1 if share is None else share.most, call.waits.held, refused, warnings)

    async def idle(self) -> None:
        """Decide: all requests that are left wait for others."""
        if self._share is not None:
            self._share.idle()

    async def leave(self) -> None:
        """Forget all requests: the calls have ended."""
        tasks = [*self._tasks.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._outcomes.clear()
        if self._share is not None and self._backend is not None:
            self._share.grown, self._share = ignored, None
            await self._backend.leave(self._call)
        self._call, self._refused = Call(), 0

    async def lease(self, share: float) -> None:
        """Use no more than this part of `rpm` and `tpm` from now on."""
        assert isinstance(self._backend, RateLimited), "it has no rates"
        self._backend.lease(share)

    async def aclose(self) -> None:
        """Forget all requests and close the backend."""
        await self.leave()
        if self._backend is not None:
            backend, self._backend = self._backend, None
            await backend.aclose()

    async def _answer(self, request: Request, backend: Backend) -> None:
        found: Outcome | PromptmillError
        try:
            found = await backend.answer(request, self._call)
        except PromptmillError as error:
            found = error
        except Exception as error:  # noqa: BLE001 (as above)
            found = internal_error("A replica's backend failed", error)
        finally:
            del self._tasks[request.key]
        self._outcomes.append((request.key, found))
        self._news.set()


class Link(Protocol):
    """The way to one `Replica`."""

    async def call(self, method: str, *arguments: Any) -> Any:
        """Call a method there and return its result. Raises `LostError`."""
        ...

    def kill(self, *, again: bool) -> None:
        """End the process at once; `again`: another one is to be started in its place."""
        ...


class _RemoteShare(FixedShare):
    """A call's share of a remote backend: the requests that it takes at once, and as many again, which wait there."""

    def __init__(self, remote: RemoteBackend, most: int) -> None:
        super().__init__(most)
        self.wanted: int | None = None
        """How many items the call still has; None where that is unknown."""
        self._remote = remote

    def want(self, items: int | None) -> None:
        """Note how many items the call still has."""
        self.wanted = items
        self._remote.decide_if_idle()


class RemoteBackend:
    """A backend that works in another process. `leases` gives it its part of `rpm` and `tpm`, if they are set."""

    def __init__(self, link: Link, arguments: tuple[Any, ...], leases: RateLeases | None = None) -> None:
        """`arguments` are for `Replica.load`."""
        self._link, self._arguments, self._leases = link, arguments, leases
        self._last = Report([], 1)
        self._shares: dict[Call, _RemoteShare] = {}
        self._open: dict[int, asyncio.Future[Outcome]] = {}
        self._numbers = itertools.count(1)
        self._to_send: list[Request] = []
        self._to_cancel: list[int] = []
        self._is_sendable = asyncio.Event()
        self._serving: asyncio.Task[None] | None = None

    async def load(self, report: Callable[[str], None]) -> None:
        """Have the model loaded, wherever the process is now. Raises `PromptmillError`."""
        del report  # the other end reports nothing until it is loaded
        try:
            error: PromptmillError | None = await self._link.call("load", *self._arguments)
        except LostError:
            raise _lost() from None
        if error is not None:
            raise error
        if self._leases is not None and not await self._leases.join(self):
            raise _lost()
        self._last = Report([], 1)
        self._serving = asyncio.create_task(self._serve())

    def enter(self, call: Call) -> _RemoteShare:
        """Note that a call starts. Raises `PromptmillError` (`engine_died`)."""
        if self._serving is None or self._serving.done():
            raise _lost()
        share = self._shares[call] = _RemoteShare(self, _most(self._last))
        return share

    async def answer(self, request: Request, call: Call) -> Outcome:
        """Have one request answered. Raises `PromptmillError` (`engine_died`) when the process is lost."""
        if self._serving is None or self._serving.done():
            raise _lost()
        number = next(self._numbers)
        outcome: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self._open[number] = outcome
        call.in_flight += 1
        call.ledger.sent(request)  # its outcome says how many requests were sent
        self._to_send.append(replace(request, key=number, row=None, account=None))
        self._is_sendable.set()
        try:
            found = await outcome
        except asyncio.CancelledError:
            self._to_cancel.append(number)
            self._is_sendable.set()
            raise
        finally:
            call.in_flight -= 1
            del self._open[number]
        sent = found.attempts - request.attempts
        call.counts.requests += sent
        call.counts.retries += max(0, sent - 1)
        return found

    async def leave(self, call: Call) -> None:
        """Note that a call has ended, with no answer in flight."""
        del self._shares[call]
        if not self._shares and self._serving is not None and not self._serving.done():
            with contextlib.suppress(LostError, TimeoutError):
                async with asyncio.timeout(_ALIVE_S):
                    await self._link.call("leave")

    async def lease(self, share: float) -> None:
        """Use no more than this part of `rpm` and `tpm` from now on. Raises `LostError`."""
        await self._link.call("lease", share)

    async def aclose(self) -> None:
        """End the process at once. May be called twice."""
        if self._serving is not None:
            self._serving.cancel()
        self._link.kill(again=False)

    def decide_if_idle(self) -> None:
        """Have the other end decide if all that is left waits for others there."""
        held = self._last.held
        if held and held >= len(self._open) and all(share.wanted is not None for share in self._shares.values()):
            deciding = asyncio.ensure_future(self._link.call("idle"))
            deciding.add_done_callback(lambda task: task.cancelled() or task.exception())

    async def _serve(self) -> None:
        """Exchange requests and reports until the process is lost."""
        working = {asyncio.ensure_future(self._send()), asyncio.ensure_future(self._hear())}
        try:
            await asyncio.wait(working, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in working:
                task.cancel()
            await asyncio.gather(*working, return_exceptions=True)
            if self._leases is not None:
                self._leases.leave(self)
            for outcome in self._open.values():
                if not outcome.done():
                    outcome.set_exception(_lost())
            self._to_send, self._to_cancel = [], []

    async def _send(self) -> None:
        while True:
            await self._is_sendable.wait()
            self._is_sendable.clear()
            requests, self._to_send = self._to_send, []
            cancelled, self._to_cancel = self._to_cancel, []
            await self._link.call("submit", requests, cancelled)

    async def _hear(self) -> None:
        while True:
            try:
                async with asyncio.timeout(_SILENCE_S):
                    report: Report = await self._link.call("report")
            except TimeoutError:
                self._link.kill(again=True)
                raise LostError from None
            self._settle(report)

    def _settle(self, report: Report) -> None:
        has_changed = _most(report) != _most(self._last)
        self._last = report
        for call in self._shares:
            call.counts.refused += report.refused
            for warning in report.warnings:
                call.warn(warning)
        for number, found in report.outcomes:
            outcome = self._open.get(number)
            if outcome is None or outcome.done():
                continue
            if isinstance(found, PromptmillError):
                outcome.set_exception(found)
            else:
                outcome.set_result(found)
        if has_changed:
            for share in self._shares.values():
                share.most = _most(report)
                share.grown()
        self.decide_if_idle()


def _most(report: Report) -> int:
    """Return the most requests to send: twice the places of the backend, and the held ones."""
    return 2 * max(1, min(report.most, 256)) + report.held


class RateLeases:
    """`rpm` and `tpm` of an endpoint, leased in equal parts to the processes that are there: never more than the whole.

    Parts shrink before others grow, and a new process waits for its part. A process that does not reply keeps its part
    until it is found to be lost; then the others get it.
    """

    def __init__(self) -> None:
        self._parts: dict[RemoteBackend, float] = {}
        self._changing = asyncio.Lock()
        self._leaving: set[asyncio.Task[None]] = set()

    async def join(self, one: RemoteBackend) -> bool:
        """Add a process; return True once it has its part, False if it is lost meanwhile."""
        self._parts[one] = 0.0
        await self._lease_out()
        if self._parts.get(one):
            return True
        self.leave(one)
        return False

    def leave(self, one: RemoteBackend) -> None:
        """Remove a process, if it was there; its part goes to the others."""
        if self._parts.pop(one, None) is not None:
            leaving = asyncio.ensure_future(self._lease_out())
            self._leaving.add(leaving)
            leaving.add_done_callback(self._leaving.discard)

    async def _lease_out(self) -> None:
        async with self._changing:
            parts, size = dict(self._parts), 1 / max(1, len(self._parts))
            await asyncio.gather(*(self._lease(one, size) for one, part in parts.items() if part > size))
            await asyncio.gather(*(self._lease(one, size) for one, part in parts.items() if part < size))

    async def _lease(self, one: RemoteBackend, size: float) -> None:
        with contextlib.suppress(LostError):  # `leave` follows
            await one.lease(size)
            if one in self._parts:
                self._parts[one] = size


def _lost() -> PromptmillError:
    return PromptmillError(Code.ENGINE_DIED, "The replica's process is gone.")
