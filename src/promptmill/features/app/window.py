"""The rows that the page of a job shows: a window of the rows that a search or a filter finds, in an order.

Failed rows come first, then the newest: the index of the answers has this order. For a search, a filter or the order
of a column, a child process with limited memory and time reads all rows, once for all windows of the view.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import re
import unicodedata
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, TypeAlias

from promptmill.backends.vectors import words_of
from promptmill.core.bounds import MOST_SHOWN
from promptmill.core.values import JsonDict
from promptmill.core.wording import unescaped
from promptmill.jobs.caller import Caller
from promptmill.jobs.columns.column_names import SCORE, SOURCES
from promptmill.jobs.columns.schema_columns import FIELD
from promptmill.jobs.export.answered import AnsweredRow, answered_rows
from promptmill.jobs.export.text import AnswerValues, cell
from promptmill.jobs.manage.call_results import LEFT_OUT, WITHHELD, ShownRows
from promptmill.jobs.manage.job_rows import asked_names, image_columns
from promptmill.jobs.manage.server_jobs import ServerJobs
from promptmill.jobs.store import progress, record_labels, statistics
from promptmill.jobs.store.database import JobDatabase
from promptmill.jobs.store.folder import Folder
from promptmill.jobs.store.plan import JobSpec
from promptmill.jobs.store.records import SLOT, Record
from promptmill.jobs.store.rounds import ANSWERED
from promptmill.jobs.store.statistics import DELIVERED, is_failed
from promptmill.jobs.store.status_record import Results
from promptmill.pages.page_rows import OWN, Cell, Column, PageRows
from promptmill.system.call_files import FileRule

_COMPUTING_S = 60  # limit of the processor time, which suffices to search 1,000,000 rows
_MOST_ORDERED = 500_000  # the most rows of the table, because browsers limit the height of a page
_KEPT = 8  # the number of views whose order of rows is kept
_ANSWER, _ERROR, _SECONDS, _TOKENS = "answer", "error", "seconds", "tokens"
_FAILED, _TRUNCATED = 1, 2  # the bits that describe a row's state
_PICTURE = re.compile(r'data:image/[\w.+-]{1,20};base64,[^"\s]{0,50000000}')
_HAS_SOURCES = f"SELECT 1 FROM answer WHERE {statistics.DELIVERED} AND instr(more, '\"{SOURCES}\":') LIMIT 1"  # noqa: S608
_SORTED_BY = 200  # rows are sorted by this many characters of a text
Shown: TypeAlias = Literal["all", "failed", "answered"]
_SHOWN: Mapping[Shown, str] = MappingProxyType({"all": "1", "failed": "failed", "answered": "NOT failed"})


@dataclass(frozen=True, slots=True)
class View:
    """Which rows the page shows, and in which order."""

    search: str = ""
    show: Shown = "all"
    sort: str = ""
    """The name of the column by which rows are sorted; `""` for the usual order."""
    down: bool = False
    wanted: Mapping[str, str] | None = None
    """The text that a row must have in each of these columns."""
    row: int | None = None
    """The number of the only row of the view, if it has only one."""

    @property
    def reads_rows(self) -> bool:
        """Whether finding the rows of the view requires reading all rows."""
        return bool(self.search.strip() or self.sort or self.wanted)


async def window(
    jobs: ServerJobs,
    caller: Caller,
    job_id: str,
    view: View,
    orders: dict[tuple[object, ...], list[int]],
    *,
    offset: int,
    limit: int,
    longest: int,
) -> JsonDict:
    """Return the status of a job, and the rows `offset` to `offset + limit - 1` of a view, with texts of at most
    `longest` characters. `orders` keeps the row numbers of the last views that read all rows. Raises `PromptmillError`.
    """
    folder, rule = jobs.visible.find(job_id, caller), jobs.paths.rule
    order: list[int] | None = None
    if view.reads_rows:
        wanted = tuple(sorted((view.wanted or {}).items()))
        key = (folder.path, *_stamp(folder.database), view.search, view.show, view.sort, view.down, wanted)
        if (order := orders.pop(key, None)) is None:
            order = await jobs.apart(
                partial(_found, path=folder.path, rule=rule, view=view), folder.job_id, _COMPUTING_S
            )
        orders[key] = order
        while len(orders) > _KEPT:
            del orders[next(iter(orders))]
    state = await asyncio.to_thread(jobs.status, job_id, caller=caller)
    is_running = state["alive"] and state["state"] == progress.RUNNING
    results = None if state["alive"] else state.get("results", {})
    read = partial(
        _window, folder, rule, view, order=order, offset=offset, limit=limit, longest=longest, results=results
    )
    found = await asyncio.to_thread(read)
    counts = found.pop("counts")
    # replace the counts of the stored status, which may be a second old; in a round of `again`, rows count as open
    if is_running and not (state.get("round") or "").startswith("again"):
        state |= {"answered": counts[0], "failed": counts[1], "done": max(state.get("done", 0), sum(counts))}
    return state | found


class DeliveredRows:
    """The rows of a job that have an answer or a failure. A row with several answers counts once."""

    def __init__(self, store: JobDatabase, *, skips_empty: bool) -> None:
        """`skips_empty`: see `is_failed`."""
        self._store, failed = store, is_failed(skips_empty=skips_empty)
        self._rows = f"""
            SELECT key % {SLOT} AS n, max(coalesce({failed}, 0)) AS failed FROM answer
            WHERE (({ANSWERED}) OR ({failed})) AND {DELIVERED} GROUP BY 1
        """  # noqa: S608 (fixed conditions)

    def count(self, show: Shown = "all") -> int:
        """Return the number of delivered rows."""
        query = f"SELECT count(*) FROM ({self._rows}) WHERE {_SHOWN[show]}"  # noqa: S608 (fixed conditions)
        return int(self._store.read(query)[0][0])

    def newest(self, show: Shown, limit: int, offset: int, *, oldest: bool = False) -> list[int]:
        """Return the numbers (from 0) of some delivered rows: failed rows first, then the last rows of the input.
        `oldest`: return them in the order of the input."""
        order = "n" if oldest else "failed DESC, n DESC"
        shown = f"({self._rows}) WHERE {_SHOWN[show]} ORDER BY {order}"
        query = f"SELECT n FROM {shown} LIMIT ? OFFSET ?"  # noqa: S608 (fixed conditions)
        return [n for (n,) in self._store.read(query, limit, offset)]


def _stamp(database: Path) -> Iterator[tuple[int, int]]:
    """Yield values that change whenever the database changes."""
    for path in (database, database.with_name(f"{database.name}-wal")):
        if path.exists():
            found = path.stat()
            yield found.st_mtime_ns, found.st_size


def _extra(store: JobDatabase) -> Sequence[str]:
    """Return the optional fields of answers that the page shows."""
    return (SOURCES,) if store.read(_HAS_SOURCES) else ()


class _Table:
    """The columns of a job on its page, and the cells of its rows. Several answers to a row are side by side."""

    def __init__(self, store: JobDatabase, spec: JobSpec, rule: FileRule, *, has_failures: bool = True) -> None:
        self.spec, self._shown, self._answers = spec, ShownRows(spec, rule), AnswerValues(spec, _extra(store))
        names = self._answers.names
        self._parts = [key for key in names if key == _ANSWER or key.startswith(FIELD)]
        self._marks = [key for key in names if key == SOURCES or key in spec.plan.fields]
        self.rows = PageRows()
        names_of_rows = (name for row in store.row_page(0) for name in self._shown.own(row))
        own = [name for name in dict.fromkeys(names_of_rows) if name != LEFT_OUT]
        self._first_own = f"{OWN}{own[0]}" if own else ""
        for name in own:
            self.rows.has_own(name, has_images=name in image_columns(spec))
        answers = [
            Column(
                f"{slot}.{key}",
                variant if variant and key == _ANSWER else f"{variant} {names[key]}".strip(),
                "answer",
                source=key.removeprefix(FIELD),
            )
            for key in self._parts
            for slot, variant in enumerate(self._variants)
        ]
        columns = [
            *answers,
            *(
                Column(
                    key,
                    names[key],
                    "figure" if key == SCORE else "variant",
                    is_hidden=key == SOURCES,
                    has_places=key == SOURCES,
                )
                for key in self._marks
            ),
            Column(_ERROR, names[_ERROR], "error", _FAILED, is_hidden=not has_failures),
            Column(_SECONDS, "seconds", "figure", is_hidden=True),
            Column(_TOKENS, "answer tokens", "figure", is_hidden=True),
        ]
        for column in columns:
            self.rows.add_column(column, len(self.rows.columns))
        self.rows.name_columns()

    @property
    def _variants(self) -> Sequence[str]:
        return [target.name for target in self.spec.output_targets] if self.spec.is_grid else [""]

    def cells(self, group: Sequence[AnsweredRow]) -> tuple[int, dict[str, Cell]]:
        """Return the state of a row and its values by the keys of the columns."""
        first, errors, is_cut = group[0], list[str](), False
        own = self._shown.own(first.row)
        cells: dict[str, Cell] = {OWN + name: _plain(value) for name, value in own.items()}
        if LEFT_OUT in own:
            cells[self._first_own] = cells.pop(OWN + LEFT_OUT)
        for each in group:
            shown, variant = self._shown.answer(each), self._variants[each.slot]
            is_cut |= each.record.finish_reason == "length"
            values = self._answers.in_table(each)
            if withheld := shown.get(LEFT_OUT):
                cells[f"{each.slot}.{self._parts[0]}"] = withheld
            elif error := values[_ERROR]:
                errors.append(f"{variant and variant + ': '}{error['code']}: {error['message']}")
            else:
                cells |= {f"{each.slot}.{key}": _plain(values.get(key)) for key in self._parts}
                cells |= {key: _plain(values.get(key)) for key in self._marks}
        cells[_ERROR] = "; ".join(errors) or None
        if not self.spec.is_grid:
            cells[_SECONDS], cells[_TOKENS] = round(first.record.latency_s, 3), first.record.completion_tokens
        return (_FAILED if errors else 0) | (_TRUNCATED if is_cut else 0), cells

    def labels(self, store: JobDatabase) -> list[str]:
        """Return the labels that a person may choose, see `labels_of_job`."""
        every = record_labels.labels_of_job(store, self.spec.output)
        return [label for label in every[:MOST_SHOWN] if self._shown.may_show(label)]

    def bars(self, store: JobDatabase, results: Results) -> Iterator[tuple[str, str, list[tuple[str, int]], bool]]:
        """Yield each column of answers with few values: its title, its name, the number of rows by value, and whether
        its cells are these values."""
        columns = {column.key: column.name for column in self.rows.columns}
        fields: Mapping[str, Mapping[str, Any]] = results.get("fields") or {"": results}
        for name, field in fields.items():
            if not (values := field.get("values")):
                continue
            key, has_texts = FIELD + name if name else _ANSWER, not field.get("is_list")
            by_slot = statistics.values_by_slot(store, name) if self.spec.is_grid else {}
            for slot in range(len(self._variants)):
                column = columns.get(f"{slot}.{key}", "")
                counts = {value: by_slot.get(value, {}).get(slot, 0) for value in values} if by_slot else values
                may_show = [
                    value for value in values if value != WITHHELD and self._shown.may_show(value, name or _ANSWER)
                ]
                shown = [(value, counts[value]) for value in may_show]
                yield column if self.spec.is_grid else name, column, shown, has_texts and bool(column)

    def keys(self, view: View) -> dict[str, str]:
        """Return the key of each column that a view names; an unknown name has none."""
        named = {*(view.wanted or {}), view.sort}
        return {column.name: column.key for column in self.rows.columns if column.name in named}


def _plain(value: Any) -> Cell:
    if value is None or isinstance(value, int | float):
        return str(value).lower() if isinstance(value, bool) else value
    if isinstance(value, array):
        return words_of(value)
    text = unescaped(value) if isinstance(value, str) else cell(value)
    return _PICTURE.sub("[image]", text) if "data:image" in text else text


def _window(
    folder: Folder,
    rule: FileRule,
    view: View,
    *,
    order: list[int] | None,
    offset: int,
    limit: int,
    longest: int,
    results: Results | None,
) -> JsonDict:
    """Return a window of the rows of a job, with its `counts` of answers and failures. `results`: the counts of the
    job's answers; None while the job runs."""
    with folder.reading() as store:
        spec = folder.spec_in(store)
        skips_empty = spec.question.skip_empty
        by_slot = statistics.slots(store, skips_empty=skips_empty)
        delivered = DeliveredRows(store, skips_empty=skips_empty)
        total = delivered.count()
        if view.row is not None:
            found, numbers = 1, [view.row - 1]
        elif order is None:
            found = total if view.show == "all" else min(total, delivered.count(view.show))
            numbers = delivered.newest(view.show, limit, offset, oldest=view.down)
        else:
            found, numbers = len(order), order[offset : offset + limit]
        table, keys = _Table(store, spec, rule, has_failures=delivered.count("failed") > 0), list[str]()
        table.rows.longest = longest
        for number in numbers:
            group = [*answered_rows(store, spec, _any, number, number + 1)]
            table.rows.add(number + 1, *(table.cells(group) if group else (0, {})))
            keys.append(group[0].record.question_key if group else "")
        end: JsonDict = {}
        if results is not None and offset == 0 and view.row is None:
            end = {"bars": [*table.bars(store, results)], "labels": [] if spec.is_grid else table.labels(store)}
    rows = table.rows
    rows.order_columns({OWN + name for name in asked_names(spec)})
    return {
        "counts": [sum(by_slot[slot][at] for slot in by_slot if slot < spec.delivered) for at in (0, 1)],
        "columns": rows.facts(total, "")["columns"],
        "found": min(found, _MOST_ORDERED),
        "all": total,
        "offset": offset,
        "rows": {"number": rows.number, "state": rows.state, "key": keys, "cells": rows.cells},
        **end,
    }


