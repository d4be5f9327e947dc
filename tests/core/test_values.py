"""JSON with whole numbers beyond 64 bits."""

import json

import pytest

from promptmill.core.values import json_text, read_json


@pytest.mark.parametrize("number", [2**63, 2**64, -(2**63) - 1, 10**30])
def test_a_whole_number_is_read_and_written_exactly(number):
    text = f'{{"a":[{number},0.5,"ä"]}}'
    assert read_json(text) == read_json(text.encode()) == {"a": [number, 0.5, "ä"]}
    assert json_text(read_json(text)) == text


@pytest.mark.parametrize("text", ["", "[1", "[NaN", "[" * 100_000 + "1" * 20, '["\ud800"]', "[" + "1" * 5_000 + "]"])
def test_a_text_that_cannot_be_read_is_one_kind_of_error(text):
    with pytest.raises(json.JSONDecodeError):
        read_json(text)
