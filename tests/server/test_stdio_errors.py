"""Lines that are no message: who waits is answered, nobody else is."""

import threading

import pytest
from mcp.shared.message import SessionMessage
from mcp_types import JSONRPCRequest, jsonrpc_message_adapter
from pydantic import ValidationError

from promptmill.server import stdio
from promptmill.server.stdio import answer_to

CALL = '{"jsonrpc":"2.0","id":%s,"method":"tools/call","params":{"name":"generate","arguments":%s}}'


def _answer(line):
    with pytest.raises(ValidationError) as refused:
        jsonrpc_message_adapter.validate_json(line, by_name=False)  # as the SDK reads it
    return answer_to(refused.value)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (r'"\ud800"', "surrogate"),
        (r'"\udfff x"', "surrogate"),
        (r'{"id": 9, "x": "\ud800"}', "surrogate"),
        ('{"id":9,"x":' + "[" * 300 + "]" * 300 + "}", "nested too deeply"),
        ('{"id":9,"x":' + "[" * 50_000 + "]" * 50_000 + "}", "nested too deeply"),
    ],
)
@pytest.mark.parametrize(("number", "read"), [("3", 3), ('"three"', "three")])
def test_a_request_that_cannot_be_read_is_answered_by_its_own_id(arguments, said, number, read):
    answer = _answer(CALL % (number, arguments))
    assert answer.id == read
    assert answer.error.code == -32700
    assert said in answer.error.message


@pytest.mark.parametrize("params", ["[1, 2]", '"x"', "5", "[]"])
def test_params_that_are_no_object_are_said(params):
    answer = _answer('{"jsonrpc":"2.0","id":"three","method":"ping","params":' + params + "}")
    assert (answer.id, answer.error.code) == ("three", -32600)
    assert "params" in answer.error.message


@pytest.mark.parametrize("version", ['"jsonrpc":"1.0",', '"jsonrpc":2.0,', ""])
def test_a_request_of_another_version_of_json_rpc_is_refused(version):
    answer = _answer("{" + version + '"id":3,"method":"ping"}')
    assert (answer.id, answer.error.code) == (3, -32600)
    assert "jsonrpc" in answer.error.message


@pytest.mark.parametrize("line", ["[]", '[{"jsonrpc":"2.0","id":7,"method":"ping"}]'])
def test_a_batch_is_refused(line):
    answer = _answer(line)
    assert (answer.id, answer.error.code) == (None, -32600)
    assert "batch" in answer.error.message


@pytest.mark.parametrize("number", ["null", "1.5", "true", "[]"])
def test_a_request_with_an_invalid_id_is_refused(number):
    line = f'{{"jsonrpc":"2.0","id":{number},"method":"ping"}}'
    message = jsonrpc_message_adapter.validate_json(line, by_name=False)
    refusal = stdio._refusal_of(message)
    assert refusal is not None
    assert (refusal.id, refusal.error.code) == (None, -32600)


def test_a_notification_and_a_null_progress_token_are_no_mistakes():
    notification = jsonrpc_message_adapter.validate_json('{"jsonrpc":"2.0","method":"notifications/cancelled"}')
    call = jsonrpc_message_adapter.validate_json(
        '{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"_meta":{"progressToken":null,"x":1}}}'
    )
    assert stdio._refusal_of(notification) is stdio._refusal_of(call) is None
    assert isinstance(call, JSONRPCRequest)
    assert call.params == {"_meta": {"x": 1}}


def test_a_number_that_nobody_reads_is_said():
    assert _answer(CALL % (3, '{"a":' + "9" * 5000 + "}")).id == 3
    assert _answer(CALL % ("9" * 5000, "{}")) is None
    assert _answer(CALL % ("9" * 5000, "[" * 50_000)) is None, "the server ended at this line"


def test_an_id_behind_what_is_nested_is_found_too():
    nested = "[" * 50_000 + "]" * 50_000
    line = '{"jsonrpc":"2.0","params":{"id":9,"a":"\\"id\\":8","b":' + nested + '},"method":"x","id":3}'
    assert _answer(line).id == 3


@pytest.mark.parametrize(
    "line",
    [
        "",
        "garbage",
        "null",
        '"text"',
        '{"jsonrpc":"2.0"}',
        r'{"jsonrpc":"2.0","method":"notifications/x","params":{"id":9,"x":"\ud800"}}',
        r'{"jsonrpc":"2.0","id":1.5,"method":"x","params":"\ud800"}',
        r'{"jsonrpc":"2.0","id":true,"method":"x","params":"\ud800"}',
        r'{"jsonrpc":"2.0","id":null,"method":"x","params":"\ud800"}',
        r'{"jsonrpc":"2.0","id":3,"result":"\ud800"}',
        '{"jsonrpc":"2.0","id":3,"method":"unclosed',
    ],
)
def test_where_nobody_waits_nothing_is_said(line):
    assert _answer(line) is None


def test_an_error_does_not_repeat_the_request():
    assert "hunter2" not in _answer(CALL % ("3", r'"hunter2 \ud800"')).error.message


async def test_a_line_that_takes_long_to_search_holds_up_nothing_else(monkeypatch):
    threads = []
    monkeypatch.setattr(stdio, "answer_to", lambda _: threads.append(threading.current_thread()))
    with pytest.raises(ValidationError) as refused:
        jsonrpc_message_adapter.validate_json("[" * 1000, by_name=False)

    async def lines():
        yield refused.value

    assert [item async for item in stdio._received(lines(), None, stdio._Client())] == []
    assert threads != [threading.main_thread()]
    assert len(threads) == 1


async def test_blank_lines_take_no_thread_and_no_answer(monkeypatch):
    monkeypatch.setattr(stdio, "answer_to", lambda _: pytest.fail("nothing is there to answer"))
    refused = []
    for line in ("", " \t"):
        with pytest.raises(ValidationError) as found:
            jsonrpc_message_adapter.validate_json(line, by_name=False)
        refused.append(found.value)

    async def lines():
        for error in refused:
            yield error

    assert [item async for item in stdio._received(lines(), None, stdio._Client())] == []


def test_a_message_behind_a_byte_order_mark_is_read_as_any_other():
    for line, kind in (('{"jsonrpc":"2.0","id":3,"method":"ping"}', SessionMessage), ("{", ValidationError)):
        with pytest.raises(ValidationError) as refused:
            jsonrpc_message_adapter.validate_json("\ufeff" + line, by_name=False)
        assert isinstance(stdio._without_mark(refused.value), kind)
