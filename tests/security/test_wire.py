"""The wire, fuzzed: whatever a client sends, the server answers each request once, says no stack trace, and lives on.

Ten thousand cases a run, half of them tool arguments through a client, half of them raw lines over stdio. The seed is
printed; `PROMPTMILL_FUZZ_SEED` runs it again, `PROMPTMILL_FUZZ_CASES` chooses another number of cases.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections import defaultdict
from typing import Any

import psutil
import pytest
from fastmcp import Client
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from fakes import KEY, openai_configuration
from fuzzing import CASES, SEED, TRACE
from piped import Piped
from promptmill.server import create_server
from promptmill.service.service import Service
from waiting import PATIENCE_S

_AT_ONCE = 20
QUIET = settings(
    max_examples=max(1, CASES // 2 // _AT_ONCE),
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.explicit, Phase.generate, Phase.shrink],
)

# What a JSON value can be, at its oddest. Lone surrogates and NaN cannot be on a wire, but in a client's arguments.
SURROGATES = st.text(st.characters(), max_size=8)
PLAIN = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
WORDS = st.sampled_from(
    [
        *(
            "",
            " ",
            "user",
            "assistant",
            "system",
            "tool",
            "content",
            "text",
            "image_url",
            "type",
            "role",
            "hello",
            "[]",
        ),
        *("{}", '["a"]', '[{"role": "user", "content": "x"}]', '{"a": [', "null", "true", "1e999", "\0", "\x1b[31m"),
        *("../..", "/etc/passwd", "file:///etc/passwd", "data:image/png;base64,AAAA", "data:,", "~nobody/x", "C:\\x"),
        *("\N{RIGHT-TO-LEFT OVERRIDE}x", "\N{PILE OF POO}", "\ufeff", "\u2028", "${HOME}", "%s%n", "<img>", "x" * 5000),
    ]
)
NUMBERS = st.one_of(
    st.integers(),
    st.sampled_from([0, -1, 2**31, 2**53, 2**63, 2**64, -(2**63) - 1, 10**30, 1e308, -0.0, 5e-324]),
    st.floats(allow_nan=False, allow_infinity=False),
)


def values(texts, numbers=NUMBERS):
    leaves = st.none() | st.booleans() | numbers | texts | WORDS
    return st.recursive(
        leaves,
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts | WORDS, inner, max_size=4),
        max_leaves=10,
    )


def nested(value, depth):
    for _ in range(depth):
        value = [value]
    return value


def tool_calls(wild, text):
    """Return a strategy of `(tool, arguments)`: by the schemas, beside them, and far from them."""
    message = st.fixed_dictionaries(
        {},
        optional={
            "role": st.sampled_from(["user", "assistant", "system", "tool", "developer", "robot"]) | wild,
            "content": text | WORDS | st.lists(st.fixed_dictionaries({"type": WORDS, "text": text}), max_size=3) | wild,
            "text": text | wild,
            "name": wild,
            "tool_calls": wild,
        },
    )
    prompts = st.lists(text | WORDS | message | wild, max_size=4) | wild
    prompts = prompts | st.builds(json.dumps, prompts) | st.builds(nested, wild, st.sampled_from([50, 200]))
    number = NUMBERS | wild
    setting = (
        st.sampled_from(
            ["temperature", "top_p", "max_tokens", "stop", "seed", "top_k", "response_format", "concurrency"]
        )
        | text
    )
    block = st.dictionaries(setting, wild, max_size=3)
    urls = st.sampled_from(["http://127.0.0.1:9/v1", "http://[::1", "ftp://x", "http://127.0.0.1:99999", "//", "%"])
    arguments = {
        "generate": {"prompt_ls": prompts, "system_prompt": text | wild},
        "multimodal_generate": {
            "multimodal_path": st.lists(st.lists(WORDS, max_size=2) | wild, max_size=4) | wild,
            "prompt_ls": prompts,
            "system_prompt": text | wild,
            "image_tag": WORDS | wild,
        },
        "multiturn_generate": {"messages": st.lists(message | wild, max_size=4) | wild, "system_prompt": text | wild},
        "generation_init": {
            "backend_configs": st.dictionaries(
                st.sampled_from(["openai", "hf", "vllm"]) | text,
                block | st.fixed_dictionaries({"base_url": urls | st.lists(urls, max_size=2)}) | wild,
                max_size=2,
            )
            | wild,
            "sampling_params": block | wild,
            "extra_params": block | wild,
            "backend": st.sampled_from(["openai", "", "nothing"]) | wild,
        },
        "vllm_shutdown": {},
        # never a file that is there: jobs are processes, and have their own tests
        "bulk_generate": {
            "input_file": st.sampled_from(["missing.jsonl", "", ".", "a.csv", "../a.jsonl"]) | wild,
            "output_file": st.sampled_from(["o.jsonl", "", ".", "/", "o.txt"]) | wild,
            "system_prompt": text | wild,
            "again": st.sampled_from(["failed", "all", ""]) | wild,
            "limit": number | wild,
            "max_failures": text | wild,
            "validate": st.booleans() | wild,
        },
        "bulk_status": {
            "job_id": text | WORDS | wild,
            "offset": number,
            "limit": number,
            "read": st.sampled_from(["all", "failed"]) | text | wild,
            "action": st.sampled_from(["cancel", "pause"]) | text | wild,
            "options": wild,
        },
    }
    by_tool = [
        st.tuples(
            st.just(tool),
            st.fixed_dictionaries({}, optional=fields | {"more": wild}) | st.fixed_dictionaries(fields),
        )
        for tool, fields in arguments.items()
    ]
    return st.one_of(*by_tool, st.tuples(text | WORDS, st.dictionaries(text, wild, max_size=2)))


def _batches(cases):
    return st.lists(cases, min_size=_AT_ONCE, max_size=_AT_ONCE)


def is_engine(tool, arguments):
    """Return whether the call would start an engine, which is another test's."""
    return tool == "generation_init" and arguments.get("backend", "vllm") in ("hf", "vllm")


