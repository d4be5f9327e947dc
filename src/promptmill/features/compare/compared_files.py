"""Reads files with answers to the same rows for a comparison.

    files ──► _Scan: a hash of each cell ──► _identity: which columns make rows the same ──► _places: rows that all have
                                         └─► _looked_up: right answers of a file of their own ──► `ComparedRows`

The files are read twice, so that their texts are never all in memory.
"""

from __future__ import annotations

import contextlib
import itertools
from array import array
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import orjson

from promptmill.core.bounds import MOST_SHOWN
from promptmill.core.errors import Code, Named, PromptmillError, input_error
from promptmill.core.values import text_of
from promptmill.core.wording import close_matches, counted, cut, did_you_mean
from promptmill.features.compare.answer_values import LABEL, Kind, Tolerance, canonical, kind_of
from promptmill.jobs import columns
from promptmill.jobs.columns import MODEL, OURS, VARIANT
from promptmill.jobs.export.schema_columns import FIELD
from promptmill.jobs.inputs.any_format import objects_in
from promptmill.jobs.store import status
from promptmill.jobs.store.folder import Folder
from promptmill.jobs.store.index import JobFolders
from promptmill.jobs.store.plan import JobSpec
from promptmill.jobs.store.records import A_PERSON
from promptmill.system.safe_open import home_expanded

LETTERS = "ABCDEFGHIJ"
_IDS = ("id", "custom_id")
_RIGHT = ("label", "gold", "answer")  # usual names of a column of right answers

_NAME_A_COLUMN = " Name a column that identifies rows: ", Named("id"), "."
_NAME_VARIANTS = " It has several answers to each row; to compare these: ", Named("by", VARIANT), "."
_MOST_COLUMNS = 1_000  # max columns: more are other names in each row, and each cell's hash takes 8 bytes
_EMPTY = hash("")
Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class ComparisonOrder:
    """The options of a comparison."""

    gold: str | None = None
    """The right answers: a column of any of the files, a file, or `FILE:COLUMN`."""
    fields: Sequence[str] = ()
    """The columns, or fields of the answers, to compare; empty: all fields, or the whole answers."""
    id: str | None = None
    """The column whose values identify equal rows of the files."""
    by: str | None = None
    """The column whose values divide one file into the parts to compare."""
    tolerance: Tolerance = field(default_factory=Tolerance)


