"""Files of answers to the same rows, read for a comparison.

    files ──► _scanned: columns ──► _identity: which columns make rows the same ──► _read: answers in the first
              of each file                                                          file's order ──► `ComparedRows`

The files are read twice, so that the columns of the rows are never all in memory.
"""

from __future__ import annotations

import contextlib
import itertools
import math
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import orjson

from promptmill.core.errors import Named, input_error
from promptmill.core.wording import close_matches, counted
from promptmill.jobs import columns
from promptmill.jobs.columns import FIELD, MODEL, OURS, VARIANT
from promptmill.jobs.inputs.any_format import objects_in
from promptmill.jobs.inputs.formats import TABLES
from promptmill.jobs.store import status
from promptmill.jobs.store.index import JobFolders
from promptmill.jobs.store.spec import JobSpec

LETTERS = "ABCDEFGHIJ"
_IDS = ("id", "custom_id")
_NAME_A_COLUMN = " Name a column that identifies rows: ", Named("id"), "."
_NAME_VARIANTS = " It has several answers to each row; to compare these: ", Named("by", VARIANT), "."


@dataclass(frozen=True, slots=True)
class ComparedFile:
    """A file of answers; `letter` names it in the text."""

    letter: str
    path: Path
    answer: str = "answer"
    """The column that is compared."""
    within: str = ""
    """The field of the answers to compare, else the column of this name; `""`: the answers."""
    error: str = "error"
    ours: Collection[str] = OURS
    """The columns that are not the row's own."""
    about: Mapping[str, Any] = field(default_factory=dict)
    """The status of the job that made it."""
    cost: str = "cost"
    only: tuple[str, str] | None = None
    """The column and the value of the rows that count; None: all rows."""

    @classmethod
    def of(cls, letter: str, what: str, folders: JobFolders, wanted: str | None) -> ComparedFile:
        """Return the file that `what` names. Raises `PromptmillError`."""
        folder = folders.maker(what)
        spec = None if folder is None else folder.spec
        if folder is None or spec is None:
            answer = wanted or "answer"
            return cls(letter, Path(what).expanduser(), within=wanted or "", ours={*OURS, answer})
        output = spec.output.path
        if not output.exists():
            raise input_error(
                f"Job {spec.job_id} has written no output yet. Run `promptmill jobs {spec.job_id} --export FILE`."
            )
        names, fields = spec.output.names or {}, _fields(spec)
        usual = {**{key: key for key in (*OURS, *columns.variant_fields(spec))}, **fields}
        own = {names.get(key, name) for key, name in usual.items()}
        answer = names.get("answer", spec.output.form.column)
        column = names.get(f"{FIELD}{wanted}", wanted) if f"{FIELD}{wanted}" in fields else wanted
        about: Mapping[str, object] = status.read(folder)
        kept = ("job_id", "model", "cost", "seconds", "prompt_tokens", "completion_tokens")
        return cls(
            letter,
            output,
            answer=answer,
            within=column or "",
            error=names.get("error", "error"),
            cost=names.get("cost", "cost"),
            ours=own | {answer},
            about={name: about[name] for name in kept if name in about},
        )

    @property
    def name(self) -> str:
        """The name for people."""
        return self.path.name if self.only is None else self.only[1]

    def rows(self) -> Iterator[Mapping[str, Any]]:
        """Yield the rows that count."""
        if self.only is None:
            return objects_in(self.path)
        column, value = self.only
        return (row for row in objects_in(self.path) if text_of(row.get(column)) == value)

    def parts(self, by: str) -> list[ComparedFile]:
        """Return a part of the file for each value of the column `by`. Raises `PromptmillError` (`invalid_input`)."""
        values = dict.fromkeys(text_of(row.get(by)) for row in objects_in(self.path))
        if not 2 <= len(values) <= len(LETTERS):
            raise input_error(
                f"The column {by:.60} of {self.path.name} has {counted(len(values), 'value')}; 2 to {len(LETTERS)} "
                "parts can be compared."
            )
        ours = {*self.ours, by, *([MODEL] if by == VARIANT else [])}
        return [
            replace(self, letter=letter, only=(by, value), ours=ours, about={})
            for letter, value in zip(LETTERS, values, strict=False)
        ]

    def answer_of(self, row: Mapping[str, Any]) -> str:
        """Return the answer of a row as a text, `""` for none."""
        if row.get(self.error):
            return ""
        answer = row.get(self.answer)
        if not self.within:
            return text_of(answer).strip()
        if isinstance(answer, str) and answer.startswith("{"):  # as a job without `fields` writes it
            with contextlib.suppress(orjson.JSONDecodeError):
                answer = orjson.loads(answer)
        if isinstance(answer, Mapping):
            return text_of(answer.get(self.within)).strip()
        is_lost = answer is None and self.answer in row  # then a column of this name is the row's own
        return "" if is_lost else text_of(row.get(self.within)).strip()


