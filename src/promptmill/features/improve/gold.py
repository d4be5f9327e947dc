"""Gold rows, which have a right label. The search sees one half; the other half is held out for one test."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from promptmill.core.errors import Named, input_error
from promptmill.core.values import JsonObject, text_of
from promptmill.core.wording import counted
from promptmill.jobs.inputs.question_columns import text_column
from promptmill.jobs.rows.template import check_names, check_names_some, columns_of, special_columns, template_of
from promptmill.jobs.store.record_labels import other_labels, right_label
from promptmill.jobs.store.spec import digest

FEWEST = 100
"""The minimum number of gold rows. With fewer rows, a gain of 15 points may be due to chance alone."""


@dataclass(frozen=True, slots=True)
class GoldRow:
    """A row and its right label."""

    key: str
    """The digest of the row's cells."""
    cells: JsonObject
    """The cells that a prompt may use."""
    label: str


@dataclass(frozen=True, slots=True)
class GoldRows:
    """The gold rows of an input, without repeated rows."""

    labels: Sequence[str]
    header: Sequence[str]
    """The columns of the input, without the column of right labels."""
    seen: Sequence[GoldRow]
    held_out: Sequence[GoldRow]
    repeated: int
    """The number of rows left out because an earlier row has the same cells."""
    without: int
    """The number of rows without a right label."""

    @classmethod
    def of(cls, rows: Iterable[JsonObject], column: str, prompt: str, labels: Sequence[str]) -> GoldRows:
        """Return the gold rows for `prompt`. The digest of all cells of a row decides to which half the row
        belongs, so other prompts get the same halves.

        Raises `PromptmillError` (`invalid_input`) for unusable columns or labels, and for fewer than `FEWEST` rows.
        """
        every = list(rows)
        header = list(dict.fromkeys(name for row in every for name in row))
        others = [name for name in header if name != column]
        check_names_some(prompt, lambda: "", lambda: text_column(others, every[:FEWEST], "text"))
        check_names([column], header, Named("gold"))
        header.remove(column)
        if column in template_of(prompt, [*header, column]).names or special_columns(prompt, [column]):
            raise input_error(Named("prompt"), f" names {column}, the column of the right labels.")
        named = columns_of(prompt, header)
        found, counts = dict[str, GoldRow](), Counter[str]()
        wrong = Counter[str]()
        for row in every:
            given = text_of(row.get(column)).strip()
            label = right_label(given, labels)
            cells = {name: row[name] for name in named if name in row}
            question, key = _digest(cells), _digest({name: row[name] for name in header if name in row})
            counts["without" if not given else "repeated" if question in found else ""] += 1
            wrong.update([given] if given and not label else [])
            if label and question not in found:
                found[question] = GoldRow(key, cells, label)
        if wrong:
            raise other_labels(column, wrong)
        if len(found) < FEWEST:
            repeats = f", and {counted(counts['repeated'], 'row')} that repeat one" if counts["repeated"] else ""
            raise input_error(
                f"{counted(len(found), 'row')} with a label in {column}{repeats}: with fewer than {FEWEST} different "
                "ones, a gain cannot be told from chance; label more rows."
            )
        ordered = sorted(found.values(), key=lambda row: row.key)
        halves: tuple[list[GoldRow], list[GoldRow]] = ([], [])
        for one in ordered:
            halves[int(one.key[-1], 16) % 2].append(one)
        return cls(labels, header, *halves, counts["repeated"], counts["without"])


def _digest(cells: JsonObject) -> str:
    return digest({name: text_of(cell).strip() for name, cell in cells.items()})
