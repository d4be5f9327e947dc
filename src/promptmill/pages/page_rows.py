"""The rows of a page, stored by column, because deflated columns take less space than deflated rows."""

from __future__ import annotations

import math
import zlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, TypeAlias

import orjson

from promptmill.core.bounds import MOST_NAMES, MOST_SHOWN
from promptmill.core.secret_text import SecretFinder, may_hold_secrets
from promptmill.core.values import json_text
from promptmill.core.wording import counted, cut
from promptmill.jobs.columns.column_order import by_worth
from promptmill.jobs.inputs.question_columns import distinct
from promptmill.system.call_files import MAY_HOLD_SECRETS

LENGTHS = (20_000, 8_000, 4_000, 2_000, 1_000, 600, 400, 300, 200, 140, 100, 80)  # lengths of shortened texts
OWN = "own."
"""The prefix of the keys of the input's columns."""
_TEXTS = 64_000_000  # max characters of all rows in memory
_LEVEL = 6  # for 100,000 rows of 200 characters, this takes 1.1 s; level 9 takes 4.5 s, for 2 % fewer bytes
_TRIED = 2_000  # the number of rows that are deflated to estimate the size of all rows
_MEASURED = 200  # the number of first rows whose texts are measured to order the columns
Cell: TypeAlias = str | int | float | Sequence[str | tuple[str, str]] | None
"""A value; a list of several answers; or the turns of a conversation, each with its role."""
_NUMBERS = (int, float)
Filter: TypeAlias = tuple[str, str, int, int]
"""A button: its key, its label, a mask, and a value. It shows the rows for which `state & mask` equals the value."""


@dataclass(frozen=True, slots=True)
class Column:
    """A column of the table."""

    key: str
    name: str
    kind: Literal["own", "prompt", "variant", "answer", "error", "figure"]
    """`own`: a column of the input. `variant`: the model, or the name of the prompt."""
    wrong: int = 0
    """The bit of a row's state that marks the row's cell in this column as wrong."""
    has_images: bool = False
    """Whether the cells show thumbnails."""
    is_hidden: bool = False
    """Whether the column is shown only if the user chooses it."""
    source: str = ""
    """The name of this column's field in the JSON of the column that `has_places`; `""` if there is none."""
    has_places: bool = False
    """Whether the cells state, as JSON, where each value is in its document."""


