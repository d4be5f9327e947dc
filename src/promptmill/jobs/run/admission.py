"""Admission of a job: all checks before the first request, and the errors of refused orders."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import functools
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from promptmill.answers.schema import schema_of
from promptmill.backends import registry
from promptmill.config.loading import Configuration
from promptmill.config.resolved_config import ResolvedConfig
from promptmill.core.bounds import LONGEST_COLUMN
from promptmill.core.errors import Code, Named, PromptmillError, input_error
from promptmill.jobs import columns, disk, members
from promptmill.jobs.columns import OURS
from promptmill.jobs.ingest import ingest
from promptmill.jobs.inputs import files as input_files
from promptmill.jobs.inputs import formats, row_secrets
from promptmill.jobs.inputs.any_format import check_columns, format_of_input, image_column, input_of
from promptmill.jobs.inputs.files import InputFiles
from promptmill.jobs.inputs.given import Given
from promptmill.jobs.inputs.template import check_names_some, places_in, template_of
from promptmill.jobs.inputs.xlsx import sheet_names
from promptmill.jobs.members import Stamp
from promptmill.jobs.run.order_files import OrderFiles
from promptmill.jobs.run.resumption import SEND_ALL, check_bound, check_keeps_rows, resumed, with_settings
from promptmill.jobs.store import binding, progress, rounds
from promptmill.jobs.store.binding import Bound
from promptmill.jobs.store.database import DamagedError, JobDatabase, Work
from promptmill.jobs.store.fingerprint import fingerprint, plain_sampling
from promptmill.jobs.store.folder import Folder
from promptmill.jobs.store.index import JobFolders
from promptmill.jobs.store.lock import Lock
from promptmill.jobs.store.order import Earlier, JobOrder
from promptmill.jobs.store.spec import WHOLE_REQUESTS, InputSpec, JobSpec, Origin, OutputRecord, OutputSpec
from promptmill.jobs.store.stored import Target

_OF_ROWS = " goes with rows, not with a file of whole requests."
_FOREIGN = "Its owner could read or change the answers: remove it, or name another output."
_NO_LOCKS = ("Its file system has no locks; keep the job in a folder of another one: ", Named("state", "DIR"), ".")
_REFUSED = frozenset({errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL})
_TRIES = 100
_LEAVES_S = 5.0


@dataclass(slots=True)
class Job:
    """A job that this process may run: its folder is locked, and its database is open."""

    folder: Folder
    spec: JobSpec
    order: JobOrder
    plan: ResolvedConfig
    """The job's model and settings; later changes of the configuration do not affect them."""
    lock: Lock
    change: Change
    input: InputFiles | None = None
    """Files that admission found new or changed, and that the run must read."""
    most_cost: float | None = None
    """The most that all runs of the job may spend of the server's budget; None: any amount."""

    @property
    def finished(self) -> bool:
        """Whether the job is done and its status is `finished`."""
        return self.has_output and self.folder.status.get("state") == progress.FINISHED

    @property
    def has_output(self) -> bool:
        """Whether the output exists, was made by this job, and has all rows of the order."""
        result, spec, earlier = self.folder.result, self.spec, self.order.earlier
        if result is None or earlier.again is not None or not spec.is_read or earlier.from_job is not None:
            return False
        is_there = not spec.output.format or result.is_still(members.stamp(spec.output.path))
        return result.finished and result.holds(self.order.limits.rows) and is_there

    def put(self, spec: JobSpec, **values: Any) -> None:
        """Store the job, together with other values. Raises the errors of `JobDatabase`."""
        self.spec = spec
        self.folder.put(spec=spec, **values)

    def load(self) -> None:
        """Load the stored job. Raises `PromptmillError` if it was removed."""
        self.spec = self.folder.known_spec()

    def unread(self, halt: threading.Event | None = None) -> InputFiles | None:
        """Return the files of the input if they were not read, or have changed since; else None. Blocks.

        Raises the errors of `changed_files`.
        """
        known, self.input = self.input, None
        files = known or self.changed_files(halt)
        if files is None:
            self.folder.put(before=None)
        return files

    def changed_files(self, halt: threading.Event | None = None) -> InputFiles | None:
        """Return the user's files if they must be read, see `unread`. Same size and time means unchanged. Blocks.

        Raises `PromptmillError`, `OSError`, `HaltedError`.
        """
        spec = self.spec
        if not spec.input.is_file:
            if not spec.is_read:
                raise input_error(f"The rows of job {spec.job_id} were not read to their end; run it with its rows.")
            return None
        if not all(part.path.exists() for part in spec.input.parts) and spec.is_read:
            return None  # after it was read, the input may be deleted
        if _is_own_work(self.folder, spec):
            return None
        files = input_files.opened(spec.input.parts, known=self.change.before is not None, encoding=spec.input.encoding)
        size, version = files.stamp()
        if spec.is_read and (size, version) == (spec.input.size, spec.input.version):
            return None
        digest = files.sha256(halt)
        is_same = spec.is_read and digest == spec.input.sha256
        self.spec = spec.with_input(size=size, version=version, sha256=digest)
        if is_same:
            self.put(self.spec, before=None)
        return None if is_same else files

    def close(self) -> None:
        """Close the database and release the lock."""
        self.folder.close()
        self.lock.release()


