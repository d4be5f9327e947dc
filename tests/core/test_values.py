"""JSON with whole numbers beyond 64 bits."""

import json
import unicodedata

import pytest

from promptmill.core.values import composed, exact_float, has_long_fraction, json_text, read_json


@pytest.mark.parametrize("number", [2**63, 2**64, -(2**63) - 1, 10**30])
def test_a_whole_number_is_read_and_written_exactly(number):
    text = f'{{"a":[{number},0.5,"ä"]}}'
    assert read_json(text) == read_json(text.encode()) == {"a": [number, 0.5, "ä"]}
    assert json_text(read_json(text)) == text


@pytest.mark.parametrize("text", ["", "[1", "[NaN", "[" * 100_000 + "1" * 20, '["\ud800"]', "[" + "1" * 5_000 + "]"])
def test_a_text_that_cannot_be_read_is_one_kind_of_error(text):
    with pytest.raises(json.JSONDecodeError):
        read_json(text)


@pytest.mark.parametrize(
    "number", ["8.000000000000001", "1234567890123456.7", "-9007199254740993.0", "1.2345678901234567e-5"]
)
def test_a_fraction_that_a_float_would_round_is_written_with_its_digits(number):
    assert has_long_fraction(f'{{"a": {number}}}'.encode())
    assert float(str(exact_float(number))) == float(number)
    assert str(exact_float(number)) == (number if "e" not in number else "0.000012345678901234567")


@pytest.mark.parametrize("number", [1 / 3, 0.1, 19.99, 8.000000000000002, 5e-324])
def test_a_float_of_a_program_is_read_as_a_float(number):
    for text in (repr(number), json_text(number)):
        assert not has_long_fraction(f'{{"a": {text}, "ä": "\\u00e4"}}'.encode())
        assert exact_float(text) == number
        assert type(exact_float(text)) is float


@pytest.mark.parametrize("marks", ["\u0301\u0316", "\u0f71\u0f72"])
def test_a_text_is_composed_and_an_endless_run_of_marks_stays_as_it_is(marks):
    """Sorting the marks of ten megabytes takes hours."""
    usual, endless = f"か\u3099e\u0301{marks * 14}─ e{marks}", marks * 100_000
    assert composed(usual) == unicodedata.normalize("NFC", usual) != usual
    assert composed(f"e\u0301 {endless}e\u0301") == f"é {endless}é"
