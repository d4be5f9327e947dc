"""The text of mails, web pages and Word documents as a reader sees it, without MIME, base64 and tags.

**The attacker** is the author of a document. **The harm**: the parser takes unlimited memory or time. So a separate
process reads the documents. If it exceeds its limits, it is ended, and only this document fails.

>>> mail_text(b"Subject: Hi\\n\\nText")
'Subject: Hi\\n\\nText'
>>> page_text(b"<p>One &amp; two</p><script>x</script><p>three")
'One & two\\n\\nthree'
"""

from __future__ import annotations

import atexit
import codecs
import contextlib
import email
import email.policy
import importlib.util
import io
import posixpath
import re
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from email.message import EmailMessage
from html.parser import HTMLParser
from types import MappingProxyType
from typing import Any, BinaryIO

from promptmill.core.bounds import LARGEST_FILE, LARGEST_TEXT, WORKBOOK_MEMORY
from promptmill.core.errors import Code, PromptmillError, input_error
from promptmill.jobs.inputs.xlsx import local
from promptmill.system import frames, subprocesses
from promptmill.system.installation import adding

_COMPUTING_S = 60.0  # of processor time: a web page of 100 MiB takes half a minute
_REPLY_S = 180.0  # the limit of wall time, for a busy machine
_WORD = ".docx"
_SHOWN_HEADERS = ("From", "To", "Cc", "Subject", "Date")
# browsers do not believe a page that names UTF-16 in letters of one byte, nor UTF-7
_CHARSET = re.compile(
    rb"""(?i)<(?:meta\b[^<>]{1,200}?charset|\?xml\b[^<>]{1,100}?encoding) ?= ?["']?(?!utf-(?:16|7))([\w-]+)"""
)
_TWO_BYTES = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_WIDE = {
    b"\1\0\0\0": "utf-32-le",
    b"\0\0\0\1": "utf-32-be",
    b"\1\0": "utf-16-le",
    b"\0\1": "utf-16-be",
}
"""Encodings without a byte-order mark, by which of the first bytes of a Latin text are not zero."""
_NO_ASCII = ("utf-16", "utf-32", "utf-7", "iso2022", "hz")  # their bytes may also be UTF-8, and then mean another text
_READ_AS: Mapping[str, str] = MappingProxyType(  # encoding.spec.whatwg.org: each name means the larger encoding
    {
        "ascii": "utf-8",
        "iso8859-1": "cp1252",
        "iso8859-9": "cp1254",
        "windows-874": "cp874",
        "gb2312": "gb18030",
        "gbk": "gb18030",
        "shift_jis": "cp932",
        "x-sjis": "cp932",
        "euc_kr": "cp949",
        "iso-8859-8-i": "iso8859-8",
    }
)
_RAISED = str.maketrans("0123456789+-\u2212", "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁻")
_HIDDEN = frozenset({"script", "style", "template", "noscript", "svg", "head"})
_READ = frozenset({"title", "pre"})
_BLOCKS = frozenset(
    {
        *("p", "div", "section", "article", "header", "footer", "main", "aside", "blockquote", "pre", "form"),
        *("h1", "h2", "h3", "h4", "h5", "h6", "ul", "ol", "dl", "table", "hr", "figure"),
    }
)
_LINES = frozenset({"br", "li", "tr", "dt", "dd", "option"})
_CELLS = frozenset({"td", "th"})
# of a Word document: deleted text, properties, instructions of fields, and the second form of a drawing
_UNSEEN = frozenset({"del", "moveFrom", "pPr", "rPr", "instrText", "Fallback", "sdtPr", "footnoteRef", "endnoteRef"})
_SIGNS: Mapping[str, str] = MappingProxyType({"tab": "\t", "ptab": "\t", "br": "\n", "cr": "\n", "noBreakHyphen": "-"})
_SYMBOLS: Mapping[str, str] = MappingProxyType(  # of the font Wingdings: a box that is checked or not is a value
    {"F0FE": "☑", "F0FD": "☒", "F0FC": "✓", "F0FB": "✗", "F0A8": "☐", "F06F": "☐"}
)
_ROMAN = tuple(
    (worth, ("", a, a * 2, a * 3, a + b, b, b + a, b + a * 2, b + a * 3, a + c))
    for worth, a, b, c in ((1000, "m", "", ""), (100, "c", "d", "m"), (10, "x", "l", "c"), (1, "i", "v", "x"))
)
_TEXTS = frozenset({"text/plain", "text/html"})


