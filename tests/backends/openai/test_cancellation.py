"""Ending early: cancelled runs, closed backends, `item_timeout`. Slots are free again and nothing more is sent."""

from __future__ import annotations

import asyncio
import contextlib
import ssl

import aiohttp
import pytest
from multidict import CIMultiDict
from yarl import URL

from driving import ask, echoes, opened, run
from fakes import DictSink, ListSource, openai_configuration
from promptmill.backends.openai.route import Route
from promptmill.backends.openai.session import Session
from promptmill.backends.protocol import Call, Facts
from promptmill.core.errors import PromptmillError
from promptmill.service.service import Service
from replies import answer, attempts, by_prompt, choose, drip, hang, late, status
from waiting import until

pytestmark = pytest.mark.usefixtures("either_way")

HUNDRED = [f"prompt {i}" for i in range(100)]


@pytest.mark.thorough
@pytest.mark.parametrize("reply", [hang(), hang(30), drip(0.2, 100), late(60)])
@pytest.mark.parametrize("stream", [False, True])
async def test_cancelling_closes_what_is_in_flight(upstream, reply, stream):
    upstream.reply = reply
    async with opened(upstream.url, concurrency=8, stream=stream, timeout=[2, 60]) as backend:
        call = Call(Facts(total=100))
        task = asyncio.create_task(run(backend, ListSource(HUNDRED), DictSink(), call))
        await until(lambda: upstream.in_flight == 8)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert call.in_flight == 0
        await until(lambda: upstream.in_flight == 0)
        sent = len(upstream.seen)
        upstream.reply = answer()
        assert (await ask(backend, HUNDRED)).texts == echoes(HUNDRED)
        assert len(upstream.seen) == sent + 100
    assert all(seen.left for seen in upstream.seen[:8])


@pytest.mark.parametrize("turns", range(4))
async def test_a_cancellation_that_meets_the_head_of_a_response_counts(monkeypatch, closing, turns):
    head = asyncio.get_running_loop().create_future()

    async def post(_session, _method, _url, **_request):
        await head
        return contextlib.nullcontext()

    monkeypatch.setattr(aiohttp.ClientSession, "request", post)
    session = closing(Session(1, 10, 10, ssl.create_default_context()))
    route = Route(URL("http://127.0.0.1:1"), CIMultiDict(), None)
    task = asyncio.create_task(session.post(route, b"{}", None))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    head.set_result(None)
    for _ in range(turns):
        await asyncio.sleep(0)
    cancelled = task.cancel()
    with pytest.raises(asyncio.CancelledError if cancelled else AttributeError):
        await task


