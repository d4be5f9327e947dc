"""Our side of an engine in a process of its own: start it, talk to it, watch it, end it."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import shutil
import tempfile
from collections.abc import Callable, Mapping
from typing import Any

from promptmill.backends.engines.embedded_model import cache_folder
from promptmill.backends.engines.engine_call import EngineShare, Submissions, outcome_of
from promptmill.backends.engines.trust import check_arguments, check_written, trusts_remote_code
from promptmill.backends.protocol import Call, Request
from promptmill.config.models import ResolvedConfig
from promptmill.core.errors import Code, PromptmillError, config_error
from promptmill.core.outcome import Failure, Outcome
from promptmill.images.load import ImageRules, WebImages
from promptmill.system import frames, subprocesses
from promptmill.system.frames import Frame

_CHILD = "promptmill.backends.engines.child"


def create(plan: ResolvedConfig) -> EngineHost:
    """Return the backend of `plan`, not loaded. Raises `PromptmillError` (`invalid_config`)."""
    block = getattr(plan.settings.backend_configs, plan.backend)
    if not block.model_name_or_path:
        check_written(plan.backend, block.model_extra or {})
        path = f"backend_configs.{plan.backend}.model_name_or_path"
        raise config_error(path, "no model is named; name a folder, a model hub name, or smollm2-135m-instruct.")
    check_arguments(plan)
    options = {
        **block.model_dump(mode="json"),
        "trust_remote_code": trusts_remote_code(plan),
        "unsupported": plan.settings.unsupported,
    }
    rules = ImageRules.of(plan.settings.allowed_roots, plan.settings.max_image_pixels, plan.settings.max_image_memory)
    return EngineHost(plan.backend, options, _environment(getattr(block, "gpu_ids", None)), rules)


def _environment(gpu_ids: tuple[int, ...] | None) -> dict[str, str]:
    environment = subprocesses.environment()
    if gpu_ids:
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, gpu_ids))
    environment.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")  # the numbers that nvidia-smi shows
    # what was compiled is worth keeping, where nobody else lays code; all else that is temporary ends with the engine
    environment.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_folder() / "torchinductor"))
    return environment


class EngineHost:
    """An engine in a process group of its own, as a `Backend`."""

    def __init__(
        self, engine: str, options: Mapping[str, Any], environment: Mapping[str, str], rules: ImageRules
    ) -> None:
        """`options` go to the engine's `serve` as they are; `environment` is the process's whole environment."""
        self._engine = engine
        self._options = dict(options)
        self._environment = dict(environment)
        self._rules = rules
        self._web = WebImages()
        self._process: asyncio.subprocess.Process | None = None
        self._stdin: asyncio.StreamWriter | None = None
        self._listener: asyncio.Task[None] | None = None
        self._loading: asyncio.Queue[Frame] = asyncio.Queue()
        self._ended = asyncio.Event()
        self._end = PromptmillError(Code.ENGINE_DIED, f"The {engine} engine is not loaded.")
        self._last_words = ""
        self._closed = False
        self._calls: dict[Call, EngineShare] = {}
        self._open: dict[int, tuple[asyncio.Future[Frame | PromptmillError], Call]] = {}
        """Items whose outcome is awaited, by their ids on the wire, no two alike over all calls."""
        self._numbers = itertools.count(1)
        self._window = 1
        self._takes_images = False

    async def load(self, report: Callable[[str], None]) -> None:
        """Start the process and load the model in it; when that fails, nothing is left.

        Raises `PromptmillError` (`engine_load_failed`, `missing_dependency`, `invalid_config`, `shutdown`).
        """
        if self._stdin is not None and not self._ended.is_set():
            return
        try:
            await self._start()
            while (message := await self._loading.get())["type"] == "progress":
                report(message["text"])
            if message["type"] == "failed":
                raise frames.unpacked_error(message["error"])
            self._window = message["window"]
            self._takes_images = message["images"]
        except BaseException:
            await self._finish()
            raise

    async def _start(self) -> None:
        if self._closed:
            raise _shut_down()
        self._ended.clear()
        self._last_words = ""
        self._loading = asyncio.Queue()
        try:
            scratch = tempfile.mkdtemp(prefix="promptmill-")
            child = await self._spawn(scratch)
        except OSError as error:
            reason = error.strerror or type(error).__name__
            raise PromptmillError(
                Code.ENGINE_LOAD_FAILED,
                f"The {self._engine} engine's process could not be started: {reason}.",
                "Look at this machine's limits of processes, open files and memory.",
            ) from None
        self._process, self._stdin = child, child.stdin
        assert child.stdout is not None
        self._listener = asyncio.create_task(
            self._listen(child, child.stdout, scratch), name=f"listen to {self._engine}"
        )
        if self._closed:
            raise _shut_down()
        await self._send({"type": "load", "engine": self._engine, "options": self._options})

    async def _spawn(self, scratch: str) -> asyncio.subprocess.Process:
        """Start the process, whose temporary files go into `scratch`; without a process that goes, too."""
        try:
            return await subprocesses.start(
                _CHILD, self._environment | {subprocesses.SCRATCH: scratch, "TMPDIR": scratch}
            )
        except BaseException:
            shutil.rmtree(scratch, ignore_errors=True)
            raise

    async def _listen(self, child: asyncio.subprocess.Process, stdout: asyncio.StreamReader, scratch: str) -> None:
        loaded = False
        try:
            while (message := await frames.receive(stdout)) is not None:
                match message["type"]:
                    case "outcome":
                        if (opened := self._open.get(message["id"])) is not None and not opened[0].done():
                            opened[0].set_result(message)
                    case "preview":
                        if (opened := self._open.get(message["id"])) is not None and opened[1].preview is not None:
                            opened[1].preview(message["text"])
                    case "last_words":
                        self._last_words = f" It said: {message['text']}"
                    case kind:
                        loaded = loaded or kind == "loaded"
                        self._loading.put_nowait(message)
        except (frames.OutOfStepError, KeyError, TypeError):
            self._last_words = " What it sent could not be read."
        finally:
            subprocesses.end_group(child.pid)  # also what it started itself
            if child.stdin is not None:
                child.stdin.close()
            await child.wait()
            await _group_gone(child.pid)
            shutil.rmtree(scratch, ignore_errors=True)  # sockets and such, for which a killed process has no time
            self._settle_end(child.returncode, loaded)

    def _settle_end(self, returncode: int | None, loaded: bool) -> None:  # noqa: FBT001
        how = f"{subprocesses.how_it_ended(returncode)}.{self._last_words}"
        if self._closed:
            self._end = _shut_down()
        elif loaded:
            self._end = PromptmillError(Code.ENGINE_DIED, f"The {self._engine} engine's process is gone: {how}")
        else:
            failed = f"The {self._engine} engine's process ended while it loaded the model: {how}"
            self._end = PromptmillError(Code.ENGINE_LOAD_FAILED, failed)
        self._ended.set()
        self._loading.put_nowait({"type": "failed", "error": frames.packed_error(self._end)})
        for arrived, _ in self._open.values():
            if not arrived.done():
                arrived.set_result(self._end)

    def enter(self, call: Call) -> EngineShare:
        """Note that a call starts. Raises `PromptmillError` (`engine_died`, `shutdown`) when the engine is gone."""
        if self._stdin is None or self._ended.is_set():
            raise self._end
        number, live = next(self._numbers), call.preview is not None
        submissions = Submissions(number, self._rules, self._web, takes_images=self._takes_images, live=live)
        share = self._calls[call] = EngineShare(self._window, number, submissions)
        return share

    async def answer(self, request: Request, call: Call) -> Outcome:
        """Have the engine answer one request. Raises `PromptmillError` (`engine_died`, `shutdown`) when it is gone."""
        share, number = self._calls[call], next(self._numbers)
        arrived: asyncio.Future[Frame | PromptmillError] = asyncio.get_running_loop().create_future()
        self._open[number] = arrived, call
        call.in_flight += 1
        try:
            try:
                await self._submit(number, request, call, share)
            except PromptmillError as error:
                if self._ended.is_set():
                    raise
                return Failure(error, request.attempts)
            message = await arrived
        except asyncio.CancelledError:
            share.abandoned = True
            raise
        finally:
            call.in_flight -= 1
            del self._open[number]
        if isinstance(message, PromptmillError):
            raise message
        for warning in message.get("warnings", ()):
            call.warn(warning)
        return outcome_of(message, request)

    async def _submit(self, number: int, request: Request, call: Call, share: EngineShare) -> None:
        """Write a request into the pipe. Raises the request's own error, or why the engine is gone.

        One request of a call at a time, for a frame may be large and the pipe full; of those with images several, so
        that a slow disk or host holds up its own request alone.
        """
        async with share.reading if request.conversation.images else share.writing:
            frame = await share.submissions.frame(number, request)
            if self._ended.is_set():
                raise self._end
            call.sending(request)
            await self._send_frame(frame)

    async def leave(self, call: Call) -> None:
        """Note that a call has ended; the engine forgets the rows that it still has."""
        share = self._calls.pop(call)
        share.submissions.close()
        if share.abandoned:
            self._write({"type": "cancel", "run": share.run})

    async def _send(self, message: Frame) -> None:
        await self._send_frame(frames.packed(message))

    async def _send_frame(self, frame: bytes) -> None:
        """Write one frame and wait while the pipe is full; when the engine is gone, raise why."""
        assert self._stdin is not None
        if not self._ended.is_set():
            self._stdin.write(frame)
            with contextlib.suppress(ConnectionError):
                await self._stdin.drain()
                return
            await self._ended.wait()
        raise self._end

    def _write(self, message: Frame) -> None:
        """Write a small message without waiting; nothing happens when the engine is gone."""
        if self._stdin is not None and not self._ended.is_set() and not self._stdin.is_closing():
            self._stdin.write(frames.packed(message))

    async def aclose(self) -> None:
        """End the process group at once and wait until it is gone; running calls raise `shutdown`."""
        self._closed = True
        await self._finish()
        await self._web.aclose()
        if self._process is None:
            self._end = _shut_down()

    async def _finish(self) -> None:
        if self._process is None or self._listener is None:
            return
        if not self._ended.is_set():
            subprocesses.end_group(self._process.pid)
        await asyncio.shield(self._listener)


async def _group_gone(pid: int) -> None:
    """Wait until what a killed process had started is gone too, with its memory and ports; not for long."""
    for _ in range(100):
        if not subprocesses.group_exists(pid):
            return
        await asyncio.sleep(0.01)


def _shut_down() -> PromptmillError:
    return PromptmillError(Code.SHUTDOWN, "The engine was shut down.")
