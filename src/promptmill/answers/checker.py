"""Checks answers in a process of its own: the validator, which holds the GIL, can take any time on a hostile schema.

To the process: `{"schema": …, "text": …, "complete": …, "longest_s": …}`, the schema as JSON text.
From it: `{"ready": true}` once, then for each answer `{"problem": …, "repaired": text or null}`.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import os
import signal
import sys
from typing import BinaryIO

from promptmill.answers.schema import AnswerSchema, Checked, compile_schema
from promptmill.system import frames, subprocesses

_LONGEST_START_S = 30.0
_LONGEST_CHECK_S = 3.0  # of processor time, which a busy machine does not use up; an ordinary check takes 0.001 s
_LONGEST_WAIT = 10  # times that, for the reply
_MOST_MEMORY = 2 << 30  # of address space
_MOST_KEPT = 32
_MOST_SLOW = 64
_TAKES_TOO_LONG = "it takes too long to check"


class Checker:
    """A process that checks one answer at a time; the first answer starts it. It ends when a check takes too long."""

    def __init__(self, longest_check_s: float = _LONGEST_CHECK_S) -> None:
        self._longest_check_s = longest_check_s
        self._turn = asyncio.Lock()
        self._process: asyncio.subprocess.Process | None = None
        self._slow: dict[str, None] = {}
        """Schemas under which a check took too long: further answers are not checked."""

    async def check(self, schema: AnswerSchema, text: str, *, complete: bool) -> Checked:
        """Return the result of `schema.check`, or a problem if the check takes too long."""
        if problem := schema.why_not_read(text):
            return Checked(text, problem)
        async with self._turn:
            if schema.content in self._slow:
                return Checked(text, _TAKES_TOO_LONG)
            question = {"schema": schema.content, "text": text, "complete": complete}
            try:
                asked = frames.packed({**question, "longest_s": self._longest_check_s})
            except TypeError:
                return Checked(text, "it contains half a surrogate pair")
            found = None
            try:
                found = await self._answered(asked)
            except TimeoutError:
                if len(self._slow) >= _MOST_SLOW:
                    self._slow.clear()
                self._slow[schema.content] = None
            except (OSError, RuntimeError, frames.OutOfStepError):
                return Checked(text, "it cannot be checked on this machine")
            finally:  # also if this call is cancelled: the next answer must not get this one's result
                if found is None:
                    self._end()
        if found is None:
            return Checked(text, _TAKES_TOO_LONG)
        if found["repaired"] is not None:
            return Checked(found["repaired"], repaired=True)
        return Checked(text, found["problem"])

    async def _answered(self, asked: bytes) -> frames.Frame | None:
        """Return the reply of the process; None if it ended meanwhile, as it does without memory.

        Raises `TimeoutError` when the check took too long.
        """
        process = self._process
        if process is None:
            process = self._process = await subprocesses.start(__name__, subprocesses.environment())
            assert process.stdout is not None
            async with asyncio.timeout(_LONGEST_START_S):
                await frames.receive(process.stdout)
        assert process.stdin is not None
        assert process.stdout is not None
        async with asyncio.timeout(_LONGEST_WAIT * self._longest_check_s):
            with contextlib.suppress(ConnectionError):
                process.stdin.write(asked)
                await process.stdin.drain()
            reply = await frames.receive(process.stdout)
            if reply is None and sys.platform != "win32" and await process.wait() == -signal.SIGPROF:
                raise TimeoutError
            return reply

    async def aclose(self) -> None:
        """End the process."""
        if (process := self._process) is not None:
            self._end()
            await process.wait()

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None and process.returncode is None:
            subprocesses.end_group(process.pid)


@functools.lru_cache(maxsize=_MOST_KEPT)
def _compiled(content: str) -> AnswerSchema:
    return compile_schema(json.loads(content))


def _serve(incoming: BinaryIO, outgoing: BinaryIO) -> None:
    """Check answers until the other side closes."""

    def send(message: frames.Frame) -> None:
        outgoing.write(frames.packed(message))
        outgoing.flush()

    send({"ready": True})
    while (asked := frames.read(incoming)) is not None:
        text = asked["text"]
        _limit_time(asked["longest_s"])
        try:
            checked = _compiled(asked["schema"]).check(text, complete=asked["complete"])
        except Exception as error:  # noqa: BLE001 (no answer may end the process)
            checked = Checked(text, f"it cannot be checked ({type(error).__name__})")
        _limit_time(0.0)
        repaired = checked.text if checked.repaired else None
        try:
            send({"problem": checked.problem, "repaired": repaired})
        except TypeError:
            send({"problem": "it contains half a surrogate pair", "repaired": None})


def _limit_time(limit_s: float) -> None:
    """End this process by SIGPROF once it has computed for `limit_s` seconds more; 0: at no time."""
    if sys.platform != "win32":
        signal.setitimer(signal.ITIMER_PROF, limit_s)


def _limit_memory() -> None:
    if sys.platform != "win32":
        import resource

        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_AS, (_MOST_MEMORY, _MOST_MEMORY))
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def main() -> None:
    """Serve the process that started this one."""
    incoming, outgoing = subprocesses.private_pipes()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the server handles Ctrl-C
    subprocesses.end_with_parent()
    subprocesses.lower_priority()
    _limit_memory()
    _serve(incoming, outgoing)
    os._exit(0)


if __name__ == "__main__":
    main()
