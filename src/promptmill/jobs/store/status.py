"""The status of a job, which any process can read, and its texts for people."""

from __future__ import annotations

import contextlib
import shlex
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TextIO, cast

from promptmill.config.backends import EMBEDDED
from promptmill.core.money import dollars
from promptmill.core.wording import counted, duration
from promptmill.jobs.store import statistics
from promptmill.jobs.store.database import DamagedError
from promptmill.jobs.store.folder import Folder
from promptmill.jobs.store.in_flight import InFlight
from promptmill.jobs.store.progress import (
    ALIVE,
    INTERRUPTED,
    MERGING,
    RUNNING,
    STARTING,
    EarlierRuns,
    Progress,
    Watch,
    batch_words,
)
from promptmill.jobs.store.spec import JobSpec
from promptmill.jobs.store.status_record import (
    BatchStatus,
    FieldResults,
    LabelShare,
    Results,
    RunStatus,
    Status,
    SureStatus,
)

_LINE_EVERY_S = 5.0
_SHORT_S = 100
LISTED_LABELS = 12
"""The labels that a summary for a terminal lists."""


def spent(folder: Folder) -> float:
    """Return the cost of a job, including the highest possible cost of requests without a record. Blocks.

    The stored status may lack the last costs of a killed runner. Raises `OSError` and `DamagedError`.
    """
    found = folder.status
    earlier = EarlierRuns(found)
    with folder.reading() as store:
        earlier.cost = max(earlier.cost or 0.0, statistics.cost(store) + earlier.forgotten)
    return earlier.cost + InFlight.most_in(InFlight.beside(folder.database))


def write_starting(folder: Folder) -> None:
    """Store the state `starting` for the job in `folder`, which is open here. Raises the errors of `JobDatabase`."""
    folder.put(status={**folder.status, "state": STARTING, "reason": "", "updated": time.time()})


def read(folder: Folder) -> Status:
    """Return the status of the job in `folder`. If no process runs an unfinished job, its state is `interrupted`.

    Raises `PromptmillError` (`invalid_input`) if the job was removed meanwhile.
    """
    spec, last = folder.spec_and_status()
    if spec is None:
        raise folder.gone()
    return of(folder, spec, last)


def of(folder: Folder, spec: JobSpec, last: RunStatus) -> Status:
    """Return the status of the job `spec`. `last`: the status that the job's runner wrote."""
    now: RunStatus = {"state": INTERRUPTED}
    now |= last
    alive = folder.alive
    if not alive and now["state"] in ALIVE:
        now.pop("waiting", None)
        now |= {"state": INTERRUPTED, "in_flight": 0, "eta_s": None, "rows_per_second": 0.0, "tokens_per_second": 0.0}
        now |= _stored_counts(folder, spec, now)
    output = str(spec.output.path) if spec.output.format else None
    job: Status = {"job_id": spec.job_id, "input_file": str(spec.input.path), "output_file": output}
    job |= {"variants": [target.name for target in spec.targets]} if spec.is_grid else {}
    job |= {"model": spec.models, "backend": spec.backend, "created": spec.created}
    return {**job, **now, "alive": alive}


def _stored_counts(folder: Folder, spec: JobSpec, last: RunStatus) -> RunStatus:
    """Return the counts from the database after a kill, because the last status may be a second older than the last
    answers.

    Requests that were in flight at the kill have no record, so the counters of `last` may be higher; the higher number
    is returned. 100,000 rows take 0.06 s.
    """
    try:
        with folder.reading() as store:
            counts = dict[str, Any](statistics.counts(store, skips_empty=spec.question.skip_empty).as_dict())
    except (OSError, DamagedError):
        return {}
    counts |= {name: max(counts[name], last.get(name, 0)) for name in statistics.RECORDED}
    return cast("RunStatus", counts)


