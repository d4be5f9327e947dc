"""The order in which columns are shown to a person."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from promptmill.jobs.columns.column_names import MODEL, PROBABILITY, SCORE, VARIANT

_LAST = ("id", "custom_id", "index", MODEL, VARIANT, PROBABILITY, SCORE, "answered_by")
"""The columns that a reader needs last. A name that ends with the word `id` counts as `id`."""


def by_worth(names: Sequence[str], answers: Collection[str], lengths: Mapping[str, float]) -> list[str]:
    """Return columns in the order in which a reader needs them: the prompt's column with the longest texts, the
    answers, other columns, and at the end ids, models and scores.

    `lengths`: the mean length of the values in each column that a prompt may show.

    >>> by_worth(["id", "team", "mail", "model", "answer"], ["answer"], {"id": 900, "team": 5, "mail": 400})
    ['mail', 'answer', 'team', 'id', 'model']
    """
    last = {name: place for name in names if name not in answers and (place := _place_at_end(name))}
    text = max(lengths, key=lambda name: (name not in last, lengths[name]), default="")
    return sorted(names, key=lambda name: (name != text, name not in answers, last.get(name, 0)))


def mean_lengths(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return the mean length of the values that `rows` have in each column."""
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: sum(len(str(row.get(name, ""))) for row in rows) / len(rows) for name in names}


def _place_at_end(name: str) -> int:
    """Return the position of a column among the last columns, from 1; 0 for any other column."""
    name = "id" if re.search(r"(?:^|[_ -])id$", name, re.IGNORECASE) else name
    return _LAST.index(name) + 1 if name in _LAST else 0
