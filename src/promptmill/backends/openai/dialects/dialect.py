"""A dialect: the format of an API's requests and replies, as pure functions. Each other module here is a dialect.

    parameters + conversation + images ─▶ the API's body          `parameters`, `conversation`, `url`, `headers`
    the API's reply, or its events ─▶ a chat completion            `assemble`, `completion`, `delta_in`

Replies are converted to chat completions, which `reply.read_payload` reads, so that one place interprets the answers,
usage and failures of all APIs.
"""

from __future__ import annotations

import json
import re
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import orjson

from promptmill.backends.openai.providers import ProviderProfile
from promptmill.core.bounds import MOST_TOKENS
from promptmill.core.errors import Code, PromptmillError, Words
from promptmill.core.request import SYSTEM_ROLES, Conversation, FileKind, FilePart, Message, Part, TextPart
from promptmill.core.values import JsonDict, JsonObject, json_text, read_json

MOST_MARKS = 4
"""The largest number of cache marks in a request: Anthropic refuses more, and OpenAI caches no more prompt prefixes."""
_VERSION = re.compile(r"v\d\w*")


class WrittenParameters(NamedTuple):
    """Request parameters in the format of an API."""

    body: JsonDict
    """The fields of the body, except for the conversation."""
    refused: list[str]
    """The parameters that the API does not support."""
    words: str = ""
    """Instructions to add to the conversation."""


class Dialect(Protocol):
    """The interface of a dialect module."""

    NAME: str
    """The name in the configuration."""
    PATH: str
    """The path of requests, after the base URL. A complete address ends with this path, which shows the dialect."""
    STREAMED: JsonObject
    """Fields of the body that request a streamed reply."""
    FILLED: frozenset[str]
    """Fields of the body that a parameter must not set, such as the conversation."""
    MARKS: frozenset[str]
    """The `CACHE_MARKS` that parts may have."""
    MARKED: frozenset[str]
    """The roles of the messages whose parts may have cache marks."""
    FILES: frozenset[FileKind]
    """The kinds of files that the API takes without conversion."""

    def base(self, base: str) -> str:
        """Return the path of the API's base URL. `base`: the path that the user wrote; `""` if it was only a host."""
        ...

    def url(self, url: str, model: str, *, stream: bool) -> str:
        """Return the URL of a request. `url`: the endpoint's URL, which ends with `PATH`."""
        ...

    def headers(self, key: str) -> dict[str, str]:
        """Return the headers of a request, except for its content type. `key` may be empty."""
        ...

    def parameters(
        self, profile: ProviderProfile, model: str, sampling: JsonObject, extra: JsonObject
    ) -> WrittenParameters:
        """Return the parameters in the API's format. `extra` uses names of chat completions or the API's own names."""
        ...

    def conversation(self, conversation: Conversation, images: Mapping[str, bytes]) -> list[bytes]:
        """Return the fields of the body for the conversation, in pieces, without the body's braces.

        `images` maps sources of images and files to the JSON string of a `data:` URL or of a web image's URL. Raises
        `PromptmillError` for a part that the API does not support, and orjson's errors.
        """
        ...

    def completion(self, payload: JsonDict, headers: Mapping[str, str], /) -> JsonDict | None:
        """Convert a reply to a chat completion; None if the reply is not an answer, such as an error."""
        ...

    def assemble(self, events: Iterator[JsonDict]) -> JsonDict:
        """Return the reply that the events of a stream make up, or the stream's error. The event `ENDED` marks the end.

        Raises `CutOffError` if the stream was cut off.
        """
        ...

    def delta_in(self, event: JsonDict) -> JsonDict:
        """Return the part of the answer in a stream's event, as the `delta` of a chat completion stream."""
        ...


def bearer(key: str) -> dict[str, str]:
    """Return the header for a key."""
    return {"Authorization": f"Bearer {key}"} if key else {}


def same_url(url: str, model: str, *, stream: bool) -> str:
    """Return the endpoint's URL unchanged, because `model` and `stream` are fields of the body."""
    del model, stream
    return url


def in_v1(base: str) -> str:
    """Return the path of a base URL; a host without a path means `/v1`."""
    return base or "/v1"


def versioned(base: str, version: str) -> str:
    """Return the path of a base URL. If the path does not end with a version, `version` is added."""
    return base if _VERSION.fullmatch(base.rpartition("/")[2]) else f"{base}/{version}"


def set_of(words: str) -> frozenset[str]:
    """Return the set of words in a text."""
    return frozenset(words.split())


