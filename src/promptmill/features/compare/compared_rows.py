"""The answers of several files to the same rows.

    files ──► Scan ──► identity_of, places_of ──► ComparedRows: the values of each field, by file, and the right values

The files are read twice, and the values are kept in a temporary file, so that few values are in memory at once.
"""

from __future__ import annotations

import contextlib
import itertools
from array import array
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from promptmill.core.errors import Named, input_error
from promptmill.core.values import text_of
from promptmill.core.wording import did_you_mean
from promptmill.features.compare.answer_values import Kind, Tolerance, canonical, kind_of
from promptmill.features.compare.compared_file import LETTERS, ComparedFile, ComparisonOrder
from promptmill.features.compare.kept_texts import KeptTexts, TextStore
from promptmill.features.compare.matched_rows import IDS, Scan, identity_of, listed, places_of
from promptmill.features.compare.right_answers import gold_of, keys_of_gold, looked_up, values_of_gold
from promptmill.jobs.store.index import JobFolders
from promptmill.jobs.store.records import A_PERSON


@dataclass(frozen=True, slots=True)
class ComparedColumn:
    """One field of the answers, or the whole answers, in all files."""

    name: str
    """The name of the field; `""` for the whole answers."""
    kind: Kind
    values: Sequence[KeptTexts]
    """The value of each row, by file; `""` if it is missing."""
    right: KeptTexts | None
    """The right value of each row in the files' spelling (`""` if missing); None without right answers."""
    capitals: Mapping[str, str]
    """The right values that differ from the files' values only in case, each with the spelling in the files."""
    other_kind: Mapping[str, None]
    """The distinct right values, in order, that are of another kind than the answers, such as `12,50` among numbers."""
    tolerance: Tolerance

    @classmethod
    def of(
        cls, name: str, values: Sequence[KeptTexts], right: KeptTexts | None, tolerance: Tolerance
    ) -> ComparedColumn:
        """Return the column for these values."""
        kind = kind_of(itertools.chain(*values) if any(any(own.given()) for own in values) else right or ())
        values = [own.changed(lambda value: canonical(value, kind)) for own in values]
        if right is None:
            return cls(name, kind, values, right, {}, {}, tolerance)
        checked = () if kind == "text" else right
        other_kind = dict.fromkeys(value for value in checked if value and kind_of([value]) != kind)
        right = right.changed(lambda value: value if value in other_kind else canonical(value, kind))
        if capitals := _other_capitals(right, values):
            right = right.changed(lambda value: capitals.get(value, value))
        return cls(name, kind, values, right, capitals, other_kind, tolerance)

    @property
    def is_exact(self) -> bool:
        """Whether two values count as the same only if their texts are equal."""
        return self.kind != "number" or not self.tolerance.amount

    def same(self, value: str, other: str) -> bool:
        """Return whether two values count as the same."""
        if value == other or self.is_exact or not value or not other or other in self.other_kind:
            return value == other
        return self.tolerance.allows(value, other)

    def same_at(self, at: int, file: int, others: KeptTexts) -> bool:
        """Return whether a file's value in a row counts as the same as the value of this row in `others`."""
        own = self.values[file]
        if self.is_exact and own.hashes[at] != others.hashes[at]:  # hashes suffice: no text is read
            return False
        return self.same(own[at], others[at])


def _other_capitals(right: Iterable[str], values: Sequence[Iterable[str]]) -> dict[str, str]:
    """For each right answer that differs from the answers in `values` only in case, return the spelling in `values`.

    Case is significant if two answers, or two right answers, differ only in case.
    """
    wanted = _spellings(right, lambda _: True)
    spelled = _spellings(itertools.chain(*values), wanted.__contains__)
    others = {folded for folded, own in spelled.items() if None not in {own, wanted[folded]} and own != wanted[folded]}
    if not others:
        return {}
    spelling = {key: answer for answer in itertools.chain(*values) if (key := _folded(answer)) in others}
    return {answer: spelling[key] for answer in right if (key := _folded(answer)) in others}


def _folded(answer: str) -> int:
    return hash(answer.casefold())


