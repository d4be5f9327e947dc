"""What is ours to say: names that do not resolve, descriptors that run out, memory."""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest

from driving import ask, echoes, opened
from everyday import everyday
from replies import by_prompt, huge, late
from waiting import PATIENCE_S, until

SUPPORT = Path(__file__).parents[2] / "support"
CHILD = """
import asyncio, json, os, resource, sys
sys.path.insert(0, {support!r})
from driving import ask, echoes, opened
url = {url!r}
try:
    from uvloop import run
except ImportError:
    from asyncio import run
def measured():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> (20 if sys.platform == "darwin" else 10)
"""


def _in_a_process(upstream, code: str) -> dict:
    """Run `code` in a fresh interpreter; it prints one JSON object."""
    script = CHILD.format(support=str(SUPPORT), url=upstream.url) + code
    done = subprocess.run(
        [sys.executable, "-c", script], check=False, capture_output=True, text=True, timeout=PATIENCE_S
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


async def test_a_name_that_does_not_resolve_is_ours_to_say(drive):
    result = await drive(["a", "b", "c"], base_url="http://no-such-host.invalid/v1", retries=2)
    assert result.codes == {"name_resolution"}
    for failure in result.failures.values():
        assert "no-such-host.invalid" in failure.error.message
        assert failure.error.retryable
        assert failure.attempts <= 2


@pytest.mark.thorough
async def test_a_resolver_that_fails_for_a_while_costs_nothing(upstream, monkeypatch):
    """Not the endpoint's load: the window stays as wide as it was."""
    import asyncio
    import socket

    loops = []

    async def failing(*_, **__):
        loops.append(1)
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    prompts = [str(i) for i in range(60)]
    upstream.reply = late(0.02)
    async with opened(upstream.url.replace("127.0.0.1", "localhost"), concurrency=16, adaptive=False) as backend:
        loop = asyncio.get_running_loop()
        with monkeypatch.context() as patch:
            patch.setattr(type(loop), "getaddrinfo", failing)
            asking = asyncio.create_task(ask(backend, prompts))
            await until(lambda: loops)
        result = await asking
        upstream.peak = 0
        again = await ask(backend, prompts)
    assert result.codes <= {"name_resolution"}
    assert again.texts == echoes(prompts)
    assert upstream.peak == 16


@pytest.mark.thorough
@pytest.mark.skipif(sys.platform == "win32", reason="no such limit")
def test_fewer_descriptors_than_concurrency_are_enough_and_said(upstream):
    upstream.reply = late(0.02)
    got = _in_a_process(
        upstream,
        """
resource.setrlimit(resource.RLIMIT_NOFILE, (128, 128))
prompts = [str(i) for i in range(500)]
async def work():
    async with opened(url, concurrency=400) as backend:
        result = await ask(backend, prompts)
        right = result.texts == echoes(prompts)
        print(json.dumps({"right": right, "codes": sorted(result.codes), "warnings": list(result.call.warnings)}))
run(work())
""",
    )
    assert got["codes"] == []
    assert got["right"]
    assert any("concurrency" in warning for warning in got["warnings"])
    assert upstream.peak < 128


@pytest.mark.thorough
@pytest.mark.skipif(sys.platform == "win32", reason="no such limit")
def test_a_low_soft_limit_is_raised(upstream):
    upstream.reply = late(0.3)
    got = _in_a_process(
        upstream,
        """
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (100, hard))
prompts = [str(i) for i in range(600)]
async def work():
    async with opened(url, concurrency=300, adaptive=False) as backend:
        result = await ask(backend, prompts)
        right = result.texts == echoes(prompts)
        print(json.dumps({"right": right, "warnings": list(result.call.warnings)}))
run(work())
""",
    )
    assert got == {"right": True, "warnings": []}
    assert upstream.peak > 150


@pytest.mark.skipif(sys.platform == "win32", reason="no such limit")
def test_descriptors_used_up_by_others_are_ours_to_say(upstream):
    upstream.reply = late(0.02)
    got = _in_a_process(
        upstream,
        """
resource.setrlimit(resource.RLIMIT_NOFILE, (200, 200))
prompts = [str(i) for i in range(50)]
def use_up():
    taken = []
    try:
        while True:
            taken.append(os.open(os.devnull, os.O_RDONLY))
    except OSError:
        return taken
async def work():
    async with opened(url, concurrency=16, adaptive=False, retries=3) as backend:
        taken = use_up()
        without = await ask(backend, prompts)
        for one in taken:
            os.close(one)
        first = await ask(backend, prompts)
        taken = use_up()
        asking = asyncio.create_task(ask(backend, prompts))  # on the connections that are open
        kept = await asking
        for one in taken:
            os.close(one)
        messages = [str(failure.error) for failure in without.failures.values()]
        print(json.dumps({"codes": sorted(without.codes), "message": messages[0], "attempts": [
            failure.attempts for failure in without.failures.values()],
            "first": first.texts == echoes(prompts), "kept": kept.texts == echoes(prompts)}))
run(work())
""",
    )
    assert got["codes"] == ["no_file_descriptors"]
    assert "file" in got["message"]
    assert max(got["attempts"]) <= 3
    assert got["first"]
    assert got["kept"]
    assert upstream.peak == 16, "the endpoint's window was shrunk for what is ours"


@pytest.mark.thorough
@pytest.mark.skipif(sys.platform == "win32", reason="memory is measured differently")
@pytest.mark.parametrize(("zipped", "stream"), everyday(product([False, True], repeat=2), (False, True), (True, False)))
def test_a_body_of_1_gb_costs_no_memory(upstream, zipped, stream):
    upstream.reply = by_prompt({"bad": huge(1 << 30, zipped=zipped)})
    got = _in_a_process(
        upstream,
        f"""
async def work():
    async with opened(url, retries=2, stream={stream}) as backend:
        await ask(backend, ["warm"])
        before = measured()
        result = await ask(backend, ["a", "bad", "b"])
        print(json.dumps({{"texts": result.texts, "codes": sorted(result.codes), "grown_mib": measured() - before}}))
run(work())
""",
    )
    assert got["texts"] == ["echo: a", None, "echo: b"]
    assert got["codes"] == ["bad_response"]
    assert got["grown_mib"] < 300
    for seen in upstream.seen:
        assert seen.sent < 256 << 20


async def test_loading_sends_nothing(upstream):
    async with opened(upstream.url):
        pass
    assert not upstream.connections
