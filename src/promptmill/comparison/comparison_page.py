"""The page of a comparison: its figures in tables, and the answers of each row side by side."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from promptmill.comparison import figures, words
from promptmill.comparison.figures import CONTRADICTION, Judgement
from promptmill.comparison.files import ComparedRows
from promptmill.comparison.values import LABEL
from promptmill.core.errors import Code, PromptmillError
from promptmill.core.wording import LONGEST_SHOWN, cut
from promptmill.jobs import disk
from promptmill.report import page
from promptmill.report.page import MOST_ROWS, Report, made_by
from promptmill.report.page_rows import OWN, Column, PageRows

_DIFFER, _WRONG = 1, 2
_ANSWER, _GOLD, _JUDGE = "answer.", "right", "judgement"  # keys of columns; an answer's ends with its label
_BETTER = {CONTRADICTION: "Contradicts itself"}
_SHOWN_VALUES = 12  # of a table


def write(target: Path, found: Mapping[str, Any], rows: ComparedRows, judgement: Judgement | None) -> Report:
    """Write the page of a comparison, whose figures are `found`. Raises `PromptmillError`."""
    total = found["rows"]
    chosen = figures.at_random(range(total))[:MOST_ROWS] if total > MOST_ROWS else range(total)
    shown = _rows(found, figures.side_by_side(rows, judgement, chosen))
    files = found["files"]
    title = ", ".join(file["title"] for file in files)
    page.check(target, title)
    differ = f"{found['differ']:,} {'differ' if len(files) > 1 else 'wrong'}"
    data = {
        "state": "comparison",
        "mood": "blue",
        "summary": f"{words.matched(found)}; {differ}",
        "notes": [],
        "tiles": list(_tiles(found)),
        "answers": "",
        "counts": [],
        "failures": [],
        "sections": list(_sections(found, {column.key: column.name for column in shown.columns})),
        "thumbnails": {},
        "course": {},
        "spreads": [],
        "run": [(file["name"], _made(file, total)) for file in files],
        "footnotes": list(words.methods(found)),
        "made": made_by(),
    }
    try:
        page.put(target, page.filled(title, data, shown, total))
    except OSError as error:
        raise PromptmillError(Code.STORAGE, f"The report {target} cannot be written: {disk.why(error)}.", "") from None
    return Report(target, len(shown.number), total)


def _tiles(found: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Yield the main figure of each file."""
    right = {file["name"]: file for file in found.get("gold", {}).get("files", ())}
    for file in found["files"]:
        label = file["title"] if file["name"] == file["title"] else f"{file['name']} {file['title']}"
        made = words.made(file, found["rows"])
        if file["name"] in right:
            yield label, words.percent(right[file["name"]]["accuracy"]), f"right; {made}"
        else:
            yield label, f"{file['answered']:,}", made.partition(" ")[2]
    if "judge" in found:
        for pair in found["judge"]["pairs"]:
            wins = "\N{EN DASH}".join(f"{count:,}" for count in pair["wins"])
            yield f"Judged, {' and '.join(pair['of'])}", wins, f"better answers; {pair['ties']:,} ties"


