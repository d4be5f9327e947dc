"""The status of a job in words: its progress in a line, and the summary at its end."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, TextIO, cast

from promptmill.config.backends import EMBEDDED
from promptmill.core.money import dollars
from promptmill.core.wording import counted, cut, duration
from promptmill.jobs.store import status_record
from promptmill.jobs.store.order import PART
from promptmill.jobs.store.progress import FINISHED, MERGING, RUNNING, STOPPED, Progress, Watch, batch_words
from promptmill.jobs.store.status_record import BatchStatus, LabelShare, Results, RunStatus, Status, SureStatus

LISTED_LABELS = 12
"""The labels that a summary for a terminal lists."""
_LINE_EVERY_S = 5.0
_SHORT_S = 100
_SHORT_TEXT = 400
_FEWEST_FOR_P99 = 100  # rows
_COMMIT = re.compile(r"(@[0-9a-f]{8})[0-9a-f]{32}\b")  # of a dataset


def summary(
    found: Status,
    *,
    examples: Mapping[str, str] = MappingProxyType({}),
    remedies: Mapping[str, str] = MappingProxyType({}),
    go_on: Sequence[str] = (),
    output: bool = True,
) -> str:
    """Return the paragraph at the end of a job, from its status.

    `examples`: a message for each code of failures. `remedies`: what helps against the rows of a count, by its name.
    `go_on`: how a job that stopped goes on. `output`: name it.
    """
    state, reason = found["state"], found.get("reason")
    files = title(found)
    if state == FINISHED and found.get("total") == 0:
        return f"{files}: {_without_rows(found)}"
    if state == STOPPED and not found.get("alive") and reason and not found.get("answered"):
        return "\n".join([f"{files}: {state}: {reason}", *go_on[:2]])
    if state == FINISHED:
        lines = [f"{files}: {outcome(found)}"]
    else:
        why = f": {reason}" if reason else ""
        rows = f"  rows      {times(found)}{line(found)}"
        lines = [f"{files}: {state} after {effort(found)}{why}", rows]
    errors = found.get("errors", {})
    if (sure := found.get("sure")) and sure.get("sample", {}).get("drawn"):
        lines += _sure(sure)
    lines += _shares(sure.get("shares", {}), sure["model"]) if sure else []
    if votes := found.get("votes"):
        unanimous = f"{votes['unanimous']:,} of {counted(votes['rows'], 'row')} have {votes['votes']} equal votes"
        lines += _labelled(("votes", f"{unanimous}, {votes['ties']:,} a tie"))
    if persons := found.get("person"):
        unknown = "" if found.get("shares") else "; not of rows drawn at random, so they tell no shares of all rows"
        lines += _labelled(("person", f"{counted(persons, 'label')} by a person{unknown}"))
        lines += _shares(found.get("shares", {}), "the person")
    lines += _labelled(
        ("batch", batch_line(found.get("batch", {}))),
        ("answers", _answers(found)),
        ("errors", ", ".join(f"{count:,} {code}" for code, count in errors.items())),
    )
    lines.extend(f"    {code}: {examples[code]}" for code in errors if code in examples)
    if "failed" in remedies and state == FINISHED:
        lines.append(remedies["failed"])
    run = f"{found['run_requests']:,} in the last run, " if "run_requests" in found else ""
    every = f"{found.get('requests', 0):,}{' in all' if run else ''}"
    read, written, cached = (found.get(name, 0) for name in ("prompt_tokens", "completion_tokens", "cached_tokens"))
    of_cache = f", {cached:,} of them from the provider's cache" if cached else ""
    of_cache += f" (saved {dollars(saved)})" if (saved := found.get("cache_saved")) else ""
    lines += _labelled(
        *_counted(found, "rows", remedies),
        ("requests", f"{run}{every}, {found.get('retries', 0):,} of them retries"),
        ("tokens", f"{read:,} in{of_cache}, {written:,} out" if read or written else ""),
        *_counted(found, "requests", remedies),
        *_counted(found, "runs", remedies),
        ("latency", _latency(found)),
        *(("note", warning) for warning in found.get("warnings", ())),
        ("job", found["job_id"]),
        *(
            (name, cut(" ".join(str(found.get(name, "")).split()), _SHORT_TEXT))
            for name in ("prompt", "system", "command")
        ),
    )
    if state == FINISHED and output and found["output_file"]:
        lines.append(f"  output    {found['output_file']}")
    elif state != FINISHED and not found.get("alive"):
        lines += go_on or ["  what is answered is kept"]
    return "\n".join(lines)


def counts(found: RunStatus) -> Iterator[tuple[str, status_record.Count, int]]:
    """Yield the name, the mark and the number of each count that has its own line and is not 0."""
    for name, mark in status_record.COUNTS.items():
        if mark.words and (number := cast("dict[str, Any]", found).get(name)):
            yield name.replace("_", " "), mark, number


def _counted(found: Status, over: str, remedies: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    for name, mark, number in counts(found):
        if mark.over == over:
            yield name, mark.line(number) + (f"; {remedies[name]}" if name in remedies else "")


def _sure(sure: SureStatus) -> list[str]:
    """Return the promise about the labels, and the sample by class, where a rare class may be lost."""
    lines = _labelled(("sure", "\n            ".join(label_lines(sure))))
    if not sure["expected"]["pays"]:
        return lines
    width = max(5, *(len(_value(label)) for label in sure["sample"]["classes"]))
    cheap = f"found by {cheap_model(sure)}"
    lines.append(f"            {'class':{width}}  in the sample  {cheap}")
    for label, (rows, found) in list(sure["sample"]["classes"].items())[:LISTED_LABELS]:
        lines.append(f"            {_value(label):{width}}  {rows:13,}  {found:{len(cheap)},}")
    if (more := len(sure["sample"]["classes"]) - LISTED_LABELS) > 0:
        lines.append(f"            and {more:,} more")
    return lines


def _shares(by_field: Mapping[str, Mapping[str, LabelShare]], giver: str) -> list[str]:
    """Return the shares of the labels, corrected for errors. `giver`: whose labels count as right."""
    texts = [f"{_value(field)}: {shares(its)}" if field else shares(its) for field, its in by_field.items() if its]
    lines = _labelled(*(("shares", text) for text in texts))
    return [*lines, f"            as {giver} would label every row"] if lines else []


def _labelled(*facts: tuple[str, str]) -> list[str]:
    return [f"  {name:9} {text}" for name, text in facts if text]


def _latency(found: Status) -> str:
    latency = found.get("latency_s") or {}
    if latency.get("p50") is None:
        return ""
    # the 99th percentile of few rows would be the slowest row
    names = [name for name in latency if name != "p99" or found.get("done", 0) >= _FEWEST_FOR_P99]
    return ", ".join(f"{name} {figure(float(f'{latency[name]:.2g}'))} s" for name in names)


def title(found: Status) -> str:
    """Return the names of a job's input and output."""
    names = [name for name in (found.get("input_file", ""), found.get("output_file")) if name]
    shown = (name.rstrip("/").rpartition("/")[2] if "://" in name else Path(name).name for name in names)
    return _COMMIT.sub(r"\1", " → ".join(shown))


