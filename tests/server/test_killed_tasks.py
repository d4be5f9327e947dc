"""Tasks through real processes, over stdio and HTTP: `kill -9` of the server, and a thousand tasks in progress."""

import asyncio
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import psutil
import pytest

from piped import Piped
from promptmill.server.tasks import EXTENSION
from replies import answer, by_prompt, choose, late
from served import TOKEN, Served, messages
from server_process import written
from waiting import eventually

pytestmark = pytest.mark.thorough

VERSION = "2026-07-28"
META = {
    "io.modelcontextprotocol/protocolVersion": VERSION,
    "io.modelcontextprotocol/clientInfo": {"name": "test", "version": "1"},
    "io.modelcontextprotocol/clientCapabilities": {"extensions": {EXTENSION: {}}},
}
PROMPTS = [f"prompt {at}" for at in range(600)]
IN_FLIGHT = 4
KILLS = 10


class OverStdio(Piped):
    """A server over stdio, asked as of 2026-07-28: every request stands for itself."""

    def rpc(self, method, name, /, **params):
        return self.reply(self.request(method, _meta=META, **params))


class OverHttp(Served):
    """A server over HTTP; `token` is that which the client sends."""

    def __init__(self, config, token=TOKEN):
        self.bearer = {"Authorization": f"Bearer {token}"}
        super().__init__(config, environ={"PROMPTMILL_HTTP_TOKEN": token})

    def rpc(self, method, name, /, **params):
        headers = {
            **self.bearer,
            "Accept": "application/json, text/event-stream",
            "Content-Type": "application/json",
            "Mcp-Protocol-Version": VERSION,
            "Mcp-Method": method,
            "Mcp-Name": name,
        }
        message = {"jsonrpc": "2.0", "id": 1, "method": method, "params": {"_meta": META, **params}}
        answer = self.ask(headers=headers, body=json.dumps(message).encode())
        return next(found for found in messages(answer.body) if found.get("id") == 1)


KINDS = pytest.mark.parametrize("kind", [OverStdio, OverHttp], ids=["stdio", "http"])


def _begun(server, prompts, **more):
    arguments = {"prompt_ls": prompts, **more}
    found = server.rpc("tools/call", "generate", name="generate", arguments=arguments)["result"]
    assert found["resultType"] == "task", found
    return found["taskId"]


def _state(server, task_id):
    return server.rpc("tasks/get", task_id, taskId=task_id)["result"]


def _kill(server):
    server.process.kill()
    server.process.wait()


@KINDS
def test_a_task_is_its_clients_and_outlives_the_server(kind, upstream, tmp_path):
    upstream.reply = late(0.05, answer())
    config = written(tmp_path, upstream.url, concurrency=IN_FLIGHT)
    with kind(config) as server:
        task_id = _begun(server, PROMPTS[:120])
        eventually(lambda: len(upstream.seen) > 20)
        wrong = server.rpc("tasks/get", "call-other", taskId=task_id) if kind is OverHttp else None
        _kill(server)
    others = OverHttp(config, TOKEN[::-1]) if kind is OverHttp else OverHttp(config)
    with others:
        refused = others.rpc("tasks/get", task_id, taskId=task_id)
    with kind(config) as server:
        eventually(lambda: _state(server, task_id)["status"] == "completed")
        found = _state(server, task_id)
    assert wrong is None or wrong["error"]["code"] == -32020
    assert refused["error"]["code"] == -32602
    assert found["statusMessage"] == "120 of 120 prompts answered"
    assert found["result"]["structuredContent"] == {"ans_ls": [f"echo: {prompt}" for prompt in PROMPTS[:120]]}
    # the last may have arrived in the turn of the event loop that the kill cut short, before they were committed
    assert len(upstream.seen) <= 120 + 2 * IN_FLIGHT


