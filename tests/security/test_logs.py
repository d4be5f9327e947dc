"""What is left behind and written down: no prompt, no answer, no key, unless somebody asked for it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from collector import KEY as COLLECTOR_KEY
from collector import Collector
from everyday import everyday
from fakes import KEY
from forked import ran
from piped import Piped
from replies import answer, attempts, by_prompt, closed, raw, reset, status
from waiting import PATIENCE_S, eventually

PROMPT = "the-private-prompt"
ANSWER = "the-private-answer"
HIDDEN = (PROMPT, ANSWER, KEY)


@pytest.fixture
def config(tmp_path, upstream):
    """A configuration file; the endpoint fails in several ways, by the prompt's last word."""
    upstream.reply = by_prompt(
        {
            f"{PROMPT} 400": status(400, f"You sent {KEY}"),
            f"{PROMPT} 500": raw(f"<html>{KEY}</html>".encode(), code=500),
            f"{PROMPT} reset": reset(),
            f"{PROMPT} closed": closed(),
            f"{PROMPT} broken": raw(b"{" * 1000),
        },
        raw(json.dumps({"choices": [{"message": {"content": ANSWER}, "finish_reason": "stop"}]}).encode()),
    )
    file = tmp_path / "config.json"
    block = {
        "base_url": upstream.url,
        "model_name": "m",
        "api_key": KEY,
        "retries": 2,
        "base_delay": 0.01,
        "max_delay": 0.1,
        "timeout": 5,
    }
    file.write_text(json.dumps({"backend": "openai", "backend_configs": {"openai": block}}))
    return file


PROMPTS = [f"{PROMPT} {how}" for how in ("ok", "400", "500", "reset", "closed", "broken")]


@pytest.mark.rule("L1")
@pytest.mark.parametrize("how", everyday(["option", "environment"], "environment"))
def test_at_debug_each_retry_is_told_and_neither_key_nor_prompt(config, upstream, how):
    upstream.reply = attempts(status(502, "bad gateway"), answer(ANSWER))
    options = ["--log-level", "debug"] if how == "option" else []
    with Piped(config, *options, environ={} if options else {"PROMPTMILL_LOG_LEVEL": "debug"}) as server:
        server.initialize()
        result = server.result(server.call("generate", prompt_ls=[PROMPT]))
        assert result["structuredContent"]["ans_ls"] == [ANSWER]
        server.end("EOF")
        assert server.process.wait(PATIENCE_S) == 0
        said = server.said()
    (retry,) = [line for line in said.splitlines() if " DEBUG " in line and "again in" in line]
    assert f"127.0.0.1:{upstream.port}: 502 server_error, again in 0.0 s" in retry
    assert not any(secret in said for secret in (KEY, PROMPT, ANSWER))


def calls_of_all_kinds(server: Piped) -> None:
    """Call tools with private texts in every place, right and wrong."""
    result = server.result(server.call("generate", prompt_ls=PROMPTS, system_prompt=PROMPT))
    assert result["structuredContent"]["ans_ls"][0] == ANSWER
    assert len(result["structuredContent"]["errors"]) == 5
    for arguments in (
        {"prompt_ls": {PROMPT: PROMPT}},
        {"prompt_ls": [{PROMPT: PROMPT}]},
        {"prompt_ls": [1], PROMPT: PROMPT},
    ):
        assert server.result(server.call("generate", **arguments))["isError"]
    paths = [[f"/{PROMPT}.png"]]
    assert server.result(server.call("multimodal_generate", prompt_ls=[PROMPT], multimodal_path=paths))["isError"]
    assert server.result(server.call("multiturn_generate", messages=[{"role": PROMPT}]))["isError"]
    block = {"openai": {"api_key": [KEY], PROMPT: KEY}}
    init: dict[str, Any] = {"backend_configs": block, "sampling_params": {"stop": 1}, "backend": "openai"}
    assert server.result(server.call("generation_init", **init))["isError"]
    server.write(f'{{"jsonrpc":"2.0","id":"x","method":"tools/call","params":"{PROMPT}\\ud800"}}'.encode())
    server.reply("x")


@pytest.mark.rule("L1")
@pytest.mark.stdio
@pytest.mark.parametrize("level", everyday(["WARNING", "INFO", "DEBUG"], "DEBUG"))
def test_what_the_server_says_holds_no_prompt_no_answer_and_no_key(config, level):
    with Piped(config, environ={"FASTMCP_LOG_LEVEL": level}) as server:
        server.initialize()
        calls_of_all_kinds(server)
        server.end("EOF")
        assert server.process.wait(PATIENCE_S) == 0
        said = server.said()
    for hidden in HIDDEN:
        assert hidden not in said
    assert "Traceback" not in said


@pytest.mark.thorough
@pytest.mark.features("telemetry")
@pytest.mark.rule("L4")
@pytest.mark.stdio
def test_what_is_exported_to_opentelemetry_holds_no_prompt_no_answer_and_no_key(config, tmp_path):
    (tmp_path / "in.jsonl").write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in PROMPTS))
    client = {"traceparent": f"00-{'a' * 32}-{'b' * 16}-01", "tracestate": f"x={PROMPT}", "baggage": f"x={PROMPT}"}
    with Collector() as collector:
        with Piped(config, environ=collector.environ) as server:
            server.initialize()
            calls_of_all_kinds(server)
            assert server.result(server.call(PROMPT))["isError"]
            arguments = {"prompt_ls": PROMPTS}
            server.result(server.request("tools/call", name="generate", arguments=arguments, _meta=client))
            server.end("EOF")
            assert server.process.wait(PATIENCE_S) == 0
            said = server.said()
        command = [sys.executable, "-m", "promptmill", "bulk", "in.jsonl", "out.jsonl", "--config", str(config)]
        environ = os.environ | collector.environ
        done = ran(command, cwd=tmp_path, env=environ)
        assert done.returncode == 1, done.stderr
        spans = collector.spans()
        exported = b"".join(collector.raw)
    assert {"job", "call", "tools/call", "tools/call generation_init"} <= {span.name for span in spans}
    assert {"bad_request", "invalid_input"} <= {span.attributes.get("error.type") for span in spans}
    for hidden in (*HIDDEN, COLLECTOR_KEY):
        assert hidden.encode() not in exported
    for hidden in (KEY, ANSWER, COLLECTOR_KEY):
        assert hidden not in said + done.stderr
    assert str(tmp_path).encode() not in exported


