"""The hf engine beside transformers' own generate in padded batches of 8, on prompts and answers of mixed length.

Both compute the same tokens on the same model in the same number format with as many threads; only tokens that were
asked for count.
"""

from __future__ import annotations

import random
import statistics
import time

from benchmarks.alone import alone
from benchmarks.field import Field
from benchmarks.measure import Row, every_core, interleaved, ratio
from promptmill.backends.engines.host import EngineHost, create
from promptmill.backends.protocol import Call, Completion, Outcome, Source
from promptmill.config.configuration import Configuration
from promptmill.core.request import Request, Sampling, conversation_from_prompt
from promptmill.service.driver import Driver

_MODEL = "smollm2-135m-instruct"
BATCH = 8
_PROMPTS = 64
_WARM = 4


def _ignore(text: str) -> None:
    del text


class _Source(Source):
    def __init__(self, requests: list[Request]) -> None:
        self._requests = requests

    async def take(self, n: int) -> list[Request]:
        taken, self._requests = self._requests[:n], self._requests[n:]
        return taken


class _Sink:
    def __init__(self) -> None:
        self.tokens = 0

    async def put(self, key: int, outcome: Outcome) -> None:
        assert isinstance(outcome, Completion), (key, outcome)
        self.tokens += outcome.usage.completion_tokens


def workload(count: int) -> list[tuple[str, int]]:
    """Return `count` prompts of 5 to 200 words and how many tokens each answer takes, 8 to 256; always the same."""
    chance = random.Random(0)
    words = ["the", "of", "and", "to", "in", "is", "that", "for", "it", "was", "on", "are", "as", "with", "they", "at"]
    sizes = [(int(5 * 40 ** chance.random()), chance.randint(8, 256)) for _ in range(count)]
    return [(" ".join(chance.choices(words, k=size)), tokens) for size, tokens in sizes]


async def ours(host: EngineHost, work: list[tuple[str, int]]) -> float:
    """Return tokens per second of the hf engine."""
    requests = [
        Request(i, conversation_from_prompt(text, ""), Sampling(temperature=0, max_tokens=tokens), {"ignore_eos": True})
        for i, (text, tokens) in enumerate(work)
    ]
    sink, call = _Sink(), Call()
    started = time.perf_counter()
    share = host.enter(call)
    try:
        await Driver(_Source(requests), sink, call).run(host.answer, share)
    finally:
        await host.leave(call)
    assert sink.tokens == sum(tokens for _, tokens in work)
    return sink.tokens / (time.perf_counter() - started)


async def batching(field: Field, pairs: int) -> list[Row]:
    """Not pinned: both use every core, as they do for a user. About seven minutes a pair."""
    with every_core(field.outer):
        return await _batching(pairs)


async def _batching(pairs: int) -> list[Row]:
    work = workload(_PROMPTS)
    block = {"model_name_or_path": _MODEL, "batch_size": BATCH}
    host = create(Configuration({"backend": "hf", "backend_configs": {"hf": block}}).config)
    try:
        await host.load(_ignore)
        async with alone("benchmarks.hf_contestant") as other:
            await ours(host, workload(_WARM)), await other.tokens_per_s(_WARM)
            found = await interleaved(pairs, ours=lambda: ours(host, work), theirs=lambda: other.tokens_per_s(_PROMPTS))
    finally:
        await host.aclose()
    value, spread = ratio(found["ours"], found["theirs"])
    detail = f"{statistics.median(found['ours']):.1f} / {statistics.median(found['theirs']):.1f} tokens/s"
    what = f"{_PROMPTS} prompts of mixed length over padded batches of {BATCH}, tokens/s"
    return [Row("hf", what, value, 1.8, ">=", spread=spread, detail=detail, raw=found)]
