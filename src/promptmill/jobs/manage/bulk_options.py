"""The keyword arguments of `promptmill.bulk` and its variants: options of `promptmill bulk`, and OpenAI's
parameters."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, ParamSpec, TypedDict, TypeVar

from promptmill.answers.schema import AnswerType
from promptmill.core.errors import PromptmillError
from promptmill.core.wording import did_you_mean
from promptmill.jobs.store.rounds import Again

P = ParamSpec("P")
R = TypeVar("R")


class RowOptions(TypedDict, total=False):
    """The rows and their prompts."""

    prompt: str | Mapping[str, str] | None
    prompt_column: str | None
    image_column: str | None
    each: Literal["file", "line"] | None
    pdf: Literal["text", "images"] | None
    sql: str | None
    encoding: str | None
    row_settings: bool
    system: str


class PartOptions(TypedDict, total=False):
    """Options that select rows of the input."""

    skip_empty: bool
    limit: int | None
    sample: int | None
    shard: str | None


class AnswerOptions(TypedDict, total=False):
    """Options for the format of the answers."""

    choices: str | Path | Sequence[str] | Mapping[str, str] | None
    choices_many: bool
    schema: AnswerType | str | Path | None
    response_format: Mapping[str, Any] | None
    answer_column: str
    fields: bool | str
    n: int | None
    reasoning: Literal["separate", "inline"] | None
    logprobs: bool | None
    top_logprobs: int | None
    top_choices: int | None


class ModelOptions(TypedDict, total=False):
    """The model that answers; by default, the model of the configuration."""

    model: str | Sequence[str] | None
    base_url: str | Sequence[str] | None
    provider: str | None
    api_key: str | Sequence[str] | None
    api_key_env: str | None
    concurrency: int | None
    tier: Literal["default", "flex", "priority"] | None
    backend: str | None
    config: str | Path | None
    settings: Mapping[str, Any] | None


class SamplingOptions(TypedDict, total=False):
    """The parameters of OpenAI and of engines."""

    temperature: float | None
    top_p: float | None
    max_tokens: int | None
    stop: str | Sequence[str] | None
    seed: int | None
    presence_penalty: float | None
    frequency_penalty: float | None
    reasoning_effort: str | None
    top_k: int | None
    min_p: float | None
    repetition_penalty: float | None
    enable_thinking: bool | None


class ToolOptions(TypedDict, total=False):
    """Tools that the model may call."""

    tools: Sequence[Mapping[str, Any]] | None
    tool_choice: str | Mapping[str, Any] | None
    parallel_tool_calls: bool | None


class JobOptions(TypedDict, total=False):
    """The job: its limits, its earlier answers, and its progress."""

    max_cost: float | None
    max_failures: int | str | None
    dedupe: bool
    again: Again | None
    keep: bool
    from_job: str | Path | None
    overwrite: bool
    state: str | Path | None
    progress: bool | Callable[[Mapping[str, Any]], object] | None


class SureOptions(TypedDict, total=False):
    """Labels with a promise, or that are voted on."""

    sure: str | None
    votes: int | None
    agree: float | str | None
    certainty: float | str | None
    gold: str | None
    second: str | None
    student: bool | Literal["scikit-learn"]
    recall: Mapping[str, float | str] | None


class BatchOptions(TypedDict, total=False):
    """The provider's Batch API, which answers within a day, at a lower price."""

    batch: bool
    by: str | None
    poll: str | None
    keep_files: bool


class RayOptions(TypedDict, total=False):
    """A Ray cluster that answers."""

    ray: str | None
    replicas: int
    num_gpus: float
    num_cpus: float


class BulkOptions(
    RowOptions,
    PartOptions,
    AnswerOptions,
    ModelOptions,
    SamplingOptions,
    ToolOptions,
    JobOptions,
    SureOptions,
    BatchOptions,
    RayOptions,
    total=False,
):
    """The options of a call. None has the same effect as omitting the option."""


def takes_options(function: Callable[P, R]) -> Callable[P, R]:
    """Raise `TypeError` for an unknown option of a function, and shorten its errors.

    The text of a `PromptmillError` is complete, and a traceback of our code would fill a notebook's screen.
    """

    @functools.wraps(function)
    def called(*args: P.args, **options: P.kwargs) -> R:
        known = BulkOptions.__annotations__
        for name in set[str](options) - known.keys() - {"rows", "output"}:
            meant = did_you_mean(name, known, "see help(bulk)")
            raise TypeError(f"{function.__name__}() has no argument {name!r}; {meant}")
        try:
            return function(*args, **options)
        except PromptmillError as error:
            raise error.with_traceback(None) from None

    return called
