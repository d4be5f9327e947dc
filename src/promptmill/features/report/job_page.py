"""The report of a job that has ended or is running.

job.db: status, course, counts, rows with their answers ─▶ data ─▶ `rows.html` ─▶ the file
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import orjson

from promptmill.core.bounds import MOST_REPORT_ROWS
from promptmill.core.errors import Code, PromptmillError
from promptmill.core.feature import features, figures, part
from promptmill.core.money import dollars
from promptmill.core.values import JsonDict
from promptmill.core.wording import counted, cut, in_percent, unescaped
from promptmill.features.report.job_table import (
    FAILED,
    NEAR,
    PROMPT_NAME,
    TRUNCATED,
    WRONG,
    JobTable,
    variant_names,
)
from promptmill.files import disk
from promptmill.images.load import ImageRules, from_folder
from promptmill.images.thumbnails import thumbnail
from promptmill.jobs.caller import Caller
from promptmill.jobs.columns.column_names import MODEL, SOURCES
from promptmill.jobs.columns.schema_columns import FIELD
from promptmill.jobs.manage.call_results import ShownRows, shown_results
from promptmill.jobs.manage.job_rows import JobRow, JobRows
from promptmill.jobs.manage.server_jobs import ServerJobs
from promptmill.jobs.store import progress, rounds, statistics, status, status_words
from promptmill.jobs.store.database import DamagedError, JobDatabase
from promptmill.jobs.store.folder import Folder
from promptmill.jobs.store.plan import JobSpec
from promptmill.jobs.store.rounds import ANSWERED
from promptmill.jobs.store.status_record import CourseRecord, FieldResults, Results, Status, shares_of
from promptmill.jobs.store.status_words import by_size, figure, rounded, took
from promptmill.pages import page
from promptmill.pages.page import Report, when
from promptmill.pages.page_rows import Filter
from promptmill.system.call_files import FileRule

if TYPE_CHECKING:
    from promptmill.features.sources.page_pictures import PagePicture

_SEED = 1
_BINS = 24
_LEAST_SPREAD = 200  # answers; with fewer, most bars of a histogram count one answer or none
_SHOWN_SHARE = 0.99  # share of the values that a histogram shows; one answer may take a hundred times as long as others
Bar: TypeAlias = tuple[str, int, str] | tuple[str, int, str, dict[str, str]]
"""A bar: a value, its count, a remark, and the values of columns that select its rows (if missing: the value)."""
Bars: TypeAlias = tuple[str, str, list[Bar], str]
"""Bars: a title, the column whose values are counted, the bars, and a sentence."""
_PICTURES = 1_000_000  # max characters of all thumbnails together
_PAGES = 4_000_000  # max characters of the pictures of all pages with quotes: enough for 80 pages of small print


def default_path(folder: Folder) -> Path:
    """Return the default path of a report: next to the job's output, or in the current folder."""
    spec = folder.known_spec()
    if not spec.output.format:
        return Path(f"{spec.job_id}.report.html")
    return spec.output.path.with_name(f"{spec.output.path.name}.report.html")


def write(folder: Folder, target: Path, rules: ImageRules | None = None) -> Report:
    """Write the report of a job to `target` atomically. Raises `PromptmillError`.

    `rules` decide which images are shown, and whether rows that may hold secrets are shown. Without `rules`, all are
    shown, as for the operator's own programs.
    """
    page.check(target, _title(folder.known_spec()))
    try:
        text, shown = _page(folder, rules or ImageRules())
        page.put(target, text)
    except (OSError, DamagedError) as error:
        why = disk.why(error) if isinstance(error, OSError) else "its database is damaged"
        raise PromptmillError(Code.STORAGE, f"The report of {folder.job_id} cannot be written: {why}.", "") from None
    return Report(target, *shown)


async def write_of_call(jobs: ServerJobs, caller: Caller, job_id: str, report: str) -> JsonDict:
    """Write the report of a job to the file `report`, and return its path and the number of its rows. A child process
    with limited memory and time reads the rows and images that the file rule permits.

    Raises `PromptmillError`, for example if the file exists and is not an earlier report of this job.
    """
    target, folder = jobs.paths.allowed_of(report, "report", (".html",)), jobs.visible.find(job_id, caller)
    call = functools.partial(_write, path=folder.path, target=target, rule=jobs.paths.rule)
    return await jobs.apart(call, folder.job_id)


