"""Right answers in every dress that endpoints give them."""

from __future__ import annotations

import asyncio
import subprocess
import sys

import orjson
import pytest

from driving import ask, echoes, opened
from fakes import ListSource
from promptmill.answers.reasoning import FAMILIES
from promptmill.backends.protocol import Completion, Failure, Usage
from promptmill.core.errors import Code
from promptmill.core.request import Sampling
from replies import answer, attempts, by_prompt, drip, late, raw, sse, then_close, zipped
from waiting import until

pytestmark = pytest.mark.usefixtures("either_way")

CALL = {"id": "call_1", "type": "function", "function": {"name": "look", "arguments": '{"at": "moon"}'}}
PARTS = [{"type": "text", "text": "for"}, {"type": "text", "text": "ty-two"}]


@pytest.mark.parametrize(
    ("reply", "text", "finish"),
    [
        (answer("forty-two"), "forty-two", "stop"),
        (answer("forty-", finish_reason="length"), "forty-", "length"),
        (answer("", finish_reason="stop"), "", "stop"),
        (answer(None, finish_reason="stop"), "", "stop"),
        (answer("forty-two", finish_reason=None), "forty-two", None),
        (answer(PARTS), "forty-two", "stop"),
        (answer([{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}, *PARTS]), "forty-two", "stop"),
        (answer(["forty", "-two"]), "forty-two", "stop"),
        (answer("😀 \0 ü"), "😀 \0 ü", "stop"),
        (answer("  forty-two\n"), "  forty-two\n", "stop"),
    ],
)
async def test_an_answer_is_read_whole(upstream, drive, reply, text, finish):
    upstream.reply = reply
    outcome = (await drive(["hi"])).outcomes[0]
    assert isinstance(outcome, Completion), outcome
    assert (outcome.text, outcome.finish_reason, outcome.attempts) == (text, finish, 1)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("message", "content"),
    [
        ({"reasoning_content": "let me think"}, "forty-two"),
        ({"reasoning": "let me think"}, "forty-two"),
        ({"reasoning_details": [{"type": "reasoning.text", "text": "let me think"}]}, "forty-two"),
        ({"reasoning_details": [{"type": "reasoning.summary", "summary": "let me think"}]}, "forty-two"),
        ({"reasoning_content": None}, "<think>\nlet me think\n</think>\n\nforty-two"),
        ({}, "<think>let me think</think>forty-two"),
        ({}, "\n<think>let me think</think>\nforty-two"),
    ],
)
async def test_reasoning_is_told_apart_from_the_answer(upstream, drive, message, content, stream):
    upstream.reply = answer(content, message=message)
    outcome = (await drive(["hi"], stream=stream)).outcomes[0]
    assert isinstance(outcome, Completion)
    assert (outcome.text, outcome.reasoning) == ("forty-two", "let me think")


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.models)
async def test_the_reasoning_of_each_family_of_models_is_told_apart_also_in_a_stream_cut_inside_its_marks(
    upstream, drive, family
):
    text = f"{family.openings[0]}\nlet me think\n{family.closings[0]}forty-two"
    pieces = [orjson.dumps({"choices": [{"delta": {"content": text[at : at + 3]}}]}) for at in range(0, len(text), 3)]
    streamed = sse(*(b"data: " + piece for piece in pieces), b"data: [DONE]")
    upstream.reply = attempts(answer(text), streamed)
    outcomes = [*(await drive(["hi"])).outcomes, *(await drive(["hi"], stream=True)).outcomes]
    assert {(outcome.text, outcome.reasoning) for outcome in outcomes} == {("forty-two", "let me think")}


async def test_an_unknown_mark_of_reasoning_is_told_once(upstream, drive):
    upstream.reply = by_prompt({"hi": answer("<pondering>hm</pondering>forty-two")}, answer("<pondering2>hm"))
    result = await drive(["hi", "ho"])
    (warning,) = result.call.warnings
    assert "contains <pondering" in warning


async def test_marks_of_turns_and_calls_in_an_answer_are_each_told_once(upstream, drive):
    upstream.reply = by_prompt({"hi": answer("Paris<|stop_here|>")}, answer('<tool_call>{"name": "look"}</tool_call>'))
    result = await drive(["hi", "hi", "ho", "ho"])
    assert [warning.split(",")[0] for warning in sorted(result.call.warnings)] == [
        "An answer ends with <|stop_here|>",
        "The text of an answer has the mark of a tool call",
    ]


