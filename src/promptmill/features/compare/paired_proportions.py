"""Statistics of paired proportions: agreement, intervals and tests, each with its source."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping

_Z = 1.959963984540054  # the quantile of the normal distribution for 95 %
INTERVAL = "Newcombe's score interval for paired proportions (1998, method 10)"
_TAIL, _EXACT = 0.025, 1e-9  # the probability beyond each end of an interval; the width to which an end is found
SHARE_INTERVAL = "Wilson's score interval (1927)"
EXACT_INTERVAL = "exact interval of Clopper and Pearson (1934)"
TEST = "exact McNemar test, two-sided"
ONE_SIDED = "exact McNemar test, one-sided"


def kappa(pairs: Mapping[tuple[str, str], int]) -> float | None:
    """Return Cohen's kappa, (po - pe) / (1 - pe), from the counts of pairs; None if all answers are the same.

    J. Cohen, A coefficient of agreement for nominal scales, Educational and Psychological Measurement 20 (1960), 37-46.

    >>> kappa({("yes", "yes"): 20, ("yes", "no"): 5, ("no", "yes"): 10, ("no", "no"): 15})
    0.4
    """
    rows = sum(pairs.values())
    ours, theirs = Counter[str](), Counter[str]()
    for (one, other), count in pairs.items():
        ours[one] += count
        theirs[other] += count
    agree = sum(count for (one, other), count in pairs.items() if one == other)
    expected = sum(count * theirs[value] for value, count in ours.items())
    return None if expected == rows * rows else (agree * rows - expected) / (rows * rows - expected)


def wilson(hits: int, rows: int) -> tuple[float, float]:
    """Return the 95 % score interval of a proportion.

    E. B. Wilson, Probable inference, the law of succession, and statistical inference, JASA 22 (1927), 209-212.

    >>> [round(end, 3) for end in wilson(81, 263)]
    [0.255, 0.366]
    """
    share, square = hits / rows, _Z * _Z
    middle = (hits + square / 2) / (rows + square)
    half = _Z * math.sqrt(rows * share * (1 - share) + square / 4) / (rows + square)
    return max(0.0, middle - half), min(1.0, middle + half)


def exact_interval(hits: int, rows: int) -> tuple[float, float]:
    """Return the exact 95 % interval of a proportion. At least 95 of 100 such intervals contain the true proportion,
    whatever its value; of 100 of Wilson's intervals, only 91 may contain it.

    C. J. Clopper and E. S. Pearson, The use of confidence or fiducial limits illustrated in the case of the binomial,
    Biometrika 26 (1934), 404-413.

    >>> [round(end, 4) for end in exact_interval(8, 200)], exact_interval(0, 200)[0]
    ([0.0174, 0.0773], 0.0)
    """

    def upper(hits: int) -> float:
        low, high = hits / rows, 1.0
        while hits < rows and high - low > _EXACT:
            middle = (low + high) / 2
            low, high = (middle, high) if _at_most(hits, rows, middle) > _TAIL else (low, middle)
        return high

    return 1 - upper(rows - hits), upper(hits)


def paired_interval(both: int, first: int, second: int, neither: int) -> tuple[float, float]:
    """Return the 95 % interval of the difference of two proportions over the same rows. `first`: the number of rows
    that only the first of two classifiers got right.

    R. G. Newcombe, Improved confidence intervals for the difference between binomial proportions based on paired data,
    Statistics in Medicine 17 (1998), 2635-2650, method 10: the score intervals of both proportions are squared and
    added, less their correlation phi with a correction for continuity.

    >>> [round(end, 3) for end in paired_interval(both=36, first=12, second=2, neither=0)]
    [0.057, 0.34]
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
    """Return the p-value of the exact, two-sided McNemar test over the rows that only one of two classifiers got right.

    Q. McNemar, Note on the sampling error of the difference between correlated proportions, Psychometrika 12 (1947),
    153-157; exact as in A. Agresti, Categorical Data Analysis, section 11.1.

    >>> round(mcnemar(2, 10), 4)
    0.0386
    """
    return min(1.0, 2 * _at_most(min(first, second), first + second))


def mcnemar_more(first: int, second: int) -> float:
    """Return the p-value of the exact one-sided McNemar test: is the second classifier right more often than the first?

    >>> round(mcnemar_more(2, 10), 4)
    0.0193
    """
    rows = first + second
    return _at_most(first, rows) if first <= second else 1.0 - _at_most(second - 1, rows)


def _at_most(hits: int, rows: int, share: float = 0.5) -> float:
    """Return the probability of at most `hits` heads in `rows` tosses of a coin that shows heads with the probability
    `share`."""
    if hits < 0:
        return 0.0
    term, tail = 1.0, 0.0
    for fewer in range(hits, -1, -1):  # adds the terms of the tail, each divided by the first term
        tail += term
        term *= fewer / (rows - fewer + 1) * (1 - share) / share
        if term < tail * 1e-17:
            break
    first = math.lgamma(rows + 1) - math.lgamma(hits + 1) - math.lgamma(rows - hits + 1)
    return tail * math.exp(first + hits * math.log(share) + (rows - hits) * math.log1p(-share))
