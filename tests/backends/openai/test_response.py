"""An ordinary answer is read on a short path, with the same result as on the long one."""

from __future__ import annotations

import gzip
import json
import math
import tracemalloc
from collections.abc import Callable
from typing import Any

import orjson
import pytest

from fakes import without_rest
from promptmill.backends.openai.chat_completion import ENDED, ReplyEnd, StreamPreview, events_in, read_finish
from promptmill.backends.openai.dialects import chat
from promptmill.backends.openai.endpoint import Endpoint
from promptmill.backends.openai.failures import RetryDecision
from promptmill.backends.openai.http_connection import Headers, HttpResponse
from promptmill.backends.openai.providers import profile_named
from promptmill.backends.openai.reply import answer_in, read_other_response, read_payload, read_response
from promptmill.backends.protocol import Completion, Growing, Usage
from promptmill.core.bounds import LARGEST_BODY
from promptmill.core.errors import Code

ENDPOINT = Endpoint("http://localhost/v1/chat/completions", "localhost", {}, (), profile_named("plain"))
PLAIN: dict[str, Any] = {"role": "assistant", "content": "Paris"}
SUMS = {"prompt_tokens": 24, "completion_tokens": 12, "total_tokens": 36}
DETAILS = {"prompt_tokens_details": {"cached_tokens": 8}, "completion_tokens_details": {"reasoning_tokens": 5}}


def payload(message: dict[str, Any] = PLAIN, finish: Any = "stop", usage: Any = SUMS, **more: Any) -> dict[str, Any]:
    choice = {"index": 0, "message": message, "logprobs": more.pop("logprobs", None), "finish_reason": finish}
    return {"object": "chat.completion", "choices": [choice | more.pop("choice", {})], "usage": usage} | more


@pytest.mark.parametrize(
    "body",
    [
        payload(),
        payload(finish="length"),
        payload(PLAIN | {"reasoning_content": None, "tool_calls": [], "refusal": None, "annotations": []}),
        payload(PLAIN | {"reasoning_content": "So."}),
        payload(PLAIN | {"thinking_blocks": [{"type": "thinking", "thinking": "So."}]}),
        payload(PLAIN | {"provider_specific_fields": {"reasoning": "So."}}),
        payload(PLAIN | {"tool_calls": [{"id": "1", "function": {"name": "f", "arguments": "{}"}}]}),
        payload(PLAIN | {"content": [{"type": "text", "text": "Paris"}]}),
        payload(PLAIN | {"content": ""}),
        payload(PLAIN | {"content": None, "refusal": "I will not."}),
        payload(finish=None),
        payload(finish="eos"),
        payload(finish="content_filter"),
        payload(finish="error"),
        payload(finish={"type": "stop", "matched": 2}),
        payload(finish=["stop"]),
        payload(choice={"native_finish_reason": "MAX_TOKENS"}),
        payload(choice={"native_finish_reason": "STOP", "stop_reason": 2}),
        payload(logprobs={"content": []}),
        payload(choice={"error": {"message": "overloaded", "code": 502}}),
        payload(usage=None),
        payload(usage=SUMS | DETAILS),
        payload(usage={"input_tokens": 3, "output_tokens": 2}),
        payload(usage=SUMS | {"prompt_tokens": True, "completion_tokens": -1}),
        payload(usage=SUMS | {"prompt_cache_hit_tokens": 20}),
        payload(usage=SUMS | {"cached_tokens": 20}),
        payload(error={"message": "no such model"}),
        payload(error=None),
        payload(error_code=17),
        payload(object="error"),
        payload(base_resp={"status_code": 1004, "status_msg": "no"}),
        payload(choices=[]),
    ],
)
def test_both_paths_give_the_same_result(body):
    found, careful = read_response(200, {}, orjson.dumps(body), ENDPOINT), read_payload(body, {}, ENDPOINT)
    if isinstance(careful, RetryDecision):
        assert isinstance(found, RetryDecision)
        assert (found.kind, found.error.code) == (careful.kind, careful.error.code)
        assert (str(found.error), found.usage) == (str(careful.error), careful.usage)
    else:
        assert found == careful


def test_only_the_start_of_a_long_finish_reason_is_read():
    finish, ending = read_finish("e" * 1_000_000)
    assert finish is not None
    assert len(finish) <= 200
    assert ending is ReplyEnd.WHOLE


@pytest.mark.parametrize(
    "reason",
    [
        "MAX_TOKENS",
        "max-tokens",
        "FinishReason.LENGTH",
        "REASON_MAX_LEN",
        "max_new_tokens",
        "length_exceeded",
        "truncated",
    ],
)
def test_each_word_for_a_limit_is_length(reason):
    assert read_finish(reason) == ("length", ReplyEnd.WHOLE)


@pytest.mark.parametrize("reason", ["content_complete", "end_of_content", "content", "content_done", "no_content"])
def test_a_reason_that_names_the_content_is_no_filter(reason):
    assert read_finish(reason) == (reason, ReplyEnd.WHOLE)


@pytest.mark.parametrize(
    "reason",
    ["content_filter", "content_filtered", "PROHIBITED_CONTENT", "content_policy_violation", "content_blocked"],
)
def test_a_filter_of_contents_is_one(reason):
    assert read_finish(reason) == ("content_filter", ReplyEnd.FILTERED)


