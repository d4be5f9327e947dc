"""Quotes are found in the texts of their rows, in any language, and changed quotes are not."""

from __future__ import annotations

import random
import re
import tracemalloc
import unicodedata

import pytest

from promptmill.features.sources.searched_text import Text

SEPARATORS = " \u00a0\u2007\u2009\u202f,.'\u2019"
"""What texts have between the thousands and the hundreds of a number."""
FOUND = [
    ("exactly", "Total: 12.50 EUR.", "12.50 EUR", "12.50 EUR"),
    ("case and spaces", "The  Parcel\nis LATE", "the parcel is late", "The  Parcel\nis LATE"),
    ("a hyphen at the end of a line", "an inter-\n national call", "international call", "inter-\n national call"),
    ("a hyphen that stays", "an E-\nMail from Ada", "E-Mail from", "E-\nMail from"),
    ("a soft hyphen", "Rech\u00adnung Nr. 7", "Rechnung Nr. 7", "Rech\u00adnung Nr. 7"),
    ("typographic quotes", "he said \u201eno\u201c twice", 'said "no" twice', "said \u201eno\u201c twice"),
    ("an apostrophe", "it\u2019s late", "it's late", "it\u2019s late"),
    ("a dash", "2024\u20132026", "2024-2026", "2024\u20132026"),
    ("quotes around it", "Total: 12 EUR", '"Total: 12 EUR."', "Total: 12 EUR"),
    ("full width", "合計\uff1a\uff11\uff12\uff10円", "合計:120円", "合計\uff1a\uff11\uff12\uff10円"),
    ("a line break in Chinese", "交货期\n为三天", "交货期为三天", "交货期\n为三天"),
    ("within Chinese", "包裹迟到了三天", "迟到", "迟到"),
    ("half-width kana", "\uff76\uff9e\uff7dの料金", "ガスの料金", "\uff76\uff9e\uff7dの料金"),
    ("German", "Die Straße ist gesperrt", "die strasse ist", "Die Straße ist"),
    ("Vietnamese, composed", "giao hàng chậm", "giao hàng cha\u0323\u0302m", "giao hàng chậm"),
    ("Vietnamese of Windows", "giao ha\u0300ng châ\u0323m quá", "hàng chậm", "ha\u0300ng châ\u0323m"),
    ("Korean with a particle", "계약은 끝났다", "계약", "계약"),
    ("the second place", "12 screws and 2 screws", "2 screws", "2 screws"),
    ("a unit", "weighs 5kg", "5", "5"),
    ("before a footnote", "EUR 12\u00b9 net", "EUR 12", "EUR 12"),
    ("a number in groups", "EUR 12 500 net", "12 500", "12 500"),
    ("a number in groups with thin spaces", "EUR 1\u2009250\u202f000 net", "1 250 000", "1\u2009250\u202f000"),
    ("a number after a year", "in 2026 500 parcels", "500 parcels", "500 parcels"),
    ("a number after a date", "2026-03-12 500 EUR", "500 EUR", "500 EUR"),
    ("a number after a decimal", "2.50 500 EUR", "500 EUR", "500 EUR"),
    ("a number after a short one", "07 500 EUR", "500 EUR", "500 EUR"),
    ("a short number after another", "12 50 EUR", "50 EUR", "50 EUR"),
    ("a number in another column", "12  500 EUR", "500 EUR", "500 EUR"),
    ("the place that is certain", "12 500 EUR, or 500 EUR", "500 EUR", "500 EUR"),
    ("letters with two accents", "vẻ đe\u0323\u0302p, tê\u0323 bạc", "ĐỆP, TỆ", "đe\u0323\u0302p, tê\u0323"),
]  # fmt: skip

