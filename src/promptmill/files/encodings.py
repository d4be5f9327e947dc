"""Encodings of texts: decodes mails and web pages as mail programs and browsers do, and finds a table's encoding.

>>> text_of(b"\\x82\\xa0", "shift_jis"), text_of("Größe".encode(), "us-ascii")
('あ', 'Größe')
"""

from __future__ import annotations

import codecs
import contextlib
import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType

from promptmill.core.errors import Named
from promptmill.core.wording import cut

NOT_UTF8 = "is not UTF-8 text."
AS_UTF8 = "Save the file as UTF-8; if it is from Windows: iconv -f cp1252 -t utf-8 IN > OUT"
SAMPLE = 1 << 18
"""The number of bytes that the detection uses."""
_USUAL = "cp1252"
_ASIAN = ("gb18030", "big5", "shift_jis", "euc_kr")
_KNOWN = (_USUAL, "cp1250", "cp1251", *_ASIAN)
_FEW = 60  # if fewer bytes are beyond ASCII, a detected Asian encoding is often wrong
_FEWEST = 12  # if so many bytes are beyond ASCII, the detection is usually right
_SHOWN = 60  # max characters of a line in an error
_TWO_BYTES = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_WIDE = {b"\1\0\0\0": "utf-32-le", b"\0\0\0\1": "utf-32-be", b"\1\0": "utf-16-le", b"\0\1": "utf-16-be"}
"""Encodings without a byte-order mark, by the pattern of nonzero bytes (1) at the beginning of a Latin text."""
_NO_ASCII = ("utf-16", "utf-32", "utf-7", "iso2022", "hz")  # a text in these may be valid UTF-8 with another meaning
_READ_AS: Mapping[str, str] = MappingProxyType(  # in encoding.spec.whatwg.org, each name means a larger encoding
    {
        "ascii": "utf-8",
        "iso8859-1": "cp1252",
        "iso8859-9": "cp1254",
        "iso8859-11": "cp874",
        "tis-620": "cp874",
        "windows-874": "cp874",
        "gb2312": "gb18030",
        "gbk": "gb18030",
        "big5": "cp950",
        "cn-big5": "cp950",
        "shift_jis": "cp932",
        "euc_kr": "cp949",
        "windows-949": "cp949",
        "iso-8859-8-i": "iso8859-8",
        "logical": "iso8859-8",
        "koi8": "koi8-r",
        "mac-cyrillic": "mac_cyrillic",
        "unicode-1-1-utf-8": "utf-8",
    }
)
_RARE = re.compile("[\u0180-\u02ff]")  # 'É' and a no-break space (in cp1252), read as UTF-8, would be such a letter
_OF_WINDOWS = {ord(bytes([code]).decode(_USUAL, "ignore") or chr(code)): code for code in range(0x80, 0xA0)}
_NO_NAMES = frozenset({"unknown-8bit", "x-unknown", "unknown", "default", "8bit", "binary"})
_TAG, _LATIN = re.compile(rb"<[^<>]{0,999}>"), re.compile(rb"[A-Za-z]")
_PARTS_OF_JIS = re.compile(rb"\x1b(\$\([@BD]|[$(][@-Z])")  # the signs that begin a part in another set of characters
_ESCAPES = re.compile(rb"\x1b(?:\$(?:[@B]|\)C)|\(I)")
_PAIR_OF_EUC = re.compile(rb"\x8f[\xa1-\xfe]{2}|\x8e([\xa1-\xdf])|([\xa1-\xfe]{2})")


