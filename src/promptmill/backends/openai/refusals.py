"""Classifies error responses: cause, time of the next attempt, affected requests, and remedy.

status, body → cause (by the provider's codes, else by words and status) → kind, code and wait → hint
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urljoin, urlsplit, urlunsplit

from promptmill.backends.openai import error_body
from promptmill.backends.openai.asked_wait import asked_wait_s
from promptmill.backends.openai.endpoint import COMPLETIONS, KEY_HEADERS, Endpoint
from promptmill.backends.openai.error_body import Cause, ErrorBody, read_error
from promptmill.backends.openai.error_hints import HINTS
from promptmill.backends.openai.failures import FailureKind, RetryDecision
from promptmill.backends.openai.key_text import is_placeholder_key, names_key_variable
from promptmill.core.bounds import LONGEST_SEARCHED
from promptmill.core.errors import Code, Named, PromptmillError, Words, redact, without_controls

_RATE_LIMITS = frozenset({420, 429})  # some servers send 420 instead of 429
# Statuses that are retried in addition to `_RATE_LIMITS` and 5xx: 498 is some providers' 503, 424 means a broken
# backend at TGI and Azure, and load balancers send 444, 460 and 499 when their own client has disconnected.
_RETRIED = frozenset({408, 409, 423, 424, 425, 444, 460, 498, 499})
_NEVER_RETRIED = frozenset({501, 505})
# With these statuses, the endpoint or its gateway stopped waiting for the model (408, 504, 524), or got an unusable
# response (502, Cloudflare's 520). The answer is lost, but may be billed.
_LOST_ANSWERS = frozenset({408, 502, 504, 520, 524})
_ERROR_FIELDS = ("message", "type", "param", "code")
_LATER = "It is a limit of a day or more: start again after its reset, or use another key."

_FINAL = {
    Cause.FILTER: Code.CONTENT_FILTER,
    Cause.CONTEXT: Code.CONTEXT_LENGTH,
    Cause.CUT: Code.TRUNCATED,
    Cause.TOO_LARGE: Code.REQUEST_TOO_LARGE,
    Cause.INPUT: Code.BAD_REQUEST,
}
_ENDPOINTS = {
    Cause.KEY: Code.UNAUTHORIZED,
    Cause.MODEL: Code.NOT_FOUND,
    Cause.QUOTA: Code.INSUFFICIENT_QUOTA,
}
# Words with which nginx, Apache, Go, Tomcat, and Node behind a load balancer reply to plain HTTP on a TLS port.
SPOKE_TLS = ("https port", "ssl-enabled", "requires tls", "https server")
_RESPONSES = r"(?:/?v1/responses|/responses|(?:openai )?responses (?:api|endpoint))\b"
_RESPONSES_ONLY = re.compile(
    rf"only .{{0,40}}{_RESPONSES}|(?:use|try|call|via|through|switch to) (?:the )?[`'\"]?{_RESPONSES}"
    rf"|not .{{0,40}}chat/completions.{{0,80}}{_RESPONSES}"
)
_ABOUT_MODELS = re.compile(r"model|deployment|engine")
_KEYS = "key|token|credential|session|signature|jwt|certificate"
_EXPIRED = re.compile(rf"(?:{_KEYS})s?\b.{{0,60}}\bexpired|expired\b.{{0,40}}(?:{_KEYS})|expired_?token")
_INVALID = re.compile(
    rf"(?:{_KEYS})s?\b.{{0,60}}(?:invalid|not valid|revoked)|(?:invalid|bad|malformed|revoked)\b.{{0,20}}(?:{_KEYS})"
)
_NO_REASON = frozenset({"", "forbidden", "403 forbidden"})
_LACKS_PERMISSION = re.compile(
    r"permission|insufficient[_ ](?:scope|privilege)|not (?:authorized|allowed) to|access denied"
)


def classify_refusal(status: int, headers: Mapping[str, str], payload: Any, endpoint: Endpoint) -> RetryDecision:
    """Return the decision for an error response. `payload`: the parsed body or its text.

    A status below 300 means that only the body reports an error.
    """
    body = read_error(payload)
    wait_s = asked_wait_s(headers, body.payload, body.words)
    meant = status if status >= 300 else body.status or 0
    cause = endpoint.profile.errors.cause_of(body) or _cause(meant, body, wait_s)
    if cause is Cause.INPUT and meant < 500:  # a provider may use one code for many mistakes, so look at the body, too
        cause = _first(body, Cause.FILTER, Cause.CONTEXT, Cause.CUT, Cause.TOO_LARGE, Cause.MODEL) or cause
    if cause in {Cause.INPUT, Cause.BUSY} and meant < 500 and _says(body, Cause.SAMPLE):
        cause = Cause.SAMPLE
    is_own = isinstance(payload, dict) and bool(payload.get("error"))  # the API itself reports the failure
    decision = replace(_decision(cause, meant, _message(status, body, endpoint), wait_s, is_own=is_own), status=meant)
    if meant in _LOST_ANSWERS or cause is Cause.CUT:
        decision = replace(decision, unmetered=True)
    if (hint := _hint_of(status, headers, body, endpoint, cause)) is not None:
        error = PromptmillError(decision.error.code, decision.error.message, hint)
        decision = replace(decision, error=error)
    decision = _as_asked(decision, headers.get("x-should-retry"))
    if status >= 300:
        decision.error.said = {"status_code": status, "error": _fields(body, endpoint)}
    return decision


def refuses_key(status: int, headers: Mapping[str, str], body: bytes, endpoint: Endpoint) -> bool:
    """Return whether a response refuses the key itself, so that a newer key may be accepted.

    A permission that the key lacks is no reason for a newer key. Some APIs refuse a key with status 200.
    """
    if status == 401:
        return True
    if (status < 300 and b"error" not in body) or 300 <= status < 400:
        return False
    if status == 403 and "invalid_token" in headers.get("WWW-Authenticate", ""):
        return True
    error = read_error(body.decode("utf-8", "replace"))
    if status < 300 and not _is_error(error.payload):
        return False
    meant = status if status >= 300 else error.status or 0
    cause = endpoint.profile.errors.cause_of(error) or _cause(meant, error, None)
    if cause in {Cause.KEY, Cause.MODEL, Cause.INPUT} and _EXPIRED.search(error.words):
        return True
    if cause is not Cause.KEY or _LACKS_PERMISSION.search(error.words):
        return False
    is_bare = error.shown.lower().rstrip(".") in _NO_REASON
    return is_bare or _says(error, Cause.KEY) or (status == 403 and _INVALID.search(error.words) is not None)


def _is_error(payload: object) -> bool:
    return isinstance(payload, dict) and bool(payload.get("error") or payload.keys() & {"error_code", "error_msg"})


def _as_asked(decision: RetryDecision, should_retry: str | None) -> RetryDecision:
    """Return the decision, which the server may change with `x-should-retry` (OpenAI, Anthropic)."""
    word = should_retry.strip().lower() if should_retry else ""
    if word == "false" and decision.kind is not FailureKind.ENDPOINT:
        return replace(decision, kind=FailureKind.ITEM)
    if word == "true" and decision.kind in {FailureKind.ITEM, FailureKind.ENDPOINT}:
        return replace(decision, kind=FailureKind.TRANSIENT)
    return decision


def _fields(body: ErrorBody, endpoint: Endpoint) -> dict[str, object]:
    """Return the endpoint's error with the fields of OpenAI's and vLLM's error object."""
    payload = body.payload
    inner = payload.get("error", payload) if isinstance(payload, dict) else None
    if not isinstance(inner, dict):
        inner = payload if isinstance(payload, dict) else {}
    fields = {name: inner[name] for name in _ERROR_FIELDS if isinstance(inner.get(name), str | int)}
    shown = {"message": body.shown} | fields
    return {
        name: redact(without_controls(value[:LONGEST_SEARCHED]), endpoint.hidden)[:400]
        if isinstance(value, str)
        else value
        for name, value in shown.items()
    }


