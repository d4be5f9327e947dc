"""Values that are found in texts, however they are written, and texts that have none."""

from __future__ import annotations

import functools
import random
import re
from pathlib import Path

import pytest

from personal_data import FORMS, NAMES
from promptmill.core.errors import PromptmillError
from promptmill.features.mask.detection import Detectors, ValueSpan
from promptmill.features.mask.folded_text import Folded
from promptmill.features.mask.kinds import Kinds
from promptmill.features.mask.names import Names
from promptmill.features.mask.numbers import IDS

ALL = ["email", "phone", "iban", "card", "id"]


@pytest.fixture(scope="module")
def kinds():
    return Kinds.of(ALL)


def found(detectors, text):
    return [(span.label, text[span.start : span.end]) for span in detectors.spans(text)]


@pytest.mark.parametrize("kind", [kind for kind in FORMS if kind != "name"])
def test_each_form_of_a_value_is_found_as_a_whole(kinds, kind):
    for seed in range(30):
        forms = FORMS[kind](random.Random(seed))
        assert len({*forms}) >= 10
        for form in forms:
            assert found(kinds.of_evidence, f"It is {form}, he said.") == [(kind.upper(), form)], ascii(form)


def test_each_form_of_a_name_is_found():
    detectors = Detectors([Names(NAMES)])
    for seed in range(30):
        for form in FORMS["name"](random.Random(seed)):
            text = f"It is {form}, he said."
            assert found(detectors, text) == [("NAME", form.removesuffix("\u2019s"))], ascii(form)


@pytest.mark.parametrize(
    "text",
    [
        "On 2026-03-07 at 12:30, invoice 20260307-1234 of EUR 12,345,678.90 or 1.234.567,89",
        "Order 4111 1111 1111 1112, part 123456789012, version 10.0.19045.3803",
        "The sum of 120, 340, 500 and 1200 is 2160; 1 2 3 4 5 6 7 8 9",
        "3a9f4c1b2e7d4111111111111111aa and v1.2.3-20260307 and IMG_20260307_123456",
        "a@b, @name, name@host, 5 @ 3.50, see (at) the end. Next",
        "192.168.100.200:8080 and 2001:db8::1",
        "DE89 3704 0044 0532 0130 01 has a wrong check digit",
        "lat 52.5200066, lon 13.4049540",
    ],
)
def test_an_ordinary_text_has_no_values(kinds, text):
    assert found(kinds.of_evidence, text) == []


@pytest.mark.parametrize(
    "around",
    [
        *(
            "我的邮箱是{}",
            "{}です",
            "메일은{}입니다",
            "{}。谢谢",
            "{}\uff0e谢谢",
            "{}谢谢.Bye",
            "{}.Thanks",
            "{}.Danke",
            "{}.So nice",
        ),
        *(
            "{}.thanks",
            "user={}",
            '"{}"',
            "'{}'",
            "\u2018{}\u2019",
            "**{}**",
            "_{}_",
            "__{}__",
            "`{}`",
            "~~{}~~",
            "|{}|",
            "<{}>",
        ),
        *(
            "&lt;{}&gt;",
            "%22{}%22",
            "mailto:{}?subject=x",
            "name/{}",
            "[{}](x)",
            "{{{}}}",
            "a={}&b=1",
            "- {}",
            "-{}",
            "{}-",
        ),
        *("#{}", "\\n{}", "{}...", "..{}", "+{}", "{}'s", "https://x.example/?to={}&cc=1"),
    ],
)
def test_a_mask_of_an_address_has_no_neighbour(kinds, around):
    assert found(kinds.of_evidence, around.format("anna@example.com")) == [("EMAIL", "anna@example.com")]


