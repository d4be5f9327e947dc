"""A dialect: one API's form of requests and replies, as pure functions. Each other module here is one.

    parameters + conversation + images ─▶ the API's body          `parameters`, `conversation`, `url`, `headers`
    the API's reply, or its events ─▶ a chat completion            `assemble`, `completion`, `delta_in`

A reply becomes a chat completion, which `reply.read_payload` reads, so that answers, usage and failures of all APIs are
judged in one place.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import orjson

from promptmill.backends.openai.providers import ProviderProfile
from promptmill.core.errors import Code, PromptmillError
from promptmill.core.request import Conversation, Message, TextPart
from promptmill.core.values import JsonDict, JsonObject

SYSTEM_ROLES = frozenset({"system", "developer"})
_VERSION = re.compile(r"v\d\w*")


class Written(NamedTuple):
    """The parameters of requests in the form of an API."""

    body: JsonDict
    """The fields of the body, without the conversation."""
    refused: list[str]
    """The parameters that the API does not support."""
    words: str = ""
    """Instructions to add to the conversation."""


class Dialect(Protocol):
    """An API."""

    PATH: str
    """The path of requests behind the base URL."""
    STREAMED: JsonObject
    """The fields of a body that request a streamed reply."""
    FILLED: frozenset[str]
    """The fields of a body that no parameter may set, such as the conversation."""

    def base(self, base: str) -> str:
        """Return the path of the API's base URL, for `base` as users write it."""
        ...

    def url(self, url: str, model: str, *, stream: bool) -> str:
        """Return the URL of a request, for the URL of the endpoint, which ends in `PATH`."""
        ...

    def headers(self, key: str) -> dict[str, str]:
        """Return the headers of a request besides its content type; `key` may be empty."""
        ...

    def parameters(self, profile: ProviderProfile, model: str, sampling: JsonObject, extra: JsonObject) -> Written:
        """Return the parameters in the API's form. `extra` ones have chat completions' names, or the API's own."""
        ...

    def conversation(self, conversation: Conversation, images: Mapping[str, bytes]) -> list[bytes]:
        """Return the fields of the body that hold the conversation, in pieces, without braces.

        `images` maps sources to the JSON string of a `data:` URL, or of the URL of an image on the web. Raises
        `PromptmillError` for a part that the API cannot carry, and orjson's errors.
        """
        ...

    def completion(self, payload: JsonDict, headers: Mapping[str, str], /) -> JsonDict | None:
        """Return a reply as a chat completion; None for an object that is no answer of this API, such as an error."""
        ...

    def assemble(self, events: Iterator[JsonDict]) -> JsonDict:
        """Return the reply that a whole stream amounts to, or its error; the end mark is the event `ENDED`.

        Raises `CutOffError` for a stream cut off.
        """
        ...

    def delta_in(self, event: JsonDict) -> JsonDict:
        """Return the part of the answer in an event of a stream, as the `delta` of a chat completion's stream."""
        ...


def bearer(key: str) -> dict[str, str]:
    """Return the header of a key."""
    return {"Authorization": f"Bearer {key}"} if key else {}


def same_url(url: str, *_: object, **__: object) -> str:
    """Return the endpoint's URL, which is that of each request: its body has the model and `stream`."""
    return url


def versioned(base: str, version: str) -> str:
    """Return the path of a base URL with the version of the API at its end, the one it has or `version`."""
    return base if _VERSION.fullmatch(base.rpartition("/")[2]) else f"{base}/{version}"


def set_of(words: str) -> frozenset[str]:
    """Return the words of a text."""
    return frozenset(words.split())


def data_url(encoded: bytes) -> tuple[bytes, bytes] | None:
    """Return the media type and the base64 text of an encoded image; None for one on the web."""
    if not encoded.startswith(b'"data:'):
        return None
    start = encoded.index(b";base64,")
    return encoded[6:start], encoded[start + 8 : -1]


def text_of_message(message: Message) -> str:
    """Return the text of a message that can hold no other parts, such as a system message.

    Raises `PromptmillError` (`unsupported`) if it has some.
    """
    content = message.content
    if not isinstance(content, tuple):
        return content or ""
    texts = [part.text for part in content if isinstance(part, TextPart)]
    if len(texts) < len(content):
        raise unsupported(f"an image or sound in a message with the role {message.role}")
    return "".join(texts)


