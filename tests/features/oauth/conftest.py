"""A server with OAuth and a token of its own, and the identity provider of its clients."""

import pytest

from identity_provider import IdentityProvider
from served import TOKEN, ServedHere
from server_process import written

AUDIENCE = "http://localhost:8017/mcp"


@pytest.fixture
def upstream(lasting):
    lasting.begin_anew()
    return lasting


@pytest.fixture(scope="session")
def provider():
    """An OpenID provider on loopback."""
    with IdentityProvider() as provider:
        yield provider


@pytest.fixture(scope="session")
def _running(lasting, provider, tmp_path_factory):
    folder = tmp_path_factory.mktemp("oauth")
    environ = {"PROMPTMILL_HTTP_TOKEN": TOKEN, "PROMPTMILL_STATE": str(folder / "state")}
    options = ("--oauth", provider.url, "--audience", AUDIENCE)
    with ServedHere(written(folder, lasting.url), *options, environ=environ) as served:
        yield served, environ["PROMPTMILL_STATE"]


@pytest.fixture
def server(_running, upstream, monkeypatch):
    """The server. Its provider's clients have the audience `AUDIENCE`."""
    served, state = _running
    monkeypatch.setenv("PROMPTMILL_STATE", state)
    return served


@pytest.fixture
def bearer(provider):
    """Return the headers with a subject's token."""

    def headers(subject, **claims):
        return {"Authorization": f"Bearer {provider.token(subject, AUDIENCE, **claims)}"}

    return headers
