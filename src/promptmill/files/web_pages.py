"""The text of a web page as a reader sees it, without tags, scripts and hidden elements.

selectolax parses the page as browsers do: it ends elements whose end tags are missing, and needs neither head nor body.

>>> page_text(b"<p>One &amp; two</p><script>x</script><p>three")
'One & two\\n\\nthree'
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from selectolax.lexbor import LexborHTMLParser

from promptmill.core.bounds import LARGEST_TEXT, MOST_COLUMNS
from promptmill.core.errors import input_error
from promptmill.files import encodings
from promptmill.files.formulas import lowered, of_mathml, raised
from promptmill.files.numerals import numeral

TOO_LONG = f"has more than {LARGEST_TEXT >> 20} million characters"
_MOST = 4 * LARGEST_TEXT  # the most characters of a text before its white space is reduced
# Browsers ignore the charset UTF-7, and the charset UTF-16 if the page names it in letters of one byte.
_CHARSET = re.compile(
    rb"""(?i)<(?:meta\b[^<>]{1,200}?charset|\?xml\b[^<>]{1,100}?encoding)\s{0,9}=\s{0,9}["']?(?!utf-(?:16|7))([\w-]+)"""
)
_HEAD = 4096  # bytes at the start of a page, where its charset is searched for outside of comments and scripts
_NO_TAGS = re.compile(rb"(?is)<!--.*?(?:-->|\Z)|<script\b.*?(?:</script|\Z)")
# In XHTML, any element may be empty (`<p/>`). Read as HTML, such an element would contain the rest of the page.
_ENDED = re.compile(r"<(title|script|style|textarea|iframe|noscript|p|div|span|a|b|i|td|th|li)\b([^<>]*)/>")
_NOSCRIPT, _NOSCRIPT_END = re.compile(r"(?i)<noscript\b[^<>]*>"), re.compile(r"(?i)</noscript\s*>")
_SHADOW = re.compile(r"(?i)<template\b[^<>]{0,300}\bshadowrootmode\b[^<>]{0,300}>")
_COMMENT = re.compile(r"/\*.{0,200}?\*/")
_HIDDEN_STYLE = re.compile(
    r"(?i)(?<![\w-])(?:display\s*:\s*none|visibility\s*:\s*(?:hidden|collapse)|mso-hide\s*:\s*all"
    r"|opacity\s*:\s*0(?:\.0{1,9})?%?\s*(?:;|!|$))"
)
_SIZE = re.compile(
    r"(?i)(?<![\w.#-])(?:(\d{0,9}\.?\d{1,9})(?:(em|ex|ch|%)|px|pt|pc|in|cm|mm|rem|v[wh]|\s*(?:[/!]|$))|small|medium|large)"
)
_RAISED_STYLE = re.compile(r"(?i)(?<![\w-])vertical-align\s*:\s*(super|sub)\b")
_WRITTEN_STYLE = re.compile(r"(?i)(?<![\w-])white-space\s*:\s*(?:pre|break-spaces)")
_LIST_STYLE = re.compile(
    r"(?i)(?<![\w-])list-style(?:-type)?\s*:[^;]{0,99}?"
    r"\b(none|disc|circle|square|decimal(?:-leading-zero)?|(?:low|upp)er-(?:alpha|latin|roman))"
)
# Elements whose text is not shown. From `iframe` on, the text is only for programs that cannot show the element.
_UNSEEN = frozenset(
    {
        *("script", "style", "template", "noscript", "svg", "datalist", "annotation", "annotation-xml"),
        *("iframe", "noembed", "audio", "video", "canvas"),
    }
)
_BLOCKS = frozenset(
    {
        *("p", "div", "section", "article", "header", "footer", "main", "aside", "blockquote", "pre", "form", "title"),
        *("h1", "h2", "h3", "h4", "h5", "h6", "ul", "ol", "dl", "table", "hr", "figure", "fieldset", "address", "nav"),
        *("figcaption", "details", "summary", "caption", "menu", "dir", "center", "xmp", "listing", "plaintext"),
    }
)
_LINES = frozenset({"br", "li", "tr", "dt", "dd", "legend", "optgroup"})
_CELLS = frozenset({"td", "th"})
_GROUPS = frozenset({"thead", "tbody", "tfoot"})
_OF_TABLES = frozenset({"table", "tr", *_GROUPS})
_LISTS = frozenset({"ol", "ul", "menu", "dir"})
_AS_WRITTEN = frozenset({"pre", "xmp", "listing", "plaintext", "textarea"})
_KEPT = str.maketrans(" \t\n", "\0\1\2", "\0\1\2\r")  # keeps white space of `_AS_WRITTEN` elements, see `_GIVEN_BACK`
_GIVEN_BACK = (("\0", " "), ("\1", "\t"), ("\2", "\n"), ("\xad", ""))
STRUCK = ("\3", "\4")
"""The signs before and behind a text that is struck out, which `with_struck` replaces by marks of Markdown."""
_STRUCK_BLANK, _STRUCK_ON, _STRUCK = re.compile("\3(\\s*)\4"), re.compile("\4( *)\3"), re.compile("\3+|\4+")
_ENDS = "\0\1\2"
_BOXES: Mapping[str, Sequence[str]] = MappingProxyType({"checkbox": ("☐", "☑"), "radio": ("☐", "☑")})
_WITHOUT_VALUE = frozenset({"hidden", "password", "file", "image", *_BOXES})
_LIST_STYLES: Mapping[str, str] = MappingProxyType(
    {
        "decimal": "decimal",
        "decimal-leading-zero": "decimalZero",
        **{f"{case}-{name}": f"{case}Letter" for case in ("lower", "upper") for name in ("alpha", "latin")},
        "lower-roman": "lowerRoman",
        "upper-roman": "upperRoman",
    }
)
_NUMERALS: Mapping[str, str] = MappingProxyType(
    {"a": "lowerLetter", "A": "upperLetter", "i": "lowerRoman", "I": "upperRoman"}
)


