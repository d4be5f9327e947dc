"""Checks the engines on this machine's graphics card, and measures them; without a card it does the same on the CPU.

    scripts/gpu                        # in .venv
    scripts/gpu --python PYTHON        # in an environment that is there, with its own torch and transformers
    scripts/gpu --minutes 5            # no part begins later; 10 is the default

For a tiny model with random weights, and for the embedded one if its file is here or can be fetched:

* hf answers as `generate` of transformers does, prompt by prompt, at any size of the batch, in float32;
* tokens per second of hf, of `generate` in padded batches, and of transformers' own continuous batching;
* after `vllm_shutdown`, its memory on the card is free again;
* with vLLM installed, vLLM answers, and its memory is free afterwards.

Each part prints a line; the last lines are a table for docs/performance.md. It ends with 1 if a part failed.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

os.environ |= {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "TRANSFORMERS_VERBOSITY": "error"}

import byte_model
from benchmarks.hf_batching import BATCH, ours, workload
from promptmill.backends.engines import embedded_model
from promptmill.backends.engines.host import create
from promptmill.backends.protocol import Call, Completion
from promptmill.config.configuration import Configuration
from promptmill.core.errors import PromptmillError
from promptmill.core.request import Request, Sampling, conversation_from_prompt
from promptmill.service.service import Service

TEMPLATE = "{% for m in messages %}{{ m.content }}\n{% endfor %}"
QUESTIONS = ["Hi!", "What is the capital of France?", "Count from one to ten. " * 12, "Why is the sky blue? " * 40, "x"]
LONGEST, PAIRS = 48, 3
PROMPTS = {"cuda": 32, "cpu": 16}  # 128 on an H200 took more than six minutes for the embedded model
FREED_MIB = 64  # a driver's own memory comes and goes


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
    return [outcome.text if isinstance(outcome, Completion) else str(outcome) for outcome in outcomes]


class Theirs:
    """The same model in transformers."""

    def __init__(self, folder: Path, dtype: Any) -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.device = "cuda" if torch.cuda.is_available() else "cpu"
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

    def continuous(self, work: list[tuple[str, int]]) -> float:
        """Return the same of `generate_batch`, whose requests all have one length: the mean of the workload."""
        from transformers import GenerationConfig

        mean = round(statistics.fmean(tokens for _, tokens in work))
        inputs = [self.ids([text])["input_ids"][0].tolist() for text, _ in work]
        config = GenerationConfig(do_sample=False, max_new_tokens=mean, eos_token_id=-1, pad_token_id=0)
        began = time.perf_counter()
        made = self.model.generate_batch(inputs=inputs, generation_config=config, progress_bar=False)
        return sum(len(one.generated_tokens) for one in made.values()) / (time.perf_counter() - began)


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
    for size in (1, 3, 8):
        service = Service(configured("hf", str(folder), dtype="float32", batch_size=size))
        try:
            got = await answers(service)
        finally:
            await service.aclose()
        if got != expected:
            raise AssertionError(f"batch_size {size}: {got} in place of {expected}")
    return f"{len(QUESTIONS)} answers equal at batch sizes 1, 3 and 8"


async def speed(check: Check, name: str, folder: Path) -> str:
    """Measure tokens per second of hf and of transformers in pairs."""
    import torch

    theirs = Theirs(folder, "auto" if torch.cuda.is_available() else torch.float32)
    work = workload(PROMPTS[theirs.device])
    block = {} if torch.cuda.is_available() else {"dtype": "float32"}
    host = create(configured("hf", str(folder), batch_size=BATCH, **block).config)
    rates: dict[str, list[float]] = {"hf": [], "generate, padded": [], "generate_batch": []}
    try:
        await host.load(ignore)
        await ours(host, work[:4])
        theirs.padded(work[:4])
        for _ in range(PAIRS):
            rates["hf"].append(await ours(host, work))
            rates["generate, padded"].append(theirs.padded(work))
            if theirs.device == "cuda":  # on a CPU its cache takes all the memory of the machine
                rates["generate_batch"].append(theirs.continuous(work))
            print(
                f"          {name}: {' · '.join(f'{way} {rate[-1]:,.0f}' for way, rate in rates.items() if rate)}",
                flush=True,
            )
    finally:
        await host.aclose()
    found = [f"{way} {statistics.median(rate):,.0f}" for way, rate in rates.items() if rate]
    spread = " · ".join(f"{min(rate):,.0f} to {max(rate):,.0f}" for rate in rates.values() if rate)
    check.table.append((f"{name}, {len(work)} prompts of mixed length, tokens/s", f"{' · '.join(found)} ({spread})"))
    return " · ".join(found)


async def freed(backend: str, model: str) -> str:
    """Load an engine, answer, end it as `vllm_shutdown` does, and compare the memory of the card."""
    before = used_mib()
    service = Service(configured(backend, model))
    try:
        got = await answers(service, most=8)
        during = used_mib()
        await service.shutdown_engine()
        after = used_mib()
    finally:
        await service.aclose()
    if not all(got):
        raise AssertionError(f"an answer is empty: {got}")
    if before is None or during is None or after is None:
        return "answered and ended; no card, so no memory of one"
    if after - before > FREED_MIB:
        raise AssertionError(f"{after - before} MiB are still in use after the end")
    return f"{during - before:,} MiB in use, {max(0, after - before)} MiB after the end"


async def main() -> int:
    """Run all parts; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10)
    check = Check(parser.parse_args().minutes)
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()
    has_card = torch.cuda.is_available()
    name = torch.cuda.get_device_name() if has_card else f"the CPU ({os.cpu_count()} cores): no CUDA device is there"
    print(f"torch {torch.__version__}, transformers {transformers.__version__}, on {name}", flush=True)
    with tempfile.TemporaryDirectory(prefix="gpu-") as folder:
        models = {"a tiny model": Path(folder)}
        byte_model.save(models["a tiny model"], template=TEMPLATE, max_position_embeddings=2048)
        try:
            models["SmolLM2-135M"] = embedded_model.model_folder(ignore)
        except PromptmillError as error:
            print(f"LEFT OUT  SmolLM2-135M: {error.message}", flush=True)
        for model, place in models.items():
            await check.part(f"{model}: hf as generate", equal, place)
            await check.part(f"{model}: memory of hf", freed, "hf", str(place))
        for model, place in models.items():
            await check.part(f"{model}: speed", speed, check, model, place)
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
