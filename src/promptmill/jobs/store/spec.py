"""The order for a job, the job itself, and the output that it made."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from promptmill.cluster.ray_cluster import RayCluster
from promptmill.config.resolved_config import DEFAULT, LONGEST_ANSWER, ResolvedConfig
from promptmill.core.errors import Code, Named, config_error, input_error, unwritable_parameters
from promptmill.jobs.files.row_files import Part
from promptmill.jobs.store.answers import NEVER, to_replace
from promptmill.jobs.store.records import Made

Again: TypeAlias = Literal["failed", "truncated", "all"]

WHOLE_REQUESTS = frozenset({"batch", "messages"})
"""Formats whose rows are whole requests."""
_DECIDES = {"model_name", "model_name_or_path", "gguf_file", "base_url", "provider", "enable_thinking"}
"""Of a model's block, what decides about its answers."""
PART = re.compile(r"\.part-(\d+)-of-(\d+)")
_SHARD = re.compile(r"(\d{1,6})/(\d{1,6})")
# A share of failures says nothing before this many rows are settled.
_FIRST_ROWS = 20
_MOST = 10**15
_LAST_TIME = 10**11  # the year 5138
_Number: TypeAlias = Annotated[int, Field(ge=-_MOST, le=_MOST)] | Annotated[float, Field(ge=-_MOST, le=_MOST)]


@dataclass(frozen=True, slots=True)
class FailureLimit:
    """How many failures end a run: more than `count`, or more than `percent` of what is settled."""

    count: int | None = None
    percent: float | None = None

    @classmethod
    def parse(cls, text: str) -> FailureLimit:
        """Read `100` or `5%`. Raises `PromptmillError` (`invalid_input`)."""
        if re.fullmatch(r"\d+", text):
            return cls(count=int(text))
        if (found := re.fullmatch(r"(\d+(?:\.\d+)?)\s*%", text)) and float(found[1]) <= 100:
            return cls(percent=float(found[1]))
        raise input_error(Named("max_failures"), f" {text[:20]!r} is neither a number nor a share such as 5%.")

    def exceeded(self, failed: int, settled: int) -> bool:
        """Return whether `failed` of `settled` rows are too many."""
        if self.count is not None and failed > self.count:
            return True
        return self.percent is not None and settled >= _FIRST_ROWS and failed > settled * self.percent / 100


