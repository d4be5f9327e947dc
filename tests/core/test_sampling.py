"""Sampling parameters: what is allowed, what is said of the rest."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from promptmill.core.sampling import Sampling


def test_only_what_is_set_is_given():
    assert Sampling().given() == {}
    assert Sampling(temperature=0, top_p=None, seed=7).given() == {"temperature": 0, "seed": 7}


def test_one_stop_text_is_a_list_of_one():
    assert Sampling(stop="\n").stop == ["\n"]
    assert Sampling(stop=["a", "b"]).stop == ["a", "b"]


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": -1},
        {"temperature": "hot"},
        {"top_p": 0},
        {"top_p": 1.1},
        {"max_tokens": 0},
        {"max_tokens": 1.5},
        {"stop": [1]},
        {"stop": 5},
        {"presence_penalty": 3},
        {"frequency_penalty": -3},
        {"top_k": -2},
        {"min_p": 2},
        {"repetition_penalty": 0},
        {"response_format": "json"},
        {"temperature": float("inf")},
        {"top_k": 1.5},
        {"best_of": 2},
    ],
)
def test_values_out_of_bounds_and_unknown_names_are_refused(wrong):
    with pytest.raises(ValidationError):
        Sampling(**wrong)
