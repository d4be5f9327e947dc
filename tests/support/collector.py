"""A loopback collector of OpenTelemetry over HTTP, which decodes what arrives.

with Collector() as collector:          # a thread with a server; `environ` makes a process export to it
    ...
    (span,) = collector.spans("tools/call generate")
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

KEY = "collector-key-0123456789"


@dataclass(frozen=True)
class Span:
    """A span as it arrived; ids in hex."""

    name: str
    trace: str
    id: str
    parent: str
    kind: int
    attributes: dict[str, Any]
    failed: bool
    seconds: float


class Collector:
    """The server. `raw` is all that arrived, `authorized` the values of the header that holds the key."""

    def __init__(self) -> None:
        self.raw: list[bytes] = []
        self.authorized: set[str | None] = set()
        self._traces: list[Any] = []
        self._metrics: list[Any] = []
        self.hangs = threading.Event()
        """While it is set, no request is answered."""
        self._leave = threading.Event()
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                while collector.hangs.is_set() and not collector._leave.wait(0.01):
                    pass
                collector._take(self.path, body, self.headers.get("X-Collector-Key"))
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Collector:
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._leave.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def environ(self) -> dict[str, str]:
        """The variables of a process that exports here, as soon as it can."""
        return {
            "OTEL_EXPORTER_OTLP_ENDPOINT": self.url,
            "OTEL_EXPORTER_OTLP_HEADERS": f"x-collector-key={KEY}",
            "OTEL_BSP_SCHEDULE_DELAY": "20",
            "OTEL_METRIC_EXPORT_INTERVAL": "50",
        }

    def _take(self, path: str, body: bytes, key: str | None) -> None:
        from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
        from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

        self.raw.append(body)
        self.authorized.add(key)
        if path == "/v1/traces":
            self._traces.append(ExportTraceServiceRequest.FromString(body))
        else:
            assert path == "/v1/metrics", path
            self._metrics.append(ExportMetricsServiceRequest.FromString(body))

    def resources(self) -> list[dict[str, Any]]:
        """Return who exported, each once."""
        found = [one.resource for request in list(self._traces) for one in request.resource_spans]
        found += [one.resource for request in list(self._metrics) for one in request.resource_metrics]
        distinct = {resource.SerializeToString(): _attributes(resource.attributes) for resource in found}
        return list(distinct.values())

    def spans(self, name: str | None = None) -> list[Span]:
        """Return the spans of that name, or all."""
        return [
            Span(
                span.name,
                span.trace_id.hex(),
                span.span_id.hex(),
                span.parent_span_id.hex(),
                span.kind,
                _attributes(span.attributes),
                span.status.code == 2,
                (span.end_time_unix_nano - span.start_time_unix_nano) / 1e9,
            )
            for request in list(self._traces)
            for resource in request.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
            if name in {None, span.name}
        ]

    def metrics(self) -> dict[str, Any]:
        """Return the metrics by name, each as it arrived last."""
        return {
            metric.name: metric
            for request in list(self._metrics)
            for resource in request.resource_metrics
            for scope in resource.scope_metrics
            for metric in scope.metrics
        }

    def points(self, name: str) -> list[tuple[dict[str, Any], Any]]:
        """Return the attributes and the data of each point of a metric, as they arrived last."""
        metric = self.metrics().get(name)
        if metric is None:
            return []
        points = getattr(metric, metric.WhichOneof("data")).data_points
        return [(_attributes(point.attributes), point) for point in points]


def _attributes(pairs: Any) -> dict[str, Any]:
    return {pair.key: _value(pair.value) for pair in pairs}


def _value(value: Any) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_value(inner) for inner in value.array_value.values]
    return getattr(value, kind)
