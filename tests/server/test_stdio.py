"""The server as clients start it: a subprocess, real stdio, raw lines and the clients' own libraries."""

import asyncio
import contextlib
import itertools
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from functools import partial

import pytest
import yaml
from fastmcp import Client
from fastmcp.client.transports import StdioTransport

from everyday import everyday
from fakes import KEY
from forked import started
from piped import Piped
from processtable import child_with
from promptmill.server.stdio import _Pipe
from replies import answer, by_prompt, hang, late
from server_process import CODES, written
from talk import text
from waiting import PATIENCE_S, eventually, until

pytestmark = pytest.mark.stdio


@pytest.fixture
def upstream(lasting):
    lasting.begin_anew()
    return lasting


@pytest.fixture
def config(tmp_path, upstream):
    """Write a configuration file of the openai backend in front of `upstream`."""
    return partial(written, tmp_path, upstream.url)


@pytest.fixture(scope="module")
def running(lasting, tmp_path_factory):
    with Piped(written(tmp_path_factory.mktemp("shared"), lasting.url)) as piped:
        piped.initialize()
        yield piped


@pytest.fixture
def server(running, upstream):
    """A server that other tests used before and will use after, as the life of a server is."""
    return running


# Talking


def test_it_says_who_it_is_and_what_it_can_before_anything_is_loaded(server):
    tools = server.result(server.request("tools/list"))["tools"]
    assert {"generation_init", "generate", "multimodal_generate", "multiturn_generate", "vllm_shutdown"} <= {
        tool["name"] for tool in tools
    }
    assert server.family() == []


def test_a_result_holds_the_same_json_twice(server):
    result = server.result(server.call("generate", prompt_ls=["grüße"]))
    assert result["structuredContent"] == {"ans_ls": ["echo: grüße"]}
    assert result["content"][0] == {"type": "text", "text": '{"ans_ls":["echo: grüße"]}'}
    assert result["_meta"]["requests"] == 1


def test_a_tool_without_a_result_says_nothing(server):
    for number in (
        server.call("generation_init", backend_configs={}, sampling_params={}, backend="openai"),
        server.call("vllm_shutdown"),
    ):
        result = server.result(number)
        assert result["content"] == []
        assert not result["isError"]
        assert "structuredContent" not in result


# The first words

CLIENT = {"name": "test", "version": "1"}
MODERN = {
    "io.modelcontextprotocol/protocolVersion": "2026-07-28",
    "io.modelcontextprotocol/clientCapabilities": {},
    "io.modelcontextprotocol/clientInfo": CLIENT,
}


def test_whatever_is_sent_before_the_server_is_there_is_answered_once(config):
    with Piped(config()) as server:
        handshake = server.request(
            "initialize", protocolVersion="2025-06-18", capabilities={"roots": {}}, clientInfo=CLIENT
        )
        server.notify("notifications/initialized")
        numbers = [handshake, server.request("ping"), server.request("tools/list"), server.request("resources/list")]
        call = server.call("generate", prompt_ls=["early"])
        assert all(server.result(number) is not None for number in numbers)
        assert server.result(call)["structuredContent"] == {"ans_ls": ["echo: early"]}
        assert sorted(line["id"] for _, line in server.lines if "id" in line) == [*numbers, call]


def test_a_handshake_replaces_a_discovery_whose_answer_came_too_late(config):
    with Piped(config()) as server:
        assert "2026-07-28" in server.result(server.request("server/discover", _meta=MODERN))["supportedVersions"]
        assert server.initialize()["protocolVersion"] == "2025-11-25"
        assert server.answers("x") == ["echo: x"]


def test_a_client_of_the_modern_era_needs_no_handshake(config):
    with Piped(config()) as server:
        server.result(server.request("server/discover", _meta=MODERN))
        tools = server.result(server.request("tools/list", _meta=MODERN))
        assert tools["resultType"] == "complete"
        call = server.request("tools/call", name="generate", arguments={"prompt_ls": ["x"]}, _meta=MODERN)
        assert server.result(call)["structuredContent"] == {"ans_ls": ["echo: x"]}
        assert server.reply(server.request("ping", _meta=MODERN))["error"]["code"] == -32601


