"""Who is turned away, over real connections: tokens, names, sizes, broken requests. The server stays."""

import json
import socket

import pytest

from served import BEARER, TOKEN, VERSION
from server_process import written

pytestmark = pytest.mark.http
_JSON = {"Content-Type": "application/json", "Accept": "application/json, text/event-stream"}
MAX_BODY = 64 << 10  # as the guarded server has it
PING = {"jsonrpc": "2.0", "id": 1, "method": "ping"}


def _stays(server, headers=None):
    assert server.process.poll() is None
    assert server.ask("GET", "/healthz").status == 200
    assert server.session(headers).answers("after") == ["echo: after"]
    assert "Traceback" not in server.said()


# The token


@pytest.mark.parametrize("method", ["POST", "GET", "DELETE", "PUT", "OPTIONS"])
@pytest.mark.parametrize(
    "value",
    [
        None,
        "",
        "Bearer",
        "Bearer wrong-wrong-wrong-wrong",
        f"Basic {TOKEN}",
        f"Bearer {TOKEN}x",
        TOKEN,
        "Bearer \xff\xfe",
    ],
)
def test_without_the_token_nothing_is_done_and_nothing_is_said(guarded, method, value):
    headers = _JSON if value is None else _JSON | {"Authorization": value}
    answer = guarded.ask(method, "/mcp", headers, json.dumps(PING).encode())
    assert answer.status == 401
    message = "This server needs a token: send the header `Authorization: Bearer TOKEN`. Its operator has the token."
    if value is not None:
        message = (
            "The header `Authorization` does not hold this server's token: send `Bearer TOKEN`. "
            "Its operator has the token."
        )
    assert answer.json["error"]["message"] == message, "alike for all that are wrong"
    assert answer.headers["www-authenticate"] == "Bearer"
    assert set(answer.headers) == {"date", "content-length", "content-type", "www-authenticate"}


def test_with_the_token_the_tools_answer(guarded):
    assert guarded.session(BEARER).answers("x") == ["echo: x"]
    assert guarded.session({"Authorization": f"bearer  {TOKEN}"}).answers("x") == ["echo: x"]


def test_two_authorizations_are_none(guarded):
    head = f"POST /mcp HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {TOKEN}\r\n"
    said = guarded.raw(f"{head}Authorization: Bearer {TOKEN}\r\nContent-Length: 0\r\n\r\n".encode())
    assert said.startswith(b"HTTP/1.1 401 ")


def test_the_session_of_another_does_not_replace_the_token(guarded):
    session = guarded.session(BEARER)
    del session.headers["Authorization"]
    assert session.post(PING).status == 401


def test_a_token_set_on_loopback_counts_there_too(upstream, tmp_path):
    from served import Served

    file = tmp_path / "token"
    file.write_text(TOKEN + "\n")
    with Served(written(tmp_path, upstream.url), "--token-file", str(file)) as server:
        assert server.ask(headers=_JSON, body=b"{}").status == 401
        assert server.session(BEARER).answers("x") == ["echo: x"]
        assert TOKEN not in server.said()
        assert TOKEN not in str(server.process.args)


def test_the_refused_body_is_not_waited_for(guarded):
    head = b"POST /mcp HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
    assert guarded.raw(head + b"5\r\nhello\r\n").startswith(b"HTTP/1.1 401 ")


# Visitors


@pytest.mark.parametrize("accept", ["*/*", "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"])
def test_a_browser_or_curl_is_told_whom_the_address_is_for(guarded, server, accept):
    said = server.ask("GET", "/mcp", {"Accept": accept})
    assert said.status in {400, 406}
    assert b"promptmill is running; this address is for MCP clients" in said.body
    assert guarded.ask("GET", "/mcp", {"Accept": accept}).status == 401


@pytest.mark.parametrize("accept", ["text/event-stream", "application/json, text/event-stream, */*"])
def test_a_client_without_its_session_is_told_in_json(server, accept):
    said = server.ask("GET", "/mcp", {"Accept": accept})
    assert said.status == 400
    assert "session" in said.message.lower()


