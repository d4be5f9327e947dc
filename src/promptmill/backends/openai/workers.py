"""The worker fan-out: processes that read, encode, send and parse, while this process decides and counts.

    this process                                       a worker process
    permit ─▶ FanOut.send ─▶ [number, place of row] ─▶ reads the row, writes the body, posts it,
    decision ◀──────────── ◀─ [number, result] ◀─────── reads the response

Limits, rates, retries and the ledger of every item stay here, so that each exists once. A worker makes one attempt at
the row at a place in a file, and reports the result. A worker that dies costs its attempts in flight.

To a worker:

    the job                                                        first, once: see `FanOut`
    {"send": [[number, endpoint, fresh, key, *Ref], …], "cancel": [number, …]}

From a worker:

    {}                                                             at its start, then every few seconds: it is alive
    {"results": [[number, "answer" | "failure" | "error", …], …], "warnings": […]}
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import secrets
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import fields
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple

import orjson
from pydantic import TypeAdapter

from promptmill.backends.openai.endpoint import Endpoint
from promptmill.backends.openai.failures import FailureKind, RetryDecision
from promptmill.backends.openai.limit.endpoint_state import EndpointState
from promptmill.backends.openai.sender import Item
from promptmill.backends.protocol import Call, Completion, Usage
from promptmill.config.resolved_config import ResolvedConfig
from promptmill.core.errors import Code, PromptmillError, input_error, unwritable_parameters
from promptmill.core.request import Request, check_encodable
from promptmill.images.load import HeldImage, encode_held
from promptmill.system import frames, subprocesses
from promptmill.system.call_files import FileRule

_WORKER = "promptmill.backends.openai.worker"
# For glibc's malloc(3): without these a worker keeps some 10 MB that its threads needed to encode images.
_GIVES_MEMORY_BACK = {"MALLOC_ARENA_MAX": "2", "MALLOC_TRIM_THRESHOLD_": "131072"}
# A worker that ends this often before it has reported anything will not do better the next time.
_FALSE_STARTS = 3
SILENCE_S = 30.0
"""A worker that is silent for so long is frozen, or hangs on a drive that does not answer."""
_LOST = RetryDecision(
    FailureKind.OURS,
    PromptmillError(Code.CONNECTION_LOST, "The worker process that sent it ended."),
    unmetered=True,
)
_Result = Completion | RetryDecision
# A list and not an object, because a million answers pass through this process.
_ANSWER = attrgetter(
    *("text", "finish_reason", "reasoning", "tool_calls", "logprobs", "details", "tier", "warnings"),
    *("usage.prompt_tokens", "usage.completion_tokens", "usage.cached_tokens", "usage.reasoning_tokens"),
    *("usage.written_tokens", "usage.hour_written_tokens"),
)
_KEPT_SETTINGS = 1024


class Ref(NamedTuple):
    """The place of a payload: a row of the call's database, or bytes in the spool, together with its settings."""

    offset: int
    """In the spool; the number of a row."""
    length: int
    settings_offset: int = 0
    settings_length: int = 0
    """0: it is a row."""
    shared: int = 0
    key: str = ""
    """The length and the digest of the beginning that it shares."""


