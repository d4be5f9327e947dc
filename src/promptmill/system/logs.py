"""Logs on stderr."""

from __future__ import annotations

import logging
import os
import sys

LEVEL = "PROMPTMILL_LOG_LEVEL"
LEVELS = ("debug", "info", "warning", "error")
CALLS = "promptmill.calls"
"""The name of the log with one line per tool call."""


def to_stderr(level: str | None = None, *, all_calls: bool = False) -> None:
    """Send logs to stderr; stdout belongs to the protocol. `all_calls`: log successful calls, too.

    `level` applies to our own loggers; its default is PROMPTMILL_LOG_LEVEL, else warning. Libraries stay at warning:
    below it some log whole messages, keys and prompts included.
    """
    logging.basicConfig(stream=sys.stderr, level="WARNING", format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    wanted = (level or os.environ.get(LEVEL, "")).strip().lower()
    logging.getLogger("promptmill").setLevel((wanted if wanted in LEVELS else "warning").upper())
    if all_calls:
        logging.getLogger(CALLS).setLevel(logging.INFO)
