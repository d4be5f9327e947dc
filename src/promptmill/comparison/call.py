"""A comparison of a Python program: `promptmill.compare`; and what its options mean, for the command line, too."""

from __future__ import annotations

import contextlib
import html
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from promptmill.comparison import comparison_text, words
from promptmill.comparison import figures as figures_
from promptmill.comparison.files import LETTERS, ComparedFile, ComparedRows, ComparisonOrder, NoCommonRowError
from promptmill.comparison.values import Tolerance
from promptmill.core.errors import Named, PromptmillError, argument_name, input_error
from promptmill.core.wording import counted
from promptmill.jobs.manage.bulk_result import BulkResult, lines_of
from promptmill.jobs.store.index import JobFolders

_SHOWN_ROWS = 10  # in a notebook, as `BulkResult` shows them
_WIDTH = 100  # characters


def order_of(options: Mapping[str, Any]) -> ComparisonOrder:
    """Return the order that the options `gold`, `field`, `id`, `by` and `tolerance` make. Raises `PromptmillError`."""
    fields, tolerance = options.get("field") or (), options.get("tolerance")
    return ComparisonOrder(
        gold=options.get("gold"),
        fields=(fields,) if isinstance(fields, str) else tuple(fields),
        id=options.get("id"),
        by=options.get("by"),
        tolerance=Tolerance() if tolerance is None else Tolerance.parse(str(tolerance)),
    )


def rows_of(
    files: Sequence[str], order: ComparisonOrder, folders: JobFolders, *, may_read_gold: bool = True
) -> ComparedRows:
    """Return the rows of files or jobs side by side. `may_read_gold`: `gold` may be a file.

    If the parts of a file share no row, such as those of the column `sure`, its rows stay together, in groups.

    Raises `PromptmillError` (`invalid_input`), `OSError`."""
    if len(files) > len(LETTERS):
        raise input_error(f"{len(files)} files are too many: compare takes at most {len(LETTERS)}.")
    if order.by is not None and len(files) > 1:
        raise input_error(Named("by"), " goes with one file.")
    if len(files) < 2 and order.by is None and order.gold is None:
        raise input_error("compare takes two files, or one with ", Named("gold"), " or ", Named("by"), ".")
    compared = [ComparedFile.of(label, name, folders) for label, name in zip(LETTERS, files, strict=False)]
    gold_folders = folders if may_read_gold else None
    if order.by is None:
        return ComparedRows.of(compared, order, gold_folders)
    try:
        return ComparedRows.of(compared[0].parts(order.by), order, gold_folders)
    except NoCommonRowError as error:
        if order.gold is None:
            counts = Named("gold", "COLUMN", " With {}, right answers are counted for each of them.")
            raise input_error(*error.parts, counts) from None
        return ComparedRows.of(compared, order, gold_folders)


@dataclass(frozen=True, repr=False)
class Comparison:
    """Answers to the same rows, compared."""

    figures: Mapping[str, Any]
    """All figures, as `promptmill compare --json` prints them, without the rows."""
    rows: list[dict[str, Any]] = field(default_factory=list)
    """The rows whose answers differ: `row`, `heading`, the row's `own` columns, `gold`, `answers` by file."""

    def __repr__(self) -> str:
        return f"<Comparison: {self._summary}>"

    def __str__(self) -> str:
        return "\n".join(comparison_text.lines(self.figures, _WIDTH))

    @property
    def _summary(self) -> str:
        return f"{words.matched(self.figures)}; {counted(self.figures['differ'], 'row')} with different answers"

    def _repr_html_(self) -> str:
        """Return the comparison as a notebook shows it: the figures and the first rows that differ."""
        found = {**self.figures, "differing": self.rows[:_SHOWN_ROWS]}
        shown = "\n".join(comparison_text.lines(found, _WIDTH))
        return f"<pre>{html.escape(shown)}</pre>"


def compare(
    files: Any,
    *,
    gold: str | Path | None = None,
    by: str | None = None,
    field: str | Sequence[str] | None = None,
    tolerance: float | str | None = None,
    id: str | None = None,  # noqa: A002 (the option's name)
    most_rows: int = 1000,
    state: str | Path | None = None,
) -> Comparison:
    """Compare answers to the same rows: of several files, jobs or results, or of the variants of one.

    `files`: one or a list of paths, ids of jobs, results of `bulk`, tables and lists of rows. `gold`: the right
    answers of all or some rows: a column of any of the files, a file, or "FILE:COLUMN". `by`: the column that divides
    one file, such as "variant". `field`: the column or fields to compare, else all fields of the answers, or the
    answers. `tolerance`: numbers that differ by no more than this are the same: 0.01, or "1%". `id`: the column that
    identifies rows. `most_rows`: the most rows that differ in the result. `state`: the folder of jobs.

        promptmill.compare(["labels-a.csv", "labels-b.csv"], gold="gold.csv").figures["gold"]["files"]

    Raises `PromptmillError`.
    """
    given = [files] if isinstance(files, str | Path | BulkResult) or not isinstance(files, list | tuple) else files
    options = {"gold": None if gold is None else str(gold), "by": by, "field": field, "id": id, "tolerance": tolerance}
    try:
        with _written(given) as names:
            folders = JobFolders.from_environ(*([] if state is None else [{"PROMPTMILL_STATE": str(state)}]))
            rows = rows_of(names, order_of(options), folders)
            found = figures_.figures(rows, most=most_rows)
    except PromptmillError as error:
        raise input_error(error.worded(argument_name)) from None
    return Comparison({name: value for name, value in found.items() if name != "differing"}, found["differing"])


@contextlib.contextmanager
def _written(given: Sequence[Any]) -> Iterator[list[str]]:
    with tempfile.TemporaryDirectory(prefix="promptmill-") as folder:
        names = []
        for at, rows in enumerate(given):
            if isinstance(rows, str | Path):
                names.append(str(rows))
                continue
            path = Path(folder) / f"{LETTERS[at % len(LETTERS)]}.jsonl"
            lines = lines_of(rows.rows if isinstance(rows, BulkResult) else rows, "answer")
            with path.open("wb") as file:
                file.writelines(lines)
            names.append(str(path))
        yield names
