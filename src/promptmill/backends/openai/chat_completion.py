"""The format of chat completions with all variants of its fields. Replies of all dialects are converted to it.

`read_message`, `read_finish` and `details_of` read its fields. `GrowingMessage` collects the fields of a stream.

Formats: platform.openai.com (chat completions, streaming), html.spec.whatwg.org (server-sent events).
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable, Iterator
from enum import Enum, auto
from typing import Any

import orjson

from promptmill.answers.reasoning import split_marked, without_broken_mark
from promptmill.backends.protocol import Growing
from promptmill.core.bounds import LONGEST_CALLED
from promptmill.core.values import JsonDict, JsonObject

# Names of the reasoning field. vLLM, SGLang, DeepSeek and Qwen send the first; OpenRouter, newer vLLM and Ollama send
# the second; gateways of Anthropic send the third.
_REASONING = ("reasoning_content", "reasoning", "thinking", "thought", "thoughts", "reasoning_text")
_THINKING_PARTS = frozenset({"thinking", "reasoning", "reasoning_text", "thought", "redacted_thinking"})
_INNER = ("text", "thinking", "reasoning", "content", "summary", "parts", "value")
# Fields that `details_of` leaves out, because `Completion` has them or because they are equal in every answer.
_PAYLOAD = frozenset({"object", "choices", "error"})
_CHOICE = frozenset({"index", "message", "text", "finish_reason", "logprobs"})
_NO_TEXT = frozenset({"role", "tool_calls"})
_MESSAGE = frozenset({"role", "content", "reasoning_content", "reasoning", "tool_calls"})
_END = b"[done]"
"""The data of a stream's last event, in lower case."""
EVENT_STARTS = (b"data:", b"event:", b"id:", b"retry:", b"error:", b":")


def read_message(message: JsonObject) -> tuple[str, str | None]:
    """Return `(text, reasoning)` of a message; the text is unchanged. Raises `TypeError` if the content is not text."""
    content = message.get("content")
    if content in (None, "") and isinstance(parsed := message.get("parsed"), dict | list):
        content = parsed
    if isinstance(content, dict | list) and _is_value(content):
        return orjson.dumps(content).decode(), _reasoning(message)
    text, thought = _split_parts(content)
    return text, _reasoning(message) or thought or None


def _is_value(content: JsonDict | list[Any]) -> bool:
    """Return whether `content` is the requested JSON itself instead of its text (Workers AI)."""
    if isinstance(content, dict):
        return bool(content) and "type" not in content and not content.keys() <= set(_INNER)
    return bool(content) and all(isinstance(part, dict) and _is_value(part) for part in content)


def _is_thinking(part: Any) -> bool:
    return isinstance(part, dict) and (part.get("type") in _THINKING_PARTS or part.get("thought") is True)


def text_of(part: Any, depth: int = 0) -> str:
    """Return the text of a content part; `""` for a part with a `type` but no text. Raises `TypeError` otherwise."""
    if isinstance(part, str):
        return part
    if part is None:
        return ""
    if depth > 8:
        raise TypeError
    if isinstance(part, list):
        return "".join(text_of(inner, depth + 1) for inner in part)
    if not isinstance(part, dict):
        raise TypeError
    for name in _INNER:
        if part.get(name) is not None:
            return text_of(part[name], depth + 1)
    if "type" in part or not part.keys().isdisjoint(_INNER):
        return ""
    raise TypeError


def _split_parts(content: Any) -> tuple[str, str]:
    """Return `(text, thinking)` of a message's content, which is a list of parts for some reasoning models."""
    if isinstance(content, str):
        return content, ""
    parts = content if isinstance(content, list) else [content]
    text = "".join(text_of(part) for part in parts if not _is_thinking(part))
    return text, "".join(text_of(part) for part in parts if _is_thinking(part))


