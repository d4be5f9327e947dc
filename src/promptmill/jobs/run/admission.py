"""Admission of a job: everything that is checked before a row is sent, and the errors of orders that are refused."""

from __future__ import annotations

import contextlib
import errno
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from promptmill.answers.schema import schema_of
from promptmill.backends import registry
from promptmill.config.loading import Configuration
from promptmill.config.resolved_config import ResolvedConfig
from promptmill.core.bounds import LONGEST_COLUMN
from promptmill.core.errors import Code, Named, PromptmillError, input_error
from promptmill.jobs import columns, disk, members
from promptmill.jobs.columns import OURS
from promptmill.jobs.ingest import Bind, Rules, ingest, rebind
from promptmill.jobs.inputs import files as input_files
from promptmill.jobs.inputs import formats, row_secrets
from promptmill.jobs.inputs.any_format import check_columns, format_of_input, image_column, input_of
from promptmill.jobs.inputs.files import InputFiles, Part
from promptmill.jobs.inputs.given import Given
from promptmill.jobs.inputs.template import check_names_some, places_in, template_of
from promptmill.jobs.inputs.workbook import sheet_names
from promptmill.jobs.store import progress, rounds, statistics
from promptmill.jobs.store.binding import Bound
from promptmill.jobs.store.database import DamagedError, JobDatabase
from promptmill.jobs.store.folder import Folder
from promptmill.jobs.store.index import JobFolders
from promptmill.jobs.store.lock import Lock
from promptmill.jobs.store.order import Earlier, JobOrder
from promptmill.jobs.store.rounds import ANSWERED
from promptmill.jobs.store.spec import (
    WHOLE_REQUESTS,
    InputSpec,
    JobSpec,
    OutputRecord,
    OutputSpec,
    Target,
    fingerprint,
    plain_sampling,
    sampling_of_0_1,
)
from promptmill.system.safe_open import real_path

_OF_ROWS = " goes with rows, not with a file of whole requests."
_FOREIGN = "Its owner could read or change the answers: remove it, or name another output."
_TRIES = 100
_ADDED = "." + ".0123456789" + ".partial"  # to the output's name, by the files beside it
_SHOWN_NAME = 40
_LEAVES_S = 5.0
_SEND_ALL = Named("again", "all")
OTHER_WAYS = (
    Named("keep", text="{} keeps the answers that there are, and sends the other rows; "),
    "another output leaves this one as it is.",
)
"""What a caller may do instead of sending every row again; see `ChangedError`."""
_WAYS = (_SEND_ALL, " sends every row again; ", *OTHER_WAYS)
_AS_READ = (
    "size",
    "version",
    "sha256",
    "header",
    "fields",
    "delimiter",
    "has_bom",
    "taken",
    "settings_read",
    "arrow_schema",
)
"""The facts about an input that reading it has shown."""
_FEWEST = 20  # answers of an input; losing fewer of them costs next to nothing


class ChangedError(PromptmillError):
    """An order that would send most rows of its job again, since its settings, prompt or input have changed."""


