"""Finds IBANs, telephone numbers, cards and national ids: runs of digits with separators, of which parts are checked.

    "2025-08-07 4111 1111 1111 1111 030/901820"
     ─────────────────────────────────────────   a run, with at most 3 separators between groups of digits
                4111 1111 1111 1111 030/901820   its pieces, between spaces and slashes, without dates and decimals
                ───────────────────              the longest window of whole pieces that is a number of a kind

A window is masked only if its groups are those that people write, and its check digits are right or it is a number of
a known country: so amounts, dates and numbers of invoices stay.
"""

from __future__ import annotations

import functools
import importlib
import itertools
import re
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

from promptmill.features.mask.detection import ValueSpan, hidden
from promptmill.features.mask.folded_text import shape_of
from promptmill.features.mask.packages import needed

_RUN = re.compile(r"[0-9](?:[\s().\-/]{0,3}[0-9])*")
_GROUP = re.compile(r"[0-9]+")
_JOINS = frozenset("0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz")
_FEWEST, _MOST, _FEWEST_WITHOUT_COUNTRY = 7, 19, 9
_FOUR = b"0000"
"""Each number apart from some ids has this in its shape. IBANs in use have four digits in a row, though the registry
allows only letters in a few countries (RO, QA)."""
_WRITTEN, _ITALIAN = 6, b"00a00a"
"""Each id of `WrittenIds` has at least so many digits in a row, except Italy's ids, which have this shape."""
_ITALIAN_LETTERS, _DIGITS = 6, r"(?=(?:[\s./-]{0,3}[0-9]){4})"
"""Every other id has four more digits after its first one, which rules most numbers out."""
_SIGNS = bytes(one for one in range(128) if not chr(one).isalnum())
_NO_DIGITS = bytes(one for one in range(128) if not chr(one).isdigit())
_SPACE = re.compile(r"[\s.]+")
_SEPARATORS = " .-\n\r\t\xa0\u2009\u202f\u3000"
_PART, _PIECE, _SIGN = re.compile(r"\S+"), re.compile(r"[0-9](?:[().\-]*[0-9])*"), re.compile(r"[^0-9]+")
_OF_WORD = re.compile(r"[0-9]+(?:\.\S*)?")
"""The first digits of a run that belong to a word, such as `v1.2`."""
_PLUS = re.compile(r"\(?\+\(?\Z|(?<![0-9)])\(?\+\s\(?\Z")
"""The sign before an international number, perhaps with a bracket or a space."""
_TIME = re.compile("[0-9]:")
_FRACTION = re.compile(r":[0-9]|,[0-9]{1,2}(?![0-9])")
"""The signs before and after digits that are a part of a time, a port or a decimal."""
_YEAR, _OF_MONTH, _OF_DAY = "(?:19|20)[0-9]{2}", "(?:0?[1-9]|1[0-2])", "(?:0?[1-9]|[12][0-9]|3[01])"
_DATES = [rf"{_YEAR}{sign}{_OF_MONTH}{sign}{_OF_DAY}" for sign in ("-", "/", r"\.")]
_DATES += [rf"{_OF_DAY}{sign}{_OF_DAY}{sign}(?:{_YEAR}|[0-9]{{2}})" for sign in ("-", "/", r"\.")]
_DATE = f"(?:{'|'.join(_DATES)})"
_DECIMAL, _HOST = r"(?:0|[1-9][0-9]{0,2})\.[0-9]{4,}", r"(?:[0-9]{1,2}|1[0-9]{2}|2[0-5][0-9])"
_ADDRESS = rf"(?:{_HOST}\.){{3}}{_HOST}"
_ORDINARY = re.compile(
    rf"{_DATE}(?:[-/]{_DATE})?|{_OF_DAY}\.(?:{_OF_MONTH}\.)?-{_DATE}|{_DECIMAL}(?:/{_DECIMAL})?|"
    rf"{_ADDRESS}(?:-{_ADDRESS}|/[0-9]{{1,2}})|(?:[0-9]+\.)+0\.[0-9.]+|10\.[0-9]{{4}}/[0-9.\-]+"
)
"""Dates, decimals, addresses of computers, versions and DOIs: no part of them is the number of a person."""
_LONGEST_ORDINARY = 40
_REFERENCE = re.compile(rf"{_YEAR}[-/](?:{_OF_MONTH}[-/])?[0-9]{{3,}}|[0-9]{{4,7}}/{_YEAR}")
"""A number with a year, at the beginning of a run."""
_WHOLE_ADDRESS = re.compile(_ADDRESS)
_DAYS = re.compile(
    rf"(?:{_OF_DAY}[./\-]?\s){{2}}{_YEAR}|{_YEAR}(?:[./\-]?\s{_OF_DAY}){{2}}|{_YEAR}(?:[\s\-/]+{_YEAR})+"
)
"""Dates and years with spaces between them."""
_ARTICLE = re.compile(r"(?i:ISBN|ISSN|EAN|GTIN|UPC)(?:-?1[0-4])?[\s:.#=]{1,3}\Z")
"""The words before the number of an article."""
_AMOUNT = re.compile(r"[1-9][0-9]{0,2}(?:\s[0-9]{3})+")
"""A number with spaces between thousands."""
_FEWEST_NATIONAL, _MOST_UNDIVIDED = 9, 11
"""Digits of a number with the prefix of its country; the most without separators, unless it is a mobile's. Shorter and
longer ones are mostly numbers of orders and articles."""
_MOST_SLASHES = 3  # in a number without spaces, as in `030/90/18/20`
MOST_COUNTRIES = 30
"""The most countries of telephone numbers: with them, a text of any digits takes 10 µs a character."""
_AMERICAN, _CARD_GROUPS, _ID_GROUPS = (
    frozenset(tuple(int(size, 36) for size in groups) for groups in written.split())
    for written in (
        "334 37 1334 137",
        "465 464 4333 6d",
        "1222332 46 64 334 423 3332 2333 22232 632 65 3442 67 76 14521 6421 643 166 684",
    )
)
"""The groups in which people write numbers, besides groups of one size: `334` is 415-555-2671, and `d` 13 digits."""
_CARD = re.compile(
    r"4[0-9]{12}(?:[0-9]{3}){0,2}|5[1-5][0-9]{14}|2(?:22[1-9]|2[3-9][0-9]|[3-6][0-9]{2}|7[01][0-9]|720)[0-9]{12}|"
    r"3[47][0-9]{13}|3(?:0[0-5]|[689][0-9])[0-9]{11}|35[0-9]{14}|6[0-9]{15,18}"
)
"""The lengths and beginnings of cards: Visa, Mastercard, American Express, Diners Club, JCB; Discover, UnionPay,
Maestro and RuPay."""
_TWICE = bytes.maketrans(b"0123456789", bytes(48 + sum(map(int, str(2 * digit))) for digit in range(10)))

