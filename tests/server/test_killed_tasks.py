"""Tasks through real processes: `kill -9` of the server and of the job's runner in turn, over stdio and HTTP."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from collections import Counter

import psutil
import pytest

from piped import Piped
from promptmill.jobs.store.folder import JobFolders
from promptmill.server.tasks import EXTENSION
from replies import answer, late
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
KILLS = 20


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


def _begun(server, prompts):
    arguments = {"prompt_ls": prompts}
    found = server.rpc("tools/call", "generate", name="generate", arguments=arguments)["result"]
    assert found["resultType"] == "task", found
    return found["taskId"]


def _state(server, task_id):
    return server.rpc("tasks/get", task_id, taskId=task_id)["result"]


def _kill(server):
    """Kill the server alone, not the runner below it."""
    server.process.kill()
    server.process.wait()


def _runner(task_id):
    """Return the process of its own that runs the job, None when there is none."""
    database = str(JobFolders.from_environ().find(task_id).database)
    for process in psutil.process_iter(["cmdline"]):
        if "promptmill.jobs.manage.detached" in " ".join(process.info["cmdline"] or ()):
            with contextlib.suppress(psutil.Error):
                if any(file.path == database for file in process.open_files()):
                    return process.pid
    return None


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


@pytest.mark.thorough
@pytest.mark.timeout(600)
@KINDS
def test_twenty_kills_of_server_and_runner_lose_nothing_and_pay_for_nothing_twice(kind, upstream, tmp_path):
    upstream.reply = late(0.3, answer())  # a minute of work
    config = written(tmp_path, upstream.url, concurrency=IN_FLIGHT)
    killed = Counter()
    server = kind(config)
    try:
        task_id = _begun(server, PROMPTS)
        while killed.total() < KILLS // 2:
            goal = len(upstream.seen) + 8
            while len(upstream.seen) < goal:
                assert _state(server, task_id)["status"] == "working"
                time.sleep(0.05)
            runner = _runner(task_id)
            if killed.total() % 2 and runner is not None:
                os.kill(runner, signal.SIGKILL)
                killed["runner"] += 1
            else:
                _kill(server)
                server.__exit__(None, None, None)
                killed["server"] += 1
                server = kind(config)
        eventually(lambda: time.sleep(0.2) or _state(server, task_id)["status"] != "working")
        found = _state(server, task_id)
    finally:
        server.__exit__(None, None, None)
    assert found["status"] == "completed"
    assert found["statusMessage"] == "600 of 600 prompts answered"
    assert found["result"]["structuredContent"] == {"ans_ls": [f"echo: {prompt}" for prompt in PROMPTS]}
    assert killed["runner"] >= KILLS // 5, killed
    more = Counter(seen.prompt for seen in upstream.seen)
    assert len(upstream.seen) <= len(PROMPTS) + IN_FLIGHT * killed.total(), killed
    print(killed, len(upstream.seen), "requests,", max(more.values()), "at most for one prompt")