def page_text(data: bytes, charset: str = "", mark: Callable[[LexborHTMLParser], None] | None = None) -> str:
    """Return the text of a web page, one line for each block, list item and table row.

    `charset`: the charset that a mail names. The page's own charset is tried afterwards. `mark` may add texts.

    Raises `PromptmillError` (`invalid_input`); its message is the predicate of a sentence.
    """
    named = _CHARSET.search(_NO_TAGS.sub(b"", data[:_HEAD])) or _CHARSET.search(data, _HEAD)
    page = encodings.text_of(data, charset, named[1].decode() if named else "")
    if page.lstrip().startswith("<?xml"):
        page = _ENDED.sub(r"<\1\2></\1>", page)
    # Remove each `noscript`: its text is for browsers without scripts, and the parser would move it out of the element.
    first, *others = _NOSCRIPT.split(page)
    page = first + "".join(_NOSCRIPT_END.split(other, maxsplit=1)[-1] for other in others)
    page = _SHADOW.sub("<div>", page)  # the content of a shadow root is shown
    tree = LexborHTMLParser(page.encode("utf-8", "replace"))
    looks = _Looks()
    for element in tree.css("[style]"):
        looks.add(element, _COMMENT.sub("", element.attributes["style"] or ""))
    hidden = looks.hidden | {each.mem_id for each in tree.css("[hidden], [popover], dialog") if _is_hidden(each)}
    hidden |= {element.mem_id for element in tree.css(".katex-html[aria-hidden]")}  # copies of formulas in MathML
    for formula in tree.css("math"):
        if formula.mem_id not in hidden:
            formula.replace_with(of_mathml(formula))
    for guide in tree.css("ruby > rt"):
        if guide.parent is not None and guide.parent.css_first("rp") is None:
            guide.insert_before("(")
            guide.insert_after(")")
    for box in tree.css("[role=checkbox][aria-checked], [role=radio][aria-checked], [role=switch][aria-checked]"):
        if box.tag != "input" and (first := box.first_child) is not None:
            first.insert_before("☑ " if box.attributes["aria-checked"] == "true" else "☐ ")
    for element in (*tree.css("s, strike, del"), *looks.struck):
        first, last = element.first_child, element.last_child
        if first is not None and last is not None and element.tag not in _OF_TABLES:
            first.insert_before(STRUCK[0])
            last.insert_after(STRUCK[1])
    if mark is not None:
        mark(tree)
    writer = _Writer()
    _walk(tree.root, hidden, looks, writer)
    return writer.text()


def with_struck(text: str) -> str:
    """Return a text with the marks of Markdown around each part that is struck out, such as an old price.

    >>> with_struck("\\x0349\\x04 39")
    '~~49~~ 39'
    """
    if STRUCK[0] not in text:
        return text
    text = _STRUCK.sub(lambda run: run[0][0], text)
    return _STRUCK.sub("~~", _STRUCK_ON.sub(r"\1", _STRUCK_BLANK.sub(r"\1", text)))


def whole_number(text: str | None, usual: int) -> int:
    """Return the whole number in an attribute; `usual` if there is none."""
    return int(text) if text and re.fullmatch(r"\s*-?[0-9]{1,9}\s*", text) else usual


def _is_hidden(element: Any) -> bool:
    attributes = element.attributes
    if "popover" in attributes or (element.tag == "dialog" and "open" not in attributes):
        return True
    return "hidden" in attributes and (attributes["hidden"] or "").lower() != "until-found"