@dataclass(frozen=True, slots=True)
class ComparedFile:
    """A file of answers. `label` is its name in the text."""

    label: str
    path: Path
    answer: str = "answer"
    """The name of the answer column."""
    fields: Mapping[str, str] = field(default_factory=dict)
    """The fields of the answers, each with the table's column that holds it."""
    error: str = "error"
    ours: Collection[str] = OURS
    """The columns that promptmill added; the other columns are the input's."""
    about: Mapping[str, Any] = field(default_factory=dict)
    """The status of the job that made the file."""
    made: Mapping[str, str] = field(default_factory=dict)
    """The command, model, prompt and sampling of the job that made the file."""
    cost: str = "cost"
    has_persons: bool = False
    """Whether some answers are labels from a person's review."""
    only: tuple[str, str] | None = None
    """The column and its value that select the rows to compare; None: all rows."""
    variants: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """`made` for each variant, if the job has several answers to each row."""

    @classmethod
    def of(cls, label: str, what: str, folders: JobFolders) -> ComparedFile:
        """Return the file for `what`, a path or the id of a job. Raises `PromptmillError`."""
        folder = folders.maker(what)
        spec = None if folder is None else folder.spec
        if folder is None or spec is None:
            return cls(label, home_expanded(what))
        output = spec.output.path
        if not output.exists():
            raise input_error(
                f"Job {spec.job_id} has written no output yet: wait for its end",
                Named("command", f"jobs {spec.job_id} --export FILE", ", or run {}"),
                ".",
            )
        names, fields = spec.output.names or {}, _fields(spec)
        own = {names.get(key, key) for key in (*OURS, *columns.variant_fields(spec))} | {*fields.values()}
        answer = names.get("answer", spec.output.form.column)
        about: Mapping[str, object] = status.read(folder)
        kept = ("job_id", "model", "cost", "seconds", "prompt_tokens", "completion_tokens")
        made = [_made(folder, spec, slot) for slot in range(len(spec.targets))]
        return cls(
            label,
            output,
            answer=answer,
            fields=fields,
            error=names.get("error", "error"),
            cost=names.get("cost", "cost"),
            ours=own | {answer},
            about={name: about[name] for name in kept if name in about},
            made=made[0],
            variants={target.name: facts for target, facts in zip(spec.targets, made, strict=True) if target.name},
        )

    @property
    def name(self) -> str:
        """The name for people."""
        return self.path.name if self.only is None else self.only[1]

    def rows(self) -> Iterator[Row]:
        """Yield the rows to compare."""
        if self.only is None:
            return objects_in(self.path)
        column, value = self.only
        return (row for row in objects_in(self.path) if text_of(row.get(column)) == value)

    def parts(self, by: str) -> list[ComparedFile]:
        """Return one part of the file per value of the column `by`. Raises `PromptmillError` (`invalid_input`)."""
        values = list(dict.fromkeys(text_of(row.get(by)) for row in objects_in(self.path)))
        if not 2 <= len(values) <= len(LETTERS):
            raise input_error(
                f"The column {by:.60} of {self.path.name} has {counted(len(values), 'value')}; 2 to {len(LETTERS)} "
                "parts can be compared."
            )
        labels = [cut(" ".join(value.split()), LABEL) for value in values]
        if not all(labels) or len(set(labels)) < len(labels):
            labels = list(LETTERS[: len(values)])
        ours = {*self.ours, by, *([MODEL] if by == VARIANT else [])}
        return [
            replace(self, label=label, only=(by, value), ours=ours, about={}, made=self.variants.get(value, {}))
            for label, value in zip(labels, values, strict=True)
        ]

    def value_of(self, row: Row, name: str) -> str:
        """Return a field of a row's answer as text, or the whole answer if `name` is `""`; `""` without an answer."""
        if row.get(self.error):
            return ""
        answer = row.get(self.answer)
        if not name:
            return text_of(answer).strip()
        if (fields := _object(answer)) is not None:
            return text_of(fields.get(name)).strip()
        is_lost = answer is None and self.answer in row  # then the input has a column of this name
        return "" if is_lost else text_of(row.get(self.fields.get(name, name))).strip()


def _object(answer: Any) -> Mapping[str, Any] | None:
    """Return an answer that is an object, or the JSON text of one (from a job without `fields`); else None."""
    if isinstance(answer, str) and answer.startswith("{"):
        with contextlib.suppress(orjson.JSONDecodeError):
            answer = orjson.loads(answer)
    return answer if isinstance(answer, Mapping) else None


def _fields(spec: JobSpec) -> dict[str, str]:
    if spec.output.answer_schema is None:
        return {}
    from promptmill.jobs.export.schema_columns import SchemaColumns  # imported on use: other comparisons do not need it

    names = spec.output.names or {}
    usual = SchemaColumns(spec.output.answer_schema, by_field=True).names
    return {name: names.get(f"{FIELD}{name}", name) for name in usual.values()}


def _made(folder: Folder, spec: JobSpec, slot: int) -> dict[str, str]:
    asked, target = status.asked(folder), spec.targets[slot]
    templates = spec.question.templates
    facts = {
        "command": asked.get("command", ""),
        "model": target.model or spec.model or spec.backend,
        "prompt": templates[target.prompt] if target.prompt < len(templates) else asked.get("prompt", ""),
        "system prompt": asked.get("system", ""),
        "sampling": ", ".join(f"{name} {value}" for name, value in (target.sampling or {}).items()),
    }
    return {name: text for name, text in facts.items() if text}


class NoCommonRowError(PromptmillError):
    """The files have no row in common."""


# ---- matching the rows of the files


