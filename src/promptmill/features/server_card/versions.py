"""The reply to `server/discover` with all versions of MCP; the SDK's reply names only versions without a handshake."""

from __future__ import annotations

from typing import Any

import mcp_types
from fastmcp.server.middleware import CallNext, Middleware, MiddlewareContext
from mcp_types.version import KNOWN_PROTOCOL_VERSIONS

from promptmill.server.tool_socket import ToolSocket


def add(socket: ToolSocket) -> None:
    """Make replies to `server/discover` name all versions."""
    socket.mcp.add_middleware(_AllVersions())


class _AllVersions(Middleware):
    async def on_discover(
        self,
        context: MiddlewareContext[mcp_types.DiscoverRequest],
        call_next: CallNext[mcp_types.DiscoverRequest, mcp_types.DiscoverResult | dict[str, Any]],
    ) -> mcp_types.DiscoverResult | dict[str, Any]:
        """Add the versions to the reply."""
        found = await call_next(context)
        if isinstance(found, mcp_types.DiscoverResult):
            found.supported_versions = [*KNOWN_PROTOCOL_VERSIONS]
        return found
