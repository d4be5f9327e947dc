"""The right labels in a column of the input. They let a job with `sure` promise that its labels are right."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from promptmill.core.errors import Named, input_error
from promptmill.core.values import text_of
from promptmill.jobs.export.text import OwnValues
from promptmill.jobs.rows.row_lines import NAMES
from promptmill.jobs.rows.template import ROW, check_names, places_in, template_of
from promptmill.jobs.store.database import Row
from promptmill.jobs.store.description import JobPrompts
from promptmill.jobs.store.plan import JobSpec
from promptmill.jobs.store.record_labels import other_labels, right_label


def check_unasked(question: JobPrompts, gold: str) -> None:
    """Raise `PromptmillError` (`invalid_input`) if a prompt may contain the column of the right labels."""
    for text in question.templates:
        names = template_of(text, [*places_in(text), gold]).names
        if gold in names:
            raise input_error(Named("prompt"), f" names {gold[:60]}, the column of the right labels.")
        if ROW in names:
            raise input_error(Named("prompt"), f" has all columns of the row, also {gold[:60]}; name those it needs.")
    if gold in {question.column, *question.sourced_columns.values()} or (not question.templates and gold in NAMES):
        raise input_error(Named("gold"), f": {gold[:60]} is a part of the prompt.")


def right_labels(rows: Iterable[Row], spec: JobSpec, column: str, labels: Sequence[str]) -> dict[int, str]:
    """Return the right labels by row number, for the rows that have a right label and a question.

    Raises `PromptmillError` (`invalid_input`) if no row has the column, or if the column has unknown labels.
    """
    values, names, wrong = OwnValues(spec).of, dict[str, None](), Counter[str]()
    found = {}
    for row in rows:
        if row.asked is None or not any(row.asked[:16]):  # the row has no question
            continue
        own = values(row)
        names |= dict.fromkeys(own)
        if label := right_label(own.get(column), labels):
            found[row.n] = label
        elif text := text_of(own.get(column)).strip():
            wrong[text] += 1
    check_names([column], names, Named("gold"))
    if wrong:
        raise other_labels(column, wrong)
    return found
