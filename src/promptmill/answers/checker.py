"""Checks answers in processes of their own: the validator, which holds the GIL, can take any time on a hostile schema.

    answer ─▶ one at a time of its call ─▶ quick lane, 0.2 s ── took longer ─▶ long lane, 3 s ── took longer ─▶ problem

Each lane is a process that checks one answer at a time. A schema whose check takes too long in a lane leaves it for
good, so that slow schemas delay each other and not those of other calls. A call has one answer in the line at a time.

To a process: `{"schema": …, "text": …, "complete": …, "longest_s": …}`, the schema as JSON text.
From it: `{"ready": true}` once, then for each answer `{"problem": …, "repaired": text or null}`.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import importlib
import json
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from typing import Any, BinaryIO
from weakref import WeakKeyDictionary

from promptmill.answers.schema import AnswerSchema, Checked, compile_schema
from promptmill.system import frames, subprocesses

_LONGEST_START_S = 30.0
# Of processor time, which a busy machine does not use up; an ordinary check takes 0.001 s.
_LONGEST_CHECKS_S = (0.2, 3.0)
_LONGEST_WAIT = 10  # times that, for the reply
_MOST_MEMORY = 2 << 30  # of address space
_MOST_KEPT = 32
_MOST_LEFT = 64


class Checker:
    """Checks answers in one lane after the other, each with more time; the first answer starts its process."""

    def __init__(self, longest_checks_s: Sequence[float] = _LONGEST_CHECKS_S) -> None:
        self._lanes = [_Lane(longest_s) for longest_s in longest_checks_s]
        self._turns: WeakKeyDictionary[object, asyncio.Lock] = WeakKeyDictionary()

    async def check(self, schema: AnswerSchema, text: str, call: object, *, complete: bool) -> Checked:
        """Return the result of `schema.check`, or a problem if the check takes too long."""
        if problem := schema.why_not_read(text):
            return Checked(text, problem)
        question = {"schema": schema.content, "text": text, "complete": complete}
        async with self._turns.setdefault(call, asyncio.Lock()):
            for lane in self._lanes:
                try:
                    found = await lane.check(schema.content, question)
                except TypeError:
                    return Checked(text, "it contains half a surrogate pair")
                except (OSError, RuntimeError, frames.OutOfStepError):
                    return Checked(text, "it cannot be checked on this machine")
                if found is not None:
                    repaired = found["repaired"] is not None
                    return Checked(found["repaired"], repaired=True) if repaired else Checked(text, found["problem"])
        return Checked(text, "it takes too long to check")

    async def aclose(self) -> None:
        """End the processes."""
        for lane in self._lanes:
            await lane.aclose()


class _Lane:
    """A process that checks one answer at a time, and is ended when a check takes longer than `longest_s`."""

    def __init__(self, longest_s: float) -> None:
        self._longest_s = longest_s
        self._turn = asyncio.Lock()
        self._process: asyncio.subprocess.Process | None = None
        self._left: dict[str, None] = {}
        """Schemas under which a check took too long here."""

    async def check(self, schema: str, question: Mapping[str, Any]) -> frames.Frame | None:
        """Return the reply of the process; None if the check takes too long, or if the process ended meanwhile.

        Raises `TypeError` for a text that JSON cannot carry, and the exceptions of a process that cannot be used.
        """
        async with self._turn:
            if schema in self._left:
                return None
            asked = frames.packed({**question, "longest_s": self._longest_s})
            found = None
            try:
                with contextlib.suppress(TimeoutError):
                    found = await self._answered(asked)
                if found is None:  # as without memory
                    if len(self._left) >= _MOST_LEFT:
                        self._left.clear()
                    self._left[schema] = None
            finally:  # also if this call is cancelled: the next answer must not get this one's result
                if found is None:
                    self._end()
            return found

    async def _answered(self, asked: bytes) -> frames.Frame | None:
        """Return the reply of the process; None if it ended meanwhile. Raises `TimeoutError` if that takes too long."""
        process = self._process
        if process is None or process.returncode is not None:  # it ended without an answer to check
            process = self._process = await subprocesses.start(__name__, subprocesses.environment())
            assert process.stdout is not None
            async with asyncio.timeout(_LONGEST_START_S):
                await frames.receive(process.stdout)
        assert process.stdin is not None
        assert process.stdout is not None
        async with asyncio.timeout(_LONGEST_WAIT * self._longest_s):
            with contextlib.suppress(ConnectionError):
                process.stdin.write(asked)
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


@functools.lru_cache(maxsize=_MOST_KEPT)
def _compiled(content: str) -> AnswerSchema:
    return compile_schema(json.loads(content))


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