async def test_a_letter_that_is_no_utf_8_is_told(upstream, drive):
    body = '{"choices": [{"message": {"content": "Zürich"}, "finish_reason": "stop"}]}'
    upstream.reply = raw(body.encode("latin-1"))
    result = await drive(["hi"])
    assert result.texts == ["Z\ufffdrich"]
    assert any("A character of an answer was lost" in warning for warning in result.call.warnings)


async def test_an_endpoint_that_refuses_stream_options_is_an_error_that_names_it(upstream, drive):
    location = ["body", "stream_options", "include_usage"]
    upstream.reply = raw(
        orjson.dumps({"detail": [{"loc": location, "msg": "Extra inputs are not permitted"}]}), code=422
    )
    (failure,) = (await drive(["hi"], stream=True)).outcomes
    assert not isinstance(failure, Completion)
    assert "stream_options" in failure.error.message


@pytest.mark.parametrize("content", ["", None, "\n\n"])
async def test_an_empty_answer_that_the_model_ended_is_told_in_a_warning(upstream, drive, content):
    upstream.reply = answer(content)
    result = await drive(["hi"])
    assert isinstance(result.outcomes[0], Completion)
    assert [warning for warning in result.call.warnings if "Answers are empty" in warning]


@pytest.mark.parametrize("stream", [False, True])
async def test_think_tags_inside_an_answer_stay(upstream, drive, stream):
    upstream.reply = answer("Write <think>x</think> to think.")
    outcome = (await drive(["hi"], stream=stream)).outcomes[0]
    assert outcome.text == "Write <think>x</think> to think."
    assert outcome.reasoning is None


@pytest.mark.parametrize("finish", ["stop", "length"])
@pytest.mark.parametrize("text", ["forty-two", " f", "grüße 😀, " * 50])
async def test_a_streamed_answer_is_the_same(upstream, drive, text, finish):
    upstream.reply = answer(text, finish_reason=finish)
    whole, streamed = (await drive(["hi"])).outcomes[0], (await drive(["hi"], stream=True)).outcomes[0]
    assert upstream.seen[-1].json["stream"] is True
    for outcome in (whole, streamed):
        assert isinstance(outcome, Completion)
        assert (outcome.text, outcome.finish_reason) == (text, finish)
    assert whole.usage == streamed.usage


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("content", "message", "sampling"),
    [
        ("", {}, None),
        (None, {}, None),
        ("\n\n", {}, None),
        ("<think>I wonder whether", {}, None),
        ("\n", {"reasoning_content": "I wonder whether"}, None),
        ("", {}, Sampling(reasoning="inline")),
        ("", {}, Sampling(response_format={"type": "json_object"})),
        ("", {}, Sampling(choices=("a", "b"))),
    ],
)
async def test_an_answer_cut_before_its_first_word_fails_once_and_is_paid(
    upstream, drive, content, message, sampling, stream
):
    upstream.reply = answer(content, message=message, finish_reason="length")
    result = await drive(["hi"], sampling=sampling, stream=stream)
    failure = result.outcomes[0]
    assert (failure.error.code, failure.attempts, failure.error.retryable) == (Code.TRUNCATED, 1, False)
    assert "`max_tokens: 4096`" in failure.error.hint
    assert '`again: "failed"`' in failure.error.hint
    assert failure.usage.prompt_tokens == 1
    assert failure.reasoning in {"", "I wonder whether"}


async def test_tool_calls_of_a_cut_answer_are_an_answer(upstream, drive):
    upstream.reply = answer("", message={"tool_calls": [CALL]}, finish_reason="length")
    assert (await drive(["hi"])).outcomes[0].tool_calls


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("reason", ["compaction", "guided_end", "content_complete", "unknown", "pause", "eot"])
async def test_an_empty_answer_with_an_unknown_finish_reason_fails_once_and_is_paid(upstream, drive, reason, stream):
    upstream.reply = answer("", finish_reason=reason)
    failure = (await drive(["hi"], stream=stream)).outcomes[0]
    assert isinstance(failure, Failure)
    assert (failure.error.code, failure.attempts, failure.usage.prompt_tokens) == (Code.EMPTY_ANSWER, 1, 1)
    assert reason in failure.error.message


@pytest.mark.parametrize("reason", ["compaction", "content_complete"])
async def test_an_answer_with_an_unknown_finish_reason_keeps_it(upstream, drive, reason):
    upstream.reply = answer("forty-two", finish_reason=reason)
    outcome = (await drive(["hi"])).outcomes[0]
    assert (outcome.text, outcome.finish_reason) == ("forty-two", reason)


