"""The server card, the catalog, and the versions that clients learn."""

import json
import re
from pathlib import Path

import pytest
from mcp_types.version import KNOWN_PROTOCOL_VERSIONS

from served import BEARER, SESSIONLESS, TOKEN, ServedHere, Sessionless
from server_process import written

pytestmark = pytest.mark.http
SERVER_JSON = Path(__file__).parents[3] / "server.json"


@pytest.fixture(scope="module")
def server(lasting, tmp_path_factory):
    """A server with a token."""
    folder = tmp_path_factory.mktemp("card")
    with ServedHere(written(folder, lasting.url), environ={"PROMPTMILL_HTTP_TOKEN": TOKEN}) as served:
        yield served


def test_the_card_says_without_a_token_what_the_server_is(server):
    got = server.ask("GET", "/mcp/server-card")
    assert (got.status, got.headers["content-type"]) == (200, "application/mcp-server-card+json")
    card = got.json
    assert got.headers["access-control-allow-origin"] == "*"
    assert got.headers["cache-control"] == "public, max-age=3600"
    assert card["$schema"] == "https://static.modelcontextprotocol.io/schemas/v2/server-card.schema.json"
    registered = json.loads(SERVER_JSON.read_text())
    assert [card[name] for name in ("name", "title", "version")] == [
        registered[n] for n in ("name", "title", "version")
    ]
    assert re.fullmatch(r"[a-zA-Z0-9.-]+/[a-zA-Z0-9._-]+", card["name"])
    assert 1 <= len(card["description"]) <= 100
    assert card["icons"][0]["mimeType"] == "image/png"
    assert card["remotes"] == [
        {
            "type": "streamable-http",
            "url": f"http://127.0.0.1:{server.port}/mcp",
            "supportedProtocolVersions": [*KNOWN_PROTOCOL_VERSIONS],
        }
    ]
    assert set(card) == {"$schema", "name", "title", "description", "version", "websiteUrl", "icons", "remotes"}


def test_the_catalog_names_the_card(server):
    catalog = server.ask("GET", "/.well-known/mcp/catalog.json").json
    assert catalog == {
        "specVersion": "draft",
        "entries": [
            {
                "identifier": "urn:air:promptmill.github.io:promptmill",
                "displayName": "promptmill",
                "type": "application/mcp-server-card+json",
                "url": f"http://127.0.0.1:{server.port}/mcp/server-card",
            }
        ],
    }


def test_addresses_are_those_of_the_client(server):
    proxied = {"Host": "localhost", "X-Forwarded-Proto": "https"}
    card = server.ask("GET", "/mcp/server-card", proxied).json
    assert card["remotes"][0]["url"] == "https://localhost/mcp"
    assert server.ask("GET", "/mcp/server-card", {"Host": "evil.example"}).status == 421


def test_the_pages_are_only_read(server):
    for path in ("/mcp/server-card", "/.well-known/mcp/catalog.json"):
        assert server.ask("HEAD", path).status == 200
        assert server.ask("POST", path, BEARER, b"{}").status == 405
    assert server.ask("GET", "/mcp/server-card/x").status == 404


def test_a_discovery_names_all_versions_and_the_card_agrees_with_it(server):
    found = Sessionless(server, BEARER).request("server/discover")["result"]
    assert found["supportedVersions"] == [*KNOWN_PROTOCOL_VERSIONS]
    assert SESSIONLESS in found["supportedVersions"]
    card = server.ask("GET", "/mcp/server-card").json
    info = found["_meta"]["io.modelcontextprotocol/serverInfo"]
    assert [info[name] for name in ("version", "websiteUrl", "icons")] == [
        card[n] for n in ("version", "websiteUrl", "icons")
    ]
