"""Logs of promptmill and FastMCP on stderr."""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections.abc import Mapping

from promptmill.core.errors import config_error

_LEVEL = "PROMPTMILL_LOG_LEVEL"
LEVELS = ("debug", "info", "warning", "error")
CALLS = "promptmill.calls"
"""The name of the log with one line per tool call."""
FORMATS = ("text", "json")


def to_stderr(level: str | None = None, *, all_calls: bool = False, as_json: bool = False) -> None:
    """Send logs to stderr, because stdout is for the protocol. `all_calls`: log successful calls, too.

    `as_json`: each entry is one line of JSON.

    `level` applies to promptmill's loggers; the default is PROMPTMILL_LOG_LEVEL, or else warning. Libraries stay at
    warning, because at lower levels, some of them log whole messages with keys and prompts.
    """
    logging.basicConfig(stream=sys.stderr, level="WARNING", format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    if as_json:
        for handler in logging.getLogger().handlers:
            handler.setFormatter(_JsonLines())
    wanted = (level or os.environ.get(_LEVEL, "")).strip().lower()
    logging.getLogger("promptmill").setLevel((wanted if wanted in LEVELS else "warning").upper())
    if all_calls:
        logging.getLogger(CALLS).setLevel(logging.INFO)


def announce(text: str) -> None:
    """Write a line for the operator to stderr, in the format of the log, whatever the log's level."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler.formatter, _JsonLines):
            handler.handle(logging.LogRecord("promptmill", logging.INFO, "", 0, text, None, None))
            return
    print(f"promptmill: {text}", file=sys.stderr, flush=True)


class _JsonLines(logging.Formatter):
    """Log entries as lines of JSON. The line of a call has a field for each part of its message."""

    def format(self, record: logging.LogRecord) -> str:
        """Return one line."""
        when = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        entry = {"time": f"{when}.{int(record.msecs):03}Z", "level": record.levelname.lower(), "logger": record.name}
        if record.name == CALLS:
            parts = (part.partition("=") for part in record.getMessage().split())
            return json.dumps(entry | {name: _number(value) for name, _, value in parts})
        entry["message"] = record.getMessage()
        if record.exc_info:
            entry["traceback"] = self.formatException(record.exc_info)
        return json.dumps(entry, ensure_ascii=False)


def _number(text: str) -> str | float:
    if text.isascii() and text.replace(".", "", 1).isdigit():
        return float(text) if "." in text else int(text)
    return text


def quiet_fastmcp() -> None:
    """Set FastMCP's environment variables. Call it before FastMCP is imported, because the import reads them."""
    # No `.env` is read: the working directory is the caller's, and an invalid value would stop FastMCP's import.
    os.environ.setdefault("FASTMCP_ENV_FILE", os.devnull)
    os.environ.setdefault("FASTMCP_ENABLE_RICH_LOGGING", "false")  # rich prints tracebacks with source lines
    os.environ.setdefault("FASTMCP_LOG_LEVEL", "ERROR")  # promptmill's own log has the failed calls
    # DEBUG is not allowed: at that level, FastMCP and the SDK log arguments and whole messages, with prompts and keys.
    if os.environ["FASTMCP_LOG_LEVEL"].strip().upper() not in {"INFO", "WARNING", "ERROR", "CRITICAL"}:
        os.environ["FASTMCP_LOG_LEVEL"] = "INFO"
    logging.getLogger("mcp").setLevel(logging.WARNING)
    # Telemetry is off even if a tool sets up OpenTelemetry for all libraries: spans would contain exception messages.
    os.environ.setdefault("FASTMCP_TELEMETRY_MODE", "off")


def check_level(environ: Mapping[str, str]) -> None:
    """Raise `PromptmillError` (`invalid_config`) if PROMPTMILL_LOG_LEVEL holds an unknown level."""
    level = environ.get(_LEVEL, "").strip().lower()
    if level and level not in LEVELS:
        raise config_error(
            _LEVEL,
            f"{level[:20]!r} is not a log level; write {', '.join(LEVELS[:-1])} or {LEVELS[-1]}.",
        )
