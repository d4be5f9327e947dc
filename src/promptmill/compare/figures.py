"""The figures of a comparison: agreement, right answers, a judge's verdicts, and how two files differ in these.

`figures` computes all of them once. The text and the page of a comparison show them, in the same `words`.
"""

from __future__ import annotations

import hashlib
import itertools
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from promptmill.compare.files import ComparedFile, ComparedRows
from promptmill.compare.statistics import INTERVAL, TEST, kappa, mcnemar, paired_interval, wilson
from promptmill.core.errors import input_error

_FEW = 20  # so many different answers are labels also of few rows, unless nearly all differ
TIE, CONTRADICTION, HALF = "tie", "contradiction", "half"
"""Verdicts without a winner: a tie in both orders, the other answer in the other order, a winner in one order alone."""


@dataclass(frozen=True, slots=True)
class Judgement:
    """The verdicts of a judge; each pair of answers is shown to it in both orders."""

    about: Mapping[str, Any]
    """`criterion`, and facts of the job that asked it: `model`, `cost`, …"""
    said: Mapping[tuple[int, int], tuple[str, str]]
    """By the row and the place of the file that the first one is compared with: `first`, `second` or `tie` where the
    first file's answer comes first, and where it comes second; `""` for none."""

    def verdict(self, at: int, other: int, letters: tuple[str, str]) -> str:
        """Return the letter of the file that has the better answer in both orders, another verdict, or `""`."""
        one, swapped = self.said.get((at, other), ("", ""))
        if not one or not swapped:
            return ""
        if TIE in (one, swapped):
            return TIE if one == swapped else HALF
        return CONTRADICTION if one == swapped else letters[one == "second"]


def figures(rows: ComparedRows, judgement: Judgement | None = None, most: int = 0) -> dict[str, Any]:
    """Return the figures of a comparison, and the first rows that differ, `most` of them.

    Raises `PromptmillError` (`invalid_input`) without any right answer.
    """
    files, values = rows.files, rows.values
    found: dict[str, Any] = {
        "rows": len(values[0]),
        "matched": rows.matched,
        "files": [
            {
                "name": file.letter,
                "file": str(file.path.absolute()),
                **({} if file.only is None else {file.only[0]: file.only[1]}),
                "title": file.name,
                **file.about,
                "answered": sum(map(bool, own)),
            }
            for file, own in zip(files, values, strict=True)
        ],
        "pairs": [
            {"of": [one.letter, other.letter], **_agreement(ours, theirs)}
            for (one, ours), (other, theirs) in itertools.combinations(zip(files, values, strict=True), 2)
        ],
    }
    if rows.right:
        found["gold"] = _against(rows)
    if judgement is not None:
        found["judge"] = {
            **judgement.about,
            "pairs": [_judged(rows, judgement, other) for other in range(1, len(files))],
        }
    differ = rows.differing
    return found | {"differ": len(differ), "differing": list(side_by_side(rows, judgement, differ[:most]))}


def side_by_side(rows: ComparedRows, judgement: Judgement | None, wanted: Collection[int]) -> Iterator[dict[str, Any]]:
    """Yield rows with their own columns, the right answer, all answers and the verdicts on them."""
    letters = [file.letter for file in rows.files]
    for at, own in rows.read(wanted):
        found: dict[str, Any] = {"row": at + 1, "own": own}
        if rows.right:
            found["gold"] = rows.right[at]
        found["answers"] = {letter: values[at] for letter, values in zip(letters, rows.values, strict=True)}
        if judgement is not None:
            pairs = enumerate(letters[1:], 1)
            found["verdicts"] = {one: judgement.verdict(at, other, (letters[0], one)) for other, one in pairs}
        yield found


def at_random(rows: Iterable[int]) -> list[int]:
    """Return rows in pseudo-random order. The order of two rows does not depend on the other rows."""
    return sorted(rows, key=lambda at: hashlib.sha256(b"%d" % at).digest())