@dataclass(slots=True)
class _Looks:
    """How elements look because of their styles, by the elements' `mem_id`."""

    hidden: set[int] = field(default_factory=set)
    tags: dict[int, str] = field(default_factory=dict)
    """The tag whose look an element's style imitates, such as `sup`, by element."""
    sizes: dict[int, bool] = field(default_factory=dict)
    """For elements whose style sets the size of letters: whether the size is above 0."""
    struck: list[Any] = field(default_factory=list)
    """The elements that are struck out."""

    def add(self, element: Any, style: str) -> None:
        """Add an element with its style."""
        name = element.mem_id
        if _HIDDEN_STYLE.search(style):
            self.hidden.add(name)
        if place := _RAISED_STYLE.search(style):
            self.tags[name] = "sup" if place[1].lower() == "super" else "sub"
        elif element.tag in _BLOCKS and _WRITTEN_STYLE.search(style):
            self.tags[name] = "pre"
        if "line-through" in style.lower():
            self.struck.append(element)
        for declaration in style.split(";") if "font" in style.lower() else ():
            key, _, value = declaration.partition(":")
            if key.strip().lower() in {"font", "font-size"} and (match := _SIZE.search(value)) is not None:
                number = float(match[1] or 1)
                if not number or not match[2]:  # a relative size, such as 2em, may be a multiple of 0
                    self.sizes[name] = number > 0


def _walk(root: Any, hidden: Set[int], looks: _Looks, writer: _Writer) -> None:
    """Write the texts of all visible elements.

    Newsletters avoid gaps with elements of size 0. An inner element with a style or a class may have a size again.

    The walk is not recursive, because a page may be nested deeply.
    """
    node, open_elements, is_shown = root, list[tuple[Any, str, bool]](), True
    styles, sizes = looks.tags, looks.sizes if not all(looks.sizes.values()) else {}
    while node is not None:
        tag = node.tag
        if tag == "-text":
            if is_shown:
                writer.add(node.text_content)
        elif tag[0] not in "-!" and tag not in _UNSEEN and not (hidden and node.mem_id in hidden):
            tag = styles.get(node.mem_id, tag) if styles else tag
            writer.start(tag, node)
            if (child := node.first_child) is not None:
                open_elements.append((node, tag, is_shown))
                if sizes:
                    is_shown = sizes.get(node.mem_id, is_shown or "class" in node.attributes)
                node = child
                continue
            writer.end(tag)
        while (following := node.next) is None and open_elements:
            node, tag, is_shown = open_elements.pop()
            writer.end(tag)
        node = following


@dataclass(slots=True)
class _Grid:
    """The current position in a table, whose cells may span several columns and rows."""

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

    def tabs(self, width: int, height: int) -> str:
        """Return the tabs that precede a cell, so that the cell is in its column."""
        while self.below.get(self.column, 0) > self.row:
            self.column += 1
        tabs, self.shown = "\t" * (self.column - self.shown), self.column
        width = max(1, min(width, MOST_COLUMNS - self.column))
        if height > 1:
            self.below |= dict.fromkeys(range(self.column, self.column + width), self.row + height)
        self.column += width
        return tabs


@dataclass(slots=True)
class _List:
    """An open list: the number of its next item (None: items have no numbers), and the numbers' form and direction."""

    number: int | None
    form: str = ""
    step: int = 1