def _decision(cause: Cause, meant: int, message: str, wait_s: float | None, *, is_own: bool) -> RetryDecision:
    if cause in _FINAL:
        code = Code.SERVER_ERROR if meant in _NEVER_RETRIED else _FINAL[cause]
        if 300 <= meant < 400:
            code = Code.BAD_RESPONSE
        return RetryDecision(FailureKind.ITEM, PromptmillError(code, message))
    if cause in _ENDPOINTS:
        error = PromptmillError(_ENDPOINTS[cause], message)
        return RetryDecision(FailureKind.ENDPOINT, error, wait_s)
    if cause is Cause.SAMPLE:
        return RetryDecision(FailureKind.TRANSIENT, PromptmillError(Code.INVALID_ANSWER, message), wait_s)
    if cause is Cause.DAY:
        return RetryDecision(FailureKind.ENDPOINT, PromptmillError(Code.RATE_LIMITED, message, _LATER))
    if cause is Cause.RATE:
        return RetryDecision(FailureKind.LOAD, PromptmillError(Code.RATE_LIMITED, message), wait_s)
    if not meant:
        code = Code.SERVER_ERROR if is_own else Code.BAD_RESPONSE
        return RetryDecision(FailureKind.TRANSIENT, PromptmillError(code, message), wait_s)
    kind = FailureKind.LOST if meant == 503 else FailureKind.TRANSIENT
    code = Code.TIMEOUT if meant == 408 else Code.SERVER_ERROR
    return RetryDecision(kind, PromptmillError(code, message), wait_s)


