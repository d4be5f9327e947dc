"""The tools over streamable HTTP: listening sockets, who may call, and how much they may send."""

import promptmill.system.fastmcp_environment  # noqa: F401 (before FastMCP is imported)
