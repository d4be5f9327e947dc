"""Request bytes out, response bytes in: OpenAI's chat completions format.

Format: platform.openai.com/docs/api-reference/chat; reasoning fields as vLLM, DeepSeek and OpenRouter send them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

import orjson

from promptmill.backends.openai import loose
from promptmill.backends.openai.details import details_of
from promptmill.backends.openai.dialect import translate
from promptmill.backends.openai.endpoint import Endpoint
from promptmill.backends.openai.retry import Blame, Verdict, judge_status
from promptmill.backends.openai.sse import CutOffError, assemble
from promptmill.backends.protocol import Request
from promptmill.conversation import Message, TextPart, check_encodable, shape
from promptmill.errors import Code, PromptmillError
from promptmill.outcome import NO_USAGE, Completion, Usage
from promptmill.reasoning import split_reasoning
from promptmill.sampling import Sampling

_LARGE_PIECE = 32 * 1024
_OURS = frozenset({"messages", "stream", "stream_options"})
_MOST_TOKENS = 2**24  # more than any context; what is counted is charged to `tpm`


class Encoder:
    """Writes request bodies for one endpoint. What does not change from item to item is written once."""

    def __init__(self, endpoint: Endpoint, model: str, *, enable_thinking: bool | None, stream: bool) -> None:
        self._endpoint = endpoint
        self._model = model
        self._enable_thinking = enable_thinking
        self._stream = stream
        # keyed by identity, because a call's items share the objects; they are kept so that an id is never reused
        self._heads: dict[tuple[int, int], tuple[bytes, list[str], Sampling, Mapping[str, Any]]] = {}

    def refused(self, request: Request) -> list[str]:
        """Return the names of the request's parameters that the endpoint cannot take."""
        return self._head(request)[1]

    def encode(self, request: Request, images: Mapping[str, bytes]) -> bytes | list[bytes]:
        """Return the body, in pieces if it holds images. `images` maps sources to JSON strings, sent as they are.

        Raises `PromptmillError` (`invalid_input`) for text or parameters that JSON cannot carry.
        """
        try:
            head = self._head(request)[0]
            messages = request.conversation.messages
            if not images:
                return b"%b[%b]}" % (head, b",".join([_message(message) for message in messages]))
            pieces = [head + b"["]
            for message in messages:
                pieces += _pieces(message, images)
                pieces.append(b",")
            pieces[-1] = b"]}"
            return _merged(pieces)
        except (TypeError, orjson.JSONEncodeError):
            check_encodable(request.conversation)
            raise PromptmillError(
                Code.INVALID_INPUT, "The request holds a value that JSON cannot carry, or is nested too deeply."
            ) from None

    def fingerprint(self, request: Request) -> bytes:
        """Return a digest that is equal for requests that are sent alike; an image counts by its source."""
        try:
            sources = {image.source: orjson.dumps(image.source) for image in request.conversation.images}
            body = self.encode(request, sources)
            return hashlib.blake2b(body if isinstance(body, bytes) else b"".join(body), digest_size=16).digest()
        except (PromptmillError, TypeError):
            return b"%d" % request.key  # like no other; its own attempt says what is wrong

    def _head(self, request: Request) -> tuple[bytes, list[str], Sampling, Mapping[str, Any]]:
        identity = (id(request.sampling), id(request.extra))
        head = self._heads.get(identity)
        if head is None:
            if len(self._heads) >= 1024:  # requests that each bring their own parameters
                self._heads.clear()
            body, refused = self._parameters(request.sampling, request.extra)
            try:
                text = orjson.dumps({"model": self._model, **body})
            except TypeError:  # orjson's error is one
                raise PromptmillError(
                    Code.INVALID_INPUT,
                    "`sampling_params` or `extra_params` hold half a surrogate pair, a number above 64 bits "
                    "or too deep a nesting, which JSON cannot carry.",
                ) from None
            head = self._heads[identity] = (text[:-1] + b',"messages":', refused, request.sampling, request.extra)
        return head

    def _parameters(self, sampling: Sampling, extra: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
        given = {name: value for name, value in extra.items() if name not in _OURS}
        ours = sampling.given()
        if not isinstance(template := given.get("chat_template_kwargs") or {}, Mapping):
            raise PromptmillError(
                Code.INVALID_INPUT, f"`chat_template_kwargs` is {shape(template)}.", "Send an object, or leave it out."
            )
        if self._enable_thinking is not None and not ("enable_thinking" in given or "enable_thinking" in template):
            ours.setdefault("enable_thinking", self._enable_thinking)
        as_given = given.pop("enable_thinking", None) if "enable_thinking" not in ours else None
        body, refused = translate(self._endpoint.dialect, str(given.get("model", self._model)), {**given, **ours})
        if as_given is not None:
            body["enable_thinking"] = as_given
        if self._stream:
            body |= {"stream": True, "stream_options": {"include_usage": True}}
        return body, refused + [name for name in extra if name in _OURS]


def _message(message: Message) -> bytes:
    if not message.extra and isinstance(message.content, str):
        return b'{"role":"%b","content":%b}' % (message.role.encode(), orjson.dumps(message.content))
    return b"".join(_pieces(message, {}))


def _pieces(message: Message, images: Mapping[str, bytes]) -> list[bytes]:
    head = orjson.dumps({"role": message.role, **(message.extra or {})})[:-1]
    if not isinstance(message.content, tuple):
        return [b'%b,"content":%b}' % (head, orjson.dumps(message.content))]
    pieces = [head + b',"content":[']
    for part in message.content:
        if isinstance(part, TextPart):
            pieces.append(b'{"type":"text","text":%b}' % orjson.dumps(part.text))
        else:
            detail = b',"detail":' + orjson.dumps(part.detail) if part.detail else b""
            pieces += [b'{"type":"image_url","image_url":{"url":', images[part.source], detail + b"}}"]
        pieces.append(b",")
    pieces[-1] = b"]}"
    return pieces


def _merged(pieces: Iterable[bytes]) -> list[bytes]:
    """Return the same bytes in fewer pieces; large ones are not copied (fresh memory costs 0.7 ms per MB)."""
    merged: list[bytes] = []
    small: list[bytes] = []
    for piece in pieces:
        if len(piece) < _LARGE_PIECE:
            small.append(piece)
        else:
            merged += [b"".join(small), piece]
            small.clear()
    return [*merged, b"".join(small)]


def read_reply(
    status: int, headers: Mapping[str, str], body: bytes, endpoint: Endpoint, *, whole: bool = False
) -> Completion | Verdict:
    """Return the answer in a response, `whole` with its details, or what the response means instead."""
    try:
        return _read(status, headers, body, endpoint, whole)
    except Exception:  # noqa: BLE001 (such as nesting too deep to walk: whatever is sent, it never ends the run)
        return _unreadable(endpoint, "what cannot be read", b"")


def _read(
    status: int,
    headers: Mapping[str, str],
    body: bytes,
    endpoint: Endpoint,
    whole: bool,  # noqa: FBT001 (as `read_reply`)
) -> Completion | Verdict:
    try:
        payload = orjson.loads(body)
    except orjson.JSONDecodeError:
        if status == 200 and headers.get("Content-Type", "").startswith("text/event-stream"):
            return _read_stream(headers, body, endpoint, whole)
        payload = _loosely(body)
    if status != 200 and not 200 < status < 300:
        return judge_status(status, headers, payload if payload is not None else _text(body), endpoint)
    if not isinstance(payload, dict):
        return _unreadable(endpoint, "an empty body" if not body.strip() else "what is no JSON object", body)
    return read_payload(payload, headers, endpoint, whole=whole)


def _read_stream(
    headers: Mapping[str, str],
    body: bytes,
    endpoint: Endpoint,
    whole: bool,  # noqa: FBT001 (as `read_reply`)
) -> Completion | Verdict:
    try:
        return read_payload(_assembled(body), headers, endpoint, whole=whole)
    except CutOffError:
        error = PromptmillError(
            Code.CONNECTION_LOST, f"{endpoint.name} ended the stream before the answer was complete."
        )
        return Verdict(Blame.CHANCE, error)
    except (ValueError, TypeError, AttributeError, KeyError):
        return _unreadable(endpoint, "a stream with an unreadable event", b"")


def _assembled(body: bytes) -> dict[str, Any]:
    try:
        return assemble(body)
    except orjson.JSONDecodeError:
        whole: dict[str, Any] = loose.mended(assemble(body, loose.load))  # only now: halves may have come apart
        return whole


def read_payload(
    payload: dict[str, Any], headers: Mapping[str, str], endpoint: Endpoint, *, whole: bool = False
) -> Completion | Verdict:
    """Return the answer in a chat completion object, `whole` with its details, or what it means instead."""
    error = payload.get("error")
    if error:
        code = error.get("code") if isinstance(error, dict) else None
        status = code if isinstance(code, int) and 400 <= code < 600 else 200
        return judge_status(status, headers, payload, endpoint)
    choices = payload.get("choices")
    if not isinstance(choices, list):
        return _unreadable(endpoint, "no `choices`", b"")
    usage = _usage(payload.get("usage"))
    if not choices or not isinstance(choices[0], dict):
        return _empty(endpoint, usage)
    choice = choices[0]
    message = choice.get("message")
    if not isinstance(message, dict):
        message = {"content": choice.get("text")}
    finish = choice.get("finish_reason")
    finish = finish if isinstance(finish, str) else None
    if finish == "content_filter":
        error = PromptmillError(Code.CONTENT_FILTER, f"{endpoint.name} filtered this answer.")
        return Verdict(Blame.ITEM, error, usage=usage)
    if finish == "error":
        error = PromptmillError(Code.SERVER_ERROR, f"{endpoint.name} broke off this answer.")
        return Verdict(Blame.CHANCE, error, usage=usage)
    text = _content(message.get("content"))
    reasoning = _reasoning(message)
    if text and "<think>" in text[:64]:
        thought, text = split_reasoning(text)
        reasoning = reasoning or thought
    calls = message.get("tool_calls")
    tool_calls = tuple(call for call in calls if isinstance(call, dict)) if isinstance(calls, list) else ()
    logprobs = choice.get("logprobs")
    if (tool_calls or logprobs) and not loose.can_go_on((tool_calls, logprobs)):
        return _unreadable(endpoint, "tool calls or `logprobs` that JSON cannot carry", b"")
    if not text and not tool_calls:
        if refusal := message.get("refusal"):
            text = _part(refusal)
        elif finish is None:
            return _empty(endpoint, usage)
    return Completion(
        text,
        finish,
        usage,
        reasoning,
        tool_calls,
        logprobs=logprobs if isinstance(logprobs, dict) else None,
        details=details_of(payload, choice, message) if whole else None,
    )


def _content(content: Any) -> str:
    if isinstance(content, str):
        return content
    if isinstance(content, list):  # Mistral's and Anthropic's reasoning models send parts
        return "".join(map(_part, content))
    return ""


def _part(part: Any) -> str:
    """Return the text of a part, `""` for one of another kind. Raises `TypeError` for what is neither."""
    text = part.get("text") or "" if isinstance(part, dict) else part
    if not isinstance(text, str):
        raise TypeError
    return text


def _reasoning(message: Mapping[str, Any]) -> str | None:
    for name in ("reasoning_content", "reasoning"):
        if isinstance(found := message.get(name), str) and found:
            return found
    details = message.get("reasoning_details")
    if isinstance(details, list):
        texts = [detail.get("text") or detail.get("summary") for detail in details if isinstance(detail, dict)]
        return "".join(text for text in texts if isinstance(text, str)) or None
    return None


def _usage(usage: Any) -> Usage:
    if not isinstance(usage, dict):
        return NO_USAGE
    return Usage(_count(usage.get("prompt_tokens")), _count(usage.get("completion_tokens")))


def _count(value: Any) -> int:
    return value if type(value) is int and 0 <= value <= _MOST_TOKENS else 0


def _loosely(body: bytes) -> Any:
    try:
        return loose.mended(loose.load(body))
    except ValueError:
        return None


def _text(body: bytes) -> str:
    return body[:4096].decode("utf-8", "replace")


def _unreadable(endpoint: Endpoint, found: str, body: bytes) -> Verdict:
    page = " (a web page)" if body.lstrip()[:1] == b"<" else ""
    return Verdict(Blame.CHANCE, PromptmillError(Code.BAD_RESPONSE, f"{endpoint.name} answered with {found}{page}."))


def _empty(endpoint: Endpoint, usage: Usage) -> Verdict:
    error = PromptmillError(Code.EMPTY_ANSWER, f"{endpoint.name} gave an empty answer.")
    return Verdict(Blame.CHANCE, error, usage=usage)