def with_wait_hint(decision: RetryDecision, now: float) -> RetryDecision:
    """Return `decision` as a final decision, with a hint that states when the requested wait ends. `now`: Unix time."""
    assert decision.wait_s is not None
    over = datetime.fromtimestamp(min(now + decision.wait_s, 253_402_300_799), UTC)
    hours = decision.wait_s / 3600
    span = f"{hours:.0f} h" if hours >= 2 else f"{decision.wait_s / 60:.0f} min"
    hint = f"It asks to wait until {over:%Y-%m-%d %H:%M} UTC, in {span}; start again then, or use another key."
    error = PromptmillError(decision.error.code, decision.error.message, hint)
    return replace(decision, kind=FailureKind.ENDPOINT, error=error)


def _message(status: int, body: ErrorBody, endpoint: Endpoint) -> str:
    reason = " ".join(without_controls(body.shown[:LONGEST_SEARCHED]).split())
    reason = redact(reason, endpoint.hidden)
    if len(reason) > 400:
        reason = reason[:400] + "…"
    named = f" {body.status}" if body.status else ""
    verb = f"answered {status}" if status >= 300 else f"sent an error{named} with status {status}"
    message = f"{endpoint.name} {verb}{f': {reason}' if reason else ''}"
    return message if message[-1] in ".!?…" else message + "."  # ends with a stop, because another sentence follows


def _cause(status: int, body: ErrorBody, wait_s: float | None) -> Cause:
    """Return the cause of an error response. `status` is 0 for an error body without a status."""
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
        return Cause.INPUT if error_body.FEATURE.search(body.words) else Cause.MODEL
    if status in {413, 414, 431}:
        return _first(body, Cause.CONTEXT) or Cause.TOO_LARGE
    if 300 <= status < 400:
        return Cause.INPUT
    cause = _first(
        body, Cause.FILTER, Cause.CONTEXT, Cause.TOO_LARGE, Cause.QUOTA, Cause.MODEL, Cause.KEY, Cause.RATE, Cause.BUSY
    )
    if cause is None and status == 451:
        return Cause.FILTER
    return cause or (Cause.INPUT if status else Cause.BUSY)