def asked(folder: Folder) -> Status:
    """Return the prompt of the job in `folder` (a template, or the column that holds it) and its system prompt."""
    spec, order = folder.spec, folder.order
    prompt = ""
    if spec is not None:
        column = spec.question.column
        prompt = " / ".join(spec.question.templates) or ("" if column is None else f"column {column}")
    found: Status = {"prompt": prompt} if prompt else {}
    if order is not None and order.system_prompt:
        found["system"] = order.system_prompt
    if order is not None and order.shown.command:
        found["command"] = shlex.join(["promptmill", *order.shown.command])
    return found


def read_all(folders: Iterable[Folder], is_shown: Callable[[JobSpec], bool] = lambda _: True) -> list[Status]:
    """Return the status of each existing job for which `is_shown` is true, the newest first."""
    found = []
    for folder in folders:
        spec, last = folder.spec_and_status()
        if spec is not None and is_shown(spec):
            found.append(of(folder, spec, last))
    return sorted(found, key=lambda one: -one["created"])


def examples(folder: Folder) -> dict[str, str]:
    """Return an example message for each error code; `{}` if the database cannot be read."""
    try:
        with folder.reading() as store:
            return statistics.examples(store)
    except (OSError, DamagedError):
        return {}


def results(folder: Folder) -> Results:
    """Return the counts of the answers so far, see `statistics.results`; `{}` if the database cannot be read."""
    spec = folder.spec
    try:
        with folder.reading() as store:
            return statistics.results(store, by_field=spec is not None and spec.output.answer_schema is not None)
    except (OSError, DamagedError):
        return {}


def failures(folder: Folder, most: int) -> list[dict[str, str | int | None]]:
    """Return `row` (from 1), `code` and `message` of the first `most` failed rows. Raises the errors of
    `JobDatabase`."""
    spec = folder.spec
    with folder.reading() as store:
        found = statistics.failures(store, most, skips_empty=spec is not None and spec.question.skip_empty)
        return [{"row": one.row + 1, "code": one.code, "message": one.text} for one in found]


def progress_lines(job_id: str, stream: TextIO) -> Watch:
    """Return a function that writes a line about the job to `stream` every few seconds."""
    told, state, waited = time.monotonic(), "", False
    news: Callable[[], list[str]] | None = None

    def watch(progress: Progress) -> None:
        nonlocal told, state, waited, news
        news = news or news_of_sample(progress)
        with contextlib.suppress(OSError):
            for text in news():
                print(text, file=stream, flush=True)
        now, waits = time.monotonic(), waited or bool(progress.waiting)
        if progress.state == state and now - told < _LINE_EVERY_S and waits == waited:
            return
        told, state, waited = now, progress.state, waits
        doing = f" ({progress.activity})" if progress.activity else ""
        with contextlib.suppress(OSError):  # a full disk or a closed stream must not end a job
            print(
                f"{time.strftime('%H:%M:%S')} {job_id}: {state}{doing}, {line(progress.as_dict())}",
                file=stream,
                flush=True,
            )

    return watch


def news_of_sample(progress: Progress) -> Callable[[], list[str]]:
    """Return a function that returns the lines about the sample of a job with `sure`, once, when it is decided."""
    told = False

    def news() -> list[str]:
        nonlocal told
        sure = progress.figures.get("sure", {})
        if told or "sample" not in sure or progress.state != RUNNING:
            return []
        told = True
        return sample_lines(sure)

    return news


def sample_lines(sure: SureStatus) -> list[str]:
    """Return the figures of a job's sample as texts, with the expected cost."""
    model, rows, sample, expected = sure["model"], sure["rows"], sure["sample"], sure["expected"]
    if not sample["drawn"]:
        return [f"{model} answers all {counted(rows, 'row')}: a sample does not pay for so few"]
    agreed = f"{sample['agreed']:,} agree ({sample['agreed'] / sample['drawn'] * 100:.0f} %)"
    lines = [f"sample: {sample['drawn']:,} of {counted(rows, 'row')} asked at both models, {agreed}"]
    if "gold" in sure:
        right, cheap = (_of(sample[name], sample["drawn"]) for name in ("right", "agreed"))
        asked = f"sample: {sample['drawn']:,} of {counted(rows, 'row')} asked at both models"
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
    if sample["unguarded"]:
        labels = ", ".join(sample["unguarded"])
        lines.append(f"the sample has too few rows of {labels} for a promise about them")
    costs = ""
    if "cost_alone" in expected:
        costs = f": {dollars(expected['cost'])} instead of {dollars(expected['cost_alone'])}"
    share = f"{expected['share'] * 100:.0f} % of the rows"
    if "gold" in sure and expected["alone"] < sure["agree"]:
        return [*lines, f"nothing is promised: {model} alone is too often wrong; the other rows are not answered"]
    if expected["pays"]:
        return [*lines, f"about {share} will be answered by {model}{costs}"]
    return [*lines, f"did not pay: {share} would go to {model} anyway; it answers all rows"]