@dataclass(frozen=True, slots=True)
class _Scan:
    """The hashed columns of a file."""

    rows: int
    columns: Mapping[str, array[int]]
    """The hash of each cell, by column."""
    fields: Mapping[str, None]
    """The fields of answers that are objects."""

    @classmethod
    def of(cls, file: ComparedFile) -> _Scan:
        columns: dict[str, array[int]] = {}
        fields, rows = dict.fromkeys(file.fields), 0
        for rows, row in enumerate(file.rows(), 1):
            for name, value in row.items():
                if name in columns or len(columns) < _MOST_COLUMNS:
                    column = columns.setdefault(name, array("q"))
                    column.extend(itertools.repeat(_EMPTY, rows - 1 - len(column)))
                    column.append(hash(text_of(value).strip()))
            if not file.fields and len(fields) < MOST_SHOWN:
                fields |= dict.fromkeys(_object(row.get(file.answer)) or ())
        for column in columns.values():
            column.extend(itertools.repeat(_EMPTY, rows - len(column)))
        return cls(rows, columns, fields)

    def keys(self, names: Sequence[str]) -> Sequence[int]:
        """Return the key of each row: the hash of these columns, or without columns the row's number."""
        cells = (self.columns[name] for name in names)
        return [hash(row) for row in zip(*cells, strict=True)] if names else range(self.rows)


@dataclass(frozen=True, slots=True)
class _Identity:
    """The key columns that identify equal rows of the files; empty: rows are matched by number."""

    columns: Sequence[str]
    is_sure: bool = False
    """Whether the files certainly have the same rows. Otherwise some files may lack a row, and keys must be unique."""

    @property
    def words(self) -> str:
        """The rule as text, such as `by id`."""
        named = ", ".join(self.columns[:3]) + (", …" if len(self.columns) > 3 else "")
        return f"by {named}" if self.columns else "by place"


def _identity(files: Sequence[ComparedFile], scans: Sequence[_Scan], key: str | None, gold: str) -> _Identity:
    """Return the rule that identifies equal rows. `gold` may be the column of the right answers.

    Raises `PromptmillError` (`invalid_input`) if the files have different rows.
    """
    if key is not None:
        for file, scan in zip(files, scans, strict=True):
            _check_column(file, scan, key)
        return _Identity([key])
    ours = {gold}.union(*(file.ours for file in files))
    shared = [name for name in scans[0].columns if all(name in scan.columns for scan in scans)]
    if named := next((name for name in _IDS if name in shared and name not in ours), None):
        return _Identity([named])
    own = [name for name in shared if name == gold or name not in ours]
    same = [name for name in own if len({sum(scan.columns[name]) for scan in scans}) == 1]
    are_as_many = len({scan.rows for scan in scans}) == 1
    is_sure = are_as_many and same == own
    # tested together: the files may have the same values in each column, but in other combinations
    if is_sure and len({frozenset(scan.keys(same)) for scan in scans}) == 1:
        return _Identity(same, is_sure)
    if unique := _unique(scans, [name for name in own if name != gold]):
        return _Identity([unique])
    are_parts = files[0].only is not None  # in parts of one file, rows with the same right answer are not the same row
    if are_as_many and (same or is_sure) and not (are_parts and same == [gold]):
        return _Identity(same, is_sure)
    counts = ", ".join(f"{file.name} has {counted(scan.rows, 'row')}" for file, scan in zip(files, scans, strict=True))
    differ = f"{_listed(own)} {'differs' if len(own) == 1 else 'differ'}"
    problem = f"The {'parts' if are_parts else 'files'} do not hold the same rows: {differ if are_as_many else counts}."
    raise NoCommonRowError(Code.INVALID_INPUT, problem, _NAME_A_COLUMN)


def _check_column(file: ComparedFile, scan: _Scan, name: str) -> None:
    if name not in scan.columns:
        raise input_error(f"{file.name} has no column {name:.60}; it has {_listed(scan.columns)}.")


def _unique(scans: Sequence[_Scan], names: Sequence[str]) -> str:
    """Return the column that is unique in every file and shares the most values; `""` if there is none."""
    common = {}
    for name in names:
        values = [set(scan.columns[name]) for scan in scans]
        if all(len(own) == scan.rows for own, scan in zip(values, scans, strict=True)):
            common[name] = len(set.intersection(*values))
    return max((name for name, count in common.items() if count), key=lambda name: common[name], default="")


def _listed(names: Collection[str]) -> str:
    shown = ", ".join(f"`{name:.40}`" for name in itertools.islice(names, 12))
    return shown + (", …" if len(names) > 12 else "")


