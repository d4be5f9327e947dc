"""The job that an order requests: its rows and models, its files with checked paths, and its description."""

from __future__ import annotations

import errno
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from promptmill.answers.response_format import schema_of
from promptmill.backends import registry
from promptmill.config.configuration import Configuration
from promptmill.config.model_config import ModelConfig
from promptmill.core.bounds import LONGEST_COLUMN
from promptmill.core.errors import Named, PromptmillError, input_error
from promptmill.files import disk, path_formats, table_paths
from promptmill.files import files as input_files
from promptmill.files.files import InputFile, InputFiles
from promptmill.files.format_table import database, of_input, writing
from promptmill.jobs.caller import CallModels
from promptmill.jobs.columns.column_names import OURS, chosen_keys
from promptmill.jobs.inputs.any_format import format_of_input, image_column, suggested_column
from promptmill.jobs.inputs.input_rows import InputRows
from promptmill.jobs.rows.template import check_names_some, places_in, template_of
from promptmill.jobs.store.description import Target
from promptmill.jobs.store.fingerprint import fingerprint, plain_sampling
from promptmill.jobs.store.folder import Folder
from promptmill.jobs.store.index import JobFolders
from promptmill.jobs.store.order import JobOrder
from promptmill.jobs.store.plan import JobSpec, option_of, plans_in
from promptmill.jobs.store.shape import shape_in
from promptmill.jobs.store.spec import InputSpec, Origin, OutputSpec
from promptmill.steps.step import path_of
from promptmill.system.safe_open import real_path

_OF_ROWS = " works only for rows of values; this input holds complete requests, as a Batch file does."
_ADDED = "." + ".0123456789" + ".partial"  # names of other files in the folder add this to the output's name
_SHOWN_NAME = 40


@dataclass(frozen=True, slots=True)
class WantedJob:
    """An order with the rows and models of its job, before admission."""

    order: JobOrder
    models: Configuration | CallModels
    folders: JobFolders
    source: InputRows | None = None
    """Rows that are not in the user's files; None if the rows are in files."""
    is_fixed: bool = False
    """Whether the settings must equal the first run's, even if no row has an answer yet."""
    is_received: bool = False
    """Whether the order was read from a database that others may have written, and that the user did not confirm."""
    is_of_call: bool = False
    """Whether the order comes from a call. If so, its paths have been resolved and checked, so that none may be a link
    now, and its rows may fill only a part of the disk."""

    @property
    def config(self) -> ModelConfig:
        """The configuration of the model that answers, unless a variant names another model."""
        return self.models.config

    @property
    def configs(self) -> dict[str, ModelConfig]:
        """The configurations of the models that the variants and the plan name. Raises `PromptmillError`."""
        return {name: self.models.config_of(name) for name in self.order.named_models & {*self.models.names}}

    @property
    def asked(self) -> list[ModelConfig]:
        """The configurations of all models that may answer, unless rows name others. Raises `PromptmillError`."""
        configs = {"": self.config} | self.configs
        names = [variant.model for variant in self.order.variants] or [""]
        names += sorted(self.order.plan.named_models)
        asked = [configs.get(name) or self.config.with_model(name) for name in names]
        fallbacks = {name for config in asked for name in config.fallback} & {*self.models.names}
        return [*asked, *map(self.models.config_of, sorted(fallbacks))]


@dataclass(frozen=True, slots=True)
class OrderFiles:
    """The files of an order. Links are resolved only once, so a link that changes later does not affect the job."""

    source: Path
    """The input. For rows that are not in the user's files: a relative path, which is only a name."""
    target: Path
    folder: Folder
    """The folder of the job that has the output `target`. It need not exist."""
    is_loose: bool
    """Whether the job has no output file."""
    input: InputFiles | None = None
    """The files of the input; None if the rows are only in the database."""

    @classmethod
    def of(cls, wanted: WantedJob, *, is_anew: bool = False) -> OrderFiles:
        """Return the files of a job. `is_anew`: whether the input must exist even if the job has read it.

        Raises `PromptmillError` (`invalid_input`, `missing_dependency`).
        """
        order, folders, given = wanted.order, wanted.folders, wanted.source
        target = real_path(order.target)
        folder, is_loose = folders.of(target), folders.owner(target) is not None
        if not is_loose:
            check_name(target, is_output=True)
            _check_is_text(target)
        is_known = not is_anew and folder.database.exists()
        source, parts = _input_of(order, target, given, folder if is_known else None)
        is_named = bool(parts) and given is None
        named = [target, *(part.path for part in parts if is_named)]
        expected = [order.target, *(table_paths.file_of(path) for path in order.inputs if is_named)]
        if wanted.is_of_call and named != expected:
            raise input_error("Input or output became a link or a folder while the job was started.")
        for part in parts:
            _check_is_text(part.path)
        if not is_loose:
            check_output(order, target)
            _check_alike(folders.alike(target), target)
        opened = input_files.opened(parts, known=is_known, reading=order.reading) if parts else None
        for part in parts:  # all of these files exist
            path_formats.format_of_input(part.path)
        return cls(source, target, folder, is_loose, opened)


