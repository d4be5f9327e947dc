"""The description of a job in its database: input, questions, targets and output."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal, TypeAlias

import orjson
from pydantic import BaseModel, BeforeValidator, Field, PlainSerializer

from promptmill.config.resolved_config import DEFAULT, TOKEN_LIMITS, ResolvedConfig
from promptmill.core import values
from promptmill.core.errors import Code, unwritable_parameters
from promptmill.jobs import members
from promptmill.jobs.inputs.files import Part
from promptmill.jobs.inputs.row import Style
from promptmill.jobs.members import Stamp
from promptmill.jobs.store.order import Sure, Votes
from promptmill.jobs.store.stored import AnswerForm, Question, Stored, Target

WHOLE_REQUESTS = frozenset({"batch", "messages"})
"""Formats whose rows are whole requests."""
_DECIDES = {"model_name", "model_name_or_path", "gguf_file", "base_url", "provider", "enable_thinking"}
"""The keys of a model's block that affect its answers."""
_LAST_TIME = 10**11  # the year 5138
UNREAD: Mapping[str, Any] = MappingProxyType({"size": 0, "version": 0, "sha256": ""})
"""Values of `InputSpec` that no input matches, so that the job reads its input again."""
_Names: TypeAlias = Annotated[
    tuple[str, ...],
    BeforeValidator(lambda names: values.loads(names.encode()) if isinstance(names, str) else names),
    PlainSerializer(lambda names: values.dumps(names).decode(), when_used="json"),
]
"""Names that may contain bytes that are not UTF-8."""


class InputSpec(Stored):
    """The input as it was read."""

    path: Path
    files: tuple[Part, ...] = ()
    """The files of a folder, a pattern or several paths; empty if `path` is the only file."""
    format: str
    encoding: str | None = None
    size: int = 0
    version: int = 0
    """A number that changes with the content, see `InputFiles.stamp`."""
    sha256: str = ""
    """The digest of the content; `""` until the input was read."""
    header: _Names = ()
    """The columns of a table."""
    style: Style = Style()
    fields: _Names = ()
    """For rows of JSON: the fields whose names could be read as an expression in a prompt, such as `mail-body`."""
    taken: tuple[str, ...] = ()
    """For rows of JSON: the fields whose names a column of the job could also have."""
    settings_read: tuple[str, ...] = ()
    """The columns that are settings of each row."""
    blank: dict[str, int] = {}  # noqa: RUF012 (pydantic copies it)
    """The number of rows whose prompt has a blank place, because the cell is empty, by the column."""

    @property
    def names(self) -> Sequence[str]:
        """The columns that a prompt may name even if the name is not an identifier."""
        return self.header or self.fields

    @property
    def is_file(self) -> bool:
        """Whether the rows are in files of the user; otherwise `path` is only a name."""
        return self.path.is_absolute()

    @property
    def parts(self) -> Sequence[Part]:
        """The files of the input."""
        return self.files or (Part(self.path),)


class OutputSpec(Stored):
    """The output."""

    path: Path
    format: str
    form: AnswerForm = AnswerForm()
    names: dict[str, str] | None = None
    """The unusual names of the job's columns, by their keys; None until the input was read."""
    answer_schema: dict[str, Any] | None = None
    """The JSON Schema of the answers."""
    shard: str | None = None
    """The shard of a part file, such as `3/16`; None for a whole output."""


class SureCut(Stored):
    """The decision about the rows of a part, made when its sample was answered. It never changes."""

    place: tuple[float, float]
    """The place of the cut, see `jobs.sure.cut`."""
    pays: bool = False
    """Whether the cheap model answers rows beyond the sample."""
    sampled: tuple[int, ...] = ()
    """The rounds that asked the strong model about the sample."""
    agreed: int = 0
    """Rows of the sample in which both models agree; with right labels, in which the cheap model is right."""
    before: int = 0
    """Rows of the sample before the cut."""
    errors: int = 0
    """Rows of the sample in which the models do not agree; with right labels, in which only the cheap model is
    wrong."""
    bad: int = 0
    """With right labels: rows of the sample in which the strong model is wrong."""
    mended: int = 0
    """Rows of the sample before the cut in which the cheap model is right."""
    classes: dict[str, tuple[int, int]] = Field({})
    """By label: rows of the sample that have it by the strong model, or rightly, and how many of them the cheap model
    finds."""
    unguarded: tuple[str, ...] = ()
    """The classes of which the sample has too few rows to guard them."""
    prices: tuple[float, float] | None = None
    """The mean cost of a row of the sample at the strong model and at the cheap ones, in dollars."""
    learned: str = ""
    """The digest of the answers from which the student learned."""


