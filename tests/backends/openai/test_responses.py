"""Replies of the Responses API in which gateways repeat, leave out or misnumber items."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from multidict import CIMultiDict

from fakes import without_rest
from promptmill.backends.openai.chat_completion import StreamPreview
from promptmill.backends.openai.dialects import responses
from promptmill.backends.openai.endpoint import Endpoint
from promptmill.backends.openai.failures import FailureKind, RetryDecision
from promptmill.backends.openai.providers import profile_named
from promptmill.backends.openai.reply import USUAL, read_other_response, read_response
from promptmill.backends.protocol import Completion
from promptmill.core.errors import Code

_ENDPOINT = Endpoint("http://x/v1/responses", "x", {}, (), profile_named("openai"), dialect="responses")


def _message(text: str, name: str = "m1", **fields: Any) -> dict[str, Any]:
    return {"type": "message", "id": name, "content": [{"type": "output_text", "text": text}], **fields}


def _call(name: str = "f1", identity: str = "c1", arguments: str = '{"a": 1}') -> dict[str, Any]:
    return {"type": "function_call", "id": name, "call_id": identity, "name": "look", "arguments": arguments}


def _whole(*output: Any) -> dict[str, Any]:
    return {"status": "completed", "output": [*output], "usage": {"input_tokens": 9, "output_tokens": 2}}


_THOUGHT = {"type": "reasoning", "id": "r1", "summary": [{"type": "summary_text", "text": "Hm."}]}
_SEARCH = {"type": "web_search_call", "id": "s1", "action": {"type": "search", "query": "q"}}


def _added(item: dict[str, Any], at: int | None = 0) -> dict[str, Any]:
    empty: dict[str, Any] = {"content": []} if item["type"] == "message" else {"arguments": ""}
    begun = item | empty
    return {"type": "response.output_item.added", "output_index": at, "item": begun}


def _done(item: dict[str, Any], at: int | None = 0) -> dict[str, Any]:
    return {"type": "response.output_item.done", "output_index": at, "item": item}


def _piece(text: str, at: int | None = 0, name: str | None = "m1", part: int = 0) -> dict[str, Any]:
    place = {"output_index": at, "item_id": name, "content_index": part}
    return {"type": "response.output_text.delta", "delta": text, **place}


def _text(text: str, at: int | None = 0, name: str | None = "m1") -> dict[str, Any]:
    return {"type": "response.output_text.done", "output_index": at, "item_id": name, "content_index": 0, "text": text}


def _end(*output: Any) -> dict[str, Any]:
    return {"type": "response.completed", "response": _whole(*output)}


def _streamed(*events: Any) -> bytes:
    return b"".join(b"data: %b\n\n" % orjson.dumps(event) for event in events)


def _read(body: bytes) -> Completion | RetryDecision:
    return read_response(200, CIMultiDict({"Content-Type": "text/event-stream"}), body, _ENDPOINT, USUAL)


def _answer(*events: Any) -> Completion:
    answer = _read(_streamed(*events))
    assert isinstance(answer, Completion), answer
    return answer


def _shown(*events: Any) -> list[str]:
    shown: list[str] = []
    preview = StreamPreview(lambda now: shown.append(now.text), responses.delta_in, inline=False, later=without_rest)
    preview.feed(_streamed(*events))
    return shown


@pytest.mark.parametrize(
    "output",
    [
        [_message("Paris"), _message("Paris")],
        [_message("Paris"), _message("Paris", "m2")],
        [_message("Paris"), _THOUGHT, _message("Paris", "m2")],
        [_message("Paris", phase="final_answer"), _message("Paris", phase="final_answer")],
        [_message("Paris") | {"content": _message("Paris")["content"] * 2}],
        [_message("Pa"), _message("Paris")],
        [_message("Paris"), _message("Pa")],
        [_message("") | {"content": [*_message("Pa")["content"], *_message("ris")["content"]] * 2}],
    ],
)
def test_a_repeated_message_is_one_answer(output):
    body = orjson.dumps(_whole(*output))
    for reader in (read_response, read_other_response):
        answer = reader(200, CIMultiDict(), body, _ENDPOINT)
        assert isinstance(answer, Completion)
        assert answer.text == "Paris"
    assert _answer(_end(*output)).text == "Paris"


@pytest.mark.parametrize(
    "output",
    [
        [_message("Pa"), _message("ris", "m2")],
        [_message("Pa", ""), _message("ris", "")],
        [_message("") | {"content": [*_message("Pa")["content"], *_message("ris")["content"]]}],
        [_message("") | {"content": "Paris"}],
        [{"role": "assistant", "content": [{"type": "text", "text": "Paris"}]}],
    ],
)
def test_the_parts_of_an_answer_are_joined(output):
    assert _answer(_end(*output)).text == "Paris"


def test_blank_parts_are_no_repetition():
    parts = ["A.", "\n", "B.", "\n"]
    answer = _answer(_end(*(_message(text, f"m{at}") for at, text in enumerate(parts))))
    assert answer.text == "A.\nB.\n"


def test_a_repeated_call_or_search_is_one():
    assert [call["id"] for call in _answer(_end(_call(), _call())).tool_calls] == ["c1"]
    assert _answer(_end({**_SEARCH, "action": None}, _SEARCH, _message("Paris"))).usage.searches == 1
    other = read_other_response(200, CIMultiDict(), orjson.dumps(_whole(_SEARCH, _SEARCH)), _ENDPOINT)
    assert isinstance(other, Completion)
    assert other.usage.searches == 1


def test_calls_with_different_ids_or_arguments_are_several():
    calls = _answer(_end(_call(), _call("f2", "c2"), _call(arguments='{"a": 2}'))).tool_calls
    assert [call["function"]["arguments"] for call in calls] == ['{"a": 1}', '{"a": 1}', '{"a": 2}']


_PARIS = (_added(_message("")), _piece("Pa"), _piece("ris"), _text("Paris"), _done(_message("Paris")))
_HALVES = (_added(_message("")), _piece("Pa"), _done(_message("Pa")))


def _without(*events: Any, names: tuple[str, ...]) -> list[Any]:
    return [{name: value for name, value in event.items() if name not in names} for event in events]


@pytest.mark.parametrize(
    "events",
    [
        [*_PARIS, _end()],
        [*_PARIS, _end(_message("Paris"))],
        [*_PARIS, _end(_message("Paris"), _message("Paris"))],
        [*_PARIS, *_PARIS, _end()],
        [*_PARIS, _added(_message(""), 1), _piece("Paris", 1), _done(_message("Paris"), 1), _end()],
        [*_PARIS, _added(_message("", "m2"), 1), _piece("Paris", 1, "m2"), _end()],
        [*_PARIS[:4], _piece("Paris"), _text("Paris"), _end()],
        [_added(_message("")), *_PARIS, _end()],
        # one index for several items
        [*_HALVES, _added(_message("")), _piece("ris", name="m2"), _done(_message("ris", "m2")), _end()],
        [*_HALVES, _added(_message("")), _piece("ris"), _done(_message("ris")), _end()],
        [*_HALVES, _piece("ris"), _end()],
        [_added(_message("")), _added(_message("", "m2")), _piece("Pa"), _piece("ris", name="m2"), _end()],
        # no index, no id, neither
        [*_without(*_PARIS, names=("output_index", "content_index")), _end()],
        [*_without(*_PARIS, names=("item_id",)), _end()],
        [*_without(*_PARIS, names=("output_index", "content_index", "item_id")), _end()],
        # another id in each event
        [
            _added(_message("", "a")),
            _piece("Pa", name="b"),
            _piece("ris", name="c"),
            _done(_message("Paris", "d")),
            _end(),
        ],
        [_added(_message("", "a")), _piece("Pa", name="b"), _piece("ris", name="c"), _end(_message("Paris", "d"))],
        # texts, pieces or items that are left out
        [_text("Paris"), _end()],
        [_done(_message("Paris")), _end()],
        [_done(_message("Pa")), _done(_message("ris")), _end()],
        [_added(_message("")), _piece("Par"), _text("Paris"), _end()],
        [*_PARIS, _end(_message(""))],
        [*_PARIS[:4], _done(_message("")), _end()],
        [*_HALVES, _done(_message("ris", "m2"), 1), _end(_message("Pa"))],
        [*_HALVES, _done(_message("ris", "m2"), 1), _end(_message("ris", "m2"))],
        [*_HALVES, _done(_message("ris", "m2"), 1), _end(_message("Paris"))],
        # events of other kinds, also of kinds that are not known
        [{"type": "response.queued"}, {"type": "keepalive"}, *_PARIS, {"type": "response.new.delta", "x": 1}, _end()],
        [
            {"type": "response.content_part.done", "output_index": 0, "part": part}
            for part in _message("Paris")["content"]
        ]
        + [_end()],
    ],
)
def test_the_items_of_a_stream_are_told_apart_by_index_and_id(events):
    answer = _answer(*events)
    assert answer.text == "Paris"
    assert all(answer.text.startswith(text) for text in _shown(*events))


def test_parts_are_in_the_order_of_their_numbers():
    events = [_piece("ris", part=1), _piece("Pa"), _end()]
    assert _answer(*events).text == "Paris"


@pytest.mark.parametrize("index", [0, None])
@pytest.mark.parametrize("ends", [True, False])
def test_calls_with_one_index_keep_their_arguments(index, ends):
    events: list[Any] = []
    for call in (_call(), _call("f2", "c2", '{"a": 2}')):
        piece = {"type": "response.function_call_arguments.delta", "output_index": index, "item_id": call["id"]}
        events += [_added(call, index), {**piece, "delta": call["arguments"]}]
        events += [_done(call, index)] if ends else []
    calls = _answer(*events, _end()).tool_calls
    assert [(call["id"], call["function"]["arguments"]) for call in calls] == [("c1", '{"a": 1}'), ("c2", '{"a": 2}')]


def test_a_thought_and_a_text_with_one_index_are_apart():
    thought = {"type": "response.reasoning_text.delta", "output_index": 0, "content_index": 0, "delta": "Hm."}
    answer = _answer(thought, *_PARIS, _end())
    assert (answer.text, answer.reasoning) == ("Paris", "Hm.")


def test_a_refusal_and_citations_of_a_stream_are_kept():
    refused = [{"type": "response.refusal.delta", "output_index": 0, "delta": text} for text in ("I can", "not.")]
    answer = _answer(*refused, _end())
    assert (answer.text, answer.is_refusal) == ("I cannot.", True)
    page = {"type": "url_citation", "url": "https://example.org", "title": "T"}
    cited = {"type": "response.output_text.annotation.added", "output_index": 0, "annotation": page}
    answer = _answer(*_PARIS[:3], cited, _end())
    assert answer.sources == [{"url": "https://example.org", "title": "T"}]


@pytest.mark.parametrize("count", range(len(_PARIS) + 1))
def test_a_stream_without_its_last_event_is_a_lost_connection(count):
    decision = _read(_streamed({"type": "response.created"}, *_PARIS[:count]))
    assert isinstance(decision, RetryDecision)
    assert (decision.kind, decision.error.code) == (FailureKind.TRANSIENT, Code.CONNECTION_LOST)
