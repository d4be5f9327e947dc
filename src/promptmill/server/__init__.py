"""The MCP server. The wire's names (`prompt_ls`, `ans_ls`, …) are used here and in `compat` alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from promptmill.system import logs

if TYPE_CHECKING:
    from promptmill.server.app import create_server

__all__ = ["create_server"]

logs.quiet_fastmcp()


def __getattr__(name: str) -> Any:
    """Import FastMCP, which takes a second, only for those who make a server."""
    if name != "create_server":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from promptmill.server.app import create_server

    return create_server
