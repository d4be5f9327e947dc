"""Checks the engines on this machine's graphics card, and measures them; without a card it does the same on the CPU.

    scripts/gpu                        # in .venv
    scripts/gpu --python PYTHON        # in an environment that is there, with its own torch and transformers
    scripts/gpu --minutes 5            # no part begins later; 7 is the default
    scripts/gpu --cpu                  # on the CPU, with a tiny model and 8 prompts: shows that every part runs

For a tiny model with random weights, and for the embedded one; if its file is not here and cannot be fetched, for a
model with its layers and random weights:

* hf answers as `generate` of transformers does, prompt by prompt, at any size of the batch, in float32;
* tokens per second of hf as it comes (`batch_size` by the free memory), and of transformers' own continuous batching,
  with the same prompts and lengths, and with and without its start. hf is to reach 0.9 of it with its start. Beside
  them, `generate` in padded batches of 8, once, with a quarter of the prompts;
* on a card with 2 GiB left, hf answers all prompts, with `batch_size` by the free memory, and with one that is much too
  large for it;
* after `vllm_shutdown`, its memory on the card is free again;
* with vLLM installed, vLLM answers, and its memory is free afterwards.

Each part prints a line; the last lines are a table for docs/performance.md. It ends with 1 if a part failed.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import importlib.util
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

if "--cpu" in sys.argv:
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # read when torch is imported, here and in the engine's process
os.environ |= {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "TRANSFORMERS_VERBOSITY": "error"}

import byte_model
from benchmarks.hf_batching import BATCH, ours, workload
from promptmill.backends.engines import embedded_model, hardware
from promptmill.backends.engines.host import create
from promptmill.backends.protocol import Call, Completion
from promptmill.config.configuration import Configuration
from promptmill.core.errors import PromptmillError
from promptmill.core.request import Request, Sampling, conversation_from_prompt
from promptmill.service.service import Service

TEMPLATE = "{% for m in messages %}{{ m.content }}\n{% endfor %}"
QUESTIONS = ["Hi!", "What is the capital of France?", "Count from one to ten. " * 12, "Why is the sky blue? " * 40, "x"]
LONGEST, PAIRS = 48, 3
PROMPTS = {"cuda": 128, "cpu": 8}
WANTED = 0.9  # of the rate of transformers' own continuous batching
FREED_MIB = 64  # a driver's own memory comes and goes
LEFT = 2 << 30  # bytes; 300 prompts and answers of the embedded model take 4 GB
EMBEDDED = "SmolLM2-135M"
ITS_LAYERS: dict[str, Any] = {
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "head_dim": 64,
}


def ignore(text: str) -> None:
    """Take the progress of a load."""
    del text


def used_mib() -> int | None:
    """Return the used memory of all cards; None without `nvidia-smi`."""
    query = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    try:
        return sum(map(int, subprocess.run(query, capture_output=True, text=True, check=True).stdout.split()))
    except (OSError, ValueError, subprocess.CalledProcessError):
        return None


def configured(backend: str, model: str, **block: Any) -> Configuration:
    """Return the configuration of an engine."""
    return Configuration({"backend": backend, "backend_configs": {backend: {"model_name_or_path": model, **block}}})


async def answers(service: Service, *, most: int = LONGEST) -> list[str]:
    """Return the greedy answers to the questions."""
    sampling = Sampling(temperature=0, max_tokens=most)
    requests = [Request(at, conversation_from_prompt(text, ""), sampling) for at, text in enumerate(QUESTIONS)]
    outcomes = await service.generate(requests, Call())
    if failed := [outcome for outcome in outcomes if not isinstance(outcome, Completion)]:
        raise AssertionError(f"{len(failed)} answers failed: {failed[0]}")
    return [outcome.text for outcome in outcomes if isinstance(outcome, Completion)]


class Theirs:
    """The same model in transformers."""

    def __init__(self, folder: Path, dtype: Any) -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        torch.set_num_threads(hardware.cores())  # as hf does
        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder, padding_side="left")
        self.tokenizer.pad_token = self.tokenizer.pad_token or self.tokenizer.eos_token
        self.model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).to(self.device).eval()

    def ids(self, texts: list[str]) -> Any:
        """Return the tokens of the prompts, padded."""
        turns = [[{"role": "user", "content": text}] for text in texts]
        prompts = [
            self.tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True) for turn in turns
        ]
        return self.tokenizer(prompts, return_tensors="pt", padding=True, add_special_tokens=False).to(self.device)

    def answer(self, text: str) -> str:
        """Return the greedy answer to one prompt."""
        inputs = self.ids([text])
        made = self.model.generate(**inputs, do_sample=False, max_new_tokens=LONGEST)
        return str(self.tokenizer.decode(made[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))

    def padded(self, work: list[tuple[str, int]]) -> float:
        """Return the requested tokens per second of `generate` in padded batches."""
        began = time.perf_counter()
        for first in range(0, len(work), BATCH):
            batch = work[first : first + BATCH]
            longest = max(tokens for _, tokens in batch)
            inputs = self.ids([text for text, _ in batch])
            self.model.generate(**inputs, do_sample=False, max_new_tokens=longest, min_new_tokens=longest).cpu()
        return sum(tokens for _, tokens in work) / (time.perf_counter() - began)

    def continuous(self, work: list[tuple[str, int]]) -> tuple[float, float]:
        """Return the same of transformers' own continuous batching: with its start, and once more without it.

        The start takes the memory of its cache and, with flash attention, records CUDA graphs. `generate_batch` does both in each call.
        """
        import torch
        from transformers import ContinuousBatchingConfig, GenerationConfig

        prompts = [self.ids([text])["input_ids"][0].tolist() for text, _ in work]
        on_a_card = self.device == "cuda"  # its engine is in a process of its own, and needs memory, too
        sizes: dict[str, Any] = (
            {"max_memory_percent": 0.4} if on_a_card else {"num_blocks": 64, "max_batch_tokens": 512}
        )
        config = GenerationConfig(do_sample=False, max_new_tokens=256, eos_token_id=-1, pad_token_id=0)
        moments = [time.perf_counter()]
        with self.model.continuous_batching_context_manager(
            generation_config=config, continuous_batching_config=ContinuousBatchingConfig(**sizes)
        ) as manager:
            for _ in range(2):
                for prompt, (_, tokens) in zip(prompts, work, strict=True):
                    manager.add_request(prompt, max_new_tokens=tokens)
                made = 0
                while made < len(work):
                    if (result := manager.get_result(timeout=60)) is None or result.error is not None:
                        raise RuntimeError(f"transformers' own batching: {getattr(result, 'error', 'no answer')}")
                    made += result.is_finished()
                moments.append(time.perf_counter())
        del manager
        gc.collect()
        if on_a_card:
            torch.cuda.empty_cache()
        tokens = sum(tokens for _, tokens in work)
        return tokens / (moments[1] - moments[0]), tokens / (moments[2] - moments[1])


class Check:
    """The parts of the check: their results, and the time until which one may begin."""

    def __init__(self, minutes: float) -> None:
        self._until = time.monotonic() + 60 * minutes
        self.failed: list[str] = []
        self.table: list[tuple[str, str]] = []

    async def part(self, name: str, work: Callable[..., Awaitable[str]], *arguments: Any) -> None:
        """Run a part, if there is time for it; print its result."""
        if time.monotonic() > self._until:
            print(f"LEFT OUT  {name}: the time is up", flush=True)
            return
        began = time.monotonic()
        try:
            result = await work(*arguments)
        except Exception as error:  # noqa: BLE001 (the next part may still pass)
            self.failed.append(name)
            print(f"FAILED    {name}: {type(error).__name__}: {str(error)[:500]}", flush=True)
        else:
            print(f"ok        {name}: {result} ({time.monotonic() - began:.0f} s)", flush=True)


async def equal(folder: Path) -> str:
    """Compare the answers of hf with those of `generate`."""
    import torch

    theirs = Theirs(folder, torch.float32)
    expected = [theirs.answer(text) for text in QUESTIONS]
    del theirs
    for size in (1, 3, 8, None):
        service = Service(configured("hf", str(folder), dtype="float32", batch_size=size))
        try:
            got = await answers(service)
        finally:
            await service.aclose()
        if got != expected:
            raise AssertionError(f"batch_size {size}: {got} in place of {expected}")
    return f"{len(QUESTIONS)} answers equal at batch sizes 1, 3 and 8, and at that of the free memory"


async def speed(check: Check, name: str, folder: Path) -> str:
    """Measure tokens per second of hf and of transformers in pairs."""
    import torch

    block = {"dtype": "bfloat16" if torch.cuda.is_available() else "float32"}
    theirs = Theirs(folder, getattr(torch, block["dtype"]))
    work = workload(PROMPTS[theirs.device])
    host = create(configured("hf", str(folder), **block).config)
    ways = ("hf", "transformers' continuous batching", "the same without its start")
    rates: dict[str, list[float]] = {way: [] for way in ways}
    try:
        await host.load(ignore)
        await ours(host, work[: len(work) // 4])
        padded = theirs.padded(work[: len(work) // 4])
        for _ in range(PAIRS):
            for way, rate in zip(ways, (await ours(host, work), *theirs.continuous(work)), strict=True):
                rates[way].append(rate)
            print(
                f"          {name}: {' · '.join(f'{way} {rate[-1]:,.0f}' for way, rate in rates.items())}", flush=True
            )
    finally:
        await host.aclose()
    mine, started, warm = rates.values()
    reached, over_warm = (
        statistics.median(a / b for a, b in zip(mine, other, strict=True)) for other in (started, warm)
    )
    found = [f"{way} {statistics.median(rate):,.0f}" for way, rate in rates.items()]
    spread = " · ".join(f"{min(rate):,.0f} to {max(rate):,.0f}" for rate in rates.values())
    verdict = f"hf has {reached:.2f} of transformers' own, {over_warm:.2f} of it without its start"
    check.table.append(
        (f"{name}, {len(work)} prompts of mixed length, tokens/s", f"{' · '.join(found)} ({spread}); {verdict}")
    )
    if theirs.device == "cuda" and reached < WANTED:
        raise AssertionError(f"{verdict}; {WANTED} is wanted ({' · '.join(found)})")
    return f"{' · '.join(found)} · generate, padded {padded:,.0f}; {verdict}"


@contextlib.contextmanager
def little_memory() -> Iterator[None]:
    """Leave `LEFT` bytes of a card; nothing without one."""
    import torch

    taken = None
    if torch.cuda.is_available():
        taken = torch.empty(max(0, torch.cuda.mem_get_info()[0] - LEFT), dtype=torch.uint8, device="cuda")
    try:
        yield
    finally:
        del taken
        gc.collect()
        torch.cuda.empty_cache()


async def short_of_memory(folder: Path) -> str:
    """Let hf answer more than the rest of a card holds; `ours` checks that no token is missing."""
    import torch

    on_a_card = torch.cuda.is_available()
    work = [(text, 256 if on_a_card else 16) for text, _ in workload(300 if on_a_card else 8)]
    found = []
    with little_memory():
        for size in (None, 512):
            host = create(configured("hf", str(folder), batch_size=size).config)
            try:
                await host.load(ignore)
                found.append(f"batch_size {size or 'by the free memory'}: {await ours(host, work):,.0f} tokens/s")
            finally:
                await host.aclose()
    return f"{len(work)} answers are complete; {', '.join(found)}"


async def freed(backend: str, model: str) -> str:
    """Load an engine, answer, end it as `vllm_shutdown` does, and compare the memory of the card."""
    before = used_mib()
    service = Service(configured(backend, model))
    try:
        await answers(service, most=8)
        during = used_mib()
        await service.shutdown_engine()
        after = used_mib()
    finally:
        await service.aclose()
    if before is None or during is None or after is None:
        return "answered and ended; no card, so no memory of one"
    if after - before > FREED_MIB:
        raise AssertionError(f"{after - before} MiB are still in use after the end")
    return f"{during - before:,} MiB in use, {max(0, after - before)} MiB after the end"


def embedded(folder: Path) -> dict[str, Path]:
    """Return the embedded model, or a model with its layers and random weights."""
    try:
        return {EMBEDDED: embedded_model.model_folder(ignore)}
    except PromptmillError as error:
        print(f"LEFT OUT  {EMBEDDED}: {error.message}; in its place, random weights", flush=True)
    folder.mkdir()
    byte_model.save(folder, template=TEMPLATE, max_position_embeddings=2048, **ITS_LAYERS)
    return {f"random weights in the layers of {EMBEDDED}": folder}


async def main() -> int:
    """Run all parts; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=7)
    parser.add_argument("--cpu", action="store_true")
    options = parser.parse_args()
    check = Check(options.minutes)
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()
    has_card = torch.cuda.is_available()
    name = torch.cuda.get_device_name() if has_card else f"the CPU ({os.cpu_count()} cores): no CUDA device is there"
    print(f"torch {torch.__version__}, transformers {transformers.__version__}, on {name}", flush=True)
    with tempfile.TemporaryDirectory(prefix="gpu-") as folder:
        models = {"a tiny model": Path(folder)}
        byte_model.save(models["a tiny model"], template=TEMPLATE, max_position_embeddings=2048)
        if not options.cpu:
            models |= embedded(Path(folder) / "embedded")
        for model, place in models.items():
            await check.part(f"{model}: hf as generate", equal, place)
        for model, place in reversed(models.items()):
            await check.part(f"{model}: speed", speed, check, model, place)
        await check.part(f"{model}: a card that is nearly full", short_of_memory, place)
        for model, place in models.items():
            await check.part(f"{model}: memory of hf", freed, "hf", str(place))
        if importlib.util.find_spec("vllm"):
            for model, place in models.items():
                await check.part(f"{model}: vLLM", freed, "vllm", str(place))
        else:
            print("LEFT OUT  vLLM: it is not installed", flush=True)
    print(
        "\n| " + (name if has_card else "CPU") + " | |\n|---|---|",
        *(f"| {what} | {figures} |" for what, figures in check.table),
        sep="\n",
    )
    return bool(check.failed)


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
