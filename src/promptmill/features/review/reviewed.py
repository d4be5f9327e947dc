"""The rows of a job that a person should check, and the labels that the person gives.

    job.db ─▶ rows: ties, models that disagree, low scores, failures ─▶ a table or a page ─▶ decisions ─▶ `take`

A decision becomes the delivered answer of its row (`records.PERSON`). The replaced answer is kept in `spare` and
returns if the label is taken back. No later round replaces the decision. No request is sent.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol, runtime_checkable
from xml.sax.saxutils import escape

import orjson

from promptmill.answers.checker import Checker
from promptmill.answers.schema import AnswerSchema
from promptmill.answers.schema_kinds import answers_of_labels
from promptmill.backends.protocol import Completion
from promptmill.core.bounds import LONGEST_SHOWN
from promptmill.core.errors import Code, Named, PromptmillError, input_error
from promptmill.core.feature import features, part
from promptmill.core.values import JsonDict, JsonObject, composed
from promptmill.core.wording import close_matches, counted, cut, listed
from promptmill.features.review import MOST_REVIEWED, ROWS
from promptmill.features.review.field_labels import with_fields
from promptmill.features.review.person import random_rows
from promptmill.files import disk, table_paths
from promptmill.jobs.export import output
from promptmill.jobs.export.answered import AnsweredRow, UnansweredError, answered_rows
from promptmill.jobs.export.text import OwnValues, cell
from promptmill.jobs.export.workbook_file import frozen, write_sheet
from promptmill.jobs.export.workbook_xml import clean_text
from promptmill.jobs.inputs.any_format import objects_in
from promptmill.jobs.manage.job_rows import JobRows
from promptmill.jobs.run import phases
from promptmill.jobs.store import progress, statistics, status
from promptmill.jobs.store.database import SET_ASIDE, DamagedError, JobDatabase, Work
from promptmill.jobs.store.folder import Folder
from promptmill.jobs.store.lock import Lock
from promptmill.jobs.store.plan import Doubt, JobSpec
from promptmill.jobs.store.record_labels import label_in, label_of, labels_of_job, majority
from promptmill.jobs.store.records import A_PERSON, PERSON, SLOT, Provenance, Record, record_of
from promptmill.jobs.store.rounds import stored_rounds

ROW, LABEL, WHY, KEY = "row", "label", "why", "key"
"""Columns of a review: the row's number (from 1), the person's label, the reason, and the beginning of the question's
digest."""
OF_FIELD = f"{LABEL}: "
"""The beginning of a column's name, such as `label: total`. The column has a person's values of one field."""
NO_LABEL = "-"
"""This label, or an empty one, takes an earlier label back."""
NO_DOUBT = (
    "Doubt shows with ",
    Named("votes"),
    ", ",
    Named("sure"),
    ", several models or log probabilities; ",
    Named("sample"),
    " draws any rows.",
)
"""The message if no row of a job is in doubt. In this case, no file is written."""
_FROZEN = frozen(2)
_TIE, _DISAGREE, _UNSURE, _FAILED, _DRAWN = range(5)
"""The kinds of rows, in the order in which they are shown."""
_KINDS = {"": _UNSURE, "tie": _TIE, "disagree": _DISAGREE}


@dataclass(frozen=True, slots=True)
class ReviewRow:
    """A row to review."""

    number: int
    """The row's number, from 1."""
    why: str
    answer: str
    score: float | None
    key: str
    asked: str
    """The prompt. The texts of a conversation are joined."""
    own: Mapping[str, str]
    """The columns of the input."""
    score_words: str
    """The score as text: `2 of 3 votes`, `score 0.61`."""
    label: str = ""
    """The person's label, if the row has one."""
    answers: Mapping[str, str] = field(default_factory=dict)
    """The other answers to the row, by the name of the model or variant."""
    fields: Mapping[str, Sequence[tuple[Any, str]]] = field(default_factory=dict)
    """For each field that the person should decide: the possible values, each with its place."""

    def cells(self) -> JsonDict:
        """Return the values for a row of a table, by column name."""
        of_fields = dict.fromkeys(OF_FIELD + name for name in self.fields)
        first = {ROW: self.number, LABEL: self.label, **of_fields, "answer": self.answer}
        first |= {WHY: self.why, "score": self.score}
        taken = {*first, KEY, *self.answers}
        own = {name if name not in taken else f"{name}_1": text for name, text in self.own.items()}
        return {**first, **own, **self.answers, KEY: self.key}


