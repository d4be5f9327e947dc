"""Ways to an endpoint, and ports that are none."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, suppress

import pytest
from yarl import URL

from promptmill.backends.openai import route
from upstream import Upstream
from waiting import PATIENCE_S


@pytest.fixture(params=["own connections", pytest.param("aiohttp's session", marks=pytest.mark.thorough)])
def either_way(request: pytest.FixtureRequest, upstream: Upstream, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways to an endpoint: directly, and through a proxy, which is the upstream itself."""
    if request.param != "own connections":
        proxy = URL(upstream.url.removesuffix("/v1"))
        # no variable does this: requests to this machine use no proxy
        monkeypatch.setattr(route, "proxy_of", lambda url, *, trust_env: None if url.startswith("https:") else proxy)
    return str(request.param)


@pytest.fixture
def unaccepting() -> Iterator[int]:
    """A port that neither accepts nor refuses: its queue is full."""
    with socket.socket() as listening, ExitStack() as stack:
        listening.bind(("127.0.0.1", 0))
        listening.listen(0)
        for _ in range(4):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(listening.getsockname())
        yield listening.getsockname()[1]


@pytest.fixture
def smtp() -> Iterator[int]:
    """A port where another protocol is spoken."""

    def greet() -> None:
        with suppress(OSError):
            while True:
                connection, _ = listening.accept()
                with connection:
                    connection.sendall(b"220 mail.example ESMTP ready\r\n")
                    connection.recv(65536)

    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=greet, daemon=True)
        thread.start()
        yield listening.getsockname()[1]
        listening.shutdown(socket.SHUT_RDWR)
    thread.join(PATIENCE_S)
