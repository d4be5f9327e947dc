"""Vectors in replies: numbers never become those of another text."""

import base64
import random
from array import array

import orjson
import pytest

from promptmill.backends import vectors

ONE, TWO = [0.5, -2.0], [1.0, 0.25]


def _written(numbers):
    return base64.b64encode(array("f", numbers).tobytes()).decode()


def _found(*items, count=2):
    """Return what is read in a reply, as bytes and as a payload, which must be the same."""
    reply = {"data": [*items], "usage": {"prompt_tokens": 3}}
    payload, read = vectors.read(orjson.dumps(reply), count)
    assert payload == {"usage": {"prompt_tokens": 3}}
    assert read == vectors.in_payload(reply, count)
    return [[*vectors.floats_of(one)] for one in read]


@pytest.mark.parametrize("written", [list, _written])
def test_each_text_has_the_vector_with_its_index(written):
    found = _found({"index": 1, "embedding": written(TWO)}, {"index": 0, "embedding": written(ONE)})
    assert found == [ONE, TWO]


@pytest.mark.parametrize(
    "wrong",
    [
        0,
        1,
        -1,
        1.5,
        True,
        None,
        "",
        "AAA",
        "!!!!",
        [],
        [None],
        ["1"],
        [[1.0, 2.0]],
        [True, False],
        {"at": 0},
        [1e40, 0],
        [-1e20, 0],
        [0.0, -0.0],
        _written([0.0, 0.0]),
        _written([0.0, float("nan")]),
        _written([1.0, 2.0])[:-1],
    ],
)
def test_what_is_no_vector_of_the_usual_length_is_none(wrong):
    items = ({"index": at, "embedding": ONE} for at in range(2))
    assert _found(*items, {"index": 2, "embedding": wrong}, count=3) == [ONE, ONE, []]


@pytest.mark.thorough
@pytest.mark.parametrize("made_of", ["f", "d"])
@pytest.mark.parametrize("size", [64, 1536])
def test_doubles_in_base64_are_no_vector_of_twice_as_many_numbers(made_of, size):
    """Computed as doubles, or converted to them from 32 bits."""
    drawn = random.Random(1)
    for _ in range(200):
        numbers = array(made_of, (drawn.gauss(0, size**-0.5) for _ in range(size)))
        written = base64.b64encode(array("d", numbers).tobytes()).decode()
        assert _found({"index": 0, "embedding": written}, count=1) == [[]]


def test_a_vector_of_one_number_is_that_number():
    assert _found({"index": 0, "embedding": [7]}, {"index": 1, "embedding": [8]}) == [[7.0], [8.0]]


def _numbered(*numbers, count):
    """Return the vectors of a reply whose items have these numbers, and as vectors their places from 1."""
    items = [{"embedding": [place], "index": number} for place, number in enumerate(numbers, 1)]
    return _found(*items, count=count)


@pytest.mark.parametrize(
    ("numbers", "found"),
    [
        ([2, 0, 1], [2, 3, 1]),
        ([None, 1, 2], [1, 2, 3]),
        (["0", "2", "1"], [1, 3, 2]),
        ([0.0, 2.0, 1.0], [1, 3, 2]),
        ([0, None, 2], [1, 2, 3]),
        ([0, 2], [1, None, 2]),
        ([2, 0], [2, None, 1]),
    ],
)
def test_vectors_with_a_number_for_each_text_belong_to_it(numbers, found):
    assert _numbered(*numbers, count=3) == [[] if one is None else [one] for one in found]


@pytest.mark.parametrize(
    "numbers",
    [
        *([0, 1], [None, None], [1, 2], [0], [None], []),
        *(
            [1, 2, 3],
            [0, 1, 3],
            [0, 1, -1],
            [0, 0, 1],
            [0, 0, 0],
            [0, 1.5, 2],
            [0, True, 2],
            [0, "one", 2],
            [0, [1], 2],
        ),
        *([0, 1, 2, 3], [0, 1, 2, 2], [None, None, None, None], [0, None], [None, 2]),
        *([None, None, None], [0, None, None], [None, None, 2], [2, 0, None]),
    ],
)
def test_no_vector_counts_if_one_may_be_of_another_text(numbers):
    assert _numbered(*numbers, count=3) == [[], [], []]


@pytest.mark.parametrize("number", [0, 1, 7, None, "x"])
def test_the_only_vector_for_the_only_text_needs_no_number(number):
    assert _numbered(number, count=1) == [[1.0]]
    assert _numbered(number, number, count=1) == [[]]


def test_a_reply_without_a_list_has_no_vectors():
    for data in (None, {}, "AAAA", 7):
        assert vectors.read(orjson.dumps({"data": data}), 2)[1] == vectors.in_payload({"data": data}, 2) == ()


@pytest.mark.parametrize("number", [b"NaN", b"Infinity", b"-Infinity", b"null", b"true", b"1e999", b""])
def test_what_is_no_number_makes_no_vector(number):
    body = b'{"data": [{"index": 0, "embedding": [1.0, %b]}, {"index": 1, "embedding": [1.0, 2.0]}]}' % number
    assert [len(one) for one in vectors.read(body, 2)[1]] == [0, 8]


def test_a_reply_that_is_no_object_is_an_error():
    for body in (b"[1]", b"{", b""):
        with pytest.raises(ValueError):
            vectors.read(body, 1)