def _write(path: Path, target: Path, rule: FileRule) -> dict[str, object]:
    return write(Folder(path), target, ImageRules(rule)).as_dict()


def _title(spec: JobSpec) -> str:
    to = f" → {spec.output.path.name}" if spec.output.format else ""
    return f"{spec.input.path.name}{to}"


def _page(folder: Folder, rules: ImageRules) -> tuple[bytes, tuple[int, int, str]]:
    """Return the report, and three facts: the number of shown rows, the number of all rows, and their noun."""
    spec, found = folder.known_spec(), status.read(folder) | status.asked(folder)
    pictures = _Pictures(functools.partial(_thumbnail, folders=spec.image_folders, rules=rules), _PICTURES)
    pages = _Pictures(functools.partial(_pages, folders=spec.image_folders, rules=rules), _PAGES)
    skips_empty, rule = spec.question.skip_empty, rules.files
    with folder.reading() as store:
        results = cast("Results", shown_results(statistics.results(store, output=spec.output), rule))
        examples, spread = statistics.examples(store), statistics.spread(store)
        counts = statistics.counts(store, skips_empty=skips_empty)
        made_in, by_slot = _rounds(store), statistics.slots(store, skips_empty=skips_empty) if spec.is_grid else {}
        fields: Mapping[str, Mapping[str, Any]] = results.get("fields") or {"": results}
        labels = {
            name: _values_by_slot(store, name, ShownRows(spec, rule)) if spec.is_grid else {}
            for name, facts in fields.items()
            if "values" in facts and not facts.get("is_list")  # bars by variant need one label for each row
        }
        sections = _sections(found, store, spec)
        where = f"({ANSWERED} OR ({statistics.is_failed(skips_empty=skips_empty)})) AND {statistics.DELIVERED}"
        total = store.count(where)
        drawn = statistics.at_most(store, MOST_REPORT_ROWS, _SEED, where)
        table = JobTable(
            folder.spec_in(store), statistics.extra_fields(store), rule.finder if rule.is_guarded else None
        )
        for row in pages.of(pictures.of(JobRows(store, table.spec).read(drawn))):
            table.add(row)
    rows = table.finished(has_images=bool(pictures.found))
    found |= cast("Status", counts.of_rows())
    failures = found.get("errors", {})
    data = {
        **_heading(found),
        "notes": list(found.get("warnings", ())),
        "tiles": _tiles(found),
        "answers": "" if results and spec.output.answer_schema is not None else _of_answers(results),
        "counts": [
            *_of_variants(spec, by_slot),
            *_of_right(spec, table),
            *([] if "fields" in results or by_slot else _of_values(table, results, found["answered"])),
            *(
                _of_field(table, name, field, found["answered"])
                for name, field in results.get("fields", {}).items()
                if not by_slot or "values" not in field
            ),
            *_of_labels(spec, table, results, labels, by_slot),
        ],
        "failures": [(code, count, *_example(code, examples.get(code, ""))) for code, count in failures.items()],
        "sections": [*_of_shares(found), *sections],
        "thumbnails": pictures.found,
        "pages": pages.found,
        "course": (course := folder.course),
        "spreads": _spreads(spread, is_closed=_is_closed(spec, results)) if len(spread) >= _LEAST_SPREAD else [],
        "run": _run(course, spec, found, made_in),
    }
    rows.filters = _filters(failed=bool(failures), states=functools.reduce(operator.or_, rows.state, 0))
    rows.rows_of_input = status_words.rows_of_input(found) or 0
    title, so_far = _title(spec), " so far" if found["state"] in progress.ALIVE else ""
    return page.filled(title, data, rows, total, so_far), (len(rows.number), total, rows.noun)


def _values_by_slot(store: JobDatabase, name: str, shown: ShownRows) -> Mapping[str, Mapping[int, int]]:
    values = statistics.values_by_slot(store, name)
    return {value: counts for value, counts in values.items() if shown.may_show(value, name or "answer")}


def _prompts(spec: JobSpec, found: Status) -> dict[str, str]:
    if not spec.question.templates[1:]:
        return {"Prompt": found.get("prompt", "")}
    names = {target.prompt: variant_names(spec, slot)[PROMPT_NAME] for slot, target in enumerate(spec.targets)}
    return {f"Prompt {names[at]}": text for at, text in enumerate(spec.question.templates)}


