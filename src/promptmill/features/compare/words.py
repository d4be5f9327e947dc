"""The figures of a comparison as text, for the terminal and the page."""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from promptmill.core.money import dollars
from promptmill.core.values import JsonObject
from promptmill.core.wording import counted, cut, in_percent, list_in_words
from promptmill.features.compare.answer_values import LABEL, SIMILARITY
from promptmill.features.compare.figures import CONTRADICTION, HALF, SHOWN_VALUES, TIE, commonest, tabulated
from promptmill.features.compare.paired_proportions import INTERVAL, SHARE_INTERVAL, TEST
from promptmill.jobs.store import status_words
from promptmill.jobs.store.status_record import LabelShare, RunStatus

DIFFERS = "\N{NOT EQUAL TO} "
"""The mark before a field in which the answers differ."""
BEST, NOT_WORSE = "best", "may be as good"
BEYOND_CHANCE, LABEL_MEAN = "agreement beyond chance", "mean F1"


@dataclass(frozen=True, slots=True)
class Table:
    """A table of figures. Its first column names the rows."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    answers: Mapping[str, object] | None = None
    """For a cross-tabulation: `values` has each line's answer (None for all others), `columns` the page's columns."""

    @property
    def widths(self) -> list[int]:
        """The width of each column in characters."""
        return [max(map(len, cells)) for cells in zip(self.head, *self.rows, strict=True)]

    def lines(self, width: int) -> Iterator[str]:
        """Yield the lines of the table as text.

        If the table is wider than `width`, a cross-tabulation shortens its widest cells; any other table prints each
        row as text: `positive: rows 155, A, precision 0.91, …`.
        """
        widths = self.widths
        if self.answers is None and sum(widths) + 2 * len(widths) - 2 > width:
            yield from self._texts(width)
            return
        while sum(widths) + 2 * len(widths) - 2 > max(width, 4 * len(widths)):
            widths[widths.index(max(widths))] -= 1
        for row in (self.head, *self.rows):
            first, *others = (cut(cell, size) for cell, size in zip(row, widths, strict=True))
            cells = (cell.rjust(size) for cell, size in zip(others, widths[1:], strict=True))
            yield "  ".join([first.ljust(widths[0]), *cells]).rstrip()

    def _texts(self, width: int) -> Iterator[str]:
        for first, *others in self.rows:
            figures = ", ".join(
                f"{head} {cell}".strip() for head, cell in zip(self.head[1:], others, strict=True) if cell
            )
            text = ": ".join(filter(None, (first, figures)))
            yield from textwrap.wrap(text, width, initial_indent="" if first else "  ", subsequent_indent="  ")


@dataclass(frozen=True, slots=True)
class Section:
    """A group of figures: lines of text, shares with their intervals, and tables."""

    title: str
    lines: Sequence[str] = ()
    bars: Sequence[tuple[str, float, float, float]] = ()
    tables: Sequence[Table] = ()
    folded: bool = False
    """Whether the page shows the section only after a click. The text then shows only the title, if there are lines."""


def sections(
    found: JsonObject, *, width: int, classes: int, columns: Mapping[str, str] | None = None
) -> Iterator[Section]:
    """Yield the sections of a comparison, for its text and its page.

    `width`: the most characters in a line of a cross-tabulation. `classes`: the most classes to show. `columns`: the
    name of the page's column with a file's answers, by the file's label.
    """
    gold, judge, several = found.get("gold"), found.get("judge"), len(found["files"]) > 2
    if gold:
        yield from _right(gold, classes, several=several)
        if tables := list(_differences(gold)):
            yield Section("differences", tables=tables)
    if judge:
        lines = [line for pair in judge["pairs"] for line in judged(pair)]
        if tagged := judge.get("tagged"):
            pairs = counted(tagged, "pair")
            lines.append(f"{pairs} not judged: an answer contains the tag that ends the answers for the judge")
        title = f"judged by {judge['model']}: {' '.join(judge['criterion'].split())}"
        yield Section(title, [*lines, price(judge)])
    for pair in found["pairs"]:
        title, *lines = agreed(pair, found)
        bars = [(field["field"], *_span(field, "agreement")) for field in pair.get("fields", ())]
        bars += [("all fields" if bars else "agree", *_span(pair, "agreement"))] if "interval" in pair else []
        has_table = bool(pair.get("changes")) and pair["agree"] < pair["rows"]
        tables = [_crossed(pair, width, columns or {})] if has_table else []
        yield Section(title, lines, bars, tables, folded=several or bool(gold or judge))


def _right(gold: JsonObject, most: int, *, several: bool) -> Iterator[Section]:
    fields, files = gold.get("fields", ()), gold["files"]
    bars = [
        (f"{field['field']}, {file['name']}", *_span(file, "accuracy")) for field in fields for file in field["files"]
    ]
    bars += [(cut(group["name"], LABEL), *_span(group, "accuracy")) for group in gold.get("groups", ())]
    bars += [(f"{'all fields, ' if fields else ''}{file['name']}", *_span(file, "accuracy")) for file in files]
    lines, tables = [have_right(gold), *spelled(gold)], list(_right_tables(gold))
    by_label = "classes" in files[0]
    yield Section(f"right, by {gold['column']}{'' if by_label or fields else ', word for word'}", lines, bars, tables)
    yield from _shares_of_labels(gold, most)
    if not by_label:
        return
    rows = []
    for same in zip(*(file["classes"][:most] for file in files), strict=True):
        for file, one in zip(files, same, strict=True):
            name = [cut(one["class"], LABEL), f"{one['rows']:,}"] if file is files[0] else ["", ""]
            rows.append([*name, file["name"], *(f"{one[figure]:.2f}" for figure in ("precision", "recall", "f1"))])
    if (more := len(files[0]["classes"]) - most) > 0:
        rows.append([f"… {more:,} more", *[""] * 5])
    table = Table(["class", "rows", "", "precision", "recall", "F1"], rows)
    labels = counted(len(files[0]["classes"]), "label")
    yield Section(f"precision, recall and F1 of {labels}", tables=[table], folded=several)


def _span(figure: JsonObject, name: str) -> tuple[float, float, float]:
    low, high = figure["interval"]
    return figure[name], low, high


def _crossed(pair: JsonObject, width: int, columns: Mapping[str, str]) -> Table:
    """Return a cross-tabulation of the most frequent answers, as many as fit into `width`."""
    (one, other), every = pair["of"], commonest(pair["changes"])
    for most in range(min(SHOWN_VALUES, len(every)), 0, -1):
        kept = every[:most]
        cells = tabulated(pair["changes"], kept)
        values = [*kept, *([""] if any("" in answers for answers in cells) else [])]
        names = [" ".join(cut(value, LABEL).split()) or "others" for value in values]
        rows = [
            [name, *(f"{cells[value, to]:,}" if cells[value, to] else "·" for to in values)]
            for name, value in zip(names, values, strict=True)
        ]
        answers = {
            "values": [value or None for value in values],
            "columns": [columns.get(file, file) for file in pair["of"]],
        }
        table = Table([f"{one} ↓ {other} →", *names], rows, answers)
        if sum(table.widths) + 2 * most <= width:
            break
    return table


def overview(found: JsonObject) -> Table:
    """Return the first table of a comparison: a line for each file, with a mark at the best files."""
    files, gold, judge = found["files"], found.get("gold", {}), found.get("judge", {})
    right = {file["name"]: file for file in gold.get("files", ())}
    wins = {pair["of"][1]: pair["wins"] for pair in judge.get("pairs", ())}
    best = max((file["accuracy"] for file in right.values()), default=0)
    all_answered = all(file["answered"] == found["rows"] for file in files)
    same = shared(found)
    own_name, own_model = "variant" if "file" in same else "file", "" if "model" in same else "model"
    rows = []
    for file in files:
        share, won = right.get(file["name"]), wins.get(file["name"])
        rows.append(
            {
                own_name: named(file),  # the key figure is next: a phone shows it without scrolling
                "right in all fields" if "fields" in gold else "right": ""
                if share is None
                else _with_interval(share["accuracy"], share["interval"]),
                " ": _standing(share, best) if share else "",
                LABEL_MEAN: _figure(share, "macro_f1", ".2f"),
                "similarity": _figure(share, "similarity", ".2f"),
                "mean difference": _figure(share, "mean_difference", ".3g"),
                own_model: file.get("model", ""),
                "answered": "" if right and all_answered else f"{file['answered']:,}",
                f"better than {files[0]['name']}": f"{won[1]:,} to {won[0]:,}" if won else "",
                "cost": "" if file.get("cost") is None else dollars(file["cost"]),
                "time": status_words.took(file["seconds"]) if "seconds" in file else "",
            }
        )
    head = [name for name in rows[0] if name and any(row[name] for row in rows)]
    return Table([name.strip() for name in head], [[row[name] for name in head] for row in rows])


def _figure(share: JsonObject | None, name: str, form: str) -> str:
    return format(share[name], form) if share is not None and name in share else ""


def named(file: JsonObject) -> str:
    """Return a file's letter, with the file's title: `A labels-a.csv`."""
    title = "" if file["name"] == file["title"] else f" {file['title']}"
    return cut(f"{file['name']}{title}", LABEL)


def facts_of(file: JsonObject) -> dict[str, str]:
    """Return the location of a file, and the command, model, prompt and sampling that made it."""
    return {"file": file["file"], **file.get("made", {})}


def shared(found: JsonObject) -> dict[str, str]:
    """Return the facts that are the same for all compared files, such as the input file, command, model and prompt."""
    facts = [facts_of(file) for file in found["files"]]
    models = {file["model"] for file in found["files"] if file.get("model")}
    same = {name: text for name, text in facts[0].items() if all(one.get(name) == text for one in facts)}
    one_model = {"model": models.pop()} if len(models) == 1 and "model" not in facts[0] else {}
    return same | one_model if len(facts) > 1 else {}


def made_alike(found: JsonObject) -> str:
    """Return the file and the model if all files share them: `; all in labels.csv, by good-1`."""
    facts = shared(found)
    file = f"in {Path(facts['file']).name}" if "file" in facts else ""
    made = ", ".join(filter(None, (file, f"by {facts['model']}" if "model" in facts else "")))
    return f"; all {made}" if made else ""


def _with_interval(share: float, interval: tuple[float, float]) -> str:
    low, high = (in_percent(end, 1) for end in interval)
    return f"{percent(share)} ({low}\N{EN DASH}{high})"


def _standing(share: JsonObject, best: float) -> str:
    if not share.get("among_best"):
        return ""
    return BEST if share["accuracy"] == best else NOT_WORSE


def matched(found: JsonObject) -> str:
    """Return the number of compared rows and, for several files, how they were matched: `300 rows, matched by id`."""
    rows, files = found["rows"], found["files"]
    if len(files) == 1:
        return counted(rows, "row")
    said = f"{counted(rows, 'row')}, matched {found['matched']}"
    if all(file["rows"] == rows for file in files):
        return said
    sizes = ", ".join(f"{file['name']} has {file['rows']:,}" for file in files)
    return f"{said}: those that are in {'both files' if len(files) == 2 else 'all files'}; {sizes}"


def agreed(pair: JsonObject, found: JsonObject) -> Iterator[str]:
    """Yield the agreement of two files as text."""
    one, other = pair["of"]
    rows: int = found["rows"]
    if not pair["rows"]:
        yield f"{one} and {other} have answered no row in common"
        return
    both = f" that both answered (of {rows:,})" if pair["rows"] < rows else ""
    if "fields" in pair:
        share = percent(pair["agreement"])
        yield f"{one} and {other} agree in all fields in {share} of {counted(pair['rows'], 'row')}{both}"
        yield by_field((field["field"], field["agreement"], field) for field in pair["fields"])
        return
    if "similarity" in pair and not _is_label_like(pair):
        differ = f"{pair['rows'] - pair['agree']:,} of {pair['rows']:,} differ{both}"
        yield f"{one} and {other}: {differ}; similarity {pair['similarity']:.2f}"
        for file in found["files"]:
            if file["name"] in pair["of"]:
                low, middle, high = file["characters"]
                yield f"{file['name']}  median length {middle:,} characters ({low:,} to {high:,})"
        return
    beyond = f"; {BEYOND_CHANCE} {pair['kappa']:.2f} of 1" if pair.get("kappa") is not None else ""
    yield f"{one} and {other} agree in {percent(pair['agreement'])} of {counted(pair['rows'], 'row')}{both}{beyond}"
    if "mean_difference" in pair:
        yield f"mean difference {pair['mean_difference']:.3g}"


def is_free_text(found: JsonObject) -> bool:
    """Return whether at least half of the texts of two files differ. A judge is then more useful than counts."""
    return any("similarity" in pair and not _is_label_like(pair) for pair in found["pairs"])


def _is_label_like(pair: JsonObject) -> bool:
    """Return whether more than half of the answers are the same, so that their share is informative."""
    return bool(2 * pair["agree"] > pair["rows"])


def by_field(shares: Iterable[tuple[str, float, JsonObject]]) -> str:
    """Return shares by field, with the similarity of texts: `customer 83.0 % (similarity 0.91) · amount 91.0 %`."""
    return " · ".join(f"{cut(name, 24)} {_near(share, figures)}" for name, share, figures in shares)


def have_right(gold: JsonObject) -> str:
    """Return the number of rows with a right answer, and the key that matched a file of right answers."""
    rows = (
        f"{gold['rows']:,} of {gold['of']:,} rows have"
        if gold["rows"] < gold["of"]
        else (f"all {gold['of']:,} rows have" if gold["of"] > 1 else "the row has")
    )
    return f"{rows} a right answer{', matched ' + gold['matched'] if 'matched' in gold else ''}"


def spelled(gold: JsonObject) -> Iterator[str]:
    """Yield notes on right answers that differ from the files' answers only in case, or in their kind."""
    if capitals := gold.get("capitals"):
        (one, its), *_ = capitals.items()
        more = f", and {len(capitals) - 1:,} more" if len(capitals) > 1 else ""
        yield f"capitals do not count: {cut(one, 20)} is {cut(its, 20)}{more}"
    for column in (gold, *gold.get("fields", ())):
        if other := column.get("other_kind"):
            where = f" in {cut(column['field'], LABEL)}" if "field" in column else ""
            first = cut(other["first"], 20)
            more = f", and {other['values'] - 1:,} more" if other["values"] > 1 else ""
            yield f"right answers{where} that are not {column['kind']}s equal no answer: {first}{more}"