@pytest.mark.parametrize(
    "ends",
    [
        ["length"],
        ["length", "stop"],
        ["stop", "length"],
        ["length", "tool_calls"],
        ["length", None],
        ["max_tokens", "", "end_turn"],
        [{"type": "length"}, {"type": "stop"}],
    ],
)
def test_a_later_event_takes_no_cut_back(ends):
    events = [_delta({"content": "Par"}), *(_delta({}, end) for end in ends)]
    assert _stream(*events).finish_reason == "length"


@pytest.mark.parametrize(
    "own",
    [
        {"native_finish_reason": "MAX_TOKENS"},
        {"native_finish_reason": "max_output_tokens"},
        {"native_finish_reason": "length"},
        {"stop_reason": "max_tokens"},
    ],
)
@pytest.mark.parametrize("finish", ["stop", None, "tool_calls"])
def test_the_models_own_reason_shows_a_cut(own, finish):
    found = read_response(200, {}, orjson.dumps(payload(finish=finish, choice=own)), ENDPOINT)
    assert isinstance(found, Completion)
    assert found.finish_reason == "length"
    events = [{"choices": [{"index": 0, "delta": {"content": "Par"}}]}]
    events.append({"choices": [{"index": 0, "delta": {}, "finish_reason": finish, **own}]})
    assert _stream(*events).finish_reason == "length"


@pytest.mark.parametrize(
    "own",
    [
        {"native_finish_reason": "end_turn"},
        {"native_finish_reason": "STOP"},
        {"stop_reason": "error"},
        {"stop_reason": 2},
    ],
)
def test_the_models_own_reason_or_stop_string_changes_no_whole_answer(own):
    found = read_response(200, {}, orjson.dumps(payload(choice=own)), ENDPOINT)
    assert isinstance(found, Completion)
    assert found.finish_reason == "stop"


@pytest.mark.parametrize("ends", [["content_filter", "stop"], ["stop", "content_filter"], ["SAFETY", "stop"]])
def test_a_later_event_takes_no_filter_back(ends):
    found = read_response(200, {}, _body(_delta({"content": "Par"}), *(_delta({}, end) for end in ends)), ENDPOINT)
    assert isinstance(found, RetryDecision)
    assert found.error.code is Code.CONTENT_FILTER


@pytest.mark.parametrize(
    ("body", "finish"),
    [
        ({"choices": [{"text": "Par", "finish_reason": "length"}]}, "length"),
        ({"choices": [{"text": "Paris", "finish_reason": "stop"}]}, "stop"),
        ({"output": [], "status": "incomplete"}, "length"),
        ({"output": [], "status": "completed"}, "stop"),
        ({"object": "list", "data": []}, "stop"),
    ],
)
def test_a_cut_reply_to_another_request_is_one(body, finish):
    found = read_other_response(200, {}, orjson.dumps(body), ENDPOINT)
    assert isinstance(found, Completion)
    assert found.finish_reason == finish


@pytest.mark.thorough
def test_a_compressed_body_that_expands_too_far_leaves_nothing_in_memory():
    bomb = HttpResponse(200, Headers({}), gzip.compress(bytes(LARGEST_BODY + 1)), encoding=b"gzip")
    tracemalloc.start()
    try:
        found = [answer_in(bomb, ENDPOINT) for _ in range(3)]
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert all(isinstance(one, RetryDecision) for one in found)
    assert held < LARGEST_BODY


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("value", "count", "is_read"),
    [(b"-0.012345678", 1_200_000, True), (b"0", 4_500_000, False), (b"[]", 700_000, False), (b"{}", 700_000, False)],
)
def test_the_values_of_a_body_are_limited_by_their_memory(value, count, is_read):
    body = b'{"data":[%s]}' % b",".join([value] * count)
    assert isinstance(read_other_response(200, {}, body, ENDPOINT), Completion) is is_read


def _with(more: bytes, content: bytes = b'"x"') -> bytes:
    return b'{"choices":[{"message":{"content":%b},"finish_reason":"stop"}],"more":%b}' % (content, more)


def _names(count: int) -> bytes:
    return b"{%b}" % b",".join(b'"%x":1' % number for number in range(count))


def _event(delta: bytes) -> bytes:
    return b'data: {"choices":[{"index":0,"delta":%b}]}\n\n' % delta


_HALF = rb'"\ud83d"'
_DONE = b"data: [DONE]\n\n"


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("body", "is_read"),
    [
        (lambda: _with(_names(400_000)), True),
        (lambda: _with(_names(600_000)), False),
        (lambda: _with(b"[%b]" % b",".join([b'"12:30"'] * 400_000)), True),
        (lambda: _with(_names(50_000), _HALF), True),
        (lambda: _with(_names(250_000), _HALF), False),
        (lambda: _event(b'{"content":"x"}') + _event(_names(600_000)) + _DONE, False),
        (lambda: _event(b'{"content":"x","usage":{"a":1,"b":2,"c":3}}') * 100_000 + _DONE, True),
        (lambda: b"data:\r" * 400_000 + _event(b'{"content":"x"}') + _DONE, False),
    ],
    ids=["names", "more names", "colons", "mended", "mended names", "event", "events", "returns"],
)
def test_a_body_is_not_read_if_no_other_thread_could_run_for_long(body, is_read):
    assert isinstance(read_response(200, {}, body(), ENDPOINT), Completion) is is_read


