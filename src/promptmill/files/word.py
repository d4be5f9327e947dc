"""The text of a Word document as Word shows it, with its tracked changes, lists, notes, headers and footers."""

from __future__ import annotations

import copy
import io
import posixpath
import re
import zipfile
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from promptmill.core.bounds import LARGEST_FILE
from promptmill.core.errors import PromptmillError, input_error
from promptmill.files import encodings, symbol_fonts
from promptmill.files.formulas import grouped, lowered, raised
from promptmill.files.mails import mail_text
from promptmill.files.numerals import numeral
from promptmill.files.web_pages import STRUCK, page_text, whole_number, with_struck
from promptmill.files.xlsx import local

_MOST_SPANNED = 63  # the most columns of a table in Word
# Elements whose texts are not shown: deleted text, properties, and instructions of fields.
_UNSEEN = frozenset({"del", "moveFrom", "pPr", "rPr", "sdtPr", "footnoteRef", "endnoteRef"})
_SIGNS: Mapping[str, str] = MappingProxyType({"tab": "\t", "ptab": "\t", "br": "\n", "cr": "\n", "noBreakHyphen": "-"})
_LOOKS = ("vanish", "strike", "dstrike", "vertAlign")
_CUSTOM = re.compile("0+1")  # the first number of a form such as 001, 002, 003, …
_RAISED_BY = 3  # a run that is raised by more half points than this is a superscript
_SYMBOL_FIELD = re.compile(
    r"""SYMBOL\s+(0[xX][0-9A-Fa-f]{1,4}|[1-9][0-9]{0,4})\b(?:.{0,40}?\\f\s*["“]?([\w ]{1,40}))?"""
)
_FORMULA_FIELD = re.compile(r"EQ\s|\\[a-z]{1,2}\s*\(")
_MATH = "/math}"  # the end of the namespaces of formulas


def word_text(data: bytes, mark: Callable[[Any, Any, bool], None] | None = None, *, is_inner: bool = False) -> str:
    """Return the text of a Word document. The cells of its tables are separated by tabs.

    `mark` may add elements to each tree; it takes the tree, the tree of styles or None, and whether it is the body. If
    `is_inner` (the document is embedded in another Word document), Word documents inside it are not read.

    Raises `PromptmillError` (`invalid_input`); its message is the predicate of a sentence.
    """
    import docx
    from docx.oxml import parse_xml

    around: dict[str, list[Any]] = {"header": [], "footnotes": [], "endnotes": [], "footer": []}
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as packed:
            if sum(one.file_size for one in packed.infolist()) > LARGEST_FILE:
                raise input_error(f"unpacks to more than {LARGEST_FILE >> 20} MiB")
        document = docx.Document(io.BytesIO(data))
        trees = {"numbering": None, "styles": None}
        for one in document.part.rels.values():
            if (kind := posixpath.basename(one.reltype)) in trees:
                trees[kind] = parse_xml(one.target_part.blob)
            elif kind in around:
                around[kind].append(parse_xml(one.target_part.blob))
        body, looks = document.element.body, _looks(trees["styles"])
        for tree in (body, *(tree for each in around.values() for tree in each)):
            _clear_codes(tree)
            _write_looks(tree, looks)
            if trees["numbering"] is not None:
                _Numbering(**trees).write(tree)
            if mark is not None:
                mark(tree, trees["styles"], tree is body)
        for element in list(body.iter("{*}altChunk")):
            _write_chunk(element, document.part.rels, is_inner=is_inner)
        shown = with_struck(_word(body))
        texts = {kind: [with_struck(_word(tree)).strip() for tree in each] for kind, each in around.items()}
    except PromptmillError:
        raise
    except Exception:  # noqa: BLE001 (the parser may raise any exception for a damaged file)
        raise input_error("is no Word document that can be read") from None
    shown = shown.rstrip().lstrip("\n \xa0")  # a tab at the start marks an empty cell
    parts = [*texts.pop("header"), shown, *(text for each in texts.values() for text in each)]
    return "\n".join(dict.fromkeys(filter(None, parts)))


