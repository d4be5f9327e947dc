"""The body of a request as a JSON object without repeated names."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from typing import Any

import orjson

from promptmill.core.values import JsonDict, exact_float

_LONG = 64 << 10  # bytes; a longer body is read in a thread


class UnreadableBodyError(ValueError):
    """The body is no JSON object. The error's text tells the client why."""


async def object_in(body: bytes) -> JsonDict:
    """Return the JSON object in a body. Raises `UnreadableBodyError`, also for a repeated name."""
    return await asyncio.to_thread(_object_in, body) if len(body) > _LONG else _object_in(body)


def _object_in(body: bytes) -> JsonDict:
    try:
        orjson.loads(body)  # stricter than `json`: no NaN, no lone surrogates
        value = json.loads(body, object_pairs_hook=_without_twins, parse_float=exact_float)
    except UnreadableBodyError:
        raise
    except (ValueError, RecursionError):
        raise UnreadableBodyError("The body is not valid JSON, or is nested too deeply.") from None
    if not isinstance(value, dict):
        raise UnreadableBodyError("The body is not a JSON object.")
    return value


def _without_twins(pairs: list[tuple[str, Any]]) -> JsonDict:
    found = dict(pairs)
    if len(found) < len(pairs):
        name, _ = Counter(name for name, _ in pairs).most_common(1)[0]
        raise UnreadableBodyError(f"The name {name[:60]!r} is twice in one object; write each name once.")
    return found