def text_of(data: bytes, *charsets: str) -> str:
    """Return a text as mailers and browsers read it. `charsets`: the charsets that the text names, perhaps wrongly."""
    named = [_encoding(charset) for charset in charsets if charset and charset.lower() not in _NO_NAMES]
    named += ["big5hkscs"] if "cp950" in named else []  # browsers read Big5 and Big5-HKSCS as one encoding
    # UTF-16 or UTF-32 comes first: read in another encoding, a key would have zeros between its letters.
    wide = next((name for start, name in _WIDE.items() if bytes(map(bool, data[:4])).startswith(start)), "")
    if data.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):
        wide = "utf-32"
    elif data.startswith(_TWO_BYTES):
        wide = "utf-16"
    elif not named and (name := escaped(data)):
        wide = name
    first = [wide] if wide else [name for name in named if name.startswith(_NO_ASCII)]
    for encoding in (*first, "utf-8-sig", *named):
        with contextlib.suppress(LookupError, ValueError):
            return data.decode(encoding)
        if encoding in _JAPANESE:
            with contextlib.suppress(ValueError):
                return _JAPANESE[encoding](data)
    text = data.decode("utf-8", "replace")
    is_damaged = sum(sign > "\x7f" for sign in text) > 2 * text.count("\ufffd")  # UTF-8 with a few wrong bytes
    return text if is_damaged else data.decode(_mostly(data, named), "replace")


def _mostly(data: bytes, named: list[str]) -> str:
    """Return the named encoding in which a text has only a few wrong bytes; if none fits, the likely or usual one."""
    for encoding in named:
        with contextlib.suppress(LookupError):
            text = data.decode(encoding, "replace")
            if text.count("\ufffd") * 20 < sum(sign > "\x7f" for sign in text):
                return encoding
    return _likely(data) if not any(map(_is_known, named)) else _USUAL


def _is_known(encoding: str) -> bool:
    with contextlib.suppress(LookupError):
        return codecs.lookup(encoding).name != "utf-8"
    return False


def _likely(data: bytes) -> str:
    """Return the likely encoding of a text that names none: the usual one, unless most letters are not Latin."""
    text = _TAG.sub(b"", data[:SAMPLE])
    others = sum(sign > 0x7F for sign in text)
    if others < _FEWEST or others < len(_LATIN.findall(text)):
        return _USUAL
    from charset_normalizer import from_bytes  # imported on use: it is heavy

    best = from_bytes(data[:SAMPLE], cp_isolation=[*_KNOWN, "koi8_r"]).best()
    return _USUAL if best is None else _READ_AS.get(codecs.lookup(best.encoding).name, best.encoding)


def _encoding(charset: str) -> str:
    """Return Python's name of the encoding that browsers use for a charset; `""` for an unknown one."""
    name = re.sub(r"^(?:x-)+", "", charset.lower().strip())
    name = re.sub(r"^(?:cp|dos)-(?=\d)", "cp", name)
    with contextlib.suppress(LookupError, ValueError):
        name = codecs.lookup(name).name
    return _READ_AS.get(name, name)


def _of_windows(pair: bytes) -> bytes:
    """Convert a pair of bytes from JIS X 0208 to Shift_JIS.

    Windows' Shift_JIS has the signs of NEC and IBM, such as ① and 髙, which Python's codecs of these encodings lack.
    """
    row, cell = pair[0] & 0x7F, pair[1] & 0x7F
    lead = (row + 1 >> 1) + (0x70 if row < 0x5F else 0xB0)
    trail = cell + 0x7E if row % 2 == 0 else cell + 0x1F + (cell > 0x5F)
    return bytes((lead, trail))


def _iso_2022_jp(data: bytes) -> str:
    """Decode a text in ISO-2022-JP. Raises `ValueError`."""
    pieces, at, kind = [], 0, b"(B"
    for match in (*_PARTS_OF_JIS.finditer(data), None):
        part = data[at : None if match is None else match.start()]
        if kind == b"$(D":
            pieces.append((b"\x1b$(D" + part).decode("iso2022_jp_1"))
        elif kind.startswith(b"$"):
            even = re.sub(rb"[\r\n]", b"", part)
            pairs = [even[at : at + 2] for at in range(0, len(even), 2)]
            pieces.append(b"".join(map(_of_windows, pairs)).decode("cp932") if len(even) % 2 == 0 else "\ufffd")
        elif kind == b"(I":
            pieces.append(bytes(each | 0x80 if each > 0x20 else each for each in part).decode("cp932"))
        else:
            pieces.append(part.decode("ascii"))
        if match is not None:
            at, kind = match.end(), match[1]
    return "".join(pieces)


