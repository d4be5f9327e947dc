"""Rows with personal data in six languages, each value in one of ten or more forms, and its search in requests."""

from __future__ import annotations

import json
import random
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

KINDS = "email,phone,iban,card,id"
NAMES = [f"{first} {last}" for first in ("Ana", "Björn", "Chloé", "Iñaki", "Óscar") for last in ("Muñoz", "Schäfer")]
NAMES += ["Zoë Dvořák", "王小明", "田中太郎"]
FILL = {
    "en": "Dear team the invoice of last Monday is still open please look at it and answer soon",
    "de": "Sehr geehrte Damen und Herren die Rechnung vom Montag ist noch offen bitte prüfen Sie größere Beträge",
    "fr": "Bonjour la facture du mois dernier n\u2019est pas réglée merci de répondre dès que possible à l\u2019équipe",
    "es": "Buenos días la factura del año pasado aún está pendiente señor por favor respóndame mañana",
    "ja": "お世話に なって おります 先月の 請求書が まだ 未払い です ご確認を お願い いたします",
    "zh": "您好 上个月的发票 还没有付款 请尽快处理 谢谢 我们的订单 已经延迟了",
}
_WIDE = {ord(sign): chr(ord(sign) + 0xFEE0) for sign in map(chr, range(0x21, 0x7F))}
_IDS = {
    "de": ("36574261809", (2, 5, 8)),
    "es": ("12345678Z", (2, 5, 8)),
    "br": ("52998224725", (3, 6, 9)),
    "fr": ("185057800608491", (1, 3, 5, 7, 10, 13)),
    "it": ("RSSMRA85T10A562S", (3, 6, 11)),
}


class Planted(NamedTuple):
    """A value of a row, as it is written there."""

    kind: str
    plain: str
    written: str


def wide(text: str) -> str:
    """Return a text in full-width forms."""
    return text.translate(_WIDE)


