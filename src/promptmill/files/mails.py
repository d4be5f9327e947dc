"""The text of a mail or a saved page (.mhtml): sender, receivers, subject, date and texts, without MIME and base64.

>>> mail_text(b"Subject: Hi\\n\\nText")
'Subject: Hi\\n\\nText'
"""

from __future__ import annotations

import binascii
import codecs
import email.parser
import email.policy
import re
import unicodedata
from dataclasses import dataclass, field
from email.message import Message
from typing import Any, TypeAlias

from promptmill.core.bounds import DEEPEST_MAIL, LONGEST_MAIL_HEADER
from promptmill.core.errors import input_error
from promptmill.files import encodings
from promptmill.files.web_pages import page_text

_SHOWN = ("From", "To", "Cc", "Subject", "Date")
_PAGES = frozenset({"text/html", "application/xhtml+xml"})
_MAILS = frozenset({"message/rfc822", "message/global"})
_SEEN = frozenset({"text/plain", *_PAGES, *_MAILS})
_OF_PAGES = frozenset({"text/css", "text/javascript"})
_BLOCK = 1 << 16
_LENGTH = re.compile(rb"(\d{1,12})\s*\n")
_BEFORE = b" \t\r\n\0"
_HEADER = re.compile(rb"[A-Za-z][A-Za-z0-9-]{1,60}[ \t]{0,9}:[ \t\r\n]")
_SPACED = re.compile(rb"(?m)^([A-Za-z][A-Za-z0-9-]{1,60})[ \t]{1,9}:")  # some programs write a header with these spaces
_BASE64_LINE = re.compile(rb"[A-Za-z0-9+/]*={0,2}")
_SOFT_BREAK = re.compile(r"(?m)(?<!^--) \n ?(?!>|-- $)")  # format=flowed with `delsp` breaks lines between any letters
_FOLD = re.compile(r"[\r\n]+[ \t]*")
_WORD = re.compile(r"=\?([^?*\s]{1,60})(?:\*[^?\s]{0,60})?\?([bBqQ])\?([^?]*)\?=")  # letters beyond ASCII in a header
# Invisible letters with which newsletters hide the beginning of their text.
_BLANKS = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u180e\u2800\u3164\uffa0")
_OF_OUTLOOK = "has its text in winmail.dat, which only Outlook reads; save the text there"
_IN_PIECES = "is one piece of a mail that was sent in several; join them in its mail program"
_SHORT = 3
"""If an HTML page is more than this many times as long as the plain text next to it, the two are different texts."""
_LONGEST_STUB = 300  # characters of a text such as "Your mail program does not show HTML"
_ENCRYPTED = "is encrypted; decrypt it in its mail program and save the text"
_SIGNED = "is signed in a form that only mail programs read (S/MIME); save its text there"
_PGP = "-----BEGIN PGP MESSAGE-----"
_Part: TypeAlias = "Message[str, str]"


def mail_text(data: bytes) -> str:
    """Return a mail as text: sender, receivers, subject, date and body. Attachments are only named.

    Raises `PromptmillError` (`invalid_input`) for an encrypted mail; its message is the predicate of a sentence.
    """
    marks = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
    if data.startswith(marks) or data[1:4:2] == b"\0\0" or data[:3:2] == b"\0\0":  # UTF-16, as PowerShell writes it
        data = encodings.text_of(data).encode()
    data = data.removeprefix(codecs.BOM_UTF8).lstrip(_BEFORE)
    if b"\r\r\n" in data[:_BLOCK]:  # line ends that were converted twice
        data = data.replace(b"\r\r\n", b"\n")
    elif b"\n" not in data:
        data = data.replace(b"\r", b"\n")
    if first := _LENGTH.match(data):  # the mail's length, in the first line of Apple Mail's .emlx
        data, end = data[first.end() :], int(first[1])
        data = data[:end] if data[end:].lstrip().startswith(b"<?xml") else data  # without Apple Mail's own flags
    first_line, _, rest = data.partition(b"\n")
    if not _HEADER.match(first_line) and not first_line.startswith(b"From ") and _HEADER.match(rest):
        data = rest  # skips the line `>From …` of a mailbox, or a line that a program added
    head, gap, body = data.partition(b"\n\n")
    mail = _parsed(_SPACED.sub(rb"\1:", head) + gap + body)
    content = _read(mail, 0)
    if content.problem and not content.texts:
        raise input_error(content.problem)
    return _shown(mail, content, 0)