@dataclass(slots=True)
class Job:
    """A job that this process may run: its folder is locked, and its database is open."""

    folder: Folder
    spec: JobSpec
    order: JobOrder
    plan: ResolvedConfig
    """Its model and settings, which later changes of the configuration do not affect."""
    lock: Lock
    since: int = 0
    """The id of the last round before the order."""
    before: JobSpec | None = None
    """The job before the order."""
    given: InputFiles | None = None
    """Rows that are in no file of the user's, and that are to be read while these files exist."""
    most_cost: float | None = None
    """The most that all its runs may spend of the budget of the server that started this one; None: any amount."""
    disk_share: float = 1.0
    """The share of the free disk that its rows may take."""

    @property
    def finished(self) -> bool:
        """Whether the job is done and its status is `finished`."""
        return self.has_output and self.folder.status.get("state") == progress.FINISHED

    @property
    def has_output(self) -> bool:
        """Whether this job has made the output, with all rows of the order."""
        result, spec, earlier = self.folder.result, self.spec, self.order.earlier
        if result is None or earlier.again is not None or not spec.is_read or earlier.from_job is not None:
            return False
        is_there = not spec.output.format or result.is_still(spec.output.path)
        return result.finished and result.holds(self.order.limits.rows) and is_there

    def put(self, spec: JobSpec, **values: Any) -> None:
        """Store the job, with other values. Raises as `JobDatabase` does."""
        self.spec = spec
        self.folder.put(spec=spec, **values)

    @property
    def change(self) -> Change:
        """The change of the rows by the order."""
        return Change(self.before, self.order.earlier, self.since)

    def was_read(self, spec: JobSpec) -> None:
        """Store the job after its input was read: the output has the rows of the input as it was."""
        made = self.folder.result
        self.put(spec, before=None, output=made and made.model_copy(update={"finished": False}))

    def unread(self, halt: threading.Event | None = None) -> InputFiles | None:
        """Return the files of the input if they have changed since they were read, or were not read. Blocks.

        A file with its earlier size and time counts as unchanged. Raises `PromptmillError`, `OSError`, `HaltedError`.
        """
        given, self.given = self.given, None
        files = self._unread_files(halt) if given is None else given
        if files is None:
            self.folder.put(before=None)
        return files

    def _unread_files(self, halt: threading.Event | None) -> InputFiles | None:
        spec = self.spec
        if not spec.input.is_file:
            if not spec.is_read:
                raise input_error(f"The rows of job {spec.job_id} were not read to their end; run it with its rows.")
            return None
        if not all(part.path.exists() for part in spec.input.parts) and spec.is_read:
            return None  # it was read, and may be deleted
        if _is_own_work(self.folder, spec):
            return None
        files = input_files.opened(spec.input.parts, known=self.before is not None, encoding=spec.input.encoding)
        size, version = files.stamp()
        if spec.is_read and (size, version) == (spec.input.size, spec.input.version):
            return None
        digest = files.sha256(halt)
        is_same = spec.is_read and digest == spec.input.sha256
        self.spec = spec.with_input(size=size, version=version, sha256=digest)
        if is_same:
            self.put(self.spec)
        return None if is_same else files

    def close(self) -> None:
        """Close the database and let others have the job."""
        self.folder.close()
        self.lock.release()


def admit(
    order: JobOrder,
    plan: ResolvedConfig,
    folders: JobFolders,
    lock: Lock | None = None,
    *,
    given: Given | None = None,
    plans: Mapping[str, ResolvedConfig] | None = None,
    fixed: bool = False,
    are_columns_checked: bool = False,
    are_paths_resolved: bool = False,
) -> Job:
    """Return the job of `order`, new or known, with its lock taken, unless `lock` is passed.

    `given`: its rows, if they are in no file of the user's; see `Job.given`. `plans`: the plans of the models that
    its variants name. `fixed`: its settings must be as in its first run, even without an answer.
    `are_columns_checked`: see `check_columns`. `are_paths_resolved`: see `paths_of`.

    Raises `PromptmillError`: `invalid_input` if the job is running, if its answers were made under other settings
    (model, sampling, system prompt), or if input or output cannot be used; `storage`. Nothing is changed then.
    """
    registry.check_name(plan.backend)
    if given is not None:
        order = order.model_copy(update={"inputs": (Path(given.name),)})
    places = paths_of(order, folders, given, are_resolved=are_paths_resolved, may_be_deleted=True)
    folder = folders.of(places.target)
    is_known = folder.database.exists()
    if not places.is_loose:
        check_output_path(order, places.target, places.parts)
        formats.format_by_suffix(order.whole_output, "output file")
        formats.check_installed(order.whole_output)
    formats.check_installed(*(part.path for part in places.parts))
    if places.source.is_absolute() and places.parts:
        row_secrets.check_beginning(places.files(known=is_known), plan.file_rule)
    with contextlib.ExitStack() as opened:
        try:
            wanted = spec_of(folders.id_of(folder), places, plan, order, plans or {}, known=folder.spec)
            is_new = folder.spec is None or not (order.question.templates or wanted.input.format != "jsonl")
            if is_new and not are_columns_checked and places.parts:
                check_columns(order.question, wanted.input.format, places.files(known=is_known))
            _check_output(folder, wanted, order)
            if not folders.beside_outputs or places.is_loose:
                disk.make_private_folder(folders.root)  # the folders above it are the user's affair
            is_ours = lock is not None
            lock = lock or _locked(folder)
            if lock is None:
                status_of = Named("status", folder.job_id, "{} shows its progress.")
                raise input_error(f"Job {folder.job_id} is running already; ", status_of)
            opened.callback(lock.release)
            opened.callback(folder.close)
            begun, spec, since = _opened(folder, order, lambda: _begun(folder, wanted, order, plan, fixed=fixed))
            if not is_ours:  # else the wish is for the run that begins
                folder.control.changed(cancel=False).write(folder.path)
            job = Job(folder, spec, order, plan, lock, since, begun)
            if given is not None and given.parts and not (spec.is_read and spec.input.sha256 == given.key):
                job.spec, job.given = spec.with_input(sha256=given.key), places.files(known=False)
            has_changed = begun is not None and not _is_own_work(folder, begun) and _has_changed(begun, wanted, places)
            if job.given is not None or has_changed:
                _unfinish(folder)
        except OSError as error:
            raise PromptmillError(
                Code.STORAGE,
                f"The job's folder {folder.path} cannot be used: {disk.why(error)}.",
                _FOREIGN if isinstance(error, disk.ForeignError) else None,
            ) from None
        except DamagedError:
            damaged = f"The database {folder.database} is damaged beyond reading. "
            raise input_error(damaged, _SEND_ALL, " starts a new one.") from None
        folders.register(folder)
        if getattr(plan.block, "dedupe", False):
            job.plan, job.order = _without_own_dedupe(plan), order.model_copy(update={"dedupe": True})
        opened.pop_all()
        return job


