"""Masks in texts, and values in their place again."""

from __future__ import annotations

import json
import random
import re

import pytest

from promptmill.features.mask.detection import ValueSpan
from promptmill.features.mask.masks import Codes, Masks

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


def test_a_mask_in_json_becomes_a_part_of_its_string():
    masks, (mask,) = masks_of(OTHER)
    assert json.loads(masks.put_back(json.dumps({"mail": mask}), is_json=True)) == {"mail": OTHER}


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


def test_each_beginning_of_a_growing_answer_is_one_of_the_whole_answer():
    chance = random.Random(1)
    masks, shown = masks_of(MAIL, "bob@example.com")
    forms = [*shown, shown[0][1:-1], shown[1].lower(), shown[0][:-1], "[EMAIL_99]", "[1]", "word", "a [b"]
    for _ in range(300):
        answer = " ".join(chance.choices(forms, k=6)) + "."
        whole, before = masks.put_back(answer), ""
        for end in range(len(answer) + 1):
            growing = masks.growing(answer[:end])
            assert growing.startswith(before)
            assert whole.startswith(growing), (answer, growing)
            before = growing
