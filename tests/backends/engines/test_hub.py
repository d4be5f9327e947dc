"""What is said when the model hub does not give a model: a hub on loopback refuses as the real one does."""

from __future__ import annotations

import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from promptmill.backends.engines.host import create
from promptmill.errors import PromptmillError

pytestmark = pytest.mark.engine

# status, X-Error-Code, X-Error-Message: as huggingface.co answers
REFUSALS = {
    "gated/without-token": (401, "GatedRepo", "Access to model gated/without-token is restricted."),
    "gated/not-accepted": (403, "GatedRepo", "Access to model gated/not-accepted is restricted."),
    "nobody/nothing": (401, "RepoNotFound", "Repository not found"),
    "nobody/with-token": (404, "RepoNotFound", "Repository not found"),
    "wrong/token": (401, None, "Invalid credentials in Authorization header"),
    "mirror/unknown": (403, None, None),
    "hub/busy": (429, None, None),
    "other/format": (404, "EntryNotFound", "Entry not found"),
    "hub/tired": (503, None, None),
}


class _Hub(BaseHTTPRequestHandler):
    def do_HEAD(self):
        name = "/".join(self.path.split("/")[1:3])
        status, code, message = REFUSALS.get(name, (200, None, None))
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        if message:
            self.send_header("X-Error-Message", message)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def hub():
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture
def refusal(desk, make_plan, hub, tmp_path):
    """Return the error of a hub name that does not load."""

    def load(name, **keys) -> PromptmillError:
        host = create(make_plan(name, **keys))
        host._environment.update(
            HF_ENDPOINT=hub, HF_HOME=str(tmp_path), no_proxy="127.0.0.1", HF_TOKEN="hf_abcdefghijklmnopqrstuvwxyz"
        )
        started = time.monotonic()
        with pytest.raises(PromptmillError) as caught:
            desk.wait(host.load(lambda text: None))
        error = caught.value
        assert error.code == "engine_load_failed"
        assert "hf_" not in str(error)
        assert "\n" not in error.message
        assert error.message.count(". ") == 0, "one sentence"
        assert time.monotonic() - started < 30, "the hub's client would try for minutes"
        return error

    return load


@pytest.mark.parametrize("name", ["gated/without-token", "gated/not-accepted"])
def test_a_gated_model_says_whose_terms_to_accept(refusal, hub, name):
    error = refusal(name)
    assert f"{name} is gated" in error.message
    assert f"{hub}/{name}" in error.hint
    assert "HF_TOKEN" in error.hint


@pytest.mark.parametrize("name", ["nobody/nothing", "nobody/with-token"])
def test_a_name_that_the_hub_does_not_know_is_said(refusal, name):
    error = refusal(name)
    assert f"knows no model {name}" in error.message
    assert "Check the name" in error.hint


@pytest.mark.parametrize("name", ["wrong/token", "mirror/unknown"])
def test_a_refusal_without_a_reason_says_what_it_may_be(refusal, name):
    error = refusal(name)
    assert f"does not give {name}" in error.message
    assert "HF_TOKEN" in error.hint


def test_a_repository_without_the_file_is_said(refusal):
    assert "holds no config.json" in refusal("other/format").message
    assert "holds no m.gguf" in refusal("other/format", gguf_file="m.gguf").message


def test_a_hub_that_has_trouble_is_said(refusal):
    error = refusal("hub/tired")
    assert "did not answer for hub/tired" in error.message
    assert "later" in error.hint


def test_a_hub_that_was_asked_too_often_is_said(refusal):
    error = refusal("hub/busy")
    assert "too many requests" in error.message
    assert "HF_TOKEN" in error.hint
