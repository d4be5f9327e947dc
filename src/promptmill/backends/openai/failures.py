"""Decides what follows a failed attempt, and defines the exceptions of transports.

A `RetryDecision` states the scope of a failure and the wait before the next attempt; the loop in `backend` waits and
retries. `classify_exception` makes a decision from an exception, `refusals` from an error response.

Both transports raise `TransportError` for an attempt without a complete response. They may also raise exceptions of the
operating system (`ssl.SSLError`, `socket.gaierror`, other `OSError`s) unchanged.
"""

from __future__ import annotations

import errno
import random
import socket
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import Enum, auto

from promptmill.backends.openai.endpoint import Endpoint
from promptmill.backends.protocol import NO_USAGE, Usage
from promptmill.config.settings import OpenAISettings
from promptmill.core.bounds import LARGEST_BODY
from promptmill.core.errors import Code, PromptmillError, without_frames

_NO_CONNECTION = "Check host and port in `base_url`, and whether a firewall blocks them; otherwise raise `timeout`."
PROXY_REMEDY = "Start the proxy, correct HTTP_PROXY, HTTPS_PROXY or NO_PROXY, or set `trust_env: false`."
_LESS = (
    "Request less at once: a lower `max_tokens` or `n`; for embeddings, fewer inputs per line, or "
    '`"encoding_format": "base64"`, which takes a quarter.'
)
_TEXTS = {
    Code.TIMEOUT: "was silent for too long",
    Code.UNREACHABLE: "refused the connection or is unreachable",
    Code.CONNECTION_LOST: "closed the connection before the answer was complete",
    Code.NAME_RESOLUTION: "is unreachable: this machine cannot resolve the name",
    Code.NO_FILE_DESCRIPTORS: "could not be reached: this process has no file descriptors left",
    Code.BAD_RESPONSE: "sent an invalid HTTP response",
}
# OpenSSL's reasons for an error if the reply is not TLS.
_NOT_TLS = frozenset({"WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "HTTP_REQUEST", "PACKET_LENGTH_TOO_LONG"})
_NOT_TLS |= {"UNKNOWN_PROTOCOL", "UNEXPECTED_EOF_WHILE_READING", "TLSV1_ALERT_PROTOCOL_VERSION"}
# X.509 verification results (openssl-verification-options(1)).
_SELF_SIGNED, _NO_ISSUER, _EXPIRED, _NOT_YET, _OTHER_HOST = {18, 19}, {2, 20, 21}, 10, 9, {62, 64}


class FailureKind(Enum):
    """The scope of a failure."""

    ITEM = auto()
    """It affects only this item, and is final."""
    TRANSIENT = auto()
    """It affects only this attempt, which is retried and counts against `retries`."""
    LOAD = auto()
    """The endpoint is busy (429): the item is put back, and the limit is lowered."""
    LOST = auto()
    """The endpoint may be down (lost or refused connection, 503)."""
    ENDPOINT = auto()
    """It concerns the key, account, model or host. If other items are refused, too, it affects all items."""


@dataclass(frozen=True, slots=True)
class RetryDecision:
    """The consequences of a failed attempt.

    `wait_s`: the wait that the endpoint requested, if any. `stale`: the server had closed the kept connection, so the
    next attempt needs a new connection but no wait. `usage`, `tier`: the usage and the service tier of an unusable
    answer. `status`: the HTTP status of an error, from the response or its body, or 0. `unmetered`: the request was
    sent and may be billed, but no usage was reported. `is_cut`: the connection ended within the response. `reasoning`,
    `part`, `probabilities`: see `Failure`.
    """

    kind: FailureKind
    error: PromptmillError
    wait_s: float | None = None
    stale: bool = False
    usage: Usage = NO_USAGE
    status: int = 0
    unmetered: bool = False
    tier: str = ""
    is_cut: bool = False
    reasoning: str = ""
    part: str = ""
    probabilities: Mapping[str, Mapping[str, float]] | None = None

    @property
    def is_loss(self) -> bool:
        """Whether an accepted connection was lost, or the endpoint answered 503. The request may be the cause."""
        return self.kind is FailureKind.LOST and self.error.code not in {Code.UNREACHABLE, Code.NAME_RESOLUTION}

    @property
    def may_be_billed(self) -> bool:
        """Whether the attempt may have a cost."""
        return self.unmetered or self.usage != NO_USAGE


def backoff_s(failures: int, base_s: float, cap_s: float, rng: random.Random) -> float:
    """Return the seconds to wait after `failures` consecutive failures (from 1): exponential, capped, with full jitter.

    Source: M. Brooker, "Exponential Backoff and Jitter", AWS Architecture Blog, 2015.
    """
    return rng.uniform(0, min(cap_s, base_s * 2 ** min(failures - 1, 30)))


def longest_wait_s(settings: OpenAISettings) -> float:
    """Return the longest wait that an endpoint may request. An endpoint that requests more is no longer used."""
    return 10 * settings.max_delay


def classify_exception(exc: Exception, endpoint: Endpoint) -> RetryDecision:
    """Return the decision on an attempt that ended with `exc`. Drop `exc`'s frames, which may hold large bodies."""
    without_frames(exc)
    decision = _classified(exc, endpoint)
    return replace(decision, unmetered=True) if isinstance(exc, TransportError) and exc.was_sent else decision


def _classified(exc: Exception, endpoint: Endpoint) -> RetryDecision:
    if isinstance(exc, PromptmillError):  # no key could be fetched
        return RetryDecision(FailureKind.ENDPOINT, exc)
    code, hint = code_of(exc), None
    text = _TEXTS.get(code, f"did not answer: the attempt failed unexpectedly ({type(exc).__name__})")
    match exc:
        case _ if code is Code.TLS:
            return RetryDecision(FailureKind.ENDPOINT, tls_error(endpoint, exc))
        case ProxyError():
            error = PromptmillError(
                Code.UNREACHABLE,
                f"No request could be sent to {endpoint.name}: the proxy {exc}.",
                f"The environment names this proxy. {PROXY_REMEDY}",
            )
            return RetryDecision(FailureKind.LOST, error)
        case PrivateAddressError():
            text = f"{endpoint.name} named {exc}, which is no public address, for a file."
            return RetryDecision(FailureKind.ITEM, PromptmillError(code, text, "Nothing is sent there."))
        case ConnectTimeoutError():
            text, hint = f"did not accept a connection {exc}", _NO_CONNECTION
        case SilenceTimeoutError():
            text = f"was silent {exc}"
        case TooLargeError():
            text, hint = f"sent a body of more than {LARGEST_BODY // 2**20} MiB", _LESS
    error = PromptmillError(code, f"{endpoint.name} {text}.", hint)
    if code in {Code.UNREACHABLE, Code.CONNECTION_LOST, Code.NAME_RESOLUTION}:
        is_stale, is_cut = isinstance(exc, StaleError), isinstance(exc, CutError)
        return RetryDecision(FailureKind.LOST, error, stale=is_stale, is_cut=is_cut)
    return RetryDecision(FailureKind.ITEM if code is Code.INTERNAL else FailureKind.TRANSIENT, error)


class TransportError(Exception):
    """The connection ended before the response was complete."""

    code = Code.CONNECTION_LOST
    was_sent = True
    """Whether the request had been sent, so that it may be billed."""


class StaleError(TransportError):
    """A kept connection ended without any byte of an answer: most likely the server closed it between requests.

    RFC 9112, section 9.5, requires clients to expect this. An attempt on a new connection shows the cause.
    """


class CutError(TransportError):
    """The connection ended after the first byte of a response."""


class ConnectTimeoutError(TransportError):
    """The connection was not established in time. The exception's text states the limit."""

    code = Code.TIMEOUT
    was_sent = False


class SilenceTimeoutError(TransportError):
    """No data was received for the time that the exception's text states."""

    code = Code.TIMEOUT


class UnusedError(TransportError):
    """The connection ended before a request was sent."""

    was_sent = False


class UnreachableError(TransportError):
    """No address of the host accepted a connection."""

    code = Code.UNREACHABLE
    was_sent = False


class ProxyError(TransportError):
    """The proxy that the text names accepted no connection, or refused to open a connection to the endpoint."""

    code = Code.UNREACHABLE
    was_sent = False


class PrivateAddressError(TransportError):
    """The host that the text names has a private address, but only public addresses are permitted."""

    code = Code.UNSUPPORTED
    was_sent = False


class InvalidResponseError(TransportError):
    """The received bytes are not an HTTP response."""

    code = Code.BAD_RESPONSE


class TooLargeError(InvalidResponseError):
    """A response body is larger than `LARGEST_BODY`."""


class InvalidURLError(TransportError):
    """The URL cannot be requested."""

    code = Code.INVALID_CONFIG
    was_sent = False


def of_connecting(error: OSError) -> Exception:
    """Return the error for a failed connection. Errors of descriptors and of name resolution stay unchanged."""
    if isinstance(error, TimeoutError):
        return ConnectTimeoutError("in time")
    if error.errno in {errno.EMFILE, errno.ENFILE} or isinstance(error, socket.gaierror):
        return error
    return UnreachableError(error.strerror or str(error))


def code_of(exc: BaseException) -> Code:
    """Return the error code for an exception of a transport or the operating system."""
    if isinstance(exc, TransportError):
        return exc.code
    if isinstance(exc, socket.gaierror):
        return Code.NAME_RESOLUTION
    if isinstance(exc, ssl.SSLError):
        return Code.TLS
    if isinstance(exc, TimeoutError):
        return Code.TIMEOUT
    if isinstance(exc, OSError):
        if exc.errno in {errno.EMFILE, errno.ENFILE}:
            return Code.NO_FILE_DESCRIPTORS
        return Code.UNREACHABLE if isinstance(exc, ConnectionRefusedError) else Code.CONNECTION_LOST
    return Code.INTERNAL


def tls_error(endpoint: Endpoint, error: BaseException) -> PromptmillError:
    """Return the error for a failed handshake, with the remedy."""
    if not isinstance(error, ssl.SSLCertVerificationError):
        reason = str(getattr(error, "reason", None) or "TLS failed")
        if reason in _NOT_TLS:
            return plain_port(endpoint)
        return PromptmillError(Code.TLS, f"The TLS handshake with {endpoint.name} failed: {reason}.")
    code, trusting = error.verify_code, "set SSL_CERT_FILE=ca.pem (or REQUESTS_CA_BUNDLE) to a file with"
    if code in _SELF_SIGNED:
        what, hint = "is self-signed", f"Trust it: {trusting} it."
    elif code in _NO_ISSUER:
        what, hint = "is from an unknown authority", f"Trust it: {trusting} the authority's certificate."
    elif code in {_EXPIRED, _NOT_YET}:
        what = "has expired" if code == _EXPIRED else "is not valid yet"
        hint = "Renew it on the server, or correct this machine's clock."
    elif code in _OTHER_HOST:
        what, hint = "is for another host name", "Write the host name of the certificate into `base_url`."
    else:
        what, hint = f"is not accepted: {error.verify_message}", f"Trust it: {trusting} its authority."
    return PromptmillError(Code.TLS, f"The certificate of {endpoint.name} {what}.", hint)


def plain_port(endpoint: Endpoint) -> PromptmillError:
    """Return the error for an https:// URL whose port answers plain HTTP."""
    text = f"{endpoint.name} speaks plain HTTP, not TLS."
    return PromptmillError(Code.TLS, text, "Write http:// instead of https:// in `base_url`.")


def tls_port(endpoint: Endpoint) -> PromptmillError:
    """Return the error for an http:// URL whose port speaks TLS."""
    text = f"{endpoint.name} speaks TLS, not plain HTTP."
    return PromptmillError(Code.TLS, text, "Write https:// instead of http:// in `base_url`.")
