"""The page of a comparison: its figures in tables, and the answers of each row side by side."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from promptmill.core.bounds import LONGEST_SHOWN, MOST_REPORT_ROWS, MOST_SHOWN
from promptmill.core.secret_text import SecretFinder
from promptmill.core.wording import cut
from promptmill.features.compare import figures, words
from promptmill.features.compare.compared_rows import ComparedRows
from promptmill.features.compare.figures import CONTRADICTION, Judgement
from promptmill.pages import page
from promptmill.pages.page import Report
from promptmill.pages.page_rows import OWN, Column, PageRows

_DIFFER, _WRONG = 1, 2
_ANSWER, _GOLD, _JUDGE = "answer.", "right", "judgement"  # keys of columns; an answer's key ends with the file's label
_BETTER = {CONTRADICTION: "Contradicts itself"}
_TABLE_WIDTH = 500  # max characters of a table's width; a wider table scrolls


def write(
    target: Path,
    found: Mapping[str, Any],
    rows: ComparedRows,
    judgement: Judgement | None,
    finder: SecretFinder | None = None,
) -> Report:
    """Write the page of a comparison with the figures `found`. `finder`: see `PageRows`. Raises `PromptmillError`."""
    total = found["rows"]
    chosen = figures.at_random(range(total))[:MOST_REPORT_ROWS] if total > MOST_REPORT_ROWS else range(total)
    shown = _rows(PageRows(finder=finder), found, figures.side_by_side(rows, judgement, chosen))
    files, names = found["files"], {column.key.removeprefix(_ANSWER): column.name for column in shown.columns}
    title = ", ".join(file["title"] for file in files)
    page.check(target, title)
    differ = f"{found['differ']:,} {'differ' if len(files) > 1 else 'wrong'}"
    sections = list(words.sections(found, width=_TABLE_WIDTH, classes=MOST_SHOWN, columns=names))
    data = {
        "state": "comparison",
        "mood": "blue",
        "summary": f"{words.matched(found)}; {differ}",
        "overview": words.overview(found),
        "sections": sections,
        "run": list(_made(found)),
        "footnotes": list(words.methods(found, sections)),
    }
    page.put(target, page.filled(title, data, shown, total))
    return Report(target, len(shown.number), total)


def _made(found: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the location and origin of the answers: the facts that all files share, then the facts of each file."""
    shared = words.shared(found)
    if shared:
        yield "all", _facts(shared)
    for file in found["files"]:
        own = {name: text for name, text in words.facts_of(file).items() if name not in shared}
        if own:
            yield file["name"], _facts(own)


def _facts(facts: Mapping[str, str]) -> str:
    return "\n".join(f"{name}: {cut(text, LONGEST_SHOWN)}" for name, text in facts.items())


def _rows(shown: PageRows, found: Mapping[str, Any], rows: Iterator[Mapping[str, Any]]) -> PageRows:
    letters = [file["name"] for file in found["files"]]
    wrong = {letter: 4 << at for at, letter in enumerate(letters)} if "gold" in found else {}
    kinds = [*letters, CONTRADICTION] if "judge" in found else []
    bits = {kind: 4 << len(letters) + at for at, kind in enumerate(kinds)}
    column = found["gold"]["column"] if wrong else ""
    for at, letter in enumerate(letters):
        shown.add_column(Column(_ANSWER + letter, letter, "answer", wrong.get(letter, 0)), at)
    for key, name in ((_GOLD, column), (_JUDGE, "judge" if bits else "")):
        if name:
            shown.add_column(Column(key, name, "answer"), len(shown.columns))
    for row in rows:
        is_wrong = row["wrong"] if wrong else []
        verdicts = set(row.get("verdicts", {}).values())
        state = _DIFFER * row["differs"] + _WRONG * bool(is_wrong)
        state += sum(wrong[label] for label in is_wrong) + sum(bit for kind, bit in bits.items() if kind in verdicts)
        # the column of the heading comes first, because it must be among the columns that are shown
        own = sorted(row["own"].items(), key=lambda item: " ".join(item[1].split()) != row["heading"])
        values = {OWN + name: text for name, text in own if shown.has_own(name)}
        values |= {_ANSWER + label: words.one_text(answer, row) for label, answer in row["answers"].items()}
        values[_GOLD] = words.one_text(row.get("gold", ""), row)
        values[_JUDGE] = words.said(row) if bits else ""
        shown.add(row["row"], state, values)
    shown.name_columns()
    shown.order_columns()
    every = 0
    for state in shown.state:
        every |= state
    filters = [("differ", "Differ", _DIFFER), ("wrong", "Wrong", _WRONG)]
    filters += [(f"wrong{letter}", f"{letter} wrong", bit) for letter, bit in wrong.items() if len(letters) > 1]
    filters += [(f"better{kind}", _BETTER.get(kind, f"{kind} is better"), bit) for kind, bit in bits.items()]
    shown.filters = [(key, label, bit, bit) for key, label, bit in filters if every & bit]
    return shown