def _right_tables(gold: JsonObject) -> Iterator[Table]:
    """Yield a table of the shares of right answers by field, and one of the shares by group of rows."""
    names = [file["name"] for file in gold["files"]]
    if fields := gold.get("fields"):
        rows = [
            [cut(field["field"], 24), *(_near(file["accuracy"], file) for file in field["files"])] for field in fields
        ]
        yield Table(["field", *names], rows)
    if groups := gold.get("groups"):
        rows = [
            [
                cut(group["name"], LABEL) or "(empty)",
                _with_interval(group["accuracy"], group["interval"]),
                f"{group['right']:,}",
                f"{group['rows']:,}",
            ]
            for group in groups
        ]
        yield Table(["group", "right", "right rows", "rows"], rows)


def _near(share: float, figures: JsonObject) -> str:
    near = f" (similarity {figures['similarity']:.2f})" if "similarity" in figures and share < 1 else ""
    return f"{percent(share)}{near}"


def _shares_of_labels(gold: JsonObject, most: int) -> Iterator[Section]:
    """Yield the shares of labels among all rows, corrected for the errors that the right answers reveal.

    `most`: the most labels to show for a field.
    """
    names, rows = [file["name"] for file in gold["files"]], list[list[str]]()
    for part in gold.get("fields") or [{**gold, "field": ""}]:
        every = [file.get("shares", {}) for file in part["files"]]
        labels = sorted(
            {*itertools.chain(*every)}, key=lambda label: (-max(_share_of(one, label) for one in every), label)
        )
        for label in labels[:most]:
            name = cut(" ".join(label.split()), LABEL)
            cells = [_with_interval(one[label]["share"], _ends(one[label])) if label in one else "" for one in every]
            rows.append([f"{cut(part['field'], 24)}: {name}" if part["field"] else name, *cells])
        if (more := len(labels) - most) > 0:
            rows.append([f"… {more:,} more", *[""] * len(names)])
    if rows:
        title = f"shares of all {gold['of']:,} rows, if those with a right answer were drawn at random"
        yield Section(title, tables=[Table(["label", *names], rows)])