def data_url(encoded: bytes) -> tuple[bytes, bytes] | None:
    """Return the media type and the base64 text of an encoded image; None for a web image."""
    if not encoded.startswith(b'"data:'):
        return None
    start = encoded.index(b";base64,")
    return encoded[6:start], encoded[start + 8 : -1]


def file_name(part: FilePart) -> bytes:
    """Return the name of a file as JSON, for an API that requires file names."""
    name = part.name or (f"file.{part.kind}" if part.source[:5].lower() == "data:" else Path(part.source).name)
    return orjson.dumps(name)


def input_audio(encoded: bytes) -> bytes:
    """Return an encoded recording as the object `input_audio` of OpenAI's APIs."""
    media_type, data = data_url(encoded) or (b"", b"")
    return b'{"data":"%b","format":"%b"}' % (data, media_type.removeprefix(b"audio/"))


def text_of_message(message: Message) -> str:
    """Return the text of a message that may only have text parts, such as a system message.

    Raises `PromptmillError` (`unsupported`) if it has other parts.
    """
    content = message.content
    if not isinstance(content, tuple):
        return content or ""
    texts = [part.text for part in content if isinstance(part, TextPart)]
    if len(texts) < len(content):
        what = f"an image or file in a message with the role {message.role}"
        raise unsupported(what, "Move it into a message of the user.")
    return "".join(texts)


def marked(
    conversation: Conversation, characters: int, mark: JsonObject, *, roles: Container[str], least: int
) -> Conversation:
    """Return a conversation with the cache mark `mark` after the first `characters` characters of its texts.

    If the mark is in the middle of a text, the text becomes two parts. If these characters end in a message whose role
    is not in `roles`, the last part before this message gets the mark. A system prompt of at least `least` bytes also
    gets a mark, because other requests may share only the system prompt.
    """
    messages, left = [*conversation.messages], characters
    ends, last = dict[tuple[int, int], tuple[str, str]](), dict[tuple[int, int], tuple[str, str]]()
    for at, message in enumerate(messages):
        for place, part in enumerate(_parts(message)):
            if left <= 0 or not isinstance(part, TextPart) or not part.text:
                continue
            if message.role in roles:
                last = {(at, place): (part.text[:left], part.text[left:])}
                is_long = message.role in SYSTEM_ROLES and len(part.text.encode("utf-8", "replace")) >= least
                ends |= last if is_long else {}
            left -= len(part.text)
    for (at, place), (before, after) in [*(ends | last).items()][: -MOST_MARKS - 1 : -1]:
        parts = _parts(message := messages[at])
        split = (TextPart(before, mark), *([TextPart(after)] if after else []))
        messages[at] = replace(message, content=(*parts[:place], *split, *parts[place + 1 :]))
    return Conversation(tuple(messages))


def _parts(message: Message) -> tuple[Part, ...]:
    return message.content if isinstance(message.content, tuple) else (TextPart(message.content or ""),)


def unsupported(what: str, remedy: Words) -> PromptmillError:
    """Return the error for a request with a part that the API does not support. `remedy`: the user's next step."""
    return PromptmillError(Code.UNSUPPORTED, f"The API of this endpoint does not accept {what}.", remedy)


def parted(conversation: Conversation) -> tuple[list[Message], list[Message]]:
    """Return the system messages and the other turns. If all messages are system messages, the last becomes a turn."""
    system = [message for message in conversation.messages if message.role in SYSTEM_ROLES]
    turns = [message for message in conversation.messages if message.role not in SYSTEM_ROLES]
    if system and not turns:
        turns = [replace(system.pop(), role="user")]
    return system, turns


def calls_of(message: Message) -> Iterator[tuple[str, str, JsonDict, JsonObject]]:
    """Yield `(id, name, arguments, call)` for each tool call in an assistant's turn."""
    calls = (message.extra or {}).get("tool_calls")
    for call in calls if isinstance(calls, list | tuple) else ():
        function = call.get("function") if isinstance(call, Mapping) else None
        if isinstance(function, Mapping) and (name := function.get("name")):
            yield str(call.get("id") or ""), str(name), object_in(function.get("arguments")), call


def object_in(value: Any) -> JsonDict:
    """Return the arguments of a tool call as an object; the call may have them as JSON text."""
    if isinstance(value, str):
        try:
            value = read_json(value)
        except json.JSONDecodeError:
            return {"arguments": value} if value else {}
    return dict(value) if isinstance(value, Mapping) else {}


def exact_json(value: Any) -> bytes:
    """Return a value as JSON, with whole numbers of any length. Raises `TypeError` for values that are not JSON."""
    try:
        return json_text(value).encode()
    except (UnicodeEncodeError, RecursionError):
        raise TypeError("half a surrogate pair, or nested too deeply") from None


