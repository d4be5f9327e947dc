"""Reads responses: OpenAI's format for chat completions, its variants, and errors with any status.

An ordinary answer (text only) takes a short path. All other bodies go through the long one: streams, answers wrapped
by gateways, invalid UTF-8, errors with status 200. The result is a `Completion` or a `RetryDecision`.

Format: platform.openai.com/docs/api-reference/chat; reasoning fields as vLLM, DeepSeek and OpenRouter send them.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import orjson

from promptmill.backends.openai.chat_completion import (
    CutOffError,
    Ending,
    assemble,
    can_go_on,
    details_of,
    first_event,
    is_stream,
    read_finish,
    read_message,
    text_of,
)
from promptmill.backends.openai.endpoint import Endpoint
from promptmill.backends.openai.error_body import read_error
from promptmill.backends.openai.failures import FailureKind, RetryDecision
from promptmill.backends.openai.refusals import classify_refusal, wrong_address
from promptmill.core.errors import Code, PromptmillError, without_controls
from promptmill.core.outcome import NO_USAGE, Completion, Usage

_ERROR_FIELDS = frozenset(
    {"message", "msg", "detail", "code", "status", "errors", "error_msg", "success", "title", "Response"}
)
_NO_MATTER = frozenset({"role", "content", "refusal", "annotations"})
"""Fields of a message that add nothing to its text."""
_ENDS = frozenset({"stop", "length"})
# The memory that the values of a JSON body take, estimated by its separators: a number some 32 bytes, an object or list
# up to 200. Small bodies cannot hold many.
_MOST_MEMORY = 128 << 20
_NUMBER, _CONTAINER = 32, 200
_SMALL = 256 * 1024
_LARGEST_ERROR = 1 << 20
_MOST_EVENTS = 150_000  # of a stream: answers have fewer tokens
_MOST_TOKENS = 2**24  # more than any context; the count is charged to `tpm`


def read_response(
    status: int, headers: Mapping[str, str], body: bytes, endpoint: Endpoint, *, keep_raw: bool = False
) -> Completion | RetryDecision:
    """Return the answer in a response, or the decision about a failure. `keep_raw` keeps all fields of the answer."""
    try:
        if _takes_too_much_memory(body):
            return _unreadable(endpoint, f"a body whose values take more than {_MOST_MEMORY >> 20} MiB of memory", b"")
        body = body.removeprefix(codecs.BOM_UTF8)
        if status >= 300 and len(body) > _LARGEST_ERROR:
            return classify_refusal(status, headers, _text(body), endpoint)
        try:
            payload = orjson.loads(body)
        except orjson.JSONDecodeError:
            payload = None
        if status == 200 and not keep_raw and type(payload) is dict and (completion := _ordinary(payload)) is not None:
            return completion
        return _read(status, headers, body, payload, endpoint, keep_raw=keep_raw)
    except Exception:  # noqa: BLE001 (no response, such as one nested too deeply, may end the run)
        return _unreadable(endpoint, "an unreadable response", b"")


def read_other_response(
    status: int, headers: Mapping[str, str], body: bytes, endpoint: Endpoint
) -> Completion | RetryDecision:
    """Return the response to a request for a path other than chats: its text, if any, and its payload."""
    if _takes_too_much_memory(body):
        return _unreadable(endpoint, f"a body whose values take more than {_MOST_MEMORY >> 20} MiB of memory", b"")
    try:
        payload = orjson.loads(body)
    except orjson.JSONDecodeError:
        payload = None
    if status >= 300 or (isinstance(payload, dict) and payload.get("error") and _is_error(payload)):
        return classify_refusal(status, headers, payload if payload is not None else _text(body), endpoint)
    if not isinstance(payload, dict):
        return _unreadable(endpoint, "a body that is not a JSON object", body.strip())
    given = payload.get("usage")
    usage = given if isinstance(given, dict) else {}
    counts = [
        next((count for name in names if type(count := usage.get(name)) is int and count >= 0), 0)
        for names in (("prompt_tokens", "input_tokens", "total_tokens"), ("completion_tokens", "output_tokens"))
    ]
    details = {"payload": payload}
    return Completion(_text_of_other(payload), "stop", Usage(*counts), details=details, tier=_tier(payload))


def _takes_too_much_memory(body: bytes) -> bool:
    if len(body) <= _SMALL:
        return False
    return _NUMBER * body.count(b",") + _CONTAINER * (body.count(b"[") + body.count(b"{")) > _MOST_MEMORY


def _text_of_other(payload: Mapping[str, Any]) -> str:
    """Return the text of a completion, or of a response of OpenAI's Responses API."""
    match payload:
        case {"choices": [{"text": str(text)}, *_]}:
            return text
        case {"output": list(items)}:
            parts = [part for item in items if isinstance(item, dict) for part in item.get("content") or ()]
            return "".join(
                part["text"] for part in parts if isinstance(part, dict) and isinstance(part.get("text"), str)
            )
    return ""


