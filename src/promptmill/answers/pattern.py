"""Patterns for whole answers: regular expressions that match in time linear in the answer's length."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jsonschema_rs import Validator

_PATTERN_BYTES = 1 << 20  # limit of a compiled pattern: `\d{1,100000}` would take gigabytes
_SOON = 1000
"""Answers up to this length are matched on the event loop: with a pattern of thousands of states, a character takes up
to 0.06 ms, in which no other thread runs. Longer answers are matched in the process of `Checker`."""


@functools.lru_cache(64)
def whole_match(pattern: str) -> Validator:
    """Return the validator of texts that match a pattern as a whole. Raises `ValueError` for an invalid pattern.

    A match takes linear time; with `re`, a client's pattern may take hours.
    """
    from jsonschema_rs import RegexOptions, validator_for  # imported on use, as in `answers.schema`

    schema = {"type": "string", "pattern": f"^(?:{pattern})$"}
    return validator_for(schema, pattern_options=RegexOptions(size_limit=_PATTERN_BYTES))


def is_soon_matched(text: str) -> bool:
    """Return whether a text is short enough for the event loop."""
    return len(text) <= _SOON