def test_a_wrong_configuration_ends_it_even_when_somebody_spoke_to_it_already(tmp_path):
    file = tmp_path / "wrong.yaml"
    file.write_text("bakend: openai")
    with Piped(file) as server:
        numbers = [server.request("initialize"), server.request("tools/list")]
        assert server.process.wait(PATIENCE_S) == 2
        assert [server.found(number) for number in numbers] == [None, None]
        assert "backend" in server.said()


def test_lines_of_a_person_get_one_hint_that_a_client_starts_the_server(config):
    with Piped(config()) as server:
        server.write(b"what is 2 + 2?")
        server.write(b"and 3?")
        server.initialize()
        assert server.said().count("this is an MCP server: a client starts it; for a question: promptmill gen") == 1


_PRINTING = """
import os, subprocess, sys
from pathlib import Path
from promptmill.config.configuration import Configuration
from promptmill.server import process

def prints():
    print("printed", flush=True)
    os.write(1, b"native\\n")
    subprocess.run([sys.executable, "-c", "import sys; print('child read', repr(sys.stdin.read()))"], check=True)

process.serve_stdio(Configuration.load(Path(sys.argv[2])), extend=lambda server, _: server.tool(prints))
"""


@pytest.mark.thorough
def test_what_is_printed_goes_to_stderr_and_nothing_else_reads_what_the_client_sends(config):
    with Piped(None, command=[sys.executable, "-c", _PRINTING, "--config", str(config())]) as server:
        server.initialize()
        server.result(server.call("prints"))
        assert server.answers("x") == ["echo: x"]
        assert "printed\nnative\nchild read ''\n" in server.said().replace("\r", "")


# Progress


def test_progress_is_told_to_those_who_asked_alone(server):
    server.answers("x")
    assert not server.progress(None)


# Cancelling


def test_a_cancelled_call_frees_everything_and_gets_no_answer(config, upstream):
    upstream.reply = by_prompt({"hang": hang()})
    with Piped(config(concurrency=8, adaptive=False)) as server:
        server.initialize()
        number = server.call("generate", prompt_ls=["hang"] * 20)
        eventually(lambda: upstream.in_flight == 8)
        server.notify("notifications/cancelled", requestId=number, reason="changed my mind")
        eventually(lambda: upstream.in_flight == 0)
        assert server.answers(*map(str, range(16))) == [f"echo: {i}" for i in range(16)]
        assert upstream.attempts["hang"] == 8, "nothing of it was sent afterwards"
        assert server.found(number) is None


@pytest.mark.thorough
def test_cancelling_one_call_leaves_the_other(config, upstream):
    upstream.reply = by_prompt({"hang": hang(), "slow": late(1)})
    with Piped(config()) as server:
        server.initialize()
        hanging, slow = server.call("generate", prompt_ls=["hang"]), server.call("generate", prompt_ls=["slow"])
        eventually(lambda: upstream.in_flight == 2)
        server.notify("notifications/cancelled", requestId=hanging)
        assert server.result(slow)["structuredContent"] == {"ans_ls": ["echo: slow"]}
        assert server.found(hanging) is None


def test_cancelling_what_is_over_or_unknown_is_nothing(server):
    number = server.call("generate", prompt_ls=["x"])
    server.result(number)
    for unknown in (number, 999, "never", None):
        server.notify("notifications/cancelled", requestId=unknown)
    assert server.answers("y") == ["echo: y"]


# At the same time


def test_a_long_call_blocks_nothing(server, upstream):
    upstream.reply = by_prompt({"hang": hang()})
    long = server.call("generate", prompt_ls=["hang"] * 5)
    eventually(lambda: upstream.in_flight == 5)
    for method in ("ping", "tools/list"):
        server.result(server.request(method))
    assert server.answers("x") == ["echo: x"]
    server.notify("notifications/cancelled", requestId=long)


def test_a_small_call_beside_a_huge_one_gets_its_share(config, upstream):
    upstream.reply = late(0.02)
    with Piped(config(concurrency=8)) as server:
        server.initialize()
        huge = server.call("generate", prompt_ls=["huge"] * 3000)
        eventually(lambda: upstream.attempts["huge"] > 50)
        before = upstream.attempts["huge"]
        assert server.answers("small") == ["echo: small"]
        assert upstream.attempts["huge"] - before < 1000
        assert server.found(huge) is None, "the huge one was to go on all the while"


