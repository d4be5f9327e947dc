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
from promptmill.http.app import MonitoringPages

_KEEP_ALIVE_S = 75  # longer than clients' pools keep connections, so that no client reuses a connection being closed


class Listener(uvicorn.Server):
    """Serves until `stop`. `server/process.py` handles the signals."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Do not handle signals: uvicorn would raise them again at its end, before the server has shut down."""
        yield

    def stop(self) -> None:
        """Accept no more connections, and close connections without a request."""
        self.should_exit = True

    @property
    def is_quiet(self) -> bool:
        """Whether every request is answered and all answers have been sent."""
        return not any(
            (connection.cycle is not None and not connection.cycle.response_complete)
            or connection.transport.get_write_buffer_size()
            for connection in self.server_state.connections
            if isinstance(connection, H11Protocol)
        )


def listener(
    app: MonitoringPages,
    *,
    connections: int,
    tls: ssl.SSLContext | None,
    access_log: bool = False,
) -> Listener:
    """Return a server for `app` with at most `connections` connections. `access_log`: log each request."""
    config = uvicorn.Config(
        app,
        http=H11Protocol,  # refuses ambiguous heads
        ws="none",
        lifespan="on",
        log_config=None,
        log_level="error",  # no warnings, with which any client could fill the log
        access_log=access_log,
        proxy_headers=False,  # a proxy's headers about the client are not used
        server_header=False,
        limit_concurrency=connections,
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=None,  # promptmill has its own limits
        h11_max_incomplete_event_size=LARGEST_HEAD,
        ssl_context_factory=None if tls is None else lambda _config, _default: tls,
    )
    if access_log:
        logging.getLogger("uvicorn.access").setLevel(logging.INFO)
    return Listener(config)


def tls_context(certificate: Path, key: Path | None) -> ssl.SSLContext:
    """Return the TLS context for this certificate chain. Raises `PromptmillError` (`invalid_config`)."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(certificate, key, password=_refuse_to_ask)
    except (OSError, ValueError) as error:  # OpenSSL's errors are OSErrors
        reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or str(error)
        files = f"{certificate}{f' with {key}' if key else ''}"
        raise config_error(
            Named("tls_cert"),
            f"{files} cannot be used ({reason}). Name a PEM file with the certificate chain, and one with its key and "
            "without a password, unless that is in the same file: ",
            Named("tls_key", "PATH"),
            ".",
        ) from None
    return context


def _refuse_to_ask() -> str:
    raise ValueError("the key has a password")
