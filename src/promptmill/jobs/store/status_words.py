"""The status of a job as text: its progress in a line, and the summary at its end."""

from __future__ import annotations

import contextlib
import json
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from types import MappingProxyType
from typing import Any, TextIO, cast

from promptmill.config.backends import EMBEDDED
from promptmill.core.feature import figures, part
from promptmill.core.money import dollars
from promptmill.core.wording import counted, cut, duration, in_percent, paced
from promptmill.files import format_table, table_paths
from promptmill.jobs.store import status_record
from promptmill.jobs.store.progress import FINISHED, MERGING, RUNNING, STOPPED, Progress, Watch
from promptmill.jobs.store.status_record import LabelShare, Results, RunStatus, Status

LISTED_LABELS = 12
"""The number of labels that a summary for a terminal lists."""
_LINE_EVERY_S = 5.0
_SHORT_S = 100
_SHORT_TEXT = 400
_SAME_TEXT = 100
_LONGEST_LABEL = 40  # characters of an answer
_FEWEST_FOR_P99 = 100  # min rows for a 99th percentile
_WITHIN = {"p50": "half of the answers within", "p95": "95 %", "p99": "99 %"}
_COMMIT = re.compile(r"(@[0-9a-f]{8})[0-9a-f]{32}\b")  # the commit of a dataset, in a URL


def summary(
    status: Status,
    *,
    examples: Mapping[str, str] = MappingProxyType({}),
    remedies: Mapping[str, str] = MappingProxyType({}),
    go_on: Sequence[str] = (),
    output: bool = True,
) -> str:
    """Return the summary of a job from its status, for the job's end.

    `examples`: an example message for each failure code. `remedies`: what to do about the rows of a count, by the
    count's name. `go_on`: lines on how to resume a stopped job. `output`: whether to name the output.
    """
    state, reason = status["state"], status.get("reason")
    files = title(status)
    if state == FINISHED and status.get("total") == 0:
        return f"{files}: {_without_rows(status)}"
    if state == STOPPED and not status.get("alive") and reason and not status.get("answered"):
        return "\n".join([f"{files}: {state}: {reason}", *go_on[:2]])
    if state == FINISHED:
        lines = [f"{files}: {outcome(status)}"]
    else:
        why = f": {reason}" if reason else ""
        rows = f"  rows      {times(status)}{line(status)}"
        lines = [f"{files}: {state_in_words(status)} after {effort(status)}{why}", rows]
    errors = status.get("errors", {})
    lines += _labelled(
        *_figures(status),
        ("answers", _answers(status)),
        ("errors", ", ".join(f"{count:,} {code}" for code, count in errors.items())),
    )
    lines.extend(f"    {code}: {examples[code]}" for code in errors if code in examples)
    if "failed" in remedies and state == FINISHED:
        lines.append(remedies["failed"])
    spent = f" ({dollars(status['run_cost'])})" if "run_cost" in status else ""
    run = f"{status['run_requests']:,} in the last run{spent}, " if "run_requests" in status else ""
    every = f"{status.get('requests', 0):,}{' in all' if run else ''}"
    read, written, cached = (status.get(name, 0) for name in ("prompt_tokens", "completion_tokens", "cached_tokens"))
    of_cache = f", {cached:,} of them from the provider's cache" if cached else ""
    of_cache += f" (saved {dollars(saved)})" if (saved := status.get("cache_saved")) else ""
    lines += _labelled(
        *_counted(status, "rows", remedies),
        ("requests", f"{run}{every}, {status.get('retries', 0):,} of them retries"),
        ("tokens", f"{read:,} in{of_cache}, {written:,} out" if read or written else ""),
        *_counted(status, "requests", remedies),
        *_counted(status, "runs", remedies),
        ("latency", _latency(status)),
        *(("note", warning) for warning in status.get("warnings", ())),
        ("job", status["job_id"]),
        *(
            (name, cut(" ".join(str(status.get(name, "")).split()), _SHORT_TEXT))
            for name in ("prompt", "system", "command")
        ),
    )
    if state == FINISHED and output and status["output_file"]:
        lines.append(f"  output    {status['output_file']}")
    elif state != FINISHED and (status.get("paused") or not status.get("alive")):
        lines += go_on or ["  the answers are kept"]
    return "\n".join(lines)


