"""FastMCP's settings, put into the environment before anything imports FastMCP, which reads them then."""

from __future__ import annotations

import logging
import os

# A `.env` in the working directory is the caller's, not FastMCP's: a bad value there would stop the import.
os.environ.setdefault("FASTMCP_ENV_FILE", os.devnull)
os.environ.setdefault("FASTMCP_ENABLE_RICH_LOGGING", "false")  # rich prints tracebacks with source lines
os.environ.setdefault("FASTMCP_LOG_LEVEL", "ERROR")  # calls that fail stand in our own log
# At DEBUG both libraries log the arguments of calls and whole messages, with prompts and keys in them.
if os.environ["FASTMCP_LOG_LEVEL"].strip().upper() not in {"INFO", "WARNING", "ERROR", "CRITICAL"}:
    os.environ["FASTMCP_LOG_LEVEL"] = "INFO"
logging.getLogger("mcp").setLevel(logging.WARNING)