# ---- right answers


@dataclass(frozen=True, slots=True)
class _Gold:
    """The source of the right answers."""

    name: str
    """The name of the column or the file."""
    file: ComparedFile
    scan: _Scan
    column: str | None
    """The column named by the user."""
    at: int | None = None
    """The index of the compared file that has the right answers in a column; None: they are in a separate file."""


def _gold_of(
    order: ComparisonOrder, files: Sequence[ComparedFile], scans: Sequence[_Scan], folders: JobFolders | None
) -> _Gold:
    gold = order.gold or ""
    having = [at for at, scan in enumerate(scans) if gold in scan.columns]
    if having:
        silent = [at for at in having if _is_silent(files[at], scans[at], order.fields)]
        at = silent[0] if silent else having[0]
        is_apart = bool(silent) and len(files) > 1
        return _Gold(gold, files[at], scans[at], gold, None if is_apart else at)
    path, _, column = gold.rpartition(":")
    for name, named in ((gold, None), (path, column)):
        if folders is not None and name and home_expanded(name).is_file():
            file = ComparedFile.of("", name, folders)
            scan = _Scan.of(file)
            if named is not None:
                _check_column(file, scan, named)
            return _Gold(file.name, file, scan, named)
    names = list(dict.fromkeys(name for scan in scans for name in scan.columns))
    near = close_matches(gold, names, n=1)
    meant = f"did you mean {near[0]:.60}?" if near else f"there are {_listed(names)}."
    raise input_error(f"No file has a column {gold:.60}, and there is no file of this name; {meant}")


def _is_silent(file: ComparedFile, scan: _Scan, fields: Sequence[str]) -> bool:
    """Return whether a file has no answers: it is not the output of a job and has no column to compare."""
    return not file.about and not file.fields and scan.columns.keys().isdisjoint([file.answer, *fields])


def _gold_values(gold: _Gold, fields: Sequence[str], own: Collection[str]) -> Callable[[Row], list[str]]:
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
        found = None if fields == [""] else _object(cell)
        if found is None and len(fields) == 1:
            return [text_of(cell).strip()]
        if found is None and text_of(cell):
            raise input_error(
                f"The column {column:.60} has one right answer to each row, but the answers have the fields "
                f"{_listed(fields)}. Name one of them: ",
                Named("field"),
                ", or a file with columns of these names: ",
                Named("gold", "FILE"),
                ".",
            )
        return [text_of((found or {}).get(name)).strip() for name in fields]

    return values


def _right_column(gold: _Gold, own: Collection[str]) -> str:
    names = gold.scan.columns
    if usual := next((name for name in _RIGHT if name in names), None):
        return usual
    others = [name for name in names if name not in own and name not in _IDS]
    if len(others) == 1:
        return others[0]
    raise input_error(
        f"{gold.name} has the columns {_listed(names)}. Name the one with the right answers: ",
        Named("gold", f"{gold.name}:COLUMN"),
        ".",
    )


def _gold_keys(gold: _Gold, file: ComparedFile, scan: _Scan, fields: Sequence[str], key: str | None) -> list[list[str]]:
    """Return the candidates for the key columns that match right answers to the rows of `file`."""
    if key is not None:
        _check_column(gold.file, gold.scan, key)
        return [[key]]
    used = {gold.column or "", *fields, *gold.file.ours, *file.ours}
    used |= set() if gold.column or fields != [""] else {_right_column(gold, scan.columns)}
    shared = [name for name in scan.columns if name in gold.scan.columns and name not in used]
    if named := next((name for name in _IDS if name in shared), None):
        return [[named]]
    if not shared and gold.scan.rows != scan.rows:
        capitals = {name.lower(): name for name in scan.columns}
        if alike := next((name for name in gold.scan.columns if name.lower() in capitals and name not in used), None):
            raise input_error(f"In {gold.name}, rename `{alike}` to `{capitals[alike.lower()]}`, as in {file.name}.")
        raise input_error(
            f"{gold.name} has no column of {file.name} that identifies rows; {file.name} has {_listed(scan.columns)}.",
            *_NAME_A_COLUMN,
        )
    return [*([shared] if len(shared) != 1 else []), *([name] for name in shared)]


