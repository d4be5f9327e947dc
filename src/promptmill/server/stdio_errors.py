"""JSON-RPC errors for lines that are no message, whose sender would otherwise wait for ever.

Such are half a surrogate pair (`"\\ud800"`, as programs write it that cut a text in the middle of an emoji) and too
deep a nesting.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from mcp_types import INVALID_REQUEST, PARSE_ERROR, ErrorData, JSONRPCError
from pydantic import ValidationError

_MOST_DIGITS = 4000  # Python refuses to read much more
# A string without an end goes on to the end of the line, so that none is searched for twice.
_PIECE = re.compile(r'"(?:[^"\\]|\\.)*+"?|[{}\[\]:]|-?\d+')


def answer_to(line: str, error: ValueError) -> JSONRPCError | None:
    """Return the answer to the line that was refused with `error`, or None when nobody waits for one."""
    if isinstance(error, ValidationError):
        if (number := _id_of_request(error.errors(include_url=False))) is None:
            return None
        wrong = ErrorData(code=INVALID_REQUEST, message="`params` of the request is not an object.")
        return JSONRPCError(jsonrpc="2.0", id=number, error=wrong)
    if (number := _id_of(line)) is None:
        return None
    return JSONRPCError(jsonrpc="2.0", id=number, error=ErrorData(code=PARSE_ERROR, message=_in_words(str(error))))


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
