"""The text of a Word document as Word shows it, with its tracked changes, lists, notes, headers and footers."""

from __future__ import annotations

import io
import posixpath
import re
import zipfile
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from promptmill.core.bounds import LARGEST_FILE
from promptmill.core.errors import PromptmillError, input_error
from promptmill.jobs.inputs.web_pages import numeral, raised, whole_number
from promptmill.jobs.inputs.xlsx import local

_MOST_SPANNED = 63  # columns of a table in Word
# deleted text, properties, and instructions of fields
_UNSEEN = frozenset({"del", "moveFrom", "pPr", "rPr", "instrText", "sdtPr", "footnoteRef", "endnoteRef"})
_SIGNS: Mapping[str, str] = MappingProxyType({"tab": "\t", "ptab": "\t", "br": "\n", "cr": "\n", "noBreakHyphen": "-"})
_SYMBOLS: Mapping[str, str] = MappingProxyType(  # of the font Wingdings: a box that is checked or not is a value
    {"F0FE": "☑", "F0FD": "☒", "F0FC": "✓", "F0FB": "✗", "F0A8": "☐", "F06F": "☐"}
)
_SYMBOL_FONT: Mapping[int, str] = MappingProxyType(
    {
        **dict(zip(bytes.fromhex("6162636465666768696a6b6c6d6e6f70"), "αβχδεφγηιϕκλμνοπ", strict=True)),
        **dict(zip(bytes.fromhex("7172737475777879 7a4446474c505357"), "θρστυωξψζΔΦΓΛΠΣΩ", strict=True)),
        **dict(zip(bytes.fromhex("a3a5abacaeb0b1b3 b4b8b9bbd6d7c5ce"), "≤∞↔←→°±≥\xd7÷≠≈√⋅⊕∈", strict=True)),
        **dict(zip(bytes.fromhex("b7bae5f2a2b2d0db de2d"), "•≡∑∫\u2032″∠⇔⇒\u2212", strict=True)),
    }
)
_MATH = "/math}"  # the end of the namespaces of formulas


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
    if _MATH in element.tag and (formula := _formula(name, element)) is not None:
        return formula
    if (sign := _sign(name, element)) is not None:
        return sign
    text = "".join(map(_word, element))
    match name:
        case "r":
            hidden, place = element.find("{*}rPr/{*}vanish"), element.find("{*}rPr/{*}vertAlign")
            if _is_on(hidden):
                return ""
            return raised(text) if place is not None and _attribute(place, "val") == "superscript" else text
        case "p":  # without its mark, it goes on with the next one
            return text if element.find("{*}pPr/{*}rPr/{*}del") is not None else f"{text}\n"
        case "txbxContent":
            return f"\n{text}"
        case "tr":
            before = min(max(0, whole_number(_value_of(element, "trPr/{*}gridBefore"), 0)), _MOST_SPANNED)
            return "" if element.find("{*}trPr/{*}del") is not None else "\t" * before + f"{text[:-1]}\n"
        case "tc":
            span, merged = element.find("{*}tcPr/{*}gridSpan"), element.find("{*}tcPr/{*}vMerge")
            is_below = merged is not None and _attribute(merged, "val") != "restart"
            width = 1 if span is None else min(max(1, whole_number(_attribute(span, "val"), 1)), _MOST_SPANNED)
            return ("" if is_below else text.strip()) + "\t" * width
        case "footnote" | "endnote":
            return "" if _attribute(element, "type") else f"[{name} {_attribute(element, 'id')}] {text.strip()}\n"
    return text


def _sign(name: str, element: Any) -> str | None:
    """Return the text of an element that shows a sign, the state of a form's field, or the mark of a note; else
    None."""
    if name in _SIGNS:
        return _SIGNS[name]
    if name.endswith("noteReference"):
        return f"[{name.removesuffix('Reference')} {_attribute(element, 'id')}]"
    match name:
        case "sym":
            sign, font = _attribute(element, "char").upper(), _attribute(element, "font")
            if re.fullmatch("[0-9A-F]{4}", sign) and not "E000" <= sign <= "F8FF":
                return chr(int(sign, 16))
            if font == "Symbol" and re.fullmatch("F0[0-9A-F]{2}", sign):
                return _SYMBOL_FONT.get(int(sign, 16) & 0xFF, "")
            return _SYMBOLS.get(sign, "")
        case "ruby":  # a word with its phonetic guide
            base, guide = _in(element, "rubyBase"), _in(element, "rt")
            return f"{base}({guide})" if guide else base
        case "AlternateContent":  # the same in two forms
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
        case "f":
            return f"{_grouped(_in(element, 'num'))}/{_grouped(_in(element, 'den'))}"
        case "sSup" | "sSub" | "sSubSup" | "sPre":
            lower, upper = _in(element, "sub"), _in(element, "sup")
            power = raised(upper) if upper and raised(upper) != upper else f"^{_grouped(upper)}" if upper else ""
            return _in(element, "e") + (f"_{_grouped(lower)}" if lower else "") + power
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
            limits = (f"_{_grouped(lower)}" if lower else "") + (f"^{_grouped(upper)}" if upper else "")
            return f"{sign}{limits} {_in(element, 'e')}"
    return None


def _grouped(text: str) -> str:
    return text if text.isalnum() else f"({text})"


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
            starts = ((_level(each), whole_number(_value_of(each, "startOverride"), -1)) for each in changed)
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
        at = whole_number(level, 0)
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
        return whole_number(_value_of(self._levels[name, level], "start"), 1)

    def _number(self, name: str, level: int, counts: Mapping[int, int]) -> str:
        if (name, level) not in self._levels:
            return ""
        number = counts.get(level, self._start(name, level))
        return numeral(number, _value_of(self._levels[name, level], "numFmt"))


def _first(element: Any, *names: str) -> Any:
    """Return the first child that has one of these names, in their order; None if there is none."""
    return next((child for name in names if (child := element.find(f"{{*}}{name}")) is not None), None)


def _is_on(switch: Any) -> bool:
    """Return whether a switch of Word's is on. Without a value, it is."""
    return switch is not None and _attribute(switch, "val") not in {"0", "false", "off"}


def _level(element: Any) -> int:
    return whole_number(_attribute(element, "ilvl"), 0)


def _value_of(element: Any, path: str) -> str:
    found = element.find(f"{{*}}{path}")
    return "" if found is None else _attribute(found, "val")


def _attribute(element: Any, name: str) -> str:
    return next((str(value) for key, value in element.attrib.items() if local(key) == name), "")