@pytest.mark.rule("X1")
@pytest.mark.rule("X2")
@pytest.mark.timeout(600)
@pytest.mark.thorough
def test_any_arguments_get_a_result_in_words(upstream, tmp_path, monkeypatch, caplog, capsys):
    monkeypatch.chdir(tmp_path)
    caplog.set_level(logging.WARNING)
    with capsys.disabled():
        print(f"\nseed {SEED}")
    runner = asyncio.Runner()
    configuration = openai_configuration(upstream.url, retries=1, patience=1)
    service = Service(configuration)
    client = Client(create_server(service))
    made = 0

    @seed(SEED)
    @QUIET
    @given(
        st.lists(
            tool_calls(values(SURROGATES, NUMBERS | st.floats()), SURROGATES), min_size=_AT_ONCE, max_size=_AT_ONCE
        )
    )
    def fuzz(batch):
        nonlocal made
        batch = [call for call in batch if not is_engine(*call)]
        made += len(batch)
        upstream.seen.clear()
        caplog.clear()
        runner.run(_all(client, batch))
        assert not any(record.exc_info for record in caplog.records), caplog.text

    try:
        runner.run(client.__aenter__())
        fuzz()
        result = runner.run(_called(client, "generate", {"prompt_ls": ["still", "right"]}))
        assert result.structured_content == {"ans_ls": ["echo: still", "echo: right"]}
    finally:
        runner.run(client.__aexit__(None, None, None))
        runner.run(service.aclose())
        runner.close()
    assert made >= CASES // 4


async def _all(client, batch):
    """Make all the calls at once, but for those that change what the others do."""
    at_once = [call for call in batch if call[0] != "generation_init"]
    results = await asyncio.gather(*(_called(client, *call) for call in at_once))
    for (tool, arguments), result in zip(at_once, results, strict=True):
        _check(tool, arguments, result)
    for tool, arguments in batch:
        if tool == "generation_init":
            _check(tool, arguments, await _called(client, tool, arguments))
            init = {"backend_configs": {}, "sampling_params": {}, "backend": "openai"}
            assert not (await _called(client, tool, init)).is_error


