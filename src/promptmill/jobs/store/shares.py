"""The shares of labels in a table, corrected for the errors of the labels.

Some rows, drawn at random, are reviewed: they have a right label besides the machine's. For each label, the reviewed
rows that the machine gives it tell which part of such rows really has it; the other reviewed rows tell it of the other
rows. Both parts, weighted by the numbers of rows, make the share. The interval draws both parts from their Beta
distributions (with Jeffreys' prior), so it holds for rare labels and few reviewed rows too.

A table may have several strata, whose rows were reviewed separately; a stratum may also have right labels alone.

If the right labels are answers of another model, these are the shares of that model's labels.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from promptmill.core.values import json_text, read_json
from promptmill.jobs.labels import label_in
from promptmill.jobs.store.database import JobDatabase
from promptmill.jobs.store.records import SLOT, Record
from promptmill.jobs.store.rounds import ANSWERED
from promptmill.jobs.store.statistics import chance
from promptmill.jobs.store.status_record import LabelShare

_DRAWS = 2000


@dataclass(frozen=True, slots=True)
class Stratum:
    """Rows of a table."""

    machine: Mapping[str, int]
    """The number of rows by the label that the machine gave, reviewed rows included."""
    reviewed: Sequence[tuple[str, str]] | None = None
    """For each reviewed row the machine's label, and the right one; None: all labels of the machine are right."""

    def groups(self, label: str) -> Iterator[tuple[int, int, int]]:
        """Yield, of the rows that the machine gives a label and of the others: the unreviewed rows, and the
        reviewed rows that have the label and that do not."""
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
    """Count the delivered labels that meet a condition on `answer` and the tables of `join`."""
    value = "answer.text -> ?" if field else "coalesce(answer.text, ?)"
    rows = f"answer {join} WHERE answer.key < ? AND {ANSWERED} AND {where}"
    counts = Counter[str]()
    query = f"SELECT {value}, count(*) FROM {rows} GROUP BY 1"
    for text, count in store.read(query, f'$."{field}"', min(before, SLOT)):
        counts[_plain(text) if field else text.strip()] += count
    return counts


def value_of(record: Record, field: str) -> str:
    """Return a field of an answer as a text, or the whole answer for `""`."""
    return value_in(record.text, field)


def value_in(text: str, field: str) -> str:
    """Return a field of an answer's text as a text, or the whole answer for `""`."""
    if not field:
        return label_in(text)
    try:
        value = read_json(text)
    except json.JSONDecodeError:
        return ""
    return _plain(json_text(value.get(field)) if isinstance(value, dict) else None)


def _plain(text: str | None) -> str:
    """Return a JSON value as a text: a string without its quotes."""
    value = None if text is None else read_json(text)
    return value if isinstance(value, str) else (text or "null")
