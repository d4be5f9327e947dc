"""Word documents and web pages in which each of some words has a known heading and paragraph."""

from __future__ import annotations

import io
import random
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import docx
from docx.enum.style import WD_STYLE_TYPE
from docx.oxml import parse_xml
from docx.oxml.ns import nsdecls, qn

Place: TypeAlias = tuple[str, int]
WORDS = ["amount", "delivery", "office", "parcel", "screws", "party", "agreed", "monthly", "notice", "window"]
_ROOM = 60  # characters of the headings in a place


def _filler(chance: random.Random, count: int) -> str:
    return " ".join(chance.choice(WORDS) for _ in range(count))


class _Known:
    """The places of words, and the headings that are open."""

    def __init__(self) -> None:
        self.places: dict[str, Place] = {}
        self._open: list[tuple[int, str]] = []
        self._under = self._total = 0

    def heading(self, level: int, title: str) -> None:
        """Note a heading; the title of the document has level 0."""
        self._open = [*(one for one in self._open if one[0] < level), (level, title)]
        self._under, self._total = 0, self._total + 1

    def count(self, paragraphs: int) -> None:
        """Note paragraphs without a word to be found."""
        self._under, self._total = self._under + paragraphs, self._total + paragraphs

    def paragraph(self, word: str) -> None:
        """Note a paragraph with a word to be found."""
        self.count(1)
        titles = [title for level, title in self._open if level] or [title for _, title in self._open[-1:]]
        paths = [" > ".join(titles[at:]) for at in range(len(titles))]
        heading = next((path for path in paths if len(path) <= _ROOM), "")
        self.places[word] = heading, self._under if self._open else self._total


def word_document(seed: int) -> tuple[bytes, Mapping[str, Place]]:
    """Return a Word document and the places of its words."""
    chance, known, document = random.Random(seed), _Known(), docx.Document()
    is_german = chance.random() < 0.5
    name = "berschrift" if is_german else "Heading"
    for level in (1, 2, 3):
        document.styles[f"Heading {level}"].element.set(qn("w:styleId"), f"{name}{level}")
    own: Any = document.styles.add_style("Clause", WD_STYLE_TYPE.PARAGRAPH)
    own.element.append(parse_xml(f"<w:basedOn {nsdecls('w')} w:val='{name}2'/>"))
    if chance.random() < 0.5:
        document.sections[0].header.paragraphs[0].text = "of the page"
        known.count(1)
    for number in range(chance.randint(8, 25)):
        word = f"key{number}x"
        match chance.choice(["heading"] * 4 + ["plain"] * 4 + ["lines", "item", "table", "blank", "page", "changed"]):
            case "heading":
                _add_heading(document, chance, known, name)
            case "plain":
                document.add_paragraph(f"{_filler(chance, chance.randint(0, 20))} {word} {chance.choice(WORDS)}")
                known.paragraph(word)
            case "lines":
                document.add_paragraph(f"{_filler(chance, 3)}\n{word}")
                known.paragraph(word)
            case "item":
                document.add_paragraph(word, style="List Number")
                known.paragraph(word)
            case "table":
                table = document.add_table(2, 2)
                table.cell(0, 1).text, table.cell(1, 0).text = "Sum", word
                known.count(1)
                known.paragraph(word)
            case "blank":
                document.add_paragraph("", style=document.styles["Heading 1"])
            case "page":
                document.add_page_break()
            case _:
                changed = "<w:del><w:r><w:delText>gone</w:delText></w:r></w:del><w:ins><w:r><w:t>{}</w:t></w:r></w:ins>"
                body = parse_xml(f"<w:p {nsdecls('w')}>{changed.format(word)}</w:p>")
                document.element.body.insert_element_before(body, "w:sectPr")
                known.paragraph(word)
    document.save(written := io.BytesIO())
    return written.getvalue(), known.places


def _add_heading(document: Any, chance: random.Random, known: _Known, name: str) -> None:
    level, first, rest = chance.choice([0, 1, 1, 2, 2, 3]), str(chance.randint(1, 99)), _filler(chance, 3)
    paragraph = document.add_paragraph()
    if level == 2 and chance.random() < 0.5:
        paragraph.style = document.styles["Clause"]
    elif level and chance.random() < 0.3:
        paragraph._p.get_or_add_pPr().append(parse_xml(f"<w:outlineLvl {nsdecls('w')} w:val='{level - 1}'/>"))
    else:
        style = f"<w:pStyle {nsdecls('w')} w:val='{f'{name}{level}' if level else 'Title'}'/>"
        paragraph._p.get_or_add_pPr().insert(0, parse_xml(style))
    paragraph.add_run(first + chance.choice([" ", "\t", "\n"])).bold = True
    paragraph.add_run(rest)
    known.heading(level, f"{first} {rest}")


def web_page(seed: int) -> tuple[bytes, Mapping[str, Place]]:
    """Return a web page and the places of its words."""
    chance, known = random.Random(seed), _Known()
    is_table = chance.random() < 0.3
    parts = ["<!doctype html><html>", "<table><tr><td>" * is_table]
    if chance.random() < 0.5:
        parts.insert(1, "<title>The page</title>")
        known.heading(0, "The page")
    for number in range(chance.randint(8, 25)):
        word = f"key{number}x"
        kind = chance.choice(["heading"] * 4 + [*_BLOCKS])
        if kind == "heading":
            level, first, rest = chance.randint(1, 4), chance.choice(WORDS), f"{_filler(chance, 2)} {number}"
            parts.append(chance.choice(_HEADINGS).format(level=level, first=first, rest=rest))
            known.heading(level, f"{first} {rest}")
        else:
            block, before, after = _BLOCKS[kind]
            parts.append(block.format(word=word, text=_filler(chance, chance.randint(1, 20))))
            known.count(before)
            if "{word}" in block:
                known.paragraph(word)
            known.count(after)
    encoding: str = chance.choice(["utf-8", "utf-16", "cp1252"])
    return "\n".join([*parts, "</table>" * is_table]).encode(encoding), known.places


_HEADINGS = (
    "<h{level}>{first} {rest}</h{level}>",
    "<div role=heading aria-level={level}>{first} {rest}</div>",
    "<h{level}><span style='display:none'>hidden</span>{first}<br>{rest}</h{level}>",
    "<H{level} class=x><a href='#'><b>{first}</b> {rest}</a></H{level}>",
    "<h{level}><div>{first} <i>{rest}</i></div></h{level}>",
)
_BLOCKS: Mapping[str, tuple[str, int, int]] = {
    "plain": ("<p>{text} <b>{word}</b>.", 0, 0),
    "lines": ("<p>{text}<br>{word}<br/>{text}</p>", 0, 0),
    "list": ("<ul><li>one<li><p>{word}</ul>", 1, 0),
    "table": ("<table><tr><th>a<br></th><th>b</th></tr><tr><td>{text}</td><td>{word}</td></tr></table>", 1, 0),
    "blocks": ("<div>{text}<div>{word}</div>{text}</div>", 1, 1),
    "unseen": ("<!-- <h2>no</h2> --><script>'<h2>no</h2>'</script><h2 hidden>no</h2><h3></h3>", 0, 0),
    "terms": ("<dl><dt>{text}<dd>{word}</dl>", 1, 0),
}
"""Blocks, with the numbers of paragraphs before and after that with the word."""
MAKERS: Mapping[str, Callable[[int], tuple[bytes, Mapping[str, Place]]]] = {"word": word_document, "page": web_page}
