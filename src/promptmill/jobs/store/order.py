"""The order for a job: the options of one command or call."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, time, timedelta
from pathlib import Path
from typing import Any

from pydantic import Field

from promptmill.cluster.cluster_order import ClusterOrder
from promptmill.core.errors import Named, input_error
from promptmill.jobs.store.spec import AnyPlan, Plan, plan_of
from promptmill.jobs.store.stored import AnswerForm, Question, Stored, Variant
from promptmill.options.table import Again

PART = re.compile(r"\.part-(\d+)-of-(\d+)")
_SHARD = re.compile(r"(\d{1,6})/(\d{1,6})")
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(s|m|h|d)?")
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_TIME_OF_DAY = re.compile(r"\d{1,2}:\d{2}(?::\d{2})?")
_DAY_S = 86_400
_FIRST_ROWS = 20  # a percentage of failures is not checked before this many rows


@dataclass(frozen=True, slots=True)
class FailureLimit:
    """The limit of failures: a run ends after more than `count`, or more than `percent` of the finished rows."""

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
        """Return whether `failed` of `finished` rows are too many."""
        if self.count is not None and failed > self.count:
            return True
        return self.percent is not None and finished >= _FIRST_ROWS and failed > finished * self.percent / 100


@dataclass(frozen=True, slots=True)
class Shard:
    """Every `count`-th row of the input, beginning with row `number` (from 1)."""

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
        """Return the part file of this shard of `output`."""
        return output.with_name(f"{output.name}.part-{self.number:0{len(str(self.count))}}-of-{self.count}")


class Limits(Stored):
    """The rows that a job sends, and how much may fail and be spent."""

    rows: int | None = Field(None, ge=1)
    """Send only this many of the first rows."""
    shard: str | None = None
    """`3/16`: send only this shard of the rows, and write a part file."""
    dedupe: bool = False
    """Whether of rows with the same question, only one is sent."""
    max_failures: str | None = None
    max_cost: float | None = Field(None, ge=0)
    """The most that all runs together may spend; None: the configuration's limit."""

    @property
    def failures(self) -> FailureLimit | None:
        """The parsed `max_failures`."""
        return None if self.max_failures is None else FailureLimit.parse(self.max_failures)


class Earlier(Stored):
    """The treatment of existing answers. This applies once; resuming a job by its id does not repeat it."""

    again: Again | None = None
    """The rows to send again; their answers stay until the new answers arrive."""
    keep: bool = False
    """Whether answers made with other settings count (later rows note the change), and losing most answers is
    allowed."""
    from_job: Path | None = None
    """The database of another job; its answers are used for rows with the same question."""
    overwrite: bool = False
    """Whether a file at `output` that the job did not make is replaced."""


class BatchOrder(Stored):
    """The options for answers by the provider's Batch API, see `features.batches`."""

    by: float | None = Field(None, ge=0, le=10**11)
    """The Unix time at which open rows are sent live; None: when the batch has ended."""
    poll: float | None = Field(None, ge=0.1, le=86_400)
    """Seconds between two looks at the batch; None: growing from 30 s to 15 minutes."""
    keep_files: bool = False
    """Whether the files stay at the provider."""
    is_earlier: bool = False
    """Whether `by` is from an earlier run of the same command, which the job has not finished."""

    @classmethod
    def of(cls, options: Mapping[str, Any], now: datetime) -> BatchOrder | None:
        """Return the order of the options `batch`, `by`, `poll` and `keep_files`; None without `batch`. `now` is a
        local time.

        Raises `PromptmillError` (`invalid_input`).
        """
        given = {name: options[name] for name in ("by", "poll", "keep_files") if options.get(name)}
        if not options.get("batch"):
            return None
        if "by" in given:
            given["by"] = _deadline(str(given["by"]), now)
        if "poll" in given and not 0.1 <= (poll := _seconds("poll", str(given["poll"]))) <= _DAY_S:
            raise input_error(Named("poll"), f" {poll:g} s is not between 0.1 s and a day.")
        return cls(**given | ({"poll": poll} if "poll" in given else {}))


