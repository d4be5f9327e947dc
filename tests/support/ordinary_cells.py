"""Cells of ordinary tables with digits, but without personal data: dates, orders, prices, … in six languages."""

from __future__ import annotations

import random
from collections.abc import Iterator
from datetime import datetime, timedelta

_WORDS = """
Delivered on|Created|see|Total|No.
Geliefert am|Erstellt|siehe|Summe|Nr.
Livré le|Créé|voir|Total|N°
Entregado el|Creado|ver|Total|N.º
交货日期|创建于|见|合计|编号
納品日|作成|参照|合計|番号
"""
_DATES = """
day|%Y-%m-%d|%d.%m.%Y|%m/%d/%Y|%d/%m/%Y|%Y/%m/%d|%Y%m%d|%d-%m-%Y|%d.%m.%y|%Y年%m月%d日|%d. %B %Y|%b %d, %Y|%Y. %m. %d.
day|%d %m %Y|%Y %m %d|%d-%m-%y|%d%m%Y|%Y-W%V-%u
hour|%H:%M:%S|%H:%M|%I:%M %p|%H.%M|%H.%M Uhr|%H-%M-%S|%H:%M:%S.%f|%H:%M:%S,123|%Hh%M|%H %M|%H%M
stamp|%Y-%m-%dT%H:%M:%SZ|%Y-%m-%dT%H:%M:%S+02:00|%Y-%m-%dT%H:%M:%S.%fZ|%Y%m%dT%H%M%SZ|%Y-%m-%dT%H:%M-0500
stamp|%Y-%m-%d %H:%M:%S +0200|%Y%m%d-%H%M%S|%Y%m%d_%H%M%S|%Y%m%d%H%M%S
"""
_FORMS = """
order|ORD-2025-#99999|#999-9999|RE-2025/99999|INV#9999999|##99999|2025-99999|#9999999|#999999|TICKET-#9999|PO #999 9999
order|KD-999.999|#99999/2025|2025/08/9999|A-#99-999-99|#99999-99|#99-9999999-9999999|v#.9.9-20250807|000#9999
order|IMG_20250807_999999|C-#9-99999|#99.999|#999/99|id=#999999|X99-#999|C20250807-9999
part|#99.999.99|A #99 999 99 99|# 999 999 999|6ES7 #99-9AB99-0XB0|SKU-#9999-99|#9-9999-99|P/N #9999-999|HS #999.99.99
version|#.9.99|10.0.#9999.9999|v#.9.9|#.99.9.9999|2025.8.29|#9.0.#999.999|1.0.0-rc.8|#.9.9.9.9
host|~.~.~.~|~.~.~.~:#999|10.~.~.0/24|192.168.~.~-192.168.~.~|2001:db8::#999
price|#99.999,99 €|$#99,999.99|#99 999 999,99 €|#.999.999,99|#99'999.99 CHF|¥#,999,999|#999.99|EUR #9 999.99|-#99.99
price|#9 999 999 Ft|#9.99 / #9.99|#9.999.999 Rp|#9,99,999 ₹|#99.99-|#999,-|1 #99 999 999
size|#999.99 kg|#9 x #9 x #9 cm|#999x#999|#99/#99 mm|205/55 R16|#9,9 %|#.99999999|0.#99999999|#.99999e-8|#99-999 m
size|#9.999999999999|#999 #999 #999|-#9.9999999, #9.9999999|#9.999999 #9.999999|#9°59'8"N #°59'8"E
size|geo:#9.99999,-#9.99999
article|978-3-99-999999-9|978 3 999 99999 9|ISBN #999999999|ISBN-10: 0999999999|#-999-99999-9|EAN #999999999999
article|ISSN #999-9999
score|#:9|#9-#9|#/6|6-4 #-# 7-5|#9/100|# 9 9 9 #|#9 #9 #9|21-18 21-19 18-21|1 2 3 4 5 6 7 8 9 10
other|§ #99 Abs. #|#9999 Berlin|#9999-9999|S. #99-999|#999999|HRB #99999 B|doi 10.#999/#999999|#99 #999|Zimmer #99/#99
other|RFC #999, #999|T-#9999999|2024-2025|2024/25|2023, 2024, 2025|2021 2022 2023|07.03.-17.03.2025
other|2025-01-01 - 2025-12-31|01.01.2025 - 31.12.2025|2025-01-01/2025-12-31
"""
"""Forms: `#` is a digit from 1 to 9, `9` any digit after a `#`, and `~` a number to 255."""


def _lines(table: str) -> dict[str, list[str]]:
    forms = dict[str, list[str]]()
    for line in table.split("\n")[1:-1]:
        kind, *own = line.split("|")
        forms.setdefault(kind, []).extend(own)
    return forms


def _filled(form: str, chance: random.Random) -> str:
    filled, is_random = list[str](), False
    for sign in form:
        is_random |= sign == "#"
        if sign == "~":
            filled.append(str(chance.randrange(256)))
        else:
            is_digit = sign == "#" or (sign == "9" and is_random)
            filled.append(str(chance.randrange(sign == "#", 10)) if is_digit else sign)
    return "".join(filled)


def _dated(form: str, chance: random.Random) -> str:
    return (datetime(1950, 1, 1) + timedelta(seconds=chance.randrange(90 * 365 * 86_400))).strftime(form)  # noqa: DTZ001


def ordinary_cells(count: int, seed: int = 1) -> Iterator[tuple[str, str]]:
    """Yield `(kind, cell)`: a value alone, with words, or with another value."""
    chance, dates, forms = random.Random(seed), _lines(_DATES), _lines(_FORMS)
    words = [line.split("|") for line in _WORDS.split("\n")[1:-1]]
    dates["hour"] = [f"{day} {hour}" for day in dates["day"][:8] for hour in dates["hour"]]
    kinds = [*dates, *forms]

    def value(kind: str) -> str:
        own = dates.get(kind)
        return _filled(chance.choice(forms[kind]), chance) if own is None else _dated(chance.choice(own), chance)

    for at in range(count):
        kind, word = kinds[at % len(kinds)], chance.choice(chance.choice(words))
        yield kind, chance.choice([value(kind), f"{word} {value(kind)}", f"{word}: {value(kind)}, {value(kind)}"])
