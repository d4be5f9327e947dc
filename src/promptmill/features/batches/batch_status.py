"""The fields in a job's status that describe its batches, and their words."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Any

from typing_extensions import TypedDict

from promptmill.core.money import dollars
from promptmill.core.wording import counted


class BatchStatus(TypedDict, total=False):
    """The figures of a job's batches at the provider."""

    batches: int
    """The number of batches that are not done."""
    requests: int
    done: int
    """Finished requests, as reported by the provider."""
    said: str
    """The provider's words for the states of the batches."""
    ids: list[str]
    """The provider's ids of the batches."""
    expires: float
    """The Unix time at which the first batch expires."""
    by_batch: int
    """After the job's end: the number of rows answered by batch."""
    live: int
    """The number of other answered rows."""
    cost: float
    """The cost of the rows answered by batch."""
    live_cost: float
    """The cost of the other rows."""
    live_price: float
    """The cost that the rows answered by batch would have had as live requests."""


def batch_words(batch: BatchStatus, now: float) -> str:
    """Return the state of batches as text; `""` if there are none.

    >>> batch_words({"batches": 1, "requests": 5000, "done": 1200, "said": "in_progress", "expires": 7200.0}, 0.0)
    'one batch of 5,000 requests (in_progress, 1,200 done, expires in 2 h)'
    """
    if not (count := batch.get("batches", 0)):
        return ""
    which = "one batch" if count == 1 else f"{count:,} batches"
    said = [batch.get("said", "")]
    if batch.get("done"):
        said.append(f"{batch['done']:,} done")
    if left := batch.get("expires", 0.0) - now if batch.get("expires") else 0.0:
        said.append(f"expires in {left / 3600:.0f} h" if left >= 5400 else f"expires in {max(0.0, left) / 60:.0f} min")
    return f"{which} of {counted(batch['requests'], 'request')} ({', '.join(filter(None, said))})"


def batch_line(batch: BatchStatus) -> str:
    """Return the counts and costs of rows answered by batch and live; before the job's end, the state of the batches.

    >>> batch_line({"by_batch": 9940, "live": 60, "cost": 3.1, "live_price": 6.2, "live_cost": 0.04})
    '9,940 of 10,000 by batch at $3.10 (live: $6.20), 60 live at $0.040'
    """
    if "by_batch" not in batch:
        words = batch_words(batch, time.time())
        return f"{words} at the provider: {', '.join(batch.get('ids', ()))}" if words else ""
    at, live = "", f", {batch['live']:,} live" if batch["live"] else ""
    if "cost" in batch:
        at = f" at {dollars(batch['cost'])} (live: {dollars(batch['live_price'])})"
        live += f" at {dollars(batch['live_cost'])}" if live else ""
    return f"{batch['by_batch']:,} of {batch['by_batch'] + batch['live']:,} by batch{at}{live}"


def facts(found: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the line about batches, if the status has any figures."""
    if line := batch_line(found["batch"]):
        yield "batch", line
