"""Amounts of money as text."""

from __future__ import annotations

import pytest

from promptmill.core.money import dollars


@pytest.mark.parametrize(
    ("amount", "shown"),
    [(0, "$0.00"), (0.000072, "$0.000072"), (0.0123, "$0.012"), (1.5, "$1.50"), (1234.5, "$1,234.50")],
)
def test_an_amount_is_a_decimal_with_two_digits_that_count(amount, shown):
    assert dollars(amount) == shown