def test_many_calls_at_once_get_each_their_own_answers(server):
    numbers = [server.call("generate", prompt_ls=[f"{i}", f"{i}!"]) for i in range(50)]
    for i, number in enumerate(numbers):
        assert server.result(number)["structuredContent"]["ans_ls"] == [f"echo: {i}", f"echo: {i}!"]


# Ending

posix = pytest.mark.skipif(sys.platform == "win32", reason="signals as POSIX has them")


@pytest.mark.thorough
@posix
@pytest.mark.parametrize(
    ("how", "state"), everyday(itertools.product(CODES, ["idle", "busy"]), ("EOF", "idle"), ("SIGTERM", "busy"))
)
def test_it_leaves_an_endpoint_at_once(config, upstream, how, state):
    upstream.reply = hang()
    with Piped(config()) as server:
        server.initialize()
        if state == "busy":
            server.call("generate", prompt_ls=["x"] * 30, progress="p")
            eventually(lambda: upstream.in_flight)
        server.ends(how)
        eventually(lambda: not upstream.in_flight)


@posix
@pytest.mark.parametrize("how", everyday(["SIGTERM", "SIGINT", "SIGHUP"], "SIGTERM"))
@pytest.mark.parametrize("progress", [None, "p"])
def test_a_signal_ends_running_calls_with_the_answers_so_far(config, upstream, how, progress):
    upstream.reply = by_prompt({"hang": hang()}, answer())
    with Piped(config()) as server:
        server.initialize()
        cancelled = server.call("generate", prompt_ls=["hang"])
        number = server.call("generate", prompt_ls=["one", "hang", "two"], progress=progress)
        eventually(lambda: len(upstream.seen) == 4)
        server.notify("notifications/cancelled", requestId=cancelled)
        eventually(lambda: upstream.in_flight == 1)
        server.ends(how)
        result = server.result(number)
    assert result["structuredContent"]["ans_ls"] == ["echo: one", "", "echo: two"]
    assert [error["code"] for error in result["structuredContent"]["errors"]] == ["shutdown"]


@pytest.mark.thorough
@posix
async def test_a_signal_during_a_call_leaves_fastmcps_client_its_answers(config, upstream):
    """Its first result of a tool makes it list the tools; without an answer to that it drops the result."""
    upstream.reply = by_prompt({"hang": hang()}, answer())
    command = ["-m", "promptmill", "serve", "--config", str(config())]
    async with Client(StdioTransport(sys.executable, command, keep_alive=False)) as client:
        process = child_with(command[-1])
        call = asyncio.ensure_future(client.call_tool("generate", {"prompt_ls": ["one", "hang"]}))
        await until(lambda: len(upstream.seen) == 2 and upstream.in_flight == 1)
        process.terminate()
        result = await call
    assert result.structured_content["ans_ls"] == ["echo: one", ""]


@pytest.mark.thorough
@posix
def test_a_signal_after_an_answer_leaves_time_for_the_request_that_follows_it(config):
    with Piped(config()) as server:
        server.initialize()
        server.answers("x")
        server.end("SIGTERM")
        server.result(server.request("tools/list"))
        assert server.process.wait(PATIENCE_S) == CODES["SIGTERM"]


@pytest.mark.thorough
@posix
async def test_a_signal_while_fastmcps_client_reads_its_first_answers_leaves_them_to_it(config, upstream):
    upstream.reply = answer("x" * 3_000_000)
    patient = f"from promptmill.server import process; process._CLOSE_S = {PATIENCE_S}"  # both sides may be held up
    code = f"import sys; from promptmill.cli.main import main; {patient}; sys.exit(main(sys.argv[1:]))"
    command = ["-c", code, "serve", "--access-log", "--config", str(config())]
    with tempfile.TemporaryFile("w+") as log:
        transport = StdioTransport(sys.executable, command, keep_alive=False, log_file=log)
        async with Client(transport) as client:
            process = child_with(command[-1])
            call = asyncio.ensure_future(client.call_tool("generate", {"prompt_ls": ["x"]}))
            await until(lambda: "code=ok" in os.pread(log.fileno(), 10_000, 0).decode())
            process.terminate()
            result = await call
    assert result.structured_content == {"ans_ls": ["x" * 3_000_000]}


