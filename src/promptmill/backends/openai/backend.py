"""The `openai` backend: requests → HTTP → outcomes, over one pool of connections."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

from promptmill.backends.openai.attempts import Attempts
from promptmill.backends.openai.endpoint import endpoints
from promptmill.backends.openai.limit.endpoint_state import endpoint_states, most_in_flight
from promptmill.backends.openai.limit.limiter import Limiter
from promptmill.backends.openai.request import ImageEncoder
from promptmill.backends.openai.sender import LocalSender, Sender
from promptmill.backends.openai.transport import LoopThrottle, Pool, room_for_connections
from promptmill.backends.openai.workers import FanOut
from promptmill.backends.protocol import Call, Request
from promptmill.config.resolved_config import ResolvedConfig
from promptmill.core.errors import Code, PromptmillError, config_error
from promptmill.core.outcome import Outcome
from promptmill.images.load import ImageRules, WebImages
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
        self._endpoints = endpoints(plan)
        self._rules = ImageRules.of(
            plan.settings.allowed_roots, plan.settings.max_image_pixels, plan.settings.max_image_memory
        )
        self._pool: Pool | None = None
        """None before it is loaded, and once it is closed."""
        self._fetcher = WebImages() if plan.settings.fetch_images else None
        self._limiter: Limiter | None = None
        self._calls: dict[Call, Attempts] = {}
        self._watches: list[asyncio.Task[None]] = []
        self._concurrency = self._settings.concurrency
        self._workers = 1

    async def load(self, report: Callable[[str], None]) -> None:
        """Make the pool; nothing is sent."""
        settings, model = self._settings, self._settings.model_name or ""
        report(f"using {model} at {', '.join(endpoint.name for endpoint in self._endpoints)}")
        wanted = most_in_flight(settings, self._endpoints)
        self._concurrency = min(wanted, room_for_connections(wanted))
        self._workers = settings.num_workers or min(usable_cores(), _MOST_WORKERS)
        throttle = LoopThrottle(time.monotonic)
        states = endpoint_states(self._endpoints, model, settings, time.monotonic, throttle)
        self._limiter = Limiter(states, self._concurrency, time.monotonic, rpm=settings.rpm, tpm=settings.tpm)
        self._pool = Pool(settings, self._concurrency, throttle)

    def lease(self, share: float) -> None:
        """Use no more than this part of `rpm` and `tpm` from now on; it is loaded."""
        assert self._limiter is not None
        self._limiter.lease(share)

    def enter(self, call: Call) -> Attempts:
        """Note that a call starts. Raises `PromptmillError` (`shutdown`, `storage`, `invalid_input`)."""
        if self._pool is None or self._limiter is None:
            raise PromptmillError(Code.SHUTDOWN, "The connections are closed.")
        if self._concurrency < self._settings.concurrency:
            call.warn(
                f"concurrency is {self._concurrency} instead of {self._settings.concurrency}: "
                "this process may not open more connections."
            )
        concurrency, sender = self._concurrency, self._sender(call, self._pool)
        if isinstance(sender, FanOut):
            concurrency = min(concurrency, sender.capacity)
        attempts = self._calls[call] = Attempts(
            call, settings=self._settings, concurrency=concurrency, limiter=self._limiter, sender=sender
        )
        if len(self._calls) == 1:
            searched = [state for state in self._limiter.endpoint_states if state.load.search is not None]
            self._watches = [asyncio.create_task(state.watch_load(self._pool)) for state in searched]
        return attempts

    def answer(self, request: Request, call: Call) -> Awaitable[Outcome]:
        """Answer one request; each failure is its own."""
        return self._calls[call].answer(request)

    async def leave(self, call: Call) -> None:
        """Note that a call has ended."""
        attempts = self._calls.pop(call)
        if not self._calls:
            for watch in self._watches:
                watch.cancel()
        await attempts.aclose()

    def _sender(self, call: Call, pool: Pool) -> Sender:
        if self._workers > 1 and self._is_worth_workers(call):
            return FanOut(
                self._plan,
                self._endpoints,
                call,
                workers=min(self._workers, self._concurrency),
                concurrency=self._concurrency,
            )
        return LocalSender(
            pool,
            lambda: ImageEncoder(self._rules, self._fetcher),
            call,
            unsupported_is_error=self._plan.settings.unsupported == "error",
        )

    def _is_worth_workers(self, call: Call) -> bool:
        """Return whether the call is large enough for workers; a file of any size gets them if `num_workers` is set."""
        if (call.total or 0) >= self._settings.bulk_threshold or call.size >= _LARGE_BYTES:
            return True
        return call.file is not None and self._settings.num_workers is not None

    async def aclose(self) -> None:
        """Close all connections."""
        pool, self._pool = self._pool, None
        for resource in (pool, self._fetcher):
            if resource is not None:
                await resource.aclose()
