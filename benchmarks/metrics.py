"""The cost of metrics per request: a call with them and with a scrape every second, over the same without."""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path

from benchmarks.client import OUT
from benchmarks.field import Field
from benchmarks.measure import Row, interleaved, own_cpu_s, pin
from promptmill.backends.protocol import Call, Completion, Usage
from promptmill.config.loading import Configuration
from promptmill.core.request import Conversation, Message
from promptmill.http.metrics import Metrics
from promptmill.jobs.store.folder import JobFolders
from promptmill.service.service import Service

_ITEMS = 10_000
_COUNTS = 20_000
_MOST_PAIRS = 100
_SCRAPES = 200
_TIMED = Completion("Paris", usage=Usage(12, 3), latency_s=0.05)
_UNTIMED = Completion("Paris", usage=Usage(12, 3))  # metrics alone count durations


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
        assert (call.done, call.failed) == (items, 0)
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
    return [Row("metrics", what, middle, 1.01, spread=(low, high), detail=detail, raw=raw)]
