"""An engine's process: its life, its death, and that the two sides never wait for each other in vain."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from driving import run
from engine_parent import engine_parent
from everyday import everyday
from processtable import below, gone
from promptmill.backends.engines.host import create
from promptmill.backends.protocol import Call, Completion, Source
from promptmill.core.errors import PromptmillError
from sure import sure
from waiting import PATIENCE_S, eventually, until

pytestmark = pytest.mark.engine
posix = pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
ENDLESS = {"ignore_eos": True}


def children() -> list[psutil.Process]:
    return psutil.Process().children(recursive=True)


def engines() -> set[psutil.Process]:
    """Return the processes of engines below this one; those of other tests' models among them."""
    return {*below("engines.child")}


def engine_of(host) -> psutil.Process:
    return psutil.Process(host._process.pid)


def ignore(text: str) -> None:
    pass


@pytest.fixture
def small_batches(desk, config):
    """An engine that computes four rows together."""
    host = create(config)
    desk.wait(host.load(ignore))
    yield host
    desk.wait(host.aclose())


@pytest.fixture
def config(make_config, tiny):
    return make_config(tiny(), batch_size=4)


@posix
def test_a_killed_engine_ends_its_calls_and_the_next_one_works_until_it_is_closed(desk, config):
    before = engines()

    async def killed_and_closed():
        host = create(config)
        await host.load(ignore)
        call = desk.call(host, ["a"] * 50, ENDLESS, max_tokens=400)
        running = await call.begun()
        os.kill(engine_of(host).pid, signal.SIGKILL)
        with pytest.raises(PromptmillError) as caught:
            await running
        assert caught.value.code == "engine_died"
        assert "SIGKILL" in caught.value.message
        assert call.call.in_flight == 0
        with pytest.raises(PromptmillError):
            await desk.call(host, ["a"]).run()
        await host.load(ignore)
        assert len(await desk.call(host, ["a"], max_tokens=2).run()) == 1
        process = engine_of(host)
        running = await desk.call(host, ["a"] * 9, ENDLESS, max_tokens=400).begun()
        await asyncio.gather(host.aclose(), host.aclose())
        with pytest.raises(PromptmillError) as caught:
            await running
        assert caught.value.code == "shutdown"
        assert not process.is_running()
        await host.aclose()
        for again in (desk.call(host, ["a"]).run(), host.load(ignore)):
            with pytest.raises(PromptmillError) as caught:
                await again
            assert caught.value.code == "shutdown"

    desk.wait(killed_and_closed())
    assert engines() <= before


@pytest.mark.parametrize("after_s", everyday([0, 0.05, 0.5, 2], 0, 0.5))
def test_closing_while_it_loads_leaves_nothing(desk, config, after_s):
    async def closed():
        host = create(config)
        loading = asyncio.create_task(host.load(ignore))
        await asyncio.sleep(after_s)
        await host.aclose()
        with pytest.raises(PromptmillError) as caught:
            await loading
        assert caught.value.code == "shutdown"
        assert host._process is None or not psutil.pid_exists(host._process.pid)

    desk.wait(closed())


def test_a_cancelled_load_leaves_nothing(desk, config):
    async def cancelled():
        host = create(config)
        loading = asyncio.create_task(host.load(ignore))
        await until(lambda: host._process)
        process = engine_of(host)
        loading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await loading
        assert not process.is_running()

    desk.wait(cancelled())