@contextlib.contextmanager
def _writing_a_large_answer(config, upstream):
    """Give a server that writes an answer of 3 MB to a client that has read nothing of it."""
    upstream.reply = answer("x" * 3_000_000)
    command = [sys.executable, "-m", "promptmill", "serve", "--access-log", "--config", str(config())]
    with tempfile.TemporaryFile("w+") as log, started(command, stdin=-1, stdout=-1, stderr=log) as server:
        client = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "test", "version": "1"}}
        call = {"name": "generate", "arguments": {"prompt_ls": ["x"]}}
        assert server.stdin is not None
        for number, (method, params) in enumerate({"initialize": client, "tools/call": call}.items()):
            message = {"jsonrpc": "2.0", "id": number, "method": method, "params": params}
            server.stdin.write(json.dumps(message).encode() + b"\n")
        server.stdin.flush()
        eventually(lambda: "code=ok" in os.pread(log.fileno(), 10_000, 0).decode())
        yield server


@posix
@pytest.mark.thorough
def test_a_signal_leaves_a_large_answer_to_a_client_that_reads_slowly(config, upstream):
    with _writing_a_large_answer(config, upstream) as server:
        began, read = time.monotonic(), b""
        server.terminate()
        while piece := server.stdout.read1(32 << 10):
            read += piece
            time.sleep(0.015)
        assert server.wait(PATIENCE_S) == CODES["SIGTERM"]
    assert time.monotonic() - began > 2, "longer than a client that reads nothing may hold up the end"
    assert json.loads(read.splitlines()[-1])["result"]["structuredContent"] == {"ans_ls": ["x" * 3_000_000]}


@posix
def test_a_second_signal_waits_for_no_client(config, upstream):
    with _writing_a_large_answer(config, upstream) as server:
        read = 0
        server.terminate()
        for number in itertools.count():
            if not (piece := server.stdout.read1(16 << 10)):
                break
            read += len(piece)
            if number == 5:
                server.terminate()
            time.sleep(0.05)
        assert server.wait(PATIENCE_S) == CODES["SIGTERM"]
    assert read < 3_000_000


async def test_a_short_message_does_not_show_that_the_client_reads():
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb"), os.fdopen(writing, "wb"):
        pipe = _Pipe()
        pipe._descriptor = writing
        await pipe.write("x" * 1000)
        assert pipe.read_at == -math.inf
        await pipe.write("x" * 20_000)
        assert (pipe.written, pipe.read_at > 0) == (2, True)


@pytest.mark.thorough
@posix
def test_a_client_that_reads_nothing_does_not_hold_up_the_end(config, upstream):
    with _writing_a_large_answer(config, upstream) as server:
        server.terminate()
        assert server.wait(PATIENCE_S) == CODES["SIGTERM"]


@posix
@pytest.mark.parametrize("how", ["EOF", "SIGTERM"])
def test_it_leaves_before_anybody_spoke_to_it(config, how):
    with Piped(config()) as server:
        server.reply(server.request("ping"))
        server.ends(how)


@posix
def test_it_says_nothing_to_a_client_that_has_left(config, upstream):
    upstream.reply = hang()
    with Piped(config()) as server:
        server.initialize()
        server.call("generate", prompt_ls=["x"], progress="p")
        eventually(lambda: upstream.in_flight and server.progress("p"))
        said = len(server.lines)
        server.ends("EOF")
        assert server.lines[said:] == [], "clients of the SDK's 1.x line raise on it while they leave"


ENGINE = {
    "backend": "hf",
    "backend_configs": {"hf": {"model_name_or_path": "smollm2-135m-instruct", "dtype": "float32"}},
    "extra_params": {"ignore_eos": True},  # as long as max_tokens, whatever the model says
}


@pytest.fixture
def engine(tmp_path):
    pytest.importorskip("torch")
    file = tmp_path / "engine.yaml"
    file.write_text(yaml.safe_dump(ENGINE | {"sampling_params": {"max_tokens": 2000, "temperature": 0}}))
    return file


def _is_generating(server, call="p"):
    messages = [params["message"] for _, params in server.progress(call)]
    loading = [message for message in messages if "0 of 4" not in message]
    return bool(loading) and "0 of 4" in messages[-1]