def _fields(spec: JobSpec) -> Mapping[str, str]:
    """Return the usual names of the columns that hold fields of the answers, by their keys."""
    if spec.output.answer_schema is None or spec.output.format not in TABLES:
        return {}
    schema = columns.schema_columns(spec)
    return {} if schema is None else schema.names


def text_of(value: Any) -> str:
    """Return a value as text, the same for every format: `1`, `true`, JSON of lists and objects."""
    match value:
        case None:
            return ""
        case str():
            return value
        case bool():
            return "true" if value else "false"
        case float():
            return "" if math.isnan(value) else str(int(value)) if value.is_integer() else repr(value)
        case int():
            return str(value)
    return orjson.dumps(value, default=str, option=orjson.OPT_SORT_KEYS).decode()


# ---- which rows are the same


@dataclass(frozen=True, slots=True)
class _Scan:
    """The rows of a file; each column has a sum over its cells that does not depend on their order."""

    rows: int
    sums: Mapping[str, int]


def _scanned(file: ComparedFile) -> _Scan:
    rows, sums = 0, dict[str, int]()
    for row in file.rows():
        rows += 1
        for name, value in row.items():
            text = text_of(value)
            sums[name] = sums.get(name, 0) + (hash(text) if text else 0)
    return _Scan(rows, sums)


@dataclass(frozen=True, slots=True)
class _Identity:
    """The key columns, by which rows of the files are matched; empty: by position."""

    columns: Sequence[str]
    must_be_unique: bool = False
    """Whether the files share more columns than these."""

    @property
    def words(self) -> str:
        """The name of the rule, such as `by id`."""
        named = ", ".join(self.columns[:3]) + (", …" if len(self.columns) > 3 else "")
        return f"by {named}" if self.columns else "by place"


def _identity(files: Sequence[ComparedFile], scans: Sequence[_Scan], key: str | None) -> _Identity:
    """Return the rule for equal rows. Raises `PromptmillError` (`invalid_input`) for files of other rows."""
    ours = set().union(*(file.ours for file in files))
    shared = [name for name in scans[0].sums if all(name in scan.sums for scan in scans)]
    if key is not None:
        for file, scan in zip(files, scans, strict=True):
            if key not in scan.sums:
                raise input_error(f"{file.name} has no column {key:.60}; it has {_listed(scan.sums)}.")
        return _Identity([key])
    shared = [name for name in shared if name not in ours]
    if named := next((name for name in _IDS if name in shared), None):
        return _Identity([named])
    if len({scan.rows for scan in scans}) > 1:
        counts = ", ".join(
            f"{file.name} has {counted(scan.rows, 'row')}" for file, scan in zip(files, scans, strict=True)
        )
        raise input_error(f"The files do not hold the same rows: {counts}.", *_NAME_A_COLUMN)
    same = [name for name in shared if len({scan.sums[name] for scan in scans}) == 1]
    if shared and not same:
        verb = "differs" if len(shared) == 1 else "differ"
        raise input_error(f"The files do not hold the same rows: {_listed(shared)} {verb}.", *_NAME_A_COLUMN)
    return _Identity(same, must_be_unique=len(same) < len(shared))


