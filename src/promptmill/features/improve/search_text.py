"""The result of a search for a better prompt, as text."""

from __future__ import annotations

from collections.abc import Iterator

from promptmill.core.money import dollars
from promptmill.core.values import JsonObject
from promptmill.core.wording import counted
from promptmill.features.compare.words import Table, percent, points
from promptmill.features.improve.search import CANNOT_TELL, GAIN, LEVEL, YOURS
from promptmill.jobs.store.status_words import took


def lines(found: JsonObject, width: int) -> Iterator[str]:
    """Yield lines about the candidates, the test and its outcome. The table is `width` characters wide."""
    rows = found["rows"]
    left_out = [f"{rows[name]:,} {what}" for name, what in _LEFT_OUT.items() if rows[name]]
    note = f"; left out: {', '.join(left_out)}" if left_out else ""
    total = rows["seen"] + rows["held_out"]
    halves = f"{rows['seen']:,} seen by the search, {rows['held_out']:,} held out"
    yield f"{counted(total, 'row')} with right labels: {halves}{note}"
    candidates = [[one["name"], one["from"], percent(one["right"] / rows["seen"])] for one in found["candidates"]]
    yield from Table(["prompt", "made from", "right on seen"], candidates).lines(width)
    yield from found["notes"]
    yield ""
    yield from _outcome(found)
    effort = f"{counted(found['requests'], 'request')} in {took(found['seconds'])}"
    yield effort + (f", {dollars(found['cost'])}" if "cost" in found else "")


_LEFT_OUT = {"repeated": "repeated", "without_label": "without a label"}


def _outcome(found: JsonObject) -> Iterator[str]:
    rows = found["rows"]
    if (test := found.get("test")) is None:
        if found["candidates"][0]["right"] == rows["seen"]:
            yield f"{CANNOT_TELL}: your prompt is right on all seen rows, so these show nothing to improve"
        elif len(found["candidates"]) == 1:
            yield f"{CANNOT_TELL}: the strong model wrote no prompt that can take the place of yours"
        else:
            yield f"{CANNOT_TELL}: no candidate is right on more of the seen rows than your prompt"
        yield "the held-out rows were not used"
        return
    before, after = (percent(right / test["rows"]) for right in test["right"])
    yield f"on the {counted(test['rows'], 'held-out row')}: {YOURS} {before} right, {found['winner']} {after}"
    low, high = map(points, test["interval"])
    said = f"{found['outcome']}: {points(test['gain'])} points, 95 % interval {low} to {high}"
    if found["needed_gold_rows"] is not None:
        said += f"; to tell such a gain takes about {found['needed_gold_rows']:,} rows with right labels"
    yield said
    p = "p < 0.0001" if test["p"] < 0.0001 else f"p {test['p']:.2g}"
    yield f"  {p}, {test['p_method']}, at {100 * test['level']:.3g} %"
    yield f"  {test['interval_method']}"
    if test["earlier_tests"]:
        yield (
            f"  {counted(test['earlier_tests'], 'earlier test')} used these held-out rows: so this one is at "
            f"{100 * test['level']:.3g} % instead of {100 * LEVEL:.0f} %; new rows with right labels decide more easily"
        )
    if found["outcome"] == CANNOT_TELL:
        yield "  this does not say that the prompts are equally good"
    elif found["outcome"] == GAIN:
        yield "  (the figures of the table chose the winner, so they are too good for it)"
