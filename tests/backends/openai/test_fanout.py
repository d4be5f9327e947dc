"""The bulk path: worker processes beside the same gate, ledger and outcomes."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import threading
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from PIL import Image

from driving import ask, echoes, opened, run
from fakes import KEY, DictSink, ListSource
from ingested import Ingested
from processtable import below
from promptmill.backends.openai.workers import FanOut
from promptmill.backends.protocol import Call, Facts, Failure, InputFile, Source
from promptmill.backends.rows import RowReader
from promptmill.core.errors import Code
from promptmill.core.request import Conversation, Message, Request, Sampling, conversation_from_prompt
from replies import answer, by_prompt, late, quota, reset, status
from waiting import until

PROMPTS = [f"prompt {i}" for i in range(300)]
BULK = {"bulk_threshold": 1, "num_workers": 2, "concurrency": 16}


def workers() -> list[psutil.Process]:
    return below("promptmill.backends.openai.worker")


async def test_workers_answer_as_one_process_does(upstream, drive):
    upstream.reply = by_prompt({"prompt 7": answer("x", finish_reason="length", message={"reasoning": "hm"})}, answer())
    alone, shared = await drive(PROMPTS), await drive(PROMPTS, **BULK)
    plain = [(o.text, o.finish_reason, o.usage, o.reasoning, o.attempts) for o in alone.outcomes]
    assert [(o.text, o.finish_reason, o.usage, o.reasoning, o.attempts) for o in shared.outcomes] == plain
    assert not workers(), "workers end with the call"


async def test_the_bound_on_requests_in_flight_holds_over_all_workers(upstream, drive):
    upstream.reply = late(0.02)
    await drive(PROMPTS, **BULK | {"concurrency": 6})
    assert upstream.peak <= 6


async def test_the_start_of_the_workers_is_no_part_of_an_items_time(upstream, drive, monkeypatch, tmp_path):
    (tmp_path / "sitecustomize.py").write_text("import time; time.sleep(1)")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    result = await drive(PROMPTS, item_timeout=0.9, **BULK)
    assert result.texts == echoes(PROMPTS)
    assert max(outcome.latency_s for outcome in result.outcomes) < 0.9
    assert result.stats.counts.requests == len(upstream.seen) == len(PROMPTS)


async def test_a_failure_has_its_code_and_attempts_and_costs_no_other(upstream, drive):
    upstream.reply = by_prompt({"prompt 3": status(500), "prompt 5": status(400), "prompt 9": reset()}, late(0.002))
    result = await drive(PROMPTS, retries=3, **BULK)
    codes = {index: (o.error.code, o.attempts) for index, o in enumerate(result.outcomes) if hasattr(o, "error")}
    assert codes.pop(9)[0] == Code.CONNECTION_LOST
    assert codes == {3: (Code.SERVER_ERROR, 3), 5: (Code.BAD_REQUEST, 1)}


async def test_a_refused_key_is_known_to_all_workers(upstream, drive):
    upstream.reply = quota()
    result = await drive(PROMPTS, **BULK)
    assert result.codes == {Code.INSUFFICIENT_QUOTA}
    assert len(upstream.seen) <= 16


async def test_half_a_surrogate_pair_fails_alone(drive):
    result = await drive(["a", "\ud800", "b"], **BULK)
    assert [outcome.text or None for outcome in result.outcomes] == ["echo: a", None, "echo: b"]
    assert result.codes == {Code.INVALID_INPUT}


async def test_a_worker_that_is_killed_is_replaced_and_nothing_is_lost(upstream):
    prompts, released = PROMPTS[:100], threading.Event()

    async def held(exchange):
        while not released.is_set():
            await exchange.sleep(0.01)
        await answer()(exchange)

    upstream.reply = held
    async with opened(upstream.url, **BULK) as backend:
        call = asyncio.ensure_future(ask(backend, prompts))
        for _ in range(3):
            # each of the two may have eight requests on their way: with sixteen, the one that is killed has some
            await until(lambda: upstream.in_flight == 16)
            os.kill(workers()[0].pid, signal.SIGKILL)
            await until(lambda: upstream.in_flight <= 8)
        released.set()
        result = await call
    assert result.texts == echoes(prompts)
    assert sum(outcome.attempts for outcome in result.outcomes) >= len(upstream.seen) > len(prompts)


async def test_cancelling_closes_the_requests_of_all_workers(upstream):
    upstream.reply = late(30)
    async with opened(upstream.url, **BULK) as backend:
        call = asyncio.ensure_future(ask(backend, PROMPTS))
        await until(lambda: upstream.in_flight >= 16)
        call.cancel()
        await asyncio.wait({call})
        await until(lambda: upstream.in_flight == 0)
        upstream.reply = answer()
        result = await ask(backend, ["after"])

    assert result.texts == ["echo: after"]


async def test_two_calls_at_once_do_not_meet(upstream):
    upstream.reply = late(0.005)
    async with opened(upstream.url, **BULK) as backend:
        first, second = await asyncio.gather(
            ask(backend, [f"a {i}" for i in range(200)]), ask(backend, [f"b {i}" for i in range(200)])
        )
    assert first.texts == echoes([f"a {i}" for i in range(200)])
    assert second.texts == echoes([f"b {i}" for i in range(200)])


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="reads /proc")
async def test_the_key_is_in_no_command_line_and_no_environment(upstream):
    upstream.reply = late(0.05)
    async with opened(upstream.url, **BULK) as backend:
        call = asyncio.ensure_future(ask(backend, PROMPTS))
        await until(lambda: len(upstream.seen) > 10)
        said = [" ".join(w.cmdline()) + Path(f"/proc/{w.pid}/environ").read_text() for w in workers()]
        await call
    assert len(said) == 2
    assert not any(KEY in text for text in said)
    assert upstream.seen[0].headers["authorization"] == f"Bearer {KEY}"


async def test_images_are_read_and_encoded_by_the_workers(upstream, tmp_path):
    Image.new("RGB", (4, 4), "red").save(tmp_path / "a.png")
    items = [
        Request(i, Conversation((Message("user", f"p {i}"),)).with_images([str(tmp_path / name)], None), Sampling())
        for i, name in enumerate(["a.png", "none.png"])
    ]

    class Items(Source):
        async def take(self, n):
            taken, items[:] = items[:n], items[n:]
            return taken

    outcomes = {}

    class Sink:
        async def put(self, key, outcome):
            outcomes[key] = outcome

    async with opened(upstream.url, **BULK) as backend:
        await run(backend, Items(), Sink(), Call(Facts(total=2)))
    assert outcomes[0].text == "echo: p 0"
    assert upstream.seen[0].json["messages"][0]["content"][1]["image_url"]["url"].startswith("data:image/png;base64,")
    assert outcomes[1].error.code == Code.INVALID_IMAGE


class Listed(Source):
    """A source of requests, as it brings them when a file has to be read before it is known what it asks."""

    def __init__(self, *requests):
        self.requests = list(requests)

    async def take(self, n):
        taken, self.requests = self.requests[:n], self.requests[n:]
        return taken


async def test_requests_with_parameters_of_their_own_keep_them_and_their_attempts(upstream):
    sink = DictSink()
    source = Listed(
        Request(0, conversation_from_prompt("a", "p"), Sampling(temperature=0), {"model": "one"}),
        Request(1, conversation_from_prompt("b", "p"), Sampling(max_tokens=5), {"model": "two"}, attempts=2),
    )
    async with opened(upstream.url, **BULK) as backend:
        await run(backend, source, sink, Call(Facts(total=2)))
    assert [sink.outcomes[key].attempts for key in (0, 1)] == [1, 3]
    sent = {seen.prompt: seen.json for seen in upstream.seen}
    assert (sent["a"]["model"], sent["a"].get("temperature"), sent["a"].get("max_tokens")) == ("one", 0, None)
    assert (sent["b"]["model"], sent["b"].get("temperature"), sent["b"].get("max_tokens")) == ("two", None, 5)


async def test_a_large_call_with_nothing_left_to_ask_ends(upstream):
    async with opened(upstream.url, **BULK) as backend:
        await run(backend, Listed(), DictSink(), Call(Facts(total=30_000)))
    assert not upstream.seen
    assert not workers()


async def test_parameters_that_json_cannot_carry_fail_the_items_as_in_one_process(upstream):
    async with opened(upstream.url, **BULK) as backend:
        result = await ask(backend, PROMPTS, source=ListSource(PROMPTS, extra={"wide": 2**70}))

    assert result.codes == {Code.INVALID_INPUT}
    assert not upstream.seen


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX limits")
async def test_a_full_disk_ends_the_call_and_keeps_what_is_answered(upstream):
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, before[1]))
    try:
        async with opened(upstream.url, **BULK) as backend:
            result = await ask(backend, ["x" * 2000] * 500)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert result.raised is not None
    assert result.raised.code is Code.STORAGE
    assert "TMPDIR" in result.raised.hint
    assert result.answered > 30


async def test_workers_read_the_rows_of_a_job_in_its_database(upstream, tmp_path):
    lines = [*(json.dumps({"prompt": f"row {i}"}) for i in range(50)), "broken"]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    job = Ingested(tmp_path, "rows.jsonl")
    reader = RowReader("jsonl", Sampling(temperature=0), {"tag": 1}, "Be short.")
    requests = [
        Request(n, conversation_from_prompt("as the parent read it", "p"), Sampling(), row=n) for n in range(51)
    ]
    requests[4].attempts = 2
    file = InputFile(job.store.path, replace(job.requests, reader=reader).packed())
    sink, call = DictSink(), Call(Facts(size=1 << 30, file=file))
    async with opened(upstream.url, **BULK) as backend:
        await run(backend, Listed(*requests), sink, call)
    job.close()
    outcomes = sink.outcomes
    assert [outcomes[i].text for i in range(50)] == [f"echo: row {i}" for i in range(50)]
    assert outcomes[4].attempts == 3
    broken = outcomes[50]
    assert isinstance(broken, Failure)
    assert "line 51" in broken.error.message
    sent = upstream.seen[0].json
    assert (sent["temperature"], sent["tag"], sent["messages"][0]["role"]) == (0, 1, "system")


async def test_a_worker_that_never_starts_costs_nothing_while_another_works(upstream, drive, monkeypatch):
    live = FanOut._live

    async def stillborn(self, worker):
        if worker.number == 0:
            return
        await live(self, worker)

    monkeypatch.setattr(FanOut, "_live", stillborn)
    assert (await drive(PROMPTS, **BULK)).texts == echoes(PROMPTS)


async def test_workers_that_cannot_be_started_end_the_call(upstream, drive, monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "executable", str(tmp_path / "gone"))
    result = await drive(PROMPTS[:20], **BULK)
    assert {outcome.error.code for outcome in result.outcomes} == {Code.ENGINE_DIED}
    assert "could not be started" in result.outcomes[0].error.message


async def test_a_call_ends_although_a_worker_dies_at_that_very_moment(upstream, monkeypatch):
    start, dying = asyncio.create_subprocess_exec, asyncio.Event()

    async def long_lived(*arguments, **options):
        child = await start(*arguments, **options)
        wait = child.wait

        async def slowly():
            dying.set()
            await asyncio.sleep(0.05)
            return await wait()

        child.wait = slowly
        return child

    monkeypatch.setattr(asyncio, "create_subprocess_exec", long_lived)
    upstream.reply = late(0.02)
    async with opened(upstream.url, **BULK) as backend:
        call = asyncio.ensure_future(ask(backend, PROMPTS))
        await until(lambda: len(upstream.seen) > 10)
        os.kill(workers()[0].pid, signal.SIGKILL)
        await dying.wait()
        call.cancel()
        async with asyncio.timeout(10):
            await asyncio.wait({call})
    assert not workers()


async def test_workers_that_all_end_as_they_start_end_the_call(upstream, drive, monkeypatch):
    async def stillborn(self, worker):
        pass

    monkeypatch.setattr(FanOut, "_live", stillborn)
    result = await drive(PROMPTS[:20], **BULK)
    assert {outcome.error.code for outcome in result.outcomes} == {Code.ENGINE_DIED}
