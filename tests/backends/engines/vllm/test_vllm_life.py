"""vLLM's processes: all gone after the end, however it comes, and there again for the next call."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from engine_parent import engine_parent
from lookups import logged, looked_up
from piped import Piped
from processtable import family, gone, ports, taken_ports
from promptmill.backends.engines.host import create
from promptmill.core.errors import PromptmillError
from promptmill.system.subprocesses import SCRATCH
from sure import sure
from waiting import PATIENCE_S, eventually, until

pytestmark = pytest.mark.engine
ENDLESS = {"ignore_eos": True}


def ignore(text: str) -> None:
    pass


def test_closing_leaves_no_process_no_port_and_no_file(desk, make_vllm_config, small):
    async def life():
        host = create(make_vllm_config(small, max_num_seqs=2, dtype="float32"))
        await host.load(ignore)
        processes = family(sure(host._process).pid)
        scratch = Path(psutil.Process(sure(host._process).pid).environ()[SCRATCH])
        assert scratch.is_dir()
        running = asyncio.create_task(desk.call(host, ["a"] * 50, ENDLESS, max_tokens=400).run())
        await asyncio.sleep(1)
        listened = ports(processes)
        await host.aclose()
        with pytest.raises(PromptmillError) as caught:
            await running
        assert caught.value.code == "shutdown"
        return processes, scratch, listened

    processes, scratch, listened = desk.wait(life())
    assert len(processes) >= 2  # vLLM computes in a process below ours
    assert gone(processes)
    assert not scratch.exists()
    assert not listened & taken_ports()


@pytest.mark.parametrize("where", ["embedded", "folder"])
def test_it_looks_up_no_other_machine(tmp_path, small, where):
    """vLLM looks up this machine's own name, and asks the system, without a packet, for its address of the way out."""
    model = "smollm2-135m-instruct" if where == "embedded" else str(small)
    command = [sys.executable, "-m", "promptmill", "generate", "--backend", "vllm", "--model", model]
    command += ["--set", "backend_configs.vllm.dtype=float32", "--max-tokens", "2", "Hi!"]
    done = subprocess.run(command, env=logged(tmp_path), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert looked_up(tmp_path) <= {socket.gethostname(), socket.getfqdn(), "8.8.8.8", "2001:4860:4860::8888"}


@pytest.mark.parametrize("victim", ["ours", "vLLM's own"])
def test_a_killed_engine_ends_its_calls_and_the_next_one_works(desk, make_vllm_config, small, victim):
    async def killed():
        host = create(make_vllm_config(small, max_num_seqs=2, dtype="float32"))
        await host.load(ignore)
        processes = family(sure(host._process).pid)
        call = desk.call(host, ["a"] * 50, ENDLESS, max_tokens=400)
        running = asyncio.create_task(call.run())
        await until(lambda: call.source.taken)
        await asyncio.sleep(0.5)
        os.kill(processes[0 if victim == "ours" else -1].pid, signal.SIGKILL)
        with pytest.raises(PromptmillError) as caught:
            await running
        assert caught.value.code == "engine_died"
        assert ("SIGKILL" if victim == "ours" else "engine core ended") in caught.value.message
        assert gone(processes)
        await host.load(ignore)
        assert len(await desk.call(host, ["a"], max_tokens=2).run()) == 1
        await host.aclose()

    desk.wait(killed())


def test_nothing_outlives_a_killed_server(small, python):
    with engine_parent(python, "vllm", small) as (parent, engine):
        assert sure(parent.stdout).readline() == "loaded\n"
        processes = family(engine.pid)
        time.sleep(1)
        parent.kill()
    assert len(processes) >= 2
    eventually(lambda: gone(processes))


def test_a_client_generates_cancels_shuts_down_and_generates_again(tmp_path):
    file = tmp_path / "parameter.yaml"
    block = {"model_name_or_path": "smollm2-135m-instruct", "max_num_seqs": 4, "max_model_len": 2048}
    settings = {"backend": "vllm", "backend_configs": {"vllm": block}, "sampling_params": {"max_tokens": 60}}
    file.write_text(json.dumps(settings | {"extra_params": ENDLESS}))  # JSON is YAML
    with Piped(file) as server:
        server.initialize()
        number = server.call("generate", progress="p", prompt_ls=["What is the capital of France?"])
        result = server.result(number)
        assert result["structuredContent"]["ans_ls"][0]
        assert result["_meta"]["finish_reason"] == ["length"]
        assert any("Loading" in told.get("message", "") for _, told in server.progress("p"))
        turns = [{"role": "user", "content": "What is the capital of France?"}]
        number = server.call("multiturn_generate", messages=turns, system_prompt="You know every city.")
        assert server.result(number)["structuredContent"]["ans_ls"][0]
        huge = server.call("generate", prompt_ls=["Hi!"] * 400)
        time.sleep(2)
        server.notify("notifications/cancelled", requestId=huge)
        assert server.answers("What is the capital of France?")[0]
        assert server.found(huge) is None
        before = server.family()
        assert len(before) >= 2
        server.result(server.call("vllm_shutdown"))
        assert gone(before)
        assert server.family() == []
        server.result(server.call("vllm_shutdown"))
        number = server.call("generate", prompt_ls=["What is the capital of France?"])
        assert server.result(number)["structuredContent"]["ans_ls"][0]
        after = server.family()
        server.end("EOF")
        assert server.process.wait(PATIENCE_S) == 0
        assert gone(after)
