"""The events of a growing answer, without HTTP."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest

from promptmill.backends.protocol import Completion, Growing
from promptmill.features.openai_server.api_errors import ApiError
from promptmill.features.openai_server.streams import ChatEvents, ResponseEvents


def _call(place: int, arguments: str, name: str = "look") -> dict[str, Any]:
    return {"id": f"c{place}", "type": "function", "function": {"name": f"{name}{place}", "arguments": arguments}}


WHOLE = Growing("It is Paris.", "Which city?\nA capital.", [_call(0, '{"a": [1, 2]}'), _call(1, ""), _call(2, "{}")])


def _beginning(chance: random.Random, before: Growing) -> Growing:
    """Return an answer that has some more than `before` of `WHOLE`, with its last call's name perhaps incomplete."""
    text = WHOLE.text[: chance.randint(len(before.text), len(WHOLE.text))]
    reasoning = WHOLE.reasoning[: chance.randint(len(before.reasoning), len(WHOLE.reasoning))]
    calls = [dict(call) for call in WHOLE.tool_calls[: chance.randint(len(before.tool_calls), 3)]]
    for place, call in enumerate(calls):
        sent = before.tool_calls[place]["function"]["arguments"] if place < len(before.tool_calls) else ""
        arguments = call["function"]["arguments"]
        cut = arguments[: chance.randint(len(sent), len(arguments))]
        name = call["function"]["name"]
        is_last = place == len(calls) - 1
        call["function"] = {"name": name[:-1] if is_last and not cut else name, "arguments": cut}
    return Growing(text, reasoning, calls)


def _data(events: Iterable[bytes]) -> list[dict[str, Any]]:
    lines = b"".join(events).split(b"\n")
    return [json.loads(line[6:]) for line in lines if line.startswith(b"data: {")]


def _streamed(chance: random.Random, events: ChatEvents | ResponseEvents) -> list[dict[str, Any]]:
    sent, now = [*events.begin()], Growing()
    for _ in range(chance.randint(0, 6)):
        now = _beginning(chance, now)
        sent += events.grow(now)
        if now.text and chance.random() < 0.3:
            assert not [*events.grow(Growing("another answer", now.reasoning))]
    answer = Completion(WHOLE.text, "stop", reasoning=WHOLE.reasoning, tool_calls=tuple(WHOLE.tool_calls))
    return _data([*sent, *events.end(answer)])


def test_the_deltas_of_a_chat_add_up_to_its_answer_however_it_grows():
    for seed in range(300):
        chunks = _streamed(random.Random(seed), ChatEvents({}, "m", 1))
        deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
        assert "".join(delta.get("content") or "" for delta in deltas) == WHOLE.text
        assert "".join(delta.get("reasoning") or "" for delta in deltas) == WHOLE.reasoning
        calls: list[dict[str, Any]] = []
        for (piece,) in (delta["tool_calls"] for delta in deltas if "tool_calls" in delta):
            if "id" in piece:
                assert piece.pop("index") == len(calls)
                calls.append(piece)
            else:
                calls[piece["index"]]["function"]["arguments"] += piece["function"]["arguments"]
        assert calls == WHOLE.tool_calls


def test_the_items_of_a_response_add_up_to_its_answer_however_it_grows():
    for seed in range(300):
        events = _streamed(random.Random(seed), ResponseEvents({}, "m", 1))
        assert [event["sequence_number"] for event in events] == list(range(len(events)))
        output, open_items = events[-1]["response"]["output"], {}
        for event in events:
            place = event.get("output_index")
            match event["type"].removeprefix("response."):
                case "output_item.added":
                    assert place == len(open_items)
                    open_items[place] = {"id": event["item"]["id"], "text": ""}
                case "output_text.delta" | "reasoning_text.delta" | "function_call_arguments.delta":
                    assert open_items[place]["id"] == event["item_id"]
                    open_items[place]["text"] += event["delta"]
                case "output_item.done":
                    assert event["item"] == output[place]
                    open_items[place]["done"] = True
        texts: dict[str, str] = dict.fromkeys(("reasoning", "message"), "")
        for place, item in enumerate(output):
            assert open_items[place]["done"]
            if item["type"] in texts:
                texts[item["type"]] += item["content"][0]["text"]
                assert item["content"][0]["text"] == open_items[place]["text"]
        assert texts == {"reasoning": WHOLE.reasoning, "message": WHOLE.text}
        calls = [item for item in output if item["type"] == "function_call"]
        assert [(call["call_id"], call["name"], call["arguments"]) for call in calls] == [
            (call["id"], *call["function"].values()) for call in WHOLE.tool_calls
        ]


@pytest.mark.parametrize(
    "sent",
    [
        Growing("It was"),
        Growing("", "Which one?"),
        Growing("", "", [_call(0, '{"b"')]),
        Growing("", "", [_call(0, '{"a"', "find")]),
        Growing("", "", [_call(place, "{") for place in range(4)]),
    ],
)
def test_an_answer_that_does_not_begin_as_was_sent_is_an_error(sent):
    answer = Completion(WHOLE.text, "stop", reasoning=WHOLE.reasoning, tool_calls=tuple(WHOLE.tool_calls))
    for events in (ChatEvents({}, "m", 1), ResponseEvents({}, "m", 1)):
        assert [*events.grow(sent)]
        with pytest.raises(ApiError):
            list(events.end(answer))


def test_white_space_around_a_text_is_no_difference():
    events = ChatEvents({}, "m", 1)
    sent = [*events.grow(Growing("\nIt is ")), *events.end(Completion("It is Paris.", "stop"))]
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in _data(sent)).strip() == "It is Paris."


@pytest.mark.parametrize("events", [ChatEvents, ResponseEvents])
def test_a_stream_has_the_note_on_fields_without_effect(events):
    body = {"stream": True, "input": "hi", "keep_alive": "5m"}
    streamed = b"".join(events(body, "m", 1).end(Completion("Paris", "stop")))
    assert b"keep_alive." in streamed
    assert b"x_note" in streamed


@pytest.mark.parametrize("answer", [Completion(""), Completion("", tool_calls=(_call(0, "{}"),)), Completion("Paris")])
def test_the_log_probabilities_of_an_answer_are_streamed_once_even_without_text(answer):
    said = {"content": [{"token": "<end>", "logprob": -0.5}]}
    chunks = _data(ChatEvents({}, "m", 1).end(replace(answer, logprobs=said)))
    found = [choice["logprobs"] for chunk in chunks for choice in chunk["choices"] if choice["logprobs"]]
    assert found == [{"refusal": None, **said}]
