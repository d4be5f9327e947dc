"""One worker of the fan-out: `python -m promptmill.backends.openai.worker`, started and spoken to by `workers`."""

from __future__ import annotations

from promptmill.system import subprocesses

_PIPES = (
    subprocesses.private_pipes() if __name__ == "__main__" else None
)  # before an import can print into the protocol

import asyncio
import os
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import orjson

from promptmill.backends.openai.endpoint import Endpoint
from promptmill.backends.openai.limit.endpoint_state import endpoint_states
from promptmill.backends.openai.providers import profile_named
from promptmill.backends.openai.request import ImageEncoder
from promptmill.backends.openai.sender import NOTHING, LocalSender
from promptmill.backends.openai.spool import MappedFile, Ref
from promptmill.backends.openai.transport import Pool, room_for_connections
from promptmill.backends.openai.workers import packed_result
from promptmill.backends.protocol import Call, Request
from promptmill.backends.rows import RowReader
from promptmill.config.settings import OpenAISettings
from promptmill.core.errors import Code, PromptmillError
from promptmill.core.sampling import Sampling
from promptmill.images.load import DecodeMemory, HeldImage, ImageRules, WebImages
from promptmill.system import frames
from promptmill.system.runtime import run, stay_responsive

_KEPT_BYTES = 4 * 1024 * 1024  # of images; a worker is to stay small, and there may be many


class Worker:
    """Makes the attempts it is told to and reports their results, batched into frames."""

    def __init__(self, job: Mapping[str, Any], outgoing: asyncio.WriteTransport) -> None:
        """`job` is `workers.FanOut`'s first message."""
        settings = OpenAISettings.model_validate(job["settings"])
        self._outgoing = outgoing
        self._input: tuple[MappedFile, RowReader] | None = None
        if (reading := job["reading"]) is not None:
            self._input = MappedFile(Path(job["input"])), RowReader.unpacked(reading)
        self._spool = MappedFile(Path(job["spool"]))
        self._held: str = job["held"]
        self._readers: dict[tuple[int, int], RowReader] = {}
        self._call = Call(keep_raw=job["keep_raw"])
        self._told: set[str] = set()
        self._endpoint_states = endpoint_states(
            list(map(_endpoint, job["endpoints"])), job["model"], settings, time.monotonic
        )
        roots = job["allowed_roots"]
        memory = DecodeMemory(job["max_image_memory"])
        rules = ImageRules(None if roots is None else tuple(map(Path, roots)), job["max_image_pixels"], memory)
        fetcher = WebImages() if job["fetch_images"] else None
        pool = Pool(settings, room_for_connections(settings.concurrency))
        self._sender = LocalSender(
            pool,
            lambda: ImageEncoder(rules, fetcher, kept_bytes=_KEPT_BYTES),
            self._call,
            unsupported_is_error=job["unsupported"] == "error",
        )
        self._attempts: dict[int, asyncio.Task[None]] = {}
        self._results: list[tuple[Any, ...]] = []

    def hear(self, message: frames.Frame) -> None:
        """Begin or cancel attempts."""
        if message["type"] == "send":
            for number, endpoint_state, fresh, key, *place in message["items"]:
                attempt = self._attempt(number, endpoint_state, fresh, key, Ref(*place))
                self._attempts[number] = asyncio.create_task(attempt)
        else:
            for number in message["ids"]:
                if task := self._attempts.get(number):
                    task.cancel()

    async def _attempt(self, number: int, endpoint_state: int, fresh: bool, key: int, ref: Ref) -> None:  # noqa: FBT001 (off the wire)
        try:
            request = self._request(key, ref)
            preparing = self._sender.prepare(request)
            prepared = NOTHING if preparing is None else await preparing
            result = await self._sender.send(request, self._endpoint_states[endpoint_state], prepared, fresh=fresh)
            self._report(number, *packed_result(result))
        except PromptmillError as error:
            self._report(number, "error", frames.packed_error(error))
        except Exception as error:  # noqa: BLE001 (one row never ends the others)
            wrong = PromptmillError(Code.INTERNAL, f"The row could not be sent: {type(error).__name__}.")
            self._report(number, "error", frames.packed_error(wrong))
        finally:
            del self._attempts[number]

    def _request(self, key: int, ref: Ref) -> Request:
        if not ref.settings_length:
            assert self._input is not None, "it has no input file"
            file, reader = self._input
            return reader.request(key, file.read(ref.offset, ref.length))
        place = ref.settings_offset, ref.settings_length
        if place not in self._readers:
            settings = orjson.loads(self._spool.read(*place))
            self._readers[place] = RowReader(
                "messages", Sampling.model_validate(settings["sampling"]), settings["extra"]
            )
        request = self._readers[place].request(key, self._spool.read(ref.offset, ref.length))
        return request.changed(conversation=request.conversation.with_sources(self._with_bytes))

    def _with_bytes(self, source: str) -> str:
        """Return `source`, with what is behind it where that lies in the file."""
        if not source.startswith(self._held):
            return source
        offset, length = source.removeprefix(self._held).split(":")
        return HeldImage(self._spool.read(int(offset), int(length)), source)

    def _report(self, number: int, *fields: Any) -> None:
        if not self._results:
            asyncio.get_running_loop().call_soon(self._flush)
        self._results.append((number, *fields))

    def _flush(self) -> None:
        results, self._results = self._results, []
        if self._outgoing.is_closing():  # the parent is gone, and the end of its pipe is about to be read
            return
        warnings = [warning for warning in self._call.warnings if warning not in self._told]
        self._told.update(warnings)
        try:
            frame = frames.packed({"type": "results", "results": results, "warnings": warnings})
        except TypeError:
            results = [_sendable(result) for result in results]
            frame = frames.packed({"type": "results", "results": results, "warnings": []})
        self._outgoing.write(frame)


def _sendable(result: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return `result`, or the failure of its item when JSON cannot carry it."""
    try:
        frames.packed({"result": result})
    except TypeError:
        wrong = PromptmillError(Code.BAD_RESPONSE, "The answer holds what JSON cannot carry.")
        return result[0], "error", frames.packed_error(wrong)
    return result


def _endpoint(fields: Mapping[str, Any]) -> Endpoint:
    return Endpoint(
        fields["url"],
        fields["name"],
        fields["headers"],
        tuple(fields["secrets"]),
        profile_named(fields["profile"]),
        fields["key_note"],
    )


async def work(incoming: BinaryIO, outgoing: BinaryIO) -> None:
    """Work until the pipe from the parent closes, which is also how its death shows."""
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=1 << 20)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), incoming)
    transport, _ = await loop.connect_write_pipe(asyncio.BaseProtocol, outgoing)
    job = await frames.receive(reader)
    if job is None:
        return
    worker = Worker(job, transport)
    stay_responsive()
    transport.write(frames.packed({"type": "ready"}))
    alive = asyncio.create_task(_tell_alive(transport, job["alive_s"]))
    while (message := await frames.receive(reader)) is not None:
        worker.hear(message)
    alive.cancel()


async def _tell_alive(outgoing: asyncio.WriteTransport, every_s: float) -> None:
    while not outgoing.is_closing():
        outgoing.write(frames.packed({"type": "alive"}))
        await asyncio.sleep(every_s)


def main() -> None:
    """Run the worker; exits without clean-up, the operating system closes what is open."""
    assert _PIPES is not None
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to answer
    try:
        run(work(*_PIPES))
    finally:
        os._exit(0)


if __name__ == "__main__":
    main()