def _parsed(data: bytes) -> _Part:
    parser = email.parser.BytesFeedParser(Message, policy=_Headers())
    for at in range(0, len(data), _BLOCK):  # given at once, a mail would take nine times its size in memory
        parser.feed(data[at : at + _BLOCK])
    return parser.close()


class _Headers(email.policy.Compat32):
    """Reads a header as text. Python's other policies also parse the structure of headers."""

    def header_source_parse(self, sourcelines: list[str]) -> tuple[str, str]:
        """Return the name and the value of a header."""
        name, value = super().header_source_parse(sourcelines)
        is_whole = len(value) <= LONGEST_MAIL_HEADER
        return name, value if is_whole else f"{value[:LONGEST_MAIL_HEADER]} ..."  # ASCII, as the encoding is unknown

    def header_fetch_parse(self, name: str, value: str) -> str:
        """Return the text of a header, whose bytes may be of any encoding."""
        del name
        text = (
            value
            if value.isascii() and "\x1b" not in value
            else encodings.text_of(value.encode("utf-8", "surrogateescape"))
        )
        return _FOLD.sub(" ", text)


@dataclass(slots=True)
class _Content:
    """The content of a part of a mail."""

    texts: list[str] = field(default_factory=list)
    files: list[_Part] = field(default_factory=list)
    """The attachments."""
    problem: str = ""
    """The reason why a part with a text cannot be read."""

    def add(self, other: _Content, *, with_texts: bool = True) -> None:
        """Add the content of the next part."""
        self.texts += other.texts if with_texts else []
        self.files += other.files
        self.problem = self.problem or other.problem


def _shown(mail: _Part, content: _Content, depth: int) -> str:
    """Return the head and the body of a mail."""
    head = [f"{name}: {value}" for name in _SHOWN if (value := _words(mail.get(name, "")).strip())]
    texts, files = content.texts, content.files
    if not texts:  # gateways and scanners mark the body itself as an attachment
        read = [(part, _text(part, depth) if _is_text(part) else "") for part in files]
        texts, files = [text for _, text in read if text], [part for part, text in read if not text]
    names = [f"Attachments: {', '.join(map(_name, files))}"] if files else []
    nothing = f"(it {content.problem.partition(';')[0]})" if content.problem else "(no text)"
    return "\n".join([*head, *names]) + "\n\n" + ("\n\n".join(texts) or nothing)


def _read(part: _Part, depth: int) -> _Content:
    """Return the content of a part in its original order. `depth`: the number of mails that enclose the part.

    A mail may have several texts, such as those before and behind a picture, and the footer of a mailing list.
    """
    kind, content, parts = _kind(part), _Content(), _parts(part)
    name = str(part.get_filename("")).lower()
    if kind == "application/ms-tnef" or name == "winmail.dat":
        return _Content(files=[part], problem=_OF_OUTLOOK)
    if kind == "message/partial":
        return _Content(problem=_IN_PIECES)
    if kind == "multipart/encrypted" or kind.endswith(("/pkcs7-mime", "/x-pkcs7-mime")) or name.endswith(".p7m"):
        is_signed = "signed" in str(part.get_param("smime-type", ""))
        return _Content(files=[part], problem=_SIGNED if is_signed else _ENCRYPTED)
    if not part.is_multipart() or not kind.startswith("multipart/"):
        is_file = part.get_content_disposition() == "attachment" or (part.get_filename() and kind not in _MAILS)
        text = _text(part, depth) if not is_file and kind in _SEEN else ""
        if text.startswith(_PGP):
            return _Content(problem=_ENCRYPTED)
        return _Content([text]) if text else _Content(files=[] if kind in _SEEN and not is_file else [part])
    if kind == "multipart/related":  # a page and its pictures; `start` names the page if it is not the first part
        start = part.get_param("start", "")
        page, *files = sorted(parts, key=lambda each: str(each["content-id"]).strip() != start)
        content = _read(page, depth)
        content.files += files
    elif kind == "multipart/alternative":
        _add_form(content, parts, depth)
    else:
        for each in parts:
            content.add(_read(each, depth))
    return content


def _add_form(content: _Content, parts: list[_Part], depth: int) -> None:
    """Add one of several forms of a text: the plain form, unless it only refers to the other forms."""
    forms = [(each.get_content_type(), _read(each, depth)) for each in parts]
    forms.sort(key=lambda form: form[0] != "text/plain")
    texts = ["".join(form.texts) for _, form in forms] or [""]
    others = max(texts[1:], key=len, default="")
    is_about_html = "html" in texts[0].lower() and "html" not in others.lower() and len(texts[0]) < _LONGEST_STUB
    is_stub = bool(others) and texts[0] != "" and (is_about_html or len(texts[0]) * _SHORT < len(others))
    chosen = next((form for _, form in forms[is_stub:] if form.texts), None)
    for kind, form in forms:
        if form is chosen or kind != "multipart/related":  # a page's pictures are no attachments
            content.add(form, with_texts=form is chosen)