_KEPT = 1_000
"""So many results of each check stay in memory (100 kB), because a check takes 2 to 6 µs."""

Check: TypeAlias = Callable[[str], bool]
PHONE, CARD, ID, IBAN = "PHONE", "CARD", "ID", "IBAN"


class NationalId(NamedTuple):
    """A national id of python-stdnum."""

    module: str
    form: str
    """The pattern of its digits; if `size` is 0, the pattern of its text from the first digit on."""
    size: int = 0
    """The number of digits; 0: the id also has other characters."""
    letters: int = 0
    """The number of letters before its first digit."""
    is_strong: bool = True
    """Whether fewer than one of fifty random numbers of its size pass its check, thanks to check digits and a date, or
    thanks to letters."""


_S = r"[\s.\-]?"
_D, _A, _AD = f"{_S}[0-9]", f"{_S}[A-Z]", f"{_S}[0-9A-Z]"
_LAST = r"(?:[\-.]?[A-Z]|(?-i:\s[A-Z]))"
"""A letter. After a space, only a capital letter counts: `20260307 a year` is no id."""
_MONTH, _DAY = "(?:0[1-9]|1[0-2])", "[0-3][0-9]"
IDS: Mapping[str, Sequence[NationalId]] = {
    "AT": (NationalId("at.vnr", f"[1-9][0-9]{{3}}{_DAY}(?:0[1-9]|1[0-5])[0-9]{{2}}", 10),),
    "BE": (NationalId("be.nn", f"[0-9]{{2}}[0-5][0-9]{_DAY}[0-9]{{5}}", 11),),
    "BG": (NationalId("bg.egn", f"[0-9]{{2}}[0-5][0-9]{_DAY}[0-9]{{4}}", 10),),
    "BR": (NationalId("br.cpf", "[0-9]{11}", 11),),
    "CA": (NationalId("ca.sin", "[1-79][0-9]{8}", 9, is_strong=False),),
    "CH": (NationalId("ch.ssn", "756[0-9]{10}", 13),),
    "CL": (NationalId("cl.rut", r"[0-9]{0,1}\.?[0-9]{3}\.?[0-9]{3}\s?-\s?[0-9K]"),),
    "CN": (
        NationalId("cn.ric", f"[1-9][0-9]{{5}}(?:19|20)[0-9]{{2}}{_MONTH}{_DAY}[0-9]{{4}}", 18),
        NationalId("cn.ric", f"{_D * 16}{_S}X"),
    ),
    "CZ": (NationalId("cz.rc", r"[0-9]{5}\s?/\s?[0-9]{4}"),),
    "DE": (NationalId("de.idnr", "[1-9][0-9]{10}", 11),),
    "EE": (NationalId("ee.ik", f"[1-8][0-9]{{2}}{_MONTH}{_DAY}[0-9]{{4}}", 11),),
    "ES": (NationalId("es.dni", f"{_D * 7}{_LAST}"), NationalId("es.nie", f"{_D * 6}{_LAST}", letters=1)),
    "FI": (NationalId("fi.hetu", "[0-9]{5}[-+ABCDEFUVWXY][0-9]{3}[0-9A-Z]"),),
    "FR": (NationalId("fr.nir", "[1-478][0-9]{2}[0-9]{2}[0-9]{10}", 15),),
    "GB": (NationalId("gb.nhs", "[0-9]{10}", 10, is_strong=False),),
    "GR": (NationalId("gr.amka", f"{_DAY}{_MONTH}[0-9]{{7}}", 11),),
    "HR": (NationalId("hr.oib", "[0-9]{11}", 11, is_strong=False),),
    "IE": (NationalId("ie.pps", f"{_D * 6}{_LAST}[AHWTX]?"),),
    "IN": (NationalId("in_.aadhaar", "[2-9][0-9]{11}", 12, is_strong=False),),
    "IS": (NationalId("is_.kennitala", f"[0-7][0-9]{_MONTH}[0-9]{{6}}", 10),),
    "IT": (NationalId("it.codicefiscale", f"{_D}{_A}{_D * 2}{_A}{_AD * 3}{_A}", letters=6),),
    "JP": (NationalId("jp.in_", "[0-9]{12}", 12, is_strong=False),),
    "KR": (NationalId("kr.rrn", f"[0-9]{{2}}{_MONTH}{_DAY}[0-9]{{7}}", 13),),
    "LT": (NationalId("lt.asmens", f"[3-6][0-9]{{2}}{_MONTH}{_DAY}[0-9]{{4}}", 11),),
    "MX": (NationalId("mx.curp", "[0-9]{5}[HM][A-Z]{5}[0-9A-Z][0-9]", letters=4),),
    "NL": (NationalId("nl.bsn", "[0-9]{9}", 9, is_strong=False),),
    "NO": (NationalId("no.fodselsnummer", "[0-7][0-9][0-9]{9}", 11),),
    "PL": (NationalId("pl.pesel", f"[0-9]{{2}}(?:[02468][1-9]|[13579][0-2]){_DAY}[0-9]{{5}}", 11),),
    "PT": (NationalId("pt.cc", f"{_D * 8}{_A}{_AD}{_D}"),),
    "RO": (NationalId("ro.cnp", f"[1-9][0-9]{{2}}{_MONTH}{_DAY}[0-9]{{6}}", 13),),
    "SE": (NationalId("se.personnummer", "(?:[0-9]{2})?[0-9]{5}[-+][0-9]{4}"),),
    "SI": (NationalId("si.emso", f"{_DAY}{_MONTH}[09][0-9]{{8}}", 13),),
    "TH": (NationalId("th.pin", "[1-8][0-9]{12}", 13, is_strong=False),),
    "TR": (NationalId("tr.tckimlik", "[1-9][0-9]{9}[02468]", 11),),
    "US": (NationalId("us.ssn", r"[0-9]{2}\s?-\s?[0-9]{2}\s?-\s?[0-9]{4}"),),
    "ZA": (NationalId("za.idnr", f"[0-9]{{2}}{_MONTH}{_DAY}[0-9]{{4}}[01][89][0-9]", 13),),
}
"""The ids by country. The id of the USA has no check digit, and is found only with its hyphens."""