def _looked_up(
    gold: _Gold, rights: Sequence[list[str]], file: ComparedFile, scan: _Scan, candidates: Sequence[list[str]]
) -> tuple[list[list[str]], str]:
    """Return the right answer to each row of `file`, and the rule by which they were matched.

    `rights`: the right answers in the separate file `gold`. Raises `PromptmillError` (`invalid_input`).
    """
    most, best, second, names = -1, dict[int, list[str]](), 0, list[str]()
    for candidate in candidates:
        table, repeated = _table(gold.scan.keys(candidate), rights)
        matched = 0 if repeated else len(table.keys() & set(scan.keys(candidate)))
        if matched > most:
            most, best, second, names = matched, table, repeated, candidate
    if second:
        raise input_error(
            f"{gold.name} has several right answers for the same {_listed(names)}, the second is in row {second}.",
            *_NAME_A_COLUMN,
        )
    rule = _Identity(names).words
    if not most:
        raise input_error(f"No row of {file.name} has a right answer in {gold.name}, {rule}.", *_NAME_A_COLUMN)
    none = [""] * len(rights[0])
    return [best.get(own, none) for own in scan.keys(names)], rule


def _table(keys: Sequence[int], rights: Sequence[list[str]]) -> tuple[dict[int, list[str]], int]:
    """Return the right answers by key, and the number of the first row that contradicts an earlier one, else 0."""
    table: dict[int, list[str]] = {}
    for number, (own, right) in enumerate(zip(keys, rights, strict=True), 1):
        if any(right) and table.setdefault(own, right) != right:
            return table, number
    return table, 0


# ---- answers


def _places(files: Sequence[ComparedFile], scans: Sequence[_Scan], identity: _Identity) -> list[list[int]]:
    """Return for each file the numbers of the rows that all files have, in the order of the first file.

    Raises `PromptmillError` (`invalid_input`) if there is no such row.
    """
    every: list[dict[tuple[int, int], int]] = []
    for file, scan in zip(files, scans, strict=True):
        seen: Counter[int] = Counter()
        every.append({})
        for at, own in enumerate(scan.keys(identity.columns)):
            if own in seen and not identity.is_sure:
                several = f"{file.name} has several rows with the same {_listed(identity.columns)}"
                is_grid = file.only is None and VARIANT in scan.columns
                names = _NAME_VARIANTS if is_grid else _NAME_A_COLUMN
                raise input_error(f"{several}, the second is row {at + 1}.", *names)
            every[-1][own, seen[own]] = at  # the n-th of several equal rows matches the n-th in each file
            seen[own] += 1
    shared = [key for key in every[0] if all(key in own for own in every[1:])]
    if not shared:
        names_ = " and ".join(file.name for file in files[:2])
        raise NoCommonRowError(Code.INVALID_INPUT, f"{names_} have no row in common, {identity.words}.", _NAME_A_COLUMN)
    return [[own[key] for key in shared] for own in every]


def _read(file: ComparedFile, scan: _Scan, fields: Sequence[str]) -> tuple[list[list[str]], ComparedFile]:
    """Return each answer's fields, and `file` with the answers' cost. Raises `PromptmillError` (`invalid_input`)."""
    values, costs, giver = list[list[str]](), list[float](), "answered_by"
    for row in file.rows():
        values.append([file.value_of(row, name) for name in fields])
        if row.get(giver) == A_PERSON and giver in file.ours and not file.has_persons:
            file = replace(file, has_persons=True)
        with contextlib.suppress(ValueError, TypeError):  # an empty cell, or the user's own column
            costs.append(float(row.get(file.cost) or ""))
    if not any(map(any, values)):
        which = file.answer if fields == [""] else "`, `".join(fields)
        if known := list(scan.fields):
            meant = did_you_mean(which, known, f"they have {_listed(known)}.")
            raise input_error(Named("field"), f": no answer of {file.name} has the field `{which}`; {meant}")
        problem = f"No row of {file.name} has an answer in `{which}`; name a column to compare: "
        raise input_error(problem, Named("field"), f". It has {_listed(scan.columns)}.")
    return values, replace(file, about={"cost": sum(costs), **file.about}) if costs else file


# ---- the rows of a comparison


