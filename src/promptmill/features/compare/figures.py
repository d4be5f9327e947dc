"""The figures of a comparison: agreement, right answers, a judge's verdicts, and the differences between files.

`figures` computes all figures once. The text and the page of a comparison show them in the same `words`.
"""

from __future__ import annotations

import hashlib
import itertools
from array import array
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, Final, TypedDict

from promptmill.features.compare.answer_values import SIMILARITY, similarity
from promptmill.features.compare.compared_file import ComparedFile
from promptmill.features.compare.compared_rows import ComparedColumn, ComparedRows, heading_of
from promptmill.features.compare.kept_texts import KeptTexts
from promptmill.features.compare.paired_proportions import INTERVAL, TEST, kappa, mcnemar, paired_interval, wilson
from promptmill.jobs.columns.column_order import by_worth, mean_lengths
from promptmill.jobs.store.label_shares import Stratum, shares
from promptmill.jobs.store.status_record import LabelShare

_FEW = 20  # up to this many distinct answers are labels even for few rows, unless nearly all answers differ
_MOST_TALLIED = 4096  # different pairs of answers that are counted in memory
_MOST_CHANGES = 200  # max pairs of answers that a cross-tabulation lists
SHOWN_VALUES = 12
"""The most answers that a cross-tabulation shows by name."""
_NOISE_S, _NOISE = 0.1, 0.05  # differences of fewer seconds, or a smaller share of them, are ignored as chance
TIE: Final = "tie"
CONTRADICTION: Final = "contradiction"
HALF: Final = "half"
"""The verdicts without a winner: a tie in both orders; a different winner in each order; a winner in only one order."""
Change = TypedDict("Change", {"from": str, "to": str, "rows": int})
ClassFigures = TypedDict("ClassFigures", {"class": str, "rows": int, "precision": float, "recall": float, "f1": float})


class Paired(TypedDict):
    """The difference of two proportions over the same rows."""

    difference: float
    interval: tuple[float, float]
    interval_method: str
    p: float
    p_method: str


@dataclass(frozen=True, slots=True)
class Judgement:
    """The verdicts of a judge. The judge sees each pair of answers in both orders."""

    about: Mapping[str, object]
    """`criterion`, and facts about the judge's job, such as `model` and `cost`."""
    said: Mapping[tuple[int, int], tuple[str, str]]
    """By row and file: the verdicts on this file and the first file, once with the first file's answer shown first,
    once with it shown second. A verdict is `first`, `second`, `tie`, or `""` if it is missing."""

    def verdict(self, at: int, other: int, letters: tuple[str, str]) -> str:
        """Return the letter of the file whose answer wins in both orders; else another verdict, or `""`."""
        one, swapped = self.said.get((at, other), ("", ""))
        if not one or not swapped:
            return ""
        if TIE in (one, swapped):
            return TIE if one == swapped else HALF
        return CONTRADICTION if one == swapped else letters[one == "second"]


def figures(rows: ComparedRows, judgement: Judgement | None = None, most: int = 0) -> dict[str, Any]:
    """Return the figures of a comparison, and its first `most` rows with different answers."""
    files = rows.files
    found: dict[str, Any] = {
        "rows": len(rows.places),
        "matched": rows.matched,
        "files": [
            {
                "name": file.label,
                "file": str(file.path.absolute()),
                **({} if file.only is None else {file.only[0]: file.only[1]}),
                "title": file.name,
                **file.about,
                **({"made": dict(file.made)} if file.made else {}),
                "rows": size,
                "answered": sum(rows.answered(at)),
                **_lengths(rows.texts(at)),
            }
            for at, (file, size) in enumerate(zip(files, rows.sizes, strict=True))
        ],
        "pairs": [_agreement(rows, *places) for places in itertools.combinations(range(len(files)), 2)],
    }
    if rows.has_right:
        found["gold"] = _against(rows)
    if judgement is not None:
        found["judge"] = {
            **judgement.about,
            "pairs": [_judged(rows, judgement, other) for other in range(1, len(files))],
        }
    differ = rows.differing
    shown = list(side_by_side(rows, judgement, differ[:most]))
    lengths = mean_lengths([row["own"] for row in shown])
    for row in shown:
        row["own"] = {name: row["own"][name] for name in by_worth([*lengths], (), lengths) if name in row["own"]}
    return found | {"differ": len(differ), "differing": shown}