def in_words(name: str) -> str:
    """Return the state of a job in words."""
    return "writing the output" if name == MERGING else name


def state_in_words(status: RunStatus) -> str:
    """Return the state of a job in words: `paused` if the user has paused its run."""
    state = status["state"]
    return "paused" if status.get("paused") and state == RUNNING else in_words(state)


def counts(status: RunStatus) -> Iterator[tuple[str, status_record.Count, int]]:
    """Yield the name, the `Count` and the number of each count that has a line in the summary and is not 0."""
    for name, mark in status_record.COUNTS.items():
        if mark.words and (number := cast("dict[str, Any]", status).get(name)):
            yield name.replace("_", " "), mark, number


def _counted(status: Status, over: str, remedies: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    for name, mark, number in counts(status):
        if mark.over == over:
            yield name, mark.line(number) + (f"; {remedies[name]}" if name in remedies else "")


def _figures(status: Status) -> Iterator[tuple[str, str]]:
    """Yield the name and the text of each line that a feature has for its figures."""
    for figure in figures().values():
        if figure.facts and figure.name in status:
            yield from ((name, text.replace("\n", f"\n{' ' * 12}")) for name, text in part(figure.facts)(status))


def share_lines(fields: Mapping[str, Mapping[str, LabelShare]], giver: str) -> Iterator[tuple[str, str]]:
    """Yield the lines for shares of labels. `fields`: the shares, by field. `giver`: who gave the right labels."""
    texts = [f"{one_line(field)}: {shares(its)}" if field else shares(its) for field, its in fields.items() if its]
    for text in texts[:-1]:
        yield "shares", text
    if texts:
        yield "shares", f"{texts[-1]}\nas {giver} would label every row"


def _labelled(*facts: tuple[str, str]) -> list[str]:
    return [f"  {name:9} {text}" for name, text in facts if text]


def _latency(status: Status) -> str:
    latency = status.get("latency_s") or {}
    if latency.get("p50") is None:
        return ""
    # With few rows, the 99th percentile is simply the slowest row, so it is left out.
    names = [name for name in latency if name != "p99" or status.get("done", 0) >= _FEWEST_FOR_P99]
    return ", ".join(f"{_WITHIN[name]} {figure(float(f'{latency[name]:.2g}'))} s" for name in names)


def title(status: Status) -> str:
    """Return the names of a job's input and output."""
    names = [name for name in (status.get("input_file", ""), status.get("output_file")) if name]
    shown = (name.rstrip("/").rpartition("/")[2] if "://" in name else Path(name).name for name in names)
    return _COMMIT.sub(r"\1", " → ".join(shown))


def _answers(status: Status) -> str:
    """Return a line on the answers: `positive 125, negative 88`, or `300 different answers of 12 to 480 characters`."""
    what = status.get("results")
    if not what:
        return ""
    if "vectors" in what:
        kind = format_table.writing(status.get("output_file") or "")
        as_text = kind is not None and (kind.is_text or kind.has_sheets)
        return vectors(what) + ("; as text they take three times the room of .parquet" if as_text else "")
    truncated = f", {status['truncated']:,} cut off" if status.get("truncated") else ""
    if fields := what.get("fields"):
        return "; ".join(f"{one_line(name)}: {_field(field)}" for name, field in fields.items()) + truncated
    if values := what.get("values"):
        if len(values) == 1 and what["longest"] > _LONGEST_LABEL:
            ((text, count),) = values.items()
            return f"all {count:,} the same: {cut(' '.join(text.split()), _SAME_TEXT)}{truncated}"
        more = ""
        if others := not_shown(what):
            more = f"{counted(others, 'other label')} {status.get('answered', 0) - sum(values.values()):,}"
        return ", ".join(filter(None, (_by_value(values), more))) + truncated
    return f"{counted(what['different'], 'different answer')} of {lengths(what)}{truncated}"


def _field(field: status_record.FieldResults) -> str:
    """Return the values of a field as text: `positive 12, negative 8`, or the range and mean of its numbers."""
    if values := field.get("values"):
        return _by_value(values) + (f", {mean(field)}" if "mean" in field else "")
    return span(field)


def _by_value(values: Mapping[str, int]) -> str:
    """Return `positive 12, negative 8`; if a value ends with a digit, `1 (12), 2 (8)`."""
    named = [(one_line(value), f"{count:,}") for value, count in values.items()]
    form = "{} ({})" if any(value[-1].isdigit() for value, _ in named) else "{} {}"
    return ", ".join(form.format(*pair) for pair in named)


def not_shown(results: Results) -> int:
    """Return the number of different answers that are not among the `values`."""
    return results["different"] - sum(rows > 0 for rows in results.get("values", {}).values())


def one_line(value: str) -> str:
    """Return a short answer in one line, with quotes if its end would be unclear without them."""
    value = " ".join(value.split())
    return json.dumps(value, ensure_ascii=False) if not value or {*',;"'} & {*value} else value


def _without_rows(status: Status) -> str:
    if shard := table_paths.PART.search(status["output_file"] or ""):
        return f"shard {int(shard[1])} of {int(shard[2])} holds no rows; that is all right"
    return f"the input holds no rows{', and so does the output' if status['output_file'] else ''}"


def progress_lines(job_id: str, stream: TextIO) -> Watch:
    """Return a `Watch` that writes a line about the job to `stream` every few seconds, if the line has changed."""
    written, state, waited, told, before = time.monotonic(), "", False, set[str](), ""

    def watch(progress: Progress) -> None:
        nonlocal written, state, waited, before
        lines = news(progress, told)
        lines += [f"note: {warning}" for warning in progress.call.warnings if warning not in told]
        told.update(progress.call.warnings)
        now, waits = time.monotonic(), waited or bool(progress.waiting)
        if progress.state != state or now - written >= _LINE_EVERY_S or waits != waited:
            written, state, waited = now, progress.state, waits
            activity = progress.activity if progress.state != MERGING else ""
            doing = f"{in_words(progress.state)} ({activity})" if activity else in_words(progress.state)
            said = f"{job_id}: {doing}, {line(progress.as_dict())}"
            if said != before:  # the same line may hold for hours, during a batch
                before = said
                lines.append(f"{time.strftime('%H:%M:%S')} {said}")
        with contextlib.suppress(OSError):  # a full disk or a closed stream must not end a job
            for text in lines:
                print(text, file=stream, flush=True)

    return watch


def news(progress: Progress, told: set[str]) -> list[str]:
    """Return the lines for figures of features that are not yet in `told`, and add the figures' names to `told`."""
    records, lines = progress.figures, list[str]()
    for name in records.keys() & figures().keys() - told if progress.state == RUNNING else ():
        if (where := figures()[name].news) and (new := part(where)(records)):
            lines += new
            told.add(name)
    return lines


def share(label_share: LabelShare) -> str:
    """Return `43.1 % (95 %: 40.2\N{EN DASH}46.0)`: the share of a label with its interval."""
    middle, low, high = (in_percent(label_share[name], 1) for name in ("share", "low", "high"))
    return f"{middle} %" if low == high else f"{middle} % (95 %: {low}\N{EN DASH}{high})"


def by_size(label_shares: Mapping[str, LabelShare]) -> list[tuple[str, LabelShare]]:
    """Return labels with their shares, the largest share first."""
    return sorted(label_shares.items(), key=lambda one: (-one[1]["share"], one[0]))


def shares(label_shares: Mapping[str, LabelShare]) -> str:
    """Return the labels with their shares in one line, the largest share first."""
    ordered = by_size(label_shares)
    named = [f"{' '.join(label.split()) or '(empty)'} {share(one)}" for label, one in ordered[:LISTED_LABELS]]
    return ", ".join([*named, *([f"{len(ordered) - len(named):,} more"] if ordered[LISTED_LABELS:] else [])])


def line(status: RunStatus) -> str:
    """Return the progress of a job in one line."""
    return ", ".join(parts(status))


def parts(status: RunStatus) -> list[str]:
    """Return the progress of a job as a few short texts, the most important text first."""
    total, is_running = status.get("total"), status.get("state") == RUNNING
    waiting = status.get("waiting") if is_running else ""
    of = "" if (most := status.get("max_cost")) is None else f" of {dollars(most)}"
    counts_shown = [
        waiting or "",
        f"{status.get('answered', 0):,}{'' if total is None else f' of {total:,}'} answered",
        f"{status.get('failed', 0):,} failed",
        "" if (cost := status.get("cost")) is None else f"{dollars(cost)}{of}",
    ]
    if status.get("state") == MERGING and "written" in status:
        counts_shown.append(f"{status['written']:,} written")
    elif is_running and not waiting:
        eta_s, rate = status.get("eta_s"), status["rows_per_second"]
        limit = f" (limit {window})" if (window := status.get("window")) is not None else ""
        counts_shown += [
            "" if eta_s is None else f"{duration(eta_s)} left",
            f"{figure(rate) if 0 < rate < 0.1 else f'{rate:,.1f}'} rows/s",
            f"{counted(status['in_flight'], 'request')} open{limit}",
            paced(status.get("pace", 0.0)),
            f"{status['refused']} rate-limited" if status.get("refused") else "",
            f"{status['retries']:,} retried" if status.get("retries") else "",
            f"{status['tokens_per_second']:.0f} tokens/s",
        ]
    return [text for text in counts_shown if text]


def outcome(status: Status, of: str = "") -> str:
    """Return `19 answered, 1 failed in 1.8 s by good-1, $0.004`. The text in `of` is inserted after the counts."""
    failed = f", {status['failed']:,} failed" if status.get("failed") else ""
    return f"{times(status)}{status.get('answered', 0):,} answered{failed}{of} in {effort(status)}"


def effort(status: Status) -> str:
    """Return a text with the time that a job took, its model and its cost."""
    model = status.get("model")
    by = " by a small model for trying out" if model == EMBEDDED else f" by {model}" if model else ""
    return f"{took(status.get('seconds', 0))}{by}{paid(status)}"


def rows_of_input(status: Status) -> int | None:
    """Return the number of input rows if each has several answers; None if `total` already is that number."""
    total, variants = status.get("total"), status.get("variants")
    return total // len(variants) if total is not None and variants else None


def times(status: Status) -> str:
    """Return `300 rows x 2 answers: `, with a multiplication sign; `""` if a row has only one answer."""
    if (rows := rows_of_input(status)) is None:
        return ""
    return f"{counted(rows, 'row')} \N{MULTIPLICATION SIGN} {counted(len(status['variants']), 'answer')}: "


def paid(status: RunStatus) -> str:
    """Return `, $0.02`, plus the highest cost of requests without an answer; `""` if the price is unknown."""
    aside = status.get("cost_set_aside")
    if status.get("cost") is None and not aside:
        return ""
    more = f" and at most {dollars(aside)} for requests without an answer" if aside else ""
    return f", {dollars(status.get('cost') or 0.0)}{more}"


def vectors(results: Results) -> str:
    """Return a text with the number of vectors and their length."""
    of = f"of {counted(results['dimensions'], 'number')}" if results["dimensions"] else "of different lengths"
    return f"{counted(results['vectors'], 'vector')} {of}"


def lengths(results: Results) -> str:
    """Return a text with the lengths of the shortest and the longest answer."""
    shortest, longest = results["shortest"], results["longest"]
    number_range = f"{shortest:,}" if shortest == longest else f"{shortest:,}\N{EN DASH}{longest:,}"
    return f"{number_range} {'character' if longest == 1 else 'characters'}"


def span(field: status_record.FieldResults) -> str:
    """Return a text with the range and the mean of a field's numbers."""
    low, high = map(_number, (field["min"], field["max"]))
    return low if field["min"] == field["max"] else f"{low}\N{EN DASH}{high}, {mean(field)}"


def mean(field: status_record.FieldResults) -> str:
    """Return a text with the mean of a field's numbers."""
    return f"mean {rounded(field['mean'])}"


def _number(value: float) -> str:
    """Return a number with six significant digits, or with all digits before the point."""
    return f"{value:,.0f}" if 999_999 < abs(value) < 1e15 else f"{value:,.6g}"


def rounded(value: float) -> str:
    """Return a number with three significant digits; from 100 on, without a fraction.

    >>> rounded(5.00167), rounded(0.001234), rounded(10254.3)
    ('5', '0.00123', '10,254')
    """
    return f"{value:,.0f}" if 99.95 <= abs(value) < 1e15 else f"{value:,.3g}"


def figure(value: float) -> str:
    """Return a number with two significant digits; from 100 on, without a fraction."""
    return f"{value:,.0f}" if value >= 100 else f"{Decimal(f'{value:.2g}').normalize():f}"


def took(seconds: float) -> str:
    """Return a duration as text: `1.8 s`, or `2:03` from 100 seconds."""
    return f"{figure(seconds)} s" if seconds < _SHORT_S else duration(seconds)