def test_a_task_of_several_models_outlives_the_server(upstream, tmp_path):
    upstream.reply = choose(lambda seen: answer() if seen.json["model"] == "fast" else late(0.05, answer()))
    own = {"base_url": upstream.url, "api_key": "key-0123456789abcdef", "concurrency": IN_FLIGHT}
    models = {name: {"openai": {**own, "model_name": name}} for name in ("slow", "fast", "late")}
    config = written(tmp_path, upstream.url, {"models": models}, concurrency=IN_FLIGHT)
    with OverStdio(config) as server:
        task_id = _begun(server, PROMPTS[:60], model=[*models])
        eventually(lambda: len(upstream.seen) > 80)
        _kill(server)
    with OverStdio(config) as server:
        eventually(lambda: _state(server, task_id)["status"] == "completed")
        found = _state(server, task_id)
    assert found["statusMessage"] == "180 of 180 prompts answered"
    answers = {"ans_ls": [f"echo: {prompt}" for prompt in PROMPTS[:60]]}
    assert found["result"]["structuredContent"] == {"models": dict.fromkeys(models, answers)}
    assert len(upstream.seen) <= 180 + 2 * IN_FLIGHT * len(models)


@pytest.mark.thorough
@pytest.mark.timeout(600)
@KINDS
def test_ten_kills_of_the_server_lose_nothing_and_pay_for_nothing_twice(kind, upstream, tmp_path):
    upstream.reply = late(0.3, answer())  # a minute of work
    config = written(tmp_path, upstream.url, concurrency=IN_FLIGHT)
    server = kind(config)
    try:
        task_id = _begun(server, PROMPTS)
        for _ in range(KILLS):
            goal = len(upstream.seen) + 8
            while len(upstream.seen) < goal:
                assert _state(server, task_id)["status"] == "working"
                time.sleep(0.05)
            _kill(server)
            server.__exit__(None, None, None)
            server = kind(config)
        eventually(lambda: time.sleep(0.2) or _state(server, task_id)["status"] != "working")
        found = _state(server, task_id)
    finally:
        server.__exit__(None, None, None)
    assert found["status"] == "completed"
    assert found["statusMessage"] == "600 of 600 prompts answered"
    assert found["result"]["structuredContent"] == {"ans_ls": [f"echo: {prompt}" for prompt in PROMPTS]}
    assert len(upstream.seen) <= len(PROMPTS) + IN_FLIGHT * KILLS


@pytest.mark.timeout(600)
def test_a_server_with_1024_descriptors_stays_in_service_with_1000_tasks_in_progress(upstream, tmp_path):
    opened = threading.Event()

    async def when_open(exchange):
        while not opened.is_set():
            await asyncio.sleep(0.05)
        await answer()(exchange)

    upstream.reply = by_prompt({"quick": answer(), "other": answer()}, when_open)
    prompts = [f"prompt {at}" for at in range(1000)]
    # on a busy machine, the first requests wait longer than the usual minute
    with Served(written(tmp_path, upstream.url, timeout=[5, 600]), descriptors=1024) as server:
        client, other = server.session(), server.session()
        begun = [_older_task(client, prompt) for prompt in prompts]
        refused = client.request("tools/call", name="generate", arguments={"prompt_ls": ["more"]}, task={})
        assert "Too many tasks of this client" in refused["error"]["message"]
        assert psutil.Process(server.process.pid).num_fds() < 700
        assert [server.ask("GET", "/healthz").status for _ in range(50)] == [200] * 50
        assert other.answers("quick") == ["echo: quick"]
        assert _fetched(other, _older_task(other, "other")) == ["echo: other"]
        opened.set()
        with ThreadPoolExecutor(8) as clients:
            results = list(clients.map(partial(_fetched, client), begun))
        eventually(lambda: psutil.Process(server.process.pid).num_fds() < 200)
    assert results == [[f"echo: {prompt}"] for prompt in prompts]
    assert len(upstream.seen) == 1002


def _older_task(client, prompt):
    """Call `generate` as a task of 2025-11-25; return its id."""
    return client.request("tools/call", name="generate", arguments={"prompt_ls": [prompt]}, task={})["result"]["task"][
        "taskId"
    ]


def _fetched(client, task_id):
    return client.request("tasks/result", timeout_s=300, taskId=task_id)["result"]["structuredContent"]["ans_ls"]