CHANGED = [
    ("another number", "12 screws", "2 screws"),
    ("the beginning of a number", "EUR 12.50", "EUR 12"),
    ("the end of a number", "EUR 1,250", "250"),
    *((f"the end of a number with U+{ord(sign):04X}", f"EUR 12{sign}500 net", "500 net") for sign in SEPARATORS),
    *((f"the beginning of a number with U+{ord(sign):04X}", f"EUR 12{sign}500 net", "EUR 12") for sign in SEPARATORS),
    *((f"the middle of a number with U+{ord(sign):04X}", f"EUR 1{sign}500{sign}000", "500") for sign in SEPARATORS),
    ("the end of a number with decimals", "EUR 12 500.50", "500.50"),
    ("what may be a number after another", "Item 12 500 screws", "500 screws"),
    ("a range to a number", "10-12 500 EUR", "500 EUR"),
    ("a number across a space", "Qty 2 5.00 EUR", "25.00 EUR"),
    ("a number across lines", "a\n2\n5 EUR", "25 EUR"),
    ("a range across lines", "10-\n20 EUR", "1020 EUR"),
    ("a footnote", "EUR 12\u00b9 net", "EUR 121"),
    ("the beginnings of a long run", "A" * 20_000 + " x", "A" * 600),
    ("a sign", "it was -5 degrees", "5 degrees"),
    ("a part of a word", "the party ended", "art"),
    ("another word", "we do not agree", "we agree"),
    ("words left out", "the first, the second and the third", "the first and the third"),
    ("another letter", "包裹迟到了", "包裹迟到吧"),
    ("another tone", "ma quá", "má quá"),
    ("the letter of an umlaut", "ein scho\u0308ner", "ein scho"),
    ("the letter of a composed umlaut", "EIN Schö", "ein scho"),
    ("an umlaut", "schön", "schon"),
    ("nothing", "some text", " "),
    ("marks alone", "a \u2026 b", "\u2026"),
]


WITHIN = [
    *(
        (f"take {number}5 mg", "5 mg")
        for number in (".", ",", "0.", "0\u066b", "0\u00b7", "0\u22c5", "\uff10\uff0e", "~.")
    ),
    *((f"at {minus}5 degrees", "5 degrees") for minus in "-\u2010\u2011\u2012\u2013\u2014\u2212\ufe63\uff0d"),
    *(
        (f"owed: {minus}", "5.00")
        for minus in ("-$5.00", "\u2212\u20ac5.00", "$-5.00", "-US$5.00", "-EUR 5.00", "(-5.00)")
    ),
    *((f"owed: -{amount}", amount) for amount in ("$5.00", "US$5.00", "EUR 5.00", ".5", "½", "\u20ac 5")),
    *(
        (f"add {cups} cups", f"{half} cups")
        for cups, half in (("1½", "½"), ("1 ½", "½"), ("1\u2009½", "½"), ("1 1/2", "1/2"))
    ),
    *((f"add {cups} cups", "1") for cups in ("1½", "1 ½", "1\u20442", "1 1/2")),
    ("add 1\u20442 cup", "2 cup"),
    *((power, base) for power, base in (("10² m", "10"), ("10\u207b³ m", "10"), ("12\u2082", "12"), ("10²³", "10²"))),
    *((power, base) for power, base in (("2^10", "2"), ("2^10", "10"), ("1.5e-3 g", "1.5"), ("1.5e-3 g", "3 g"))),
    *((power, base) for power, base in (("5\u00d710³ m", "5"), ("5 x 10^3 m", "5"), ("5*10³ m", "10³ m"))),
    *((f"1{sign}250 screws", "250 screws") for sign in ("\u00ad", "\u200b", "\u2060", ",\u200b", "_", "\u066c")),
    ("\u2013\u200b5 degrees", "5 degrees"),
    ("the inter\u00adnational call", "national call"),
    ('"\u20135 degrees"', "5 degrees"),
    ("version 1.2.3", "2.3"),
    ("at 10.0.0.5", "0.5"),
    ("二十五人", "五人"),
    ("take 5 mg", ".5 mg"),
]
"""Texts with a number, and quotes that are a part of the number."""
APART = [
    *(
        (f"{first}{dash}10{unit}", f"10{unit}")
        for dash in "-\u2013"
        for first, unit in (("5", " kg"), ("5%", "%"), ("5°", "°"))
    ),
    *(
        (f"{first}\u201310 {unit}", f"10 {unit}")
        for first, unit in (("5 €", "€"), ("5€", "€"), ("pages 5\u2013", "x"), ("5.", "May"))
    ),
    ("$5\u2013$10", "$10"),
    ("EUR 5\u2013EUR 10", "EUR 10"),
    ("size 5 \u2013 7", "7"),
    ("word\u20145 people", "5 people"),
    *(
        (text, part)
        for text, part in (("2026-03-07", "2026"), ("05/06/2026", "2026"), ("12:30", "12"), ("120/80", "80"))
    ),
    *(
        (text, "5")
        for text in ("see p.5", "No.5", "\u20265 min", "...5 min", "a,5", "R-5", "#5", '"tea",5,"x"', "5mg", "5% off")
    ),
    ("call 555-1234", "1234"),
    ("a 10 m² flat", "10 m²"),
    ("5x10 cm", "10 cm"),
    ("in the 1990s", "1990"),
    ("add ½ cup", "½ cup"),
    ("at \u20135 degrees", "-5 degrees"),
    ("take .5 mg", ".5 mg"),
    ("统一一致", "一致"),
    ("a snake_case name", "case name"),
]
"""Texts with a number, and quotes that are no part of another number."""


