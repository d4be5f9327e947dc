"""The issuer: its metadata, its keys, and what happens while it cannot be reached."""

import contextlib
import socket
import threading

import pytest
from joserfc import jwk

from identity_provider import IdentityProvider
from promptmill.features.oauth import issuer as module
from promptmill.features.oauth.issuer import Issuer, IssuerError
from served import BEARER, TOKEN, ServedHere
from server_process import written
from sure import sure

AUDIENCE = "https://mill.example.com/mcp"


@pytest.fixture
def own():
    """A provider of one test."""
    with IdentityProvider() as provider:
        yield provider


async def test_an_issuer_is_read_once_and_its_keys_once(own):
    issuer = Issuer(f"{own.url}/", AUDIENCE)
    for subject in ("alice", "bob", "alice"):
        found = sure(await issuer.verify_token(own.token(subject, AUDIENCE)))
        assert (found.subject, found.token) == (subject, "")
    assert issuer.name == own.url
    assert own.requests[1:] == ["/.well-known/openid-configuration", "/jwks"]


@pytest.mark.parametrize(
    ("algorithm", "key"),
    [
        ("PS256", jwk.RSAKey.generate_key(2048, {"kid": "new"})),
        ("ES256", jwk.ECKey.generate_key("P-256", {"kid": "new"})),
        ("EdDSA", jwk.OKPKey.generate_key("Ed25519", {"kid": "new"})),
    ],
)
async def test_any_algorithm_with_a_public_key_is_verified(own, algorithm, key):
    own.more_keys.append(key)
    issuer = Issuer(own.url, AUDIENCE)
    header = {"alg": algorithm, "kid": "new"}
    assert sure(await issuer.verify_token(own.token("alice", AUDIENCE, header=header, key=key))).subject == "alice"
    assert sure(await issuer.verify_token(own.token("alice", AUDIENCE))).subject == "alice"
    forged = type(key).generate_key(key.as_dict().get("crv", 2048))
    assert await issuer.verify_token(own.token("alice", AUDIENCE, header=header, key=forged)) is None


async def test_a_new_key_is_found(own):
    issuer = Issuer(own.url, AUDIENCE)
    assert await issuer.verify_token(own.token("alice", AUDIENCE))
    key = jwk.RSAKey.generate_key(2048, {"kid": "new"})
    own.more_keys.append(key)
    issuer._verifiers["RS256"]._jwks_last_refresh_attempt = None
    assert await issuer.verify_token(own.token("alice", AUDIENCE, header={"kid": "new"}, key=key))


async def test_tokens_with_unknown_keys_do_not_flood_the_issuer(own):
    issuer = Issuer(own.url, AUDIENCE)
    for at in range(20):
        assert await issuer.verify_token(own.token("alice", AUDIENCE, header={"kid": f"unknown {at}"})) is None
    assert own.requests.count("/jwks") <= 2
    assert await issuer.verify_token(own.token("alice", AUDIENCE))


async def test_an_issuer_that_comes_late_is_found_on_use():
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    issuer = Issuer(f"http://127.0.0.1:{port}", AUDIENCE, timeout_s=1)
    with pytest.raises(IssuerError, match="cannot be read"):
        issuer.discover()
    with IdentityProvider(port) as provider:
        token = provider.token("alice", AUDIENCE)
        with pytest.raises(IssuerError, match="cannot be read"):
            await issuer.verify_token(token)
        assert len(provider.requests) == 1, "the next attempt has its time"
        issuer._retry_at = 0
        assert await issuer.verify_token(token)


async def test_keys_that_cannot_be_read_are_no_fault_of_the_token(own):
    issuer = Issuer(own.url, AUDIENCE)
    issuer.discover()
    token = own.token("alice", AUDIENCE)
    own.__exit__()
    for _ in range(2):
        with pytest.raises(IssuerError, match="The keys of the issuer"):
            await issuer.verify_token(token)


@pytest.mark.parametrize(
    ("keys", "problem"),
    [([{"kty": "RSA"}] * 20_000, "more than 256 KiB"), ([{}] * (module.MOST_KEYS + 1), "a list of at most 100")],
)
async def test_keys_are_refused_before_they_are_imported_if_they_are_too_many(own, keys, problem):
    own.sent_keys = keys
    issuer = Issuer(own.url, AUDIENCE)
    issuer.discover()
    with pytest.raises(IssuerError, match=problem):
        await issuer.verify_token(own.token("alice", AUDIENCE))
    own.sent_keys = None
    issuer._verifiers["RS256"]._jwks_last_refresh_attempt = None
    assert await issuer.verify_token(own.token("alice", AUDIENCE))


def test_an_endless_answer_of_an_issuer_ends():
    def drip(request):
        request.recv(1 << 16)
        request.sendall(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n\r\n")
        with contextlib.suppress(OSError):
            while True:
                request.sendall(b" " * (64 << 10))

    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}"

        def serve():
            for _ in range(2):
                with server.accept()[0] as request:
                    drip(request)

        serving = threading.Thread(target=serve)
        serving.start()
        with pytest.raises(IssuerError, match="more than 256 KiB"):
            Issuer(url, AUDIENCE).discover()
        serving.join()


@pytest.mark.parametrize(
    ("found", "problem"),
    [
        ({"issuer": "https://evil.example", "jwks_uri": "https://a.example/keys"}, "names another issuer"),
        ({"jwks_uri": "https://a.example/keys"}, "names another issuer"),
        (["issuer"], "names another issuer"),
        ({"issuer": "https://a.example", "jwks_uri": "http://a.example/keys"}, "no `jwks_uri` with https"),
        ({"issuer": "https://a.example"}, "no `jwks_uri` with https"),
    ],
)
def test_wrong_metadata_are_refused(found, problem):
    with pytest.raises(ValueError, match=problem):
        module._checked(found, "https://a.example/")


@pytest.mark.http
def test_a_server_whose_issuer_is_away_starts_and_says_so(lasting, tmp_path, capfd):
    with socket.create_server(("127.0.0.1", 0)) as free:
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    options = ("--oauth", url, "--audience", AUDIENCE)
    environ = {"PROMPTMILL_HTTP_TOKEN": TOKEN}
    lasting.begin_anew()
    with ServedHere(written(tmp_path, lasting.url), *options, environ=environ) as server, IdentityProvider() as other:
        assert "The metadata of the OAuth issuer cannot be read" in capfd.readouterr().err
        got = server.ask("GET", "/v1/models", {"Authorization": f"Bearer {other.token('alice', AUDIENCE)}"})
        assert (got.status, got.headers["retry-after"]) == (503, "10")
        assert server.session(BEARER).answers("x") == ["echo: x"]
        assert server.ask("GET", "/.well-known/oauth-protected-resource/mcp").json["authorization_servers"] == [url]
