"""The numbers of answers."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from promptmill.core.bounds import LONGEST_SCHEMA
from promptmill.features.decisions.client_questions import above_chance, choice, closeness, place_of, scale, shares_of

SHARE = st.one_of(st.none(), st.floats(0, 1))


@pytest.mark.thorough
@given(st.lists(SHARE, min_size=2, max_size=300))
def test_shares_are_a_distribution_or_missing(reported):
    shares = shares_of(reported)
    if shares is None:
        assert not sum(share or 0 for share in reported)
        return
    assert math.isclose(math.fsum(shares), 1, abs_tol=0.1)
    assert all(0 <= share <= 1 for share in shares)
    assert 0 <= above_chance(shares) <= 1
    assert 0 <= closeness(shares) <= 1


def test_shares_of_two_decimals_stay_as_they_are():
    assert shares_of([0.33, 0.33, 0.33]) == [0.33, 0.33, 0.33]
    assert shares_of([0.5, 0.7]) == pytest.approx([0.5 / 1.2, 0.7 / 1.2])


@pytest.mark.parametrize("reported", [[None, None], [math.nan, None], [0.0, 0.0], [-1.0, math.inf]])
def test_without_a_share_there_is_no_distribution(reported):
    assert shares_of(reported) is None


def test_of_equal_shares_the_first_is_chosen():
    assert place_of([0.25, 0.375, 0.375]) == 1


@pytest.mark.parametrize("asked", [choice, scale])
def test_options_of_any_length_are_refused(asked):
    with pytest.raises(ValueError, match="more than 262,144 characters"):
        asked(None, "Which?", [("a" * LONGEST_SCHEMA, ""), ("b", "")])