@pytest.mark.parametrize(
    "address",
    [
        *("o'neil@example.com", "a+tag@example.com", "a.b-c_d@sub.example.co.uk", "R&D@example.com", "_x@example.com"),
        *("anna.@docomo.example", '"a b"@example.com', "jane@[192.168.0.1]", "bounce+jane=example.com@list.example"),
        *(
            "müller@example.de",
            "x@abc日本.jp",
            "почта@пример.рф",
            "x@例子.公司",
            "用户@例子.公司",
            "x@xn--mller-kva.de",
        ),
        *("Anna@Example.Com", "anna@mail.example.Com", "ANNA@EXAMPLE.COM.AU", "jane (dot) doe (at) example (dot) com"),
        *("jane&#64;example&#46;com", "jane&commat;example&period;com", "jane%40example.com", r"jane\u0040example.com"),
    ],
)
def test_an_address_is_found_as_a_whole(kinds, address):
    assert found(kinds.of_evidence, f"It is {address}, he said.") == [("EMAIL", address)]


@pytest.mark.parametrize("between", [r"\n", r"\u00a0", "\n    ", "\n> ", r"\r\n", "\t"])
def test_a_number_is_found_over_json_escapes_and_indented_lines(kinds, between):
    text = f'{{"a": "x\u0301 4111 1111{between}1111 1111"}}, {{"b": "jane@{between}example.com"}}'
    assert [value for _, value in found(kinds.of_evidence, text)] == [
        *(f"4111 1111{between}1111 1111", f"jane@{between}example.com")
    ]


def test_numbers_that_follow_each_other_are_apart(kinds):
    text = "+49 30 901820, 4111 1111 1111 1111 5500 0000 0000 0004"
    assert found(kinds.of_evidence, text) == [
        *(("PHONE", "+49 30 901820"), ("CARD", "4111 1111 1111 1111"), ("CARD", "5500 0000 0000 0004"))
    ]


@pytest.mark.parametrize(
    ("region", "text", "numbers"),
    [
        ("DE", "030 901820, (030) 901820 and 0171/1234567, but 901820 and 01.02.2026", 3),
        ("US", "(415) 555-2671, 415-555-2671 and 1-415-555-2671, but 4155552671", 3),
        ("FR", "06 12 34 56 78 and 0612345678", 2),
        ("CN", "13812345678 and 010-62345678", 2),
    ],
)
def test_numbers_of_a_country_need_no_plus(region, text, numbers):
    assert len(found(Kinds.of([f"phone:{region}"]).of_evidence, text)) == numbers
    assert found(Kinds.of(["phone"]).of_evidence, text) == []


@pytest.mark.parametrize(
    "written",
    ["12345678-Z", "X-1234567-L", "131052-308T", "123-45-6789", "756.9217.0769.85", "880320-0016"],
)
def test_ids_have_their_own_forms(kinds, written):
    assert found(kinds.of_evidence, f"id {written}.") == [("ID", written)]


def test_an_id_with_a_weak_check_counts_only_for_its_country():
    assert found(Kinds.of(["id"]).of_evidence, "111222333") == []
    assert found(Kinds.of(["id:NL"]).of_evidence, "111222333") == [("ID", "111222333")]
    with pytest.raises(PromptmillError, match="no id of XX is known"):
        Kinds.of(["id:XX"])


def test_an_id_of_an_unknown_place_is_none(kinds):
    assert found(kinds.of_evidence, "111111199001010000 and 11010519491231002X") == [("ID", "11010519491231002X")]


def test_an_account_and_a_number_may_share_a_run(kinds):
    assert found(kinds.of_evidence, "DE89 3704 0044 0532 0130 00 4111 1111 1111 1111") == [
        *(("IBAN", "DE89 3704 0044 0532 0130 00"), ("CARD", "4111 1111 1111 1111"))
    ]