def _lengths(texts: Sequence[str]) -> dict[str, list[int]]:
    sizes = sorted(Counter(len(text) for text in texts if text).elements())
    return {"characters": [sizes[0], round(median(sizes)), sizes[-1]]} if sizes else {}


def side_by_side(rows: ComparedRows, judgement: Judgement | None, wanted: Collection[int]) -> Iterator[dict[str, Any]]:
    """Yield rows with their heading, input columns, right answer, all answers, and the verdicts on the answers.

    With several fields, answers are objects, and `differing_fields` names the fields with different values.
    """
    labels, columns = [file.label for file in rows.files], rows.columns

    def answer(values: Sequence[str]) -> Any:
        return dict(zip((column.name for column in columns), values, strict=True)) if rows.has_fields else values[0]

    for at, own in rows.read(wanted):
        found: dict[str, object] = {"row": rows.places[at] + 1, "heading": heading_of(own), "own": own}
        if rows.has_right:
            found["gold"] = answer([column.right[at] if column.right else "" for column in columns])
        found["answers"] = {
            label: answer([column.values[file][at] for column in columns]) for file, label in enumerate(labels)
        }
        found["differs"] = not all(rows.same(at, 0, other) for other in range(1, len(labels)))
        if rows.has_right:
            found["wrong"] = [label for file, label in enumerate(labels) if not rows.is_right(at, file)]
        if rows.has_fields:
            found["differing_fields"] = [column.name for column in columns if not _is_same(column, at)]
        if judgement is not None:
            pairs = enumerate(labels[1:], 1)
            found["verdicts"] = {label: judgement.verdict(at, other, (labels[0], label)) for other, label in pairs}
        yield found


def _is_same(column: ComparedColumn, at: int) -> bool:
    """Return whether all files have the same value in a row, which must be the right value if that is known."""
    first, *others = [values[at] for values in column.values]
    expected = [*others, *filter(None, [column.right[at] if column.right else ""])]
    return all(column.same(first, value) for value in expected)


def at_random(rows: Iterable[int]) -> list[int]:
    """Return rows in a pseudo-random order. The order of two rows does not depend on the other rows."""
    return sorted(rows, key=lambda at: hashlib.sha256(b"%d" % at).digest())


def commonest(changes: Sequence[Change]) -> list[str]:
    """Return the answers that a cross-tabulation names, the most frequent first."""
    counts: Counter[str] = Counter()
    for change in changes:
        counts[change["from"]] += change["rows"]
        counts[change["to"]] += change["rows"]
    return [value for value, _ in counts.most_common() if value]


def tabulated(changes: Sequence[Change], kept: Collection[str]) -> Counter[tuple[str, str]]:
    """Return the counts of a cross-tabulation. Answers that are not in `kept` become `""`."""
    cells: Counter[tuple[str, str]] = Counter()
    for change in changes:
        one, other = (it if it in kept else "" for it in (change["from"], change["to"]))
        cells[one, other] += change["rows"]
    return cells


def _changes(pairs: Counter[tuple[str, str]]) -> list[Change]:
    """Return a cross-tabulation. A long one names only the most frequent answers, and counts all others as `""`."""
    changes: list[Change] = [{"from": a, "to": b, "rows": count} for (a, b), count in pairs.most_common()]
    if len(changes) <= _MOST_CHANGES:
        return changes
    return _changes(tabulated(changes, commonest(changes)[:SHOWN_VALUES]))