def _clear_codes(tree: Any) -> None:
    """Remove the texts in fields' codes. (For example, a field inside an IF field's condition has its result there.)

    The code of a field ends where its result begins. A field without a result keeps all texts.
    """
    codes: list[list[Any] | None] = []  # for each open field, the texts of its code; None after the code's end
    for element in tree.iter("{*}fldChar", "{*}t") if next(tree.iter("{*}fldChar"), None) is not None else ():
        kind = _attribute(element, "fldCharType")
        if kind == "begin":
            codes.append([])
        elif kind and codes:
            code = codes.pop() or []
            if kind == "separate":
                codes.append(None)
                for text in code:
                    text.text = ""
        elif not kind:
            next((each for each in codes if each is not None), []).append(element)


def _looks(styles: Any) -> dict[str, Mapping[str, Any]]:
    """Return the elements of `_LOOKS` that each style has or inherits from its base style, by the style's id."""
    known = {} if styles is None else {_attribute(each, "styleId"): each for each in styles.findall("{*}style")}
    looks: dict[str, Mapping[str, Any]] = {}
    for name in known:
        elements: dict[str, Any] = {}
        base, passed = name, set[str]()
        while base in known and base not in passed:
            passed.add(base)
            for look in _LOOKS:
                if (element := known[base].find(f"{{*}}rPr/{{*}}{look}")) is not None:
                    elements.setdefault(look, element)
            base = _value_of(known[base], "basedOn")
        if elements:
            looks[name] = elements
    return looks


def _write_looks(tree: Any, looks: Mapping[str, Mapping[str, Any]]) -> None:
    """Copy the elements of each style into the runs that have the style, either directly or from their paragraph."""
    for element in tree.iter("{*}rStyle", "{*}pStyle"):
        if not (elements := looks.get(_attribute(element, "val"))):
            continue
        above = element.getparent()
        for run in [above] if local(element.tag) == "rStyle" else above.getparent().iter("{*}r"):
            properties = run if run is above else run.find("{*}rPr")
            if properties is None:
                properties = run.makeelement(above.tag.replace("pPr", "rPr"))
                run.insert(0, properties)
            for name, each in elements.items():
                if properties.find(f"{{*}}{name}") is None:
                    properties.append(copy.copy(each))


def _write_chunk(element: Any, relations: Mapping[str, Any], *, is_inner: bool) -> None:
    """Replace an `altChunk` by the text of the embedded file that it shows. Converters from HTML write `altChunk`s."""
    name, text = _attribute(element, "id"), ""
    if name in relations and not relations[name].is_external:
        part = relations[name].target_part
        kind = str(part.content_type).lower()
        if "html" in kind:
            text = page_text(part.blob)
        elif "wordprocessingml" in kind and not is_inner:
            text = word_text(part.blob, is_inner=True)
        elif kind == "message/rfc822":
            text = mail_text(part.blob)
        elif kind == "text/plain":
            text = encodings.text_of(part.blob)
        else:
            text = f"(a part that is not read: {kind})"
    paragraph, shown = (element.makeelement(element.tag.replace("altChunk", tag)) for tag in "pt")
    shown.text = text
    paragraph.append(shown)
    element.getparent().replace(element, paragraph)


