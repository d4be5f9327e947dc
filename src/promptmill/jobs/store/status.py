"""The status of a job, which any process can read."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar, cast

from promptmill.core.bounds import LONGEST_PATH
from promptmill.core.feature import figures, part
from promptmill.core.wording import cut
from promptmill.jobs.store import statistics
from promptmill.jobs.store.database import DamagedError, JobDatabase
from promptmill.jobs.store.folder import Folder
from promptmill.jobs.store.in_flight import InFlight
from promptmill.jobs.store.plan import JobSpec
from promptmill.jobs.store.progress import ALIVE, FINISHED, INTERRUPTED, STARTING
from promptmill.jobs.store.status_record import Results, RunStatus, Status

if TYPE_CHECKING:  # imported on use: it takes a twentieth of a second
    from promptmill.config.model_config import ModelConfig

T = TypeVar("T")


def spent(folder: Folder) -> float:
    """Return the cost of a job, including the highest possible cost of requests without a record. Blocks.

    Raises `OSError` and `DamagedError`.
    """
    return recorded_cost(folder) + InFlight.most_in(InFlight.beside(folder.database))


def recorded_cost(folder: Folder) -> float:
    """Return the cost of a job's requests that have a record. Blocks. Raises the errors of `spent`.

    The database is read too, because the stored status may lack the last costs of a killed runner.
    """
    last = folder.status
    with folder.reading() as store:
        return max(last.get("cost") or 0.0, statistics.cost(store) + last.get("cost_forgotten", 0.0))


def write_starting(folder: Folder) -> None:
    """Store the state `starting` for the job in the open `folder`. Raises the errors of `JobDatabase`."""
    folder.put(status={**folder.status, "state": STARTING, "reason": "", "updated": time.time()})


def read(folder: Folder) -> Status:
    """Return the status of the job in `folder`. The state of an unfinished job that no process runs is `interrupted`.

    Raises `PromptmillError` (`invalid_input`) if the job was removed meanwhile.
    """
    spec, last = folder.spec_and_status()
    if spec is None:
        raise folder.gone()
    return of(folder, spec, last)


def of(folder: Folder, spec: JobSpec, last: RunStatus) -> Status:
    """Return the status of the job `spec`. `last`: the status that the job's runner stored. A text longer than a path
    is cut, because the database may come from anywhere."""
    default: RunStatus = {"state": INTERRUPTED}
    now, alive = default | last, folder.alive
    if not alive and now["state"] in ALIVE:  # the runner may have ended since `last` was read
        now = default | folder.status
    if not alive and now["state"] in ALIVE:
        now.pop("waiting", None)
        now |= {"state": INTERRUPTED, "in_flight": 0, "eta_s": None, "rows_per_second": 0.0, "tokens_per_second": 0.0}
        now |= _read(folder, lambda store: _stored_counts(store, spec, now)) or {}
    if not alive and now["state"] != FINISHED:
        now["paused"] = folder.control.paused  # whether the next run will begin paused
    output = str(spec.output.path) if spec.output.format else None
    job: Status = {"job_id": spec.job_id, "input_file": str(spec.input.path), "output_file": output}
    job |= {"variants": [target.name for target in spec.targets]} if spec.is_grid else {}
    job |= {"model": spec.models, "backend": spec.backend, "created": spec.created}
    found: Status = {**job, **now, "alive": alive}
    return cast(
        "Status", {name: cut(text, LONGEST_PATH) if isinstance(text, str) else text for name, text in found.items()}
    )


def _stored_counts(store: JobDatabase, spec: JobSpec, last: RunStatus) -> RunStatus:
    """Return the counts from the database, because the `last` status may be a second older than the last answers.

    Requests that were in flight at a kill have no record, so a count in `last` may be higher. The higher count is used.
    100,000 rows take 0.06 s.
    """
    counts = statistics.counts(store, skips_empty=spec.question.skip_empty)
    stored = dict[str, Any](counts.as_dict())
    return cast("RunStatus", stored | {name: max(stored[name], last.get(name, 0)) for name in statistics.RECORDED})


def asked(folder: Folder) -> Status:
    """Return the job's prompt (its templates, or the column with the prompts), its system prompt and its command."""
    spec, order = folder.spec, folder.order
    prompt = ""
    if spec is not None:
        column = spec.question.column
        prompt = " / ".join(spec.question.templates) or ("" if column is None else f"column {column}")
    fields: Status = {"prompt": prompt} if prompt else {}
    if order is not None and order.system_prompt:
        fields["system"] = order.system_prompt
    if order is not None and order.shown.command:
        fields["command"] = shlex.join(["promptmill", *order.shown.command])
    return fields