def _agreement(rows: ComparedRows, one: int, other: int) -> dict[str, object]:
    """Return the agreement of two files on the rows that both answered, and the cross-tabulation of their answers."""
    answered = [ours and theirs for ours, theirs in zip(rows.answered(one), rows.answered(other), strict=True)]
    of = {"of": [rows.files[one].label, rows.files[other].label]}
    if not rows.has_fields:
        return of | _column_agreement(rows.columns[0], one, other)
    total = sum(answered)
    agree = sum(rows.same(at, one, other) for at, both in enumerate(answered) if both)
    found: dict[str, object] = of | {"rows": total, "agree": agree}
    if not total:
        return found
    fields = [
        {"field": column.name, "kind": column.kind, **_column_agreement(column, one, other, answered)}
        for column in rows.columns
    ]
    return found | {"agreement": agree / total, "interval": wilson(agree, total), "fields": fields}


def _column_agreement(
    column: ComparedColumn, one: int, other: int, answered: Sequence[bool] | None = None
) -> dict[str, object]:
    """Return two files' agreement in a column. `answered`: whether each row counts; by default, if both answered."""
    ours, theirs = column.values[one], column.values[other]
    both = [a and b for a, b in zip(ours.given(), theirs.given(), strict=True)] if answered is None else answered
    rows = sum(both)
    pairs = ((a, b) for a, b, counts in zip(ours, theirs, both, strict=True) if counts)
    if column.is_exact and _are_labels(ours, rows) and _are_labels(theirs, rows):
        counts = Counter(pairs)
        agree = sum(count for pair, count in counts.items() if column.same(*pair))
        found: dict[str, object] = {"kappa": kappa(counts), "changes": _changes(counts)} if rows else {}
    else:
        agree, found = _nearness(column, pairs)
    share = {"agreement": agree / rows, "interval": wilson(agree, rows)} if rows else {}
    return {"rows": rows, "agree": agree, **share, **found}


def _nearness(column: ComparedColumn, pairs: Iterable[tuple[str, str]]) -> tuple[int, dict[str, object]]:
    """Return the number of pairs that are the same, and the mean similarity or difference of the pairs.

    At most `_MOST_TALLIED` different pairs are counted in memory; further pairs are measured without counting them.
    """
    counts, agree, rest = Counter[tuple[str, str]](), 0, array("d")
    for pair in pairs:
        if pair in counts or len(counts) < _MOST_TALLIED:
            counts[pair] += 1
            continue
        agree += column.same(*pair)
        if (value := _measured(column, *pair)) is not None:
            rest.append(value)
    agree += sum(count for pair, count in counts.items() if column.same(*pair))
    measured = [(value, count) for pair, count in counts.items() if (value := _measured(column, *pair)) is not None]
    total = sum(count for _, count in measured) + len(rest)
    if not total:
        return agree, {}
    mean = sum(itertools.chain((value * count for value, count in measured), rest)) / total
    if column.kind == "number":
        return agree, {"mean_difference": mean}
    return agree, {"similarity": mean, "similarity_method": SIMILARITY}


def _measured(column: ComparedColumn, value: str, other: str) -> float | None:
    """Return the difference of two numbers, or the similarity of other values; None if a number is missing."""
    if column.kind != "number":
        return similarity(value, other, column.kind)
    return abs(float(value) - float(other)) if value and other and other not in column.other_kind else None