def _share_of(shares: Mapping[str, LabelShare], label: str) -> float:
    return shares[label]["share"] if label in shares else 0.0


def _ends(share: LabelShare) -> tuple[float, float]:
    return share["low"], share["high"]


def _differences(gold: JsonObject) -> Iterator[Table]:
    """Yield the differences between files: in right answers (in all fields, and in each field), cost and time."""
    every = [("", each) for each in gold["differences"]]
    every += [
        (f"{cut(field['field'], 24)}: ", each) for field in gold.get("fields", ()) for each in field["differences"]
    ]
    right, paid = list[dict[str, str]](), list[dict[str, str]]()
    for field, each in every:
        (one, other), (low, high) = each["of"], each["interval"]
        only_one, only_other = each.get("only_right", (None, None))
        name = {"": f"{field}{other} minus {one}"}
        right.append(
            name
            | {
                "points": points(each["difference"]),
                "95 % interval": f"{points(low)} to {points(high)}",
                "p": _p(each),
                " ": "" if low > 0 or high < 0 else "may be chance",
                "only right": "" if only_one is None else f"{one} {only_one:,}, {other} {only_other:,}",
            }
        )
        gained = each.get("cost_per_point")
        costs = {
            "cost": _signed(dollars, each["cost"]) if "cost" in each else "",
            "for each point": "" if gained is None else dollars(gained),
            "time": _signed(status_words.took, each["seconds"]) if "seconds" in each else "",
        }
        if any(costs.values()):
            paid.append(name | costs)
    for rows in filter(None, (right, paid)):
        head = [name for name in rows[0] if any(row[name] for row in rows)]
        yield Table([name.strip() for name in head], [[row[name] for name in head] for row in rows])