def _answers(found: Status) -> str:
    """Return a line on the answers: `positive 125, negative 88`, or `300 different, 12 to 480 characters`."""
    what = found.get("results")
    if not what:
        return ""
    truncated = f", {found['truncated']:,} cut off" if found.get("truncated") else ""
    if fields := what.get("fields"):
        return "; ".join(f"{_value(name)}: {_field(field)}" for name, field in fields.items()) + truncated
    if values := what.get("values"):
        named = [f"{_value(value)} {count:,}" for value, count in values.items()]
        others = what["different"] - len(values)
        return ", ".join([*named, *([counted(others, "other answer")] if others else [])]) + truncated
    return f"{what['different']:,} different, {lengths(what)}{truncated}"


def _field(field: status_record.FieldResults) -> str:
    """Return the values of a field: `positive 12, negative 8`, or the range of its numbers and their mean."""
    if values := field.get("values"):
        return ", ".join(f"{_value(value)} {count:,}" for value, count in values.items())
    return span(field)


def _value(value: str) -> str:
    """Return a short answer in one line, in quotes where its end would not be clear."""
    value = " ".join(value.split())
    return f'"{value}"' if not value or "," in value or value[-1].isdigit() else value


def _without_rows(found: Status) -> str:
    if part := PART.search(found["output_file"] or ""):
        return f"shard {int(part[1])} of {int(part[2])} holds no rows; that is all right"
    to = f", and so does the output {found['output_file']}" if found["output_file"] else ""
    return f"{found['input_file']} holds no rows{to}"