class _Begun(NamedTuple):
    """A job before an order and with it, and the id of the last round before it."""

    before: JobSpec | None
    spec: JobSpec
    since: int


def _last_round(store: JobDatabase, order: JobOrder) -> int:
    """Return the id of the last round before the order. An interrupted order `again` is resumed."""
    known = rounds.stored_rounds(store)
    if not known:
        return 0
    last, again = known[-1], f"again {order.earlier.again}"
    goes_on = not last.done and any(round_.since == last.since and round_.ordered == again for round_ in known)
    return last.since if goes_on else last.id


@dataclass(frozen=True, slots=True)
class Places:
    """The resolved paths of an order."""

    source: Path
    """The input; not absolute if the rows are in no file of the user's."""
    target: Path
    parts: Sequence[Part]
    """The files of the input; none if the rows are in the database alone."""
    is_loose: bool
    """Whether the answers are wanted in no file."""
    encoding: str | None = None

    def files(self, *, known: bool) -> InputFiles:
        """Return the files of the input. Raises `PromptmillError` (`invalid_input`)."""
        return input_files.opened(self.parts, known=known, encoding=self.encoding)


def paths_of(
    order: JobOrder,
    folders: JobFolders,
    given: Given | None = None,
    *,
    are_resolved: bool = False,
    may_be_deleted: bool = False,
) -> Places:
    """Return the resolved paths of `order`.

    Links are followed once: a job describes the files that it opens, whatever takes their names later. `are_resolved`:
    the paths of the order were resolved and checked before, so none may be a link now. `may_be_deleted`: an input that
    the job has read, and of which a file is missing, has no parts.

    Raises `PromptmillError` (`invalid_input`).
    """
    target = real_path(order.target)
    is_loose = folders.owner(target) is not None
    if not is_loose:
        check_name(target, is_output=True)
        _check_is_text(target)
    if given is not None:
        return Places(Path(given.name), target, _with_query(given.parts, order.sql), is_loose, order.encoding)
    if not order.inputs[0].is_absolute():  # rows that were given to the order that began the job
        return Places(order.inputs[0], target, (), is_loose)
    for path in order.inputs:
        check_name(path)
    parts = _present(order, target, folders.of(target) if may_be_deleted else None)
    files = [*map(members.file_of, order.inputs)] if parts else []
    if are_resolved and [target, *(part.path for part in parts)] != [order.target, *files]:
        raise input_error("Input or output became a link or a folder while the job was started.")
    for part in parts:
        _check_is_text(part.path)
        formats.format_by_suffix(part.path, "input file")
    is_file = parts and not parts[0].columns and not members.split(order.inputs[0])[1]
    source = parts[0].path if is_file else real_path(order.inputs[0])
    return Places(source, target, parts, is_loose, order.encoding)


