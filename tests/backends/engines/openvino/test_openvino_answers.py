"""The real OpenVINO engine on the embedded model: structure, cancellation, shares, and steps that fail."""

from __future__ import annotations

import asyncio
import json

import pytest

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


def test_an_answer_follows_a_json_schema(desk, engine):
    (text,) = desk.texts(engine, ["What is the capital of France?"], max_tokens=60, response_format=schema(CITY))
    answer = json.loads(text)
    assert set(answer) == {"city", "old"}
    assert answer["city"] in {"Paris", "Rome"}


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
        while not crowd.stats.in_flight:
            await asyncio.sleep(0.05)
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
        while crowd.stats.in_flight < 100:  # more than are computed together
            await asyncio.sleep(0.05)
        small = await desk.call(engine, ["What is the capital of France?"], max_tokens=9).run()
        done = len(crowd.sink.outcomes)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        return small, done

    small, done = desk.wait(beside(), 170)
    assert small[0].text
    assert done < 64