def inside(text: str, sign: str) -> str:
    """Return a text with a sign in its middle."""
    return text[: len(text) // 2] + sign + text[len(text) // 2 :]


def _parts(text: str, cuts: Sequence[int]) -> list[str]:
    return [text[start:end] for start, end in zip((0, *cuts), (*cuts, len(text)), strict=True)]


def numbers(plain: str, groups: Sequence[str]) -> list[str]:
    """Return the forms of a number."""
    half = len(groups) // 2
    return [
        *(plain, wide(plain), inside(plain, "\u200b"), inside(plain, "\u2060"), plain.lower()),
        *(sign.join(groups) for sign in (" ", "-", ".", "\u00a0", "\u2009")),
        f"{' '.join(groups[:half])}\n{' '.join(groups[half:])}",
        wide("\u202f".join(groups)),
    ]


def _luhn(digits: str) -> str:
    def is_right(last: str) -> bool:
        doubled = (2 * int(one) if at % 2 else int(one) for at, one in enumerate(reversed(digits + last)))
        return sum(one - 9 if one > 9 else one for one in doubled) % 10 == 0

    return digits + next(filter(is_right, "0123456789"))


def card(chance: random.Random) -> list[str]:
    """Return the forms of a card."""
    plain = _luhn(f"4{chance.randrange(10**14):014}")
    return [*numbers(plain, _parts(plain, (4, 8, 12))), inside(plain, "\n"), " ".join(plain)]


def iban(chance: random.Random) -> list[str]:
    """Return the forms of a German IBAN."""
    account = f"{chance.randrange(10**18):018}"
    plain = f"DE{98 - int(f'{account}131400') % 97:02}{account}"
    return [*numbers(plain, _parts(plain, (4, 8, 12, 16, 20))), "  ".join(_parts(plain, (4, 8, 12, 16, 20)))]


def phone(chance: random.Random) -> list[str]:
    """Return the forms of a number in Berlin."""
    own = f"{chance.randrange(2_000_000, 9_999_999)}"
    plain = f"+4930{own}"
    forms = [f"+49{sign}30{sign}{own}" for sign in (" ", "-", ".", "\u00a0", "\n")]
    forms += [plain, wide(plain), inside(plain, "\u200b"), f"0049 30/{own}", f"+49 (0) 30 {own}", f"+49 (30) {own}"]
    forms += [f"+ 49 30 {own}", f"(+49) 30 {own}", f"+49&nbsp;30&nbsp;{own}", f"+49%2030%20{own}"]
    return [f"+49 30 {' '.join(_parts(own, (2, 4, 6)))}", *forms]


def email(chance: random.Random) -> list[str]:
    """Return the forms of an address."""
    local, domain = f"u{chance.randrange(10**6)}.x", f"host{chance.randrange(10**6)}"
    plain = f"{local}@{domain}.example"
    forms = [plain, plain.upper(), wide(plain), inside(plain, "\u200b"), inside(plain, "\u00ad")]
    forms += [f"{local}{sign}{domain}.example" for sign in (" @ ", "@\n", "\n@", "\u00a0@", "(at)", " [at] ", "%40")]
    forms += [f"{local}{sign}{domain}.example" for sign in ("&#64;", "&#x40;", "&commat;", "&amp;#64;")]
    return [*forms, f"{local}@müller-{domain}.example", f"{local}(at){domain}(dot)example"]


def national_id(chance: random.Random) -> list[str]:
    """Return the forms of the id of a country."""
    plain, cuts = _IDS[chance.choice(sorted(_IDS))]
    return numbers(plain, _parts(plain, cuts))


def name(chance: random.Random) -> list[str]:
    """Return the forms of a name."""
    plain = chance.choice(NAMES)
    if " " not in plain:
        return [plain, inside(plain, "\u200b")]
    first, last = plain.split()
    forms = [f"{first}{sign}{last}" for sign in (" ", "\u00a0", "\n", "   ", "-", " \u200b")]
    forms += [f"{first}&nbsp;{last}", f"{first}%20{last}", f"{first}_{last}"]
    return [*forms, plain.upper(), plain.lower(), unicodedata.normalize("NFD", plain), wide(plain), f"{plain}\u2019s"]


FORMS: dict[str, Callable[[random.Random], list[str]]] = {
    each[0]: each[1]
    for each in (
        ("email", email),
        ("phone", phone),
        ("iban", iban),
        ("card", card),
        ("id", national_id),
        ("name", name),
    )
}


BESIDE = {
    "email": ("邮箱是{}。谢谢", '"{}"', "user={}", "**{}**", "|{}|", "{}.Thanks", "<{}>"),
    "name": ("客户{}说", "{}さん", "**{}**"),
    "phone": ("tel_{}", "电话{}请"),
    "card": ("卡号{}谢谢", "order_{}_x"),
    "iban": ("IBAN:{}.", "_{}_"),
}
"""What may stand beside a value without a space."""


def planted_rows(count: int, seed: int = 1) -> tuple[list[dict[str, str]], list[list[Planted]]]:
    """Return rows with two cells and four values each, and their values."""
    chance, rows, values = random.Random(seed), list[dict[str, str]](), list[list[Planted]]()
    for at in range(count):
        words = FILL[sorted(FILL)[at % len(FILL)]].split()
        cells, own = ["", ""], list[Planted]()
        for place, kind in enumerate(chance.sample(sorted(FORMS), 4)):
            forms = FORMS[kind](chance)
            is_beside = kind in BESIDE and not chance.randrange(4)
            own.append(Planted(kind, forms[0], forms[0] if is_beside else chance.choice(forms)))
            written = chance.choice(BESIDE[kind]).format(forms[0]) if is_beside else own[-1].written
            cells[place % 2] += f"{' '.join(chance.choices(words, k=4))}: {written}, {chance.choice(words)}. "
        rows.append({"mail": cells[0], "note": cells[1]})
        values.append(own)
    return rows, values


def folded(text: str) -> str:
    """Return only the letters and digits of a text, in one form."""
    text = unicodedata.normalize("NFD", unicodedata.normalize("NFKC", text))
    return "".join(one for one in text if one.isalnum()).lower()


def texts_in(value: Any) -> Iterator[str]:
    """Yield all texts in the body of a request, also those inside of JSON in a text."""
    if isinstance(value, str):
        yield value
        for line in (value, *value.splitlines()):
            if line[:1] in {"{", "["}:
                try:
                    yield from texts_in(json.loads(line))
                except ValueError:
                    continue
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from texts_in(inner)


def leaked(bodies: Iterable[Any], values: Iterable[Iterable[Planted]]) -> list[Planted]:
    """Return the values that requests have, in any form."""
    texts = [re.sub(r"\[[A-Z]+_[0-9A-Z]{8}\]", "\N{CJK UNIFIED IDEOGRAPH-4E00}", text) for text in texts_in([*bodies])]
    sent = "\0".join(map(folded, texts))
    return [one for own in values for one in own if folded(one.plain) in sent or folded(one.written) in sent]