class _Writer:
    """Collects the texts of a page."""

    def __init__(self) -> None:
        self._texts: list[str] = []
        self._size = 0
        self._lists: list[_List] = []
        self._tables = [_Grid()]
        self._places: list[str] = []
        """For each open superscript, subscript or block, its tag."""
        self._as_written = 0
        """The number of open elements whose white space is kept."""
        self._chosen: int | None = None
        """The id of the only option that the open list shows; None: the list shows all options."""
        self._is_unchosen = False
        """Whether the open option is one that its list does not show."""
        self._begins, self._behind_table = False, False
        """`_begins`: whether a cell or item has no text. `_behind_table`: whether no cell followed a table's end."""

    def _put(self, text: str) -> None:
        self._texts.append(text)
        self._size += len(text)
        if self._size > _MOST:
            raise input_error(TOO_LONG)

    def add(self, text: str) -> None:
        """Add a text."""
        if self._is_unchosen:
            return
        match self._places[-1:]:
            case ["sup"]:
                text = raised(text)
            case ["sub"]:
                text = lowered(text)
        self._begins = self._begins and text.isspace()
        # In other elements, a run of white space becomes a space. The added letters protect the spaces at both ends.
        self._put(text.translate(_KEPT) if self._as_written else " ".join(f"x{text}x".split())[1:-1])

    def start(self, tag: str, element: Any) -> None:
        """Start an element."""
        if tag in _BLOCKS:
            self._places.append(tag)
            if not self._begins:
                self._put("\n\n")
        elif tag in _LINES:
            self._put("\n" + (self._mark(element) if tag == "li" else ""))
            self._begins = tag == "li" or (self._begins and tag == "br")
        if tag in _AS_WRITTEN:
            self._put(" " if tag == "textarea" else "")
            self._as_written += 1
        elif tag in _CELLS:
            self._start_cell(element.attributes)
        elif tag == "tr":
            self._tables[-1].start_row()
        elif tag == "table":
            self._tables.append(_Grid())
        elif tag in _LISTS:
            self._lists.append(_list(tag, element))
        elif tag in {"sup", "sub"}:
            self._places.append(tag)
        elif tag == "img" and (words := element.attributes.get("alt")):
            self.add(f"[{words}]")
        elif tag in {"input", "select", "option", "q"}:
            self._start_field(tag, element)

    def end(self, tag: str) -> None:
        """End an element."""
        if tag in _BLOCKS or tag in {"sup", "sub"}:
            del self._places[-1:]
        if tag in _AS_WRITTEN:
            self._as_written -= 1
        elif tag in _LISTS:
            del self._lists[-1:]
        elif tag == "table":
            del self._tables[max(1, len(self._tables) - 1) :]
        elif tag in _GROUPS:
            self._tables[-1].below.clear()
        elif tag == "option":
            self._is_unchosen = False
        elif tag == "q":
            self.add('"')
        self._behind_table = tag == "table" or (self._behind_table and tag not in _CELLS)
        if tag in _BLOCKS:
            self._put("\n\n")

    def text(self) -> str:
        """Return the text, with the white space that a browser shows."""
        text = re.sub(" {2,}", " ", with_struck("".join(self._texts)))
        lines = (line.strip(" ").removeprefix("\t").strip(" ").rstrip().rstrip(_ENDS) for line in text.split("\n"))
        text = re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip("\n")
        for sign, white_space in _GIVEN_BACK:
            text = text.replace(sign, white_space)
        return text

    def _mark(self, item: Any) -> str:
        """Return the mark before an item of a list."""
        of = self._lists[-1] if self._lists else _List(None)
        if of.number is None:
            return "- "
        number = whole_number(item.attributes.get("value"), of.number)
        of.number = number + of.step
        return f"{numeral(number, of.form)}. "

    def _start_cell(self, attributes: Mapping[str, str | None]) -> None:
        grid = self._tables[-1]
        if grid.column and not self._behind_table:
            while self._texts and not self._texts[-1].strip(" \n"):
                self._texts.pop()  # removes the line breaks after a block that ends the previous cell
        width, height = (min(whole_number(attributes.get(name), 1), 1000) for name in ("colspan", "rowspan"))
        self._put(grid.tabs(width, height if height > 0 else 1000))  # in browsers, 0 means all remaining rows
        self._begins = True

    def _start_field(self, tag: str, element: Any) -> None:
        """Add the visible content of a form's field: its value, its box or its chosen option."""
        attributes = element.attributes
        if tag == "q":
            self.add('"')
        elif tag == "input":
            kind = (attributes.get("type") or "text").lower()
            if kind == "image" and (words := attributes.get("alt")):
                self.add(f" {words} ")
            elif kind in _BOXES:
                self.add(f" {_BOXES[kind]['checked' in attributes]} ")
            elif kind not in _WITHOUT_VALUE and (value := attributes.get("value")):
                self.add(f" {value} ")
        elif tag == "select":
            has_several = "multiple" in attributes or whole_number(attributes.get("size"), 1) > 1
            options = [] if has_several else element.css("option")
            selected = [each for each in options if "selected" in each.attributes]
            self._chosen = (selected[-1:] or options)[0].mem_id if options else None
        elif self._chosen is None or self._chosen == element.mem_id:
            box = f"\n{_BOXES['checkbox']['selected' in attributes]} " if self._chosen is None else " "
            is_empty = not element.text(deep=True).strip()
            self._put(box + ((attributes.get("label") or "") if is_empty else ""))
        else:
            self._is_unchosen = True


def _list(tag: str, element: Any) -> _List:
    attributes = element.attributes
    styled = _LIST_STYLE.findall(attributes.get("style") or "")[-1:]
    form = _LIST_STYLES.get(styled[0].lower()) if styled else _NUMERALS.get(attributes.get("type") or "", "")
    if form is None or (tag != "ol" and not styled):
        return _List(None)
    if "reversed" not in attributes:
        return _List(whole_number(attributes.get("start"), 1), form)
    count = sum(child.tag == "li" for child in element.iter())
    return _List(whole_number(attributes.get("start"), count), form, -1)
