"""The front over a pipe: who answers what, in which order the server reads the rest, and how it ends."""

from __future__ import annotations

import json
import os
import queue
import threading

import pytest

from promptmill.stdio.front import Front
from promptmill.stdio.manifest import Manifest
from promptmill.stdio.opening import Opening
from promptmill.stdio.wire import Wire

VERSION = {
    "io.modelcontextprotocol/protocolVersion": "2026-07-28",
    "io.modelcontextprotocol/clientCapabilities": {},
}
HANDSHAKE = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "x", "version": "1"}}


class Client:
    """The other side of a front; `server` is what the server reads."""

    def __init__(self, *, lists_tools=True):
        its_input, to_server = os.pipe()
        from_server, its_output = os.pipe()
        self.wire = Wire(its_input, its_output)
        self.sending, self.receiving = os.fdopen(to_server, "wb", 0), os.fdopen(from_server, "rb")
        self.left: queue.SimpleQueue[int] = queue.SimpleQueue()
        opening = Opening(Manifest.read(locked=False), lists_tools=lists_tools)
        self.front = Front(self.wire, opening, leave=self.left.put)
        self.server = self.wire.stdin

    def send(self, method, number=None, **params):
        message = {"jsonrpc": "2.0", "method": method, "params": params}
        self.write(json.dumps(message | ({} if number is None else {"id": number})).encode() + b"\n")

    def write(self, data):
        self.sending.write(data)

    def result(self):
        return json.loads(self.receiving.readline())["result"]

    def heard(self):
        """Return the method of the next message that the server reads."""
        return json.loads(self.server.readline())["method"]

    def close(self):
        self.front.hand_over()
        self.front.configured()
        self.sending.close()
        while self.server.readline():
            pass
        self.wire.close()
        self.receiving.close()


@pytest.fixture
def client():
    client = Client()
    yield client
    client.close()


def test_a_client_is_served_without_a_server(client):
    client.send("initialize", 1, **HANDSHAKE)
    assert client.result()["serverInfo"]["name"] == "promptmill"
    client.send("notifications/initialized")
    client.send("ping", 2)
    assert client.result() == {}
    client.front.configured()
    client.send("tools/list", 3)
    assert client.result()["tools"]


def test_the_server_hears_of_the_handshake_and_of_what_it_has_to_answer_alone(client):
    client.front.configured()
    client.send("initialize", 1, **HANDSHAKE)
    client.send("notifications/initialized")
    client.send("tools/list", 2)
    client.send("tools/call", 3, name="bulk_status", arguments={})
    client.send("ping", 4)
    assert [bool(client.result()) for _ in range(3)] == [True, True, False]
    assert [client.heard() for _ in range(3)] == ["initialize", "notifications/initialized", "tools/call"]
    client.wire.send(b'{"jsonrpc":"2.0","id":1,"result":{}}\n{"jsonrpc":"2.0","id":3,"result":{"mine":1}}\n')
    assert client.result() == {"mine": 1}, "the client knows the answer to its handshake"


def test_from_the_handshake_on_a_server_that_is_there_answers_everything(client):
    client.send("initialize", 1, **HANDSHAKE)
    client.result()
    client.front.hand_over()
    client.send("ping", 2)
    client.send("tools/list", 3)
    assert [client.heard() for _ in range(3)] == ["initialize", "ping", "tools/list"]


def test_a_discovery_is_forgotten_when_a_handshake_follows_even_if_the_server_is_there(client):
    client.front.hand_over()
    client.send("server/discover", 0, _meta=VERSION)
    assert client.result()["supportedVersions"]
    client.send("initialize", 1, **HANDSHAKE)
    assert client.result()["protocolVersion"] == "2025-11-25"
    client.send("ping", 2)
    assert [client.heard() for _ in range(2)] == ["initialize", "ping"]


def test_the_server_hears_the_first_real_request_of_the_modern_era(client):
    client.send("server/discover", 0, _meta=VERSION)
    client.result()
    client.send("tools/call", 1, name="bulk_status", arguments={}, _meta=VERSION)
    assert client.heard() == "tools/call"


def test_tools_are_told_only_when_the_configuration_is_right(client):
    client.send("initialize", 1, **HANDSHAKE)
    client.result()
    client.send("tools/list", 2)
    client.front.configured()
    assert client.result()["tools"]


@pytest.mark.parametrize("size", [10, 70_000, 1_000_000])
def test_nothing_is_lost_or_reordered_between_the_front_and_the_server(client, size):
    calls = [json.dumps({"id": i, "method": "x" * size}).encode() + b"\n" for i in range(3)]
    client.send("initialize", 1, **HANDSHAKE)
    client.result()
    writing = threading.Thread(target=lambda: client.write(b"".join(calls)))
    writing.start()
    client.front.hand_over()
    assert client.heard() == "initialize"
    assert [client.server.readline() for _ in calls] == calls
    writing.join(10)


def test_a_client_that_leaves_before_the_server_is_there_needs_none(client):
    client.send("ping", 1)
    client.result()
    client.sending.close()
    assert client.left.empty(), "a wrong configuration is said first"
    client.front.configured()
    assert client.left.get(timeout=10) == 0


def test_a_client_that_leaves_a_request_behind_leaves_it_to_the_server(client):
    client.front.configured()
    client.send("tools/call", 1, name="bulk_status", arguments={})
    client.write(b"half a li")
    client.sending.close()
    assert client.heard() == "tools/call"
    assert client.server.read() == b"half a li"
    assert client.left.empty()


def test_what_a_person_writes_is_told_once_that_a_client_starts_it(client, capfd):
    client.write(b"what is 2 + 2?\nand 3?\n")
    assert [client.server.readline() for _ in range(2)] == [b"what is 2 + 2?\n", b"and 3?\n"]
    assert (
        capfd.readouterr().err.count("this is an MCP server: a client starts it; for a question: promptmill gen") == 1
    )