@pytest.mark.parametrize(("text", "quote"), WITHIN)
def test_a_part_of_a_number_is_not_found(text, quote):
    assert Text(text).find(quote) is None


@pytest.mark.parametrize(("text", "quote"), APART)
def test_a_number_beside_another_one_is_found(text, quote):
    assert Text(text).find(quote) is not None


@pytest.mark.parametrize(("text", "quote", "words"), [case[1:] for case in FOUND], ids=[case[0] for case in FOUND])
def test_a_quote_is_found_in_its_text(text, quote, words):
    start, end = Text(text).find(quote) or (0, 0)
    assert text[start:end] == words


@pytest.mark.parametrize(("text", "quote"), [case[1:] for case in CHANGED], ids=[case[0] for case in CHANGED])
def test_a_changed_quote_is_not_found(text, quote):
    assert Text(text).find(quote) is None


def test_each_sentence_of_a_long_text_is_found_at_its_own_place():
    sentences = [f"Absatz {at}: der \u201eBetrag\u201c ist {at * 7},{at % 100:02} €.\n" for at in range(400)]
    text = "".join(sentences)
    whole = Text(text)
    for at, sentence in enumerate(sentences):
        plain = sentence.strip().replace("\u201e", '"').replace("\u201c", '"').upper()
        assert whole.find(plain) == (len("".join(sentences[:at])), len("".join(sentences[: at + 1])) - 1)


@pytest.mark.parametrize("base", ["e", "1"])
def test_a_quote_with_an_endless_run_of_marks_is_found(base):
    """Sorting the marks of a megabyte takes minutes."""
    marks = "\u0301\u0316" * 100_000
    text = f"Total: {base}{marks} 12 \uff25\uff35\uff32 for 7\u00b2"
    assert Text(text).find(f"TOTAL: {base}{marks} 12 eur") == (0, len(text) - 7)
    assert Text(text).find(f"TOTAL: {base}{marks} 1 2 eur") is None


def test_a_long_text_takes_few_bytes_for_each_character():
    sentence = (
        "On 3.4.2026, \u201cLumen\u201d wasn\u2019t delivered, nor the inter-\nnational one; I paid €12 \u2013 twice.\n"
    )
    text = sentence * 2000
    tracemalloc.start()
    try:
        assert Text(text).find("words that it lacks") is None
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most / len(text) < 30  # 20 in the two forms, of which each character takes 6 for longer


