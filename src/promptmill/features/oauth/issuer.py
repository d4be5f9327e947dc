"""The issuer of tokens: its metadata, its keys, and the claims of a valid token."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping
from typing import Any, Literal
from urllib.parse import urlsplit

import httpx2
from fastmcp.server.auth import AccessToken, TokenVerifier
from fastmcp.server.auth.providers.jwt import JWTVerifier
from fastmcp.utilities.auth import decode_jwt_header
from joserfc import jwk, jwt
from joserfc.errors import JoseError
from joserfc.jws import JWSRegistry

KEY_TYPES: Mapping[str, Literal["RSA", "EC", "OKP"]] = {
    **dict.fromkeys(("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"), "RSA"),
    **dict.fromkeys(("ES256", "ES384", "ES512"), "EC"),
    **dict.fromkeys(("EdDSA", "Ed25519"), "OKP"),
}
"""The key type of each algorithm. All are asymmetric: with HS256, a reader of the public key could sign tokens."""
LEEWAY_S = 60  # how far the clocks of issuer and server may differ
LONGEST = 16 << 10  # bytes of a token; tokens of large identity providers with many groups have about 8 KB
LARGEST, MOST_KEYS = 256 << 10, 100
"""Bytes of an issuer's metadata or keys, and the number of keys. The largest issuers have 30 KB of keys. Importing one
takes half a millisecond of the event loop."""
_TIMEOUT_S = 5.0  # some MCP clients disconnect after five seconds of silence
_RETRY_S = 10.0  # seconds between attempts to read the metadata, so that requests do not flood the issuer
_PATHS = ("/.well-known/openid-configuration", "/.well-known/oauth-authorization-server")


class IssuerError(Exception):
    """The issuer cannot be reached, or its metadata is not usable."""


class Issuer(TokenVerifier):
    """Verifies tokens. The issuer's metadata is read once; its keys every hour, and when a token has an unknown key."""

    def __init__(self, url: str, audience: str, *, timeout_s: float = _TIMEOUT_S) -> None:
        """`audience`: the claim `aud` that tokens must have."""
        super().__init__()
        self.url, self.audience = url, audience
        self._timeout_s = timeout_s
        self._metadata: dict[str, str] = {}
        self._problem = ""
        self._retry_at = 0.0
        self._lock = asyncio.Lock()
        self._verifiers: dict[str, _Verifier] = {}

    @property
    def name(self) -> str:
        """The name that the issuer gives itself, with or without a final slash."""
        return self._metadata.get("issuer", self.url)

    def discover(self) -> None:
        """Read the metadata. Raises `IssuerError`."""
        self._retry_at = time.monotonic() + _RETRY_S
        try:
            self._metadata = _metadata(self.url, self._timeout_s)
        except IssuerError as error:
            self._problem = str(error)
            raise

    async def verify_token(self, token: str) -> AccessToken | None:
        """Return the claims of a valid token, else None. Raises `IssuerError` if the issuer cannot be read."""
        if len(token) > LONGEST:
            return None
        try:
            verifier = await self._verifier(_algorithm(token))
            return None if verifier is None else await verifier.verify_token(token)
        except RecursionError:  # deeply nested brackets
            return None

    async def _rediscover(self) -> None:
        async with self._lock:
            if self._metadata:
                return
            if time.monotonic() < self._retry_at:
                raise IssuerError(self._problem)
            await asyncio.to_thread(self.discover)

    async def _verifier(self, algorithm: str) -> _Verifier | None:
        if algorithm not in KEY_TYPES:
            return None
        if not self._metadata:
            await self._rediscover()
        if algorithm not in self._verifiers:
            options: dict[str, Any] = {
                "iss": {"essential": True, "value": self.name},
                "aud": {"essential": True, "value": self.audience},
                "sub": {"essential": True},
                "exp": {"essential": True},
            }
            claims = jwt.JWTClaimsRegistry(leeway=LEEWAY_S, **options)
            self._verifiers[algorithm] = _Verifier(self._metadata["jwks_uri"], algorithm, claims, self._timeout_s)
        return self._verifiers[algorithm]


