"""Engines on a CPU: hf with eight rows, hf as it comes, openvino; the same tokens on the same model."""

from __future__ import annotations

import contextlib
import functools
import statistics

from benchmarks.field import Field
from benchmarks.hf_batching import ours
from benchmarks.measure import Row, every_core, interleaved, ratio
from promptmill.backends.engines.host import create
from promptmill.config.configuration import Configuration

_MODEL = "smollm2-135m-instruct"
_PROMPTS, _TOKENS = 64, 64
_CONTESTANTS = {
    "hf_of_8": ("hf", {"batch_size": 8}),
    "hf": ("hf", {}),
    "openvino": ("openvino", {}),
}


async def cpu_engines(field: Field, pairs: int) -> list[Row]:
    """Not pinned: each uses every core, as it does for a user; one computes at a time."""
    work = [(f"Tell me what you know about the number {index}.", _TOKENS) for index in range(_PROMPTS)]
    with every_core(field.outer):
        async with contextlib.AsyncExitStack() as stack:
            runs = {}
            for name, (backend, block) in _CONTESTANTS.items():
                configs = {backend: {"model_name_or_path": _MODEL, **block}}
                host = create(Configuration({"backend": backend, "backend_configs": configs}).config)
                stack.push_async_callback(host.aclose)
                await host.load(lambda _: None)
                await ours(host, work[:4])
                runs[name] = functools.partial(ours, host, work)
            found = await interleaved(pairs, **runs)
    rows = []
    for mine, other, target in (("hf", "hf_of_8", 2.0), ("openvino", "hf_of_8", 3.0), ("openvino", "hf", None)):
        value, spread = ratio(found[mine], found[other])
        detail = f"{statistics.median(found[mine]):.1f} / {statistics.median(found[other]):.1f} tokens/s"
        what = f"{mine} over {other}, {_PROMPTS} x {_TOKENS} tokens"
        rows.append(Row("cpu_engines", what, value, target, ">=", spread=spread, detail=detail))
    return rows
