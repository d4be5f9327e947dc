"""Admission of a job: the checks before its first request, and the errors for refused orders."""

from __future__ import annotations

import contextlib
import errno
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from promptmill.backends import registry
from promptmill.core.errors import Code, Named, PromptmillError, input_error
from promptmill.files import disk, table_paths
from promptmill.files.databases import Stamp
from promptmill.files.xlsx import sheet_names
from promptmill.jobs.columns import column_names
from promptmill.jobs.export.output import changed_answers, has_own_rows, is_own, with_answers_of
from promptmill.jobs.ingest import CALL_DISK_SHARE
from promptmill.jobs.inputs import row_secrets
from promptmill.jobs.inputs.any_format import check_columns
from promptmill.jobs.rows.template import hides
from promptmill.jobs.run.job import Job
from promptmill.jobs.run.phases import Change
from promptmill.jobs.run.resumption import SEND_ALL, check_keeps_rows, resumed
from promptmill.jobs.run.wanted_job import OrderFiles, WantedJob, spec_of
from promptmill.jobs.store import progress, rounds
from promptmill.jobs.store.database import DamagedError, JobDatabase, Work
from promptmill.jobs.store.description import Target
from promptmill.jobs.store.fingerprint import fingerprint
from promptmill.jobs.store.folder import Folder
from promptmill.jobs.store.index import JobFolders
from promptmill.jobs.store.lock import Lock
from promptmill.jobs.store.order import Earlier, JobOrder, seal_of
from promptmill.jobs.store.plan import JobSpec
from promptmill.jobs.store.spec import OutputRecord

_FOREIGN = "Its owner could read or change the answers: remove it, or name another output."
_NO_LOCKS = ("Its file system has no locks; keep the job in a folder of another one: ", Named("state", "DIR"), ".")
_REFUSED = frozenset({errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL})
_TRIES = 100
_LEAVES_S = 5.0


@dataclass(frozen=True, slots=True)
class CheckedOrder:
    """An order that may be carried out, if nobody changes its files or its job meanwhile."""

    files: OrderFiles
    spec: JobSpec
    """The description of the job."""


def checked(wanted: WantedJob, *, are_columns_checked: bool = False) -> CheckedOrder:
    """Check an order without taking the lock of its job. Raises the errors of `admit`. Changes nothing."""
    order, config = wanted.order, wanted.config
    registry.check_name(config.backend)
    files = OrderFiles.of(wanted)
    folder = files.folder
    if files.input is not None and wanted.source is None and config.file_rule.is_guarded:
        row_secrets.check_beginning(files.input, config.file_rule)
    with _usable(folder):
        new = spec_of(wanted.folders.id_of(folder), files, wanted, known=folder.spec)
        is_new = folder.spec is None or not (order.question.templates or new.input.kind.rows != "objects")
        if is_new and not are_columns_checked and files.input is not None:
            check_columns(order.question, new.input.format, files.input)
        damage = folder.damage()
        if damage == "empty" and order.earlier.again != "all":
            empty = f"The database {folder.database} is empty, so the answers of its job are lost. Restore it, or "
            raise input_error(empty, SEND_ALL, " sends all rows again.")
        if not damage:  # a damaged database must be repaired before it shows which job made the output
            _check_output(folder, new, order, table_paths.stamp(new.output.path))
    return CheckedOrder(files, new)


def admit(wanted: WantedJob, *, are_columns_checked: bool = False, is_trial: bool = False) -> Job:
    """Lock the wanted job, whether new or existing, and return it. `are_columns_checked`: whether the columns that the
    prompt names were checked. `is_trial`: the job will not run, so its order is not stored.

    Raises `PromptmillError`: `storage`, or `invalid_input` if the job is running, if its answers were made with other
    settings (model, sampling, system prompt), or if its files cannot be used. A refused order changes nothing.
    """
    order, config, folders, given = wanted.order, wanted.config, wanted.folders, wanted.source
    wanted_job = checked(wanted, are_columns_checked=are_columns_checked)
    files, new = wanted_job.files, wanted_job.spec
    folder = files.folder
    if not files.is_loose:
        files.target.parent.mkdir(parents=True, exist_ok=True)
    with _usable(folder), contextlib.ExitStack() as opened:
        if not folders.beside_outputs or files.is_loose:
            folders.make_root()
        if (lock := _locked(folder)) is None:
            status_of = Named("status", folder.job_id, "{} shows its progress.")
            raise input_error(f"Job {folder.job_id} is running already; ", status_of)
        opened.callback(lock.release)
        opened.callback(folder.close)
        begun, is_finished = folder.order, folder.status.get("state") == progress.FINISHED
        if begun is not None and order.shown.command == begun.shown.command and not is_finished:
            order = order.repeated(begun)  # if a command is repeated, its unfinished job keeps its decisions
        order = _with_same_answers(order, new, folders, folder)
        spec, change = _opened(folder, order, lambda: _begun(folder, new, order, wanted, is_trial=is_trial))
        most_cost = config.operator.max_cost if wanted.is_received else None  # else the order's limit may be higher
        job = Job(folder, spec, order, config, lock, change, most_cost=most_cost)
        if given is not None and given.parts and not (spec.is_read and spec.input.sha256 == given.key):
            job.spec, job.input = spec.with_input(sha256=given.key, style=given.style), files.input
        elif spec.is_read:
            job.input = job.changed_files()
        if not is_trial:
            folder.control.changed(cancel=False, at_once=False).write(folder.path)
            if job.input is not None and (made := folder.result) is not None:
                folder.put(output=made.model_copy(update={"finished": False}))
            folders.register(folder)
        if getattr(config.block, "dedupe", False):
            dedupe = not order.plan.chooses  # False if the plan needs a separate answer for each slot and row
            # the backend's own `dedupe` keeps answers in memory, whereas a job handles duplicates on disk
            settings = config.settings.with_block(config.backend, dedupe=False)
            job.config, job.order = replace(config, settings=settings), order.with_limits(dedupe=dedupe)
        opened.pop_all()
        return job


