"""Server-sent events → the chat completion they add up to.

Format: html.spec.whatwg.org, server-sent events; platform.openai.com, chat completions, streaming.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import orjson

END = b"[DONE]"


class CutOffError(Exception):
    """The stream ended before the answer did."""


def assemble(body: bytes, load: Callable[[bytes], Any] = orjson.loads) -> dict[str, Any]:
    """Return the completion object of a whole stream, or the first event that reports an error; `load` reads JSON.

    Raises `CutOffError` when there was neither a finish reason nor an end mark, `ValueError` for invalid JSON.
    """
    whole: dict[str, Any] = {}
    message: dict[str, Any] = {}
    texts: dict[str, list[str]] = {}
    calls: dict[int, dict[str, Any]] = {}
    logprobs: dict[str, list[Any]] = {}
    finish: Any = None
    ended = False
    for data in _events(body):
        if data == END:
            ended = True
            break
        event = load(data)
        if not isinstance(event, dict):
            raise ValueError("an event is not a JSON object")
        if event.get("error"):
            return event
        whole = {**event, "usage": event.get("usage") or whole.get("usage")}
        for choice in event.get("choices") or ():
            if choice.get("index", 0) != 0:
                continue
            finish = choice.get("finish_reason") or finish
            _add_logprobs(logprobs, choice.get("logprobs"))
            for name, value in (choice.get("delta") or {}).items():
                if name == "tool_calls":
                    _add_calls(calls, value or ())
                elif name == "reasoning_details" and isinstance(value, list):
                    message.setdefault(name, []).extend(value)
                elif name != "role":
                    texts.setdefault(name, []).extend(_texts(value))
    if finish is None and not ended:
        raise CutOffError
    message |= {name: "".join(parts) for name, parts in texts.items()}
    if calls:
        message["tool_calls"] = [calls[index] for index in sorted(calls)]
    choice = {"index": 0, "message": message, "logprobs": logprobs or None, "finish_reason": finish}
    return {**whole, "object": "chat.completion", "choices": [choice] if message or finish else []}


def _events(body: bytes) -> Iterator[bytes]:
    """Yield the data of each event; an event's data lines are joined by a line break."""
    lines: list[bytes] = []
    for line in body.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n"):
        if line.startswith(b"data:"):
            lines.append(line[5:].removeprefix(b" "))
        elif not line and lines:
            yield b"\n".join(lines)
            lines = []
    if lines:
        yield b"\n".join(lines)


def _texts(value: Any) -> Iterator[str]:
    """Yield the text of a delta, or those of its parts, as Mistral's reasoning models send them."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for part in value:
            if isinstance(part, dict) and isinstance(text := part.get("text"), str):
                yield text


def _add_logprobs(logprobs: dict[str, list[Any]], piece: Any) -> None:
    if isinstance(piece, dict):
        for name, values in piece.items():
            logprobs.setdefault(name, []).extend(values if isinstance(values, list) else ())


def _add_calls(calls: dict[int, dict[str, Any]], pieces: Any) -> None:
    for piece in pieces:
        call = calls.setdefault(piece.get("index", 0), {"type": "function", "function": {"name": "", "arguments": ""}})
        call |= {name: piece[name] for name in ("id", "type") if piece.get(name)}
        function = piece.get("function") or {}
        for name in ("name", "arguments"):
            call["function"][name] += function.get(name) or ""
