"""Reads the answer in a response: OpenAI's chat completions and variants, and errors with any status.

`read_response` returns a `Completion` or a `RetryDecision`. An ordinary answer (text only) is read by a short path, and
all other bodies by a long path: streams, answers wrapped by gateways, invalid UTF-8, errors with status 200, and
replies in a dialect, which are first converted to chat completions.

Format: platform.openai.com/docs/api-reference/chat; reasoning fields of vLLM, DeepSeek and OpenRouter.
"""

from __future__ import annotations

import codecs
import contextlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, NamedTuple, TypedDict

import orjson

from promptmill.answers.json_in_text import value_at_end
from promptmill.answers.reasoning import may_have_marks, split_marked
from promptmill.backends import vectors
from promptmill.backends.openai import chat_completion, citations
from promptmill.backends.openai.chat_completion import ReplyEnd
from promptmill.backends.openai.dialects import DIALECTS, dialect, responses
from promptmill.backends.openai.dialects.deciding import Deciding, FormQuestions, answering, with_repeats
from promptmill.backends.openai.dialects.dialect import count_of
from promptmill.backends.openai.endpoint import Endpoint
from promptmill.backends.openai.error_body import read_error
from promptmill.backends.openai.failures import (
    PROXY_REMEDY,
    FailureKind,
    RetryDecision,
    TransportError,
    classify_exception,
)
from promptmill.backends.openai.http_connection import HttpResponse
from promptmill.backends.openai.refusals import classify_refusal, wrong_address
from promptmill.backends.protocol import NO_USAGE, TICKS, Completion, Usage
from promptmill.backends.searches import SEARCHING_MODEL
from promptmill.core.bounds import LONGEST_ANSWER, LONGEST_SEARCHED, MOST_EVENTS, MOST_FIELDS, MOST_MEMORY, MOST_TOKENS
from promptmill.core.errors import Code, PromptmillError, redact, without_controls
from promptmill.core.values import JsonDict, JsonObject
from promptmill.core.wording import mended

_ERROR_FIELDS = frozenset(
    {"message", "msg", "detail", "code", "status", "errors", "error_msg", "success", "title", "Response"}
)
_ERROR_SIGNS = frozenset({"error", "error_code", "base_resp"})
_NO_MATTER = frozenset({"role", "content", "refusal"})
"""Fields of a message that do not change its text or sources."""
_ENDS = frozenset({"stop", "length"})
_OWN_ENDS = frozenset({"native_finish_reason", "stop_reason"})
_USAGE_OF_DECISIONS = frozenset({"input_tokens", "output_tokens"})
_PLAIN_USAGE = frozenset({"prompt_tokens", "completion_tokens", "total_tokens"})
_NO_DETAILS: JsonObject = {}
_CHARSET = re.compile(r"charset=[\"']?(?!utf-?8)([\w.:-]+)", re.IGNORECASE)
_SHORT_EVENT = 20  # in bytes; end marks are shorter
_JSON_STARTS = (b"{", b"[")
_OF_PROXIES = frozenset({403, 407, 502, 503, 504})
# Estimates of the bytes of memory for a number, and for an object or a list. With them, the memory for the values of a
# JSON body is estimated from its separators. Small bodies are not checked, because they cannot contain many values.
_NUMBER, _CONTAINER = 32, 200
_SMALL = 256 * 1024
_LONGEST_NAME = 120  # characters of a model's name
_ALWAYS_SEARCHES = re.compile(SEARCHING_MODEL)
_TOO_MANY = re.compile(
    r"(?i)(?:too many|at most|up to|more than|max|limit|exceed|fewer|only).{0,60}(?:option|choice|criteri|label)"
    r"|(?:option|choice|criteri|label).{0,60}(?:too many|at most|up to|more than|max|limit|exceed|fewer|only)"
)
_CHAT = "leave out `dialect`, so that the model writes the answer, or choose another model."
_OF_OPENAI = frozenset({"openai", "azure"})


class ReplyRequest(NamedTuple):
    """How the reply to a request is read."""

    has_form: bool = False
    """Whether the answer is JSON or a choice. Numbers in such an answer are no citations."""
    may_search: bool = False
    """Whether the endpoint may search the web for the answer."""
    inline: bool = False
    """Whether the answer's text includes the reasoning."""
    keep_raw: bool = False
    """Whether all fields of the answer are kept."""
    questions: FormQuestions | None = None
    """The questions of a request to a model that decides."""
    model: str = ""
    """The model of a request to a model that decides."""


USUAL = ReplyRequest()


class _Spent(TypedDict):
    """The fields of a `RetryDecision` for the cost of a failed reply."""

    usage: Usage
    tier: str
    unmetered: bool


def _content(response: HttpResponse, endpoint: Endpoint) -> bytes | RetryDecision:
    """Return the decompressed body of a response, or the decision about a failure."""
    try:
        return response.content()
    except TransportError as error:
        return classify_exception(error, endpoint)


