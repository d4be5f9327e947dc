"""Classify error responses: retried or not, after how long, and whom they affect."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from promptmill.backends.openai.asked_wait import asked_wait_s
from promptmill.backends.openai.endpoint import Endpoint
from promptmill.backends.openai.error_body import ErrorBody, read_error
from promptmill.backends.openai.error_words import (
    CODES,
    CONTEXT_FOR_SURE,
    FEATURE,
    NEVER_ENOUGH,
    NO_QUOTA_AT_ALL,
    PER_DAY,
    PER_MINUTE,
    SOFT_QUOTA,
    WORDS,
    Cause,
)
from promptmill.backends.openai.refusal_hints import hint_of
from promptmill.backends.openai.retry import FailureKind, RetryDecision
from promptmill.core.errors import Code, PromptmillError, redact, without_controls

_RATE_LIMITS = frozenset({420, 429})  # 420 is the same to some
# Beside these and 5xx: 498 is some providers' 503, 424 is TGI's and Azure's word for a broken backend, 444, 460 and 499
# are written by balancers whose own client went away.
_RETRIED = frozenset({408, 409, 423, 424, 425, 444, 460, 498, 499})
_NEVER_RETRIED = frozenset({501, 505})
# The endpoint, or a gateway before it, gave up waiting for the model, whose answer may be billed.
_GAVE_UP_WAITING = frozenset({408, 504, 524})
_LONGEST_REASON = 400
_ERROR_FIELDS = ("message", "type", "param", "code")
_LATER = "It is a limit of a day or more: start again when it is reset, or use another key."
_LONGEST_READ = 1 << 14

_FINAL = {
    Cause.FILTER: Code.CONTENT_FILTER,
    Cause.CONTEXT: Code.CONTEXT_LENGTH,
    Cause.TOO_LARGE: Code.REQUEST_TOO_LARGE,
    Cause.INPUT: Code.BAD_REQUEST,
}
_ENDPOINTS = {
    Cause.KEY: Code.UNAUTHORIZED,
    Cause.MODEL: Code.NOT_FOUND,
    Cause.QUOTA: Code.INSUFFICIENT_QUOTA,
}


def classify_refusal(
    status: int, headers: Mapping[str, str], payload: Any, endpoint: Endpoint, now: float | None = None
) -> RetryDecision:
    """Return what a response with `status` and parsed body `payload` (or its text) means; `now` is Unix time.

    A status below 300 is one whose body says that there is no answer.
    """
    body = read_error(payload)
    wait_s = asked_wait_s(headers, body.payload, body.words, now)
    meant = status if status >= 300 else body.status or 0
    cause = endpoint.profile.cause_of(body) or _cause(meant, body, wait_s)
    if cause is Cause.INPUT and meant < 500:  # a provider's one code for many mistakes
        cause = _first(body, Cause.FILTER, Cause.CONTEXT, Cause.TOO_LARGE, Cause.MODEL) or cause
    decision = replace(_decision(cause, meant, _message(status, body, endpoint), wait_s), status=meant)
    if meant in _GAVE_UP_WAITING:
        decision = replace(decision, unmetered=True)
    if (hint := hint_of(status, headers, body, endpoint)) is not None:
        error = PromptmillError(decision.error.code, decision.error.message, hint)
        decision = replace(decision, error=error)
    if status >= 300:
        decision.error.said = {"status_code": status, "error": _fields(body, endpoint)}
    return decision


def _fields(body: ErrorBody, endpoint: Endpoint) -> dict[str, Any]:
    """Return the fields of the endpoint's error object that OpenAI's and vLLM's have, as far as it gave them."""
    payload = body.payload
    inner = payload.get("error", payload) if isinstance(payload, dict) else None
    if not isinstance(inner, dict):
        inner = payload if isinstance(payload, dict) else {}
    found = {name: inner[name] for name in _ERROR_FIELDS if isinstance(inner.get(name), str | int)}
    shown = {"message": body.shown} | found
    return {
        name: redact(without_controls(value[:_LONGEST_READ]), endpoint.secrets)[:_LONGEST_REASON]
        if isinstance(value, str)
        else value
        for name, value in shown.items()
    }


def _decision(cause: Cause, meant: int, message: str, wait_s: float | None) -> RetryDecision:
    if cause in _FINAL:
        code = Code.SERVER_ERROR if meant in _NEVER_RETRIED else _FINAL[cause]
        if 300 <= meant < 400:
            code = Code.BAD_RESPONSE
        return RetryDecision(FailureKind.ITEM, PromptmillError(code, message))
    if cause in _ENDPOINTS:
        error = PromptmillError(_ENDPOINTS[cause], message)
        return RetryDecision(FailureKind.ENDPOINT, error, wait_s)
    if cause is Cause.DAY:
        return RetryDecision(FailureKind.ENDPOINT, PromptmillError(Code.RATE_LIMITED, message, _LATER))
    if cause is Cause.RATE:
        return RetryDecision(FailureKind.LOAD, PromptmillError(Code.RATE_LIMITED, message), wait_s)
    if not meant:
        return RetryDecision(FailureKind.TRANSIENT, PromptmillError(Code.BAD_RESPONSE, message), wait_s)
    kind = FailureKind.LOST if meant == 503 else FailureKind.TRANSIENT
    code = Code.TIMEOUT if meant == 408 else Code.SERVER_ERROR
    return RetryDecision(kind, PromptmillError(code, message), wait_s)