def _check(tool, arguments, result):
    said = "" if result is None else str(result.content) + str(result.structured_content)
    assert not TRACE.search(said)
    assert KEY not in said
    prompts = arguments.get("prompt_ls")
    if tool == "generate" and isinstance(prompts, list) and result is not None and not result.is_error:
        assert len(result.structured_content["ans_ls"]) == len(prompts)


async def _called(client, tool, arguments):
    try:
        async with asyncio.timeout(30):
            return await client.call_tool(tool, arguments, raise_on_error=False)
    except (ValueError, TypeError):  # the client itself cannot write this down
        return None


# Raw lines

METHODS = st.sampled_from(
    [
        *("ping", "tools/list", "tools/call", "resources/list", "resources/read", "resources/templates/list"),
        *("prompts/list", "prompts/get", "completion/complete", "logging/setLevel", "initialize", "server/discover"),
        *("resources/subscribe", "tasks/get", "roots/list", "sampling/createMessage", "", "x", "rpc.discover", "tools"),
    ]
)
NOTIFICATIONS = st.sampled_from(
    [
        *("notifications/cancelled", "notifications/progress", "notifications/initialized", "notifications/message"),
        *("notifications/roots/list_changed", "notifications/", "$/cancelRequest"),
    ]
)


WILD = values(PLAIN)
CALLS = tool_calls(WILD, PLAIN)
ODD = st.fixed_dictionaries(
    {},
    optional={
        "jsonrpc": st.sampled_from(["1.0", "2.0", 2.0, None, ""]) | WILD,
        "id": st.sampled_from([None, True, 1.5, "", [], {}, -1, 2**70, "x" * 3000]) | WILD,
        "method": METHODS | WILD,
        "params": WILD,
        "result": WILD,
        "error": WILD,
    },
)
DEEP = [("[", "]"), ('{"a":', "}"), ("[", ""), ('{"a":', "")]
HUGE = ["9" * 5000, "1e999", "-1e999", "1e-999", "NaN", "Infinity", "0x10", "01", "1" * 400]


def _dumped(value, ascii_only):
    return json.dumps(value, ensure_ascii=ascii_only).encode("utf-8", "replace")


def _request(params, ascii_only):
    return None, ({"jsonrpc": "2.0", "method": "ping"} | params, ascii_only)


def _called_over(call, token, ascii_only):
    tool, arguments = ("vllm_shutdown", {}) if is_engine(*call) else call
    params = {"name": tool, "arguments": arguments} | ({"_meta": {"progressToken": token}} if token else {})
    return _request({"method": "tools/call", "params": params}, ascii_only)


def _cut(params, at, end):
    whole = _dumped({"jsonrpc": "2.0", "id": "cut", "method": "tools/call", "params": params}, True)
    return whole[: at % (len(whole) + 1)] + end, None


