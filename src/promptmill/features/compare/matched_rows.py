"""Finds the rows that several files of answers share, by hashes of their cells.

files ──► Scan: a hash of each cell ──► identity_of: the columns that identify rows ──► places_of
"""

from __future__ import annotations

import itertools
import operator
from array import array
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from promptmill.core.bounds import MOST_SHOWN
from promptmill.core.errors import Code, Named, PromptmillError, input_error
from promptmill.core.values import text_of
from promptmill.core.wording import counted, no_column
from promptmill.features.compare.compared_file import ComparedFile, object_in
from promptmill.jobs.columns.column_names import VARIANT

NAME_A_COLUMN = " Name a column that identifies rows: ", Named("id"), "."
_NAME_VARIANTS = " It has several answers to each row; to compare these: ", Named("by", VARIANT), "."
_MOST_COLUMNS = 1_000  # max columns, each of 8 bytes a row; in a file with more columns, each row has other names
_EMPTY = hash("")
IDS = ("id", "custom_id")
"""Columns that identify rows."""


class NoCommonRowError(PromptmillError):
    """The files have no row in common."""


@dataclass(frozen=True, slots=True)
class Scan:
    """The hashed columns of a file."""

    rows: int
    columns: Mapping[str, array[int]]
    """The hash of each cell, by column."""
    fields: Mapping[str, None]
    """The fields of answers that are objects."""

    @classmethod
    def of(cls, file: ComparedFile) -> Scan:
        """Read a file."""
        columns: dict[str, array[int]] = {}
        fields, rows = dict.fromkeys(file.fields), 0
        for rows, row in enumerate(file.rows(), 1):
            for name, value in row.items():
                if name in columns or len(columns) < _MOST_COLUMNS:
                    column = columns.setdefault(name, array("q"))
                    column.extend(itertools.repeat(_EMPTY, rows - 1 - len(column)))
                    column.append(hash(text_of(value).strip()))
            if not file.fields and len(fields) < MOST_SHOWN:
                fields |= dict.fromkeys(object_in(row.get(file.answer)) or ())
        for column in columns.values():
            column.extend(itertools.repeat(_EMPTY, rows - len(column)))
        return cls(rows, columns, fields)

    def keys(self, names: Sequence[str]) -> Sequence[int]:
        """Return the key of each row: the hash of its cells in these columns; without columns, the row's number."""
        cells = (self.columns[name] for name in names)
        return array("q", map(hash, zip(*cells, strict=True))) if names else range(self.rows)


@dataclass(frozen=True, slots=True)
class Identity:
    """The key columns that identify equal rows of the files; empty: rows are matched by number."""

    columns: Sequence[str]
    is_sure: bool = False
    """Whether the files certainly have the same rows. Otherwise some files may lack a row, and keys must be unique."""

    @property
    def words(self) -> str:
        """The rule as text, such as `by id`."""
        named = ", ".join(self.columns[:3]) + (", …" if len(self.columns) > 3 else "")
        return f"by {named}" if self.columns else "by place"


def identity_of(files: Sequence[ComparedFile], scans: Sequence[Scan], key: str | None, gold: str) -> Identity:
    """Return the rule that identifies equal rows. `gold`: the column of the right answers, or `""`.

    Raises `PromptmillError` (`invalid_input`) if the files have different rows.
    """
    if key is not None:
        for file, scan in zip(files, scans, strict=True):
            check_column(file, scan, key)
        return Identity([key])
    ours = {gold}.union(*(file.ours for file in files))
    shared = [name for name in scans[0].columns if all(name in scan.columns for scan in scans)]
    if named := next((name for name in IDS if name in shared and name not in ours), None):
        return Identity([named])
    own = [name for name in shared if name == gold or name not in ours]
    same = [name for name in own if len({sum(scan.columns[name]) for scan in scans}) == 1]
    are_as_many = len({scan.rows for scan in scans}) == 1
    is_sure = are_as_many and same == own
    # the columns are tested together: files may have the same values in each column, but in other combinations
    if is_sure and len({frozenset(scan.keys(same)) for scan in scans}) == 1:
        return Identity(same, is_sure)
    if unique := _unique(scans, [name for name in own if name != gold]):
        return Identity([unique])
    are_parts = files[0].only is not None  # in parts of one file, an equal right answer does not mean the same row
    if are_as_many and (same or is_sure) and not (are_parts and same == [gold]):
        return Identity(same, is_sure)
    counts = ", ".join(f"{file.name} has {counted(scan.rows, 'row')}" for file, scan in zip(files, scans, strict=True))
    differ = f"{listed(own)} {'differs' if len(own) == 1 else 'differ'}"
    problem = f"The {'parts' if are_parts else 'files'} do not hold the same rows: {differ if are_as_many else counts}."
    raise NoCommonRowError(Code.INVALID_INPUT, problem, NAME_A_COLUMN)