class _Plan(NamedTuple):
    """The numbers of a country."""

    national: re.Pattern[str]
    mobile: re.Pattern[str]
    prefix: str
    """The digits before a number within the country, such as `0`; empty if there are none."""
    is_american: bool
    """Whether numbers are written as in the USA, `415-555-2671`, which many other numbers could be."""
    fewest: int
    """The digits of a number without the prefix. Shorter ones are numbers within a town."""
    alone: Sequence[tuple[re.Pattern[str], bool]]
    """The forms of a number without the prefix, and whether people write it so."""

    @classmethod
    def of(cls, metadata: Any) -> _Plan:
        """Convert the metadata of a country."""
        prefix, alone = metadata.national_prefix or "", list[tuple[re.Pattern[str], bool]]()
        for form in metadata.number_format:
            leading = "".join(f"(?={pattern})" for pattern in form.leading_digits_pattern[-1:])
            rule = form.national_prefix_formatting_rule or ""
            alone.append((re.compile(leading + form.pattern), prefix in {"", "1"} or prefix not in rule))
        national, kinds = metadata.general_desc.national_number_pattern, (metadata.fixed_line, metadata.mobile)
        mobile = metadata.mobile and metadata.mobile.national_number_pattern
        examples = [kind.example_number for kind in kinds if kind is not None and kind.example_number]
        fewest = min(map(len, examples), default=_FEWEST) - 1  # in Italy, some have a digit less
        return cls(re.compile(national), re.compile(mobile or "(?!)"), prefix, prefix == "1", fewest, alone)

    def has(self, digits: str, sizes: Sequence[int], *, is_marked: bool) -> bool:
        """Return whether digits in groups of these `sizes` are a number of the country. `is_marked`: they have a slash
        or a bracket, as numbers with an area code do."""
        size, is_divided = len(digits), len(sizes) > 1
        if self.prefix and digits.startswith(self.prefix) and self.national.fullmatch(digits, len(self.prefix)):
            if self.is_american:
                return not is_divided or (*sizes,) in _AMERICAN
            if size < _FEWEST_NATIONAL and len(sizes) < 4:
                return False
            if self.mobile.fullmatch(digits, len(self.prefix)):
                return sizes[0] > 1 or self.prefix != "0" or is_marked
            area, _ = self._area(digits[len(self.prefix) :])
            if is_divided:
                begins_with = len(self.prefix) if self.prefix != "0" or is_marked else 0
                return sizes[0] in {begins_with, len(self.prefix) + area}
            return size <= _MOST_UNDIVIDED
        if not self.national.fullmatch(digits):
            return False
        area, goes_alone = self._area(digits)
        if not goes_alone or self.is_american:
            return goes_alone and (*sizes,) in _AMERICAN
        if not is_divided:
            return self.mobile.fullmatch(digits) is not None
        is_usual = sizes[0] <= max(area, 3) and (max(sizes) < 6 or len(sizes) == 2)
        return size >= self.fewest and min(sizes) > 1 and (is_usual or (*sizes,) == (4, 4))

    def _area(self, digits: str) -> tuple[int, bool]:
        """Return the size of the first group of a number without its prefix, and whether people write it so."""
        matches = ((form.fullmatch(digits), goes_alone) for form, goes_alone in self.alone)
        return next(((match.end(1), goes_alone) for match, goes_alone in matches if match), (0, False))


