"""Over HTTP: who is let in, under which name, and how far their reach goes. `tests/http` looks closer."""

import contextlib
import hmac
import json
import os
import socket
import struct
import sys
from typing import Any

import psutil
import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from PIL import Image

from everyday import everyday
from forked import ran
from fuzzing import SEED, TRACE
from promptmill.config.configuration import HTTP_DEFAULTS
from promptmill.http.token import Token
from replies import answer, by_prompt, hang, late
from served import BEARER, TOKEN, Served, ServedHere, messages
from server_process import written
from upstream import Upstream
from waiting import PATIENCE_S, eventually

PING = {"jsonrpc": "2.0", "id": 1, "method": "ping"}
JSON = {"Content-Type": "application/json", "Accept": "application/json, text/event-stream"}
LIMIT = 64 << 10


@pytest.fixture(scope="module")
def _lasting(tmp_path_factory):
    """One endpoint, and a server for every address of this machine before it, with a token."""
    with Upstream() as up:
        config = written(tmp_path_factory.mktemp("served"), up.url)
        environ = {"PROMPTMILL_HTTP_TOKEN": TOKEN}
        with Served(config, "--max-body", "64KiB", listen="0.0.0.0:0", environ=environ) as served:
            yield up, served


@pytest.fixture
def upstream(_lasting):
    up, _ = _lasting
    up.reply = answer()
    eventually(lambda: not up.in_flight)
    up.seen.clear()
    return up


@pytest.fixture
def server(_lasting, upstream):
    return _lasting[1]


@pytest.mark.rule("H1")
@pytest.mark.parametrize("address", everyday(["0.0.0.0:0", "[::]:0"], "0.0.0.0:0"))
def test_beyond_loopback_it_does_not_start_without_a_token(upstream, tmp_path, address):
    command = [sys.executable, "-m", "promptmill", "serve", "--config", str(written(tmp_path, upstream.url))]
    done = ran([*command, "--http", address])
    assert done.returncode == 2
    for word in ("a token is needed", "PROMPTMILL_HTTP_TOKEN", "--token-env", "--token-file", "127.0.0.1"):
        assert word in done.stderr


@pytest.mark.rule("H2")
def test_without_the_token_nothing_is_answered_but_the_health(server, upstream):
    call = PING | {"method": "tools/call", "params": {"name": "generate", "arguments": {"prompt_ls": ["x"]}}}
    wrong = [
        None,
        "",
        "Bearer",
        f"Bearer {TOKEN}x",
        f"Bearer {TOKEN[:-1]}",
        f"Basic {TOKEN}",
        f"Bearer {TOKEN} {TOKEN}",
    ]
    for value in wrong:
        for method in ("POST", "GET", "DELETE", "PUT"):
            headers = JSON | ({} if value is None else {"Authorization": value})
            got = server.ask(method, "/mcp", headers, json.dumps(call).encode())
            assert (got.status, TOKEN in str(got.body)) == (401, False), (method, value)
    assert server.ask("GET", "/healthz").body == b"ok\n"
    assert not upstream.seen
    assert server.session(BEARER).answers("x") == ["echo: x"]


@pytest.mark.rule("H3")
def test_the_token_is_compared_as_a_digest_in_constant_time_and_shown_nowhere(server, monkeypatch):
    compared = []
    real = hmac.compare_digest
    monkeypatch.setattr(hmac, "compare_digest", lambda *both: compared.append(both) or real(*both))
    kept = Token(TOKEN)
    for value in (b"Bearer " + TOKEN.encode(), b"Bearer short", b"Basic x", b""):
        kept.opens([(b"authorization", value)])
    kept.opens([])
    assert [len(one) for both in compared for one in both] == [32] * 10, "digests of one length, each time"
    assert TOKEN not in str(vars(kept))
    server.session(BEARER).answers("x")
    server.ask("POST", "/mcp", {"Authorization": f"Bearer {TOKEN}x"})
    assert TOKEN not in server.said()
    assert TOKEN not in " ".join(psutil.Process(server.process.pid).cmdline())