def admit(
    order: JobOrder,
    plan: ResolvedConfig,
    folders: JobFolders,
    *,
    given: Given | None = None,
    plans: Mapping[str, ResolvedConfig] | None = None,
    fixed: bool = False,
    are_columns_checked: bool = False,
    are_paths_resolved: bool = False,
) -> Job:
    """Return the new or existing job of `order`, and take its lock.

    `given`: the rows, if they are not in files of the user. `plans`: the plans of the models that the variants name.
    `fixed`: the settings may not differ from the first run's, even if no row has an answer yet. `are_columns_checked`:
    `check_columns` was called. `are_paths_resolved`: see `OrderFiles.of`.

    Raises `PromptmillError`: `invalid_input` if the job is running, if its answers were made with other settings
    (model, sampling, system prompt), or if input or output cannot be used; `storage`. Then nothing changes.
    """
    registry.check_name(plan.backend)
    if given is not None:
        order = order.model_copy(update={"inputs": (Path(given.name),)})
    files = OrderFiles.of(order, folders, given, are_resolved=are_paths_resolved)
    folder = files.folder
    if files.input is not None and given is None:
        row_secrets.check_beginning(files.input, plan.file_rule)
    with contextlib.ExitStack() as opened:
        try:
            wanted = spec_of(folders.id_of(folder), files, plan, order, plans or {}, known=folder.spec)
            is_new = folder.spec is None or not (order.question.templates or wanted.input.format != "jsonl")
            if is_new and not are_columns_checked and files.input is not None:
                check_columns(order.question, wanted.input.format, files.input)
            _check_output(folder, wanted, order, members.stamp(wanted.output.path))
            if not folders.beside_outputs or files.is_loose:
                disk.make_private_folder(folders.root)  # without changing the folders above it
            if (lock := _locked(folder)) is None:
                status_of = Named("status", folder.job_id, "{} shows its progress.")
                raise input_error(f"Job {folder.job_id} is running already; ", status_of)
            opened.callback(lock.release)
            opened.callback(folder.close)
            order = _as_begun(folder, order)
            spec, change = _opened(folder, order, lambda: _begun(folder, wanted, order, fixed=fixed))
            folder.control.changed(cancel=False).write(folder.path)
            job = Job(folder, spec, order, plan, lock, change)
            if given is not None and given.parts and not (spec.is_read and spec.input.sha256 == given.key):
                job.spec, job.input = spec.with_input(sha256=given.key), files.input
            elif spec.is_read:
                job.input = job.changed_files()
            if job.input is not None and (made := folder.result) is not None:
                folder.put(output=made.model_copy(update={"finished": False}))
        except OSError as error:
            raise PromptmillError(
                Code.STORAGE,
                f"The job's folder {folder.path} cannot be used: {disk.why(error)}.",
                _FOREIGN if isinstance(error, disk.ForeignError) else _NO_LOCKS if error.errno in _REFUSED else None,
            ) from None
        except DamagedError:
            damaged = f"The database {folder.database} is damaged beyond reading. "
            raise input_error(damaged, SEND_ALL, " starts a new one.") from None
        folders.register(folder)
        if getattr(plan.block, "dedupe", False):
            dedupe = not order.plan.chooses  # which needs an answer of its own for each slot and row
            job.plan, job.order = _without_own_dedupe(plan), order.with_limits(dedupe=dedupe)
        opened.pop_all()
        return job


