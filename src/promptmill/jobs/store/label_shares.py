"""The shares of labels in a table, corrected for wrong labels.

Some rows, drawn at random, are reviewed: they have the machine's label and the right label. For each label, two rates
are known: how many reviewed rows with this machine label really have the label, and how many of the other reviewed rows
do. The label's share is the average of both rates, weighted by numbers of rows. For the interval, both rates are drawn
from Beta distributions (Jeffreys' prior), so it is also valid for rare labels and few reviewed rows.

A table may have several strata, each reviewed separately. In a stratum, all labels may also be known to be right.

If the right labels come from another model instead of a person, the result is the shares of that model's labels.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from promptmill.core.values import json_text, read_json
from promptmill.jobs.store.database import JobDatabase
from promptmill.jobs.store.record_labels import label_in
from promptmill.jobs.store.records import SLOT, Record
from promptmill.jobs.store.rounds import ANSWERED
from promptmill.jobs.store.statistics import chance
from promptmill.jobs.store.status_record import LabelShare

_DRAWS = 2000


@dataclass(frozen=True, slots=True)
class Stratum:
    """A group of rows of the table that is reviewed separately."""

    machine: Mapping[str, int]
    """The number of rows for each label of the machine, including reviewed rows."""
    reviewed: Collection[tuple[str, str]] | None = None
    """For each reviewed row, the machine's label and the right label, or a `Counter` of these pairs; None if all
    of the machine's labels are right."""

    def groups(self, label: str) -> Iterator[tuple[int, int, int]]:
        """Yield three numbers for the rows that the machine gave `label`, and then for all other rows: how many rows
        are unreviewed, how many have `label` as their right label, and how many have another right label."""
        with_label = self.machine.get(label, 0)
        if self.reviewed is None:
            yield 0, with_label, 0
            return
        pairs = Counter(self.reviewed)
        for has_label, size in ((True, with_label), (False, sum(self.machine.values()) - with_label)):
            group = {pair: count for pair, count in pairs.items() if (pair[0] == label) is has_label}
            yes = sum(count for (_, right), count in group.items() if right == label)
            no = sum(group.values()) - yes
            yield size - yes - no, yes, no


def shares(strata: Sequence[Stratum], certainty: float = 0.95, seed: int = 0) -> dict[str, LabelShare]:
    """Return the share of each label."""
    generator = chance(seed)
    machine = sum((Counter(stratum.machine) for stratum in strata), Counter[str]())
    rows, label_shares = machine.total(), {}
    rights = {right for stratum in strata for _, right in stratum.reviewed or ()}
    for label in sorted({*machine, *rights}):
        groups = [group for stratum in strata for group in stratum.groups(label)]
        known = sum(yes for _, yes, _ in groups)
        open_ = [group for group in groups if group[0]]
        middle = known + sum(
            left * (yes / (yes + no) if yes + no else (yes + 0.5) / (yes + no + 1)) for left, yes, no in open_
        )
        drawn = sorted(
            known + sum(left * generator.betavariate(yes + 0.5, no + 0.5) for left, yes, no in open_)
            for _ in range(_DRAWS)
        )
        outside = round((1 - certainty) / 2 * _DRAWS)
        low, high = drawn[outside], drawn[-1 - outside]
        label_shares[label] = LabelShare(
            share=middle / rows,
            low=min(low, middle) / rows,
            high=max(high, middle) / rows,
            counted=machine[label] / rows,
        )
    return label_shares


def label_counts(store: JobDatabase, field: str, before: int, where: str, join: str = "") -> Counter[str]:
    """Count the labels of delivered records that meet the SQL condition `where`. `join`: SQL that joins tables."""
    value = "answer.text -> ?" if field else "coalesce(answer.text, ?)"
    rows = f"answer {join} WHERE answer.key < ? AND {ANSWERED} AND {where}"
    counts = Counter[str]()
    query = f"SELECT {value}, count(*) FROM {rows} GROUP BY 1"
    for text, count in store.read(query, f'$."{field}"', min(before, SLOT)):
        counts[_plain(text) if field else text.strip()] += count
    return counts


def value_of(record: Record, field: str) -> str:
    """Return the field `field` of an answer as text; the whole answer if `field` is `""`."""
    return value_in(record.text, field)


def value_in(text: str, field: str) -> str:
    """Return the field `field` of the answer `text`, as text; the whole answer if `field` is `""`."""
    if not field:
        return label_in(text)
    try:
        value = read_json(text)
    except json.JSONDecodeError:
        return ""
    return _plain(json_text(value.get(field)) if isinstance(value, dict) else None)


def _plain(text: str | None) -> str:
    """Return a JSON value as text, which has no quotes if the value is a string."""
    value = None if text is None else read_json(text)
    return value if isinstance(value, str) else (text or "null")
