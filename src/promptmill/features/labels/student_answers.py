"""The student's answers. The student learns from some answers of the strong model, and labels other rows.

    draw ─▶ round `train` ─▶ round `sample`: both with the strong model ─▶ learn, answer the sample, decide: the cut
                                  ─▶ `student`: all other rows ─▶ `sure`: copies ─▶ `unsure`: the strong model

The answers of the student are in the cheap model's slot. Training rows and sample are drawn together without overlap.
So the student's answers, like a cheap model's, do not depend on the sampled rows.

A student is not stored: each run trains it again with the same answers in the same order. If the answers have changed
since the cut (such as by a person's label), it answers no more rows, because the cut is not valid for new answers.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence

from promptmill.backends.protocol import Completion, Failure
from promptmill.core.errors import PromptmillError, input_error
from promptmill.core.wording import counted
from promptmill.features.labels.cut import number
from promptmill.features.labels.row_texts import fields_of, prompt_of, rows_of, texts_of
from promptmill.features.labels.rule import STUDENT, VECTORS
from promptmill.features.labels.student import Classifier, RowText
from promptmill.jobs.rows.row_questions import RowRequests
from promptmill.jobs.store.database import JobDatabase, Row
from promptmill.jobs.store.plan import RunningJob
from promptmill.jobs.store.record_labels import label_of
from promptmill.jobs.store.records import PERSON, SLOT, Provenance, Record, record_of
from promptmill.jobs.store.rounds import ANSWERED, Round, stored_rounds
from promptmill.jobs.store.spec import digest

FEWEST_ROWS = 5_000
"""The minimum number of rows for a student. With fewer, training and sample would use too many strong answers."""
_FEWEST_TAUGHT = 1_000
_MOST_TAUGHT = 20_000  # answers of the strong model, which are paid
_FEW_MISSING, _MOST_MISSING = 20, 0.01  # max rows without a vector: a number, and a share of the rows
_IS_UNLABELLED = f"NOT EXISTS (SELECT 1 FROM answer AS done WHERE done.key = answer.key - {VECTORS * SLOT})"


def taught_of(rows: int) -> int:
    """Return the number of training rows for a table of `rows` rows; 0 if the table is too small.

    >>> taught_of(4_999), taught_of(10_000), taught_of(1_000_000), taught_of(10_000_000)
    (0, 1000, 10000, 20000)
    """
    if rows < FEWEST_ROWS:
        return 0
    return min(_MOST_TAUGHT, max(_FEWEST_TAUGHT, round(math.pow(rows, 2 / 3))))


class StudentAnswers:
    """The student's answers during one run. All methods block and raise the errors of `JobDatabase`."""

    def __init__(self, job: RunningJob, kind: type[Classifier], *, has_vectors: bool) -> None:
        self._job, self._kind, self._end, self._work = job, kind, job.end, job.work
        self._has_vectors = has_vectors
        self._known: tuple[str, Classifier, dict[str, str]] | None = None
        self._maker: RowRequests | None = None

    def answer_sample(self, round_: int) -> str:
        """Label the sample. Return the digest of the student's training examples. The call may be repeated."""
        learned, _, _ = self._learn()
        chosen = [n for (n,) in self._store.read("SELECT n FROM chosen WHERE round > 0 ORDER BY n")]
        for records in self._answer(chosen, round_):
            self._store.write(records)
        return learned

    def has_learned(self, learned: str) -> bool:
        """Return whether the training answers still have the digest `learned`, as at the cut."""
        return self._learn()[0] == learned

    def answers(self, round_: Round, pages: Iterable[Sequence[int]]) -> Iterator[Sequence[Record]]:
        """Yield the student's answers to the rows of a round."""
        for page in pages:
            for records in self._answer(page, round_.id):
                yield records
                self._work.done(len(records))

    def check_vectors(self) -> None:
        """Raise the error of a missing vector if many rows have no vector for a temporary reason. Otherwise the strong
        model would answer these rows, or the student would learn without them."""
        first = VECTORS * SLOT
        where = f"key >= {first} AND key < {first + self._end} AND {_IS_UNLABELLED}"
        failed = f"{where} AND retryable"
        missing = self._store.count(failed) if self._has_vectors else 0
        if missing > max(_FEW_MISSING, _MOST_MISSING * self._store.count(where)):
            (key,) = self._store.keys(failed, "ORDER BY key LIMIT 1")
            error = next(record.outcome() for record in self._store.records_at([key]))
            assert isinstance(error, Failure)
            problem = f"{counted(missing, 'row')} got no vector: {error.error.message}"
            raise PromptmillError(error.error.code, problem, "The same command requests them again.")

    @property
    def _store(self) -> JobDatabase:
        return self._job.store

    def _answer(self, numbers: Sequence[int], round_: int) -> Iterator[Sequence[Record]]:
        made = Provenance(self._job.spec.targets[1].settings, round_, (), STUDENT)
        for rows in rows_of(self._job, numbers):
            yield self._answered(rows, made)

    def _answered(self, rows: Sequence[Row], made: Provenance) -> list[Record]:
        _, student, answers = self._learn()
        texts, outcomes = self._texts(rows)
        for n, found in zip(texts, student.answers([*texts.values()]), strict=True):
            if found is None:
                outcomes[n] = Failure(input_error("The student has no answers to learn from, or no vector of the row."))
            else:
                label, chance = found
                text = answers[label]
                outcomes[n] = Completion(text, "stop", attempts=0, probabilities={"": {text: chance}})
        return [record_of(row.n + SLOT, outcomes[row.n], (row.asked or b"")[:16], made) for row in rows]

    def _learn(self) -> tuple[str, Classifier, dict[str, str]]:
        """Return the digest of the training answers, the student, and an example answer for each label."""
        if self._known is None:
            rounds = [each.id for each in stored_rounds(self._store) if each.rows == "taught"]
            ids = ", ".join(map(str, rounds)) or "-1"
            where = f"key < {SLOT} AND {ANSWERED} AND settings != {PERSON} AND round IN ({ids})"
            keys = self._store.keys(where, "ORDER BY key")
            labels = dict[int, str]()
            answers = dict[str, str]()
            for record in self._store.records_at(keys):
                if record.row < self._end:
                    labels[record.row] = label_of(record)
                    answers.setdefault(label_of(record), record.text)
            seed = self._job.spec.job_id
            pages = (self._texts(rows)[0] for rows in rows_of(self._job, labels))
            texts = {n: text for page in pages for n, text in page.items() if text.text}
            examples = [(texts[n], labels[n]) for n in sorted(texts, key=lambda n: number("learn", seed, n))]
            learned = digest(*labels.items(), *((n, text.vector.hex()) for n, text in texts.items() if text.vector))
            self._known = learned, self._kind(examples, self._work.check), answers
        return self._known

    def _texts(self, rows: Sequence[Row]) -> tuple[dict[int, RowText], dict[int, Completion | Failure]]:
        """Return the texts of rows, with their vectors if they have them, and the failures of rows without a text."""
        if self._maker is None:
            self._maker = self._job.requests()
        template = self._maker.questions.template
        if not self._has_vectors:
            texts, failures = texts_of(rows, self._maker, prompt_of)
            return {n: RowText(text) for n, text in texts.items()}, failures
        texts, failures = texts_of(rows, self._maker, lambda request: fields_of(request, template))
        here = self._job.spec.targets[VECTORS].settings  # vectors of another encoder are not comparable
        found = self._store.records_at([n + VECTORS * SLOT for n in texts])
        vectors = {record.row: record.vector or b"" for record in found if record.settings == here}
        return {n: RowText(text, vectors.get(n, b"")) for n, text in texts.items()}, failures