def unknown_region(regions: Sequence[str]) -> str:
    """Return a country whose telephone numbers are not known; `""` if all are. Raises `PromptmillError`."""
    known = needed("phonenumbers", "phone").SUPPORTED_REGIONS
    return next((region for region in regions if region not in known), "")


class Phones:
    """Decides which digits are a telephone number, by the plans of Google's libphonenumber."""

    def __init__(self, regions: Sequence[str]) -> None:
        """`regions`: the countries whose numbers are found without `+`. Raises `PromptmillError`."""
        self._package: Any = needed("phonenumbers", "phone")
        self._codes = functools.cache(self._of_code)
        self.plans = dict[int, list[_Plan]]()
        """The countries' plans by the digits of their numbers, with and without prefix."""
        for region in regions:
            metadata = self._package.PhoneMetadata.metadata_for_region(region)
            plan = _Plan.of(metadata)
            for size in {
                size + more for size in metadata.general_desc.possible_length for more in (0, len(plan.prefix))
            }:
                self.plans.setdefault(size, []).append(plan)

    def is_international(self, digits: str) -> bool:
        """Return whether digits are the code of a country, followed by a number of this country. A `0` between them is
        left out, as in `+49 (0)30 901820`."""
        plan, size = self._codes(digits[:3])
        if plan is None:
            return False
        return bool(plan.fullmatch(digits, size) or (digits[size] == "0" and plan.fullmatch(digits, size + 1)))

    def _of_code(self, beginning: str) -> tuple[re.Pattern[str] | None, int]:
        """Return the pattern of a country's numbers, and the size of the country's code."""
        known = self._package.PhoneMetadata
        for size in range(1, len(beginning) + 1) if beginning[0] != "0" else ():
            code = int(beginning[:size])
            if names := self._package.COUNTRY_CODE_TO_REGION_CODE.get(code):
                plans = [known.metadata_for_region_or_calling_code(code, name) for name in names]
                patterns = [f"(?:{plan.general_desc.national_number_pattern})" for plan in plans if plan is not None]
                return re.compile("|".join(patterns)) if patterns else None, size
        return None, 0

    def is_national(self, digits: str, sizes: Sequence[int], *, is_marked: bool) -> bool:
        """Return whether digits are a number in one of the countries, see `_Plan.has`."""
        return any(plan.has(digits, sizes, is_marked=is_marked) for plan in self.plans.get(len(digits), ()))


