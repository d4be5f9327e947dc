"""The part of a job's estimate that is for the rows without an answer."""

from __future__ import annotations

import math

from promptmill.core.values import JsonDict, JsonObject

_COSTS = ("estimated_cost", "most_cost")


def of_rows_left(found: JsonObject) -> JsonDict:
    """Return the estimate `found`, with its requests and costs reduced to its `rows_left`; unchanged without these."""
    if (left := found.get("rows_left")) is None:
        return dict(found)
    share = left / max(1, rows_sent_of(found))
    costs = {name: cost * share for name in _COSTS if (cost := found.get(name)) is not None}
    return {**found, "requests": math.ceil(found["requests"] * share), **costs}


def rows_sent_of(found: JsonObject) -> int:
    """Return the number of rows whose cost an estimate includes."""
    sent: int = found["rows"] - found["invalid"] - found.get("skipped", 0) - found.get("taken", 0)
    return sent
