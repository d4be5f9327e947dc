"""The real OpenVINO engine on the embedded model: structure, cancellation, shares, and steps that fail."""

from __future__ import annotations

import asyncio
import json

import pytest

from promptmill.core.errors import PromptmillError
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
    """Return the schema that the pipeline is given, and whether a warning tells that it is not all."""
    from promptmill.backends.engines.openvino.prompt import Grammars

    warnings: list[str] = []
    return json.loads(Grammars().of(wanted, warnings)), bool(warnings)


@pytest.mark.parametrize(
    "wanted",
    [
        CITY,
        _of_lengths(10, 20, 30),
        {"type": "array", "items": {"type": "string", "pattern": "^[0-9a-f]{8}-([0-9a-f]{4}-){3}[0-9a-f]{12}$"}},
        {"type": "object", "properties": {f"f{i}": {"type": "string"} for i in range(200)}},
        {"properties": {"pattern": {"type": "string"}, "maxLength": {"const": {"maxLength": 9_999}}}},
        {"enum": [f"value {i}" for i in range(4_000)]},
    ],
)
def test_a_schema_that_is_soon_compiled_is_held_to_whole(wanted):
    assert _held(wanted) == (wanted, False)


def test_lengths_and_patterns_that_take_long_are_left_to_the_check_of_the_answer():
    held, told = _held(_of_lengths(*range(1, 51)))
    assert told
    lengths = [field.get("maxLength") for field in held["properties"].values()]
    assert lengths == [*range(1, 14), *[None] * 37], "the short ones cost little"
    for limit in ({"maxLength": 500}, {"minLength": 500}, {"pattern": "^(([a-z]{1,50} ){1,50};){1,50}$"}):
        assert _held({"type": "string", **limit}) == ({"type": "string"}, True)
        names = {"propertyNames": {"type": "string", **limit}}
        assert _held({"type": "object", **names}) == ({"type": "object", "propertyNames": {"type": "string"}}, True)


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


def test_a_schema_of_long_texts_keeps_nobody_waiting(desk, engine):
    wanted = _of_lengths(*range(100, 150))
    call = desk.call(engine, ["Hi!"], {"ignore_eos": True}, max_tokens=3, response_format=schema(wanted))
    (outcome,) = desk.wait(call.run(), 30)  # a minute for its whole grammar
    assert outcome.finish_reason == "length"
    assert "checked against them" in " ".join(call.stats.warnings)


def test_an_answer_follows_a_json_schema(desk, engine):
    (text,) = desk.texts(engine, ["What is the capital of France?"], max_tokens=60, response_format=schema(CITY))
    answer = json.loads(text)
    assert set(answer) == {"city", "old"}
    assert answer["city"] in {"Paris", "Rome"}


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


def test_cancelled_calls_leave_the_engine_to_others(desk, engine):
    async def cancel_one():
        endless = {"ignore_eos": True}
        crowd = desk.call(engine, ["Hi!"] * 8, endless, max_tokens=1500)
        task = asyncio.create_task(crowd.run())
        await until(lambda: crowd.stats.in_flight)
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
        await until(lambda: crowd.stats.in_flight >= 100)  # more than are computed together
        small = await desk.call(engine, ["What is the capital of France?"], max_tokens=9).run()
        done = len(crowd.sink.outcomes)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        return small, done

    small, done = desk.wait(beside(), 170)
    assert small[0].text
    assert done < 64
