"""Spans and metrics of a service's calls for OpenTelemetry.

    `metrics` ──▶ counters, gauges and durations, read at each export ──┐
    outcome ──▶ a histogram of tokens, and a span ──────────────────────┼──▶ OTLP
    run of a call or job, call of a tool ──▶ a span ────────────────────┘

Export is off, and OpenTelemetry's SDK is not imported, unless its standard variables name an exporter. The providers
are not global: spans of libraries, whose exceptions may quote a prompt or a key, are not exported. Exported spans have
numbers, codes, and names of providers, models and tools, never the text of a call or an answer.

Names, units and bounds of `gen_ai.…` follow the semantic conventions for generative AI
(github.com/open-telemetry/semantic-conventions-genai: docs/gen-ai/gen-ai-metrics.md and gen-ai-spans.md, with the
status Development; read 2026-11).
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import importlib
import logging
import math
import os
import re
import threading
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from promptmill.backends.protocol import Completion, Histogram, Outcome, Sink
from promptmill.config.model_config import ModelConfig
from promptmill.core.bounds import MOST_ROWS
from promptmill.core.errors import Code, redact
from promptmill.core.version import __version__
from promptmill.service.metrics import CALLS, Labels, ModelLabels, durations, samples, series
from promptmill.service.service import Counted, Service
from promptmill.system.installation import adding
from promptmill.system.logs import announce

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.metrics.export import HistogramDataPoint, MetricExporter, MetricsData
    from opentelemetry.trace import Span, Tracer

_SPAN_NAMES = {"done": "items"}
# The providers that the conventions name differently from promptmill.
_PROVIDERS = {
    "azure": "azure.ai.openai",
    "google": "gcp.gemini",
    "kimi": "moonshot_ai",
    "mistral": "mistral_ai",
    "xai": "x_ai",
}
_TOKENS = tuple(4**step for step in range(14))
_OPERATION = "gen_ai.operation.name"
_PROVIDER, _MODEL = "gen_ai.provider.name", "gen_ai.request.model"
_ERROR = "error.type"
_FINISHED = frozenset({"stop", "length", "tool_calls", "content_filter"})
_OTLP = "OTEL_EXPORTER_OTLP"
_SIGNALS = {"trace": "TRACES", "metric": "METRICS"}
_PARENT = "traceparent"
_DELTA = frozenset({"delta", "lowmemory"})
_INTERVAL_S = 60.0
_LAST_S = 5.0
T = TypeVar("T", float, Histogram)
_Key: TypeAlias = tuple[tuple[str, str], ...]


def _configured(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the exporter of each signal that the standard variables enable."""
    if environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return {}
    found = {}
    for signal, name in _SIGNALS.items():
        has_endpoint = environ.get(f"{_OTLP}_ENDPOINT") or environ.get(f"{_OTLP}_{name}_ENDPOINT")
        exporter = environ.get(f"OTEL_{name}_EXPORTER", "").strip().lower() or ("otlp" if has_endpoint else "none")
        if exporter != "none":
            found[signal] = exporter
    return found


