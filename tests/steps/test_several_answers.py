"""`n` answers to one prompt."""

from __future__ import annotations

import asyncio
import json

import pytest

from fakes import openai_configuration
from promptmill.answers.response_format import asking_for
from promptmill.backends.protocol import Call, Completion, Facts, Failure
from promptmill.config.configuration import Configuration
from promptmill.core.errors import Code, PromptmillError
from promptmill.core.request import Request, Sampling, conversation_from_prompt
from promptmill.service.service import Service
from promptmill.steps.several import Copies, SeveralAnswers, failure_in, sums_of, together
from replies import answer, choose, status


@pytest.fixture
def ask(upstream, closing):
    """Ask `prompts` with these sampling parameters; the configuration has `top`."""

    async def asker(*prompts, top=None, block=None, **sampling):
        configuration = openai_configuration(upstream.url, **(block or {}))
        service = closing(Service(Configuration({**configuration._raw, **(top or {})})))
        call = Call(Facts(total=len(prompts)))
        items = [conversation_from_prompt(prompt, "p") for prompt in prompts]
        return await service.generate(items, call, config=service.config.with_sampling(sampling)), call

    return asker


async def test_each_prompt_gets_as_many_answers_as_are_asked_for(ask, upstream):
    upstream.reply = choose(lambda seen: answer(f"{seen.prompt}{seen.json['seed']}"))
    (a, b), call = await ask("a", "b", n=3, seed=7)
    assert (a.text, a.answers) == ("a7", ("a7", "a8", "a9"))
    assert (b.text, b.answers) == ("b7", ("b7", "b8", "b9"))
    assert (call.counts.done, call.counts.failed, call.counts.requests) == (2, 0, 6)
    assert (a.usage.completion_tokens, a.attempts) == (3, 3)
    assert not any("n" in seen.json for seen in upstream.seen), "on every endpoint alike"


async def test_one_answer_is_what_it_always_was(ask, upstream):
    (outcome,), call = await ask("a", n=1)
    assert isinstance(outcome, Completion)
    assert (outcome.answers, call.counts.requests) == ((), 1)


