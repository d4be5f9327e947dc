"""The order for a job: the options of a command or call.

The hidden folder of a job moves with its output: in an archive, in a repository, on a shared disk. A stored order may
come from anybody, and what only the operator may set (see `Option.is_of_operator`) is obeyed only if the order has the
seal of this user on this computer. The seal covers the order with its command, and the paths of the files.
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
from pydantic import AliasChoices, Field

from promptmill.core.errors import Named, input_error, redact
from promptmill.files import format_table, table_paths
from promptmill.files.table_paths import PART
from promptmill.jobs.store.description import AnswerForm, JobPrompts, Stored, Variant
from promptmill.jobs.store.order_part import AnyParts, Create, parts_of
from promptmill.jobs.store.plan import Plan, plan_in
from promptmill.jobs.store.records import SLOT
from promptmill.jobs.store.rounds import LIVE
from promptmill.options.table import Again
from promptmill.system.safe_open import real_path
from promptmill.system.state import own_secret

_SHARD = re.compile(r"(\d{1,6})/(\d{1,6})")
_FIRST_ROWS = 20  # rows; among fewer rows, a share of failures means little


@dataclass(frozen=True, slots=True)
class FailureLimit:
    """The limit of failures: a run ends when more than `count` rows, or `percent` of the finished rows, have failed."""

    count: int | None = None
    percent: float | None = None

    @classmethod
    def parse(cls, text: str) -> FailureLimit:
        """Parse `100` or `5%`. Raises `PromptmillError` (`invalid_input`)."""
        if re.fullmatch(r"\d+", text):
            return cls(count=int(text))
        if (share := re.fullmatch(r"(\d+(?:\.\d+)?)\s*%", text)) and float(share[1]) <= 100:
            return cls(percent=float(share[1]))
        raise input_error(Named("max_failures"), f" {text[:20]!r} is neither a number nor a share such as 5%.")

    def exceeded(self, failed: int, finished: int) -> bool:
        """Return whether `failed` of `finished` rows exceed the limit."""
        if self.count is not None and failed > self.count:
            return True
        return self.percent is not None and finished >= _FIRST_ROWS and failed > finished * self.percent / 100


@dataclass(frozen=True, slots=True)
class Shard:
    """Every `count`-th row of the input, starting with row `number` (counted from 1)."""

    number: int
    count: int

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Parse `3/16`. Raises `PromptmillError` (`invalid_input`).

        >>> [n for n in range(10) if Shard.parse("2/4").has(n)]
        [1, 5, 9]
        """
        parts = _SHARD.fullmatch(text)
        if parts is None:
            raise input_error(Named("shard"), f" {text[:20]!r} is not I/N, such as 3/16, from 1 on.")
        number, count = int(parts[1]), int(parts[2])
        if not 1 <= number <= count:
            wrong = f"{number} is more than {count}" if number else "the first is 1"
            known = f"the {count} shards are 1/{count} to {count}/{count}"
            raise input_error(Named("shard"), f" {text}: {wrong}; {known}.")
        return cls(number, count)

    def has(self, n: int) -> bool:
        """Return whether row `n` (from 0) belongs to this shard."""
        return n % self.count == self.number - 1

    def of(self, output: Path) -> Path:
        """Return the path of this shard's file for `output`."""
        return output.with_name(f"{output.name}.part-{self.number:0{len(str(self.count))}}-of-{self.count}")


class Limits(Stored):
    """The rows that a job sends, and the limits of failures and costs."""

    limit: int | None = Field(None, ge=1, le=SLOT, validation_alias=AliasChoices("limit", "rows"))
    """The number of rows to send, from the first row on; None: all. Orders of older versions call this field `rows`."""
    shard: str | None = None
    """The shard of the rows to send, such as `3/16`; the output is then that shard's file."""
    dedupe: bool = False
    """Whether only one of several rows with the same question is sent."""
    max_failures: str | None = None
    max_cost: float | None = Field(None, ge=0)
    """The most, in US dollars, that all runs together may spend; None: the configuration's limit."""

    @property
    def failures(self) -> FailureLimit | None:
        """The parsed limit of `max_failures`."""
        return None if self.max_failures is None else FailureLimit.parse(self.max_failures)


class Earlier(Stored):
    """The treatment of existing answers. It applies once; resuming the job by its id does not repeat it."""

    again: Again | None = None
    """The rows to send again. Their answers stay until new answers replace them."""
    keep: bool = False
    """Whether answers made with other settings are kept, and whether answers may be lost if the input has changed."""
    from_jobs: tuple[Path, ...] = ()
    """The databases of other jobs, whose answers are used for rows with the same question."""
    overwrite: bool = False
    """Whether the job may replace a file at `output` that it did not make."""

    def may_change(self, status: Mapping[str, Any]) -> bool:
        """Return whether rows of a finished job with this status may get other answers: rows are sent again, or failed
        rows may get answers of other jobs."""
        return self.again is not None or bool(self.from_jobs and status.get("failed", True))


