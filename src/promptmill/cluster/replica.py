"""One replica: a backend on some machine of a cluster, which answers what it is handed. Knows nothing of Ray."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field

from promptmill import __version__
from promptmill.backends.protocol import Backend, Call, RateLimited, Request, Sink, Source
from promptmill.config.resolved_config import ResolvedConfig
from promptmill.core.errors import Code, PromptmillError, internal_error
from promptmill.core.outcome import Outcome
from promptmill.service.driver import Driver

_ALIVE_S = 5.0


@dataclass(frozen=True, slots=True)
class Report:
    """What became of requests since the last report."""

    outcomes: list[tuple[int, Outcome]]
    asked: int
    """How many requests the backend takes at once; 0 before it has taken any."""
    refused: int
    warnings: list[str]
    error: PromptmillError | None
    """Why the backend is of no use any more."""


@dataclass(slots=True)
class _Hand(Source, Sink):
    """What a replica holds, as the source and the sink of its backend's run."""

    queue: deque[Request] = field(default_factory=deque)
    outcomes: list[tuple[int, Outcome]] = field(default_factory=list)
    asked: int = 0
    """How many the backend takes at once."""
    is_last: bool = False
    """Whether the backend is to finish what it has."""
    is_hungry: bool = False
    news: asyncio.Event = field(default_factory=asyncio.Event)
    more: asyncio.Event = field(default_factory=asyncio.Event)

    async def take(self, n: int) -> list[Request]:
        """Return up to `n` requests, waiting for some."""
        self.asked = max(self.asked, n)  # an engine that is at work asks for what it has room for
        while not self.queue:
            if self.is_last:
                return []
            self.more.clear()
            self.is_hungry = True
            self.news.set()
            await self.more.wait()
        return [self.queue.popleft() for _ in range(min(n, len(self.queue)))]

    async def put(self, key: int, outcome: Outcome) -> None:
        """Keep the outcome for the next report."""
        self.outcomes.append((key, outcome))
        self.news.set()


class Replica:
    """A loaded backend that is handed requests and asked for reports. Errors are returned: others may not pickle."""

    def __init__(self) -> None:
        self._backend: Backend | None = None
        self._hand: _Hand | None = None
        self._stats = Call()
        self._told = 0
        self._run: asyncio.Task[None] | None = None

    async def load(
        self,
        create: Callable[[ResolvedConfig], Awaitable[Backend]],
        plan: ResolvedConfig,
        environment: Mapping[str, str],
        version: str,
    ) -> PromptmillError | None:
        """Load the backend of `plan`, unless that is done, and forget what another caller has handed over."""
        if version != __version__:
            said = f"A replica has promptmill {__version__}, the driver {version}; install the same on every node."
            return PromptmillError(Code.INVALID_CONFIG, said, "")
        await self._forget()
        self._hand = _Hand()
        if self._backend is not None:
            return None
        os.environ.update(environment)
        try:
            backend = await create(plan)
            await backend.load(lambda _: None)
        except PromptmillError as error:
            return error
        except Exception as error:  # noqa: BLE001 (whatever it is, the driver has to be able to read it)
            return internal_error("A replica could not load the model", error)
        self._backend = backend
        return None

    async def submit(self, requests: Sequence[Request], *, is_last: bool) -> None:
        """Take `requests` over. `is_last`: no more are known of, so that the backend finishes what it has."""
        hand = self._loaded_hand()
        hand.queue.extend(requests)
        hand.is_last = is_last
        hand.is_hungry = False
        hand.more.set()
        self._begin()

    async def report(self) -> Report:
        """Return what there is to tell, as soon as there is something; an empty report every few seconds."""
        hand = self._loaded_hand()
        if not hand.asked:
            self._begin(even_without=True)
        if not hand.outcomes and not hand.is_hungry and not self._failure:
            hand.news.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_ALIVE_S):
                    await hand.news.wait()
        outcomes, hand.outcomes = hand.outcomes, []
        hand.is_hungry = False
        stats = self._stats
        refused, self._told = stats.refused - self._told, stats.refused
        warnings = list(stats.warnings)
        stats.warnings.clear()
        return Report(outcomes, hand.asked, refused, warnings, self._failure)

    async def lease(self, share: float) -> None:
        """Use no more than this part of `rpm` and `tpm` from now on."""
        assert isinstance(self._backend, RateLimited), "it has no rates"
        self._backend.lease(share)

    @property
    def _failure(self) -> PromptmillError | None:
        """Why the backend's run ended, if it did before it was to."""
        run = self._run
        if run is None or not run.done() or run.cancelled() or (error := run.exception()) is None:
            return None
        return error if isinstance(error, PromptmillError) else internal_error("A replica's backend failed", error)

    def _begin(self, *, even_without: bool = False) -> None:
        """Have the backend run while there is something to do."""
        hand, backend = self._loaded_hand(), self._backend
        assert backend is not None
        if self._failure or (self._run is not None and not self._run.done()) or not (hand.queue or even_without):
            return
        self._run = asyncio.ensure_future(self._answer_all(hand, backend))

        def ended(run: asyncio.Task[None]) -> None:
            hand.news.set()
            if self._hand is hand and not run.cancelled():  # what came when it had seen the end already
                self._begin()

        self._run.add_done_callback(ended)

    async def _answer_all(self, hand: _Hand, backend: Backend) -> None:
        share = backend.enter(self._stats)
        try:
            await Driver(hand, hand, self._stats).run(backend.answer, share)
        finally:
            await backend.leave(self._stats)

    async def _forget(self) -> None:
        run, self._run, self._hand = self._run, None, None
        if run is not None:
            run.cancel()
            await asyncio.wait({run})

    def _loaded_hand(self) -> _Hand:
        assert self._hand is not None, "it is not loaded"
        return self._hand