@dataclass(frozen=True, slots=True)
class ComparedColumn:
    """One field of the answers, or the whole answers, in all files."""

    name: str
    """The name of the field; `""` for the whole answers."""
    kind: Kind
    values: Sequence[Sequence[str]]
    """The value of each row, by file; `""` if it is missing."""
    right: Sequence[str]
    """The right value of each row in the files' spelling (`""` if missing); empty without right answers."""
    capitals: Mapping[str, str]
    """The right values that differ from the files only in case, with the files' spelling."""
    other_kind: Mapping[str, None]
    """The distinct right values, in order, whose kind is not that of the answers, such as `12,50` for numbers."""
    tolerance: Tolerance

    @classmethod
    def of(
        cls, name: str, values: Sequence[Sequence[str]], right: Sequence[str], tolerance: Tolerance
    ) -> ComparedColumn:
        """Return the column for these values."""
        kind = kind_of(itertools.chain(*values) if any(map(any, values)) else right)
        values = [[canonical(value, kind) for value in own] for own in values]
        different = dict.fromkeys(right if kind != "text" else ())
        other_kind = dict.fromkeys(value for value in different if value and kind_of([value]) != kind)
        right = [value if value in other_kind else canonical(value, kind) for value in right]
        capitals = _other_capitals(right, values)
        right = [capitals.get(value, value) for value in right]
        return cls(name, kind, values, right, capitals, other_kind, tolerance)

    @property
    def is_exact(self) -> bool:
        """Whether two values must be equal texts to count as the same."""
        return self.kind != "number" or not self.tolerance.amount

    def same(self, value: str, other: str) -> bool:
        """Return whether two values count as the same."""
        if value == other or self.is_exact or not value or not other or other in self.other_kind:
            return value == other
        return self.tolerance.allows(value, other)


def _other_capitals(right: Sequence[str], values: Sequence[Sequence[str]]) -> dict[str, str]:
    """Return the spelling in `values` of each right answer that differs from them only in case.

    Case is significant if two answers, or two right answers, differ only in case.
    """
    spelled: dict[str, set[str]] = {}
    for answer in {answer for own in values for answer in own}:
        spelled.setdefault(answer.casefold(), set()).add(answer)
    wanted = Counter(answer.casefold() for answer in set(right))
    found = {}
    for answer in dict.fromkeys(right):
        folded = answer.casefold()
        if wanted[folded] == 1 and len(spelled.get(folded, ())) == 1 and answer not in spelled[folded]:
            (found[answer],) = spelled[folded]
    return found