def _reasoning(message: JsonObject) -> str | None:
    for name in _REASONING:
        if text := _optional(message.get(name)):
            return text
    for name in ("reasoning_details", "thinking_blocks"):
        details = message.get(name)
        if isinstance(details, list) and (text := "".join(_details(details))):
            return text
    inner = message.get("provider_specific_fields")
    return _reasoning(inner) if isinstance(inner, dict) else None


def _details(details: list[Any]) -> Iterator[str]:
    for detail in details:
        if isinstance(detail, dict) and (text := _optional(detail)):
            yield text


def _optional(value: Any) -> str | None:
    try:
        return text_of(value) or None
    except TypeError:
        return None


class ReplyEnd(Enum):
    """How an answer ended."""

    WHOLE = auto()
    FILTERED = auto()
    BROKEN_OFF = auto()


def _set_of(text: str) -> frozenset[str]:
    return frozenset(text.split())


_STOP = _set_of(
    "stop eos eos_token end_turn stop_sequence stop_token end_of_text complete completed finished finish normal end "
    "done"
)
_LENGTH = _set_of(
    "length max_tokens max_output_tokens max_length model_length token_limit length_limit error_limit max_new_tokens "
    "model_context_window_exceeded context_length_exceeded repetition_truncation"
)
# Words that report a limit. They may be a part of a longer reason, such as xAI's `REASON_MAX_LEN`.
_CUT = re.compile(r"length|max_(?:\w{1,20}_)?(?:len|tokens?)\b|token_limit|truncat|context_window")
_CALLS = _set_of("tool_calls tool_call tool_use function_call function_calls")
# Words that report a content filter. They may be a part of a longer reason: `content_filter: PROHIBITED_CONTENT`.
_FILTER = re.compile(
    r"filter|safety|sensitive|moderat|blocked|blocklist|prohibit|spii|recitation|guardrail|toxic|refus|polic"
    r"|flagged|unsafe"
    r"|risk|censor|violat"
)
_BROKEN = re.compile(
    r"error|abort|cancel|fail|interrupt|time_?d?_?out|insufficient|overload|malformed|incomplete|unavailable"
    r"|disconnect|preempt"
    r"|connection|network|server"
)


def read_finish(reason: object) -> tuple[str | None, ReplyEnd]:
    """Return OpenAI's equivalent of a finish reason (or the reason itself if there is none), and how the answer ended.
    SGLang's reason may be an object with a `type`.

    Sources: the providers' API references. Gateways pass on Gemini's and Cohere's own reasons unchanged.
    """
    if isinstance(reason, dict):
        reason = reason.get("type")
    if not isinstance(reason, str) or not reason:
        return None, ReplyEnd.WHOLE
    # only 200 characters are searched, because a search of a long reason would block the event loop
    reason = reason[:200]
    word = reason.strip().lower().replace("-", "_").replace(" ", "_").removeprefix("finishreason.")  # a Python enum's
    if word in _STOP:
        return "stop", ReplyEnd.WHOLE
    if word in _LENGTH or _CUT.search(word):
        return "length", ReplyEnd.WHOLE
    if word in _CALLS:
        return "tool_calls", ReplyEnd.WHOLE
    if "malformed" in word or (_BROKEN.search(word) and not _FILTER.search(word)):
        return reason, ReplyEnd.BROKEN_OFF
    if _FILTER.search(word):
        return "content_filter", ReplyEnd.FILTERED
    return reason, ReplyEnd.WHOLE


def finish_of(choice: JsonObject) -> object:
    """Return the finish reason of a choice, or the model's own reason if only the latter reports a cut or a failure.

    The model's own reason is `native_finish_reason` at OpenRouter, and `stop_reason` at gateways of Anthropic. vLLM's
    `stop_reason` is a stop string.
    """
    native, stop = choice.get("native_finish_reason"), choice.get("stop_reason")
    own = native or (stop if read_finish(stop)[0] == "length" else None)
    return later_finish(own, choice.get("finish_reason"))


