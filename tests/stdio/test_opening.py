"""Which requests are answered before the server is there, and which are left to it."""

from __future__ import annotations

import json

import pytest

from promptmill.stdio.manifest import Manifest
from promptmill.stdio.opening import Opening, request_of
from sure import sure

MODERN = "io.modelcontextprotocol/"
ENVELOPE = {"_meta": {f"{MODERN}protocolVersion": "2026-07-28", f"{MODERN}clientCapabilities": {}}}
HANDSHAKE = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "x", "version": "1"}}
# as @ai-sdk/mcp 2.0.99, Claude Code 2.1, codex 0.169 and VS Code send theirs
REAL_HANDSHAKES = [
    {
        "protocolVersion": "2025-11-25",
        "capabilities": {},
        "clientInfo": {"name": "ai-sdk-mcp-client", "version": "1.0.0"},
    },
    {
        "protocolVersion": "2025-11-25",
        "capabilities": {"roots": {}, "elicitation": {}},
        "clientInfo": {
            "name": "claude-code",
            "title": "Claude Code",
            "version": "2.1.329",
            "websiteUrl": "https://x.y",
        },
    },
    {
        "protocolVersion": "2025-06-18",
        "capabilities": {"elicitation": {"form": {}, "url": {}}, "experimental": None},
        "clientInfo": {"name": "codex-mcp-client", "title": "Codex", "version": "0.169.0"},
    },
    {
        "protocolVersion": "2025-11-25",
        "capabilities": {
            "roots": {"listChanged": True},
            "sampling": {},
            "tasks": {"list": {}, "cancel": {}, "requests": {"sampling": {"createMessage": {}}}},
            "extensions": {"io.modelcontextprotocol/ui": {"mimeTypes": ["text/html;profile=mcp-app"]}},
        },
        "clientInfo": {"name": "Visual Studio Code", "version": "1.110.0"},
    },
]


@pytest.fixture
def opening():
    return Opening(Manifest.read(locked=False))


def ask(opening, method, params=None):
    """Send a request; return its result, or None when the server has to answer it."""
    return opening.answer({"jsonrpc": "2.0", "id": 1, "method": method} | ({"params": params} if params else {}))


@pytest.mark.parametrize("handshake", REAL_HANDSHAKES)
def test_the_handshakes_of_real_clients_are_answered(opening, handshake):
    result = ask(opening, "initialize", handshake)
    assert result["serverInfo"]["name"] == "promptmill"
    assert result["protocolVersion"] == handshake["protocolVersion"]
    assert ask(opening, "ping") == {}
    assert ask(opening, "tools/list", {"_meta": {"progressToken": 0}})["tools"]


def test_a_version_that_nobody_knows_gets_the_newest_one_that_has_a_handshake(opening):
    assert ask(opening, "initialize", HANDSHAKE | {"protocolVersion": "1999-01-01"})["protocolVersion"] == "2025-11-25"


def test_a_client_of_the_modern_era_is_told_what_there_is_and_the_tools(opening):
    assert ask(opening, "server/discover", ENVELOPE)["supportedVersions"] == ["2026-07-28"]
    assert ask(opening, "tools/list", ENVELOPE)["resultType"] == "complete"
    assert opening.era == "modern"
    assert ask(opening, "initialize", HANDSHAKE) is None, "the server refuses it"


def test_an_initialize_may_replace_a_discovery_that_nothing_followed(opening):
    assert ask(opening, "server/discover", ENVELOPE)
    assert ask(opening, "server/discover", ENVELOPE)
    assert ask(opening, "ping") == {}
    assert opening.era == ""
    assert ask(opening, "initialize", HANDSHAKE)
    assert opening.era == "handshake"


def test_tools_of_a_locked_server_do_not_change_what_it_runs():
    opening = Opening(Manifest.read(locked=True))
    told = ask(opening, "initialize", HANDSHAKE)
    names = {tool["name"] for tool in ask(opening, "tools/list")["tools"]}
    assert "generate" in names
    assert not names & {"generation_init", "vllm_shutdown"}
    assert "generation_init" not in told["instructions"]


def test_a_server_with_other_tools_lists_them_itself():
    opening = Opening(Manifest.read(locked=False), lists_tools=False)
    assert ask(opening, "initialize", HANDSHAKE)
    assert ask(opening, "tools/list") is None


@pytest.mark.parametrize(
    ("method", "params"),
    [
        ("tools/list", None),  # before any handshake
        ("tools/call", {"name": "generate", "arguments": {}}),
        ("resources/list", None),
        ("server/discover", None),
        ("server/discover", {"_meta": {f"{MODERN}protocolVersion": "2026-07-28"}}),
        ("server/discover", {"_meta": ENVELOPE["_meta"] | {f"{MODERN}protocolVersion": "2031-01-01"}}),
        ("server/discover", {"_meta": ENVELOPE["_meta"] | {f"{MODERN}clientInfo": {"name": "x"}}}),
        ("ping", ENVELOPE),  # there is none in that era
        ("ping", {"_meta": 1}),
        ("initialize", None),
        ("initialize", HANDSHAKE | {"protocolVersion": 20251125}),
        ("initialize", HANDSHAKE | {"capabilities": {"roots": True}}),
        ("initialize", HANDSHAKE | {"clientInfo": {"name": "x"}}),
        ("initialize", HANDSHAKE | ENVELOPE),
    ],
)
def test_what_is_not_surely_right_is_left_to_the_server_from_then_on(opening, method, params):
    assert ask(opening, method, params) is None
    assert opening.era
    assert ask(opening, "initialize", HANDSHAKE) is None


@pytest.mark.parametrize("again", ["initialize", "server/discover"])
def test_a_handshake_counts_once(opening, again):
    ask(opening, "initialize", HANDSHAKE)
    assert ask(opening, again, HANDSHAKE if again == "initialize" else ENVELOPE) is None
    assert ask(opening, "tools/list", {"cursor": "2"}) is None
    assert ask(opening, "tools/list", ENVELOPE) is None, "an era that this connection does not talk in"
    assert ask(opening, "ping") == {}


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"no JSON",
        b"[" * 100_000,
        b"[]",
        b'{"jsonrpc": "2.0", "method": "notifications/initialized"}',
        b'{"jsonrpc": "2.0", "id": true, "method": "ping"}',
        b'{"jsonrpc": "2.0", "id": 1.5, "method": "ping"}',
        b'{"jsonrpc": "2.0", "id": null, "method": "ping"}',
        b'{"jsonrpc": "1.0", "id": 1, "method": "ping"}',
        b'{"jsonrpc": "2.0", "id": 1, "method": "ping", "params": []}',
        b'{"jsonrpc": "2.0", "id": 1, "method": "ping", "more": 1}',
        b'{"jsonrpc": "2.0", "id": 1, "result": {}}',
        json.dumps({"jsonrpc": "2.0", "id": 1, "method": "ping", "params": {"x": "x" * 70_000}}).encode(),
    ],
)
def test_what_is_no_plain_request_is_none_of_the_opening(line):
    assert request_of(line) is None


def test_a_request_may_have_a_text_as_its_id_and_no_params():
    assert sure(request_of(b' {"id": "a", "method": "ping", "jsonrpc": "2.0"}\r\n'))["id"] == "a"
