"""Lenient JSON parsing for what orjson refuses: unpaired surrogates (llama.cpp cuts emojis), invalid UTF-8."""

from __future__ import annotations

import json
from typing import Any

import orjson

_DEEPEST = 32  # levels of nesting in tool calls and the like; every encoder on their way has a bound of its own
_ORJSON_DEEPEST = 254


def load(data: bytes) -> Any:
    """Return the value of `data`; half a surrogate pair stays one, for its other half may come. Raises `ValueError`."""
    try:
        return json.loads(data.decode("utf-8", "replace"))
    except RecursionError:
        raise ValueError("nested too deeply") from None


def mended(value: Any) -> Any:
    """Return `value` with whole characters: half a surrogate pair becomes U+FFFD. Raises `ValueError`."""
    try:
        text = json.dumps(value, ensure_ascii=False).encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        return json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def can_go_on(value: Any) -> bool:
    """Return whether files, frames and results can hold `value`."""
    try:
        text = orjson.dumps(value)
        if text.count(b"{") + text.count(b"[") <= _DEEPEST:
            return True
        for _ in range(_ORJSON_DEEPEST - _DEEPEST):  # its bound then is ours, at the cost of encoding alone
            value = [value]
        return bool(orjson.dumps(value))
    except TypeError:
        return False
