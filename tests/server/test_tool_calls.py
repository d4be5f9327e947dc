"""The log of calls on stderr: a line for each that failed, and for all of them where asked."""

import re

import pytest
import yaml

from piped import Piped
from replies import by_prompt, status
from served import Served
from server_process import written
from waiting import PATIENCE_S

LINE = re.compile(
    r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} (?P<level>\w+) promptmill\.calls: (?P<text>.*) seconds=\d+\.\d{3}$",
    re.MULTILINE,
)


@pytest.fixture
def config(tmp_path, upstream):
    upstream.reply = by_prompt({"bad": status(400), "limited": status(429)})
    file = tmp_path / "promptmill.yaml"
    block = {"model_name": "m", "base_url": upstream.url, "api_key": "k" * 20, "base_delay": 0.01, "retries": 2}
    file.write_text(yaml.safe_dump({"backend": "openai", "backend_configs": {"openai": block}}))
    return file


def _called(server):
    """Make one call of each kind; return the log's lines."""
    server.initialize()
    for arguments in ({"prompt_ls": ["fine"]}, {"prompt_ls": ["fine", "bad", "bad", "limited"]}, {"prompts": 1}):
        server.result(server.call("generate", **arguments))
    server.result(server.call("multimodal_generate", prompt_ls=["x"], multimodal_path=[]))
    server.result(server.call("no such\ntool"))
    server.end("EOF")
    server.process.wait(PATIENCE_S)
    return [(found["level"], found["text"]) for found in LINE.finditer(server.said().replace("\r\n", "\n"))]


FAILED = [
    ("WARNING", "tool=generate client=test/1 code=bad_request items=4 failed=3"),
    ("WARNING", "tool=generate client=test/1 code=invalid_input"),
    ("WARNING", "tool=multimodal_generate client=test/1 code=invalid_input"),
    ("WARNING", "tool=no_such_tool client=test/1 code=invalid_input"),
]


@pytest.mark.thorough
@pytest.mark.stdio
def test_a_failed_call_is_one_line_with_time_tool_client_and_code(config):
    with Piped(config) as server:
        assert _called(server) == FAILED
        assert all(LINE.match(line) for line in server.said().splitlines()), "and nothing else is said"


@pytest.mark.thorough
@pytest.mark.stdio
def test_with_access_log_every_call_is_a_line(config):
    with Piped(config, "--access-log") as server:
        assert _called(server) == [("INFO", "tool=generate client=test/1 code=ok items=1 failed=0"), *FAILED]


@pytest.mark.thorough
@pytest.mark.http
def test_with_access_log_over_http_every_request_is_a_line_too(upstream, tmp_path):
    with Served(written(tmp_path, upstream.url), "--access-log") as server:
        assert server.session().answers("x") == ["echo: x"]
        assert server.ask("GET", "/nowhere").status == 404
        server.end("SIGTERM")
        server.process.wait(PATIENCE_S)
        said = server.said()
    (line,) = LINE.finditer(said.replace("\r\n", "\n"))
    assert re.fullmatch(r"tool=generate client=[\w-]+/\S+@127\.0\.0\.1 code=ok items=1 failed=0", line["text"])
    assert re.search(r'INFO uvicorn\.access: 127\.0\.0\.1:\d+ - "GET /nowhere HTTP/1\.1" 404', said)