@pytest.mark.parametrize("data", [None, {}, "AAAA"])
def test_a_reply_without_a_list_of_vectors_costs_what_it_states(data):
    body = orjson.dumps({"data": data, "usage": {"prompt_tokens": 3, "total_tokens": 3}})
    found = read_other_response(200, {}, body, ENDPOINT, texts=2)
    assert isinstance(found, RetryDecision)
    assert (found.error.code, found.usage, found.unmetered) == (Code.BAD_RESPONSE, Usage(3), False)


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({"object": "error", "message": "loading", "code": 503}, Code.SERVER_ERROR),
        ({"code": 400, "msg": "batch too large"}, Code.BAD_REQUEST),
        ({"detail": "Not Found"}, Code.BAD_RESPONSE),
        ({"base_resp": {"status_code": 1004, "status_msg": "invalid key"}}, Code.UNAUTHORIZED),
    ],
)
def test_an_error_in_place_of_vectors_is_that_error(body, code):
    found = read_other_response(200, {}, orjson.dumps(body), ENDPOINT, texts=2)
    assert isinstance(found, RetryDecision)
    assert found.error.code is code


def test_half_surrogate_pairs_in_a_row_are_mended():
    found = read_response(
        200, {}, _with(b"1", rb'"%b\ud83d\ude00%b"' % (rb"\ude00" * 30_001, rb"\ud83d" * 3)), ENDPOINT
    )
    assert isinstance(found, Completion)
    assert found.text == "\ufffd" * 30_001 + "😀" + "\ufffd" * 3


class _Piece(str):
    """A text that may be joined, but not added: each sum copies all pieces so far."""

    def __add__(self, other: str) -> str:
        raise AssertionError("added")

    __radd__ = __add__


def test_the_pieces_of_a_call_are_joined_once():
    def load(event: bytes) -> Any:
        found = orjson.loads(event)
        for piece in found["choices"][0]["delta"]["tool_calls"]:
            piece["function"]["arguments"] = _Piece(piece["function"]["arguments"])
        return found

    pieces = b",".join([b'{"index":0,"function":{"arguments":"ab","name":"n"}}'] * 50)
    body = _event(b'{"tool_calls":[%b]}' % pieces)
    (choice,) = chat.assemble(iter([*(load(data) for _, data in events_in(body)), ENDED]))["choices"]
    function = {"name": "n", "arguments": "ab" * 50}
    assert choice["message"]["tool_calls"] == [{"type": "function", "function": function}]


def _named(name: str, arguments: str) -> dict[str, Any]:
    return {"index": 0, "id": "c1", "type": "function", "function": {"name": name, "arguments": arguments}}


