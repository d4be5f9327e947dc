"""The figures of a job with a row of the output for each item, and their text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from typing_extensions import TypedDict

from promptmill.core.values import json_text
from promptmill.core.wording import counted
from promptmill.features.items.items import Items, object_in
from promptmill.jobs.store.database import JobDatabase
from promptmill.jobs.store.plan import JobSpec
from promptmill.jobs.store.statistics import DELIVERED

_COUNTS = f"""
    SELECT total(length), total(length = 0) FROM (
        SELECT coalesce((
            SELECT CASE type WHEN 'array' THEN json_array_length(value) END
            FROM json_each(CASE WHEN json_valid(text) THEN text ELSE object_in(text) END) WHERE key = ?
        ), 0) AS length
        FROM answer WHERE code IS NULL AND {DELIVERED} AND answer.key % (1 << 40) < ?
    )
"""  # noqa: S608 (fixed names of columns)


class ItemStatus(TypedDict):
    """The items of a job's answers."""

    field: str
    items: int
    without: int
    """Answered rows without items: each is a row of the output with empty cells."""


def count(store: JobDatabase, spec: JobSpec, labels: Sequence[str], before: int) -> Mapping[str, object]:
    """Return the figures of the rows below `before`; none for a job of another shape. Blocks."""
    del labels
    if not isinstance(shape := spec.output_shape, Items):
        return {}
    store.define("object_in", lambda text: json_text(object_in(text) or {}))
    ((items, without),) = store.read(_COUNTS, shape.rows_from, before)
    return {"items": ItemStatus(field=shape.rows_from, items=int(items), without=int(without))}


def facts(found: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the number of items, as text."""
    its: ItemStatus = found["items"]
    without = f", {counted(its['without'], 'row')} without any" if its["without"] else ""
    yield "items", f"{its['items']:,} in {its['field']}{without}"
