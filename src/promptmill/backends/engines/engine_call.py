"""One call of an engine: its items go out as there is room, what comes of them comes back."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field

from promptmill.answers.reasoning import unanswered
from promptmill.backends.engines.submission import Submissions
from promptmill.backends.protocol import CallStats, Request, Sink, Source
from promptmill.core.errors import PromptmillError
from promptmill.core.outcome import Completion, Failure, Outcome, Usage
from promptmill.system import frames
from promptmill.system.frames import Frame

_READ_AT_ONCE = 8  # items of a call whose images are in our memory, on their way from the disk into the pipe


@dataclass(slots=True)
class Call:
    """What one `run` of the host has in the engine. `arrived` is the host's to fill."""

    window: int
    """Items in the engine at a time."""
    numbers: Iterator[int]
    """Ids of items on the wire, no two alike over all calls."""
    submissions: Submissions
    send: Callable[[bytes], Awaitable[None]]
    """Writes a frame; raises why when the engine is gone."""
    arrived: asyncio.Queue[Frame | PromptmillError | None] = field(default_factory=asyncio.Queue)
    """Outcomes; an error when the engine is gone."""
    _sent: dict[int, Request] = field(default_factory=dict)  # by their ids on the wire
    _room: asyncio.Event = field(default_factory=asyncio.Event)
    _exhausted: bool = False

    @property
    def left(self) -> int:
        """Items that went out and of which nothing came back yet."""
        return len(self._sent)

    async def run(self, source: Source, sink: Sink, stats: CallStats) -> None:
        """Answer every request of `source` into `sink`. Raises `PromptmillError` when the engine is gone."""
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._feed(source, stats, tasks))
                tasks.create_task(self._deliver(sink, stats))
        except BaseExceptionGroup as group:
            raise group.exceptions[0] from None
        finally:
            stats.in_flight -= len(self._sent)

    async def _feed(self, source: Source, stats: CallStats, tasks: asyncio.TaskGroup) -> None:
        reading = asyncio.Semaphore(_READ_AT_ONCE)
        while True:
            while len(self._sent) >= self.window:
                self._room.clear()
                await self._room.wait()
            requests = await source.take(self.window - len(self._sent))
            if not requests:
                break
            for request in requests:
                number = next(self.numbers)
                self._sent[number] = request
                stats.in_flight += 1
                if request.conversation.images:
                    await reading.acquire()
                    # a slow disk or host holds up its own item alone
                    task = tasks.create_task(self._submit(number, stats))
                    task.add_done_callback(lambda _: reading.release())
                else:
                    await self._submit(number, stats)
        self._exhausted = True
        self.arrived.put_nowait(None)

    async def _submit(self, number: int, stats: CallStats) -> None:
        try:
            frame = await self.submissions.frame(number, self._sent[number])
        except PromptmillError as error:
            self.arrived.put_nowait({"id": number, "error": frames.packed_error(error), "attempts": 0})
        else:
            stats.requests += 1
            await self.send(frame)

    async def _deliver(self, sink: Sink, stats: CallStats) -> None:
        while self._sent or not self._exhausted:
            message = await self.arrived.get()
            if message is None:
                continue
            if isinstance(message, PromptmillError):
                raise message
            if message.get("type") == "preview":
                if stats.preview is not None:
                    stats.preview(message["text"])
                continue
            request = self._sent.pop(message["id"])
            self._room.set()
            stats.in_flight -= 1
            for warning in message.get("warnings", ()):
                stats.warn(warning)
            outcome = _outcome(message, request)
            await sink.put(request.key, outcome)
            stats.settle(outcome)


def _outcome(message: Frame, request: Request) -> Outcome:
    attempts = request.attempts + message.get("attempts", 1)
    if (error := message.get("error")) is not None:
        return Failure(frames.unpacked_error(error), attempts, message.get("latency_s", 0.0))
    prompt_tokens, completion_tokens = message["usage"]
    completion = Completion(
        message["text"],
        message["finish_reason"],
        Usage(prompt_tokens, completion_tokens),
        message["reasoning"],
        tuple(message.get("tool_calls", ())),
        attempts,
        message["latency_s"],
        message.get("logprobs"),
        message.get("details"),
    )
    if problem := unanswered(completion):
        return Failure(problem, attempts, completion.latency_s, completion.usage)
    return completion
