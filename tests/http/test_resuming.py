"""A connection that breaks costs no answer: the client asks again from the last event that it has seen."""

import asyncio
import http.client
import json
import re
import threading

import pytest
from mcp_types import jsonrpc_message_adapter

from promptmill.http.sessions import Events, SessionEvents
from replies import answer
from served import messages
from waiting import PATIENCE_S, eventually

_RESPONSE = jsonrpc_message_adapter.validate_python({"jsonrpc": "2.0", "id": 1, "result": {}})
_PROGRESS = jsonrpc_message_adapter.validate_python(
    {"jsonrpc": "2.0", "method": "notifications/progress", "params": {"progressToken": 1, "progress": 1}}
)
_ID = re.compile(rb"^id: (\S+)", re.MULTILINE)


def _posted(server, session, message):
    """Send a request and break its connection after the first event; return that event's id."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=PATIENCE_S)
    connection.request("POST", "/mcp", json.dumps(message), session.headers)
    response = connection.getresponse()
    said = b""
    while not (found := _ID.search(said)):
        said += response.read1(4096)
    connection.sock.close()
    response.close()
    return found[1].decode()


def _call(*prompts):
    params = {"name": "generate", "arguments": {"prompt_ls": list(prompts)}}
    return {"jsonrpc": "2.0", "id": 77, "method": "tools/call", "params": params}


def _resumed(server, session, event_id):
    """Ask for what came after an event; return the messages up to the first response."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=PATIENCE_S)
    connection.request("GET", "/mcp", headers=session.headers | {"Last-Event-ID": event_id})
    response = connection.getresponse()
    assert response.status == 200
    said = b""
    while b'"id":77' not in said or not said.endswith(b"\n"):
        piece = response.read1(65_536)
        if not piece:
            break
        said += piece
    connection.close()
    return messages(said)


@pytest.mark.thorough
@pytest.mark.parametrize("back", ["before the answer", "after it"])
def test_what_was_answered_while_the_connection_was_lost_is_there_again(server, upstream, back):
    gate = threading.Event()

    async def when_open(exchange):
        await asyncio.to_thread(gate.wait, 30)
        await answer()(exchange)

    upstream.reply = when_open
    session = server.session()
    event_id = _posted(server, session, _call("slow"))
    eventually(lambda: upstream.in_flight)
    if back == "after it":
        gate.set()
        eventually(lambda: not upstream.in_flight)
    else:
        threading.Timer(0.5, gate.set).start()
    found = _resumed(server, session, event_id)
    (response,) = [message for message in found if message.get("id") == 77]
    assert response["result"]["structuredContent"]["ans_ls"] == ["echo: slow"]


def test_an_unknown_event_is_no_error_of_the_server(server):
    session = server.session()
    for event_id in ("nonsense", "0123456789abcdef-1"):
        assert server.ask("GET", headers=session.headers | {"Last-Event-ID": event_id}).status == 200


async def test_a_session_cannot_ask_for_the_events_of_another():
    events = Events()
    mine, other = SessionEvents(events), SessionEvents(events)
    first = await mine.store_event("1", None)
    sent = []

    async def send(event):
        sent.append(event)

    assert await other.replay_events_after(first, send) is None
    following = asyncio.ensure_future(mine.replay_events_after(first, send))
    await asyncio.sleep(0)
    assert sent == []
    await other.store_event("1", _RESPONSE)
    await mine.store_event("2", _RESPONSE)
    await asyncio.sleep(0.01)
    assert sent == []
    await mine.store_event("1", _RESPONSE)
    assert await following is None
    assert [event.message for event in sent] == [_RESPONSE]


async def test_a_resumed_stream_is_followed_until_its_response_and_ends_with_its_session():
    sent = []

    async def send(event):
        sent.append(event)
        if event.message is _PROGRESS:  # stored while the client is sent what it missed
            await events.store_event("1", _RESPONSE)

    events = SessionEvents(Events())
    first = await events.store_event("1", None)
    await events.store_event("1", _PROGRESS)
    assert await events.replay_events_after(first, send) is None
    assert [event.message for event in sent] == [_PROGRESS, _RESPONSE]
    assert await events.replay_events_after(sent[-1].event_id, send) is None, "nothing comes after the response"
    unanswered = await events.store_event("2", None)
    events.is_over = lambda: True
    assert await events.replay_events_after(unanswered, send) is None
    assert len(sent) == 2


@pytest.mark.parametrize(
    "held",
    [
        {"result": {"structuredContent": {"ans_ls": ["x" * 5000]}, "content": []}},
        {"result": {"structuredContent": {"ans_ls": ["\ud800" * 5000]}, "content": []}},
        {"result": {"contents": [{"uri": "promptmill://jobs/a/answers", "text": "x" * 5000}]}},
        {"error": {"code": -32602, "message": "x" * 5000}},
        {"error": {"code": -32602, "message": "", "data": "x" * 5000}},
    ],
    ids=["answers", "half characters", "resource", "error", "data"],
)
async def test_all_that_a_response_holds_counts(held):
    events = Events(most_bytes=20_000)
    response = jsonrpc_message_adapter.validate_python({"jsonrpc": "2.0", "id": 1, **held})
    for number in range(100):
        events.add(str(number), "1", response)
    assert len(events._events) < 5


async def test_the_oldest_events_go_first_and_the_newest_is_kept():
    events = Events(most_bytes=10_000)
    session = SessionEvents(events)
    ids = [await session.store_event("1", None) for _ in range(100)]
    assert events.after(ids[0]) is None
    assert events.after(ids[-2]) is not None
    assert len(events._events) < 12


def test_the_events_of_a_session_are_bounded_in_bytes():
    """A letter of Chinese has three."""
    response = jsonrpc_message_adapter.validate_python({"jsonrpc": "2.0", "id": 1, "result": {"text": "字" * 5000}})
    events = Events(most_bytes=3 * 5000 + 2 * 1024)
    for name in ("first", "second"):
        events.add(name, "stream", response)
    assert events.after("first") is None
    assert events.after("second") == ("stream", [])


@pytest.mark.parametrize("text", ["字", "\ud800"], ids=["text", "half a character"])
def test_a_response_comes_back_as_it_was(text):
    response = jsonrpc_message_adapter.validate_python(
        {"jsonrpc": "2.0", "id": 1, "result": {"ans_ls": [text, {"n": 1}]}}
    )
    events = Events()
    events.add("first", "stream", None)
    events.add("second", "stream", response)
    assert events.after("first") == ("stream", [("second", response)])


async def test_the_events_of_a_session_end_with_it():
    events = Events()
    ended, other = SessionEvents(events), SessionEvents(events)
    ended.follow(lambda: True)
    other.follow(lambda: False)
    gone, kept = [await session.store_event("1", None) for session in (ended, other)]
    events.forget_ended()
    assert (events.after(gone), events.after(kept)) == (None, (f"{kept.partition('-')[0]}:1", []))
    assert len(events.sessions) == 1
