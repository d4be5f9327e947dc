"""A worker process of the fan-out, `python -m promptmill.cluster.worker`: a `Replica` behind two pipes."""

from __future__ import annotations

from promptmill.system import subprocesses

# The pipes are made first, so that no import can print into them.
_PIPES = subprocesses.private_pipes() if __name__ == "__main__" else None

import asyncio
import os
import signal
from dataclasses import replace
from typing import Any, BinaryIO

from promptmill.backends.protocol import Completion, Failure
from promptmill.cluster.fan_out import packed
from promptmill.cluster.remote import Replica, ReplicaReport
from promptmill.core.errors import Code, PromptmillError
from promptmill.system import frames
from promptmill.system.runtime import run, stay_responsive


async def work(incoming: BinaryIO, outgoing: BinaryIO) -> None:
    """Work until the pipe from the parent closes, which also happens when the parent dies."""
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=1 << 20)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), incoming)
    transport, _ = await loop.connect_write_pipe(asyncio.BaseProtocol, outgoing)
    stay_responsive()
    replica, calls = Replica(), set[asyncio.Task[None]]()

    async def call(number: int, method: str, arguments: tuple[Any, ...]) -> None:
        found = await getattr(replica, method)(*arguments)
        if method != "submit" and not transport.is_closing():  # if it is closing, the parent has ended
            transport.write(_frame(number, found))

    while (message := await frames.receive_pickled(reader)) is not None:
        calls.add(task := asyncio.create_task(call(*message)))
        task.add_done_callback(calls.discard)


def _frame(number: int, found: Any) -> bytes:
    """Return a reply frame. If JSON cannot represent an outcome, the item gets a failure."""
    try:
        return frames.packed({"number": number, "found": packed(found)})
    except TypeError:
        outcomes = [(key, _sendable(outcome)) for key, outcome in found.outcomes]
        return frames.packed({"number": number, "found": packed(replace(found, outcomes=outcomes))})


def _sendable(outcome: Any) -> Any:
    try:
        frames.packed({"found": packed(ReplicaReport([(0, outcome)], 0))})
    except TypeError:
        wrong = PromptmillError(Code.BAD_RESPONSE, "The answer contains a value that JSON cannot represent.")
        attempts = outcome.attempts if isinstance(outcome, Completion | Failure) else 1
        return Failure(wrong, attempts, unmetered=1)
    return outcome


def main() -> None:
    """Run the worker. It exits without clean-up, because the operating system closes files and connections."""
    assert _PIPES is not None
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C
    try:
        run(work(*_PIPES))
    finally:
        os._exit(0)


if __name__ == "__main__":
    main()
