"""A server in front of an endpoint, shared by the tests of this folder, and OpenAI's own client for it."""

import contextlib

import pytest

from openai_clients import client_of
from served import TOKEN, ServedHere
from server_process import written


@pytest.fixture
def upstream(lasting):
    lasting.begin_anew()
    lasting.other_posts = None
    return lasting


@pytest.fixture(scope="session")
def _running(lasting, tmp_path_factory):
    top = {"models": {"org/name": {"openai": {"base_url": lasting.url, "model_name": "small"}}}}
    folder = tmp_path_factory.mktemp("openai")
    environ = {"PROMPTMILL_HTTP_TOKEN": TOKEN, "PROMPTMILL_STATE": str(folder / "state")}
    with ServedHere(written(folder, lasting.url, top), environ=environ) as served:
        yield served, environ["PROMPTMILL_STATE"]


@pytest.fixture
def server(_running, upstream, monkeypatch):
    """A server with a token."""
    served, state = _running
    monkeypatch.setenv("PROMPTMILL_STATE", state)  # each test begins without these variables
    return served


@pytest.fixture
def client(server):
    """OpenAI's client of that server, which repeats no request."""
    with contextlib.closing(client_of(server)) as client:
        yield client