@dataclass(frozen=True, slots=True)
class Review:
    """The rows to review, with the permitted labels."""

    title: str
    job_id: str
    rows: Sequence[ReviewRow]
    labels: Sequence[str]
    """The labels of the job: first its choices, in order; empty if the answers are objects."""
    can_take: bool
    """Whether the job can store decisions: a job that delivers several answers per row cannot."""

    @property
    def reasons(self) -> dict[str, int]:
        """The number of rows for each reason."""
        return dict(Counter(row.why for row in self.rows))

    @property
    def columns(self) -> list[str]:
        """The columns of the review's table."""
        names = dict.fromkeys(name for row in self.rows for name in row.cells() if name != KEY)
        return [*(names or dict.fromkeys((ROW, LABEL, "answer", WHY, "score"))), KEY]


@runtime_checkable
class Decides(Protocol):
    """A plan that decides which rows have a label."""

    def check_reviewable(self, job_id: str) -> None:
        """Raise `PromptmillError` (`invalid_input`) if a job has not decided yet, because labels might be lost."""


class _Candidate(NamedTuple):
    kind: int
    score: float
    n: int
    slot: int
    why: str
    score_words: str = ""
    fields: Mapping[str, Sequence[tuple[Any, str]]] = MappingProxyType({})


def review(folder: Folder, most: int = ROWS, labels: Sequence[str] = (), *, at_random: bool = False) -> Review:
    """Return at most `most` rows of a job that a person should check, the most doubtful first.

    `labels`: additional labels. `at_random`: instead, draw from all answers, always the same rows. The function
    blocks; 1,000,000 rows take less than a minute.

    Raises `PromptmillError`.
    """
    try:
        with folder.reading() as store:
            spec, most = folder.spec_in(store), min(most, MOST_REVIEWED)
            chosen = list(_drawn(store, spec, most)) if at_random else heapq.nsmallest(most, _candidates(store, spec))
            known = labels_of_job(store, spec.output)
            rows = list(_rows(store, spec, chosen))
    except (OSError, DamagedError) as error:
        why = disk.why(error) if isinstance(error, OSError) else "its database is damaged"
        raise PromptmillError(Code.STORAGE, f"There is no review of job {folder.job_id}: {why}.", "") from None
    to = f" → {spec.output.path.name}" if spec.output.format else ""
    every = list(dict.fromkeys([*labels, *known]))
    return Review(f"{spec.input.path.name}{to}", spec.job_id, rows, every, not spec.is_grid)


def _drawn(store: JobDatabase, spec: JobSpec, most: int) -> Iterator[_Candidate]:
    for record in random_rows(store, spec, most):
        yield _Candidate(_DRAWN, 0.0, record.row, 0, "at random")


def _candidates(store: JobDatabase, spec: JobSpec) -> Iterator[_Candidate]:
    every = answered_rows(store, spec, lambda _, record: record)
    if spec.is_grid:
        for n, group in itertools.groupby(every, key=lambda answered: answered.row.n):
            decision = majority([answered.record for answered in group])
            if decision is not None and decision.record.code is None and decision.score < 1:
                words = f"{decision.agree} of {counted(spec.delivered, 'answer')}"
                yield _Candidate(_DISAGREE, decision.score, n, 0, "the answers differ", words)
        return
    for answered in every:
        if (found := _candidate(spec, answered)) is not None:
            yield found


