"""Masks that a model has changed or made up: they stay in answers, are counted, and their rows are reviewed first."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from typing_extensions import TypedDict

from promptmill.config.model_config import ModelConfig
from promptmill.core.wording import counted
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


class MaskStatus(TypedDict):
    """The masks in a job's answers."""

    rows: int
    """Rows with a mask in their answer that was not in their request."""


def count(
    store: JobDatabase, spec: JobSpec, labels: Sequence[str], before: int, configs: Sequence[ModelConfig]
) -> Mapping[str, object]:
    """Return the count of the rows below `before`; nothing if all masks are put back. Blocks."""
    del spec, labels, configs
    rows = sum(_has_stray(str(text), bytes(cells)) for text, cells in store.read(_ANSWERS, before))
    return {"masks": MaskStatus(rows=rows)} if rows else {}


def _has_stray(text: str, cells: bytes) -> bool:
    """Return whether an answer has a mask that the row itself does not have."""
    codes = {code for _, code in strays_in(text)}
    return bool(codes) and not codes.issubset(code for _, code in strays_in(cells.decode(errors="replace")))


def facts(found: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the count as text."""
    rows = counted(found["masks"]["rows"], "answer")
    yield "masks", f"{rows} with a mask that the model changed or made up; a review shows these rows first"


def doubt_of(record: Record) -> Doubt | None:
    """Return the reason to check a row: a mask in its answer."""
    stray = next(strays_in(record.text), None)
    return None if stray is None else Doubt(0.0, f"not put back: {stray[0][:60]}", "disagree")
