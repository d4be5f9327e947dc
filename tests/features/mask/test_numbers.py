"""Numbers of persons, in the forms in which people write them, and the ordinary numbers that stay."""

from __future__ import annotations

from collections import Counter

import phonenumbers
import pytest
from phonenumbers import PhoneNumberFormat, PhoneNumberType

from ordinary_cells import ordinary_cells
from promptmill.core.errors import PromptmillError
from promptmill.features.mask.kinds import Kinds
from promptmill.features.mask.numbers import IDS

# A number of each country in the form in which it is written there. Nobody has it: it is computed.
_IDS = """AT: 8930 380712; BE: 73.03.12-287.34; BG: 0931075708; BR: 796.921.489-47; CA: 464-450-048
CH: 756.1712.6615.74; CL: 6.309.491-9; CN: 430121195611062498; CZ: 717817/7215; DE: 92 430 228 517
EE: 41212132494; ES: Z8206907Y; FI: 250690V696M; FR: 4 35 17 19 431 717 08; GB: 521 461 5876
GR: 29122059750; HR: 27976132148; IE: 8183443G; IN: 8631 6941 6303; IS: 561244-0570
IT: SYGPXW73C27BVQ1C; JP: 2755 9211 9454; KR: 221204-7399605; LT: 47805127610; MX: ZWNT520127MHGFOOK2
NL: 7625.00.074; NO: 580519 45385; PL: 01702953038; PT: 47061336 5 QZ4; RO: 8201224065692
SE: 250508-3812; SI: 3012038106553; TH: 6-0158-58807-25-8; TR: 47906870214; US: 685-33-3663
ZA: 681023 7547 09 2"""
VALID_IDS = dict(each.split(": ") for each in _IDS.replace("\n", "; ").split("; "))
AROUND = ["{}", "It is {}, he said.", "客户{}说", "id_{}_x", "4711: {} 12:30", "2025-08-07 06:35:37 {}"]
_COUNTRIES = "DE US FR GB IT ES CN JP BR IN RU NL SE DK PL TR AT CH MX KR CZ PT GR HU NO FI BE AU IL UA"


def found(kinds, text):
    return [text[span.start : span.end] for span in kinds.of_evidence.spans(text)]


@pytest.mark.parametrize("country", IDS)
@pytest.mark.parametrize("around", AROUND)
def test_an_id_of_each_country_is_found_in_any_text(country, around):
    number = VALID_IDS[country]
    assert found(Kinds.of(["id", f"id:{country}"]), around.format(number)) == [number]


@pytest.mark.parametrize("country", _COUNTRIES.split())
@pytest.mark.parametrize("around", AROUND)
def test_telephone_numbers_of_each_country_are_found_in_any_text(country, around):
    kinds = Kinds.of([f"phone:{country}"])
    for line in (PhoneNumberType.MOBILE, PhoneNumberType.FIXED_LINE):
        number = phonenumbers.example_number_for_type(country, line)
        assert number is not None
        for form in (PhoneNumberFormat.NATIONAL, PhoneNumberFormat.INTERNATIONAL, PhoneNumberFormat.E164):
            written = phonenumbers.format_number(number, form)
            assert found(kinds, around.format(written)) == [written]


@pytest.mark.parametrize(
    "written",
    [
        *(
            "+ 49 30 901820",
            "(+49) 30 901820",
            "+49 (0)30 901820",
            "+49 (0) 30/90 18 20",
            "+49 (030) 901820",
            "+(49) 30 901820",
        ),
        *(
            "0049 30 901820",
            "0049 (0)30 901820",
            "%2B49%2030%20901820",
            "030&nbsp;901820",
            r"0171\/1234567",
            "(0171) 1234567",
        ),
        *(
            "0 30/90 18 20",
            "030 901820-12",
            "030-901820",
            "030.901820",
            "0171 12 34 567",
            "+49.30.901820",
            "030\n901820",
        ),
    ],
)
def test_a_german_number_is_found_as_a_whole(written):
    assert found(Kinds.of(["phone:DE"]), f"Tel. {written}, or mail") == [written]


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("06 12 34 56 78 06 98 76 54 32", ["06 12 34 56 78", "06 98 76 54 32"]),
        ("0171 1234567/0172 7654321", ["0171 1234567", "0172 7654321"]),
        ("Zimmer 12 030 901820", ["030 901820"]),
        ("10:30 030 901820 12.05.2024", ["030 901820"]),
        ("卡4111 1111 1111 1111卡, 账户DE89370400440532013000号", ["4111 1111 1111 1111", "DE89370400440532013000"]),
        ("4111 1111 1111 1111 12/27", ["4111 1111 1111 1111"]),
        ("4 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 and 12", ["4 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1"]),
    ],
)
def test_a_number_ends_where_another_number_begins(text, numbers):
    assert found(Kinds.of(["phone:DE", "phone:FR", "card", "iban", "id"]), text) == numbers


def test_countries_of_telephone_numbers_are_known_and_at_most_thirty():
    known = sorted(phonenumbers.SUPPORTED_REGIONS)
    for region in known:
        Kinds.of([f"phone:{region}"])
    with pytest.raises(PromptmillError, match="no telephone numbers of XX are known"):
        Kinds.of(["phone:XX"])
    with pytest.raises(PromptmillError, match="phone names 31 countries; name at most 30"):
        Kinds.of([f"phone:{region}" for region in known[:31]])


@pytest.mark.parametrize(
    "kinds",
    [
        ["email", "phone", "iban", "card", "id"],
        ["email", "phone:DE", "phone:US", "iban", "card", "id:DE", "id:ES"],
        ["phone:FR", "phone:GB", "phone:JP", "phone:CN", "id:NL"],
    ],
)
def test_of_ten_thousand_ordinary_cells_at_most_ten_are_masked(kinds):
    detectors = Kinds.of(kinds)
    masked = [(kind, cell) for kind, cell in ordinary_cells(10_000) if found(detectors, cell)]
    assert len(masked) <= 10, (Counter(kind for kind, _ in masked), masked[:20])
