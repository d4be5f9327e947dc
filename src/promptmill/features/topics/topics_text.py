"""The topics of a table as text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from promptmill.core.money import dollars
from promptmill.core.values import JsonObject
from promptmill.core.wording import counted
from promptmill.features.compare.paired_proportions import EXACT_INTERVAL
from promptmill.features.compare.words import Table, percent
from promptmill.jobs.store.status_words import took


def lines(found: JsonObject, width: int, sent: int | None = None) -> Iterator[str]:
    """Yield lines about the topics and their figures. The table is `width` characters wide. `sent`: the number of
    requests of this run, if it is known."""
    rows = found["rows"]
    empty = f", {rows['empty']:,} of them empty" if rows["empty"] else ""
    chosen = f" random ones and {rows['chosen']:,} chosen to cover {rows['covered']:,}" if rows["chosen"] else ""
    found_in = f"topics from {rows['sample']:,}{chosen}, tried on {rows['held_out']:,} others"
    yield f"{counted(rows['all'], 'row')}{empty}: {found_in}"
    yield from Table(["topic", "share", "95 %"], [_cells(each) for each in by_share(found["topics"])]).lines(width)
    labelled = counted(found["topics"][0]["rows"], "row")
    if found["is_exact"]:
        yield f"the shares are exact: all {labelled} with text are labelled"
    else:
        yield f"the shares of all rows are estimated from the {labelled} that were labelled"
    yield ""
    failed = f"; {counted(rows['failed'], 'row')} failed" if rows["failed"] else ""
    no_label, stability = found["no_label"], found["stability"]
    if no_label["rows"]:
        share, interval = _share(no_label)
        yield f"on {no_label['rows']:,} held-out rows {share} fit no label ({interval}){failed}"
    if stability["rows"]:
        share, interval = _share(stability)
        yield f"asked again with the labels in another order, {share} get the same label ({interval})"
    yield f"a topic of less than {percent(found['may_miss'])} of the rows may be missing"
    yield f"  {EXACT_INTERVAL}"
    if found["is_split"]:
        yield "  topics of rows without one were added, and tried on rows that no step had seen"
    yield from found["notes"]
    effort = counted(found["requests"], "request")
    if sent not in {None, found["requests"]}:
        effort = f"{counted(sent or 0, 'request')} now; the search took {found['requests']:,}"
    cost = f", {dollars(found['cost'])}" if "cost" in found else ""
    yield f"{effort} in {took(found['seconds'])}{cost}"


def by_share(topics: Sequence[JsonObject]) -> list[JsonObject]:
    """Return topics, the most frequent first. The topic of rows that fit no other topic stays the last."""
    return [*sorted(topics[:-1], key=lambda topic: -(topic["share"] or 0)), topics[-1]]


def _cells(topic: JsonObject) -> list[str]:
    if topic["share"] is None:
        return [topic["label"], "", ""]
    low, high = map(percent, topic["interval"])
    return [topic["label"], percent(topic["share"]), "" if low == high else f"{low[:-2]} to {high}"]


def _share(found: JsonObject) -> tuple[str, str]:
    low, high = map(percent, found["interval"])
    return percent(found["share"]), f"95 %: {low[:-2]} to {high}"
