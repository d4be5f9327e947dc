"""Response bytes in: OpenAI's chat completions format, and what endpoints answer instead.

Format: platform.openai.com/docs/api-reference/chat; reasoning fields as vLLM, DeepSeek and OpenRouter send them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson

from promptmill.backends.openai import lenient_json
from promptmill.backends.openai.endpoint import Endpoint
from promptmill.backends.openai.extra_fields import details_of
from promptmill.backends.openai.retry import FailureKind, RetryDecision, judge_status
from promptmill.backends.openai.sse import CutOffError, assemble
from promptmill.core.errors import Code, PromptmillError
from promptmill.core.outcome import NO_USAGE, Completion, Usage

_MOST_TOKENS = 2**24  # more than any context; what is counted is charged to `tpm`


def read_reply(
    status: int, headers: Mapping[str, str], body: bytes, endpoint: Endpoint, *, whole: bool = False
) -> Completion | RetryDecision:
    """Return the answer in a response, `whole` with its details, or what the response means instead."""
    try:
        return _read(status, headers, body, endpoint, whole=whole)
    except Exception:  # noqa: BLE001 (such as nesting too deep to walk: whatever is sent, it never ends the run)
        return _unreadable(endpoint, "what cannot be read", b"")


def _read(
    status: int, headers: Mapping[str, str], body: bytes, endpoint: Endpoint, *, whole: bool
) -> Completion | RetryDecision:
    try:
        payload = orjson.loads(body)
    except orjson.JSONDecodeError:
        if status == 200 and headers.get("Content-Type", "").startswith("text/event-stream"):
            return _read_stream(headers, body, endpoint, whole=whole)
        payload = _loosely(body)
    if status != 200 and not 200 < status < 300:
        return judge_status(status, headers, payload if payload is not None else _text(body), endpoint)
    if not isinstance(payload, dict):
        return _unreadable(endpoint, "an empty body" if not body.strip() else "a JSON body that is not an object", body)
    return read_payload(payload, headers, endpoint, whole=whole)


def _read_stream(
    headers: Mapping[str, str], body: bytes, endpoint: Endpoint, *, whole: bool
) -> Completion | RetryDecision:
    try:
        return read_payload(_assembled(body), headers, endpoint, whole=whole)
    except CutOffError:
        error = PromptmillError(
            Code.CONNECTION_LOST, f"{endpoint.name} ended the stream before the answer was complete."
        )
        return RetryDecision(FailureKind.CHANCE, error)
    except (ValueError, TypeError, AttributeError, KeyError):
        return _unreadable(endpoint, "a stream with an unreadable event", b"")


def _assembled(body: bytes) -> dict[str, Any]:
    try:
        return assemble(body)
    except orjson.JSONDecodeError:
        whole: dict[str, Any] = lenient_json.mended(
            assemble(body, lenient_json.load)
        )  # only now: halves may have come apart
        return whole


def read_payload(
    payload: dict[str, Any], headers: Mapping[str, str], endpoint: Endpoint, *, whole: bool = False
) -> Completion | RetryDecision:
    """Return the answer in a chat completion object, `whole` with its details, or what it means instead.

    Its text is what the endpoint gave; reasoning in it is told apart by `answers.reasoning`.
    """
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
        return RetryDecision(FailureKind.ITEM, error, usage=usage)
    if finish == "error":
        error = PromptmillError(Code.SERVER_ERROR, f"{endpoint.name} broke off this answer.")
        return RetryDecision(FailureKind.CHANCE, error, usage=usage)
    text = _content(message.get("content"))
    reasoning = _reasoning(message)
    calls = message.get("tool_calls")
    tool_calls = tuple(call for call in calls if isinstance(call, dict)) if isinstance(calls, list) else ()
    logprobs = choice.get("logprobs")
    if (tool_calls or logprobs) and not lenient_json.can_go_on((tool_calls, logprobs)):
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
        return lenient_json.mended(lenient_json.load(body))
    except ValueError:
        return None


def _text(body: bytes) -> str:
    return body[:4096].decode("utf-8", "replace")


def _unreadable(endpoint: Endpoint, found: str, body: bytes) -> RetryDecision:
    page = " (a web page)" if body.lstrip()[:1] == b"<" else ""
    return RetryDecision(
        FailureKind.CHANCE, PromptmillError(Code.BAD_RESPONSE, f"{endpoint.name} answered with {found}{page}.")
    )


def _empty(endpoint: Endpoint, usage: Usage) -> RetryDecision:
    error = PromptmillError(Code.EMPTY_ANSWER, f"{endpoint.name} gave an empty answer.")
    return RetryDecision(FailureKind.CHANCE, error, usage=usage)
