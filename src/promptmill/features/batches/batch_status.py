"""The field of batches in a job's status, and its words."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Any

from typing_extensions import TypedDict

from promptmill.core.money import dollars
from promptmill.core.wording import counted


class BatchStatus(TypedDict, total=False):
    """The batches of a job at the provider."""

    batches: int
    """The number of batches that are not done."""
    requests: int
    done: int
    """Finished requests, as far as the provider says."""
    said: str
    """The provider's own words for their states."""
    ids: list[str]
    """The provider's own ids."""
    expires: float
    """When the first of them expires: Unix time."""
    by_batch: int
    """When the job has ended: the rows answered by batch."""
    live: int
    """The other answered rows."""
    cost: float
    """The cost of the rows answered by batch."""
    live_cost: float
    """The cost of the other rows."""
    live_price: float
    """The cost that the rows answered by batch would have had live."""


def batch_words(batch: BatchStatus, now: float) -> str:
    """Return the state of batches in words; `""` without any.

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
    """Return the rows answered by batch and live, with their costs; before the job has ended, the batches.

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
    """Yield the line on batches, if there is anything to say."""
    if line := batch_line(found["batch"]):
        yield "batch", line
