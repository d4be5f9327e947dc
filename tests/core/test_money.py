"""Budgets, and amounts of money as text."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from promptmill.core.errors import PromptmillError
from promptmill.core.money import Budget, dollars, prices_in


@pytest.mark.parametrize(
    ("amount", "shown"),
    [
        *[(0, "$0.00"), (0.000072, "$0.000072"), (0.0123, "$0.012"), (1.5, "$1.50"), (1234.5, "$1,234.50")],
        *[(0.1, "$0.10"), (1.0, "$1.00"), (-0.5, "$-0.50")],
    ],
)
def test_an_amount_is_a_decimal_with_two_digits_that_count(amount, shown):
    assert dollars(amount) == shown


def test_a_budget_reserves_up_to_its_limit_and_no_further():
    budget = Budget(1.0)
    assert all(budget.reserve(0.1) for _ in range(10)), "the sum of ten rounded amounts"
    assert not budget.reserve(0.001)
    assert not Budget(1.0).reserve(1.001)


@pytest.mark.parametrize(("spent", "set_aside"), [(0.5, 0.0), (0.0, 0.5), (0.25, 0.25)])
def test_amounts_that_are_spent_or_set_aside_leave_less_to_reserve(spent, set_aside):
    budget = Budget(1.0, spent, set_aside)
    assert not budget.reserve(0.6)
    assert budget.reserve(0.5)
    assert not budget.reserve(0.1)


def test_a_charge_releases_what_was_reserved_and_keeps_what_was_spent():
    budget = Budget(1.0)
    assert budget.nothing_reserved
    assert budget.reserve(0.5)
    assert budget.reserve(0.25)
    budget.charge(0.5, 0.125)
    assert not budget.nothing_reserved
    assert (budget.spent, budget.set_aside) == (0.125, 0.0)
    budget.charge(0.25, 0.25)
    assert budget.nothing_reserved
    assert budget.reserve(0.625)
    assert not budget.reserve(0.125)


def test_requests_that_may_cost_more_are_open_together_while_the_limit_allows_the_most():
    budget = Budget(1.0, spent=0.5)
    assert budget.reserve(0.0625, 0.125)
    assert budget.reserve(0.0625, 0.125)
    assert not budget.reserve(0.0625, 0.125), "the limit allows 0.5 and three times 0.0625, not 0.375 more"
    budget.set_reserved_aside(0.0625, 0.125)
    budget.charge(0.0625, 0.25, 0.125)
    assert budget.reserve(0.0625, 5.0), "the only one, whatever it may cost"
    assert not budget.reserve(0.0625, 0.125)
    assert budget.reserve(0.0625), "one whose cost is certain"


@pytest.mark.parametrize(
    "release",
    [
        lambda budget, excess: budget.charge(0.0625, 0.0, *excess),
        lambda budget, excess: budget.set_reserved_aside(0.0625, *excess),
    ],
    ids=["charge", "set aside"],
)
@pytest.mark.parametrize(
    ("released", "has_room"), [([], False), ([0.125], False), ([0.5], True)], ids=["none", "of one", "of both"]
)
def test_a_request_releases_its_own_excess_alone(
    release: Callable[[Budget, list[float]], None], released: list[float], has_room: bool
):
    budget = Budget(1.0)
    for excess in (0.375, 0.125, 0.0):
        assert budget.reserve(0.0625, excess)
    release(budget, released)
    assert budget.reserve(0.0625, 0.75) == has_room


def test_rounding_errors_of_charges_are_no_reservation():
    budget = Budget(1.0)
    for amount in (0.1, 0.2, 0.3):
        assert budget.reserve(amount, amount / 10)
    for amount in (0.3, 0.2, 0.1):
        budget.charge(amount, 0.0, amount / 10)
    assert budget.nothing_reserved
    assert budget.reserve(0.5, 5.0), "the only one with an excess"


def test_a_reservation_that_is_set_aside_is_no_longer_reserved():
    budget = Budget(1.0)
    budget.reserve(0.5)
    budget.reserve(0.25)
    budget.set_reserved_aside(0.5)
    assert not budget.nothing_reserved
    budget.set_reserved_aside(0.25)
    assert budget.nothing_reserved
    assert (budget.spent, budget.set_aside) == (0.0, 0.75)
    assert not budget.reserve(0.5)
    assert budget.reserve(0.25)


@pytest.mark.parametrize(
    ("wanted", "lent"),
    [(None, 0.25), (0.125, 0.125), (0.5, 0.25), (-1.0, 0.0)],
    ids=["all", "some", "more", "negative"],
)
def test_a_budget_lends_at_most_what_is_neither_spent_nor_set_aside_nor_reserved(wanted, lent):
    budget = Budget(1.0, spent=0.25, set_aside=0.25)
    budget.reserve(0.25)
    assert budget.lend(wanted) == lent
    assert budget.set_aside == 0.25 + lent


def test_an_excess_is_reserved_though_the_amount_is_none():
    budget = Budget(1.0)
    assert budget.reserve(0.0, 0.5)
    assert not budget.nothing_reserved


def test_an_exceeded_budget_lends_nothing():
    assert Budget(1.0, spent=1.5).lend(None) == 0.0


def test_a_loan_that_is_freed_is_charged_with_what_was_spent_of_it():
    budget = Budget(1.0, set_aside=0.125)
    budget.free(budget.lend(0.5), 0.25)
    assert (budget.spent, budget.set_aside) == (0.25, 0.125)
    budget.free(0.125, 0.5)
    assert (budget.spent, budget.set_aside) == (0.75, 0.0)


def test_an_amount_fits_by_what_is_spent_and_set_aside_whatever_is_reserved():
    budget = Budget(1.0, spent=0.25, set_aside=0.25)
    budget.reserve(0.5)
    assert budget.fits(0.5)
    assert not budget.fits(0.501)
    tenths = Budget(1.0)
    for _ in range(9):
        tenths.charge(0.0, 0.1)
    assert tenths.fits(0.1 + 1e-12), "a rounding error is no amount"


@pytest.mark.parametrize(
    "change",
    [
        lambda budget: budget.charge(0.5, 0.0),
        lambda budget: budget.set_reserved_aside(0.5),
        lambda budget: budget.free(0.5, 0.0),
    ],
    ids=["charge", "set aside", "free"],
)
async def test_each_change_of_a_budget_wakes_all_that_wait_for_one(change: Callable[[Budget], None]):
    budget = Budget(1.0)
    first, cancelled, last = (asyncio.ensure_future(budget.changed()) for _ in range(3))
    await asyncio.sleep(0)
    assert not first.done()
    cancelled.cancel()
    await asyncio.wait({cancelled})
    change(budget)
    change(budget)  # whoever was woken waits no longer
    await asyncio.sleep(0)
    assert first.done()
    assert last.done()


TOKENS = {"input": 1, "output": 2}


@pytest.mark.parametrize(
    ("given", "prices"),
    [
        (None, {}),
        ("1/2", {"": "1/2"}),
        ("1.5/.5/0.25", {"": "1.5/.5/0.25"}),
        ("ft=m=1/2", {"ft=m": "1/2"}),
        (["1/2", "m=3/4", {"n": "5/6"}], {"": "1/2", "m": "3/4", "n": "5/6"}),
        (TOKENS, {"": TOKENS}),
        ([0.25, 2], {"": [0.25, 2]}),
        ({"m": "1/2", "n": TOKENS, "o": (1, 2)}, {"m": "1/2", "n": TOKENS, "o": (1, 2)}),
    ],
)
def test_prices_are_read_by_model(given, prices):
    assert prices_in(given) == prices


@pytest.mark.parametrize(
    "given", ["", "m", "m=", "1", "1/", "/2", "1/2/3/4", "1,5/2", "-1/2", 5, [1], {"m": "1/2", "n": "o=1/2"}]
)
def test_a_text_that_is_no_price_is_refused(given):
    with pytest.raises(PromptmillError, match="is no price; write IN/OUT or MODEL=IN/OUT"):
        prices_in(given)
