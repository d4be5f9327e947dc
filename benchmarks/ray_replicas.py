"""Replicas on Ray: what one costs, what two give, and how many rows a driver hands out to a hundred.

The first two start a cluster on this machine; the third needs no Ray: what goes to its replicas is pickled both ways.
"""

from __future__ import annotations

import asyncio
import os
import pickle
import time
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.field import Field
from benchmarks.measure import Row, every_core, interleaved, ratio
from promptmill.backends import registry
from promptmill.backends.protocol import Backend, Call, Completion, Facts, Outcome, Source, Usage
from promptmill.cluster.remote import RemoteBackend, ReplicaReport
from promptmill.cluster.replicas import Replicas
from promptmill.config.configuration import Configuration
from promptmill.core.errors import PromptmillError
from promptmill.core.request import Conversation, Message, Request, Sampling
from promptmill.features.ray.ray_cluster import RayCluster
from promptmill.service.driver import Driver

ROWS, HF_ROWS, HANDED_OUT = 4_000, 128, 100_000


class Rows(Source):
    """So many prompts as a source, and the sink that counts their answers."""

    def __init__(self, count: int, max_tokens: int | None = None) -> None:
        self._left, self.answered = list(range(count)), 0
        self._sampling = Sampling(max_tokens=max_tokens)

    async def take(self, n: int) -> list[Request]:
        """Return up to `n` requests."""
        keys, self._left = self._left[:n], self._left[n:]
        ask = "What is the capital of France?"
        return [Request(key, Conversation((Message("user", f"{key}: {ask}"),)), self._sampling) for key in keys]

    async def put(self, key: int, outcome: Outcome) -> None:
        """Count an answer."""
        del key
        assert isinstance(outcome, Completion), outcome
        self.answered += 1


async def _seconds(backend: Backend, count: int, max_tokens: int | None = None) -> float:
    rows, call, began = Rows(count, max_tokens), Call(Facts(total=count)), time.perf_counter()
    share = backend.enter(call)
    try:
        await Driver(rows, rows, call).run(backend.answer, share)
    finally:
        await backend.leave(call)
    assert rows.answered == count
    return time.perf_counter() - began


async def _loaded(create: Callable[[Any], Any], configuration: Configuration) -> Backend:
    backend: Backend = await create(configuration.config)
    await backend.load(lambda _: None)
    return backend


async def one(around: Field, pairs: int) -> list[Row]:
    """Rows a second of one replica over those without Ray, at an endpoint that takes 50 ms, 64 at a time."""
    block = {"base_url": around.slow, "model_name": "bench", "api_key": "x", "concurrency": 64, "num_workers": 1}
    configuration = Configuration({"backend": "openai", "backend_configs": {"openai": block}})
    bare = await _loaded(registry.create, configuration)
    on_ray = await _loaded(RayCluster(address="local").create, configuration)
    try:
        await _seconds(on_ray, ROWS), await _seconds(bare, ROWS)
        found = await interleaved(pairs, bare=lambda: _seconds(bare, ROWS), on_ray=lambda: _seconds(on_ray, ROWS))
    finally:
        await on_ray.aclose()
        await bare.aclose()
    value, spread = ratio(found["bare"], found["on_ray"])
    rates = [ROWS / sorted(found[name])[pairs // 2] for name in ("on_ray", "bare")]
    detail = f"{rates[0]:,.0f} / {rates[1]:,.0f} rows/s"
    return [Row("ray_one", "one replica on Ray over none", value, 0.9, ">=", spread=spread, detail=detail, raw=found)]


async def two(around: Field, pairs: int) -> list[Row]:
    """Rows a second of two replicas over one, of a model on the CPU, each on one core."""
    block = {"model_name_or_path": "smollm2-135m-instruct"}
    configuration = Configuration({"backend": "hf", "backend_configs": {"hf": block}})
    found: dict[str, list[float]] = {}
    for count in (1, 2):
        with every_core(around.outer):  # the cluster's processes may use what this one may
            backend = await _loaded(RayCluster(address="local", replicas=count).create, configuration)
        try:
            assert isinstance(backend, Replicas)
            while len(backend.ready) < count:  # `load` waits for the first
                await asyncio.sleep(0.05)
            await _seconds(backend, HF_ROWS, 2)
            found[f"{count}"] = [await _seconds(backend, HF_ROWS, 16) for _ in range(pairs)]
        finally:
            await backend.aclose()
    value, spread = ratio(found["1"], found["2"])
    rates = [HF_ROWS / sorted(found[name])[pairs // 2] for name in ("2", "1")]
    detail = f"{rates[0]:.1f} / {rates[1]:.1f} rows/s on {os.cpu_count()} cores"
    return [Row("ray_two", "two replicas over one", value, 1.7, ">=", spread=spread, detail=detail, raw=found)]


class _Simulated:
    """A link to a replica that answers at once, sixty-four at a time."""

    def __init__(self) -> None:
        self._reports: asyncio.Queue[bytes] = asyncio.Queue()
        self._reports.put_nowait(pickle.dumps(ReplicaReport([], 64)))

    async def call(self, method: str, *arguments: Any) -> Any:
        """Answer what is submitted, and return the next answers."""
        if method == "report":
            return pickle.loads(await self._reports.get())
        if method == "submit":
            (orders,) = pickle.loads(pickle.dumps(arguments))
            answers: list[tuple[int, Outcome | PromptmillError]] = [
                (request.key, Completion("Paris", "stop", Usage(20, 2), latency_s=0.05)) for request in orders.requests
            ]
            self._reports.put_nowait(pickle.dumps(ReplicaReport(answers, 64)))
        return None

    def kill(self, *, again: bool) -> None:
        """Nothing to end."""


async def driver(around: Field, pairs: int) -> list[Row]:
    """Rows that the driver hands to a hundred replicas and hears of, a second."""
    del around

    async def connect() -> Sequence[RemoteBackend]:
        return [RemoteBackend(_Simulated(), ()) for _ in range(100)]

    rates = []
    for _ in range(pairs):
        backend = Replicas(connect)
        await backend.load(lambda _: None)
        rates.append(HANDED_OUT / await _seconds(backend, HANDED_OUT))
        await backend.aclose()
    value = sorted(rates)[pairs // 2]
    return [Row("ray_driver", "handed out to 100 replicas that answer at once", value, 10_000, ">=", " rows/s")]
