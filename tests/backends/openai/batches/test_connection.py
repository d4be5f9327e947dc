"""What a provider may make a client of its Batch API do: downloads from other addresses, and lists."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web

from promptmill.backends.openai.batches import connection
from promptmill.backends.openai.batches.connection import BatchConnection
from promptmill.backends.openai.batches.openai_batches import Batches
from promptmill.backends.openai.endpoint import Endpoint
from promptmill.backends.openai.providers import PLAIN
from promptmill.backends.openai.transport import Pool
from promptmill.config.settings import OpenAISettings
from promptmill.core.errors import PromptmillError


class Provider:
    """A provider on loopback that redirects a download to `location`, and lists files without end."""

    def __init__(self) -> None:
        self.port = self.secrets = self.pages = 0
        self.location = ""

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[BatchConnection]:
        """Listen, and open a connection to it."""
        app = web.Application()
        app.router.add_get("/v1/files/f/content", self._redirect)
        app.router.add_get("/v1/files", self._list)
        app.router.add_get("/secret", self._secret)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        self.port = runner.addresses[0][1]
        root = f"http://127.0.0.1:{self.port}/v1"
        settings = OpenAISettings(base_url=[root], model_name="m", trust_env=False)
        pool = Pool(settings, 4)
        endpoint = Endpoint(f"{root}/chat/completions", "provider", {}, (), PLAIN)
        try:
            yield BatchConnection(pool, endpoint, settings, root=root)
        finally:
            await pool.aclose()
            await runner.cleanup()

    async def _redirect(self, _: web.Request) -> web.StreamResponse:
        return web.Response(status=302, headers={"Location": self.location.format(port=self.port)})

    async def _secret(self, _: web.Request) -> web.StreamResponse:
        self.secrets += 1
        return web.Response(text='{"custom_id": "1"}\n')

    async def _list(self, _: web.Request) -> web.StreamResponse:
        self.pages += 1
        return web.json_response({"data": [{"id": str(self.pages)}], "has_more": True})


@pytest.fixture
def provider() -> Provider:
    return Provider()


async def lines(found: BatchConnection) -> list[Any]:
    return [line async for line in found.lines("/files/f/content")]


async def test_a_server_of_this_network_may_redirect_a_download_within_it(provider):
    provider.location = "http://localhost:{port}/secret"
    async with provider.connection() as found:
        assert await lines(found) == [{"custom_id": "1"}]


@pytest.mark.parametrize("location", ["http://localhost:{port}/secret", "http://[::ffff:127.0.0.1]:{port}/secret"])
async def test_a_provider_elsewhere_may_name_no_private_address(provider, location, monkeypatch):
    monkeypatch.setattr(connection, "is_near", lambda _: False)
    provider.location = location
    async with provider.connection() as found:
        with pytest.raises(PromptmillError, match="no public address"):
            await lines(found)
    assert not provider.secrets


async def test_a_provider_may_choose_no_credentials(provider):
    provider.location = "http://ada:word@localhost:{port}/secret"
    async with provider.connection() as found:
        with pytest.raises(PromptmillError, match="with a user's name"):
            await lines(found)
    assert not provider.secrets


async def test_a_list_without_an_end_is_an_error(provider, monkeypatch):
    monkeypatch.setattr(connection, "MOST_PAGES", 5)
    async with provider.connection() as found:
        with pytest.raises(PromptmillError, match="listed more than 5 pages"):
            _ = [page async for page in found.pages("/files", "data", Batches.PAGES)]
    assert provider.pages == 6
