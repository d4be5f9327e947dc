"""Retry decisions: what a failed attempt affects, when to try again, and the classification of exceptions.

This module only decides; the loop in `attempts` waits and retries. `refusals` classifies error responses.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from enum import Enum, auto

from promptmill.backends.openai.endpoint import Endpoint
from promptmill.backends.openai.http_connection import LARGEST_BODY
from promptmill.backends.openai.transport_errors import (
    ConnectTimeoutError,
    ProxyError,
    SilenceTimeoutError,
    StaleError,
    TooLargeError,
    code_of,
    tls_error,
    was_sent,
)
from promptmill.core.errors import Code, PromptmillError
from promptmill.core.outcome import NO_USAGE, Usage

_NO_CONNECTION = "Check host and port in `base_url`, and whether a firewall blocks them; otherwise raise `timeout`."


class FailureKind(Enum):
    """The scope of a failure."""

    ITEM = auto()
    """Only this item: final."""
    TRANSIENT = auto()
    """Only this attempt: try again, counted against `retries`."""
    LOAD = auto()
    """The endpoint is busy (429): put the item back, lower the limit."""
    LOST = auto()
    """The endpoint may be down (lost or refused connection, 503)."""
    OURS = auto()
    """The worker process that made the attempt failed: put the item back."""
    ENDPOINT = auto()
    """The key, the account, the model or the host: all items, if others are refused in the same way."""


@dataclass(frozen=True, slots=True)
class RetryDecision:
    """The consequences of one failed attempt.

    `wait_s`: the wait that the endpoint requested, if any. `stale`: the server had closed the kept connection, so the
    next attempt needs a new one and no wait. `usage`: the cost of an unusable answer. `status`: the HTTP status, or the
    one that the body names; 0 without one. `unmetered`: the request was sent and may be billed, but no usage was
    reported.
    """

    kind: FailureKind
    error: PromptmillError
    wait_s: float | None = None
    stale: bool = False
    usage: Usage = NO_USAGE
    status: int = 0
    unmetered: bool = False


def backoff_s(failures: int, base_s: float, cap_s: float, rng: random.Random) -> float:
    """Return the seconds to wait after `failures` (from 1) in a row: exponential, capped, full jitter.

    Source: M. Brooker, "Exponential Backoff and Jitter", AWS Architecture Blog, 2015.
    """
    return rng.uniform(0, min(cap_s, base_s * 2 ** min(failures - 1, 30)))


def classify_exception(exc: Exception, endpoint: Endpoint) -> RetryDecision:
    """Return the decision about an attempt that ended in `exc`."""
    decision = _classified(exc, endpoint)
    return replace(decision, unmetered=True) if was_sent(exc) else decision


def _classified(exc: Exception, endpoint: Endpoint) -> RetryDecision:
    code = code_of(exc)
    if code is Code.TLS:
        return RetryDecision(FailureKind.ENDPOINT, tls_error(endpoint, exc))
    if isinstance(exc, ProxyError):
        error = PromptmillError(
            Code.UNREACHABLE,
            f"No request could be sent to {endpoint.name}: the proxy that the environment names does not work.",
            "Start the proxy, correct `HTTP_PROXY` / `HTTPS_PROXY` / `NO_PROXY`, or set `trust_env: false`.",
        )
        return RetryDecision(FailureKind.LOST, error)
    match code:
        case Code.TIMEOUT:
            text = (
                f"did not accept a connection {exc}"
                if isinstance(exc, ConnectTimeoutError)
                else f"was silent {exc if isinstance(exc, SilenceTimeoutError) else 'for too long'}"
            )
        case Code.UNREACHABLE:
            text = "refused the connection or is unreachable"
        case Code.CONNECTION_LOST:
            text = "closed the connection before the answer was complete"
        case Code.NAME_RESOLUTION:
            text = "is unreachable: this machine cannot resolve the name"
        case Code.NO_FILE_DESCRIPTORS:
            text = "could not be reached: this process has no file descriptors left"
        case Code.BAD_RESPONSE if isinstance(exc, TooLargeError):
            text = f"sent a body of more than {LARGEST_BODY // 2**20} MiB"
        case Code.BAD_RESPONSE:
            text = "sent an invalid HTTP response"
        case _:
            text = f"did not answer: the attempt failed unexpectedly ({type(exc).__name__})"
    error = PromptmillError(
        code, f"{endpoint.name} {text}.", _NO_CONNECTION if isinstance(exc, ConnectTimeoutError) else None
    )
    if code in {Code.UNREACHABLE, Code.CONNECTION_LOST, Code.NAME_RESOLUTION}:
        return RetryDecision(FailureKind.LOST, error, stale=isinstance(exc, StaleError))
    return RetryDecision(FailureKind.ITEM if code is Code.INTERNAL else FailureKind.TRANSIENT, error)