class SurePart(Stored):
    """Rows that share a promise about their labels (see `Sure`), because one sample was drawn from them.

    Rows that the input gets later are another part.
    """

    of: str
    """The digest of the input, and of the limit, that the rows are from."""
    round: int
    """The first round of the part. Cheap answers of this round and of later ones, until the next part, belong to it."""
    rows: int
    """Rows with a question."""
    seed: str = ""
    drawn: int = 0
    """Rows of the sample; 0: the strong model answers all rows."""
    earlier: int = 0
    """Rows that are not among `rows`, but have a label of the strong model: they train a student, or are of a first,
    smaller sample, which had too few rows of a class to guard."""
    taught: int = 0
    """Rows that train the student; they are among `earlier`."""
    gold: int = 0
    """Rows with a right label, if the sample was drawn from them."""
    wrong: int = 0
    """The most labels that may differ from the strong model's, or from the right ones."""
    score: Literal["", "probability", "second", "second and probability", "repeats", "votes", "student", "equal"] = ""
    """The order of the cheap answers; `equal`: they have none. `""`: not known yet."""
    is_ended: bool = False
    """Whether the student answers no more rows, because answers from which it learned have changed since."""
    cut: SureCut | None = None
    """None until the sample is answered."""

    @property
    def every(self) -> int:
        """All rows of the part."""
        return self.rows + self.earlier

    @property
    def pays(self) -> bool:
        """Whether the cheap model answers rows beyond the sample."""
        return self.cut is not None and self.cut.pays

    @property
    def strong(self) -> float:
        """How many of all rows the strong model answers if the cheap one answers those before the cut: the estimate of
        the sample."""
        if self.cut is None or not self.drawn:
            return self.every
        return self.every - max(0, self.rows - self.drawn) * self.cut.before / self.drawn

    @property
    def costs(self) -> tuple[float, float] | None:
        """The expected cost of all rows, and their cost at the strong model alone; None without prices."""
        if self.cut is None or self.cut.prices is None:
            return None
        strong, cheap = self.cut.prices
        return self.strong * strong + self.every * cheap, self.every * strong


class Origin(Stored):
    """The owner of a job, and where it was started."""

    owner: str | None = None
    """See `JobOrder.owner`."""
    working_folder: Path | None = None
    """The working directory in which the job was started."""


class JobSpec(Stored):
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
    """Whether the call that the job belongs to has ended. Then no row is sent again, not even a failed row."""
    sure: Sure | None = None
    """Then slot 0 has the delivered label of each row, and the other slots have answers of cheap models."""
    parts: tuple[SurePart, ...] = ()
    votes: Votes | None = None
    """Then slot 0 has the delivered label of each row, and the other slots have the votes on it."""
    to_bind: Literal["questions", "rows"] | None = None
    """The way to bind answers when the input is read again: by question, or by row number."""
    origin: Origin = Origin()

    @property
    def fills_input(self) -> bool:
        """Whether the answers become columns of the sheet with the rows."""
        source, (file, sheet) = self.input, members.split(self.output.path)
        if source.format != "xlsx" or self.output.format != "xlsx" or len(source.parts) > 1:
            return False
        return source.parts[0].path == file and sheet in {"", source.parts[0].member}

    @property
    def keeps_sheets(self) -> bool:
        """Whether the output is a sheet, or columns, of a workbook whose other parts are kept."""
        return self.output.format == "xlsx" and (self.fills_input or bool(members.split(self.output.path)[1]))

    @property
    def image_folders(self) -> tuple[str, ...]:
        """The folders in which relative paths of images are looked up: the input's folder, then the working folder."""
        here = Path.cwd()
        folders = [self.input.path.parent] if self.input.is_file else []
        folders.append(self.origin.working_folder or here)
        return () if {*folders} == {here} else tuple(map(str, folders))

    @property
    def is_read(self) -> bool:
        """Whether the database has the rows and questions that `input` and `question` describe."""
        return self.output.names is not None and self.to_bind is None

    @property
    def models(self) -> str:
        """The names of the job's models, separated by commas."""
        return ", ".join(dict.fromkeys(target.model or self.model for target in self.targets))

    @property
    def is_grid(self) -> bool:
        """Whether each row gets several answers (one for each target)."""
        return self.delivered > 1

    @property
    def delivered(self) -> int:
        """The number of answers to each row in the output, which are in the first slots."""
        return len(self.targets) if self.sure is None and self.votes is None else 1

    @property
    def output_targets(self) -> Sequence[Target]:
        """The targets of the answers in the output."""
        return self.targets[: self.delivered]

    @property
    def of_call(self) -> bool:
        """Whether the rows are items of a call, which became this job."""
        return self.input.format == "messages"

    @property
    def shape(self) -> tuple[object, ...]:
        """The settings that determine the columns and rows of the output."""
        output = self.output
        return output.form, self.question.skip_empty, output.answer_schema, [target.name for target in self.targets]

    def with_output(self, **changes: Any) -> JobSpec:
        """Return the job with other values of `output`."""
        return self.model_copy(update={"output": self.output.model_copy(update=changes)})

    def with_input(self, **changes: Any) -> JobSpec:
        """Return the job with other values of `input`."""
        return self.model_copy(update={"input": self.input.model_copy(update=changes)})

    def leaves_out(self, code: str | None) -> bool:
        """Return whether the output omits rows with this error."""
        return self.question.skip_empty and code == Code.EMPTY_PROMPT