def mail_text(data: bytes) -> str:
    """Return a mail as text: sender, receivers, subject, date and body. Attachments are only named."""
    data = data.removeprefix(codecs.BOM_UTF8)
    if first := re.match(rb"(\d+)\s*\n", data):  # the size of the mail, in the first line of Apple Mail's .emlx
        data, end = data[first.end() :], int(first[1][:12])
        data = data[:end] if data[end:].lstrip().startswith(b"<?xml") else data  # without Apple Mail's own flags
    mail = email.message_from_bytes(data, policy=email.policy.default)
    head = [f"{name}: {value}" for name in _SHOWN_HEADERS if (value := _header(mail, name))]
    texts, files = list[str](), list[str]()
    _read_part(mail, texts, files)
    names = [f"Attachments: {', '.join(files)}"] if files else []
    return "\n".join([*head, *names]) + "\n\n" + "\n\n".join(texts)


def _header(mail: EmailMessage, name: str) -> str:
    try:
        text = str(mail[name] or "").replace("\n", " ")
    except (ValueError, LookupError, IndexError, AttributeError):  # raised by the parser for unknown content
        return ""
    return re.sub(r"[\x80-\x9f]", lambda sign: sign[0].encode("latin-1").decode("cp1252", "replace"), text)


def _read_part(part: Any, texts: list[str], files: list[str]) -> None:
    """Add the texts of a part of a mail in their order, and the names of its files.

    A mail may have several texts, such as those before and behind a picture, and the footer of a mailing list.
    """
    kind = part.get_content_type()
    if kind == "multipart/alternative":
        ways = [(one.get_content_type(), list[str](), list[str]()) for one in part.iter_parts()]
        for one, (_, found, named) in zip(part.iter_parts(), ways, strict=True):
            _read_part(one, found, named)
        read = next((way for way in sorted(ways, key=lambda way: way[0] != "text/plain") if way[1]), None)
        texts += read[1] if read else []
        for way in ways:  # the pictures of a page that is not read are no attachments
            files += way[2] if way is read or way[0] != "multipart/related" else []
    elif kind == "multipart/related":  # a page and its pictures; `start` names the page if it is not the first
        start = part.get_param("start", "")
        page, *others = sorted(part.iter_parts(), key=lambda one: str(one["content-id"]) != start) or [EmailMessage()]
        _read_part(page, texts, files)
        files += [one.get_filename() or one.get_content_type() for one in others]
    elif part.get_content_maintype() == "multipart":
        for one in part.iter_parts():
            _read_part(one, texts, files)
    elif kind in _TEXTS and not part.is_attachment() and not (texts and part.get_filename()):
        data, charset = bytes(part.get_payload(decode=True) or b""), part.get_content_charset("")
        text = page_text(data, charset) if kind == "text/html" else _text(data, charset).strip()
        texts += [text] if text else []
    else:
        files.append(part.get_filename() or kind)


def page_text(data: bytes, charset: str = "") -> str:
    """Return the text of a web page, one line for each block, list item and table row.

    `charset`: the charset that a mail names. It is tried before the page's own.
    """
    named = _CHARSET.search(data[:4096])
    reader = _Reader()
    reader.feed(_text(data, charset, named[1].decode() if named else ""))
    reader.close()
    text = "".join(reader.texts).replace("\xad", "")
    lines = (
        re.sub(r"[^\S\n\t]+", " ", line).strip(" ").removeprefix("\t").strip(" ").rstrip() for line in text.split("\n")
    )
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip("\n")


def _text(data: bytes, *charsets: str) -> str:
    """Return a text as mailers and browsers read it, even if its charset is wrong."""
    named = [_encoding(charset) for charset in charsets]
    # else a key in it would be letters with zeros between them
    wide = next((name for start, name in _WIDE.items() if bytes(map(bool, data[:4])).startswith(start)), "")
    if data.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):
        wide = "utf-32"
    named = [wide, *named] if wide else named
    first = (
        ["utf-16"]
        if data.startswith(_TWO_BYTES) and not wide
        else [name for name in named if name.startswith(_NO_ASCII)]
    )
    for encoding in (*first, "utf-8-sig", *named):
        with contextlib.suppress(LookupError, ValueError):
            return data.decode(encoding)
    text = data.decode("utf-8", "replace")
    is_damaged = sum(sign > "\x7f" for sign in text) > 2 * text.count("\ufffd")  # UTF-8 with a few wrong bytes
    return text if is_damaged else data.decode("cp1252", "replace")


def _encoding(charset: str) -> str:
    """Return Python's name of the encoding that browsers use for a charset; `""` for an unknown one."""
    name = charset.lower()
    with contextlib.suppress(LookupError, ValueError):
        name = codecs.lookup(name).name
    return _READ_AS.get(name, name)


