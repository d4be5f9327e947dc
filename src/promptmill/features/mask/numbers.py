"""Finds IBANs, telephone numbers, cards and national ids: runs of digits with separators, of which windows are checked.

    "card 4111 1111-1111 1111, 030 901820"
          ───────────────────  ──────────       runs, with at most 3 separators between groups of digits
          4111 1111 1111 1111                   the longest window of whole groups that is a number of a kind

A window is masked only if it has check digits that are right, or is a number of a known country: so amounts, dates and
numbers of invoices stay.
"""

from __future__ import annotations

import functools
import importlib
import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

from promptmill.features.mask.detection import ValueSpan, hidden
from promptmill.features.mask.folded_text import shape_of
from promptmill.features.mask.packages import needed

_RUN = re.compile(r"[0-9](?:[\s().\-/]{0,3}[0-9])*")
_GROUP = re.compile(r"[0-9]+")
_JOINS = frozenset("0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz_")
_FEWEST, _MOST = 7, 19
_FOUR = b"0000"
"""Each number apart from some ids has this in its shape. IBANs in use have four digits in a row, though the registry
allows only letters in a few countries (RO, QA)."""
_WRITTEN, _ITALIAN = 6, b"00a00a"
"""Each id of `WrittenIds` has at least so many digits in a row, except Italy's ids, which have this shape."""
_SIGNS = bytes(one for one in range(128) if not chr(one).isalnum())
_NO_DIGITS = bytes(one for one in range(128) if not chr(one).isdigit())
_SPACE = re.compile(r"[\s.]+")
_SEPARATORS = " .-\n\r\t\xa0\u2009\u202f\u3000"
_DATE = re.compile(r"[0-9]{1,4}([./-])[0-9]{1,2}\1[0-9]{1,4}(?:\s[0-9 ]*)?")
_CARD = re.compile(
    r"4[0-9]{12}(?:[0-9]{3}){0,2}|5[1-5][0-9]{14}|2(?:22[1-9]|2[3-9][0-9]|[3-6][0-9]{2}|7[01][0-9]|720)[0-9]{12}|"
    r"3[47][0-9]{13}|3(?:0[0-5]|[689][0-9])[0-9]{11}|35[0-9]{14}|6[0-9]{15,18}"
)
"""The lengths and beginnings of cards: Visa, Mastercard, American Express, Diners Club, JCB; Discover, UnionPay,
Maestro and RuPay."""
_BEGINNING = re.compile(r"\s*[0-9][0-9\s().\-/]{4,}")
_END_BACKWARDS = re.compile(r"[0-9\s().\-/]{4,}[0-9]")
"""The digits at the end of a text, for the reversed text: in a forward search, each digit could begin a match."""
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


class Phones:
    """Decides which digits are a telephone number, by the plans of Google's libphonenumber."""

    def __init__(self, regions: Sequence[str]) -> None:
        """`regions`: the countries whose numbers are found without `+`. Raises `PromptmillError`."""
        self._package: Any = needed("phonenumbers", "phone")
        self._plans = functools.cache(self._plan)
        self._regions = [self._package.PhoneMetadata.metadata_for_region(region) for region in regions]

    def is_international(self, digits: str) -> bool:
        """Return whether digits are the code of a country, followed by a number of this country."""
        plan, size = self._plans(digits[:3])
        return plan is not None and plan.fullmatch(digits, size) is not None

    def _plan(self, beginning: str) -> tuple[re.Pattern[str] | None, int]:
        """Return the pattern of a country's numbers, and the size of the country's code."""
        known = self._package.PhoneMetadata
        for size in range(1, len(beginning) + 1):
            code = int(beginning[:size])
            if names := self._package.COUNTRY_CODE_TO_REGION_CODE.get(code):
                plans = [known.metadata_for_region_or_calling_code(code, name) for name in names]
                patterns = [f"(?:{plan.general_desc.national_number_pattern})" for plan in plans if plan is not None]
                return re.compile("|".join(patterns)) if patterns else None, size
        return None, 0

    def is_national(self, digits: str, *, is_divided: bool) -> bool:
        """Return whether digits are a number in one of the countries. `is_divided`: they have separators."""
        return any(self._is_in(plan, digits, is_divided=is_divided) for plan in self._regions)

    @staticmethod
    def _is_in(plan: Any, digits: str, *, is_divided: bool) -> bool:
        pattern, prefix = plan.general_desc.national_number_pattern, plan.national_prefix or ""
        if prefix and digits.startswith(prefix) and re.fullmatch(pattern, digits[len(prefix) :]):
            return True
        return re.fullmatch(pattern, digits) is not None and _goes_alone(plan, digits, is_divided=is_divided)


