"""Classify failures: retry or not, after how long, and whom it affects. Decisions only, no waiting."""

from __future__ import annotations

import asyncio
import errno
import math
import random
import socket
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from enum import Enum, auto
from typing import Any

import aiohttp

from promptmill.backends.openai.endpoint import Endpoint
from promptmill.backends.openai.raw_http import LARGEST_BODY, StaleError, TooLarge
from promptmill.core.errors import Code, PromptmillError, redact, without_controls
from promptmill.core.outcome import NO_USAGE, Usage

_RETRIED = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})
_QUOTA_WORDS = ("insufficient_quota", "exceeded your current quota", "billing_hard_limit", "insufficient balance")
_CONTEXT_WORDS = (
    "context_length_exceeded",
    "maximum context length",
    "context length",
    "context window",
    "too many tokens",
)
_TOO_LARGE_WORDS = ("request too large", "request is too large", "tokens per min (tpm): limit", "reduce the length")
_LONGEST_REASON = 400
_LONGEST_READ = 1 << 16


class FailureKind(Enum):
    """What a failure affects."""

    ITEM = auto()
    """The item's: final."""
    CHANCE = auto()
    """Nobody's: try again, counted against `retries`."""
    LOAD = auto()
    """The endpoint is busy (429): put the item back, shrink the window."""
    LOST = auto()
    """The endpoint may be gone (lost or refused connection, 503)."""
    OURS = auto()
    """Our own process's that made the attempt: put the item back."""
    KEY = auto()
    """The key's or the host's: stop new requests to this endpoint."""


@dataclass(frozen=True, slots=True)
class RetryDecision:
    """What one failed attempt means.

    `wait_s` is the endpoint's own wish (`Retry-After`), if it had one. `stale`: a kept connection was at its end, so
    the next attempt needs a new one and no wait. `usage`: what an answer cost that is none.
    """

    kind: FailureKind
    error: PromptmillError
    wait_s: float | None = None
    stale: bool = False
    usage: Usage = NO_USAGE


def backoff_s(failures: int, base_s: float, cap_s: float, chance: random.Random) -> float:
    """Return the seconds to wait after `failures` (from 1) in a row: exponential, capped, full jitter.

    Source: M. Brooker, "Exponential Backoff and Jitter", AWS Architecture Blog, 2015.
    """
    return chance.uniform(0, min(cap_s, base_s * 2 ** min(failures - 1, 30)))


def retry_after_s(headers: Mapping[str, str], now: float | None = None) -> float | None:
    """Return the wait that `retry-after-ms` or `Retry-After` (seconds or date, RFC 9110 section 10.2.3) asks for."""
    milliseconds = _number(headers.get("retry-after-ms"))
    if milliseconds is not None:
        return milliseconds / 1000
    text = headers.get("Retry-After")
    seconds = _number(text)
    if seconds is not None or text is None:
        return seconds
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - (time.time() if now is None else now))
    except (ValueError, TypeError, OverflowError):
        return None


def _number(text: str | None) -> float | None:
    try:
        number = float(text or "")
    except ValueError:
        return None
    return None if math.isnan(number) else max(0.0, number)


def judge_status(status: int, headers: Mapping[str, str], payload: Any, endpoint: Endpoint) -> RetryDecision:
    """Return what a reply with `status` and parsed body `payload` (or its text) means."""
    reason, words, labels = _reason(payload)
    reason = " ".join(without_controls(reason).split())[:_LONGEST_READ]
    said = f": {_short(redact(reason, endpoint.secrets))}" if reason else ""
    message = f"{endpoint.name} answered {status}{said}"
    if message[-1] not in ".!?…":  # our own sentence follows
        message += "."

    def final(code: Code) -> RetryDecision:
        return RetryDecision(FailureKind.ITEM, PromptmillError(code, message))

    if status in {401, 403}:
        return RetryDecision(FailureKind.KEY, PromptmillError(Code.UNAUTHORIZED, message))
    # a message may quote the prompt, so only statuses that are about money or load make its words count
    if status == 402 or _any(_QUOTA_WORDS, words if status == 429 else labels):
        return RetryDecision(FailureKind.KEY, PromptmillError(Code.INSUFFICIENT_QUOTA, message))
    if status == 429 and not _any(_TOO_LARGE_WORDS, words):
        return RetryDecision(FailureKind.LOAD, PromptmillError(Code.RATE_LIMITED, message), retry_after_s(headers))
    if status in {413, 429}:
        return final(Code.REQUEST_TOO_LARGE)
    if status in _RETRIED:
        kind = FailureKind.LOST if status == 503 else FailureKind.CHANCE
        code = Code.TIMEOUT if status == 408 else Code.SERVER_ERROR
        return RetryDecision(kind, PromptmillError(code, message), retry_after_s(headers))
    if 300 <= status < 400:
        return final(Code.BAD_RESPONSE)
    if status == 404:
        return final(Code.NOT_FOUND)
    if "content_filter" in labels or "content_policy" in labels:
        return final(Code.CONTENT_FILTER)
    if _any(_CONTEXT_WORDS, words):
        return final(Code.CONTEXT_LENGTH)
    if status < 300:
        return RetryDecision(
            FailureKind.CHANCE, PromptmillError(Code.BAD_RESPONSE, message.replace("answered", "sent an error with"))
        )
    return final(Code.SERVER_ERROR if status >= 500 else Code.BAD_REQUEST)