def _listed(names: Collection[str]) -> str:
    shown = ", ".join(f"`{name:.40}`" for name in itertools.islice(names, 12))
    return shown + (", …" if len(names) > 12 else "")


@dataclass(slots=True)
class _Answers:
    """The answers of a file in the order of its rows, and what identifies each row."""

    keys: list[int]
    values: list[str]
    gold: list[str]
    cost: float | None = None
    """The sum over the rows, if they have their costs."""


def _read(file: ComparedFile, identity: _Identity, gold: str, *, has_answers: bool) -> _Answers:
    """Read a file. Raises `PromptmillError` (`invalid_input`)."""
    keys, values, right, costs = [], [], [], []
    seen: Counter[int] = Counter()
    for at, row in enumerate(file.rows()):
        own = hash(tuple(text_of(row.get(name)) for name in identity.columns)) if identity.columns else at
        if own in seen and (identity.must_be_unique or list(identity.columns) in ([one] for one in _IDS)):
            which = (
                f"{file.name} has several rows with the same {_listed(identity.columns)}, the second is row {at + 1}."
            )
            is_grid = file.only is None and VARIANT in row
            raise input_error(which, *(_NAME_VARIANTS if is_grid else _NAME_A_COLUMN))
        keys.append(hash((own, seen[own])))  # the n-th of equal rows is the n-th in each file
        seen[own] += 1
        values.append(file.answer_of(row))
        with contextlib.suppress(ValueError, TypeError):  # empty, or a column of the user's
            costs.append(float(row.get(file.cost) or ""))
        if gold:
            right.append(text_of(row.get(gold)).strip())
    if has_answers and not any(values):
        none = f"No row of {file.name} has an answer in `{file.within or file.answer}`; name a column to compare: "
        raise input_error(none, Named("field"), f". It has {_listed(_scanned(file).sums)}.")
    return _Answers(keys, values, right, sum(costs) if costs else None)


def _matched(files: Sequence[ComparedFile], every: Sequence[_Answers], identity: _Identity) -> list[_Answers]:
    """Return the answers in the order of the first file. Raises `PromptmillError` (`invalid_input`)."""
    first, found = every[0], [every[0]]
    for file, answers in zip(files[1:], every[1:], strict=True):
        places = {key: at for at, key in enumerate(answers.keys)}
        own = set(first.keys)
        for one, lacking, other in (
            (files[0], [at for at, key in enumerate(first.keys) if key not in places], file),
            (file, [at for at, key in enumerate(answers.keys) if key not in own], files[0]),
        ):
            if lacking:
                which = "row is" if len(lacking) == 1 else "rows are"
                raise input_error(
                    f"The files do not hold the same rows, {identity.words}: {len(lacking):,} {which} in "
                    f"{one.name} and not in {other.name}, such as row {lacking[0] + 1:,}."
                )
        order = [places[key] for key in first.keys]
        gold = [answers.gold[at] for at in order] if answers.gold else []
        found.append(_Answers(first.keys, [answers.values[at] for at in order], gold))
    return found


def _golden(files: Sequence[ComparedFile], scans: Sequence[_Scan], gold: str) -> int:
    """Return the file whose column `gold` has the right answers. Raises `PromptmillError` (`invalid_input`)."""
    having = [at for at, scan in enumerate(scans) if gold in scan.sums]
    if not having:
        names = list(dict.fromkeys(name for scan in scans for name in scan.sums))
        near = close_matches(gold, names, n=1)
        meant = f"did you mean {near[0]:.60}?" if near else f"there are {_listed(names)}."
        raise input_error(f"No file has a column {gold:.60}; {meant}")
    return next((at for at in having if _is_silent(files[at], scans[at])), having[0])