def _euc_jp(data: bytes) -> str:
    """Decode a text in EUC-JP. Raises `ValueError`."""

    def sign(match: re.Match[bytes]) -> bytes:
        if match[1] or match[2]:
            return match[1] or _of_windows(match[2])
        return match[0].decode("euc_jp").encode("cp932")

    return _PAIR_OF_EUC.sub(sign, data).decode("cp932")


_JAPANESE = MappingProxyType({"iso2022_jp": _iso_2022_jp, "euc_jp": _euc_jp})


def escaped(data: bytes) -> str:
    """Return the encoding of a text that switches its character set by escape sequences; `""` for any other text.

    >>> escaped("日本".encode("iso2022_jp")), escaped(b"\\x1b(I1"), escaped(b"text")
    ('iso2022_jp', 'iso2022_jp', '')
    """
    match = _ESCAPES.search(data)
    return "" if match is None else "iso2022_kr" if match[0].endswith(b")C") else "iso2022_jp"


def is_encoded_twice(text: str) -> bool:
    """Return whether all letters beyond ASCII are bytes of UTF-8 that were each read as a letter of Windows (cp1252).

    `text` must have letters beyond ASCII.

    >>> is_encoded_twice("GrÃ¶ÃŸe"), is_encoded_twice("donâ€™t"), is_encoded_twice("Größe"), is_encoded_twice("SÃO")
    (True, True, False, False)
    """
    try:
        once = text.translate(_OF_WINDOWS).encode("latin-1").decode()
    except UnicodeError:
        return False
    return not _RARE.search(once)


def remedy(data: bytes) -> Named:
    """Return the end of an error about a text that is not UTF-8: the likely encoding, and a line read with it as proof.

    >>> remedy("id,text\\n1,Größe\\n".encode("cp1252")).text
    '; {} reads line 2 as "1,Größe"'
    """
    from charset_normalizer import from_bytes  # imported on use: it is heavy, and only an error needs it

    best = from_bytes(data, cp_isolation=list(_KNOWN)).best()
    is_unsure = sum(byte > 127 for byte in data) < _FEW and (best is None or best.encoding in _ASIAN)
    is_usual = best is None or best.encoding not in _KNOWN or _decoded(data, _USUAL) == str(best)
    encoding = _USUAL if best is None or is_usual else best.encoding
    for number, line in enumerate(data.splitlines(), 1):
        text = _decoded(line, encoding)
        if not line.isascii() and text:
            others = [other for other in _ASIAN if other != encoding and _decoded(data, other)] if is_unsure else []
            also = "".join(f", {other} as {_quoted(_decoded(line, other))}" for other in others)
            named = _proof(encoding, text, number)
            return named._replace(text=named.text + also)
    return Named("encoding", encoding, "; {} reads text of Windows and Excel, and Latin-1")


def with_header(data: bytes, names: Sequence[str]) -> Named | None:
    """Return the result of `remedy` for an encoding in which the first line has all `names`; None if there is none.

    >>> with_header("番号,本文".encode("shift_jis"), ["本文"]).text
    '; {} reads line 1 as "番号,本文"'
    """
    line = data.partition(b"\n")[0].rstrip(b"\r")
    texts = ((encoding, _decoded(line, encoding)) for encoding in _KNOWN)
    return next((_proof(*text, 1) for text in texts if names and all(name in text[1] for name in names)), None)


def _proof(encoding: str, text: str, number: int) -> Named:
    return Named("encoding", encoding, f"; {{}} reads line {number} as {_quoted(text)}")


def _quoted(text: str) -> str:
    """Return the beginning of a text, put in quotes, for `Named.text`."""
    shown = cut(text, _SHOWN).replace("{", "{{").replace("}", "}}")
    return f'"{shown}"'


def _decoded(data: bytes, encoding: str) -> str:
    try:
        return data.decode(encoding)
    except ValueError:
        return ""
