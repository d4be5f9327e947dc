"""A text of any signs is searched in a number of steps that grows with it, and with a small number for each sign.

A step is a call of a function, which a profile counts; the time inside of a search by a pattern is in
tests/test_patterns.py.
"""

from __future__ import annotations

import functools
import itertools
import random
import sys
from collections.abc import Callable

import pytest

from promptmill.features.mask.detection import Detectors, ValueSpan
from promptmill.features.mask.kinds import Kinds
from promptmill.features.mask.masks import Codes, Masks
from promptmill.features.mask.names import Names

COUNTRIES = ["DE", "US", "FR", "GB", "IT", "ES", "CN", "JP", "BR", "IN"]
NAMES = ["a", "a b", *(f"{'a ' * count}b" for count in range(1, 40)), "王" * 300 + "明", "w " * 500 + "x", "a\u0301"]
_chance = random.Random(1)
SIGNS = {
    **{
        name: name
        for name in (
            "\\",
            "\\u",
            "&",
            "&amp;",
            "%25",
            "@",
            "a@",
            "(at)",
            "(",
            "[",
            "[A",
            "-",
            "\0",
            "\n",
            "\n ",
            "\u0301",
        )
    },
    **{
        name: name
        for name in (
            "1 ",
            "12 ",
            "1 22 ",
            "123 4567 ",
            "12/",
            "1.",
            "0.",
            "00 ",
            "+1 ",
            "+49 ",
            "DE12 ",
            "1a",
            "123456-",
        )
    },
    **{
        name: name
        for name in (
            "a ",
            "w ",
            "王",
            "a\u0301",
            "\uff11",
            "1\u200b",
            "ß",
            "%C3",
            "&#1",
            "a@a.",
            "2025-08-07 ",
            "{",
            '{"',
            "[1,",
        )
    },
    "pairs": " ".join(f"{_chance.randrange(100):02}" for _ in range(80)) + " ",
    "digits": "".join(_chance.choices("0123456789 .-/()", k=240)),
}
MOST_STEPS = 40
"""The most calls for a sign: each `a` may begin one of the long names, of which 12 words are compared."""


def steps(work: Callable[[], object]) -> int:
    """Return how many functions are called."""
    count = 0

    def counted(frame: object, event: str, argument: object) -> None:
        nonlocal count
        count += event in {"call", "c_call"}

    before = sys.getprofile()
    sys.setprofile(counted)
    try:
        work()
    finally:
        sys.setprofile(before)
    return count


@pytest.fixture(scope="module")
def detectors():
    kinds = ["email", "phone", "iban", "card", "id", *(f"phone:{country}" for country in COUNTRIES)]
    found = Kinds.of(kinds).of_evidence
    return Detectors([*found.of_folded, Names(NAMES)])


@pytest.mark.parametrize("signs", SIGNS)
def test_the_steps_of_a_search_grow_with_the_text(detectors, signs):
    short, long = (SIGNS[signs] * (size // len(SIGNS[signs])) for size in (1_000, 4_000))
    detectors.spans(long)  # results of checks are kept
    first, later = (steps(functools.partial(detectors.spans, text)) for text in (short, long))
    assert later < 5 * first + 1_000
    assert later < MOST_STEPS * len(long)


@pytest.mark.parametrize("signs", [*SIGNS, '["', '["[', "[EMAIL_", "EMAIL_K7Q2M4X", "K7Q2 M4XP "])
def test_the_steps_of_putting_values_back_grow_with_the_answer(signs):
    masks = Masks(Codes(b"secret"), ["jane"])
    mask = masks.masked('ja"ne', [ValueSpan(0, 5, "EMAIL")])
    short, long = ((SIGNS.get(signs, signs) * size)[:size] for size in (1_000, 4_000))
    for work in (masks.put_back, masks.growing, masks.strays):
        first, later = (steps(functools.partial(work, f"{text} {mask} {text}")) for text in (short, long))
        assert later < 5 * first + 1_000


PIECES = [
    "1",
    "4111",
    "030",
    "901820",
    " ",
    "-",
    "/",
    ".",
    "(",
    ")",
    "+49",
    "@",
    "anna",
    "example.com",
    "&#64;",
    "&amp;",
    "&",
]
PIECES += [
    "%40",
    "%C3%BC",
    "%",
    "\\",
    "\\u0041",
    "\\n",
    "\n",
    "\n  ",
    "ß",
    "\ufb01",
    "王小明",
    "客户",
    "Jane",
    "Doe",
    "e\u0301",
    "\u0301",
]
PIECES += [
    "\u200b",
    "\uff11",
    "\uff3b",
    "]",
    "[",
    "EMAIL_",
    "DE89370400440532013000",
    "12:30",
    "2025-08-07",
    ",",
    "X",
    "a",
    "_",
    "\0",
]
PIECES += ['"', "'", "{", "İ", "ς", "&uuml", "&nbsp;", "\\\\u0040", "%2540"]


@pytest.mark.parametrize("seed", range(4))
def test_any_text_is_put_back_as_it_was_written(seed):
    chance = random.Random(seed)
    names = Names(["Jane Doe", "Weiß", "王小明", "a", "Müller", "b c", "Sony中国"])
    detectors = Detectors([*Kinds.of(["email", "phone:DE", "iban", "card", "id"]).of_evidence.of_folded, names])
    for _ in range(250):
        text = "".join(chance.choices(PIECES, k=chance.randrange(1, 30)))
        spans = detectors.spans(text)
        assert all(before.end <= after.start < after.end for before, after in itertools.pairwise(spans))
        assert all(0 <= span.start < span.end <= len(text) for span in spans)
        masks = Masks(Codes(b"secret"), [text])
        masked, shown = masks.masked(text, spans), ""
        assert masks.put_back(masked) == text
        for end in range(0, len(masked), 5):
            growing = masks.growing(masked[:end])
            assert growing.startswith(shown)
            assert text.startswith(growing), (masked, end)
            shown = growing