def _input_of(
    order: JobOrder, target: Path, given: InputRows | None, folder: Folder | None
) -> tuple[Path, Sequence[InputFile]]:
    """Return the path and the files of an input; no files if a file is missing but the job in `folder` has the rows.

    Raises `PromptmillError` (`invalid_input`).
    """
    if given is not None:
        return Path(given.name), with_query(given.parts, order)
    if not order.inputs[0].is_absolute():  # not a file: the order that began the job had the rows themselves
        return order.inputs[0], ()
    for path in order.inputs:
        check_name(path)
    is_read = folder is not None and _has_read(folder, order.inputs)
    try:
        parts = with_query(input_files.find(order.inputs, target), order)
    except PromptmillError:
        if not is_read:
            raise
        parts = ()
    if not parts or (is_read and not all(part.path.exists() for part in parts)):
        return real_path(order.inputs[0]), ()
    is_file = not parts[0].columns and not table_paths.split(order.inputs[0])[1]
    return parts[0].path if is_file else real_path(order.inputs[0]), parts


def with_query(parts: Sequence[InputFile], order: JobOrder) -> Sequence[InputFile]:
    """Add an order's query and its limit to the databases of an input. Raises `PromptmillError` if a file is not a
    database.
    """
    if (sql := order.reading.sql) is None:
        return parts
    if any(part.member or not database(part.path) for part in parts):
        raise input_error(Named("sql"), " needs the name of a database without a table, such as mails.db.")
    most = order.limits.limit if order.limits.shard is None else None
    return [replace(part, query=sql, most_rows=most) for part in parts]


def _has_read(folder: Folder, inputs: Sequence[Path]) -> bool:
    known, order = folder.spec, folder.order
    if known is None or not known.is_read or known.input.path != real_path(inputs[0]):
        return False
    return not inputs[1:] or (order is not None and order.inputs == inputs)  # a missing file may be a misspelt name


def check_output(order: JobOrder, target: Path) -> None:
    """Raise `PromptmillError` if `target` cannot be written, is an input, or has a format that is only read."""
    if target.is_dir():
        raise input_error(
            f"The output {order.output} is a folder; name a file in it, {order.output / 'answers.jsonl'}."
        )
    path_formats.format_of_output(order.whole_output, "")
    if (column := table_paths.column_of(target)) and column != order.form.column:
        name = Named("answer_column", column)
        raise input_error(
            "The output names the column ", repr(column), "; name its sheet, and the column by ", name, "."
        )
    own = [path for path in order.inputs if real_path(table_paths.file_of(path)) == table_paths.file_of(target)]
    if not all(_may_hold_both(path, target) for path in own):
        raise input_error("Input and output are the same file; name another output.")
    try:  # admission makes missing folders
        with tempfile.TemporaryFile(dir=next(folder for folder in target.parents if folder.exists())):
            pass
    except OSError as error:
        raise input_error(f"The output cannot be written into {target.parent}: {disk.why(error)}.") from None
    path_formats.check_installed(order.whole_output)


def _check_alike(other: Path | None, target: Path) -> None:
    """Raise `PromptmillError` (`invalid_input`) if `other`, a job's output, differs from `target` only in capitals."""
    if other is None:
        return
    same = f"{other.name} is a job, and macOS and Windows do not tell its name from {target.name}; "
    if column := table_paths.column_of(other):
        raise input_error(same, Named("answer_column", column, text="{} continues it, or name another column."))
    raise input_error(f"{same}write it so, or choose another name.")


def _may_hold_both(path: Path, target: Path) -> bool:
    """Return whether a file may be both input and output: as two tables, or as a workbook that gets answer columns."""
    if table_paths.is_table(target):
        return table_paths.split(target)[1] != table_paths.split(path)[1]
    known = writing(table_paths.file_of(path))
    return known is not None and known.has_sheets


def check_name(path: Path, *, is_output: bool = False) -> None:
    """Raise `PromptmillError` (`invalid_input`) for a name that is too long for the file system."""
    try:
        (path.with_name(path.name + _ADDED) if is_output else path).lstat()
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            shown = path.name if len(path.name) > _SHOWN_NAME else str(path)
            room = ", as the job's own files beside it have longer names" if is_output else ""
            raise input_error(f"The name {shown[:_SHOWN_NAME]}… is too long; use a shorter one{room}.") from None


def _check_is_text(path: Path) -> None:
    """Raise `PromptmillError` (`invalid_input`) for a path that is not UTF-8, which a job cannot store."""
    shown = str(path).encode("utf-8", "replace").decode()
    if shown != str(path):
        raise input_error(f"{shown} has a name that is not UTF-8 text; rename it.")


