"""Errors of one attempt that brought no complete response, each with its code; both transports raise them.

What the system raises (`ssl.SSLError`, `socket.gaierror`, other `OSError`s) may come as it is.
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
    """A kept connection ended without a byte of answer: most likely the server closed it between requests.

    RFC 9112, section 9.5, has clients expect that; a new connection tells whether it was so.
    """


class ConnectTimeoutError(TransportError):
    """No connection in time; its text says within which."""

    code = Code.TIMEOUT


class SilenceTimeoutError(TransportError):
    """Nothing was received; its text says for how long."""

    code = Code.TIMEOUT


class UnreachableError(TransportError):
    """No address of the host took a connection."""

    code = Code.UNREACHABLE


class ProxyError(TransportError):
    """The proxy took no connection, or refused to make one."""

    code = Code.UNREACHABLE


class InvalidResponseError(TransportError):
    """What came is not an HTTP response."""

    code = Code.BAD_RESPONSE


class TooLargeError(InvalidResponseError):
    """A response body beyond `LARGEST_BODY`."""


class InvalidURLError(TransportError):
    """The URL cannot be requested."""

    code = Code.INVALID_CONFIG


def of_connecting(error: OSError) -> Exception:
    """Return what an error while connecting means; as it is where this machine has no more to give, or no such name."""
    if isinstance(error, TimeoutError):
        return ConnectTimeoutError("in time")
    if error.errno in {errno.EMFILE, errno.ENFILE} or isinstance(error, socket.gaierror):
        return error
    return UnreachableError(error.strerror or str(error))


def mark_sent(exc: BaseException) -> None:
    """Note that the request had been sent when `exc` ended the attempt."""
    exc.was_sent = True  # type: ignore[attr-defined]


def was_sent(exc: BaseException) -> bool:
    """Return whether the request had been sent when `exc` ended the attempt: then it may be billed."""
    return getattr(exc, "was_sent", False)


def code_of(exc: BaseException) -> Code:
    """Return the code of what a transport or the operating system raised during one attempt."""
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


# OpenSSL's words for an answer that is not TLS.
_NOT_TLS = frozenset({"WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "HTTP_REQUEST", "PACKET_LENGTH_TOO_LONG"})
_NOT_TLS |= {"UNKNOWN_PROTOCOL", "UNEXPECTED_EOF_WHILE_READING", "TLSV1_ALERT_PROTOCOL_VERSION"}
# X.509 verification results (openssl-verification-options(1)).
_SELF_SIGNED, _NO_ISSUER, _EXPIRED, _NOT_YET, _OTHER_HOST = {18, 19}, {2, 20, 21}, 10, 9, {62, 64}


def tls_error(endpoint: Endpoint, error: BaseException) -> PromptmillError:
    """Return the error of a handshake that failed."""
    if not isinstance(error, ssl.SSLCertVerificationError):
        reason = str(getattr(error, "reason", None) or "TLS failed")
        if reason in _NOT_TLS:
            return plain_port(endpoint)
        return PromptmillError(Code.TLS, f"{endpoint.name} could not be trusted: {reason}.")
    code, trusting = error.verify_code, "set SSL_CERT_FILE=ca.pem (or REQUESTS_CA_BUNDLE), a file with"
    if code in _SELF_SIGNED:
        what, hint = "is signed by itself", f"Trust it: {trusting} it."
    elif code in _NO_ISSUER:
        what, hint = "comes from an authority unknown here", f"Trust it: {trusting} the authority's certificate."
    elif code in {_EXPIRED, _NOT_YET}:
        what = "has expired" if code == _EXPIRED else "is not valid yet"
        hint = "Renew it there, or set this machine's clock."
    elif code in _OTHER_HOST:
        what, hint = "is for another name", "Write the name that the certificate has into `base_url`."
    else:
        what, hint = f"is not accepted: {error.verify_message}", f"Trust it: {trusting} its authority."
    return PromptmillError(Code.TLS, f"The certificate of {endpoint.name} {what}.", hint)


def plain_port(endpoint: Endpoint) -> PromptmillError:
    """Return the error of an https:// URL of a port that answers plain HTTP."""
    text = f"{endpoint.name} speaks plain HTTP, not TLS."
    return PromptmillError(Code.TLS, text, "Write http:// instead of https:// in `base_url`.")


def tls_port(endpoint: Endpoint) -> PromptmillError:
    """Return the error of an http:// URL of a port that speaks TLS."""
    text = f"{endpoint.name} speaks TLS, not plain HTTP."
    return PromptmillError(Code.TLS, text, "Write https:// instead of http:// in `base_url`.")