@dataclass(slots=True)
class PageRows:
    """The rows of a page."""

    columns: list[Column] = field(default_factory=list)
    number: list[int] = field(default_factory=list)
    state: list[int] = field(default_factory=list)
    """The bits of each row's state, by which `filters` select rows."""
    cells: list[list[Cell]] = field(default_factory=list)
    """The cells of each column."""
    templates: Sequence[Sequence[str]] = ()
    """Templates of prompts. A template consists of a text, the name of a column, a text, … If a cell of the prompt's
    column is a number, the template with this number builds the prompt."""
    filters: Sequence[Filter] = ()
    rows_of_input: int = 0
    """The number of input rows, if rows have several answers."""
    rows_left_out: int = 0
    """The number of rows left out because of the file's size."""
    longest: int = LENGTHS[0]
    """The length to which texts are shortened."""
    is_cut: bool = False
    own: dict[str, bool] = field(default_factory=dict)
    """For each column of the input, by name, whether the column is in the table."""
    finder: SecretFinder | None = None
    """Finds rows that may hold keys or passwords; such rows are not shown. None if only the operator sees the page."""
    _size: int = 0
    """The total characters of all texts."""

    @property
    def noun(self) -> str:
        """The noun for a row of the table."""
        return "answer" if self.rows_of_input else "row"

    def add_column(self, column: Column, at: int) -> None:
        """Insert a column. Existing rows have no value in it."""
        self.columns.insert(at, column)
        self.cells.insert(at, [None] * len(self.number))

    def has_own(self, name: str, *, has_images: bool = False) -> bool:
        """Return whether the table has this input column. A new column is added, up to `MOST_SHOWN` input columns."""
        if name in self.own:
            return self.own[name]
        if (shown := sum(self.own.values())) >= MOST_SHOWN:
            if len(self.own) < MOST_NAMES:
                self.own[name] = False
            return False
        self.add_column(Column(OWN + name, name, "own", has_images=has_images), shown)
        self.own[name] = True
        return True

    def add(self, number: int, state: int, values: Mapping[str, Cell]) -> None:
        """Add a row with its values by column key, or only with a remark if the values may hold secrets."""
        if self.finder is not None and may_hold_secrets(self.finder, _names_in(values), json_text(values)):
            first = next(column.key for column in self.columns if column.kind in {"answer", "error"})
            state, values = 0, {first: f"The row {MAY_HOLD_SECRETS}."}
        self.number.append(number)
        self.state.append(state)
        for column, cells in zip(self.columns, self.cells, strict=True):
            value = values.get(column.key)
            if value is not None and not isinstance(value, _NUMBERS):
                length = len(value) if isinstance(value, str) else max(map(len, _texts(value)), default=0)
                if length > self.longest:
                    value, self.is_cut = _cut(value, self.longest), True
                self._size += min(length, self.longest)
            cells.append(value)
        if self._size > _TEXTS and self.longest > LENGTHS[-1]:
            self._shorten()

    def name_columns(self) -> None:
        """Give each column a unique name."""
        names = distinct([column.name for column in self.columns])
        self.columns = [replace(column, name=name) for column, name in zip(self.columns, names, strict=True)]

    def drop_empty(self, keys: Sequence[str]) -> None:
        """Remove these columns if no row has a value in them."""
        for key in keys:
            index = next(at for at, column in enumerate(self.columns) if column.key == key)
            if all(value in (None, "") for value in self.cells[index]):
                del self.columns[index], self.cells[index]

    def order_columns(self, asked: Collection[str] = ()) -> None:
        """Order the columns by importance. `asked`: the keys of the prompt's columns; if empty, all input columns."""
        asked = asked or {column.key for column in self.columns if column.kind == "own"}
        lengths = {
            column.name: math.inf if column.has_images else _mean_length(cells[:_MEASURED])
            for column, cells in zip(self.columns, self.cells, strict=True)
            if column.key in asked or column.has_images
        }
        answers = {column.name for column in self.columns if column.kind == "answer"}
        names = [column.name for column in self.columns]
        places = [names.index(name) for name in by_worth(names, answers, lengths)]
        self.columns = [self.columns[at] for at in places]
        self.cells = [self.cells[at] for at in places]

    def sort(self) -> None:
        """Sort the rows by number."""
        self._keep(sorted(range(len(self.number)), key=self.number.__getitem__))

    def packed(self, most: int) -> bytes:
        """Return the rows, deflated to at most `most` bytes. If necessary, texts are shortened, then rows left out."""
        tried = self._some(range(0, len(self.number), 1 + len(self.number) // _TRIED))
        room = most * len(tried.number) // max(1, len(self.number))
        while len(tried._deflated(self.longest)) > room and self._shorter():
            pass
        while len(packed := self._deflated(self.longest)) > most:
            if not self._shorter():
                self._drop(len(self.number) * most // len(packed) * 97 // 100)
        return packed

    def facts(self, total: int, so_far: str) -> dict[str, object]:
        """Return facts about the rows for the page. `total`: the number of rows, including those left out."""
        shown = len(self.number)
        noun, of = self.noun, f" to {counted(self.rows_of_input, 'row')}" if self.rows_of_input else ""
        note = f"{'All ' if total > 1 else ''}{counted(shown, noun)}{of}{so_far}."
        if shown < total:
            dropped = counted(self.rows_left_out, noun)
            why = f" for the size of this file ({dropped} left out)" if self.rows_left_out else ""
            drawn = f"A random sample of {shown:,} of {counted(total, noun)}{of}"
            note = f"{drawn}{why}; counts and charts are of all."
        if self.is_cut:
            note += f" Texts of more than {self.longest:,} characters are cut off."
        if hidden := len(self.own) - sum(self.own.values()):
            note += f" {counted(hidden, 'further column')} of the input {'is' if hidden == 1 else 'are'} left out."
        columns = [
            {
                "name": one.name,
                "kind": one.kind,
                "wrong": one.wrong,
                "images": one.has_images,
                "hidden": one.is_hidden,
                **({"source": one.source} if one.source else {}),
                **({"places": True} if one.has_places else {}),
            }
            for one in self.columns
        ]
        return {
            "note": note,
            "noun": noun,
            "columns": columns,
            "filters": self.filters,
            "templates": self.templates,
        }

    def _shorter(self) -> bool:
        """Shorten texts to the next shorter length. Return False if there is no shorter length."""
        texts = (text for cells in self.cells for value in cells for text in _texts(value))
        present = max(map(len, texts), default=0)
        shorter = [length for length in LENGTHS if length < min(present, self.longest)]
        if shorter:
            self.longest, self.is_cut = shorter[0], True
        return bool(shorter)

    def _shorten(self) -> None:
        while self._size > _TEXTS // 2 and self._shorter():
            self.cells = [[_cut(value, self.longest) for value in cells] for cells in self.cells]
            self._size = sum(sum(map(len, _texts(value))) for cells in self.cells for value in cells)

    def _some(self, places: Sequence[int]) -> PageRows:
        return PageRows(
            self.columns,
            [self.number[at] for at in places],
            [self.state[at] for at in places],
            [[cells[at] for at in places] for cells in self.cells],
        )

    def _keep(self, places: Sequence[int]) -> None:
        some = self._some(places)
        self.number, self.state, self.cells = some.number, some.state, some.cells

    def _drop(self, kept: int) -> None:
        every = len(self.number) / max(1, kept)
        self.rows_left_out += len(self.number) - kept
        self._keep([int(at * every) for at in range(kept)])

    def _deflated(self, length: int) -> bytes:
        """Return the deflated columns, with texts shortened to `length` characters."""
        columns = {
            "steps": [now - before for before, now in zip([0, *self.number], self.number, strict=False)],
            "state": self.state,
            "cells": [[_cut(value, length) for value in cells] for cells in self.cells]
            if length < LENGTHS[0]
            else self.cells,
        }
        return zlib.compress(orjson.dumps(columns), _LEVEL)


def _mean_length(cells: Sequence[Cell]) -> float:
    return sum(sum(map(len, _texts(value))) for value in cells) / max(1, len(cells))


def _names_in(values: Mapping[str, Cell]) -> Iterator[str]:
    return (key.removeprefix(OWN) for key, value in values.items() if value)


def _texts(value: Cell) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Sequence):
        yield from (part if isinstance(part, str) else part[1] for part in value)


def _cut(value: Cell, length: int) -> Cell:
    if isinstance(value, str):
        return cut(value, length)
    if not isinstance(value, Sequence):
        return value
    return [cut(part, length) if isinstance(part, str) else (part[0], cut(part[1], length)) for part in value]
