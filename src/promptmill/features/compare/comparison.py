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

from promptmill.core.errors import Named, PromptmillError, argument_name, config_error, input_error
from promptmill.core.wording import counted, shape
from promptmill.features.compare import comparison_text, words
from promptmill.features.compare import figures as figures_
from promptmill.features.compare.answer_values import Tolerance
from promptmill.features.compare.compared_file import LETTERS, ComparedFile, ComparisonOrder
from promptmill.features.compare.compared_rows import ComparedRows
from promptmill.features.compare.figures import Judgement
from promptmill.features.compare.judge import VERDICTS, JudgedPairs, JudgeOrder, judgement_of, masked_by
from promptmill.features.compare.matched_rows import NoCommonRowError
from promptmill.jobs.inputs.short_forms import Labels
from promptmill.jobs.manage.bulk_result import BulkResult, lines_of
from promptmill.jobs.store.index import JobFolders
from promptmill.options.keywords import ModelOptions, SamplingOptions

_SHOWN_ROWS = 10  # rows that a notebook shows, as for `BulkResult`
WIDTH = 100  # characters of a line


def order_of(options: Mapping[str, Any]) -> ComparisonOrder:
    """Return the order for the options `gold`, `field`, `id`, `by` and `tolerance`. Raises `PromptmillError`."""
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
    """Return the rows of files or jobs side by side. `may_read_gold`: whether `gold` may name a file.

    If there are right answers and the parts of a file hold different rows (such as the parts by the column `sure`), the
    rows of each part form a group.

    Raises `PromptmillError` (`invalid_input`), `OSError`."""
    if len(files) > len(LETTERS):
        raise input_error(f"{len(files)} files are too many: compare takes at most {len(LETTERS)}.")
    if order.by is not None and len(files) > 1:
        raise input_error(Named("by"), " compares the rows of one file; give one file, or leave it out.")
    if len(files) < 2 and order.by is None and order.gold is None:
        raise input_error("Give compare two files, or one file and ", Named("gold"), " or ", Named("by"), ".")
    compared = [ComparedFile.of(label, name, folders) for label, name in zip(LETTERS, files, strict=False)]
    gold_folders = folders if may_read_gold else None
    if order.by is None:
        return ComparedRows.of(compared, order, gold_folders)
    try:
        parts = ComparedRows.of(compared[0].parts(order.by), order, gold_folders)
    except NoCommonRowError as error:
        if order.gold is None:
            counts = Named("gold", "COLUMN", " With {}, right answers are counted for each of them.")
            raise input_error(*error.parts, *error.remedy, counts) from None
    else:  # refused, because a few common rows may be due to chance
        if order.gold is None or 2 * len(parts.places) >= min(parts.sizes):
            return parts
    return ComparedRows.of(compared, order, gold_folders)


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
    one file, such as "variant". `field`: the column or fields to compare, else all fields of the answers, or the
    answers. `tolerance`: numbers that differ by no more than this are the same: 0.01, or "1%". `id`: the column that
    identifies rows. `rows`: the most rows that differ in the result. `state`: the folder of jobs.

        promptmill.compare(["labels-a.csv", "labels-b.csv"], gold="gold.csv").figures["gold"]["files"]

    `criterion`: what makes an answer better, "is the better summary"; then the model `judge`, else the
    configuration's, says which of two different answers is better, and `figures["judge"]` counts its verdicts. `limit`:
    judge only this number of rows, drawn at random. `max_cost`: dollars. `again`: judge the "failed" pairs, or "all",
    again. Further options: model, sampling and `progress`, as in `bulk`. The judgement is a job: the same
    call pays for no verdict twice.

    Raises `PromptmillError`.
    """
    given = [files] if isinstance(files, str | Path | BulkResult) or not isinstance(files, list | tuple) else files
    comparing = {"gold": None if gold is None else str(gold), "by": by, "field": field, "id": id}
    judging = {"judge": judge, "criterion": criterion, "limit": limit, "max_cost": max_cost, "again": again}
    if unknown := options.keys() - (JudgeOptions.__annotations__.keys() - {"model"}):
        raise TypeError(f"compare() has no argument {min(unknown)!r}; see help(promptmill.compare)")
    try:
        if not isinstance(gold, str | Path | None):
            columns = "name a column of the files, or the path of a file with the right answers."
            raise input_error(Named("gold"), f" is {shape(gold)}; {columns}")
        asked = JudgeOrder.of(judging, compares_several=len(given) > 1 or by is not None)
        if asked is None and (name := next(iter(options), None)) is not None:
            raise config_error(Named(name), " needs ", Named("criterion", "TEXT"), ".")
        with _written(given) as (names, keys):
            folders = JobFolders.from_environ(*([] if state is None else [{"PROMPTMILL_STATE": str(state)}]))
            compared = rows_of(names, order_of({**comparing, "tolerance": tolerance}), folders)
            judgement = None
            if asked is not None:
                pairs = JudgedPairs.of(compared, asked.limit, keys)
                judgement = _judgement(pairs, asked, {**options, "model": judge}, folders)
            found = figures_.figures(compared, judgement, most=rows)
    except PromptmillError as error:
        text = " ".join([error.worded(argument_name), *getattr(error, "__notes__", ())])
        raise PromptmillError(error.code, text, "") from None
    return Comparison({name: value for name, value in found.items() if name != "differing"}, found["differing"])


def _judgement(pairs: JudgedPairs, asked: JudgeOrder, options: Mapping[str, Any], folders: JobFolders) -> Judgement:
    """Run a job that judges the pairs. Raises `PromptmillError` if it stops early; its verdicts are kept."""
    from promptmill.jobs.manage import bulk_call  # imported on use: few comparisons have a judge

    watch = bulk_call.watch_of(show=options.get("progress")) if pairs.others else None
    model = bulk_call.step_model({**options, "choices": Labels(VERDICTS)}, watch)
    config = model.models.config
    pairs.check_masks(masked_by(config))
    if pairs.others:
        with asked.opened(pairs.rows(asked.settings(config)), model.models, folders) as job:
            model.run(job)
    return judgement_of(pairs, asked, config.model, folders.loose(pairs.job_id(asked.settings(config))))


@contextlib.contextmanager
def _written(given: Sequence[Any]) -> Iterator[tuple[list[str], dict[Path, str]]]:
    """Write rows of the program to files. Yield the names of all files, and the digests of the written files."""
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
            keys[path] = content.hexdigest()
        yield names, keys
