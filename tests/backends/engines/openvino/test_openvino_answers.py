"""The real OpenVINO engine on the embedded model: structure, cancellation, shares, and steps that fail."""

from __future__ import annotations

import asyncio
import json

import jsonschema
import pytest

from promptmill.core.errors import PromptmillError
from shapes import SHAPES
from waiting import until

pytest.importorskip("openvino_genai")
pytestmark = pytest.mark.engine

CITY = {
    "type": "object",
    "properties": {"city": {"enum": ["Paris", "Rome"]}, "old": {"type": "boolean"}},
    "required": ["city", "old"],
    "additionalProperties": False,
}


def schema(wanted: object) -> dict:
    return {"type": "json_schema", "json_schema": {"name": "x", "schema": wanted}}


@pytest.fixture(scope="module")
def engine(engine_of):
    return engine_of("openvino")


def _of_lengths(*lengths):
    fields = {f"f{n}": {"type": "string", "maxLength": n} for n in lengths}
    return {"type": "object", "properties": fields, "required": list(fields), "additionalProperties": False}


def _held(wanted):
    """Return the form and text of the grammar that the pipeline is given, and whether it omits parts of the schema."""
    from promptmill.backends.engines.openvino.grammars import grammar_of_schema

    warnings: list[str] = []
    grammar = grammar_of_schema(wanted, warnings)
    return grammar.form, grammar.text, bool(warnings)


def _strict(wanted):
    from promptmill.backends.engines.openvino.grammars import StrictJson

    return "grammar", StrictJson(wanted).text


@pytest.mark.parametrize(
    "wanted",
    [
        CITY,
        _of_lengths(10, 20, 30),
        _of_lengths(*[80] * 50),
        _of_lengths(300, 10_000),
        {"properties": {"pattern": {"type": "string"}, "maxLength": {"const": {"maxLength": 9_999}}}},
        {"enum": [f"value {i}" for i in range(4_000)]},
        {"type": "array", "items": {"type": "string", "pattern": "^[0-9a-f]{8}-([0-9a-f]{4}-){3}[0-9a-f]{12}$"}},
    ],
)
def test_a_schema_that_is_soon_compiled_is_held_to_whole_and_without_white_space(wanted):
    assert _held(wanted) == (*_strict(wanted), False)


@pytest.mark.parametrize(
    "wanted",
    [
        {"type": "string", "format": "date"},
        {"type": "object", "properties": {f"f{i}": {"type": "string"} for i in range(200)}},
    ],
)
def test_openvinos_own_grammar_holds_to_formats_and_to_many_optional_fields(wanted):
    form, text, omits = _held(wanted)
    assert (form, json.loads(text), omits) == ("json_schema", wanted, False)


def test_lengths_and_patterns_that_take_long_are_left_to_the_check_of_the_answer():
    wanted = _of_lengths(*range(1, 51))
    for field in list(wanted["properties"].values())[13:]:
        del field["maxLength"]  # the short ones cost little
    assert _held(_of_lengths(*range(1, 51))) == (*_strict(wanted), True)
    assert _held({"type": "string", "pattern": "^(([a-z]{1,50} ){1,50};){1,50}$"}) == (
        *_strict({"type": "string"}),
        True,
    )
    for limit in ({"maxLength": 500}, {"minLength": 500}, {"pattern": "^(([a-z]{1,50} ){1,50};){1,50}$"}):
        form, text, omits = _held({"type": "object", "propertyNames": {"type": "string", **limit}})
        assert (form, json.loads(text)) == ("json_schema", {"type": "object", "propertyNames": {"type": "string"}})
        assert omits


@pytest.mark.parametrize(
    "wanted",
    [
        {"type": "object", "properties": {f"f{i}": {"type": "string"} for i in range(800)}},
        {"anyOf": [{"properties": {f"{n}-{i}": {} for i in range(100)}} for n in range(12)]},
        {"type": "object", "patternProperties": {"^(a{1,99}b){1,99}$": {}}},
    ],
)
def test_a_schema_that_takes_long_whatever_is_left_out_is_refused(wanted):
    with pytest.raises(PromptmillError, match="takes too long to prepare on the openvino backend") as caught:
        _held(wanted)
    assert caught.value.code == "invalid_input"