@posix
def test_a_load_given_up_before_there_is_a_process_leaves_no_folder(desk, config, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    async def given_up():
        for turns in range(6):
            loading = asyncio.create_task(create(config).load(ignore))
            for _ in range(turns):
                await asyncio.sleep(0)
            loading.cancel()
            with pytest.raises(asyncio.CancelledError):
                await loading
        monkeypatch.setattr("sys.executable", "/no/such/python")
        with pytest.raises(PromptmillError, match="could not be started"):
            await create(config).load(ignore)

    desk.wait(given_up())
    assert list(tmp_path.iterdir()) == []


def test_closing_before_loading_is_no_error(desk, config):
    async def closed():
        host = create(config)
        await host.aclose()
        with pytest.raises(PromptmillError):
            await host.load(ignore)

    desk.wait(closed())


def test_cancelling_a_call_frees_its_rows(desk, tiny_engine):
    async def cancelled():
        call = desk.call(tiny_engine, ["Count to one million in words."] * 300, ENDLESS, max_tokens=400)
        running = await call.begun()
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert call.call.in_flight == 0
        assert len(await desk.call(tiny_engine, ["Hi!"], max_tokens=1).run()) == 1

    desk.wait(cancelled())


def test_calls_at_once_get_their_own_answers(desk, tiny_engine):
    async def together():
        prompts = ["What is the capital of France?", "Hi!", "What is 2 + 2?"]
        apart = [(await desk.call(tiny_engine, [prompt], max_tokens=8).run())[0].text for prompt in prompts]
        calls = [desk.call(tiny_engine, [prompt] * 3, max_tokens=8) for prompt in prompts]
        at_once = await asyncio.gather(*(call.run() for call in calls))
        assert [[outcome.text for outcome in outcomes] for outcomes in at_once] == [[text] * 3 for text in apart]

    desk.wait(together())


def test_the_source_is_read_only_as_far_ahead_as_the_engine_needs(desk, tiny_engine):
    async def bounded():
        call = desk.call(tiny_engine, ["Hi!"] * 5000, ENDLESS, max_tokens=400)
        running = await call.begun()
        most = call.source.taken - call.call.counts.done
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        assert 64 <= most <= 2 * 64

    desk.wait(bounded())


@pytest.mark.thorough
def test_a_slow_sink_holds_the_source_back_and_loses_nothing(desk, small_batches):
    host = small_batches

    async def slow():
        call = desk.call(host, ["a"] * 60, max_tokens=1)
        put = call.sink.put

        async def late(key, outcome):
            assert call.source.taken - len(call.sink.outcomes) <= 2 * 8 + 1  # in the engine, and as many taken ahead
            await asyncio.sleep(0.01)
            put(key, outcome)

        call.sink.put = late
        assert len(await call.run()) == 60

    desk.wait(slow())


@posix
def test_a_stuck_engine_never_blocks_the_event_loop(desk, tiny_engine):
    host = tiny_engine

    async def stuck():
        process = engine_of(host)
        process.suspend()
        running = asyncio.create_task(desk.call(host, ["x" * 30_000_000] * 4, max_tokens=1).run())
        for _ in range(100):  # a write that waits would wait for ever
            await asyncio.sleep(0.001)
        running.cancel()
        await asyncio.wait({running})
        process.resume()
        assert len(await desk.call(host, ["a"], max_tokens=1).run()) == 1

    desk.wait(stuck())


@posix
@pytest.mark.parametrize("phase", ["starting", "importing", "generating"])
@pytest.mark.thorough
def test_no_engine_outlives_a_killed_server(tiny, python, phase):
    with engine_parent(python, "hf", tiny()) as (parent, engine):
        if phase == "importing":
            time.sleep(1.5)
        if phase == "generating":
            assert sure(parent.stdout).readline() == "loaded\n"
            time.sleep(1)
        parent.kill()
    eventually(lambda: gone([engine]))


def test_the_end_of_the_input_ends_an_engine_that_never_got_a_message(python):
    source = Path(__file__).parents[3] / "src"
    command = [*python, "-m", "promptmill.backends.engines.child"]
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(source)},
        start_new_session=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode in {1, -9}
    assert done.stdout == b""


@posix
@pytest.mark.thorough
def test_prints_and_grandchildren_never_reach_the_protocol(desk, make_config, tiny, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(
        "import atexit, os, sys, threading, time\n"
        "def shout():\n"
        "    while True:\n"
        "        print('noise'); os.system('echo more noise'); os.write(1, b'noise'); time.sleep(0.05)\n"
        "if 'promptmill.backends.engines.child' in sys.orig_argv:\n"
        "    timer = threading.Timer(1, shout); timer.daemon = True; timer.start()\n"
    )

    async def loud():
        host = create(make_config(tiny()))
        host._environment["PYTHONPATH"] += os.pathsep + str(tmp_path)
        await host.load(ignore)
        outcomes = await desk.call(host, ["a"] * 40, ENDLESS, max_tokens=40).run()
        await host.aclose()
        return outcomes

    outcomes = desk.wait(loud())
    assert {outcome.usage.completion_tokens for outcome in outcomes} == {40}


@pytest.mark.thorough
def test_it_works_on_uvloop(desk, config):
    uvloop = pytest.importorskip("uvloop")

    async def whole_life():
        host = create(config)
        await host.load(ignore)
        outcomes = await desk.call(host, ["a", "b"], max_tokens=3).run()
        await host.aclose()
        return outcomes

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        outcomes = runner.run(asyncio.wait_for(whole_life(), PATIENCE_S))
    assert all(isinstance(outcome, Completion) for outcome in outcomes)


def test_attempts_made_before_are_counted(desk, tiny_engine):
    import dataclasses

    requests = [dataclasses.replace(request, attempts=2) for request in desk.requests(["Hi!", "\ud800"], max_tokens=1)]
    call = desk.call(tiny_engine, [])
    call.source.requests = requests
    good, bad = desk.wait(call.run())
    assert (good.attempts, bad.attempts) == (3, 2)


def test_an_error_of_the_source_ends_the_call_alone(desk, tiny_engine):
    class Broken(Source):
        async def take(self, n):
            raise OSError("disk gone")

    async def broken():
        call = desk.call(tiny_engine, [])
        with pytest.raises(OSError, match="disk gone"):
            await run(tiny_engine, Broken(), call.sink, Call())
        assert len(await desk.call(tiny_engine, ["Hi!"], max_tokens=1).run()) == 1

    desk.wait(broken())


def test_the_engine_runs_below_the_servers_priority(desk, tiny_engine):
    if sys.platform == "win32":
        pytest.skip("no niceness there")
    process = engine_of(tiny_engine)
    assert process.nice() > psutil.Process().nice()
    assert os.getpgid(process.pid) == process.pid


def test_a_crowd_of_calls_ends_with_every_answer(desk, tiny_engine):
    host = tiny_engine

    async def crowd():
        calls = [desk.call(host, ["a"] * (1 + i % 3), max_tokens=1 + i % 5) for i in range(40)]
        some = [asyncio.create_task(call.run()) for call in calls]
        await until(lambda: any(call.call.counts.done for call in calls))
        for task in some[::4]:
            task.cancel()
        ended = await asyncio.gather(*some, return_exceptions=True)
        for call, outcomes in zip(calls, ended, strict=True):
            assert call.call.in_flight == 0
            if not isinstance(outcomes, BaseException):
                assert len(outcomes) == call.call.counts.done

    desk.wait(crowd())
