"""Errors of an attempt without a complete response, each with its code; both transports raise them.

The system's exceptions (`ssl.SSLError`, `socket.gaierror`, other `OSError`s) may pass unchanged. `tls_error` explains
those of TLS handshakes.
"""

from __future__ import annotations

import errno
import socket
import ssl

from promptmill.backends.openai.endpoint import Endpoint
from promptmill.core.errors import Code, PromptmillError


class TransportError(Exception):
    """The connection ended before the response was complete."""

    code = Code.CONNECTION_LOST


class StaleError(TransportError):
    """A kept connection ended without a byte of an answer: most likely the server closed it between requests.

    RFC 9112, section 9.5, requires clients to expect this. An attempt on a new connection shows whether it was so.
    """


class ConnectTimeoutError(TransportError):
    """The connection was not established in time; the text states the limit."""

    code = Code.TIMEOUT


class SilenceTimeoutError(TransportError):
    """Nothing was received for the time that the text states."""

    code = Code.TIMEOUT


class UnreachableError(TransportError):
    """No address of the host accepted a connection."""

    code = Code.UNREACHABLE


class ProxyError(TransportError):
    """The proxy accepted no connection, or refused to open one to the endpoint."""

    code = Code.UNREACHABLE


class InvalidResponseError(TransportError):
    """The received bytes are not an HTTP response."""

    code = Code.BAD_RESPONSE


class TooLargeError(InvalidResponseError):
    """A response body beyond `LARGEST_BODY`."""


class InvalidURLError(TransportError):
    """The URL cannot be requested."""

    code = Code.INVALID_CONFIG


def of_connecting(error: OSError) -> Exception:
    """Return the error for a failure to connect; lack of descriptors and failed name resolution remain unchanged."""
    if isinstance(error, TimeoutError):
        return ConnectTimeoutError("in time")
    if error.errno in {errno.EMFILE, errno.ENFILE} or isinstance(error, socket.gaierror):
        return error
    return UnreachableError(error.strerror or str(error))


def mark_sent(exc: BaseException) -> None:
    """Record that the request had been sent when `exc` ended the attempt."""
    exc.was_sent = True  # type: ignore[attr-defined]


def was_sent(exc: BaseException) -> bool:
    """Return whether the request had been sent when `exc` ended the attempt: then it may be billed."""
    return getattr(exc, "was_sent", False)


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


# OpenSSL's reasons for a reply that is not TLS.
_NOT_TLS = frozenset({"WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "HTTP_REQUEST", "PACKET_LENGTH_TOO_LONG"})
_NOT_TLS |= {"UNKNOWN_PROTOCOL", "UNEXPECTED_EOF_WHILE_READING", "TLSV1_ALERT_PROTOCOL_VERSION"}
# X.509 verification results (openssl-verification-options(1)).
_SELF_SIGNED, _NO_ISSUER, _EXPIRED, _NOT_YET, _OTHER_HOST = {18, 19}, {2, 20, 21}, 10, 9, {62, 64}


def tls_error(endpoint: Endpoint, error: BaseException) -> PromptmillError:
    """Return the error of a failed handshake, with the remedy."""
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
    """Return the error of an https:// URL whose port answers plain HTTP."""
    text = f"{endpoint.name} speaks plain HTTP, not TLS."
    return PromptmillError(Code.TLS, text, "Write http:// instead of https:// in `base_url`.")


def tls_port(endpoint: Endpoint) -> PromptmillError:
    """Return the error of an http:// URL whose port speaks TLS."""
    text = f"{endpoint.name} speaks TLS, not plain HTTP."
    return PromptmillError(Code.TLS, text, "Write https:// instead of http:// in `base_url`.")
