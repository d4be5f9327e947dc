"""Requests to endpoints whose models decide, through the whole chain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import pytest

from decision_replies import decides, likeliest, shares
from fakes import openai_config, openai_configuration
from promptmill.answers.response_format import asking_for
from promptmill.backends import registry
from promptmill.backends.protocol import Call, Completion, Facts, Failure, Outcome
from promptmill.config.configuration import Configuration
from promptmill.core.errors import Code
from promptmill.core.form import Form, Question, YesNo
from promptmill.core.request import Conversation, Fields, Message, Request, Sampling, conversation_from_prompt
from promptmill.service.service import Service
from promptmill.steps.costs import most_of, worst_case
from promptmill.steps.decided import bytes_of, tokens_of
from promptmill.steps.flights import request_digest
from promptmill.steps.prices import Prices, price_of

MANY = {f"q{at:03}": {"type": "boolean"} for at in range(150)}
LABELS: dict[str, Any] = {"choices": ["billing", "tech"]}


def schema(fields: Mapping[str, Any], required: Sequence[str] | None = None) -> dict[str, Any]:
    """Return the parameter of these fields."""
    wanted = [*(fields if required is None else required)]
    return {"response_format": asking_for({"type": "object", "properties": {**fields}, "required": wanted})}


class Asking:
    """Asks the upstream as a program does."""

    def __init__(self, upstream: Any) -> None:
        self.upstream = upstream
        self.call = Call()

    async def ask(
        self, prompts: Sequence[str], sampling: Mapping[str, Any], top: Mapping[str, Any] | None = None, **block: Any
    ) -> list[Outcome]:
        """Return the outcomes."""
        usual = {"dialect": "systemone", "model_name": "jev-latest"}
        configuration = openai_configuration(self.upstream.url, **{**usual, **block})
        async with aclosing(Service(Configuration({**configuration._raw, **(top or {})}))) as service:
            config = service.config.with_sampling(sampling)
            items = [conversation_from_prompt(prompt, "a prompt") for prompt in prompts]
            self.call = Call(Facts(total=len(prompts)))
            return await service.generate(items, self.call, config=config)


@pytest.fixture
def asking(upstream: Any) -> Asking:
    """An endpoint that decides."""
    upstream.reply = decides()
    return Asking(upstream)


async def test_choices_are_answered_with_their_probabilities_and_an_alias_is_named(asking: Asking) -> None:
    (outcome,) = await asking.ask(["mail"], LABELS)
    chances = shares(LABELS["choices"], "mail", "answer")
    assert isinstance(outcome, Completion)
    assert (outcome.text, outcome.probabilities) == (likeliest(chances), {"": chances})
    assert outcome.answered_by == "jev-1.14.0"
    assert any("jev-1.14.0 has answered" in warning for warning in asking.call.warnings)
    await asking.ask(["mail"], LABELS, model_name="jev-1.14.0")
    assert not asking.call.warnings


@pytest.mark.parametrize(
    ("asked", "is_noted"),
    [
        ("jev-1.13.0", True),
        ("jev-1.1", True),
        ("jev", True),
        ("jev-1.14.0", False),
        ("typesafe/jev-1.14.0", False),
        ("JEV-1.14.0", False),
    ],
)
@pytest.mark.parametrize("date", ["", "-20261014", "-2026-10-14"])
async def test_an_answer_of_another_model_than_was_asked_is_noted(
    asking: Asking, asked: str, date: str, *, is_noted: bool
) -> None:
    asking.upstream.reply = decides(model=f"jev-1.14.0{date}")
    await asking.ask(["mail"], LABELS, model_name=asked)
    assert any(f"{asked} was asked" in warning for warning in asking.call.warnings) == is_noted


async def test_more_questions_than_a_request_has_are_several_requests_with_one_outcome(asking: Asking) -> None:
    price = {"price": {"input": 1_000_000, "output": 0}, "max_cost": 1e6}
    (outcome,) = await asking.ask(["mail"], schema(MANY), price)
    assert sorted(len(seen.json["questions"]) for seen in asking.upstream.seen) == [22, 64, 64]
    assert isinstance(outcome, Completion), outcome
    yes = {name: shares(["yes", "no"], "mail", name)["yes"] for name in MANY}
    assert outcome.probabilities == {name: {"true": p, "false": round(1 - p, 6)} for name, p in yes.items()}
    tokens = sum(len(seen.raw) // 4 for seen in asking.upstream.seen)
    assert (outcome.attempts, outcome.wanted, outcome.usage.prompt_tokens, outcome.cost) == (3, 3, tokens, tokens)


async def test_many_labels_in_several_requests_are_one_list(asking: Asking) -> None:
    labels = [f"l{at}" for at in range(100)]
    (outcome,) = await asking.ask(["mail"], schema({"topics": {"type": "array", "items": {"enum": labels}}}))
    assert len(asking.upstream.seen) == 2
    assert isinstance(outcome, Completion)
    names = {one: f"q{at % 64 + 1}" for at, one in enumerate(labels)}  # servers refuse some signs of `topics: l0`
    given = [one for one in labels if shares(["yes", "no"], "mail", names[one])["yes"] >= 0.5]
    assert outcome.text == '{"topics":["' + '","'.join(given) + '"]}'


async def test_a_failed_part_keeps_the_answers_of_the_others(asking: Asking) -> None:
    def without(body: dict[str, Any]) -> dict[str, Any]:
        return body | {"answers": {name: one for name, one in body["answers"].items() if name != "q070"}}

    asking.upstream.reply = decides(without)
    (outcome,) = await asking.ask(["mail"], schema(MANY))
    assert isinstance(outcome, Failure)
    assert "`q070`" in outcome.error.message
    assert outcome.part.count(":") == 149
    assert (outcome.attempts, outcome.wanted) == (3, 3)
    assert len(asking.upstream.seen) == 3


@pytest.mark.parametrize(
    ("sampling", "said"),
    [
        ({}, "names none"),
        (schema({"team": {"enum": ["a", "b"]}, "why": {"type": "string"}}), "The field why may have any value"),
        (schema({"price": {"type": "number"}, "tags": {"type": "array"}}), "The fields price, tags may"),
        ({"choices": [str(at) for at in range(256)]}, "256 options, of which this endpoint takes 255"),
    ],
)
async def test_what_cannot_be_decided_ends_the_call_before_its_first_request(
    asking: Asking, sampling: dict[str, Any], said: str
) -> None:
    outcomes = await asking.ask(["a", "b", "c"], sampling)
    assert asking.upstream.seen == []
    assert all(isinstance(one, Failure) and one.error.code is Code.INVALID_INPUT for one in outcomes)
    assert said in outcomes[0].error.message  # type: ignore[union-attr]


async def test_null_for_a_field_that_has_none_is_not_asked_for_again(asking: Asking) -> None:
    def null(body: dict[str, Any]) -> dict[str, Any]:
        told = {"yes": 0.1, "no": 0.1, "not stated": 0.8}
        return body | {"answers": {"a": {"type": "choice", "choice": "not stated", "probabilities": told}}}

    asking.upstream.reply = decides(null)
    (outcome,) = await asking.ask(["mail"], schema({"a": {"type": ["boolean", "null"]}}))
    assert isinstance(outcome, Completion)
    assert outcome.text == '{"a":null}'
    await asking.ask(["mail"], schema({"a": {"type": "boolean"}}, required=()))
    assert len(asking.upstream.seen) == 2


def _rows(*texts: str) -> Request:
    conversation = Conversation((Message("user", "a b c"),))
    parts = ("", "one", " ", "two", "") if len(texts) == 2 else ("", "one", "")
    return Request(0, conversation, Sampling(choices=["a", "b"]), fields=Fields(parts, texts))


def test_the_columns_are_in_the_key_where_the_model_decides_and_only_there() -> None:
    one, other = _rows("a b", "c"), _rows("a", "b c")
    assert request_digest(one) == request_digest(other)
    assert request_digest(one, decides=True) != request_digest(other, decides=True)
    turned = replace(one, sampling=Sampling(choices=["b", "a"]))
    assert request_digest(one, decides=True) != request_digest(turned, decides=True)


def test_definitions_and_the_questions_of_a_client_are_in_the_key_where_the_model_decides() -> None:
    plain = replace(_rows("a"), sampling=Sampling(choices=["a", "b"], definitions={"a": "one"}))
    other = replace(plain, sampling=Sampling(choices=["a", "b"], definitions={"a": "two"}))
    assert request_digest(plain, decides=True) != request_digest(other, decides=True)
    asked, otherwise = (
        replace(_rows("a"), sampling=Sampling(), form=Form((Question("", words, YesNo()),)))
        for words in ("Is it?", "Was it?")
    )
    assert request_digest(asked, decides=True) != request_digest(otherwise, decides=True)


def test_the_highest_cost_counts_the_evidence_of_each_part() -> None:
    config = openai_config("http://h", provider="databricks-decisions", model_name="jev")
    labels = {"type": "array", "items": {"enum": [f"label {number}" for number in range(200)]}}
    schema = {"type": "object", "properties": {"labels": labels}, "required": ["labels"]}
    request = replace(_rows("x" * 100_000), sampling=Sampling(response_format=asking_for(schema)))
    price = price_of(config)
    assert price is not None
    assert most_of(request, config, Prices(config, price)) > 4 * 100_000 * 0.042 / 1e6 * 2
    assert 4 * 25_000 < tokens_of(request, 64) < 110_000


async def test_decisions_are_cached_without_a_temperature(asking: Asking, tmp_path: Any) -> None:
    top = {"cache": str(tmp_path / "answers.sqlite")}
    first = await asking.ask(["mail"], LABELS, top)
    again = await asking.ask(["mail"], LABELS, top)
    assert len(asking.upstream.seen) == 1
    assert [one.probabilities for one in first] == [one.probabilities for one in again]


def test_the_price_of_a_provider_is_that_of_its_input() -> None:
    config = openai_config([], provider="typesafe", model_name="jev-1.14.0")
    price = price_of(config)
    assert price is not None
    assert registry.decides(config)
    request = _rows("a b", "c")
    most = worst_case(request, decides=True)
    assert (most.completion_tokens, most.prompt_tokens > bytes_of(request) > 4 * (tokens_of(request) - 1)) == (0, True)
    assert most_of(request, config, Prices(config, price)) == pytest.approx(most.prompt_tokens * 0.042 / 1e6)
    other = openai_config("https://api.openai.com/v1", dialect="decisions", model_name="gpt-6-luna")
    assert (price_of(other) or price).cost(most) == pytest.approx(most.prompt_tokens * 0.10 / 1e6)


async def test_a_row_with_a_sound_fails_alone(asking: Asking) -> None:
    configuration = openai_configuration(
        asking.upstream.url, dialect="systemone", model_name="jev-1.14.0", concurrency=1
    )
    async with aclosing(Service(configuration)) as service:
        config = service.config.with_sampling(LABELS)
        sound = {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}}
        items = [conversation_from_prompt({"content": [sound]}, "it"), conversation_from_prompt("mail", "it")]
        outcomes = await service.generate(items, Call(Facts(total=2)), config=config)
    assert isinstance(outcomes[0], Failure)
    assert (outcomes[0].error.code, outcomes[0].concerns_all) == (Code.UNSUPPORTED, False)
    assert isinstance(outcomes[1], Completion)
