"""OpenAI's chat completions, the format of most endpoints, to which replies of all dialects are converted.

Format: platform.openai.com/docs/api-reference/chat, with the pages on streaming.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import orjson

from promptmill.backends.openai.chat_completion import ENDED, CutOffError, GrowingMessage, finish_of, later_finish
from promptmill.backends.openai.citations import LISTS
from promptmill.backends.openai.dialects import dialect
from promptmill.backends.openai.dialects.dialect import WrittenParameters, bearer, in_v1, same_url
from promptmill.backends.openai.providers import ProviderProfile, translate
from promptmill.backends.openai.schema_forms import asked_of
from promptmill.core.request import CACHE_MARKS, ROLES, Conversation, FileKind, FilePart, Message, TextPart
from promptmill.core.values import JsonDict, JsonObject

NAME = "openai"
PATH = "/chat/completions"
base, url, headers = in_v1, same_url, bearer
STREAMED: JsonObject = {"stream": True, "stream_options": {"include_usage": True}}
FILLED: frozenset[str] = frozenset()
MARKS, MARKED = CACHE_MARKS, ROLES
FILES: frozenset[FileKind] = frozenset({"pdf", "audio"})
_ERROR_TEXTS = ("message", "msg", "detail")
_STARTS = {role: b'{"role":"%b","content":' % role.encode() for role in ROLES}


# Requests


def parameters(profile: ProviderProfile, model: str, sampling: JsonObject, extra: JsonObject) -> WrittenParameters:
    """Return the parameters of a request."""
    ours, own, words = {**sampling}, {**extra}, ""
    thinking = own.pop("enable_thinking", None)
    if (wanted := ours.pop("response_format", None)) is not None:
        form, words = asked_of(profile.json, wanted)
        ours |= {} if form is None else {"response_format": form}
    body, refused = translate(profile, model, ours | own)
    if thinking is not None:
        body["enable_thinking"] = thinking
    return WrittenParameters({"model": model, **body}, refused, words)


def conversation(conversation: Conversation, images: Mapping[str, bytes]) -> list[bytes]:
    """Return the field `messages`."""
    if not images:
        return [b'"messages":[', b",".join(map(_message, conversation.messages)), b"]"]
    pieces = [b'"messages":[']
    for message in conversation.messages:
        pieces += [*_pieces(message, images), b","]
    return [*pieces[:-1], b"]"]


def _message(message: Message) -> bytes:
    if not message.extra and isinstance(message.content, str):
        start = _STARTS.get(message.role) or b'{"role":"%b","content":' % message.role.encode()
        return start + orjson.dumps(message.content) + b"}"
    return b"".join(_pieces(message, {}))


def _pieces(message: Message, images: Mapping[str, bytes]) -> list[bytes]:
    head = orjson.dumps({"role": message.role, **(message.extra or {})})[:-1]
    if not isinstance(message.content, tuple):
        return [b'%b,"content":%b}' % (head, orjson.dumps(message.content))]
    pieces = [head + b',"content":[']
    for part in message.content:
        marks = dialect.more_fields(part.marks)
        if isinstance(part, TextPart):
            pieces.append(b'{"type":"text","text":%b%b}' % (orjson.dumps(part.text), marks))
        elif part.kind == "audio":
            pieces += [b'{"type":"input_audio","input_audio":', dialect.input_audio(images[part.source]), marks, b"}"]
        elif isinstance(part, FilePart):
            start = b'{"type":"file","file":{"filename":%b,"file_data":' % dialect.file_name(part)
            pieces += [start, images[part.source], b"}%b}" % marks]
        else:
            detail = b',"detail":' + orjson.dumps(part.detail) if part.detail else b""
            pieces += [b'{"type":"image_url","image_url":{"url":', images[part.source], b"%b}%b}" % (detail, marks)]
        pieces.append(b",")
    pieces[-1] = b"]}"
    return pieces


# Replies


def completion(*_: Any, **__: Any) -> JsonDict | None:
    """Return None: a reply already has this format, or is not an answer."""
    return None


def assemble(events: Iterator[JsonDict]) -> JsonDict:
    """Return the completion object for a complete stream, or the first event that reports an error.

    If a part of the answer precedes the error, the `choices` and the usage of this part are added to the error's event.

    Raises `CutOffError` if the stream has neither a finish reason nor an end mark.
    """
    completion: JsonDict = {}
    messages: dict[int, GrowingMessage] = {0: GrowingMessage()}
    logprobs: dict[str, list[Any]] = {}
    usage: JsonDict = {}
    finish: Any = None
    start = _Start()
    ended = False
    for event in events:
        if ended := event is ENDED:
            break
        if later := event.get("usage") or _of_groq(event):
            usage = dialect.grown_usage(usage, later)
        known = {"usage": usage or None, "service_tier": event.get("service_tier") or completion.get("service_tier")}
        if not LISTS.isdisjoint(completion):
            known |= {name: completion[name] for name in LISTS & completion.keys() - event.keys()}
        if ("choices" not in event or "error" in event) and (said := _error_in(event)) is not None:
            return said | known | ({"choices": [begun]} if (begun := messages[0].as_dict()) else {})
        completion = event | known
        for choice in event.get("choices") or ():
            index = choice.get("index") or 0
            if "usage" in choice:  # Moonshot has the usage here
                usage = dialect.grown_usage(usage, choice["usage"])
            if index == 0 and start.is_new(event.get("id"), choice):
                messages, logprobs, finish = {0: GrowingMessage()}, {}, None
            messages.setdefault(index, GrowingMessage()).add(_delta(choice))
            if index == 0:
                finish = later_finish(finish, finish_of(choice))
                _add_logprobs(logprobs, choice.get("logprobs"))
    if finish is None and not ended:
        raise CutOffError
    whole, *others = (messages[index].as_dict() for index in sorted(messages))
    choice = {"index": 0, "message": whole, "logprobs": logprobs or None, "finish_reason": finish}
    choices = [choice, *({"message": other} for other in others)] if whole or finish or others else []
    return {**completion, "object": "chat.completion", "usage": usage or None, "choices": choices}


class _Start:
    """Recognizes that a stream begins again: a gateway has repeated the request, because its first stream was cut off.

    Then an event has another id, and a role, which the pieces before it lacked. The new answer replaces the old one at
    its first piece. Some servers send another id, or the role, with each event.
    """

    def __init__(self) -> None:
        self._id: object = None
        self._has_roles, self._is_due = True, False

    def is_new(self, identity: object, choice: JsonDict) -> bool:
        """Return whether this event has the first piece of another answer. `identity`: the event's id."""
        delta = choice.get("delta") or {}
        role = bool(delta.get("role"))
        if role and not self._has_roles and identity != self._id and not choice.get("finish_reason"):
            self._is_due = True
        self._id = identity
        if not any(value for name, value in delta.items() if name != "role"):
            return False
        self._has_roles = role
        is_new, self._is_due = self._is_due, False
        return is_new


def _error_in(event: JsonDict) -> JsonDict | None:
    if event.get("error"):
        return event
    if "choices" in event or "usage" in event:
        return None
    if event.get("object") == "error":
        return event
    return {"error": event} if any(isinstance(event.get(name), str) for name in _ERROR_TEXTS) else None


def _of_groq(event: JsonDict) -> Any:
    own = event.get("x_groq")
    return own.get("usage") if isinstance(own, dict) else None


def _add_logprobs(logprobs: dict[str, list[Any]], piece: Any) -> None:
    if isinstance(piece, dict):
        for name, values in piece.items():
            logprobs.setdefault(name, []).extend(values if isinstance(values, list) else ())


def delta_in(event: JsonDict) -> JsonDict:
    """Return an event as a delta."""
    choice = event["choices"][0]
    return {} if choice.get("index", 0) else _delta(choice)


def _delta(choice: JsonDict) -> JsonDict:
    """Return the delta of a choice. If the delta is empty, return a delta with the choice's whole `message`."""
    delta: JsonDict = choice.get("delta") or {}
    if (message := choice.get("message")) and not any(value for name, value in delta.items() if name != "role"):
        return {"message": message}
    return delta
