"""Export to OpenTelemetry, to a collector that decodes what arrives."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from collector import KEY as COLLECTOR_KEY
from collector import Collector
from fakes import openai_configuration
from forked import ran
from piped import Piped
from promptmill.backends.protocol import DURATIONS_S, Call, Facts
from promptmill.config.configuration import Configuration
from promptmill.core.errors import PromptmillError
from promptmill.core.request import Conversation, Message
from promptmill.features.telemetry import telemetry
from promptmill.features.telemetry.telemetry import Telemetry, exporting
from promptmill.service.metrics import CALLS, ModelLabels, samples
from promptmill.service.service import Service
from replies import answer, by_prompt, hang, status
from served import Served
from server_process import written
from sure import sure
from waiting import PATIENCE_S, eventually, until

pytestmark = pytest.mark.thorough

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
TRACEPARENT = f"00-{TRACE}-{PARENT}-01"
NEVER = {"OTEL_BSP_SCHEDULE_DELAY": "86400000", "OTEL_METRIC_EXPORT_INTERVAL": "86400000"}
"""The variables of a process that exports at its end alone."""


@pytest.fixture
def collector():
    with Collector() as found:
        yield found


@pytest.fixture
def service(upstream, closing):
    return closing(Service(openai_configuration(upstream.url, concurrency=7)))


@pytest.fixture
async def exports(service, collector, closing, monkeypatch):
    """The export of `service`; `await exports()` exports what there is."""
    for name, value in (collector.environ | NEVER).items():
        monkeypatch.setenv(name, value)
    found = exporting(service)
    assert isinstance(found, Telemetry)
    return lambda: found.aclose(PATIENCE_S)


def conversation(text):
    return Conversation((Message("user", text),))


def chain(collector, name):
    """Return the names of the spans from the one of that name up to its root, and the parent of the last."""
    by_id = {span.id: span for span in collector.spans()}
    (span,) = collector.spans(name)
    names = [name]
    while span.parent in by_id:
        span = by_id[span.parent]
        names.append(span.name)
    return names, span.parent, span.trace


@pytest.mark.http
@pytest.mark.parametrize("way", ["session", "alone"])
def test_the_span_of_a_client_over_http_is_the_parent_of_that_of_its_call(upstream, collector, tmp_path, way):
    headers = {"traceparent": TRACEPARENT, "tracestate": "vendor=secret"}
    with Served(written(tmp_path, upstream.url), environ=collector.environ) as server:
        if way == "session":
            server.session(headers).answers("hi")
        else:
            meta: dict[str, Any] = {"io.modelcontextprotocol/protocolVersion": "2026-07-28"}
            meta |= {"io.modelcontextprotocol/clientCapabilities": {}}
            params = {"name": "generate", "arguments": {"prompt_ls": ["hi"]}, "_meta": meta}
            message = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}
            headers |= {"Mcp-Protocol-Version": "2026-07-28", "Mcp-Method": "tools/call", "Mcp-Name": "generate"}
            headers |= {"Accept": "application/json, text/event-stream", "Content-Type": "application/json"}
            answered = server.ask(headers=headers, body=json.dumps(message).encode())
            assert b"echo: hi" in answered.body, answered
        eventually(lambda: collector.spans("tools/call generate"))
    assert chain(collector, "chat m") == (["chat m", "call", "tools/call generate"], PARENT, TRACE)
    assert collector.authorized == {COLLECTOR_KEY}
    assert b"secret" not in b"".join(collector.raw)


@pytest.mark.stdio
def test_the_span_that_the_meta_of_a_call_names_is_the_parent_over_stdio(upstream, collector, tmp_path):
    with Piped(written(tmp_path, upstream.url), environ=collector.environ) as server:
        server.initialize()
        meta = {"traceparent": TRACEPARENT}
        server.result(server.request("tools/call", name="generate", arguments={"prompt_ls": ["hi"]}, _meta=meta))
        eventually(lambda: collector.spans("tools/call generate"))
    assert chain(collector, "chat m") == (["chat m", "call", "tools/call generate"], PARENT, TRACE)


@pytest.mark.stdio
@pytest.mark.skipif(sys.platform == "win32", reason="Windows ends a process at once")
def test_the_last_spans_and_metrics_survive_sigterm_also_those_of_a_running_call(upstream, collector, tmp_path):
    upstream.reply = by_prompt({"slow": hang()}, answer())
    with Piped(written(tmp_path, upstream.url), environ=collector.environ | NEVER) as server:
        server.initialize()
        server.answers("fast")
        server.call("generate", prompt_ls=["slow"])
        eventually(lambda: upstream.in_flight == 1)
        assert not collector.raw
        server.ends("SIGTERM")
    assert len(collector.spans("call")) == 2
    spans = collector.spans("tools/call generate")
    assert [span.attributes.get("error.type") for span in spans] == [None, "shutdown"]
    assert {attributes["outcome"]: point.as_int for attributes, point in collector.points("promptmill.items")} == {
        "answered": 1,
        "shutdown": 1,
    }


@pytest.mark.http
@pytest.mark.skipif(sys.platform == "win32", reason="Windows ends a process at once")
def test_the_last_spans_survive_sigterm_over_http_and_a_collector_that_hangs_keeps_no_server(
    upstream, collector, tmp_path
):
    config, environ = written(tmp_path, upstream.url), collector.environ | NEVER
    with Served(config, environ=environ | {"OTEL_EXPORTER_OTLP_TIMEOUT": "86400000"}) as server:
        server.session().answers("hi")
        server.ends("SIGTERM")
        assert len(collector.spans("chat m")) == 1
    collector.hangs.set()
    with Served(config, environ=environ) as server:
        server.session().answers("hi")
        server.ends("SIGTERM")
        assert len(collector.spans("chat m")) == 1


async def test_metrics_of_the_conventions_have_their_names_units_bounds_and_attributes(
    service, exports, upstream, collector
):
    upstream.reply = by_prompt({"bad": status(400, "no")}, answer())
    await service.generate([conversation("one two"), conversation("bad")], Call())
    await exports()
    duration = collector.metrics()["gen_ai.client.operation.duration"]
    tokens = collector.metrics()["gen_ai.client.token.usage"]
    assert (duration.unit, tokens.unit) == ("s", "{token}")
    model = {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "openai",
        "gen_ai.request.model": "test-model",
    }
    found = collector.points("gen_ai.client.operation.duration")
    assert [attributes for attributes, _ in found] == [model, model | {"error.type": "bad_request"}]
    assert all(tuple(point.explicit_bounds) == DURATIONS_S for _, point in found)
    found = collector.points("gen_ai.client.token.usage")
    assert [(attributes, point.sum) for attributes, point in found] == [
        (model | {"gen_ai.token.type": "input"}, 2),
        (model | {"gen_ai.token.type": "output"}, 3),
    ]
    assert list(found[0][1].explicit_bounds)[-1] == 67_108_864


async def test_counters_and_gauges_are_those_of_the_page_with_labels_of_provider_model_and_outcome(
    service, exports, upstream, collector
):
    upstream.reply = by_prompt({"slow": hang(), "bad": status(400, "no")}, answer())
    await service.generate([conversation("one two"), conversation("bad")], Call())
    call = asyncio.ensure_future(service.generate([conversation("slow")], Call()))
    await until(lambda: upstream.in_flight == 1)
    expected = {}
    for sample in samples(service, ModelLabels(), of_job=False):
        name, key = f"promptmill.{sample.family.removesuffix('_total')}", sample.outcome
        expected[name, key] = expected.get((name, key), 0) + sample.value
    await exports()
    call.cancel()
    await asyncio.wait({call})
    found = {}
    for name, metric in collector.metrics().items():
        if not name.startswith("promptmill."):
            continue
        assert metric.unit
        for attributes, point in collector.points(name):
            labels = dict(attributes)
            found[name, labels.pop("outcome", None)] = point.as_double or point.as_int
            assert labels == {"gen_ai.provider.name": "openai", "gen_ai.request.model": "test-model"}
    assert found == expected
    assert found["promptmill.requests_in_flight", None] == found["promptmill.calls_in_progress", None] == 1
    assert found["promptmill.items", "bad_request"] == 1


async def test_values_since_the_last_export_where_the_variable_wants_them(
    service, upstream, collector, monkeypatch, closing
):
    preference = {"OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE": "delta", "OTEL_TRACES_EXPORTER": "none"}
    for name, value in (collector.environ | NEVER | preference).items():
        monkeypatch.setenv(name, value)
    found = exporting(service)
    assert found is not None
    exporter = sure(found._exporter)
    exported = []
    for prompts in (2, 3, 0):
        await service.generate([conversation("a")] * prompts, Call())
        found._send(exporter, found._metrics())
        for name in ("promptmill.items", "gen_ai.client.operation.duration"):
            data = collector.metrics()[name].WhichOneof("data")
            assert getattr(collector.metrics()[name], data).aggregation_temporality == 1
        ((_, items),) = collector.points("promptmill.items")
        ((_, durations),) = collector.points("gen_ai.client.operation.duration")
        exported.append((items.as_double or items.as_int, durations.count, durations.start_time_unix_nano))
    await found.aclose(PATIENCE_S)
    assert [(items, durations) for items, durations, _ in exported[:2]] == [(2, 2), (3, 3)]
    assert exported[2][0] == 0
    assert exported[0][2] < exported[1][2]


async def test_a_span_of_an_item_has_tokens_code_and_duration_and_the_first_items_alone_have_one(
    service, exports, upstream, collector, monkeypatch
):
    monkeypatch.setattr(telemetry, "MOST_ROWS", 2)
    upstream.reply = by_prompt({"bad": status(400, "no")}, answer(finish_reason="a private text"))
    await service.generate([conversation("bad")], Call())
    await service.generate([conversation(f"one {number}") for number in range(5)], Call())
    await exports()
    bad, good, _ = collector.spans("chat test-model")
    assert bad.failed
    assert bad.attributes["error.type"] == "bad_request"
    assert bad.attributes["promptmill.attempts"] == 1
    assert good.attributes["gen_ai.usage.input_tokens"] == 2
    assert good.seconds > 0
    assert "gen_ai.response.finish_reasons" not in good.attributes, "it may be any text"
    assert [span.attributes["promptmill.items"] for span in collector.spans("call")] == [1, 5]
    assert sum(point.count for _, point in collector.points("gen_ai.client.operation.duration")) == 6


async def test_the_span_of_a_call_has_the_code_of_what_ended_it(closing, collector, monkeypatch):
    for name, value in (collector.environ | NEVER).items():
        monkeypatch.setenv(name, value)
    service = closing(Service(Configuration({"backend": "openai", "backend_configs": {"openai": {"provider": "x"}}})))
    found = sure(exporting(service))
    with pytest.raises(PromptmillError) as raised:
        await service.generate([conversation("a")], Call())
    await found.aclose(PATIENCE_S)
    (span,) = collector.spans()
    assert (span.name, span.failed) == ("call", True)
    assert span.attributes["error.type"] == raised.value.code


async def test_a_run_of_a_job_counts_rows_apart(service, exports, collector):
    await service.generate([conversation("a")], Call(Facts(of_job=True)))
    await exports()
    assert [span.name for span in collector.spans()] == ["chat test-model", "job"]
    assert {"promptmill.job.rows", "promptmill.job.runs", "promptmill.job.requests"} <= set(collector.metrics())
    assert not {"promptmill.items", "promptmill.calls", "promptmill.requests"} & set(collector.metrics())


@pytest.mark.stdio
@pytest.mark.skipif(sys.platform == "win32", reason="Windows ends a process at once")
def test_the_runner_of_a_job_exports_below_the_call_that_started_it(upstream, collector, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in.csv").write_text("prompt\na\nb\n")
    config = written(tmp_path, upstream.url)
    with Piped(config, environ=collector.environ | NEVER) as server:
        server.initialize()
        arguments = {"input_file": "in.csv", "output_file": "out.csv"}
        meta = {"traceparent": TRACEPARENT}
        server.result(server.request("tools/call", name="bulk_generate", arguments=arguments, _meta=meta))
        eventually(lambda: collector.spans("job"))
        server.ends("SIGTERM")
    assert chain(collector, "job") == (["job", "tools/call bulk_generate"], PARENT, TRACE)
    assert {attributes["outcome"]: point.as_int for attributes, point in collector.points("promptmill.job.rows")} == {
        "answered": 2
    }
    ids = {resource["service.instance.id"] for resource in collector.resources()}
    assert len(ids) == 2
    kept = b"".join(file.read_bytes() for file in tmp_path.rglob("*") if file.is_file() and file != config)
    assert COLLECTOR_KEY.encode() not in kept


def test_a_command_exports_below_the_span_of_its_environment(upstream, collector, tmp_path):
    environ = os.environ | collector.environ | NEVER | {"TRACEPARENT": TRACEPARENT, "OTEL_SERVICE_NAME": "mine"}
    config = str(written(tmp_path, upstream.url))
    for command in (["generate", "hi"], ["bulk", "in.csv", "out.csv"]):
        (tmp_path / "in.csv").write_text("prompt\na\n")
        line = [sys.executable, "-m", "promptmill", *command, "--config", config]
        assert ran(line, env=environ, cwd=tmp_path).returncode == 0
    assert chain(collector, "call")[1:] == chain(collector, "job")[1:] == (PARENT, TRACE)
    assert {resource["service.name"] for resource in collector.resources()} == {"mine"}


OFF = [
    {},
    {"OTEL_SDK_DISABLED": "true"},
    {"OTEL_TRACES_EXPORTER": "none", "OTEL_METRICS_EXPORTER": "none"},
]


@pytest.mark.parametrize("environ", OFF)
def test_nothing_of_the_sdk_is_imported_unless_an_exporter_is_configured(upstream, collector, tmp_path, environ):
    code = (
        "import sys; from promptmill.cli.main import main; main()\n"
        "print(*(name for name in sys.modules if name.startswith(('opentelemetry.sdk', 'opentelemetry.exporter'))))"
    )
    line = [sys.executable, "-c", code, "generate", "hi", "--config", str(written(tmp_path, upstream.url))]
    environ = os.environ | (collector.environ | environ if environ else {})
    done = subprocess.run(line, env=environ, check=True, capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.stdout.split() == ["echo:", "hi"]
    assert not collector.raw


@pytest.mark.parametrize(
    ("environ", "said"),
    [
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"}, "[otel]"),
        ({"OTEL_TRACES_EXPORTER": "console"}, "OTEL_TRACES_EXPORTER is not otlp or none."),
        ({"OTEL_METRICS_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_PROTOCOL": "x"}, "is not http/protobuf or grpc."),
    ],
)
async def test_an_exporter_that_cannot_be_used_is_named_and_nothing_else_changes(
    service, environ, said, capsys, monkeypatch
):
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    assert exporting(service, environ) is None
    assert said in capsys.readouterr().err
    outcomes = await service.generate([conversation("a")], Call())
    assert [outcome.text for outcome in outcomes] == ["echo: a"]


async def test_a_client_whose_trace_is_not_sampled_gets_no_spans(service, exports, collector):
    found = service.observe.__self__
    with found.tool_call("generate", {"traceparent": TRACEPARENT[:-1] + "0"}):
        await service.generate([conversation("a")], Call())
    await exports()
    assert not collector.spans()
    assert collector.points("promptmill.items")


@pytest.mark.parametrize(("provider", "name"), [("mistral", "mistral_ai"), ("xai", "x_ai"), ("groq", "groq")])
async def test_providers_have_the_names_of_the_conventions(collector, closing, provider, name):
    block = {"provider": provider, "model_name": "m", "api_key": "x"}
    configuration = Configuration({"backend": "openai", "backend_configs": {"openai": block}})
    labels = ModelLabels().of_config(configuration.config)
    assert telemetry._model(labels) == {"gen_ai.provider.name": name, "gen_ai.request.model": "m"}


def test_the_page_names_every_metric():
    page = (Path(__file__).parents[3] / "docs" / "deployment.md").read_text(encoding="utf-8")
    names = {telemetry._name(family, of_job=False) for family in CALLS}
    assert not {name for name in names if f"`{name}`" not in page}
