"""When providers switch models off: by an endpoint's list of models, or else by the table `model_ends.csv`.

A test reads the table, so that no page and no example names a model that ends.
"""

from __future__ import annotations

import csv
import datetime as dt
import functools
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from promptmill.core.errors import without_controls
from promptmill.core.values import JsonObject
from promptmill.core.wording import counted

TABLE = Path(__file__).with_name("model_ends.csv")
DATED = re.compile(r"-\d{4}-\d\d-\d\d$|-\d{8}$")
"""Matches the date at the end of a model's name."""
_SOON = dt.timedelta(days=60)  # people resume a job, and repeat its command, for weeks
# The fields in lists of OpenAI (openai 3.57), Anthropic (anthropic 2.14), OpenRouter, Mistral and Azure (`{"inference":
# SECONDS}`), and LiteLLM. A null means that no date is announced.
_DATES = ("shutdown_date", "retires_at", "expiration_date", "deprecation", "deprecation_date")
_STATES = frozenset({"deprecated", "retired"})  # values of `lifecycle`, which Anthropic sends


class ModelEnd(NamedTuple):
    """The announced end of a model."""

    date: dt.date | None
    """The first day without the model; None if the provider announced none."""
    successor: str = ""
    state: str = ""
    """`deprecated` (the model may answer even after `date`) or `retired`, if the endpoint reports it."""

    def words(self, today: dt.date | None = None) -> str:
        """Return the end as the end of a sentence about the model.

        >>> ModelEnd(dt.date(2026, 12, 11), "gpt-6.1-terra").words(dt.date(2026, 12, 1))
        'is switched off on 2026-12-11, in 10 days; its successor is gpt-6.1-terra'
        """
        left = 0 if self.date is None else (self.date - (today or dt.datetime.now(dt.UTC).date())).days
        text = f"is switched off on {self.date}, in {counted(left, 'day')}"
        if left <= 0 or self.state == "retired":
            text = "is deprecated, and may be switched off on any day"
            if self.state != "deprecated":
                text = f"was switched off on {self.date}" if self.date and left <= 0 else "was switched off"
        return f"{text}{f'; its successor is {self.successor}' if self.successor else ''}"

    def is_near(self, today: dt.date | None = None) -> bool:
        """Return whether a job that starts now may outlast the model."""
        return self.date is None or self.date - (today or dt.datetime.now(dt.UTC).date()) <= _SOON


def listed_end(provider: str, model: str) -> ModelEnd | None:
    """Return the end of a provider's model in the table, or None. A fine-tuned model ends with its base model."""
    name = model.split(":")[1] if model.startswith("ft:") else model
    return _table().get((provider, name)) or _table().get((provider, DATED.sub("", name)))


def stated_end(entry: JsonObject, listed: ModelEnd | None) -> ModelEnd | None:
    """Return the end of a model by its entry in an endpoint's list of models; `listed` if the entry states nothing."""
    state = str(entry.get("lifecycle", ""))
    if not state and not any(name in entry for name in _DATES):
        return listed
    date = next(filter(None, (_date(entry.get(name)) for name in _DATES)), None)
    if date is None and state not in _STATES:
        return None
    successor = entry.get("deprecation_replacement_model") or (listed.successor if listed else "")  # a field of Mistral
    return ModelEnd(date, without_controls(str(successor))[:80], state if state in _STATES else "")


def _date(value: Any) -> dt.date | None:
    """Return a date from its text, from a time in ISO 8601, or from seconds; None if it is none of these."""
    value = value.get("inference") if isinstance(value, Mapping) else value
    try:
        if isinstance(value, str):
            return dt.date.fromisoformat(value[:10])
        return dt.datetime.fromtimestamp(value, dt.UTC).date() if value and value is not True else None
    except (TypeError, ValueError, OverflowError, OSError):
        return None


@functools.cache
def _table() -> Mapping[tuple[str, str], ModelEnd]:
    with TABLE.open(encoding="utf-8", newline="") as file:
        rows = csv.DictReader(file)
        return {
            (row["provider"], row["model"]): ModelEnd(dt.date.fromisoformat(row["end"]), row["successor"])
            for row in rows
        }