def _number(text: str | None, usual: int) -> int:
    return int(text) if text and re.fullmatch(r"-?[0-9]{1,9}", text.strip()) else usual


def _span(text: str | None) -> int:
    """Return the number of columns or rows of a cell; as in browsers, at most 1,000."""
    return min(max(1, _number(text, 1)), 1000)


@dataclass(slots=True)
class _Grid:
    """The place in a table whose cells may be several columns and rows large."""

    row: int = 0
    column: int = 0
    """The first column behind the last cell."""
    shown: int = -1
    """The column of the last cell."""
    below: dict[int, int] = field(default_factory=dict)
    """For each column, the first row below its last cell."""

    def start_row(self) -> None:
        """Go to the next row."""
        self.row, self.column, self.shown = self.row + 1, 0, -1

    def tabs(self, attributes: Mapping[str, str | None]) -> str:
        """Return the tabs before a cell, so that it is in its own column."""
        while self.below.get(self.column, 0) > self.row:
            self.column += 1
        width, height = (_span(attributes.get(name)) for name in ("colspan", "rowspan"))
        tabs, self.shown = "\t" * (self.column - self.shown), self.column
        if height > 1:
            self.below |= dict.fromkeys(range(self.column, self.column + width), self.row + height)
        self.column += width
        return tabs


def raised(text: str) -> str:
    """Return digits of a superscript as such, because 10² is no 102; other texts unchanged.

    >>> raised("2"), raised("st")
    ('²', 'st')
    """
    return text.translate(_RAISED) if re.fullmatch(r"\s*[-+\u2212]?[0-9]+\s*", text) else text


class _Reader(HTMLParser):
    """Collects the visible texts of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []
        self._open: list[str] = []
        """The open elements that change how a text is read."""
        self._numbers: list[int | None] = []
        """For each open list, the number of its next item; None for a list without numbers."""
        self._raised = False
        self._begins, self._behind_table = False, False
        """Whether nothing has followed the start of a cell, or the end of a table."""
        self._tables = [_Grid()]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Start a line, a cell or a block."""
        if tag == "body":
            self._open.clear()
        elif tag in _BLOCKS or tag == "title":
            self.texts += [] if self._begins else ["\n\n"]
        elif tag in _LINES:
            self._start_line(tag, dict(attrs))
        elif tag in _CELLS:
            if self._tables[-1].column and not self._behind_table:
                while self.texts and not self.texts[-1].strip(" \n"):
                    self.texts.pop()  # the break at the end of a block of the cell before
            self.texts.append(self._tables[-1].tabs(dict(attrs)))
            self._begins = True
        elif tag == "img" and (words := dict(attrs).get("alt")):
            self.handle_data(f"[{words}]")
        if tag in {"ol", "ul"}:
            self._numbers.append(_number(dict(attrs).get("start"), 1) if tag == "ol" else None)
        elif tag == "table":
            self._tables.append(_Grid())
        self._raised = tag == "sup" or (self._raised and tag not in _BLOCKS | _LINES | _CELLS)
        if tag in _HIDDEN or tag in _READ:
            self._open.append(tag)

    def _start_line(self, tag: str, attributes: Mapping[str, str | None]) -> None:
        mark = ""
        if tag == "li":
            number = self._numbers[-1] if self._numbers else None
            if number is not None:
                number = _number(attributes.get("value"), number)
                self._numbers[-1] = number + 1
            mark = "- " if number is None else f"{number}. "
        elif tag == "tr":
            self._tables[-1].start_row()
        self.texts.append(f"\n{mark}")

    def handle_endtag(self, tag: str) -> None:
        """End a block."""
        if tag in {"ol", "ul"}:
            del self._numbers[-1:]
        elif tag == "table":
            del self._tables[max(1, len(self._tables) - 1) :]
        self._behind_table = tag == "table" or (self._behind_table and tag not in _CELLS)
        self._raised = self._raised and tag not in {"sup", *_BLOCKS, *_CELLS}
        if tag in self._open:
            del self._open[self._open.index(tag) :]
        if tag in _BLOCKS or tag == "title":
            self.texts.append("\n\n")

    def handle_data(self, data: str) -> None:
        """Keep a text that is visible."""
        inner = self._open[-1] if self._open else ""
        data = raised(data) if self._raised else data
        self._begins = self._begins and data.isspace()
        if inner == "pre":
            self.texts.append(data)
        elif inner == "title" or not self._open:
            self.texts.append(re.sub(r"\s+", " ", data))