THINKING = Sampling(reasoning="inline")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("<think>I wonder whether", {}),
        ("  <think>\nI wonder whether", {}),
        (None, {"reasoning_content": "I wonder whether"}),
        ("\n\n", {"reasoning_content": "I wonder whether"}),
    ],
)
async def test_an_answer_that_stops_within_its_reasoning_fails_and_is_paid_once(
    upstream, drive, content, message, stream
):
    upstream.reply = answer(content, message=message)
    result = await drive(["hi"], stream=stream)
    failure = result.outcomes[0]
    assert isinstance(failure, Failure)
    assert (failure.error.code, failure.attempts, failure.error.retryable) == (Code.OPEN_REASONING, 1, False)
    assert failure.usage.prompt_tokens == 1
    assert "reasoning: inline" in str(failure.error)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("sampling", [{"response_format": {"type": "json_object"}}, {"choices": ("a", "b")}])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, {"reasoning_content": 'I answer {"answer": "a"}'}),
        ("", {"reasoning": '{"answer": "a"}'}),
        ('<think>It is {"answer": "a"}', {}),
        ('<think>\n{"answer": "a"}\n', {}),  # the template opens the reasoning, and a grammar permits JSON alone
    ],
)
async def test_json_at_the_end_of_a_reasoning_without_an_answer_is_the_answer(
    upstream, drive, content, message, sampling, stream
):
    upstream.reply = answer(content, message=message)
    outcome = (await drive(["hi"], sampling=Sampling(**sampling), stream=stream)).outcomes[0]
    assert isinstance(outcome, Completion)
    assert (outcome.text, outcome.attempts) == ('{"answer": "a"}', 1)
    assert '"a"' in (outcome.reasoning or "")


@pytest.mark.parametrize(
    ("thought", "sampling"),
    [
        ('I answer {"answer": "a"}', {}),
        ('Perhaps {"answer": "a"}', {"choices": ("a", "b")}),
        ('{"answer": "a"} or {"answer": "b"}', {"choices": ("a", "b")}),
        ("a", {"choices": ("a", "b")}),
    ],
)
async def test_any_other_reasoning_is_no_answer(upstream, drive, thought, sampling):
    upstream.reply = answer("", message={"reasoning_content": thought})
    failure = (await drive(["hi"], sampling=Sampling(**sampling))).outcomes[0]
    assert isinstance(failure, Failure)
    assert failure.error.code is Code.OPEN_REASONING


async def test_an_answer_that_breaks_off_within_its_reasoning_is_asked_for_again(upstream, drive):
    upstream.reply = attempts(answer("<think>I wonder", finish_reason=None), answer("forty-two"))
    assert (await drive(["hi"])).texts == ["forty-two"]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("finish", ["stop", "length"])
@pytest.mark.parametrize(
    "text", ["<think>\nI wonder whether", " <think>hm</think>\n\nforty-two\n", "hm\n</think>\nforty-two", "forty-two"]
)
async def test_inline_reasoning_stays_in_the_text_as_the_endpoint_gave_it(upstream, drive, text, finish, stream):
    upstream.reply = answer(text, finish_reason=finish)
    result = await drive(["hi"], sampling=THINKING, stream=stream)
    outcome = result.outcomes[0]
    assert (outcome.text, outcome.reasoning, outcome.finish_reason) == (text, None, finish)
    assert not result.call.warnings
    assert "reasoning" not in upstream.seen[0].json


async def test_reasoning_that_the_endpoint_keeps_apart_stays_apart_when_inline(upstream, drive):
    upstream.reply = answer("forty-two", message={"reasoning_content": "hm"})
    outcome = (await drive(["hi"], sampling=THINKING)).outcomes[0]
    assert (outcome.text, outcome.reasoning) == ("forty-two", "hm")


async def test_tool_calls_alone_are_an_empty_answer_with_the_calls(upstream, drive):
    upstream.reply = answer(None, message={"tool_calls": [CALL]}, finish_reason="tool_calls")
    outcome = (await drive(["hi"])).outcomes[0]
    assert isinstance(outcome, Completion)
    assert (outcome.text, outcome.tool_calls, outcome.finish_reason) == ("", (CALL,), "tool_calls")


async def test_a_call_of_a_tool_that_the_request_does_not_have_is_told(upstream, drive):
    upstream.reply = answer(None, message={"tool_calls": [CALL]}, finish_reason="tool_calls")
    result = await drive(["hi"])
    assert any("although the request has no tools" in warning for warning in result.call.warnings)


