"""Requests in, answers out: one vLLM request per item, all runs in one continuous batch, in fair shares."""

from __future__ import annotations

import asyncio
import functools
import itertools
import time
from collections import deque
from collections.abc import Mapping
from typing import Any

from vllm.exceptions import VLLMClientError
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError

from promptmill.backends.engines.channel import Channel
from promptmill.backends.engines.growing_answer import PREVIEW_EVERY_S
from promptmill.backends.engines.load_errors import first_line
from promptmill.backends.engines.vllm.answer_parser import AnswerParser, outcome
from promptmill.backends.engines.vllm.embeddings import Embedder
from promptmill.backends.engines.vllm.prompt import PromptBuilder
from promptmill.core.errors import Code, PromptmillError, input_error
from promptmill.system.frames import Frame, packed_error

_LOOK_S = 0.2  # between two checks that vLLM's processes are alive


class EngineGoneError(Exception):
    """vLLM's own process ended."""


class _Run:
    """The requests of one call: those that wait, and those that vLLM has."""

    def __init__(self) -> None:
        self.waiting: deque[Frame] = deque()
        self.tasks: set[asyncio.Task[None]] = set()


class RequestRunner:
    """Gives vLLM as many requests as it computes together, from the call that has the fewest in it first."""

    def __init__(self, engine: AsyncLLM, options: Mapping[str, Any], channel: Channel) -> None:
        """`options` are the `vllm` block of the configuration."""
        self._engine = engine
        self._channel = channel
        self._prompts = PromptBuilder(engine, options)
        self._embedder = Embedder(engine, options)
        self._reading = AnswerParser(engine, options.get("reasoning_parser"), self._prompts.tools.form.marks)
        rows: int = engine.vllm_config.scheduler_config.max_num_seqs
        self._capacity = rows + max(2, rows // 8)  # the next ones are prepared while all rows are taken
        self._running = 0
        self._runs: dict[int, _Run] = {}
        self._names = itertools.count(1)

    async def run(self) -> None:
        """Say that the model is loaded and answer. Raises `EngineGoneError` when vLLM's own process ends."""
        loop = asyncio.get_running_loop()
        takes_images = "image" in self._modalities()

        def handle(message: Frame) -> None:
            loop.call_soon_threadsafe(self._handle, message)

        self._channel.route(handle)
        self._channel.send({"type": "loaded", "window": self._capacity + 32, "images": takes_images})
        while not self._engine.errored:  # noqa: ASYNC110 (vLLM offers no event)
            await asyncio.sleep(_LOOK_S)
        raise EngineGoneError("the process of vLLM's engine core ended")

    def _modalities(self) -> Mapping[str, Any]:
        processor = getattr(self._engine.renderer, "mm_processor", None)
        return {} if processor is None else processor.info.allowed_mm_limits

    def _handle(self, message: Frame) -> None:
        if message["type"] == "submit":
            self._runs.setdefault(message["run"], _Run()).waiting.append(message)
        elif message["type"] == "cancel" and (run := self._runs.pop(message["run"], None)):
            for task in run.tasks:
                task.cancel()
        self._admit()

    def _admit(self) -> None:
        while self._running < self._capacity:
            ready = [(len(run.tasks), number) for number, run in self._runs.items() if run.waiting]
            if not ready:
                return
            run = self._runs[min(ready)[1]]
            message = run.waiting.popleft()
            task = asyncio.get_running_loop().create_task(self._answer(message))
            run.tasks.add(task)
            self._running += 1
            task.add_done_callback(functools.partial(self._forget, run, message["run"]))

    def _forget(self, run: _Run, number: int, task: asyncio.Task[None]) -> None:
        self._running -= 1
        run.tasks.discard(task)
        if not run.tasks and not run.waiting:
            self._runs.pop(number, None)
        self._admit()

    async def _answer(self, message: Frame) -> None:
        started = time.monotonic()
        warnings: list[str] = []
        found: Frame
        try:
            found = await self._answered(message, warnings)
        except EngineDeadError:
            return  # told to all by the end of this process
        except Exception as error:  # noqa: BLE001 (this item's alone)
            found = {"error": packed_error(_explained(error))}
        address = {"type": "outcome", "run": message["run"], "id": message["id"], "warnings": warnings}
        self._channel.send({**address, "latency_s": round(time.monotonic() - started, 6), **found})

    async def _answered(self, message: Frame, warnings: list[str]) -> Frame:
        if "path" in message:  # `/embeddings`, see `BackendRecord.other_paths`
            return await self._embedder.answer(message["body"], warnings)
        if "generate" not in await self._engine.get_supported_tasks():
            raise PromptmillError(
                Code.UNSUPPORTED,
                "The model is loaded to embed: it answers Batch lines for /v1/embeddings alone.",
                "Load a model that generates, or leave `backend_configs.vllm.runner` out.",
            )
        prepared = await self._prompts.prepare(message, warnings)
        reader = self._reading.reader(prepared)
        name = str(next(self._names))
        live = message.get("live", False) and prepared.tools is None
        if live:
            prepared.params.output_kind = RequestOutputKind.CUMULATIVE
        output, shown_at = None, 0.0
        async for output in self._engine.generate(
            prepared.prompt, prepared.params, name, lora_request=prepared.lora, **reader.limiter
        ):
            if live and (now := time.monotonic()) - shown_at >= PREVIEW_EVERY_S:
                if text := reader.so_far(output.outputs[0].text):
                    self._channel.send({"type": "preview", "run": message["run"], "id": message["id"], "text": text})
                shown_at = now
        return outcome(output, reader, prepared, self._prompts.decode)


def _explained(error: Exception) -> PromptmillError:
    if isinstance(error, PromptmillError):
        return error
    cause = error.__cause__ or error  # vLLM wraps what it did not expect
    reason = first_line(cause)
    if isinstance(error, VLLMClientError | ValueError):
        return input_error(f"vLLM refused the request: {reason}.")
    return PromptmillError(Code.INTERNAL, f"vLLM failed on this request: {type(cause).__name__}: {reason}.")
