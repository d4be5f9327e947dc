"""The MCP server. The wire's names (`prompt_ls`, `ans_ls`, …) live and die in this room."""

from __future__ import annotations

import os

# A `.env` in the working directory is the caller's, not FastMCP's: a bad value there would stop the import.
os.environ.setdefault("FASTMCP_ENV_FILE", os.devnull)
os.environ.setdefault("FASTMCP_ENABLE_RICH_LOGGING", "false")  # rich prints tracebacks with source lines
os.environ.setdefault("FASTMCP_LOG_LEVEL", "WARNING")

from promptmill.server.app import create_server

__all__ = ["create_server"]
