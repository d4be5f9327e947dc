"""Classify error responses: retried or not, after how long, and whom they affect."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urljoin, urlsplit, urlunsplit

from promptmill.backends.openai.asked_wait import asked_wait_s
from promptmill.backends.openai.endpoint import COMPLETIONS, Endpoint, is_placeholder_key, names_key_variable
from promptmill.backends.openai.error_body import (
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
    ErrorBody,
    read_error,
)
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
# What an endpoint says to plain HTTP on a port that speaks TLS: nginx, Apache, Go, Tomcat, Node behind a balancer.
SPOKE_TLS = ("https port", "ssl-enabled", "requires tls", "https server")
_MAX_TOKENS = re.compile(r"max_(?:completion_|output_)?tokens.{0,80}(?:large|at most|maximum|exceed|less than|between)")
_NO_IMAGES = re.compile(
    r"not (?:a )?multimodal|(?:not|n't) (?:support|accept|have) (?:image|vision|multimodal)"
    r"|(?:image|vision).{0,40}not supported|no endpoints found that support image"
)
_NO_SCHEMA = "Leave `response_format` (--schema, --set sampling_params.response_format) out, or use another model."
_REFUSED_OPTION = re.compile(
    r"(temperature|top_p|response_format|json_schema).{0,80}(?:support|unavailable|invalid|deprecated|not allowed)"
)
_LEAVE_OUT = {
    "temperature": "Leave `temperature` (--temperature) out.",
    "top_p": "Leave `top_p` (--top-p) out.",
    "response_format": _NO_SCHEMA,
    "json_schema": _NO_SCHEMA,
}
# Ollama's words, PyTorch's, llama.cpp's.
_NO_MEMORY = re.compile(r"more system memory|out of memory|failed to allocate|insufficient memory")
# vLLM's `EngineDeadError`, and what it says of later requests.
_DEAD_ENGINE = re.compile(
    r"enginecore encountered an issue|engine ?core.{0,40}(?:died|dead)|background loop has errored"
)
_NO_MODEL = re.compile(r"(?:does not|doesn't|not) have access to (?:the )?model|model.{0,60}not.{0,20}access")
# OpenAI's; vLLM's own, and aiohttp's inside it.
_NO_DOWNLOAD = re.compile(
    r"(?:error|fail(?:ed|ure|ing|s)?|timeout|unable) .{0,20}(?:while |to )?(?:download|fetch|retriev)"
    r"|\b\d{3}, message='[^']*', url="
)
_PLACE = re.compile(r"country|territory|location is not supported|your region|region (?:is )?not (?:supported|allowed)")
# Cloudflare's pages to whom it takes for a program.
_BOT_BLOCK = re.compile(r"just a moment\.\.\.|attention required!|you have been blocked|enable javascript and cookies")
_ABOUT_MODELS = re.compile(r"model|deployment|engine")
_PERMISSION = re.compile(r"organi[sz]ation|verif|permission|region|country|territory|plan|access|scope|project|allow")


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


def hint_of(status: int, headers: Mapping[str, str], body: ErrorBody, endpoint: Endpoint) -> str | None:
    """Return what to do about a response with `status`; None where its code says it all."""
    if 300 <= status < 400:
        return _redirected(headers.get("Location", ""), endpoint)
    if any(words in body.text for words in SPOKE_TLS) and endpoint.url.startswith("http:"):
        return "Write https:// instead of http:// in `base_url`."
    if status in {404, 405} and not _ABOUT_MODELS.search(body.words):
        return wrong_address(endpoint)
    if status == 403:
        return _forbidden(body)
    if status in {400, 422}:
        return _refused(body)
    if status >= 500 and _DEAD_ENGINE.search(body.text):
        return "vLLM's engine has stopped: the server's own log says why. Restart the server."
    if status >= 500 and _NO_MEMORY.search(body.text):
        return "The server's machine lacks memory for this model: use a smaller one, or free memory there."
    return None


def with_key_hint(endpoint: Endpoint, error: PromptmillError, status: int) -> PromptmillError:
    """Return the error of a refusal with what the reader should know about the key that was or was not sent.

    401 and 403 alone are about a missing one: what other statuses say about an account, they say to a key.
    """
    if status not in {401, 403} or error.code is not Code.UNAUTHORIZED:
        return error
    if endpoint.key_note:
        return PromptmillError(error.code, error.message, endpoint.key_note)
    if not {"authorization", "api-key"} & {name.lower() for name in endpoint.headers}:
        return PromptmillError(
            error.code,
            error.message,
            "No key was sent: `export OPENAI_API_KEY=…`, or name another variable with --key-env or `api_key_env`.",
        )
    if status == 401 and endpoint.key_source:
        sent = f"The key sent is {endpoint.key_source}"
        if endpoint.secrets and names_key_variable(endpoint.secrets[0]):
            sent += f", which is the name of a variable: write `api_key_env: {endpoint.secrets[0]}`."
        elif endpoint.secrets and is_placeholder_key(endpoint.secrets[0]):
            sent += ", and is the placeholder of an example; put your own key there."
        elif endpoint.secrets and " " in endpoint.secrets[0]:
            sent += ", and holds a space, which keys seldom have; copy it again."
        else:
            sent += "; correct it."
        return PromptmillError(error.code, error.message, sent)
    return error


def with_scheme_hint(endpoint: Endpoint, error: PromptmillError) -> PromptmillError:
    """Return the error of a connection lost to an endpoint that has never answered."""
    if endpoint.url.startswith("http:"):
        hint = "It has never answered: does the port want https:// in `base_url`? Else try again."
    elif not endpoint.own:  # nobody is to send a key in clear
        return error
    else:
        hint = (
            "It has never answered: does it speak plain HTTP, not TLS? Then write http:// instead of https:// in "
            "`base_url`; `promptmill check` finds out."
        )
    return PromptmillError(error.code, error.message, hint)


def _forbidden(body: ErrorBody) -> str | None:
    if _BOT_BLOCK.search(body.text):
        return "A bot block stands before it and not the key is refused; try another network, or ask its operator."
    if _PLACE.search(body.words):
        return "The provider refuses this account or place; another key will not help."
    if _NO_MODEL.search(body.words):
        return "The key is valid, but its account or project may not use this model: allow it there, or name another."
    if _PERMISSION.search(body.words):
        return "The endpoint knows the key; what is missing is said above."
    return None


def _refused(body: ErrorBody) -> str | None:
    if "max_completion_tokens' instead" in body.text:
        return (
            "Set `max_tokens: null` and `extra_params: {max_completion_tokens: N}` (--set "
            "sampling_params.max_tokens=null --set extra_params.max_completion_tokens=N)."
        )
    if _MAX_TOKENS.search(body.text):
        return "Lower `max_tokens`."
    if name := _REFUSED_OPTION.search(body.text):
        return _LEAVE_OUT[name[1]]
    if _NO_IMAGES.search(body.text):
        return "Choose a model that reads images, or leave them out."
    if _NO_DOWNLOAD.search(body.text):
        return "The endpoint could not fetch the image: correct its URL, or send a file that is here."
    return None


def wrong_address(endpoint: Endpoint) -> str:
    """Return what to check where something other than the API answers."""
    url = urlunsplit(urlsplit(endpoint.url)._replace(query=""))
    path = urlsplit(url).path
    if not path.endswith(COMPLETIONS) and "/v1/" in path:  # a line of a batch file says itself what it asks
        return f"Asked was {redact(url)}: the endpoint has no {path[path.rindex('/v1/') :]}, which the line asks for."
    twice = " `/v1` is in it twice." if "/v1/v1/" in url else ""
    if path.endswith(f"/v1{COMPLETIONS}") and not twice:
        return (
            f"Asked was {redact(url)}. A web interface or another program may be there; `promptmill check` looks for "
            "the API, which has a path or port of its own."
        )
    return f"Asked was {redact(url)}.{twice} A `base_url` usually ends in /v1; `promptmill check` looks for it."


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
    shown = redact(f"{there.scheme}://{host}{port}{path.removesuffix(COMPLETIONS)}"[:200], endpoint.secrets)
    if path.endswith(COMPLETIONS):
        return f"It redirects to {shown}; put that into `base_url`."
    return f"It redirects to {shown}, which is not the API; correct `base_url`, or sign in where it sends you."