def test_a_name_is_found_only_as_a_whole_word():
    names = ["Jane Doe", "Jane", "Jane van Doe", "Li", "O'Neil", "王小明", "Иван", "Ōno", "Zoë Dvořák"]
    text = "Janet, Jane van Dyk, JANE DOE; Lille and Li; o'neil. 我是王小明的; Иванов, иван\u2019s; Ōno, Zoë Dvořá"
    assert found(Detectors([Names(names)]), text) == [
        ("NAME", name) for name in ("Jane", "JANE DOE", "Li", "o'neil", "王小明", "иван", "Ōno")
    ]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("Müller & Söhne GmbH", "von MÜLLER & SÖHNE GMBH."),
        ('José "Pepe" Núñez', '{"a": "Jos\\u00e9 \\"Pepe\\" N\\u00fa\\u00f1ez."}'),
        ("jane_doe@example.com/x?y=1", "see Jane_Doe@example.com/x?y=1."),
        ("İSTANBUL I\u015f\u0131k", "in istanbul \u0131\u015f\u0131k."),
        ("Istanbul", "in İSTANBUL."),
        ("\u0664\u0665\u0666-77", "order 456-77."),
        ("राम कुमारी", "यह राम\nकुमारी."),
        ("★★☆", "from ★★☆."),
    ],
)
def test_a_name_may_have_any_signs(name, text):
    ((label, value),) = found(Detectors([Names([name])]), text)
    assert label == "NAME"
    assert text.partition(value)[2] in {".", '."}'}


@pytest.mark.parametrize("name", ["Jane Doe", "Zoë Dvořák", "Иван", "Weiß", "Li", "Sony中国"])
@pytest.mark.parametrize("around", ["客户{}说", "고객{}는", "メール{}さん", "ลูกค้า{}ครับ", "id_{}_x"])
def test_a_name_is_found_beside_letters_of_scripts_without_spaces_and_beside_an_underscore(name, around):
    assert found(Detectors([Names([name])]), around.format(name)) == [("NAME", name)]


@pytest.mark.parametrize(
    ("name", "written"),
    [
        *(("Jane Doe", f"Jane{space}Doe") for space in ("&nbsp;", "%20", "+", "&#32;", "\\n")),
        *(
            ("Müller", written)
            for written in ("M&uuml;ller", "M%C3%BCLLER", "M&amp;uuml;ller", "Mu&#776;ller", r"m\u00fcller")
        ),
        *(("Weiß", "WEISS"), ("Weiss", "Weiß"), ("Σίσυφος", "ΣΊΣΥΦΟΣ"), ("Finn", "ﬁnn")),
    ],
)
def test_a_name_is_found_in_codes_and_in_capitals(name, written):
    assert found(Detectors([Names([name])]), f"It is {written}.") == [("NAME", written)]


def test_names_that_overlap_are_one_value():
    assert found(Detectors([Names(["王小", "小明", "Doe", "Jane Doe"])]), "王小明 and Jane Doe") == [
        *(("NAME", "王小明"), ("NAME", "Jane Doe"))
    ]


def test_a_value_of_many_words_is_found_as_a_whole():
    value = " ".join(f"w{n}" for n in range(300))
    detectors = Detectors([Names([value, "字" * 100, "w1"])])
    text = f"w1 says: {value.replace(' ', ', ').upper()}! {'字' * 100}"
    assert [len(span) for _, span in found(detectors, text)] == [2, len(value) + 299, 100]


def test_the_words_of_a_prompt_keep_names_that_are_words(tmp_path):
    (tmp_path / "names.txt").write_text("Mark\nJane Doe\n")
    kinds = Kinds.of([str(tmp_path / "names.txt")])
    assert found(kinds.of_instructions, "Mark the mails of Jane Doe") == [("NAME", "Jane Doe")]
    assert found(kinds.of_evidence, "Mark the mails of Jane Doe") == [("NAME", "Mark"), ("NAME", "Jane Doe")]


def test_names_come_from_a_column(tmp_path):
    file = tmp_path / "people.csv"
    file.write_text("id,name\n1,Jane Doe\n2,Bob\n")
    assert found(Kinds.of([f"{file}#name"]).of_evidence, "bob and jane doe") == [("NAME", "bob"), ("NAME", "jane doe")]
    with pytest.raises(PromptmillError, match=r"has the columns id, name; name one of them: .*people.csv#id"):
        Kinds.of([str(file)])
    with pytest.raises(PromptmillError, match=r"none.csv, the names to mask, cannot be read"):
        Kinds.of([str(tmp_path / "none.csv")])


