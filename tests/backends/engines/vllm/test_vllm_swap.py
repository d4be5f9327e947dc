"""From vllm to hf and back in one server, by a client's `generation_init`: processes, ports, answers, running calls."""

from __future__ import annotations

import asyncio
import json
import os
import sys

import psutil
import pytest
from fastmcp import Client
from fastmcp.client.transports import StdioTransport

from processtable import gone, ports, taken_ports
from promptmill.backends.engines import hardware
from promptmill.config.configuration import Configuration
from promptmill.server import create_server
from promptmill.service.service import Service
from talk import Talk, codes
from waiting import eventually, until

pytestmark = [pytest.mark.engine, pytest.mark.stdio]
EMBEDDED = "smollm2-135m-instruct"
ENDLESS = {"ignore_eos": True}
PROMPTS = ["one", "two words", "three", "x"]
FRANCE = "What is the capital of France?"


def engine() -> list[psutil.Process]:
    """Return the processes of the engine, or engines, of the server below this process."""
    return [
        member
        for child in psutil.Process().children(recursive=True)
        if "promptmill.backends.engines.child" in child.cmdline()
        for member in (child, *child.children(recursive=True))
    ]


class Calls(Talk):
    """Loads engines and follows a call that runs meanwhile."""

    async def load(self, backend, model, sampling, extra, **keys):
        """Swap to `backend` with `model`."""
        result = await self.client.call_tool(
            "generation_init",
            {
                "backend": backend,
                "backend_configs": {backend: {"model_name_or_path": str(model), **keys}},
                "sampling_params": {"temperature": 0, **sampling},
                "extra_params": extra,
            },
            raise_on_error=False,
            timeout=170,
        )
        assert not result.is_error, result.content

    async def begun(self, prompts):
        """Start a call and return it once some of its prompts, and not all, are answered."""
        some = asyncio.Event()

        async def told(done, total, message):
            if done >= 1:
                some.set()

        call = asyncio.ensure_future(
            self.client.call_tool("generate", {"prompt_ls": prompts}, raise_on_error=False, progress_handler=told)
        )
        await asyncio.wait_for(some.wait(), 60)
        assert not call.done()
        return call


def whole(texts):
    """Return answers without half a character at the end, which vLLM keeps to itself."""
    return [text.rstrip("\N{REPLACEMENT CHARACTER}") for text in texts]


def test_a_client_swaps_vllm_and_hf_and_running_calls_finish(tmp_path, small):
    file = tmp_path / "parameter.yaml"
    file.write_text(json.dumps({"backend": "hf"}))
    before = set(engine())
    arguments = ["-m", "promptmill", "serve", "--config", str(file)]
    transport = StdioTransport(sys.executable, arguments, env=dict(os.environ), keep_alive=False)

    async def swaps():
        async with Client(transport) as client:
            calls = Calls(client)
            long = {"max_tokens": 200}
            await calls.load("vllm", small, long, ENDLESS, dtype="float32", max_num_seqs=2)
            answers = whole(await calls.answers(*PROMPTS))
            vllm = set(engine()) - before
            assert len(vllm) >= 2
            listened = ports(vllm)

            # fits beside: it is loaded first, and the call finishes where it began
            running = await calls.begun(PROMPTS * 4)
            await calls.load("hf", small, long, ENDLESS, dtype="float32", batch_size=4)
            result = await running
            assert whole(result.structured_content["ans_ls"]) == answers * 4
            assert "errors" not in result.structured_content
            # a process whose first thread has ended may hold its ports for a moment yet
            await until(lambda: gone(vllm) and not listened & taken_ports())
            assert whole(await calls.answers(*PROMPTS)) == answers
            hf = set(engine()) - before
            assert hf
            assert not hf & vllm

            # so does the embedded model
            running = await calls.begun(PROMPTS * 4)
            thought = {"guided_choice": ["<think>France?</think>Paris"]}
            await calls.load("vllm", EMBEDDED, {"max_tokens": 30}, thought, max_num_seqs=4, max_model_len=512)
            result = await running
            assert whole(result.structured_content["ans_ls"]) == answers * 4
            await until(lambda: gone(hf))
            result = await calls("generate", prompt_ls=[FRANCE])
            assert result.structured_content == {"ans_ls": ["Paris"]}
            assert result.meta["reasoning"] == ["France?"]
            last = set(engine()) - before
            assert len(last) >= 2
        return last

    last = asyncio.run(swaps())
    eventually(lambda: gone(last))


def test_a_call_that_takes_longer_than_the_swap_waits_keeps_what_is_answered(monkeypatch):
    monkeypatch.setattr(hardware, "free_memory", lambda: 0)  # so that the old engine has to leave first
    block = {"model_name_or_path": EMBEDDED, "max_num_seqs": 2, "max_model_len": 512}
    sampling = {"temperature": 0, "max_tokens": 12}
    raw = {"backend": "vllm", "backend_configs": {"vllm": block}, "sampling_params": sampling}
    before = set(engine())

    async def swap():
        service = Service(Configuration(raw), drain_s=1)
        try:
            async with Client(create_server(service)) as client:
                calls = Calls(client)
                assert (await calls.answers(FRANCE))[0]
                vllm = set(engine()) - before
                listened = ports(vllm)
                running = await calls.begun([FRANCE] * 2000)
                await calls.load("hf", EMBEDDED, sampling, {})
                assert gone(vllm)
                assert not listened & taken_ports()
                assert (await calls.answers(FRANCE))[0]
                return await running
        finally:
            await service.aclose()

    result = asyncio.run(swap())
    answers = result.structured_content["ans_ls"]
    left = codes(result)
    assert len(answers) == 2000
    assert set(left.values()) == {"replaced"}
    assert set(left) == {index for index, text in enumerate(answers) if not text}
    assert 0 < len(left) < 2000
    assert gone(set(engine()) - before)