def _candidate(spec: JobSpec, answered: AnsweredRow) -> _Candidate | None:
    record, n = answered.record, answered.row.n
    if record.settings == PERSON or spec.leaves_out(record.code):
        return None
    if record.code is not None:
        return _Candidate(_FAILED, 0.0, n, 0, f"failed: {record.code}")
    doubt = _doubt(spec, record, answered.beside)
    if doubt is None:
        return None
    return _Candidate(_KINDS[doubt.kind], doubt.score, n, 0, doubt.words, doubt.score_words, doubt.fields)


def _doubt(spec: JobSpec, record: Record, beside: Sequence[Record | None]) -> Doubt | None:
    """Return the reason why a person should check a row, given by a feature or by the plan; see `Plan.doubt`."""
    functions = (item for feature in features().values() for item in feature.doubts.items())
    found = (part(function)(record) for option, function in functions if spec.may_have(option))
    return next(filter(None, found), None) or spec.plan.doubt(spec, record, beside)


def _rows(store: JobDatabase, spec: JobSpec, chosen: Iterable[_Candidate]) -> Iterator[ReviewRow]:
    reader, own = JobRows(store, spec), OwnValues(spec)
    names, labels = _names(spec), {label_in(text): label for label, text in _answers(spec).items()}

    def shown(record: Record) -> str:
        return labels.get(label_in(record.text), record.text)

    for candidate in chosen:
        keys = [candidate.n + slot * SLOT for slot in range(len(spec.targets))]
        known = {record.slot: record for record in store.records_at(keys)}
        if (record := known.get(candidate.slot)) is None:
            continue
        (row,) = reader.read([record])
        if row.answered is None:
            continue
        others = {
            names[slot]: cut(shown(other), LONGEST_SHOWN)
            for slot, other in known.items()
            if other.code is None and (slot or spec.is_grid)
        }
        values = own.of(row.answered.row)
        score = None if candidate.kind in {_FAILED, _DRAWN} else round(abs(candidate.score), 4)
        yield ReviewRow(
            row.number,
            candidate.why,
            "" if record.code is not None else shown(record),
            score,
            record.question_key,
            "\n\n".join(text for _, text in row.asked),
            {name: cell(value) for name, value in values.items()},
            candidate.score_words or ("" if score is None else f"score {score}"),
            shown(record) if record.settings == PERSON else "",
            others,
            candidate.fields,
        )


def _answers(spec: JobSpec) -> dict[str, str]:
    """Return the schema's answers by their labels; `{}` without a schema."""
    return {} if spec.output.answer_schema is None else answers_of_labels(spec.output.answer_schema)


def _names(spec: JobSpec) -> list[str]:
    """Return the names of a row's answers, by slot: the models, or `vote 1`, `vote 2`, …."""
    if spec.is_grid:
        return [target.name for target in spec.targets]
    first, *beside = [target.model or spec.model or spec.backend for target in spec.targets]
    names = [slot.name for slot in spec.plan.slots[1:]]
    if len({*beside}) < len(beside) and not any(map(str.isdigit, names)):
        return [first, *names]
    # if a plan names repeated answers only by numbers, the models' names are at least as good
    return [first, *(name if name not in beside[:at] else f"{name} {at + 1}" for at, name in enumerate(beside))]


# ---- the tables


def write_workbook(target: Path, found: Review) -> None:
    """Write a review as a new workbook. Its column `label` offers the labels. Raises `PromptmillError`."""
    if target.exists():
        raise input_error(f"{target} exists, perhaps with a person's labels; name another file.")
    choices, rules = f'"{",".join(found.labels)}"', ""
    if (
        found.rows
        and found.labels
        and len(choices) <= 257
        and not any(set(label) & set(',"') for label in found.labels)
    ):
        rules = (
            f'<dataValidations count="1"><dataValidation type="list" allowBlank="1" sqref="B2:B{len(found.rows) + 1}">'
            f"<formula1>{escape(clean_text(choices))}</formula1></dataValidation></dataValidations>"
        )
    rows = ([row.cells().get(name) for name in found.columns] for row in found.rows)
    try:
        with target.open("xb") as file:
            write_sheet(file, "Review", itertools.chain([found.columns], rows), _FROZEN, rules)
    except OSError as error:
        raise PromptmillError(Code.STORAGE, f"{target} cannot be written: {disk.why(error)}.", "") from None