def _is_silent(file: ComparedFile, scan: _Scan) -> bool:
    """Return whether a file has no answers; a job's output without this column has its fields as columns."""
    return not file.about and file.answer not in scan.sums and file.within not in scan.sums


def _other_capitals(right: Sequence[str], values: Sequence[Sequence[str]]) -> dict[str, str]:
    """Return the spelling in `values` of each right answer that differs from them in capitals alone.

    Capitals count if two answers, or two right answers, differ in nothing else.
    """
    spelled: dict[str, set[str]] = {}
    for one in {answer for own in values for answer in own}:
        spelled.setdefault(one.casefold(), set()).add(one)
    wanted = Counter(one.casefold() for one in set(right))
    found = {}
    for one in dict.fromkeys(right):
        folded = one.casefold()
        if wanted[folded] == 1 and len(spelled.get(folded, ())) == 1 and one not in spelled[folded]:
            (found[one],) = spelled[folded]
    return found


@dataclass(frozen=True, slots=True)
class ComparedRows:
    """The answers of several files to the same rows, in the order of the first file."""

    files: Sequence[ComparedFile]
    values: Sequence[Sequence[str]]
    """The answers of each file, `""` for none."""
    gold: str
    """The column with the right answers, `""` without one."""
    right: Sequence[str]
    """The right answers, spelled as the files spell them; empty without a column."""
    capitals: Mapping[str, str]
    """Right answers whose letters are larger or smaller in the files, and how the files spell them."""
    matched: str
    """The rule by which rows of several files are the same, such as `by id`."""

    @classmethod
    def of(cls, files: Sequence[ComparedFile], gold: str | None, key: str | None) -> ComparedRows:
        """Read the files; `gold` and `key` are columns.

        Raises `PromptmillError` (`invalid_input`) if the files do not hold the same rows; `OSError`.
        """
        scans = [_scanned(file) for file in files]
        identity = _identity(files, scans, key)
        golden = None if gold is None else _golden(files, scans, gold)
        silent = {at for at in [golden] if at is not None and _is_silent(files[at], scans[at])}
        if len(silent) == len(files):  # reading it reports the missing answers
            silent = set()
        order = sorted(range(len(files)), key=silent.__contains__)
        read = [
            _read(files[at], identity, (gold or "") if at == golden else "", has_answers=at not in silent)
            for at in order
        ]
        every = _matched([files[at] for at in order], read, identity)
        right = [] if golden is None else every[order.index(golden)].gold
        kept = [
            file if answers.cost is None else replace(file, about={"cost": answers.cost, **file.about})
            for file, answers in zip([files[at] for at in order if at not in silent], read, strict=False)
        ]
        kept = [replace(file, letter=letter) for letter, file in zip(LETTERS, kept, strict=False)]
        values = [answers.values for answers, _ in zip(every, kept, strict=False)]
        capitals = _other_capitals(right, values)
        right = [capitals.get(one, one) for one in right]
        return cls(kept, values, gold or "", right, capitals, identity.words)

    @property
    def differing(self) -> list[int]:
        """The rows whose answers differ; for a single file, the rows whose answer differs from the right one."""
        several = self.values if len(self.values) > 1 else [*self.values, self.right]
        return [at for at, row in enumerate(zip(*several, strict=True)) if len(set(row)) > 1]

    def read(self, wanted: Collection[int]) -> Iterator[tuple[int, dict[str, str]]]:
        """Yield each row in `wanted` with its own columns, as the first file has them."""
        ours, last = {self.gold}.union(*(file.ours for file in self.files)), max(wanted, default=-1)
        wanted = set(wanted)
        for at, row in enumerate(itertools.islice(self.files[0].rows(), last + 1)):
            if at in wanted:
                yield at, {name: text_of(value) for name, value in row.items() if name not in ours}