@posix
@pytest.mark.engine
@pytest.mark.parametrize(
    ("how", "state"),
    everyday(
        itertools.product(CODES, ["loading", "busy", "idle"]),
        ("SIGKILL", "busy"),
        ("SIGTERM", "loading"),
        ("EOF", "idle"),
    ),
)
@pytest.mark.thorough
def test_it_leaves_no_engine_behind(engine, how, state):
    with Piped(engine) as server:
        server.initialize()
        if state == "idle":
            _sampling(server, temperature=0, max_tokens=2)
            server.answers("Hi!")
        else:
            server.call("generate", prompt_ls=["Hi!"] * 4, progress="p")
        if state == "busy":
            eventually(lambda: _is_generating(server))
        eventually(server.family)
        server.ends(how)


@posix
@pytest.mark.parametrize("how", everyday(["EOF", "SIGTERM", "SIGKILL"], "SIGKILL"))
def test_it_leaves_no_process_behind_that_reads_a_jobs_files(tmp_path, monkeypatch, how):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "engine.yaml"
    file.write_text(yaml.safe_dump(ENGINE))
    endless = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}{{text}}"
    with Piped(file) as server:
        server.initialize()
        server.call("bulk_generate", prompts=["a"], prompt=endless)  # whose rows are read before its result
        eventually(server.family)
        server.ends(how)


def _sampling(server, **sampling):
    server.result(server.call("generation_init", backend_configs={}, sampling_params=sampling, backend="hf"))


@posix
@pytest.mark.engine
@pytest.mark.thorough
def test_an_engine_can_be_cancelled_shut_down_killed_and_left(engine):
    question, endless = "What is the capital of France?", "Hi!"
    with Piped(engine) as server:
        server.initialize()
        _sampling(server, temperature=0, max_tokens=4)
        right = server.answers(question)

        _sampling(server, temperature=0, max_tokens=4000)  # minutes of work
        cancelled = server.call("generate", prompt_ls=[endless] * 4, progress="first")
        eventually(lambda: _is_generating(server, "first"))
        server.notify("notifications/cancelled", requestId=cancelled)
        _sampling(server, temperature=0, max_tokens=4)
        assert server.result(server.call("generate", prompt_ls=[question]))["structuredContent"]["ans_ls"] == right
        (child,) = server.family()

        _sampling(server, temperature=0, max_tokens=4000)
        running = server.call("generate", prompt_ls=[endless] * 4, progress="second")
        eventually(lambda: _is_generating(server, "second"))
        assert server.result(server.call("vllm_shutdown"))["content"] == []
        codes = {entry["code"] for entry in server.result(running)["structuredContent"]["errors"]}
        assert codes == {"shutdown"}
        assert not child.is_running()
        assert server.family() == []

        _sampling(server, temperature=0, max_tokens=4)
        assert server.answers(question) == right
        (child,) = server.family()
        child.kill()
        eventually(lambda: child not in server.family())
        server.result(server.call("generate", prompt_ls=["it may meet the engine dead"]))
        assert server.answers(question) == right
        assert server.found(cancelled) is None
        server.ends("EOF")


@pytest.mark.thorough
@posix
@pytest.mark.engine
def test_loading_blocks_nothing_and_is_told(engine):
    with Piped(engine, "--set", "sampling_params.max_tokens=3") as server:
        server.initialize()
        init = server.call(
            "generation_init", backend_configs={}, sampling_params={"max_tokens": 3}, backend="hf", progress="load"
        )
        pings = 0
        while server.found(init) is None:
            server.result(server.request("ping"))
            pings += 1
            time.sleep(0.05)  # the engine that loads needs the machine too
        assert not server.result(init)["isError"]
        assert pings > 5, "all but the last are answered while it loads"
        told = [params for _, params in server.progress("load")]
        assert len(told) >= 2
        messages = {str(params.get("message")) for params in told}
        assert messages - {"ready", "None", ""}, "what takes so long is said"