def _are_labels(values: KeptTexts, rows: int) -> bool:
    """Return whether answers repeat often enough to count as labels."""
    different = set[int]()
    for value in values.hashes:
        different.add(value)
        if len(different) > max(_FEW, rows // 4):  # stop early: few hashes are then in memory
            return False
    return 4 * len(different) <= rows or 3 * len(different) <= 2 * rows


def _against(rows: ComparedRows) -> dict[str, object]:
    """Return the figures for the rows with a right answer. A missing answer counts as wrong."""
    rights = [column.right for column in rows.columns if column.right is not None]
    all_given = zip(*(right.given() for right in rights), strict=True)
    known = array("q", (at for at, given in enumerate(all_given) if any(given)))
    hits = [[rows.is_right(at, file) for at in known] for file in range(len(rows.files))]
    found: dict[str, object] = {"column": rows.gold, "rows": len(known), "of": len(rows.places)}
    if rows.gold_matched:
        found["matched"] = rows.gold_matched
    if rows.groups:
        found["groups"] = list(_by_group([rows.groups[at] for at in known], hits[0]))
    columns = zip(rows.columns, rights, strict=True)
    if not rows.has_fields:
        return found | _column_against(rows, *next(columns))
    fields = [
        {"field": column.name, "kind": column.kind, **_column_against(rows, column, right)}
        for column, right in columns
        if any(right.given())
    ]
    shares = zip(rows.files, hits, _among_best(hits), strict=True)
    files = [{"name": file.label, **_share(own), **best} for file, own, best in shares]
    return found | {"files": files, "fields": fields, "differences": _differences(rows, hits)}


def _by_group(groups: Sequence[str], hits: Sequence[bool]) -> Iterator[dict[str, object]]:
    for name in sorted(set(groups)):
        own = [is_right for group, is_right in zip(groups, hits, strict=True) if group == name]
        yield {"name": name, "rows": len(own), **_share(own)}


def _column_against(rows: ComparedRows, column: ComparedColumn, right: KeptTexts) -> dict[str, object]:
    known = array("q", (at for at, is_given in enumerate(right.given()) if is_given))
    truth = right.at(known)
    every = [own.at(known) for own in column.values]
    hits = [[column.same_at(at, file, right) for at in known] for file in range(len(every))]
    are_labels = column.is_exact and _are_labels(truth, len(truth))
    classes = [value for value, _ in Counter(truth).most_common()] if are_labels else []
    of_files = []
    each = zip(rows.files, every, hits, column.values, _among_best(hits), strict=True)
    for file, own, is_right, all_values, best in each:
        found: dict[str, object] = {"name": file.label, **_share(is_right), **best}
        if classes:
            by_class = _by_class(truth, own, classes)
            found["macro_f1"] = sum(one["f1"] for one in by_class) / len(by_class)
            found["classes"] = by_class[:50]
            if (
                len(known) < len(right) and not file.has_persons
            ):  # a person's labels are left out: they are always right, and the labelled rows are no random sample
                found["shares"] = _shares(all_values, Counter(zip(own, truth, strict=True)))
        else:
            found |= _nearness(column, zip(own, truth, strict=True))[1]
        of_files.append(found)
    return {
        "rows": len(known),
        **({"capitals": dict(column.capitals)} if column.capitals else {}),
        **({"kind": column.kind, "other_kind": _counted(column.other_kind)} if column.other_kind else {}),
        "files": of_files,
        "differences": _differences(rows, hits),
    }


def _counted(values: Mapping[str, None]) -> dict[str, int | str]:
    return {"values": len(values), "first": next(iter(values))}


def _shares(values: Iterable[str], reviewed: Collection[tuple[str, str]]) -> dict[str, LabelShare]:
    """Return the share of each label among all rows, on the assumption that the reviewed rows are a random sample."""
    found = shares([Stratum(Counter(values), reviewed)])
    known = {label for pair in reviewed for label in pair}
    return {label: share for label, share in found.items() if label and (share["share"] or label in known)}


def _share(hits: Sequence[bool]) -> dict[str, float | tuple[float, float]]:
    right = sum(hits)
    return {"right": right, "accuracy": right / len(hits), "interval": wilson(right, len(hits))}


def _among_best(hits: Sequence[Sequence[bool]]) -> list[dict[str, bool]]:
    """Return, for each file, whether it is the best, or differs from the best perhaps only by chance."""
    best = max(hits, key=sum)
    lows = [paired_interval(*_both_right(best, own))[0] for own in hits]
    return [
        {"among_best": sum(own) == sum(best) or low <= 0} if len(hits) > 1 else {}
        for own, low in zip(hits, lows, strict=True)
    ]


def _both_right(ours: Sequence[bool], theirs: Sequence[bool]) -> tuple[int, int, int, int]:
    """Return four numbers of rows: right in both files, only in the first, only in the second, and in neither."""
    table = Counter(zip(ours, theirs, strict=True))
    return table[True, True], table[True, False], table[False, True], table[False, False]


def _differences(rows: ComparedRows, hits: Sequence[Sequence[bool]]) -> list[dict[str, object]]:
    first, *others = zip(rows.files, hits, strict=True)
    return [_difference(*first, *other) for other in others]


def _by_class(truth: Sequence[str], own: Sequence[str], classes: Sequence[str]) -> list[ClassFigures]:
    """Return precision, recall and F1 of each class; as in scikit-learn, 0 for a class that was never answered."""
    counts = Counter(truth)
    answered = Counter(value for value in own if value in counts)
    hits = Counter(one for one, other in zip(truth, own, strict=True) if one == other)
    found: list[ClassFigures] = []
    for value in classes:
        precision = hits[value] / answered[value] if answered[value] else 0.0
        recall = hits[value] / counts[value]
        f1 = 2 * hits[value] / (counts[value] + answered[value])
        found.append({"class": value, "rows": counts[value], "precision": precision, "recall": recall, "f1": f1})
    return found


def _difference(
    one: ComparedFile, ours: Sequence[bool], other: ComparedFile, theirs: Sequence[bool]
) -> dict[str, object]:
    """Return the differences `other` minus `one`: in accuracy, in cost and, if the times differ enough, in time."""
    both, only_other, only_one, neither = _both_right(theirs, ours)
    paired = _paired(both, only_other, only_one, neither)
    found: dict[str, object] = {"of": [one.label, other.label], **paired, "only_right": [only_one, only_other]}
    before, after = one.about.get("cost"), other.about.get("cost")
    if before is not None and after is not None:
        found["cost"] = more = after - before
        points = 100 * paired["difference"]
        found["cost_per_point"] = more / points if more * points > 0 else None
    before, after = one.about.get("seconds"), other.about.get("seconds")
    if before is not None and after is not None and abs(after - before) > max(_NOISE_S, _NOISE * max(before, after)):
        found["seconds"] = after - before
    return found


def _judged(rows: ComparedRows, judgement: Judgement, other: int) -> dict[str, object]:
    """Return the verdicts on a file and the first file. An answer wins a row only if it wins in both orders."""
    letters = rows.files[0].label, rows.files[other].label
    texts = zip(rows.texts(0), rows.texts(other), strict=True)
    both = [(at, rows.same(at, 0, other)) for at, (ours, theirs) in enumerate(texts) if ours and theirs]
    differ = [at for at, is_same in both if not is_same]
    verdicts = {at: judgement.verdict(at, other, letters) for at in differ}
    counts = Counter(verdicts.values())
    judged, wins = len(differ) - counts[""], [counts[letter] for letter in letters]
    always = Counter(judgement.said[at, other][0] for at in differ if verdicts[at] == CONTRADICTION)
    ties = judged - sum(wins)
    return {
        "of": list(letters),
        "rows": len(both),
        "differ": len(differ),
        "judged": judged,
        "wins": wins,
        "ties": ties,
        "half": counts[HALF],
        "contradictions": counts[CONTRADICTION],
        "always": [always["first"], always["second"]],
        **(_paired(0, wins[1], wins[0], ties) if judged else {}),
    }


def _paired(both: int, first: int, second: int, neither: int) -> Paired:
    """Return the difference of two proportions over the same rows. `first`: rows with a hit only in the first file."""
    return {
        "difference": (first - second) / (both + first + second + neither),
        "interval": paired_interval(both, first, second, neither),
        "interval_method": INTERVAL,
        "p": mcnemar(first, second),
        "p_method": TEST,
    }