class _Piece(NamedTuple):
    """Digits of a run without white space or a slash between them."""

    start: int
    end: int
    sizes: tuple[int, ...]
    """The sizes of its groups of digits."""


class Numbers:
    """The detector of the numbers of some kinds."""

    def __init__(self, phones: Phones | None, ids: Sequence[NationalId], *, has_cards: bool, has_ibans: bool) -> None:
        """Raises `PromptmillError` (`missing_dependency`)."""
        self._phones, self._has_cards, self._has_ibans = phones, has_cards, has_ibans
        self._ids: dict[int, list[tuple[re.Pattern[str], Check]]] = {}
        for each in ids:
            if each.size:
                self._ids.setdefault(each.size, []).append((re.compile(each.form), check_of(each.module)))
        self._written = WrittenIds(ids) if ids else None
        self._possible = functools.cache(self._pattern)
        self._fewest = _FEWEST if phones is not None and phones.plans else _FEWEST_WITHOUT_COUNTRY

    def __call__(self, text: str) -> Sequence[ValueSpan]:
        """Return the numbers in a folded text."""
        found: list[ValueSpan] = []
        shape, at = shape_of(text), 0
        may_have_ids, has_plus = _ITALIAN in shape, "+" in text
        while run := _RUN.search(text, at) if _FOUR in shape else None:
            start, at = run.span()
            span = _iban(text, start) if self._has_ibans else None
            if span is not None:
                at = span.end
                found.append(span)
            elif at - start >= _WRITTEN:
                may_have_ids = True
                digits = _digits_of(text[start:at])
                if len(digits) >= self._fewest or has_plus:
                    found += self._in_run(text, start, at, digits)
        if self._written is not None and may_have_ids:
            found = sorted([*found, *self._written(hidden(text, found))])
        return found

    def _in_run(self, text: str, start: int, end: int, digits: str) -> Iterator[ValueSpan]:
        """Yield the numbers in a run. A number in it begins and ends at white space or a slash."""
        is_inside = bool(
            _is_joined(text, start, end) or _TIME.match(text, max(0, start - 2)) or _FRACTION.match(text, end)
        )
        before = text[max(0, start - 4) : start] if self._phones is not None else ""
        sign = _PLUS.search(before) if "+" in before else None
        if sign is not None and (to := self._end_of_international(text, start, end, "" if is_inside else digits)):
            first = start - len(before) + sign.start() + (sign[0][0] == "(" and ")" not in text[start:to])
            yield ValueSpan(first, to, PHONE)
            if to == end:
                return
            start, is_inside = to, True
        run = text[start:end]
        parts = run.split()
        span = None if is_inside else self._whole(text, start, end, digits, parts)
        if span is not None:
            yield span
        if span is not None or not (is_inside or len(parts) > 1 or "/" in run):
            return
        if _is_joined(text, end=end):  # the last group is a part of a word
            end = start + len(run.rstrip("0123456789"))
        for pieces in _divided(text, start, end):
            yield from self._among(text, pieces)

    def _whole(self, text: str, start: int, end: int, digits: str, parts: Sequence[str]) -> ValueSpan | None:
        """Return the number that a run is as a whole, as most are."""
        if not _FEWEST <= len(digits) <= _MOST or not self._possible(len(digits)).fullmatch(digits):
            return None
        if any(map(_ORDINARY.fullmatch, [part for part in parts if len(part) > 5])) or _REFERENCE.fullmatch(parts[0]):
            return None
        if text.count("/", start, end) > _MOST_SLASHES:
            return None
        return self._number(text, start, end, digits)

    def _end_of_international(self, text: str, start: int, end: int, whole: str) -> int:
        """Return the end of the longest international number whose country code is at `start`; 0 if there is none.
        `whole`: the digits up to `end`, if they may be a number."""
        assert self._phones is not None
        if _FEWEST <= len(whole) <= _MOST and self._phones.is_international(whole):
            return end
        digits, ends = "", list[tuple[int, str]]()
        for group in _GROUP.finditer(text, start, end):
            digits += group[0]
            if len(digits) > _MOST:
                break
            to = group.end()
            if len(digits) >= _FEWEST and not (_is_joined(text, end=to) or _FRACTION.match(text, to)):
                ends.append((to, digits))
        return next((to for to, digits in reversed(ends) if self._phones.is_international(digits)), 0)

    def _among(self, text: str, pieces: Sequence[_Piece]) -> Iterator[ValueSpan]:
        """Yield the numbers that adjacent pieces have, at each place the longest. An amount or the number of an article
        has no other number in it."""
        if not pieces:
            return
        written = text[pieces[0].start : pieces[-1].end]
        digits, ends, singles = _digits_of(written), [0], [0]
        for piece in pieces:
            ends.append(ends[-1] + sum(piece.sizes))
            singles.append(singles[-1] + piece.sizes.count(1))
        at, whole = 0, (len(pieces),) if ends[-1] <= _MOST else ()
        while at < len(pieces):
            for to in (*whole, *_windows(ends, singles, at)):
                if (
                    ends[to] - ends[at] >= _FEWEST
                    and self._possible(ends[to] - ends[at]).fullmatch(digits, ends[at], ends[to])
                    and (span := self._number(text, pieces[at].start, pieces[to - 1].end, digits[ends[at] : ends[to]]))
                ):
                    yield span
                    at = to - 1
                    break
            at, whole = at + 1, ()
            if at == 1 and (_AMOUNT.fullmatch(written) or _is_article(digits)):
                return

    def _pattern(self, size: int) -> re.Pattern[str]:
        """Return the pattern of the numbers of `size` digits. It decides most windows in one search."""
        patterns = [form.pattern for form, _ in self._ids.get(size, ())]
        if self._has_cards and size > 12:
            patterns.append(_CARD.pattern)
        if self._phones is not None:
            plans = self._phones.plans.get(size, ())
            patterns += ["00[1-9][0-9]+", *(f"(?:{plan.prefix})?(?:{plan.national.pattern})" for plan in plans)]
        return re.compile("|".join(patterns) or "(?!)")

    def _number(self, text: str, first: int, last: int, digits: str) -> ValueSpan | None:
        """Return the number at `first` to `last - 1`, with a bracket before it."""
        written = text[first:last]
        sizes = [len(digits)] if len(written) == len(digits) else [*map(len, _GROUP.findall(written))]
        label = self._label(written, digits, sizes)
        if not label or _ARTICLE.search(text, max(0, first - 11), first):
            return None
        return ValueSpan(first - (text[first - 1 : first] == "(" and ")" in written), last, label)

    def _label(self, written: str, digits: str, sizes: Sequence[int]) -> str:
        """Return the kind of a number whose groups of digits have these `sizes`, or `""`."""
        size, is_even = len(digits), _is_even(written, sizes)
        is_card = self._has_cards and size > 12 and (is_even or (*sizes,) in _CARD_GROUPS) and sizes != [13]
        if is_card and _CARD.fullmatch(digits) and _is_luhn(digits) and not _is_article(digits):
            return CARD
        is_id = (is_even or (*sizes,) in _ID_GROUPS) and "/" not in written[:-3]  # `123.456.789/09` is one
        if is_id and not (sizes == [1, 6, 6] and _is_article(digits)):
            for form, check in self._ids.get(size, ()):
                if form.fullmatch(digits) and check(digits) and not _is_address_or_days(written, sizes):
                    return ID
        if (phones := self._phones) is None:
            return ""
        if digits.startswith("00") and sizes[0] > 1 and phones.is_international(digits[2:]):
            return PHONE
        is_marked = not {*"()/"}.isdisjoint(written) or " - " in written
        is_phone = len(sizes) < 7 and phones.is_national(digits, sizes, is_marked=is_marked)
        return PHONE if is_phone and not _is_address_or_days(written, sizes) else ""