def _spellings(answers: Iterable[str], is_wanted: Callable[[int], bool]) -> dict[int, int | None]:
    """Return the hash of each answer's only spelling, by the hash of the answer in lower case; None if the answer has
    several spellings. Hashes take less memory than texts."""
    found: dict[int, int | None] = {}
    for answer in answers:
        if is_wanted(folded := _folded(answer)) and found.setdefault(folded, hash(answer)) != hash(answer):
            found[folded] = None
    return found


@dataclass(frozen=True, slots=True)
class ComparedRows:
    """The answers of several files to the same rows, in the order of the first file."""

    files: Sequence[ComparedFile]
    columns: Sequence[ComparedColumn]
    """The compared fields, or the whole answers as one column."""
    places: Sequence[int]
    """The number of each row in the first file, from 0."""
    sizes: Sequence[int]
    """The number of rows of each file, including rows that other files lack."""
    gold: str
    """The column or file with the right answers; `""` without right answers."""
    gold_matched: str
    """The rule by which a separate file of right answers was matched, such as `by id`; else `""`."""
    gold_columns: Collection[str]
    """The columns with right answers. They are not shown among the columns of the rows."""
    matched: str
    """The rule by which rows of several files were matched, such as `by id`."""
    groups: Sequence[str] = ()
    """The group of each row; empty without groups. Right answers are also counted by group."""

    @classmethod
    def of(
        cls, files: Sequence[ComparedFile], order: ComparisonOrder, folders: JobFolders | None = None
    ) -> ComparedRows:
        """Read the files. `folders`: the folders of jobs, for a separate file of right answers; None: no such file.

        Raises `PromptmillError` (`invalid_input`) if the files share no row or have no right answer, and `OSError`.
        """
        scans = [Scan.of(file) for file in files]
        gold = None if order.gold is None else gold_of(order, files, scans, folders)
        if gold is not None and gold.at is None and gold.file in files:  # do not compare the gold file itself
            kept = [at for at, file in enumerate(files) if file is not gold.file]
            files, scans = [files[at] for at in kept], [scans[at] for at in kept]
            files = [replace(file, label=label) for file, label in zip(files, LETTERS, strict=False)]
        fields = list(order.fields) or _shared_fields(scans) or [""]
        files = [replace(file, ours={*file.ours, file.answer, *order.fields}) for file in files]
        aligned = gold.column or "" if gold is not None and gold.at is not None else ""
        identity = identity_of(files, scans, order.id, aligned)
        places = places_of(files, scans, identity)
        store, right, gold_matched = TextStore(), list[KeptTexts](), ""
        if gold is not None:
            values_of = values_of_gold(gold, fields, scans[0].columns)
            right, right_places = _kept(store, map(values_of, gold.file.rows()), len(fields)), places[gold.at or 0]
            if gold.at is None:
                keys = keys_of_gold(gold, files[0], scans[0], fields, order.id)
                matched, gold_matched = looked_up(gold, right, files[0], scans[0], keys)
                right_places = array("q", (matched[at] for at in right_places))
            right = [values.at(right_places) for values in right]
            if not any(any(values.given()) for values in right):
                raise input_error(f"The column {gold.name} is empty in all rows.")
        every, priced = list[list[KeptTexts]](), list[ComparedFile]()
        for file, scan, own in zip(files, scans, places, strict=True):
            values, with_cost = _read(file, scan, fields, store)
            every.append([each.at(own) for each in values])
            priced.append(with_cost)
        compared = [
            ComparedColumn.of(name, [own[at] for own in every], right[at] if right else None, order.tolerance)
            for at, name in enumerate(fields)
        ]
        sizes = [scan.rows for scan in scans]
        name = "" if gold is None else gold.name
        columns_ = {aligned} if aligned else set()
        groups: Sequence[str] = ()
        if order.by is not None and files[0].only is None:
            groups = KeptTexts(store, (text_of(row.get(order.by)) for row in files[0].rows())).at(places[0])
        return cls(priced, compared, places[0], sizes, name, gold_matched, columns_, identity.words, groups)

    @property
    def has_fields(self) -> bool:
        """Whether the answers have fields, which are compared separately."""
        return len(self.columns) > 1

    @property
    def has_right(self) -> bool:
        """Whether there are right answers."""
        return bool(self.gold)

    def answered(self, file: int) -> list[bool]:
        """Return for each row whether a file has an answer."""
        return list(map(any, zip(*(column.values[file].given() for column in self.columns), strict=True)))

    def texts(self, file: int) -> Sequence[str]:
        """Return the answers of a file, each as one text; `""` for a missing answer."""
        own = {column.name: column.values[file] for column in self.columns}
        return _JoinedTexts(own) if self.has_fields else self.columns[0].values[file]

    def same(self, at: int, file: int, other: int) -> bool:
        """Return whether two files have the same answer to a row."""
        return all(column.same_at(at, file, column.values[other]) for column in self.columns)

    def is_right(self, at: int, file: int) -> bool:
        """Return whether an answer is right in all fields with a known right value."""
        rights = ((column, column.right) for column in self.columns if column.right is not None)
        return all(column.same_at(at, file, right) for column, right in rights if right[at])

    @property
    def differing(self) -> Sequence[int]:
        """The rows with different answers; for a single file, the rows whose answer differs from the right answer."""
        rows = range(len(self.places))
        if len(self.files) == 1:
            return array("q", (at for at in rows if not self.is_right(at, 0)))
        others = range(1, len(self.files))
        return array("q", (at for at in rows if not all(self.same(at, 0, other) for other in others)))

    def read(self, wanted: Collection[int]) -> Iterator[tuple[int, dict[str, str]]]:
        """Yield the number and the columns of each row in `wanted`, with the first file's values."""
        ours = {*self.gold_columns}.union(*(file.ours for file in self.files))
        rows = {self.places[at]: at for at in wanted}
        for place, row in enumerate(itertools.islice(self.files[0].rows(), max(rows, default=-1) + 1)):
            if place in rows:
                yield rows[place], {name: text_of(value) for name, value in row.items() if name not in ours}