class JobRequest(BaseModel):
    """One job and how to run it this time."""

    model_config = ConfigDict(frozen=True)

    input: Path
    """A file, a folder or a pattern."""
    more: tuple[Path, ...] = ()
    """Further ones, whose rows come behind."""
    output: Path
    prompt_template: str | None = None
    """The prompt of each row, with fields of the row in double braces."""
    encoding: str | None = None
    """The encoding of CSV, TSV or text, such as `latin-1`; None for UTF-8, which is checked."""
    prompt_column: str | None = None
    """The field with the prompt, if its name is not `prompt`."""
    prompt_only: tuple[str, ...] = ()
    """Fields of rows that only the template reads; the output leaves them out."""
    image_column: str | None = None
    """The field with the paths or URLs of a row's images."""
    system_prompt: str = ""
    limit: int | None = Field(None, ge=1)
    """Only the first rows, this many."""
    max_failures: str | None = None
    max_cost: float | None = Field(None, ge=0)
    """Most that all runs together may spend; None: as the configuration says."""
    answer_column: str = "answer"
    """The column of the output that holds the answers; another one where a row has it itself."""
    fields: bool = True
    """Whether the fields of answers under a schema are columns (in JSON: objects), or each answer is a JSON text."""
    row_settings: bool = False
    """Whether rows set their model, sampling, … also with a template or a column."""
    skip_empty: bool = False
    """Whether rows that ask nothing are left out, instead of being failures."""
    dedupe: bool = False
    again: Again | None = None
    """The rows that a new round sends again; their old answers stay until the new ones are there."""
    keep: bool = False
    """Whether answers count that were made under other settings (noted in later rows), and an input that has lost most
    of its answers is meant."""
    from_job: Path | None = None
    """The database of another job, whose answers count for rows that ask the same."""
    overwrite: bool = False
    """Whether a file at `output` that the job did not make is replaced."""
    command: list[str] = []
    """The arguments of the command line that gave the last order, without keys; empty for a program's."""
    urls: dict[str, str] = {}
    """The URLs whose copies `input_file` and `output_file` of the status are, without secrets."""
    variants: tuple[str, ...] = ()
    """The values of the column `variant`, if each row of the user's input is sent several times."""
    ray: RayCluster | None = None
    """Where it is answered, if not here."""
    shard: str | None = None
    """`3/16`: only the third of sixteen ranges of the input, into a part file."""
    owner: str | None = None
    """The owner of a job on rows that came in a call, see `Caller`; None for files, which all clients share."""

    @model_validator(mode="before")
    @classmethod
    def _template_of_column(cls, given: Any) -> Any:
        """With a column of images, the column of the prompts is a template, too."""
        if not given.get("image_column") or given.get("prompt_template") is not None:
            return given
        column = orjson.dumps(given.get("prompt_column") or "prompt").decode()
        return {**given, "prompt_template": f"{{{{ row[{column}] }}}}", "prompt_column": None}

    @property
    def cut(self) -> tuple[int, int] | None:
        """`shard`, read. Raises `PromptmillError` (`invalid_input`)."""
        if self.shard is None:
            return None
        found = _SHARD.fullmatch(self.shard)
        if found is None:
            raise input_error(Named("shard"), f" {self.shard[:20]!r} is not I/N, such as 3/16, from 1 on.")
        at, count = int(found[1]), int(found[2])
        if not 1 <= at <= count:
            wrong = f"{at} is more than {count}" if at else "the first is 1"
            known = f"the {count} shards are 1/{count} to {count}/{count}"
            raise input_error(Named("shard"), f" {self.shard}: {wrong}; {known}.")
        if self.limit is not None:
            raise input_error(Named("shard"), " goes without ", Named("limit"), ".")
        return at, count

    @property
    def rows_set(self) -> bool:
        """Whether rows set their own model, sampling, …; with a template or a column, only if `row_settings` is set."""
        return self.row_settings or (self.prompt_template is None and self.prompt_column is None)

    @property
    def target(self) -> Path:
        """The file that the job writes: `output`, or the shard's part of it."""
        cut = self.cut
        if cut is None or PART.search(self.output.name):
            return self.output
        at, count = cut
        return self.output.with_name(f"{self.output.name}.part-{at:0{len(str(count))}}-of-{count}")

    @property
    def whole_output(self) -> Path:
        """The output that all shards make together."""
        return self.output if self.shard is None else self.output.with_name(PART.sub("", self.output.name))

    @property
    def failure_limit(self) -> FailureLimit | None:
        """`max_failures`, read."""
        return None if self.max_failures is None else FailureLimit.parse(self.max_failures)


