"""The hf engine beside transformers' own generate in padded batches of 8, on prompts and answers of mixed length.

    .venv/bin/python benchmarks/hf_batching.py [--pairs 5] [--prompts 64]

Both compute the same tokens on the same model in the same number format with the same threads; only tokens that were
asked for count. Rounds are interleaved; printed is the ratio of medians with the quartiles of the ratios pair by pair.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import statistics
import time
from typing import Any

from promptmill.backends.engines.host import EngineHost, create
from promptmill.backends.protocol import Request, Scope
from promptmill.config import Configuration
from promptmill.conversation import conversation_from_prompt
from promptmill.outcome import Completion, Outcome
from promptmill.sampling import Sampling

_MODEL = "smollm2-135m-instruct"
_BATCH = 8


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

    def __init__(self, dtype: str) -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        from promptmill import embedded
        from promptmill.backends.engines import machine

        if dtype == "auto":
            dtype = "bfloat16" if machine.has_native_bfloat16(torch) else "float32"
        torch.set_num_threads(machine.cores())
        folder = embedded.model_folder(print)
        self._tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
        self._model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()

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


async def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--dtype", default="auto")
    arguments = parser.parse_args()
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # as the engine has it, before torch is imported here
    work = workload(arguments.prompts)
    block = {"model_name_or_path": _MODEL, "dtype": arguments.dtype, "batch_size": _BATCH}
    host = create(Configuration({"backend": "hf", "backend_configs": {"hf": block}}).plan)
    await host.load(print)
    theirs = Theirs(arguments.dtype)
    warm = workload(4)
    await ours(host, warm)
    theirs.run(warm)
    found: dict[str, list[float]] = {"ours": [], "theirs": []}
    for pair in range(arguments.pairs):
        for name in ("ours", "theirs") if pair % 2 == 0 else ("theirs", "ours"):
            found[name].append(await ours(host, work) if name == "ours" else theirs.run(work))
        print(f"pair {pair + 1}: {found['ours'][-1]:.1f} / {found['theirs'][-1]:.1f} tokens/s", flush=True)
    await host.aclose()
    each = [mine / other for mine, other in zip(found["ours"], found["theirs"], strict=True)]
    low, _, high = statistics.quantiles(each, n=4, method="inclusive") if len(each) > 1 else (each[0],) * 3
    mine, other = statistics.median(found["ours"]), statistics.median(found["theirs"])
    print(
        f"hf engine over padded generate: {mine / other:.2f} x ({low:.2f} … {high:.2f}); {mine:.1f} / {other:.1f} tok/s"
    )


if __name__ == "__main__":
    asyncio.run(main())
