"""Logs on stderr: our own, and those of FastMCP."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Mapping

from promptmill.core.errors import config_error

_LEVEL = "PROMPTMILL_LOG_LEVEL"
LEVELS = ("debug", "info", "warning", "error")
CALLS = "promptmill.calls"
"""The name of the log with one line per tool call."""


def to_stderr(level: str | None = None, *, all_calls: bool = False) -> None:
    """Send logs to stderr; stdout belongs to the protocol. `all_calls`: log successful calls, too.

    `level` applies to our own loggers; its default is PROMPTMILL_LOG_LEVEL, else warning. Libraries stay at warning:
    below it some log whole messages, keys and prompts included.
    """
    logging.basicConfig(stream=sys.stderr, level="WARNING", format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    wanted = (level or os.environ.get(_LEVEL, "")).strip().lower()
    logging.getLogger("promptmill").setLevel((wanted if wanted in LEVELS else "warning").upper())
    if all_calls:
        logging.getLogger(CALLS).setLevel(logging.INFO)


def quiet_fastmcp() -> None:
    """Set FastMCP's environment variables. Call it before FastMCP is imported, which reads them then."""
    # A `.env` in the working directory is the caller's, not FastMCP's: a bad value there would stop the import.
    os.environ.setdefault("FASTMCP_ENV_FILE", os.devnull)
    os.environ.setdefault("FASTMCP_ENABLE_RICH_LOGGING", "false")  # rich prints tracebacks with source lines
    os.environ.setdefault("FASTMCP_LOG_LEVEL", "ERROR")  # our own log has the failed calls
    # At DEBUG both libraries log the arguments of calls and whole messages, with prompts and keys in them.
    if os.environ["FASTMCP_LOG_LEVEL"].strip().upper() not in {"INFO", "WARNING", "ERROR", "CRITICAL"}:
        os.environ["FASTMCP_LOG_LEVEL"] = "INFO"
    logging.getLogger("mcp").setLevel(logging.WARNING)


def check_level(environ: Mapping[str, str]) -> None:
    """Raise `PromptmillError` (`invalid_config`) if PROMPTMILL_LOG_LEVEL holds an unknown level."""
    level = environ.get(_LEVEL, "").strip().lower()
    if level and level not in LEVELS:
        raise config_error(
            _LEVEL,
            f"{level[:20]!r} is not a log level; write {', '.join(LEVELS[:-1])} or {LEVELS[-1]}.",
        )