def _digits_of(written: str) -> str:
    return written.encode("ascii", "ignore").translate(None, _NO_DIGITS).decode()


def _divided(text: str, start: int, end: int) -> Iterator[list[_Piece]]:
    """Yield the pieces of a run between dates, decimals and other ordinary numbers."""
    pieces = list[_Piece]()
    word = _OF_WORD.match(text, start) if _is_joined(text, start) else None
    inner = start if word is None else word.end()
    is_time, is_amount = _TIME.match(text, max(0, start - 2)), _FRACTION.match(text, end)
    for part in _PART.finditer(text, inner, end):
        first, last = part.span()
        if (
            (5 < last - first < _LONGEST_ORDINARY and _ORDINARY.fullmatch(part[0]))
            or (first == start and (is_time or _REFERENCE.fullmatch(part[0])))
            or (last == end and is_amount)
            or part[0].count("/") > _MOST_SLASHES
        ):
            yield pieces
            pieces = []
            continue
        for piece in _PIECE.finditer(text, first, last):
            sizes = (len(piece[0]),) if piece[0].isdigit() else (*map(len, _GROUP.findall(piece[0])),)
            pieces.append(_Piece(*piece.span(), sizes))
    yield pieces


def _windows(ends: Sequence[int], singles: Sequence[int], at: int) -> Sequence[int]:
    """Return the ends of windows that begin with the piece `at` and may be a number, the longest first. `ends` and
    `singles` are the digits and the groups of one digit before each piece.

    A number has at most one group of a single digit, as in `1 85 05 78 006 084 91`, or all single digits in a row.
    """
    most = bisect_right(ends, ends[at] + _MOST) - 1
    last = bisect_right(singles, singles[at] + 1, at, most + 1) - 1
    row = at
    if at == 0 or ends[at] - ends[at - 1] > 1:
        while row < most and ends[row + 1] - ends[row] == 1:
            row += 1
    is_row = row > at + 1 and (row + 1 == len(ends) or ends[row + 1] - ends[row] > 1)
    return (*((row,) if is_row else ()), *range(last, at, -1))