class JobSpec(BaseModel):
    """A job. `fingerprint` identifies model, sampling and prompts without showing them."""

    model_config = ConfigDict(frozen=True)

    job_id: str
    input: Path
    output: Path
    files: list[Part] = []
    """Those of the input where it is a folder, a pattern or several paths; else `input` is the only one."""
    input_format: str
    encoding: str | None = None
    output_format: str
    spooled: bool = False
    """Whether its rows are written as lines first, see `spool`."""
    prompt_column: str | None = None
    prompt_template: str | None = None
    prompt_only: tuple[str, ...] = ()
    image_column: str | None = None
    answer_column: str = "answer"
    columns: dict[str, str] | None = None
    """The names of our columns that are not the usual ones; None until the input was looked through for them."""
    answer_schema: dict[str, Any] | None = None
    """The JSON Schema of the answers."""
    fields: bool = True
    """Whether its fields are columns."""
    rows_set: bool = True
    """Whether rows set their own model, sampling, …"""
    settings_read: list[str] = []
    """Columns of the input that are such settings."""
    skip_empty: bool = False
    shard: str | None = None
    """Which range of the input it is, `3/16`; its output is a part file then."""
    size: int
    mtime_ns: int
    sha256: str | None = None
    lines: int | None = None
    """Lines of the input (CSV, Parquet: its rows), once it was read through."""
    sampling: dict[str, bool | int | float | str] | None = None
    """Sampling parameters with one value, for errors about changes; None in jobs of older releases."""
    sampling_of_0_1: str | None = None
    """The digest of the sampling as release 0.1 had it: with the longest answer."""
    fingerprint: dict[str, str]
    models: dict[str, str] = {}
    """The same of the other models that rows may name, and that stand in."""
    backend: str
    model: str
    provider: str = ""
    """The name of the provider, for metrics; jobs of older releases have none."""
    created: Annotated[int, Field(ge=0, le=_LAST_TIME)]
    changed: list[str] = []
    """Settings that are not what they were when the job began (see `JobRequest.keep`), noted in every row since."""
    settings: int = 0
    """The id, in the database, of the settings of the fingerprint."""
    kept: list[int] = []
    """The ids of other settings whose answers count."""
    round: int = 0
    """The last round."""
    again: Again | None = None
    """The rows that this round sends again, until it is finished."""
    settled: bool = False
    """Whether it keeps the outcomes of a call: then it sends no row again by itself, not even one that failed."""
    to_bind: Literal["questions", "rows"] | None = None
    """Whether answers are still to be bound to the rows (see `binding`): by what the rows ask, or by their numbers."""
    owner: str | None = None
    """See `JobRequest.owner`; None in jobs of older releases, too."""
    working_folder: Path | None = None
    """The folder of relative image paths, also when the job is resumed from another folder."""

    @property
    def made(self) -> Made:
        """The note of each record."""
        return Made(self.settings, self.round, tuple(self.changed))

    @property
    def counted(self) -> list[int]:
        """The ids of the settings whose answers count."""
        return [self.settings, *self.kept]

    @property
    def to_replace(self) -> str:
        """Which records are to be replaced, as a condition."""
        return NEVER if self.settled and self.again is None else to_replace(self.counted, self.round, self.again)

    @property
    def shape(self) -> tuple[object, ...]:
        """The settings that decide about the columns and rows of the output."""
        return self.answer_column, self.skip_empty, self.answer_schema, self.fields

    @property
    def parts(self) -> list[Part]:
        """The files of the input."""
        return self.files or [Part(self.input)]

    def leaves_out(self, code: str | None) -> bool:
        """Return whether a row that came to this error is no part of the output."""
        return self.skip_empty and code == Code.EMPTY_PROMPT

    @property
    def of_call(self) -> bool:
        """Whether the job is the rest of a call: its input and output lie in its folder."""
        return self.input_format == "messages"


class _Results(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True)
    __pydantic_extra__: dict[str, _Number] = Field(init=False)

    values: dict[str, int] = {}
    fields_: dict[str, dict[str, _Number | dict[str, int]]] = Field({}, alias="fields")


class StatusRecord(BaseModel):
    """The kinds of the fields of a status: those that are not listed here are numbers."""

    model_config = ConfigDict(extra="allow", strict=True)
    __pydantic_extra__: dict[str, _Number | None] = Field(init=False)

    state: str = ""
    reason: str = ""
    activity: str = ""
    waiting: str = ""
    code: Annotated[Code, Field(strict=False)] = Code.INTERNAL
    errors: dict[str, int] = {}
    latency_s: dict[str, _Number | None] = {}
    results: _Results = Field(default_factory=_Results)
    columns: dict[str, str] = {}
    warnings: list[str] = []
    updated: Annotated[float, Field(ge=0, le=_LAST_TIME)] = 0.0


class _Run(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True)

    at: _Number
    began: Annotated[int, Field(ge=0, le=_LAST_TIME)]
    version: str


class CourseRecord(BaseModel):
    """The kinds of the fields of a course."""

    model_config = ConfigDict(strict=True)

    runs: list[_Run] = []
    samples: list[Annotated[list[_Number | None], Field(min_length=7, max_length=7)]] = []
    every_s: Annotated[float, Field(gt=0, le=_MOST)] = 1.0


def sound(found: Mapping[str, Any], kinds: type[BaseModel]) -> dict[str, Any]:
    """Return the fields of `found` that are of their kinds. A job's folder may come from anywhere."""
    try:
        kinds.model_validate(found)
    except ValidationError as error:
        wrong = {problem["loc"][0] for problem in error.errors(include_url=False, include_input=False)}
        return {name: value for name, value in found.items() if name not in wrong}
    return dict(found)


