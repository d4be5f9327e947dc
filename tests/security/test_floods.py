"""Bad input in bulk: what it may cost in memory, and that others are answered meanwhile."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import psutil
import pytest
from fastmcp.exceptions import ToolError
from fastmcp.server.middleware import MiddlewareContext
from mcp.shared.exceptions import MCPError
from mcp_types import CallToolRequestParams

from fakes import openai_config, openai_configuration
from piped import Piped
from promptmill.core.errors import PromptmillError
from promptmill.server import arguments
from promptmill.server.arguments import PlainArguments
from promptmill.system.safe_open import open_regular
from served import Served
from server_process import written
from talk import serving, text
from upstream import Upstream

_MANY = 250_000  # values, of which a request over HTTP may hold 300,000
_CONFIG = openai_config("http://127.0.0.1:9/v1")
_MOST = 40_000_000
"""Bytes that so many values take."""


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with Upstream() as up, Served(written(tmp_path_factory.mktemp("flooded"), up.url)) as served:
        session = served.session()
        assert session.answers("warm") == ["echo: warm"]
        yield served


class _Peak:
    """The most memory that a process had while the block ran, beyond what it had before."""

    def __init__(self, pid):
        self._process = psutil.Process(pid)
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self.bytes = 0

    def __enter__(self):
        self._before = self._process.memory_info().rss
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._done.set()
        self._thread.join()

    def _watch(self):
        while not self._done.wait(0.002):
            self.bytes = max(self.bytes, self._process.memory_info().rss - self._before)


def _call(tool, arguments):
    return b'{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{"name":"%s","arguments":%s}}' % (tool, arguments)


def _many(item, count):
    return b",".join([item] * count)


@pytest.mark.rule("X4")
@pytest.mark.parametrize(
    ("tool", "arguments"),
    [
        (b"generate", b'{"prompt_ls":[%s]}' % _many(b"null", _MANY)),
        (b"generate", b'{"prompt_ls":["fine",%s]}' % _many(b"[%s]" % _many(b"1", 20), _MANY // 21)),
        (b"generate", b'{"prompt_ls":[%s]}' % _many(b'{"role":"robot","content":"x"}', _MANY // 5)),
        (b"generate", b'{"prompt_ls":["x"],%s}' % b",".join(b'"a%d":null' % n for n in range(_MANY // 2))),
        (b"multimodal_generate", b'{"prompt_ls":["x"],"multimodal_path":[[%s]]}' % _many(b"null", _MANY)),
        (b"multiturn_generate", b'{"messages":[%s]}' % _many(b"null", _MANY)),
    ],
    ids=["nulls", "lists", "roles", "arguments", "images", "messages"],
)
def test_a_list_of_wrong_items_costs_its_first_one(server, tool, arguments):
    body = _call(tool, arguments)
    session = server.session()
    with _Peak(server.process.pid) as peak:
        got = server.ask(headers=session.headers, body=body)
    assert got.status == 200
    assert b'"isError":true' in got.body
    assert len(got.body) < 2000, "one mistake is named, or a few"
    assert peak.bytes < 5 * len(body) + _MOST, "it was 200 times"


@pytest.mark.thorough
@pytest.mark.rule("X4")
@pytest.mark.parametrize("item", [b"{}", b"[{}]", b"null", b'{"role":"robot","content":"x"}', b'"x"'])
def test_a_body_of_too_many_values_is_refused_before_it_is_unfolded(server, item):
    body = _call(b"generate", b'{"prompt_ls":[%s]}' % _many(item, 10_000_000 // (len(item) + 1)))
    session = server.session()
    with _Peak(server.process.pid) as peak:
        got = server.ask(headers=session.headers, body=body)
    assert got.status == 413
    assert "more than 300,000 values" in got.message
    assert peak.bytes < 4 * len(body)


@pytest.mark.thorough
@pytest.mark.rule("X4")
@pytest.mark.parametrize(
    ("tool", "arguments"),
    [
        ("generate", b'{"prompt_ls":"[%s]"}'),
        ("generate", b'{"prompt_ls":["x"],"sampling_params":"{\\"stop\\":[%s]}"}'),
        ("generate", b'{"prompt_ls":["x"],"schema":"{\\"enum\\":[%s]}"}'),
        ("multimodal_generate", b'{"prompt_ls":["x"],"multimodal_path":"[%s]"}'),
        ("multiturn_generate", b'{"messages":"[%s]"}'),
    ],
    ids=["prompts", "sampling", "schema", "images", "messages"],
)
def test_a_text_of_too_many_values_is_refused_before_it_is_read(server, tool, arguments):
    body = _call(tool.encode(), arguments % _many(b"[]", 5_000_000))
    session = server.session()
    with _Peak(server.process.pid) as peak:
        got = server.ask(headers=session.headers, body=body)
    assert b"more than 300,000 values" in got.body
    assert peak.bytes < 8 * len(body), "it was 40 times"


@pytest.mark.rule("X4")
async def test_images_of_all_prompts_are_counted_together():
    with pytest.raises(PromptmillError, match="more than 300,000 images"):
        await arguments.conversations_with_images(["x"] * 4, [["a"] * 100_000] * 4, None, _CONFIG)


@pytest.mark.thorough
@pytest.mark.rule("X4")
@pytest.mark.stdio
def test_over_stdio_a_line_of_many_values_takes_no_more_than_the_sdk_needs(tmp_path, upstream):
    body = _call(b"generate", b'{"prompt_ls":[%s]}' % _many(b'{"role":"robot","content":[{"type":"text"}]}', 100_000))
    with Piped(written(tmp_path, upstream.url)) as server:
        server.initialize()
        assert server.answers("warm") == ["echo: warm"]
        with _Peak(server.process.pid) as peak:
            server.write(body)
            result = server.result(7)
    assert "robot" in result["content"][0]["text"]
    assert peak.bytes < 60 * len(body)  # the SDK reads a line into JSON values, and those into its own


@pytest.mark.rule("X4")
@pytest.mark.parametrize("prompt", ["[" * 300_000, '\\"{' * 100_000, '"[\\'], ids=["brackets", "escaped", "short"])
def test_brackets_in_a_text_are_text(server, prompt):
    assert server.session().answers(prompt) == [f"echo: {prompt}"]


@pytest.mark.rule("X4")
@pytest.mark.parametrize("read", ["prompts", "images", "turns"])
async def test_others_get_their_turn_while_a_long_list_is_read(read):
    many = 200_000
    reading: Coroutine[Any, Any, object]
    match read:
        case "prompts":
            reading = arguments.conversations([*["x"] * many, None])
        case "images":
            reading = arguments.conversations_with_images(["x"] * many, [*[["a"]] * (many - 1), 3], None, _CONFIG)
        case "turns":
            reading = arguments.conversation([*[{"role": "user", "content": "x"}] * many, None])
    task, turns = asyncio.ensure_future(reading), 0
    while not task.done():
        await asyncio.sleep(0.001)
        turns += 1
    with pytest.raises(PromptmillError, match=r"is (null|a number)"):
        await task
    assert turns > 3


@pytest.mark.rule("X4")
@pytest.mark.parametrize("arguments", [{"prompts": ["x"] * 9}, {"prompt_ls": ["x"], "system_prompt": ["x"] * 9}])
async def test_pydantic_which_writes_all_of_a_wrong_argument_down_is_not_asked(arguments):
    middleware, asked = PlainArguments(), []

    async def tool(_):
        asked.append(1)

    async with serving(openai_configuration("http://127.0.0.1:9")) as talk:
        (schema,) = [tool for tool in await talk.client.list_tools() if tool.name == "generate"]
    middleware._schemas["generate"] = schema.input_schema
    params = CallToolRequestParams(name="generate", arguments=arguments)
    with pytest.raises(ToolError, match=r"prompts is not an argument|system_prompt is a list of 9; send a text"):
        await middleware.on_call_tool(MiddlewareContext(message=params), tool)
    assert asked == []


@pytest.mark.rule("X4")
async def test_a_long_address_of_a_resource_is_not_compared_with_templates():
    async with serving(openai_configuration("http://127.0.0.1:9")) as talk:
        with pytest.raises(MCPError, match="The URI has 9,000,029 characters"):
            await talk.client.read_resource("promptmill://jobs/x/answers?" + "offset=1&" * 1_000_000 + "a")


@pytest.mark.rule("X4")
def test_a_path_of_a_million_folders_is_not_resolved(monkeypatch):
    monkeypatch.setattr(Path, "resolve", lambda _: pytest.fail("it would take hours"))
    with pytest.raises(FileNotFoundError):
        open_regular(Path("a/" * 1_000_000), None)


@pytest.mark.rule("X4")
async def test_settings_of_a_call_are_counted_before_they_are_looked_at():
    async with serving(openai_configuration("http://127.0.0.1:9")) as talk:
        refused = []
        for block in ({"base_url": [None] * 30_000}, {f"a{n}": None for n in range(30_000)}):
            refused.append(text(await talk.init(backend_configs={"openai": block})))
    for said in refused:
        assert "too many values" in said