def _is_even(written: str, sizes: Sequence[int]) -> bool:
    """Return whether all groups have the same size, apart from a shorter last one, and the same sign between them.

    >>> _is_even("123.456.78", [3, 3, 2]), _is_even("123-456 78", [3, 3, 2])
    (True, False)
    """
    if len(sizes) == 1:
        return True
    if len(sizes) == 2 and "\n" in written:  # a line ends within the number
        return True
    if len({*sizes[:-1]}) > 1 or not (sizes[-1] == sizes[0] or sizes[-1] < sizes[0] < 5):
        return False
    return len({sign if sign.strip() else " " for sign in _SIGN.findall(written)}) == 1


def _is_address_or_days(written: str, sizes: Sequence[int]) -> bool:
    """Return whether digits with signs are the address of a computer, or dates or years."""
    return len(sizes) > 1 and (
        _DAYS.fullmatch(written) is not None or ({*sizes} != {2} and _WHOLE_ADDRESS.fullmatch(written) is not None)
    )


def _is_article(digits: str) -> bool:
    """Return whether digits are the number of an article (EAN, UPC, ISBN)."""
    return len(digits) in {12, 13} and (sum(map(int, digits[::-2])) + 3 * sum(map(int, digits[-2::-2]))) % 10 == 0


def _is_luhn(digits: str) -> bool:
    written = digits.encode()
    return (sum(written[-1::-2]) + sum(written[-2::-2].translate(_TWICE))) % 10 == 48 * len(digits) % 10


