"""The section of a report about sure labels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from promptmill.core.values import JsonDict
from promptmill.features.labels.label_status import SureStatus, cheap_model, label_lines, strong_model
from promptmill.features.labels.panel import cheap_of, place_of
from promptmill.features.labels.rule import SureRule
from promptmill.jobs.store.database import JobDatabase
from promptmill.jobs.store.plan import JobSpec
from promptmill.jobs.store.record_labels import label_of
from promptmill.jobs.store.records import SLOT

_POINTS = 200


def section(found: Mapping[str, Any], store: JobDatabase, spec: JobSpec) -> JsonDict | None:
    """Return the section of a report: the promise, the sample by class, and the agreement curve."""
    sure: SureStatus = found["sure"]
    if not sure.get("sample", {}).get("drawn"):
        return None
    rows = [[label, f"{count:,}", f"{agreed:,}"] for label, (count, agreed) in sure["sample"]["classes"].items()]
    head = [
        f"right label, {sure['gold']}" if "gold" in sure else f"label by {strong_model(sure)}",
        "in the sample",
        f"found by {cheap_model(sure)}",
    ]
    curve = _curve(store, spec.plan) if isinstance(spec.plan, SureRule) else []
    where = "at the strong model" if sure["model"] else "sent alone"
    target = (
        {"curve": curve, "agree": sure["agree"], "share": sure["expected"]["share"], "where": where} if curve else {}
    )
    tables = [{"head": head, "rows": rows}]
    return {"title": "Sure labels", "lines": label_lines(sure), "bars": [], "tables": tables, **target}


def _curve(store: JobDatabase, rule: SureRule) -> list[tuple[float, float]]:
    """Return a curve: the agreement in the newest sample, depending on the share of rows for the strong model.

    A point has such a share, and the agreement if the cut were made there; both are from 0 to 1. `[]` if no sample is
    decided, or with right labels.
    """
    part = rule.part
    if rule.gold or part is None or not part.drawn or part.cut is None:
        return []
    verdicts = []
    slots = (0, *rule.panel(part.score))
    for (n,) in store.read("SELECT n FROM chosen WHERE round = ?", part.round):
        known = {record.slot: record for record in store.records_at([n + slot * SLOT for slot in slots])}
        panel = [known.get(slot) for slot in slots[1:]]
        strong, cheap = known.get(0), cheap_of(panel, part.score)
        if strong is not None and cheap is not None:
            verdicts.append((place_of(panel, part), strong.code is None and label_of(strong) == label_of(cheap)))
    verdicts.sort(reverse=True)
    points, wrong = [(1.0, 1.0)], 0
    for count, (_, agrees) in enumerate(verdicts, 1):
        wrong += not agrees
        points.append((1 - count / len(verdicts), 1 - wrong / len(verdicts)))
    return points[:: max(1, len(points) // _POINTS)]
