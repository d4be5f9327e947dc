"""A job as its database stores it: its input as it was read, its questions, its targets and its output."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal, TypeAlias

import orjson
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer

from promptmill.config.resolved_config import DEFAULT, TOKEN_LIMITS, ResolvedConfig
from promptmill.core import values
from promptmill.core.errors import Code, unwritable_parameters
from promptmill.jobs import members
from promptmill.jobs.inputs.files import Part
from promptmill.jobs.members import stamp
from promptmill.jobs.store.order import AnswerForm, Question
from promptmill.jobs.store.records import Made

WHOLE_REQUESTS = frozenset({"batch", "messages"})
"""Formats whose rows are whole requests."""
_DECIDES = {"model_name", "model_name_or_path", "gguf_file", "base_url", "provider", "enable_thinking"}
"""The keys of a model's block that decide about its answers."""
_LAST_TIME = 10**11  # the year 5138
UNREAD: Mapping[str, Any] = MappingProxyType({"size": 0, "version": 0, "sha256": ""})
"""Of `InputSpec`: whatever the input is, it is another one than the job has read."""
_Names: TypeAlias = Annotated[
    tuple[str, ...],
    BeforeValidator(lambda names: values.loads(names.encode()) if isinstance(names, str) else names),
    PlainSerializer(lambda names: values.dumps(names).decode(), when_used="json"),
]
"""Names that may hold bytes which are not UTF-8."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True)


class InputSpec(_Frozen):
    """The input as it was read."""

    path: Path
    files: tuple[Part, ...] = ()
    """Its files, where it is a folder, a pattern or several paths; else `path` is the only one."""
    format: str
    encoding: str | None = None
    size: int = 0
    version: int = 0
    """Changes with the content: for one file, the time of its last change in ns."""
    sha256: str = ""
    """The digest of its content; `""` until it was read."""
    header: _Names = ()
    """The columns of a table."""
    delimiter: str = ""
    """Between the cells of CSV and TSV."""
    has_bom: bool = False
    """Whether outputs of text begin with a byte-order mark, see `Style`."""
    fields: _Names = ()
    """Of rows that are JSON objects, the fields whose names in a prompt could be read as an expression: `mail-body`."""
    taken: tuple[str, ...] = ()
    """Of rows that are JSON objects, the fields with names that a column of the job could have."""
    settings_read: tuple[str, ...] = ()
    """Its columns that are settings of each row."""
    arrow_schema: str = ""
    """For Parquet, its schema: base64 of Arrow's own form."""

    @property
    def names(self) -> Sequence[str]:
        """The columns that a prompt may name by any name."""
        return self.header or self.fields

    @property
    def is_file(self) -> bool:
        """Whether the rows are in files of the user's; else `path` is only a name."""
        return self.path.is_absolute()

    @property
    def parts(self) -> Sequence[Part]:
        """The files of the input."""
        return self.files or (Part(self.path),)


class OutputSpec(_Frozen):
    """The output."""

    path: Path
    format: str
    form: AnswerForm = AnswerForm()
    names: dict[str, str] | None = None
    """The names of our columns that are not the usual ones; None until the input was read."""
    answer_schema: dict[str, Any] | None = None
    """The JSON Schema of the answers."""
    shard: str | None = None
    """The part of the rows, `3/16`, that it holds; it is a part file then."""


class Target(_Frozen):
    """The target of a slot's rows: a model with its settings, and a prompt."""

    name: str = ""
    """The name of the variant; `""` in a job with one target."""
    model: str = ""
    """The model; `""` for the configuration's."""
    prompt: int = 0
    """The index of the prompt."""
    settings: int = 0
    """The id, in the database, of the settings that `fingerprint` identifies."""
    kept: tuple[int, ...] = ()
    """The ids of other settings whose answers count."""
    changed: tuple[str, ...] = ()
    """The settings that changed since the job began (see `Earlier.keep`), noted in every later record."""
    fingerprint: dict[str, Any] = {}
    """Digests of the settings that decide about answers."""
    sampling: dict[str, bool | int | float | str] | None = None
    """Sampling parameters with one value, for errors about changes; None in jobs of older releases."""

    @property
    def counted(self) -> list[int]:
        """The ids of the settings whose answers count."""
        return [self.settings, *self.kept]

    def answered_by(self, model: str, settings: int) -> tuple[Target, Target]:
        """Return the target once answers of another model count, too, and the target of a round of that model.

        `settings` is the id of the target's settings with that model.
        """
        if settings == self.settings:
            return self, self
        counted = self.model_copy(update={"kept": tuple(sorted({*self.kept, settings}))})
        own = {"model": model, "settings": settings, "kept": tuple(sorted({*self.kept, self.settings}))}
        return counted, self.model_copy(update=own)

    def made(self, round_: int, model: str = "") -> Made:
        """Return the note of the records of a round, which has a `model` of its own or not."""
        return Made(self.settings, round_, self.changed, model)