def _word(element: Any) -> str:
    """Return the text of an element of a Word document as it is shown, with its tracked changes.

    A paragraph ends with a line break, and a cell ends with one tab for each column that it spans.
    """
    name = local(element.tag) if isinstance(element.tag, str) else ""
    if name in _UNSEEN or (name == "tr" and _is_on(element.find("{*}trPr/{*}hidden"))):
        return ""
    if name == "t":
        return element.text or ""
    if _MATH in element.tag and (formula := _formula(name, element)) is not None:
        return formula
    if (sign := _sign(name, element)) is not None:
        return sign
    text = "".join(map(_word, element))
    match name:
        case "r":
            return _run(text, element)
        case "p":
            return text if _joins_next(element) else f"{text}\n"
        case "txbxContent":
            return f"\n{text}"
        case "tr":
            before = min(max(0, whole_number(_value_of(element, "trPr/{*}gridBefore"), 0)), _MOST_SPANNED)
            return "" if element.find("{*}trPr/{*}del") is not None else "\t" * before + f"{text[:-1]}\n"
        case "tc" if element.find("{*}tcPr/{*}cellDel") is None:
            span = element.find("{*}tcPr/{*}gridSpan")
            width = 1 if span is None else min(max(1, whole_number(_attribute(span, "val"), 1)), _MOST_SPANNED)
            return ("" if _is_covered(element) else text.strip()) + "\t" * width
        case "tc":
            return ""
        case "footnote" | "endnote":
            return "" if _attribute(element, "type") else f"[{name} {_attribute(element, 'id')}] {text.strip()}\n"
    return text


def _run(text: str, element: Any) -> str:
    """Return the text of a run as its properties show it."""
    if (properties := element.find("{*}rPr")) is None:
        return symbol_fonts.shown(text)
    looks = {local(each.tag): each for each in properties.iterchildren("{*}*")}
    if _is_on(looks.get("vanish")):
        return ""
    text = symbol_fonts.shown(text, _attribute(looks["rFonts"], "ascii") if "rFonts" in looks else "")
    place, position = (_attribute(looks[name], "val") if name in looks else "" for name in ("vertAlign", "position"))
    if place == "superscript" or whole_number(position, 0) > _RAISED_BY:
        text = raised(text)
    elif place == "subscript":
        text = lowered(text)
    return text.join(STRUCK) if _is_on(looks.get("strike")) or _is_on(looks.get("dstrike")) else text


def _joins_next(paragraph: Any) -> bool:
    """Return whether a paragraph's end mark is deleted or hidden, so that the next paragraph continues this one."""
    mark = paragraph.find("{*}pPr/{*}rPr")
    if mark is None:
        return False
    return any(mark.find(f"{{*}}{name}") is not None for name in ("del", "moveFrom")) or _is_on(mark.find("{*}vanish"))


def _is_covered(cell: Any) -> bool:
    """Return whether a cell belongs to a merged cell that begins to its left or above it."""
    if (merged := cell.find("{*}tcPr/{*}hMerge")) is not None:
        return _attribute(merged, "val") != "restart"
    merged = cell.find("{*}tcPr/{*}vMerge")
    if merged is None or _attribute(merged, "val") == "restart":
        return False
    above = cell.getparent().getprevious()
    return above is not None and next(above.iter("{*}vMerge"), None) is not None


def _sign(name: str, element: Any) -> str | None:
    """Return the text of an element that shows a sign, the state of a form's field, or the mark of a note; else
    None."""
    if name in _SIGNS:
        return _SIGNS[name]
    if name.endswith("noteReference"):
        return f"[{name.removesuffix('Reference')} {_attribute(element, 'id')}]"
    match name:
        case "sym":
            code = _attribute(element, "char")
            sign = chr(int(code, 16)) if re.fullmatch("[0-9A-Fa-f]{4}", code) else ""
            return symbol_fonts.shown(sign, _attribute(element, "font"))
        case "instrText":  # an old field for a formula or a sign has this code, but no result
            code = (element.text or "").strip()
            if field := _SYMBOL_FIELD.match(code):
                return symbol_fonts.shown(chr(int(field[1], 0)), field[2] or "")
            return code.removeprefix("EQ ") if _FORMULA_FIELD.match(code) else ""
        case "textpath":  # of WordArt
            return _attribute(element, "string")
        case "ruby":  # a word with its phonetic guide
            base, guide = _in(element, "rubyBase"), _in(element, "rt")
            return f"{base}({guide})" if guide else base
        case "AlternateContent":  # the same content in two forms
            shown = _first(element, "Choice", "Fallback")
            return "" if shown is None else "".join(map(_word, shown))
        case "checkBox":
            return "☑" if _is_on(_first(element, "checked", "default")) else "☐"
        case "ddList":
            chosen = whole_number(_value_of(element, "result") or _value_of(element, "default"), 0)
            entries = [_attribute(each, "val") for each in element.findall("{*}listEntry")]
            return "".join(entries[max(0, chosen) :][:1])
    return None