def _seconds(name: str, text: str) -> float:
    """Return a duration such as `90`, `90s`, `5m`, `6h` or `1d` in seconds. Raises `PromptmillError`."""
    found = _DURATION.fullmatch(text.strip())
    if found is None:
        raise input_error(Named(name), f" {text[:20]!r} is not a duration such as 30s, 5m or 6h.")
    return float(found[1]) * _UNITS[found[2] or "s"]


def _deadline(text: str, now: datetime) -> float:
    """Return the Unix time of a duration (`6h`), a time of day (`06:00`, the next one), or a date and time.

    Raises `PromptmillError` (`invalid_input`), also for a time that has passed.

    >>> noon = datetime.fromisoformat("2026-03-01T12:00:00+00:00")
    >>> [(_deadline(text, noon) - noon.timestamp()) / 3600 for text in ("90m", "06:00", "13:00", "2026-03-02")]
    [1.5, 18.0, 1.0, 12.0]
    """
    text = text.strip()
    if _DURATION.fullmatch(text) and not text.isdecimal():
        return now.timestamp() + _seconds("by", text)
    try:
        if _TIME_OF_DAY.fullmatch(text):
            at = time.fromisoformat(text.zfill(5))
            then = now.replace(hour=at.hour, minute=at.minute, second=at.second, microsecond=0)
            return (then if then > now else then + timedelta(days=1)).timestamp()
        then = datetime.fromisoformat(text)
    except ValueError:
        known = " is no time such as 06:00, 2026-03-01T06:00 or 6h (from now)."
        raise input_error(Named("by"), f" {text[:30]!r}", known) from None
    then = then if then.tzinfo is not None else then.replace(tzinfo=now.tzinfo)
    if then <= now:
        raise input_error(Named("by"), f" {text[:30]} has passed.")
    return then.timestamp()


class Reading(Stored):
    """Options for reading the input."""

    sql: str | None = None
    """A query, if the input is a database; its result gives the rows of the job."""
    encoding: str | None = None
    """The encoding of CSV, TSV or text, such as `cp1252`; None for UTF-8, which is checked."""

    @classmethod
    def of(cls, sql: str | None = None, encoding: str | None = None) -> Reading:
        """Return the options. Raises `PromptmillError` (`invalid_input`) for an unknown encoding."""
        try:
            "".encode(encoding or "utf-8")
        except (LookupError, ValueError):
            known = " is no encoding; use cp1252, utf-16, latin-1, …"
            raise input_error(Named("encoding"), f": {str(encoding)[:20]!r}{known}") from None
        return cls(sql=sql, encoding=encoding)


class Shown(Stored):
    """The words for an order in messages, status and reports."""

    command: list[str] = Field([])
    """The command-line arguments of the last order, without keys; empty for an order from a program."""
    urls: Mapping[str, str] = {}
    """The URLs of `input_file` and `output_file`, which are local copies, with the commits of datasets; no secrets."""
    input: str = ""
    """The input as the user wrote it, without secrets."""
    reason: str = "first"
    """The reason of the rounds that send rows without an answer."""


