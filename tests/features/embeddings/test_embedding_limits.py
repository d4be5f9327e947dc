"""A request for embeddings has no answer whose length a budget would have to bound."""

from __future__ import annotations

from fakes import openai_configuration
from promptmill.config.configuration import Configuration
from promptmill.steps.costs import lacking


def test_a_budget_needs_no_limit_of_answers_for_embeddings():
    raw = {**openai_configuration("http://127.0.0.1:1/v1")._raw, "price": "1/2"}
    config = Configuration(raw).config
    assert lacking([config]) is not None
    assert lacking([config.with_sampling({"embed": True})]) is None