def _limit(body: ErrorBody, wait_s: float | None) -> Cause:
    """Return the cause of a rate limit: a request that is too large, a limit per minute or day, or missing money."""
    enough = error_body.NEVER_ENOUGH.search(body.words)
    if _says(body, Cause.TOO_LARGE) or (enough and int(enough[2]) > int(enough[1])):
        return Cause.TOO_LARGE
    is_in_flight = error_body.IN_FLIGHT.search(body.words) and not error_body.MONEY.search(body.words)
    if error_body.NO_QUOTA_AT_ALL.search(body.words) or (_says(body, Cause.QUOTA) and not is_in_flight):
        return Cause.QUOTA
    day, minute = error_body.PER_DAY.search(body.words), error_body.PER_MINUTE.search(body.words)
    if error_body.SOFT_QUOTA.search(body.words) and not is_in_flight:
        return Cause.DAY if day else Cause.QUOTA if wait_s is None and not minute else Cause.RATE
    return Cause.DAY if day and wait_s is None and not minute else Cause.RATE


def _server_error(status: int, body: ErrorBody) -> Cause:
    if status in _NEVER_RETRIED:
        return Cause.INPUT
    if _coded(body, Cause.CONTEXT) or error_body.CONTEXT_FOR_SURE.search(body.words):
        return Cause.CONTEXT
    if _coded(body, Cause.FILTER):
        return Cause.FILTER
    cause = _first(body, Cause.TOO_LARGE, Cause.QUOTA, Cause.KEY)
    if cause is None and status == 500 and error_body.WORDS[Cause.MODEL].search(body.words):
        return Cause.MODEL
    return cause or Cause.BUSY


def _first(body: ErrorBody, *causes: Cause) -> Cause | None:
    """Return the first of `causes` that the body's codes indicate; if none, the first that its words indicate."""
    coded = next((cause for cause in causes if _coded(body, cause)), None)
    return coded or next((cause for cause in causes if error_body.WORDS[cause].search(body.words)), None)


def _coded(body: ErrorBody, cause: Cause) -> bool:
    return not body.codes.isdisjoint(error_body.CODES.get(cause, frozenset()))


def _says(body: ErrorBody, cause: Cause) -> bool:
    return _coded(body, cause) or error_body.WORDS[cause].search(body.words) is not None


def _hint_of(
    status: int, headers: Mapping[str, str], body: ErrorBody, endpoint: Endpoint, cause: Cause
) -> Words | None:
    """Return the user's next step after a response with `status`; None if the error code is clear enough."""
    if 300 <= status < 400:
        return _redirected(headers.get("Location", ""), endpoint)
    if any(words in body.text for words in SPOKE_TLS) and endpoint.url.startswith("http:"):
        return "Write https:// instead of http:// in `base_url`."
    if status >= 400 and endpoint.dialect == "openai" and _RESPONSES_ONLY.search(body.words):
        return "Set `dialect: responses`: the endpoint has this model at that API alone."
    if status in {404, 405} and not _ABOUT_MODELS.search(body.words):
        return wrong_address(endpoint)
    return next((hint for row in HINTS if (hint := row.of(status, body, cause)) is not None), None)