def answer_in(response: HttpResponse, endpoint: Endpoint, wanted: ReplyRequest = USUAL) -> Completion | RetryDecision:
    """Return the answer in a response, or the decision on a failure."""
    content = _content(response, endpoint) if response.encoding else response.body
    if isinstance(content, RetryDecision):
        return content
    reading = read_response(response.status, response.headers, content, endpoint, wanted)
    if isinstance(reading, RetryDecision):
        return _with_proxy(reading, response)
    if not wanted.inline and may_have_marks(reading.text):
        reading = with_reasoning_apart(reading)
    if wanted.has_form and reading.reasoning and reading.is_empty and reading.finish_reason == "stop":
        reading.text = value_at_end(reading.reasoning)  # vLLM and others may leave the answer in the reasoning
    return reading


def with_reasoning_apart(completion: Completion) -> Completion:
    """Return `completion`, with the reasoning moved from its text to the field `reasoning`."""
    reasoning, text = split_marked(completion.text)
    if text == completion.text:
        return completion
    thoughts = [thought for thought in (completion.reasoning, reasoning) if thought]
    return replace(completion, text=text, reasoning="\n".join(thoughts) or completion.reasoning)


def other_answer_in(response: HttpResponse, endpoint: Endpoint, texts: int = 0) -> Completion | RetryDecision:
    """Return the reply to a request that is not a chat, or the decision on a failure. `texts`: see
    `read_other_response`."""
    content = _content(response, endpoint)
    if isinstance(content, RetryDecision):
        return content
    reading = read_other_response(response.status, response.headers, content, endpoint, texts)
    return _with_proxy(reading, response) if isinstance(reading, RetryDecision) else reading


def _with_proxy(decision: RetryDecision, response: HttpResponse) -> RetryDecision:
    """Return `decision`. If a proxy may have sent the response, its error names the proxy."""
    if not response.proxy:
        return decision
    error = decision.error
    hint = PROXY_REMEDY if response.status in _OF_PROXIES or error.code is Code.BAD_RESPONSE else error.remedy
    named = PromptmillError(error.code, f"{error.message} The proxy {response.proxy} may have answered itself.", hint)
    named.said = error.said
    return replace(decision, error=named)


def read_response(
    status: int, headers: Mapping[str, str], body: bytes, endpoint: Endpoint, wanted: ReplyRequest = USUAL
) -> Completion | RetryDecision:
    """Return the answer in a response, or the decision on a failure. Marked reasoning stays in the answer's text."""
    payload: Any = None
    try:
        if len(body) > _SMALL and (excess := _excess(body)):
            return _unreadable(endpoint, excess, b"")
        body = body.removeprefix(codecs.BOM_UTF8)
        try:
            payload = orjson.loads(body)
        except orjson.JSONDecodeError:
            body = _as_utf8(body, headers)
            payload = _json(body)
        is_plain = status == 200 and type(payload) is dict and not wanted.keep_raw and wanted.questions is None
        if is_plain and (completion := _ordinary(payload)) is not None:
            return completion
        if wanted.questions is not None and status == 200 and type(payload) is dict and not _may_repeat(body, payload):
            return _decided(payload, payload, headers, endpoint, wanted)
        return _read_other_form(status, headers, body, payload, endpoint, wanted=wanted)
    except Exception:  # noqa: BLE001 (no response, however deeply nested, may end the run)
        decision = _unreadable(endpoint, "an unreadable response", b"")
        usage = _usage(payload.get("usage")) if isinstance(payload, dict) else NO_USAGE
        return replace(decision, usage=usage, unmetered=not usage.prompt_tokens)


def read_other_response(
    status: int, headers: Mapping[str, str], body: bytes, endpoint: Endpoint, texts: int = 0
) -> Completion | RetryDecision:
    """Return the reply to a request that is not a chat: its text, if any, and its payload. If the request is for the
    embeddings of texts, `texts` is the number of texts, and the vectors are returned instead of the payload."""
    if excess := _excess(body):
        return _unreadable(endpoint, excess, b"")
    payload: Any = None
    found: tuple[bytes, ...] = ()
    with contextlib.suppress(ValueError):
        payload, found = vectors.read(body, texts) if texts and status < 300 else (orjson.loads(body), ())
    if status >= 300 or (isinstance(payload, dict) and payload.get("error") and _is_error(payload)):
        return _refused(status, headers, payload if payload is not None else _text(body), endpoint)
    if not isinstance(payload, dict):
        return _unreadable(endpoint, "a body that is not a JSON object", body.strip())
    if not chat_completion.can_go_on(payload):
        return _unreadable(endpoint, "a body that is nested too deeply", b"")
    if texts and not found:
        if _is_error(payload) or not _ERROR_FIELDS.isdisjoint(payload):
            return _refused(status, headers, payload, endpoint)
        usage = _usage(payload.get("usage"), answers=False)
        spent: _Spent = {"usage": usage, "tier": _tier(payload), "unmetered": not usage.prompt_tokens}
        return replace(_unreadable(endpoint, "no list of vectors (`data`)", b""), **spent)
    details = None if texts else {"payload": payload}
    usage = _usage(payload.get("usage"), answers="choices" in payload or "output" in payload)
    if isinstance(items := payload.get("output"), list):
        usage = replace(usage, searches=responses.searches_in(items))
    finish = "length" if _is_other_cut(payload) else "stop"
    return Completion(_text_of_other(payload), finish, usage, details=details, tier=_tier(payload), vectors=found)


