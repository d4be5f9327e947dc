"""The life of a server over HTTP: its start, what stops it from starting, and every way to end."""

import contextlib
import http.client
import socket
import ssl
import subprocess
import sys
import threading
import time

import pytest
import yaml

from everyday import everyday
from promptmill.cli import main as cli
from replies import by_prompt, hang
from served import BEARER, TOKEN, Served, messages
from server_process import written
from upstream import self_signed
from waiting import PATIENCE_S, eventually

pytestmark = pytest.mark.http
posix = pytest.mark.skipif(sys.platform == "win32", reason="signals as POSIX has them")
SIGNALS = ["SIGTERM", "SIGINT", "SIGHUP"]
CALL = {"jsonrpc": "2.0", "id": 7, "method": "tools/call"}


def _calling(session, *prompts, answers=None):
    params = {"name": "generate", "arguments": {"prompt_ls": list(prompts)}}

    def call():
        with contextlib.suppress(OSError, http.client.HTTPException):  # killed
            answer = session.post(CALL | {"params": params})
            if answers is not None:
                answers.append(messages(answer.body)[-1])

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    return thread


def _ends(server, how):
    server.ends(how)
    assert "ASGI" not in server.said(), "uvicorn's words for an answer that was torn"


@posix
@pytest.mark.parametrize("how", everyday(SIGNALS, "SIGTERM"))
def test_idle_it_leaves_at_once_and_its_port_is_free(upstream, tmp_path, how):
    config = written(tmp_path, upstream.url)
    with Served(config) as server:
        session = server.session()
        stream = socket.create_connection(("127.0.0.1", server.port))  # as clients listen for notifications
        lines = [f"{name}: {value}" for name, value in (session.headers | {"Host": "localhost"}).items()]
        stream.sendall("\r\n".join(["GET /mcp HTTP/1.1", *lines, "", ""]).encode())
        assert stream.recv(1000).startswith(b"HTTP/1.1 200 ")
        _ends(server, how)
        said = b""
        while piece := stream.recv(1000):
            said += piece
        assert said.endswith(b"0\r\n\r\n"), "the stream was ended, not torn"
        stream.close()
        with Served(config, listen=f"127.0.0.1:{server.port}") as again:
            assert again.ask("GET", "/healthz").status == 200


@pytest.mark.thorough
@posix
@pytest.mark.parametrize("how", everyday(SIGNALS, "SIGTERM", "SIGINT"))
def test_busy_it_leaves_at_once_and_running_calls_keep_what_is_answered(upstream, tmp_path, how):
    upstream.reply = by_prompt({"hang": hang()})
    with Served(written(tmp_path, upstream.url)) as server:
        answers = []
        thread = _calling(server.session(), "a", "hang", "b", answers=answers)
        eventually(lambda: upstream.in_flight == 1 and len(upstream.seen) == 3)
        _ends(server, how)
        thread.join(PATIENCE_S)
        eventually(lambda: not upstream.in_flight)
    result = answers[0]["result"]["structuredContent"]
    assert result["ans_ls"] == ["echo: a", "", "echo: b"]
    assert [(error["index"], error["code"]) for error in result["errors"]] == [(1, "shutdown")]


@pytest.mark.thorough
@posix
def test_a_slow_body_does_not_hold_it_up(upstream, tmp_path):
    with Served(written(tmp_path, upstream.url)) as server:
        slow = socket.create_connection(("127.0.0.1", server.port))
        slow.sendall(b"POST /mcp HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{")
        time.sleep(0.2)
        _ends(server, "SIGTERM")
        slow.close()


@pytest.mark.thorough
@posix
def test_killed_it_leaves_its_port(upstream, tmp_path):
    config = written(tmp_path, upstream.url)
    with Served(config) as server:
        server.session()
        server.end("SIGKILL")
        server.process.wait(PATIENCE_S)
        with Served(config, listen=f"127.0.0.1:{server.port}") as again:
            assert again.session().answers("x") == ["echo: x"]


@pytest.mark.thorough
@posix
@pytest.mark.engine
@pytest.mark.parametrize("how", everyday([*SIGNALS, "SIGKILL"], "SIGKILL"))
def test_it_leaves_no_engine_behind(tmp_path, how):
    pytest.importorskip("torch")
    file = tmp_path / "engine.yaml"
    engine = {"backend": "hf", "backend_configs": {"hf": {"model_name_or_path": "smollm2-135m-instruct"}}}
    endless = {"sampling_params": {"max_tokens": 2000}, "extra_params": {"ignore_eos": True}}
    file.write_text(yaml.safe_dump(engine | endless))
    with Served(file) as server:
        _calling(server.session(), *["Hi!"] * 4)
        eventually(server.family)
        _ends(server, how)


# Not starting


