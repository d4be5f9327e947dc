"""The bulk path: worker processes that read, encode, send and parse, while this process decides and counts.

Limits, rates, retries and every item's ledger stay here, so they are global by construction: a worker is told to
make one attempt at the payload at an offset of a file that it maps, and says what came of it. A worker that dies costs
its attempts in flight, nothing else.

To a worker:

    {"type": "job", …}                                             first, once: see `_job`
    {"type": "send", "items": [[id, endpoint, fresh, key, *Ref], …]}
    {"type": "cancel", "ids": […]}

From a worker:

    {"type": "ready"}
    {"type": "alive"}                                              every few seconds, so that a frozen one is found out
    {"type": "results", "results": [[id, "answer" | "failure" | "error", …], …], "warnings": […]}
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Sequence
from typing import Any

from promptmill.backends.openai.endpoint import Endpoint
from promptmill.backends.openai.failures import FailureKind, RetryDecision
from promptmill.backends.openai.limit.endpoint_state import EndpointState
from promptmill.backends.openai.spool import Ref, Spool
from promptmill.backends.protocol import Call, Request
from promptmill.config.models import ResolvedConfig
from promptmill.config.settings import OpenAISettings
from promptmill.core.errors import Code, PromptmillError, unwritable_parameters
from promptmill.core.outcome import Completion, Usage
from promptmill.images.load import ImageRules
from promptmill.system import frames, subprocesses

_WORKER = "promptmill.backends.openai.worker"
# For glibc's malloc(3): without these a worker keeps what its threads needed to encode images, some 10 MB.
_GIVES_MEMORY_BACK = {"MALLOC_ARENA_MAX": "2", "MALLOC_TRIM_THRESHOLD_": "131072"}
# A worker that ends this often before it has answered anything will not do better the next time.
_FALSE_STARTS = 3
SILENCE_S = 30.0
"""A worker that is silent for so long is frozen, or hangs on a drive that does not answer."""


class _Worker:
    """Our side of one worker process."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.answered = False
        self.attempts: dict[int, asyncio.Future[Completion | RetryDecision]] = {}
        self.sends: list[tuple[int, int, bool, int, int, int, int, int]] = []
        self.cancels: list[int] = []
        self.process: asyncio.subprocess.Process | None = None

    def flush(self) -> None:
        """Write what has gathered since the last turn of the event loop, in one frame each."""
        sends, self.sends = self.sends, []
        cancels, self.cancels = self.cancels, []
        pipe = self.process.stdin if self.process else None
        if pipe is None or pipe.is_closing():
            return
        if sends:
            pipe.write(frames.packed({"type": "send", "items": sends}))
        if cancels:
            pipe.write(frames.packed({"type": "cancel", "ids": cancels}))


