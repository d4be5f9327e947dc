"""The cut of sure labels and the shares of labels: what is promised holds, by counting every sample and by drawing."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from itertools import combinations, product
from math import comb

import pytest

from promptmill.features.labels.cut import (
    LAST,
    NOTHING_SURE,
    Place,
    allowed,
    allowed_of_class,
    allowed_right,
    at_most,
    cut,
    errors_allowed,
    most_bad,
    place,
    sample_size,
    size_right,
)
from promptmill.jobs.store.label_shares import Stratum, shares


def delivered_errors(wrong: Sequence[bool], sample: set[int], places: Sequence[Place], where: Place) -> int:
    return sum(places[row] > where and wrong[row] and row not in sample for row in range(len(wrong)))


@pytest.mark.parametrize(("rows", "marked", "drawn"), [(12, 5, 4), (30, 7, 10), (9, 9, 3), (50, 1, 20)])
def test_the_tail_is_exact(rows, marked, drawn):
    for c in range(-1, drawn + 1):
        ways = sum(comb(marked, k) * comb(rows - marked, drawn - k) for k in range(c + 1))
        assert at_most(c, rows, marked, drawn) == pytest.approx(ways / comb(rows, drawn), abs=1e-9)


@pytest.mark.thorough
@pytest.mark.parametrize(("rows", "drawn"), [(12, 9), (14, 6)])
def test_every_sample_of_a_small_table_keeps_the_promise(rows, drawn):
    samples = [set(sample) for sample in combinations(range(rows), drawn)]
    orders = [[-row for row in range(rows)], [0] * rows, [-(row // 5) for row in range(rows)]]
    worst = 0.0
    for certainty, agree in product((0.8, 0.95), (0.9, 0.7)):
        most = errors_allowed(rows, agree)
        c = allowed(rows, drawn, most, certainty)
        for count in range(most + 1, min(rows, most + 4) + 1):
            at_random = set(random.Random(count).sample(range(rows), count))
            patterns = (range(count), range(rows - count, rows), at_random)
            for pattern, scores in product(patterns, orders):
                wrong = [row in pattern for row in range(rows)]
                places = [place(score, str(row), "x") for row, score in enumerate(scores)]
                failed = sum(
                    delivered_errors(wrong, sample, places, cut([(places[n], not wrong[n]) for n in sample], c)) > most
                    for sample in samples
                )
                assert failed / len(samples) <= 1 - certainty + 1e-12
                worst = max(worst, failed / len(samples))
    assert worst > 0.1, "the rule wastes nothing: the chance of 20 % is nearly used"


def promised(
    cheap: Sequence[bool], strong: Sequence[bool], sample: Sequence[int], places: Sequence[Place], c: int
) -> int | None:
    """Return the wrong labels that are delivered with right labels of the sample; None if nothing is promised.

    `cheap`, `strong`: on which rows a model is wrong.
    """
    left = c - sum(strong[n] for n in sample)
    if left < 0:
        return None
    where = cut([(places[n], strong[n] or not cheap[n]) for n in sample], left)
    kept = {n for n in range(len(cheap)) if places[n] > where} - {*sample}
    return sum(cheap[n] if n in kept else strong[n] for n in range(len(cheap)))


@pytest.mark.thorough
@pytest.mark.parametrize(("rows", "drawn"), [(11, 7), (13, 5)])
def test_every_sample_of_a_small_table_keeps_the_promise_about_right_labels(rows, drawn):
    samples = list(combinations(range(rows), drawn))
    orders = [[-row for row in range(rows)], [0] * rows, [-(row // 4) for row in range(rows)]]
    worst = bound = 0.0
    for certainty, agree in product((0.8, 0.95), (0.9, 0.7)):
        most = errors_allowed(rows, agree)
        c = allowed_right(rows, drawn, most, certainty)
        bound = max(bound, at_most(c, rows, most + 1, drawn))
        for of_strong, of_cheap in product(range(most + 3), range(most + 3)):
            chance = random.Random(of_strong)
            for wrong, scores in product((range(of_cheap), chance.sample(range(rows), of_cheap)), orders):
                errs = {*chance.sample(range(rows), of_strong)}
                strong = [row in errs for row in range(rows)]
                cheap = [row in wrong for row in range(rows)]
                places = [place(score, str(row), "x") for row, score in enumerate(scores)]
                found = (promised(cheap, strong, sample, places, c) for sample in samples)
                failed = sum(errors is not None and errors > most for errors in found)
                assert failed / len(samples) <= 1 - certainty + 1e-12
                worst = max(worst, failed / len(samples))
    assert worst == pytest.approx(bound), "the chance that the proof allows is used"


@pytest.mark.thorough
@pytest.mark.parametrize("scores", ["sharp", "noise", "inverted"])
@pytest.mark.parametrize("of_strong", [0, 0.02, 0.055])
def test_drawn_samples_fail_as_seldom_as_promised_about_right_labels(scores, of_strong):
    rows, draws, chance = 600, 1_000, random.Random(f"{scores} {of_strong}")
    most = errors_allowed(rows, 0.95)
    drawn = size_right(rows, 400, most, 0.95)
    c = allowed_right(rows, drawn, most, 0.95)
    strong = [row < of_strong * rows for row in chance.sample(range(rows), rows)]
    cheap = [chance.random() < 0.12 for _ in range(rows)]
    score = {"sharp": lambda bad: chance.random() * (0.7 if bad else 1), "noise": lambda _: chance.random()}
    score["inverted"] = lambda bad: chance.random() + bad
    places = [place(score[scores](bad), str(row), "x") for row, bad in enumerate(cheap)]
    found = [promised(cheap, strong, chance.sample(range(rows), drawn), places, c) for _ in range(draws)]
    failed = sum(errors is not None and errors > most for errors in found)
    assert failed / draws <= 0.071  # 5 % and three standard deviations
    if of_strong > 0.05:
        assert sum(errors is not None for errors in found) / draws <= 0.071, "it alone misses the target"
    if not of_strong:
        assert None not in found


def test_the_strong_model_alone_is_bounded_by_the_same_test():
    for rows, drawn, wrong in ((1_000, 351, 50), (10_000, 465, 500), (300, 80, 30)):
        c = allowed_right(rows, drawn, wrong, 0.95)
        assert most_bad(rows, drawn, c, 0.95) <= wrong < most_bad(rows, drawn, c + 1, 0.95)
    assert most_bad(100, 100, 7, 0.95) == 7, "the sample is the table"
    assert most_bad(100, 10, 10, 0.95) == 100
    assert size_right(10_000, 10_000, 500, 0.95) == 465
    assert [size_right(1_000, gold, 50, 0.95) for gold in (1_000, 351, 100, 57, 40)] == [351, 351, 100, 57, 0]


@pytest.mark.thorough
@pytest.mark.parametrize("scores", ["sharp", "noise", "inverted", "tied"])
def test_drawn_samples_fail_as_seldom_as_promised(scores):
    rows, draws = 500, 2_000
    most = errors_allowed(rows, 0.95)
    drawn = sample_size(rows, errors_allowed(rows, 0.95), 0.95)
    c = allowed(rows, drawn, most, 0.95)
    chance = random.Random(scores)
    wrong = [row < 60 for row in range(rows)]
    score = {
        "sharp": lambda bad: chance.random() * (0.8 if bad else 1),
        "noise": lambda _: chance.random(),
        "inverted": float,
        "tied": lambda _: round(chance.random() * 2) / 2,
    }[scores]
    places = [place(score(bad), str(row), "x") for row, bad in enumerate(wrong)]
    failed = 0
    for _ in range(draws):
        sample = set(chance.sample(range(rows), drawn))
        failed += delivered_errors(wrong, sample, places, cut([(places[n], not wrong[n]) for n in sample], c)) > most
    assert failed / draws <= 0.065  # 5 % and three standard deviations


def test_the_size_of_a_sample_and_the_disagreements_that_pass_are_those_of_the_measured_tables():
    known = [
        (sample_size(rows, errors_allowed(rows, 0.95), 0.95), rows)
        for rows in (300, 500, 1_000, 2_000, 10_000, 1_000_000)
    ]
    assert [n for n, _ in known] == [74, 81, 113, 168, 465, 10_000]
    assert [allowed(rows, n, errors_allowed(rows, 0.95), 0.95) for n, rows in known] == [1, 1, 2, 4, 16, 468]
    assert sample_size(100, errors_allowed(100, 0.95), 0.95) == 0
    assert [allowed_of_class(drawn, 0.95, 0.95) for drawn in (58, 59, 93, 124, 181)] == [-1, 0, 1, 2, 4]


@pytest.mark.thorough
def test_the_share_of_rows_that_go_to_the_strong_model_is_small_where_scores_are_sharp():
    """10,000 rows, of which the cheap model has 90 % right: at most 17, 27 and 70 % for sharp, dull and no scores."""
    rows, chance = 10_000, random.Random(4)
    most, drawn = errors_allowed(rows, 0.95), sample_size(rows, errors_allowed(rows, 0.95), 0.95)
    c = allowed(rows, drawn, most, 0.95)
    for sharpness, bound in ((9, 0.17), (4, 0.27), (0, 0.70)):  # with all known 7, 13 and 50 %
        found = []
        for _ in range(10):
            scores = [chance.random() for _ in range(rows)]
            wrong = [chance.random() < 0.1 * (sharpness + 1) * (1 - score) ** sharpness for score in scores]
            places = [place(score, "", "x") for score in scores]
            sample = set(chance.sample(range(rows), drawn))
            where = cut([(places[n], not wrong[n]) for n in sample], c)
            found.append(sum(not places[n] > where or n in sample for n in range(rows)) / rows)
        assert sum(found) / len(found) <= bound


def test_rows_without_a_score_are_never_sure():
    against = [(place(0.5, str(row), ""), False) for row in range(3)]
    assert cut(against, 3) == LAST  # fewer disagreements than may pass: every row with a score is sure
    assert place(0.0, "", "") > LAST
    assert not place(None, "1", "") > LAST
    assert not place(float("nan"), "1", "") > LAST
    assert cut(against, -1) == NOTHING_SURE
    assert not place(1.0, "1", "") > NOTHING_SURE


@pytest.mark.thorough
def test_a_class_is_found_as_often_as_promised():
    chance, missed, runs = random.Random(2), 0, 300
    for _ in range(runs):
        rows = 1_500
        fraud = [chance.random() < 0.2 for _ in range(rows)]
        scores = [chance.random() for _ in range(rows)]
        misses = [of and chance.random() < 0.5 * (1 - score) for of, score in zip(fraud, scores, strict=True)]
        places = [place(score, str(row), "") for row, score in enumerate(scores)]
        sample = set(chance.sample(range(rows), 500))
        mine = [(places[n], not misses[n]) for n in sample if fraud[n]]
        where = cut(mine, allowed_of_class(len(mine), 0.95, 0.95))
        missed += delivered_errors(misses, sample, places, where) > 0.05 * sum(fraud)
    assert missed / runs <= 0.05


@pytest.mark.thorough
def test_shares_are_corrected_for_the_errors_of_the_labels():
    """100 of 10,000 rows are reviewed; 4 % are fraud. The interval contains the truth; that of the labels never."""
    chance, inside, plain = random.Random(0), 0, 0
    for run in range(40):
        right = ["fraud" if chance.random() < 0.04 else "fine" for _ in range(10_000)]
        given = [
            ("fine" if chance.random() < 0.3 else "fraud") if label == "fraud" else
            ("fraud" if chance.random() < 0.03 else "fine")
            for label in right
        ]  # fmt: skip
        reviewed = [(given[n], right[n]) for n in chance.sample(range(10_000), 100)]
        machine = {label: given.count(label) for label in ("fraud", "fine")}
        found = shares([Stratum(machine, reviewed)], seed=run)["fraud"]
        truth = right.count("fraud") / 10_000
        inside += found["low"] <= truth <= found["high"]
        deviation = (found["counted"] * (1 - found["counted"]) / 10_000) ** 0.5
        plain += abs(found["counted"] - truth) <= 1.96 * deviation
    assert inside >= 36
    assert plain == 0


def test_a_table_that_was_reviewed_whole_has_shares_without_doubt():
    found = shares([Stratum({"a": 90, "b": 10}, [("a", "a")] * 90 + [("b", "a")] * 10)])
    assert (found["a"]["share"], found["a"]["low"], found["a"]["high"]) == (1, 1, 1)
    assert (found["b"]["share"], found["b"]["counted"]) == (0, 0.1)


def test_rows_whose_labels_are_right_add_no_doubt():
    unsure = Stratum({"a": 100}, [("a", "a")] * 15 + [("a", "b")] * 5)
    alone, both = shares([unsure])["a"], shares([unsure, Stratum({"a": 50, "c": 50})])["a"]
    assert both["share"] == (75 + 50) / 200
    assert both["high"] - both["low"] == pytest.approx((alone["high"] - alone["low"]) / 2, rel=0.1)
    assert shares([Stratum({"a": 3, "b": 1})])["b"] == {"share": 0.25, "low": 0.25, "high": 0.25, "counted": 0.25}


@pytest.mark.thorough
def test_shares_hold_where_the_cut_follows_from_the_sample():
    """The intervals of 100 draws from one table of 2,000 rows, whose cut depends on the sample, contain the truth."""
    chance, rows, size = random.Random(5), 2000, sample_size(2000, errors_allowed(2000, 0.95), 0.95)
    right = ["a" if chance.random() < 0.3 else "b" for _ in range(rows)]
    sure = [chance.betavariate(4, 1) for _ in range(rows)]
    cheap = [label if chance.random() < 0.6 + 0.4 * s else "b" for label, s in zip(right, sure, strict=True)]
    places = [place(score, str(row), "") for row, score in enumerate(sure)]
    truth, inside, estimates = right.count("a") / rows, 0, list[float]()
    for _ in range(100):
        sample = chance.sample(range(rows), size)
        verdicts = [(places[n], cheap[n] == right[n]) for n in sample]
        where = cut(verdicts, allowed(rows, size, errors_allowed(rows, 0.95), 0.95))
        before = [n for n in range(rows) if places[n] > where]
        reviewed = [(cheap[n], right[n]) for n in sample if places[n] > where]
        after = Counter(right[n] for n in range(rows) if places[n] <= where)
        found = shares([Stratum(Counter(cheap[n] for n in before), reviewed), Stratum(after)])["a"]
        estimates.append(found["share"])
        inside += found["low"] <= truth <= found["high"]
    assert inside >= 90
    assert sum(estimates) / len(estimates) == pytest.approx(truth, abs=0.002)
