"""Endpoints may be hostile: whatever they send costs one item, and bounded memory."""

import asyncio
import contextlib

import orjson
import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from driving import ask, opened
from everyday import everyday
from fakes import openai_config
from promptmill.backends.openai.endpoint import endpoints
from promptmill.backends.openai.failures import RetryDecision
from promptmill.backends.openai.reply import read_response
from promptmill.backends.protocol import Completion
from promptmill.jobs.store.records import record_of
from replies import answer, bomb, by_prompt, hang, huge, late, raw, status
from talk import codes
from upstream import GoneError
from waiting import eventually


def _nested(levels, inside=b'"x"', opening=b"[", closing=b"]"):
    return opening * levels + inside + closing * levels


def _answer(content, **more):
    message = b'{"choices":[{"index":0,"finish_reason":"stop","message":{%b}}]}'
    return message % content


HOSTILE = {
    "content nested too deeply": (200, _answer(b'"content":' + _nested(1000))),
    "parts nested too deeply": (200, _answer(b'"content":' + _nested(400, opening=b'[{"text":', closing=b"}]"))),
    "a refusal nested too deeply": (200, _answer(b'"content":"","refusal":' + _nested(1000))),
    "tool calls nested too deeply": (200, _answer(b'"content":"","tool_calls":[{"a":' + _nested(300) + b"}]")),
    "probabilities nested too deeply": (
        200,
        b'{"choices":[{"message":{"content":"x"},"finish_reason":"stop","logprobs":{"a":%b}}]}' % _nested(300),
    ),
    "numbers beyond 64 bits": (200, _answer(b'"content":"","tool_calls":[{"a":' + b"9" * 400 + b"}]")),
    "an error nested too deeply": (500, _nested(1000, b'{"error":"x"}')),
    "a message nested too deeply": (400, b'{"error":{"message":' + _nested(1000) + b"}}"),
    "a code nested too deeply": (400, b'{"error":{"message":"x","code":' + _nested(1000) + b"}}"),
    "brackets without an end": (200, b"[" * 100_000),
    "no JSON": (200, b"\xff\xfe\x00\x01" * 1000),
}


@pytest.mark.rule("E1")
@pytest.mark.parametrize("name", HOSTILE)
async def test_what_cannot_be_read_costs_one_item(drive, upstream, name):
    code, body = HOSTILE[name]
    upstream.reply = by_prompt({"bad": raw(body, code=code)})
    result = await drive(["good", "bad", "fine"], retries=2)
    assert result.texts == ["echo: good", None, "echo: fine"]
    assert result.raised is None


@pytest.mark.rule("E1")
async def test_nor_do_they_cost_more_where_workers_read_them(drive, upstream):
    upstream.reply = by_prompt({name: raw(body, code=code) for name, (code, body) in HOSTILE.items()})
    result = await drive(["good", *HOSTILE, "fine"], retries=2, num_workers=2, bulk_threshold=1)
    assert result.texts == ["echo: good", *[None] * len(HOSTILE), "echo: fine"]


_KEYS = [
    *("choices", "message", "delta", "index", "content", "text", "finish_reason", "refusal", "tool_calls", "reasoning"),
    *("reasoning_details", "error", "code", "type", "detail", "usage", "prompt_tokens", "completion_tokens"),
]
_anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(_KEYS), inner, max_size=4),
    max_leaves=12,
)


