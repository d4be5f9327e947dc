"""Steps and checks that features add: those that no request would want are named, instead of unused."""

import pytest

from promptmill.answering import chain
from promptmill.answering.step import Step
from promptmill.answers.check import Check
from promptmill.core import feature
from promptmill.core.errors import PromptmillError


class NoCheck:
    """Has the methods of a check, but not its class."""

    wanted_by = ("max_tokens",)


class Misspelt(Check):
    wanted_by = ("max_token",)


class Text(Check):
    wanted_by = "max_tokens"


class OfFacts(Step):
    wanted_by = ("total",)


class CheckOfFacts(Check):
    wanted_by = ("total",)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (NoCheck, "NoCheck is neither a `Step` nor a `Check`"),
        (Misspelt, "Misspelt names no parameter: max_token. It is a tuple"),
        (Text, "Text names no parameter: 'max_tokens'. It is a tuple"),
        (CheckOfFacts, "CheckOfFacts names no parameter: total"),
    ],
)
def test_a_check_that_no_request_would_want_is_named(monkeypatch, kind, words):
    monkeypatch.setattr(feature, "answers", lambda: (kind,))
    with pytest.raises(PromptmillError, match=words):
        chain.steps_of_features()


def test_a_step_may_want_the_facts_of_a_call(monkeypatch):
    monkeypatch.setattr(feature, "answers", lambda: (OfFacts, Check))
    assert chain.steps_of_features() == [OfFacts]