class InputReading(Stored):
    """Options for reading the input."""

    sql: str | None = None
    """A query, if the input is a database. The rows of its result are the rows of the job."""
    encoding: str | None = None
    """The encoding of CSV, TSV or text, such as `cp1252`; None: UTF-8, which is verified."""
    header_row: int | None = Field(None, ge=1, le=SLOT)
    """The line of a file, or the row of a sheet, that holds the header, counted from 1; None: the first line or row."""

    @classmethod
    def of(cls, sql: str | None = None, encoding: str | None = None, header_row: int | None = None) -> InputReading:
        """Return the options. Raises `ValidationError`; `PromptmillError` (`invalid_input`) for an unknown encoding."""
        try:
            "".encode(encoding or "utf-8")
        except (LookupError, ValueError):
            known = " is no encoding; use cp1252, utf-16, latin-1, …"
            raise input_error(Named("encoding"), f": {str(encoding)[:20]!r}{known}") from None
        return cls(sql=sql, encoding=encoding or None, header_row=header_row)


class OrderTexts(Stored):
    """Texts with which messages, the status and reports describe an order."""

    command: list[str] = Field([])
    """The command-line arguments of the last order, without API keys; empty if a program gave the order."""
    urls: Mapping[str, str] = {}
    """The URLs of which `input_file` and `output_file` are copies, without secrets. A dataset's URL names a commit."""
    input: str = ""
    """The input as the user wrote it, without secrets."""
    reason: str = "first"
    """The reason for the rounds that send rows without an answer."""


def as_written(names: Sequence[str]) -> str:
    """Return the names of inputs as an order stores them, without secrets."""
    return redact(" ".join(names))