class FanOut:
    """A `Sender` over worker processes, which start with the first request. It sends a request's place in a file."""

    def __init__(
        self,
        plan: ResolvedConfig,
        endpoints: Sequence[Endpoint],
        call: Call,
        *,
        workers: int,
        concurrency: int,
        silence_s: float = SILENCE_S,
    ) -> None:
        """`concurrency` is the most requests in flight of all workers together.

        Raises `PromptmillError`: `invalid_input` for parameters that JSON cannot carry, and `storage`.
        """
        settings = plan.settings.backend_configs.openai.model_copy(update={"concurrency": concurrency})
        self._per_worker = settings.worker_concurrency or max(1, -(-concurrency // workers))
        self.capacity = workers * self._per_worker
        """Requests in flight, at most."""
        self._count = workers
        self._silence_s = silence_s
        self._call = call
        self._ready: list[_Worker] = []
        self._minders: list[asyncio.Task[None]] = []
        self._abandoned = 0
        self._room = asyncio.Event()
        self._broken: PromptmillError | None = None
        self._spool = Spool()
        job = {
            "settings": settings.model_dump(mode="json", exclude={"api_key", "api_key_env", "headers"}),
            "endpoints": [_packed_endpoint(endpoint) for endpoint in endpoints],
            "input": None if call.facts.file is None else (str(call.facts.file.path), call.facts.file.requests),
            "keep_raw": call.facts.keep_raw,
            "unsupported": plan.settings.unsupported,
            # without secrets: it reads images alone
            "files": TypeAdapter(FileRule).dump_python(plan.file_rule.without_secrets, mode="json"),
            "max_image_pixels": plan.settings.max_image_pixels,
            "max_image_memory": plan.settings.max_image_memory // workers,
            "fetch_images": plan.settings.fetch_images,
            "alive_s": silence_s / 6,
            "spool": str(self._spool.path),
            "held": self._spool.held,
        }
        try:
            self._job = frames.packed(job)
        except TypeError:
            self._spool.close()
            raise unwritable_parameters() from None

    def widen(self, concurrency: int) -> int:
        """Let the workers have so many requests in flight together; return how many they may have."""
        self._per_worker = max(self._per_worker, -(-concurrency // self._count))
        self.capacity = self._count * self._per_worker
        self._room.set()
        return self.capacity

    async def aclose(self) -> None:
        """End the workers."""
        for minder in self._minders:
            minder.cancel()
        await asyncio.gather(*self._minders, return_exceptions=True)
        self._spool.close()

    async def prepare(self, request: Request) -> Ref:
        """Return the request's place once a worker has room; a request without a row is written to the spool.

        So the start of the workers is not part of an item's time. Raises `PromptmillError` if none can be started.
        """
        if len(self._ready) < self._count:
            await self._least_busy()
        place = Ref(request.row, 0) if request.row is not None else await self._spool.write(request)
        if request.shared is None:
            return place
        return place._replace(shared=request.shared.characters, key=request.shared.key)

    async def send(self, item: Item, endpoint_state: EndpointState, prepared: Ref) -> Completion | RetryDecision:
        """Have the least busy worker make the attempt. Raises `PromptmillError` for an error of the row itself."""
        worker = await self._least_busy()
        request, ledger = item.request, self._call.ledger
        ledger.sent(request)
        try:
            result = await worker.attempt(endpoint_state.number, item.stale, request.key, *prepared)
        except PromptmillError:  # the worker sent nothing
            ledger.not_billed(request)
            raise
        except asyncio.CancelledError:
            item.count(self._call)
            raise
        finally:
            self._room.set()
        item.count(self._call)
        return result

    async def _least_busy(self) -> _Worker:
        if not self._minders:
            self._minders = [asyncio.create_task(self._mind(number)) for number in range(self._count)]
        while not self._broken:
            worker = min(self._ready, key=lambda worker: len(worker.attempts), default=None)
            if worker is not None and len(worker.attempts) < self._per_worker:
                return worker
            self._room.clear()
            await self._room.wait()
        raise self._broken

    async def _mind(self, number: int) -> None:
        """Keep one worker running until the call ends, or until it has often ended as soon as it started."""
        false_starts, why = 0, ""
        while false_starts < _FALSE_STARTS:
            worker, why = _Worker(number), "end as soon as they start"
            try:
                await self._live(worker)
            except Exception as error:  # noqa: BLE001 (no more processes, memory, files: no request may wait forever)
                why = f"could not be started: {getattr(error, 'strerror', None) or type(error).__name__}"
            finally:
                if worker in self._ready:
                    self._ready.remove(worker)
                worker.bury()
            false_starts = 0 if worker.has_reported else false_starts + 1
        self._abandoned += 1
        if self._abandoned == self._count:
            self._broken = PromptmillError(
                Code.ENGINE_DIED,
                f"The worker processes {why}.",
                "Look at stderr, and at this machine's limits of processes, open files and memory.",
            )
            self._room.set()

    async def _live(self, worker: _Worker) -> None:
        child = await subprocesses.Child.start(_WORKER, _GIVES_MEMORY_BACK | subprocesses.environment())
        try:
            child.write(self._job)
            silence_s = None  # a busy machine may take long to start it
            while (message := await _received(child, silence_s)) is not None:
                if silence_s is None:
                    silence_s, worker.child = self._silence_s, child
                    self._ready.append(worker)
                    self._room.set()
                for warning in message.get("warnings", ()):
                    self._call.warn(warning)
                worker.report(message.get("results", ()))
        finally:
            child.kill()
            await child.wait()  # the process must have ended before the call returns


class _Worker:
    """Our side of one worker process: the attempts that it makes."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.has_reported = False
        self.attempts: dict[int, asyncio.Future[_Result]] = {}
        self.child: subprocesses.Child | None = None
        """Set once it runs."""
        self._numbers = itertools.count(1)
        self._message: dict[str, list[Any]] = {}

    async def attempt(self, *place: Any) -> _Result:
        """Return the result of the attempt at the row at `place`. Raises `PromptmillError` for an error of the row."""
        number = next(self._numbers)
        future: asyncio.Future[_Result] = asyncio.get_running_loop().create_future()
        self.attempts[number] = future
        self._queue("send", (number, *place))
        try:
            return await future
        except asyncio.CancelledError:
            if number in self.attempts:
                self._queue("cancel", number)
            raise
        finally:
            self.attempts.pop(number, None)

    def _queue(self, name: str, entry: Any) -> None:
        """Send `entry` in one frame with all others of this iteration of the event loop."""
        if not self._message:
            asyncio.get_running_loop().call_soon(self._flush)
        self._message.setdefault(name, []).append(entry)

    def _flush(self) -> None:
        message, self._message = self._message, {}
        if self.child is not None:
            self.child.write(frames.packed(message))

    def report(self, results: Sequence[Any]) -> None:
        """Set the results of attempts, as the process reports them."""
        for number, kind, found in results:
            self.has_reported = True
            future = self.attempts.pop(number, None)
            if future is None or future.done():
                continue
            if kind == "error":
                future.set_exception(frames.unpacked_error(found))
            else:
                future.set_result(_unpacked_result(kind, found))

    def bury(self) -> None:
        """End the attempts of a process that has ended."""
        for future in self.attempts.values():
            if not future.done():
                future.set_result(_LOST)
        self.attempts.clear()


async def _received(child: subprocesses.Child, silence_s: float | None) -> frames.Frame | None:
    """Return the next frame; None for a worker that has ended, is frozen or writes something else than frames."""
    try:
        async with asyncio.timeout(silence_s):
            return await child.receive()
    except (frames.OutOfStepError, TimeoutError):
        return None


class Spool:
    """A private file of requests that are in no input file, for worker processes to read.

    Each distinct pair of sampling and extra parameters is written once, as nearly all requests of a call share theirs.
    """

    def __init__(self) -> None:
        """Raises `PromptmillError` (`storage`)."""
        try:
            handle, name = tempfile.mkstemp(prefix="promptmill-", suffix=".spool")  # readable by us alone
        except OSError as error:
            raise _no_room(error) from None
        self._file = os.fdopen(handle, "wb", buffering=1 << 20)
        self.path = _unnamed(Path(name), handle)
        self._end = 0
        self.held = f"spool-{secrets.token_hex(8)}:"
        """The prefix of the names of images stored in the file itself; offset and length follow."""
        self._stored: dict[str, str] = {}
        self._settings: dict[tuple[int, int], tuple[object, object, int, int]] = {}

    async def write(self, request: Request) -> Ref:
        """Write a request and its images that are in memory. Raises `PromptmillError` (`storage`, `invalid_input`)."""
        try:
            for image in request.conversation.images:
                if isinstance(image.source, HeldImage) and image.source not in self._stored:
                    data = await asyncio.to_thread(_encoded, image.source)
                    self._stored[image.source] = f"{self.held}{self._append(data)}:{len(data)}"
            row, settings = self._packed(request)
            offset = self._append(row)
            self._file.flush()
        except OSError as error:
            raise _no_room(error) from None
        return Ref(offset, len(row), *settings)

    def _packed(self, request: Request) -> tuple[bytes, tuple[int, int]]:
        conversation = request.conversation.with_sources(lambda source: self._stored.get(source, source))
        value: dict[str, Any] = {"messages": conversation.as_messages()}
        if request.path:
            value = {"path": request.path, "extra": dict(request.extra)}
        try:
            return orjson.dumps(value), self._settings_of(request)
        except TypeError:
            check_encodable(request.conversation)
            raise input_error("The request holds a value that JSON cannot carry, or is nested too deeply.") from None

    def _settings_of(self, request: Request) -> tuple[int, int]:
        sampling, extra = request.sampling, request.extra
        found = self._settings.get((id(sampling), id(extra)))
        if found is None:
            if len(self._settings) >= _KEPT_SETTINGS:  # rows that each bring their own
                self._settings.clear()
            settings = {"sampling": sampling.given(), "extra": {} if request.path else dict(extra)}
            data = orjson.dumps({**settings, "required": sorted(request.required)})
            # with the objects themselves: a number like theirs is not to be taken for them once they are gone
            found = self._settings[id(sampling), id(extra)] = sampling, extra, self._append(data), len(data)
        return found[2:]

    def _append(self, data: bytes) -> int:
        self._file.write(data)
        offset, self._end = self._end, self._end + len(data)
        return offset

    def close(self) -> None:
        """Remove the file."""
        with contextlib.suppress(OSError):  # the disk is full
            self._file.close()
        if self.path.suffix:
            with contextlib.suppress(PermissionError):  # Windows, while a worker that is just ending has it open
                self.path.unlink(missing_ok=True)


def _encoded(image: HeldImage) -> bytes:
    try:
        return encode_held(image)
    except PromptmillError:  # the worker reports that it is no image
        return b"?"


def _no_room(error: OSError) -> PromptmillError:
    return PromptmillError(
        Code.STORAGE,
        f"The prompts of so large a call cannot be written into a temporary file: {error.strerror or error}.",
        "Free space there, or name a folder on another disk in TMPDIR.",
    )


def _unnamed(path: Path, descriptor: int) -> Path:
    """Unlink the file and reach it through /proc (Linux): it is gone when this process ends, even if it is killed.

    Linux alone has such a place; the workers, of the same user, open it there.
    """
    without_name = Path(f"/proc/{os.getpid()}/fd/{descriptor}")
    if not sys.platform.startswith("linux") or not without_name.exists():
        return path
    path.unlink()
    return without_name


def _packed_endpoint(endpoint: Endpoint) -> dict[str, Any]:
    """Return an endpoint in the form that frames carry. Its key is in it: a frame goes through the pipe only."""
    return _fields(endpoint) | {"headers": dict(endpoint.headers), "profile": endpoint.profile.name}


def packed_result(result: _Result) -> tuple[str, Any]:
    """Return the kind and the fields of an attempt's result in the form that frames carry."""
    if isinstance(result, Completion):
        return "answer", _ANSWER(result)
    return "failure", _fields(result) | {"kind": result.kind.name, "error": frames.packed_error(result.error)}


def _unpacked_result(kind: str, found: Any) -> _Result:
    if kind == "answer":
        text, finish_reason, reasoning, calls, logprobs, details, tier, warnings, *counts = found
        answer = Completion(text, finish_reason, Usage(*counts), reasoning, tuple(calls), tier=tier)
        answer.logprobs, answer.details, answer.warnings = logprobs, details, tuple(warnings)
        return answer
    scope, error, usage = FailureKind[found["kind"]], frames.unpacked_error(found["error"]), Usage(**found["usage"])
    return RetryDecision(**found | {"kind": scope, "error": error, "usage": usage})


def _fields(value: Any) -> dict[str, Any]:
    return {field.name: getattr(value, field.name) for field in fields(value)}