def _present(order: JobOrder, target: Path, folder: Folder | None) -> Sequence[Part]:
    """Return the files of the input; none if one was deleted that the job in `folder` has read: it has its rows.

    Raises `PromptmillError` (`invalid_input`).
    """
    is_read = folder is not None and _has_read(folder, order.inputs)
    try:
        parts = _with_query(input_files.find(order.inputs, target), order.sql)
    except PromptmillError:
        if not is_read:
            raise
        return ()
    return () if is_read and not all(part.path.exists() for part in parts) else parts


def _with_query(parts: Sequence[Part], sql: str | None) -> Sequence[Part]:
    """Return the databases of an input with the query for their rows. Raises `PromptmillError` for other files."""
    if sql is None:
        return parts
    if any(part.member or part.path.suffix.lower() not in members.DATABASES for part in parts):
        raise input_error(Named("sql"), " goes with a database, without a table: mails.db.")
    return [replace(part, query=sql) for part in parts]


def _has_read(folder: Folder, inputs: Sequence[Path]) -> bool:
    """Return whether the job in `folder` has read the input of these names."""
    known, order = folder.spec, folder.order
    if known is None or not known.is_read or known.input.path != real_path(inputs[0]):
        return False
    return not inputs[1:] or (order is not None and order.inputs == inputs)  # a missing file may be a misspelt name


def check_output_path(order: JobOrder, target: Path, parts: Sequence[Part]) -> None:
    """Raise `PromptmillError` (`invalid_input`) for an output that is a part of the input, or not writable."""
    if any(part.path == members.file_of(target) and not _may_hold_both(part, target) for part in parts):
        raise input_error("Input and output are the same file; name another output.")
    if target.is_dir():
        raise input_error(
            f"The output {order.output} is a folder; name a file in it, {order.output / 'answers.jsonl'}."
        )
    if not target.parent.is_dir():
        raise input_error(f"There is no folder {target.parent} for the output; create it first.")
    try:
        with tempfile.TemporaryFile(dir=target.parent):
            pass
    except OSError as error:
        raise input_error(f"The output cannot be written into {target.parent}: {disk.why(error)}.") from None


def _may_hold_both(part: Part, target: Path) -> bool:
    """Return whether a file may be input and output: another table, or a workbook that gets columns of answers."""
    if members.is_table(target):
        return members.split(target)[1] != part.member
    return part.path.suffix.lower() == ".xlsx"


def plans_of(order: JobOrder, configuration: Configuration) -> dict[str, ResolvedConfig]:
    """Return the plans of the models that the variants of an order name. Raises `PromptmillError`."""
    named = {variant.model for variant in order.variants} & {*configuration.names}
    return {name: configuration.plan_of(name) for name in named}


@dataclass(frozen=True, slots=True)
class Change:
    """The change of a job's rows by an order."""

    before: JobSpec | None
    """The job before the order."""
    earlier: Earlier
    since: int
    """The id of the last round before the order."""

    def read(self, store: JobDatabase, spec: JobSpec, files: InputFiles, rules: Rules) -> tuple[JobSpec, Bound]:
        """Read the input into the database, and bind the answers to its rows; return the job, and the counts. Blocks.

        Raises as `ingest` and `check_bound` do; then nothing is changed.
        """

        def check(bound: Bound) -> None:
            if self.before is not None and not (self.earlier.keep or self.earlier.again == "all"):
                check_bound(self.before, spec, bound)

        with self._other() as other:
            bind = Bind(check, other, self.since)
            own = columns.own_names(self.before) if self.before is not None and spec.fills_input else ()
            return ingest(store, spec, input_of(files, spec.input.format, own), rules, files, bind=bind)

    def rebind(self, store: JobDatabase, spec: JobSpec, halt: threading.Event) -> Bound:
        """Bind the answers of another job to the rows that were read before. Blocks. Raises as `JobDatabase` does."""
        with self._other() as other:
            return rebind(store, spec, Bind(other=other, round=self.since), halt)

    @contextlib.contextmanager
    def _other(self) -> Iterator[JobDatabase | None]:
        """Give the job whose answers count, too."""
        if self.earlier.from_job is None:
            yield None
            return
        with contextlib.closing(JobDatabase(self.earlier.from_job)) as other:
            yield other


