"""Fields for which the pieces of a document have different values: they are counted, and reviewed first."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from typing_extensions import TypedDict

from promptmill.core.wording import counted, cut
from promptmill.jobs.store.database import JobDatabase
from promptmill.jobs.store.plan import Doubt
from promptmill.jobs.store.records import Record
from promptmill.jobs.store.statistics import DELIVERED

DIFFERENT = "different"
"""The field of a record's details with the values of pieces: `{"total": [{"from": "page 1", "value": 5}, …]}`."""
_SHOWN, _LONGEST = 3, 300
_IS_DIFFERENT = f"CASE WHEN instr(more, '\"{DIFFERENT}\":') THEN json_extract(more, '$.details.{DIFFERENT}') END"
_COUNTS = f"""
    SELECT count(*), total((SELECT count(*) FROM json_each({_IS_DIFFERENT}))) FROM answer
    WHERE {DELIVERED} AND answer.key % (1 << 40) < ? AND {_IS_DIFFERENT} IS NOT NULL
"""  # noqa: S608 (fixed names of columns)


class DocumentStatus(TypedDict):
    """The differences between pieces."""

    rows: int
    """The number of rows with a field for which pieces have different values."""
    fields: int
    """The number of such fields in all rows together."""


def status_of(store: JobDatabase, before: int) -> Mapping[str, object]:
    """Return the counts for the rows with numbers below `before`; `{}` if no pieces differ. Blocks."""
    ((rows, fields),) = store.read(_COUNTS, before)
    return {"documents": DocumentStatus(rows=rows, fields=int(fields))} if rows else {}


def facts(found: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the counts as text."""
    its: DocumentStatus = found["documents"]
    fields, rows = counted(its["fields"], "field"), counted(its["rows"], "row")
    yield "pieces", f"{fields} in {rows} had different values; a review shows these rows first"


def doubt_of(record: Record) -> Doubt | None:
    """Return the reason to check a row whose pieces have different values, with the values and their places."""
    if DIFFERENT not in (record.more or ""):
        return None
    different = (record.extras.get("details") or {}).get(DIFFERENT)
    if not isinstance(different, Mapping) or not different:
        return None
    said, fields = [], dict[str, list[tuple[Any, str]]]()
    for name, values in different.items():
        of = ", ".join(f"{_text(one['value'])} ({one['from']})" for one in values[:_SHOWN])
        said.append(f"{name}: {of}{' …' if len(values) > _SHOWN else ''}")
        fields[name] = [(one["value"], one["from"]) for one in values]
    return Doubt(0.0, cut("pieces differ; " + "; ".join(said), _LONGEST), "disagree", fields=fields)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