def word_text(data: bytes) -> str:
    """Return the text of a Word document. The cells of its tables are separated by tabs.

    Raises `PromptmillError` (`invalid_input`); its message is the predicate of a sentence.
    """
    import docx
    from docx.oxml import parse_xml

    around: dict[str, list[str]] = {"header": [], "footnotes": [], "endnotes": [], "footer": []}
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as packed:
            if sum(one.file_size for one in packed.infolist()) > LARGEST_FILE:
                raise input_error(f"unpacks to more than {LARGEST_FILE >> 20} MiB")
        document = docx.Document(io.BytesIO(data))
        trees = {"numbering": None, "styles": None}
        for one in document.part.rels.values():
            if (kind := posixpath.basename(one.reltype)) in trees:
                trees[kind] = parse_xml(one.target_part.blob)
            elif (kind := posixpath.basename(one.reltype)) in around:
                around[kind].append(_word(parse_xml(one.target_part.blob)).strip())
        if trees["numbering"] is not None:
            _Numbering(**trees).write(document.element.body)
        body = _word(document.element.body)
    except PromptmillError:
        raise
    except Exception:  # noqa: BLE001 (the parser may raise any exception for a damaged file)
        raise input_error("is no Word document that can be read") from None
    body = body.rstrip().lstrip("\n \xa0")  # a tab at the start marks an empty cell
    parts = [*around.pop("header"), body, *(text for texts in around.values() for text in texts)]
    return "\n".join(dict.fromkeys(filter(None, parts)))


def _word(element: Any) -> str:
    """Return the text of an element of a Word document as it is shown, with its tracked changes.

    A paragraph ends with a line break, a cell with a tab for each of its columns.
    """
    name = local(element.tag) if isinstance(element.tag, str) else ""
    if name in _UNSEEN:
        return ""
    if name == "t":
        return element.text or ""
    if name in _SIGNS:
        return _SIGNS[name]
    if name == "sym":
        return _SYMBOLS.get(_attribute(element, "char"), "")
    if name.endswith("noteReference"):
        return f"[{name.removesuffix('Reference')} {_attribute(element, 'id')}]"
    text = "".join(map(_word, element))
    match name:
        case "r":
            hidden, place = element.find("{*}rPr/{*}vanish"), element.find("{*}rPr/{*}vertAlign")
            if hidden is not None and _attribute(hidden, "val") not in {"0", "false", "off"}:
                return ""
            return raised(text) if place is not None and _attribute(place, "val") == "superscript" else text
        case "p":
            return f"{text}\n"
        case "txbxContent":
            return f"\n{text}"
        case "tr":
            return "" if element.find("{*}trPr/{*}del") is not None else f"{text[:-1]}\n"
        case "tc":
            span, merged = element.find("{*}tcPr/{*}gridSpan"), element.find("{*}tcPr/{*}vMerge")
            is_below = merged is not None and _attribute(merged, "val") != "restart"
            width = 1 if span is None else _span(_attribute(span, "val"))
            return ("" if is_below else text.strip()) + "\t" * width
        case "footnote" | "endnote":
            return "" if _attribute(element, "type") else f"[{name} {_attribute(element, 'id')}] {text.strip()}\n"
    return text