def _kind(part: _Part) -> str:
    """Return the type of a part. A multipart part without parts is plain text."""
    kind = part.get_content_type()
    return kind if part.is_multipart() or not kind.startswith("multipart/") else "text/plain"


def _parts(part: _Part) -> list[_Part]:
    parts: Any = part.get_payload() if part.is_multipart() else []
    return list(parts)


def _is_text(part: _Part) -> bool:
    kind = _kind(part)
    return kind in _SEEN or (kind.startswith("text/") and kind not in _OF_PAGES)


def _text(part: _Part, depth: int) -> str:
    """Return the text of a part; `""` if it has no visible sign."""
    kind = _kind(part)
    parts = _parts(part)
    if kind in _MAILS and parts:
        if depth == DEEPEST_MAIL:
            raise input_error(f"has more than {DEEPEST_MAIL} mails within mails")
        mail, encoding = parts[0], str(part.get("content-transfer-encoding", "")).strip().lower()
        if not mail.keys() and encoding in {"base64", "quoted-printable"}:  # the standard forbids this
            mail["content-transfer-encoding"] = encoding
            mail = _parsed(_data(mail))
        return _shown(mail, _read(mail, depth + 1), depth + 1)
    data, charset = _data(part), part.get_content_charset("").strip("'\"")
    text = page_text(data, charset) if kind in _PAGES else encodings.text_of(data, charset)
    text = text.replace("\r\n", "\n").strip()
    if str(part.get_param("delsp", "")).lower() == "yes" and kind == "text/plain":
        text = _SOFT_BREAK.sub("", text)
    is_blank = all(sign in _BLANKS or unicodedata.category(sign)[0] in "ZC" for sign in text)
    return "" if is_blank else text


def _data(part: _Part) -> bytes:
    """Return the bytes of a part."""
    encoding = str(part.get("content-transfer-encoding", "")).lower().partition("(")[0].strip(" ;\t")
    del part["content-transfer-encoding"]
    part["content-transfer-encoding"] = "8bit" if encoding == "base64" else encoding
    data = bytes(part.get_payload(decode=True) or b"")
    return _of_base64(data) if encoding == "base64" else data


def _of_base64(data: bytes) -> bytes:
    """Return the bytes of a text in base64, with the plain lines that mailing lists add below it.

    >>> _of_base64(b"YQ==\\nYg==\\n\\n--\\nfooter")
    b'ab\\n\\n--\\nfooter'
    """
    lines = data.splitlines()
    end = next((at for at, line in enumerate(lines) if not _BASE64_LINE.fullmatch(line.strip())), len(lines))
    packed, decoded = b"".join(line.strip() for line in lines[:end]), []
    for piece in packed.replace(b"=", b" ").split():  # several encoded texts may follow one another
        whole = piece[: len(piece) - (len(piece) % 4 == 1)]
        decoded.append(binascii.a2b_base64(whole + b"=" * (-len(whole) % 4)))
    below = b"\n".join(lines[end:])
    return b"".join(decoded) + (b"\n\n" + below if below else b"")


def _name(part: _Part) -> str:
    """Return the name of an attachment, or its kind."""
    return " ".join(_words(part.get_filename("") or part.get_content_type()).split())


def _words(text: str) -> str:
    """Return the text of a header with its encoded words, such as `=?utf-8?q?Gr=C3=B6=C3=9Fe?=`.

    >>> _words("=?utf-8?b?w7Y=?= =?utf-8?q?=C3=9F?= a")
    'öß a'
    """
    pieces, at, held, charset = [], 0, b"", ""  # `held`: a word's bytes, as two words may share a letter
    for match in _WORD.finditer(text):
        between = text[at : match.start()]
        if held and (not between.isspace() or match[1] != charset):
            pieces.append(encodings.text_of(held, charset))
            held = b""
        pieces.append(between if not at or not between.isspace() else "")
        try:
            data = match[3].encode()
            held += binascii.a2b_qp(data, header=True) if match[2] in "qQ" else binascii.a2b_base64(data + b"==")
        except ValueError:
            pieces.append(match[0])
        at, charset = match.end(), match[1]
    return "".join([*pieces, encodings.text_of(held, charset) if held else "", text[at:]])