def later_finish(reason: object, later: object) -> object:
    """Return the finish reason after a later event, which cannot revoke a cut, a filter, or a failure.

    >>> later_finish("length", "stop"), later_finish("stop", "tool_calls"), later_finish("stop", None)
    ('length', 'tool_calls', 'stop')
    """
    return later if later and loss_of(later) >= loss_of(reason) else reason or None


def loss_of(reason: object) -> int:
    """Return what is lost of an answer with this finish reason. 0 means nothing, 1 the end, 2 the whole answer."""
    finish, ending = read_finish(reason)
    return 2 if ending is not ReplyEnd.WHOLE else int(finish == "length")


def details_of(payload: JsonObject, choice: JsonObject, message: JsonObject) -> JsonDict | None:
    """Return the fields of an answer that `Completion` does not have, for outputs in the Batch format.

    Return None if there are no such fields, or if they are nested too deeply for a file.
    """
    extras = {"body": _rest(payload, _PAYLOAD), "choice": _rest(choice, _CHOICE), "message": _rest(message, _MESSAGE)}
    kept = {name: value for name, value in extras.items() if value}
    return kept if can_go_on(kept) else None


def _rest(value: JsonObject, known: frozenset[str]) -> JsonDict:
    return {name: inner for name, inner in value.items() if name not in known and inner is not None}


def can_go_on(value: Any) -> bool:
    """Return whether files, frames and results can hold `value`: it is valid JSON and not nested too deeply."""
    try:
        text = orjson.dumps(value)
        # quick test: at most 32 brackets make at most 32 levels, which is our limit
        if text.count(b"{") + text.count(b"[") <= 32:
            return True
        for _ in range(254 - 32):  # exact test: orjson takes 254 levels; lists around `value` leave it 32 of them
            value = [value]
        return bool(orjson.dumps(value))
    except TypeError:
        return False


ENDED: JsonDict = {}
"""The end of a stream, as an event."""


class CutOffError(Exception):
    """The stream ended before the answer was complete."""


def is_stream(content_type: str, body: bytes) -> bool:
    """Return whether a body that is not JSON is a stream of events, or has one JSON object per line."""
    start = body.lstrip()
    if content_type.startswith("text/event-stream") or start.startswith(EVENT_STARTS):
        return True
    return start.startswith(b"{") and b"chat.completion.chunk" in start[:1000]


def first_event(body: bytes) -> Any:
    """Return the data of the first event that is JSON, or None. Some servers send an error as a stream of events."""
    for _, data in events_in(body):
        try:
            return orjson.loads(data)
        except orjson.JSONDecodeError:
            continue
    return None


def is_end(data: bytes) -> bool:
    """Return whether an event's data are a stream's end mark. Some servers put quotes or spaces around the mark."""
    return data.strip(b" \t\"'").lower() == _END


