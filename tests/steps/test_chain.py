"""The steps of a request: those that no request would want are named, and a call's are found once."""

from unittest import mock

import pytest

from promptmill.answers.check import Check
from promptmill.backends.protocol import Call, Completion, Facts
from promptmill.config.configuration import Configuration
from promptmill.core import feature
from promptmill.core.errors import PromptmillError
from promptmill.core.parameter import Added, Parameters
from promptmill.core.request import Request, Sampling, conversation_from_prompt
from promptmill.steps import chain
from promptmill.steps.step import Place, Sent, Step


class Loudness(Parameters):
    loudness: int | None = None


class NoCheck:
    """Has the methods of a check, but not its class."""

    wanted_by = ("max_tokens",)


class Misspelt(Check):
    wanted_by = ("max_token",)


class Text(Check):
    wanted_by = "max_tokens"


class OfNothing(Check):
    pass


class OfSent(Check):
    wanted_by = ("loudness",)


class Nowhere(Step):
    wanted_by = ("max_tokens",)


class OfFacts(Step):
    place = Place.CACHED
    wanted_by = ("total",)

    async def answer(self, request, call):
        return Completion("of facts")


class CheckOfFacts(Check):
    wanted_by = ("total",)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (NoCheck, "NoCheck is neither a `Step` nor a `Check`"),
        (Misspelt, "Misspelt names no parameter: max_token. It is a tuple"),
        (Text, "Text names no parameter: 'max_tokens'. It is a tuple"),
        (CheckOfFacts, "CheckOfFacts names no parameter: total"),
        (OfNothing, "OfNothing names no parameter: it is empty"),
        (OfSent, "loudness of the check .*OfSent would be sent to the model; mark it: `Annotated"),
        (Nowhere, "Nowhere has no place in the chain of steps; add `place = Place"),
    ],
)
def test_a_mistake_in_a_check_or_a_step_is_named(monkeypatch, kind, words):
    monkeypatch.setattr(feature, "answers", lambda: (kind,))
    monkeypatch.setattr(chain, "ADDED", Added((Loudness,)))
    monkeypatch.setattr(Sampling, "__pydantic_fields__", Sampling.model_fields | Loudness.model_fields)
    with pytest.raises(PromptmillError, match=words):
        chain.steps_of_features()


def test_a_step_may_want_the_facts_of_a_call(monkeypatch):
    monkeypatch.setattr(feature, "answers", lambda: (OfFacts,))
    assert chain.steps_of_features() == [OfFacts]


async def test_the_steps_of_calls_that_alternate_are_found_once_for_each():
    async def backend(request, call):
        return Completion("of the backend")

    answer = chain.around([OfFacts()], backend)
    calls = [Call(Facts(total=3)), Call(Facts())]
    request = Request(0, conversation_from_prompt("a", "a prompt"), Sampling())
    with mock.patch.object(chain, "_wants", wraps=chain._wants) as wants:
        said = [(await answer(request, calls[at % 2])).text for at in range(20)]
    assert said == ["of facts", "of the backend"] * 10
    assert wants.call_count == 2


def test_what_a_step_sends_is_found_once_for_a_model(monkeypatch):
    made = []

    class Half(OfFacts):
        wanted_by = ("max_tokens",)

        @classmethod
        def sending(cls, config, *, by_batch):
            made.append((config, by_batch))
            return lambda request: Sent(request, 0.5)

    monkeypatch.setattr(feature, "answers", lambda: (Half,))
    config = Configuration({}).config
    sent = chain.sending(config, by_batch=True)
    wanted, other = (Request(0, conversation_from_prompt("a", "b"), Sampling(max_tokens=n)) for n in (5, None))
    assert [sent(one).part for one in (wanted, wanted, other)] == [0.5, 0.5, 1]
    assert made == [(config, True)]
