"""The bulk path: worker processes beside the same gate, ledger and outcomes."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import sys
from pathlib import Path
from unittest import mock

import psutil
import pytest
from PIL import Image

from driving import ask, echoes, opened, run
from fakes import KEY, DictSink, ListSource
from processtable import below
from promptmill.backends.protocol import Call, Facts, Source, Widening
from promptmill.cluster.fan_out import ProcessLink
from promptmill.cluster.remote import LostError
from promptmill.core.errors import Code
from promptmill.core.request import Conversation, Message, Request, Sampling, conversation_from_prompt
from promptmill.system.subprocesses import Child
from replies import answer, by_prompt, choose, hang, late, quota, reset, status
from waiting import PATIENCE_S, until

PROMPTS = [f"prompt {i}" for i in range(300)]
BULK = {"bulk_threshold": 1, "num_workers": 2, "concurrency": 16}


def workers() -> list[psutil.Process]:
    return below("promptmill.cluster.worker")


@pytest.mark.thorough
async def test_workers_answer_as_one_process_does(upstream, drive):
    upstream.reply = by_prompt({"prompt 7": answer("x", finish_reason="length", message={"reasoning": "hm"})}, answer())
    alone, shared = await drive(PROMPTS), await drive(PROMPTS, **BULK)
    plain = [(o.text, o.finish_reason, o.usage, o.reasoning, o.attempts) for o in alone.outcomes]
    assert [(o.text, o.finish_reason, o.usage, o.reasoning, o.attempts) for o in shared.outcomes] == plain
    assert not workers(), "workers end with the call"


@pytest.mark.thorough
async def test_the_start_of_the_workers_is_no_part_of_an_items_time(upstream, drive, monkeypatch, tmp_path):
    (tmp_path / "sitecustomize.py").write_text("import time; time.sleep(3)")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    result = await drive(PROMPTS, item_timeout=2.9, **BULK)
    assert result.texts == echoes(PROMPTS)
    assert max(outcome.latency_s for outcome in result.outcomes) < 2.9
    assert result.call.counts.requests == len(upstream.seen) == len(PROMPTS)


@pytest.mark.thorough
async def test_a_failure_has_its_code_and_attempts_and_costs_no_other(upstream, drive):
    upstream.reply = by_prompt({"prompt 3": status(500), "prompt 5": status(400), "prompt 9": reset()}, late(0.002))
    prompts = [*PROMPTS[:60], "\ud800"]
    result = await drive(prompts, retries=3, **BULK)
    codes = {index: (o.error.code, o.attempts) for index, o in enumerate(result.outcomes) if hasattr(o, "error")}
    assert codes.pop(9)[0] == Code.CONNECTION_LOST
    assert codes == {3: (Code.SERVER_ERROR, 3), 5: (Code.BAD_REQUEST, 1), 60: (Code.INVALID_INPUT, 0)}


@pytest.mark.thorough
async def test_a_refused_key_is_known_to_all_workers(upstream, drive):
    upstream.reply = quota()
    result = await drive(PROMPTS, **BULK)
    assert result.codes == {Code.INSUFFICIENT_QUOTA}
    assert len(upstream.seen) <= 16


@pytest.mark.thorough
async def test_a_worker_that_is_killed_is_replaced_and_nothing_is_lost(upstream):
    upstream.reply = late(0.2)
    async with opened(upstream.url, **BULK) as backend:
        call = asyncio.ensure_future(ask(backend, PROMPTS[:160]))
        for before in (20, 60, 100):
            await until(lambda before=before: len(upstream.seen) > before)
            os.kill(workers()[0].pid, signal.SIGKILL)
        result = await call
    assert result.texts == echoes(PROMPTS[:160])
    # each request that was lost with a worker is charged
    assert sum(outcome.attempts + outcome.unmetered for outcome in result.outcomes) >= len(upstream.seen)
    assert len(upstream.seen) > 160


async def test_cancelling_closes_the_requests_of_all_workers(upstream):
    upstream.reply = choose(lambda seen: answer() if seen.number <= 3 else hang())  # not more before an answer
    async with opened(upstream.url, **BULK) as backend:
        call = asyncio.ensure_future(ask(backend, PROMPTS))
        await until(lambda: upstream.in_flight >= 16)
        call.cancel()
        await asyncio.wait({call})
        await until(lambda: upstream.in_flight == 0)
        upstream.reply = answer()
        result = await ask(backend, ["after"])

    assert result.texts == ["echo: after"]


@pytest.mark.thorough
async def test_the_bound_on_requests_in_flight_holds_over_calls_with_and_without_workers(upstream):
    upstream.reply = late(0.02)
    async with opened(upstream.url, bulk_threshold=100, num_workers=2, concurrency=6) as backend:
        of_calls = [[f"{call} {i}" for i in range(120)] for call in "ab"]
        large = [asyncio.ensure_future(ask(backend, prompts)) for prompts in of_calls]
        await until(lambda: len(upstream.seen) > 20)
        small = await asyncio.wait_for(ask(backend, ["a", "b"]), PATIENCE_S)
        assert not large[0].done()
        found = await asyncio.gather(*large)
        alone = await ask(backend, PROMPTS[:50])  # the places of the workers are back
    assert small.texts == echoes(["a", "b"])
    assert [result.texts for result in (*found, alone)] == [*map(echoes, of_calls), echoes(PROMPTS[:50])]
    assert upstream.peak <= 6


@pytest.mark.thorough
async def test_a_higher_concurrency_reaches_the_workers_of_a_running_call(upstream):
    upstream.reply = late(0.05)
    async with opened(upstream.url, **BULK | {"concurrency": 4}) as backend:
        call = asyncio.ensure_future(ask(backend, PROMPTS))
        await until(lambda: len(upstream.seen) > 20)
        assert upstream.peak <= 4
        assert isinstance(backend, Widening)
        backend.widen(12)
        await until(lambda: upstream.peak > 4)
        result = await call
    assert result.texts == echoes(PROMPTS)
    assert upstream.peak <= 12


@pytest.mark.thorough
async def test_a_first_answer_tells_all_workers_that_later_refusals_are_of_their_items(upstream, drive):
    upstream.reply = by_prompt({f"prompt {n}": status(403) for n in range(1, 300, 2)}, late(0.002))
    result = await drive(PROMPTS, retries=2, **BULK)
    assert len(result.failures) == 150
    assert not any(failure.concerns_all for failure in result.failures.values())


@pytest.mark.thorough
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


@pytest.mark.thorough
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


@pytest.mark.thorough
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


@pytest.mark.thorough
async def test_parameters_that_json_cannot_carry_fail_the_items_as_in_one_process(upstream):
    async with opened(upstream.url, **BULK) as backend:
        result = await ask(backend, PROMPTS, source=ListSource(PROMPTS, extra={"wide": 2**70}))

    assert result.codes == {Code.INVALID_INPUT}
    assert not upstream.seen


@pytest.mark.thorough
async def test_a_worker_that_never_starts_costs_nothing_while_another_works(upstream, drive, monkeypatch):
    call, links = ProcessLink.call, []

    async def stillborn(self, method, *arguments):
        links.append(self)
        if self is links[0]:
            raise LostError
        return await call(self, method, *arguments)

    monkeypatch.setattr(ProcessLink, "call", stillborn)
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


async def test_a_worker_that_ends_while_a_request_is_on_its_way_is_one_error(monkeypatch):
    """The event loop reports an error that nobody has read, which fails a test."""

    async def ends(_: Child, frame: bytes) -> bool:
        for reply in link._open.values():
            reply.set_exception(LostError())
        return False

    monkeypatch.setattr(Child, "send", ends)
    link = ProcessLink()
    link._child = Child(mock.Mock(pid=1))
    link._hearing = asyncio.ensure_future(asyncio.sleep(60, ""))
    with pytest.raises(LostError):
        await link.call("submit")
    link._hearing.cancel()
    gc.collect()


async def test_workers_that_all_end_as_they_start_end_the_call(upstream, drive, monkeypatch):
    async def stillborn(self, method, *arguments):
        raise LostError

    monkeypatch.setattr(ProcessLink, "call", stillborn)
    result = await drive(PROMPTS[:20], **BULK)
    assert {outcome.error.code for outcome in result.outcomes} == {Code.ENGINE_DIED}