def _excess(body: bytes) -> str:
    """Return a description of a body that would take too much memory or time; `""` for other bodies."""
    if len(body) <= _SMALL:
        return ""
    if _NUMBER * body.count(b",") + _CONTAINER * (body.count(b"[") + body.count(b"{")) > MOST_MEMORY:
        return f"a body whose values take more than {MOST_MEMORY >> 20} MiB of memory"
    if _has_too_many_fields(body) and not body.lstrip().startswith(chat_completion.EVENT_STARTS):
        return f"a body of more than {MOST_FIELDS:,} fields"
    return ""


def _has_too_many_fields(data: bytes) -> bool:
    return len(data) > MOST_FIELDS and data.count(b":") > MOST_FIELDS


def _text_of_other(payload: JsonObject) -> str:
    """Return the text of a completion, or of a Responses API reply."""
    match payload:
        case {"choices": [{"text": str(text)}, *_]}:
            return text
        case {"output": list(items)}:
            return responses.text_in(items)
    return ""


def _is_other_cut(payload: JsonObject) -> bool:
    """Return whether a completion, or a Responses API reply, was truncated at its limit."""
    match payload:
        case {"choices": [{"finish_reason": _} as choice, *_]}:
            return chat_completion.read_finish(chat_completion.finish_of(choice))[0] == "length"
        case {"output": list(), "status": "incomplete"}:
            return True
    return False


def _read_other_form(
    status: int, headers: Mapping[str, str], body: bytes, payload: Any, endpoint: Endpoint, *, wanted: ReplyRequest
) -> Completion | RetryDecision:
    if 200 <= status < 300:
        if payload is None and chat_completion.is_stream(headers.get("Content-Type", ""), body):
            return _read_stream(headers, body, endpoint, wanted)
        payload = _unwrapped(_loosely(body) if payload is None else payload)
        if isinstance(payload, dict) and wanted.questions is not None:
            reply = _unwrapped(json.loads(body, object_pairs_hook=with_repeats)) if _may_repeat(body, payload) else None
            return _decided(payload, reply or payload, headers, endpoint, wanted)
        if isinstance(payload, dict):
            payload = _translated(payload, headers, endpoint)
            return read_payload(payload, headers, endpoint, wanted)
        text = body.strip()
        if not text or text[:1] in b"<{[":
            return _unreadable(endpoint, "an empty body" if not text else "a body that is not a JSON object", text)
        return replace(classify_refusal(status, headers, _text(text), endpoint), unmetered=True)
    if payload is None and chat_completion.is_stream("", body):
        payload = chat_completion.first_event(body)
    if payload is None:
        payload = _loosely(body)
    refused = _refused(status, headers, payload if payload is not None else _text(body), endpoint)
    return refused if wanted.questions is None else _only_decisions(refused)


def _may_repeat(body: bytes, payload: JsonDict) -> bool:
    """Return whether the names in an object of a reply may be repeated: of a repeated name, `payload` has one value."""
    try:
        return b"\\u003" in body or body.count(b":") != orjson.dumps(payload).count(b":")
    except TypeError:  # it is nested deeply
        return True


def _decided(
    payload: JsonDict, reply: JsonDict, headers: Mapping[str, str], endpoint: Endpoint, wanted: ReplyRequest
) -> Completion | RetryDecision:
    """Return the answers of a deciding model, or a failure that names the fields without an answer.

    `reply`: the payload, or the payload `with_repeats`. The failure contains the other fields. It is final: the model
    would answer in the same way again.
    """
    api, questions = DIALECTS[endpoint.dialect], wanted.questions
    assert isinstance(api, Deciding)
    assert questions is not None
    payload, reply = answering(payload), answering(reply)
    usage, tier = _usage(api.usage(payload), answers=False), _tier(payload)
    spent: _Spent = {"usage": usage, "tier": tier, "unmetered": not usage.prompt_tokens}
    if blocked := api.blocked(payload):
        error = PromptmillError(Code.CONTENT_FILTER, f"{endpoint.name} blocked this input: {blocked}.")
        return RetryDecision(FailureKind.ITEM, error, **spent)
    reading = api.read(reply, questions.expected)
    if reading is None:
        if _is_error(payload) or not _ERROR_FIELDS.isdisjoint(payload):
            return _only_decisions(_refused(200, headers, payload, endpoint))
        what = "a chat completion" if "choices" in payload else "no `answers`"
        error = PromptmillError(Code.BAD_RESPONSE, f"{endpoint.name} answered with {what}.", wrong_address(endpoint))
        return RetryDecision(FailureKind.ITEM, error, **spent)
    answer = questions.form.answer(reading.given, questions.fields)
    if error_of := reading.error(endpoint.name):
        part = answer.text if reading.given else ""
        return RetryDecision(FailureKind.ITEM, error_of, **spent, part=part, probabilities=answer.probabilities)
    model = payload.get("model")
    named = without_controls(model[:_LONGEST_NAME]) if isinstance(model, str) and model != wanted.model else ""
    details = {"body": payload} if wanted.keep_raw and chat_completion.can_go_on(payload) else None
    completion = Completion(answer.text, "stop", usage, probabilities=answer.probabilities, details=details)
    completion.answered_by, completion.tier = named, tier
    return completion


