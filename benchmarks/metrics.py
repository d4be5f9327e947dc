"""The cost of metrics per request: a call with them and with a scrape every second, over the same without.

And that of their export to OpenTelemetry, with and without spans; a batch of spans is encoded as for a collector.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from benchmarks.client import OUT
from benchmarks.field import Field
from benchmarks.measure import Row, interleaved, own_cpu_s, pin
from promptmill.backends.protocol import Call, Completion, Outcome, Sink, Usage
from promptmill.config.configuration import Configuration
from promptmill.core.bounds import MOST_ROWS
from promptmill.core.request import Conversation, Message
from promptmill.features.telemetry.telemetry import Telemetry
from promptmill.http.prometheus import Metrics
from promptmill.jobs.store.index import JobFolders
from promptmill.service.service import Counted, Service

_ITEMS = 10_000
_COUNTS = 20_000
_MOST_PAIRS = 100
_SCRAPES = 200
_REPEATS = 20
_LIMIT_S = 10.0
_TIMED = Completion("Paris", usage=Usage(12, 3), latency_s=0.05)
_UNTIMED = Completion("Paris", usage=Usage(12, 3))  # metrics alone count durations


class _Encoding(SpanExporter):
    """Encodes spans and sends nothing."""

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        encode_spans(spans).SerializeToString()
        return SpanExportResult.SUCCESS


class _Ignoring(Sink):
    def put(self, key: int, outcome: Outcome) -> None:
        pass


async def cost(around: Field, pairs: int, items: int = _ITEMS) -> list[Row]:
    """CPU with metrics over CPU without, at an upstream that answers at once: our core is the limit.

    The difference is far below the noise of whole calls, so it is measured alone, and related to a whole call.
    """
    block = {"base_url": around.fast, "model_name": "bench", "api_key": "x", "concurrency": 64, "num_workers": 1}
    service = Service(Configuration({"backend": "openai", "backend_configs": {"openai": block}}))
    conversations = [Conversation((Message("user", f"Question {number}"),)) for number in range(items)]
    pin(around.inner)

    async def run() -> float:
        began, call = own_cpu_s(), Call()
        await service.generate(conversations, call)
        assert (call.counts.done, call.counts.failed) == (items, 0)
        return (own_cpu_s() - began) / items

    async def counted(outcome: Completion) -> float:
        call = Call()
        began = time.thread_time()
        for _ in range(_COUNTS):
            call.count(outcome)
        return (time.thread_time() - began) / _COUNTS

    try:
        with tempfile.TemporaryDirectory(dir=OUT) as folder:
            metrics = Metrics(service, JobFolders(Path(folder)))
            whole = await interleaved(pairs, off=run)
            found = await interleaved(
                max(pairs, _MOST_PAIRS), on=lambda: counted(_TIMED), off=lambda: counted(_UNTIMED)
            )
            began = own_cpu_s()
            for _ in range(_SCRAPES):
                await metrics.text()
            scrape_s = (own_cpu_s() - began) / _SCRAPES
            exported = [await _exported_s(service, spans=spans) for spans in (False, True)]
    finally:
        await service.aclose()
        pin(around.outer)
    request_s = statistics.median(whole["off"])
    more = [(on - off) / request_s for on, off in zip(found["on"], found["off"], strict=True)]
    low, middle, high = (1 + share + scrape_s for share in statistics.quantiles(more, n=4))
    detail = (
        f"{(middle - 1) * request_s * 1e6:.2f} of {request_s * 1e6:.0f} µs a request; a scrape {scrape_s * 1e3:.2f} ms"
    )
    raw = found | whole
    what = "CPU with metrics and a scrape every second over without"
    rows = [Row("metrics", what, middle, 1.01, spread=(low, high), detail=detail, raw=raw)]
    for name, limit, item_s in zip(("metrics", "metrics and spans"), (1.15, None), exported, strict=True):
        what = f"CPU with {name} for OpenTelemetry over without"
        detail = f"{item_s * 1e6:.1f} of {request_s * 1e6:.0f} µs a request"
        rows.append(Row("otel", what, 1 + item_s / request_s, limit, detail=detail))
    return rows


async def _exported_s(service: Service, *, spans: bool) -> float:
    """Return the CPU time of an item for export."""
    telemetry = Telemetry(service, {"trace": _Encoding()} if spans else {}, {})
    items = MOST_ROWS if spans else _COUNTS
    found = []
    for _ in range(_REPEATS):
        with telemetry.observe(Counted(Call(), lambda: service.config), _Ignoring()) as sink:
            began = own_cpu_s()
            for number in range(items):
                sink.put(number, _TIMED)
            if telemetry.processor is not None:
                telemetry.processor.force_flush()
            found.append((own_cpu_s() - began) / items)
    await telemetry.aclose(_LIMIT_S)
    return statistics.median(found)
