"""Masks in texts, and values in their place again."""

from __future__ import annotations

import json
import random
import re
from urllib.parse import quote

import pytest

from personal_data import texts_in, wide
from promptmill.features.mask.detection import ValueSpan
from promptmill.features.mask.masks import Codes, Masks, strays_in

MAIL, OTHER = "jane@example.com", 'a "b"\n@example.com'


def masks_of(*values: str, secret: bytes = b"secret", label: str = "EMAIL") -> tuple[Masks, list[str]]:
    masks = Masks(Codes(secret), values)
    return masks, [masks.masked(value, [ValueSpan(0, len(value), label)]) for value in values]


def test_a_value_has_one_mask_by_the_secret():
    (_, (one,)), (_, (same,)), (_, (other,)) = masks_of(MAIL), masks_of(MAIL), masks_of(MAIL, secret=b"other")
    assert one == same != other
    assert len({masks_of(f"{at}@example.com")[1][0] for at in range(2_000)}) == 2_000


def test_no_code_is_a_word_of_the_text_or_of_another_value():
    _, (mask,) = masks_of(MAIL)
    masks = Masks(Codes(b"secret"), [f"{MAIL} and {mask}"])
    masked = masks.masked(f"{MAIL} and {mask}", [ValueSpan(0, len(MAIL), "EMAIL")])
    assert masked.count(mask) == 1
    assert masks.put_back(masked) == f"{MAIL} and {mask}"


@pytest.mark.parametrize(
    "form",
    ["[{0}]", "{0}", "({0})", "[ {0} ]", "[{1}]", "{1}", "**{0}**", "[x, {0}]", "<{0}>", "[{2}]", "{2}"],
)
def test_a_mask_in_another_form_is_put_back(form):
    masks, (mask,) = masks_of(MAIL)
    plain = mask[1:-1]
    said = form.format(plain, plain.lower().replace("_", " "), plain.replace("_", "\\_"))
    whole = "{}" if form.startswith("[") and "x" not in form else form.replace("{1}", "{0}").replace("{2}", "{0}")
    assert masks.put_back(f"to {said}.") == f"to {whole.format(MAIL)}."


def changed_forms(mask: str) -> dict[str, str]:
    """Return forms that a model may write in place of a mask, with `*` in place of the value."""
    plain = mask[1:-1]
    label, _, code = plain.partition("_")
    return {
        "a blank in the code": f"[{label}_{code[:4]} {code[4:]}]",
        "blanks": f"[ {label} {code} ]",
        "full width": wide(mask),
        "full width, no bracket": wide(plain),
        "a non-breaking hyphen": mask.replace("_", "\u2011"),
        "a dash, no bracket": plain.replace("_", "\u2013"),
        "an invisible character": f"[{label}_{code[:3]}\u200b{code[3:]}]",
        "lower case": mask.lower(),
        "entities": f"&#91;{plain}&rsqb;",
        "an escape": rf"\u005b{plain}\u005d",
    }


@pytest.mark.parametrize("form", changed_forms("[EMAIL_XXXXXXXX]"))
def test_a_changed_mask_is_put_back(form):
    masks, (mask,) = masks_of(MAIL)
    assert masks.put_back(f"to {changed_forms(mask)[form]}, and on") == f"to {MAIL}, and on"


@pytest.mark.parametrize("quoted", [quote, lambda text: quote(text).lower(), lambda text: quote(quote(text))])
def test_a_mask_in_a_quoted_address_becomes_the_quoted_value(quoted):
    masks, (mask, other) = masks_of(MAIL, "Jörg Müller & Co")
    if "%5b" in (written := f"https://x.example/?to={quoted(mask)}&name={quoted(other)}#{mask}"):
        quoted = quote
    expected = f"https://x.example/?to={quoted(MAIL)}&name={quoted('Jörg Müller & Co')}#{MAIL}"
    assert masks.put_back(written) == expected


def test_the_digits_of_a_code_are_no_signs_of_quoting():
    for at in range(5_000):
        masks, (mask,) = masks_of(f"{at}@x", label="ID")
        if mask.startswith("[ID_25"):
            break
    assert masks.put_back(quote(mask)) == f"{at}%40x"


def test_a_single_quoted_bracket_is_no_part_of_a_mask():
    masks, (mask,) = masks_of(MAIL)
    assert masks.put_back(f"x?to=%5B{mask[1:-1]}&b") == f"x?to=%5B{MAIL}&b"


