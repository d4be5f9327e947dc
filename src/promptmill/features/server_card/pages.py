"""The two documents of SEP-2127, with the name and version that `initialize` and `server/discover` report."""

from __future__ import annotations

from collections.abc import Callable
from importlib import metadata

import orjson
from fastmcp import FastMCP
from mcp_types.version import KNOWN_PROTOCOL_VERSIONS
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from promptmill.core.values import JsonDict

_SCHEMA = "https://static.modelcontextprotocol.io/schemas/v2/server-card.schema.json"
_CARD = "application/mcp-server-card+json"
_NAME = "io.github.promptmill/promptmill"  # as in server.json, for the MCP registry
_IDENTIFIER = "urn:air:promptmill.github.io:promptmill"
_SENTENCE = metadata.metadata("promptmill")["Summary"].partition(":")[0]  # a description has at most 100 characters
_HEADERS = {
    "access-control-allow-origin": "*",
    "access-control-allow-methods": "GET",
    "access-control-allow-headers": "Content-Type",
    "cache-control": "public, max-age=3600",
    "vary": "Host, X-Forwarded-Proto",
}


def card(server: FastMCP) -> ASGIApp:
    """Return the page with the card."""
    info = server._mcp_server.server_info.model_dump(by_alias=True, mode="json", exclude_none=True)
    fixed: JsonDict = {name: info[name] for name in ("version", "websiteUrl", "icons") if name in info}
    fixed |= {"$schema": _SCHEMA, "name": _NAME, "title": info["name"], "description": _SENTENCE}

    def document(url: str) -> JsonDict:
        versions = [*KNOWN_PROTOCOL_VERSIONS]
        return {
            **fixed,
            "remotes": [{"type": "streamable-http", "url": f"{url}/mcp", "supportedProtocolVersions": versions}],
        }

    return _Page(_CARD, document)


def catalog(server: FastMCP) -> ASGIApp:
    """Return the page with the catalog, which names the card."""

    def document(url: str) -> JsonDict:
        entry = {"identifier": _IDENTIFIER, "displayName": server.name, "type": _CARD, "url": f"{url}/mcp/server-card"}
        return {"specVersion": "draft", "entries": [entry]}

    return _Page("application/json", document)


class _Page:
    """A JSON document with the server's address, as the client knows it."""

    def __init__(self, media_type: str, document: Callable[[str], JsonDict]) -> None:
        self._media_type, self._document = media_type, document

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        response = Response(status_code=405, headers={"allow": "GET, HEAD"})
        if scope["method"] in {"GET", "HEAD"}:
            body = orjson.dumps(self._document(_url(Request(scope))))
            response = Response(body, headers=_HEADERS, media_type=self._media_type)
        await response(scope, receive, send)


def _url(request: Request) -> str:
    """Return the server's address. Only the header of a proxy shows whether its clients use https."""
    scheme = "https" if request.headers.get("x-forwarded-proto") == "https" else request.url.scheme
    return f"{scheme}://{request.headers['host']}"
