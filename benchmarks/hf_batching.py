"""The hf engine beside transformers' own generate in padded batches of 8, on prompts and answers of mixed length.

Both compute the same tokens on the same model in the same number format with the same threads; only tokens that were
asked for count.
"""

from __future__ import annotations

import os
import random
import statistics
import time
from typing import Any

from benchmarks.field import Field
from benchmarks.measure import Row, every_core, interleaved, ratio
from promptmill.backends.engines.host import EngineHost, create
from promptmill.backends.protocol import Request, Scope
from promptmill.config import Configuration
from promptmill.conversation import conversation_from_prompt
from promptmill.outcome import Completion, Outcome
from promptmill.sampling import Sampling

_MODEL = "smollm2-135m-instruct"
_BATCH = 8
_PROMPTS = 64


def _ignore(text: str) -> None:
    del text


class _Source:
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
    sink = _Sink()
    started = time.perf_counter()
    await host.run(_Source(requests), sink, Scope())
    assert sink.tokens == sum(tokens for _, tokens in work)
    return sink.tokens / (time.perf_counter() - started)


class Theirs:
    """transformers' generate, batch by batch in the order of arrival; a batch takes as long as its longest answer."""

    def __init__(self) -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        from promptmill import embedded
        from promptmill.backends.engines import machine

        dtype = torch.bfloat16 if machine.has_native_bfloat16(torch) else torch.float32
        torch.set_num_threads(machine.cores())
        folder = embedded.model_folder(print)
        self._tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
        self._model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()

    def run(self, work: list[tuple[str, int]]) -> float:
        """Return tokens per second that were asked for."""
        started = time.perf_counter()
        for first in range(0, len(work), _BATCH):
            batch = work[first : first + _BATCH]
            longest = max(tokens for _, tokens in batch)
            texts = [self._text(text) for text, _ in batch]
            inputs: Any = self._tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False)
            made = self._model.generate(**inputs, do_sample=False, max_new_tokens=longest, min_new_tokens=longest)
            for row, (_, tokens) in enumerate(batch):
                self._tokenizer.decode(made[row, inputs["input_ids"].shape[1] :][:tokens], skip_special_tokens=True)
        return sum(tokens for _, tokens in work) / (time.perf_counter() - started)

    def _text(self, prompt: str) -> str:
        turns = [{"role": "user", "content": prompt}]
        text: str = self._tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        return text


async def batching(field: Field, pairs: int) -> list[Row]:
    """Not pinned: both use every core, as they do for a user."""
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # as the engine has it, before torch is imported here
    os.environ.setdefault("GOMP_SPINCOUNT", "400")
    with every_core(field.outer):
        return await _batching(pairs)


async def _batching(pairs: int) -> list[Row]:
    work, warm = workload(_PROMPTS), workload(4)
    block = {"model_name_or_path": _MODEL, "batch_size": _BATCH}
    host = create(Configuration({"backend": "hf", "backend_configs": {"hf": block}}).plan)
    try:
        await host.load(_ignore)
        theirs = Theirs()
        await ours(host, warm)
        theirs.run(warm)

        async def one_by_one() -> float:
            return theirs.run(work)

        found = await interleaved(pairs, ours=lambda: ours(host, work), theirs=one_by_one)
    finally:
        await host.aclose()
    value, spread = ratio(found["ours"], found["theirs"])
    detail = f"{statistics.median(found['ours']):.1f} / {statistics.median(found['theirs']):.1f} tokens/s"
    what = f"{_PROMPTS} prompts of mixed length over padded batches of {_BATCH}, tokens/s"
    return [Row("hf", what, value, 1.8, ">=", spread=spread, detail=detail)]
