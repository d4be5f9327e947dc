"""Quotes that the texts of a job do not contain: they are counted, and their rows are reviewed first."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from typing_extensions import TypedDict

from promptmill.config.model_config import ModelConfig
from promptmill.core.sources import leaves
from promptmill.core.values import JsonDict
from promptmill.core.wording import counted, cut
from promptmill.jobs.store.database import JobDatabase
from promptmill.jobs.store.plan import Doubt, JobSpec
from promptmill.jobs.store.records import Record
from promptmill.jobs.store.statistics import DELIVERED

_MARK = '"is_missing":true'
_COUNTS = f"""
    SELECT total((length(sources) - length(replace(sources, '"quote":"', ''))) / length('"quote":"')),
        total(missing), total(missing > 0) FROM (
            SELECT sources, (length(sources) - length(replace(sources, '{_MARK}', ''))) / length('{_MARK}') AS missing
            FROM (
                SELECT more ->> '$.sources' AS sources FROM answer
                WHERE {DELIVERED} AND answer.key % (1 << 40) < ? AND instr(more, '"quote":"')
            )
        )
"""  # noqa: S608 (fixed texts); inside a JSON text, a quotation mark has a backslash
_SHOWN, _LONGEST = 3, 300


class QuoteStatus(TypedDict):
    """The quotes of a job's answers."""

    quotes: int
    missing: int
    """The number of quotes that are empty or not in the row's text."""
    rows: int
    """The number of rows with missing quotes."""


def count(
    store: JobDatabase, spec: JobSpec, labels: Sequence[str], before: int, configs: Sequence[ModelConfig]
) -> Mapping[str, object]:
    """Return the counts for the rows with numbers below `before`; `{}` if they have no quotes. Blocks."""
    del spec, labels, configs
    ((quotes, missing, rows),) = store.read(_COUNTS, before)
    return {"quotes": QuoteStatus(quotes=int(quotes), missing=int(missing), rows=int(rows))} if quotes else {}


def section(found: Mapping[str, Any], store: JobDatabase, spec: JobSpec) -> JsonDict:
    """Return the section of a report: how many of the quotes are in the texts of their rows."""
    del store, spec
    its: QuoteStatus = found["quotes"]
    line = f"{its['quotes'] - its['missing']:,} of {counted(its['quotes'], 'quote')} found in the texts of their rows"
    more = f"; {its['missing']:,} missing, in {counted(its['rows'], 'row')}" if its["missing"] else ""
    return {"title": "Quotes", "lines": [f"{line}{more}."], "bars": [], "tables": []}


def facts(found: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the counts as text."""
    its: QuoteStatus = found["quotes"]
    if not its["missing"]:
        yield "quotes", f"{its['quotes']:,}, all in the texts of their rows"
        return
    rows = counted(its["rows"], "row")
    yield "quotes", f"{its['quotes']:,}, {its['missing']:,} of them missing in {rows}; a review shows these rows first"


def doubt_of(record: Record) -> Doubt | None:
    """Return the reason to check a row, which names the fields with missing quotes; None if no quote is missing."""
    if _MARK not in (record.more or ""):
        return None
    missing = [(name, its["quote"]) for name, its in leaves(record.extras.get("sources")) if its.get("is_missing")]
    if not missing:
        return None
    shown = [f"{name or 'answer'}: {quote!r}" if quote else f"{name or 'answer'}: none" for name, quote in missing]
    more = " …" if len(missing) > _SHOWN else ""
    return Doubt(0.0, cut(f"no such quote; {'; '.join(shown[:_SHOWN])}{more}", _LONGEST), "disagree")
