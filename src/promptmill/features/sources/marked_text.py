"""The texts of Word documents and web pages with marks, which name the headings that the files themselves have.

    text           Lease ⏎ The rent is due. ⏎ Payment ⏎ By transfer.
    marked text    ⟨1, 0⟩Lease⟨end⟩ ⏎ The rent is due. ⏎ ⟨2, 1⟩Payment⟨end⟩ ⏎ By transfer.      ⟨level, number⟩

The marks are made of noncharacters of Unicode, which no text has. A model gets the text without marks. The functions
`word` and `page` run in the child process of `files/documents.py`.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from selectolax.lexbor import LexborHTMLParser

MARKS = re.compile("[\ufdd0-\ufdef]+")
TITLE = 0
"""The level of a document's title. Headings have the levels from 1."""
END, GOES_ON, NONE = "\ufddb", "\ufddc", "\ufddd"
"""`END` ends a heading; `GOES_ON` precedes a line that continues a paragraph; `NONE` precedes a line below no heading,
such as a footnote."""
_BEGIN = "\ufdda"
_HEADING = re.compile(f"{_BEGIN}([\ufdd0-\ufdd9])([\ufdd0-\ufdd9]+)")
_DIGITS = str.maketrans("0123456789", "".join(map(chr, range(0xFDD0, 0xFDDA))))
_NAMED = re.compile(r"(?i)(title)|heading ?([1-9])")  # a Word in any language names its own styles in English
_NO_LEVEL = 9  # the outline level of an ordinary paragraph; those of headings are 0 to 8
_HTML_HEADINGS = "title, h1, h2, h3, h4, h5, h6, [role=heading]"
_DELETED = ("del", "moveFrom")
_LEVEL = re.compile("h([1-6])")
_WHOLE = frozenset({"sup", "sub", "img"})  # marks stand around such an element, because it is shown as other letters


class Heading(NamedTuple):
    """A line that is a heading, or a line of one."""

    level: int
    number: int
    """The number of the heading in the document, the same for all its lines."""
    title: str


def heading_in(line: str) -> Heading | None:
    """Return the heading in a line with marks; None for another line, also for a row of a table in which cells follow
    the heading."""
    marks = [*_HEADING.finditer(line)]
    if not marks:
        return None
    own = marks[-1]
    first = next(each for each in marks if each[0] == own[0])
    title, _, rest = (
        line[first.start() :].rpartition(END) if END in line[own.end() :] else (line[first.start() :], "", "")
    )
    level, number = (int("".join(str(ord(digit) - 0xFDD0) for digit in each)) for each in own.groups())
    cells = MARKS.sub("", rest).partition("\t")
    title = " ".join(MARKS.sub("", title).split())
    return Heading(level, number, title) if title and not cells[2].strip() else None


def _mark(level: int, number: int) -> str:
    return _BEGIN + f"{level}{number}".translate(_DIGITS)


def word(data: bytes) -> str:
    """Return the text of a Word document with marks. Raises as `word_text` does."""
    from promptmill.files.word import word_text

    return word_text(data, _mark_word)


def page(data: bytes) -> str:
    """Return the text of a web page with marks. Raises as `page_text` does."""
    from promptmill.files.web_pages import page_text

    return page_text(data, mark=_mark_page)


def _mark_word(tree: Any, styles: Any, is_body: bool) -> None:  # noqa: FBT001 (called by position)
    """Add marks to a tree of a Word document. See `word_text`."""
    if next(tree.iter("{*}altChunk"), None) is not None:  # the lines of an embedded file cannot be marked
        return
    levels = _Levels(styles)
    for number, paragraph in enumerate(list(tree.iter("{*}p"))):
        level, goes_on = levels.of(paragraph) if is_body else None, GOES_ON
        if level is not None:
            goes_on = _mark(level, number)
            for each in paragraph.xpath("*[local-name() != 'pPr']"):
                each.addprevious(_text_in(paragraph, goes_on))
            paragraph.append(_text_in(paragraph, END))
        elif not is_body:
            paragraph.insert(0 if paragraph.find("{*}pPr") is None else 1, _text_in(paragraph, NONE))
        for path, sign in itertools.product(("", "{*}hyperlink/", "{*}ins/"), ("br", "cr")):
            for line_end in paragraph.findall(f"{path}{{*}}r/{{*}}{sign}"):
                line_end.addnext(_text_in(paragraph, goes_on))


