"""The page of a comparison: its figures in tables, and the answers of each row side by side."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from promptmill.compare import figures, words
from promptmill.compare.figures import CONTRADICTION, Judgement
from promptmill.compare.files import ComparedRows
from promptmill.core.errors import Code, PromptmillError
from promptmill.core.wording import counted, cut
from promptmill.jobs import disk
from promptmill.report import page
from promptmill.report.page import MOST_ROWS, Report, made_by
from promptmill.report.rows import LENGTHS, TEXTS, PageRows, some_parts

_DIFFER, _WRONG = 1, 2
_BETTER = {CONTRADICTION: "Contradicts itself"}
_MOST_VALUES, _LONGEST_VALUE = 12, 24  # of a table


def write(target: Path, found: Mapping[str, Any], rows: ComparedRows, judgement: Judgement | None) -> Report:
    """Write the page of a comparison, whose figures are `found`. Raises `PromptmillError`."""
    total = found["rows"]
    chosen = figures.at_random(range(total))[:MOST_ROWS] if total > MOST_ROWS else range(total)
    shown = _rows(found, figures.side_by_side(rows, judgement, chosen), len(chosen))
    files = found["files"]
    title = ", ".join(file["title"] for file in files)
    page.check(target, title)
    differ = f"{found['differ']:,} {'differ' if len(files) > 1 else 'wrong'}"
    data = {
        "state": "comparison",
        "mood": "blue",
        "summary": f"{counted(total, 'row')}, matched {found['matched']}; {differ}",
        "notes": [],
        "tiles": list(_tiles(found)),
        "answers": "",
        "values": [],
        "fields": [],
        "failures": [],
        "sections": list(_sections(found, shown.labels or ())),
        "thumbnails": {},
        "course": {},
        "spreads": [],
        "run": [(file["name"], f"{file['file']}\n{words.made(file, total)}") for file in files],
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
        label, made = f"{file['name']} {file['title']}", words.made(file, found["rows"])
        if file["name"] in right:
            yield label, words.percent(right[file["name"]]["accuracy"]), f"right; {made}"
        else:
            yield label, f"{file['answered']:,}", made.partition(" ")[2]
    if "judge" in found:
        for pair in found["judge"]["pairs"]:
            wins = "\N{EN DASH}".join(f"{count:,}" for count in pair["wins"])
            yield f"Judged, {' and '.join(pair['of'])}", wins, f"better answers; {pair['ties']:,} ties"


def _sections(found: Mapping[str, Any], labels: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Yield the figures: lines of text and tables."""
    for pair in found["pairs"]:
        tables = [_crossed(pair, labels)] if pair.get("changes") else []
        title = f"Agreement of {' and '.join(pair['of'])}"
        yield {"title": title, "lines": list(words.agreed(pair, found["rows"])), "tables": tables}
    if gold := found.get("gold"):
        lines = [*words.spelled(gold), *(f"{file['name']}  {words.right_of(file)}" for file in gold["files"])]
        for difference in gold["differences"]:
            lines += words.differs(difference)
        title = f"Right, by {gold['column']} ({counted(gold['rows'], 'row')})"
        yield {"title": title, "lines": lines, "tables": list(_classes(gold["files"]))}
    if judge := found.get("judge"):
        lines = [judge["criterion"]]
        for pair in judge["pairs"]:
            lines += words.judged(pair)
        yield {"title": f"Judged by {judge['model']}", "lines": [*lines, words.price(judge)], "tables": []}


def _crossed(pair: Mapping[str, Any], labels: Sequence[str]) -> dict[str, Any]:
    """Return the cross-tabulation of two files; the other answers have the value None."""
    (one, other), every = pair["of"], figures.commonest(pair["changes"])
    kept = every[:_MOST_VALUES]
    cells = figures.tabulated(pair["changes"], kept)
    values = [*kept, *([""] if len(kept) < len(every) else [])]
    names = [" ".join(cut(value, _LONGEST_VALUE).split()) or "others" for value in values]
    return {
        "head": [f"{one} ↓ {other} →", *names],
        "rows": [
            [name, *(f"{cells[value, to]:,}" if cells[value, to] else "·" for to in values)]
            for name, value in zip(names, values, strict=True)
        ],
        "answers": {"values": [value or None for value in values], "places": [labels.index(one), labels.index(other)]},
    }


def _classes(files: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield the table of the classes, if there is one."""
    if "classes" not in files[0]:
        return
    rows = []
    for same in zip(*(file["classes"] for file in files), strict=True):
        for file, one in zip(files, same, strict=True):
            figures = (f"{one[name]:.2f}" for name in ("precision", "recall", "f1"))
            rows.append([cut(one["class"], _LONGEST_VALUE), f"{one['rows']:,}", file["name"], *figures])
    yield {"head": ["class", "rows", "", "precision", "recall", "F1"], "rows": rows, "answers": None}


def _rows(found: Mapping[str, Any], rows: Iterator[Mapping[str, Any]], count: int) -> PageRows:
    """Return the rows of a comparison: the answers, the right one and the verdict side by side."""
    letters = [file["name"] for file in found["files"]]
    wrong = {letter: 4 << at for at, letter in enumerate(letters)} if "gold" in found else {}
    kinds = [*letters, CONTRADICTION] if "judge" in found else []
    bits = {kind: 4 << len(letters) + at for at, kind in enumerate(kinds)}
    most = max(LENGTHS[-1], min(LENGTHS[0], TEXTS // max(1, (1 + len(letters)) * count)))
    shown = PageRows()
    for row in rows:
        answers, gold = row["answers"], row.get("gold", "")
        is_wrong = [letter for letter, answer in answers.items() if gold and answer != gold]
        state = _DIFFER * (len(set(answers.values())) > 1) + _WRONG * bool(is_wrong)
        state += sum(wrong[letter] for letter in is_wrong)
        verdicts = set(row.get("verdicts", {}).values())
        texts = [*answers.values(), *([gold] if wrong else []), *([words.said(row)] if bits else [])]
        state += sum(bit for kind, bit in bits.items() if kind in verdicts)
        asked, answers = some_parts(list(row["own"].items()), most), [cut(text, most) for text in texts]
        shown.add(row["row"], state, asked, answers)
    every = 0
    for state in shown.state:
        every |= state
    filters = [("differ", "Differ", _DIFFER), ("wrong", "Wrong", _WRONG)]
    filters += [(f"wrong{letter}", f"{letter} wrong", bit) for letter, bit in wrong.items() if len(letters) > 1]
    filters += [(f"better{kind}", _BETTER.get(kind, f"{kind} is better"), bit) for kind, bit in bits.items()]
    shown.filters = [(key, label, bit, bit) for key, label, bit in filters if every & bit]
    column = found["gold"]["column"] if wrong else ""
    shown.labels = [*letters, *([column] if wrong else []), *(["judge"] if bits else [])]
    shown.wrong = [wrong.get(label, 0) for label in letters] + [0] * (len(shown.labels) - len(letters))
    return shown