def _of(rows: int, every: int) -> str:
    return f"{rows:,} ({rows / every * 100:.0f} %)"


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
    if is_of_truth:
        its = f"{agree} of the labels or more are right, as `{sure['gold']}` says"
        return [
            *lines,
            f"{promised}: {its}; {estimated}",
            f"not promised: {agree} of each class, or of rows added later",
        ]
    its = f"{agree} of the labels or more agree with {sure['model']}"
    return [
        *lines,
        f"{promised}: {its}; {estimated}",
        f"not promised: that the labels are true; {agree} of each class, or of rows added later",
    ]


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
        f"{answered(status):,}{'' if total is None else f' of {total:,}'} answered",
        f"{status.get('failed', 0):,} failed",
    ]
    if status.get("state") == MERGING and "written" in status:
        found.append(f"{status['written']:,} written")
    elif is_running and not waiting:
        eta_s, most = status.get("eta_s"), status.get("max_cost")
        of = "" if most is None else f" of {dollars(most)}"
        found += [
            "" if eta_s is None else f"{duration(eta_s)} left",
            f"{status['rows_per_second']:,.1f} rows/s",
            "" if (cost := status.get("cost")) is None else f"{dollars(cost)}{of}",
            in_flight(status),
            f"{status['retries']:,} retried" if status.get("retries") else "",
            f"{status['tokens_per_second']:.0f} tokens/s",
        ]
    return [part for part in found if part]


def answered(status: RunStatus) -> int:
    """Return the number of rows with an answer."""
    return status.get("answered", 0)


def outcome(status: Status, of: str = "") -> str:
    """Return `19 answered, 1 failed in 1.8 s by good-1, $0.004`; `of` follows the counts."""
    failed = f", {status['failed']:,} failed" if status.get("failed") else ""
    return f"{times(status)}{answered(status):,} answered{failed}{of} in {effort(status)}"


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


def in_flight(status: RunStatus) -> str:
    """Return the requests in flight, their limit, and the number of refused requests, as text."""
    window, refused = status.get("window"), status.get("refused")
    of = "" if window is None else f" of {window}"
    return f"{status['in_flight']}{of} in flight" + (f", {refused} refused" if refused else "")


def lengths(results: Results) -> str:
    """Return the lengths of the shortest and the longest answer, as text."""
    shortest, longest = results["shortest"], results["longest"]
    found = f"{shortest:,}" if shortest == longest else f"{shortest:,}\N{EN DASH}{longest:,}"
    return f"{found} {'character' if longest == 1 else 'characters'}"


def span(field: FieldResults) -> str:
    """Return the range and the mean of the numbers in a field of the answers."""
    low, high, mean = (f"{number:,.6g}" for number in (field["min"], field["max"], field["mean"]))
    return low if low == high else f"{low}\N{EN DASH}{high}, mean {mean}"


def figure(value: float) -> str:
    """Return a number with two significant digits; from 100, all digits before the point."""
    return f"{value:,.0f}" if value >= 100 else f"{float(f'{value:.2g}'):g}"


def took(seconds: float) -> str:
    """Return a duration as text: `1.8 s`, or `2:03` from 100 seconds."""
    return f"{figure(seconds)} s" if seconds < _SHORT_S else duration(seconds)