@pytest.mark.thorough
@pytest.mark.rule("E1")
@settings(
    max_examples=500, deadline=None, database=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
@given(body=_anything, code=st.sampled_from([200, 400, 401, 404, 429, 500, 503]), stream=st.booleans())
def test_any_reply_is_an_answer_or_a_verdict_that_a_journal_can_hold(body, code, stream):
    (endpoint,) = endpoints(openai_config("http://127.0.0.1:9"))
    text = orjson.dumps(body, default=str, option=orjson.OPT_NON_STR_KEYS) if _fits(body) else b"\xff"
    headers = {"Content-Type": "text/event-stream" if stream else "application/json"}
    found = read_response(code, headers, b"data: " + text + b"\n\ndata: [DONE]\n\n" if stream else text, endpoint)
    assert isinstance(found, Completion | RetryDecision)
    if isinstance(found, Completion):
        assert found.usage.prompt_tokens >= 0
        assert record_of(0, found).is_sound


def _fits(body):
    try:
        orjson.dumps(body)
    except TypeError:
        return False
    return True


@pytest.mark.rule("E2")
@pytest.mark.parametrize("tokens", [-5, True, 10**12, 10**400, 1.5, "-7", "7.5", "many", None, [1]])
async def test_a_count_that_is_none_counts_nothing(drive, upstream, tokens):
    text = str(tokens) if isinstance(tokens, int) and tokens > 1 else orjson.dumps(tokens).decode()
    upstream.reply = raw(
        b'{"choices":[{"message":{"content":"hi"},"finish_reason":"stop"}],'
        b'"usage":{"prompt_tokens":%b,"completion_tokens":%b}}' % (text.encode(), text.encode())
    )
    result = await drive(["x"])
    assert result.texts == ["hi"]
    assert (result.call.counts.prompt_tokens, result.call.counts.completion_tokens) == (0, 0)


@pytest.mark.rule("E3")
@pytest.mark.parametrize("coding", everyday([None, "gzip", "deflate"], "gzip"))
async def test_a_body_without_an_end_is_left_before_it_fills_the_memory(upstream, coding):
    upstream.reply = huge(1 << 30) if coding is None else bomb(1 << 30, coding)
    process, peak = psutil.Process(), 0

    async def watch():
        nonlocal peak
        while True:
            peak = max(peak, process.memory_info().rss)
            await asyncio.sleep(0.005)

    async with opened(upstream.url, retries=1) as backend:
        before = process.memory_info().rss
        watching = asyncio.ensure_future(watch())
        result = await ask(backend, ["a"])
        watching.cancel()
        await asyncio.wait({watching})
    assert "more than 16 MiB. Request less at once" in str(result.failures[0].error)
    assert peak - before < 200 << 20


@pytest.mark.rule("E4")
@pytest.mark.parametrize("headers", [{"X-Long": "a" * (1 << 20)}, {f"X-{n}": "a" * 1000 for n in range(5000)}])
async def test_a_head_without_an_end_costs_one_item(drive, upstream, headers):
    upstream.reply = by_prompt({"bad": raw(b"{}", headers=headers)})
    result = await drive(["good", "bad", "fine"], retries=1)
    assert result.texts == ["echo: good", None, "echo: fine"]
    assert result.codes == {"bad_response"}


@pytest.mark.rule("E4")
@pytest.mark.parametrize("hint", [b"100 Continue", b"103 Early Hints\r\nLink: </a.css>; rel=preload"])
@pytest.mark.parametrize("length", [0, 1_200_000], ids=["own connections", "aiohttp's session"])
@pytest.mark.usefixtures("protocol")
async def test_interim_responses_without_an_end_cost_one_item(serve, upstream, length, hint):
    """2 MB of them are sent, and then nothing."""
    bad = "bad" + "." * length

    async def flood(exchange):
        for _ in range(200):
            await exchange.write(b"HTTP/1.1 %b\r\n\r\n" % hint * 600)
        await hang()(exchange)

    upstream.reply = by_prompt({bad: flood})
    async with serve(retries=1, timeout=[10, 60]) as talk:
        result = await talk("generate", prompt_ls=["good", bad])
    assert result.structured_content["ans_ls"] == ["echo: good", ""]
    assert codes(result) == {1: "bad_response"}


@pytest.mark.rule("E5")
async def test_an_error_of_an_endpoint_commands_no_terminal(drive, upstream):
    upstream.reply = status(400, "\x1b]0;owned\x07\x1b[2J \x9b31m \u202e\rgone")
    said = str((await drive(["x"])).failures[0].error)
    assert "owned" in said
    assert not set(said) & set("\x1b\x07\x9b\u202e\r")


@pytest.mark.rule("E6")
async def test_a_certificate_that_nobody_vouches_for_gets_no_request(upstreams, drive):
    secure = upstreams(tls=True)
    result = await drive(["secret prompt"], base_url=secure.url.replace("http:", "https:"), retries=2)
    assert result.codes == {"tls"}
    assert not secure.seen


@pytest.mark.rule("E8")
async def test_a_second_response_to_a_request_is_no_answer_to_the_next_one(upstream):
    async def twice(exchange):
        for reply in (answer(), late(0.01)):
            with contextlib.suppress(GoneError):
                await reply(exchange)

    upstream.reply = twice
    async with opened(upstream.url, concurrency=1) as backend:
        assert (await ask(backend, ["first"])).texts == ["echo: first"]
        eventually(lambda: upstream.seen[0].ended)  # meanwhile the event loop reads nothing
        assert (await ask(backend, ["second"])).texts == ["echo: second"]