def read(job: Job, files: InputFiles, rules: Rules) -> Bound:
    """Read the input of a job, see `Change.read`."""
    spec, bound = job.change.read(job.folder.store, job.spec, files, rules)
    job.was_read(spec)
    return bound


def _without_own_dedupe(plan: ResolvedConfig) -> ResolvedConfig:
    """Return `plan` without the backend's `dedupe`, which remembers every answer: a job has its own, on disk."""
    assert plan.block is not None
    block = plan.block.model_copy(update={"dedupe": False})
    configs = plan.settings.backend_configs.model_copy(update={plan.backend: block})
    return replace(plan, settings=plan.settings.model_copy(update={"backend_configs": configs}))


def _opened(folder: Folder, order: JobOrder, begin: Callable[[], _Begun]) -> _Begun:
    """Open the database, repaired if it is damaged, and return the result of `begin`."""
    try:
        folder.open()
        folder.store.get("spec")  # raises if it is damaged; `folder.spec` would be None
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
    """Return the lock of the job in `folder`, which is created if it is missing; None if another process has it.

    A process whose job has ended by its status is about to leave: wait for it.
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


def check_name(path: Path, *, is_output: bool = False) -> None:
    """Raise `PromptmillError` (`invalid_input`) for a name that is longer than the file system takes."""
    try:
        (path.with_name(path.name + _ADDED) if is_output else path).lstat()
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            shown = path.name if len(path.name) > _SHOWN_NAME else str(path)
            room = ", as the job's own files beside it have longer names" if is_output else ""
            raise input_error(f"The name {shown[:_SHOWN_NAME]}… is too long; use a shorter one{room}.") from None


def _check_is_text(path: Path) -> None:
    """Raise `PromptmillError` (`invalid_input`) for a path that no description of a job can hold."""
    shown = str(path).encode("utf-8", "replace").decode()
    if shown != str(path):
        raise input_error(f"{shown} has a name that is not UTF-8 text; rename it.")


def check_fields(order: JobOrder, input_format: str) -> None:
    """Raise `PromptmillError` (`invalid_input`) for fields that are wrong, or do not go together or with the format."""
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
    if question.templates and question.column is not None:
        raise input_error(
            Named("prompt"), " goes without ", Named("prompt_column"), "; name the column in the prompt: {{column}}."
        )
    for text in question.templates:
        template_of(text, places_in(text))  # any place may be a column
    if question.sample is not None and (order.limits.rows is not None or order.shard is not None):
        raise input_error(Named("sample"), " goes without ", Named("limit"), " and ", Named("shard"), ".")
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
    places: Places,
    plan: ResolvedConfig,
    order: JobOrder,
    plans: Mapping[str, ResolvedConfig],
    *,
    known: JobSpec | None = None,
) -> JobSpec:
    """Return the job of `order`. `known` is the job as it was stored. Raises `PromptmillError`."""
    if places.parts:
        files = places.files(known=known is not None)
        input_format = format_of_input(files)
        size, version = (0, 0) if not places.source.is_absolute() else files.stamp()
    elif known is not None:
        input_format, size, version = known.input.format, known.input.size, known.input.version
    else:
        input_format, size, version = "messages", 0, 0
    check_fields(order, input_format)
    if order.question.image_column is None:
        for text in order.question.templates:
            check_names_some(text, lambda: image_column(places.files(known=known is not None), input_format))
    output_format = "" if places.is_loose else formats.format_of_output(order.whole_output, input_format)
    if order.shard is not None and input_format == "messages":
        raise input_error(Named("shard"), " goes with files of rows, not with a call's.")
    return JobSpec(
        job_id=job_id,
        created=int(time.time()),
        input=InputSpec(
            path=places.source,
            files=_files_of(places, known),
            format=input_format,
            encoding=order.encoding,
            size=size,
            version=version,
        ),
        question=order.question,
        output=OutputSpec(
            path=places.target,
            format=output_format,
            form=order.form,
            answer_schema=None if input_format in WHOLE_REQUESTS else _schema_of(plan),
            shard=order.shard,
        ),
        targets=targets_of(plan, order, input_format, plans),
        backend=plan.backend,
        model=plan.model,
        provider=registry.provider_of(plan),
        owner=order.owner,
        working_folder=Path.cwd(),
    )


def _files_of(places: Places, known: JobSpec | None) -> tuple[Part, ...]:
    """Return the files of an input that is more than one file."""
    if not places.source.is_absolute():
        return ()
    if not places.parts and known is not None:
        return known.input.files
    return tuple(part for part in places.parts if part.columns or part.within)


def targets_of(
    plan: ResolvedConfig, order: JobOrder, input_format: str, plans: Mapping[str, ResolvedConfig]
) -> tuple[Target, ...]:
    """Return the targets of each row: one, or one for each variant."""
    if not order.variants:
        found = fingerprint(plan, order.system_prompt, input_format)
        return (Target(fingerprint=found, sampling=plain_sampling(plan)),)
    return tuple(
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
    )


def _schema_of(plan: ResolvedConfig) -> dict[str, Any] | None:
    """Return the schema of a job's answers. Raises `PromptmillError` (`invalid_input`)."""
    sampling = plan.settings.sampling_params
    wanted = None if sampling.choices is not None else sampling.response_format
    schema = None if wanted is None else schema_of(wanted)
    return None if schema is None else dict(schema)


