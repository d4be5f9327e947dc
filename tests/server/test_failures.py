"""What goes wrong, as a client sees it: each sentence of the contract's section on failures, provoked at the wire."""

from __future__ import annotations

import time

import orjson
import pytest

from replies import (
    answer,
    at_most,
    attempts,
    by_prompt,
    choose,
    closed,
    hang,
    html,
    http_date,
    late,
    quota,
    raw,
    reset,
    status,
    truncated,
    vanishing,
)
from talk import codes, sent, text
from waiting import until


def _numbers(n):
    return [str(number) for number in range(n)]


def _echoes(prompts):
    return [f"echo: {prompt}" for prompt in prompts]


async def _generate(talk, *prompts):
    return await talk("generate", prompt_ls=list(prompts))


# One item and the others


async def test_one_bad_item_costs_the_others_nothing(talk, upstream):
    upstream.reply = by_prompt({"bad": status(400, "no such thing")})
    result = await _generate(talk, "a", "bad", "b")
    assert not result.is_error
    assert result.structured_content["ans_ls"] == ["echo: a", "", "echo: b"]
    (entry,) = result.structured_content["errors"]
    assert entry.keys() == {"index", "code", "message", "retryable", "attempts"}
    assert (entry["index"], entry["code"], entry["retryable"], entry["attempts"]) == (1, "bad_request", False, 1)
    assert "no such thing" in entry["message"]
    assert orjson.loads(text(result)) == result.structured_content


async def test_a_model_that_the_endpoint_lacks_is_told_with_those_it_has(talk, upstream):
    upstream.models = ["qwen3-8b"]
    upstream.reply = status(404, "The model `test-model` does not exist")
    result = await _generate(talk, "a")
    assert text(result).endswith(
        "The endpoint has qwen3-8b: name one with `model_name` (in the configuration, or by generation_init)."
    )
    assert "promptmill check" not in text(result)
    assert codes(result) == {0: "not_found"}


async def test_when_nothing_is_answered_the_commonest_reason_comes_first(talk, upstream):
    upstream.reply = by_prompt({"odd": status(404, "no such model")}, status(422, "cannot"))
    result = await _generate(talk, "odd", "a", "b")
    assert result.is_error
    assert text(result).startswith("2 of 3 failed with bad_request: ")
    assert "not_found" in text(result)
    assert result.structured_content["ans_ls"] == ["", "", ""]
    assert codes(result) == {0: "not_found", 1: "bad_request", 2: "bad_request"}
    assert result.meta["requests"] == 3


@pytest.mark.parametrize(("on_error", "is_error"), [("report", False), ("raise", True)])
async def test_on_error_raise_turns_any_failure_into_an_error_that_holds_the_answers(
    serve, upstream, on_error, is_error
):
    upstream.reply = by_prompt({"bad": status(400)})
    async with serve(top={"on_error": on_error}) as talk:
        result = await _generate(talk, "a", "bad")
    assert result.is_error is is_error
    assert result.structured_content["ans_ls"] == ["echo: a", ""]
    assert codes(result) == {1: "bad_request"}


async def test_a_filtered_answer_is_a_failure(talk, upstream):
    upstream.reply = by_prompt({"bad": answer("", finish_reason="content_filter")})
    assert codes(await _generate(talk, "bad", "x")) == {0: "content_filter"}
    assert upstream.attempts["bad"] == 1


# What is tried again


@pytest.mark.parametrize("code", [408, 409, 425, 429, 500, 502, 503, 504, 529])
async def test_these_answers_are_tried_again(talk, upstream, code):
    upstream.reply = attempts(status(code), answer())
    result = await _generate(talk, "x")
    assert result.structured_content == {"ans_ls": ["echo: x"]}
    assert result.meta["attempts"] == [2]


@pytest.mark.parametrize(
    "fault",
    [reset(), reset(10), closed(), truncated(), html(), raw(b"{"), raw(b""), answer("", finish_reason=None), hang()],
)
async def test_these_faults_are_tried_again(serve, upstream, fault):
    upstream.reply = attempts(fault, answer())
    async with serve(timeout=[1, 0.3]) as talk:
        result = await _generate(talk, "x")
    assert result.structured_content == {"ans_ls": ["echo: x"]}
    assert result.meta["retries"] == 1


@pytest.mark.parametrize(
    ("reply", "code"),
    [
        (status(400), "bad_request"),
        (status(404), "not_found"),
        (status(413), "request_too_large"),
        (status(422), "bad_request"),
        (status(400, "This model's maximum context length is 8", code="context_length_exceeded"), "context_length"),
        (status(429, "Request too large for m on tokens per min (TPM): Limit 5, Requested 9"), "request_too_large"),
        (quota(), "insufficient_quota"),
        (status(402), "insufficient_quota"),
        (status(401), "unauthorized"),
        (status(403), "unauthorized"),
    ],
)
async def test_these_are_not_tried_again(talk, upstream, reply, code):
    upstream.reply = reply
    result = await _generate(talk, "x")
    assert result.is_error
    assert codes(result) == {0: code}
    assert text(result).startswith(f"{code}: ")
    assert len(upstream.seen) == 1


@pytest.mark.parametrize("reply", [status(401), status(403), quota()])
async def test_a_refused_key_stops_all_new_requests_at_once(serve, upstream, reply):
    upstream.reply = reply
    async with serve(concurrency=8) as talk:
        result = await _generate(talk, *_numbers(300))
    assert result.is_error
    assert len(codes(result)) == 300
    assert len(upstream.seen) <= 8


