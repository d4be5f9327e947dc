"""Engines on several devices: each process sees its own, both answer, and a lost one costs no answer."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

import byte_model
from driving import ask, run
from fakes import DictSink, ListSource
from promptmill.backends.engines import hardware, host
from promptmill.backends.protocol import Call, Facts
from promptmill.cli.main import main
from promptmill.cluster import replicas
from promptmill.cluster.replicas import Replicas
from promptmill.config.configuration import Configuration
from promptmill.config.model_config import ModelConfig
from promptmill.core.errors import PromptmillError


def config(backend: str = "hf", **block: Any) -> ModelConfig:
    return Configuration({"backend": backend, "backend_configs": {backend: block}}).config


def gpus_of(parts: list[ModelConfig]) -> list[Any]:
    return [getattr(part.block, "gpu_ids", None) for part in parts]


@pytest.mark.parametrize(
    ("gpu_ids", "count", "parts"),
    [("0,1", 2, [(0,), (1,)]), ("0,1,2,3", 2, [(0, 1), (2, 3)]), ("7,5", 1, [(7, 5)]), ("3", 1, [(3,)])],
)
@pytest.mark.parametrize("backend", ["hf", "vllm"])
def test_each_replica_gets_an_equal_part_of_the_gpus(backend, gpu_ids, count, parts):
    assert gpus_of(replicas._parts(config(backend, gpu_ids=gpu_ids, replicas=count))) == parts


@pytest.mark.parametrize("gpu_ids", ["0", "0,1,2"])
def test_gpus_that_cannot_be_divided_equally_are_an_error(gpu_ids):
    with pytest.raises(PromptmillError, match=r"hf\.gpu_ids: \d GPUs cannot be divided equally among 2 `replicas`"):
        replicas._parts(config(gpu_ids=gpu_ids, replicas=2))


def test_the_command_line_has_replicas_in_jobs_and_calls(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a"}\n')
    block = {"model_name_or_path": "smollm2-135m-instruct", "gpu_ids": "0,1,2", "replicas": 2}
    (tmp_path / "three.yaml").write_text(json.dumps({"backend": "hf", "backend_configs": {"hf": block}}))
    for words in (["bulk", "rows.jsonl", "answers.jsonl"], ["generate", "a"]):
        assert main([*words, "--config", "three.yaml"])
        assert "3 GPUs cannot be divided equally among 2 `replicas`" in "".join(capsys.readouterr())


def test_replicas_without_gpu_ids_are_for_the_cpu(monkeypatch):
    monkeypatch.setattr(hardware, "has_accelerator", lambda: False)
    assert gpus_of(replicas._parts(config(replicas=2))) == [None, None]
    monkeypatch.setattr(hardware, "has_accelerator", lambda: True)
    assert gpus_of(replicas._parts(config(replicas=2, device="cpu"))) == [None, None]
    with pytest.raises(PromptmillError, match=r"vllm\.gpu_ids: `replicas: 2` needs the GPUs to divide among them"):
        replicas._parts(config("vllm", replicas=2))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model with random weights."""
    folder = tmp_path_factory.mktemp("model")
    byte_model.save(folder)
    return folder


@asynccontextmanager
async def two_engines(model: Path, **block: Any) -> AsyncIterator[Replicas]:
    """Two engines on the CPU, as if each had a GPU."""
    backend = await replicas.create(config(model_name_or_path=str(model), device="cpu", replicas=2, **block))
    assert isinstance(backend, Replicas)
    try:
        await backend.load(lambda _: None)
        await ready(backend, 2)
        yield backend
    finally:
        await backend.aclose()


async def ready(backend: Replicas, count: int) -> None:
    async with asyncio.timeout(200):  # loading takes a minute where other tests load engines, too
        while len(backend.ready) < count:
            await asyncio.sleep(0.01)


def process_of(one: Any) -> psutil.Process:
    return psutil.Process(one.backend._process.pid)


PROMPTS = [f"prompt {index}" for index in range(40)]


@pytest.mark.thorough
@pytest.mark.engine
async def test_each_engine_sees_its_own_devices_and_both_answer(model):
    async with two_engines(model, gpu_ids="0,1") as backend:
        assert [process_of(one).environ()["CUDA_VISIBLE_DEVICES"] for one in backend.ready] == ["0", "1"]
        result = await ask(backend, PROMPTS)
        assert result.answered == len(PROMPTS)
        assert all(one.has_answered for one in backend.ready)
        processes = [process_of(one) for one in backend.ready]
    assert not any(process.is_running() for process in processes)


@pytest.mark.engine
@pytest.mark.thorough
@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
async def test_a_killed_engine_costs_no_answer_and_is_loaded_again(model):
    async with two_engines(model) as backend:
        killed = backend.ready[0]
        process = process_of(killed)
        sink, call = DictSink(), Call(Facts(total=len(PROMPTS)))
        asking = asyncio.ensure_future(run(backend, ListSource(PROMPTS), sink, call))
        while not killed.in_flight:
            await asyncio.sleep(0)
        os.kill(process.pid, signal.SIGKILL)
        await asking
        assert (call.counts.done, call.counts.failed) == (len(PROMPTS), 0)
        await ready(backend, 2)
        assert process_of(killed).pid != process.pid
        # both die while they are idle
        for one in backend.ready:
            process_of(one).kill()
            await one.backend._process.ended.wait()  # type: ignore[attr-defined]
        assert (await ask(backend, PROMPTS)).answered == len(PROMPTS)


def test_on_the_cpu_the_engines_divide_the_cores(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(hardware, "cores", lambda: 6)
    assert host._environment(None, 2)["OMP_NUM_THREADS"] == "3"
    assert "OMP_NUM_THREADS" not in host._environment(None, 1)
    assert "OMP_NUM_THREADS" not in host._environment((0,), 2)
