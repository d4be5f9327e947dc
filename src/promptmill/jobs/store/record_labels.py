"""Labels: the label of an answer and its probability, the majority of several labels, and right labels."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from promptmill.answers.reasoning import split_marked
from promptmill.answers.schema_kinds import answers_of_labels, loaded
from promptmill.backends.protocol import by_question
from promptmill.core.errors import Named, PromptmillError, input_error
from promptmill.core.values import composed, json_text, read_json, text_of, with_whole_numbers
from promptmill.core.wording import counted, listed
from promptmill.jobs.store import statistics
from promptmill.jobs.store.database import JobDatabase
from promptmill.jobs.store.records import Record
from promptmill.jobs.store.spec import OutputSpec

_EXAMPLES = 3
_MOST_LABELS, _FEW_LABELS, _LONGEST_LABEL = 1000, 8, 200


def label_of(record: Record) -> str:
    """Return the label of an answer, see `label_in`."""
    return label_in(record.text)


def label_in(text: str) -> str:
    """Return the label of an answer's text. Objects with equal fields get equal labels, whatever the order of their
    fields. Lists are equal if they are equal as sets, and 5.0 equals 5 (as in comparisons of files)."""
    text = text.strip()
    if text.startswith("{"):
        try:
            fields = with_whole_numbers(read_json(text))
        except json.JSONDecodeError:
            return text
        fields = {name: _as_set(value) if isinstance(value, list) else value for name, value in fields.items()}
        return json_text(fields, sort_keys=True)
    return text


def labels_of_job(store: JobDatabase, output: OutputSpec) -> list[str]:
    """Return the labels of a job: its `choices` in order, then other labels, the most frequent first; `[]` if the
    answers are not labels. If the output has a schema, `answers_of_labels` finds the labels in it."""
    if output.answer_schema is not None:
        return [*answers_of_labels(output.answer_schema)]
    counts = Counter[str]()
    for text, rows in statistics.frequent_texts(store, _MOST_LABELS):
        counts[label_in(text)] += rows
    repeat = len(counts) <= _FEW_LABELS or 2 * len(counts) <= counts.total()
    are_short = max(map(len, counts), default=0) <= _LONGEST_LABEL
    answered = [label for label, _ in counts.most_common()] if repeat and are_short else []
    return list(dict.fromkeys([*output.choices, *answered]))


def _as_set(values: Sequence[Any]) -> list[str]:
    return sorted({json_text(value, sort_keys=True) for value in values})


class Decision(NamedTuple):
    """The label of a row, chosen from several answers."""

    record: Record
    """The first answer with the winning label. In a tie, the first of the tied labels wins. If no record is an answer,
    this is the first failure."""
    score: float
    """The share of answers with this label among all records, which include failures."""
    agree: int
    """The number of answers with this label."""
    is_tie: bool
    """Whether another label has as many answers as the winning label."""


def majority(records: Sequence[Record | None]) -> Decision | None:
    """Return the label that most answers to a row have; None if no record is present."""
    outcomes = [record for record in records if record is not None]
    answers = [record for record in outcomes if record.code is None]
    if not answers:
        return Decision(outcomes[0], 0.0, 0, is_tie=False) if outcomes else None
    counts = Counter(map(label_of, answers))
    most = max(counts.values())
    first = next(answer for answer in answers if counts[label_of(answer)] == most)
    return Decision(first, most / len(records), most, is_tie=sum(count == most for count in counts.values()) > 1)


def least_probable(record: Record) -> tuple[float, str] | None:
    """Return the probability and the name of the least probable field of an answer; None if no probability is known."""
    fields = by_question(record.extras.get("probabilities")) or {}
    try:
        values = loaded(split_marked(record.text)[1]) if fields and "" not in fields else None
    except ValueError:
        return None
    if not isinstance(values, dict):
        return None
    known = ((shares.get(text_of(values[name])), name) for name, shares in fields.items() if name in values)
    return min(((float(share), name) for share, name in known if share is not None), default=None)


def probability(record: Record) -> float | None:
    """Return the reported probability of an answer; None if nothing is reported. If only the answer's fields have
    probabilities, return the lowest of them; if only its tokens have, return the probability of all tokens together."""
    extras = record.extras
    if (own := extras.get("probability")) is not None:
        return float(own)
    if (least := least_probable(record)) is not None:
        return least[0]
    content = _content(extras.get("logprobs"))
    try:
        total = math.fsum(float(token["logprob"]) for token in content)
    except (KeyError, TypeError, ValueError):
        return None
    return math.exp(min(total, 0.0)) if content else None


def _content(logprobs: Mapping[str, Any] | None) -> Sequence[Mapping[str, Any]]:
    content = logprobs.get("content") if isinstance(logprobs, dict) else None
    return content if isinstance(content, list) else []


def right_label(cell: object, labels: Iterable[str]) -> str:
    """Return the label in a cell, spelled as in `labels`; `""` if `labels` lacks it. The Unicode form is ignored, and
    so is case, unless two labels differ only in case. (Comparisons of files do the same.)

    >>> right_label(" Positive", ["positive", "negative"]), right_label("ne\\u0301gatif", ["n\\u00e9gatif"])
    ('positive', 'négatif')
    """
    given = composed(text_of(cell).strip())
    known = {composed(label).casefold(): label for label in labels} | {composed(label): label for label in labels}
    return known.get(given) or known.get(given.casefold(), "")


def other_labels(column: str, counts: Counter[str]) -> PromptmillError:
    """Return the error for a column with labels that no answer can have. `counts`: the number of rows by label."""
    shown = listed([f"{text[:40]!r} ({counted(count, 'row')})" for text, count in counts.most_common()], _EXAMPLES)
    among = "has labels that are not among the "
    return input_error(f"The column {column} {among}", Named("choices"), f": {shown}; correct these.")