def _rounds(store: JobDatabase) -> str:
    """Return the rounds of a job as text, with the answers and failures of each; `""` for a single round."""
    counts, known = statistics.rounds(store), rounds.stored_rounds(store)
    lines = [f"{round_.id} {round_.reason}: {counted(counts.get(round_.id, 0), 'row')}" for round_ in known]
    return "\n".join(lines) if len(lines) > 1 else ""


def _of_variants(spec: JobSpec, by_slot: Mapping[int, tuple[int, int]]) -> Iterator[Bars]:
    for column, title in ((MODEL, "Answers by model"), (PROMPT_NAME, "Answers by prompt")):
        names = [variant_names(spec, slot).get(column, "") for slot in range(spec.delivered)]
        sums = {name: [0, 0] for name in names if name}
        for slot, name in enumerate(names):
            for at, count in enumerate(by_slot.get(slot, (0, 0)) if name else ()):
                sums[name][at] += count
        if sums:
            bars: list[Bar] = [
                (name, done, f"and {failed:,} failed" if failed else "") for name, (done, failed) in sums.items()
            ]
            yield title, column, bars, ""


def _of_right(spec: JobSpec, table: JobTable) -> Iterator[Bars]:
    if table.right is not None:
        column, counts = table.right
        bars: list[Bar] = [(name, right, _of_all(right, rows)) for name, (right, rows) in counts.items()]
        output = spec.output.path.name if spec.output.format else spec.job_id
        of = f"Of {counted(max(rows for _, rows in counts.values()), 'row')} with a value in {column}"
        words = f"{of}. `promptmill compare {output} --by variant --gold {column}` has the intervals."
        yield f"Right, if {column} has the right answers", table.name_of(MODEL), bars, words


def _sections(found: Mapping[str, Any], store: JobDatabase, spec: JobSpec) -> list[JsonDict]:
    """Return the sections that features add."""
    parts = (part(figure.section) for figure in figures().values() if figure.section and figure.name in found)
    return [section for each in parts if (section := each(found, store, spec)) is not None]


def _of_shares(found: Status) -> Iterator[JsonDict]:
    """Yield a section for each field with estimated shares of labels."""
    for field, shares in shares_of(found).items():
        bars = [
            (unescaped(label) or "(empty)", its["share"], its["low"], its["high"]) for label, its in by_size(shares)
        ]
        line = f"As {_shares_giver(found)} would label every row: estimates, with their 95 % intervals."
        if bars:
            title = f"Estimated shares of labels{f', {field}' if field else ''}"
            yield {"title": title, "lines": [line], "bars": bars, "tables": []}


def _shares_giver(status: Mapping[str, Any]) -> str:
    """Return who gave the labels: `the person`, or the model that a plan names; `the model alone` if it names none."""
    if status.get("shares"):
        return "the person"
    plans = (value for value in status.values() if isinstance(value, Mapping) and value.get("shares"))
    return next((value["model"] for value in plans), "") or "the model alone"


def _filters(*, failed: bool, states: int) -> list[Filter]:
    truncated = bool(states & TRUNCATED)
    filters = [("answered", "Answered", FAILED, 0)] if failed or truncated else []
    filters += [("failed", "Failed", FAILED, FAILED)] if failed else []
    filters += [("cut", "Cut off", TRUNCATED, TRUNCATED)] if truncated else []
    filters += [("wrong", "Wrong", WRONG, WRONG)] if states & WRONG else []
    return filters + ([("near", "Near the cut", NEAR, NEAR)] if states & NEAR else [])


def _heading(found: Status) -> dict[str, str]:
    state, total = found["state"], found.get("total")
    is_alive, is_finished = state in progress.ALIVE, state == progress.FINISHED
    moods = {progress.FINISHED: "warn" if found.get("failed") else "good", progress.STOPPED: "bad"}
    of = f" of {counted(total, 'answer' if found.get('variants') else 'row')}" if total and not is_finished else ""
    reason = f": {found['reason']}" if found.get("reason") else ""
    running = "; the job was running when this report was made" if is_alive else ""
    summary = f"{status_words.outcome(found, of)}{reason}{running}"
    return {
        "state": status_words.in_words(state),
        "mood": moods.get(state, "blue" if is_alive else "warn"),
        "summary": summary,
    }


