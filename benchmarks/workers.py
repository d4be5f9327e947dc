"""The worker fan-out: what a second worker brings, what a worker costs."""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import psutil
from PIL import Image

from benchmarks.field import Field
from benchmarks.measure import Row, interleaved, ratio
from promptmill.backends.protocol import Call, Completion, Facts
from promptmill.cluster.fan_out import LargeCall
from promptmill.cluster.remote import Quota
from promptmill.config.configuration import Configuration
from promptmill.core.request import Conversation, Message, Request, Sampling
from promptmill.service.driver import Driver
from promptmill.service.list_call import ListSink, ListSource

_IMAGES = 160
_CPU_IMAGES = 1_000  # a worker that never saw an image imports Pillow first, 50 ms
_PROMPTS = 300_000
_CPU_PROMPTS = 40_000


class _Taken:
    """What one run took: `seconds`, CPU of its workers and of this process, and growth of each worker in bytes."""

    def __init__(self, seconds: float, cpu_s: float, own_s: float, growth: list[int]) -> None:
        self.seconds = seconds
        self.cpu_s, self.own_s = cpu_s, own_s
        self.growth = growth


async def _run(field: Field, workers: int, items: Sequence[Conversation], cores: Sequence[int] = ()) -> _Taken:
    block = {
        "model_name": "bench",
        "base_url": field.fast,
        "api_key": "x",
        "concurrency": 64 * workers,
    }
    config = Configuration({"backend": "openai", "backend_configs": {"openai": block}}).config
    call = Call(Facts(total=len(items)))
    # made here, because the backend makes none for one worker
    large = LargeCall(config, workers)
    share = large.replicas.enter(call)
    try:
        large.start(Quota(64 * workers))
        first = await large.replicas.answer(Request(0, items[0], Sampling()), call)  # then the others start
        while len(large.replicas.ready) < workers:
            await asyncio.sleep(0.01)
        processes = [child for child in psutil.Process().children() if "cluster.worker" in " ".join(child.cmdline())]
        for process, core in zip(processes, cores, strict=False):
            process.cpu_affinity([core])
        before = [process.memory_full_info().uss for process in processes]
        sink, cpu, own, began = ListSink(len(items)), _cpu(processes), time.process_time(), time.perf_counter()
        await Driver(ListSource(items, "", Sampling(), {}), sink, call).run(large.replicas.answer, share)
        seconds, cpu, own = time.perf_counter() - began, _cpu(processes) - cpu, time.process_time() - own
        growth = [process.memory_full_info().uss - bare for process, bare in zip(processes, before, strict=True)]
    finally:
        await large.end(call)
    assert all(isinstance(outcome, Completion) for outcome in (first, *sink.result(None)))
    return _Taken(seconds, cpu, own, growth)


def _cpu(processes: Sequence[psutil.Process]) -> float:
    return sum(sum(process.cpu_times()[:2]) for process in processes)


def _texts(count: int) -> list[Conversation]:
    return [Conversation((Message("user", f"Question {i}: what is the capital of France?"),)) for i in range(count)]


async def workers(field: Field, pairs: int) -> list[Row]:
    """Two workers over one, and CPU per item, on images that must be rewritten; CPU on short prompts; memory."""
    with _images() as images:
        rows = [await _second_worker(field, pairs, images[:_IMAGES]), await _cpu_per_item(field, pairs, images)]
    rows.append(await _cpu_per_item(field, pairs, _texts(_CPU_PROMPTS)))
    own = [(await _run(field, 2, _texts(_CPU_PROMPTS))).own_s / _CPU_PROMPTS * 1e6 for _ in range(pairs)]
    what = f"CPU of this process per item, {_CPU_PROMPTS:,} short prompts, 2 workers"
    rows.append(Row("workers", what, statistics.median(own), unit="µs", raw={"us": own}))
    grown = (await _run(field, 8, _texts(_PROMPTS))).growth
    what = f"private memory of a worker beyond a bare one, {_PROMPTS:,} prompts, 8 workers"
    detail = f"least {min(grown) / 2**20:.1f} MiB"
    return [*rows, Row("workers", what, max(grown) / 2**20, 10, unit="MiB", detail=detail, raw={"bytes": grown})]


@contextmanager
def _images() -> Iterator[list[Conversation]]:
    """Give prompts with a 16-bit image each, under a file name of its own, or the first reading would serve all."""
    chance = np.random.default_rng(3)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "deep.tiff"
        Image.fromarray(chance.integers(0, 65_536, (480, 480), np.uint16)).save(path)
        names = [Path(folder) / f"{i}.tiff" for i in range(_CPU_IMAGES)]
        for name in names:
            name.hardlink_to(path)
        yield [Conversation((Message("user", "What is it?"),)).with_images([str(name)], None) for name in names]


async def _second_worker(field: Field, pairs: int, items: Sequence[Conversation]) -> Row:
    async def rate(count: int) -> float:
        return len(items) / (await _run(field, count, items, cores=(0, 1))).seconds

    await rate(1)
    found = await interleaved(pairs, two=lambda: rate(2), one=lambda: rate(1))
    value, spread = ratio(found["two"], found["one"])
    detail = f"{statistics.median(found['two']):.0f} / {statistics.median(found['one']):.0f} requests/s"
    what = "2 workers / 1, each on one core, 16-bit images"
    return Row("workers", what, value, 1.6, ">=", spread=spread, detail=detail, raw=found)


async def _cpu_per_item(field: Field, pairs: int, items: Sequence[Conversation]) -> Row:
    async def cpu(count: int) -> float:
        return (await _run(field, count, items)).cpu_s / len(items) * 1e6

    found = await interleaved(pairs, eight=lambda: cpu(8), one=lambda: cpu(1))
    value, spread = ratio(found["eight"], found["one"])
    detail = f"{statistics.median(found['eight']):,.0f} / {statistics.median(found['one']):,.0f} µs"
    kind = "16-bit images" if items[0].images else "short prompts"
    what = f"CPU of the workers per item, 8 / 1, {len(items):,} {kind}"
    return Row("workers", what, value, 1.2, spread=spread, detail=detail, raw=found)