def _only_decisions(decision: RetryDecision) -> RetryDecision:
    """Return what follows an error of an API for decisions: of all 4xx statuses, only 408 and 429 are retried. Every
    row would be refused because of the model (501), or because of the number of options."""
    is_refused = decision.status in {400, 413, 422} and _TOO_MANY.search(decision.error.message)
    if decision.status == 501 or is_refused:
        remedy = f"Ask with fewer, or {_CHAT}" if is_refused else f"This model cannot decide there: {_CHAT}"
        error = PromptmillError(Code.UNSUPPORTED, decision.error.message, remedy)
        error.said = decision.error.said
        return replace(decision, kind=FailureKind.ENDPOINT, error=error)
    is_final = 400 <= decision.status < 500 and decision.status not in {408, 429}
    if not is_final or decision.kind in {FailureKind.ITEM, FailureKind.ENDPOINT}:
        return decision
    return replace(decision, kind=FailureKind.ITEM)


def _translated(payload: JsonDict, headers: Mapping[str, str], endpoint: Endpoint) -> JsonDict:
    """Convert a reply in the endpoint's dialect to a chat completion. Other objects, such as errors, stay unchanged."""
    translated = None if "choices" in payload else DIALECTS[endpoint.dialect].completion(payload, headers)
    return payload if translated is None else translated


def _refused(status: int, headers: Mapping[str, str], payload: Any, endpoint: Endpoint) -> RetryDecision:
    """Return the decision on an error, with the usage of an incomplete answer.

    An error has no cost, unless it reports a usage or follows a part of an answer.
    """
    decision = classify_refusal(status, headers, payload, endpoint)
    if not isinstance(payload, dict):
        return decision
    usage = _usage(payload.get("usage"))
    return replace(
        decision,
        usage=usage,
        tier=_tier(payload),
        unmetered=not usage.prompt_tokens and (decision.unmetered or bool(payload.get("choices"))),
    )


def _ordinary(payload: JsonDict) -> Completion | None:
    """Return the answer in an object of the usual form with only text; None for other objects.

    `read_payload` gives the same result, but takes four times as long.
    """
    try:
        (choice,) = payload["choices"]
        message, finish = choice["message"], choice["finish_reason"]
        text = message["content"]
        if finish not in _ENDS or type(text) is not str or not text:
            return None
    except (LookupError, TypeError, ValueError):
        return None
    if not _OWN_ENDS.isdisjoint(choice) and chat_completion.finish_of(choice) != finish:
        return None
    if choice.get("error") or choice.get("logprobs") or _is_error(payload) or not citations.LISTS.isdisjoint(payload):
        return None
    if not _NO_MATTER.issuperset(message) and any(message[name] for name in message.keys() - _NO_MATTER):
        return None
    usage = payload.get("usage")
    answer = Completion(text, finish, _usage(usage))
    if answer.usage.searches or "-search-" in str(payload.get("model")):
        return None
    if "service_tier" in payload or (isinstance(usage, dict) and "service_tier" in usage):
        answer.tier = _tier(payload)
    return answer


def _unwrapped(payload: Any) -> Any:
    """Remove wrappings that gateways add to a completion or error: a list, a JSON string, another object."""
    if isinstance(payload, str):
        payload = _loosely(payload.encode("utf-8", "replace"))
    if isinstance(payload, list) and len(payload) == 1:
        payload = payload[0]
    if isinstance(payload, dict) and "choices" not in payload:
        for name in ("data", "result", "response", "body", "output"):
            inner = payload.get(name)
            if isinstance(inner, dict) and isinstance(inner.get("choices"), list):
                return {"usage": payload.get("usage"), **inner}
        if isinstance(payload.get("message"), dict) and payload.get("done") is True:  # Ollama's own format
            choice = {"message": payload["message"], "finish_reason": payload.get("done_reason")}
            usage = {"prompt_tokens": payload.get("prompt_eval_count"), "completion_tokens": payload.get("eval_count")}
            return {"choices": [choice], "usage": usage}
    return payload