@pytest.mark.thorough
def test_a_schema_of_long_texts_keeps_nobody_waiting(desk, engine):
    wanted = _of_lengths(*range(100, 150))
    call = desk.call(engine, ["Hi!"], {"ignore_eos": True}, max_tokens=3, response_format=schema(wanted))
    (outcome,) = desk.wait(call.run(), 30)  # a minute for its whole grammar
    assert outcome.finish_reason == "length"
    assert "checked against them" in " ".join(call.call.warnings)


def test_an_answer_follows_a_json_schema(desk, engine):
    (text,) = desk.texts(engine, ["What is the capital of France?"], max_tokens=60, response_format=schema(CITY))
    answer = json.loads(text)
    assert set(answer) == {"city", "old"}
    assert answer["city"] in {"Paris", "Rome"}


@pytest.mark.thorough
def test_no_white_space_fills_an_answer_until_its_limit(desk, engine):
    tags = {"type": "array", "items": {"type": "string", "maxLength": 8}, "minItems": 1, "maxItems": 1}
    fields = {"name": {"type": "string", "maxLength": 8}, "tags": tags, "score": {"type": "integer", "maximum": 5}}
    wanted = {"type": "object", "properties": fields, "required": [*fields], "additionalProperties": False}
    prompts = [f"Review {name}'s book." for name in ("Ada", "Bob")]
    texts = desk.texts(engine, prompts, max_tokens=100, response_format=schema(wanted))
    assert [set(json.loads(text)) for text in texts] == [set(fields)] * 2, "half of them were blank lines"
    assert "\n" not in "".join(texts)


@pytest.mark.thorough
def test_every_answer_that_ends_satisfies_its_schema(desk, engine):
    formats = tuple(schema(shape.schema) for shape in SHAPES)
    outcomes = desk.ask(engine, ["x"] * len(SHAPES), max_tokens=160, temperature=1.0, seed=7, response_format=formats)
    ended = [
        (shape, outcome) for shape, outcome in zip(SHAPES, outcomes, strict=True) if outcome.finish_reason == "stop"
    ]
    for shape, outcome in ended:
        jsonschema.validate(json.loads(outcome.text), shape.schema)
    assert len(ended) > 180, "the others are cut off inside a text without a limit"


@pytest.mark.thorough
def test_a_schema_that_cannot_be_followed_costs_itself_alone(desk, engine):
    wanted = (None, schema({"type": "wrong"}), schema({"type": "wrong"}), schema(CITY))
    outcomes = desk.ask(engine, ["What is the capital of France?"] * 4, max_tokens=30, response_format=wanted)
    assert outcomes[0].text
    for refused in outcomes[1:3]:
        assert refused.error.code == "invalid_input"
        assert "JSON schema" in refused.error.message
        assert "/" not in refused.error.message, "no path of somebody's build machine"
    assert json.loads(outcomes[3].text)["city"]


@pytest.mark.thorough
def test_cancelled_calls_leave_the_engine_to_others(desk, engine):
    async def cancel_one():
        endless = {"ignore_eos": True}
        crowd = desk.call(engine, ["Hi!"] * 8, endless, max_tokens=1500)
        task = asyncio.create_task(crowd.run())
        await until(lambda: crowd.call.in_flight)
        (answer,) = await desk.call(engine, ["What is the capital of France?"], max_tokens=9).run()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return answer, crowd.sink.outcomes, await desk.call(engine, ["Is ice cold?"], max_tokens=4).run()

    answer, of_crowd, after = desk.wait(cancel_one())
    assert answer.text
    assert not of_crowd
    assert after[0].text


@pytest.mark.thorough
def test_a_small_call_beside_a_huge_one_gets_its_share(desk, engine):
    async def beside():
        crowd = desk.call(engine, ["Hi!"] * 140, {"ignore_eos": True}, max_tokens=400)
        task = asyncio.create_task(crowd.run())
        await until(lambda: crowd.call.in_flight >= 100)  # more than are computed together
        small = await desk.call(engine, ["What is the capital of France?"], max_tokens=9).run()
        done = len(crowd.sink.outcomes)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        return small, done

    small, done = desk.wait(beside(), 170)
    assert small[0].text
    assert done < 64


def test_equal_prompts_at_once_get_the_answer_of_one_alone(desk, engine):
    (alone,) = desk.wait(desk.call(engine, ["What is the capital of France?"], max_tokens=24).run())
    together = desk.wait(desk.call(engine, ["What is the capital of France?"] * 6, max_tokens=24).run())
    assert {one.text for one in together} == {alone.text}