class FanOut:
    """A `Sender` over worker processes. A request is sent to them as the place where it stands in a file."""

    def __init__(
        self,
        plan: ResolvedConfig,
        endpoints: Sequence[Endpoint],
        rules: ImageRules,
        call: Call,
        *,
        workers: int,
        concurrency: int,
        silence_s: float = SILENCE_S,
    ) -> None:
        """Workers start when the first request is sent. `concurrency` is the most in flight of all of them together.

        Raises `PromptmillError` (`invalid_input`) for what JSON cannot carry, and `storage`.
        """
        settings = plan.settings.backend_configs.openai.model_copy(update={"concurrency": concurrency})
        self._per_worker = settings.worker_concurrency or max(1, -(-concurrency // workers))
        self.capacity = workers * self._per_worker
        """Requests in flight, at most."""
        self._count = workers
        self._silence_s = silence_s
        self._call = call
        self._workers: list[_Worker] = []
        self._ids = itertools.count(1)
        self._room = asyncio.Event()
        self._given_up = 0
        self._broken: PromptmillError | None = None
        self._spool = Spool()
        try:
            job = _job(plan, settings, endpoints, call) | _image_limits(plan, rules, workers)
            job |= {"type": "job", "alive_s": silence_s / 6, "spool": str(self._spool.path), "held": self._spool.held}
            self._job = frames.packed(job)
        except TypeError:
            self._spool.close()
            raise unwritable_parameters() from None
        self._minders: list[asyncio.Task[None]] = []

    async def aclose(self) -> None:
        """End the workers."""
        for minder in self._minders:
            minder.cancel()
        await asyncio.gather(*self._minders, return_exceptions=True)
        self._spool.close()

    @property
    def ready(self) -> bool:
        """Whether all workers run; while some start or are replaced, there may be no room."""
        return len(self._workers) == self._count

    async def wait_ready(self) -> None:
        """Wait until some worker has room. Raises `PromptmillError` when all were given up."""
        await self._least_busy()

    def prepare(self, request: Request) -> Awaitable[Ref]:
        """Return where the request stands in a file; one that stands nowhere is written to the spool."""
        if request.row is not None:
            return _known(Ref(*request.row))
        return self._spool.write(request)

    async def send(
        self, request: Request, endpoint_state: EndpointState, prepared: Ref, *, fresh: bool
    ) -> Completion | RetryDecision:
        """Have the least busy worker make the attempt. Raises `PromptmillError` for an error of the row itself."""
        worker = await self._least_busy()
        number = next(self._ids)
        attempt: asyncio.Future[Completion | RetryDecision] = asyncio.get_running_loop().create_future()
        worker.attempts[number] = attempt
        if not worker.sends:
            asyncio.get_running_loop().call_soon(worker.flush)
        worker.sends.append((number, endpoint_state.number, fresh, request.key, *prepared))
        try:
            return await attempt
        except asyncio.CancelledError:
            if number in worker.attempts:
                if not worker.cancels:
                    asyncio.get_running_loop().call_soon(worker.flush)
                worker.cancels.append(number)
            raise
        finally:
            worker.attempts.pop(number, None)
            self._room.set()

    async def _least_busy(self) -> _Worker:
        if not self._minders:
            self._minders = [asyncio.create_task(self._mind(number)) for number in range(self._count)]
        while True:
            if self._broken:
                raise self._broken
            if self._workers:
                worker = min(self._workers, key=lambda worker: len(worker.attempts))
                if len(worker.attempts) < self._per_worker:
                    return worker
            self._room.clear()
            await self._room.wait()

    async def _mind(self, number: int) -> None:
        """Keep one worker running until the call ends."""
        false_starts = 0
        while True:
            worker, why = _Worker(number), "end as soon as they start"
            try:
                await self._live(worker)
            except Exception as error:  # noqa: BLE001 (no more processes, memory, files: nobody may wait for ever)
                why = f"could not be started: {getattr(error, 'strerror', None) or type(error).__name__}"
            finally:
                if worker in self._workers:
                    self._workers.remove(worker)
                self._bury(worker)
            false_starts = 0 if worker.answered else false_starts + 1
            if false_starts < _FALSE_STARTS:
                continue
            self._given_up += 1
            if self._given_up == self._count:
                self._broken = PromptmillError(
                    Code.ENGINE_DIED,
                    f"The worker processes {why}.",
                    "Look at stderr, and at this machine's limits of processes, open files and memory.",
                )
                self._room.set()
            return

    async def _live(self, worker: _Worker) -> None:
        """Start the process and hear it until it ends."""
        worker.process = child = await subprocesses.start(_WORKER, _GIVES_MEMORY_BACK | subprocesses.environment())
        assert child.stdin is not None
        assert child.stdout is not None
        try:
            child.stdin.write(self._job)
            silence_s = None  # a busy machine may take long to start it
            while True:
                async with asyncio.timeout(silence_s):
                    message = await frames.receive(child.stdout)
                if message is None:
                    break
                if message["type"] == "ready":
                    silence_s = self._silence_s
                    self._workers.append(worker)
                    self._room.set()
                elif message["type"] == "results":
                    self._hear(worker, message)
        except (frames.OutOfStepError, TimeoutError):
            pass  # what it sends makes no sense any more, or it is frozen: end it like one that died
        finally:
            subprocesses.end_group(child.pid)
            child.stdin.close()
            ending = asyncio.ensure_future(child.wait())
            try:
                await asyncio.shield(ending)
            except asyncio.CancelledError:  # the call is over, which has to be known above
                await asyncio.wait({ending})
                raise

    def _hear(self, worker: _Worker, message: frames.Frame) -> None:
        worker.answered = True
        for warning in message["warnings"]:
            self._call.warn(warning)
        for number, kind, *fields in message["results"]:
            attempt = worker.attempts.pop(number, None)
            if attempt is None or attempt.done():
                continue
            if kind == "error":
                attempt.set_exception(frames.unpacked_error(fields[0]))
            else:
                attempt.set_result(unpacked_completion(fields) if kind == "answer" else unpacked_decision(fields))

    def _bury(self, worker: _Worker) -> None:
        gone = RetryDecision(
            FailureKind.OURS,
            PromptmillError(Code.CONNECTION_LOST, "The worker process that sent it ended."),
            unmetered=True,
        )
        for attempt in worker.attempts.values():
            if not attempt.done():
                attempt.set_result(gone)
        worker.attempts.clear()


async def _known(ref: Ref) -> Ref:
    return ref


def _job(
    plan: ResolvedConfig,
    block: OpenAISettings,
    endpoints: Sequence[Endpoint],
    call: Call,
) -> dict[str, Any]:
    """Return all that a worker must know. Keys are in it: it goes through the pipe alone."""
    return {
        "settings": block.model_dump(mode="json", exclude={"api_key", "api_key_env", "headers"}),
        "model": block.model_name,
        "endpoints": [
            {
                "url": endpoint.url,
                "name": endpoint.name,
                "headers": dict(endpoint.headers),
                "secrets": endpoint.secrets,
                "profile": endpoint.profile.name,
                "key_note": endpoint.key_note,
            }
            for endpoint in endpoints
        ],
        "input": None if call.file is None else str(call.file.path),
        "reading": None if call.file is None else call.file.reader,
        "keep_raw": call.keep_raw,
        "unsupported": plan.settings.unsupported,
    }


def _image_limits(plan: ResolvedConfig, rules: ImageRules, workers: int) -> dict[str, Any]:
    return {
        "allowed_roots": None if rules.allowed_roots is None else list(map(str, rules.allowed_roots)),
        "max_image_pixels": rules.max_pixels,
        "max_image_memory": rules.memory.limit // workers,
        "fetch_images": plan.settings.fetch_images,
    }


def packed_result(result: Completion | RetryDecision) -> tuple[Any, ...]:
    """Return what came of an attempt in the form that frames carry."""
    if isinstance(result, Completion):
        usage = result.usage
        return (
            "answer",
            result.text,
            result.finish_reason,
            *_counts(usage),
            result.reasoning,
            result.tool_calls,
            result.logprobs,
            result.details,
            result.tier,
        )
    usage = result.usage
    return (
        "failure",
        result.kind.name,
        frames.packed_error(result.error),
        result.wait_s,
        result.stale,
        result.status,
        result.unmetered,
        *_counts(usage),
    )


def _counts(usage: Usage) -> tuple[int, int, int, int]:
    return usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens, usage.reasoning_tokens


def unpacked_completion(fields: list[Any]) -> Completion:
    """Return the completion that `packed_result` wrote."""
    text, finish_reason, *counts, reasoning, tool_calls, logprobs, details, tier = fields
    answer = Completion(text, finish_reason, Usage(*counts), reasoning, tuple(tool_calls), tier=tier)
    answer.logprobs, answer.details = logprobs, details
    return answer


def unpacked_decision(fields: list[Any]) -> RetryDecision:
    """Return the decision that `packed_result` wrote."""
    kind, error, wait_s, stale, status, unmetered, *counts = fields
    usage = Usage(*counts)
    return RetryDecision(FailureKind[kind], frames.unpacked_error(error), wait_s, stale, usage, status, unmetered)
