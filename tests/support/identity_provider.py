"""An OpenID provider on loopback, whose access tokens are JWTs, and tokens with any fault.

with IdentityProvider() as provider:
    token = provider.token("alice", audience)       # as the provider signs it
    provider.token("alice", audience, exp=0)        # and with other claims
"""

from __future__ import annotations

import json
import threading
import time
from datetime import timedelta
from typing import Any

import flask
import oidc_provider_mock
from joserfc import jwk, jwt
from werkzeug.serving import make_server

SCOPE = "promptmill:ask"


class IdentityProvider:
    """`oidc-provider-mock`, with access tokens for the client's `resource`. Whoever is called `reader` has no scope."""

    def __init__(self, port: int = 0) -> None:
        app = flask.Flask(__name__)
        app.config["OAUTH2_ACCESS_TOKEN_GENERATOR"] = self._issued
        app.secret_key = "secret"
        oidc_provider_mock.init_app(app, require_client_registration=False)
        app.before_request(self._count)
        app.after_request(self._with_more_keys)
        self.more_keys: list[jwk.Key] = []
        self.sent_keys: list[dict[str, Any]] | None = None
        """The keys that it sends in place of its own; None: its own."""
        self.requests: list[str] = []
        self._server = make_server("127.0.0.1", port, app, threaded=True)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self.key: jwk.RSAKey
        with app.test_client() as client:
            client.get("/jwks")

    def __enter__(self) -> IdentityProvider:
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def key_id(self) -> str:
        """The id of its key."""
        self.key.ensure_kid()
        return str(self.key.kid)

    def token(
        self, subject: str, audience: str, *, header: dict[str, Any] | None = None, key: Any = None, **claims: Any
    ) -> str:
        """Return a token; a claim that is None is left out, and a `timedelta` is a time from now."""
        given = self._claims(subject, audience, SCOPE) | claims
        given = {name: _time(value) for name, value in given.items() if value is not None}
        head = {"alg": "RS256", "kid": self.key_id} | (header or {})
        return jwt.encode(head, given, key or self.key, algorithms=[head["alg"]])

    def _claims(self, subject: str, audience: str, scope: str) -> dict[str, Any]:
        now = int(time.time())
        return {"iss": self.url, "sub": subject, "aud": audience, "iat": now, "exp": now + 600, "scope": scope}

    def _issued(self, client: Any, user: Any, **_: Any) -> str:
        claims = self._claims(user.sub, flask.request.form["resource"], "" if user.sub == "reader" else SCOPE)
        return jwt.encode({"alg": "RS256", "kid": self.key_id}, claims | {"client_id": client.id}, self.key)

    def _with_more_keys(self, response: flask.Response) -> flask.Response:
        if flask.request.path == "/jwks":
            more = [key.as_dict(private=False) for key in self.more_keys]
            every = response.get_json()["keys"] + more if self.sent_keys is None else self.sent_keys
            response.set_data(json.dumps({"keys": every}))
        return response

    def _count(self) -> None:
        self.requests.append(flask.request.path)
        made = flask.g.oidc_provider_mock_storage.jwk.as_dict(True)  # authlib's key, or joserfc's
        self.key = jwk.RSAKey.import_key(json.loads(json.dumps(made)))


def _time(value: Any) -> Any:
    return int(time.time() + value.total_seconds()) if isinstance(value, timedelta) else value