def progress_lines(job_id: str, stream: TextIO) -> Watch:
    """Return a function that writes a line about the job to `stream` every few seconds."""
    written, state, waited, told = time.monotonic(), "", False, set[str]()

    def watch(progress: Progress) -> None:
        nonlocal written, state, waited
        lines = news(progress, told)
        now, waits = time.monotonic(), waited or bool(progress.waiting)
        if progress.state != state or now - written >= _LINE_EVERY_S or waits != waited:
            written, state, waited = now, progress.state, waits
            doing = f" ({progress.activity})" if progress.activity else ""
            lines.append(f"{time.strftime('%H:%M:%S')} {job_id}: {state}{doing}, {line(progress.as_dict())}")
        with contextlib.suppress(OSError):  # a full disk or a closed stream must not end a job
            for text in lines:
                print(text, file=stream, flush=True)

    return watch


def news(progress: Progress, told: set[str]) -> list[str]:
    """Return the lines about the sample of a job with `sure`, once it is decided, unless they are `told`; note them."""
    sure = progress.figures.get("sure", {})
    lines = sample_lines(sure) if "sample" in sure and progress.state == RUNNING and "sample" not in told else []
    told |= {"sample"} if lines else set()
    return lines


def sample_lines(sure: SureStatus) -> list[str]:
    """Return the figures of a job's sample as texts, with the expected cost."""
    model, rows, sample, expected = sure["model"], sure["rows"], sure["sample"], sure["expected"]
    if not sample["drawn"]:
        return [f"{model} answers all {counted(rows, 'row')}: a sample does not pay for so few"]
    agreed = f"{sample['agreed']:,} agree ({sample['agreed'] / sample['drawn'] * 100:.0f} %)"
    asked = f"sample: {sample['drawn']:,} of {counted(rows, 'row')} asked at both models"
    lines = [f"{asked}, {agreed}"]
    if "gold" in sure:
        rightly = sample["right"], sample["agreed"]
        right, cheap = (f"{count:,} ({count / sample['drawn'] * 100:.0f} %)" for count in rightly)
        lines = [f"{asked}: {model} right on {right}, the cheap model on {cheap}"]
        if sample["gold"] < rows:
            known = f"{counted(sample['gold'], 'row')} with a right label in `{sure['gold']}`"
            lines.append(f"the {known} must be a random choice of all rows")
    if "taught" in sample:
        lines = [
            f"a student learned from {counted(sample['taught'], 'answer')} of {model}",
            f"sample: {sample['drawn']:,} of the other {rows - sample['taught']:,} rows, {agreed}",
        ]
    elif sample["score"] == "equal":
        lines.append("all rows have the same score, as the cheap model tells no probabilities; a second model helps")
    if labels := ", ".join(sample["unguarded"]):
        lines.append(f"the sample has too few rows of {labels} for a promise about them")
    alone = expected.get("cost_alone")
    costs = "" if alone is None else f": {dollars(expected['cost'])} instead of {dollars(alone)}"
    share = f"{expected['share'] * 100:.0f} % of the rows"
    if "gold" in sure and expected["alone"] < sure["agree"]:
        return [*lines, f"nothing is promised: {model} alone is too often wrong; the other rows are not answered"]
    if expected["pays"]:
        return [*lines, f"about {share} will be answered by {model}{costs}"]
    return [*lines, f"did not pay: {share} would go to {model} anyway; it answers all rows"]


