"""The endpoint that other tests rely on, checked with a client of its own."""

from __future__ import annotations

import asyncio
import gzip
import ssl
import time

import aiohttp
import orjson
import pytest

from busy import within
from replies import (
    answer,
    at_most,
    attempts,
    drip,
    hang,
    html,
    huge,
    late,
    reset,
    sse,
    status,
    then_close,
    truncated,
    vanishing,
    wrong_length,
    zipped,
)


async def _ask(session, up, prompt="hi", **more):
    body = orjson.dumps({"model": "m", "messages": [{"role": "user", "content": prompt}], **more})
    async with session.post(
        f"{up.url}/chat/completions", data=body, **({"ssl": False} if up.certificate else {})
    ) as got:
        return got.status, await got.read()


def _text(body):
    return orjson.loads(body)["choices"][0]["message"]["content"]


async def test_it_echoes_and_records(upstream):
    async with aiohttp.ClientSession(headers={"X-Test": "1"}) as session:
        for prompt in ("one", "two", "one"):
            code, body = await _ask(session, upstream, prompt)
            assert (code, _text(body)) == (200, f"echo: {prompt}")
    assert [seen.prompt for seen in upstream.seen] == ["one", "two", "one"]
    assert [seen.attempt for seen in upstream.seen] == [1, 1, 2]
    assert upstream.attempts == {"one": 2, "two": 1}
    assert upstream.seen[0].headers["x-test"] == "1"
    assert upstream.connections == 1
    assert upstream.peak == 1
    assert upstream.in_flight == 0


async def test_it_lists_its_models(upstream):
    async with aiohttp.ClientSession() as session, session.get(f"{upstream.url}/models") as got:
        result = await got.json()

    assert result["data"][0]["id"] == "test-model"


async def test_it_streams_when_asked(upstream):
    async with aiohttp.ClientSession() as session:
        result = await _ask(session, upstream, "a longer prompt", stream=True, stream_options={"include_usage": True})

    lines = [line for line in result[1].split(b"\n\n") if line]
    assert lines[-1] == b"data: [DONE]"
    parts = [orjson.loads(line[6:]) for line in lines[:-1]]
    text = "".join(choice["delta"].get("content", "") for part in parts for choice in part["choices"])
    assert text == "echo: a longer prompt"
    assert parts[-1]["usage"]["prompt_tokens"] == 3


@pytest.mark.parametrize("tls", [False, True])
@pytest.mark.parametrize(
    ("reply", "problem"),
    [
        (reset(), aiohttp.ClientOSError),
        (reset(10), aiohttp.ClientPayloadError),
        (truncated(), aiohttp.ClientPayloadError),
        (wrong_length(50), aiohttp.ClientPayloadError),
        (hang(), asyncio.TimeoutError),
        (hang(10), asyncio.TimeoutError),
    ],
)
async def test_its_faults_are_what_they_say(upstreams, reply, problem, tls):
    up = upstreams(reply, tls=tls)
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(sock_read=0.2)) as session:
        with pytest.raises(problem) as caught:
            await _ask(session, up)
        await session.close()
        caught = caught.value
    if reply.__qualname__.startswith("reset"):
        assert "reset" in str(caught).lower(), "a FIN is not a reset"


@pytest.mark.parametrize("reply", [answer(), drip(0.01, 5), zipped(), late(0.01), then_close(answer())])
async def test_its_right_answers_are_right(upstreams, reply):
    up = upstreams(reply)
    async with aiohttp.ClientSession() as session:
        result = await _ask(session, up, "grüße")

    assert _text(result[1]) == "echo: grüße"


async def test_its_bodies_may_be_huge_without_memory(upstreams):
    up = upstreams(huge(200 << 20))
    async with aiohttp.ClientSession() as session, session.post(f"{up.url}/chat/completions", data=b"{}") as got:
        result = sum([len(block) async for block in got.content.iter_chunked(1 << 20)])

    assert result > 200 << 20
    assert len(gzip.decompress(gzip.compress(b"x" * 10) * 2)) == 20


async def test_it_sees_the_client_leave(upstreams):
    up = upstreams(hang())
    async with aiohttp.ClientSession() as session:
        asking = asyncio.create_task(_ask(session, up))
        await up.reaches(lambda: up.seen)
        asking.cancel()
        await up.reaches(lambda: up.seen[0].left, 1)
        with pytest.raises(asyncio.CancelledError):
            await asking
    assert up.in_flight == 0


async def test_it_vanishes_and_comes_back_on_its_port(upstreams):
    up = upstreams(vanishing(2, 0.3))
    async with aiohttp.ClientSession() as session:
        await _ask(session, up)
        with pytest.raises(aiohttp.ClientOSError):
            await _ask(session, up)
        await asyncio.sleep(0.05)
        with pytest.raises(aiohttp.ClientConnectorError):
            await _ask(session, up)
        await asyncio.sleep(0.4)
        assert (await _ask(session, up))[0] == 200


async def test_it_refuses_above_a_number_at_a_time(upstreams):
    up = upstreams(at_most(4, late(0.05), status(429, retry_after="1")))
    async with aiohttp.ClientSession() as session:
        got = await asyncio.gather(*(_ask(session, up, str(i)) for i in range(10)))
        result = sorted(code for code, _ in got)

    assert result == [200] * 4 + [429] * 6


async def test_replies_choose_by_attempt(upstreams):
    up = upstreams(attempts(status(500), html(), sse(b"data: [DONE]"), answer()))
    async with aiohttp.ClientSession() as session:
        result = [(await _ask(session, up))[0] for _ in range(5)]

    assert result == [500, 200, 200, 200, 200]


async def test_its_certificate_can_be_trusted(upstreams):
    up = upstreams(tls=True)
    trusting = aiohttp.TCPConnector(ssl=ssl.create_default_context(cafile=up.certificate))
    async with (
        aiohttp.ClientSession(connector=trusting) as session,
        session.post(f"{up.url}/chat/completions", data=b"{}") as got,
    ):
        result = got.status

    assert result == 200


async def test_it_is_fast_enough_for_thousands(upstream):
    began = time.monotonic()
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=64)) as session:
        await asyncio.gather(*(_ask(session, upstream, str(i)) for i in range(3000)))
    assert time.monotonic() - began < within(15)
    assert len(upstream.seen) == 3000