# ---- the decisions


@dataclass(frozen=True, slots=True)
class Taken:
    """The result of storing a person's labels."""

    taken: int
    """The number of stored labels, without labels that the job already had."""
    changed: int
    """The number of stored labels that differ from the answer they replace."""
    taken_back: int
    """The number of labels that were taken back. Their rows have their earlier outcome again."""
    is_written: bool
    """Whether the output has the labels; otherwise the job is not finished."""
    refused: Sequence[str] = ()
    """The refused lines of the file, with the reasons."""

    def as_dict(self) -> JsonDict:
        """Return the counts and the refused lines for programs."""
        counts = {"taken": self.taken, "changed": self.changed, "taken_back": self.taken_back}
        return {**counts, "written": self.is_written, **({"refused": [*self.refused]} if self.refused else {})}


def take(folder: Folder, decisions: Path, labels: Sequence[str] = ()) -> Taken:
    """Store the labels of a person in a job, and write its output again. `labels`: additional labels.

    `decisions` has the columns `row` (from 1), `label` and `key` of a review. The label `-`, or an empty label, takes
    an earlier label back; the row then has its earlier outcome. Other rows without a label are ignored. Labels may
    differ from the job's in upper and lower case. All are checked before the first is stored; the result names refused
    labels. A killed call has stored all labels or none; the same call, or the job's next run, then writes the output.

    Raises `PromptmillError`, also if all lines of the file are refused.
    """
    folder.known_spec()
    lock = Lock.take(folder.lock)
    if lock is None:
        raise input_error(f"Job {folder.job_id} is running; take the labels after its end.")
    try:
        with output.storage_errors(folder.database):
            folder.open()
            folder.roll_back()
            return _take(folder, decisions, labels)
    finally:
        folder.close()
        lock.release()


def _take(folder: Folder, decisions: Path, labels: Sequence[str]) -> Taken:
    store, spec, made = folder.store, folder.known_spec(), folder.result
    if spec.is_grid:
        raise input_error(
            f"Job {spec.job_id} delivers several answers to each row, so it takes no labels. To measure its answers, "
            "compare them",
            Named("command", "compare", " ({})"),
            " with ",
            Named("gold", f"{decisions.name}:label"),
            ".",
        )
    if isinstance(spec.plan, Decides):
        spec.plan.check_reviewable(spec.job_id)
    there = table_paths.stamp(spec.output.path) if spec.output.format else None
    if there is not None and not output.is_own(spec, made, there):
        remedy = "repeat the command of the job, which sends nothing" if spec.fills_input else "move it away"
        raise input_error(f"{spec.output.path} has changed since the job wrote it; {remedy}, and take them again.")
    known = [*(labels if spec.output.answer_schema is None else ()), *labels_of_job(store, spec.output)]
    wanted, refused = _decided(store, spec, decisions, known)
    before = {record.row: record for record in store.records_at([n for n, _ in wanted])}
    new = [(n, label) for n, label in wanted if label and not _has(before.get(n), label)]
    back = [before[n] for n, label in wanted if not label and before[n].settings == PERSON]
    made_by = Provenance(PERSON, max((each.id for each in stored_rounds(store)), default=0))
    records = [
        record_of(n, Completion(label, "stop", answered_by=A_PERSON), before[n].asked, made_by) for n, label in new
    ]
    if records or back:
        if made is not None:
            folder.put(output=made.model_copy(update={"finished": False}))
        keys = [record.key for record in records]
        failures = f"{SET_ASIDE} AND code IS NOT NULL", [(key,) for key in keys]
        store.write(records, keys, failures, *_restored(store, back))
    changed = sum(before[n].code is not None or label_of(before[n]) != label_in(label) for n, label in new)
    return Taken(len(records), changed, len(back), _written_again(folder, spec), refused)


