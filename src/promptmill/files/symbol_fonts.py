"""Characters of fonts with pictures in place of letters, such as Wingdings: a ticked or an empty box is a value."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

_NO_SIGN = "\ufffd"
"""Stands for a sign that is shown, but for which the tables below have no letter of Unicode."""
_WINGDINGS: Mapping[int, str] = MappingProxyType(
    {
        **dict(zip(bytes.fromhex("28292a4a4b4c6c6e6f7071727376"), "☎✆✉☺😐☹●■☐☐❑❒⬧❖", strict=True)),
        **dict(zip(range(0x80, 0x96), "⓪①②③④⑤⑥⑦⑧⑨⑩⓿❶❷❸❹❺❻❼❽❾❿", strict=True)),
        **dict(zip(bytes.fromhex("9fa1a7a8abd8dfe0e1e2e8eff0f1f2"), "•○▪☐★➢←→↑↓➔⇦⇨⇧⇩", strict=True)),
        **dict(zip(bytes.fromhex("fbfcfdfe"), "✗✓☒☑", strict=True)),
    }
)
_WINGDINGS_2: Mapping[int, str] = MappingProxyType(
    dict(zip(bytes.fromhex("4f50515253549798a2a3"), "✗✓☒☑☒☒●●■☐", strict=True))
)
_WEBDINGS: Mapping[int, str] = MappingProxyType(dict(zip(b"acgnr", "✔☐■●✖", strict=True)))
_SYMBOL: Mapping[int, str] = MappingProxyType(
    {
        **dict(zip(bytes.fromhex("6162636465666768696a6b6c6d6e6f70"), "αβχδεφγηιϕκλμνοπ", strict=True)),
        **dict(zip(bytes.fromhex("7172737475777879 7a4446474c505357"), "θρστυωξψζΔΦΓΛΠΣΩ", strict=True)),
        **dict(zip(bytes.fromhex("a3a5abacaeb0b1b3 b4b8b9bbd6d7c5ce"), "≤∞↔←→°±≥\xd7÷≠≈√⋅⊕∈", strict=True)),
        **dict(zip(bytes.fromhex("b7bae5f2a2b2d0db de2d"), "•≡∑∫\u2032″∠⇔⇒\u2212", strict=True)),
    }
)
_FONTS: Mapping[str, Mapping[int, str]] = MappingProxyType(
    {"wingdings": _WINGDINGS, "wingdings 2": _WINGDINGS_2, "webdings": _WEBDINGS, "symbol": _SYMBOL}
)


def shown(text: str, font: str = "") -> str:
    """Return a text as it is shown in a font. An unknown sign with a private code becomes U+FFFD.

    >>> shown("\\uf0fe", "Wingdings"), shown("J", "Wingdings"), shown("m", "Symbol"), shown("a", "Arial")
    ('☑', '☺', 'μ', 'a')
    """
    signs = _FONTS.get(font.lower())
    return "".join(_shown(letter, signs) for letter in text) if signs or not text.isascii() else text


def _shown(letter: str, signs: Mapping[int, str] | None) -> str:
    code = ord(letter)
    is_private = 0xF000 <= code <= 0xF0FF  # Word stores the letters of such a font with these codes
    if not is_private and (signs is None or code > 0xFF or letter.isspace()):
        return letter
    if signs is None:
        signs = _WINGDINGS  # the usual font of lists and boxes
    return signs.get(code & 0xFF) or (letter if signs is _SYMBOL and not is_private else _NO_SIGN)