def _read_stream(
    headers: Mapping[str, str], body: bytes, endpoint: Endpoint, wanted: ReplyRequest
) -> Completion | RetryDecision:
    if max(map(body.count, (b"\n", b"\r"))) > 2 * MOST_EVENTS:
        return _unreadable(endpoint, f"a stream of more than {MOST_EVENTS:,} events", b"")
    try:
        whole = DIALECTS[endpoint.dialect].assemble(_objects(body))
        # surrogates are repaired last, because a pair of them may be split between two events
        completion = _translated(mended(whole), headers, endpoint)
        return read_payload(completion, headers, endpoint, wanted)
    except chat_completion.CutOffError:
        error = PromptmillError(
            Code.CONNECTION_LOST, f"{endpoint.name} ended the stream before the answer was complete."
        )
        return RetryDecision(FailureKind.TRANSIENT, error, unmetered=True)
    except chat_completion.UnreadableEventError as problem:
        return _unreadable(endpoint, str(problem), b"")
    except (ValueError, TypeError, AttributeError, KeyError):
        return _unreadable(endpoint, "a stream with an unreadable event", b"")


def _objects(body: bytes) -> Iterator[JsonDict]:
    """Yield the events of a stream. Raises `ValueError` if an event is not readable.

    An event without an object, such as an empty event or a word, only keeps the connection open. An object that is cut
    off at the end of the body is the stream's end.
    """
    events = chat_completion.events_in(body)
    following = next(events, None)
    has_object = False
    while following is not None:
        (name, data), following = following, next(events, None)
        if len(data) < _SHORT_EVENT and chat_completion.is_end(data):
            yield chat_completion.ENDED
            continue
        try:
            value = _load(data) if data.lstrip()[:1] in _JSON_STARTS else None
        except ValueError:
            if following is None and has_object:
                return
            raise
        if type(value) is dict and name != b"error":  # the case of nearly every event
            has_object = True
            yield value
            continue
        if name == b"error" and not isinstance(value, dict):
            value = {"error": {"message": _text(data.strip()) or "no reason given"}}
        for event in value if isinstance(value, list) else (value,):
            if isinstance(event, dict):
                has_object = True
                is_bare = name == b"error" and event.get("type") != "error" and not event.get("error")
                yield {"error": event} if is_bare else event
    if not has_object:
        raise ValueError("no event is a JSON object")


def read_payload(
    payload: JsonDict, headers: Mapping[str, str], endpoint: Endpoint, wanted: ReplyRequest = USUAL
) -> Completion | RetryDecision:
    """Return the answer in a chat completion, or the decision on a failure. Marked reasoning stays in the text."""
    choices = payload.get("choices")
    if _is_error(payload):
        return _refused(200, headers, payload, endpoint)
    if not isinstance(choices, list):
        if _ERROR_FIELDS.isdisjoint(payload):
            return _unreadable(endpoint, "no `choices`", b"")
        return _refused(200, headers, payload, endpoint)
    usage, tier = _usage(payload.get("usage")), _tier(payload)
    spent: _Spent = {"usage": usage, "tier": tier, "unmetered": not usage.prompt_tokens}
    if not choices or not isinstance(choices[0], dict):
        unread = _prompt_filtered(payload)  # the prompt was filtered, so no tokens were read
        return replace(_filtered(endpoint, spent), unmetered=False) if unread else _empty(endpoint, spent)
    choice = choices[0]
    if isinstance(choice.get("error"), dict):  # from OpenRouter, if the provider failed while it answered
        return replace(classify_refusal(200, headers, {"error": choice["error"]}, endpoint), **spent)
    finish, ending = chat_completion.read_finish(chat_completion.finish_of(choice))
    if ending is ReplyEnd.FILTERED:
        return _filtered(endpoint, spent, _refusal(choice))
    if ending is ReplyEnd.BROKEN_OFF:
        error = PromptmillError(Code.SERVER_ERROR, f"{endpoint.name} broke off this answer ({finish:.60}).")
        return RetryDecision(FailureKind.TRANSIENT, error, **spent)
    logprobs = choice.get("logprobs")
    try:
        message = _message(choice)
        text, reasoning, tool_calls = _contents(message) if len(choices) == 1 else _joined(choices)
        if (tool_calls or logprobs) and not chat_completion.can_go_on((tool_calls, logprobs)):
            raise _ShapeError("tool calls or `logprobs` that JSON cannot represent")
    except _ShapeError as problem:
        return replace(_unreadable(endpoint, str(problem), b""), **spent)
    are_none = text and not tool_calls and any(message.get(name) for name in ("tool_calls", "function_call"))
    finish = "stop" if are_none and finish == "tool_calls" else finish
    refusal = message.get("refusal")
    if not text and not tool_calls:
        if refusal:
            text = chat_completion.text_of(refusal)
        elif finish is None:
            return _empty(endpoint, spent)
    answer = Completion(
        text,
        finish,
        usage,
        reasoning,
        tool_calls,
        logprobs=logprobs if isinstance(logprobs, dict) else None,
        details=chat_completion.details_of(payload, choice, message) if wanted.keep_raw else None,
        tier=tier,
        is_refusal=bool(refusal and text == refusal),
    )
    _read_sources(answer, payload, message, endpoint, wanted)
    return answer