def _check_output(folder: Folder, wanted: JobSpec, order: JobOrder) -> None:
    """Raise `PromptmillError` (`invalid_input`) if a file at the output may not be replaced."""
    output = wanted.output.path
    if order.earlier.overwrite or not wanted.output.format or members.stamp(output) is None:
        return
    made, begun = folder.result, folder.spec
    has_written = made is not None and made.limit != 0
    if wanted.fills_input and not has_written:
        return  # the answers become new columns
    file, member = members.split(output)
    if made is None or not made.is_own(output):
        if member and not has_written and file.suffix.lower() == ".xlsx" and member not in sheet_names(file):
            return  # the other sheets stay
        away = "name another file, or move it away" if begun is None else f"move it away to resume job {begun.job_id}"
        overwrite = Named("overwrite", text="; {} replaces it")
        raise input_error(f"{output} exists and is not this job's own output; {away}", overwrite, ".")


def _begun(folder: Folder, wanted: JobSpec, order: JobOrder, plan: ResolvedConfig, *, fixed: bool) -> _Begun:
    """Have the job begin with this order; the caller holds its lock and has its database open."""
    folder.roll_back()
    since = _last_round(folder.store, order)
    _check_output(folder, wanted, order)  # as it is now
    begun, made, output = folder.spec, folder.result, wanted.output.path
    if wanted.output.format and (made is None or not made.is_own(output)):
        there = members.stamp(output)
        if there is not None:  # it may be replaced
            made = OutputRecord(size=there[0], mtime_ns=there[1], limit=0, finished=False)
    if begun is None:
        is_new = folder.store.is_empty  # else the description was damaged, and the answers were not
        targets = [_with_settings(folder, target, target.fingerprint) for target in wanted.targets]
        spec = wanted.model_copy(update={"targets": tuple(targets), "to_bind": None if is_new else "questions"})
    else:
        spec = _resumed(folder, begun, wanted, order, plan, fixed=fixed)
        if made is not None:
            _check_limit(made, output, order)
            _check_sample(begun, made, output, order)
            earlier = order.earlier
            is_same = begun.shape == spec.shape and begun.targets == spec.targets
            if earlier.again is not None or earlier.from_job is not None or not spec.is_read or not is_same:
                made = made.model_copy(update={"finished": False})  # until the new answers are in it, too
    stored = order.model_copy(update={"earlier": Earlier(), "output": wanted.output.path})
    values = {"spec": spec, "order": stored, "output": made}
    before = None if begun is None else {name: folder.store.get(name) for name in values}
    folder.put(before=before, **values)
    return _Begun(begun, spec, since)