@posix
@pytest.mark.engine
def test_a_model_that_does_not_exist_is_said_and_the_server_stays(engine, tmp_path):
    with Piped(engine) as server:
        server.initialize()
        nowhere = str(tmp_path / "no" / "such" / "model")
        block = {"hf": {"model_name_or_path": nowhere}}
        result = server.result(server.call("generation_init", backend_configs=block, sampling_params={}, backend="hf"))
        assert result["isError"]
        assert nowhere in result["content"][0]["text"]
        assert "Traceback" not in result["content"][0]["text"]
        eventually(lambda: not server.family())
        server.result(server.request("ping"))


# The clients' own libraries


def _command(file):
    return [sys.executable, "-m", "promptmill", "serve", "--config", str(file)]


@pytest.mark.thorough
async def test_the_client_of_fastmcp_is_served_and_may_give_up(config, upstream):
    from fastmcp import Client
    from fastmcp.client.transports import StdioTransport

    upstream.reply = by_prompt({"hang": hang(), "slow": late(0.8)})
    told = []

    async def heard(progress, total, message):
        told.append(progress)

    command, *arguments = _command(config())
    async with Client(StdioTransport(command, arguments, env=dict(os.environ), keep_alive=False)) as client:
        assert "generate" in {tool.name for tool in await client.list_tools()}
        result = await client.call_tool("generate", {"prompt_ls": ["slow"]}, progress_handler=heard)
        assert result.structured_content == {"ans_ls": ["echo: slow"]}
        giving_up = asyncio.ensure_future(client.call_tool("generate", {"prompt_ls": ["hang"]}))
        await until(lambda: upstream.in_flight)
        giving_up.cancel()
        await until(lambda: not upstream.in_flight)
        assert (await client.call_tool("generate", {"prompt_ls": ["x"]})).structured_content == {"ans_ls": ["echo: x"]}
    assert len(told) >= 2


async def test_the_client_of_the_sdk_is_served(config):
    from mcp import ClientSession, StdioServerParameters
    from mcp.client.stdio import stdio_client

    command, *arguments = _command(config())
    parameters = StdioServerParameters(command=command, args=arguments, env=dict(os.environ))
    async with stdio_client(parameters) as (incoming, outgoing), ClientSession(incoming, outgoing) as session:
        await session.initialize()
        result = await session.call_tool("generate", {"prompt_ls": ["x"]})
        assert result.structured_content == {"ans_ls": ["echo: x"]}
        assert text(result) == '{"ans_ls":["echo: x"]}'


# Bad input


def _error(server, tool, **arguments):
    result = server.result(server.call(tool, **arguments))
    assert result["isError"], result
    text = result["content"][0]["text"]
    assert "Traceback" not in text
    return text


def test_a_prompt_of_twenty_megabytes_is_answered(server, upstream):
    upstream.reply = answer("ok")
    prompt = "x" * 20_000_000
    assert server.answers(prompt, "small") == ["ok", "ok"]
    assert {len(seen.prompt) for seen in upstream.seen} == {20_000_000, 5}


@pytest.mark.thorough
def test_twenty_thousand_prompts_are_answered_in_order(server):
    prompts = [str(i) for i in range(20_000)]
    assert server.answers(*prompts) == [f"echo: {prompt}" for prompt in prompts]


def test_an_answer_of_megabytes_comes_whole(server, upstream):
    upstream.reply = answer("ü" * 2_000_000)
    assert server.answers("x") == ["ü" * 2_000_000]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (rb'["a\ud800"]', "surrogate"),
        (rb'["\udc00 alone"]', "surrogate"),
        (rb'["\ud83d\u0041"]', "surrogate"),
        (b"[" * 500 + b"]" * 500, "nested too deeply"),
        (b"[" * 100_000 + b"]" * 100_000, "nested too deeply"),
        (rb'["\q"]', "no valid JSON"),
        (b'["unclosed]', None),
    ],
)
def test_a_line_that_cannot_be_read_is_answered_all_the_same(server, upstream, line, said):
    number = 7_000 + len(server.lines)
    head = b'{"jsonrpc":"2.0","id":%d,"method":"tools/call","params":{"name":"generate","arguments":{"prompt_ls":'
    server.write(head % number + line + b"}}}")
    if said is None or "valid JSON" in said:  # no JSON at all: the server cannot tell who waits
        server.result(server.request("ping"))
    else:
        error = server.reply(number)["error"]
        assert error["code"] == -32700
        assert said in error["message"]
    assert not upstream.seen
    assert server.answers("after") == ["echo: after"]


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"garbage",
        b"[]",
        b"{}",
        b"null",
        b'{"jsonrpc":"2.0"}',
        b'{"jsonrpc":"2.0","method":"no/such/notification"}',
        b'{"jsonrpc":"2.0","id":5,"result":{}}',
        b'{"jsonrpc":"2.0","id":6055,"method":"no/such/method"}',
        b'{"jsonrpc":"2.0","id":"text","method":"tools/call"}',
        b'{"jsonrpc":"2.0","id":6056,"method":"tools/call","params":[1]}',
        b'{"jsonrpc":"1.0","id":6057,"method":"ping"}',
        b'{"jsonrpc":"2.0","id":1.5,"method":"ping"}',
        b"\xff\xfe\x00",
        b"\x00",
        b" " * 100_000,
    ],
)
def test_what_is_no_request_does_no_harm(server, line):
    server.write(line)
    assert server.answers("after") == ["echo: after"]
    assert "Traceback" not in server.said()