def check_column(file: ComparedFile, scan: Scan, name: str) -> None:
    """Raise `PromptmillError` (`invalid_input`) if the file lacks a column."""
    if name not in scan.columns:
        raise input_error(no_column(name, columns=scan.columns, file=file.name))


def _unique(scans: Sequence[Scan], names: Sequence[str]) -> str:
    """Of the columns with unique values in every file, return the one with most shared values; `""` if none exists."""
    common = {}
    for name in names:
        shared: set[int] | None = None
        for scan in scans:
            own = {*scan.columns[name]}
            if len(own) < scan.rows:
                break
            shared = own if shared is None else shared & own
        else:
            common[name] = len(shared or ())
    return max((name for name, count in common.items() if count), key=lambda name: common[name], default="")


def listed(names: Collection[str]) -> str:
    """Return the first 12 of some names as text, for messages."""
    shown = ", ".join(f"`{name:.40}`" for name in itertools.islice(names, 12))
    return shown + (", …" if len(names) > 12 else "")


def places_of(files: Sequence[ComparedFile], scans: Sequence[Scan], identity: Identity) -> list[array[int]]:
    """Return for each file the numbers of the rows that all files have, in the order of the first file.

    Raises `PromptmillError` (`invalid_input`) if there is no such row.
    """
    if _are_in_one_order(scans, identity):  # the usual case; it takes less memory than dictionaries
        return [array("q", range(scans[0].rows)) for _ in files]
    places: list[array[int]] = []
    shared = array("q")
    for file, scan in zip(files, scans, strict=True):
        own = _places(file, scan, identity)
        kept = [at for at, key in enumerate(shared) if key in own] if places else range(len(own))
        shared = array("q", (shared[at] for at in kept)) if places else array("q", own)
        places = [array("q", (each[at] for at in kept)) for each in places]
        places.append(array("q", map(own.__getitem__, shared)))
    if not shared:
        names_ = " and ".join(file.name for file in files[:2])
        raise NoCommonRowError(Code.INVALID_INPUT, f"{names_} have no row in common, {identity.words}.", NAME_A_COLUMN)
    return places


def _are_in_one_order(scans: Sequence[Scan], identity: Identity) -> bool:
    """Return whether all files have the same rows in the same order and, if keys must be unique, each row once."""
    first, *others = (scan.keys(identity.columns) for scan in scans)
    is_unique = identity.is_sure or not any(itertools.starmap(operator.eq, itertools.pairwise(sorted(first))))
    return is_unique and len(first) > 0 and all(first == own for own in others)


def _places(file: ComparedFile, scan: Scan, identity: Identity) -> dict[int, int]:
    """Return the number of each row by its key. Raises `PromptmillError` (`invalid_input`) if rows are not unique."""
    places: dict[int, int] = {}
    repeated: Counter[int] = Counter()
    for at, own in enumerate(scan.keys(identity.columns)):
        key = own
        if own in places:
            if not identity.is_sure:
                several = f"{file.name} has several rows with the same {listed(identity.columns)}"
                is_grid = file.only is None and VARIANT in scan.columns
                names = _NAME_VARIANTS if is_grid else NAME_A_COLUMN
                raise input_error(f"{several}, the second is row {at + 1}.", *names)
            repeated[own] += 1
            key = hash((own, repeated[own]))  # the n-th of several equal rows matches the n-th in each file
        places[key] = at
    return places
