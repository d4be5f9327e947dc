"""Server-sent events: the chat completion that they form together, and its text while they arrive.

Format: html.spec.whatwg.org, server-sent events; platform.openai.com, chat completions, streaming.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import orjson

from promptmill.answers.reasoning import answer_so_far
from promptmill.backends.openai.response_fields import is_thinking, read_message, text_of

END = b"[DONE]"
_STARTS = (b"data:", b"event:", b"id:", b"retry:", b":")


class CutOffError(Exception):
    """The stream ended before the answer was complete."""


def is_stream(content_type: str, body: bytes) -> bool:
    """Return whether a body that is not JSON is a stream of events, or of JSON objects line by line."""
    start = body.lstrip()
    if content_type.startswith("text/event-stream") or start.startswith(_STARTS):
        return True
    return start.startswith(b"{") and b"chat.completion.chunk" in start[:1000]


def first_event(body: bytes) -> Any:
    """Return the first event that is JSON, or None. Some servers send errors as streams."""
    for data in _events(body):
        try:
            return orjson.loads(data)
        except orjson.JSONDecodeError:
            continue
    return None


def assemble(body: bytes, load: Callable[[bytes], Any] = orjson.loads) -> dict[str, Any]:
    """Return the completion object of a whole stream, or the first event that reports an error; `load` reads JSON.

    Raises `CutOffError` for a stream with neither a finish reason nor an end mark, `ValueError` for invalid JSON.
    """
    completion: dict[str, Any] = {}
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
        if event.get("error") or ("choices" not in event and event.get("object") == "error"):
            return event
        completion = {**event, "usage": event.get("usage") or completion.get("usage")}
        for choice in event.get("choices") or ():
            if choice.get("index", 0) != 0:
                continue
            finish = choice.get("finish_reason") or finish
            _add_logprobs(logprobs, choice.get("logprobs"))
            _add_delta(choice.get("delta") or choice.get("message") or {}, message, texts, calls)
    if finish is None and not ended:
        raise CutOffError
    message |= {name: "".join(parts) for name, parts in texts.items()}
    if calls:
        message["tool_calls"] = [calls[index] for index in sorted(calls)]
    choice = {"index": 0, "message": message, "logprobs": logprobs or None, "finish_reason": finish}
    return {**completion, "object": "chat.completion", "choices": [choice] if message or finish else []}


def _events(body: bytes) -> Iterator[bytes]:
    """Yield the data of each event; an event's data lines are joined by a line break."""
    lines: list[bytes] = []
    for line in body.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n"):
        if line.startswith(b"data:"):
            lines.append(line[5:].removeprefix(b" "))
        elif line.startswith(b"{"):  # JSON line by line
            yield line
        elif not line and lines:
            yield b"\n".join(lines)
            lines = []
    if lines:
        yield b"\n".join(lines)


def _add_delta(
    delta: dict[str, Any], message: dict[str, Any], texts: dict[str, list[str]], calls: dict[int, dict[str, Any]]
) -> None:
    for name, value in delta.items():
        if name == "tool_calls":
            _add_calls(calls, value or ())
        elif name == "reasoning_details" and isinstance(value, list):
            message.setdefault(name, []).extend(value)
        elif name == "content" and isinstance(value, list):  # Mistral's reasoning models
            for part in value:
                texts.setdefault("reasoning_content" if is_thinking(part) else name, []).append(text_of(part))
        elif name != "role" and isinstance(value, str):
            texts.setdefault(name, []).append(value)


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


class StreamPreview:
    """Shows the text of a streamed answer while it arrives.

    Unreadable events are skipped, because the whole body is read again at the end.
    """

    def __init__(self, show: Callable[[str], None], *, inline: bool) -> None:
        """`show` gets the text so far; with `inline`, reasoning is part of it."""
        self._show = show
        self._inline = inline
        self._rest = b""
        self._text = ""

    def feed(self, piece: bytes) -> None:
        """Take the next piece of the body."""
        *lines, self._rest = (self._rest + piece).split(b"\n")
        text = "".join(map(_delta, lines))
        if text:
            self._text += text
            self._show(self._text if self._inline else answer_so_far(self._text))


def _delta(line: bytes) -> str:
    """Return the text that the event in a line adds to the answer."""
    try:
        event = orjson.loads(line.strip().removeprefix(b"data:"))
        choice = event["choices"][0]
        if choice.get("index", 0):
            return ""
        return read_message(choice["delta"])[0]
    except (ValueError, TypeError, KeyError, IndexError, AttributeError):
        return ""