class JobOrder(Stored):
    """An order: the job to run, and how to run it this time."""

    inputs: tuple[Path, ...]
    """Absolute paths of files, folders and patterns, in the order of their rows; or a name for rows without a file."""
    output: Path
    reading: InputReading = InputReading()
    question: JobPrompts = JobPrompts()
    system_prompt: str = ""
    sampling: Mapping[str, Any] = {}
    """Sampling parameters of a call. They override the sampling of every model that answers."""
    form: AnswerForm = AnswerForm()
    has_check: bool = False
    """Whether a function that the calling program passed checks each answer."""
    limits: Limits = Limits()
    earlier: Earlier = Earlier()
    variants: tuple[Variant, ...] = ()
    parts: AnyParts = Field({})
    """The options of features, by the name of the option that selects the feature."""
    shown: OrderTexts = OrderTexts()
    owner: str | None = None
    """The owner of a job whose rows came in a call, see `Caller`; None for a job on files, which all clients share."""

    @classmethod
    def of(cls, inputs: Iterable[Path], output: Path, options: Mapping[str, Any]) -> JobOrder:
        """Return the order for `options` of `promptmill.bulk` that `options.check` has accepted. An option that is None
        has its default.

        `prompt` may be a mapping of names to templates, and `model` a list. Then each model answers each prompt of each
        row. The option `sampling` has the sampling parameters of a call.

        Raises `ValidationError`, and `PromptmillError` (`invalid_config`, `invalid_input`).
        """

        def given(**names: str) -> dict[str, Any]:
            return {field: options[name] for field, name in names.items() if options.get(name) is not None}

        failures, prompt, model = (options.get(name) for name in ("max_failures", "prompt", "model"))
        prompts = {} if prompt is None else {"": prompt} if isinstance(prompt, str) else dict(prompt)
        models = [] if model is None or isinstance(model, str) else list(dict.fromkeys(model))
        variants = _variants(models if len(models) > 1 else [""], list(prompts) if len(prompts) > 1 else [""])
        parts = parts_of(options, models or [""])
        plan = plan_in(parts)
        variants = plan.slots or variants
        return cls(
            inputs=tuple(inputs),
            output=output,
            question=JobPrompts(
                templates=plan.prompts(tuple(prompts.values())),
                **given(column="prompt_column", image_column="image_column", audio_column="audio_column"),
                **given(row_settings="row_settings", skip_empty="skip_empty", sample="sample"),
            ),
            form=AnswerForm(**given(column="answer_column", fields="fields", columns="columns")),
            limits=Limits(
                max_failures=None if failures is None else str(failures),
                **given(limit="limit", max_cost="max_cost", shard="shard", dedupe="dedupe"),
            ),
            earlier=Earlier(**given(again="again", keep="keep", from_jobs="from_job", overwrite="overwrite")),
            has_check=options.get("check") is not None,
            variants=variants,
            parts=parts,
            reading=InputReading.of(**given(sql="sql", encoding="encoding", header_row="header_row")),
            **given(system_prompt="system_prompt", sampling="sampling"),
        )

    @property
    def plan(self) -> Plan:
        """The plan, which decides the rows to send next and the answer of each row."""
        return plan_in(self.parts)

    @property
    def named_models(self) -> frozenset[str]:
        """The models that are named in the order's variants or in its plan."""
        return self.plan.named_models.union(variant.model for variant in self.variants)

    @property
    def way(self) -> str:
        """The way of the first round that sends rows, see `OrderPart.way`."""
        return next((each.way for each in self.parts.values() if each.way != LIVE), LIVE)

    @property
    def create(self) -> Create | None:
        """The function that makes the job's backend; None if promptmill makes the backend."""
        return next((each.create for each in self.parts.values() if each.create is not None), None)

    @property
    def parsed_shard(self) -> Shard | None:
        """The parsed shard of `limits.shard`. Raises `PromptmillError` (`invalid_input`)."""
        return None if self.limits.shard is None else Shard.parse(self.limits.shard)

    @classmethod
    def target_of(cls, inputs: tuple[Path, ...], output: Path, form: AnswerForm) -> Path:
        """Return the `target` of an order with these values."""
        return cls(inputs=inputs, output=output, form=form).target

    @property
    def target(self) -> Path:
        """The output of the job: `output` itself, its shard file, or a column of the sheet that the rows come from."""
        shard, column = self.parsed_shard, self.form.column
        if shard is not None and not PART.search(self.output.name):
            return shard.of(self.output)
        if column != AnswerForm().column and self.fills_input and not table_paths.column_of(self.output):
            return table_paths.with_column(self.output, column)
        return self.output

    @property
    def fills_input(self) -> bool:
        """Whether the answers become columns of the sheet that the rows come from."""
        if len(self.inputs) != 1 or not self.inputs[0].is_absolute():  # a relative path is only a name for rows
            return False
        (file, sheet), (source, member) = map(table_paths.split, (self.output, self.inputs[0]))
        written = format_table.writing(file)
        is_workbook = written is not None and written.has_sheets
        return is_workbook and real_path(source) == real_path(file) and sheet in {"", member}

    @property
    def whole_output(self) -> Path:
        """The output that joins all shards."""
        return self.output if self.limits.shard is None else self.output.with_name(PART.sub("", self.output.name))

    def repeated(self, begun: JobOrder) -> JobOrder:
        """Return the order with the decisions of `begun`, an unfinished order of the same command."""
        parts = {name: each.repeated(begun.parts[name]) for name, each in self.parts.items() if name in begun.parts}
        return self.model_copy(update={"parts": {**self.parts, **parts}})

    def with_limits(self, **changes: Any) -> JobOrder:
        """Return the order with other values of `limits`."""
        return self.model_copy(update={"limits": self.limits.model_copy(update=changes)})

    def with_earlier(self, **changes: Any) -> JobOrder:
        """Return the order with other values of `earlier`."""
        earlier = Earlier.model_validate({**dict(self.earlier), **changes}, extra="forbid")
        return self.model_copy(update={"earlier": earlier})


def seal_of(order: Mapping[str, Any], spec: Mapping[str, Any]) -> dict[str, str] | None:
    """Return the seal of an order and a description, as they are stored: a digest whose key is the user's own secret;
    None if the secret cannot be stored."""
    if (secret := own_secret()) is None:
        return None
    paths = [(spec.get(name) or {}).get("path") for name in ("input", "output")]
    text = orjson.dumps([order, paths], option=orjson.OPT_SORT_KEYS | orjson.OPT_NON_STR_KEYS)
    return {"hmac": hmac.new(secret, text, "sha256").hexdigest()}


def _variants(models: Sequence[str], prompts: Sequence[str]) -> tuple[Variant, ...]:
    """Return a variant for each pair of a model and a prompt name; `()` if there is only one pair.

    >>> [variant.name for variant in _variants(["small", "good"], ["a", "b"])]
    ['small/a', 'small/b', 'good/a', 'good/b']
    """
    if len(models) == len(prompts) == 1:
        return ()
    return tuple(
        Variant(name="/".join(filter(None, (model, name))), model=model, prompt=at)
        for model in models
        for at, name in enumerate(prompts)
    )