@pytest.mark.parametrize(
    ("prompts", "answers"),
    [
        (["\0"], ["echo: \0"]),
        ([""], ["echo: "]),
        ([], []),
        (["😀\u2028\u0085\ufffe"], ["echo: 😀\u2028\u0085\ufffe"]),
        (['{"content": "x"}'], ['echo: {"content": "x"}']),
    ],
)
def test_odd_text_arrives_as_it_was_sent(server, prompts, answers):
    assert server.answers(*prompts) == answers


def test_a_port_where_nobody_listens_is_said(server):
    block = {"openai": {"base_url": "http://127.0.0.1:9/v1"}}
    server.result(server.call("generation_init", backend_configs=block, sampling_params={}, backend="openai"))
    assert _error(server, "generate", prompt_ls=["x"]).startswith("unreachable: 127.0.0.1:9")
    server.result(server.call("generation_init", backend_configs={}, sampling_params={}, backend="openai"))
    assert server.answers("after") == ["echo: after"]


def test_neither_prompts_nor_keys_are_in_the_log(server, upstream):
    upstream.reply = by_prompt({"my secret prompt": hang(0)})
    _error(server, "generate", prompt_ls=["my secret prompt", 5])
    server.answers("another secret prompt")
    said = server.said()
    assert "secret prompt" not in said
    assert KEY not in said


@posix
def test_few_file_descriptors_are_a_warning_and_no_failure(config, upstream):
    import resource

    upstream.reply = late(0.01)
    with Piped(config(concurrency=64, adaptive=False)) as server:
        resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE, (96, 96))
        server.initialize()
        result = server.result(server.call("generate", prompt_ls=["x"] * 300))
    assert result["structuredContent"] == {"ans_ls": ["echo: x"] * 300}
    assert any("concurrency is 32 instead of 64" in warning for warning in result["_meta"]["warnings"])


# a client that does not read


@pytest.mark.thorough
@pytest.mark.skipif(sys.platform == "win32", reason="a pipe of 64 KiB")
@pytest.mark.parametrize("leaves", ["open", "closed"])
def test_a_client_that_reads_no_answer_ends_the_server_by_closing_its_input(config, leaves):
    first = {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "mute", "version": "1"}}
    messages = [
        {"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": first},
        {"jsonrpc": "2.0", "method": "notifications/initialized"},
        *({"jsonrpc": "2.0", "id": number, "method": "tools/list"} for number in range(1, 30)),
    ]
    command = [sys.executable, "-m", "promptmill", "serve", "--config", str(config())]
    pipe = subprocess.PIPE
    with started(command, stdin=pipe, stdout=pipe, stderr=pipe) as server:
        assert server.stdin is not None
        assert server.stdout is not None
        assert server.stderr is not None
        try:
            server.stdin.write("".join(json.dumps(message) + "\n" for message in messages).encode())
            server.stdin.flush()
            assert server.stdout.read(100)  # it has answered, and the pipe is full now or soon
            if leaves == "closed":
                server.stdout.close()
            server.stdin.close()
            assert server.wait(PATIENCE_S) == 0, server.stderr.read()
        finally:
            server.kill()