def figures_of(store: JobDatabase, spec: JobSpec, before: int, configs: Sequence[ModelConfig] = ()) -> dict[str, Any]:
    """Return the figures of the answers to the rows below number `before`: `results`, and the figures of the plan and
    features. `configs`: during a run, the configuration of each slot's model. Blocks.

    Raises the errors of `JobDatabase`.
    """
    results = statistics.results(store, before, spec.output)
    labels, counted = _labelled_fields(results), {"results": results}
    for figure in figures().values():
        if figure.count and spec.may_have(figure.option):
            counted |= part(figure.count)(store, spec, labels, before, configs)
    return {**counted, **spec.plan.figures(store, spec, labels, before)}


def _labelled_fields(results: Results) -> list[str]:
    """Return the names of the fields whose values are labels; `[""]` if whole answers are labels."""
    if fields := results.get("fields"):
        return [name for name, field in fields.items() if field.get("values") and not {"is_list", "mean"} & {*field}]
    return [""] if results.get("values") else []


def read_all(
    folders: Iterable[Folder], is_shown: Callable[[JobSpec], bool] = lambda _: True, unread: list[Folder] | None = None
) -> list[Status]:
    """Return the status of each existing job for which `is_shown` returns True, the newest first.

    Folders whose job cannot be read are added to `unread`.
    """
    statuses = []
    for folder in folders:
        spec, last = folder.spec_and_status()
        if spec is None:
            if unread is not None:
                unread.append(folder)
        elif is_shown(spec):
            statuses.append(of(folder, spec, last))
    return sorted(statuses, key=lambda one: -one["created"])


def examples(folder: Folder) -> dict[str, str]:
    """Return an example message for each error code; `{}` if the database cannot be read."""
    return _read(folder, statistics.examples) or {}


def with_results(folder: Folder, found: Status) -> Status:
    """Return the status `found` with `results`, the counts of the answers so far (see `statistics.results`); unchanged
    if the database is unreadable. If the job is running, rows are counted again, at the same moment as the results."""
    if (spec := folder.spec) is None:
        return found
    if not found["alive"]:
        counted = _read(folder, lambda store: statistics.results(store, output=spec.output))
        return {**found, "results": counted or {}}
    try:
        with folder.one_moment() as store:
            counted = statistics.results(store, output=spec.output)
            rows = _stored_counts(store, spec, found)
    except (OSError, DamagedError):
        return found
    return cast("Status", {**found, **rows, "results": counted})


def _read(folder: Folder, query: Callable[[JobDatabase], T]) -> T | None:
    """Return the result of a query; None if the database cannot be read."""
    try:
        with folder.reading() as store:
            return query(store)
    except (OSError, DamagedError):
        return None


def failures(folder: Folder, most: int) -> list[dict[str, str | int | None]]:
    """Return `row` (from 1), `code` and `message` of the first `most` failed rows. Raises the errors of
    `JobDatabase`."""
    spec = folder.spec
    with folder.reading() as store:
        failed_rows = statistics.failures(store, most, skips_empty=spec is not None and spec.question.skip_empty)
        return [{"row": one.row + 1, "code": one.code, "message": one.text} for one in failed_rows]