def _read(
    status: int, headers: Mapping[str, str], body: bytes, payload: Any, endpoint: Endpoint, *, keep_raw: bool
) -> Completion | RetryDecision:
    if 200 <= status < 300:
        if payload is None and is_stream(headers.get("Content-Type", ""), body):
            return _read_stream(headers, body, endpoint, keep_raw=keep_raw)
        payload = _unwrapped(_loosely(body) if payload is None else payload)
        if isinstance(payload, dict):
            return read_payload(payload, headers, endpoint, keep_raw=keep_raw)
        text = body.strip()
        if not text or text[:1] in b"<{[":
            return _unreadable(endpoint, "an empty body" if not text else "a body that is not a JSON object", text)
        return classify_refusal(status, headers, _text(text), endpoint)
    if payload is None and is_stream("", body):
        payload = first_event(body)
    if payload is None:
        payload = _loosely(body)
    return classify_refusal(status, headers, payload if payload is not None else _text(body), endpoint)


def _ordinary(payload: dict[str, Any]) -> Completion | None:
    """Return the answer in an object of the usual form with text only; None for any other.

    `read_payload` gives the same result but takes four times as long.
    """
    choices = payload.get("choices")
    if type(choices) is not list or not choices or _is_error(payload):
        return None
    choice = choices[0]
    if type(choice) is not dict or choice.get("error") or choice.get("logprobs"):
        return None
    message, finish = choice.get("message"), choice.get("finish_reason")
    if type(message) is not dict or type(finish) is not str or finish not in _ENDS:
        return None
    text = message.get("content")
    if type(text) is not str or not text:
        return None
    for name, value in message.items():
        if value and name not in _NO_MATTER:
            return None
    return Completion(text, finish, _usage(payload.get("usage")), tier=_tier(payload))


def _unwrapped(payload: Any) -> Any:
    """Remove the wrapping that gateways add to a completion or error: a list, a JSON string, another object."""
    if isinstance(payload, str):
        payload = _loosely(payload.encode("utf-8", "replace"))
    if isinstance(payload, list) and len(payload) == 1:
        payload = payload[0]
    if isinstance(payload, dict) and "choices" not in payload:
        for name in ("data", "result", "response", "body", "output"):
            inner = payload.get(name)
            if isinstance(inner, dict) and isinstance(inner.get("choices"), list):
                return {"usage": payload.get("usage"), **inner}
        if isinstance(payload.get("message"), dict) and payload.get("done") is True:  # Ollama's own form
            choice = {"message": payload["message"], "finish_reason": payload.get("done_reason")}
            usage = {"prompt_tokens": payload.get("prompt_eval_count"), "completion_tokens": payload.get("eval_count")}
            return {"choices": [choice], "usage": usage}
    return payload


