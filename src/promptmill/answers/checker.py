"""Checks answers in a child process, because the validator holds the GIL (with a hostile schema, for any time).

The process checks one answer at a time, and a call has at most one answer in the queue. If a check takes too long or
too much memory, the process is ended, and the next answer starts a new one.

Messages to the process: `{"schema": …, "text": …, "complete": …}`, with the schema as JSON text, or
`{"pattern": …, "text": …}`.
Replies: `{"ready": true}` once, then for each answer `{"problem": …, "repaired": text or null}`.
"""

from __future__ import annotations

import asyncio
import functools
from typing import BinaryIO
from weakref import WeakKeyDictionary

from promptmill.answers.pattern import is_soon_matched, whole_match
from promptmill.answers.schema import AnswerSchema, Checked
from promptmill.core.bounds import MOST_KEPT
from promptmill.system import frames, subprocesses

# The limit of processor time, on which other load has no effect. A check takes 0.001 s, a repair of 128 KiB 0.2 s.
_CHECK_S = 1.0
_REPLY_S = 10.0  # the limit of wall time
_MEMORY = 1 << 30
NO_MATCH = "it does not match"


class Checker:
    """Checks answers in its child process, which the first answer starts."""

    def __init__(self) -> None:
        self._turn = asyncio.Lock()
        self._turns: WeakKeyDictionary[object, asyncio.Lock] = WeakKeyDictionary()
        self._helper = subprocesses.Helper(__name__, _REPLY_S)

    async def check(self, schema: AnswerSchema, text: str, call: object, *, complete: bool) -> Checked:
        """Return the result of `schema.check`, or a problem if the check takes too long."""
        return await self._asked({"schema": schema.content, "text": text, "complete": complete}, call)

    async def match(self, pattern: str, text: str, call: object) -> str:
        """Return `""` if a text matches a pattern as a whole, else the problem (also if matching takes too long)."""
        if is_soon_matched(text):
            return "" if whole_match(pattern).is_valid(text) else NO_MATCH
        return (await self._asked({"pattern": pattern, "text": text}, call)).problem

    async def _asked(self, message: frames.Frame, call: object) -> Checked:
        text = message["text"]
        if problem := AnswerSchema.why_not_read(text):
            return Checked(text, problem)
        try:
            question = frames.packed(message)
        except TypeError:
            return Checked(text, "it contains half a surrogate pair")
        async with self._turns.setdefault(call, asyncio.Lock()), self._turn:
            try:
                reply = await asyncio.to_thread(self._helper.ask, question)
            except OSError:
                return Checked(text, "it cannot be checked on this machine")
            except asyncio.CancelledError:
                self._helper.kill()
                raise
        if reply is None:
            return Checked(text, "it takes too long, or too much memory, to check")
        repaired = reply["repaired"]
        return Checked(text, reply["problem"]) if repaired is None else Checked(repaired, repaired=True)

    async def aclose(self) -> None:
        """End the process."""
        self._helper.kill()
        await asyncio.to_thread(self._helper.end)


_compiled = functools.lru_cache(maxsize=MOST_KEPT)(AnswerSchema)


def _checked(asked: frames.Frame, _: BinaryIO) -> frames.Frame:
    text = asked["text"]
    if "pattern" in asked:
        return {"problem": "" if whole_match(asked["pattern"]).is_valid(text) else NO_MATCH, "repaired": None}
    try:
        checked = _compiled(asked["schema"]).check(text, complete=asked["complete"])
        f"{checked.text}{checked.problem}".encode()
    except UnicodeEncodeError:
        checked = Checked(text, "it contains half a surrogate pair")
    return {"problem": checked.problem, "repaired": checked.text if checked.repaired else None}


def _unchecked(_: frames.Frame, error: Exception) -> frames.Frame:
    return {"problem": f"it cannot be checked ({type(error).__name__})", "repaired": None}


def main() -> None:
    """Serve the parent process."""
    subprocesses.end_with_parent()
    # The imports come before the clock starts: their time is no part of a check's time.
    modules = ("jsonschema_rs", "json_repair")
    subprocesses.serve_parent(_checked, _unchecked, modules, memory=_MEMORY, computing_s=_CHECK_S)


if __name__ == "__main__":
    main()