class _Numbering:
    """The numbers of lists, which Word computes when it shows a document."""

    def __init__(self, numbering: Any, styles: Any) -> None:
        self._styles = {} if styles is None else {_attribute(one, "styleId"): one for one in styles.findall("{*}style")}
        self._kinds: dict[str, str] = {}
        self._levels: dict[tuple[str, int], Any] = {}
        """The format of each level of a list."""
        self._starts: dict[str, dict[int, int]] = {}
        """The numbers with which a list begins anew."""
        self._counts: dict[str, dict[int, int]] = {}
        """The last numbers by level. Lists of one kind (`abstractNum`) share their numbers."""
        kinds = {_attribute(one, "abstractNumId"): one for one in numbering.findall("{*}abstractNum")}
        for one in numbering.findall("{*}num"):
            name, kind, changed = (
                _attribute(one, "numId"),
                _value_of(one, "abstractNumId"),
                one.findall("{*}lvlOverride"),
            )
            self._kinds[name] = kind
            starts = ((_level(each), _number(_value_of(each, "startOverride"), -1)) for each in changed)
            self._starts[name] = {level: start - 1 for level, start in starts if start >= 0}
            of_kind = kinds[kind].findall("{*}lvl") if kind in kinds else []
            for level in (*of_kind, *(each for change in changed for each in change.findall("{*}lvl"))):
                self._levels[name, _level(level)] = level

    def write(self, body: Any) -> None:
        """Write the numbers into the paragraphs."""
        for paragraph in list(body.iter("{*}p")):
            properties = paragraph.find("{*}pPr")
            if properties is not None and (mark := self._mark(properties)):
                text = paragraph.makeelement(properties.tag.replace("pPr", "t"))
                text.text = f"{mark} "
                properties.addnext(text)

    def _mark(self, properties: Any) -> str:
        name, level = _value_of(properties, "numPr/{*}numId"), _value_of(properties, "numPr/{*}ilvl")
        style, known = _value_of(properties, "pStyle"), set[str]()
        while not name and style in self._styles and style not in known:
            known.add(style)
            of_style = self._styles[style]
            name = _value_of(of_style, "pPr/{*}numPr/{*}numId")
            level = level or _value_of(of_style, "pPr/{*}numPr/{*}ilvl")
            style = _value_of(of_style, "basedOn")
        at = _number(level, 0)
        if (form := self._levels.get((name, at))) is None:
            return ""
        if _value_of(form, "numFmt") == "bullet":
            return "-"
        counts = self._counts.setdefault(self._kinds[name], {})
        counts |= self._starts.pop(name, {})
        counts[at] = counts.get(at, self._start(name, at) - 1) + 1
        for lower in [each for each in counts if each > at]:
            del counts[lower]
        return re.sub(
            r"%([1-9])", lambda place: self._number(name, int(place[1]) - 1, counts), _value_of(form, "lvlText")
        )

    def _start(self, name: str, level: int) -> int:
        return _number(_value_of(self._levels[name, level], "start"), 1)

    def _number(self, name: str, level: int, counts: Mapping[int, int]) -> str:
        if (name, level) not in self._levels:
            return ""
        number = counts.get(level, self._start(name, level))
        match _value_of(self._levels[name, level], "numFmt"):
            case "lowerLetter" | "upperLetter" as form if 0 < number < 1 << 15:
                letters = chr(ord("a") + (number - 1) % 26) * ((number - 1) // 26 + 1)
            case "lowerRoman" | "upperRoman" as form if 0 < number < 4000:
                letters = "".join(digits[number // worth % 10] for worth, digits in _ROMAN)
            case form:
                letters = str(number)
        return letters.upper() if form.startswith("upper") else letters


def _level(element: Any) -> int:
    return _number(_attribute(element, "ilvl"), 0)


def _value_of(element: Any, path: str) -> str:
    found = element.find(f"{{*}}{path}")
    return "" if found is None else _attribute(found, "val")


def _attribute(element: Any, name: str) -> str:
    return next((str(value) for key, value in element.attrib.items() if local(key) == name), "")


_READERS: Mapping[str, Callable[[bytes], str]] = MappingProxyType(
    {
        **dict.fromkeys((".eml", ".emlx", ".mht", ".mhtml"), mail_text),
        **dict.fromkeys((".html", ".htm", ".xhtml"), page_text),
        _WORD: word_text,
    }
)
SUFFIXES = frozenset(_READERS)
"""The suffixes of documents."""
_UNREADABLE = "takes too much time or memory to read, or is damaged"
_HELPER = subprocesses.Helper(__name__, _REPLY_S)
atexit.register(_HELPER.end)


def text_of(suffix: str, data: bytes) -> str:
    """Return the text of a document with this suffix. Blocks.

    Raises `PromptmillError` (`missing_dependency`, `invalid_input`); its message is the predicate of a sentence.
    """
    if suffix == _WORD and importlib.util.find_spec("docx") is None:
        raise PromptmillError(Code.MISSING_DEPENDENCY, "needs python-docx", adding("files"))
    try:
        reply = _HELPER.ask(frames.packed({"suffix": suffix, "size": len(data)}), io.BytesIO(data))
    except OSError:
        raise input_error("cannot be read, as no process for it starts") from None
    if reply is None:
        raise input_error(_UNREADABLE)
    if "problem" in reply:
        raise input_error(reply["problem"])
    return str(reply["text"])


def _reply(asked: frames.Frame, incoming: BinaryIO) -> frames.Frame:
    """Answer the parent process; `incoming` holds the document."""
    data = incoming.read(asked["size"])
    text = _READERS[asked["suffix"]](data)
    if len(text) > LARGEST_TEXT:
        return {"problem": f"has more than {LARGEST_TEXT >> 20} million characters"}
    return {"text": text.encode("utf-8", "replace").decode()}


def _problem(_: frames.Frame, error: Exception) -> frames.Frame:
    return {"problem": error.message if isinstance(error, PromptmillError) else _UNREADABLE}


def main() -> None:
    """Serve the parent process."""
    subprocesses.serve_parent(_reply, _problem, memory=WORKBOOK_MEMORY, computing_s=_COMPUTING_S)


if __name__ == "__main__":
    main()
