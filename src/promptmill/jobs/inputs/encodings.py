"""Finds the encoding of a text that is not UTF-8."""

from __future__ import annotations

from promptmill.core.errors import Named
from promptmill.core.wording import cut

SAMPLE = 1 << 18
"""The number of bytes that the detection uses."""
_USUAL = "cp1252"
_KNOWN = (_USUAL, "cp1250", "cp1251", "gb18030", "big5", "shift_jis", "euc_kr")
_SHOWN = 60  # max characters of a line in an error


def remedy(data: bytes) -> Named:
    """Return the end of an error about a text that is not UTF-8: the likely encoding, and a line read with it as proof.

    >>> remedy("id,text\\n1,Größe\\n".encode("cp1252")).text
    '; {} reads line 2 as "1,Größe"'
    """
    from charset_normalizer import from_bytes  # imported on use: it is heavy, and only an error needs it

    best = from_bytes(data, cp_isolation=list(_KNOWN)).best()
    is_usual = best is None or best.encoding not in _KNOWN or _decoded(data, _USUAL) == str(best)
    encoding = _USUAL if best is None or is_usual else best.encoding
    for number, line in enumerate(data.splitlines(), 1):
        text = _decoded(line, encoding)
        if not line.isascii() and text:
            shown = cut(text, _SHOWN).replace("{", "{{").replace("}", "}}")
            return Named("encoding", encoding, f'; {{}} reads line {number} as "{shown}"')
    return Named("encoding", encoding, "; {} reads text of Windows and Excel, and Latin-1")


def _decoded(data: bytes, encoding: str) -> str:
    try:
        return data.decode(encoding)
    except ValueError:
        return ""