def commonest(changes: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the answers of a cross-tabulation, the commonest first."""
    counts: Counter[str] = Counter()
    for change in changes:
        counts[change["from"]] += change["rows"]
        counts[change["to"]] += change["rows"]
    return [value for value, _ in counts.most_common()]


def tabulated(changes: Sequence[Mapping[str, Any]], kept: Collection[str]) -> Counter[tuple[str, str]]:
    """Return the counts of a cross-tabulation; answers that are not `kept` are `""`."""
    cells: Counter[tuple[str, str]] = Counter()
    for change in changes:
        one, other = (it if it in kept else "" for it in (change["from"], change["to"]))
        cells[one, other] += change["rows"]
    return cells


def _agreement(ours: Sequence[str], theirs: Sequence[str]) -> dict[str, Any]:
    """Return how far two lists of answers agree, over the rows that both have answered, and what became what."""
    pairs = Counter((one, other) for one, other in zip(ours, theirs, strict=True) if one and other)
    rows = pairs.total()
    agree = sum(count for (one, other), count in pairs.items() if one == other)
    found: dict[str, Any] = {"rows": rows, "agree": agree}
    if not rows:
        return found
    found |= {"agreement": agree / rows, "kappa": kappa(pairs)}
    if _are_labels(ours, rows) and _are_labels(theirs, rows):
        common = pairs.most_common(200)
        found["changes"] = [{"from": one, "to": other, "rows": count} for (one, other), count in common]
    return found


def _are_labels(values: Sequence[str], rows: int) -> bool:
    """Return whether answers repeat, so that counting them says something."""
    different = len(set(values))
    return 4 * different <= rows or (different <= _FEW and 3 * different <= 2 * rows)


def _against(rows: ComparedRows) -> dict[str, Any]:
    """Return the figures against the right answers: of the rows that have one. A row without an answer is wrong."""
    files, right = rows.files, rows.right
    known = [at for at, value in enumerate(right) if value]
    if not known:
        raise input_error(f"The column {rows.gold} is empty in all rows.")
    truth = [right[at] for at in known]
    every = [[own[at] for at in known] for own in rows.values]
    is_right = [[one == other for one, other in zip(own, truth, strict=True)] for own in every]
    classes = [value for value, _ in Counter(truth).most_common()] if _are_labels(truth, len(truth)) else []
    of_files = []
    for file, own, hits in zip(files, every, is_right, strict=True):
        found = {"name": file.letter, "right": sum(hits), "accuracy": sum(hits) / len(known)}
        found["interval"] = wilson(sum(hits), len(known))
        if classes:
            by_class = _by_class(truth, own, classes)
            found["macro_f1"] = sum(one["f1"] for one in by_class) / len(by_class)
            found["classes"] = by_class[:50]
        of_files.append(found)
    differences = [
        _difference(files[0], is_right[0], other, hits) for other, hits in zip(files[1:], is_right[1:], strict=True)
    ]
    return {
        "column": rows.gold,
        "rows": len(known),
        **({"capitals": dict(rows.capitals)} if rows.capitals else {}),
        "files": of_files,
        "differences": differences,
    }


def _by_class(truth: Sequence[str], own: Sequence[str], classes: Sequence[str]) -> list[dict[str, Any]]:
    """Return precision, recall and F1 of each class; 0 where a class was never answered, as scikit-learn has it."""
    counts, answered = Counter(truth), Counter(own)
    hits = Counter(one for one, other in zip(truth, own, strict=True) if one == other)
    found = []
    for value in classes:
        precision = hits[value] / answered[value] if answered[value] else 0.0
        recall = hits[value] / counts[value]
        f1 = 2 * hits[value] / (counts[value] + answered[value])
        found.append({"class": value, "rows": counts[value], "precision": precision, "recall": recall, "f1": f1})
    return found


def _difference(one: ComparedFile, ours: Sequence[bool], other: ComparedFile, theirs: Sequence[bool]) -> dict[str, Any]:
    """Return by how much the accuracy of `other` is higher."""
    table = Counter(zip(theirs, ours, strict=True))
    both, only_other, only_one, neither = (
        table[it] for it in ((True, True), (True, False), (False, True), (False,) * 2)
    )
    found = {"of": [one.letter, other.letter], **_paired(both, only_other, only_one, neither)}
    found["only_right"] = [only_one, only_other]
    before, after = one.about.get("cost"), other.about.get("cost")
    if before is not None and after is not None:
        found["cost"] = more = after - before
        points = 100 * found["difference"]
        found["cost_per_point"] = more / points if more * points > 0 else None
    if "seconds" in one.about and "seconds" in other.about:
        found["seconds"] = other.about["seconds"] - one.about["seconds"]
    return found


def _judged(rows: ComparedRows, judgement: Judgement, other: int) -> dict[str, Any]:
    """Return the verdicts on a file and the first one. The winner of a row has the better answer in both orders."""
    letters = rows.files[0].letter, rows.files[other].letter
    both = [
        (at, one == its)
        for at, (one, its) in enumerate(zip(rows.values[0], rows.values[other], strict=True))
        if one and its
    ]
    differ = [at for at, is_same in both if not is_same]
    verdicts = Counter(judgement.verdict(at, other, letters) for at in differ)
    judged = len(differ) - verdicts[""]
    wins = [verdicts[letter] for letter in letters]
    always = Counter(
        judgement.said[at, other][0] for at in differ if judgement.verdict(at, other, letters) == CONTRADICTION
    )
    ties = judged - sum(wins)
    found = {
        "of": list(letters),
        "rows": len(both),
        "differ": len(differ),
        "judged": judged,
        "wins": wins,
        "ties": ties,
    }
    found |= {"half": verdicts[HALF], "contradictions": verdicts[CONTRADICTION]}
    found["always"] = [always["first"], always["second"]]
    return found | (_paired(0, wins[1], wins[0], ties) if judged else {})


def _paired(both: int, first: int, second: int, neither: int) -> dict[str, Any]:
    """Return the difference of two proportions over the same rows, of which `first` hit one alone."""
    return {
        "difference": (first - second) / (both + first + second + neither),
        "interval": paired_interval(both, first, second, neither),
        "interval_method": INTERVAL,
        "p": mcnemar(first, second),
        "p_method": TEST,
    }