def _sections(found: Mapping[str, Any], names: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    """Yield the figures: bars with their intervals, lines of text, and tables; footnotes name the methods."""
    for pair in found["pairs"]:
        bars = [(field["field"], *_span(field, "agreement")) for field in pair.get("fields", [])]
        bars += [("all fields" if bars else "agree", *_span(pair, "agreement"))] if "interval" in pair else []
        tables = [_crossed(pair, names)] if pair.get("changes") else []
        title = f"Agreement of {' and '.join(pair['of'])}"
        yield _section(title, list(words.agreed(pair, found)), bars, tables)
    if gold := found.get("gold"):
        bars = [
            (f"{field['field']}, {file['name']}", *_span(file, "accuracy"))
            for field in gold.get("fields", [])
            for file in field["files"]
        ]
        every = "all fields, " if bars else ""
        bars += [(f"{every}{file['name']}", *_span(file, "accuracy")) for file in gold["files"]]
        lines = [words.have_right(gold), *words.spelled(gold), *words.right_lines(gold), *words.differs_by_field(gold)]
        for difference in gold["differences"]:
            lines += words.differs(difference)
        yield _section(f"Right, by {gold['column']}", lines, bars, list(_classes(gold["files"])))
    if judge := found.get("judge"):
        lines = [judge["criterion"]]
        for pair in judge["pairs"]:
            lines += words.judged(pair)
        yield _section(f"Judged by {judge['model']}", [*lines, words.price(judge)])


def _section(
    title: str,
    lines: Sequence[str],
    bars: Sequence[tuple[str, float, float, float]] = (),
    tables: Sequence[dict[str, Any]] = (),
) -> dict[str, Any]:
    return {"title": title, "lines": lines, "bars": bars, "tables": tables}


def _span(figure: Mapping[str, Any], name: str) -> tuple[float, float, float]:
    """Return a share with the ends of its interval."""
    low, high = figure["interval"]
    return figure[name], low, high


def _made(file: Mapping[str, Any], total: int) -> str:
    """Return where the answers of a file are, and how they were made: its command, model, prompt and sampling."""
    facts = [f"{name}: {cut(text, LONGEST_SHOWN)}" for name, text in file.get("made", {}).items()]
    return "\n".join([file["file"], words.made(file, total), *facts])


def _crossed(pair: Mapping[str, Any], columns: Mapping[str, str]) -> dict[str, Any]:
    """Return the cross-tabulation of two files; the other answers have the value None."""
    (one, other), every = pair["of"], figures.commonest(pair["changes"])
    kept = every[:_SHOWN_VALUES]
    cells = figures.tabulated(pair["changes"], kept)
    values = [*kept, *([""] if len(kept) < len(every) else [])]
    names = [" ".join(cut(value, LABEL).split()) or "others" for value in values]
    shown_in = [columns[_ANSWER + label] for label in (one, other)]
    return {
        "head": [f"{one} ↓ {other} →", *names],
        "rows": [
            [name, *(f"{cells[value, to]:,}" if cells[value, to] else "·" for to in values)]
            for name, value in zip(names, values, strict=True)
        ],
        "answers": {"values": [value or None for value in values], "columns": shown_in},
    }


def _classes(files: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield the table of the classes, if there is one."""
    if "classes" not in files[0]:
        return
    rows = []
    for same in zip(*(file["classes"] for file in files), strict=True):
        for file, one in zip(files, same, strict=True):
            figures = (f"{one[name]:.2f}" for name in ("precision", "recall", "f1"))
            rows.append([cut(one["class"], LABEL), f"{one['rows']:,}", file["name"], *figures])
    yield {"head": ["class", "rows", "", "precision", "recall", "F1"], "rows": rows, "answers": None}


def _rows(found: Mapping[str, Any], rows: Iterator[Mapping[str, Any]]) -> PageRows:
    """Return the rows of a comparison: the answers, the right one and the verdict side by side."""
    letters = [file["name"] for file in found["files"]]
    wrong = {letter: 4 << at for at, letter in enumerate(letters)} if "gold" in found else {}
    kinds = [*letters, CONTRADICTION] if "judge" in found else []
    bits = {kind: 4 << len(letters) + at for at, kind in enumerate(kinds)}
    column = found["gold"]["column"] if wrong else ""
    shown = PageRows()
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
        # the heading first: it names the row
        own = sorted(row["own"].items(), key=lambda item: " ".join(item[1].split()) != row["heading"])
        values = {OWN + name: text for name, text in own if shown.has_own(name)}
        values |= {_ANSWER + label: words.one_text(answer, row) for label, answer in row["answers"].items()}
        values[_GOLD] = words.one_text(row.get("gold", ""), row)
        values[_JUDGE] = words.said(row) if bits else ""
        shown.add(row["row"], state, values)
    shown.name_columns()
    every = 0
    for state in shown.state:
        every |= state
    filters = [("differ", "Differ", _DIFFER), ("wrong", "Wrong", _WRONG)]
    filters += [(f"wrong{letter}", f"{letter} wrong", bit) for letter, bit in wrong.items() if len(letters) > 1]
    filters += [(f"better{kind}", _BETTER.get(kind, f"{kind} is better"), bit) for kind, bit in bits.items()]
    shown.filters = [(key, label, bit, bit) for key, label, bit in filters if every & bit]
    return shown
