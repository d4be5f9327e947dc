"""Vectors in replies: numbers never become those of another text."""

import base64
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
    ],
)
def test_what_is_no_vector_of_the_usual_length_is_none(wrong):
    items = ({"index": at, "embedding": ONE} for at in range(2))
    assert _found(*items, {"index": 2, "embedding": wrong}, count=3) == [ONE, ONE, []]


def test_a_vector_of_one_number_is_that_number():
    assert _found({"index": 0, "embedding": [7]}, {"index": 1, "embedding": [0]}) == [[7.0], [0.0]]


def test_a_reply_that_is_no_object_is_an_error():
    for body in (b"[1]", b"{", b""):
        with pytest.raises(ValueError):
            vectors.read(body, 1)