def judge_exception(exc: Exception, endpoint: Endpoint) -> RetryDecision:
    """Return what an attempt that ended in `exc` means."""
    code = classify_exception(exc)
    if isinstance(exc, aiohttp.ClientProxyConnectionError | aiohttp.ClientHttpProxyError):
        error = PromptmillError(
            Code.UNREACHABLE,
            f"{endpoint.name} could not be asked: the proxy that the environment names cannot be used.",
            "Start the proxy, correct `HTTP_PROXY` / `HTTPS_PROXY` / `NO_PROXY`, or set `trust_env: false`.",
        )
        return RetryDecision(FailureKind.LOST, error)
    match code:
        case Code.TIMEOUT:
            text = "did not accept a connection in time" if _while_connecting(exc) else "was silent for too long"
        case Code.UNREACHABLE:
            text = "refused the connection or cannot be reached"
        case Code.CONNECTION_LOST:
            text = "closed the connection before the answer was complete"
        case Code.TLS:
            text = f"could not be trusted: {_tls_reason(exc)}"
        case Code.NAME_RESOLUTION:
            text = "could not be looked up: this machine cannot resolve the name"
        case Code.NO_FILE_DESCRIPTORS:
            text = "could not be connected to: this process has no file descriptor left"
        case Code.BAD_RESPONSE if isinstance(exc, TooLarge):
            text = f"sent a body of more than {LARGEST_BODY // 2**20} MiB"
        case Code.BAD_RESPONSE:
            text = "sent an invalid HTTP response"
        case _:
            text = f"could not be asked ({type(exc).__name__})"
    error = PromptmillError(code, f"{endpoint.name} {text}.")
    if code is Code.TLS:
        return RetryDecision(FailureKind.KEY, error)
    if code in {Code.UNREACHABLE, Code.CONNECTION_LOST}:
        return RetryDecision(FailureKind.LOST, error, stale=isinstance(exc, StaleError))
    return RetryDecision(FailureKind.ITEM if code is Code.INTERNAL else FailureKind.CHANCE, error)


def classify_exception(exc: BaseException) -> Code:
    """Return the code of what aiohttp or the operating system raised during one attempt."""
    if isinstance(exc, aiohttp.ClientConnectorDNSError | socket.gaierror):
        return Code.NAME_RESOLUTION
    if isinstance(exc, TooLarge):
        return Code.BAD_RESPONSE
    if isinstance(exc, aiohttp.ClientSSLError | ssl.SSLError | aiohttp.ServerFingerprintMismatch):
        return Code.TLS
    if isinstance(exc, TimeoutError | asyncio.TimeoutError):
        return Code.TIMEOUT
    if isinstance(exc, OSError) and exc.errno in {errno.EMFILE, errno.ENFILE}:
        return Code.NO_FILE_DESCRIPTORS
    if isinstance(exc, aiohttp.ClientConnectorError | ConnectionRefusedError | aiohttp.ClientProxyConnectionError):
        return Code.UNREACHABLE
    if isinstance(exc, aiohttp.ClientPayloadError | aiohttp.ServerDisconnectedError | aiohttp.ClientOSError | OSError):
        return Code.CONNECTION_LOST
    if isinstance(exc, aiohttp.InvalidURL):
        return Code.INVALID_CONFIG
    if isinstance(exc, aiohttp.ClientConnectionError):
        return Code.CONNECTION_LOST
    if isinstance(exc, aiohttp.ClientError | aiohttp.http_exceptions.HttpProcessingError):
        return Code.BAD_RESPONSE
    return Code.INTERNAL


def _while_connecting(exc: BaseException) -> bool:
    return isinstance(exc, aiohttp.ConnectionTimeoutError)


def _tls_reason(exc: BaseException) -> str:
    inner = getattr(exc, "certificate_error", None) or getattr(exc, "os_error", None) or exc
    return str(getattr(inner, "verify_message", None) or getattr(inner, "reason", None) or "TLS failed")


def _any(words: tuple[str, ...], text: str) -> bool:
    return any(word in text for word in words)


def _reason(payload: Any) -> tuple[str, str, str]:
    """Return `(what to show, what to search, codes alone)` of an error body, in the shapes that providers use."""
    if isinstance(payload, dict):
        error = payload.get("error", payload)
        if isinstance(error, dict):
            shown = _said(error.get("message") or error.get("detail") or error.get("msg"))
            labels = " ".join(str(error.get(key, "")) for key in ("code", "type")).lower()
            return shown, f"{shown} {labels}".lower(), labels
        return _said(error), _said(error).lower(), ""
    if isinstance(payload, list) and payload:
        return _reason(payload[0])
    if isinstance(payload, str):
        return "" if payload.lstrip()[:1] == "<" else payload, payload.lower(), ""
    return "", "", ""


def _said(value: Any) -> str:
    """Return a message that may be nested, as FastAPI's list of what is wrong where."""
    if isinstance(value, str):
        return value
    if isinstance(value, dict):
        return _said(value.get("message") or value.get("msg") or value.get("detail"))
    if isinstance(value, list):
        return "; ".join(filter(None, map(_said, value)))
    return "" if value is None else str(value)


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST_REASON else text[:_LONGEST_REASON] + "…"
