"""Comparisons from a Python program (`promptmill.compare`); the command line uses the same options."""

from __future__ import annotations

import contextlib
import hashlib
import html
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Unpack

from promptmill.core.wording import counted
from promptmill.features.compare import comparison_text, words
from promptmill.features.compare.compared_file import LETTERS
from promptmill.features.compare.verb import COMPARE
from promptmill.jobs.manage.bulk_result import BulkResult, lines_of
from promptmill.options.keywords import ModelOptions, SamplingOptions

_SHOWN_ROWS = 10  # rows that a notebook shows, as for `BulkResult`
WIDTH = 100  # characters of a line


@dataclass(frozen=True, repr=False)
class Comparison:
    """A comparison of several answers to the same rows."""

    figures: Mapping[str, Any]
    """All figures, as in `promptmill compare --json`, without the rows."""
    rows: list[dict[str, Any]] = field(default_factory=list)
    """The rows with different answers: `row`, `heading`, the input's columns (`own`), `gold`, and `answers` by file."""

    def __repr__(self) -> str:
        return f"<Comparison: {self._summary}>"

    def __str__(self) -> str:
        return "\n".join(comparison_text.lines(self.figures, WIDTH))

    @property
    def _summary(self) -> str:
        return f"{words.matched(self.figures)}; {counted(self.figures['differ'], 'row')} with different answers"

    def _repr_html_(self) -> str:
        """Return the comparison as HTML for a notebook: the figures, and the first rows with different answers."""
        found = {**self.figures, "differing": self.rows[:_SHOWN_ROWS]}
        shown = "\n".join(comparison_text.lines(found, WIDTH))
        return f"<pre>{html.escape(shown)}</pre>"


class JudgeOptions(ModelOptions, SamplingOptions, total=False):
    """The options for the judge's model, as in `promptmill.bulk`; `judge` is the model's name."""

    progress: bool | Callable[[Mapping[str, Any]], object] | None


def compare(
    files: Any,
    *,
    gold: str | Path | None = None,
    by: str | None = None,
    field: str | Sequence[str] | None = None,
    tolerance: float | str | None = None,
    id: str | None = None,  # noqa: A002 (the option's name)
    rows: int = 1000,
    state: str | Path | None = None,
    judge: str | None = None,
    criterion: str | None = None,
    limit: int | None = None,
    max_cost: float | None = None,
    again: Literal["failed", "all"] | None = None,
    **options: Unpack[JudgeOptions],
) -> Comparison:
    """Compare answers to the same rows: from several files, jobs or results, or from the variants of one job.

    `files`: one or a list of paths, ids of jobs, results of `bulk`, tables and lists of rows. `gold`: the right
    answers of all or some rows: a column of any of the files, a file, or "FILE:COLUMN". `by`: the column that divides
    one file, such as "variant". `field`: the column or fields to compare; by default, all fields, or the whole
    answers. `tolerance`: numbers that differ by no more than this are the same: 0.01, or "1%". `id`: the column that
    identifies rows. `rows`: the result has at most so many differing rows. `state`: the folder of jobs.

        promptmill.compare(["labels-a.csv", "labels-b.csv"], gold="gold.csv").figures["gold"]["files"]

    `criterion`: what makes an answer better, such as "is the better summary". With a criterion, the model `judge` (by
    default, the configuration's) says which of two different answers is better, and `figures["judge"]` counts its
    verdicts. `limit`: judge only this number of rows, drawn at random. `max_cost`: the most dollars for the judge.
    `again`: judge the "failed" pairs, or "all" pairs, again. Further options: model, sampling and `progress`, as in
    `bulk`. The judgement is a job: the same call pays for no verdict twice.

    Raises `PromptmillError`.
    """
    if unknown := options.keys() - (JudgeOptions.__annotations__.keys() - {"model"}):
        raise TypeError(f"compare() has no argument {min(unknown)!r}; see help(promptmill.compare)")
    given = [files] if isinstance(files, str | Path | BulkResult) or not isinstance(files, list | tuple) else files
    comparing = {"gold": gold, "by": by, "field": field, "id": id, "tolerance": tolerance, "rows": rows, "state": state}
    judging = {"judge": judge, "criterion": criterion, "limit": limit, "max_cost": max_cost, "again": again}
    with _written(given) as (names, keys):
        found = COMPARE.figures({**options, **comparing, **judging, "files": names, "keys": keys})
    return Comparison({name: value for name, value in found.items() if name != "differing"}, found["differing"])


@contextlib.contextmanager
def _written(given: Sequence[Any]) -> Iterator[tuple[list[str], dict[str, str]]]:
    """Write the rows that the program passed to files. Yield all files' names, and the written files' digests."""
    with tempfile.TemporaryDirectory(prefix="promptmill-") as folder:
        names, keys = [], {}
        for at, result in enumerate(given):
            is_in_file = isinstance(result, BulkResult) and not result.rows and result.output is not None
            rows = result.output if is_in_file else result
            if isinstance(rows, str | Path):
                names.append(str(rows))
                continue
            path, content = Path(folder) / f"{LETTERS[at % len(LETTERS)]}.jsonl", hashlib.sha256()
            with path.open("wb") as file:
                for line in lines_of(rows.rows if isinstance(rows, BulkResult) else rows, "answer"):
                    content.update(line)
                    file.write(line)
            names.append(str(path))
            keys[str(path)] = content.hexdigest()
        yield names, keys