def inherited(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return the variables that make a child process export as this process does, with the current span as parent."""
    if not _configured(environ):
        return {}
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    carrier: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(carrier)
    parent = carrier.get(_PARENT) or environ.get(_PARENT.upper())
    passed = {name: value for name, value in environ.items() if name.upper().startswith("OTEL_")}
    return passed | ({_PARENT.upper(): parent} if parent else {})


def exporting(service: Service, environ: Mapping[str, str] = os.environ) -> Telemetry | None:
    """Start to export the telemetry of `service`; return None if no exporter is configured or usable."""
    exporters: dict[str, Any] = {}
    if configured := _configured(environ):
        _redact_logs(environ)
    try:
        for signal, exporter in configured.items():
            exporters[signal] = _exporter(signal, exporter, environ)
        return Telemetry(service, exporters, environ) if exporters else None
    except ImportError as missing:
        announce(f"nothing is exported to OpenTelemetry, as {missing.name} is not installed. {adding('otel')}")
    except ValueError as wrong:
        announce(f"nothing is exported to OpenTelemetry: {redact(str(wrong))}")
    return None


def _exporter(signal: str, name: str, environ: Mapping[str, str]) -> Any:
    """Return a new exporter, which reads its variables itself. Raises `ImportError` or `ValueError`."""
    signals = _SIGNALS[signal]
    if name != "otlp":  # refused: the console exporter would write into the protocol
        raise ValueError(f"OTEL_{signals}_EXPORTER is not otlp or none.")
    protocol = environ.get(f"{_OTLP}_{signals}_PROTOCOL") or environ.get(f"{_OTLP}_PROTOCOL") or "http/protobuf"
    kind = {"http/protobuf": "http", "grpc": "grpc"}.get(protocol.strip())
    if kind is None:
        raise ValueError(f"{_OTLP}_PROTOCOL is not http/protobuf or grpc.")
    module = importlib.import_module(f"opentelemetry.exporter.otlp.proto.{kind}.{signal}_exporter")
    return module.OTLPSpanExporter() if signal == "trace" else module.OTLPMetricExporter()


def _redact_logs(environ: Mapping[str, str]) -> None:
    """Redact the collector's keys in OpenTelemetry's log, which quotes invalid headers and addresses."""
    headers = [value for name, value in environ.items() if name.startswith(_OTLP) and name.endswith("HEADERS")]
    parts = [part for value in headers for part in (value, *value.split(","), *re.split("[,:=]", value))]
    users = [value.rpartition("@")[0] for name, value in environ.items() if name.startswith(_OTLP)]
    # the longest first, because one key may be a part of another
    secrets = tuple(sorted({part.strip() for part in (*parts, *users)}, key=len, reverse=True))

    def redacted(record: logging.LogRecord) -> bool:
        if record.name.startswith("opentelemetry"):
            record.msg, record.args = redact(record.getMessage(), secrets), ()
        return True

    for handler in (*logging.getLogger().handlers, logging.lastResort):
        if handler is not None:
            handler.addFilter(redacted)


@contextlib.asynccontextmanager
async def exported(service: Service, environ: Mapping[str, str] = os.environ) -> AsyncIterator[None]:
    """In the `with` block, export telemetry of `service` under the span that the environment names; then flush."""
    telemetry = exporting(service, environ)
    if telemetry is None:
        yield
        return
    from opentelemetry.context import attach, detach

    token = attach(_context({_PARENT: environ.get(_PARENT.upper(), "")}))
    try:
        yield
    finally:
        detach(token)
        await telemetry.aclose(_LAST_S)


def _context(carrier: Mapping[str, str]) -> Context:
    """Return the present context with the span in `carrier`, if any, as the current span.

    Other trace data of the client is not exported.
    """
    from opentelemetry.context import get_current
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    return TraceContextTextMapPropagator().extract({_PARENT: carrier.get(_PARENT, "")}, get_current())


class Telemetry:
    """Exports the spans and metrics of one service. It belongs to the running event loop."""

    def __init__(self, service: Service, exporters: Mapping[str, Any], environ: Mapping[str, str]) -> None:
        """`exporters`: one for spans (`trace`), one for metrics (`metric`), or both."""
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.sdk.util.instrumentation import InstrumentationScope
        from opentelemetry.trace import NoOpTracerProvider

        self._service, self._loop = service, asyncio.get_running_loop()
        self._resource, self._scope = _resource(), InstrumentationScope("promptmill", __version__)
        self.labels = ModelLabels()
        self.tracer: Tracer = NoOpTracerProvider().get_tracer("promptmill")
        self.processor = BatchSpanProcessor(exporters["trace"]) if "trace" in exporters else None
        if self.processor is not None:
            provider = TracerProvider(resource=self._resource, shutdown_on_exit=False)
            provider.add_span_processor(self.processor)
            self.tracer = provider.get_tracer("promptmill", __version__)
        self.tokens: defaultdict[_Key, Histogram] = defaultdict(lambda: Histogram(_TOKENS))
        self._is_delta = environ.get(f"{_OTLP}_METRICS_TEMPORALITY_PREFERENCE", "").strip().lower() in _DELTA
        self._since_ns = time.time_ns()
        self._last: dict[str, dict[_Key, Any]] = {}
        """The values of counters and histograms at the last export."""
        self._exporter: MetricExporter | None = exporters.get("metric")
        self._exporting = threading.Lock()
        self._reporting = asyncio.ensure_future(self._report(_interval_s(environ)))
        service.observe = self.observe

    async def _report(self, interval_s: float) -> None:
        """Export the metrics periodically."""
        while self._exporter is not None:
            await asyncio.sleep(interval_s)
            await self._in_thread(functools.partial(self._send, self._exporter, self._metrics()))

    def _send(self, exporter: MetricExporter, metrics: MetricsData, *, is_last: bool = False) -> None:
        """Export metrics. Blocks while the exporter retries."""
        with self._exporting:
            exporter.export(metrics)
            if is_last:
                exporter.shutdown()

    def _metrics(self) -> MetricsData:
        """Return the present values of all metrics. All points of a series have the same attributes."""
        from opentelemetry.sdk.metrics import export as sdk

        now_ns, since_ns, is_delta = time.time_ns(), self._since_ns, self._is_delta
        temporality = sdk.AggregationTemporality.DELTA if is_delta else sdk.AggregationTemporality.CUMULATIVE
        found = []

        def since_last(name: str, values: dict[_Key, T]) -> dict[_Key, T]:
            before, self._last[name] = self._last.get(name, {}), {**values}
            return {key: value - before[key] if key in before else value for key, value in values.items()}

        for of_job in (False, True):
            for family, values in series(samples(self._service, self.labels, of_job=of_job)).items():
                kind, unit, text = CALLS[family]
                name = _name(family, of_job=of_job)
                by_key = {_key(labels, outcome=outcome or ""): value for (labels, outcome), value in values.items()}
                if is_delta and kind == "counter":
                    by_key = since_last(name, by_key)
                points = [sdk.NumberDataPoint(dict(key), since_ns, now_ns, value) for key, value in by_key.items()]
                counted = sdk.Sum(points, temporality, is_monotonic=True) if kind == "counter" else sdk.Gauge(points)
                text = text.replace("Calls", "Runs").replace("calls", "jobs") if of_job else text
                found.append(sdk.Metric(name, text, unit, counted))
        times = {
            ((_OPERATION, "chat"), *_key(labels, **{_ERROR: code})): histogram
            for (labels, code), histogram in durations(self._service, self.labels).items()
        }
        tokens = {key: histogram + Histogram(_TOKENS) for key, histogram in self.tokens.items()}  # a copy of each
        for name, unit, text, histograms in (
            ("gen_ai.client.operation.duration", "s", "GenAI operation duration.", times),
            ("gen_ai.client.token.usage", "{token}", "Number of input and output tokens used.", tokens),
        ):
            shown = since_last(name, histograms) if is_delta else histograms
            counts = [_point(key, values, since_ns, now_ns) for key, values in shown.items()]
            if used := [point for point in counts if point.count]:
                found.append(sdk.Metric(name, text, unit, sdk.Histogram(used, temporality)))
        if is_delta:
            self._since_ns = now_ns
        scopes = [sdk.ScopeMetrics(self._scope, found, "")]
        return sdk.MetricsData([sdk.ResourceMetrics(self._resource, scopes, "")])

    def _in_thread(self, work: Callable[[], None]) -> asyncio.Future[None]:
        """Run `work` in a separate thread, because the process would wait at its end for a thread of the event loop."""
        ended: asyncio.Future[None] = self._loop.create_future()

        def end() -> None:
            if not ended.done():
                ended.set_result(None)

        def run() -> None:
            try:
                work()
            finally:
                with contextlib.suppress(RuntimeError):  # the event loop is closed
                    self._loop.call_soon_threadsafe(end)

        threading.Thread(target=run, name="export", daemon=True).start()
        return ended

    async def aclose(self, limit_s: float) -> None:
        """Export the rest within `limit_s` seconds. If a collector does not answer, stop waiting."""
        self._reporting.cancel()
        last = []
        if self.processor is not None:
            last.append(self._in_thread(self.processor.shutdown))
        if self._exporter is not None:
            last.append(self._in_thread(functools.partial(self._send, self._exporter, self._metrics(), is_last=True)))
        await asyncio.wait({self._reporting, *last}, timeout=limit_s)

    @contextlib.contextmanager
    def observe(self, counted: Counted, sink: Sink) -> Iterator[Sink]:
        """Yield a sink that forwards outcomes to `sink` and records them. Give the `with` block a span."""
        call = counted.call
        with self._span("job" if call.facts.of_job else "call", None) as span:
            try:
                yield _Observed(self, counted, sink, span)
            finally:
                if span.is_recording():
                    counts = counted.counts
                    span.set_attributes(_model(self.labels.of_config(counted.config())))
                    for name in ("done", "failed", "requests", "cached", "cost"):
                        if (value := getattr(counts, name)) is not None:
                            span.set_attribute(f"promptmill.{_SPAN_NAMES.get(name, name)}", value)

    @contextlib.contextmanager
    def tool_call(self, tool: str | None, carrier: Mapping[str, str]) -> Iterator[Callable[[str], None]]:
        """Give the `with` block a span for a tool call, with the client's span in `carrier` as parent.

        Yields a function that records the error code of a failed call.
        """
        from opentelemetry.trace import SpanKind

        with self._span(f"tools/call {tool}" if tool else "tools/call", _context(carrier), SpanKind.SERVER) as span:
            span.set_attributes({"mcp.method.name": "tools/call", _OPERATION: "execute_tool"})
            if tool:
                span.set_attribute("gen_ai.tool.name", tool)
            yield lambda code: _fail(span, code)

    @contextlib.contextmanager
    def _span(self, name: str, context: Context | None, kind: Any = None) -> Iterator[Span]:
        """Give the `with` block a span. It records the code of an exception, but never the message."""
        from opentelemetry.trace import SpanKind

        with self.tracer.start_as_current_span(
            name, context, kind or SpanKind.INTERNAL, record_exception=False, set_status_on_exception=False
        ) as span:
            try:
                yield span
            except asyncio.CancelledError:
                _fail(span, "cancelled")
                raise
            except Exception as error:
                code = getattr(error, "code", None)  # only promptmill's errors, and those made from them, have a code
                _fail(span, str(code if isinstance(code, Code) else Code.INTERNAL))
                raise


class _Observed(Sink):
    """Forwards outcomes, and records all except copied answers, which are no operations of a model."""

    def __init__(self, telemetry: Telemetry, counted: Counted, sink: Sink, span: Span) -> None:
        from opentelemetry.trace import set_span_in_context

        self._telemetry, self._counted, self._sink = telemetry, counted, sink
        self._context = set_span_in_context(span)
        self._spans = MOST_ROWS if span.is_recording() else 0
        self._config: ModelConfig | None = None
        self._model: dict[str, str] = {}

    def put(self, key: int, outcome: Outcome) -> Awaitable[None] | None:
        """Record and forward an outcome."""
        taken = self._sink.put(key, outcome)
        if outcome.latency_s > 0.0:
            self._note(outcome, time.time_ns())
        return taken

    def _note(self, outcome: Outcome, now_ns: int) -> None:
        usage, telemetry = outcome.usage, self._telemetry
        if (config := self._counted.config()) is not self._config:  # a model may be chosen during the call
            self._config = config
            self._model = {_OPERATION: "chat"} | _model(telemetry.labels.of_config(config))
            kinds = ({**self._model, "gen_ai.token.type": kind} for kind in ("input", "output"))
            self._input, self._output = (telemetry.tokens[tuple(kind.items())] for kind in kinds)
        if usage.prompt_tokens:
            self._input.add(usage.prompt_tokens)
        if usage.completion_tokens:
            self._output.add(usage.completion_tokens)
        if self._spans:
            self._spans -= 1
            self._add_span(outcome, now_ns)

    def _add_span(self, outcome: Outcome, now_ns: int) -> None:
        from opentelemetry.trace import SpanKind

        attributes = self._model
        name = f"chat {attributes[_MODEL]}"
        began_ns = now_ns - int(outcome.latency_s * 1e9)
        span = self._telemetry.tracer.start_span(name, self._context, SpanKind.CLIENT, attributes, start_time=began_ns)
        usage = outcome.usage
        counts = {
            "gen_ai.usage.input_tokens": usage.prompt_tokens,
            "gen_ai.usage.output_tokens": usage.completion_tokens,
            "gen_ai.usage.cache_read.input_tokens": usage.cached_tokens,
            "gen_ai.usage.cache_creation.input_tokens": usage.written_tokens,
            "gen_ai.usage.reasoning.output_tokens": usage.reasoning_tokens,
        }
        span.set_attributes({name: count for name, count in counts.items() if count})
        span.set_attribute("promptmill.attempts", outcome.attempts)
        if outcome.cost is not None:
            span.set_attribute("promptmill.cost", outcome.cost)
        if isinstance(outcome, Completion):
            if outcome.finish_reason in _FINISHED:  # only known words, because the endpoint may send any text
                span.set_attribute("gen_ai.response.finish_reasons", [outcome.finish_reason])
        else:
            _fail(span, str(outcome.error.code))
        span.end(now_ns)


def _point(key: _Key, values: Histogram, since_ns: int, now_ns: int) -> HistogramDataPoint:
    from opentelemetry.sdk.metrics.export import HistogramDataPoint

    count, extremes = sum(values.counts), (math.inf, -math.inf)  # the values that the SDK uses if none are recorded
    return HistogramDataPoint(
        dict(key), since_ns, now_ns, count, values.total, [*values.counts], values.bounds, *extremes
    )


def _model(labels: Labels) -> dict[str, str]:
    """Return the attributes of a model, with the provider's name from the conventions."""
    provider, model = labels
    return {_PROVIDER: _PROVIDERS.get(provider, provider), _MODEL: model}


def _key(labels: Labels | None, **more: str) -> _Key:
    """Return the attributes of a model, with additional attributes that are not empty."""
    given = _model(labels) if labels is not None else {}
    return tuple((given | {name: value for name, value in more.items() if value}).items())


def _name(family: str, *, of_job: bool) -> str:
    """Return the metric name of a family: jobs have runs and rows, tools have calls and items."""
    name = family.removesuffix("_total")
    return (
        f"promptmill.job.{name.replace('calls', 'runs').replace('items', 'rows')}" if of_job else f"promptmill.{name}"
    )


def _interval_s(environ: Mapping[str, str]) -> float:
    """Return the interval between two exports of metrics, in seconds."""
    try:
        given = float(environ["OTEL_METRIC_EXPORT_INTERVAL"]) / 1000
    except (KeyError, ValueError):
        return _INTERVAL_S
    return given if 0 < given < float("inf") else _INTERVAL_S


def _fail(span: Span, code: str) -> None:
    from opentelemetry.trace import StatusCode

    span.set_attribute(_ERROR, code)
    span.set_status(StatusCode.ERROR)


def _resource() -> Any:
    """Return the name, version and id of this process. The standard variables may override them."""
    import uuid

    from opentelemetry.sdk.resources import OTELResourceDetector, Resource

    ours = {"service.name": "promptmill", "service.version": __version__, "service.instance.id": str(uuid.uuid4())}
    return Resource.create(ours).merge(OTELResourceDetector().detect())