class WrittenIds:
    """The detector of national ids that have letters, or separators at fixed positions."""

    def __init__(self, ids: Sequence[NationalId]) -> None:
        """Raises `PromptmillError` (`missing_dependency`)."""
        own = sorted((each for each in ids if not each.size), key=lambda each: each.letters == _ITALIAN_LETTERS)
        self._ids = [(_from_digit(each.form), each.letters, check_of(each.module)) for each in own]
        forms = [f"({each.form})" for each in own]
        at = len([each for each in own if each.letters != _ITALIAN_LETTERS])
        self._any = _from_digit("|".join([f"{_DIGITS}(?:{'|'.join(forms[:at])})", *forms[at:]])) if own else None

    def __call__(self, text: str) -> Iterator[ValueSpan]:
        """Yield the ids in a folded text."""
        at = 0
        while self._any is not None and (match := self._any.search(text, at)):
            assert match.lastindex is not None
            forms = self._ids[match.lastindex - 1 :]  # the earlier forms do not match
            span = next(filter(None, (self._at(match.start(), text, *each) for each in forms)), None)
            at = match.start() + 1 if span is None else span.end
            if span is not None:
                yield span

    @staticmethod
    def _at(digit: int, text: str, form: re.Pattern[str], letters: int, check: Check) -> ValueSpan | None:
        """Return the id of a form whose first digit is at the position `digit`."""
        match, start = form.match(text, digit), _before(text, digit, letters)
        is_part = _is_joined(text, start) or _TIME.match(text, max(0, start - 2))
        if match is None or is_part or not check(_SPACE.sub("", text[start : match.end()]).upper()):
            return None
        return ValueSpan(start, match.end(), ID)


def _from_digit(form: str) -> re.Pattern[str]:
    """Return a pattern that begins with a digit, for which a search is fast."""
    return re.compile(f"[0-9](?<![0-9][0-9])(?:{form})(?![A-Z0-9])", re.IGNORECASE)


def _before(text: str, start: int, letters: int) -> int:
    """Return the position of the first of `letters` letters, perhaps with separators, before `start`; `start` if they
    are missing."""
    at = start
    while letters and at:
        at -= 1
        if text[at].isalpha():
            letters -= 1
        elif text[at] not in _SEPARATORS or text[at + 1] in _SEPARATORS:
            return start
    return start if letters else at


def _is_joined(text: str, start: int = 0, end: int | None = None) -> bool:
    """Return whether a text has an ASCII letter or a digit before `start` or from `end` on."""
    return text[start - 1 : start] in _JOINS or (end is not None and text[end : end + 1] in _JOINS)


def check_of(module: str) -> Check:
    """Return the check of a number by a module of python-stdnum. Raises `PromptmillError` (`missing_dependency`)."""
    needed("stdnum", ID.lower())
    is_valid: Check = importlib.import_module(f"stdnum.{module}").is_valid

    @functools.lru_cache(_KEPT)
    def check(number: str) -> bool:
        try:
            return is_valid(number)
        except KeyError:  # stdnum 2.2 raises it for a Chinese id whose province is known, but not its county
            return False

    return check


_IBAN_SIZES = dict(
    re.findall(
        r"([A-Z]{2})([0-9]{2})",
        "AD24AE23AL28AT20AZ28BA20BE16BG22BH22BI27BR29BY28CH21CR22CY28CZ24DE22DJ27DK18DO28EE20EG29ES24FI18FK18FO18FR27"
        "GB22GE22GI23GL18GR27GT28HN28HR21HU28IE22IL23IQ23IS26IT27JO30KW30KZ20LB28LC32LI21LT20LU20LV21LY25MC27MD24ME22"
        "MK19MN20MR27MT31MU30NI28NL18NO15OM23PK24PL28PS29PT25QA29RO24RS22RU33SA24SC31SD18SE24SI19SK24SM27SO23ST25SV28"
        "TL23TN24TR26UA29VA22VG24XK20YE30",
    )
)
"""The lengths by country, from SWIFT's registry of IBANs."""
_TAILS = {
    "".join(letters): re.compile(rf"[0-9]{{2}}(?:[\s.\-]{{0,2}}[A-Za-z0-9]){{{int(size) - 4}}}")
    for (first, second), size in _IBAN_SIZES.items()
    for letters in itertools.product(first + first.lower(), second + second.lower())
}
"""The patterns of what follows the code of a country, in any case."""
_AS_NUMBERS = str.maketrans({sign: str(int(sign, 36)) for sign in "ABCDEFGHIJKLMNOPQRSTUVWXYZ"})


def _iban(text: str, digits: int) -> ValueSpan | None:
    """Return the IBAN whose check digits are at the position `digits`."""
    start = digits - 3 if text[digits - 1] in _SEPARATORS else digits - 2
    tail = _TAILS.get(text[start : start + 2]) if start >= 0 else None
    match = None if tail is None else tail.match(text, digits)
    if match is None or _is_joined(text, start, match.end()):
        return None
    written = text[start : match.end()].encode("ascii", "ignore").translate(None, _SIGNS).upper().decode()
    is_right = int((written[4:] + written[:4]).translate(_AS_NUMBERS)) % 97 == 1
    return ValueSpan(start, match.end(), IBAN) if is_right else None
