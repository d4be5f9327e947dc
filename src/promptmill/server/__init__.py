"""The MCP server. The wire's names (`prompt_ls`, `ans_ls`, …) are used in this package alone."""

from __future__ import annotations

import promptmill.system.fastmcp_environment  # noqa: F401 (before FastMCP is imported)
from promptmill.server.app import create_server

__all__ = ["create_server"]