def _read_stream(
    headers: Mapping[str, str], body: bytes, endpoint: Endpoint, *, keep_raw: bool
) -> Completion | RetryDecision:
    if body.count(b"\n") > 2 * _MOST_EVENTS:
        return _unreadable(endpoint, f"a stream of more than {_MOST_EVENTS:,} events", b"")
    try:
        return read_payload(_assembled(body), headers, endpoint, keep_raw=keep_raw)
    except CutOffError:
        error = PromptmillError(
            Code.CONNECTION_LOST, f"{endpoint.name} ended the stream before the answer was complete."
        )
        return RetryDecision(FailureKind.TRANSIENT, error, unmetered=True)
    except (ValueError, TypeError, AttributeError, KeyError):
        return _unreadable(endpoint, "a stream with an unreadable event", b"")


def _assembled(body: bytes) -> dict[str, Any]:
    try:
        return assemble(body)
    except orjson.JSONDecodeError:
        # repaired only after assembly, because two events may hold the halves of one surrogate pair
        completion: dict[str, Any] = mended(assemble(body, _load_leniently))
        return completion


def read_payload(
    payload: dict[str, Any], headers: Mapping[str, str], endpoint: Endpoint, *, keep_raw: bool = False
) -> Completion | RetryDecision:
    """Return the answer in a chat completion object, or the decision about a failure. `keep_raw` keeps all its fields.

    The text is the endpoint's, unchanged; `answers.reasoning` separates reasoning from it.
    """
    choices = payload.get("choices")
    if _is_error(payload):
        return classify_refusal(200, headers, payload, endpoint)
    if not isinstance(choices, list):
        if _ERROR_FIELDS.isdisjoint(payload):
            return _unreadable(endpoint, "no `choices`", b"")
        return classify_refusal(200, headers, payload, endpoint)
    usage = _usage(payload.get("usage"))
    if not choices or not isinstance(choices[0], dict):
        return _without_choice(payload, endpoint, usage)
    choice = choices[0]
    if isinstance(choice.get("error"), dict):  # OpenRouter, if the provider behind it failed during the answer
        return replace(classify_refusal(200, headers, {"error": choice["error"]}, endpoint), **_spent(usage))
    message = choice.get("message") or choice.get("delta")
    if not isinstance(message, dict):
        message = {"content": choice.get("text")}
    finish, ending = read_finish(choice.get("finish_reason"))
    if ending is Ending.FILTERED:
        return _filtered(endpoint, usage)
    if ending is Ending.BROKEN_OFF:
        error = PromptmillError(Code.SERVER_ERROR, f"{endpoint.name} broke off this answer ({finish:.60}).")
        return RetryDecision(FailureKind.TRANSIENT, error, **_spent(usage))
    text, reasoning = read_message(message)
    calls = message.get("tool_calls")
    tool_calls = tuple(call for call in calls if isinstance(call, dict)) if isinstance(calls, list) else ()
    logprobs = choice.get("logprobs")
    if (tool_calls or logprobs) and not can_go_on((tool_calls, logprobs)):
        return _unreadable(endpoint, "tool calls or `logprobs` that JSON cannot represent", b"")
    if not text and not tool_calls:
        if refusal := message.get("refusal"):
            text = text_of(refusal)
        elif finish is None:
            return _empty(endpoint, usage)
    return Completion(
        text,
        finish,
        usage,
        reasoning,
        tool_calls,
        logprobs=logprobs if isinstance(logprobs, dict) else None,
        details=details_of(payload, choice, message) if keep_raw else None,
        tier=_tier(payload),
    )


def _tier(payload: Mapping[str, Any]) -> str:
    """Return the service tier in an answer: OpenAI's field, or Anthropic's in the usage."""
    tier = payload.get("service_tier")
    if tier is None and isinstance(usage := payload.get("usage"), dict):
        tier = usage.get("service_tier")
    return tier.lower() if isinstance(tier, str) else ""


def _is_error(payload: Mapping[str, Any]) -> bool:
    """Return whether a body reports an error, regardless of its status and its `choices`."""
    if payload.get("error") or payload.get("error_code") or payload.get("object") == "error":
        return True
    base = payload.get("base_resp")  # MiniMax
    return isinstance(base, dict) and base.get("status_code", 0) not in {0, "0", None}


