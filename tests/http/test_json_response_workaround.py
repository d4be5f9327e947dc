"""A response to a client that may have a limit: a stream or one JSON body, chosen when its first contents are there."""

import pytest

from promptmill.http.json_response_workaround import EitherResponse

START = {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]}
PRIMING = b"id: 1\r\ndata: \r\n\r\n"
PING = b": ping\r\n\r\n"
PROGRESS = b'event: message\r\ndata: {"jsonrpc":"2.0","method":"notifications/progress","params":{}}\r\n\r\n'
RESULT = b'id: 2\r\nevent: message\r\ndata: {"jsonrpc":"2.0","id":1,"result":{}}\r\n\r\n'
CALL, CALL_WITH_PROGRESS = b'{"method":"tools/call"}', b'{"method":"tools/call","_meta":{"progressToken":1}}'
LARGE = CALL_WITH_PROGRESS + b" " * 5000
OTHER = b'{"method":"subscriptions/listen"}'


async def _sent(body, *events, is_limited=True):
    """Return the content type, the whole body, and the largest result just before the last of `events`."""
    response = EitherResponse(body, is_limited=is_limited)
    out = []

    async def send(message):
        out.append(message)

    take = response.over(send)
    await take(START)
    for event in events[:-1]:
        await take({"type": "http.response.body", "body": event, "more_body": True})
    most = response.most_bytes()
    await take({"type": "http.response.body", "body": events[-1], "more_body": True})
    await take({"type": "http.response.body", "body": b"", "more_body": False})
    return dict(out[0]["headers"])[b"content-type"], b"".join(message["body"] for message in out[1:]), most


@pytest.mark.parametrize("body", [CALL, CALL_WITH_PROGRESS, LARGE, OTHER])
async def test_a_result_that_comes_first_is_json_without_a_limit(body):
    assert await _sent(body, PRIMING, RESULT) == (b"application/json", b'{"jsonrpc":"2.0","id":1,"result":{}}', None)


@pytest.mark.parametrize("body", [CALL, LARGE])
async def test_without_progress_or_with_a_large_request_blanks_stand_before_the_json(body):
    expected = b'  {"jsonrpc":"2.0","id":1,"result":{}}'
    assert await _sent(body, PRIMING, PING, PROGRESS, RESULT) == (b"application/json", expected, None)


@pytest.mark.parametrize(("body", "first"), [(CALL_WITH_PROGRESS, PROGRESS), (CALL_WITH_PROGRESS, PING), (OTHER, PING)])
async def test_progress_and_long_silence_need_a_stream_whose_events_have_a_limit(body, first):
    events = (PRIMING, first, RESULT)
    assert await _sent(body, *events) == (b"text/event-stream", b"".join(events), 1_000_000)


async def test_a_client_of_unknown_limit_without_progress_has_a_stream_that_it_can_resume():
    events = (PRIMING, PING, RESULT)
    assert await _sent(CALL, *events, is_limited=False) == (b"text/event-stream", b"".join(events), 1_000_000)
    assert (await _sent(LARGE, *events, is_limited=False))[0] == b"application/json"


async def test_a_result_of_a_known_size_stays_json_when_a_ping_comes_before_it():
    response = EitherResponse(CALL_WITH_PROGRESS, is_limited=True)
    out = []

    async def send(message):
        out.append(message)

    take = response.over(send)
    await take(START)
    assert response.most_bytes() is None
    for event in (PING, RESULT):
        await take({"type": "http.response.body", "body": event, "more_body": True})
    assert [message["body"] for message in out[1:]] == [b" ", b'{"jsonrpc":"2.0","id":1,"result":{}}']


async def test_an_event_has_its_texts_in_utf_8():
    escaped = rb'data: {"id":1,"result":"\u4f60\ud83d\ude00"}' + b"\r\n\r\n"
    half = rb'data: {"id":1,"result":"\ud83d"}' + b"\r\n\r\n"
    _, body, _ = await _sent(CALL_WITH_PROGRESS, PROGRESS, escaped, half)
    assert body == PROGRESS + 'data: {"id":1,"result":"你😀"}\r\n\r\n'.encode() + half


@pytest.mark.parametrize(
    "agent", [b"python-httpx2/2.16", b"Google ADK/2.13", b"my-app/1.0", b"node-red/4", b"Go-http-client/1.1", b""]
)
def test_programs_that_are_not_known_to_come_without_a_limit_get_one(agent):
    for method in ("POST", "GET"):
        scope = {"method": method, "headers": [(b"user-agent", agent)] if agent else []}
        assert (EitherResponse.to(scope, CALL) is not None) == (method == "POST")


@pytest.mark.parametrize("agent", [b"python-httpx/0.28.1", b"node", b"claude-code/2.1.204 (cli)"])
def test_programs_without_a_limit_get_none(agent):
    assert EitherResponse.to({"method": "POST", "headers": [(b"user-agent", agent)]}, CALL) is None
