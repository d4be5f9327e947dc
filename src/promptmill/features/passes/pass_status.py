"""The items that later looks at lists found, counted over the answers of a job."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from typing_extensions import TypedDict

from promptmill.config.model_config import ModelConfig
from promptmill.core.wording import counted
from promptmill.features.passes.second_looks import PASSES
from promptmill.jobs.store.database import JobDatabase
from promptmill.jobs.store.plan import JobSpec
from promptmill.jobs.store.statistics import DELIVERED

_COUNTS = f"""
    SELECT total(its ->> 'added'), total(its ->> 'added' > 0), total(its ->> 'dropped'), total(its ->> 'failed' > 0)
    FROM (
        SELECT more -> '$.details.{PASSES}' AS its FROM answer
        WHERE {DELIVERED} AND answer.key % (1 << 40) < ? AND instr(more, '"{PASSES}":')
    )
"""  # noqa: S608 (fixed names of columns)


class PassStatus(TypedDict):
    """The items that later looks found."""

    added: int
    rows: int
    """The number of rows with such items."""
    dropped: int
    """The number of new items that were left out, because the row's text lacks their quotes."""
    failed: int
    """The number of rows whose later request failed. These rows keep the items that were found earlier."""


def count(
    store: JobDatabase, spec: JobSpec, labels: Sequence[str], before: int, configs: Sequence[ModelConfig]
) -> Mapping[str, object]:
    """Return the counts for the rows with numbers below `before`; `{}` if there are none, and no target of the job has
    `passes`. Blocks."""
    del labels, configs
    ((added, rows, dropped, failed),) = store.read(_COUNTS, before)
    if not (added or dropped or failed or any("passes" in (target.sampling or {}) for target in spec.targets)):
        return {}
    return {"passes": PassStatus(added=int(added), rows=int(rows), dropped=int(dropped), failed=int(failed))}


def facts(found: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the counts as text."""
    its: PassStatus = found["passes"]
    text = f"{its['added']:,} more found by a later look, in {counted(its['rows'], 'row')}"
    text += f"; {its['dropped']:,} left out, as the text lacks their quotes" if its["dropped"] else ""
    yield "passes", text + (f"; {counted(its['failed'], 'row')} without a later look" if its["failed"] else "")