class _Verifier(JWTVerifier):
    """Verifies tokens of one algorithm. FastMCP's class reads and keeps the keys. Its check of claims is not used: it
    allows no difference of clocks, and accepts a token that never expires, or that is not valid yet."""

    def __init__(self, keys: str, algorithm: str, claims: jwt.JWTClaimsRegistry, timeout_s: float) -> None:
        super().__init__(jwks_uri=keys, algorithm=algorithm)
        self._url, self._timeout_s = keys, timeout_s
        self._claims = claims
        self._problem = ""

    async def _fetch_jwks(self) -> dict[str, Any]:
        try:
            found = await asyncio.to_thread(_read, self._url, self._timeout_s)
            keys = found.get("keys")
            if not isinstance(keys, list) or len(keys) > MOST_KEYS:
                raise _UnusableError(f"they should be a list of at most {MOST_KEYS}")
        except (httpx2.HTTPError, ValueError, AttributeError, RecursionError) as error:
            self._problem = f"The keys of the issuer cannot be read at {self._url} ({_why(error)})."
            raise ValueError(self._problem) from None
        self._problem = ""
        return {"keys": keys}

    async def load_access_token(self, token: str) -> AccessToken | None:
        """Return the claims of a valid token, else None. Raises `IssuerError` if the keys cannot be read."""
        try:
            pem = await self._get_verification_key(token)
        except (ValueError, TypeError, AttributeError):
            if self._problem:
                raise IssuerError(self._problem) from None
            return None
        registry = JWSRegistry(algorithms=[self.algorithm], strict_check_header=False)
        try:
            key = jwk.import_key(pem, KEY_TYPES[self.algorithm])
            claims = jwt.decode(token, key, algorithms=[self.algorithm], registry=registry).claims
            self._claims.validate(claims)
            client = str(claims.get("client_id") or claims.get("azp") or claims["sub"])
            kept = {"iss": claims["iss"]}  # the SDK binds a session to this issuer, the subject and the client
            scopes = [scope for scope in self._extract_scopes(claims) if isinstance(scope, str)]
            return AccessToken(token="", client_id=client, scopes=scopes, subject=claims["sub"], claims=kept)
        except (JoseError, ValueError, TypeError, KeyError, AttributeError):  # a client may send any text
            return None


def _algorithm(token: str) -> str:
    try:
        return str(decode_jwt_header(token).get("alg"))
    except (ValueError, AttributeError):
        return ""


def _metadata(issuer: str, timeout_s: float) -> dict[str, str]:
    """Return the `issuer` and the `jwks_uri` of an issuer's metadata (OpenID Connect Discovery, or RFC 8414)."""
    parts = urlsplit(issuer.rstrip("/"))
    urls = (f"{issuer.rstrip('/')}{_PATHS[0]}", f"{parts.scheme}://{parts.netloc}{_PATHS[1]}{parts.path}")
    problems = []
    for url in urls:
        try:
            return _checked(_read(url, timeout_s), issuer)
        except (httpx2.HTTPError, ValueError, RecursionError) as error:
            problems.append(f"{url}: {_why(error)}")
    raise IssuerError(f"The metadata of the OAuth issuer cannot be read ({'; '.join(problems)}).")


class _UnusableError(ValueError):
    """What an issuer sent cannot be used. The error's text says why."""


def _read(url: str, timeout_s: float) -> Any:
    """Return the JSON value at a URL. Blocks. Raises `httpx2.HTTPError`, `ValueError`, `RecursionError`."""
    body, end = bytearray(), time.monotonic() + timeout_s
    with httpx2.stream("GET", url, headers={"accept-encoding": "identity"}, timeout=timeout_s) as response:
        response.raise_for_status()
        for piece in response.iter_raw():
            body += piece
            if len(body) > LARGEST:
                raise _UnusableError(f"it has more than {LARGEST >> 10} KiB")
            if time.monotonic() > end:
                raise _UnusableError(f"it has no end after {timeout_s:g} s")
    return json.loads(body)


def _why(error: Exception) -> str:
    if isinstance(error, httpx2.HTTPStatusError):
        return f"status {error.response.status_code}"
    return str(error) if isinstance(error, _UnusableError) else type(error).__name__


def _checked(found: Any, issuer: str) -> dict[str, str]:
    named = found.get("issuer") if isinstance(found, dict) else None
    if not isinstance(named, str) or named.rstrip("/") != issuer.rstrip("/"):
        raise _UnusableError(f"it names another issuer, {named!r:.200}")
    keys = found.get("jwks_uri")
    if not isinstance(keys, str) or (urlsplit(issuer).scheme == "https" and urlsplit(keys).scheme != "https"):
        raise _UnusableError("it names no `jwks_uri` with https")
    return {"issuer": named, "jwks_uri": keys}