def _has_changed(begun: JobSpec, wanted: JobSpec, places: Places) -> bool:
    """Return whether the input has changed since the job read it; not if size and time are the same."""
    before, now = begun.input, wanted.input
    if not places.parts or not now.is_file or not begun.is_read:
        return False
    if (before.size, before.version) == (now.size, now.version):
        return False
    return places.files(known=True).sha256() != before.sha256


def _is_own_work(folder: Folder, spec: JobSpec) -> bool:
    """Return whether the input is the workbook that the job itself has written its answers into, unchanged since."""
    made = folder.result
    is_written = made is not None and made.limit != 0 and spec.fills_input and spec.is_read
    return is_written and made is not None and made.is_still(spec.output.path)


def _unfinish(folder: Folder) -> None:
    """Note that the output of a job lacks some of its rows."""
    if (made := folder.result) is not None:
        folder.put(output=made.model_copy(update={"finished": False}))


def _with_settings(folder: Folder, target: Target, identity: Mapping[str, Any]) -> Target:
    return target.model_copy(update={"settings": folder.store.settings_id(identity)})


def _resumed(
    folder: Folder, begun: JobSpec, wanted: JobSpec, order: JobOrder, plan: ResolvedConfig, *, fixed: bool
) -> JobSpec:
    """Return the job that had `begun`, as it is now `wanted`. Raises `PromptmillError` (`invalid_input`)."""
    sends_all = order.earlier.again == "all" or _has_nothing(folder)
    by_name = {target.name: target for target in begun.targets}
    targets = []
    for at, target in enumerate(wanted.targets):
        before = by_name.get(target.name)
        if before is None or (before.prompt != target.prompt and at >= len(begun.targets)):
            targets.append(_with_settings(folder, target, target.fingerprint))
            continue
        changed = _changed_settings(before, target, plan, folder)
        if changed and (fixed or not (order.earlier.keep or sends_all)):
            raise _settings_conflict(begun, before, wanted, target, changed, fixed=fixed)
        targets.append(_target_now(folder, before, target, changed, sends_all=sends_all))
    spec = wanted.model_copy(
        update={
            **{name: getattr(begun, name) for name in ("created", "owner", "working_folder")},
            "targets": tuple(targets),
        }
    )
    known, now = begun.input, wanted.input
    facts = {name: getattr(known, name) for name in _AS_READ}
    spec = spec.model_copy(update={"input": now.model_copy(update=facts)})
    is_same_reading = (
        begun.question == wanted.question
        and (known.format, known.encoding) == (now.format, now.encoding)
        and [target.name for target in begun.targets] == [target.name for target in wanted.targets]
    )
    if is_same_reading:
        names = begun.output.names if begun.shape == wanted.shape else None
        return spec.with_output(names=names).model_copy(update={"to_bind": begun.to_bind})
    by_row = order.earlier.keep and known.format == now.format and begun.to_bind is None
    return spec.with_output(names=None).model_copy(update={"to_bind": "rows" if by_row else "questions"})


def _target_now(folder: Folder, before: Target, target: Target, changed: Sequence[str], *, sends_all: bool) -> Target:
    """Return a target of a job that is resumed."""
    if not changed:
        kept = ("fingerprint", "sampling", "settings", "kept", "changed")
        return target.model_copy(update={name: getattr(before, name) for name in kept})
    folder.store.settings_id(before.fingerprint)  # a job of release 0.1 has not stored it yet
    found = _with_settings(folder, target, target.fingerprint)
    if sends_all:
        return found
    ids = tuple(sorted({*before.kept, before.settings} - {found.settings}))
    return found.model_copy(update={"kept": ids, "changed": tuple(sorted({*before.changed, *changed}))})


def _has_nothing(folder: Folder) -> bool:
    """Return whether the job that is open has no answer and cost nothing, so that sending all rows loses nothing."""
    last = folder.status
    paid = any(last.get(name) for name in ("cost", "cost_set_aside", "prompt_tokens", "completion_tokens"))
    return not paid and last.get("state") not in progress.ALIVE and not folder.store.page(0, ANSWERED, size=1)