@pytest.mark.thorough
@pytest.mark.features("telemetry")
@pytest.mark.rule("L4")
@pytest.mark.parametrize(
    "variables",
    [
        {"HEADERS": f"Authorization: Bearer {COLLECTOR_KEY},x-key={COLLECTOR_KEY} 1"},
        {"ENDPOINT": f"http://user:{COLLECTOR_KEY}@[wrong"},
        {"ENDPOINT": f"user:{COLLECTOR_KEY}@127.0.0.1:1"},
        {"TRACES_ENDPOINT": "http://127.0.0.1:1", "TRACES_HEADERS": COLLECTOR_KEY},
    ],
)
def test_a_wrong_address_or_header_of_a_collector_is_told_without_its_key(config, upstream, tmp_path, variables):
    upstream.reply = answer(ANSWER)
    variables = {"ENDPOINT": "http://127.0.0.1:1", "TIMEOUT": "0.1"} | variables
    environ = os.environ | {f"OTEL_EXPORTER_OTLP_{name}": value for name, value in variables.items()}
    command = [sys.executable, "-m", "promptmill", "generate", "hi", "--config", str(config)]
    done = ran(command, env=environ)
    assert done.stdout.strip() == ANSWER, done.stderr
    assert "opentelemetry" in done.stderr.lower() or "export" in done.stderr
    assert COLLECTOR_KEY not in done.stderr


GLOBAL = f"""
import asyncio
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from promptmill.server import create_server
from fastmcp import Client
from promptmill.config.configuration import Configuration
from promptmill.service.service import Service

exporter = InMemorySpanExporter()
trace.set_tracer_provider(TracerProvider())
trace.get_tracer_provider().add_span_processor(SimpleSpanProcessor(exporter))

async def main():
    async with Client(create_server(Service(Configuration({{}})))) as client:
        await client.call_tool("generate", {{"prompt_ls": [1], "{PROMPT}": 1}}, raise_on_error=False)

asyncio.run(main())
trace.get_tracer("test").start_span("last").end()
print(*(span.to_json() for span in exporter.get_finished_spans()))
"""


@pytest.mark.thorough
@pytest.mark.rule("L4")
def test_fastmcps_own_spans_are_off_where_another_tool_exports_those_of_all_libraries(tmp_path):
    done = subprocess.run([sys.executable, "-c", GLOBAL], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert '"last"' in done.stdout, done.stderr
    assert PROMPT not in done.stdout


@pytest.mark.rule("L2")
def test_a_job_writes_prompts_and_answers_only_into_its_own_private_folder_and_the_output(config, tmp_path):
    work, state, scratch = tmp_path / "work", tmp_path / "state", tmp_path / "scratch"
    for folder in (work, scratch):
        folder.mkdir()
    rows = "".join(f"{json.dumps(PROMPTS[0])}\n" for _ in range(3))
    (work / "in.csv").write_text("prompt\n" + rows)
    environ = {**os.environ, "PROMPTMILL_STATE": str(state), "TMPDIR": str(scratch)}
    command = [sys.executable, "-m", "promptmill", "bulk", "in.csv", "out.csv", "--config", str(config)]
    done = ran(command, cwd=work, env=environ)
    assert done.returncode == 0, done.stderr
    printed = [line for line in done.stdout.splitlines() if not line.startswith("  answers ")]  # short, and repeated
    for hidden in HIDDEN:
        assert hidden not in "\n".join([*printed, done.stderr])
    assert not list(scratch.iterdir())
    files = [file for file in state.rglob("*") if file.is_file()]
    with_prompts = {file.name for file in files if PROMPT.encode() in file.read_bytes()}
    with_answers = {file.name for file in files if ANSWER.encode() in file.read_bytes()}
    assert with_prompts <= {"job.db", "job.db-wal"}
    assert with_answers <= {"job.db", "job.db-wal"}
    assert with_answers
    assert not any(KEY.encode() in file.read_bytes() for file in files)


@pytest.mark.thorough
@pytest.mark.rule("L3")
@pytest.mark.stdio
def test_a_call_leaves_nothing_in_the_folder_for_temporary_files(config, tmp_path):
    scratch, work = tmp_path / "scratch", tmp_path / "work"
    scratch.mkdir()
    block = json.loads(config.read_text())
    block["backend_configs"]["openai"] |= {"num_workers": 2, "bulk_threshold": 2}
    config.write_text(json.dumps(block))
    work.mkdir()
    with Piped(config, environ={"TMPDIR": str(scratch)}) as server:
        server.initialize()
        server.answers(*[PROMPTS[0]] * 5)
        eventually(lambda: not list(scratch.iterdir()))
        server.end("EOF")
        assert server.process.wait(PATIENCE_S) == 0
        said = server.said()
    assert not list(scratch.iterdir())
    for hidden in HIDDEN:
        assert hidden not in said
