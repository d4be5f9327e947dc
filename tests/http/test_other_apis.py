"""Several APIs beside MCP: which one gets a path."""

from __future__ import annotations

import contextlib
import itertools

import pytest
from starlette.responses import PlainTextResponse

from fakes import openai_configuration
from promptmill.http.address import Address, HostAllowlist
from promptmill.http.app import App, Rules
from promptmill.http.prometheus import Metrics
from promptmill.server import create_server
from promptmill.service.service import Service


class _Api:
    streamed: frozenset[str] = frozenset()
    elsewhere: frozenset[str] = frozenset()

    def __init__(self, prefix):
        self.prefix = prefix

    async def __call__(self, scope, receive, send):
        await PlainTextResponse(self.prefix)(scope, receive, send)

    async def tend(self):
        pass

    async def refuse(self, scope, send, status, message, headers):
        pass


async def _reply(app, path):
    sent = []

    async def receive():
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message):
        sent.append(message)

    headers = [(b"host", b"127.0.0.1")]
    scope = {"type": "http", "method": "POST", "path": path, "headers": headers, "scheme": "http"}
    await app(scope, receive, send)
    return sent[-1]["body"].decode()


@pytest.mark.parametrize("prefixes", [*itertools.permutations(["/v1/", "/v1/decisions", "/v1/decisions/more"])])
async def test_the_api_with_the_longest_prefix_gets_a_path_in_any_order(prefixes):
    async with contextlib.aclosing(Service(openai_configuration("http://127.0.0.1:9"))) as service:
        address = Address("127.0.0.1", 0)
        sockets = address.bind()
        rules = Rules(HostAllowlist(address, sockets), None, 1 << 20)
        apis = [*map(_Api, prefixes)]
        app = App(create_server(service, locked=True), rules, Metrics(service), others=apis)
        for found in sockets:
            found.close()
        assert await _reply(app, "/v1/chat") == "/v1/"
        assert await _reply(app, "/v1/decisions") == "/v1/decisions"
        assert await _reply(app, "/v1/decisions/more/x") == "/v1/decisions/more"
