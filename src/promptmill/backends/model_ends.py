"""The dates on which providers switch models off, from an endpoint's list of models or from the table `model_ends.csv`.

The table is the only place in promptmill with such dates. A test reads it, so that no page and no example names a model
that ends.
"""

from __future__ import annotations

import csv
import datetime as dt
import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from promptmill.core.errors import without_controls
from promptmill.core.values import JsonObject
from promptmill.core.wording import counted

TABLE = Path(__file__).with_name("model_ends.csv")
DATED = re.compile(r"-\d{4}-\d\d-\d\d$|-\d{8}$")
"""Matches the date at the end of a model's name."""
_SOON = dt.timedelta(days=60)
"""The time before its end in which a job's start reports it: people resume a job, and repeat its command, for weeks."""
# The fields of a model in a list: of OpenAI (openai 3.57), Anthropic (anthropic 2.14), OpenRouter, Mistral and Azure
# (`{"inference": SECONDS}`), and LiteLLM. A null means that no date is announced.
_DATES = ("shutdown_date", "retires_at", "expiration_date", "deprecation", "deprecation_date")
_SUCCESSOR = "deprecation_replacement_model"  # Mistral
_LONGEST = 80


@dataclass(frozen=True, slots=True)
class ModelEnd:
    """The announced end of a model. `date`: the first day without the model; None if the provider announced none."""

    date: dt.date | None
    successor: str = ""
    is_over: bool = False
    """Whether the provider reports that the model is already switched off."""

    def words(self, model: str, today: dt.date | None = None) -> str:
        """Return a sentence about the end of `model`.

        >>> ModelEnd(dt.date(2026, 12, 11), "gpt-6.1-terra").words("m", dt.date(2026, 12, 1))
        'm is switched off on 2026-12-11, in 10 days; its successor is gpt-6.1-terra.'
        """
        left = None if self.date is None else (self.date - (today or _today())).days
        when = f" on {self.date}" if self.date else ""
        if self.is_over or (left is not None and left <= 0):
            text = f"was switched off{when if left is None or left <= 0 else ''}"
        elif left is None:
            text = "is deprecated: its provider will switch it off, and has announced no date"
        else:
            text = f"is switched off{when}, in {counted(left, 'day')}"
        return f"{model} {text}{f'; its successor is {self.successor}' if self.successor else ''}."

    def is_near(self, today: dt.date | None = None) -> bool:
        """Return whether a job that starts now may outlast the model."""
        return self.is_over or (self.date is not None and self.date - (today or _today()) <= _SOON)


def _today() -> dt.date:
    return dt.datetime.now(dt.UTC).date()


def listed_end(provider: str, model: str) -> ModelEnd | None:
    """Return the end of a provider's model in the table, or None. A fine-tuned model ends with its base model."""
    name = model.split(":")[1] if model.startswith("ft:") else model
    return next((row for one in (name, DATED.sub("", name)) if (row := _table().get((provider, one)))), None)


def stated_end(entry: JsonObject, listed: ModelEnd | None) -> ModelEnd | None:
    """Return the end of a model by its entry in an endpoint's list of models; `listed` if the entry states nothing."""
    lifecycle, fields = entry.get("lifecycle"), [name for name in _DATES if name in entry]
    if not fields and not isinstance(lifecycle, str):
        return listed
    date = next(filter(None, (_date(entry[name]) for name in fields)), None)
    if date is None and lifecycle not in {"deprecated", "retired"}:
        return None
    successor = entry.get(_SUCCESSOR) or (listed.successor if listed is not None else "")
    named = without_controls(successor)[:_LONGEST] if isinstance(successor, str) else ""
    return ModelEnd(date, named, is_over=lifecycle == "retired")


def _date(value: Any) -> dt.date | None:
    """Return a date from its text, from a time in ISO 8601, or from seconds; None if it is none of these."""
    if isinstance(value, Mapping):
        value = value.get("inference")
    try:
        if isinstance(value, str):
            return dt.date.fromisoformat(value[:10])
        is_time = isinstance(value, int | float) and value > 1
        return dt.datetime.fromtimestamp(value, dt.UTC).date() if is_time else None
    except (ValueError, OverflowError, OSError):
        return None


@functools.cache
def _table() -> Mapping[tuple[str, str], ModelEnd]:
    with TABLE.open(encoding="utf-8", newline="") as file:
        return {
            (row["provider"], row["model"]): ModelEnd(dt.date.fromisoformat(row["end"]), row["successor"])
            for row in csv.DictReader(file)
        }