def _formula(name: str, element: Any) -> str | None:
    """Return a part of a formula in one line, such as `(a+b)/2`; None for a part that is read as a text."""
    match name:
        case "f" if _value_of(element, "fPr/{*}type") == "noBar":
            return f"{grouped(_in(element, 'num'))}¦{grouped(_in(element, 'den'))}"
        case "f":
            return f"{grouped(_in(element, 'num'))}/{grouped(_in(element, 'den'))}"
        case "sSup" | "sSub" | "sSubSup" | "sPre":
            lower, upper = _in(element, "sub"), _in(element, "sup")
            power = raised(upper) if upper and raised(upper) != upper else f"^{grouped(upper)}" if upper else ""
            return _in(element, "e") + (f"_{grouped(lower)}" if lower else "") + power
        case "rad":
            return f"{raised(_in(element, 'deg'))}√({_in(element, 'e')})"
        case "d":
            begin, end, between = (
                default if (sign := element.find(f"{{*}}dPr/{{*}}{key}")) is None else _attribute(sign, "val")
                for key, default in (("begChr", "("), ("endChr", ")"), ("sepChr", "|"))
            )
            return begin + between.join("".join(map(_word, each)) for each in element.findall("{*}e")) + end
        case "nary":
            sign, lower, upper = _value_of(element, "naryPr/{*}chr") or "∫", _in(element, "sub"), _in(element, "sup")
            limits = (f"_{grouped(lower)}" if lower else "") + (f"^{grouped(upper)}" if upper else "")
            return f"{sign}{limits} {_in(element, 'e')}"
        case "limLow" | "limUpp":
            return f"{_in(element, 'e')}{'_' if name == 'limLow' else '^'}{grouped(_in(element, 'lim'))}"
        case "func":
            content = _in(element, "e")
            return f"{_in(element, 'fName')}{'' if content.startswith('(') else ' '}{content}"
        case "m":  # a matrix
            rows = ([_word(each) for each in row.findall("{*}e")] for row in element.findall("{*}mr"))
            return "; ".join(" ".join(cells) for cells in rows)
        case "eqArr":
            return "; ".join(map(_word, element.findall("{*}e")))
        case "bar" | "acc":
            below = _value_of(element, "barPr/{*}pos") != "top"
            sign = (
                ("\u0332" if below else "\u0305") if name == "bar" else _value_of(element, "accPr/{*}chr") or "\u0302"
            )
            return f"{grouped(_in(element, 'e'))}{sign}"
        case "phant" if (show := element.find("{*}phantPr/{*}show")) is not None and not _is_on(show):
            return ""
    return None


def _in(element: Any, name: str) -> str:
    """Return the text of the child with this name; `""` if there is none."""
    child = element.find(f"{{*}}{name}")
    return "" if child is None else "".join(map(_word, child))