def with_wait_hint(decision: RetryDecision, now: float) -> RetryDecision:
    """Return `decision` as final, with a hint that says when its wait will be over. `now` is Unix time."""
    assert decision.wait_s is not None
    over = datetime.fromtimestamp(min(now + decision.wait_s, 253_402_300_799), UTC)
    hours = decision.wait_s / 3600
    span = f"{hours:.0f} h" if hours >= 2 else f"{decision.wait_s / 60:.0f} min"
    hint = f"It asks to wait until {over:%Y-%m-%d %H:%M} UTC, in {span}; start again then, or use another key."
    error = PromptmillError(decision.error.code, decision.error.message, hint)
    return replace(decision, kind=FailureKind.ENDPOINT, error=error)


def _message(status: int, body: ErrorBody, endpoint: Endpoint) -> str:
    reason = " ".join(without_controls(body.shown[:_LONGEST_READ]).split())
    reason = redact(reason, endpoint.secrets)
    if len(reason) > _LONGEST_REASON:
        reason = reason[:_LONGEST_REASON] + "…"
    named = f" {body.status}" if body.status else ""
    verb = f"answered {status}" if status >= 300 else f"sent an error{named} with status {status}"
    message = f"{endpoint.name} {verb}{f': {reason}' if reason else ''}"
    return message if message[-1] in ".!?…" else message + "."  # our own sentence follows


def _cause(status: int, body: ErrorBody, wait_s: float | None) -> Cause:
    """Return why `status` was sent; 0 stands for a body that is an error and names no status."""
    if status in _RATE_LIMITS:
        return _limit(body, wait_s)
    if status == 402:
        return Cause.QUOTA
    if status in _RETRIED:
        if status == 498 and _says(body, Cause.KEY):
            return Cause.KEY
        return _first(body, Cause.FILTER) or Cause.BUSY
    if status >= 500:
        return _server_error(status, body)
    if status in {401, 407}:
        return Cause.QUOTA if _says(body, Cause.QUOTA) else Cause.KEY
    if status == 403:
        return _first(body, Cause.FILTER, Cause.QUOTA, Cause.MODEL, Cause.RATE) or Cause.KEY
    if status == 405:
        return Cause.INPUT
    if status in {404, 410}:
        return Cause.INPUT if FEATURE.search(body.words) else Cause.MODEL
    if status in {413, 414, 431}:
        return _first(body, Cause.CONTEXT) or Cause.TOO_LARGE
    if 300 <= status < 400:
        return Cause.INPUT
    found = _first(
        body, Cause.FILTER, Cause.CONTEXT, Cause.TOO_LARGE, Cause.QUOTA, Cause.MODEL, Cause.KEY, Cause.RATE, Cause.BUSY
    )
    if found is None and status == 451:
        return Cause.FILTER
    return found or (Cause.INPUT if status else Cause.BUSY)


def _limit(body: ErrorBody, wait_s: float | None) -> Cause:
    """Return what a rate limit is about: one request, minutes, a day or money."""
    enough = NEVER_ENOUGH.search(body.words)
    if _says(body, Cause.TOO_LARGE) or (enough and int(enough[2]) > int(enough[1])):
        return Cause.TOO_LARGE
    if _says(body, Cause.QUOTA) or NO_QUOTA_AT_ALL.search(body.words):
        return Cause.QUOTA
    day, minute = PER_DAY.search(body.words), PER_MINUTE.search(body.words)
    if SOFT_QUOTA.search(body.words):
        return Cause.DAY if day else Cause.QUOTA if wait_s is None and not minute else Cause.RATE
    return Cause.DAY if day and wait_s is None and not minute else Cause.RATE


def _server_error(status: int, body: ErrorBody) -> Cause:
    if status in _NEVER_RETRIED:
        return Cause.INPUT
    if _coded(body, Cause.CONTEXT) or CONTEXT_FOR_SURE.search(body.words):
        return Cause.CONTEXT
    if _coded(body, Cause.FILTER):
        return Cause.FILTER
    found = _first(body, Cause.TOO_LARGE, Cause.QUOTA, Cause.KEY)
    if found is None and status == 500 and WORDS[Cause.MODEL].search(body.words):
        return Cause.MODEL
    return found or Cause.BUSY


def _first(body: ErrorBody, *causes: Cause) -> Cause | None:
    """Return the first of `causes` that a code names, else the first that words name."""
    coded = next((cause for cause in causes if _coded(body, cause)), None)
    return coded or next((cause for cause in causes if WORDS[cause].search(body.words)), None)


def _coded(body: ErrorBody, cause: Cause) -> bool:
    return not body.codes.isdisjoint(CODES.get(cause, frozenset()))


def _says(body: ErrorBody, cause: Cause) -> bool:
    return _coded(body, cause) or WORDS[cause].search(body.words) is not None