def check(wanted: WantedJob) -> None:
    """Raise the errors of `admit` and, if the job exists, those of reading its input again. Change nothing. Blocks."""
    folder = checked(wanted).files.folder
    with _usable(folder):
        is_repaired = bool(folder.damage())  # an order that is run repairs the database first
    if is_repaired or not folder.database.exists():
        return
    with contextlib.closing(admit(wanted, are_columns_checked=True, is_trial=True)) as job:
        if (unread := job.unread()) is not None:
            job.trial(unread)(Work(), job.folder)


@contextlib.contextmanager
def _usable(folder: Folder) -> Iterator[None]:
    """Raise `PromptmillError` if the job's folder or database cannot be used."""
    try:
        yield
    except OSError as error:
        raise PromptmillError(
            Code.STORAGE,
            f"The job's folder {folder.path} cannot be used: {disk.why(error)}.",
            _FOREIGN if isinstance(error, disk.ForeignError) else _NO_LOCKS if error.errno in _REFUSED else None,
        ) from None
    except DamagedError:
        damaged = f"The database {folder.database} is damaged beyond reading. "
        raise input_error(damaged, SEND_ALL, " starts a new one.") from None


def _last_round(store: JobDatabase, order: JobOrder) -> int:
    """Return the id of the last round before the order. If the order resumes an interrupted order `again`, return the
    id of the last round before that order."""
    known = rounds.stored_rounds(store)
    if not known:
        return 0
    last, again = known[-1], f"again {order.earlier.again}"
    goes_on = not last.done and any(round_.since == last.since and round_.rows == again for round_ in known)
    return last.since if goes_on else last.id


def _opened(folder: Folder, order: JobOrder, begin: Callable[[], tuple[JobSpec, Change]]) -> tuple[JobSpec, Change]:
    try:
        folder.open()
        folder.store.get("spec")  # raises if the database is damaged, whereas `folder.spec` would be None
        return begin()
    except DamagedError:
        try:
            folder.salvage()
        except DamagedError:
            if order.earlier.again != "all":
                raise
            folder.forget()
            folder.open()
        return begin()


def _locked(folder: Folder) -> Lock | None:
    """Create `folder` if it is missing, and return the job's lock; None if another process runs the job.

    If the stored status says that the job has ended, its process will soon exit, so this function waits for the lock.
    """
    end, tries = time.monotonic() + _LEAVES_S, _TRIES
    while True:
        try:
            folder.make()
            lock = Lock.take(folder.lock)
        except (FileNotFoundError, FileExistsError):  # another process is removing an old job of these files
            tries -= 1
            if not tries:
                raise
            continue
        if lock is not None or folder.status.get("state") not in progress.ENDED or time.monotonic() > end:
            return lock


def _check_output(folder: Folder, new: JobSpec, order: JobOrder, there: Stamp | None) -> None:
    """Raise `PromptmillError` (`invalid_input`) if the output exists and must be kept. `there`: the file's stamp."""
    output = new.output.path
    if order.earlier.overwrite or not new.output.format or there is None:
        return
    made, begun = folder.result, folder.spec
    has_written = made is not None and made.limit != 0
    if new.fills_input and not has_written:
        return  # the answers become new columns of the input
    file, member = table_paths.split(output)
    if not is_own(begun or new, made, there):
        overwrite = Named("overwrite", text="; {} replaces it")
        if new.keeps_sheets and has_written:  # the workbook is kept: the job itself has written one of its sheets
            if begun is not None and _has_own_rows(folder, begun):
                return
            raise changed_answers(output)
        if member and not has_written and new.output.kind.has_sheets and member not in sheet_names(file):
            return  # the workbook is kept: only one sheet is replaced
        part = "sheet" if new.output.kind.has_sheets else "table"
        other = f"name another {part}" if member else "name another file, or move it away"
        if begun is None and folder.had_job:
            lost = f"The database {folder.database} was damaged or removed, so {output} may be its own output or not; "
            raise input_error(f"{lost}{other}", overwrite, ".")
        away = other if begun is None else f"move it away to resume job {begun.job_id}"
        why = "was changed after the job wrote it" if has_written else "exists and is not this job's own output"
        raise input_error(f"{output} {why}; {away}", overwrite, ".")


