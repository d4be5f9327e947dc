"""The right answers to the rows of files: a column of one of the files, or a separate file."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from promptmill.core.errors import Named, input_error
from promptmill.core.values import text_of
from promptmill.core.wording import close_matches
from promptmill.features.compare.compared_file import ComparedFile, ComparisonOrder, Row, object_in
from promptmill.features.compare.matched_rows import IDS, NAME_A_COLUMN, Identity, Scan, check_column, listed
from promptmill.jobs.store.index import JobFolders
from promptmill.system.safe_open import home_expanded

_RIGHT = ("label", "gold", "answer")  # usual names of a column of right answers


@dataclass(frozen=True, slots=True)
class Gold:
    """The source of the right answers."""

    name: str
    """The name of the column or the file."""
    file: ComparedFile
    scan: Scan
    column: str | None
    """The column named by the user."""
    at: int | None = None
    """The index of the compared file that has the right answers in a column; None: they are in a separate file."""


def gold_of(
    order: ComparisonOrder, files: Sequence[ComparedFile], scans: Sequence[Scan], folders: JobFolders | None
) -> Gold:
    """Return the right answers that the order names. Raises `PromptmillError` (`invalid_input`)."""
    gold = order.gold or ""
    having = [at for at, scan in enumerate(scans) if gold in scan.columns]
    if having:
        silent = [at for at in having if _is_silent(files[at], scans[at], order.fields)]
        at = silent[0] if silent else having[0]
        is_apart = bool(silent) and len(files) > 1
        return Gold(gold, files[at], scans[at], gold, None if is_apart else at)
    path, _, column = gold.rpartition(":")
    for name, named in ((gold, None), (path, column)):
        if folders is not None and name and home_expanded(name).is_file():
            file = ComparedFile.of("", name, folders)
            scan = Scan.of(file)
            if named is not None:
                check_column(file, scan, named)
            return Gold(file.name, file, scan, named)
    names = list(dict.fromkeys(name for scan in scans for name in scan.columns))
    near = close_matches(gold, names, n=1)
    meant = f"did you mean {near[0]:.60}?" if near else f"there are {listed(names)}."
    raise input_error(f"No file has a column {gold:.60}, and there is no file of this name; {meant}")


def _is_silent(file: ComparedFile, scan: Scan, fields: Sequence[str]) -> bool:
    """Return whether a file has no answers: it is not the output of a job and has no column to compare."""
    return not file.about and not file.fields and scan.columns.keys().isdisjoint([file.answer, *fields])


def values_of_gold(gold: Gold, fields: Sequence[str], own: Collection[str]) -> Callable[[Row], list[str]]:
    """Return a function that returns the right answers of a row, one for each of `fields`.

    `own`: the columns of the compared files. Raises `PromptmillError` (`invalid_input`).
    """
    file, names = gold.file, gold.scan.columns
    if gold.column is None and (fields != [""]):
        known = [name for name in fields if file.fields.get(name, name) in names or name in gold.scan.fields]
        if known:
            return lambda row: [file.value_of(row, name) if name in known else "" for name in fields]
    column = gold.column or _right_column(gold, own)

    def values(row: Row) -> list[str]:
        cell = row.get(column)
        found = None if fields == [""] else object_in(cell)
        if found is None and len(fields) == 1:
            return [text_of(cell).strip()]
        if found is None and text_of(cell):
            raise input_error(
                f"The column {column:.60} has one right answer to each row, but the answers have the fields "
                f"{listed(fields)}. Name one of them: ",
                Named("field"),
                ", or a file with columns of these names: ",
                Named("gold", "FILE"),
                ".",
            )
        return [text_of((found or {}).get(name)).strip() for name in fields]

    return values


def _right_column(gold: Gold, own: Collection[str]) -> str:
    names = gold.scan.columns
    if usual := next((name for name in _RIGHT if name in names), None):
        return usual
    others = [name for name in names if name not in own and name not in IDS]
    if len(others) == 1:
        return others[0]
    raise input_error(
        f"{gold.name} has the columns {listed(names)}. Name the one with the right answers: ",
        Named("gold", f"{gold.name}:COLUMN"),
        ".",
    )


def keys_of_gold(gold: Gold, file: ComparedFile, scan: Scan, fields: Sequence[str], key: str | None) -> list[list[str]]:
    """Return the candidates for the key columns, by which right answers are matched to the rows of `file`."""
    if key is not None:
        check_column(gold.file, gold.scan, key)
        return [[key]]
    used = {gold.column or "", *fields, *gold.file.ours, *file.ours}
    used |= set() if gold.column or fields != [""] else {_right_column(gold, scan.columns)}
    shared = [name for name in scan.columns if name in gold.scan.columns and name not in used]
    if named := next((name for name in IDS if name in shared), None):
        return [[named]]
    if not shared and gold.scan.rows != scan.rows:
        capitals = {name.lower(): name for name in scan.columns}
        if alike := next((name for name in gold.scan.columns if name.lower() in capitals and name not in used), None):
            raise input_error(f"In {gold.name}, rename `{alike}` to `{capitals[alike.lower()]}`, as in {file.name}.")
        raise input_error(
            f"{gold.name} has no column of {file.name} that identifies rows; {file.name} has {listed(scan.columns)}.",
            *NAME_A_COLUMN,
        )
    return [*([shared] if len(shared) != 1 else []), *([name] for name in shared)]


def looked_up(
    gold: Gold, rights: Sequence[Sequence[str]], file: ComparedFile, scan: Scan, candidates: Sequence[list[str]]
) -> tuple[Sequence[int], str]:
    """Return, for each row of `file`, the row of `gold` with the right answer (-1: none), and the rule of the match.

    `rights`: the right answers in the separate file `gold`, by field. Raises `PromptmillError` (`invalid_input`).
    """
    most, best, second, names = -1, dict[int, int](), 0, list[str]()
    for candidate in candidates:
        table, repeated = _table(gold.scan.keys(candidate), rights)
        matched = 0 if repeated else len({key for key in scan.keys(candidate) if key in table})
        if matched > most:
            most, best, second, names = matched, table, repeated, candidate
    if second:
        raise input_error(
            f"{gold.name} has several right answers for the same {listed(names)}, the second is in row {second}.",
            *NAME_A_COLUMN,
        )
    rule = Identity(names).words
    if not most:
        raise input_error(f"No row of {file.name} has a right answer in {gold.name}, {rule}.", *NAME_A_COLUMN)
    return array("q", (best.get(own, -1) for own in scan.keys(names))), rule


def _table(keys: Sequence[int], rights: Sequence[Sequence[str]]) -> tuple[dict[int, int], int]:
    """Return the rows with right answers by key, and the number (from 1) of the first row whose answers contradict an
    earlier row with the same key; 0 if no row does."""
    table: dict[int, int] = {}
    for at, own in enumerate(keys):
        if any(right[at] for right in rights):
            earlier = table.setdefault(own, at)
            if earlier != at and any(right[at] != right[earlier] for right in rights):
                return table, at + 1
    return table, 0