class JobSpec(_Frozen):
    """A job. The fingerprints identify model, sampling and system prompt without showing them."""

    job_id: str
    created: Annotated[int, Field(ge=0, le=_LAST_TIME)]
    input: InputSpec
    question: Question = Question()
    output: OutputSpec
    targets: tuple[Target, ...] = (Target(),)
    """The targets of each row, one for each slot."""
    backend: str
    model: str
    provider: str = ""
    """The name of the provider, for metrics."""
    settled: bool = False
    """Whether the call that the job belongs to has ended: then no row is sent, not even a failed one."""
    to_bind: Literal["questions", "rows"] | None = None
    """The way to bind answers when the input is read again: by their questions, or by their rows."""
    owner: str | None = None
    """See `JobOrder.owner`; None in jobs of older releases, too."""
    working_folder: Path | None = None
    """The folder that the job was started in."""

    @property
    def fills_input(self) -> bool:
        """Whether the answers become columns of the sheet that the rows come from."""
        source, (file, sheet) = self.input, members.split(self.output.path)
        if source.format != "xlsx" or self.output.format != "xlsx" or len(source.parts) > 1:
            return False
        return source.parts[0].path == file and sheet in {"", source.parts[0].member}

    @property
    def image_folders(self) -> tuple[str, ...]:
        """The folders in which relative paths of images are looked up: the input's folder, then the working folder."""
        here = Path.cwd()
        folders = [self.input.path.parent] if self.input.is_file else []
        folders.append(self.working_folder or here)
        return () if {*folders} == {here} else tuple(map(str, folders))

    @property
    def is_read(self) -> bool:
        """Whether the input was read, as `input` and `question` say."""
        return self.output.names is not None and self.to_bind is None

    @property
    def models(self) -> str:
        """The names of all its models."""
        return ", ".join(dict.fromkeys(target.model or self.model for target in self.targets))

    @property
    def is_grid(self) -> bool:
        """Whether each row has several answers."""
        return len(self.targets) > 1

    @property
    def of_call(self) -> bool:
        """Whether the job is the rest of a call: its rows are the items of the call."""
        return self.input.format == "messages"

    @property
    def shape(self) -> tuple[object, ...]:
        """The settings that decide about the columns and rows of the output."""
        output = self.output
        return output.form, self.question.skip_empty, output.answer_schema, [target.name for target in self.targets]

    def with_output(self, **changes: Any) -> JobSpec:
        """Return the job with other values of `output`."""
        return self.model_copy(update={"output": self.output.model_copy(update=changes)})

    def with_input(self, **changes: Any) -> JobSpec:
        """Return the job with other values of `input`."""
        return self.model_copy(update={"input": self.input.model_copy(update=changes)})

    def leaves_out(self, code: str | None) -> bool:
        """Return whether a row with this error is no part of the output."""
        return self.question.skip_empty and code == Code.EMPTY_PROMPT


class OutputRecord(_Frozen):
    """A file that a job wrote, as the file system showed it then."""

    size: int
    mtime_ns: int
    limit: int | None
    """How many rows of the input it holds; None for all, 0 for a foreign file that may be replaced."""
    finished: bool = True
    """False once the job has other answers to give, or another output to write."""
    replaces: tuple[int, int] | None = None
    """Size and time of the job's own file that had the name before, and still has it if the job was killed then."""

    @classmethod
    def of(cls, made: tuple[int, int], limit: int | None, own: Path | None = None) -> OutputRecord:
        """Return the record of an output with this stamp, which takes the place of the job's `own` old one."""
        return cls(size=made[0], mtime_ns=made[1], limit=limit, replaces=None if own is None else stamp(own))

    def holds(self, limit: int | None) -> bool:
        """Return whether the first `limit` rows are in it, None for all."""
        return self.limit is None or (limit is not None and limit <= self.limit)

    def is_still(self, path: Path) -> bool:
        """Return whether the file at `path` is that file, unchanged."""
        return stamp(path) == (self.size, self.mtime_ns)

    def is_own(self, path: Path) -> bool:
        """Return whether the file at `path` is this output or the file that it was going to replace, unchanged."""
        current = stamp(path)
        return current is not None and current in {(self.size, self.mtime_ns), self.replaces}


