"""Answer unparsable stdin lines with a JSON-RPC error instead of dropping them.

The SDK drops a line that its parser refuses, such as one with half a surrogate pair (`"\\ud800"`, as programs write it
that cut a text in the middle of an emoji) or with too deep a nesting, and the client would wait for ever.

And the other way round: when the client has closed its side nobody reads any more, and nothing is said. The SDK would
answer every call in progress with "Connection closed", on which clients of its 1.x line raise while they leave.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from fastmcp import FastMCP
from mcp.shared.message import SessionMessage
from mcp_types import INVALID_REQUEST, PARSE_ERROR, ErrorData, JSONRPCError
from pydantic import ValidationError

_MOST_DIGITS = 4000  # Python refuses to read much more
_PIECE = re.compile(r'"(?:[^"\\]|\\.)*"|[{}\[\]:]|-?\d+')


def answer_unreadable(server: FastMCP) -> None:
    """Have `server`, before it runs over stdio, answer requests that it cannot read."""
    low_level = server._mcp_server  # FastMCP has no hook between the stream and the session
    run = low_level.run

    async def answering(read_stream: Any, write_stream: Any, *rest: Any, **options: Any) -> None:
        readable = _Readable(read_stream, write_stream)
        await run(readable, _WhileRead(write_stream, readable), *rest, **options)

    low_level.run = answering  # type: ignore[method-assign]


class _Readable:
    """The messages of `inner`; what is none is answered to `out`. Everything else is `inner`'s."""

    def __init__(self, inner: Any, out: Any) -> None:
        self._inner = inner
        self._out = out
        self.ended = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    async def __aenter__(self) -> _Readable:
        await self._inner.__aenter__()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._inner.__aexit__(*error)

    def __aiter__(self) -> Any:
        return self

    async def __anext__(self) -> Any:
        while isinstance(item := await self._next(), Exception):
            if isinstance(item, ValidationError) and (answer := answer_to(item)):
                await self._out.send(SessionMessage(answer))
        return item

    async def _next(self) -> Any:
        try:
            return await self._inner.__anext__()
        except StopAsyncIteration:
            self.ended = True
            raise


class _WhileRead:
    """`inner` as long as `reader` has not ended; then what is sent is dropped. Everything else is `inner`'s."""

    def __init__(self, inner: Any, reader: _Readable) -> None:
        self._inner = inner
        self._reader = reader

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    async def __aenter__(self) -> _WhileRead:
        await self._inner.__aenter__()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._inner.__aexit__(*error)

    async def send(self, item: Any) -> None:
        """Send `item` if the client still listens."""
        if not self._reader.ended:
            await self._inner.send(item)


def answer_to(error: ValidationError) -> JSONRPCError | None:
    """Return the answer to the line that was refused with `error`, or None when nobody waits for one."""
    problem, *others = error.errors(include_url=False)
    if (number := _id_of_request(others)) is not None:
        wrong = ErrorData(code=INVALID_REQUEST, message="`params` of the request is not an object.")
        return JSONRPCError(jsonrpc="2.0", id=number, error=wrong)
    if problem["type"] != "json_invalid" or (number := _id_of(problem["input"])) is None:
        return None
    reason = _in_words(str(problem.get("ctx", {}).get("error", "unreadable")))
    return JSONRPCError(jsonrpc="2.0", id=number, error=ErrorData(code=PARSE_ERROR, message=reason))


def _in_words(reason: str) -> str:
    if "surrogate" in reason or "hex escape" in reason:
        return "The request contains an unpaired surrogate; remove it or send the whole character."
    if "recursion" in reason:
        return "The request is nested too deeply."
    return f"The request is not valid JSON: {reason}."


def _id_of(line: str) -> int | str | None:
    try:
        message = json.loads(line, parse_int=_number)
        found = message.get("id") if isinstance(message, dict) and "method" in message else None
    except RecursionError:
        found = _outermost_id(line)
    except ValueError:
        return None
    return found if _is_id(found) else None


def _is_id(value: Any) -> bool:
    return isinstance(value, int | str) and not isinstance(value, bool)


def _number(text: str) -> int | None:
    return int(text) if len(text) <= _MOST_DIGITS else None


def _id_of_request(problems: Sequence[Any]) -> int | str | None:
    """Return the id of a message that is a request but for its `params`, as JSON-RPC allows a list there."""
    for problem in problems:
        match problem["input"]:
            case {"jsonrpc": "2.0", "method": str(), "id": number} if _is_id(number):
                return number  # type: ignore[no-any-return]
    return None


def _outermost_id(line: str) -> int | str | None:
    """Return the value of `id` in the outermost object, whatever is nested in it."""
    depth = 0
    before: tuple[str, str] = ("", "")
    for piece in map(re.Match.group, _PIECE.finditer(line)):
        if piece in "{[":
            depth += 1
        elif piece in "}]":
            depth -= 1
        elif depth == 1 and before == ('"id"', ":"):
            return piece[1:-1] if piece.startswith('"') else _number(piece)
        before = (before[1], piece)
    return None
