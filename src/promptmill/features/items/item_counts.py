"""The items in the answers of a job, counted by its database."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from promptmill.answers.reasoning import split_marked
from promptmill.answers.schema_kinds import loaded
from promptmill.core.values import JsonDict, json_text
from promptmill.jobs.store.database import JobDatabase
from promptmill.jobs.store.records import SLOT
from promptmill.jobs.store.statistics import DELIVERED

_COUNTS = f"""
    SELECT total(length), total(length = 0 AND code IS NULL), total(code IS NOT NULL) FROM (
        SELECT code, coalesce((
            SELECT CASE type WHEN 'array' THEN json_array_length(value) END
            FROM json_each(CASE WHEN code IS NULL THEN iif(json_valid(text), text, object_in(text)) END)
            WHERE key = ?
        ), 0) AS length
        FROM answer WHERE {DELIVERED} AND answer.key % (1 << 40) < ?
    )
"""  # noqa: S608 (fixed names of columns)


class ItemCounts(NamedTuple):
    """The counts of a job's answers."""

    items: int
    without: int
    """The number of answered rows without items."""
    failed: int


def items_in(store: JobDatabase, field: str, before: int = SLOT) -> ItemCounts:
    """Count the items in a field of the answers to the rows with numbers below `before`. Blocks."""
    store.define("object_in", lambda text: json_text(object_in(text) or {}))
    return ItemCounts(*map(int, store.read(_COUNTS, field, before)[0]))


def object_in(text: str) -> JsonDict | None:
    """Return the object in an answer, after the reasoning if the answer includes it; None for an answer without an
    object."""
    for each in (text, split_marked(text)[1]):
        try:
            value = loaded(each)
        except ValueError:
            continue
        return dict(value) if isinstance(value, Mapping) else None
    return None