@pytest.mark.simulated
@pytest.mark.parametrize("reply", [status(429, retry_after="1"), status(500), status(503)])
async def test_cancelling_ends_all_waiting_too(upstream, reply):
    upstream.reply = reply
    async with opened(upstream.url, retries=100, base_delay=0.05, max_delay=0.2) as backend:
        task = asyncio.create_task(run(backend, ListSource(HUNDRED), DictSink(), Call()))
        await until(lambda: upstream.seen)
        await asyncio.sleep(0.1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.sleep(0.1)  # what was on its way may still arrive
        sent = len(upstream.seen)
        await asyncio.sleep(60)
        assert len(upstream.seen) == sent


async def _forgotten(upstream):
    """Begin to count anew, once the endpoint has noticed that nobody waits for what was cancelled."""
    reader, writer = await asyncio.open_connection("127.0.0.1", upstream.port)
    writer.write(b"GET /v1/models HTTP/1.1\r\nHost: x\r\n\r\n")
    await reader.readline()  # connections are accepted in turn: what was sent before is there now
    writer.close()
    await until(lambda: not upstream.in_flight)
    upstream.peak = 0


@pytest.mark.thorough
async def test_cancelling_one_run_leaves_the_others_alone(upstream):
    upstream.reply = late(0.01)
    async with opened(upstream.url, concurrency=8) as backend:
        tasks = [asyncio.create_task(ask(backend, HUNDRED)) for _ in range(3)]
        await until(lambda: len(upstream.seen) > 40)
        tasks[1].cancel()
        assert (await tasks[0]).texts == (await tasks[2]).texts == echoes(HUNDRED)
        with pytest.raises(asyncio.CancelledError):
            await tasks[1]
        await _forgotten(upstream)
        assert (await ask(backend, HUNDRED)).texts == echoes(HUNDRED)
        assert upstream.peak == 8


async def test_a_close_that_is_cancelled_closes_both_of_its_sessions():
    session = Session(1, 10, 10, ssl.create_default_context())
    task = asyncio.ensure_future(session.aclose())
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait({task})
    assert (session._session.closed, session._public.closed) == (True, True)


@pytest.mark.simulated
async def test_many_cancelled_runs_leak_no_place(upstream):
    upstream.reply = late(0.02)
    async with opened(upstream.url, concurrency=4, adaptive=False) as backend:
        for wait in range(30):
            task = asyncio.create_task(run(backend, ListSource(HUNDRED), DictSink(), Call()))
            await asyncio.sleep(wait / 1000)
            task.cancel()
            await asyncio.wait({task})
        await _forgotten(upstream)
        assert (await ask(backend, HUNDRED)).texts == echoes(HUNDRED)
        assert upstream.peak == 4


async def test_closing_ends_running_calls_with_shutdown(upstream):
    upstream.reply = by_prompt({"prompt 0": answer()}, hang())
    service = Service(openai_configuration(upstream.url, concurrency=4, timeout=[2, 60]))
    sink = DictSink()
    task = asyncio.create_task(service.run(ListSource(HUNDRED), sink, Call()))
    await until(lambda: upstream.in_flight == 4)
    await service.aclose()
    with pytest.raises(PromptmillError) as caught:
        await task
    assert caught.value.code == "shutdown"
    assert sink.outcomes[0].text == "echo: prompt 0"
    await until(lambda: not upstream.open)
    await service.aclose()
    with pytest.raises(PromptmillError) as caught:
        await service.run(ListSource(["a"]), DictSink(), Call())
    assert caught.value.code == "shutdown"


async def test_closing_before_loading_is_fine(upstream):
    from fakes import openai_config
    from promptmill.backends import registry

    backend = await registry.create(openai_config(upstream.url))
    await backend.aclose()
    await backend.aclose()


@pytest.mark.thorough
@pytest.mark.simulated
@pytest.mark.parametrize("reply", [hang(), hang(30), drip(0.1, 100), late(30)])
async def test_item_timeout_ends_one_item_and_its_request(upstream, drive, reply):
    upstream.reply = by_prompt({"bad": reply}, late(0.005))
    result = await drive([*HUNDRED[:50], "bad", *HUNDRED[50:]], item_timeout=0.5, timeout=[2, 60], concurrency=8)
    assert list(result.failures) == [50]
    failure = result.failures[50]
    assert (failure.error.code, failure.attempts) == ("item_timeout", 1)
    assert "item_timeout" in str(failure.error)
    assert 0.49 < failure.latency_s < 0.51
    assert result.seconds < 0.7
    bad = next(seen for seen in upstream.seen if seen.prompt == "bad")
    assert bad.left is not None
    assert bad.left - bad.at < 0.51


@pytest.mark.simulated
@pytest.mark.parametrize(
    ("reply", "block"),
    [
        (status(500), {"base_delay": 0.05, "max_delay": 0.1}),
        (status(429), {"base_delay": 0.05, "max_delay": 0.1}),
        (status(429, retry_after="2"), {"max_delay": 1}),
        (status(503, retry_after="2"), {"max_delay": 1}),
    ],
)
async def test_item_timeout_includes_the_waiting_between_attempts(upstream, drive, reply, block):
    upstream.reply = by_prompt({"bad": reply}, late(0.005))
    result = await drive([*HUNDRED[:20], "bad"], item_timeout=0.5, retries=100, concurrency=4, **block)
    assert list(result.failures) == [20]
    assert result.failures[20].error.code == "item_timeout"
    assert result.seconds < 0.75


@pytest.mark.simulated
async def test_item_timeout_holds_while_the_endpoint_is_away(upstream):
    async with opened(upstream.url, item_timeout=0.5, retries=100, patience=60, timeout=[2, 60]) as backend:
        await ask(backend, ["first"])
        upstream.reply = choose(lambda seen: status(503) if seen.prompt != "bad" else hang())
        result = await ask(backend, ["x", "bad", *HUNDRED[:10]])
    assert result.codes == {"item_timeout"}
    assert result.seconds < 0.7


@pytest.mark.simulated
async def test_item_timeout_does_not_count_the_queue(upstream, drive):
    upstream.reply = late(0.1)
    result = await drive(HUNDRED[:12], concurrency=1, item_timeout=0.6)
    assert result.texts == echoes(HUNDRED[:12])


@pytest.mark.simulated
async def test_silence_is_measured_anew_for_each_attempt(upstream, drive):
    upstream.reply = attempts(hang(), hang(), answer())
    result = await drive(["a"], timeout=[2, 0.3])
    assert result.texts == ["echo: a"]
    assert 0.59 < result.seconds < 1


@pytest.mark.simulated
async def test_an_event_stream_that_keeps_coming_is_not_silence(upstream, drive):
    from replies import completion, events
    from upstream import head

    async def slowly(exchange):
        import orjson

        await exchange.write(head(200, {"Content-Type": "text/event-stream", "Connection": "close"}))
        for event in events(completion(exchange.seen, "a longer answer, in pieces", {}, {})):
            await exchange.sleep(0.15)
            await exchange.write(b"data: %b\n\n" % orjson.dumps(event))
        await exchange.write(b": keep-alive\n\ndata: [DONE]\n\n")
        exchange.close()

    upstream.reply = slowly
    result = await drive(["a"], stream=True, timeout=[2, 0.5])
    assert result.texts == ["a longer answer, in pieces"]
    assert result.seconds > 0.8


@pytest.mark.simulated
async def test_a_call_that_is_being_ended_takes_no_room_that_another_leaves(upstream):
    upstream.reply = choose(lambda seen: late(60) if seen.prompt == "stays" else answer())

    class SlowToEnd(DictSink):
        waiting = 0

        def __init__(self):
            super().__init__()
            self.released = asyncio.Event()

        async def put(self, key, outcome):
            self.waiting += 1
            try:
                await asyncio.Event().wait()
            finally:
                await self.released.wait()

    reported = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context))
    async with opened(upstream.url, concurrency=4, timeout=[2, 60]) as backend:
        other = asyncio.create_task(run(backend, ListSource(["stays"] * 2), DictSink(), Call()))
        await until(lambda: upstream.in_flight == 2)
        sink = SlowToEnd()
        ending = asyncio.create_task(run(backend, ListSource(HUNDRED), sink, Call()))
        await until(lambda: sink.waiting == 2)
        ending.cancel()
        await asyncio.sleep(0.01)
        other.cancel()
        await asyncio.wait({other})
        await asyncio.sleep(0.01)
        sink.released.set()
        with pytest.raises(asyncio.CancelledError):
            await ending
    assert not reported