@pytest.fixture
def serve(tmp_path, upstream, capsys, monkeypatch):
    """Run `serve` with options; return exit code and stderr of what must not start."""
    config = written(tmp_path, upstream.url)

    def runner(*options):
        try:
            code = cli.main(["serve", "--config", str(config), *map(str, options)])
        except SystemExit as stopped:
            code = int(stopped.code or 0)
        out, err = capsys.readouterr()
        assert out == ""
        assert "Traceback" not in err
        return code, err

    return runner


def test_a_port_in_use_is_exit_code_two(serve):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        code, err = serve("--http", f"127.0.0.1:{taken.getsockname()[1]}")
    assert code == 2
    assert "is in use" in err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--http", "8000"], "write HOST:PORT"),
        (["--http", "nowhere.invalid:1"], "is not an address of this machine"),
        (["--http", "127.0.0.1:0", "--token-env", "NOT_SET"], "NOT_SET is not set"),
        (["--http", "127.0.0.1:0", "--token-file", "/no/such/file"], "--token-file"),
        (["--http", "127.0.0.1:0", "--token-env", "A", "--token-file", "b"], "not allowed with"),
        (["--http", "127.0.0.1:0", "--max-body", "1"], "between 64KiB and 2GiB"),
        (["--http", "127.0.0.1:0", "--allowed-host", "a b"], "--allowed-host"),
        (["--http", "127.0.0.1:0", "--allowed-origin", "http://localhost:3000"], "the server needs a token"),
        (["--http", "127.0.0.1:0", "--trust-client"], "--trust-client"),
        (["--http", "127.0.0.1:0", "--tls-key", "k"], "needs --tls-cert PATH as well"),
        (["--http", "127.0.0.1:0", "--tls-cert", "/no/such/file"], "/no/such/file cannot be used (No such file"),
        (["--token-env", "X"], "--token-env needs --http"),
        (["--max-body", "1M"], "--max-body needs --http"),
        (["--allowed-host", "x"], "--allowed-host needs --http"),
    ],
)
def test_options_that_cannot_work_are_exit_code_two(serve, options, said):
    code, err = serve(*options)
    assert code == 2
    assert said in err


def test_a_token_on_the_command_line_is_not_even_an_option(serve):
    code, err = serve("--http", "127.0.0.1:0", "--token", TOKEN)
    assert code == 2
    assert "--token" in err


# TLS


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    pytest.importorskip("cryptography")
    return self_signed(tmp_path_factory.mktemp("tls"))


@pytest.mark.thorough
async def test_over_tls_it_answers_and_without_it_does_not(certificate, upstream, tmp_path):
    from fastmcp import Client

    cert, key = certificate
    options = ("--tls-cert", str(cert), "--tls-key", str(key))
    with Served(written(tmp_path, upstream.url), *options, environ={"PROMPTMILL_HTTP_TOKEN": TOKEN}) as server:
        assert server.url.startswith("https://")
        context = ssl.create_default_context(cafile=cert)
        async with Client(server.url, auth=TOKEN, verify=context) as client:
            result = await client.call_tool("generate", {"prompt_ls": ["x"]})

        assert result.structured_content == {"ans_ls": ["echo: x"]}
        assert b"HTTP/1.1 2" not in server.raw(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n", 2)
        assert "Traceback" not in server.said()


def test_a_key_that_does_not_fit_is_said(certificate, serve, tmp_path):
    cert, _ = certificate
    (tmp_path / "k.pem").write_text("no key")
    code, err = serve("--http", "127.0.0.1:0", "--tls-cert", cert, "--tls-key", tmp_path / "k.pem")
    assert code == 2
    assert f"--tls-cert: {cert} with {tmp_path / 'k.pem'} cannot be used (" in err


def test_a_certificate_without_a_key_and_files_that_are_not_there_are_said(certificate, serve, tmp_path):
    cert, _ = certificate
    for options, said in (
        (("--tls-cert", cert), "unless that is in the same file: --tls-key PATH."),
        (("--tls-cert", tmp_path / "nope.pem"), "nope.pem cannot be used (No such file"),
        (("--tls-cert", cert, "--tls-key", tmp_path / "nope.pem"), "nope.pem cannot be used (No such file"),
    ):
        code, err = serve("--http", "127.0.0.1:0", *options)
        assert code == 2
        assert said in err


# The environment


def test_children_do_not_inherit_the_token(upstream, tmp_path):
    with Served(written(tmp_path, upstream.url), environ={"PROMPTMILL_HTTP_TOKEN": TOKEN}) as server:
        assert server.session(BEARER).answers("x") == ["echo: x"]
        assert TOKEN not in server.said()
    code = (
        "import os; from promptmill.http.token import find_token;"
        "from promptmill.system.subprocesses import environment;"
        "find_token(None, None, os.environ); print('PROMPTMILL_HTTP_TOKEN' in environment())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"PROMPTMILL_HTTP_TOKEN": TOKEN, "PATH": ""},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=True,
    )
    assert done.stdout == "False\n"