def _any(key: int, record: Record | None) -> Record | None:
    del key
    return record


def _found(*, path: Path, rule: FileRule, view: View) -> list[int]:
    """Return the numbers (from 0) of the rows of a view, in the order of the view."""
    folder, wanted = Folder(path), view.search.strip().lower()
    kept = list[tuple[int, bool, Cell]]()
    with folder.reading() as store:
        spec = folder.spec_in(store)
        table = _Table(store, spec, rule)
        keys = table.keys(view)
        for n, group in itertools.groupby(answered_rows(store, spec, _any), key=lambda answered: answered.row.n):
            state, cells = table.cells([*group])
            failed = bool(state & _FAILED)
            if view.show != "all" and failed != (view.show == "failed"):
                continue
            if any(_text(cells.get(keys.get(name, ""))).strip() != text for name, text in (view.wanted or {}).items()):
                continue
            if wanted and wanted not in "\n".join(map(_text, cells.values())).lower():
                continue
            kept.append((n, failed, cells.get(keys.get(view.sort, ""))))
    if view.sort:
        return [n for n, _ in _sorted([(n, value) for n, _, value in kept], down=view.down)][:_MOST_ORDERED]
    kept.sort(key=lambda row: (row[0],) if view.down else (not row[1], -row[0]))
    return [n for n, *_ in kept][:_MOST_ORDERED]


def _sorted(rows: Sequence[tuple[int, Cell]], *, down: bool) -> list[tuple[int, Cell]]:
    """Sort rows by their values: numbers by size, texts without regard to capitals, and empty values last."""
    texts = {n: unicodedata.normalize("NFD", _text(value)[:_SORTED_BY].strip().lower()) for n, value in rows}
    full = [row for row in rows if texts[row[0]]]
    numbers = {n: _number(texts[n]) for n, _ in full}
    if all(map(math.isfinite, numbers.values())):
        full.sort(key=lambda row: numbers[row[0]], reverse=down)
    else:
        full.sort(key=lambda row: texts[row[0]], reverse=down)
    return [*full, *(row for row in rows if not texts[row[0]])]


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _text(value: Cell) -> str:
    """Return a cell as the page shows it."""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return "" if value is None else str(value)
