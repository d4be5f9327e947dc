"""Errors of one attempt that brought no complete response, each with its code; both transports raise them.

What the system raises (`ssl.SSLError`, `socket.gaierror`, other `OSError`s) may come as it is.
"""

from __future__ import annotations

import errno
import socket
import ssl

from promptmill.core.errors import Code


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
