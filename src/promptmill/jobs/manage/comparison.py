"""The figures of a comparison: agreement, right answers, a judge's verdicts, and how two files differ in these.

`figures` computes all of them once. The text and the page of a comparison show them, in the same words: `made`,
`agreed`, `right_of`, `differs`, `judged` and `price`.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from promptmill.core.errors import input_error
from promptmill.core.money import dollars
from promptmill.core.wording import counted, cut
from promptmill.jobs.manage.compared_files import ComparedFile, ComparedRows
from promptmill.jobs.store import status

_MOST_CHANGES = 200
_MOST_CLASSES = 50
_FEW = 20  # so many different answers are labels also of few rows, unless nearly all differ
_LONGEST_SHOWN = 20
_Z = 1.959963984540054  # of the normal distribution, for 95 %
INTERVAL = "Newcombe's score interval for paired proportions (1998, method 10)"
TEST = "exact McNemar test, two-sided"
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
    """Return rows in an order that looks random. Two rows have the same order each time, whatever others there are."""
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
        common = pairs.most_common(_MOST_CHANGES)
        found["changes"] = [{"from": one, "to": other, "rows": count} for (one, other), count in common]
    return found


def _are_labels(values: Sequence[str], rows: int) -> bool:
    """Return whether answers repeat, so that counting them says something."""
    different = len(set(values))
    return 4 * different <= rows or (different <= _FEW and 3 * different <= 2 * rows)


def kappa(pairs: Mapping[tuple[str, str], int]) -> float | None:
    """Return Cohen's kappa, (po - pe) / (1 - pe), of the counts of pairs; None where only one answer occurs.

    J. Cohen, A coefficient of agreement for nominal scales, Educational and Psychological Measurement 20 (1960), 37-46.
    """
    rows = sum(pairs.values())
    ours, theirs = Counter[str](), Counter[str]()
    for (one, other), count in pairs.items():
        ours[one] += count
        theirs[other] += count
    agree = sum(count for (one, other), count in pairs.items() if one == other)
    expected = sum(count * theirs[value] for value, count in ours.items())
    return None if expected == rows * rows else (agree * rows - expected) / (rows * rows - expected)


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
            found["classes"] = by_class[:_MOST_CLASSES]
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


def wilson(hits: int, rows: int) -> tuple[float, float]:
    """Return the 95 % score interval of a proportion.

    E. B. Wilson, Probable inference, the law of succession, and statistical inference, JASA 22 (1927), 209-212.
    """
    share, square = hits / rows, _Z * _Z
    middle = (hits + square / 2) / (rows + square)
    half = _Z * math.sqrt(rows * share * (1 - share) + square / 4) / (rows + square)
    return max(0.0, middle - half), min(1.0, middle + half)


def paired_interval(both: int, first: int, second: int, neither: int) -> tuple[float, float]:
    """Return the 95 % interval of the difference of two proportions over the same rows, of which `first` hit one alone.

    R. G. Newcombe, Improved confidence intervals for the difference between binomial proportions based on paired data,
    Statistics in Medicine 17 (1998), 2635-2650, method 10: the score intervals of both proportions are squared and
    added, less their correlation phi with a correction for continuity.
    """
    rows = both + first + second + neither
    one, other = (both + first) / rows, (both + second) / rows
    (low, high), (lower, higher) = wilson(both + first, rows), wilson(both + second, rows)
    margins = (both + first) * (second + neither) * (both + second) * (first + neither)
    cross = float(both * neither - first * second)
    cross = max(cross - rows / 2, 0.0) if cross >= 0 else cross
    phi = cross / math.sqrt(margins) if margins else 0.0

    def width(ours: float, theirs: float) -> float:
        return math.sqrt(max(0.0, ours * ours - 2 * phi * ours * theirs + theirs * theirs))

    return one - other - width(one - low, higher - other), one - other + width(high - one, other - lower)


def mcnemar(first: int, second: int) -> float:
    """Return the p-value of the exact McNemar test: two-sided, binomial over the rows that only one of two has right.

    Q. McNemar, Note on the sampling error of the difference between correlated proportions, Psychometrika 12 (1947),
    153-157; exact as in A. Agresti, Categorical Data Analysis, section 11.1.
    """
    rows, fewer = first + second, min(first, second)
    term, tail = 1.0, 0.0
    for hits in range(fewer, -1, -1):  # each term of the tail, in units of the largest
        tail += term
        term *= hits / (rows - hits + 1)
        if term < tail * 1e-17:
            break
    largest = math.lgamma(rows + 1) - math.lgamma(fewer + 1) - math.lgamma(rows - fewer + 1) - rows * math.log(2)
    return min(1.0, 2 * tail * math.exp(largest))


# ---- words


def made(file: Mapping[str, Any], rows: int) -> str:
    """Return how a file was made: `40 answered in 1.8 s by good-1, $0.004`."""
    parts = [f"{file['answered']:,} answered"]
    if missing := rows - file["answered"]:
        parts.append(f"{missing:,} not")
    said = ", ".join(parts)
    if "seconds" in file:
        said += f" in {status.took(file['seconds'])}"
    if file.get("model"):
        said += f" by {file['model']}"
    return said + (f", {dollars(file['cost'])}" if file.get("cost") is not None else "")


def agreed(pair: Mapping[str, Any], rows: int) -> Iterator[str]:
    """Yield how far two files agree."""
    one, other = pair["of"]
    if not pair["rows"]:
        yield f"{one} and {other} have answered no row in common"
        return
    both = f" that both answered (of {rows:,})" if pair["rows"] < rows else ""
    yield f"{one} and {other} agree in {percent(pair['agreement'])} of {counted(pair['rows'], 'row')}{both}"
    if pair["kappa"] is not None:
        yield f"Cohen's kappa {pair['kappa']:.2f}: 1 is full agreement, 0 that of chance"


def spelled(gold: Mapping[str, Any]) -> Iterator[str]:
    """Yield the note on right answers in other capitals than the answers, if there are any."""
    if capitals := gold.get("capitals"):
        (one, its), *_ = capitals.items()
        more = f", and {len(capitals) - 1:,} more" if len(capitals) > 1 else ""
        yield f"capitals do not count: {cut(one, _LONGEST_SHOWN)} is {cut(its, _LONGEST_SHOWN)}{more}"


def right_of(file: Mapping[str, Any]) -> str:
    """Return how many answers of a file are right."""
    low, high = (percent(one) for one in file["interval"])
    f1 = f", macro F1 {file['macro_f1']:.2f}" if "macro_f1" in file else ""
    return f"{percent(file['accuracy'])} ({file['right']:,}; 95 % interval {low} to {high}){f1}"


def differs(found: Mapping[str, Any]) -> Iterator[str]:
    """Yield by how much one file is better than another against the right answers, with its price."""
    (one, other), (only_one, only_other) = found["of"], found["only_right"]
    yield _less(found, "points")
    yield f"{only_one:,} only {one} has right, {only_other:,} only {other}; {_probability(found)}"
    yield from _methods()
    if "cost" in found:
        yield f"{other} costs {_more(dollars(abs(found['cost'])), found['cost'])}{_per_point(found)}"
    if "seconds" in found:
        yield f"{other} takes {_more(status.took(abs(found['seconds'])), found['seconds'])}"


def judged(pair: Mapping[str, Any]) -> Iterator[str]:
    """Yield the verdicts on two files."""
    (one, other), rows = pair["of"], pair["judged"]
    of = f" of {pair['differ']:,}" if pair["judged"] < pair["differ"] else ""
    yield f"{one} and {other}: {rows:,}{of} rows with different answers judged, in both orders"
    if not rows:
        return
    wins, others = [_share(count, rows) for count in pair["wins"]], _share(pair["ties"], rows)
    yield f"{one} wins {wins[0]}, {other} wins {wins[1]}, ties {others}"
    yield f"{_share(pair['contradictions'], rows)} contradict: the other answer when the order is swapped"
    if pair["contradictions"]:
        first, second = pair["always"]
        yield f"  always the first answer: {first:,}, always the second: {second:,}; counted as ties"
    if pair["half"]:
        yield f"{_share(pair['half'], rows)} have a winner in one order alone; counted as ties"
    yield _less(pair, "points of wins")
    yield _probability(pair)
    yield from _methods()


def price(judge: Mapping[str, Any]) -> str:
    """Return the requests, the time and the cost of a judgement."""
    requests = counted(judge.get("requests", 0), "request")
    return f"the judge: {requests} in {status.took(judge.get('seconds', 0))}{status.paid(judge)}"


def said(row: Mapping[str, Any]) -> str:
    """Return the verdicts on a row in words."""
    verdicts = row["verdicts"].items()
    return "; ".join(_verdict(its) if len(verdicts) == 1 else f"{other}: {_verdict(its)}" for other, its in verdicts)


def _verdict(said: str) -> str:
    words = {TIE: "a tie", CONTRADICTION: "contradicts itself", HALF: "a winner in one order alone", "": "not judged"}
    return words.get(said, f"{said} is better")


def _less(found: Mapping[str, Any], unit: str) -> str:
    (one, other), (low, high) = found["of"], found["interval"]
    return f"{other} less {one}: {_points(found['difference'])} {unit}, 95 % interval {_points(low)} to {_points(high)}"


def _probability(found: Mapping[str, Any]) -> str:
    low, high = found["interval"]
    p = f"p = {found['p']:.2g}" if found["p"] >= 0.0001 else "p < 0.0001"
    return f"{p}{'' if low > 0 or high < 0 else '; no difference is shown'}"


def _methods() -> Iterator[str]:
    yield f"  interval: {INTERVAL}"
    yield f"  p: {TEST}"


def _share(part: int, rows: int) -> str:
    return f"{part:,} ({percent(part / rows)})"


def _per_point(found: Mapping[str, Any]) -> str:
    """Return the price of each point that the dearer one gains."""
    if found["cost_per_point"] is not None:
        return f": {dollars(found['cost_per_point'])} for each point gained"
    if not found["cost"] or not found["difference"]:
        return ""
    better = found["of"][found["difference"] > 0]
    return f", and {better} is the better one"


def _more(amount: str, difference: float) -> str:
    return f"{amount} {'more' if difference > 0 else 'less'}" if difference else "the same"


def percent(share: float) -> str:
    """Return a share as a percentage."""
    return f"{100 * share:.1f} %"


def _points(share: float) -> str:
    return f"{100 * share:+.1f}".replace("-", "\N{MINUS SIGN}")
