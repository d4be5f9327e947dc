"""One worker of the fan-out, `python -m promptmill.backends.openai.worker`; `workers` starts it and has the frames."""

from __future__ import annotations

from promptmill.system import subprocesses

# before an import can print into the protocol
_PIPES = subprocesses.private_pipes() if __name__ == "__main__" else None

import asyncio
import os
import signal
import time
from collections.abc import Mapping
from io import FileIO
from typing import Any, BinaryIO

import orjson
from pydantic import TypeAdapter

from promptmill.backends.openai.endpoint import Endpoint, image_types_of
from promptmill.backends.openai.failures import FailureKind, RetryDecision
from promptmill.backends.openai.limit.endpoint_state import endpoint_states
from promptmill.backends.openai.providers import profile_named
from promptmill.backends.openai.request import ImageEncoder
from promptmill.backends.openai.sender import NOTHING, Item, LocalSender
from promptmill.backends.openai.transport import Pool, room_for_connections
from promptmill.backends.openai.workers import Ref, packed_result
from promptmill.backends.protocol import Call, Facts
from promptmill.backends.questions import RowRequests, StoredRows
from promptmill.backends.rows import RowReader
from promptmill.config.settings import OpenAISettings
from promptmill.core.errors import Code, PromptmillError
from promptmill.core.request import Request, Sampling, Shared
from promptmill.images.load import HeldImage, ImageRules, WebImages
from promptmill.system import frames
from promptmill.system.call_files import FileRule
from promptmill.system.runtime import run, stay_responsive

_KEPT_BYTES = 4 * 1024 * 1024  # of images; a worker is to stay small, and there may be many


class Worker:
    """Makes attempts and reports their results, one frame for an iteration of the event loop."""

    def __init__(self, job: Mapping[str, Any], outgoing: asyncio.WriteTransport) -> None:
        """`job` is `workers.FanOut`'s first frame."""
        settings = OpenAISettings.model_validate(job["settings"])
        self._outgoing = outgoing
        self._input: tuple[StoredRows, RowRequests] | None = None
        if job["input"] is not None:
            path, requests = job["input"]
            self._input = StoredRows(path), RowRequests.unpacked(requests)
        self._spool = FileIO(job["spool"])
        self._held: str = job["held"]
        self._readers: dict[tuple[int, int], RowReader] = {}
        self._call = Call(Facts(keep_raw=job["keep_raw"]))
        self._reported: set[str] = set()
        endpoints = [_endpoint(fields) for fields in job["endpoints"]]
        self._endpoint_states = endpoint_states(endpoints, settings.model_name or "", settings, time.monotonic)
        rules = ImageRules.of(
            TypeAdapter(FileRule).validate_python(job["files"]),
            job["max_image_pixels"],
            job["max_image_memory"],
            image_types_of(endpoints),
        )
        fetcher = WebImages() if job["fetch_images"] else None
        self._sender = LocalSender(
            Pool(settings, room_for_connections(settings.concurrency)),
            lambda: ImageEncoder(rules, fetcher, kept_bytes=_KEPT_BYTES),
            self._call,
            unsupported_is_error=job["unsupported"] == "error",
        )
        self._attempts: dict[int, asyncio.Task[None]] = {}
        self._results: list[tuple[int, str, Any]] = []

    def take(self, message: frames.Frame) -> None:
        """Start or cancel attempts."""
        for number, endpoint, fresh, key, *place in message.get("send", ()):
            attempt = self._attempt(number, endpoint, key, Ref(*place), fresh=fresh)
            self._attempts[number] = asyncio.create_task(attempt)
        for number in message.get("cancel", ()):
            if task := self._attempts.get(number):
                task.cancel()

    async def _attempt(self, number: int, endpoint: int, key: int, ref: Ref, *, fresh: bool) -> None:
        try:
            request = self._request(key, ref)
            request.shared = Shared(ref.shared, ref.key) if ref.key else None
            preparing = self._sender.prepare(request)
            prepared = NOTHING if preparing is None else await preparing
            item = Item(request)
            item.stale = fresh
            result = await self._sender.send(item, self._endpoint_states[endpoint], prepared)
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
            assert self._input is not None, "the call has no database"
            stored, requests = self._input
            request = requests.request(ref.offset, *stored[ref.offset])
            request.key = key
            return request
        place = ref.settings_offset, ref.settings_length
        if place not in self._readers:
            settings = orjson.loads(_read(self._spool, *place))
            sampling, required = Sampling.model_validate(settings["sampling"]), frozenset(settings["required"])
            self._readers[place] = RowReader("messages", sampling, settings["extra"], required=required)
        request = self._readers[place].request(key, _read(self._spool, ref.offset, ref.length))
        return request.changed(conversation=request.conversation.with_sources(self._with_bytes))

    def _with_bytes(self, source: str) -> str:
        if not source.startswith(self._held):
            return source
        offset, length = source.removeprefix(self._held).split(":")
        return HeldImage(_read(self._spool, int(offset), int(length)), source)

    def _report(self, number: int, kind: str, found: Any) -> None:
        if not self._results:
            asyncio.get_running_loop().call_soon(self._flush)
        self._results.append((number, kind, found))

    def _flush(self) -> None:
        results, self._results = self._results, []
        if self._outgoing.is_closing():  # the parent is gone, and the end of its pipe is about to be read
            return
        warnings = [warning for warning in self._call.warnings if warning not in self._reported]
        self._reported.update(warnings)
        try:
            frame = frames.packed({"results": results, "warnings": warnings})
        except TypeError:
            results = [_sendable(result) for result in results]
            frame = frames.packed({"results": results})
        self._outgoing.write(frame)


def _read(file: FileIO, offset: int, length: int) -> bytes:
    file.seek(offset)
    return file.read(length)


def _sendable(result: tuple[int, str, Any]) -> tuple[int, str, Any]:
    """Return `result`, or the failure of its item when JSON cannot carry it."""
    try:
        frames.packed({"result": result})
    except TypeError:
        wrong = PromptmillError(Code.BAD_RESPONSE, "The answer contains a value that JSON cannot represent.")
        return result[0], *packed_result(RetryDecision(FailureKind.ITEM, wrong, unmetered=True))
    return result


def _endpoint(fields: Mapping[str, Any]) -> Endpoint:
    return Endpoint(**{**fields, "secrets": tuple(fields["secrets"]), "profile": profile_named(fields["profile"])})


async def work(incoming: BinaryIO, outgoing: BinaryIO) -> None:
    """Work until the pipe from the parent closes; it also closes when the parent dies."""
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=1 << 20)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), incoming)
    transport, _ = await loop.connect_write_pipe(asyncio.BaseProtocol, outgoing)
    job = await frames.receive(reader)
    if job is None:
        return
    worker = Worker(job, transport)
    stay_responsive()
    alive = asyncio.create_task(_report_alive(transport, job["alive_s"]))
    while (message := await frames.receive(reader)) is not None:
        worker.take(message)
    alive.cancel()


async def _report_alive(outgoing: asyncio.WriteTransport, every_s: float) -> None:
    while not outgoing.is_closing():
        outgoing.write(frames.packed({}))
        await asyncio.sleep(every_s)


def main() -> None:
    """Run the worker; exits without clean-up: the operating system closes files and connections."""
    assert _PIPES is not None
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C
    try:
        run(work(*_PIPES))
    finally:
        os._exit(0)


if __name__ == "__main__":
    main()