class JobOrder(Stored):
    """One job, and how to run it this time."""

    inputs: tuple[Path, ...]
    """Absolute paths of files, folders and patterns, in the order of their rows; or a name for rows without a file."""
    output: Path
    reading: Reading = Reading()
    question: Question = Question()
    system_prompt: str = ""
    sampling: Mapping[str, Any] = {}
    """Sampling parameters of a call. They override the sampling of each model that answers."""
    form: AnswerForm = AnswerForm()
    limits: Limits = Limits()
    earlier: Earlier = Earlier()
    variants: tuple[Variant, ...] = ()
    plan: AnyPlan = Plan()
    batch: BatchOrder | None = None
    """Whether rows are answered by the provider's Batch API, and how; None: live."""
    ray: ClusterOrder | None = None
    """The Ray cluster that answers; None: this machine."""
    shown: Shown = Shown()
    owner: str | None = None
    """The owner of a job whose rows came in a call, see `Caller`; None for files, which all clients share."""

    @classmethod
    def of(cls, inputs: Iterable[Path], output: Path, options: Mapping[str, Any]) -> JobOrder:
        """Return the order for the `options` of `promptmill.bulk`, which `options.check` has accepted. None means the
        default.

        `prompt` may also be a mapping of names to templates, and `model` a list: then each model answers each prompt
        for each row. `sampling`: the sampling parameters of a call.

        Raises `ValidationError`, and `PromptmillError` (`invalid_config`, `invalid_input`).
        """

        def given(**names: str) -> dict[str, Any]:
            return {field: options[name] for field, name in names.items() if options.get(name) is not None}

        failures, prompt, model = (options.get(name) for name in ("max_failures", "prompt", "model"))
        prompts = {} if prompt is None else {"": prompt} if isinstance(prompt, str) else dict(prompt)
        models = [] if model is None or isinstance(model, str) else list(dict.fromkeys(model))
        variants = _variants(models if len(models) > 1 else [""], list(prompts) if len(prompts) > 1 else [""])
        plan = plan_of(options, models or [""])
        variants = plan.ways or variants
        return cls(
            inputs=tuple(inputs),
            output=output,
            question=Question(
                templates=tuple(prompts.values()),
                **given(column="prompt_column", image_column="image_column"),
                **given(row_settings="row_settings", skip_empty="skip_empty", sample="sample"),
            ),
            form=AnswerForm(**given(column="answer_column", fields="fields")),
            limits=Limits(
                max_failures=None if failures is None else str(failures),
                **given(rows="limit", max_cost="max_cost", shard="shard", dedupe="dedupe"),
            ),
            earlier=Earlier(**given(again="again", keep="keep", from_job="from_job", overwrite="overwrite")),
            ray=_cluster(**given(address="ray", replicas="replicas", gpus="num_gpus", cpus="num_cpus")),
            variants=variants,
            plan=plan,
            batch=BatchOrder.of(options, datetime.now().astimezone()),
            reading=Reading.of(**given(sql="sql", encoding="encoding")),
            **given(system_prompt="system_prompt", sampling="sampling"),
        )

    @property
    def cut(self) -> Shard | None:
        """The parsed `shard`. Raises `PromptmillError` (`invalid_input`)."""
        return None if self.limits.shard is None else Shard.parse(self.limits.shard)

    @property
    def target(self) -> Path:
        """The file that the job writes: `output`, or the shard's part file."""
        shard = self.cut
        return self.output if shard is None or PART.search(self.output.name) else shard.of(self.output)

    @property
    def whole_output(self) -> Path:
        """The output that joins all shards."""
        return self.output if self.limits.shard is None else self.output.with_name(PART.sub("", self.output.name))

    def with_limits(self, **changes: Any) -> JobOrder:
        """Return the order with other values of `limits`."""
        return self.model_copy(update={"limits": self.limits.model_copy(update=changes)})

    def with_earlier(self, **changes: Any) -> JobOrder:
        """Return the order with other values of `earlier`."""
        return self.model_copy(update={"earlier": self.earlier.model_copy(update=changes)})


def _variants(models: Sequence[str], prompts: Sequence[str]) -> tuple[Variant, ...]:
    """Return a variant for each pair of a model and a prompt name; `()` for a single pair.

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


def _cluster(address: str | None = None, replicas: int = 1, gpus: float = 0, cpus: float = 1) -> ClusterOrder | None:
    """Return the Ray cluster at `address`; None without an address."""
    return None if address is None else ClusterOrder(address, replicas, gpus, cpus)