class _JoinedTexts(Sequence[str]):
    """One text for each row, which joins the values of several fields. The text is made when it is read."""

    def __init__(self, fields: Mapping[str, Sequence[str]]) -> None:
        self._fields = fields

    def __len__(self) -> int:
        return len(next(iter(self._fields.values())))

    def __getitem__(self, at: Any) -> Any:
        values = {name: values[at] for name, values in self._fields.items()}
        return "\n".join(f"{name}: {value}" for name, value in values.items()) if any(values.values()) else ""


def _kept(store: TextStore, rows: Iterable[Sequence[str]], fields: int) -> list[KeptTexts]:
    """Keep values in `store`, and return them by field. `rows`: the values of each row, one for each field."""
    columns = [KeptTexts(store) for _ in range(fields)]
    for row in rows:
        for column, value in zip(columns, row, strict=True):
            column.append(value)
    return columns


def _read(
    file: ComparedFile, scan: Scan, fields: Sequence[str], store: TextStore
) -> tuple[list[KeptTexts], ComparedFile]:
    """Return the values by field, and `file` with its answers' cost. Raises `PromptmillError` (`invalid_input`)."""
    values, costs, giver = [KeptTexts(store) for _ in fields], array("d"), "answered_by"
    for row in file.rows():
        for own, name in zip(values, fields, strict=True):
            own.append(file.value_of(row, name))
        if row.get(giver) == A_PERSON and giver in file.ours and not file.has_persons:
            file = replace(file, has_persons=True)
        with contextlib.suppress(ValueError, TypeError):  # the cell is empty, or the column is the user's own
            costs.append(float(row.get(file.cost) or ""))
    if not any(any(own.given()) for own in values):
        which = file.answer if fields == [""] else "`, `".join(fields)
        if known := list(scan.fields):
            meant = did_you_mean(which, known, f"they have {listed(known)}.")
            raise input_error(Named("field"), f": no answer of {file.name} has the field `{which}`; {meant}")
        problem = f"No row of {file.name} has an answer in `{which}`; name a column to compare: "
        raise input_error(problem, Named("field"), f". It has {listed(scan.columns)}.")
    return values, replace(file, about={"cost": sum(costs), **file.about}) if costs else file


def _shared_fields(scans: Sequence[Scan]) -> list[str]:
    return [name for name in scans[0].fields if all(name in scan.fields for scan in scans)]


def heading_of(own: Mapping[str, str]) -> str:
    """Return the id of a row or, without an id, its first text; `""` without either."""
    named = next((own[name] for name in IDS if own.get(name)), None)
    if named is None:
        named = next((text for text in own.values() if text and kind_of([text]) == "text"), "")
    return " ".join(named.split())