def _text_in(paragraph: Any, text: str) -> Any:
    element = paragraph.makeelement(paragraph.tag.replace("}p", "}t"))
    element.text = text
    return element


class _Levels:
    """The levels of the paragraphs of a Word document."""

    def __init__(self, styles: Any) -> None:
        self._styles = {} if styles is None else {_value(one, "styleId"): one for one in styles.findall("{*}style")}
        self._known: dict[str, int] = {}

    def of(self, paragraph: Any) -> int | None:
        """Return the level of a heading; None for another paragraph, and in a text box, which may stand anywhere.

        A paragraph whose end mark is deleted has the properties of the next paragraph.
        """
        properties = None
        for each in itertools.chain([paragraph], paragraph.itersiblings("{*}p")):
            properties = each.find("{*}pPr")
            if properties is None or not any(properties.find(f"{{*}}rPr/{{*}}{name}") is not None for name in _DELETED):
                break
        if properties is None:
            return None
        if (level := _outline_level(properties)) is None:
            level = self._of_style(_value(properties.find("{*}pStyle"), "val"))
        is_heading = level < _NO_LEVEL and next(paragraph.iterancestors("{*}txbxContent"), None) is None
        return level + 1 if is_heading else None

    def _of_style(self, name: str) -> int:
        """Return the outline level of a style, which it may inherit; -1 for the title's."""
        if name not in self._known:
            self._known[name] = _NO_LEVEL  # also if the style is its own base
            self._known[name] = self._made(name)
        return self._known[name]

    def _made(self, name: str) -> int:
        style = self._styles.get(name)
        own = name if style is None else _value(style.find("{*}name"), "val")
        properties = None if style is None else style.find("{*}pPr")
        level = None if properties is None else _outline_level(properties)
        if level is not None:
            return level
        if found := _NAMED.fullmatch(own):
            return TITLE - 1 if found[1] else int(found[2]) - 1
        base = "" if style is None else _value(style.find("{*}basedOn"), "val")
        level = self._of_style(base) if base else _NO_LEVEL
        return level if level >= TITLE else _NO_LEVEL  # the styles of subtitles and authors are based on the title's


def _outline_level(properties: Any) -> int | None:
    level = _value(properties.find("{*}outlineLvl"), "val")
    return int(level) if level in {*"0123456789"} else None


def _value(element: Any, name: str) -> str:
    """Return an attribute of an element by its name without the namespace; `""` without the element or attribute."""
    attributes = () if element is None else element.attrib.items()
    return next((str(value) for key, value in attributes if key.rpartition("}")[2] == name), "")


def _mark_page(tree: LexborHTMLParser) -> None:
    """Add marks to a web page. See `page_text`."""
    for number, element in enumerate(tree.css(_HTML_HEADINGS)):
        named = _LEVEL.fullmatch(element.tag or "")
        level = named[1] if named else (element.attributes.get("aria-level") or "2")  # 2: the default of ARIA
        start = _mark(TITLE if element.tag == "title" else int(level) if level in {*"123456789"} else 2, number)
        shown = [*_shown(element)]
        for each in shown:
            each.insert_before(start)
        if shown:
            shown[-1].insert_after(END)
    for line_end in tree.css("br"):
        if (after := line_end.next) is not None and after.tag == "-text" and (after.text_content or "").strip():
            after.insert_before(GOES_ON)


def _shown(element: Any) -> Iterator[Any]:
    """Yield the texts in an element that are not blank, and the elements in `_WHOLE`."""
    waiting = [*element.iter(include_text=True)][::-1]
    while waiting:
        each = waiting.pop()
        if each.tag in _WHOLE:
            yield each
        elif each.tag == "-text":
            yield from [each] if each.text_content.strip() else ()
        else:
            waiting += [*each.iter(include_text=True)][::-1]