_SENTENCES = {
    "English": "On {d} my order {n} (\u201c{w}\u201d) wasn\u2019t delivered; I paid €{m} for it \u2013 twice. "
    "Please call me back before {d}, the inter-\nnational number is +{n}.",
    "German": "Am {d} kam die Bestellung {n} (\u201e{w}\u201c) nicht an; ich habe {m} € bezahlt \u2013 zweimal. "
    "Bitte überweisen Sie den Be-\ntrag gemäß Vertrag Nr. {n} bis zum {d}.",
    "Chinese": "我在{d}订购的{n}号商品「{w}」没有送到\uff0c我已经支付了{m}元。"
    "请在{d}之前\n退款到账户{n}\uff0c谢谢。",
    "Japanese": "{d}に注文した{n}番の商品「{w}」が届きません。料金は{m}円でした。"
    "{d}までに\n口座{n}に返金してください。",
    "Vietnamese": "Ngày {d} đơn hàng {n} (\u201c{w}\u201d) chưa được giao; tôi đã trả {m} đồng \u2013 hai lần. "
    "Vui lòng hoàn tiền trước {d} vào tài khoản {n}.",
}  # fmt: skip
"""Sentences of mails, with a date, a number, an amount of money and a name."""


def _mail(draw: random.Random, language: str) -> tuple[str, int, int]:
    """Return a mail, and the place of words in it."""
    facts = {"w": draw.choice(["Lumen", "Vela 3", "Kraft\u2019s", "ルーメン", "桥牌"])}
    text = "\n\n".join(
        _SENTENCES[language].format(
            d=f"{draw.randint(1, 28)}.{draw.randint(1, 12)}.2026",
            n=draw.randint(10_000, 99_999),
            m=f"{draw.randint(1, 9)}.{draw.randint(100, 999)},{draw.randint(10, 99)}",
            **facts,
        )
        for _ in range(8)
    )
    if language in {"Chinese", "Japanese"}:
        ends = [at for at in range(len(text)) if not text[at - 1 : at + 1].isascii()]
    else:
        ends = [match.start() for match in re.finditer(r"(?<=\s)\S|$", text)]
    first = draw.randrange(len(ends) - 9)
    start = ends[first]
    return text, start, start + len(text[start : ends[first + draw.randint(4, 8)]].rstrip())


def _as_a_model_writes(draw: random.Random, words: str) -> str:
    """Return words with what models change: spaces, case, quotation marks, widths, hyphens at ends of lines."""
    changed = " ".join(re.sub(r"-\n", "", words).split())
    for change in draw.sample([_straight, _full_forms, str.capitalize, lambda text: f'"{text}"', _apart], 2):
        changed = change(changed)
    return changed


def _straight(text: str) -> str:
    return re.sub("[\u201c\u201d\u201e\u300c\u300d]", '"', text).replace("\u2019", "'").replace("\u2013", "-")


def _full_forms(text: str) -> str:
    return unicodedata.normalize("NFKC", text)


def _apart(text: str) -> str:
    return unicodedata.normalize("NFD", text)


def _falsified(draw: random.Random, words: str) -> str:
    """Return words that say something else: another digit, or a letter or word more or less."""
    digits = [at for at, sign in enumerate(words) if sign.isdigit()]
    letters = [at for at, sign in enumerate(words) if sign.isalpha()]
    if digits and (not letters or draw.random() < 0.5):
        at = draw.choice(digits)
        return f"{words[:at]}{(int(words[at]) + draw.randint(1, 9)) % 10}{words[at + 1 :]}"
    at = draw.choice(letters)
    other = "不" if ord(words[at]) > 0x3000 else "x"
    return words[:at] + draw.choice(["", other, f"{words[at]}{other}"]) + words[at + 1 :]


def test_quotes_in_1000_mails_in_five_languages():
    draw, right, accepted = random.Random(7), 0, list[tuple[str, str]]()
    for at in range(1000):
        text, start, end = _mail(draw, [*_SENTENCES][at % 5])
        quote = _as_a_model_writes(draw, text[start:end])
        found = Text(text).find(quote)
        right += found is not None and _bare(text[slice(*found)]) == _bare(text[start:end])
        changed = _falsified(draw, text[start:end])
        if Text(text).find(changed) is not None and _bare(changed) not in _bare(text):
            accepted.append((text, changed))
    assert right >= 990, right
    assert not accepted


def _bare(text: str) -> str:
    """Return the letters and digits of a text."""
    return "".join(sign for sign in unicodedata.normalize("NFKD", text).casefold() if sign.isalnum() or sign in "-+")
