"""Checks answers in a process of its own: the validator, which holds the GIL, can take any time on a hostile schema.

The process checks one answer at a time, and a call has one answer in its line at a time. It is ended when a check takes
too long or too much memory; the next answer starts another one.

To the process: `{"schema": …, "text": …, "complete": …}`, the schema as JSON text.
From it: `{"ready": true}` once, then for each answer `{"problem": …, "repaired": text or null}`.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import importlib
from typing import BinaryIO
from weakref import WeakKeyDictionary

from promptmill.answers.schema import AnswerSchema, Checked
from promptmill.core.bounds import MOST_KEPT
from promptmill.system import frames, runtime, subprocesses

_START_S = 30.0
# Of processor time, which a busy machine does not use up. A check takes 0.001 s, and a repair of 128 KiB 0.2 s.
_CHECK_S = 1.0
_REPLY_S = 10.0  # on the clock
_MEMORY = 1 << 30


class Checker:
    """Checks answers in its process, which the first answer starts."""

    def __init__(self) -> None:
        self._turn = asyncio.Lock()
        self._turns: WeakKeyDictionary[object, asyncio.Lock] = WeakKeyDictionary()
        self._process: asyncio.subprocess.Process | None = None

    async def check(self, schema: AnswerSchema, text: str, call: object, *, complete: bool) -> Checked:
        """Return the result of `schema.check`, or a problem if the check takes too long."""
        if problem := schema.why_not_read(text):
            return Checked(text, problem)
        try:
            question = frames.packed({"schema": schema.content, "text": text, "complete": complete})
        except TypeError:
            return Checked(text, "it contains half a surrogate pair")
        async with self._turns.setdefault(call, asyncio.Lock()), self._turn:
            reply = None
            try:
                reply = await self._reply(question)
            except TimeoutError:
                pass
            except (OSError, RuntimeError, frames.OutOfStepError):
                return Checked(text, "it cannot be checked on this machine")
            finally:  # also if this call is cancelled: the next answer must not get this one's result
                if reply is None:
                    self._end()
        if reply is None:
            return Checked(text, "it takes too long, or too much memory, to check")
        repaired = reply["repaired"]
        return Checked(text, reply["problem"]) if repaired is None else Checked(repaired, repaired=True)

    async def _reply(self, question: bytes) -> frames.Frame | None:
        """Return the reply of the process; None if it ended meanwhile. Raises `TimeoutError` if that takes too long."""
        process = self._process
        if process is None or process.returncode is not None:  # it ended without an answer to check
            process = self._process = await subprocesses.start(__name__, subprocesses.environment())
            assert process.stdout is not None
            async with asyncio.timeout(_START_S):
                await frames.receive(process.stdout)
        assert process.stdin is not None
        assert process.stdout is not None
        async with asyncio.timeout(_REPLY_S):
            with contextlib.suppress(ConnectionError):
                process.stdin.write(question)
                await process.stdin.drain()
            return await frames.receive(process.stdout)

    async def aclose(self) -> None:
        """End the process."""
        if (process := self._process) is not None:
            self._end()
            await process.wait()

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None and process.returncode is None:
            subprocesses.end_group(process.pid)


_compiled = functools.lru_cache(maxsize=MOST_KEPT)(AnswerSchema)


def _serve(incoming: BinaryIO, outgoing: BinaryIO) -> None:
    """Check answers until the other side closes."""

    def send(message: frames.Frame) -> None:
        outgoing.write(frames.packed(message))
        outgoing.flush()

    for name in ("jsonschema_rs", "json_repair"):  # the time of a check does not include their imports
        importlib.import_module(name)
    send({"ready": True})
    while (asked := frames.read(incoming)) is not None:
        text = asked["text"]
        runtime.limit_computing(_CHECK_S)
        try:
            checked = _compiled(asked["schema"]).check(text, complete=asked["complete"])
        except Exception as error:  # noqa: BLE001 (no answer may end the process)
            checked = Checked(text, f"it cannot be checked ({type(error).__name__})")
        runtime.limit_computing(0.0)
        repaired = checked.text if checked.repaired else None
        try:
            send({"problem": checked.problem, "repaired": repaired})
        except TypeError:
            send({"problem": "it contains half a surrogate pair", "repaired": None})


def main() -> None:
    """Serve the process that started this one."""
    subprocesses.end_with_parent()
    subprocesses.serve_parent(_serve, _MEMORY)


if __name__ == "__main__":
    main()