async def test_each_answer_is_held_to_the_schema(ask, upstream):
    texts = iter(['{"a": 1}', "no", '{"a": 2}', '{"a": 3}'])
    upstream.reply = choose(lambda seen: answer(next(texts)))
    schema = asking_for({"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]})
    (outcome,), call = await ask("x", n=3, response_format=schema)
    assert sorted(json.loads(text)["a"] for text in outcome.answers) == [1, 2, 3]
    assert (call.counts.done, call.counts.asked_again, call.counts.requests) == (1, 1, 4)


async def test_an_answer_that_failed_leaves_the_others(ask, upstream):
    numbers = iter(range(10))
    upstream.reply = choose(lambda seen: status(400, "no") if next(numbers) == 1 else answer())
    (outcome,), call = await ask("x", n=3)
    assert sorted(outcome.answers) == ["", "echo: x", "echo: x"]
    assert (outcome.text, call.counts.done, call.counts.failed, call.counts.codes) == ("echo: x", 1, 0, {})
    assert any("1 of 3 answers" in warning for warning in call.warnings)


async def test_a_prompt_without_any_answer_fails_once(ask, upstream):
    upstream.reply = status(400, "no")
    (outcome,), call = await ask("x", n=3)
    assert outcome.error.code is Code.BAD_REQUEST
    assert (call.counts.done, call.counts.failed, call.counts.codes) == (1, 1, {"bad_request": 1})


async def test_a_prompt_for_which_the_budget_ends_fails_and_its_cost_counts(ask, upstream):
    top = {"price": {"input": 0, "output": 1_000_000}, "max_cost": 5.0}
    (outcome,), call = await ask("x y", n=3, top=top, max_tokens=3)
    sent = len(upstream.seen)
    assert 0 < sent < 3
    assert (outcome.error.code, outcome.error.retryable, outcome.attempts) == (Code.BUDGET, True, sent)
    assert (call.counts.failed, outcome.cost, call.counts.cost) == (1, 3.0 * sent, 3.0 * sent)


async def test_several_answers_are_kept_together_in_the_cache(ask, upstream, tmp_path):
    upstream.reply = choose(lambda seen: answer(f"{seen.number}"))
    for _ in range(2):
        (outcome,), call = await ask("x", n=2, top={"cache": str(tmp_path / "a.sqlite")}, temperature=0)
        assert len(outcome.answers) == 2
    assert (call.counts.cached, len(upstream.seen)) == (1, 2)


@pytest.mark.thorough
async def test_workers_send_them_as_well(ask, upstream):
    outcomes, call = await ask(*(f"{at}" for at in range(20)), n=2, block={"num_workers": 2, "bulk_threshold": 10})
    assert [outcome.answers for outcome in outcomes] == [(f"echo: {at}",) * 2 for at in range(20)]
    assert (call.counts.done, call.counts.requests) == (20, 40)


@pytest.mark.parametrize(("size", "together"), [(4, 2), (5, 2), (6, 1), (50, 1), (0, 8)])
async def test_copies_of_long_prompts_in_flight_are_bounded(size, together):
    """One prompt of 7 MB with `n: 128` took 1.4 GB."""
    copies, peak, held = Copies(most=10), 0, 0

    async def send():
        nonlocal peak, held
        async with copies.held(size):
            held += 1
            peak = max(peak, held)
            for _ in range(3):
                await asyncio.sleep(0)
            held -= 1

    await asyncio.gather(*(send() for _ in range(8)))
    assert peak == together


async def test_a_long_prompt_has_all_its_answers(ask, upstream):
    (outcome,), _ = await ask("a" * (1 << 18), n=3)
    assert len(outcome.answers) == len(upstream.seen) == 3


async def test_the_attempts_of_an_earlier_run_count_once():
    async def answer_one(request, call):
        return Completion("a", attempts=request.attempts + 1)

    request = Request(0, conversation_from_prompt("x", "a prompt"), Sampling(n=3), attempts=2)
    outcome = await SeveralAnswers().wrap(answer_one)(request, Call())
    assert isinstance(outcome, Completion)
    assert (outcome.attempts, outcome.answers) == (2 + 3, ("a", "a", "a"))


@pytest.mark.parametrize("keep_raw", [True, False])
async def test_the_details_of_all_answers_are_kept_where_they_are_wanted(keep_raw):
    async def answer_one(request, call):
        details = {"body": {"id": "x", "usage": {"total_tokens": 9}}, "refusal": request.choice}
        return Completion(f"{request.choice}", "stop", details=details)

    request = Request(0, conversation_from_prompt("x", "a prompt"), Sampling(n=2))
    call = Call(Facts(keep_raw=keep_raw))
    outcome = await SeveralAnswers().wrap(answer_one)(request, call)
    assert call.waits.forked == 0
    assert isinstance(outcome, Completion)
    assert outcome.details is not None
    if not keep_raw:
        assert "choices" not in outcome.details
        return
    assert outcome.details["body"] == {"id": "x"}, "the usage of one answer is not that of all"
    kept = [(one["index"], one["text"], one["finish_reason"], one["details"]) for one in outcome.details["choices"]]
    assert kept == [(0, "0", "stop", {"refusal": 0}), (1, "1", "stop", {"refusal": 1})]


async def test_an_error_of_one_request_ends_the_others_and_is_raised():
    call, ended, freed = Call(), [], []
    call.waits.freed = lambda: freed.append(call.waits.forked)
    error = PromptmillError(Code.UNAUTHORIZED, "The key is refused.")

    async def endless() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(call.waits.forked)

    async def refused() -> None:
        raise error

    with pytest.raises(PromptmillError) as raised:
        await together([endless, refused, endless], call)
    assert raised.value is error
    assert ended == [1, 0]
    assert freed == [1, 0, -1]
    assert call.waits.forked == 0


@pytest.mark.parametrize(
    ("characters", "in_image", "peak"), [(40_000, False, 2), (40_000, True, 2), (16_384, False, 4)]
)
async def test_the_first_answer_to_a_long_prompt_waits_for_no_copy(characters, in_image, peak):
    in_flight, most = 0, 0

    async def answer_one(request, call):
        nonlocal in_flight, most
        in_flight += 1
        most = max(most, in_flight)
        for _ in range(3):
            await asyncio.sleep(0)
        in_flight -= 1
        return Completion("a")

    text, image = ("x", "a" * characters) if in_image else ("a" * characters, "")
    content = [{"type": "text", "text": text}, *([{"type": "image_url", "image_url": {"url": image}}] if image else [])]
    several, call = SeveralAnswers(), Call(preview=lambda *_: None)
    several._copies = Copies(most=1)
    request = Request(0, conversation_from_prompt({"content": content}, "a prompt"), Sampling(n=4))
    outcome = await several.wrap(answer_one)(request, call)
    assert isinstance(outcome, Completion)
    assert (outcome.answers, most) == (("a",) * 4, peak)
    assert call.preview is None, "pieces of four answers at a time make no text"


def test_of_several_failures_that_of_the_budget_comes_first():
    refused = Failure(PromptmillError(Code.BAD_REQUEST, "no"), latency_s=1.0)
    spent = Failure(PromptmillError(Code.BUDGET, "spent"), latency_s=3.0)
    answered = Completion("a", latency_s=2.0)
    assert failure_in([answered]) is None
    assert failure_in([answered, refused, Failure(refused.error)]) is refused
    assert failure_in([refused, spent, answered]) is spent
    assert sums_of([refused, spent, answered])["latency_s"] == 3.0


async def test_a_failure_of_all_answers_has_their_number():
    async def answer_one(request, call):
        return Failure(PromptmillError(Code.BAD_REQUEST, "no"))

    request = Request(0, conversation_from_prompt("x", "a prompt"), Sampling(n=3))
    outcome = await SeveralAnswers().wrap(answer_one)(request, Call())
    assert isinstance(outcome, Failure)
    assert outcome.wanted == 3