@dataclass(frozen=True, slots=True)
class ComparedRows:
    """The answers of several files to the same rows, in the order of the first file."""

    files: Sequence[ComparedFile]
    columns: Sequence[ComparedColumn]
    """The compared fields; or the whole answers, as one column."""
    places: Sequence[int]
    """The number of each row in the first file, from 0."""
    sizes: Sequence[int]
    """The number of rows of each file, including rows that other files lack."""
    gold: str
    """The column or file with the right answers; `""` without right answers."""
    gold_matched: str
    """The rule by which a separate file of right answers was matched, such as `by id`; else `""`."""
    gold_columns: Collection[str]
    """The columns with right answers, which are not shown as columns of the rows."""
    matched: str
    """The rule by which rows of several files were matched, such as `by id`."""
    groups: Sequence[str] = ()
    """The group of each row, by which right answers are counted; empty without groups."""

    @classmethod
    def of(
        cls, files: Sequence[ComparedFile], order: ComparisonOrder, folders: JobFolders | None = None
    ) -> ComparedRows:
        """Read the files. `folders`: searched for the job that made a file of right answers.

        Raises `PromptmillError` (`invalid_input`) if the files have no rows in common; `OSError`.
        """
        scans = [_Scan.of(file) for file in files]
        gold = None if order.gold is None else _gold_of(order, files, scans, folders)
        if gold is not None and gold.at is None and gold.file in files:  # the user also listed it for comparison
            kept = [at for at, file in enumerate(files) if file is not gold.file]
            files, scans = [files[at] for at in kept], [scans[at] for at in kept]
            files = [replace(file, label=label) for file, label in zip(files, LETTERS, strict=False)]
        fields = list(order.fields) or _shared_fields(scans) or [""]
        files = [replace(file, ours={*file.ours, file.answer, *order.fields}) for file in files]
        aligned = gold.column or "" if gold is not None and gold.at is not None else ""
        identity = _identity(files, scans, order.id, aligned)
        places = _places(files, scans, identity)
        right, gold_matched = list[list[str]](), ""
        if gold is not None:
            values_of = _gold_values(gold, fields, scans[0].columns)
            rights, having = [values_of(row) for row in gold.file.rows()], gold.at or 0
            if gold.at is None:
                keys = _gold_keys(gold, files[0], scans[0], fields, order.id)
                rights, gold_matched = _looked_up(gold, rights, files[0], scans[0], keys)
            right = [rights[at] for at in places[having]]
        every, priced = list[list[list[str]]](), list[ComparedFile]()
        for file, scan, own in zip(files, scans, places, strict=True):
            values, with_cost = _read(file, scan, fields)
            every.append([values[at] for at in own])
            priced.append(with_cost)
        compared = [
            ComparedColumn.of(
                name,
                [[values[at] for values in own] for own in every],
                [values[at] for values in right],
                order.tolerance,
            )
            for at, name in enumerate(fields)
        ]
        sizes = [scan.rows for scan in scans]
        name = "" if gold is None else gold.name
        columns_ = {aligned} if aligned else set()
        groups: list[str] = []
        if order.by is not None and files[0].only is None:
            values_by = [text_of(row.get(order.by)) for row in files[0].rows()]
            groups = [values_by[at] for at in places[0]]
        return cls(priced, compared, places[0], sizes, name, gold_matched, columns_, identity.words, groups)

    @property
    def has_fields(self) -> bool:
        """Whether the answers have fields, which are compared separately."""
        return len(self.columns) > 1

    @property
    def has_right(self) -> bool:
        """Whether there are right answers."""
        return bool(self.gold)

    def texts(self, file: int) -> Sequence[str]:
        """Return the answers of a file, each as one text; `""` for a missing answer."""
        if len(self.columns) == 1:
            return self.columns[0].values[file]
        own = [column.values[file] for column in self.columns]
        return ["\n".join(self._lines(values)) if any(values) else "" for values in zip(*own, strict=True)]

    def _lines(self, values: Sequence[str]) -> Iterator[str]:
        return (f"{column.name}: {value}" for column, value in zip(self.columns, values, strict=True))

    def same(self, at: int, file: int, other: int) -> bool:
        """Return whether two files have the same answer to a row."""
        return all(column.same(column.values[file][at], column.values[other][at]) for column in self.columns)

    def is_right(self, at: int, file: int) -> bool:
        """Return whether an answer is right in all fields with a known right value."""
        return all(
            column.same(column.values[file][at], column.right[at]) for column in self.columns if column.right[at]
        )

    @property
    def differing(self) -> list[int]:
        """The rows with different answers; for a single file, the rows whose answer differs from the right answer."""
        rows = range(len(self.places))
        if len(self.files) == 1:
            return [at for at in rows if not self.is_right(at, 0)]
        return [at for at in rows if not all(self.same(at, 0, other) for other in range(1, len(self.files)))]

    def read(self, wanted: Collection[int]) -> Iterator[tuple[int, dict[str, str]]]:
        """Yield the number and the columns of each row in `wanted`, with the first file's values."""
        ours = {*self.gold_columns}.union(*(file.ours for file in self.files))
        rows = {self.places[at]: at for at in wanted}
        for place, row in enumerate(itertools.islice(self.files[0].rows(), max(rows, default=-1) + 1)):
            if place in rows:
                yield rows[place], {name: text_of(value) for name, value in row.items() if name not in ours}


def _shared_fields(scans: Sequence[_Scan]) -> list[str]:
    return [name for name in scans[0].fields if all(name in scan.fields for scan in scans)]


def heading_of(own: Mapping[str, str]) -> str:
    """Return the id of a row or, if it has none, its first text; `""` without either."""
    named = next((own[name] for name in _IDS if own.get(name)), None)
    if named is None:
        named = next((text for text in own.values() if text and kind_of([text]) == "text"), "")
    return " ".join(named.split())