def _tiles(found: Status) -> list[tuple[str, str, str]]:
    seconds, done, cost = found.get("seconds", 0), found.get("done", 0), found.get("cost")
    total, answered = found.get("total"), found.get("answered", 0)
    noun = "answers" if found.get("variants") else "rows"
    tiles = [
        ("Answered", f"{answered:,}", f"of {total:,}" if total not in {None, answered} else ""),
        ("Failed", f"{found.get('failed', 0):,}", _share(found.get("failed", 0), done)),
        ("Time", took(seconds), f"{figure(done / seconds)} {noun}/s" if seconds and done else ""),
    ]
    if cost is not None:
        most, each = found.get("max_cost"), f"{dollars(1000 * cost / done)} per 1,000 {noun}" if done else ""
        tiles.append(("Cost", dollars(cost), f"of {dollars(most)}" if most is not None else each))
    cached = found.get("cached_tokens", 0)
    remark = f"{cached:,} from the provider's cache" if cached else ""
    remark += f", saved {dollars(saved)}" if (saved := found.get("cache_saved")) else ""
    tiles.append(("Tokens in", f"{found.get('prompt_tokens', 0):,}", remark))
    out = found.get("completion_tokens", 0)
    tiles.append(("Tokens out", f"{out:,}", f"{figure(out / answered)} per answer" if answered and out else ""))
    tiles.append(("Requests", f"{found.get('requests', 0):,}", f"{found.get('retries', 0):,} retries"))
    for name, mark, number in status_words.counts(found):
        tiles.append((mark.title or name.capitalize(), f"{number:,}", _share(number, done)))
    return tiles


def _share(count: int, total: int) -> str:
    shown = figure(100 * count / total) if count and total else ""
    return f"{in_percent(count / total, 0) if shown == '100' else shown} %" if shown else ""


def _of_answers(results: Results) -> str:
    if not results:
        return "There are no answers yet."
    if "vectors" in results:
        return f"{status_words.vectors(results)}."
    others, kinds = status_words.not_shown(results), counted(results["different"], "different answer")
    more = f", {others:,} of them not shown here" if "values" in results and others else ""
    return f"{kinds}{more}; {status_words.lengths(results)}."


def _of_labels(
    spec: JobSpec,
    table: JobTable,
    results: Results,
    labels: Mapping[str, Mapping[str, Mapping[int, int]]],
    by_slot: Mapping[int, tuple[int, int]],
) -> Iterator[Bars]:
    """Yield bars with the number of answers for each label, by variant. `labels`: the counts by field and value.
    `by_slot`: the numbers of answers and failures of each variant."""
    if not spec.is_grid:
        return
    for field, counts in labels.items():
        column = table.name_of(FIELD + field if field else "answer")
        for value in (results["fields"][field] if field else results)["values"]:
            own, bars = counts.get(value, {}), list[Bar]()
            for slot in range(spec.delivered):
                where = {table.name_of(key): name for key, name in variant_names(spec, slot).items()}
                count, (every, _) = own.get(slot, 0), by_slot.get(slot, (0, 0))
                share = _of_all(count, every)
                bars.append((spec.targets[slot].name, count, share, {column: unescaped(value), **where}))
            yield f"{field}: {value}" if field else unescaped(value), column, bars, ""


def _of_values(table: JobTable, results: Results, answered: int) -> Iterator[Bars]:
    if values := results.get("values"):
        bars: list[Bar] = [(unescaped(value), count, _of_all(count, answered)) for value, count in values.items()]
        yield "", table.name_of("answer"), bars, ""


def _of_field(table: JobTable, name: str, field: FieldResults, answered: int) -> Bars:
    column = table.name_of(FIELD + name)
    if "values" in field:
        bars: list[Bar] = [(value, count, _of_all(count, answered)) for value, count in field["values"].items()]
        searched = "" if field.get("is_list") else column  # a cell with a list equals none of its items
        return name, searched, bars, status_words.mean(field) if "mean" in field else ""
    return name, column, [], status_words.span(field)


def _of_all(count: int, answered: int) -> str:
    return f"({in_percent(count / answered, 1)} %)" if count <= answered and answered else ""


def _example(code: str, text: str) -> tuple[str, str]:
    """Return the message of a failure with this code, split into the problem and the remedy."""
    try:
        error = PromptmillError(Code(code), "")
    except ValueError:
        return text, ""
    later = " The same request may succeed later." if error.retryable else ""
    return text.removesuffix(error.hint).rstrip(), error.hint + later


def _is_closed(spec: JobSpec, results: Results) -> bool:
    """Return whether all answers are labels or numbers, whose lengths say nothing."""
    schema = spec.output.answer_schema
    if schema is None:
        return "values" in results and not status_words.not_shown(results)
    return {*schema.get("properties", ())} <= results.get("fields", {}).keys()