def cheap_model(sure: SureStatus) -> str:
    """Return the words for what takes the place of the strong model."""
    return "the student" if "taught" in sure["sample"] else "the cheap model"


def label_lines(sure: SureStatus) -> list[str]:
    """Return the figures of a job's sample and labels as texts, with the promise and its limits."""
    lines = sample_lines(sure)
    pays, is_of_truth = sure["expected"]["pays"], "gold" in sure
    if "cheap" not in sure or not (pays or is_of_truth):  # the job has not finished, or has strong labels alone
        return lines
    factor = f": {sure['factor']:.3g} times fewer paid calls" if "factor" in sure else ""
    givers = f"{sure['cheap']:,} labels by {cheap_model(sure)}, {sure['strong']:,} by {sure['model']}{factor}"
    lines = [*(lines[:-1] if pays else lines), givers]
    if "here" in sure:
        made = f"the promise was made for the {sure['rows']:,} rows that it had when its samples were drawn"
        return [*lines, f"the input has changed: {made}, not for the {sure['here']:,} rows of now alone"]
    agree, certainty = (f"{share * 100:.4g} %" for share in (sure["agree"], sure["certainty"]))
    promised, estimated = f"promised, with {certainty} certainty", f"estimated {sure['expected']['agree'] * 100:.1f} %"
    how = f"are right, as `{sure['gold']}` says" if is_of_truth else f"agree with {sure['model']}"
    more = "" if is_of_truth else "that the labels are true; "
    lines.append(f"{promised}: {agree} of the labels or more {how}; {estimated}")
    return [*lines, f"not promised: {more}{agree} of each class, or of rows added later"]


def batch_line(batch: BatchStatus) -> str:
    """Return the rows answered by batch and live, with their costs; before the job has ended, the batches.

    >>> batch_line({"by_batch": 9940, "live": 60, "cost": 3.1, "live_price": 6.2, "live_cost": 0.04})
    '9,940 of 10,000 by batch at $3.10 (live: $6.20), 60 live at $0.040'
    """
    if "by_batch" not in batch:
        words = batch_words(batch, time.time())
        return f"{words} at the provider: {', '.join(batch.get('ids', ()))}" if words else ""
    at, live = "", f", {batch['live']:,} live" if batch["live"] else ""
    if "cost" in batch:
        at = f" at {dollars(batch['cost'])} (live: {dollars(batch['live_price'])})"
        live += f" at {dollars(batch['live_cost'])}" if live else ""
    return f"{batch['by_batch']:,} of {batch['by_batch'] + batch['live']:,} by batch{at}{live}"


def share(found: LabelShare) -> str:
    """Return `43.1 % (95 %: 40.2\N{EN DASH}46.0)`: the share of a label with its interval."""
    middle, low, high = (f"{100 * found[name]:.1f}" for name in ("share", "low", "high"))
    return f"{middle} %" if low == high else f"{middle} % (95 %: {low}\N{EN DASH}{high})"


def shares(found: Mapping[str, LabelShare]) -> str:
    """Return the shares of labels in a line, the greatest first."""
    ordered = sorted(found.items(), key=lambda one: (-one[1]["share"], one[0]))
    named = [f"{' '.join(label.split()) or '(empty)'} {share(one)}" for label, one in ordered[:LISTED_LABELS]]
    return ", ".join([*named, *([f"{len(ordered) - len(named):,} more"] if ordered[LISTED_LABELS:] else [])])


def line(status: RunStatus) -> str:
    """Return the progress of a job in one line."""
    return ", ".join(parts(status))


