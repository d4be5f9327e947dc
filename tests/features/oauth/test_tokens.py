"""Which tokens open the server, and what the scope of a token permits."""

import base64
import hmac
import json
import time
from datetime import timedelta
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding
from joserfc import jwk

from served import BEARER, VERSION

pytestmark = pytest.mark.http
AUDIENCE = "http://localhost:8017/mcp"
JSON = {"Content-Type": "application/json", "Accept": "application/json, text/event-stream"}
METADATA = 'resource_metadata="http://localhost:8017/.well-known/oauth-protected-resource/mcp"'
LIST = {"jsonrpc": "2.0", "id": 1, "method": "tools/list"}


def _compact(provider, header, sign, subject="alice"):
    """Return a token with any header, signed by a function of its text."""
    claims = {
        "iss": provider.url,
        "sub": subject,
        "aud": AUDIENCE,
        "exp": int(time.time()) + 600,
        "scope": "promptmill:ask",
    }
    parts = [base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=") for part in (header, claims)]
    text = b".".join(parts)
    return b".".join([text, base64.urlsafe_b64encode(sign(text)).rstrip(b"=")]).decode()


def _signed(provider, subject="alice", **header):
    """Return a token with the provider's signature."""
    key = provider.key.private_key
    head = {"alg": "RS256", "kid": provider.key_id} | header
    return _compact(provider, head, lambda text: key.sign(text, padding.PKCS1v15(), hashes.SHA256()), subject)


def _confused(provider, secret):
    """Return a token that is signed with HS256 and the public key as its secret."""
    head = {"alg": "HS256", "kid": provider.key_id}
    return _compact(provider, head, lambda text: hmac.digest(secret, text, "sha256"))


def _with_own_key(provider):
    key = jwk.RSAKey.generate_key(2048)
    return provider.token("alice", AUDIENCE, header={"jwk": {"kty": "RSA"}}, key=key)


FAULTS: dict[str, dict[str, Any]] = {
    "another issuer": {"iss": "http://127.0.0.1:1"},
    "no issuer": {"iss": None},
    "another audience": {"aud": "http://localhost:8017/"},
    "audiences without ours": {"aud": ["https://a.example", "https://b.example"]},
    "no audience": {"aud": None},
    "expired": {"exp": timedelta(seconds=-61)},
    "no end": {"exp": None},
    "an end that is no number": {"exp": "never"},
    "an endless end": {"exp": float("inf")},
    "not yet valid": {"nbf": timedelta(seconds=3600)},
    "issued later": {"iat": timedelta(seconds=3600)},
    "no subject": {"sub": None},
    "an empty subject": {"sub": ""},
    "a subject that is no text": {"sub": ["alice"]},
    "unknown key": {"header": {"kid": "other"}},
}
FORGED = {
    "another key": lambda provider: provider.token("alice", AUDIENCE, key=jwk.RSAKey.generate_key(2048)),
    "a list as the key's name": lambda provider: _signed(provider, kid=["a"]),
    "unknown critical header": lambda provider: _signed(provider, crit=["exp2"], exp2=1),
    "alg none": lambda provider: _compact(provider, {"alg": "none"}, lambda _: b""),
    "alg NoNe": lambda provider: _compact(provider, {"alg": "NoNe"}, lambda _: b""),
    "alg none with a signature": lambda provider: _signed(provider, alg="none"),
    "HS256 with the public key as PEM": lambda provider: _confused(provider, provider.key.as_pem(private=False)),
    "HS256 with the public key as JSON": lambda provider: _confused(
        provider, json.dumps(provider.key.as_dict(private=False)).encode()
    ),
    "another key type": lambda provider: provider.token(
        "alice", AUDIENCE, header={"alg": "ES256"}, key=jwk.ECKey.generate_key("P-256")
    ),
    "a key of its own in the header": _with_own_key,
    "changed claims": lambda provider: _changed(provider.token("alice", AUDIENCE)),
    "huge": lambda provider: provider.token("alice", AUDIENCE, groups=["x" * 100] * 200),
    "no signature": lambda provider: provider.token("alice", AUDIENCE).rpartition(".")[0] + ".",
    "no JWT": lambda _: "opaque-token-0123456789",
    "dots": lambda _: "..",
    "deep": lambda _: base64.urlsafe_b64encode(b"[" * 10_000).decode() + ".e30.e30",
    "no object": lambda _: "W10.W10.W10",
    "not ASCII": lambda _: "\xe9.\xe9.\xe9",
    "nothing": lambda _: "",
}


def _changed(token):
    head, claims, signature = token.split(".")
    return f"{head}.{claims[:-2]}AA.{signature}"


def _refused(server, token, upstream):
    got = server.ask("POST", "/mcp", JSON | {"Authorization": f"Bearer {token}"}, json.dumps(LIST).encode())
    assert got.status == 401
    assert got.headers["www-authenticate"].endswith(METADATA)
    assert not token or token not in got.body.decode()
    assert server.ask("GET", "/v1/models", {"Authorization": f"Bearer {token}"}).status == 401
    assert not upstream.seen


@pytest.mark.parametrize("fault", FAULTS)
def test_a_token_with_a_wrong_claim_opens_nothing(server, provider, upstream, fault):
    _refused(server, provider.token("alice", AUDIENCE, **FAULTS[fault]), upstream)


@pytest.mark.parametrize("fault", FORGED)
def test_a_token_that_the_issuer_did_not_sign_opens_nothing(server, provider, upstream, fault):
    _refused(server, FORGED[fault](provider), upstream)


def test_a_signed_token_opens_the_server(server, provider):
    """The forged ones differ from it in one thing."""
    for token in (_signed(provider), _signed(provider, "\ud800")):
        assert server.ask("GET", "/v1/models", {"Authorization": f"Bearer {token}"}).status == 200


@pytest.mark.parametrize(
    "claims",
    [
        {},
        {"exp": timedelta(seconds=-30)},
        {"nbf": timedelta(seconds=30)},
        {"aud": ["https://a.example", AUDIENCE]},
        {"scope": None, "scp": ["promptmill:ask"]},
    ],
)
def test_a_valid_token_opens_the_server_and_so_does_its_own_token(server, bearer, claims):
    assert server.session(bearer("alice", **claims)).answers("hi") == ["echo: hi"]
    assert server.session(BEARER).answers("hi") == ["echo: hi"]


def test_without_a_token_the_reply_names_the_metadata_which_name_the_issuer(server, provider):
    got = server.ask("POST", "/mcp", JSON, json.dumps(LIST).encode())
    assert got.headers["www-authenticate"] == f'Bearer scope="promptmill:ask", {METADATA}'
    found = server.ask("GET", "/.well-known/oauth-protected-resource/mcp")
    assert found.status == 200
    assert found.json["resource"] == AUDIENCE
    assert found.json["authorization_servers"] == [provider.url]
    assert found.json["scopes_supported"] == ["promptmill:ask"]
    assert found.json["bearer_methods_supported"] == ["header"]


def test_two_tokens_or_one_in_the_address_are_refused(server, bearer, provider):
    headers = bearer("alice")
    token = headers["Authorization"].removeprefix("Bearer ")
    got = server.ask("POST", f"/mcp?access_token={token}", JSON, json.dumps(LIST).encode())
    assert (got.status, token in got.body.decode()) == (400, False)
    assert server.ask("GET", f"/v1/models?access_token={token}", headers).status == 400
    twice = f"Authorization: Bearer {token}\r\n" * 2
    assert b" 401 " in server.raw(f"GET /v1/models HTTP/1.1\r\nHost: localhost\r\n{twice}\r\n".encode())


def test_metrics_are_for_the_server_s_own_token(server, bearer):
    assert server.ask("GET", "/metrics", bearer("alice")).status == 401
    assert server.ask("GET", "/metrics", BEARER).status == 200


@pytest.mark.parametrize("host", ["evil.example", "localhost.evil.example"])
def test_the_other_checks_come_before_the_token(server, bearer, host):
    for path in ("/mcp", "/.well-known/oauth-protected-resource/mcp"):
        assert server.ask("GET", path, bearer("alice") | {"Host": host}).status == 421


class TestAReader:
    """A subject without the scope."""

    def test_reads(self, server, bearer):
        session = server.session(bearer("reader", scope="openid"))
        assert session.request("tools/list")["result"]["tools"]
        assert not session.call("bulk_status", limit=5).get("isError")
        assert session.request("resources/read", uri="promptmill://models")["result"]
        assert server.ask("GET", "/v1/models", bearer("reader", scope="")).status == 200

    @pytest.mark.parametrize(
        "call",
        [
            {"name": "generate", "arguments": {"prompt_ls": ["x"]}},
            {"name": "bulk_generate", "arguments": {}},
            {"name": "bulk_status", "arguments": {"job_id": "x", "action": "continue"}},
            {"name": "bulk_status", "arguments": {"job_id": "x", "max_cost": 9}},
            {"name": ["bulk_status"]},
            {},
        ],
    )
    def test_pays_for_nothing(self, server, bearer, upstream, call):
        session = server.session(bearer("reader", scope=None))
        got = session.post({"jsonrpc": "2.0", "id": 5, "method": "tools/call", "params": call})
        assert got.status == 403
        assert got.headers["www-authenticate"] == (
            f'Bearer error="insufficient_scope", scope="promptmill:ask", {METADATA}'
        )
        assert "promptmill:ask" in got.message
        assert not upstream.seen

    @pytest.mark.parametrize("method", ["tasks/get", "tasks/result", "tasks/cancel"])
    def test_neither_resumes_nor_ends_a_task(self, server, bearer, method):
        session = server.session(bearer("reader", scope=None))
        assert session.post({"jsonrpc": "2.0", "id": 5, "method": method, "params": {"taskId": "x"}}).status == 403

    @pytest.mark.parametrize(
        "body",
        [
            b'{"jsonrpc":"2.0","id":1,"method":"ping","method":"tools/call","params":{"name":"generate","arguments":{"prompt_ls":["x"]}}}',
            b'[{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"generate","arguments":{"prompt_ls":["x"]}}}]',
            b'{"jsonrpc":"2.0","id":1,"method":"tools\\/call","params":{"name":"generate","arguments":{"prompt_ls":["x"]}}}',
            b'{"jsonrpc":"2.0","id":NaN,"method":"ping"}',
        ],
    )
    def test_hides_no_call_in_a_body(self, server, bearer, upstream, body):
        session = server.session(bearer("reader", scope=None))
        assert server.ask("POST", "/mcp", session.headers, body).status == 403
        assert not upstream.seen

    @pytest.mark.parametrize(
        "last",
        [b'"method":"ping"', b'"params":{"name":"bulk_status"}', b'"params":{"name":"bulk_status","arguments":{}}'],
    )
    def test_gains_nothing_by_a_repeated_member(self, server, bearer, upstream, last):
        call = b'"method":"tools/call","params":{"name":"generate","arguments":{"prompt_ls":["x"]}}'
        session = server.session(bearer("reader", scope=None))
        got = server.ask("POST", "/mcp", session.headers, b'{"jsonrpc":"2.0","id":1,%b,%b}' % (call, last))
        assert b"ans_ls" not in got.body
        assert not upstream.seen

    def test_pays_for_nothing_over_openai_s_api(self, server, bearer, upstream):
        body = json.dumps({"model": "m", "messages": [{"role": "user", "content": "hi"}]}).encode()
        headers = bearer("reader", scope=["openid", 5]) | {"Content-Type": "application/json"}
        for path in ("/v1/chat/completions", "/v1/files", "/v1/batches"):
            got = server.ask("POST", path, headers, body)
            assert (got.status, "insufficient_scope" in got.headers["www-authenticate"]) == (403, True)
        assert not upstream.seen
        headers = bearer("alice") | {"Content-Type": "application/json"}
        assert server.ask("POST", "/v1/chat/completions", headers, body).status == 200


def test_a_session_belongs_to_its_subject(server, bearer):
    session = server.session(bearer("alice"))
    for stranger in (bearer("bob"), bearer("alice", client_id="another app"), BEARER):
        headers = session.headers | stranger
        assert server.ask("POST", "/mcp", headers, json.dumps(LIST).encode()).status == 404
    session.headers |= bearer("alice", iat=timedelta(seconds=-5))  # a renewed token
    assert session.answers("x") == ["echo: x"]
    assert session.headers["Mcp-Protocol-Version"] == VERSION
