"""The figures about the items in a job's answers, and the text of these figures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from typing_extensions import TypedDict

from promptmill.config.model_config import ModelConfig
from promptmill.core.wording import counted
from promptmill.features.items.item_counts import items_in
from promptmill.features.items.items import Items
from promptmill.jobs.store.database import JobDatabase
from promptmill.jobs.store.plan import JobSpec


class ItemStatus(TypedDict):
    """The items of a job's answers."""

    field: str
    items: int
    without: int
    """The number of answered rows without items. Each of them is a row of the output with empty cells."""


def count(
    store: JobDatabase, spec: JobSpec, labels: Sequence[str], before: int, configs: Sequence[ModelConfig]
) -> Mapping[str, object]:
    """Return the figures of the rows with numbers below `before`; `{}` for a job of another shape. Blocks."""
    del labels, configs
    if not isinstance(shape := spec.output_shape, Items):
        return {}
    counts = items_in(store, shape.rows_from, before)
    return {"items": ItemStatus(field=shape.rows_from, items=counts.items, without=counts.without)}


def facts(found: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the number of items, as text."""
    its: ItemStatus = found["items"]
    without = f", {counted(its['without'], 'row')} without any" if its["without"] else ""
    yield "items", f"{its['items']:,} in {its['field']}{without}"