def with_key_hint(endpoint: Endpoint, error: PromptmillError, status: int) -> PromptmillError:
    """Add a hint to a refusal's error about the key that was sent, or about a missing key.

    Only 401 and 403 may mean a missing key. An account error with another status implies that the key was accepted.
    """
    if status not in {401, 403} or error.code is not Code.UNAUTHORIZED:
        return error
    if endpoint.key_note:
        return PromptmillError(error.code, error.message, endpoint.key_note)
    if not KEY_HEADERS & {name.lower() for name in endpoint.headers}:
        usual = endpoint.profile.site.key_env or "OPENAI_API_KEY"
        return PromptmillError(
            error.code,
            error.message,
            (
                f"No key was sent: `export {usual}=…`, or name another variable: ",
                Named("api_key_env", "NAME"),
                ".",
            ),
        )
    if status == 401 and endpoint.key_source:
        sent = f"The key sent is {endpoint.key_source}"
        if endpoint.hidden and names_key_variable(endpoint.hidden[0]):
            sent += f", but its value is the name of a variable: write `api_key_env: {endpoint.hidden[0]}`."
        elif endpoint.hidden and is_placeholder_key(endpoint.hidden[0]):
            sent += ", but it is the placeholder of an example; replace it with your own key."
        elif endpoint.hidden and " " in endpoint.hidden[0]:
            sent += ", and contains a space, which is unusual for a key; copy it again."
        else:
            sent += "; correct it."
        return PromptmillError(error.code, error.message, sent)
    return error


def with_scheme_hint(endpoint: Endpoint, error: PromptmillError) -> PromptmillError:
    """Add a hint about the scheme to the error of a lost connection if the endpoint has never answered."""
    if endpoint.url.startswith("http:"):
        hint: Words = "It has never answered: does the port need https:// in `base_url`? Otherwise try again."
    elif not endpoint.own:  # never for a provider: the user would send a key unencrypted over the internet
        return error
    else:
        hint = (
            "It has never answered: does it speak plain HTTP, not TLS? Then `base_url` begins with http://, not https://",
            Named("command", "models --check", "; {} finds out"),
            ".",
        )
    return PromptmillError(error.code, error.message, hint)


def wrong_address(endpoint: Endpoint) -> Words:
    """Return the hint for a reply that does not come from the API."""
    url = urlunsplit(urlsplit(endpoint.url)._replace(query=""))
    path = urlsplit(url).path
    if endpoint.dialect != "openai":
        return (
            f"The request went to {redact(url)}, as `dialect: {endpoint.dialect}` says; is that this server's API? "
            "Otherwise correct `base_url` or `dialect`."
        )
    if not path.endswith(COMPLETIONS) and "/v1/" in path:  # the path comes from a line of a Batch file
        return f"The request went to {redact(url)}: the endpoint has no {path[path.rindex('/v1/') :]}, the line's path."
    twice = " It contains `/v1` twice." if "/v1/v1/" in url else ""
    if path.endswith(f"/v1{COMPLETIONS}") and not twice:
        return (
            f"The request went to {redact(url)}. Another program, such as a web interface, may answer there",
            Named("command", "models --check", "; {} looks for the API at other paths"),
            ".",
        )
    usual = f"The request went to {redact(url)}.{twice} A `base_url` usually ends in /v1"
    return usual, Named("command", "models --check", "; {} looks for it"), "."


def _redirected(location: str, endpoint: Endpoint) -> str | None:
    if not location:
        return None
    try:
        there = urlsplit(urljoin(endpoint.url, location))
        port = f":{there.port}" if there.port else ""
    except ValueError:
        return None
    host = f"[{there.hostname}]" if ":" in (there.hostname or "") else there.hostname or ""
    path = there.path.rstrip("/")
    shown = redact(f"{there.scheme}://{host}{port}{path.removesuffix(COMPLETIONS)}"[:200], endpoint.hidden)
    if there._replace(path=path, query="", fragment="") == urlsplit(endpoint.url)._replace(query="", fragment=""):
        if there.query:
            return (
                "It redirects to the result of a request that took too long: request less at once (a lower "
                "`max_tokens`), or raise the time limit of the server or its proxy."
            )
        return "It redirects to the same address, which is a mistake of the server or of a proxy in front of it."
    if path.endswith(COMPLETIONS):
        return f"It redirects to {shown}; put that into `base_url`."
    return f"It redirects to {shown}, which is not the API; correct `base_url`, or sign in there."
