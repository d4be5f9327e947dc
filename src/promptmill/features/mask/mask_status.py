"""Masks that a model has changed or made up: they stay in answers, are counted, and their rows are reviewed first."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from promptmill.config.model_config import ModelConfig
from promptmill.core.values import JsonDict
from promptmill.core.wording import counted
from promptmill.features.mask.mask_counts import MaskCounts, counts_in, words_of
from promptmill.features.mask.masks import strays_in
from promptmill.jobs.store.database import JobDatabase
from promptmill.jobs.store.plan import Doubt, JobSpec
from promptmill.jobs.store.records import SLOT, Record
from promptmill.jobs.store.statistics import DELIVERED

_ANSWERS = f"""
    SELECT answer.text, row.cells FROM answer JOIN row ON row.n = answer.key % {SLOT}
    WHERE {DELIVERED} AND answer.key % {SLOT} < ? AND answer.code IS NULL
    AND answer.text GLOB '*[[_%&\uff3b\uff21-\uff5a]*'
"""  # noqa: S608 (fixed texts)


class MaskStatus(MaskCounts):
    """The masks of a job."""

    rows: int
    """Rows with a mask in their answer that was not in their request."""


def count(
    store: JobDatabase, spec: JobSpec, labels: Sequence[str], before: int, configs: Sequence[ModelConfig]
) -> Mapping[str, object]:
    """Return the counts of the rows below `before`; nothing if nothing is masked. Blocks."""
    del spec, labels, configs
    rows = sum(_has_stray(str(text), bytes(cells)) for text, cells in store.read(_ANSWERS, before))
    counts = counts_in(store, before)
    return {"masks": MaskStatus(rows=rows, **counts)} if rows or any(counts.values()) else {}


def _has_stray(text: str, cells: bytes) -> bool:
    """Return whether an answer has a mask that the row itself does not have."""
    codes = {code for _, code in strays_in(text)}
    return bool(codes) and not codes.issubset(code for _, code in strays_in(cells.decode(errors="replace")))


def section(found: Mapping[str, Any], store: JobDatabase, spec: JobSpec) -> JsonDict:
    """Return the section of a report."""
    del store, spec
    return {"title": "Masks", "lines": [f"{text}." for _, text in facts(found)], "bars": [], "tables": []}


def facts(found: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the counts as text."""
    words = [*words_of(found["masks"])]
    if rows := found["masks"]["rows"]:
        words.append(
            f"{counted(rows, 'answer')} with a mask that the model changed or made up; a review begins with it"
        )
    yield "masks", "; ".join(words)


def doubt_of(record: Record) -> Doubt | None:
    """Return the reason to check a row: a mask in its answer."""
    stray = next(strays_in(record.text), None)
    return None if stray is None else Doubt(0.0, f"not put back: {stray[0][:60]}", "disagree")
