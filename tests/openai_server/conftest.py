"""A server over HTTP with its own state folder, and OpenAI's client for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import openai
import pytest

from served import TOKEN, Served
from server_process import written
from upstream import Upstream


@pytest.fixture
def up():
    with Upstream() as upstream:
        yield upstream


@pytest.fixture
def serve(tmp_path, up):
    """Return a function that starts a server; a further one finds the state of those before it."""
    started: list[Served] = []

    def start(top: dict[str, Any] | None = None, environ: dict[str, str] | None = None, **block: Any) -> Served:
        config = written(tmp_path, up.url, top, **block)
        environ = {"PROMPTMILL_STATE": str(tmp_path / "state"), "PROMPTMILL_HTTP_TOKEN": TOKEN} | (environ or {})
        started.append(Served(config, environ=environ))
        return started[-1]

    yield start
    for server in started:
        server.__exit__()


def client(server: Served, token: str = TOKEN, **options: Any) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"http://127.0.0.1:{server.port}/v1", api_key=token, **options)


def state(tmp_path: Path) -> Path:
    return tmp_path / "state" / "openai"