async def test_a_call_of_a_tool_of_the_request_is_no_doubt(upstream):
    upstream.reply = answer(None, message={"tool_calls": [CALL]}, finish_reason="tool_calls")
    async with opened(upstream.url) as backend:
        source = ListSource(["hi"], extra={"tools": [{"type": "function", "function": {"name": "look"}}]})
        result = await ask(backend, ["hi"], source=source)
    assert not any("no tools" in warning for warning in result.call.warnings)


async def test_a_streamed_tool_call_is_put_together(upstream, drive):
    def event(call):
        return b'data: {"choices":[{"index":0,"delta":{"tool_calls":[{"index":0,%b}]}}]}' % call

    upstream.reply = sse(
        event(b'"id":"call_1","type":"function","function":{"name":"look","arguments":""}'),
        event(b'"function":{"arguments":"{\\"at\\": "}'),
        event(b'"function":{"arguments":"\\"moon\\"}"}'),
        b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"tool_calls"}]}',
        b"data: [DONE]",
    )
    outcome = (await drive(["hi"], stream=True)).outcomes[0]
    assert (outcome.text, outcome.tool_calls, outcome.finish_reason) == ("", (CALL,), "tool_calls")


async def test_log_probabilities_come_whole_and_in_pieces(upstream, drive):
    probabilities = [{"token": token, "logprob": -0.5} for token in "ab"]
    upstream.reply = answer("ab", logprobs={"content": probabilities})
    assert (await drive(["hi"])).outcomes[0].logprobs == {"content": probabilities}

    def event(token, at):
        found = orjson.dumps({"content": [probabilities[at]], "refusal": None})
        return b'data: {"choices":[{"index":0,"delta":{"content":"%b"},"logprobs":%b}]}' % (token, found)

    end = b'data: {"choices":[{"index":0,"delta":{},"logprobs":null,"finish_reason":"stop"}]}'
    upstream.reply = sse(event(b"a", 0), event(b"b", 1), end, b"data: [DONE]")
    streamed = (await drive(["hi"], stream=True)).outcomes[0]
    assert (streamed.text, streamed.logprobs) == ("ab", {"content": probabilities, "refusal": []})


async def test_a_refusal_is_shown(upstream, drive):
    upstream.reply = answer(None, message={"refusal": "I cannot help with that."})
    outcome = (await drive(["hi"])).outcomes[0]
    shown = outcome.text if isinstance(outcome, Completion) else outcome.error.message
    assert "I cannot help with that." in shown


async def test_half_a_surrogate_pair_becomes_a_replacement_character(upstream, drive):
    upstream.reply = raw(
        rb'{"choices":[{"message":{"content":"cut \ud83d here, \ud83d\ude00 whole"},"finish_reason":"length"}]}'
    )
    outcome = (await drive(["hi"])).outcomes[0]
    assert isinstance(outcome, Completion)
    assert outcome.text == "cut \ufffd here, 😀 whole"
    outcome.text.encode()


async def test_half_a_surrogate_pair_in_a_stream_is_mended_or_becomes_a_replacement_character(upstream, drive):
    pieces = [rb"cut \ud83d here, \ud83d", rb"\ude00 whole"]
    upstream.reply = sse(
        *(b'data: {"choices":[{"index":0,"delta":{"content":"%b"}}]}' % piece for piece in pieces),
        b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}',
        b"data: [DONE]",
    )
    assert (await drive(["hi"], stream=True)).texts == ["cut \ufffd here, 😀 whole"]


async def test_content_streamed_in_parts_is_joined(upstream, drive):
    thinking = b'{"type":"thinking","thinking":[{"type":"text","text":"hm"}]}'
    upstream.reply = sse(
        b'data: {"choices":[{"index":0,"delta":{"role":"assistant","content":[%b]}}]}' % thinking,
        b'data: {"choices":[{"index":0,"delta":{"content":[{"type":"text","text":"for"}]}}]}',
        b'data: {"choices":[{"index":0,"delta":{"content":"ty"}}]}',
        b'data: {"choices":[{"index":0,"delta":{"content":"-two"},"finish_reason":"stop"}]}',
        b"data: [DONE]",
    )
    assert (await drive(["hi"], stream=True)).texts == ["forty-two"]


@pytest.mark.parametrize("stream", [False, True])
async def test_usage_is_counted(upstream, drive, stream):
    upstream.reply = answer("a b c")
    result = await drive(["one two", "three"], stream=stream)
    assert result.outcomes[0].usage == Usage(2, 3)
    assert (result.call.counts.prompt_tokens, result.call.counts.completion_tokens) == (3, 6)