class OutputRecord(Stored):
    """The size and time of a file that a job wrote."""

    size: int
    mtime_ns: int
    limit: int | None
    """How many rows of the input the file holds; None: all. 0: a foreign file that may be replaced."""
    finished: bool = True
    """False when the job has other answers, or another output to write."""
    replaces: Stamp | None = None
    """The stamp of the job's previous output, which is still there if the job was killed before the replacement."""

    @classmethod
    def of(cls, made: Stamp, limit: int | None, own: Stamp | None = None) -> OutputRecord:
        """Return the record of an output with the stamp `made`. `own`: the stamp of the job's output that it
        replaces."""
        return cls(size=made[0], mtime_ns=made[1], limit=limit, replaces=own)

    def holds(self, limit: int | None) -> bool:
        """Return whether the file holds the first `limit` rows (None: all rows)."""
        return self.limit is None or (limit is not None and limit <= self.limit)

    def is_still(self, there: Stamp | None) -> bool:
        """Return whether a file with the stamp `there` is this output, unchanged."""
        return there == (self.size, self.mtime_ns)

    def is_own(self, there: Stamp | None) -> bool:
        """Return whether a file with the stamp `there` is this output, or the output that it replaces, unchanged."""
        return there is not None and there in {(self.size, self.mtime_ns), self.replaces}


# ---- settings


def system_prompt_of(plan: ResolvedConfig, given: str, input_format: str) -> str:
    """Return the system prompt of every row: `given`, else the prompt in the configuration.

    A row of a Batch file or of a call is a whole request; for such rows the configuration's prompt does not apply.
    """
    return given or ("" if input_format in WHOLE_REQUESTS else plan.settings.system_prompt)


def fingerprint(plan: ResolvedConfig, given_prompt: str, input_format: str, model: str = "") -> dict[str, Any]:
    """Return digests of the settings that affect answers. (A row's own settings are part of its question.)

    `model` replaces the plan's model. Limits of an answer's length are not included: an answer that was cut short has
    the finish reason `length`, and `again: truncated` sends its row again. `models` has the digests of the other models
    in the configuration file, which rows may name.
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


def plain_sampling(plan: ResolvedConfig) -> dict[str, bool | int | float | str]:
    """Return the sampling parameters that are not lists or objects, without limits of an answer's length."""
    given = without_lengths(plan.settings.sampling_params.given())
    return {name: value for name, value in given.items() if isinstance(value, bool | int | float | str)}


def _sampling(plan: ResolvedConfig) -> tuple[dict[str, Any], dict[str, Any]]:
    settings = plan.settings
    extra = {name: value for name, value in settings.extra_params.items() if name != "service_tier"}
    return settings.sampling_params.given(), extra


def without_lengths(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return parameters without the limits of an answer's length."""
    return {name: value for name, value in values.items() if name not in TOKEN_LIMITS}


def _other_models(plan: ResolvedConfig) -> dict[str, str]:
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
    """Return a short digest of JSON values. Raises `PromptmillError` for values that JSON cannot hold."""
    try:
        text = orjson.dumps(values, option=orjson.OPT_SORT_KEYS)
    except TypeError:  # orjson's error is one
        raise unwritable_parameters() from None
    return hashlib.sha256(text).hexdigest()[:16]
