"""The cut of `sure` labels, which decides which rows keep the cheap model's answer.

The rows are ordered by the score of their cheap answers, the surest first; a number drawn for each question orders
equal scores (`place`). A sample of n of the N rows is drawn at random without replacement, and both models answer it.
The cut is the place of the (c+1)-th disagreement in the sample, counted from the surest row. A row before the cut keeps
its cheap answer, a row of the sample gets the strong answer, and all other rows go to the strong model. c depends only
on N, n, the target and the certainty (`allowed`).

The promise. Let E = floor((1 - agree) * N). Then

    P( more than E of all N delivered answers differ from the strong model's )  <=  1 - certainty

for every N and n, for any scores and any number of classes. Only the draw is random: rows, scores and answers are
fixed, and must not depend on the drawn rows. The sampled rows count as right. The promise covers these N rows, not
later rows, and not each class (for classes, see `allowed_of_class`). It refers to one answer of the strong model to
each row, not to the truth.

The reason. Let t be the first place before which the models disagree on E + c + 1 of all rows. More than E wrong
answers are delivered only if the cut is after t, so only if at most c of these E + c + 1 rows are in the sample. The
probability of this is a tail of the hypergeometric distribution, and `allowed` chooses c so that it is at most 1 -
certainty. As this is a single test, no correction for multiple tests is needed.

With right labels for the sampled rows, the promise refers to the truth: with a probability of at most 1 - certainty,
more than E of all N delivered answers are wrong. A row is bad if the strong model is wrong, or if the row is before the
cut and only the cheap model is wrong. Each wrong delivered answer is on a bad row. The later the cut, the more rows are
bad; rows on which the strong model is wrong are bad at any cut, so the argument above puts them first in the order. A
sampled row may also be wrong, so E + 1 bad rows are too many. Let t be the first cut for which E + 1 rows are bad. Too
many answers are wrong only if the cut is after t, so only if at most c of these E + 1 rows are in the sample
(`allowed_right`). So if the strong model is wrong on s rows of the sample, the cut is at the (c-s+1)-th row on which
only the cheap model is wrong. If s > c, no promise is possible, even if the strong model answers all rows. If only some
rows have a right label, these must be a random choice of all rows.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from hashlib import blake2b
from math import ceil, exp, floor, isnan, lgamma, log
from typing import TypeAlias

Place: TypeAlias = tuple[float, float]
"""The place of a row in the order: its score (0 to 1), then a drawn number (0 to 1). Greater places are surer."""
LAST: Place = (-1.0, -1.0)
"""The place of a row without a cheap answer or score. As a cut, it makes all other rows sure."""
NOTHING_SURE: Place = (2.0, 2.0)
"""The cut if no row is sure."""
_ROUNDING = 1e-9  # below this difference, shares are equal: 5 % of 300 are exactly 15
_SIZE_OF_NUMBER = 6  # bytes of the digest that make a number
_ENOUGH_RIGHT = 12
"""The least c of a sample with right labels, if the table has enough rows. If the strong model errs on 2 % of the rows,
97 of 100 draws then allow the promise of at most 5 % wrong labels; with c = 4, only 63 do."""
_USED_UP = 0.9  # a sample uses at least this share of the allowed probability; the rest is lost, as c is a whole number


def at_most(c: int, rows: int, marked: int, drawn: int) -> float:
    """Return the probability that `drawn` of `rows` rows, drawn without replacement, include at most `c` `marked` rows.

    >>> round(at_most(0, 10, 1, 5), 9)
    0.5
    """

    def choose(n: int, k: int) -> float:
        return lgamma(n + 1) - lgamma(k + 1) - lgamma(n - k + 1)

    first, last = max(0, drawn - (rows - marked)), min(c, drawn, marked)
    every = choose(rows, drawn)
    logs = (choose(marked, k) + choose(rows - marked, drawn - k) - every for k in range(first, last + 1))
    return min(1.0, sum(map(exp, logs)))


def errors_allowed(rows: int, agree: float) -> int:
    """Return E, the number of delivered answers that may be wrong.

    >>> errors_allowed(300, 0.95)
    15
    """
    return floor((1 - agree) * rows + _ROUNDING)


def allowed(rows: int, drawn: int, wrong: int, certainty: float) -> int:
    """Return c, the number of sampled disagreements permitted before the cut, for at most `wrong` (E) errors.

    -1 means that the sample is too small for a promise.

    >>> allowed(10_000, 465, 500, 0.95)
    16
    """
    c = -1
    while c < drawn and (wrong + c + 2 > rows or at_most(c + 1, rows, wrong + c + 2, drawn) <= 1 - certainty):
        c += 1
    return c


def allowed_of_class(drawn: int, recall: float, certainty: float) -> int:
    """Return c for one class. The strong model gives this class to `drawn` rows of the sample. At most c of them may
    have another cheap answer before the cut, so that at least the share `recall` of the class is delivered as such.

    With several targets, use the surest of their cuts, each with the certainty 1 - (1 - certainty) / number of targets.
    -1 means that the sample has too few rows of the class.

    >>> allowed_of_class(58, 0.95, 0.95), allowed_of_class(59, 0.95, 0.95)
    (-1, 0)
    """
    c, below = -1, 0.0
    while c < drawn:
        k = c + 1
        ways = lgamma(drawn + 1) - lgamma(k + 1) - lgamma(drawn - k + 1)
        below += exp(ways + k * log(1 - recall) + (drawn - k) * log(recall))
        if below > 1 - certainty:
            break
        c = k
    return c


def allowed_right(rows: int, drawn: int, wrong: int, certainty: float) -> int:
    """Return c for right labels: the number of bad rows permitted in the sample, for at most `wrong` (E) errors.

    -1 means that the sample is too small for a promise.

    >>> [allowed_right(10_000, drawn, 500, 0.95) for drawn in (465, 59, 58)]
    [15, 0, -1]
    """
    c = -1
    while c < drawn and at_most(c + 1, rows, wrong + 1, drawn) <= 1 - certainty:
        c += 1
    return c


def most_bad(rows: int, drawn: int, bad: int, certainty: float) -> int:
    """Return an upper bound of the number of bad rows in a table whose sample has `bad` bad rows. The bound holds with
    the probability `certainty`.

    >>> most_bad(10_000, 465, 15, 0.95) <= 500 < most_bad(10_000, 465, 16, 0.95)
    True
    """
    low, high = bad, rows  # invariant: `high` is enough, `low - 1` is not
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if at_most(bad, rows, middle + 1, drawn) <= 1 - certainty else (middle + 1, high)
    return high


def size_right(rows: int, gold: int, wrong: int, certainty: float) -> int:
    """Return n for a sample of the `gold` rows that have a right label. n is larger than `sample_size` returns, because
    the strong model's errors count.

    0 means that there are too few `gold` rows for a promise.

    >>> size_right(10_000, 10_000, 500, 0.95), size_right(10_000, 300, 500, 0.95), size_right(10_000, 50, 500, 0.95)
    (465, 300, 0)
    """
    most = min(gold, rows // 2)
    n = min(most, ceil(math.pow(rows, 2 / 3)))
    while n < most and allowed_right(rows, n, wrong, certainty) < _ENOUGH_RIGHT:
        n += 1
    return n if allowed_right(rows, n, wrong, certainty) >= 0 else 0


def sample_size(rows: int, wrong: int, certainty: float) -> int:
    """Return n, the sample size: about `rows ** (2/3)`, and enough to permit one disagreement. `wrong`: E.

    0 means that the table is too small for its target: the strong model must answer every row.

    >>> sample_size(10_000, 500, 0.95), sample_size(100, 5, 0.95)
    (465, 0)
    """
    n = ceil(math.pow(rows, 2 / 3))
    while n <= rows // 2:
        c = allowed(rows, n, wrong, certainty)
        if c >= 1 and at_most(c, rows, wrong + c + 1, n) >= _USED_UP * (1 - certainty):
            return n
        n += 1
    return 0


def number(*words: object) -> float:
    """Return a number from 0 to 1 that depends only on `words`, not on the machine or the version of Python."""
    text = " ".join(map(str, words)).encode()
    return float(int.from_bytes(blake2b(text, digest_size=_SIZE_OF_NUMBER).digest()) / 2.0 ** (8 * _SIZE_OF_NUMBER))


def place(score: float | None, question: str, seed: str) -> Place:
    """Return the place of a row. `question` identifies the row's question: equal questions get equal places."""
    return LAST if score is None or isnan(score) else (score, number("place", seed, question))


def cut(sample: Iterable[tuple[Place, bool]], c: int) -> Place:
    """Return the place of the cut. Rows with a greater place are sure.

    `sample`: for each sampled row, its place and whether the models agree (False if the strong model failed). `c`: see
    `allowed`.
    """
    if c < 0:
        return NOTHING_SURE
    against = sorted((where for where, agrees in sample if not agrees), reverse=True)
    return against[c] if len(against) > c else LAST
