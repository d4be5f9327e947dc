"""A server in front of an endpoint with log probabilities, shared by the tests of this folder."""

import json

import pytest

from likely_choices import by_choices
from served import BEARER, TOKEN, ServedHere
from server_process import written


@pytest.fixture
def upstream(lasting):
    lasting.begin_anew()
    lasting.reply = by_choices(
        {"yes": 0.75, "no": 0.25},
        {"billing": 0.625, "tech": 0.25, "sales": 0.125},
        {"today": 0.75, "can wait": 0.25},
    )
    return lasting


@pytest.fixture(scope="session")
def _running(lasting, tmp_path_factory):
    top = {"models": {"other": {"openai": {"base_url": lasting.url, "model_name": "small"}}}}
    folder = tmp_path_factory.mktemp("decisions")
    environ = {"PROMPTMILL_HTTP_TOKEN": TOKEN, "PROMPTMILL_STATE": str(folder / "state")}
    with ServedHere(written(folder, lasting.url, top), environ=environ) as served:
        yield served


@pytest.fixture
def server(_running, upstream):
    """A server with a token."""
    return _running


@pytest.fixture
def ask(server):
    """Return a function that posts a body, and returns the status and the reply."""

    def post(path, body, headers=BEARER):
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        found = server.ask("POST", path, headers, data)
        return found.status, found.json

    return post
