"""The MCP server, which owns the names of its tools' fields (`prompt_ls`, `ans_ls`, …)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from promptmill.system import logs

if TYPE_CHECKING:
    from promptmill.server.mcp_app import create_server

__all__ = ["create_server"]

logs.quiet_fastmcp()


def __getattr__(name: str) -> Any:
    """Import FastMCP only when a server is created, because the import takes a second."""
    if name != "create_server":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from promptmill.server.mcp_app import create_server

    return create_server
