"""FastMCP's settings, put into the environment before anything imports FastMCP, which reads them then."""

from __future__ import annotations

import os

# A `.env` in the working directory is the caller's, not FastMCP's: a bad value there would stop the import.
os.environ.setdefault("FASTMCP_ENV_FILE", os.devnull)
os.environ.setdefault("FASTMCP_ENABLE_RICH_LOGGING", "false")  # rich prints tracebacks with source lines
os.environ.setdefault("FASTMCP_LOG_LEVEL", "WARNING")