def _read_sources(
    answer: Completion, payload: JsonObject, message: JsonObject, endpoint: Endpoint, wanted: ReplyRequest
) -> None:
    """Set the pages that an answer cites, and the number of searches. After a search, remove the marks of citations.

    If the endpoint reports no searches, pages count as one search if the request allows searches, or if the provider
    names only pages of its own search.
    """
    cited = citations.read(payload, message)
    answer.sources = cited.sources
    provider = endpoint.profile.name
    may_search = wanted.may_search or provider in citations.SEARCHING
    if not answer.usage.searches and (
        (answer.sources and may_search) or _ALWAYS_SEARCHES.search(str(payload.get("model")))
    ):
        answer.usage = replace(answer.usage, searches=1)
    if answer.usage.searches and not wanted.keep_raw:  # a changed text would not fit the kept annotations
        text = answer.text if wanted.has_form else cited.renumbered(answer.text)
        answer.text = cited.unmarked(text, is_openai=provider in _OF_OPENAI)


class _ShapeError(Exception):
    """An answer does not contain a message. The exception's text describes what it contains."""


def _message(choice: JsonObject) -> JsonObject:
    """Return the message of a choice, which may be of a stream or of a text completion. Raises `_ShapeError`."""
    for name in ("message", "delta"):
        if isinstance(message := choice.get(name), dict):
            return message
    if not isinstance(text := choice.get("text"), str):
        raise _ShapeError("a choice without a message")
    return {"content": text}


def _contents(message: JsonObject) -> tuple[str, str | None, tuple[JsonObject, ...]]:
    """Return text, reasoning and tool calls of a message. Raises `_ShapeError` if the message is malformed."""
    try:
        text, reasoning = chat_completion.read_message(message)
    except TypeError:
        raise _ShapeError("a `content` that is not text") from None
    calls = message.get("tool_calls")
    older = message.get("function_call")
    if not calls and isinstance(older, dict) and older.get("name"):
        calls = [{"id": "", "type": "function", "function": older}]
    if isinstance(calls, list):
        real = [call for call in calls if not _is_no_call(call)]
        calls = real if real or text else calls
    objects = [_call(call) for call in calls if isinstance(call, dict)] if isinstance(calls, list) else []
    tool_calls = tuple(chat_completion.distinct(objects))
    if calls and not (tool_calls or text):
        raise _ShapeError("`tool_calls` that are not a list of objects")
    return text, reasoning, tool_calls


def _is_no_call(call: Any) -> bool:
    """Return whether a call has neither a name nor arguments: some gateways fill unused fields with such calls."""
    if not isinstance(call, dict):
        return call is None
    function = call.get("function") or call.get("custom") or call
    if not isinstance(function, dict) or function.get("name"):
        return False
    return all(function.get(name) in (None, "", "{}", {}) for name in ("arguments", "input", "parameters"))


def _call(call: JsonObject) -> JsonDict:
    """Return a tool call; some servers do not put its parts into `function`. Raises `_ShapeError` without a name."""
    function = call.get("function")
    if function is None and isinstance(call.get("custom"), dict):
        return {**call}
    if function is None and call.get("name"):
        arguments = call.get("arguments", call.get("input", call.get("parameters")))
        return dialect.call(str(call.get("id") or ""), call["name"], arguments)
    if not isinstance(function, dict) or not isinstance(function.get("name"), str) or not function["name"]:
        raise _ShapeError("a tool call without the name of a function")
    return {**call}


def _called(call: JsonObject) -> object:
    """Return what identifies a call among several choices: its name and arguments, because the id may differ."""
    return call.get("function") or call.get("custom")


def _joined(choices: list[Any]) -> tuple[str, str | None, tuple[JsonObject, ...]]:
    """Return the contents of an answer that consists of several choices, because a gateway split text and calls."""
    contents = [_contents(_message(choice)) for choice in choices if isinstance(choice, dict)]
    texts, thoughts, calls = zip(*contents, strict=True)
    different: list[JsonObject] = []
    for found in calls:
        known = [_called(call) for call in different]
        different += [call for call in found if _called(call) not in known]
    tool_calls = tuple(chat_completion.distinct([{**call} for call in different]))
    return next(filter(None, texts), ""), next(filter(None, thoughts), None), tool_calls


def _tier(payload: JsonObject) -> str:
    """Return the service tier of an answer, from OpenAI's field or from Anthropic's usage."""
    tier = payload.get("service_tier")
    if tier is None and isinstance(usage := payload.get("usage"), dict):
        tier = usage.get("service_tier")
    return tier.lower() if isinstance(tier, str) else ""