@pytest.mark.rule("H4")
@pytest.mark.parametrize("host", ["evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "a@localhost"])
@pytest.mark.parametrize("path", ["/mcp", "/healthz"])
def test_under_a_name_that_is_not_its_own_it_does_not_answer(server, host, path):
    assert server.ask("GET", path, BEARER | {"Host": host}).status == 421


@pytest.mark.rule("H5")
@pytest.mark.parametrize("origin", ["https://evil.example", "null", "file://", "http://127.0.0.1.evil.example", "x"])
def test_pages_from_elsewhere_are_refused_and_no_script_may_read(server, origin):
    got = server.ask("POST", "/mcp", BEARER | JSON | {"Origin": origin}, json.dumps(PING).encode())
    assert got.status == 403
    preflight = server.ask("OPTIONS", "/mcp", {"Origin": origin, "Access-Control-Request-Method": "POST"})
    for one in (got, preflight, server.ask("GET", "/healthz", {"Origin": "http://localhost"})):
        assert not any(name.startswith("access-control") for name in one.headers)


@pytest.mark.rule("H6")
@pytest.mark.usefixtures("protocol")
def test_no_call_over_http_changes_the_configuration(server, upstream):
    session = server.session(BEARER)
    names = {tool["name"] for tool in session.request("tools/list")["result"]["tools"]}
    assert not names & {"generation_init", "vllm_shutdown"}
    init = {
        "backend_configs": {"openai": {"base_url": "http://127.0.0.1:9"}},
        "sampling_params": {},
        "backend": "openai",
    }
    assert session.call("generation_init", **init)["isError"]
    assert session.call("vllm_shutdown")["isError"]
    assert session.answers("still ours") == ["echo: still ours"]


@pytest.mark.rule("H7")
@pytest.mark.usefixtures("protocol")
def test_no_file_is_read_or_written_unless_the_operator_names_folders(server, upstream, tmp_path):
    assert HTTP_DEFAULTS["allowed_roots"] == []
    path = tmp_path / "a.png"
    Image.new("RGB", (4, 4)).save(path)
    session = server.session(BEARER)
    for source in (str(path), path.as_uri(), "a.png", "/etc/passwd"):
        result = session.call("multimodal_generate", prompt_ls=["x"], multimodal_path=[[source]])
        assert "outside the folders" in result["content"][0]["text"]
        message = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": source}}]}
        assert session.call("multiturn_generate", messages=[message])["isError"]
    (tmp_path / "in.jsonl").write_text('{"prompt": "x"}\n')
    files = {"input_file": str(tmp_path / "in.jsonl"), "output_file": str(tmp_path / "out.jsonl")}
    assert session.call("bulk_generate", **files)["isError"]
    assert session.call("bulk_status")["structuredContent"]["jobs"] == []
    assert not upstream.seen


@pytest.mark.rule("H14")
@pytest.mark.usefixtures("protocol")
def test_no_error_shows_where_the_folders_of_calls_are(upstream, tmp_path):
    (root := tmp_path / "whereabouts" / "data").mkdir(parents=True)
    (root / "sub").mkdir()
    (root / "empty.png").write_bytes(b"no image")
    (root / "parameter.yaml").touch()
    pictures = ["a.png", "../a.png", "sub", "empty.png", "/etc/a.png", "~/a.png", "data/a.png", "x" * 90 + ".png"]
    pictures += ["parameter.yaml", "../data/sub", "/no/such/a.pdf#page=1", "file:///etc/a.png"]
    files: list[dict[str, Any]] = [
        {"input_file": name, "output_file": "out.jsonl"} for name in ("in.jsonl", "../in.jsonl", "/etc/in.jsonl", "sub")
    ]
    files += [{"files": [name], "prompt": "{{content}}"} for name in ("*.txt", "../*", "/etc/*", "gone/*", "sub/../..")]
    config = written(tmp_path, upstream.url, top={"allowed_roots": [str(root)]})
    with ServedHere(config) as server:
        session = server.session()
        results = [session.call("multimodal_generate", prompt_ls=["x"], multimodal_path=[[name]]) for name in pictures]
        results += [session.call("bulk_generate", **asked) for asked in files]
        results += [session.call("bulk_status", job_id="a", report=name) for name in ("../r.html", "/etc/r.html")]
    said = [result["content"][0]["text"] for result in results]
    assert all(result["isError"] for result in results)
    assert any("(`allowed_roots`: data)" in text for text in said)
    assert not [text for text in said if "whereabouts" in text or str(tmp_path) in text]


@pytest.mark.rule("H14")
def test_no_error_shows_where_the_working_directory_is(upstream, tmp_path, monkeypatch):
    """Relative paths are resolved there. The messages about their files are made for the operator, too."""
    (root := tmp_path / "whereabouts" / "data").mkdir(parents=True)
    for name in ("in.csv", "done.csv"):
        (root / name).write_text("text\nx\n")
    monkeypatch.chdir(root)
    config = written(tmp_path, upstream.url, top={"allowed_roots": [str(root)]})
    inputs, outputs = ["none.csv", str(root / "none.csv")], ["done.csv", "in.csv/x.csv"]
    if hasattr(os, "mkfifo"):
        os.mkfifo("pipe.csv")
        (root / "dangling.csv").symlink_to(root / "gone.csv")
        inputs += ["pipe.csv", "dangling.csv"]
    job: dict[str, Any] = {"input_file": "in.csv", "output_file": "new.csv", "prompt": "{{text}}"}
    with ServedHere(config) as server:
        session = server.session()
        results = [session.call("bulk_generate", **job | {"input_file": name}) for name in inputs]
        results += [session.call("compare", files=[name, "in.csv"]) for name in inputs]
        results += [
            session.call("bulk_generate", **job | {"output_file": name, "overwrite": overwrite})
            for name in outputs
            for overwrite in (False, True)
        ]
    said = [result["content"][0]["text"] for result in results]
    assert all(result["isError"] for result in results)
    assert not [text for text in said if "whereabouts" in text or str(tmp_path) in text]
    assert said[0] == "There is no input file none.csv. Did you mean done.csv?"


def texts_in(value: Any) -> list[str]:
    """Return all texts in a value of JSON."""
    if isinstance(value, str):
        return [value]
    values = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [text for each in values for text in texts_in(each)]


@pytest.mark.rule("H14")
@pytest.mark.parametrize("place", ["root", "below", "elsewhere"])
@pytest.mark.usefixtures("protocol")
def test_a_status_shows_usable_paths_but_no_folder_above_the_roots(upstream, tmp_path, monkeypatch, place):
    (root := tmp_path / "whereabouts" / "data").mkdir(parents=True)
    (root / "sub").mkdir()
    (root / "in.csv").write_text("text,label\n" + "".join(f"x {n},yes\n" for n in range(6)))
    started = {"root": root, "below": root / "sub", "elsewhere": tmp_path}[place]
    monkeypatch.chdir(started)
    upstream.reply = answer("yes")
    config = written(tmp_path, upstream.url, top={"allowed_roots": [str(root)]})
    job: dict[str, Any] = {"input_file": str(root / "in.csv"), "prompt": "{{text}}", "choices": ["yes", "no"]}
    with ServedHere(config) as server:
        session = server.session()
        begun = session.call("bulk_generate", **job, output_file=str(root / "sub" / "out.csv"))["structuredContent"]
        of_call = session.call("bulk_generate", prompts=["a"])["structuredContent"]
        asked = [{"job_id": each["job_id"], "wait_s": 30} for each in (begun, of_call)]
        found = [begun, of_call, *(session.call("bulk_status", **each) for each in asked)]
        status = found[2]["structuredContent"]
        found.append(session.call("bulk_status", job_id=status["output_file"]))
        assert found[-1]["structuredContent"]["job_id"] == begun["job_id"], "the path in the status names the file"
        files = [status["output_file"], status["input_file"]]
        found += [
            session.call("bulk_status"),
            session.call("bulk_status", job_id=begun["job_id"], read="all"),
            session.call("bulk_status", job_id=begun["job_id"], report=str(root / "r.html")),
            session.call("bulk_generate", **job, output_file=str(root / "v.csv"), validate=True),
            session.call("compare", files=files, gold="label", report=str(root / "c.html")),
            session.call("review", job_id=begun["job_id"], output_file=str(root / "reviewed.html")),
        ]
    assert status["state"] == "finished"
    assert not [each for each in found if each.get("isError")], found
    shown = [text for each in found for text in texts_in(each) if "whereabouts" in text or str(tmp_path) in text]
    assert not shown


@pytest.mark.rule("H8")
def test_a_body_beyond_the_limit_is_refused_and_not_held(server):
    headers = b"".join(f"{name}: {value}\r\n".encode() for name, value in (BEARER | JSON).items())
    declared = b"POST /mcp HTTP/1.1\r\nHost: localhost\r\n" + headers + b"Content-Length: %d\r\n\r\n"
    assert server.raw(declared % (LIMIT + 1)).startswith(b"HTTP/1.1 413 ")
    assert server.raw(declared % 10**30).startswith((b"HTTP/1.1 413 ", b"HTTP/1.1 400 "))
    endless = b"POST /mcp HTTP/1.1\r\nHost: localhost\r\n" + headers + b"Transfer-Encoding: chunked\r\n\r\n"
    process = psutil.Process(server.process.pid)
    before = process.memory_info().rss
    said = server.raw(endless + (b"10000\r\n" + b"x" * 0x10000 + b"\r\n") * 500)
    assert said.startswith(b"HTTP/1.1 413 ") or not said  # it may have closed before we had read why
    assert process.memory_info().rss - before < 32 << 20
    assert server.ask("GET", "/healthz").status == 200


@pytest.mark.rule("H9")
@pytest.mark.parametrize(
    "framing",
    [
        *("Content-Length: 5\r\nTransfer-Encoding: chunked", "Content-Length: 5\r\nContent-Length: 6"),
        *(
            "Transfer-Encoding: chunked, identity",
            "Transfer-Encoding : chunked",
            "Content-Length: +5",
            "Content-Length: 5,6",
        ),
        *("Transfer-Encoding: xchunked", "Content-Length: 0x5", "Transfer-Encoding:\x0bchunked"),
    ],
)
def test_what_two_readers_could_read_differently_is_no_request(server, framing):
    head = f"POST /healthz HTTP/1.1\r\nHost: localhost\r\n{framing}\r\n\r\n"
    hidden = "0\r\n\r\nGET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE_S) as connection:
        connection.sendall((head + hidden).encode("latin-1"))
        said = b""
        with contextlib.suppress(OSError):
            while piece := connection.recv(65536):
                said += piece
    assert said.startswith(b"HTTP/1.1 4")
    assert b"ok\n" not in said, "the second request came out of the first one's body"


@pytest.mark.rule("H10")
@pytest.mark.usefixtures("protocol")
def test_one_client_cannot_end_or_read_the_work_of_another(server, upstream):
    upstream.reply = by_prompt({"hang": hang()})
    first, second = server.session(BEARER), server.session(BEARER)
    message = {"jsonrpc": "2.0", "id": 77, "method": "tools/call"}
    params = {"name": "generate", "arguments": {"prompt_ls": ["hang"]}}
    headers, body = first.written(message | {"params": params})
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        lines = {**headers, "Host": "localhost", "Content-Length": str(len(body))}
        head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
        connection.sendall(f"POST /mcp HTTP/1.1\r\n{head}\r\n".encode() + body)
        eventually(lambda: upstream.in_flight)
        second.post({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": 77}})
        assert second.answers("mine") == ["echo: mine"]
        assert upstream.in_flight == 1
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    first.close()


@pytest.mark.rule("H10")
def test_one_client_cannot_find_the_prompts_of_another_or_learn_that_it_asked_the_same(upstream, tmp_path, protocol):
    """A call that became a job, and a job on a list of prompts, are known to their own client alone.

    A client without a session is a new one with each request: it finds its own job only by the id.
    """
    upstream.reply = late(0.2, answer())
    config = written(tmp_path, upstream.url, {"max_call_s": 0.5}, concurrency=1)
    environ = {"PROMPTMILL_HTTP_TOKEN": TOKEN, "XDG_STATE_HOME": str(tmp_path / "state")}
    with ServedHere(config, environ=environ) as served:
        first, second = served.session(BEARER), served.session(BEARER)
        call = first.call("generate", prompt_ls=[f"secret {number}" for number in range(12)])["structuredContent"]
        upstream.reply = answer()
        job = first.call("bulk_generate", prompts=["a secret"])["structuredContent"]["job_id"]
        eventually(lambda: first.call("bulk_status", job_id=job)["structuredContent"]["state"] == "finished")
        assert call["job_id"].startswith("call-")
        assert second.call("bulk_status")["structuredContent"]["jobs"] == []
        listed = [each["job_id"] for each in first.call("bulk_status")["structuredContent"]["jobs"]]
        assert listed == ([job] if protocol == "legacy" else [])
        again = first.call("bulk_generate", prompts=["a secret"])["structuredContent"]
        assert (again["job_id"] == job and again["state"] == "finished") is (protocol == "legacy")
        other = second.call("bulk_generate", prompts=["a secret"])["structuredContent"]
        assert other["job_id"] != job
        assert other["state"] != "finished"


@pytest.mark.thorough
@pytest.mark.rule("H11")
def test_whatever_is_posted_it_answers_in_words_and_lives_on(server, upstream):
    value = st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=8),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
        max_leaves=6,
    )
    message = st.fixed_dictionaries(
        {},
        optional={
            "jsonrpc": st.sampled_from(["2.0", "1.0"]) | value,
            "id": st.integers() | value,
            "method": st.sampled_from(["ping", "tools/call", "tools/list", "initialize", "server/discover"]) | value,
            "params": value,
        },
    )
    names = st.sampled_from(["Mcp-Session-Id", "Mcp-Protocol-Version", "Mcp-Method", "Content-Type", "Accept", "X-Y"])
    plain = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=12)
    session = server.session(BEARER)

    @seed(SEED)
    @settings(max_examples=500, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(message | st.lists(message, max_size=3) | value, st.dictionaries(names, plain, max_size=2), st.booleans())
    def fuzz(body, headers, in_session):
        upstream.seen.clear()
        base = session.headers if in_session else BEARER | JSON
        got = server.ask("POST", "/mcp", {**base, **headers}, json.dumps(body).encode())
        assert 200 <= got.status < 500, got
        assert not TRACE.search(got.body.decode("utf-8", "replace"))

    fuzz()
    assert session.answers("still", "right") == ["echo: still", "echo: right"]
    assert not TRACE.search(server.said())
    assert messages(session.post(PING).body)[0]["result"] == {}
