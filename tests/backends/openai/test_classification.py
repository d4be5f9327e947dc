"""Every exception of the HTTP library and of the system below it has a code of ours."""

from __future__ import annotations

import errno
import inspect
import os
import socket
import ssl

import aiohttp
import pytest
from aiohttp import client_exceptions, http_exceptions
from aiohttp.client_reqrep import ConnectionKey, RequestInfo
from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

from promptmill.backends.openai.failures import code_of
from promptmill.backends.openai.session import translated
from promptmill.core.errors import Code

_URL = URL("http://127.0.0.1:1/v1")
_INFO = RequestInfo(_URL, "POST", CIMultiDictProxy(CIMultiDict()), _URL)
_KEY = ConnectionKey("127.0.0.1", 1, False, True, None, None, None)
_OS = ConnectionRefusedError(errno.ECONNREFUSED, "refused")

# Constructors of the classes that need more than a message; a class without a working constructor fails the test.
_ARGUMENTS = {
    aiohttp.ClientResponseError: lambda cls: cls(_INFO, ()),
    aiohttp.ClientConnectorError: lambda cls: cls(_KEY, _OS),
    client_exceptions.UnixClientConnectorError: lambda cls: cls("/nowhere", _KEY, _OS),
    aiohttp.ClientConnectorSSLError: lambda cls: cls(_KEY, ssl.SSLError(1, "bad")),
    aiohttp.ClientConnectorCertificateError: lambda cls: cls(_KEY, ssl.CertificateError("bad")),
    aiohttp.ServerFingerprintMismatch: lambda cls: cls(b"a", b"b", "127.0.0.1", 1),
    aiohttp.InvalidURL: lambda cls: cls(_URL),
    http_exceptions.HttpProcessingError: lambda cls: cls(message="bad"),
    http_exceptions.LineTooLong: lambda cls: cls(b"line", 10),
    http_exceptions.InvalidHeader: lambda cls: cls(b"header"),
    http_exceptions.BadStatusLine: lambda cls: cls("line"),
}
# Neither the transport nor the answer of one request can raise these.
_NEVER = {client_exceptions.WSMessageTypeError}


def _classes() -> list[type[BaseException]]:
    found = {
        cls
        for module in (client_exceptions, http_exceptions)
        for _, cls in inspect.getmembers(module, inspect.isclass)
        if issubclass(cls, BaseException) and cls.__module__ == module.__name__
    }
    return sorted(found - _NEVER, key=lambda cls: cls.__name__)


def _made(cls: type[Exception]) -> Exception:
    for base in cls.__mro__:
        if base in _ARGUMENTS:
            return _ARGUMENTS[base](cls)
    return cls("words")


def _classified(exc: Exception) -> Code:
    """Return the code of `exc`, by way of `translated` where the HTTP library raised it, as the session does."""
    theirs = isinstance(exc, aiohttp.ClientError | http_exceptions.HttpProcessingError)
    return code_of(translated(exc, (1, 1)) if theirs else exc)


@pytest.mark.parametrize("cls", _classes(), ids=lambda cls: cls.__name__)
def test_every_exception_of_the_http_library_has_a_code(cls):
    assert _classified(_made(cls)) is not Code.INTERNAL


@pytest.mark.parametrize(
    ("exc", "code"),
    [
        (aiohttp.ClientConnectorDNSError(_KEY, socket.gaierror(socket.EAI_NONAME, "unknown")), Code.NAME_RESOLUTION),
        (socket.gaierror(socket.EAI_AGAIN, "try again"), Code.NAME_RESOLUTION),
        (aiohttp.ClientConnectorError(_KEY, _OS), Code.UNREACHABLE),
        (aiohttp.ClientConnectorError(_KEY, OSError(errno.EHOSTUNREACH, "no route")), Code.UNREACHABLE),
        (aiohttp.ClientConnectorError(_KEY, OSError(errno.ENETUNREACH, "no network")), Code.UNREACHABLE),
        (aiohttp.ClientConnectorError(_KEY, OSError(errno.EMFILE, "too many")), Code.NO_FILE_DESCRIPTORS),
        (aiohttp.ClientConnectorError(_KEY, OSError(errno.ENFILE, "too many")), Code.NO_FILE_DESCRIPTORS),
        (OSError(errno.EMFILE, os.strerror(errno.EMFILE)), Code.NO_FILE_DESCRIPTORS),
        (_OS, Code.UNREACHABLE),
        (ConnectionResetError(errno.ECONNRESET, "reset"), Code.CONNECTION_LOST),
        (BrokenPipeError(errno.EPIPE, "pipe"), Code.CONNECTION_LOST),
        (aiohttp.ClientOSError(errno.ECONNRESET, "reset"), Code.CONNECTION_LOST),
        (aiohttp.ClientConnectionResetError("Cannot write to closing transport"), Code.CONNECTION_LOST),
        (aiohttp.ServerDisconnectedError(), Code.CONNECTION_LOST),
        (aiohttp.ClientPayloadError("incomplete"), Code.CONNECTION_LOST),
        (aiohttp.ClientConnectorSSLError(_KEY, ssl.SSLError(1, "WRONG_VERSION_NUMBER")), Code.TLS),
        (aiohttp.ClientConnectorCertificateError(_KEY, ssl.CertificateError("self-signed")), Code.TLS),
        (ssl.SSLCertVerificationError("self-signed"), Code.TLS),
        (TimeoutError(), Code.TIMEOUT),
        (aiohttp.SocketTimeoutError(), Code.TIMEOUT),
        (aiohttp.ConnectionTimeoutError(), Code.TIMEOUT),
        (OSError(errno.ETIMEDOUT, "timed out"), Code.TIMEOUT),
        (aiohttp.ClientResponseError(_INFO, (), status=400, message="Bad status line"), Code.BAD_RESPONSE),
        (http_exceptions.ContentEncodingError("not gzip"), Code.BAD_RESPONSE),
        (KeyError("ours"), Code.INTERNAL),
        (TypeError("ours"), Code.INTERNAL),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else str(value),
)
def test_what_really_happens_has_the_right_code(exc, code):
    assert _classified(exc) is code