def _signed(text: Callable[[float], str], difference: float) -> str:
    sign = "\N{MINUS SIGN}" if difference < 0 else "+"
    return f"{sign}{text(abs(difference))}" if difference else "the same"


def judged(pair: JsonObject) -> Iterator[str]:
    """Yield the verdicts on two files as text."""
    (one, other), rows = pair["of"], pair["judged"]
    of = f" of {pair['differ']:,}" if pair["judged"] < pair["differ"] else ""
    yield f"{one} and {other}: {rows:,}{of} rows with different answers judged, in both orders"
    if not rows:
        return
    wins, others = [_share(count, rows) for count in pair["wins"]], _share(pair["ties"], rows)
    yield f"{one} wins {wins[0]}, {other} wins {wins[1]}, ties {others}"
    yield f"{_share(pair['contradictions'], rows)} contradict: the other answer when the order is swapped"
    if pair["contradictions"]:
        first, second = pair["always"]
        yield f"  always the first answer: {first:,}, always the second: {second:,}; counted as ties"
    if pair["half"]:
        yield f"{_share(pair['half'], rows)} have a winner in only one order; counted as ties"
    yield _less(pair, "points of wins")
    yield _probability(pair)


def one_text(answer: Any, row: JsonObject) -> str:
    """Return an answer as text. A mark shows the fields in which the answers to the row differ."""
    if isinstance(answer, str):
        return answer
    differing = row["differing_fields"]
    values = {name: list_in_words(value) for name, value in answer.items() if value}
    return "\n".join(f"{DIFFERS * (name in differing)}{name}: {value}" for name, value in values.items())