def _restored(store: JobDatabase, back: Sequence[Record]) -> Iterator[tuple[str, Sequence[tuple[Any, ...]]]]:
    """Yield the database changes that delete labels and restore the earlier outcomes of their rows.

    A row without an earlier outcome, for example because its label came from another job, becomes open again.
    """
    known: dict[bytes | None, list[tuple[int, int]]] = {}
    query = """
        SELECT asked, key, place FROM spare WHERE settings != ? AND key < ?
        AND (asked IS NULL OR asked IN (SELECT asked FROM answer WHERE settings = ?)) ORDER BY place
    """
    for asked, key, place in store.read(query, PERSON, SLOT, PERSON):
        known.setdefault(asked, []).append((key, place))
    places = []
    for record in back:
        # find the row with this question, which may have moved, or, without a question, the row with the same key
        of_question = known.get(record.asked, [])
        mine = [one for one in of_question if one[0] == record.key] or (of_question if record.asked else [])
        if mine:
            found = mine[-1]
            of_question.remove(found)
            places.append((record.key, found[1]))
    fields = ", ".join(Record._fields[1:])
    yield "DELETE FROM answer WHERE key = ?", [(record.key,) for record in back]
    yield f"INSERT INTO answer SELECT ?, {fields} FROM spare WHERE place = ?", places
    yield "DELETE FROM spare WHERE place = ?", [(place,) for _, place in places]
    yield "DELETE FROM spare WHERE settings = ? AND asked IS ?", [(PERSON, record.asked) for record in back]


def _has(record: Record | None, label: str) -> bool:
    return record is not None and record.settings == PERSON and label_of(record) == label_in(label)


class _Decision(NamedTuple):
    where: str
    """The location of the decision in the file, for an error message."""
    n: int
    label: str


def _decided(
    store: JobDatabase, spec: JobSpec, decisions: Path, known: Sequence[str]
) -> tuple[list[tuple[int, str]], list[str]]:
    """Return the number (from 0) and the label of each row with a decision (`""` takes an earlier label back), and the
    problems of refused lines.

    `known`: the permitted labels, which may include `-`. Raises `PromptmillError`, also if all lines are refused.
    """
    read, refused = list[_Decision](), list[str]()
    try:
        for at, row in enumerate(objects_in(decisions), 1):
            where = f"Row {at} of {decisions.name}"
            if missing := [f"`{name}`" for name in (ROW, LABEL, KEY) if name not in row]:
                raise input_error(f"{where} has no {' and no '.join(missing)}; take rows that a review wrote.")
            try:
                read += _decision(store, where, row, known, spec.output.answer_schema)
            except PromptmillError as error:
                refused.append(error.message)
    except OSError as error:
        raise PromptmillError(Code.STORAGE, f"{decisions} cannot be read: {disk.why(error)}.", "") from None
    labels = _known_labels(spec, {each.label for each in read}, known)
    found: dict[int, str] = {}
    unknown = list[str]()
    for where, n, text in read:
        label, problem = labels[text]
        if problem:
            refused.append(f"{where}: {problem}")
            unknown.append(text)
        elif found.setdefault(n, label) != label:
            refused.append(f"{where}: row {n + 1:,} has another label above.")
    if refused and not found:
        allowed = Named("choices", ",".join([*known[:8], *unknown])[:200], " To allow it: {}.")
        may_allow = unknown and known and spec.output.answer_schema is None
        raise input_error(refused[0], *([allowed] if may_allow else ()))
    return sorted(found.items()), refused