def test_a_function_of_another_package_finds_values(monkeypatch, tmp_path):
    # The interface of Presidio: `analyze` returns objects with `start`, `end` and `entity_type`.
    (tmp_path / "my_masks.py").write_text(
        "def people(text, label='person'):\n    at = text.find('Jane')\n"
        "    return [(at, at + 4, label)] if at >= 0 else []\n"
        "def short(text):\n    return people(text, '1 p')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    detectors = Kinds.of(["email", "my_masks:people"]).of_evidence
    assert found(detectors, "Jane, jane@example.com") == [("PERSON", "Jane"), ("EMAIL", "jane@example.com")]
    assert found(Kinds.of(["my_masks:short"]).of_evidence, "Jane") == [("VALUE", "Jane")]
    with pytest.raises(PromptmillError, match="my_masks:nobody cannot be imported"):
        Kinds.of(["my_masks:nobody"])


@pytest.mark.parametrize(
    ("ends", "joined"),
    [
        ([(0, 10), (2, 4), (3, 12)], [(0, 12)]),
        ([(3, 12), (2, 4), (0, 10)], [(0, 12)]),
        ([(0, 4), (0, 8), (2, 6)], [(0, 8)]),
        ([(0, 9), (1, 3), (4, 6), (9, 12)], [(0, 9), (9, 12)]),
    ],
)
def test_a_value_that_detectors_of_packages_find_in_parts_is_masked_from_its_first_to_its_last_character(ends, joined):
    spans = [ValueSpan(start, end, label) for (start, end), label in zip(ends, "ABCD", strict=False)]
    detectors = Detectors([], [functools.partial(lambda span, text: [span], span) for span in spans])
    assert [span[:2] for span in detectors.spans("Jane van Doe, Anna")] == joined
    assert detectors.spans("Jane van Doe, Anna")[0].label == "A"


def test_the_page_names_the_countries_of_the_ids():
    page = (Path(__file__).parents[3] / "docs" / "tasks" / "mask.md").read_text()
    strong, weak = (
        {country for country, its in IDS.items() if any(each.is_strong is is_strong for each in its)}
        for is_strong in (True, False)
    )
    (of_all,), (of_some,) = (re.findall(rf"^\| `{kind}` \| (.*) \|$", page, re.MULTILINE) for kind in ("id", "id:NL"))
    assert {*re.findall(r"\b[A-Z]{2}\b", of_all)} | {"US"} == strong
    assert {*re.findall(r"\b[A-Z]{2}\b", of_some)} == weak


@pytest.mark.parametrize(
    "value", ["jane&#64;example.com", "4111 1111 1111 1111", "DE89 3704 0044 0532 0130 00", "Anna%20Berg"]
)
def test_a_value_is_found_at_every_place_of_a_long_text(value):
    """A long text is searched in windows of 50,000 characters."""
    kinds = Kinds.of(["email", "iban", "card"]).of_evidence
    detectors = Detectors([*kinds.of_folded, Names(["Anna Berg"])])
    for before in (*range(50_000 - len(value) - 2, 50_003), 99_990, 49_000):
        text = f"{'x ' * (before // 2)}{'-' * (before % 2)}{value} {'y ' * 60_000}"
        assert [text[span.start : span.end] for span in detectors.spans(text)] == [value]


def test_a_long_name_is_found_between_two_windows():
    name = " ".join(f"w{n}" for n in range(3_000))
    text = f"{'x ' * 24_000}{name.upper()} {'y ' * 40_000}"
    assert [len(value) for _, value in found(Detectors([Names([name])]), text)] == [len(name)]


@pytest.mark.parametrize("signs", ["&#64; ", "\n    ", "e\u0301", "\uff11\uff12", "%C3%BC", "\\u00e9", "&", "\u200b"])
def test_a_long_text_is_folded_as_its_parts_are(signs):
    count = 60_000 // len(signs)
    text = f"{'x' * 49_990}{signs * count}z"
    whole = Folded.of(text)
    assert whole.text == f"{'x' * 49_990}{Folded.of(f'x{signs * count}z').text[1:]}"
    assert whole.span(len(whole.text) - 1, len(whole.text)) == (len(text) - 1, len(text))
