"""The callers of a server with OAuth: their identity, and the calls that the scopes of their tokens permit."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qs

import orjson
from fastmcp.server.auth import RemoteAuthProvider
from mcp.server.auth.middleware.bearer_auth import AuthenticatedUser
from mcp.server.auth.provider import AccessToken
from mcp.server.auth.routes import build_resource_metadata_url
from pydantic import AnyHttpUrl, ConfigDict, TypeAdapter
from starlette.types import ASGIApp, Receive, Scope, Send

from promptmill.features.oauth.issuer import Issuer, IssuerError
from promptmill.http.app import PATH, HttpError

_READING = frozenset({"job_id", "wait_s", "read", "offset", "limit", "with_input", "max_characters"})
"""The arguments of `bulk_status` that only read. A call with other arguments, or of another tool, may cost money."""
_URL = TypeAdapter(AnyHttpUrl, config=ConfigDict(url_preserve_empty_path=True))  # clients compare issuers as texts
_SAFE_METHODS = frozenset({"GET", "HEAD"})
_RETRY_S = 10


class ResourceServer:
    """Identifies callers by the tokens of an issuer."""

    def __init__(self, issuer: Issuer, scope: str) -> None:
        """`scope`: the scope that a token needs to ask models; `""` if it needs none."""
        self._issuer, self._scope = issuer, scope
        self.words = f"clients with a token of {issuer.url}"
        url = build_resource_metadata_url(_URL.validate_python(issuer.audience))
        self.pages: Mapping[str, ASGIApp] = {url.path or "": self._metadata}
        self._pointer = f'resource_metadata="{url}"'

    async def _metadata(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer with the metadata of RFC 9728, in which clients find the issuer."""
        issuer, audience = _URL.validate_python(self._issuer.name), _URL.validate_python(self._issuer.audience)
        scopes = [self._scope] if self._scope else []
        provider = RemoteAuthProvider(self._issuer, [issuer], audience, scopes, resource_name="promptmill")
        await provider.get_routes()[0](scope, receive, send)

    async def admitted(self, scope: Scope) -> Scope:
        """See `promptmill.http.token.Authentication`."""
        if b"access_token" in parse_qs(scope["query_string"], keep_blank_values=True):
            raise HttpError(400, "Send the token in the header `Authorization`: addresses are stored in logs.")
        token = _token(scope)
        try:
            user = await self._issuer.verify_token(token) if token else None
        except IssuerError as error:
            message = f"The token cannot be verified now. {error}"
            raise HttpError(503, message, {"retry-after": str(_RETRY_S)}) from None
        if user is None:
            raise self._unknown(bool(token))
        admitted = {**scope, "user": AuthenticatedUser(user), "headers": _named(scope, user)}
        if scope["path"].rstrip("/") != PATH and scope["method"] not in _SAFE_METHODS:
            self._check_scope(user)
        return admitted

    def check_body(self, scope: Scope, body: bytes) -> None:
        """Raise `HttpError` 403 if the body calls a tool that may cost money, and the token lacks the scope for it."""
        user = scope.get("user")
        if isinstance(user, AuthenticatedUser) and scope["method"] == "POST" and not _only_reads(body):
            self._check_scope(user.access_token)

    def _check_scope(self, user: AccessToken) -> None:
        if self._scope and self._scope not in user.scopes:
            message = f"The token lacks the scope `{self._scope}`, which is needed to ask models."
            raise HttpError(403, message, self._challenge("insufficient_scope"))

    def _unknown(self, has_token: bool) -> HttpError:  # noqa: FBT001
        if not has_token:
            message = "This server needs a token of its OAuth issuer: send the header `Authorization: Bearer TOKEN`."
            return HttpError(401, message, self._challenge(""))
        message = f"The token has expired, or is not for this server: issuer {self._issuer.url}, audience "
        return HttpError(401, f"{message}{self._issuer.audience}. Sign in again.", self._challenge("invalid_token"))

    def _challenge(self, error: str) -> dict[str, str]:
        parts = [f'error="{error}"'] if error else []
        parts += [f'scope="{self._scope}"'] if self._scope else []
        return {"www-authenticate": f"Bearer {', '.join([*parts, self._pointer])}"}


def _token(scope: Scope) -> str:
    """Return the request's bearer token; `""` unless there is exactly one `Authorization` header."""
    found = [value for name, value in scope["headers"] if name == b"authorization"]
    scheme, _, token = found[0].partition(b" ") if len(found) == 1 else (b"", b"", b"")
    return token.strip(b" ").decode("latin-1") if scheme.lower() == b"bearer" else ""


def _named(scope: Scope, user: AccessToken) -> list[tuple[bytes, bytes]]:
    """Return the headers with the subject in place of the token. The scheme `Subject` distinguishes it from tokens."""
    claims: Mapping[str, Any] = user.claims or {}
    subject = hashlib.sha256(json.dumps([claims["iss"], user.subject]).encode()).hexdigest()
    headers = [pair for pair in scope["headers"] if pair[0] != b"authorization"]
    return [*headers, (b"authorization", f"Subject {subject}".encode())]


def _only_reads(body: bytes) -> bool:
    """Return whether a message only reads. A body that is not understood may cost something, and so may a request about
    a task: `tasks/get` resumes a task that was interrupted."""
    try:
        message = orjson.loads(body)
        method = message.get("method", "")
        if method != "tools/call":
            return not method.startswith("tasks/")
        parameters = message["params"]
        return parameters["name"] == "bulk_status" and (parameters.get("arguments") or {}).keys() <= _READING
    except (ValueError, KeyError, TypeError, AttributeError):
        return False