# Names


def test_an_allowed_name_is_answered(guarded, server):
    assert guarded.ask("GET", "/healthz", {"Host": "mill.example.com:443"}).body == b"ok\n"
    assert server.ask("GET", "/healthz", {"Host": "mill.example.com"}).status == 421


def test_a_page_of_this_address_is_let_in_and_nothing_lets_scripts_of_others_read(server):
    session = server.session({"Origin": f"http://127.0.0.1:{server.port}"})
    answer = session.post(PING)
    assert answer.status == 200
    assert not [name for name in answer.headers if name.startswith("access-control-")]


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"GET /healthz HTTP/1.1\r\n\r\n", 400),
        (b"GET /healthz HTTP/1.0\r\n\r\n", 421),
        (b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nHost: evil.com\r\n\r\n", 400),
        (b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nhost: localhost\r\n\r\n", 400),
        (b"GET /healthz HTTP/1.1\r\nHost: \r\n\r\n", 421),
        (b"GET /healthz HTTP/1.1\r\nHost: localhost, evil.com\r\n\r\n", 421),
        (b"GET http://evil.com/healthz HTTP/1.1\r\nHost: evil.com\r\n\r\n", 421),
        (b"GET http://evil.com/healthz HTTP/1.1\r\nHost: localhost\r\n\r\n", 404),
        (b"GET http://localhost/mcp HTTP/1.1\r\nHost: localhost\r\n\r\n", 404),
        (b"GET //healthz HTTP/1.1\r\nHost: localhost\r\n\r\n", 404),
        (b"GET /healthz/../mcp HTTP/1.1\r\nHost: localhost\r\n\r\n", 404),
        (b"GET /%6dcp HTTP/1.1\r\nHost: localhost\r\n\r\n", 401),
        (b"GET /healthz HTTP/1.1\r\nHost : localhost\r\n\r\n", 400),
        (b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n Host: evil.com\r\n\r\n", 421),
        (b"GET /healthz HTTP/1.1\r\nX-Forwarded-Host: localhost\r\nHost: evil.com\r\n\r\n", 421),
        (b"GET /healthz HTTP/1.1\r\nHost: [::1\r\n\r\n", 421),
        (b"GET /healthz HTTP/1.1\r\nHost: LOCALHOST.\r\n\r\n", 200),
        (b"POST /healthz HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n", 405),
        (b"CONNECT evil.com:80 HTTP/1.1\r\nHost: localhost\r\n\r\n", 404),
        (b"OPTIONS * HTTP/1.1\r\nHost: localhost\r\n\r\n", 404),
    ],
)
def test_no_trick_of_the_head_changes_which_name_counts(guarded, head, status):
    assert guarded.raw(head).startswith(b"HTTP/1.1 %d " % status)


# Sizes


def _padded(size):
    message = json.dumps(PING | {"params": {"_meta": {"pad": ""}}}).encode()
    return message.replace(b'"pad": ""', b'"pad": "' + b"x" * (size - len(message)) + b'"')


def test_a_body_as_large_as_allowed_is_read_and_one_byte_more_is_not(guarded):
    session = guarded.session(BEARER)
    assert len(_padded(MAX_BODY)) == MAX_BODY
    assert guarded.ask(headers=session.headers, body=_padded(MAX_BODY)).status == 200
    answer = guarded.ask(headers=session.headers, body=_padded(MAX_BODY + 1))
    assert answer.status == 413
    assert "larger than 65,536 bytes" in answer.message
    assert "--max-body" in answer.message
    _stays(guarded, BEARER)


def test_a_large_body_that_is_allowed_is_answered(server, upstream):
    from replies import answer

    upstream.reply = answer("ok")
    prompt = "x" * 20_000_000
    assert server.session().answers(prompt, "small") == ["ok", "ok"]
    assert {len(seen.prompt) for seen in upstream.seen} == {20_000_000, 5}


@pytest.mark.parametrize(
    "head",
    [
        b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 2_000_000 + b"\r\n\r\n",
        b"GET /" + b"x" * 2_000_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n" + b"X: y\r\n" * 400_000 + b"\r\n",
        b"POST /mcp HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST /mcp HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
        b"POST /mcp HTTP/1.1\r\nHost: localhost\r\nContent-Length: -5\r\n\r\n",
        b"POST /mcp HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: gzip\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"garbage\r\n\r\n",
        b"\x00" * 100_000,
    ],
)
def test_a_head_that_is_too_large_or_ambiguous_is_no_request(server, head):
    said = server.raw(head)
    assert b"Traceback" not in said
    assert not said or said.split(b" ")[1] in {b"400", b"501"}, said[:100]
    _stays(server)


# What is no message


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"garbage",
        b"null",
        b"5",
        b'"text"',
        b"{}",
        b"[]",
        json.dumps([PING, PING]).encode(),
        b"[" * 100_000 + b"]" * 100_000,
        b'{"a":' * 50_000 + b"1" + b"}" * 50_000,
        b'{"jsonrpc":"2.0","id":1,"method":"ping","params":' + b"[" * 9000 + b"]" * 9000 + b"}",
        b'{"jsonrpc":"2.0","id":' + b"9" * 5000 + b',"method":"ping"}',
        b'{"jsonrpc":"2.0","id":1.5,"method":"ping"}',
        b'{"jsonrpc":"2.0","id":null,"method":"ping"}',
        b'{"jsonrpc":"2.0","id":{"a":1},"method":"ping"}',
        b'{"jsonrpc":"2.0","id":1,"method":"ping","params":{"x":1e999}}',
        b'{"jsonrpc":"2.0","id":1,"method":"ping","params":{"x":NaN}}',
        b'{"jsonrpc":"2.0","id":1,"method":5}',
        b'{"jsonrpc":"1.0","id":1,"method":"ping","params":{"hunter2":"hunter2"}}',
        b'{"jsonrpc":"2.0","id":1,"method":"\\ud800"}',
        b"\xff\xfe\x00",
        b'{"jsonrpc":"2.0","id":1,"method":"ping\xff"}',
        b"\x00" * 1000,
    ],
)
@pytest.mark.parametrize("version", [VERSION, "2026-07-28", "1999-01-01", "x" * 1000, "\xff"])
def test_what_is_no_message_is_an_error_in_plain_words(server, body, version):
    session = server.session()
    answer = server.ask(headers=session.headers | {"Mcp-Protocol-Version": version}, body=body)
    assert answer.status in {200, 202, 400, 404, 413}
    for word in (b"Traceback", b'File "', b"input_value", b"hunter2", b"pydantic"):
        assert word not in answer.body
    assert session.answers("after") == ["echo: after"]
    assert "Traceback" not in server.said()


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Content-Type": "text/plain"}, 400),
        ({"Content-Type": "application/x-www-form-urlencoded"}, 400),
        ({"Accept": "text/html"}, 406),
        ({"Mcp-Session-Id": "unknown"}, 404),
        ({"Mcp-Session-Id": "x" * 10_000}, 404),
        ({"Mcp-Session-Id": "\xff\x01"}, 404),
    ],
)
def test_a_message_in_the_wrong_clothes_is_refused(server, headers, status):
    session = server.session()
    assert server.ask(headers=session.headers | headers, body=json.dumps(PING).encode()).status == status
    _stays(server)


@pytest.mark.parametrize(
    "path", ["/", "/mcp/x", "/sse", "/.well-known/oauth-authorization-server", "/register", "/MCP"]
)
def test_there_is_nothing_elsewhere(guarded, path):
    assert guarded.ask("GET", path).status == 404


def test_the_path_may_end_with_a_slash(server):
    session = server.session()
    assert server.ask(path="/mcp/", headers=session.headers, body=json.dumps(PING).encode()).status == 200


def test_many_connections_that_say_nothing_do_no_harm(server):
    silent = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(300)]
    for one in silent[::2]:
        one.sendall(b"POST /mcp HTTP/1.1\r\nHost: loc")
    assert server.session().answers("x") == ["echo: x"]
    for one in silent:
        one.close()
    _stays(server)
