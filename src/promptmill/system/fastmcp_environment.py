"""Set FastMCP's environment variables; import this module before FastMCP, which reads them at import."""

from __future__ import annotations

import logging
import os

# A `.env` in the working directory is the caller's, not FastMCP's: a bad value there would stop the import.
os.environ.setdefault("FASTMCP_ENV_FILE", os.devnull)
os.environ.setdefault("FASTMCP_ENABLE_RICH_LOGGING", "false")  # rich prints tracebacks with source lines
os.environ.setdefault("FASTMCP_LOG_LEVEL", "ERROR")  # our own log has the failed calls
# At DEBUG both libraries log the arguments of calls and whole messages, with prompts and keys in them.
if os.environ["FASTMCP_LOG_LEVEL"].strip().upper() not in {"INFO", "WARNING", "ERROR", "CRITICAL"}:
    os.environ["FASTMCP_LOG_LEVEL"] = "INFO"
logging.getLogger("mcp").setLevel(logging.WARNING)