def unsupported(what: str) -> PromptmillError:
    """Return the error of a request with a part that the API cannot carry."""
    return PromptmillError(Code.UNSUPPORTED, f"The API of this endpoint does not accept {what}.", "Leave it out.")


def parted(conversation: Conversation) -> tuple[list[Message], list[Message]]:
    """Return the system messages, wherever they are, and the other turns; a lone system message becomes a turn."""
    system = [message for message in conversation.messages if message.role in SYSTEM_ROLES]
    turns = [message for message in conversation.messages if message.role not in SYSTEM_ROLES]
    if system and not turns:
        turns = [Message("user", system.pop().content)]
    return system, turns


def calls_of(message: Message) -> Iterator[tuple[str, str, JsonDict, JsonObject]]:
    """Yield `(id, name, arguments, call)` of the tool calls of an assistant's turn."""
    calls = (message.extra or {}).get("tool_calls")
    for call in calls if isinstance(calls, list | tuple) else ():
        function = call.get("function") or {} if isinstance(call, Mapping) else {}
        if name := function.get("name"):
            yield str(call.get("id") or ""), str(name), object_in(function.get("arguments")), call


def object_in(value: Any) -> JsonDict:
    """Return the arguments of a tool call, which are an object or its JSON text."""
    if isinstance(value, str):
        try:
            value = orjson.loads(value)
        except orjson.JSONDecodeError:
            return {"arguments": value} if value else {}
    return dict(value) if isinstance(value, Mapping) else {}


def functions_in(tools: Any) -> Iterator[tuple[JsonObject, bool]]:
    """Yield the tools of a request, and whether each is a function in the form of chat completions.

    The function is then the object below `function`.
    """
    for tool in tools if isinstance(tools, Sequence) and not isinstance(tools, str) else ():
        inner = tool.get("function") if isinstance(tool, Mapping) else None
        yield (inner, True) if isinstance(inner, Mapping) else (tool, False)


def named_function(choice: Any) -> str | None:
    """Return the name of the function that a `tool_choice` of chat completions demands."""
    match choice:
        case {"type": "function", "function": {"name": str(name)}}:
            return name
    return None


def call(identity: str, name: Any, arguments: Any, **more: Any) -> JsonDict:
    """Return a tool call in the form of chat completions."""
    text = arguments if isinstance(arguments, str) else orjson.dumps(arguments or {}).decode()
    return {"id": identity, "type": "function", "function": {"name": name, "arguments": text}, **more}


def chat_completion(
    payload: JsonObject, known: frozenset[str], message: JsonDict, finish: Any, usage: Any, **choice: Any
) -> JsonDict:
    """Return a chat completion of these parts, with the fields of `payload` that are not `known`."""
    kept = {name: value for name, value in payload.items() if name not in known}
    message = {"role": "assistant", **{name: value for name, value in message.items() if value}}
    message.setdefault("content", "")
    whole = {"index": 0, "message": message, "finish_reason": finish, **choice}
    return {**kept, "object": "chat.completion", "choices": [whole], "usage": usage}


def chat_usage(prompt: Any, completion: Any, cached: Any, written: Any = 0, reasoning: Any = 0) -> JsonDict:
    """Return a usage in the form of chat completions; a count that is no number is 0."""
    prompt, completion, cached, written, reasoning = (
        count if type(count) is int else 0 for count in (prompt, completion, cached, written, reasoning)
    )
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": cached, "cache_write_tokens": written},
        "completion_tokens_details": {"reasoning_tokens": reasoning},
    }


def joined(parts: Iterable[Sequence[bytes]]) -> list[bytes]:
    """Return the pieces of a JSON list with these elements, each in pieces."""
    pieces = [b"["]
    for part in parts:
        pieces += [*part, b","]
    if len(pieces) > 1:
        pieces.pop()
    return [*pieces, b"]"]


def dropped(body: JsonDict, names: frozenset[str]) -> list[str]:
    """Remove the parameters of these names from `body`; return those that ask for something."""
    present = [name for name in body if name in names]
    return [name for name in present if body.pop(name) is not False]
