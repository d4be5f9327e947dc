"""The opening of a conversation: which requests are answered before the server is there, and what it hears of them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from promptmill.stdio.manifest import Manifest

_VERSION = "io.modelcontextprotocol/protocolVersion"
_CAPABILITIES = "io.modelcontextprotocol/clientCapabilities"
_CLIENT = "io.modelcontextprotocol/clientInfo"
_RESERVED = "io.modelcontextprotocol/"
_LONGEST = 1 << 16  # longer requests are never of the opening


class Opening:
    """Answers `initialize`, `server/discover`, `ping` and `tools/list` from the manifest, just as the server would.

    A client fixes the protocol's era with its first request: `handshake` (2025-11-25 and older) with `initialize`,
    `modern` with a request that carries its version. `server/discover` alone fixes nothing, because clients that have
    waited too long for its answer go on with `initialize`. Everything that is not surely as it should be is left to
    the server.
    """

    def __init__(self, manifest: Manifest, *, lists_tools: bool = True) -> None:
        """`lists_tools`: the server's tools are those of the manifest."""
        self._manifest = manifest
        self._lists_tools = lists_tools
        self.era = ""
        """`handshake`, `modern`, `unknown` (the server decides), "" while nothing has decided it."""

    def answer(self, request: Mapping[str, Any]) -> dict[str, Any] | None:
        """Return the result of `request`, or None when the server has to answer it."""
        method, params = request["method"], request.get("params") or {}
        envelope = _envelope(params, self._manifest.modern_version)
        match method:
            case "server/discover" if envelope and self.era in {"", "modern"}:
                return self._manifest.discover()
            case "ping" if envelope is False and self.era in {"", "handshake"}:
                return {}
            case "initialize" if not self.era and _is_handshake(params):
                self.era = "handshake"
                return self._manifest.initialize(params["protocolVersion"])
            case "tools/list" if params.keys() <= {"_meta"} and self._lists_tools:
                if envelope and self.era in {"", "modern"}:
                    self.era = "modern"
                    return self._manifest.tools(modern=True)
                if envelope is False and self.era == "handshake":
                    return self._manifest.tools(modern=False)
        self.era = self.era or ("modern" if envelope and method != "initialize" else "unknown")
        return None


def request_of(line: bytes) -> dict[str, Any] | None:
    """Return the request in `line`, or None if it is anything else or too long."""
    if len(line) > _LONGEST:
        return None
    try:
        message = json.loads(line)
    except (ValueError, RecursionError):
        return None
    match message:
        case {"jsonrpc": "2.0", "id": int() | str() as number, "method": str()} if not isinstance(number, bool):
            known = message.keys() <= {"jsonrpc", "id", "method", "params"}
            return message if known and isinstance(message.get("params", {}), dict) else None
    return None


def _envelope(params: Mapping[str, Any], version: str) -> bool | None:
    """Return whether `params` are those of a request of the modern era; None when they are neither that nor plain."""
    match params.get("_meta"):
        case None:
            return False
        case dict(meta):
            if not any(key.startswith(_RESERVED) for key in meta):
                return False
            whole = meta.get(_VERSION) == version and isinstance(meta.get(_CAPABILITIES), dict)
            client = meta.get(_CLIENT)
            return True if whole and (client is None or _is_implementation(client)) else None
    return None


def _is_handshake(params: Mapping[str, Any]) -> bool:
    match params:
        case {"protocolVersion": str(), "capabilities": dict(capabilities), "clientInfo": client}:
            plain = all(value is None or isinstance(value, dict) for value in capabilities.values())
            return plain and _is_implementation(client) and "_meta" not in params
    return False


def _is_implementation(value: object) -> bool:
    match value:
        case {"name": str(), "version": str()}:
            return True
    return False