async def test_an_answer_without_usage_is_an_answer(upstream, drive):
    upstream.reply = raw(b'{"choices":[{"message":{"content":"x"},"finish_reason":"stop"}],"usage":null}')
    outcome = (await drive(["hi"])).outcomes[0]
    assert (outcome.text, outcome.usage) == ("x", Usage())


@pytest.mark.parametrize("reply", [zipped(), drip(0.01, 10), late(0.02)])
async def test_how_the_bytes_come_does_not_matter(upstream, drive, reply):
    upstream.reply = reply
    prompts = [f"grüße {i} 😀" for i in range(20)]
    assert (await drive(prompts)).texts == echoes(prompts)


@pytest.mark.parametrize("seconds", [0, 0.002])
async def test_connections_that_close_after_each_answer_cost_nothing(upstream, drive, seconds):
    upstream.reply = then_close(answer(), seconds)
    prompts = [str(i) for i in range(300)]
    assert (await drive(prompts, concurrency=16, retries=5)).texts == echoes(prompts)
    assert set(upstream.attempts.values()) == {1}, "a request on a connection that is closed meanwhile is never read"


@pytest.mark.thorough  # computes for half a minute
async def test_under_load_an_endpoint_reads_each_prompt_once(upstream, drive):
    """Whatever is sent again: requests to connections that the endpoint closes, or has not accepted yet."""
    burning = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(8)]
    try:
        for number in range(9):
            upstream.reply = (then_close(answer(), 0.002), late(0.02), late(0.5))[number % 3]
            prompts = [f"{number} {i}" for i in range(1000)]
            assert (await drive(prompts, retries=5, timeout=[10, 60])).texts == echoes(prompts)
    finally:
        for process in burning:
            process.kill()
            process.wait()
    assert set(upstream.attempts.values()) == {1}
    assert len(upstream.attempts) == 9000


@pytest.mark.thorough
async def test_idle_connections_that_the_server_closed_cost_nothing(upstream):
    prompts = [str(i) for i in range(40)]
    async with opened(upstream.url, concurrency=20, retries=2) as backend:
        upstream.reply = late(0.02)
        await ask(backend, prompts)
        for _ in range(3):
            upstream.vanish()
            upstream.come_back()
            result = await ask(backend, prompts)
            assert result.texts == echoes(prompts)


@pytest.mark.parametrize("length", [1, 60_000])
async def test_an_answer_that_nobody_asked_for_is_nobodys(upstream, length):
    """A server or proxy may say something more on a connection that is kept."""

    async def twice(exchange):
        await answer()(exchange)
        try:
            await exchange.sleep(0.05)  # the connection is back in the pool
            await answer("meant for somebody else")(exchange)
        finally:  # a session may have closed the connection
            said.append(exchange.seen.number)

    upstream.reply, said, texts = twice, [], []
    prompts = [letter * length for letter in "abc"]
    async with opened(upstream.url, concurrency=1) as backend:
        for number, prompt in enumerate(prompts, 1):
            texts.extend((await ask(backend, [prompt])).texts)
            await until(lambda number=number: len(said) == number)
            await asyncio.sleep(0.05)  # it is here
    assert texts == echoes(prompts)


@pytest.mark.thorough
async def test_answers_stay_with_their_prompts(upstream, drive):
    slow = {str(i): late((i * 7 % 10) / 100) for i in range(0, 200, 3)}
    upstream.reply = by_prompt(slow)
    prompts = [str(i) for i in range(200)]
    assert (await drive(prompts, concurrency=32)).texts == echoes(prompts)


async def test_nothing_to_ask_sends_nothing(upstream, drive):
    assert (await drive([])).outcomes == []
    assert not upstream.seen


@pytest.mark.thorough
async def test_a_prompt_of_20_mb_goes_through(upstream, drive):
    upstream.reply = answer("read")
    assert (await drive(["x" * 20_000_000, "small"])).texts == ["read", "read"]
    assert max(len(seen.raw) for seen in upstream.seen) > 20_000_000


async def test_half_a_surrogate_pair_in_a_prompt_costs_only_itself(upstream, drive):
    result = await drive(["a", "\ud800", "b"])
    assert result.texts == ["echo: a", None, "echo: b"]
    failure = result.failures[1]
    assert (failure.error.code, failure.attempts) == ("invalid_input", 0)
