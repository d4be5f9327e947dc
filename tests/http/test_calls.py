"""Calls over HTTP, by the clients' own libraries and by plain requests, in both generations of the protocol."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import threading
from typing import Any

import psutil
import pytest

from replies import answer, by_prompt, hang, late
from served import VERSION, ServedHere, messages
from server_process import written
from sure import sure
from talk import text
from waiting import PATIENCE_S, eventually, until

pytestmark = pytest.mark.http


def _client(server, **options):
    from fastmcp import Client

    return Client(server.url, **options)


# What is offered


@pytest.mark.usefixtures("protocol")
def test_files_are_out_of_reach_unless_the_operator_names_folders(server, upstream, tmp_path):
    from PIL import Image

    Image.new("RGB", (2, 2)).save(tmp_path / "a.png")
    (tmp_path / "in.jsonl").write_text('{"prompt": "a"}\n')
    picture: dict[str, Any] = {"multimodal_path": [[str(tmp_path / "a.png")]], "prompt_ls": ["x"]}
    job: dict[str, Any] = {"input_file": str(tmp_path / "in.jsonl"), "output_file": str(tmp_path / "out.jsonl")}
    session = server.session()
    for tool, arguments in (("multimodal_generate", picture), ("bulk_generate", job)):
        result = session.call(tool, **arguments)
        assert result["isError"]
        assert "allowed_roots" in result["content"][0]["text"]
    assert session.call("bulk_status")["structuredContent"]["jobs"] == []
    assert not upstream.seen
    state = {"XDG_STATE_HOME": str(tmp_path / "state")}
    config = written(tmp_path, upstream.url, {"allowed_roots": [str(tmp_path)]})
    with ServedHere(config, environ=state) as open_handed:
        session = open_handed.session()
        assert not session.call("multimodal_generate", **picture)["isError"]
        started = session.call("bulk_generate", **job)["structuredContent"]["job_id"]
        eventually(lambda: session.call("bulk_status", job_id=started)["structuredContent"]["state"] == "finished")
    assert json.loads((tmp_path / "out.jsonl").read_text())["answer"] == "echo: a"


def test_web_images_and_data_go_through(server, upstream):
    urls = [
        "https://example.com/a.png",
        "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR4",
    ]
    urls[1] += "nGNgYGD4DwABBAEAX+XDSwAAAABJRU5ErkJggg=="
    result = server.session().call("multimodal_generate", multimodal_path=[urls], prompt_ls=["x"])
    assert result["structuredContent"] == {"ans_ls": ["echo: x"]}
    parts = upstream.seen[0].json["messages"][-1]["content"]
    assert [part["type"] for part in parts] == ["text", "image_url", "image_url"]


# Progress


@pytest.mark.usefixtures("protocol")
async def test_progress_arrives_while_the_call_works(server, upstream):
    enough = threading.Event()

    async def slow(exchange):
        await asyncio.to_thread(enough.wait, 30)
        await answer()(exchange)

    upstream.reply = by_prompt({"slow": slow})
    told = []

    async def heard(progress, total, message):
        told.append((progress, total, upstream.in_flight))
        if len(told) == 3:
            enough.set()

    async with _client(server) as client:
        result = await client.call_tool("generate", {"prompt_ls": ["a", "slow"]}, progress_handler=heard)

    assert result.structured_content == {"ans_ls": ["echo: a", "echo: slow"]}
    assert enough.is_set()
    assert {total for _, total, _ in told} == {2}
    assert any(in_flight for _, _, in_flight in told), "told while it worked, not at the end"


# Large


@pytest.mark.thorough
@pytest.mark.usefixtures("protocol")
async def test_twenty_thousand_prompts_are_answered_in_order(server):
    prompts = [str(i) for i in range(20_000)]
    async with _client(server) as client:
        result = await client.call_tool("generate", {"prompt_ls": prompts}, progress_handler=_nobody)

    assert result.structured_content == {"ans_ls": [f"echo: {prompt}" for prompt in prompts]}


async def _nobody(progress, total, message):
    """Ask for progress, as clients do."""


@pytest.mark.thorough
@pytest.mark.usefixtures("protocol")
async def test_an_answer_beyond_what_clients_take_as_an_event_arrives_however_long_it_took(server, upstream):
    upstream.reply = late(1.2, answer("ü" * 3_000_000))
    async with _client(server) as client:
        result = await client.call_tool("generate", {"prompt_ls": ["x" * 5000]}, progress_handler=_nobody)

    assert result.structured_content == {"ans_ls": ["ü" * 3_000_000]}


@pytest.mark.thorough
@pytest.mark.usefixtures("protocol")
async def test_answers_in_any_script_arrive_as_an_event(server, upstream):
    """3 bytes of UTF-8 each, which the SDK would write as 6."""
    upstream.reply = late(2.2, answer("你" * 30_000))
    async with _client(server) as client:
        result = await client.call_tool("generate", {"prompt_ls": ["x"] * 10}, progress_handler=_nobody)
    assert result.structured_content == {"ans_ls": ["你" * 30_000] * 10}


@pytest.mark.thorough
@pytest.mark.parametrize("prompts", [["x"] * 12, ["x" * 400] * 12], ids=["few", "long"])
async def test_a_program_with_an_agent_string_of_its_own_loses_no_answer(server, upstream, prompts):
    import httpx2
    from mcp import ClientSession
    from mcp.client.streamable_http import streamable_http_client

    upstream.reply = late(2.2, answer("y" * 100_000))
    async with (
        httpx2.AsyncClient(headers={"User-Agent": "my-app/1.0"}, timeout=PATIENCE_S) as http_client,
        streamable_http_client(server.url, http_client=http_client) as streams,
        ClientSession(*streams) as session,
    ):
        await session.initialize()
        found = await session.call_tool("generate", {"prompt_ls": prompts}, progress_callback=_nobody)
        answers = found.structured_content["ans_ls"]
        if job_id := found.structured_content.get("kept_job_id"):
            arguments = {"job_id": job_id, "read": "all", "offset": answers.index(""), "max_characters": 1_000_000}
            page = await session.call_tool("bulk_status", arguments)
            answers = [*filter(None, answers), *(row["answer"] for row in page.structured_content["rows"])]
    assert answers == ["y" * 100_000] * 12


def test_other_clients_are_told_progress_of_large_calls_too(server, upstream):
    upstream.reply = late(0.7)
    session = server.session({"User-Agent": "node"})
    params = {"name": "generate", "arguments": {"prompt_ls": ["x" * 5000]}, "_meta": {"progressToken": "p"}}
    said = messages(session.post({"jsonrpc": "2.0", "id": 9, "method": "tools/call", "params": params}).body)
    assert [message.get("method") for message in said[:2]] == ["notifications/progress"] * 2
    assert len(said[-1]["result"]["structuredContent"]["ans_ls"][0]) == 5006


async def test_the_client_of_the_sdk_is_served(server):
    from mcp import ClientSession
    from mcp.client.streamable_http import streamable_http_client

    async with streamable_http_client(server.url) as streams, ClientSession(*streams) as session:
        await session.initialize()
        result = await session.call_tool("generate", {"prompt_ls": ["x"]})
        assert result.structured_content == {"ans_ls": ["echo: x"]}
        assert json.loads(text(result)) == {"ans_ls": ["echo: x"]}


# At the same time


async def test_two_clients_at_once_get_each_their_own_answers(server, upstream):
    upstream.reply = by_prompt({"hang": hang()})
    async with _client(server, mode="auto") as one, _client(server, mode="legacy") as other:
        waiting = asyncio.ensure_future(one.call_tool("generate", {"prompt_ls": ["hang"]}))
        await until(lambda: upstream.in_flight)
        both = await asyncio.gather(
            *(
                client.call_tool("generate", {"prompt_ls": [f"{name}{i}"]})
                for i in range(20)
                for name, client in (("one", one), ("other", other))
            )
        )
        expected = [[f"echo: {name}{i}"] for i in range(20) for name in ("one", "other")]
        assert [result.structured_content["ans_ls"] for result in both] == expected
        assert not waiting.done()
        waiting.cancel()
        await until(lambda: not upstream.in_flight)


# Stopping


@pytest.mark.usefixtures("protocol")
async def test_a_client_that_gives_up_stops_the_work(server, upstream):
    upstream.reply = by_prompt({"hang": hang()})
    async with _client(server) as client:
        giving_up = asyncio.ensure_future(client.call_tool("generate", {"prompt_ls": ["hang"] * 20}))
        await until(lambda: upstream.in_flight)
        giving_up.cancel()
        await until(lambda: not upstream.in_flight)
        result = await client.call_tool("generate", {"prompt_ls": ["x"]})
        assert result.structured_content == {"ans_ls": ["echo: x"]}


class _Hanging:
    """A call that waits for its answer on a connection of its own."""

    def __init__(self, server, headers, message):
        self.connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=PATIENCE_S)
        self.connection.request("POST", "/mcp", json.dumps(message), headers)
        self.answer: bytes | None = None
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self):
        with contextlib.suppress(OSError, http.client.HTTPException):  # dropped
            self.answer = self.connection.getresponse().read()

    def wait(self):
        self._reader.join(PATIENCE_S)
        return messages(sure(self.answer))[-1]

    def drop(self):
        self.connection.sock.shutdown(2)


HANG: dict[str, Any] = {"jsonrpc": "2.0", "id": 77, "method": "tools/call"}
HANG["params"] = {"name": "generate", "arguments": {"prompt_ls": ["hang"]}}


@pytest.fixture
def hanging(server, upstream):
    """A session of 2025 in which a call waits for an endpoint that says nothing."""
    upstream.reply = by_prompt({"hang": hang()})
    session = server.session()
    call = _Hanging(server, session.headers, HANG)
    eventually(lambda: upstream.in_flight == 1)
    return session, call


@pytest.mark.thorough
@pytest.mark.parametrize(("agent", "sign"), [("node", b": ping"), ("python-httpx2/2", b" ")], ids=["stream", "json"])
def test_an_open_response_is_kept_alive_for_clients_that_hang_up_after_five_seconds(server, upstream, agent, sign):
    upstream.reply = by_prompt({"hang": hang()})
    session = server.session({"User-Agent": agent})
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=5)  # of silence
    connection.request("POST", "/mcp", json.dumps(HANG).encode(), session.headers)
    response = connection.getresponse()
    said = b""  # an event with an id comes first, to resume at
    while sign not in said:
        said += sure(response.read(1))
    connection.close()
    session.close()


def test_in_a_session_dropping_the_connection_leaves_the_work_and_cancelling_ends_it(hanging, upstream):
    session, call = hanging
    call.drop()
    assert session.answers("meanwhile") == ["echo: meanwhile"]
    assert upstream.in_flight == 1, "the protocol wants it so: the client may only have lost its line"
    session.notify("notifications/cancelled", requestId=77)
    eventually(lambda: not upstream.in_flight)


def test_a_cancelled_call_is_told_so_and_its_connection_ends(hanging, upstream):
    session, call = hanging
    session.notify("notifications/cancelled", requestId=77, reason="changed my mind")
    eventually(lambda: not upstream.in_flight)
    assert call.wait()["error"]["message"] == "Request cancelled"


def test_ending_the_session_ends_its_work(hanging, upstream):
    session, _ = hanging
    session.close()
    eventually(lambda: not upstream.in_flight)
    assert session.post({"jsonrpc": "2.0", "id": 1, "method": "ping"}).status == 404


def test_without_a_session_dropping_the_connection_ends_the_work(server, upstream):
    upstream.reply = by_prompt({"hang": hang()})
    version = {"Mcp-Protocol-Version": "2026-07-28", "Mcp-Method": "tools/call", "Mcp-Name": "generate"}
    meta: dict[str, Any] = {"io.modelcontextprotocol/protocolVersion": "2026-07-28"}
    meta["io.modelcontextprotocol/clientCapabilities"] = {}
    headers = {"Content-Type": "application/json", "Accept": "application/json, text/event-stream"} | version
    call = _Hanging(server, headers, HANG | {"params": HANG["params"] | {"_meta": meta}})
    eventually(lambda: upstream.in_flight == 1)
    call.drop()
    eventually(lambda: not upstream.in_flight)


@pytest.mark.parametrize("version", [VERSION, "2026-07-28"])
def test_half_a_surrogate_pair_is_an_error_and_no_crash(server, version):
    session = server.session()
    body = json.dumps(HANG | {"params": {"name": "generate", "arguments": {"prompt_ls": ["a\ud800"]}}})
    headers = {"Mcp-Protocol-Version": version, "Mcp-Method": "tools/call", "Mcp-Name": "generate"}
    answer = server.ask(headers=session.headers | headers, body=body.encode())
    assert b"echo" not in answer.body
    assert b"error" in answer.body.lower()
    assert session.answers("after") == ["echo: after"]
    assert "Traceback" not in server.said()


# A crowd


@pytest.mark.thorough
async def test_a_crowd_leaves_nothing_behind(server):
    process = psutil.Process(server.process.pid)

    async def one(number):
        async with _client(server, mode="auto" if number % 2 else "legacy") as client:
            for turn in range(5):
                result = await client.call_tool("generate", {"prompt_ls": [f"{number}.{turn}", "x"]})
                assert result.structured_content == {"ans_ls": [f"echo: {number}.{turn}", "echo: x"]}

    async def crowd():
        await asyncio.gather(*(one(number) for number in range(20)))

    await crowd()
    eventually(lambda: len(process.net_connections()) <= 30)
    before = process.num_fds(), process.num_threads()
    await crowd()
    eventually(lambda: process.num_fds() <= before[0] + 2)
    assert process.num_threads() <= before[1] + 1
    assert "Traceback" not in server.said()