def _check_fields(order: JobOrder, input_format: str) -> None:
    """Raise `PromptmillError` (`invalid_input`) for fields that are invalid or cannot be combined."""
    _ = order.limits.failures, order.parsed_shard
    question = order.question
    is_request = of_input(input_format).rows == "requests"
    if is_request:
        given = {
            "prompt_column": question.column is not None,
            "answer_column": order.form.column != "answer",
            "columns": bool(order.form.columns),
            "prompt": bool(question.templates),
        }
        for name in filter(given.get, given):
            raise input_error(Named(name), _OF_ROWS)
    for text in question.templates:
        template_of(text, places_in(text))  # any placeholder may be a column
    if order.plan.chooses and is_request:
        raise input_error(option_of(order.parts), _OF_ROWS)
    if is_request and (shapes := shape_in(order.parts)):
        raise input_error(*map(Named, shapes), _OF_ROWS)
    _check_answer_column(order.form.column)


def _check_answer_column(name: str) -> None:
    """Raise `PromptmillError` (`invalid_input`) for an invalid name of the answer column."""
    field = Named("answer_column")
    if name in OURS and name != "answer":
        raise input_error(field, f": {name} is the name of another column of the output; choose another name.")
    if not name.strip() or not name.isprintable():
        raise input_error(field, ": give the column a name of printable characters.")
    if len(name) > LONGEST_COLUMN:  # bounded, because each row of the output may repeat the name
        raise input_error(field, f" has {len(name):,} characters; a name has at most {LONGEST_COLUMN}.")


def spec_of(job_id: str, files: OrderFiles, wanted: WantedJob, *, known: JobSpec | None = None) -> JobSpec:
    """Return the description of a job. `known`: the stored description, if any. Raises `PromptmillError`."""
    order, config, source = wanted.order, wanted.config, files.input
    facts: dict[str, Any] = {"format": "messages"}
    if source is not None:
        facts = {"format": format_of_input(source)}
        is_list = path_formats.format_of_input(source.parts[0].path).is_list
        facts["has_lines"] = not is_list and (wanted.source is None or wanted.source.has_lines)
        if files.source.is_absolute():
            facts["files"] = tuple(part for part in source.parts if part.columns or part.within)
            facts["size"], facts["version"] = source.stamp()
    elif known is not None:
        facts = {name: getattr(known.input, name) for name in ("format", "has_lines", "files", "size", "version")}
    input_format = facts["format"]
    _check_fields(order, input_format)
    for kind in sorted(order.question.file_kinds):
        for each in (config, *wanted.configs.values()):
            registry.check_files(each, kind)
    if not order.question.sourced_columns:
        for text in order.question.templates:
            check_names_some(
                text,
                lambda: "" if source is None else image_column(source, input_format),
                lambda: "text" if source is None else suggested_column(source, input_format),
            )
    for part in order.parts.values():
        part.check(config, order.question)
    output_format = "" if files.is_loose else path_formats.format_of_output(order.whole_output, input_format).key
    if order.limits.shard is not None and input_format == "messages":
        raise input_error(Named("shard"), " works only for files; the rows of this call are not in a file.")
    registry.check_path(config, path := path_of(config.settings.sampling_params))
    has_form = not path  # a vector has no form
    spec = JobSpec(
        job_id=job_id,
        created=int(time.time()),
        input=InputSpec(
            path=files.source, encoding=order.reading.encoding, header_row=order.reading.header_row, **facts
        ),
        question=order.question,
        output=OutputSpec(
            path=files.target,
            format=output_format,
            form=order.form,
            answer_schema=_schema_of(config) if has_form and of_input(input_format).rows != "requests" else None,
            choices=tuple((has_form and config.settings.sampling_params.choices) or ()),
            shard=order.limits.shard,
        ),
        targets=_targets_of(wanted, input_format),
        parts=plans_in(order.parts),
        shapes=shape_in(order.parts),
        chooses=order.plan.chooses,
        backend=config.backend,
        model=config.model if order.create is not None else registry.answerer(config),
        provider=registry.provider_of(config),
        names_form=known is None or known.names_form or order.earlier.again == "all",
        origin=Origin(owner=order.owner, working_folder=Path.cwd()),
    )
    return spec.with_output(form=order.form.model_copy(update={"columns": chosen_keys(spec)}))


def _targets_of(wanted: WantedJob, input_format: str) -> tuple[Target, ...]:
    """Return the targets of each row: one for each variant, or a single target without variants."""
    order, config, configs = wanted.order, wanted.config, wanted.configs
    if not order.variants:
        digests = fingerprint(config, order.system_prompt, input_format, has_check=order.has_check)
        return (Target(fingerprint=digests, sampling=plain_sampling(config)),)
    targets = [
        Target(
            name=variant.name,
            model=variant.model,
            prompt=variant.prompt,
            fingerprint=fingerprint(
                own := configs.get(variant.model, config),
                order.system_prompt,
                input_format,
                "" if variant.model in configs else variant.model,
                has_check=order.has_check,
            ),
            sampling=plain_sampling(own),
        )
        for variant in order.variants
    ]
    return tuple(
        order.plan.target(slot, target, configs.get(target.model, config)) for slot, target in enumerate(targets)
    )


def _schema_of(config: ModelConfig) -> dict[str, Any] | None:
    sampling = config.settings.sampling_params
    wanted = None if sampling.choices is not None else sampling.response_format
    schema = None if wanted is None else schema_of(wanted)
    return None if schema is None else dict(schema)