def parts(status: RunStatus) -> list[str]:
    """Return the progress of a job in a few texts, the most important first."""
    total, is_running = status.get("total"), status.get("state") == RUNNING
    waiting = status.get("waiting") if is_running else ""
    found = [
        waiting or "",
        f"{status.get('answered', 0):,}{'' if total is None else f' of {total:,}'} answered",
        f"{status.get('failed', 0):,} failed",
    ]
    if status.get("state") == MERGING and "written" in status:
        found.append(f"{status['written']:,} written")
    elif is_running and not waiting:
        eta_s, most = status.get("eta_s"), status.get("max_cost")
        of = "" if most is None else f" of {dollars(most)}"
        of_window = f" of {window}" if (window := status.get("window")) is not None else ""
        found += [
            "" if eta_s is None else f"{duration(eta_s)} left",
            f"{status['rows_per_second']:,.1f} rows/s",
            "" if (cost := status.get("cost")) is None else f"{dollars(cost)}{of}",
            f"{status['in_flight']}{of_window} in flight",
            f"{status['refused']} refused" if status.get("refused") else "",
            f"{status['retries']:,} retried" if status.get("retries") else "",
            f"{status['tokens_per_second']:.0f} tokens/s",
        ]
    return [part for part in found if part]


def outcome(status: Status, of: str = "") -> str:
    """Return `19 answered, 1 failed in 1.8 s by good-1, $0.004`; `of` follows the counts."""
    failed = f", {status['failed']:,} failed" if status.get("failed") else ""
    return f"{times(status)}{status.get('answered', 0):,} answered{failed}{of} in {effort(status)}"


def effort(status: Status) -> str:
    """Return the time of a job, its model and its cost."""
    by = f" by {model}" if (model := status.get("model")) else ""
    by += " (a small model for trying out)" if model == EMBEDDED else ""
    return f"{took(status.get('seconds', 0))}{by}{paid(status)}"


def rows_of_input(status: Status) -> int | None:
    """Return the number of rows if each row has several answers; otherwise None (`total` is the number)."""
    total, variants = status.get("total"), status.get("variants")
    return total // len(variants) if total is not None and variants else None


def times(status: Status) -> str:
    """Return `300 rows x 2 variants: `, with a sign of multiplication; `""` for a job with one answer to each row."""
    if (rows := rows_of_input(status)) is None:
        return ""
    return f"{counted(rows, 'row')} \N{MULTIPLICATION SIGN} {counted(len(status['variants']), 'variant')}: "


def paid(status: RunStatus) -> str:
    """Return `, $0.02`, plus the highest cost of requests without an answer; `""` if the price is unknown."""
    aside = status.get("cost_set_aside")
    if status.get("cost") is None and not aside:
        return ""
    more = f" and at most {dollars(aside)} for requests without an answer" if aside else ""
    return f", {dollars(status.get('cost') or 0.0)}{more}"


def lengths(results: Results) -> str:
    """Return the lengths of the shortest and the longest answer, as text."""
    shortest, longest = results["shortest"], results["longest"]
    found = f"{shortest:,}" if shortest == longest else f"{shortest:,}\N{EN DASH}{longest:,}"
    return f"{found} {'character' if longest == 1 else 'characters'}"


def span(field: status_record.FieldResults) -> str:
    """Return the range and the mean of the numbers in a field of the answers."""
    low, high, mean = (f"{number:,.6g}" for number in (field["min"], field["max"], field["mean"]))
    return low if low == high else f"{low}\N{EN DASH}{high}, mean {mean}"


def figure(value: float) -> str:
    """Return a number with two significant digits; from 100, all digits before the point."""
    return f"{value:,.0f}" if value >= 100 else f"{float(f'{value:.2g}'):g}"


def took(seconds: float) -> str:
    """Return a duration as text: `1.8 s`, or `2:03` from 100 seconds."""
    return f"{figure(seconds)} s" if seconds < _SHORT_S else duration(seconds)