# `(line, None)`: bytes; `(None, (message, ascii_only))`: a request that wants an id and is owed one answer
LINES = st.one_of(
    st.builds(
        _request,
        st.fixed_dictionaries({"method": METHODS}, optional={"params": st.dictionaries(PLAIN | WORDS, WILD) | WILD}),
        st.booleans(),
    ),
    st.builds(_called_over, CALLS, WILD, st.booleans()),
    st.builds(
        lambda method, params: (_dumped({"jsonrpc": "2.0", "method": method, "params": params}, True), None),
        NOTIFICATIONS,
        st.fixed_dictionaries({}, optional=dict.fromkeys(["requestId", "progressToken", "progress", "reason"], WILD))
        | WILD,
    ),
    st.builds(lambda message: (_dumped(message, True), None), ODD),
    st.builds(lambda one: (_dumped([one, {"jsonrpc": "2.0", "id": 1, "method": "ping"}], False), None), WILD),
    st.builds(_cut, WILD, st.integers(0, 500), st.sampled_from([b"", b"}", b"\xff", b"]]", b"\0", b",,"])),
    st.builds(
        lambda n, ends, depth: (
            f'{{"jsonrpc":"2.0","id":{n},"method":"ping","params":{ends[0] * depth}1{ends[1] * depth}}}'.encode(),
            None,
        ),
        st.sampled_from(['"deep"', *HUGE]),
        st.sampled_from(DEEP),
        st.sampled_from([100, 300, 1000, 20_000]),
    ),
    st.builds(
        lambda n: (f'{{"jsonrpc":"2.0","id":{n},"method":"ping","params":{{"a":{n}}}}}'.encode(), None),
        st.sampled_from(HUGE),
    ),
    st.builds(lambda data: (data.replace(b"\n", b" "), None), st.binary(max_size=60)),
)


class Wire(Piped):
    """A server over stdio whose responses are counted by id."""

    def __init__(self, config, **environ):
        self.answers_to = defaultdict(list)
        super().__init__(config, environ=environ)

    def heard(self, message, line):
        if "method" not in message:
            self.answers_to[json.dumps(message["id"])].append((message, line))

    def found(self, number):
        found = self.answers_to.get(json.dumps(number))
        return found[0][0] if found else None


@pytest.mark.rule("X1")
@pytest.mark.rule("X2")
@pytest.mark.rule("X3")
@pytest.mark.stdio
@pytest.mark.timeout(600)
@pytest.mark.thorough
def test_any_lines_leave_the_server_right_and_every_request_answered_once(upstream, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with capsys.disabled():
        print(f"\nseed {SEED}")
    config = tmp_path / "config.json"
    block = {
        "base_url": upstream.url,
        "model_name": "m",
        "api_key": KEY,
        "retries": 1,
        "patience": 1,
        "timeout": [2, 5],
    }
    config.write_text(json.dumps({"backend": "openai", "backend_configs": {"openai": block}}))
    asked, number, rss = [], 0, []

    with Wire(config) as server:
        server.initialize()
        process = psutil.Process(server.process.pid)

        @seed(SEED)
        @QUIET
        @given(_batches(LINES))
        def fuzz(batch):
            nonlocal number
            upstream.seen.clear()
            owed = []
            for line, request in batch:
                number += 1
                if request is None:
                    server.write(line)
                    continue
                message, ascii_only = request
                name = f"id {number}" if number % 2 else 1_000_000 + number
                server.write(_dumped(message | {"id": name}, ascii_only))
                owed.append(name)
                if message["method"] == "tools/call" and "generation_init" in str(message.get("params")):
                    _only(server, name)
                    init: dict[str, Any] = {"backend_configs": {}, "sampling_params": {}, "backend": "openai"}
                    server.reply(server.call("generation_init", **init))
            for name in owed:
                _, said = _only(server, name)
                assert not TRACE.search(said.decode())
            asked.extend(owed)
            server.reply(server.request("ping"))
            if not number % 500:
                rss.append(process.memory_info().rss)

        fuzz()
        assert server.answers("still", "right") == ["echo: still", "echo: right"]
        for name in asked:
            _only(server, name)
        server.end("EOF")
        assert server.process.wait(PATIENCE_S) == 0
        said = server.said()
    assert len(asked) > number // 10
    assert not TRACE.search(said), said[-3000:]
    assert KEY not in said
    if len(rss) > 2:
        assert rss[-1] - rss[1] < 64 << 20, [size >> 20 for size in rss]


def _only(server, name):
    """Return the one answer to the request `name`, waiting for it."""
    end = time.monotonic() + 30
    while server.found(name) is None and time.monotonic() < end and server.process.poll() is None:
        with server._news:
            server._news.wait(0.05)
    found = server.answers_to.get(json.dumps(name), [])
    assert len(found) == 1, f"{len(found)} answers to {name!r}"
    return found[0]