def price(judge: JsonObject) -> str:
    """Return the number of requests, the time and the cost of a judgement, as text."""
    requests = counted(judge.get("requests", 0), "request")
    took, paid = status_words.took(judge.get("seconds", 0)), status_words.paid(cast("RunStatus", judge))
    return f"the judge: {requests} in {took}{paid}"


def said(row: JsonObject) -> str:
    """Return the verdicts on a row as text."""
    verdicts = row["verdicts"].items()
    return "; ".join(_verdict(its) if len(verdicts) == 1 else f"{other}: {_verdict(its)}" for other, its in verdicts)


def _verdict(said: str) -> str:
    words = {TIE: "a tie", CONTRADICTION: "contradicts itself", HALF: "a winner in only one order", "": "not judged"}
    return words.get(said, f"{said} is better")


def _less(found: JsonObject, unit: str) -> str:
    (one, other), (low, high) = found["of"], map(points, found["interval"])
    return f"{other} minus {one}: {points(found['difference'])} {unit}, 95 % interval {low} to {high}"


def _probability(found: JsonObject) -> str:
    low, high = found["interval"]
    p = _p(found)
    return f"p {p if p[0] == '<' else f'= {p}'}{'' if low > 0 or high < 0 else '; no difference is shown'}"


def _p(found: JsonObject) -> str:
    return f"{found['p']:.2g}" if found["p"] >= 0.0001 else "< 0.0001"