@pytest.mark.parametrize(
    "around",
    ['{{"a": "{}"}}', '[{{"a": "{}"}}]', '{{\n  "a": "{}"\n}}\n', '["{}"]', '{{"a": "{}"}}\n{{"a": "{}"}}'],
)
@pytest.mark.parametrize("before", ["", "Here it is:\n", "So: {b} and ", "```json\n"])
def test_a_mask_in_json_becomes_a_part_of_its_string(around, before):
    masks, (mask,) = masks_of(OTHER)
    text = masks.put_back(f"{before}{around.format(mask, mask)}\n```\n{mask}")
    assert text.endswith(f"\n```\n{OTHER}")
    inside = text.removeprefix(before).removesuffix(f"\n```\n{OTHER}")
    for part in inside.splitlines() if around.count("{}") > 1 else [inside]:
        assert OTHER in [*texts_in(json.loads(part))]


@pytest.mark.parametrize(
    "text", ["{{{}}}", "{{ {}, and more", '{{"a": "{}", and more', "[{}] said", "[1] {}", "{{b}} {}"]
)
def test_an_answer_that_only_begins_like_json_has_the_value_as_it_is(text):
    masks, (mask,) = masks_of(OTHER)
    assert masks.put_back(text.format(mask)) == text.format(OTHER)


def test_a_value_that_was_found_in_json_is_put_back_as_it_was_written():
    written = r"Jos\u00e9 \"Pepe\""
    masks, (mask,) = masks_of(written)
    assert masks.put_back(f'{{"a": "{mask}"}} or {mask}') == f'{{"a": "{written}"}} or {written}'


@pytest.mark.parametrize("change", [str, str.lower, str.title])
def test_the_masks_of_a_long_text_are_put_back(change):
    text = "\n".join(f"{at}@example.com" for at in range(400))
    masks = Masks(Codes(b"secret"), [text])
    spans = [ValueSpan(found.start(), found.end(), "EMAIL") for found in re.finditer(".+", text)]
    assert len(text) > 5_000
    assert masks.put_back(change(masks.masked(text, spans))) == text


def test_masks_of_nobody_are_strays_unless_the_text_has_them():
    masks = Masks(Codes(b""), ["the text has [EMAIL_3]"])
    assert masks.strays("[EMAIL_3], [EMAIL_99] and [K7Q2M4XP]") == ["[EMAIL_99]"]


@pytest.mark.parametrize("form", changed_forms("[EMAIL_XXXXXXXX]"))
def test_a_mask_with_a_wrong_letter_stays_and_is_named(form):
    masks, (mask,) = masks_of(MAIL)
    wrong = "Z" if mask[-2] != "Z" else "Y"
    said = changed_forms(f"{mask[:-2]}{wrong}]")[form]
    assert masks.put_back(f"to {said}.") == f"to {said}."
    assert masks.strays(f"to {mask} and {said}.") == ([said] if form != "a dash, no bracket" else [])
    assert masks.strays(f"to {mask[1:-2]}{wrong}.") == [f"{mask[1:-2]}{wrong}"]


@pytest.mark.parametrize(
    "text",
    ["[Figure 12]", "[see page 3]", "ISO_20250807", "id_12345678", "name_lastname", "[name of sender]", "[1]", "[A-1]"],
)
def test_other_words_in_brackets_are_no_masks(text):
    assert [*strays_in(text)] == []


def test_each_beginning_of_a_growing_answer_is_one_of_the_whole_answer():
    chance = random.Random(1)
    masks, shown = masks_of(MAIL, "bob@example.com", OTHER)
    forms = [*shown, shown[0][1:-1], shown[1].lower(), shown[0][:-1], "[EMAIL_99]", "[1]", "word", "a [b", "R&D", "5 %"]
    forms += [form for mask in shown for form in changed_forms(mask).values()]
    forms += [form for mask in shown for form in (quote(mask), quote(quote(mask)), f'{{"a": "{mask}"}}', "{", "\n{")]
    for _ in range(150):
        answer = chance.choice([" ", "\n", "/"]).join(chance.choices(forms, k=6)) + "."
        whole, before = masks.put_back(answer), ""
        for end in range(len(answer) + 1):
            growing = masks.growing(answer[:end])
            assert growing.startswith(before)
            assert whole.startswith(growing), (answer, growing)
            before = growing