def _has_own_rows(folder: Folder, begun: JobSpec) -> bool:
    """Return whether the job wrote all answers that its sheet still has, even if rows were deleted from the sheet."""
    if not begun.fills_input:
        return False
    with folder.reading() as store:
        return has_own_rows(store, begun)


def _with_same_answers(order: JobOrder, new: JobSpec, folders: JobFolders, folder: Folder) -> JobOrder:
    """Return the order. If another answer column of the sheet has the same question and settings, the returned order
    reuses that column's answers, so that nothing is paid twice. `folder`: the folder of the new column's job."""
    is_read = folder.spec is not None and folder.spec.is_read
    if not new.fills_input or is_read or new.parts or order.earlier != Earlier():
        return order
    for other in folders.of_sheet(new.output.path):
        spec = other.spec
        if spec is not None and _identity(spec) == _identity(new):
            return order.with_earlier(from_jobs=(other.database,))
    return order


def _identity(spec: JobSpec) -> tuple[object, ...]:
    """Return the settings that determine the answers of a job: jobs with equal settings answer equal rows equally."""
    return spec.question, spec.parts, [target.fingerprint for target in spec.targets]


def _with_copies(targets: Sequence[Target]) -> tuple[Target, ...]:
    """Return the targets. The target of slot 0 now also accepts answers that a plan has copied from the other slots."""
    delivered, *others = targets
    kept = tuple(sorted({*delivered.kept, *(target.settings for target in others)} - {delivered.settings}))
    return delivered.model_copy(update={"kept": kept}), *others


def _begun(
    folder: Folder, new: JobSpec, order: JobOrder, wanted: WantedJob, *, is_trial: bool
) -> tuple[JobSpec, Change]:
    """Start or resume the job with `order`. Unless `is_trial`, store the order. The caller holds the lock and has
    opened the database."""
    folder.roll_back()
    since = _last_round(folder.store, order)
    begun, made, there, adds = folder.spec, folder.result, table_paths.stamp(new.output.path), False
    _check_output(folder, new, order, there)  # checked again, because the output may have changed
    if new.output.format and there is not None and not is_own(begun or new, made, there):  # a foreign file
        if begun is not None and begun.fills_input and made and made.limit != 0 and not order.earlier.overwrite:
            made = with_answers_of(begun, made)  # the sheet lacks rows, see `_has_own_rows`
        else:
            made = OutputRecord(size=there[0], mtime_ns=there[1], limit=0, finished=False)
    if begun is None:
        is_new = rounds.is_empty(folder.store)  # False if the job has answers, but its description was damaged
        targets = map(folder.numbered, new.targets)
        spec = new.model_copy(update={"targets": tuple(targets), "to_bind": None if is_new else "questions"})
    else:
        adds = asks_more(begun, new, wanted)
        spec = resumed(folder, begun, new, order, fixed=wanted.is_fixed, adds=adds)
    if spec.chooses:
        spec = spec.model_copy(update={"targets": _with_copies(spec.targets)})
    if begun is not None and made is not None:
        if is_own(begun, made, there):
            check_keeps_rows(begun, made, order, is_still=made.is_still(there))
        is_same = begun.shape == spec.shape and begun.targets == spec.targets and begun.plan == spec.plan
        if order.earlier.may_change(folder.status) or not spec.is_read or not is_same:
            made = made.model_copy(update={"finished": False})  # the output lacks the new answers
    if not is_trial:
        stored = order.model_copy(update={"earlier": Earlier(), "output": new.output.path})
        values = {"spec": spec, "order": stored, "output": made}
        before = None if begun is None else {name: folder.store.get(name) for name in (*values, "seal")}
        dumped = (each.model_dump(mode="json") for each in (stored, spec))
        folder.put(before=before, seal=None if wanted.is_received else seal_of(*dumped), **values)
    share = CALL_DISK_SHARE if wanted.is_of_call else 1.0
    return spec, Change(begun, order.earlier, since, share, _foreign_columns(spec, wanted.folders), adds)


def asks_more(begun: JobSpec, new: JobSpec, wanted: WantedJob) -> bool:
    """Return whether an order asks all questions of the job `begun` and more, with the same settings."""
    if (taking := new.plan.taking(begun)) is None or not taking.is_whole:
        return False
    order, config = wanted.order, wanted.config.with_sampling(taking.sampling)
    known = fingerprint(config, order.system_prompt, new.input.format, has_check=order.has_check)
    return [target.fingerprint for target in begun.targets] == [known]


def _foreign_columns(spec: JobSpec, folders: JobFolders) -> frozenset[str]:
    """If the job's prompts contain whole rows: return the columns that other jobs added to the job's sheet, and that
    the prompts do not name. In the prompts, each answer of another job would change a row's question."""
    prompts = [text for text in spec.question.templates if spec.fills_input]
    others = [other.spec for other in folders.of_sheet(spec.output.path)] if prompts else []
    names = {
        name for other in others if other is not None and other.output.names for name in column_names.own_names(other)
    }
    return frozenset(name for name in names if all(hides(text, name) for text in prompts))