def events_in(body: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield the name and the data of each event; an event's data lines are joined by a line break.

    An object or an end mark after a complete object is a separate event, even without an empty line before it. A line
    with the field `error` (older llama-server) is an event named `error`.
    """
    name, lines = b"", list[bytes]()
    for line in body.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n"):
        if line.startswith(b"data:"):
            data = line[5:].removeprefix(b" ")
            if lines and data.startswith((b"{", b"[")) and lines[-1].endswith(b"}"):
                yield name, b"\n".join(lines)
                name, lines = b"", []
            lines.append(data)
        elif line.startswith(b"event:"):
            if lines:
                yield name, b"\n".join(lines)
                lines = []
            name = line[6:].strip()
        elif line.startswith(b"error:"):
            yield b"error", line[6:].strip()
        elif line.startswith(b"{"):  # no event stream, but one JSON object per line
            yield b"", line
        elif not line:
            if lines:
                yield name, b"\n".join(lines)
            name, lines = b"", []
    if lines:
        yield name, b"\n".join(lines)


_OLDER = -1
"""The index of a call in the older form (`function_call`), which some gateways send in addition to the newer form."""


class UnreadableEventError(ValueError):
    """An event of a stream is not usable. The text describes the event."""


class GrowingMessage:
    """A message whose fields arrive in pieces."""

    def __init__(self) -> None:
        self._details: JsonDict = {}
        self._texts: dict[str, list[str]] = {}
        self._calls: dict[int, list[_Call]] = {}
        self._calls_by_id: dict[tuple[int, str], _Call] = {}
        self._starts: dict[str, tuple[str, str]] = {}
        self._hidden: set[object] = set()
        self._has_deltas = False

    def add(self, delta: JsonDict) -> None:
        """Add the next pieces. Raises `TypeError` if the content is not text.

        Instead of pieces, a delta may have one of these fields: `message`, a whole message, which may repeat earlier
        deltas; `start`, the beginnings of texts, which the next pieces may repeat; `again`, the name of a text that
        the next pieces may repeat from its beginning; `hidden`, the number of an item whose pieces are not added.
        """
        if "message" in delta:
            self._add_message(delta["message"])
        elif "start" in delta:
            for name, text in delta["start"].items():
                self._starts[name] = (self._text_of(name), text)
                self._texts[name] = []
        elif "again" in delta:
            self._starts[delta["again"]] = ("", self._text_of(delta["again"]))
            self._texts[delta["again"]] = []
        elif "hidden" in delta:
            self._hidden.add(delta["hidden"])
        elif not self._hidden or delta.get("item") not in self._hidden:
            self._add(delta)
            if not self._has_deltas:
                self._has_deltas = bool(self._calls) or any(map(any, self._texts.values()))

    def _add_message(self, message: JsonDict) -> None:
        """Add a whole message. If earlier deltas had only a part of its text or calls, they are replaced."""
        calls = message.get("tool_calls")
        if isinstance(calls, list) and len(calls) > sum(map(len, self._calls.values())):
            self._calls.clear()
            self._calls_by_id.clear()
            calls = [{**call, "index": at} for at, call in enumerate(calls)]
            message = {**message, "tool_calls": calls}
        for name, value in message.items():
            if self._has_deltas and isinstance(value, str) and self._has_text(name):
                so_far = self._text_of(name)
                if value.startswith(so_far) and not self._starts.get(name):
                    self._texts[name] = [value]
            elif not (self._has_deltas and self._has(name)):
                self._add({name: value})

    def _has(self, name: str) -> bool:
        if name in {"tool_calls", "function_call"}:
            return bool(self._calls)
        if name in _REASONING:  # a server may repeat its reasoning under another name
            return any(map(self._has_text, _REASONING))
        return self._has_text(name) or name in self._details

    def _has_text(self, name: str) -> bool:
        return name in self._starts or any(self._texts.get(name, ()))

    def _add(self, delta: JsonDict) -> None:
        for name, value in delta.items():
            if type(value) is str and name not in _NO_TEXT:  # the case of nearly every piece
                self._text(name).append(value)
            elif name == "tool_calls":
                for piece in value or ():
                    self._add_call(piece)
            elif name == "function_call" and isinstance(value, dict):  # a call in the older form
                self._add_call({"index": _OLDER, "function": value})
            elif name in {"reasoning_details", "annotations"} and isinstance(value, list):
                self._details.setdefault(name, []).extend(value)
            elif name == "content" and isinstance(value, list):  # Mistral's reasoning models
                for part in value:
                    self._text("reasoning_content" if _is_thinking(part) else name).append(text_of(part))
            elif name == "content" and value is not None and not isinstance(value, str):
                raise TypeError

    def _add_call(self, piece: JsonDict) -> None:
        index, identity = piece.get("index"), piece.get("id")
        place = index if isinstance(index, int) else 0
        calls = self._calls.setdefault(place, [])
        call = self._calls_by_id.get((place, identity)) if identity else None
        if call is None:
            if not calls or calls[-1].is_followed_by(piece):
                calls.append(_Call())
            call = calls[-1]
            if identity:
                self._calls_by_id[place, identity] = call
        call.add(piece)

    def _text(self, name: str) -> list[str]:
        return self._texts.setdefault(name, [])

    def _text_of(self, name: str) -> str:
        parts = self._texts.get(name, [])
        parts[:] = ["".join(parts)]
        earlier, start = self._starts.get(name, ("", ""))
        return earlier + continued(start, parts[0])

    def as_dict(self) -> JsonDict:
        """Return the message so far."""
        message = self._details | {name: self._text_of(name) for name in self._texts}
        places = [index for index in sorted(self._calls) if index != _OLDER] or list(self._calls)
        calls = distinct([call.as_dict() for index in places for call in self._calls[index]])
        return message | ({"tool_calls": calls} if calls else {})


def distinct(calls: list[JsonDict]) -> list[JsonDict]:
    """Return tool calls with distinct ids, because results are matched by id. Ids that are numbers become texts.

    >>> [call["id"] for call in distinct([{"id": "a"}, {"id": "a"}, {"id": "a-2"}, {"id": 1}, {"id": ""}, {"id": " "}])]
    ['a', 'a-3', 'a-2', '1', '', '']
    """
    given = {str(call.get("id")) for call in calls}
    taken: set[str] = set()
    numbers: dict[str, int] = {}
    for call in calls:
        if not isinstance(call.get("id"), str | int):
            continue
        identity = new = str(call["id"]).strip()
        while new and (new in taken or (new != identity and new in given)):
            numbers[identity] = numbers.get(identity, 1) + 1
            new = f"{identity}-{numbers[identity]}"
        call["id"] = new
        taken.add(new)
    return calls


def continued(start: str, pieces: str) -> str:
    """Return `start` followed by `pieces`, which may repeat it.

    >>> continued("Paris", "Pa"), continued("Paris", "Paris is"), continued("Pa", "ris")
    ('Paris', 'Paris is', 'Paris')
    """
    if start.startswith(pieces):
        return start
    return pieces if pieces.startswith(start) else start + pieces


# Arguments up to this length are parsed whenever a piece may begin another call (0.2 s in pieces of 20 bytes).
_LONGEST_COMPARED = 64 * 1024


class _Call:
    """A tool call whose name and arguments arrive in pieces."""

    __slots__ = ("_arguments", "_fields", "_is_custom", "_length", "_name")

    def __init__(self) -> None:
        self._fields: JsonDict = {"type": "function"}
        self._name = ""
        self._arguments: list[str] = []
        self._length = 0
        self._is_custom = False

    def is_followed_by(self, piece: JsonDict) -> bool:
        """Return whether `piece` begins another call. Parallel calls may all have the index 0, or no index.

        A piece with a name begins another call if its id differs, or if it has no id and this call's arguments are
        complete. While this call has no arguments, the piece's name must differ, too.
        """
        function = _function_in(piece)
        name, identity = function.get("name"), self._fields.get("id")
        if not name:
            return False
        if piece.get("id") and identity:
            return bool(piece["id"] != identity and (self._length or (self._name and name != self._name)))
        if not self._length or not self._name:
            return False
        if piece.get("id"):
            return True
        return bool(function.get("arguments") or name != self._name) and self._is_whole

    @property
    def _is_whole(self) -> bool:
        """Whether the arguments are a complete object. Long arguments are never parsed, and count as incomplete."""
        if self._length > _LONGEST_COMPARED:
            return False
        try:
            return isinstance(orjson.loads("".join(self._arguments)), dict)
        except ValueError:
            return False

    def add(self, piece: JsonDict) -> None:
        """Add the next piece. Raises `TypeError` if the name or the arguments are not text, and `UnreadableEventError`
        if the name is too long."""
        self._fields |= {name: piece[name] for name in ("id", "type") if piece.get(name)}
        function = _function_in(piece)
        self._is_custom = self._is_custom or "custom" in piece
        name, arguments = function.get("name") or "", function.get("input" if self._is_custom else "arguments") or ""
        if not isinstance(name, str) or not isinstance(arguments, str):
            raise TypeError
        repeats = bool(name) and name == self._name  # some servers repeat the name with each piece
        if repeats and len(arguments) == self._length and self._is_whole and arguments == "".join(self._arguments):
            return  # some servers repeat the whole call at the end
        if name and not repeats:  # some servers repeat the beginning of the name in each piece
            self._name = name if name.startswith(self._name) else self._name + name
            if len(self._name) > LONGEST_CALLED:
                raise UnreadableEventError(
                    f"a call of a function whose name has more than {LONGEST_CALLED:,} characters"
                )
        self._arguments.append(arguments)
        self._length += len(arguments)

    def as_dict(self) -> JsonDict:
        """Return the call so far."""
        self._arguments[:] = ["".join(self._arguments)]
        if self._is_custom:
            return {**self._fields, "custom": {"name": self._name, "input": self._arguments[0]}}
        return {**self._fields, "function": {"name": self._name, "arguments": self._arguments[0]}}


def _function_in(piece: JsonDict) -> JsonDict:
    """Return the name and arguments in a piece of a call. Some servers do not put them into `function`."""
    for name in ("function", "custom"):
        if isinstance(inner := piece.get(name), dict):
            return inner
    return piece


# After each call of `show`, the preview rests ten times as long as the call took. A short answer takes microseconds, so
# it is shown with nearly every piece. An answer of a megabyte takes milliseconds, and is shown a few times per second.
_REST_PER_SHOWING = 10


class StreamPreview:
    """Shows a streamed answer while it arrives.

    Each call of `show` takes time in proportion to the answer's length. Therefore each call is followed by a rest, in
    which pieces are only collected. Otherwise, a long answer in small pieces would block the event loop for minutes.

    Unreadable events are skipped, because the complete body is read again at the end.
    """

    def __init__(
        self,
        show: Callable[[Growing], None],
        delta_in: Callable[[JsonDict], JsonDict],
        *,
        inline: bool,
        later: Callable[[float, Callable[[], None]], asyncio.TimerHandle | None],
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """`show` is called with the answer so far. `delta_in` returns an event's delta. `inline`: keep reasoning in
        the text. `later` schedules a call of a function in the given number of seconds."""
        self._show, self._inline, self._delta_in = show, inline, delta_in
        self._later, self._clock = later, clock
        self._line: list[bytes] = []
        self._message = GrowingMessage()
        self._has_grown, self._rests = False, False
        self._timer: asyncio.TimerHandle | None = None

    def feed(self, piece: bytes) -> None:
        """Take the next piece of the body."""
        end = piece.rfind(b"\n")
        if end < 0:  # pieces are joined only when the line ends: otherwise, each piece would copy the line again
            self._line.append(piece)
            return
        lines = b"".join((*self._line, piece[:end])).split(b"\n")
        self._line = [piece[end + 1 :]]
        self._has_grown |= sum(map(self._add, lines)) > 0  # `sum` instead of `any`, which would stop at the first line
        if not self._rests:
            self._go_on()

    def close(self) -> None:
        """Show nothing more."""
        if self._timer is not None:
            self._timer.cancel()

    def _go_on(self) -> None:
        self._rests = self._has_grown
        if self._has_grown:
            begun = self._clock()
            self._show(self._so_far())
            self._has_grown = False
            self._timer = self._later(_REST_PER_SHOWING * (self._clock() - begun), self._go_on)

    def _add(self, line: bytes) -> bool:
        """Add a line of the stream. Return whether the line adds something to the answer."""
        try:
            delta = self._delta_in(orjson.loads(line.strip().removeprefix(b"data:")))
            self._message.add(delta)
        except (ValueError, TypeError, KeyError, IndexError, AttributeError):
            return False
        return bool(delta)

    def _so_far(self) -> Growing:
        message = self._message.as_dict()
        text, reasoning = read_message(message)
        if not self._inline:
            marked, text = split_marked(without_broken_mark(text))
            reasoning = "\n".join(filter(None, (reasoning, marked)))
        calls = [call for call in message.get("tool_calls", ()) if _function_in(call)["name"]]
        return Growing(text, (reasoning or "").rstrip(), calls)
