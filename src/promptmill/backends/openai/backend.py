"""The `openai` backend: requests → HTTP → outcomes, over one pool of connections."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from promptmill.backends.openai.bulk_path import Bulk
from promptmill.backends.openai.dedupe import Dedupe
from promptmill.backends.openai.endpoint import endpoints
from promptmill.backends.openai.endpoint_state import EndpointState, endpoint_states, most_in_flight
from promptmill.backends.openai.limiter import Limiter
from promptmill.backends.openai.loop_throttle import LoopThrottle
from promptmill.backends.openai.request import ImageEncoder
from promptmill.backends.openai.run import Run
from promptmill.backends.openai.sender import LocalSender
from promptmill.backends.openai.spool import MappedSource
from promptmill.backends.openai.transport import Pool, room_for_connections
from promptmill.backends.protocol import CallStats, Sink, Source
from promptmill.config.models import ResolvedConfig
from promptmill.core.errors import Code, PromptmillError, config_error
from promptmill.images.load import ImageRules
from promptmill.images.web import WebImages
from promptmill.system.runtime import usable_cores

_LARGE_BYTES = 256 * 1024 * 1024
_MOST_WORKERS = 8


def create(plan: ResolvedConfig) -> OpenAIBackend:
    """Return the backend of `plan`. Raises `PromptmillError` (`invalid_config`) for what cannot work."""
    return OpenAIBackend(plan)


class OpenAIBackend:
    """Calls share one pool and one limiter, so `concurrency` bounds all of them together."""

    def __init__(self, plan: ResolvedConfig) -> None:
        """`plan` chooses endpoints, keys and limits; nothing is opened yet."""
        self._plan = plan
        self._settings = plan.settings.backend_configs.openai
        if not self._settings.model_name:
            raise config_error("backend_configs.openai.model_name", "is missing; name the endpoint's model.")
        self._model = self._settings.model_name
        self._endpoints = endpoints(plan)
        self._rules = ImageRules.of(
            plan.settings.allowed_roots, plan.settings.max_image_pixels, plan.settings.max_image_memory
        )
        self._unsupported_is_error = plan.settings.unsupported == "error"
        self._pool: Pool | None = None
        self._fetcher = WebImages() if plan.settings.fetch_images else None
        self._limiter: Limiter | None = None
        self._throttle = LoopThrottle(time.monotonic)
        self._endpoint_states: list[EndpointState] = []
        self._runs: set[asyncio.Task[None]] = set()
        self._watches: list[asyncio.Task[None]] = []
        self._closed = False
        self._concurrency = self._settings.concurrency
        self._workers = 1

    async def load(self, report: Callable[[str], None]) -> None:
        """Make the pool; nothing is sent."""
        report(f"using {self._model} at {', '.join(endpoint.name for endpoint in self._endpoints)}")
        settings = self._settings
        wanted = most_in_flight(settings, self._endpoints)
        self._concurrency = min(wanted, room_for_connections(wanted))
        if not settings.dedupe:
            self._workers = settings.num_workers or min(usable_cores(), _MOST_WORKERS)
        states = endpoint_states(self._endpoints, self._model, settings, self._throttle)
        self._limiter = Limiter(states, self._concurrency, time.monotonic, rpm=settings.rpm, tpm=settings.tpm)
        self._endpoint_states = states
        self._pool = Pool(settings, self._concurrency)

    def lease(self, share: float) -> None:
        """Use no more than this part of `rpm` and `tpm` from now on; it is loaded."""
        assert self._limiter is not None
        self._limiter.lease(share)

    async def run(self, source: Source, sink: Sink, stats: CallStats) -> None:
        """Answer every request; each failure is its item's. Raises `shutdown` when closed meanwhile."""
        if self._pool is None or self._limiter is None or self._closed:
            raise PromptmillError(Code.SHUTDOWN, "The connections are closed.")
        if self._concurrency < self._settings.concurrency:
            stats.warn(
                f"concurrency is {self._concurrency} instead of {self._settings.concurrency}: "
                "this process may not open more connections."
            )
        if self._settings.dedupe:
            deduped = Dedupe(source, sink, stats, self._endpoint_states[0].encoder.fingerprint)
            work = self._run_deduped(deduped, stats, self._limiter, self._pool)
        else:
            work = self._run(source, sink, stats, self._limiter, self._pool)
        task = asyncio.ensure_future(work)
        if not self._runs:
            searched = [state for state in self._endpoint_states if state.search is not None]
            self._watches = [asyncio.create_task(state.watch_load(self._pool)) for state in searched]
        self._runs.add(task)
        try:
            await task
        except asyncio.CancelledError:
            if self._closed:
                raise PromptmillError(Code.SHUTDOWN, "The connections were closed during the call.") from None
            raise
        finally:
            self._runs.discard(task)
            task.cancel()
            if not self._runs:
                for watch in self._watches:
                    watch.cancel()

    async def _run_deduped(self, deduped: Dedupe | None, stats: CallStats, limiter: Limiter, pool: Pool) -> None:
        while deduped is not None:
            await self._run(deduped, deduped, stats, limiter, pool)
            deduped = deduped.again()

    async def _run(self, source: Source, sink: Sink, stats: CallStats, limiter: Limiter, pool: Pool) -> None:
        settings = self._settings
        if self._workers > 1 and self._is_worth_workers(source, stats):
            bulk = Bulk(self._plan, self._endpoints, self._rules, self._workers, self._concurrency)
            async with bulk.opened(source, sink, stats) as (refs, fan_out):
                concurrency = min(self._concurrency, fan_out.capacity)
                await Run(
                    refs, sink, stats, settings=settings, concurrency=concurrency, limiter=limiter, sender=fan_out
                ).run()
            return
        sender = LocalSender(
            pool,
            self._throttle,
            lambda: ImageEncoder(self._rules, self._fetcher),
            stats,
            unsupported_is_error=self._unsupported_is_error,
            keep_raw=source.keep_raw,
        )
        try:
            await Run(
                source, sink, stats, settings=settings, concurrency=self._concurrency, limiter=limiter, sender=sender
            ).run()
        finally:
            sender.close()

    def _is_worth_workers(self, source: Source, stats: CallStats) -> bool:
        """Return whether workers are worth their start. A file may always have them: by `num_workers` it does."""
        if source.is_rest:
            return False
        if (stats.total or 0) >= self._settings.bulk_threshold:
            return True
        if isinstance(source, MappedSource):
            return self._settings.num_workers is not None or source.path.stat().st_size >= _LARGE_BYTES
        return source.size >= _LARGE_BYTES

    async def aclose(self) -> None:
        """End running calls and close all connections."""
        self._closed = True
        for task in tuple(self._runs):
            task.cancel()
        if self._runs:
            await asyncio.wait(self._runs, timeout=1)
        for resource in (self._pool, self._fetcher):
            if resource is not None:
                await resource.aclose()