def methods(found: JsonObject, shown: Iterable[Section]) -> Iterator[str]:
    """Yield the names of the statistical methods behind the figures, as footnotes. `shown`: the displayed sections."""
    gold, judge = found.get("gold", {}), found.get("judge", {})
    if gold.get("differences") or any("difference" in pair for pair in judge.get("pairs", ())):
        yield f"interval: {INTERVAL}"
        yield f"p: {TEST}"
    if gold:
        yield f"interval of a share: 95 %, {SHARE_INTERVAL}"
    if any(NOT_WORSE in row for row in overview(found).rows):
        yield f"{NOT_WORSE}: the interval of its difference from the best one holds 0"
    if any("macro_f1" in file for part in (gold, *gold.get("fields", ())) for file in part.get("files", ())):
        of_label = "F1 is 1 if a label is never missed or given wrongly"
        yield f"{LABEL_MEAN}: mean over the labels, each counted once, however rare; {of_label}"
    if any(BEYOND_CHANCE in section.title for section in shown):
        yield f"{BEYOND_CHANCE}: Cohen's kappa"
    if gold and any(_shares_of_labels(gold, 1)):
        yield "shares: corrected for the labels' errors, see docs/review.md"
    if any("similarity " in text for section in shown for text in _texts_of(section)) or (
        "similarity" in overview(found).head
    ):
        yield f"similarity: {SIMILARITY}"


def _texts_of(section: Section) -> Iterator[str]:
    yield from (section.title, *section.lines)
    yield from (cell for table in section.tables for row in table.rows for cell in row)


def _share(part: int, rows: int) -> str:
    return f"{part:,} ({percent(part / rows)})"


def percent(share: float) -> str:
    """Return a share as a percentage."""
    return f"{in_percent(share, 1)} %"


def points(difference: float) -> str:
    """Return a difference of shares in points, with its sign."""
    sign = "\N{MINUS SIGN}" if difference < 0 else "+"
    return f"{sign}{in_percent(abs(difference), 1)}"