def _goes_alone(plan: Any, digits: str, *, is_divided: bool) -> bool:
    """Return whether a number is written without the prefix of its country. Without separators, only the
    number of a mobile is accepted."""
    for form in plan.number_format:
        leading = form.leading_digits_pattern
        if re.fullmatch(form.pattern, digits) and (not leading or re.match(leading[-1], digits)):
            if plan.national_prefix in {None, "1"}:
                return is_divided
            rule = form.national_prefix_formatting_rule or ""
            is_mobile = re.fullmatch(plan.mobile.national_number_pattern or "", digits) is not None
            return plan.national_prefix not in rule and (is_divided or is_mobile)
    return False


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

    def __call__(self, text: str) -> Sequence[ValueSpan]:
        """Return the numbers in a folded text."""
        found: list[ValueSpan] = []
        shape, at = shape_of(text), 0
        may_have_ids = _ITALIAN in shape
        while run := _RUN.search(text, at) if _FOUR in shape else None:
            start, at = run.span()
            span = _iban(text, start) if self._has_ibans else None
            if span is None and at - start >= _FEWEST and not _is_joined(text, start, at):
                span = self._whole(text, start, at)
            if span is not None:
                at = span.end
                found.append(span)
            elif at - start >= _WRITTEN:
                found += self._in_run(text, start, at)
                may_have_ids = True
        if self._written is not None and may_have_ids:
            found = sorted([*found, *self._written(hidden(text, found))])
        return found

    def _whole(self, text: str, first: int, last: int) -> ValueSpan | None:
        """Return the number at `first` to `last - 1` of a text, with the sign or bracket before the number."""
        before = text[max(0, first - 2) : first]
        sign = "+" if before[-1:] == "+" else "+(" if before == "+(" else ""
        if not (label := self._label(text[first:last], has_plus=bool(sign))):
            return None
        if sign and label == PHONE:
            first -= len(sign)
        elif before[-1:] == "(" and ")" in text[first:last]:
            first -= 1
        return ValueSpan(first, last, label)

    def _in_run(self, text: str, start: int, end: int) -> Iterator[ValueSpan]:
        groups = [group.span() for group in _GROUP.finditer(text, start, end)]
        if _is_joined(text, start):
            del groups[0]
        if groups and _is_joined(text, end=end):
            del groups[-1]
        at = 0
        while at < len(groups):
            for to in _windows(groups, at):
                first, last = groups[at][0], groups[to - 1][1]
                if (first, last) != (start, end) and (span := self._whole(text, first, last)):
                    yield span
                    at = to - 1
                    break
            at += 1

    def _label(self, written: str, *, has_plus: bool) -> str:
        """Return the kind of a number, or `""`."""
        digits, phones = _digits_of(written), self._phones
        if not _FEWEST <= len(digits) <= _MOST:
            return ""
        if phones is not None and (has_plus or digits.startswith("00")):
            called = _digits_of(written.replace("(0)", "", 1)) if "(0)" in written else digits
            if phones.is_international(called.removeprefix("00")):
                return PHONE
        if self._has_cards and len(digits) > 12 and _CARD.fullmatch(digits) and _is_luhn(digits):
            return CARD
        for form, check in self._ids.get(len(digits), ()):
            if form.fullmatch(digits) and check(digits):
                return ID
        is_national = phones is not None and phones.is_national(digits, is_divided=len(written) > len(digits))
        return PHONE if is_national and not _DATE.fullmatch(written) else ""


def _digits_of(written: str) -> str:
    return written.encode("ascii", "ignore").translate(None, _NO_DIGITS).decode()


def _windows(groups: Sequence[tuple[int, int]], at: int) -> Iterator[int]:
    """Yield the ends of windows that begin with group `at` and may be a number, the longest first.

    A number has at most one group of a single digit, as in `1 85 05 78 006 084 91`, or only such groups.
    """
    size, singles, ends = 0, 0, list[int]()
    for to in range(at, min(len(groups), at + _MOST)):
        length = groups[to][1] - groups[to][0]
        size, singles = size + length, singles + (length == 1)
        if size > _MOST:
            break
        if size >= _FEWEST and singles in {0, 1, to + 1 - at}:
            ends.append(to + 1)
    return reversed(ends)


def _is_luhn(digits: str) -> bool:
    written = digits.encode()
    return (sum(written[-1::-2]) + sum(written[-2::-2].translate(_TWICE))) % 10 == 48 * len(digits) % 10


def digits_at_ends(text: str) -> Iterator[ValueSpan]:
    """Yield the digits at both ends of a folded text, which may be a part of a number.

    >>> [*digits_at_ends("0532 0130 00 and 030 90182")]
    [ValueSpan(start=0, end=13, label='NUMBER'), ValueSpan(start=17, end=26, label='NUMBER')]
    """
    if found := _BEGINNING.match(text):
        yield ValueSpan(*found.span(), "NUMBER")
    if found := _END_BACKWARDS.match(text[::-1]):
        yield ValueSpan(len(text) - found.end(), len(text), "NUMBER")


class WrittenIds:
    """The detector of national ids that have letters, or separators at fixed positions."""

    def __init__(self, ids: Sequence[NationalId]) -> None:
        """Raises `PromptmillError` (`missing_dependency`)."""
        own = [each for each in ids if not each.size]
        self._ids = [(_from_digit(each.form), each.letters, check_of(each.module)) for each in own]
        self._any = _from_digit("|".join(f"({each.form})" for each in own)) if own else None

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
        if match is None or _is_joined(text, start) or not check(_SPACE.sub("", text[start : match.end()]).upper()):
            return None
        return ValueSpan(start, match.end(), ID)


def _from_digit(form: str) -> re.Pattern[str]:
    """Return a pattern that begins with a digit, for which a search is fast."""
    return re.compile(f"[0-9](?<![0-9_][0-9])(?:{form})(?![A-Z0-9_])", re.IGNORECASE)


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
    """Return whether a text has a letter, a digit or `_` before `start` or from `end` on."""
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