class _Numbering:
    """The numbers of lists, which Word computes when it shows a document."""

    def __init__(self, numbering: Any, styles: Any) -> None:
        self._styles = {} if styles is None else {_attribute(one, "styleId"): one for one in styles.findall("{*}style")}
        self._kinds: dict[str, str] = {}
        self._levels: dict[tuple[str, int], Any] = {}
        """The format of each level of a list."""
        self._starts: dict[str, dict[int, int]] = {}
        """One less than the number with which a list begins anew, by the list and the level."""
        self._counts: dict[str, dict[int, int]] = {}
        """The last number of each level, by the list's kind (`abstractNum`): lists of one kind share their numbers."""
        kinds = {_attribute(one, "abstractNumId"): one for one in numbering.findall("{*}abstractNum")}
        for one in numbering.findall("{*}num"):
            name, kind, changed = (
                _attribute(one, "numId"),
                _value_of(one, "abstractNumId"),
                one.findall("{*}lvlOverride"),
            )
            self._kinds[name] = kind
            starts = ((_level(each), whole_number(_value_of(each, "startOverride"), -1)) for each in changed)
            self._starts[name] = {level: start - 1 for level, start in starts if start >= 0}
            of_kind = kinds[kind].findall("{*}lvl") if kind in kinds else []
            for level in (*of_kind, *(each for change in changed for each in change.findall("{*}lvl"))):
                self._levels[name, _level(level)] = level

    def write(self, tree: Any) -> None:
        """Write the numbers into the paragraphs."""
        twice = {  # the paragraphs of the second form, if the same content has two forms
            paragraph
            for second in tree.iter("{*}Fallback")
            if second.getparent().find("{*}Choice") is not None
            for paragraph in second.iter("{*}p")
        }
        goes_on = False
        for paragraph in list(tree.iter("{*}p")):
            properties = paragraph.find("{*}pPr")
            if properties is None or paragraph in twice:
                continue
            is_joined, is_seen = goes_on, not _joins_next(paragraph) or bool(_word(paragraph))
            goes_on = is_seen and _joins_next(paragraph)
            if is_seen and not is_joined and (mark := self._mark(properties)):
                text = paragraph.makeelement(properties.tag.replace("pPr", "t"))
                text.text = mark
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
        at = whole_number(level, 0)
        if (form := self._levels.get((name, at))) is None:
            return ""
        after = "" if _value_of(form, "suff") == "nothing" else " "
        if _value_of(form, "numFmt") == "bullet":
            return "- "
        counts = self._counts.setdefault(self._kinds[name], {})
        counts |= self._starts.pop(name, {})
        counts[at] = counts.get(at, self._start(name, at) - 1) + 1
        for lower in [each for each in counts if each > at and at < self._restart(name, each)]:
            del counts[lower]
        is_legal = _is_on(form.find("{*}isLgl"))
        number = re.sub(
            r"%([1-9])",
            lambda place: self._number(name, int(place[1]) - 1, counts, is_legal=is_legal),
            _value_of(form, "lvlText"),
        )
        return number and number + after

    def _restart(self, name: str, level: int) -> int:
        """Return a level: each item of a lower level than this restarts the numbers of `level`."""
        return (
            whole_number(_value_of(self._levels[name, level], "lvlRestart"), level)
            if (name, level) in self._levels
            else level
        )

    def _start(self, name: str, level: int) -> int:
        return whole_number(_value_of(self._levels[name, level], "start"), 1)

    def _number(self, name: str, level: int, counts: Mapping[int, int], *, is_legal: bool) -> str:
        if (form := self._levels.get((name, level))) is None:
            return ""
        number = counts.get(level, self._start(name, level))
        custom = _CUSTOM.match(_format(form, "AlternateContent/{*}Choice/{*}numFmt"))
        if custom is not None:
            return str(number).zfill(len(custom[0]))
        kind = _value_of(form, "numFmt") or _value_of(form, "AlternateContent/{*}Fallback/{*}numFmt")
        return numeral(number, "decimal" if is_legal and kind != "decimalZero" else kind)


def _format(element: Any, path: str) -> str:
    found = element.find(f"{{*}}{path}")
    return "" if found is None else _attribute(found, "format")


def _first(element: Any, *names: str) -> Any:
    """Try the `names` in order, and return the first child with that name; None if no child has one of them."""
    return next((child for name in names if (child := element.find(f"{{*}}{name}")) is not None), None)


def _is_on(switch: Any) -> bool:
    """Return whether an element that switches a property in Word is on. An element without a value is on."""
    return switch is not None and _attribute(switch, "val") not in {"0", "false", "off"}


def _level(element: Any) -> int:
    return whole_number(_attribute(element, "ilvl"), 0)


def _value_of(element: Any, path: str) -> str:
    found = element.find(f"{{*}}{path}")
    return "" if found is None else _attribute(found, "val")


def _attribute(element: Any, name: str) -> str:
    return next((str(value) for key, value in element.attrib.items() if local(key) == name), "")