def functions_in(tools: Any) -> Iterator[tuple[JsonObject, bool]]:
    """Yield each tool of a request, with a flag that tells whether it is a function in the format of chat completions.

    For such a function, the object in its field `function` is yielded instead of the tool.
    """
    for tool in tools if isinstance(tools, Sequence) and not isinstance(tools, str) else ():
        inner = tool.get("function") if isinstance(tool, Mapping) else None
        yield (inner, True) if isinstance(inner, Mapping) else (tool, False)


def named_function(choice: Any) -> str | None:
    """Return the name of the function that a `tool_choice` of chat completions requires."""
    match choice:
        case {"type": "function", "function": {"name": str(name)}}:
            return name
    return None


def call(identity: str, name: Any, arguments: Any, **more: Any) -> JsonDict:
    """Return a tool call in the format of chat completions."""
    text = arguments if isinstance(arguments, str) else orjson.dumps(arguments or {}).decode()
    return {"id": identity, "type": "function", "function": {"name": name, "arguments": text}, **more}


def chat_completion(
    payload: JsonObject, known: frozenset[str], message: JsonDict, finish: Any, usage: Any, **choice: Any
) -> JsonDict:
    """Return a chat completion with these parts. Fields of `payload` that are not in `known` are kept."""
    kept = {name: value for name, value in payload.items() if name not in known}
    message = {"role": "assistant", **{name: value for name, value in message.items() if value}}
    message.setdefault("content", "")
    whole = {"index": 0, "message": message, "finish_reason": finish, **choice}
    return {**kept, "object": "chat.completion", "choices": [whole], "usage": usage}


def count_of(value: object) -> int | None:
    """Return a count of tokens, which some gateways write as a float or a text; None for other values.

    >>> [*map(count_of, (10, 10.0, "10", 1.5, True, -1, None))]
    [10, 10, 10, None, None, None, None]
    """
    if isinstance(value, str) and value.isdecimal() and len(value) <= len(str(MOST_TOKENS)):
        return int(value)
    if type(value) is int or (isinstance(value, float) and value.is_integer()):
        return int(value) if 0 <= value <= MOST_TOKENS else None
    return None


def listed(value: object, name: str) -> list[Any]:
    """Return the list in a field of an object; `[]` if the field is missing."""
    found = value.get(name) if isinstance(value, Mapping) else None
    return found if isinstance(found, list) else []


def chat_usage(prompt: Any, completion: Any, cached: Any, written: Any = 0, reasoning: Any = 0) -> JsonDict:
    """Return a usage in the format of chat completions. A count that is not a number becomes 0."""
    prompt, completion, cached, written, reasoning = (
        count_of(count) or 0 for count in (prompt, completion, cached, written, reasoning)
    )
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": cached, "cache_write_tokens": written},
        "completion_tokens_details": {"reasoning_tokens": reasoning},
    }


def with_searches(usage: JsonDict, searches: int) -> JsonDict:
    """Return a usage of chat completions that includes the number of web searches, in the field that Anthropic uses."""
    return usage | {"server_tool_use": {"web_search_requests": searches}} if searches else usage


def grown_usage(usage: JsonObject, later: Any) -> JsonDict:
    """Return the usage after a later event of a stream. Zeros are ignored, because some servers send zeros at the end.

    >>> grown_usage({"prompt_tokens": 9, "completion_tokens": 1}, {"prompt_tokens": 0, "completion_tokens": 5})
    {'prompt_tokens': 9, 'completion_tokens': 5}
    """
    if not isinstance(later, Mapping):
        return {**usage}
    return {**usage, **{name: count for name, count in later.items() if name not in usage or not _is_zero(count)}}


def _is_zero(count: Any) -> bool:
    return not any(count.values()) if isinstance(count, Mapping) else not count


def more_fields(fields: JsonObject | None) -> bytes:
    """Return the JSON of further fields of an object, with a comma before each.

    >>> more_fields({"a": 1}), more_fields(None)
    (b',"a":1', b'')
    """
    return b",%b" % orjson.dumps(fields)[1:-1] if fields else b""


def joined(parts: Iterable[Sequence[bytes]]) -> list[bytes]:
    """Return the pieces of a JSON list. Each element of `parts` consists of pieces, too."""
    pieces = [b"["]
    for part in parts:
        pieces += [*part, b","]
    if len(pieces) > 1:
        pieces.pop()
    return [*pieces, b"]"]


def dropped(body: JsonDict, names: frozenset[str]) -> list[str]:
    """Remove the parameters `names` from `body`. Return the removed names whose value is not False."""
    present = [name for name in body if name in names]
    return [name for name in present if body.pop(name) is not False]