def _changed_settings(before: Target, now: Target, plan: ResolvedConfig, folder: Folder) -> list[str]:
    """Return the names of the settings that have changed since the answers were made."""
    known = before.fingerprint
    changed = [name for name, value in now.fingerprint.items() if name != "models" and known.get(name, value) != value]
    if "sampling" in changed and known["sampling"] == sampling_of_0_1(plan):
        changed.remove("sampling")
    models = known.get("models", {})
    others = {name for name, value in now.fingerprint.get("models", {}).items() if models.get(name, value) != value}
    if others:
        changed += [f"models.{name}" for name in sorted(others & statistics.answering_models(folder.store))]
    return changed


def _settings_conflict(
    begun: JobSpec, before: Target, wanted: JobSpec, now: Target, changed: Sequence[str], *, fixed: bool
) -> PromptmillError:
    """Return the error of `changed` settings, with their values before and now as far as the job stores them."""
    pairs = [(name, getattr(begun, name), getattr(wanted, name)) for name in ("model", "backend") if name in changed]
    if "sampling" in changed and before.sampling is not None and now.sampling is not None:
        names = dict.fromkeys([*before.sampling, *now.sampling])
        pairs += [(name, before.sampling.get(name), now.sampling.get(name)) for name in names]
    changes = ", ".join(f"{name} was {_shown(was)}, now {_shown(is_)}" for name, was, is_ in pairs if was != is_)
    others = ", ".join(name.replace("_", " ") for name in changed)
    ran = "last ran" if before.changed else "was begun"
    conflict = f"Job {begun.job_id} {ran} with another {others}{f' ({changes})' if changes else ''}."
    if fixed:
        return input_error(f"{conflict} Use the options or the configuration file of its first run.")
    return ChangedError(Code.INVALID_INPUT, conflict, _WAYS)


def _shown(value: Any) -> str:
    return "not set" if value is None else f"{value!r:.60}"


def check_bound(begun: JobSpec, spec: JobSpec, bound: Bound) -> None:
    """Raise `ChangedError` if an order that may be a mistake would send most rows again.

    That is an order that loses more than half of the job's answers, 20 at least unless the input is another file, while
    more than half of the rows have no answer.
    """
    given, asked = spec.input.path, begun.question != spec.question
    fewest = _FEWEST if given == begun.input.path and not asked else 1
    if bound.answers < fewest or 2 * bound.kept >= bound.answers or 2 * bound.kept >= bound.rows:
        return
    kept = f"keeps {bound.kept:,} of the {bound.answers:,} answers of job {begun.job_id}"
    if asked:
        conflict = f"The prompt of job {begun.job_id} was another one, and the new one {kept}."
    elif given == begun.input.path:
        conflict = f"{given} has changed since, and {kept}."
    elif given.name == begun.input.path.name:  # a copy from a URL, or a file of that name in another folder
        conflict = (
            f"{begun.output.path} is the output of another {given.name}, or it has changed since: {begun.input.path}. "
            f"The input {kept}."
        )
    else:
        conflict = f"{begun.output.path} is the output of another input, {begun.input.path}. {given.name} {kept}."
    raise ChangedError(Code.INVALID_INPUT, conflict, _WAYS)


def _check_sample(begun: JobSpec, made: OutputRecord, output: Path, order: JobOrder) -> None:
    """Raise `PromptmillError` (`invalid_input`) if a sample would take the place of an output with more rows."""
    before, now = begun.question.sample, order.question.sample
    if now is not None and made.is_own(output) and made.limit != 0 and (before is None or before > now):
        name = Named("sample")
        raise input_error(f"{output} holds more rows than ", name, f" {now}, and would lose them; name another output.")


def _check_limit(made: OutputRecord, output: Path, order: JobOrder) -> None:
    """Raise `PromptmillError` (`invalid_input`) if the next output would lack rows of the present one."""
    limit = order.limits.rows
    if limit is None or not made.is_own(output) or (made.limit is not None and made.limit <= limit):
        return
    if not made.finished or order.earlier.again or not made.is_still(output):
        name = Named("limit")
        raise input_error(
            f"{output} holds more rows than ", name, f" {limit} asks for, and would lose them. Leave ", name,
            " out, or name another output.",
        )  # fmt: skip