async def admit_in_thread(admit: Callable[[], Job]) -> Job:
    """Run `admit` in a thread and return its job. If the caller is cancelled meanwhile, the job is closed."""

    def let_go(done: asyncio.Future[Job]) -> None:
        if not done.cancelled() and not done.exception():
            done.result().close()

    admitting = asyncio.ensure_future(asyncio.to_thread(admit))
    try:
        return await asyncio.shield(admitting)
    except asyncio.CancelledError:
        admitting.add_done_callback(let_go)
        raise


def _last_round(store: JobDatabase, order: JobOrder) -> int:
    """Return the id of the last round before the order. If the order resumes an interrupted order `again`, before
    that."""
    known = rounds.stored_rounds(store)
    if not known:
        return 0
    last, again = known[-1], f"again {order.earlier.again}"
    goes_on = not last.done and any(round_.since == last.since and round_.ordered == again for round_ in known)
    return last.since if goes_on else last.id


def plans_of(order: JobOrder, configuration: Configuration) -> dict[str, ResolvedConfig]:
    """Return the plans of the models that the order's variants name. Raises `PromptmillError`."""
    named = {variant.model for variant in order.variants} & {*configuration.names}
    return {name: configuration.plan_of(name) for name in named}


class _TriedError(Exception):
    """Undoes a reading that would be accepted."""


@dataclass(frozen=True, slots=True)
class Change:
    """The effect of an order on the rows and answers that a job already has."""

    before: JobSpec | None
    """The job before the order."""
    earlier: Earlier
    since: int
    """The id of the last round before the order."""
    disk_share: float = 1.0
    """The share of the free disk space that the rows may take."""

    def try_out(self, store: JobDatabase, spec: JobSpec, files: InputFiles, work: Work) -> None:
        """Raise the errors of `read`, and change nothing. Blocks."""
        with contextlib.suppress(_TriedError):
            self.read(store, spec, files, work, is_trial=True)

    def read(
        self, store: JobDatabase, spec: JobSpec, files: InputFiles, work: Work, *, is_trial: bool = False
    ) -> tuple[JobSpec, Bound]:
        """Read the input into the database and bind the answers to its rows. Return the job and the counts. Blocks.

        Raises the errors of `ingest` and `check_bound`; then nothing changes.
        """

        def check(bound: Bound) -> None:
            if self.before is not None and not (self.earlier.keep or self.earlier.again == "all"):
                check_bound(self.before, spec, bound)
            if is_trial:
                raise _TriedError

        with self._other() as other:
            bind = functools.partial(binding.bind, check=check, other=other, since=self.since)
            own = columns.own_names(self.before) if self.before is not None and spec.fills_input else ()
            return ingest(
                store, spec, input_of(files, spec.input.format, own), work, files, bind=bind, disk_share=self.disk_share
            )

    def rebind(self, store: JobDatabase, spec: JobSpec, work: Work) -> Bound:
        """Bind the answers of another job to the rows in the database. Blocks. Raises the errors of `JobDatabase`."""
        binding.begin(store)
        store.put(stretches_next=store.get("stretches"))
        with self._other() as other:
            return binding.bind(store, spec, replaced=range(0), other=other, since=self.since, halt=work.halt)

    @contextlib.contextmanager
    def _other(self) -> Iterator[JobDatabase | None]:
        """Open the database of the job whose answers are also used; None without such a job."""
        if self.earlier.from_job is None:
            yield None
            return
        with contextlib.closing(JobDatabase(self.earlier.from_job)) as other:
            yield other


def _without_own_dedupe(plan: ResolvedConfig) -> ResolvedConfig:
    """Return `plan` without the backend's `dedupe`, which keeps answers in memory; a job removes duplicates on disk."""
    assert plan.block is not None
    block = plan.block.model_copy(update={"dedupe": False})
    configs = plan.settings.backend_configs.model_copy(update={plan.backend: block})
    return replace(plan, settings=plan.settings.model_copy(update={"backend_configs": configs}))


def _as_begun(folder: Folder, order: JobOrder) -> JobOrder:
    """Return an order; if it repeats the command of the unfinished job, with that job's decisions."""
    begun = folder.order
    if begun is None or order.shown.command != begun.shown.command or folder.status.get("state") == progress.FINISHED:
        return order
    return order.repeated(begun)