def _spreads(found: Sequence[tuple[float, int, int]], *, is_closed: bool) -> list[dict[str, object]]:
    """Return the histograms of the latency and, unless answers have a closed form, of the answers' lengths."""
    kinds = (("Latency", "s"), ("Length of answers", "characters"), ("Tokens of answers", "tokens"))
    return [
        _histogram(title, unit, values)
        for (title, unit), values in zip(kinds[: 1 if is_closed else 3], zip(*found, strict=True), strict=False)
        if any(values) and len({*values}) > 1
    ]


def _histogram(title: str, unit: str, values: Sequence[float]) -> dict[str, object]:
    ordered = sorted(value for value in values if value is not None)
    to = ordered[min(len(ordered) - 1, math.ceil(_SHOWN_SHARE * len(ordered)))] or ordered[-1]
    bins = min(_BINS, int(to)) if unit != "s" and to >= 1 else _BINS
    counts = [0] * bins
    for value in ordered:
        counts[min(bins - 1, int(bins * value / to))] += 1
    half, most = (rounded(statistics.quantile(ordered, percent) or 0) for percent in (50, 95))
    return {
        "title": title,
        "unit": unit,
        "to": to,
        "counts": counts,
        "beyond": ordered[-1] > to,
        "words": f"half up to {half}, 95 % up to {most}, longest {rounded(ordered[-1])} {unit}",
    }


def _run(course: CourseRecord, spec: JobSpec, found: Status, made_in: str) -> list[tuple[str, str]]:
    runs = course.get("runs", [])
    versions = dict.fromkeys(run["version"] for run in runs)
    facts = {
        "Command": found.get("command", ""),
        "Model": f"{spec.models} ({spec.backend})" if spec.models else spec.backend,
        **_prompts(spec, found),
        "System prompt": found.get("system", ""),
        "Settings": ", ".join(f"{name} {value}" for name, value in (spec.targets[0].sampling or {}).items()),
        "Answers' schema": ""
        if spec.output.answer_schema is None
        else orjson.dumps(spec.output.answer_schema).decode(),
        "Input": spec.input.path.name,
        "Output": spec.output.path.name if spec.output.format else "",
        "Rounds": made_in,
        "Begun": when(spec.created),
        "Runs": "\n".join(f"{when(run['began'])}, after {took(run['at'])}" for run in runs) if len(runs) > 1 else "",
        "Version": f"promptmill {', '.join(versions)}" if versions else "",
        "Job": spec.job_id,
    }
    return [(label, cut(text, 20_000)) for label, text in facts.items() if text]


class _Pictures:
    """Pictures for the first rows that have them, while there is room."""

    def __init__(self, made: Callable[[JobRow], tuple[object, int] | None], room: int) -> None:
        """`made`: returns the pictures of a row, and how many characters they have; None if the row has no pictures.
        `room`: the most characters of all pictures together."""
        self.found: dict[str, object] = {}
        """The pictures, by row number."""
        self._made, self._room = made, room

    def of(self, rows: Iterable[JobRow]) -> Iterator[JobRow]:
        """Yield the rows, and make their pictures."""
        for row in rows:
            if self._room > 0 and str(row.number) not in self.found and (made := self._made(row)) is not None:
                pictures, size = made
                self._room -= size
                if self._room >= 0:
                    self.found[str(row.number)] = pictures
            yield row


def _thumbnail(row: JobRow, folders: Sequence[str], rules: ImageRules) -> tuple[str, int] | None:
    """Return a thumbnail (a JPEG in base64) of an answered row's first image, and its length; None without an image."""
    if row.error or not row.images:
        return None
    picture = thumbnail(from_folder(row.images[0], folders), rules)
    return None if picture is None else (picture, len(picture))


def _pages(row: JobRow, folders: Sequence[str], rules: ImageRules) -> tuple[Sequence[PagePicture], int] | None:
    """Return pictures of the pages of a PDF on which quotes of the answer have boxes, and the size of all pictures."""
    if not (row.file and (sources := row.values.get(SOURCES)) and "sources" in features()):
        return None
    from promptmill.features.sources.page_pictures import page_pictures  # imported on use: it may be missing

    found = page_pictures(sources, from_folder(row.file, folders), rules)
    return (found, sum(len(picture["png"]) for picture in found)) if found else None
