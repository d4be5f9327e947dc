"""The one form of a text in which values are searched, and the places of its characters in the original."""

from __future__ import annotations

import html.entities
import unicodedata
from urllib.parse import quote

import pytest

from promptmill.features.mask.folded_text import Folded, lower


@pytest.mark.parametrize(
    ("code", "character"),
    [
        ("&#64;", "@"),
        ("&#x40;", "@"),
        ("&#64", "@"),
        ("&commat;", "@"),
        ("&nbsp;", " "),
        ("&uuml;", "ü"),
        ("&uuml", "ü"),
        ("&amp;#64;", "@"),
        ("&amp;amp;uuml;", "ü"),
        (r"\u0026#64;", "@"),
        ("%26%2364%3B", "@"),
        ("%40", "@"),
        ("%2540", "@"),
        ("%C3%BC", "ü"),
        ("%25C3%25BC", "ü"),
        ("%FC", "ü"),
        ("%20", " "),
        (r"\/", "/"),
        (r"\x40", "@"),
        (r"\u{40}", "@"),
        (r"\\\\u0040", "@"),
        ("&shy;", ""),
        ("&#48;", "0"),
        ("\uff10", "0"),
        ("&#65296;", "0"),
    ],
)
def test_a_code_becomes_its_character_and_keeps_its_place(code, character):
    text = f"ab{code}cd"
    folded = Folded.of(text)
    assert folded.text == f"ab{character}cd"
    assert folded.span(0, len(folded.text)) == (0, len(text))
    if character:
        assert text[slice(*folded.span(2, 3))] == code


def test_each_entity_of_one_letter_sign_or_space_is_read():
    for name, character in html.entities.html5.items():
        if len(character) == 1 and name[-1] == ";":
            text = f"ab&{name}cd"
            forms = character, unicodedata.normalize("NFKC", character)
            assert Folded.of(text).text in {Folded.of(f"ab{form}cd").text for form in forms}, name


@pytest.mark.parametrize("letter", ["ü", "é", "ж", "明", "한", "@", "€", "\u2009"])
def test_each_letter_of_an_address_is_read(letter):
    assert Folded.of(f"ab{quote(letter)}cd").text.split() == Folded.of(f"ab{letter}cd").text.split()


@pytest.mark.parametrize(
    "text", ["5 % & R&D", "AT&T; &none;", "100%", "%00", "a & b", "&#1114112", r"\q \u12", "&", "%"]
)
def test_other_signs_stay(text):
    assert Folded.of(text).text.replace("\ufffd", "&#1114112") == text


@pytest.mark.parametrize(
    ("one", "other"), [("Weiß", "WEISS"), ("STRASSE", "straẞe"), ("ﬁn", "FIN"), ("Σίσυφος", "ΣΊΣΥΦΟΣ"), ("ﬃ", "FFI")]
)
def test_a_letter_and_its_capitals_have_one_form(one, other):
    assert lower(Folded.of(one).text) == lower(Folded.of(other).text)
    assert Folded.of(f"a {one} b").span(2, 2 + len(Folded.of(one).text)) == (2, 2 + len(one))


def test_a_text_of_backslashes_is_read_in_a_number_of_steps_that_grows_with_it():
    # Each backslash is the beginning of at most one search, of at most 12 characters.
    for text in ("\\" * 200_000, "\\u" * 100_000, "&" * 200_000, "%25" * 60_000, "&amp;" * 40_000):
        assert Folded.of(text).text