def _is_error(payload: JsonObject) -> bool:
    """Return whether a body reports an error, whatever its status and its `choices`."""
    if payload.get("object") == "error":
        return True
    if _ERROR_SIGNS.isdisjoint(payload):
        return False
    if payload.get("error") or payload.get("error_code"):
        return True
    base = payload.get("base_resp")  # MiniMax
    return isinstance(base, dict) and base.get("status_code", 0) not in {0, "0", None}


def _prompt_filtered(payload: JsonObject) -> bool:
    results = payload.get("prompt_filter_results")
    return bool(results) and b'"filtered":true' in orjson.dumps(results)


def _usage(usage: Any, *, answers: bool = True) -> Usage:
    """Return the usage that an endpoint reports; an empty usage if a count is missing or invalid.

    A prompt of 0 tokens also counts as missing: some gateways send zeros, even if their `total_tokens` is not 0. If
    `answers` is false, as for embeddings, the count of answer tokens may be missing.
    """
    if not isinstance(usage, dict):
        return NO_USAGE
    prompt, completion, total = usage.get("prompt_tokens"), usage.get("completion_tokens"), usage.get("total_tokens")
    if (
        usage.keys() <= _PLAIN_USAGE  # the usage has no details
        and type(prompt) is type(completion) is int
        and total in (None, prompt + completion)
        and 0 <= completion < prompt + completion <= MOST_TOKENS
    ):
        return Usage(prompt, completion)
    if usage.keys() == _USAGE_OF_DECISIONS:
        prompt, completion = usage["input_tokens"], usage["output_tokens"]
        if type(prompt) is type(completion) is int and 0 < prompt <= MOST_TOKENS and 0 <= completion <= MOST_TOKENS:
            return Usage(prompt, completion)
    prompt, completion = _count(usage, "prompt_tokens"), _count(usage, "completion_tokens")
    if "input_tokens" in usage or "output_tokens" in usage:
        prompt = _largest(usage, "prompt_tokens", "input_tokens")
        completion = _largest(usage, "completion_tokens", "output_tokens")
    total = _count(usage, "total_tokens") or 0
    if not answers:
        prompt, completion = prompt or total, completion or 0
    if prompt is None or completion is None:
        return NO_USAGE
    of_prompt = _details(usage, "prompt_tokens_details", "input_tokens_details")
    cached, written = _count_of_any(_CACHED, of_prompt, usage), _count_of_any(_WRITTEN, of_prompt, usage)
    kinds = [_details(part, name) for part in (of_prompt, usage) for name in _WRITTEN_KINDS]
    an_hour = max(_count_of_any(_HOURS_WRITTEN, *kinds), _count(of_prompt, "cache_write_1h_tokens") or 0)
    written = written or an_hour + _count_of_any(_MINUTES_WRITTEN, *kinds)
    reasoning = _count(_details(usage, "completion_tokens_details", "output_tokens_details"), "reasoning_tokens") or 0
    beside, rest = cached + written, total - prompt - completion
    if beside > prompt or (beside and rest == beside != reasoning):  # `prompt` excludes these tokens, as at Anthropic
        prompt += beside
    if not prompt:
        return NO_USAGE
    # the largest count is used, because xAI and Gemini bill reasoning as output, but include it only in the total
    completion = max(completion, total - prompt, completion + reasoning if reasoning > completion else 0)
    cached, written = min(cached, prompt), min(written, prompt - min(cached, prompt))
    counts = (prompt, completion, cached, min(reasoning, completion), written, min(an_hour, written))
    audio = min(prompt, _count(of_prompt, "audio_tokens") or 0)
    return Usage(*counts, _searches(usage), _stated_cost(usage), audio)


def _searches(usage: JsonObject) -> int:
    """Return the number of web searches, from Anthropic's field, which OpenRouter and the dialects use, too."""
    return _count(_details(usage, "server_tool_use"), "web_search_requests") or 0


def _stated_cost(usage: JsonObject) -> int:
    """Return the request's cost, which the usage of xAI, Perplexity and OpenRouter states; otherwise 0. It is also 0 if
    OpenRouter used the user's own key, because the key's provider bills separately."""
    ticks, cost = usage.get("cost_in_usd_ticks"), usage.get("cost")
    if type(ticks) is int and 0 < ticks < MOST_TOKENS * TICKS:
        return ticks
    if isinstance(cost, Mapping):
        cost = cost.get("total_cost")
    if not isinstance(cost, int | float) or usage.get("is_byok"):
        return 0
    return round(cost * TICKS) if 0 < cost < MOST_TOKENS else 0


