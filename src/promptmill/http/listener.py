"""uvicorn in one process, without its signal handlers."""

from __future__ import annotations

import contextlib
import logging
import ssl
from collections.abc import Iterator
from pathlib import Path

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from promptmill.core.bounds import LARGEST_HEAD
from promptmill.core.errors import Named, config_error
from promptmill.http.app import Pages

_KEEP_ALIVE_S = 75  # longer than clients' pools keep a connection, so that they never reuse one that we have closed


class Listener(uvicorn.Server):
    """Serves until `stop`. `server/process.py` handles the signals."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals alone: uvicorn would raise them again at its end, before our own shutdown is complete."""
        yield

    def stop(self) -> None:
        """Take no more connections, and close those that wait for no answer."""
        self.should_exit = True

    @property
    def is_quiet(self) -> bool:
        """Whether every request is answered, and the answers have left our buffers."""
        return not any(
            (connection.cycle is not None and not connection.cycle.response_complete)
            or connection.transport.get_write_buffer_size()
            for connection in self.server_state.connections
            if isinstance(connection, H11Protocol)
        )


def listener(
    app: Pages,
    *,
    connections: int,
    tls: ssl.SSLContext | None,
    access_log: bool = False,
) -> Listener:
    """Return a server of `app` for at most `connections` at a time; `access_log`: log each request."""
    config = uvicorn.Config(
        app,
        http=H11Protocol,  # it refuses ambiguous heads
        ws="none",
        lifespan="on",
        log_config=None,
        log_level="error",  # any client could fill the log with warnings
        access_log=access_log,
        proxy_headers=False,  # nothing here uses a proxy's headers about the client
        server_header=False,
        limit_concurrency=connections,
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=None,  # the process has its own limits
        h11_max_incomplete_event_size=LARGEST_HEAD,
        ssl_context_factory=None if tls is None else lambda _config, _default: tls,
    )
    if access_log:
        logging.getLogger("uvicorn.access").setLevel(logging.INFO)
    return Listener(config)


_CERTIFICATE = Named("tls_cert")
# OpenSSL's reasons → the rest of our sentence.
_TLS_REASONS = {
    "KEY_VALUES_MISMATCH": "do not belong together; name the key that the certificate was made for",
    "NO_START_LINE": "is not a PEM file, which has lines -----BEGIN CERTIFICATE-----",
    "PEM lib": "is damaged or not a PEM file, which has lines -----BEGIN CERTIFICATE-----",
}


def tls_context(certificate: Path, key: Path | None) -> ssl.SSLContext:
    """Return the TLS of a server with this certificate chain. Raises `PromptmillError` (`invalid_config`)."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    for option, file in (("tls_cert", certificate), ("tls_key", key)):
        if file is not None and not file.is_file():
            raise config_error(Named(option), f"there is no file {file}; correct the path.")
    try:
        if key is None and b"PRIVATE KEY-----" not in certificate.read_bytes():
            raise config_error(
                _CERTIFICATE, f"{certificate} contains no private key; add ", Named("tls_key", "PATH"), "."
            )
        context.load_cert_chain(certificate, key, password=_refuse_to_ask)
    except (OSError, ssl.SSLError, ValueError) as error:
        reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or type(error).__name__
        known = (words for code, words in _TLS_REASONS.items() if code in reason)
        reason = next(known, f"cannot be used: {reason}")
        raise config_error(_CERTIFICATE, f"{certificate}{f' with {key}' if key else ''} {reason}.") from None
    return context


def _refuse_to_ask() -> str:
    raise ValueError("the key has a password")