@pytest.mark.parametrize(
    "deltas",
    [
        [{"reasoning": "So ", "reasoning_content": "So "}, {"reasoning": "be", "reasoning_content": "be"}],
        [{"content": "\n"}, {"content": "<thi"}, {"content": "nk>So be</th"}, {"content": "ink>\n\nPa"}],
        [{"content": "1 <"}, {"content": " 2"}],
        [
            *(
                {"content": "<|channel|>analysis<|message|>So<|e"},
                {"content": "nd|><|start|>assistant<|channel|>final"},
            ),
            *({"content": "<|message|>Pa"}, {"content": "ris<|retur"}, {"content": "n|>"}),
        ],
        [{"content": [{"type": "thinking", "thinking": [{"type": "text", "text": "So"}]}]}, {"content": "Paris"}],
        [{"reasoning_details": [{"type": "reasoning.text", "text": "So"}]}, {"content": "Paris"}],
        [
            *({"content": "Wait."}, {"tool_calls": [_named("lo", "")]}, {"tool_calls": [{"index": 0, "function": {}}]}),
            {"tool_calls": [{"index": 0, "function": {"name": "ok", "arguments": '{"a'}}]},
            {"tool_calls": [{"index": 0, "function": {"arguments": '": 1}'}}]},
            {"tool_calls": None},
        ],
        [{"content": "<think>So</think><|START_RESPONSE|>Pa"}, {"content": "ris<|END_RES"}, {"content": "PONSE|>"}],
        [
            {"tool_calls": [_named("look", "{}")]},
            {"tool_calls": [{**_named("look", "{}"), "id": "c2"}]},
            {"content": "x"},
        ],
    ],
)
def test_each_preview_of_a_stream_is_the_beginning_of_its_answer(deltas):
    events = [{"choices": [{"index": 0, "delta": delta}]} for delta in deltas]
    events.append({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
    body, shown = b"".join(b"data: %b\n\n" % orjson.dumps(event) for event in events), list[Growing]()
    preview = StreamPreview(shown.append, chat.delta_in, inline=False, later=without_rest)
    for at in range(0, len(body), 9):
        preview.feed(body[at : at + 9])
    response = HttpResponse(200, Headers({b"content-type": b"text/event-stream"}), body)
    answer = answer_in(response, ENDPOINT)
    assert isinstance(answer, Completion)
    for growing in shown:
        assert answer.text.startswith(growing.text)
        assert (answer.reasoning or "").startswith(growing.reasoning)
        for call, begun in zip(answer.tool_calls, growing.tool_calls, strict=False):
            assert all(call["function"][name].startswith(begun["function"][name]) for name in ("name", "arguments"))
    assert any(growing.text or growing.reasoning for growing in shown)


def test_a_stream_with_a_tool_call_of_another_form_is_shown_without_it():
    odd = {"index": 0, "function": {"name": "look", "arguments": {"a": 1}}}
    shown: list[Growing] = []
    preview = StreamPreview(shown.append, chat.delta_in, inline=False, later=without_rest)
    for delta in ({"content": "Pa"}, {"tool_calls": [odd]}, {"content": "ris"}):
        preview.feed(b"data: %b\n" % orjson.dumps({"choices": [{"delta": delta}]}))
    assert [growing.text for growing in shown] == ["Pa", "Paris"]


class _Later:
    """A clock, and the function that is called later by it."""

    def __init__(self) -> None:
        self.now, self._at, self._do = 0.0, math.inf, lambda: None

    def __call__(self, seconds: float, do: Callable[[], None]) -> None:
        self._at, self._do = self.now + seconds, do

    def pass_by(self, seconds: float) -> None:
        self.now += seconds
        if self.now >= self._at:
            self._at = math.inf
            self._do()


@pytest.mark.parametrize(("apart_s", "most"), [(0.00002, 120), (0.1, 20)])
def test_a_long_answer_in_small_pieces_is_shown_some_times_per_second(apart_s, most):
    time, shown = _Later(), list[int]()

    def show(growing: Growing) -> None:
        shown.append(len(growing.text))
        time.now += len(growing.text) / 1e8  # seconds to show a text

    preview = StreamPreview(show, chat.delta_in, inline=False, later=time, clock=lambda: time.now)
    pieces = 20 if apart_s > 0.01 else 20_000
    for _ in range(pieces):
        preview.feed(b"data: %b\n\n" % orjson.dumps({"choices": [{"delta": {"content": "twenty characters ok"}}]}))
        time.pass_by(apart_s)
    time.pass_by(1)
    assert len(shown) <= most
    assert shown[-1] == 20 * pieces


def test_a_closed_preview_shows_nothing_more():
    shown, timers = list[Growing](), list[_Timer]()

    def later(_seconds: float, do: Callable[[], None]) -> Any:
        timers.append(_Timer(do))
        return timers[-1]

    preview = StreamPreview(shown.append, chat.delta_in, inline=False, later=later)
    preview.feed(b'data: {"choices": [{"delta": {"content": "Pa"}}]}\ndata: {"choi')
    preview.feed(b'ces": [{"delta": {"content": "ris"}}]}\n')
    preview.close()
    assert [growing.text for growing in shown] == ["Pa"]
    assert [timer.cancelled for timer in timers] == [True]


class _Timer:
    def __init__(self, do: Callable[[], None]) -> None:
        self.do, self.cancelled = do, False

    def cancel(self) -> None:
        self.cancelled = True


def _usage_of(usage: dict[str, Any]) -> Usage:
    body = json.dumps(payload(usage=usage)).encode()  # NaN, too
    found = read_response(200, {}, body, ENDPOINT)
    assert isinstance(found, Completion)
    return found.usage


def test_the_cached_tokens_of_moonshot_are_read():
    assert _usage_of(SUMS | {"cached_tokens": 2}).cached_tokens == 2


def _stream(*events: Any, end: bytes = b"\n\n") -> Completion:
    body = b"".join(b"data: %b%b" % (orjson.dumps(event), end) for event in events) + b"data: [DONE]" + end
    found = read_response(200, {"Content-Type": "text/event-stream"}, body, ENDPOINT)
    assert isinstance(found, Completion)
    return found


def _delta(delta: dict[str, Any], finish: Any = None, **more: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": delta, "finish_reason": finish} | more]}


def test_events_without_an_empty_line_between_them_are_events():
    assert _stream(_delta({"content": "Pa"}), _delta({"content": "ris"}, "stop"), end=b"\n").text == "Paris"


def test_a_whole_message_at_the_end_of_a_stream_does_not_repeat_its_text():
    whole = {"message": PLAIN, "finish_reason": "stop"}
    assert _stream(_delta({"content": "Pa"}), _delta({"content": "ris"}), _delta({}, **whole)).text == "Paris"
    assert _stream(_delta({"role": "assistant", "content": ""}), _delta({}, **whole)).text == "Paris"
    pieces = [{"message": {"content": piece}} for piece in ("Pa", "ris")]
    assert _stream(*({"choices": [piece]} for piece in pieces)).text == "Paris"


_TEXT = [_delta({"role": "assistant", "content": ""}), _delta({"content": "Pa"}), _delta({"content": "ris"}, "stop")]


def _body(*events: Any, last: bytes = b"data: [DONE]\n\n") -> bytes:
    lines = (event if isinstance(event, bytes) else b"data: %b\n\n" % orjson.dumps(event) for event in events)
    return b"".join(lines) + last


@pytest.mark.parametrize(
    "body",
    [
        *(
            _body(_TEXT[0], _TEXT[1], kept_open, _TEXT[2])
            for kept_open in (
                b"data:\n\n",
                b"data: \n\n",
                b"data: null\n\n",
                b"data: []\n\n",
                b"data: {}\n\n",
                b"data: pong\n\n",
                b'data: "ping"\n\n',
                b"event: ping\ndata: \n\n",
                b'event: ping\ndata: {"type": "ping"}\n\n',
                b"event: keepalive\n\n",
                b": ping\n\n",
            )
        ),
        *(
            _body(*_TEXT, last=end)
            for end in (b"data: [DONE] \n\n", b'data: "[DONE]"\n\n', b"data: [done]\n\n", b"data:[Done]\n\n", b"")
        ),
        _body(*_TEXT, last=b'data: {"id":"c","choi'),
        _body([_TEXT[1]], _TEXT[2]),
        _body(_TEXT[1], _delta({"content": "ris"}), _delta({"role": "assistant"}, "stop", message=PLAIN)),
        _body(*_TEXT, _delta({}, None, message=PLAIN), _delta({}, None, message=PLAIN)),
    ],
)
def test_an_event_that_says_nothing_costs_no_answer(body):
    answer = read_response(200, {"Content-Type": "text/event-stream"}, body, ENDPOINT)
    assert isinstance(answer, Completion)
    assert answer.text == "Paris"


@pytest.mark.parametrize("body", [b"data: hello\n\n", b"event: ping\ndata: {\n\n", _body(b"data: {1}\n\n", *_TEXT)])
def test_a_stream_without_a_readable_object_is_a_bad_response(body):
    failure = read_response(200, {"Content-Type": "text/event-stream"}, body, ENDPOINT)
    assert isinstance(failure, RetryDecision)
    assert failure.error.code is Code.BAD_RESPONSE


def test_a_stream_that_is_cut_off_in_an_event_is_a_lost_connection():
    failure = read_response(200, {"Content-Type": "text/event-stream"}, _body(_TEXT[1], last=b'data: {"choi'), ENDPOINT)
    assert isinstance(failure, RetryDecision)
    assert failure.error.code is Code.CONNECTION_LOST


@pytest.mark.parametrize(
    "event",
    [
        b'data: {"error": {"message": "no slot is free", "code": 503}}\n\n',
        b'event: error\ndata: {"message": "no slot is free", "status": 503}\n\n',
        b'event:error\ndata: {"code": 503, "message": "no slot is free"}\n\n',
        b'event: error\ndata: {"detail": "no slot is free"}\n\n',
        b'event: error\ndata: "no slot is free"\n\n',
        b"event: error\ndata: no slot is free\n\n",
        b'error: {"code": 503, "message": "no slot is free", "type": "unavailable_error"}\n\n',
        b"error: no slot is free\n\n",
        b'data: {"code": 503, "message": "no slot is free"}\n\n',
        b'data: {"detail": "no slot is free"}\n\n',
        b'data: [{"error": {"message": "no slot is free"}}]\n\n',
    ],
)
def test_an_error_in_a_stream_has_the_words_of_the_server(event):
    failure = read_response(200, {"Content-Type": "text/event-stream"}, _body(_TEXT[1], event, last=b""), ENDPOINT)
    assert isinstance(failure, RetryDecision)
    assert "no slot is free" in failure.error.message


_PARIS, _ROME = ({"name": "look", "arguments": json.dumps({"city": city})} for city in ("Paris", "Rome"))


@pytest.mark.parametrize(
    ("pieces", "calls"),
    [
        ([{"id": "a", "function": _PARIS}, {"id": "b", "function": _ROME}], [_PARIS, _ROME]),
        ([{"function": _PARIS}, {"function": _ROME}], [_PARIS, _ROME]),
        ([{"index": None, "function": _PARIS}, {"index": None, "function": _ROME}], [_PARIS, _ROME]),
        (
            [{"id": "a", "function": _PARIS}, {"function": _ROME | {"name": "other"}}],
            [_PARIS, _ROME | {"name": "other"}],
        ),
        (
            [{"id": "a", "function": {"name": "look", "arguments": part}} for part in ('{"city": ', '"Pa', 'ris"}')],
            [_PARIS],
        ),
        (
            [
                {"index": 0, "function": {"name": "look", "arguments": part}}
                for part in ('{"city": ', '"Pa', 'ris"}', "")
            ],
            [_PARIS],
        ),
        ([{"id": "a", "function": {"name": "look", "arguments": ""}}, {"id": "a", "function": _PARIS}], [_PARIS]),
        ([{"function": {"name": "lo"}}, {"function": {"name": "ok"}}, {"function": {**_PARIS, "name": ""}}], [_PARIS]),
        ([{"id": "a", "function": _PARIS}, {"id": "a", "function": _PARIS}], [_PARIS]),
        (
            [
                {"index": 0, "id": "a", "function": {"name": "look", "arguments": '{"city": '}},
                {"index": 0, "id": "b", "function": {"name": "look", "arguments": '{"city": '}},
                {"index": 0, "id": "a", "function": {"arguments": '"Paris"}'}},
                {"index": 0, "id": "b", "function": {"arguments": '"Rome"}'}},
            ],
            [_PARIS, _ROME],
        ),
        (
            [{"id": identity, "function": {"name": f"{identity}_now", "arguments": ""}} for identity in "ab"],
            [{"name": f"{identity}_now", "arguments": ""} for identity in "ab"],
        ),
        (
            [{"function": {"name": "lo"}}, {"function": {"name": "look"}}, {"function": {**_PARIS, "name": ""}}],
            [_PARIS],
        ),
        ([{"id": "a", "function": {**_PARIS, "name": None}}, {"id": "a", "function": {"name": "look"}}], [_PARIS]),
        ([{"id": "a", **_PARIS}], [_PARIS]),
    ],
)
def test_the_calls_of_a_stream_are_told_apart(pieces, calls):
    answer = _stream(*(_delta({"tool_calls": [piece]}) for piece in pieces), _delta({}, "tool_calls"))
    assert [call["function"] for call in answer.tool_calls] == calls


@pytest.mark.parametrize(
    "events",
    [
        [
            _delta({"function_call": {"name": "look", "arguments": '{"city": '}}),
            _delta({"function_call": {"arguments": '"Paris"}'}}),
        ],
        [_delta({}, None, message={"content": None, "function_call": _PARIS})],
        [
            {
                "choices": [
                    {"index": 0, "delta": {}},
                    {"index": 1, "delta": {"tool_calls": [{"id": "a", "function": _PARIS}]}},
                ]
            }
        ],
        [
            _delta({"tool_calls": [{"index": 0, "id": "a", "function": _PARIS}]}),
            _delta({}, None, message={"tool_calls": [{"id": "a", "function": _PARIS}]}),
        ],
    ],
)
def test_a_call_of_an_older_form_or_in_another_choice_is_read(events):
    answer = _stream(_delta({"content": "I look."}), *events, _delta({}, "function_call"))
    assert (answer.text, answer.finish_reason) == ("I look.", "tool_calls")
    assert [call["function"] for call in answer.tool_calls] == [_PARIS]


def test_a_call_in_the_older_and_the_newer_form_is_one_call():
    both = {"function_call": _PARIS, "tool_calls": [{"index": 0, "id": "a", "function": _PARIS}]}
    answer = _stream(_delta(both), _delta({}, "tool_calls"))
    assert answer.tool_calls == ({"id": "a", "type": "function", "function": _PARIS},)


def test_a_streamed_call_of_a_custom_tool_is_read():
    begun = {"index": 0, "id": "a", "type": "custom", "custom": {"name": "look", "input": "Pa"}}
    more = {"index": 0, "custom": {"input": "ris"}}
    answer = _stream(_delta({"tool_calls": [begun]}), _delta({"tool_calls": [more]}), _delta({}, "tool_calls"))
    assert answer.tool_calls == ({"id": "a", "type": "custom", "custom": {"name": "look", "input": "Paris"}},)


def test_a_whole_message_at_the_end_of_a_stream_completes_it():
    whole = {"content": "Paris", "tool_calls": [{"id": identity, "function": _PARIS} for identity in "ab"]}
    begun = _delta({"content": "Pa", "tool_calls": [{"index": 0, "id": "a", "function": _PARIS}]})
    answer = _stream(begun, _delta({}, "tool_calls", message=whole))
    assert (answer.text, [call["id"] for call in answer.tool_calls]) == ("Paris", ["a", "b"])


@pytest.mark.parametrize(
    ("call", "problem"),
    [
        ({"id": "a", "function": {"arguments": "{}"}}, "without the name"),
        ({"id": "a", "function": {"name": "", "arguments": "{}"}}, "without the name"),
        ({"id": "a"}, "without the name"),
        ({"id": "a", "function": {"name": "look" * 300, "arguments": "{}"}}, "more than 1,000 characters"),
    ],
)
def test_a_streamed_call_without_a_usable_name_is_a_bad_response(call, problem):
    body = _body(_delta({"tool_calls": [{"index": 0, **call}]}), _delta({}, "tool_calls"))
    failure = read_response(200, {"Content-Type": "text/event-stream"}, body, ENDPOINT)
    assert isinstance(failure, RetryDecision)
    assert (failure.error.code, problem in failure.error.message) == (Code.BAD_RESPONSE, True)


_NO_CALL = {"name": "", "arguments": ""}


@pytest.mark.parametrize(
    "field",
    [{"function_call": _NO_CALL}, {"tool_calls": [{"index": 0, "id": "", "type": "function", "function": _NO_CALL}]}],
)
def test_a_call_without_name_and_arguments_beside_a_text_is_none(field):
    streams = [
        [_delta({"content": "Paris"}), _delta(field, "stop")],
        [_delta({"content": "Pa", **field}), _delta({"content": "ris", **field}), _delta({}, "stop")],
    ]
    whole = {"choices": [{"message": {"content": "Paris", **field}, "finish_reason": "stop"}]}
    answers = [*(_stream(*events) for events in streams), read_payload(whole, {}, ENDPOINT)]
    assert [(answer.text, answer.tool_calls) for answer in answers if isinstance(answer, Completion)] == [
        ("Paris", ())
    ] * 3


def test_an_answer_whose_calls_are_none_does_not_end_with_calls():
    message = {"content": "Paris", "tool_calls": [{"function": _NO_CALL}]}
    answer = read_payload({"choices": [{"message": message, "finish_reason": "tool_calls"}]}, {}, ENDPOINT)
    assert isinstance(answer, Completion)
    assert (answer.text, answer.finish_reason) == ("Paris", "stop")


def test_a_call_without_a_name_does_not_hide_the_others():
    calls = [{"id": "a", "function": _NO_CALL}, {"id": "b", "function": _PARIS}, None]
    answer = read_payload(
        {"choices": [{"message": {"tool_calls": calls}, "finish_reason": "tool_calls"}]}, {}, ENDPOINT
    )
    assert isinstance(answer, Completion)
    assert [call["id"] for call in answer.tool_calls] == ["b"]


def _with_id(identity: str, event: dict[str, Any]) -> dict[str, Any]:
    return {"id": identity, **event}


def test_a_stream_that_begins_again_is_its_second_answer():
    role = _delta({"role": "assistant", "content": ""})
    answer = _stream(
        *(_with_id("a", event) for event in (role, _delta({"content": "Lond", "reasoning_content": "Hm."}))),
        *(_with_id("b", event) for event in (role, _delta({"content": "Paris"}), _delta({}, "stop"))),
    )
    assert (answer.text, answer.reasoning, answer.finish_reason) == ("Paris", None, "stop")


@pytest.mark.parametrize(
    "events",
    [
        [_with_id("a", _delta({"content": "Pa"})), _with_id("b", _delta({"content": "ris"}, "stop"))],
        [
            _with_id(identity, _delta({"role": "assistant", "content": piece}, finish))
            for identity, piece, finish in (("a", "Pa", None), ("b", "ris", None), ("c", "", "stop"))
        ],
        [
            _with_id("a", _delta({"role": "assistant", "content": ""})),
            _with_id("b", _delta({"content": "Paris"})),
            _with_id("c", _delta({"role": "assistant", "content": ""}, "stop")),
        ],
        [
            _with_id("a", _delta({"content": "Paris"})),
            _with_id("b", _delta({"role": "assistant"})),
            _with_id("c", _delta({}, "stop")),
        ],
    ],
    ids=["an id for each", "id and role in each", "the role at the end", "a role without a text"],
)
def test_ids_and_roles_alone_do_not_begin_a_stream_again(events):
    assert _stream(*events).text == "Paris"


def test_the_usage_of_an_unreadable_answer_is_counted():
    body = orjson.dumps(
        {"choices": [{"message": {"content": 5}}], "usage": {"prompt_tokens": 8, "completion_tokens": 3}}
    )
    failure = read_response(200, {}, body, ENDPOINT)
    assert isinstance(failure, RetryDecision)
    assert (failure.usage, failure.unmetered) == (Usage(8, 3), False)


@pytest.mark.parametrize("call", [{"name": "look", "input": {"city": "Paris"}}, _PARIS])
def test_a_call_whose_parts_are_not_in_a_function_is_read(call):
    answer = read_payload({"choices": [{"message": {"tool_calls": [{"id": "a", **call}]}}]}, {}, ENDPOINT)
    assert isinstance(answer, Completion)
    (found,) = answer.tool_calls
    assert (found["function"]["name"], json.loads(found["function"]["arguments"])) == ("look", {"city": "Paris"})


def test_the_calls_of_several_choices_are_one_answer():
    first, second = ({"id": identity, "type": "function", "function": _PARIS} for identity in "ab")
    other = {"id": "c", "type": "function", "function": _ROME}
    choices = [{"message": {"content": None, "tool_calls": calls}} for calls in ([first], [second, other])]
    answer = read_payload({"choices": choices}, {}, ENDPOINT)
    assert isinstance(answer, Completion)
    assert answer.tool_calls == (first, other), "a call that a choice repeats counts once"


def test_calls_of_custom_tools_in_several_choices_are_all_read():
    calls = [{"id": name, "type": "custom", "custom": {"name": "look", "input": name}} for name in ("a", "b")]
    choices = [{"message": {"content": None, "tool_calls": [call]}} for call in calls]
    answer = read_payload({"choices": choices}, {}, ENDPOINT)
    assert isinstance(answer, Completion)
    assert [*answer.tool_calls] == calls


def test_the_text_and_the_call_of_two_choices_are_one_answer():
    call = {"id": "a", "type": "function", "function": _PARIS}
    text, calls = {"content": "I look."}, {"content": None, "tool_calls": [call]}
    for pair in ((text, calls), (calls, text)):
        choices = [{"message": message, "finish_reason": "tool_calls"} for message in pair]
        answer = read_payload({"choices": choices}, {}, ENDPOINT)
        assert isinstance(answer, Completion)
        assert (answer.text, answer.tool_calls) == ("I look.", (call,))


@pytest.mark.parametrize(
    "more",
    [
        [_delta({}, "stop", usage=SUMS)],
        [_delta({}, "stop"), {"choices": [], "usage": SUMS}],
        [_delta({}, "stop") | {"x_groq": {"id": "r", "usage": SUMS}}],
        [_delta({}, "stop") | {"usage": SUMS}, {"choices": [], "usage": dict.fromkeys(SUMS, 0)}],
        [
            _delta({}) | {"usage": {"prompt_tokens": 24, "completion_tokens": 0}},
            _delta({}, "stop") | {"usage": {"completion_tokens": 12}},
        ],
        [
            _delta({}) | {"usage": SUMS | {"completion_tokens": 3, "total_tokens": 27}},
            _delta({}, "stop") | {"usage": SUMS},
        ],
    ],
)
def test_the_usage_of_a_stream_is_read_wherever_it_stands(more):
    assert _stream(_delta({"content": "Paris"}), *more).usage == Usage(24, 12)


@pytest.mark.parametrize("ids", [("c1", "c2"), ("", ""), ("c1", "")])
def test_parallel_calls_with_one_index_are_apart(ids):
    calls = [{**_named(name, '{"a":1}'), "id": identity} for name, identity in zip("fg", ids, strict=True)]
    calls.insert(1, {"index": 0, "id": "", "function": {"name": "", "arguments": " "}})
    found = _stream(*(_delta({"tool_calls": [call]}) for call in calls), _delta({}, "tool_calls")).tool_calls
    functions = [(call["function"]["name"], call["function"]["arguments"]) for call in found]
    assert functions == [("f", '{"a":1} '), ("g", '{"a":1}')]


@pytest.mark.parametrize(
    ("ids", "different"),
    [
        (["a", "a"], ["a", "a-2"]),
        (["a", "a", "a-2"], ["a", "a-3", "a-2"]),
        ([1, 1], ["1", "1-2"]),
        ([" ", ""], ["", ""]),
    ],
)
def test_calls_with_one_id_get_different_ids(ids, different):
    calls = [{"id": identity, "type": "function", "function": _PARIS} for identity in ids]
    answer = read_payload({"choices": [{"message": {"content": None, "tool_calls": calls}}]}, {}, ENDPOINT)
    assert isinstance(answer, Completion)
    assert [call["id"] for call in answer.tool_calls] == different


@pytest.mark.parametrize(
    ("encoding", "named"),
    [("latin-1", "iso-8859-1"), ("cp1252", '"windows-1252"'), ("gbk", "gbk"), ("utf-16", "UTF-16"), ("utf-8", "utf-8")],
)
def test_a_body_is_read_in_the_charset_of_its_content_type(encoding, named):
    text = "巴黎" if encoding == "gbk" else "Zürich"
    body = json.dumps({"choices": [{"message": {"content": text}, "finish_reason": "stop"}]}, ensure_ascii=False)
    headers = {"Content-Type": f"application/json; charset={named}"}
    answer = read_response(200, headers, body.encode(encoding), ENDPOINT)
    assert isinstance(answer, Completion)
    assert answer.text == text


def test_the_usage_of_a_streamed_choice_is_read():
    usage = _stream(_delta({"content": "Paris"}), _delta({}, "stop", usage=SUMS | {"cached_tokens": 8})).usage
    assert (usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens) == (24, 12, 8)


@pytest.mark.parametrize(
    ("prompt", "completion", "counts"),
    [
        (24.0, "12", (24, 12)),
        ("24", 12.0, (24, 12)),
        (24, 12.5, (0, 0)),
        (24, True, (0, 0)),
        (24, "-12", (0, 0)),
        (float("nan"), 12, (0, 0)),
    ],
)
def test_a_count_may_be_a_whole_float_or_digits(prompt, completion, counts):
    found = _usage_of({"prompt_tokens": prompt, "completion_tokens": completion})
    assert (found.prompt_tokens, found.completion_tokens) == counts


@pytest.mark.parametrize("given", [{"cache_write_tokens": 8}, {}])
def test_the_cache_writes_of_twelve_hours_at_openai_are_read(given):
    details = {**given, "cache_write_tokens_details": {"ttl_30m_tokens": 2, "ttl_12h_tokens": 6}}
    found = _usage_of({"input_tokens": 24, "output_tokens": 12, "input_tokens_details": details})
    assert (found.prompt_tokens, found.written_tokens, found.hour_written_tokens) == (24, 8, 6)


def test_the_cache_writes_of_an_hour_of_litellm_are_read():
    details = {"cache_creation_token_details": {"ephemeral_5m_input_tokens": 2, "ephemeral_1h_input_tokens": 6}}
    usage = SUMS | {"cache_creation_input_tokens": 8, "prompt_tokens_details": details}
    found = _usage_of(usage)
    assert (found.written_tokens, found.hour_written_tokens) == (8, 6)


@pytest.mark.parametrize(
    ("usage", "counts"),
    [
        (SUMS | {"cache_read_input_tokens": 8, "prompt_tokens_details": {"cached_tokens": 0}}, (24, 8, 0, 0)),
        (SUMS | {"prompt_tokens_details": {"cache_creation_tokens": 8}}, (24, 0, 8, 0)),
        (SUMS | {"prompt_tokens_details": {"cache_creation_input_tokens": 8}}, (24, 0, 8, 0)),
        (SUMS | {"prompt_tokens_details": {"cache_creation": {"ephemeral_5m_input_tokens": 8}}}, (24, 0, 8, 0)),
        (SUMS | {"prompt_tokens_details": {"cached_tokens": 100}}, (124, 100, 0, 0)),
        (SUMS | {"total_tokens": 46, "prompt_tokens_details": {"cached_tokens": 10}}, (34, 10, 0, 0)),
        (
            SUMS | {"total_tokens": 66, "cache_read_input_tokens": 20, "cache_creation_input_tokens": 10},
            (54, 20, 10, 0),
        ),
        (
            {"prompt_tokens": 0, "completion_tokens": 12, "prompt_tokens_details": {"cached_tokens": 24}},
            (24, 24, 0, 0),
        ),
        (SUMS | {"cache_creation_input_tokens": 8}, (24, 0, 8, 0)),
        (SUMS | {"prompt_tokens_details": {"cached_creation_tokens": 8}}, (24, 0, 8, 0)),
        (SUMS | {"cacheReadInputTokens": 8, "cacheWriteInputTokens": 2}, (24, 8, 2, 0)),
        (SUMS | {"num_cached_tokens": 8}, (24, 8, 0, 0)),
        (
            {
                "input_tokens": 24,
                "output_tokens": 12,
                "total_tokens": 36,
                "input_tokens_details": {"cached_tokens": 8, "cache_write_tokens": 2},
                "output_tokens_details": {"reasoning_tokens": 5},
            },
            (24, 8, 2, 5),
        ),
    ],
)
def test_cached_tokens_are_read_under_each_name(usage, counts):
    found = read_other_response(200, {}, orjson.dumps({"output": [], "usage": usage}), ENDPOINT)
    assert isinstance(found, Completion)
    spent = found.usage
    assert (spent.prompt_tokens, spent.cached_tokens, spent.written_tokens, spent.reasoning_tokens) == counts
