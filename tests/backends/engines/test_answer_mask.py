"""hf: answers that are held to a schema while they are written."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest

from promptmill.answers.reasoning import FAMILIES
from promptmill.answers.response_format import asking_for
from promptmill.backends.protocol import Completion
from shapes import SHAPES

pytestmark = pytest.mark.engine


@pytest.mark.thorough
def test_a_model_of_noise_keeps_to_two_hundred_schemas(desk, tiny_engine):
    formats = tuple(asking_for(shape.schema) for shape in SHAPES)
    outcomes = desk.ask(
        tiny_engine, ["x"] * len(SHAPES), max_tokens=160, temperature=1.0, seed=7, response_format=formats
    )
    assert [outcome for outcome in outcomes if not isinstance(outcome, Completion)] == []
    ended = [
        (shape, outcome) for shape, outcome in zip(SHAPES, outcomes, strict=True) if outcome.finish_reason == "stop"
    ]
    for shape, outcome in ended:
        jsonschema.validate(json.loads(outcome.text), shape.schema)
    assert len(ended) > 150, "the others are cut off inside a number or text without a limit"


@pytest.mark.thorough
def test_requests_with_and_without_a_schema_share_a_batch(desk, tiny_engine):
    schema: dict[str, Any] = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}
    schema["additionalProperties"] = False
    formats = tuple(asking_for(schema) if key % 2 else None for key in range(6))
    free, *_ = desk.texts(tiny_engine, ["x"], max_tokens=8)
    texts = desk.texts(tiny_engine, ["x"] * 6, max_tokens=40, response_format=formats)
    assert {text[:4] for text in texts[::2]} == {free[:4]}
    assert all(json.loads(text) in ({"ok": True}, {"ok": False}) for text in texts[1::2])


def test_a_schema_that_cannot_be_held_to_is_an_error_and_the_engine_goes_on(desk, tiny_engine):
    impossible = {
        "type": "object",
        "properties": {"a": {"type": "string", "format": "no-such"}},
        "not": {"required": []},
    }
    formats = (asking_for(impossible), {"type": "json_schema"}, None)
    first, second, third = desk.ask(tiny_engine, ["x"] * 3, max_tokens=4, response_format=formats)
    assert first.error.code == "unsupported"
    assert second.error.code == "invalid_input"
    assert isinstance(third, Completion)


def test_a_schema_beyond_the_limits_of_its_grammar_is_an_error_and_the_engine_goes_on(desk, tiny_engine):
    huge = {"type": "object", "properties": {f"f{i}": {"type": "string"} for i in range(2_500)}}
    first, second = desk.ask(tiny_engine, ["x"] * 2, max_tokens=4, response_format=(asking_for(huge), None))
    assert first.error.code == "unsupported"
    assert "max is 2000" in first.error.message
    assert isinstance(second, Completion)


@pytest.mark.parametrize("family", [family for family in FAMILIES if family.in_prompt], ids=lambda one: one.models)
def test_json_begins_behind_the_reasoning_that_the_prompt_opened(tiny, family):
    torch = pytest.importorskip("torch")
    from transformers import AutoTokenizer

    from promptmill.backends.engines.hf.sampler import AnswerMasks

    tokenizer = AutoTokenizer.from_pretrained(tiny())
    mask = AnswerMasks(tokenizer, {2}).of(asking_for({"type": "object"}), opened=family)
    assert mask is not None

    def allowed(text: str) -> set[str]:
        scores = torch.zeros(300)
        mask.apply(scores, tokenizer.encode(text, add_special_tokens=False))
        return {tokenizer.decode([token]) for token in range(len(tokenizer)) if scores[token] == 0}

    assert {"{", "x", " "} <= allowed("It is {")
    assert allowed(f"It is {{{family.closings[0]}") == {"{"}
    assert allowed(f"It is {{{family.closings[0]}{{") == {'"', "}", " "}
