"""The steps of a recipe as text: the results of a run, or its plan."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from promptmill.core.money import dollars
from promptmill.core.values import JsonObject
from promptmill.core.wording import counted
from promptmill.jobs.store.status_words import took

_KEPT = "rows that are answered already are not sent again"


def summary(found: JsonObject) -> Iterator[str]:
    """Yield a line for each step that began, and the sums."""
    steps = found["steps"]
    yield from _table(["step", "rows", "failed", "requests", "cost"], [_figures(step) for step in steps])
    if len(steps) < found["count"]:
        yield f"{counted(found['count'] - len(steps), 'step')} of {found['count']} did not begin"
    cost = f", {dollars(found['cost'])}" if found["cost"] else ""
    yield f"{counted(found['requests'], 'request')} in {took(found['seconds'])}{cost}"
    if found["max_cost"] is not None:
        yield f"{dollars(found['spent'])} of {dollars(found['max_cost'])} spent in all runs of the recipe"


def plan(found: JsonObject) -> Iterator[str]:
    """Yield a line for each step with its estimate, the reasons for missing estimates, and the sums."""
    steps = found["steps"]
    yield from _table(["step", "rows", "requests", "about"], [_estimate(step) for step in steps])
    for step in steps:
        if step.get("reason"):
            yield f"  step {step['step']}: {step['reason']}"
    if found["estimated_cost"] is not None:
        highest = "" if found["most_cost"] is None else f"; at most {dollars(found['most_cost'])}"
        all_ = "" if all("requests" in step for step in steps) else " for the steps with an estimate"
        yield f"{counted(found['requests'], 'request')}, about {dollars(found['estimated_cost'])}{all_}{highest}"
    if found["max_cost"] is not None:
        yield f"{dollars(found['spent'])} of {dollars(found['max_cost'])} spent so far"
    yield _KEPT


def _figures(step: JsonObject) -> list[str]:
    requests = "unchanged" if step["unchanged"] else f"{step['requests']:,}" if step["jobs"] else ""
    cost = dollars(step["cost"]) if step["cost"] else ""
    return [_name(step), _number(step.get("rows")), _number(step.get("failed") or None), requests, cost]


def _estimate(step: JsonObject) -> list[str]:
    cost = step.get("estimated_cost")
    return [
        _name(step),
        _number(step.get("rows")),
        _number(step.get("requests")),
        "" if cost is None else dollars(cost),
    ]


def _name(step: JsonObject) -> str:
    return f"{step['step']} {step['title']}"


def _number(value: int | None) -> str:
    return "" if value is None else f"{value:,}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    kept = [at for at in range(len(head)) if at == 0 or any(row[at] for row in rows)]
    lines = [[row[at] for at in kept] for row in (head, *rows)]
    widths = [max(map(len, cells)) for cells in zip(*lines, strict=True)]
    for first, *others in lines:
        cells = (cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True))
        yield "  ".join([first.ljust(widths[0]), *cells]).rstrip()
