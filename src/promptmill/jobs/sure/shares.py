"""The shares of labels in a table, corrected for the errors of the labels.

Some rows, drawn at random from the whole table, are reviewed: they have a right label besides the machine's. For each
label, the reviewed rows that the machine gives it tell which part of such rows really has it; the other reviewed rows
tell it of the other rows. Both parts, weighted by the numbers of rows, make the share. The interval draws both parts
from their Beta distributions (with Jeffreys' prior), so it holds for rare labels and few reviewed rows too.

If the right labels are answers of a strong model, the shares are those of the strong model.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from promptmill.jobs.store.statistics import chance

_DRAWS = 2000


@dataclass(frozen=True, slots=True)
class Share:
    """The share of a label among all rows, and its interval; all from 0 to 1."""

    share: float
    low: float
    high: float
    counted: float
    """The share of the machine's labels, uncorrected."""


def shares(
    machine: Mapping[str, int], reviewed: Iterable[tuple[str, str]], certainty: float = 0.95, seed: int = 0
) -> dict[str, Share]:
    """Return the share of each label.

    `machine`: the number of rows by the label that the machine gave, reviewed rows included. `reviewed`: for each
    reviewed row the machine's label, and the right one.
    """
    generator, rows, pairs = chance(seed), sum(machine.values()), Counter(reviewed)
    found = {}
    for label in sorted({*machine, *(right for _, right in pairs)}):
        known = sum(count for (_, right), count in pairs.items() if right == label)
        groups = []
        for has_label in (True, False):
            in_group = {pair: count for pair, count in pairs.items() if (pair[0] == label) is has_label}
            size = machine.get(label, 0) if has_label else rows - machine.get(label, 0)
            yes = sum(count for (_, right), count in in_group.items() if right == label)
            no = sum(in_group.values()) - yes
            groups.append((size - yes - no, yes, no))
        middle = known + sum(
            left * (yes / (yes + no) if yes + no else (yes + 0.5) / (yes + no + 1)) for left, yes, no in groups
        )
        drawn = sorted(
            known + sum(left * generator.betavariate(yes + 0.5, no + 0.5) for left, yes, no in groups)
            for _ in range(_DRAWS)
        )
        outside = round((1 - certainty) / 2 * _DRAWS)
        low, high = drawn[outside], drawn[-1 - outside]
        found[label] = Share(
            middle / rows, min(low, middle) / rows, max(high, middle) / rows, machine.get(label, 0) / rows
        )
    return found
