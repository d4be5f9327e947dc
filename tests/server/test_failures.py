"""What goes wrong, as a client sees it: each sentence of the contract's section on failures, provoked at the wire."""

import orjson
import pytest

from replies import (
    by_prompt,
    choose,
    hang,
    late,
    reset,
    status,
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
        "The endpoint has qwen3-8b: name one with `model` (or `model_name` in `generation_init` or the configuration)."
    )
    upstream.models = ["test-model-2"]
    assert text(await _generate(talk, "b")).endswith(
        "Did you mean test-model-2? `model` (or `model_name` in `generation_init` or the configuration) chooses it."
    )
    assert "promptmill models --check" not in text(result)
    assert codes(result) == {0: "not_found"}


@pytest.mark.thorough
async def test_when_nothing_is_answered_the_commonest_reason_comes_first(talk, upstream):
    upstream.reply = by_prompt({"odd": status(404, "no such model")}, status(422, "cannot"))
    result = await _generate(talk, "odd", "a", "b")
    assert result.is_error
    assert text(result).startswith("2 of 3 failed with bad_request: ")
    assert "not_found" in text(result)
    assert result.structured_content["ans_ls"] == ["", "", ""]
    assert codes(result) == {0: "not_found", 1: "bad_request", 2: "bad_request"}
    assert result.meta["requests"] == 3


@pytest.mark.thorough
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


# What is tried again


# Load is the endpoint's affair


async def test_an_endpoint_that_vanishes_for_a_while_costs_time_and_no_answer(serve, upstream):
    def away(seen):
        return len(upstream.seen) >= 60 and 0 <= seen.at - upstream.seen[59].at < 1.4

    # a connection that was being accepted when the upstream went away must not go on answering
    upstream.reply = vanishing(60, 1.5, choose(lambda seen: reset() if away(seen) else late(0.005)))
    prompts = _numbers(200)
    async with serve(retries=5) as talk:
        assert (await _generate(talk, *prompts)).structured_content == {"ans_ls": _echoes(prompts)}


async def test_a_name_that_nobody_knows_is_said_and_is_ours(serve):
    async with serve(base_url="http://no-such-host.example/v1") as talk:
        result = await _generate(talk, "a")
    assert codes(result) == {0: "name_resolution"}
    assert "no-such-host.example" in text(result)


# Time


@pytest.mark.thorough
@pytest.mark.simulated
async def test_a_call_that_takes_too_long_returns_what_is_done(serve, upstream):
    upstream.reply = by_prompt({"slow": hang()})
    async with serve(top={"call_timeout": 1.5}) as talk:
        result = await talk("generate", prompt_ls=["a", "slow"])
        await until(lambda: not upstream.in_flight)
    assert result.structured_content["ans_ls"] == ["echo: a", ""]
    assert codes(result) == {1: "deadline"}
    assert result.structured_content["errors"][0]["retryable"]


# What cannot be done as asked


@pytest.mark.thorough
@pytest.mark.parametrize(("unsupported", "is_error"), [("warn", False), ("error", True)])
async def test_a_parameter_that_the_endpoint_cannot_take_is_a_warning_or_an_error(
    serve, upstream, unsupported, is_error
):
    # how an answer is received is ours everywhere, so that no endpoint of a certain kind is needed here
    async with serve(top={"unsupported": unsupported, "extra_params": {"stream": True}}) as talk:
        result = await _generate(talk, "x")
    assert result.is_error is is_error
    if is_error:
        assert codes(result) == {0: "unsupported"}
        assert not upstream.seen
    else:
        assert any("`stream`" in warning for warning in result.meta["warnings"])
        assert "stream" not in sent(upstream)