def _prompt_filtered(payload: Mapping[str, Any]) -> bool:
    results = payload.get("prompt_filter_results")
    return bool(results) and b'"filtered":true' in orjson.dumps(results)


def _usage(usage: Any) -> Usage:
    if not isinstance(usage, dict):
        return NO_USAGE
    prompt = _count(usage.get("prompt_tokens")) or _count(usage.get("input_tokens"))
    completion = _count(usage.get("completion_tokens")) or _count(usage.get("output_tokens"))
    if len(usage) == 3 and prompt and completion and "total_tokens" in usage:  # no details then
        return Usage(prompt, completion)
    cached = _detail(usage, "prompt_tokens_details", "cached_tokens") or _count(usage.get("prompt_cache_hit_tokens"))
    reasoning = _detail(usage, "completion_tokens_details", "reasoning_tokens")
    return Usage(prompt, completion, min(cached, prompt), min(reasoning, completion))


def _detail(usage: dict[str, Any], group: str, name: str) -> int:
    """Return a count of the usage details."""
    details = usage.get(group)
    return _count(details.get(name)) if isinstance(details, dict) else 0


def _count(value: Any) -> int:
    return value if type(value) is int and 0 <= value <= _MOST_TOKENS else 0


def _loosely(body: bytes) -> Any:
    try:
        return mended(_load_leniently(body))
    except ValueError:
        return None


def _text(body: bytes) -> str:
    return body[:4096].decode("utf-8", "replace")


def _unreadable(endpoint: Endpoint, found: str, body: bytes) -> RetryDecision:
    page = body.lstrip()[:1] == b"<"
    error = PromptmillError(
        Code.BAD_RESPONSE,
        f"{endpoint.name} answered with {_page(body) if page else found}.",
        wrong_address(endpoint) if page else None,
    )
    return RetryDecision(FailureKind.TRANSIENT, error, status=200 if page else 0, unmetered=not page)


def _page(body: bytes) -> str:
    """Return the description of a web page for a message, with its title if it has one."""
    title = " ".join(without_controls(read_error(_text(body)).shown).split())[:60]
    return f"a web page ({title})" if title else "a web page"


def _without_choice(payload: Mapping[str, Any], endpoint: Endpoint, usage: Usage) -> RetryDecision:
    if _prompt_filtered(payload):  # before the model read it
        return replace(_filtered(endpoint, usage), unmetered=False)
    return _empty(endpoint, usage)


def _filtered(endpoint: Endpoint, usage: Usage) -> RetryDecision:
    error = PromptmillError(Code.CONTENT_FILTER, f"{endpoint.name} filtered this answer.")
    return RetryDecision(FailureKind.ITEM, error, **_spent(usage))


def _empty(endpoint: Endpoint, usage: Usage) -> RetryDecision:
    error = PromptmillError(Code.EMPTY_ANSWER, f"{endpoint.name} gave an empty answer.")
    return RetryDecision(FailureKind.TRANSIENT, error, **_spent(usage))


def _spent(usage: Usage) -> dict[str, Any]:
    """Return the fields of a decision about a failed reply that may be billed."""
    return {"usage": usage, "unmetered": not usage.prompt_tokens}


def _load_leniently(data: bytes) -> Any:
    """Return the value of `data`, which orjson refused: unpaired surrogates (llama.cpp cuts emojis) or invalid UTF-8.

    Unpaired surrogates remain, because the other half may follow. Raises `ValueError`.
    """
    try:
        return json.loads(data.decode("utf-8", "replace"))
    except RecursionError:
        raise ValueError("nested too deeply") from None


def mended(value: Any) -> Any:
    """Return `value` with pairs of surrogates joined and unpaired ones replaced by U+FFFD. Raises `ValueError`."""
    try:
        text = json.dumps(value, ensure_ascii=False).encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        return json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None