class OutputRecord(BaseModel):
    """A file that a job made, as the file system showed it then."""

    model_config = ConfigDict(frozen=True)

    size: int
    mtime_ns: int
    limit: int | None
    """How many rows of the input it holds; None for all, 0 for another one's file that may be replaced."""
    finished: bool = True
    """False once the job has other answers to give, or another output to write."""
    replaces: tuple[int, int] | None = None
    """Size and time of the job's own file that had the name before, and still has it when the job was killed then."""

    @classmethod
    def of(cls, partial: Path, limit: int | None, own: Path | None = None) -> OutputRecord:
        """Return the record of an output file; a rename over the job's `own` old one does not change it."""
        found = partial.stat()
        replaces = None if own is None else stamp(own)
        return cls(size=found.st_size, mtime_ns=found.st_mtime_ns, limit=limit, replaces=replaces)

    def holds(self, limit: int | None) -> bool:
        """Return whether the first `limit` rows are in it, None for all."""
        return self.limit is None or (limit is not None and limit <= self.limit)

    def is_still(self, path: Path) -> bool:
        """Return whether the file at `path` is that file, untouched."""
        return stamp(path) == (self.size, self.mtime_ns)

    def is_own(self, path: Path) -> bool:
        """Return whether the file at `path` is this output or the file that it was going to replace, unchanged."""
        found = stamp(path)
        return found is not None and found in {(self.size, self.mtime_ns), self.replaces}


def cluster_of(address: str | None, replicas: int, gpus: float, cpus: float) -> RayCluster | None:
    """Return the Ray cluster at `address`, None without one. Raises `PromptmillError` (`invalid_config`)."""
    if address is not None:
        return RayCluster(address, replicas, gpus, cpus)
    if (replicas, gpus, cpus) != (1, 0, 1):
        names = Named("replicas"), ", ", Named("num_gpus"), " and ", Named("num_cpus")
        raise config_error("", *names, " go with ", Named("ray", "ADDRESS"), " alone.")
    return None


def stamp(path: Path) -> tuple[int, int] | None:
    """Return `(size in bytes, time of the last change in ns)` of the file at `path`, None when there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns


def above_rows(plan: ResolvedConfig, given: str, input_format: str) -> str:
    """Return the system prompt above every row: the given one, else the configured one.

    A line of a Batch file or of a call's rest is a whole request, which only a given prompt changes.
    """
    return given or ("" if input_format in WHOLE_REQUESTS else plan.settings.system_prompt)


def fingerprint(plan: ResolvedConfig, given_prompt: str, input_format: str) -> dict[str, str]:
    """Return digests of what decides about answers; what each line brings itself is part of the input.

    The longest answer is not part of it: the question is the same, and answers that were cut short say so
    (`finish_reason`); `again: truncated` sends those again.
    """
    settings = plan.settings
    above = above_rows(plan, given_prompt, input_format)
    found = {"model": digest(plan.model), "system_prompt": digest(above), "backend": digest(plan.backend)}
    if plan.record.needs_endpoint:
        found["endpoint"] = digest(getattr(plan.block, "base_url", None))
        found["enable_thinking"] = digest(getattr(plan.block, "enable_thinking", None))
    if input_format not in WHOLE_REQUESTS:
        found["sampling"] = digest(*map(without_lengths, _sampling(plan)))
        found["image_tag"] = digest(settings.image_tag, *(["before"] if settings.image_position == "before" else []))
    return found


def sampling_of_0_1(plan: ResolvedConfig) -> str:
    """Return the digest of the sampling as release 0.1 had it."""
    return digest(*_sampling(plan))


def _sampling(plan: ResolvedConfig) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the sampling parameters and the extra ones that decide about answers."""
    settings = plan.settings
    extra = {name: value for name, value in settings.extra_params.items() if name != "service_tier"}
    return settings.sampling_params.given(), extra


def without_lengths(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return parameters without those that limit the length of an answer."""
    return {name: value for name, value in values.items() if name not in LONGEST_ANSWER}


def other_models(plan: ResolvedConfig) -> dict[str, str]:
    """Return digests of what decides about the answers of the other models of the file, by their names."""
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
    """Return a short digest of values of JSON. Raises `PromptmillError` for what JSON cannot hold."""
    try:
        text = orjson.dumps(values, option=orjson.OPT_SORT_KEYS)
    except TypeError:  # orjson's error is one
        raise unwritable_parameters() from None
    return hashlib.sha256(text).hexdigest()[:16]