# ---- settings


def system_prompt_of(plan: ResolvedConfig, given: str, input_format: str) -> str:
    """Return the system prompt of every row: the given one, else the configured one.

    A line of a Batch file or of a call's rest is a whole request, which only a given prompt changes.
    """
    return given or ("" if input_format in WHOLE_REQUESTS else plan.settings.system_prompt)


def fingerprint(plan: ResolvedConfig, given_prompt: str, input_format: str, model: str = "") -> dict[str, Any]:
    """Return digests of the settings that decide about answers; a row's own settings are part of its question.

    `model` replaces the plan's model. The longest answer is not included: the question is the same, and answers that
    were cut short have the finish reason `length`; `again: truncated` sends those again. `models` has the digests of
    the other models of the file, which rows may name.
    """
    settings = plan.settings
    system = system_prompt_of(plan, given_prompt, input_format)
    found: dict[str, Any] = {"model": digest(model or plan.model), "system_prompt": digest(system)}
    found["backend"] = digest(plan.backend)
    if plan.record.needs_endpoint:
        found["endpoint"] = digest(getattr(plan.block, "base_url", None))
        found["enable_thinking"] = digest(getattr(plan.block, "enable_thinking", None))
    if input_format not in WHOLE_REQUESTS:
        found["sampling"] = digest(*map(without_lengths, _sampling(plan)))
        found["image_tag"] = digest(settings.image_tag, *(["before"] if settings.image_position == "before" else []))
    return found | {"models": _other_models(plan)}


def sampling_of_0_1(plan: ResolvedConfig) -> str:
    """Return the digest of the sampling as release 0.1 computed it, with the longest answer."""
    return digest(*_sampling(plan))


def plain_sampling(plan: ResolvedConfig) -> dict[str, bool | int | float | str]:
    """Return the sampling parameters with one value, without the longest answer."""
    given = without_lengths(plan.settings.sampling_params.given())
    return {name: value for name, value in given.items() if isinstance(value, bool | int | float | str)}


def _sampling(plan: ResolvedConfig) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the sampling parameters and the extra parameters that decide about answers."""
    settings = plan.settings
    extra = {name: value for name, value in settings.extra_params.items() if name != "service_tier"}
    return settings.sampling_params.given(), extra


def without_lengths(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return parameters without those that limit the length of an answer."""
    return {name: value for name, value in values.items() if name not in TOKEN_LIMITS}


def _other_models(plan: ResolvedConfig) -> dict[str, str]:
    """Return digests of the settings of the other models of the file, by their names."""
    file = plan.file or plan.operator
    blocks: dict[str, tuple[str, object, Any]] = {
        name: (model.backend or "", getattr(model, model.backend or "", None), model)
        for name, model in file.models.items()
    }
    blocks.setdefault(DEFAULT, (file.backend, getattr(file.backend_configs, file.backend, None), file))
    return {
        name: digest(
            backend,
            block.model_dump(mode="json", include=_DECIDES) if isinstance(block, BaseModel) else None,
            without_lengths({**file.sampling_params.given(), **own.sampling_params.given()}),
            without_lengths(own.extra_params),
            own.system_prompt if own.system_prompt is not None else file.system_prompt,
            own.image_tag or file.image_tag,
        )
        for name, (backend, block, own) in blocks.items()
        if name != plan.name
    }


def digest(*values: object) -> str:
    """Return a short digest of values of JSON. Raises `PromptmillError` for values outside of JSON."""
    try:
        text = orjson.dumps(values, option=orjson.OPT_SORT_KEYS)
    except TypeError:  # orjson's error is one
        raise unwritable_parameters() from None
    return hashlib.sha256(text).hexdigest()[:16]