@pytest.mark.parametrize(
    "refusal",
    [
        status(429, retry_after="1"),
        status(429, retry_after=http_date(2)),
        status(429, headers={"retry-after-ms": "700"}),
        status(503, retry_after="1"),
    ],
)
async def test_the_endpoint_is_given_the_time_it_asks_for(serve, upstream, refusal):
    upstream.reply = attempts(refusal, answer())
    async with serve(max_delay=1) as talk:
        assert (await _generate(talk, "x")).structured_content == {"ans_ls": ["echo: x"]}
    first, second = upstream.seen
    assert 0.6 < second.at - first.at < 10


async def test_a_time_beyond_ten_times_the_longest_wait_ends_the_call_and_is_said(serve, upstream):
    upstream.reply = status(429, retry_after="3600")
    async with serve(max_delay=0.05) as talk:
        result = await _generate(talk, "x")
    assert result.is_error
    assert "UTC, in 60 min" in result.content[0].text
    assert len(upstream.seen) == 1


# Load is the endpoint's affair


async def test_a_busy_endpoint_costs_time_and_no_answer(serve, upstream):
    upstream.reply = at_most(4, late(0.005), status(429))
    prompts = _numbers(200)
    async with serve(retries=5, base_delay=0.05, max_delay=1) as talk:
        result = await _generate(talk, *prompts)
    assert result.structured_content == {"ans_ls": _echoes(prompts)}


async def test_an_endpoint_that_vanishes_for_a_while_costs_time_and_no_answer(serve, upstream):
    def away(seen):
        return len(upstream.seen) >= 60 and 0 <= seen.at - upstream.seen[59].at < 1.4

    # a connection that was being accepted when the upstream went away must not go on answering
    upstream.reply = vanishing(60, 1.5, choose(lambda seen: reset() if away(seen) else late(0.005)))
    prompts = _numbers(200)
    async with serve(retries=5) as talk:
        assert (await _generate(talk, *prompts)).structured_content == {"ans_ls": _echoes(prompts)}


async def test_a_prompt_that_kills_its_connection_costs_only_itself(serve, upstream):
    upstream.reply = by_prompt({"killer": reset()}, late(0.01))
    async with serve(retries=3) as talk:
        result = await _generate(talk, *_numbers(40), "killer", *_numbers(40))
    assert codes(result) == {40: "connection_lost"}
    assert result.structured_content["errors"][0]["attempts"] == upstream.attempts["killer"] <= 15


async def test_one_item_that_alone_is_refused_is_sent_little_more_often_than_its_retries(serve, upstream):
    upstream.reply = by_prompt({"busy": status(429)}, late(0.01))
    async with serve(retries=2, base_delay=0.001, concurrency=4) as talk:
        result = await _generate(talk, "busy", *_numbers(60))
    assert codes(result) == {0: "rate_limited"}
    assert result.structured_content["errors"][0]["attempts"] == upstream.attempts["busy"] <= 4


async def test_an_item_is_sent_no_more_than_five_times_its_retries(serve, upstream):
    upstream.reply = status(429)
    async with serve(retries=2, base_delay=0.001) as talk:
        result = await _generate(talk, "busy")
    assert result.is_error
    assert upstream.attempts["busy"] == 10


@pytest.mark.simulated
async def test_patience_ends_with_an_endpoint_that_answers_nothing(serve, upstream):
    upstream.reply = status(429)
    began = time.monotonic()
    async with serve(patience=0.5, retries=100) as talk:
        result = await _generate(talk, *_numbers(20))
    assert set(codes(result).values()) == {"rate_limited"}
    assert 0.49 < time.monotonic() - began < 3


@pytest.mark.simulated
async def test_a_port_where_nobody_listens_is_said_soon(talk, upstream):
    upstream.vanish(None)
    began = time.monotonic()
    result = await _generate(talk, "a", "b")
    assert set(codes(result).values()) == {"unreachable"}
    assert str(upstream.port) in text(result)
    assert time.monotonic() - began < 3


async def test_a_name_that_nobody_knows_is_said_and_is_ours(serve):
    async with serve(base_url="http://no-such-host.example/v1") as talk:
        result = await _generate(talk, "a")
    assert codes(result) == {0: "name_resolution"}
    assert "no-such-host.example" in text(result)


# Time


async def test_an_item_may_have_a_deadline_of_its_own(serve, upstream):
    upstream.reply = by_prompt({"slow": hang()})
    async with serve(item_timeout=0.3) as talk:
        assert codes(await _generate(talk, "slow", "x")) == {0: "item_timeout"}


async def test_a_call_that_takes_too_long_returns_what_is_done(serve, upstream):
    upstream.reply = by_prompt({"slow": hang()})
    async with serve(top={"call_timeout": 0.5}) as talk:
        result = await talk("generate", prompt_ls=["a", "slow"])
        await until(lambda: not upstream.in_flight)
    assert result.structured_content["ans_ls"] == ["echo: a", ""]
    assert codes(result) == {1: "deadline"}
    assert result.structured_content["errors"][0]["retryable"]


# What cannot be done as asked


@pytest.mark.parametrize(("unsupported", "is_error"), [("warn", False), ("error", True)])
async def test_a_parameter_that_the_endpoint_cannot_take_is_a_warning_or_an_error(
    serve, upstream, unsupported, is_error
):
    # how an answer is received is ours everywhere, so that no endpoint of a certain kind is needed here
    async with serve(top={"unsupported": unsupported, "extra_params": {"stream": True}}) as talk:
        # how an answer is received is ours everywhere, so that no endpoint of a certain kind is needed here
        result = await _generate(talk, "x")
    assert result.is_error is is_error
    if is_error:
        assert codes(result) == {0: "unsupported"}
        assert not upstream.seen
    else:
        assert any("`stream`" in warning for warning in result.meta["warnings"])
        assert "stream" not in sent(upstream)