def _opened(folder: Folder, order: JobOrder, begin: Callable[[], tuple[JobSpec, Change]]) -> tuple[JobSpec, Change]:
    try:
        folder.open()
        folder.store.get("spec")  # raises if the database is damaged; `folder.spec` would be None
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
    """Create `folder` if it is missing, and return the job's lock; None if another process holds it.

    If the status says that the job has ended, its process will exit soon, so this waits for the lock.
    """
    end, tries = time.monotonic() + _LEAVES_S, _TRIES
    while True:
        try:
            folder.make()
            lock = Lock.take(folder.lock)
        except (FileNotFoundError, FileExistsError):  # an old job of these files is removed at this moment
            tries -= 1
            if not tries:
                raise
            continue
        if lock is not None or folder.status.get("state") not in progress.ENDED or time.monotonic() > end:
            return lock


def check_fields(order: JobOrder, input_format: str) -> None:
    """Raise `PromptmillError` (`invalid_input`) for fields that are invalid or cannot be combined."""
    _ = order.limits.failures, order.cut
    question = order.question
    if input_format in WHOLE_REQUESTS:
        given = {
            "prompt_column": question.column is not None,
            "answer_column": order.form.column != "answer",
            "prompt": bool(question.templates),
        }
        for name in filter(given.get, given):
            raise input_error(Named(name), _OF_ROWS)
    for text in question.templates:
        template_of(text, places_in(text))  # any place may be a column
    if order.plan.chooses and input_format in WHOLE_REQUESTS:
        raise input_error(Named(order.plan.option), _OF_ROWS)
    _check_answer_column(order.form.column)


def _check_answer_column(name: str) -> None:
    """Raise `PromptmillError` (`invalid_input`) for a name that the column of the answers cannot have."""
    field = Named("answer_column")
    if name in OURS and name != "answer":
        raise input_error(field, f": {name} is the name of another column of the output; choose another name.")
    if not name.strip() or not name.isprintable():
        raise input_error(field, ": give the column a name of printable characters.")
    if len(name) > LONGEST_COLUMN:  # each row of the output repeats it
        raise input_error(field, f" has {len(name):,} characters; a name has at most {LONGEST_COLUMN}.")


def spec_of(
    job_id: str,
    files: OrderFiles,
    plan: ResolvedConfig,
    order: JobOrder,
    plans: Mapping[str, ResolvedConfig],
    *,
    known: JobSpec | None = None,
) -> JobSpec:
    """Return the job of `order`. `known`: the stored job, if any. Raises `PromptmillError`."""
    source = files.input
    facts: dict[str, Any] = {"format": "messages"}
    if source is not None:
        facts = {"format": format_of_input(source)}
        if files.source.is_absolute():
            facts["files"] = tuple(part for part in source.parts if part.columns or part.within)
            facts["size"], facts["version"] = source.stamp()
    elif known is not None:
        facts = {name: getattr(known.input, name) for name in ("format", "files", "size", "version")}
    input_format = facts["format"]
    check_fields(order, input_format)
    if order.question.image_column is None:
        for text in order.question.templates:
            check_names_some(text, lambda: "" if source is None else image_column(source, input_format))
    order.plan.check(plan, order.question)
    output_format = "" if files.is_loose else formats.format_of_output(order.whole_output, input_format)
    if order.limits.shard is not None and input_format == "messages":
        raise input_error(Named("shard"), " goes with files of rows, not with a call's.")
    return JobSpec(
        job_id=job_id,
        created=int(time.time()),
        input=InputSpec(path=files.source, encoding=order.reading.encoding, **facts),
        question=order.question,
        output=OutputSpec(
            path=files.target,
            format=output_format,
            form=order.form,
            answer_schema=None if input_format in WHOLE_REQUESTS else _schema_of(plan),
            shard=order.limits.shard,
        ),
        targets=targets_of(plan, order, input_format, plans),
        plan=order.plan,
        backend=plan.backend,
        model=plan.model,
        provider=registry.provider_of(plan),
        origin=Origin(owner=order.owner, working_folder=Path.cwd()),
    )


