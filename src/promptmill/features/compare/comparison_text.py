"""A comparison as lines of text for the terminal, notebooks and `str`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from promptmill.core.values import JsonObject
from promptmill.core.wording import counted, cut
from promptmill.features.compare import words
from promptmill.features.compare.answer_values import LABEL
from promptmill.jobs.columns.column_order import by_worth, mean_lengths

_CLASSES = 8
_NAME = 8  # min width of the names of texts, in characters


def overview_lines(found: JsonObject, width: int) -> Iterator[str]:
    """Yield the lines of the overview table, and the facts that all files share."""
    yield from words.overview(found).lines(width)
    yield from ("", f"{words.matched(found)}{words.made_alike(found)}")


def lines(found: JsonObject, width: int) -> Iterator[str]:
    """Yield a comparison's figures and its rows with different answers. Tables, headings and rows are `width` wide."""
    yield from overview_lines(found, width)
    sections = list(words.sections(found, width=width, classes=_CLASSES))
    for section in sections:
        if section.folded:
            continue
        yield from ("", section.title, *section.lines)
        for table in section.tables:
            yield from table.lines(width)
    if folded := [section.title for section in sections if section.folded and (section.lines or section.bars)]:
        yield from ("", *folded)
    if notes := list(words.methods(found, sections)):
        yield ""
        yield from (f"  {note}" for note in notes)
    yield from _rows(found, width)


def _rows(found: JsonObject, width: int) -> Iterator[str]:
    shown = found.get("differing", ())
    if not shown:
        return
    of = f"{len(shown):,} of " if found["differ"] > len(shown) else ""
    which = "with different answers" if len(found["files"]) > 1 else "with a wrong answer"
    yield from ("", f"{of}{counted(found['differ'], 'row')} {which}")
    lengths = mean_lengths([row["own"] for row in shown])
    for row in shown:
        yield cut(f"{row['heading']} (row {row['row']:,})" if row["heading"] else f"row {row['row']:,}", width)
        gold = {"gold": row["gold"]} if "gold" in row else {}
        said = {"judge": words.said(row)} if "verdicts" in row else {}
        own = {name: text for name, text in row["own"].items() if " ".join(text.split()) != row["heading"]}
        answers = {**gold, **row["answers"]}
        size = max(_NAME, min(LABEL, width // 3, max(map(len, [*row["answers"], *own]))))
        texts = {**own, **{name: _in_a_line(answer, row) for name, answer in answers.items()}, **said}
        in_prompts = {name: length for name, length in lengths.items() if name in own}
        for name in by_worth([*texts], {*answers, *said}, in_prompts):
            yield cut(f"{'':9} {cut(name, size):{size}} {' '.join(texts[name].split()) or '(no answer)'}", width)


def _in_a_line(answer: Any, row: JsonObject) -> str:
    text = words.one_text(answer, row)
    return text if isinstance(answer, str) else "; ".join(text.split("\n"))