# Names of the count of tokens that were read from a cache, as sent by OpenAI, DeepSeek, LiteLLM (for Anthropic's
# models) and others. Gateways pass on the last four names, which come from Gemini's SDK, vLLM, Bedrock and Gemini.
_CACHED = (
    "cached_tokens",
    "prompt_cache_hit_tokens",
    "cache_read_input_tokens",
    "cache_read_tokens",
    "cached_input_tokens",
    "cached_prompt_tokens",
    "cached_content_token_count",
    "num_cached_tokens",
    "cacheReadInputTokens",
    "cachedContentTokenCount",
)
# Names of the count of tokens written to a cache, as sent by OpenAI, Anthropic and DashScope, LiteLLM, and others.
_WRITTEN = (
    "cache_write_tokens",
    "cache_creation_input_tokens",
    "cache_creation_tokens",
    "cache_write_input_tokens",
    "cached_creation_tokens",
    "cacheWriteInputTokens",
)
# Written tokens by the time that the cache keeps them: at Anthropic, LiteLLM, OpenAI (`/responses`).
_WRITTEN_KINDS = ("cache_creation", "cache_creation_token_details", "cache_write_tokens_details")
_HOURS_WRITTEN = ("ephemeral_1h_input_tokens", "ttl_12h_tokens")
_MINUTES_WRITTEN = ("ephemeral_5m_input_tokens", "ttl_30m_tokens")


def _count_of_any(names: tuple[str, ...], *parts: JsonObject) -> int:
    """Return the first count that is not 0, in the first of `parts` that has one."""
    return next((count for part in parts for name in names if (count := _count(part, name))), 0)


def _details(usage: JsonObject, name: str, other: str = "") -> JsonObject:
    """Return the details of a count, from the field `name`, which the Responses API calls `other`."""
    details = usage.get(name) or usage.get(other)
    return details if isinstance(details, dict) else _NO_DETAILS


def _largest(usage: JsonObject, *names: str) -> int | None:
    """Return the largest of these counts, which some gateways repeat; None if all are missing or one is invalid."""
    given = [name for name in names if usage.get(name) is not None]
    counts = [count for name in given if (count := _count(usage, name)) is not None]
    return max(counts, default=None) if len(counts) == len(given) else None


def _count(usage: JsonObject, name: str) -> int | None:
    return count_of(usage.get(name))


def _loosely(body: bytes) -> Any:
    try:
        return mended(_load_leniently(body))
    except ValueError:
        return None


def _json(body: bytes) -> Any:
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        return None


def _as_utf8(body: bytes, headers: Mapping[str, str]) -> bytes:
    """Return a body in UTF-8, which JSON requires, if its `Content-Type` names another charset."""
    charset = _CHARSET.search(headers.get("Content-Type", "")[:200])
    if charset is None or len(body) > LONGEST_ANSWER:
        return body
    try:
        return body.decode(charset[1]).encode()
    except (LookupError, UnicodeError):
        return body


def _text(body: bytes) -> str:
    return body[:4096].decode("utf-8", "replace")


def _unreadable(endpoint: Endpoint, problem: str, body: bytes) -> RetryDecision:
    page = body.lstrip()[:1] == b"<"
    error = PromptmillError(
        Code.BAD_RESPONSE,
        f"{endpoint.name} answered with {_page(body) if page else problem}.",
        wrong_address(endpoint) if page else None,
    )
    # the answer may be billed although a proxy has replaced it by a web page
    return RetryDecision(FailureKind.TRANSIENT, error, status=200 if page else 0, unmetered=True)


def _page(body: bytes) -> str:
    title = " ".join(without_controls(read_error(_text(body)).shown).split())[:60]
    return f"a web page ({title})" if title else "a web page"


def _refusal(choice: JsonObject) -> str:
    """Return the API's reason for filtering an answer."""
    message = choice.get("message")
    said = message.get("refusal") if isinstance(message, dict) else None
    return (
        " ".join(without_controls(said[:LONGEST_SEARCHED]).split())[:400].rstrip(".") if isinstance(said, str) else ""
    )


def _filtered(endpoint: Endpoint, spent: _Spent, said: str = "") -> RetryDecision:
    reason = redact(f": {said}", endpoint.hidden) if said else ""
    error = PromptmillError(Code.CONTENT_FILTER, f"{endpoint.name} filtered this answer{reason}.")
    return RetryDecision(FailureKind.ITEM, error, **spent)


def _empty(endpoint: Endpoint, spent: _Spent) -> RetryDecision:
    error = PromptmillError(Code.EMPTY_ANSWER, f"{endpoint.name} gave an empty answer.")
    return RetryDecision(FailureKind.TRANSIENT, error, **spent)


def _load(data: bytes) -> Any:
    if _has_too_many_fields(data):
        raise ValueError("too many fields")
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError:
        return _load_leniently(data)


def _load_leniently(data: bytes) -> Any:
    """Parse `data` that orjson refused: it has unpaired surrogates (llama.cpp splits emojis) or invalid UTF-8.

    Unpaired surrogates are kept, because the next event may have the other half. Raises `ValueError`.
    """
    if len(data) > LONGEST_ANSWER:
        raise ValueError("too large")
    try:
        return json.loads(data.decode("utf-8", "replace"))
    except RecursionError:
        raise ValueError("nested too deeply") from None