def targets_of(
    plan: ResolvedConfig, order: JobOrder, input_format: str, plans: Mapping[str, ResolvedConfig]
) -> tuple[Target, ...]:
    """Return the targets of each row: a single target, or one for each variant."""
    if not order.variants:
        found = fingerprint(plan, order.system_prompt, input_format)
        return (Target(fingerprint=found, sampling=plain_sampling(plan)),)
    targets = [
        Target(
            name=variant.name,
            model=variant.model,
            prompt=variant.prompt,
            fingerprint=fingerprint(
                own := plans.get(variant.model, plan),
                order.system_prompt,
                input_format,
                "" if variant.model in plans else variant.model,
            ),
            sampling=plain_sampling(own),
        )
        for variant in order.variants
    ]
    return tuple(order.plan.target(slot, target, plans.get(target.model, plan)) for slot, target in enumerate(targets))


def _schema_of(plan: ResolvedConfig) -> dict[str, Any] | None:
    sampling = plan.settings.sampling_params
    wanted = None if sampling.choices is not None else sampling.response_format
    schema = None if wanted is None else schema_of(wanted)
    return None if schema is None else dict(schema)


def _check_output(folder: Folder, wanted: JobSpec, order: JobOrder, there: Stamp | None) -> None:
    """Raise `PromptmillError` (`invalid_input`) if the output exists and may not be replaced. `there`: its stamp."""
    output = wanted.output.path
    if order.earlier.overwrite or not wanted.output.format or there is None:
        return
    made, begun = folder.result, folder.spec
    has_written = made is not None and made.limit != 0
    if wanted.fills_input and not has_written:
        return  # the answers become new columns
    file, member = members.split(output)
    if made is None or not made.is_own(there):
        overwrite = Named("overwrite", text="; {} replaces it")
        if wanted.keeps_sheets and has_written:  # in any of its sheets
            anew = Named("overwrite", text="; {} writes them again, over those that are there")
            raise input_error(f"{file} has changed since the job wrote its answers into it", anew, ".")
        if member and not has_written and file.suffix.lower() == ".xlsx" and member not in sheet_names(file):
            return  # the other sheets stay
        part = "sheet" if file.suffix.lower() == ".xlsx" else "table"
        other = f"name another {part}" if member else "name another file, or move it away"
        away = other if begun is None else f"move it away to resume job {begun.job_id}"
        raise input_error(f"{output} exists and is not this job's own output; {away}", overwrite, ".")


def _begun(folder: Folder, wanted: JobSpec, order: JobOrder, *, fixed: bool) -> tuple[JobSpec, Change]:
    """Begin or resume the job with this order. The caller holds the lock and has opened the database."""
    folder.roll_back()
    since = _last_round(folder.store, order)
    begun, made, there = folder.spec, folder.result, members.stamp(wanted.output.path)
    _check_output(folder, wanted, order, there)  # as it is now
    if wanted.output.format and there is not None and (made is None or not made.is_own(there)):  # it may be replaced
        made = OutputRecord(size=there[0], mtime_ns=there[1], limit=0, finished=False)
    if begun is None:
        is_new = folder.store.is_empty  # if it has answers, only the description was damaged
        targets = [with_settings(folder, target) for target in wanted.targets]
        spec = wanted.model_copy(update={"targets": tuple(targets), "to_bind": None if is_new else "questions"})
    else:
        spec = resumed(folder, begun, wanted, order, fixed=fixed)
    spec = spec.model_copy(update={"targets": tuple(spec.plan.counted(spec.targets))})
    if begun is not None and made is not None:
        if made.is_own(there):
            check_keeps_rows(begun, made, order, is_still=made.is_still(there))
        earlier = order.earlier
        is_same = begun.shape == spec.shape and begun.targets == spec.targets
        if earlier.again is not None or earlier.from_job is not None or not spec.is_read or not is_same:
            made = made.model_copy(update={"finished": False})  # until it has the new answers
    stored = order.model_copy(update={"earlier": Earlier(), "output": wanted.output.path})
    values = {"spec": spec, "order": stored, "output": made}
    before = None if begun is None else {name: folder.store.get(name) for name in values}
    folder.put(before=before, **values)
    return spec, Change(begun, order.earlier, since)


def _is_own_work(folder: Folder, spec: JobSpec) -> bool:
    """Return whether the input is the workbook with the answers that this job wrote, unchanged."""
    made = folder.result
    is_written = made is not None and made.limit != 0 and spec.fills_input and spec.is_read
    return is_written and made is not None and made.is_still(members.stamp(spec.output.path))
