"""The numbers of list items in the forms that Word and web pages show, such as `iv`, `Third` or `③`."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

_ROMAN = tuple(
    (worth, ("", a, a * 2, a * 3, a + b, b, b + a, b + a * 2, b + a * 3, a + c))
    for worth, a, b, c in ((1000, "m", "", ""), (100, "c", "d", "m"), (10, "x", "l", "c"), (1, "i", "v", "x"))
)
_UNITS = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"),
    *("thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"),
)
_TENS = ("", "", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
_ORDINALS: Mapping[str, str] = MappingProxyType(
    {
        "one": "first",
        "two": "second",
        "three": "third",
        "five": "fifth",
        "eight": "eighth",
        "nine": "ninth",
        "twelve": "twelfth",
    }
)
_ALPHABETS: Mapping[str, str] = MappingProxyType(  # according to ECMA-376, part 1, 17.18.59
    {
        "lowerLetter": "abcdefghijklmnopqrstuvwxyz",
        "upperLetter": "ABCDEFGHIJKLMNOPQRSTUVWXYZ",
        "russianLower": "абвгдежзиклмнопрстуфхцчшщыэюя",
        "russianUpper": "АБВГДЕЖЗИКЛМНОПРСТУФХЦЧШЩЫЭЮЯ",
        "hebrew2": "אבגדהוזחטיכלמנסעפצקרשת",
        "arabicAlpha": "أبتثجحخدذرزسشصضطظعغفقكلمنهوي",
        "arabicAbjad": "أبجدهوزحطيكلمنسعفصقرشتثخذضظغ",
        "ganada": "가나다라마바사아자차카타파하",
        "chosung": "ㄱㄴㄷㄹㅁㅂㅅㅇㅈㅊㅋㅌㅍㅎ",
        "aiueo": "ｱｲｳｴｵｶｷｸｹｺｻｼｽｾｿﾀﾁﾂﾃﾄﾅﾆﾇﾈﾉﾊﾋﾌﾍﾎﾏﾐﾑﾒﾓﾔﾕﾖﾗﾘﾙﾚﾛﾜｦﾝ",
        "aiueoFullWidth": "アイウエオカキクケコサシスセソタチツテトナニヌネノ"
        "ハヒフヘホマミムメモヤユヨラリルレロワヲン",
        "iroha": "ｲﾛﾊﾆﾎﾍﾄﾁﾘﾇﾙｦﾜｶﾖﾀﾚｿﾂﾈﾅﾗﾑｳｲﾉｵｸﾔﾏｹﾌｺｴﾃｱｻｷﾕﾒﾐｼﾋﾓｾｽﾝ",
        "ideographTraditional": "甲乙丙丁戊己庚辛壬癸",
        "ideographZodiac": "子丑寅卯辰巳午未申酉戌亥",
        "chicago": "*†‡§",
    }
)
_FIRST_SIGNS: Mapping[str, tuple[str, int]] = MappingProxyType(  # the first of consecutive signs, and their count
    {
        "decimalEnclosedCircle": ("①", 20),
        "decimalEnclosedCircleChinese": ("①", 10),
        "decimalEnclosedParen": ("⑴", 20),
        "decimalEnclosedFullstop": ("⒈", 20),
        "ideographEnclosedCircle": ("㊀", 10),
    }
)
_COUNTING = frozenset(
    {
        *("chineseCounting", "chineseCountingThousand", "japaneseCounting", "taiwaneseCounting"),
        *("taiwaneseCountingThousand", "ideographDigital", "japaneseDigitalTenThousand", "taiwaneseDigital"),
    }
)
_HEBREW, _HEBREW_TENS = " אבגדהוזחט", " יכלמנסעפצ"
_DIGITS = "〇一二三四五六七八九"


def numeral(number: int, form: str) -> str:
    """Return the number of a list item in the form that Word calls `form`; for an unknown form, in the usual digits.

    >>> numeral(28, "lowerLetter"), numeral(4, "upperRoman"), numeral(3, "decimal"), numeral(3, "decimalZero")
    ('bb', 'IV', '3', '03')
    >>> numeral(22, "ordinal"), numeral(22, "ordinalText"), numeral(12, "chineseCounting")
    ('22nd', 'Twenty-second', '十二')
    """
    if (letters := _ALPHABETS.get(form)) and 0 < number < 1 << 15:
        return letters[(number - 1) % len(letters)] * ((number - 1) // len(letters) + 1)
    if form in _FIRST_SIGNS:
        sign, count = _FIRST_SIGNS[form]
        return chr(ord(sign) + number - 1) if 0 < number <= count else str(number)
    if form in _COUNTING and 0 < number < 100:
        return _counted(number, form)
    match form:
        case "none":
            return ""
        case "lowerRoman" | "upperRoman" if 0 < number < 4000:
            text = "".join(digits[number // worth % 10] for worth, digits in _ROMAN)
            return text.upper() if form == "upperRoman" else text
        case "decimalZero":
            return f"{number:02}"
        case "ordinal":
            is_teen = number // 10 % 10 == 1
            return f"{number}{'th' if is_teen else {1: 'st', 2: 'nd', 3: 'rd'}.get(number % 10, 'th')}"
        case "cardinalText" | "ordinalText" if 0 < number < 100:
            return _in_words(number, is_ordinal=form == "ordinalText")
        case "hebrew1" if 0 < number < 100:
            is_written = number in {15, 16}  # the usual letters for 15 and 16 would be a name of God
            tens, unit = (0, 0) if is_written else divmod(number, 10)
            return (
                {15: "\u05d8\u05d5", 16: "\u05d8\u05d6"}[number]
                if is_written
                else f"{_HEBREW_TENS[tens]}{_HEBREW[unit]}".strip()
            )
        case "hex":
            return f"{number:X}"
        case "numberInDash":
            return f"- {number} -"
        case "decimalFullWidth" | "decimalFullWidth2":
            return str(number).translate({ord("0") + at: 0xFF10 + at for at in range(10)})
    return str(number)


def _in_words(number: int, *, is_ordinal: bool) -> str:
    tens, unit = divmod(number, 10)
    words = [_UNITS[number]] if number < 20 else [_TENS[tens], *([_UNITS[unit]] if unit else [])]
    if is_ordinal:
        last = words[-1]
        words[-1] = _ORDINALS.get(last) or (f"{last[:-1]}ieth" if last.endswith("y") else f"{last}th")
    return "-".join(words).capitalize()


def _counted(number: int, form: str) -> str:
    tens, unit = divmod(number, 10)
    if "Digital" in form:
        return "".join(_DIGITS[int(digit)] for digit in str(number))
    return (_DIGITS[tens] if tens > 1 else "") + ("十" if tens else "") + (_DIGITS[unit] if unit else "")