def _decision(
    store: JobDatabase, where: str, row: JsonObject, known: Sequence[str], schema: JsonObject | None
) -> list[_Decision]:
    """Return the decision in a line of the file; `[]` without a decision. Raises `PromptmillError`."""
    label, key = _text(row[LABEL]).strip(), _text(row[KEY]).strip()
    number = _text(row[ROW]).strip().removesuffix(".0")
    n = int(number) - 1 if number.isdecimal() else -1
    record = store.record(n) if n >= 0 else None
    fields = {
        name.removeprefix(OF_FIELD): row[name]
        for name in row
        if name.startswith(OF_FIELD) and row[name] is not None and row[name] != ""
    }
    if not (label or fields) and (record is None or record.settings != PERSON or key != record.question_key):
        return []  # the row has no label to take back
    if record is None:
        raise input_error(f"{where}: the job has no answered row {number[:20]!r}.")
    if key != record.question_key:
        if not key:
            raise input_error(f"{where}: row {number} has no `{KEY}`; copy it from the review.")
        raise input_error(f"{where}: row {number} of the job has another question now; make a new review.")
    if label == NO_LABEL and label not in known:
        return [_Decision(where, n, "")]
    if fields or schema is not None:
        answer = record.text if record.code is None else str(record.extras.get("part", ""))
        try:
            label = with_fields(schema or {}, answer, label, fields)
        except KeyError as error:
            raise input_error(f"{where}: the answer has no field {str(error.args[0])[:60]!r}.") from None
        except ValueError:
            raise input_error(f"{where} has a label of the whole answer and of its fields; keep one.") from None
    return [_Decision(where, n, label)]


def _text(value: Any) -> str:
    return "" if value is None else value if isinstance(value, str) else orjson.dumps(value).decode()


def _known_labels(spec: JobSpec, texts: Collection[str], known: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Return, for each text, the answer that it stands for, and a problem if the text is no `known` label, or does not
    match the schema. With a schema, a text may also be a whole answer as JSON."""
    schema, answers, problems = spec.output.answer_schema, _answers(spec), dict[str, str]()
    if schema is not None:
        problems = asyncio.run(_problems(schema, (text for text in texts if text and text not in answers)))
    found: dict[str, tuple[str, str]] = {}
    for text in texts:
        alike = [label for label in known if composed(label).casefold() == composed(text).casefold()]
        if not text or label_in(text) in known or (not known and schema is None):
            found[text] = answers.get(text, text), ""  # a job without labels has free texts
        elif len(alike) == 1:
            found[text] = answers.get(alike[0], alike[0]), ""
        elif schema is not None and not problems[text]:
            found[text] = text, ""
        elif not known:
            found[text] = text, f"the label does not fit the schema: {problems[text]}."
        else:
            near = close_matches(text, known, n=1)
            meant = f"did you mean {near[0]:.60}?" if near else f"there are {listed(known)}."
            found[text] = "", f"no answer of the job has the label {text[:60]!r}; {meant}"
    return found


async def _problems(schema: JsonObject, labels: Iterable[str]) -> dict[str, str]:
    checker, known = Checker(), AnswerSchema(orjson.dumps(schema).decode())
    try:
        return {label: (await checker.check(known, label, checker, complete=True)).problem for label in labels}
    finally:
        await checker.aclose()


def _written_again(folder: Folder, spec: JobSpec) -> bool:
    """Write the output of a finished job, and the figures of its status. Return whether the job is finished."""
    made, last = folder.result, folder.status
    if made is None or made.limit == 0 or last.get("state") != progress.FINISHED:
        return False
    if spec.output.format and not made.finished:
        there = table_paths.stamp(spec.output.path)
        try:
            written = phases.export(Work(), folder, limit=made.limit)
        except UnansweredError:
            return False
        phases.publish(folder, written, there, made.limit)
    elif not made.finished:
        folder.put(output=made.model_copy(update={"finished": True}))
    end = output.end_of(folder.store, made.limit)
    counts = statistics.counts(folder.store, before=end, skips_empty=spec.question.skip_empty)
    kept = {name: value for name, value in last.items() if name != "shares"}  # the shares may be unknown now
    folder.put(status={**kept, **counts.of_rows(), **status.figures_of(folder.store, spec, end)})
    return True
