"""The options in a job's order for the provider's Batch API."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import datetime, time, timedelta
from typing import Any, ClassVar

from pydantic import Field

from promptmill.backends import registry
from promptmill.config.model_config import ModelConfig
from promptmill.core.errors import Named, input_error
from promptmill.jobs.store.description import JobPrompts
from promptmill.jobs.store.order_part import OrderPart

_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(s|m|h|d)?")
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_TIME_OF_DAY = re.compile(r"\d{1,2}:\d{2}(?::\d{2})?")
_DAY_S = 86_400


class BatchOrder(OrderPart):
    """The options for the provider's Batch API."""

    way: ClassVar[str] = "batch"
    by: float | None = Field(None, ge=0, le=10**11)
    """The Unix time at which open rows are sent live; None: they are sent after the end of the batch."""
    poll: float | None = Field(None, ge=0.1, le=86_400)
    """Seconds between two polls of the batch; None: an interval that grows from 30 s to 15 minutes."""
    keep_files: bool = False
    """Whether the files stay at the provider."""
    is_earlier: bool = False
    """Whether `by` was set by an earlier run of the same command, whose job is not finished."""

    @classmethod
    def of(cls, options: Mapping[str, Any], models: Sequence[str] = (), now: datetime | None = None) -> BatchOrder:
        """Parse and return the options `by`, `poll` and `keep_files`. `now`: a local time.

        Raises `PromptmillError` (`invalid_input`).
        """
        del models
        now = now or datetime.now().astimezone()
        given = {name: options[name] for name in ("by", "poll", "keep_files") if options.get(name)}
        if "by" in given:
            given["by"] = _deadline(str(given["by"]), now)
        if "poll" in given and not 0.1 <= (poll := _seconds("poll", str(given["poll"]))) <= _DAY_S:
            raise input_error(Named("poll"), f" {poll:g} s is not between 0.1 s and a day.")
        return cls(**given | ({"poll": poll} if "poll" in given else {}))

    def check(self, config: ModelConfig, question: JobPrompts) -> None:
        """Raise `PromptmillError`: `unsupported` for an engine, `invalid_input` for several answers to each prompt."""
        del question
        registry.check_batches(config)
        if config.settings.sampling_params.n is not None:
            raise input_error(
                Named("batch"),
                " needs one answer to each prompt: leave out `n`, or send the rows live, without ",
                Named("batch"),
                ". For the label that most answers have, use ",
                Named("votes"),
                " in place of `n`.",
            )

    @property
    def notes(self) -> Sequence[str]:
        """A note with the time at which open rows are sent live, if an earlier run set `by`."""
        if not self.is_earlier or self.by is None:
            return ()
        at = datetime.fromtimestamp(self.by).astimezone().isoformat(" ", "minutes")
        return (f"Open rows are sent live at {at}, the time of the job's first run.",)

    def repeated(self, begun: OrderPart) -> OrderPart:
        """Return the options with the `by` of the unfinished job, so that `06:00` still means the same day."""
        if not isinstance(begun, BatchOrder) or begun.by is None or self.by in {None, begun.by}:
            return self
        return self.model_copy(update={"by": begun.by, "is_earlier": True})


def _seconds(name: str, text: str) -> float:
    """Return a duration such as `90`, `90s`, `5m`, `6h` or `1d` in seconds. Raises `PromptmillError`."""
    found = _DURATION.fullmatch(text.strip())
    if found is None:
        raise input_error(Named(name), f" {text[:20]!r} is not a duration such as 30s, 5m or 6h.")
    return float(found[1]) * _UNITS[found[2] or "s"]


def _deadline(text: str, now: datetime) -> float:
    """Return the Unix time for a duration (`6h`), the next occurrence of a time of day (`06:00`), or a date and time.

    Raises `PromptmillError` (`invalid_input`), also for a past time.

    >>> noon = datetime.fromisoformat("2026-03-01T12:00:00+00:00")
    >>> [(_deadline(text, noon) - noon.timestamp()) / 3600 for text in ("90m", "06:00", "13:00", "2026-03-02")]
    [1.5, 18.0, 1.0, 12.0]
    """
    text = text.strip()
    if _DURATION.fullmatch(text) and not text.isdecimal():
        return now.timestamp() + _seconds("by", text)
    try:
        if _TIME_OF_DAY.fullmatch(text):
            at = time.fromisoformat(text.zfill(5))
            then = now.replace(hour=at.hour, minute=at.minute, second=at.second, microsecond=0)
            return (then if then > now else then + timedelta(days=1)).timestamp()
        then = datetime.fromisoformat(text)
    except ValueError:
        known = " is no time such as 06:00, 2026-03-01T06:00 or 6h (from now)."
        raise input_error(Named("by"), f" {text[:30]!r}", known) from None
    then = then if then.tzinfo is not None else then.replace(tzinfo=now.tzinfo)
    if then <= now:
        raise input_error(Named("by"), f" {text[:30]} has passed.")
    return then.timestamp()
