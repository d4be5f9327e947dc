"""The keyword arguments of `promptmill.bulk` and its kin: those of `promptmill bulk` and of OpenAI's parameters."""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ForwardRef, Literal, ParamSpec, TypedDict, TypeVar

from promptmill.answers.schema import AnswerType
from promptmill.core.errors import PromptmillError
from promptmill.core.wording import close_matches
from promptmill.jobs.store.order import Again

P = ParamSpec("P")
R = TypeVar("R")


class BulkOptions(TypedDict, total=False):
    """The options of a call. None is the same as an option that is not given."""

    prompt: str | None
    prompt_column: str | None
    image_column: str | None
    encoding: str | None
    answer_column: str
    fields: bool
    row_settings: bool
    skip_empty: bool
    system_prompt: str
    choices: Sequence[str] | None
    answer_schema: AnswerType | None
    model: str | None
    base_url: str | Sequence[str] | None
    provider: str | None
    api_key: str | Sequence[str] | None
    api_key_env: str | None
    concurrency: int | None
    tier: Literal["default", "flex", "priority"] | None
    backend: str | None
    config: str | Path | None
    settings: Mapping[str, Any] | None
    limit: int | None
    shard: str | None
    max_cost: float | None
    max_failures: int | str | None
    dedupe: bool
    again: Again | None
    keep: bool
    from_job: str | Path | None
    overwrite: bool
    state: str | Path | None
    ray: str | None
    replicas: int
    num_gpus: float
    num_cpus: float
    progress: bool | Callable[[Mapping[str, Any]], object] | None
    temperature: float | None
    top_p: float | None
    max_tokens: int | None
    stop: str | Sequence[str] | None
    n: int | None
    seed: int | None
    presence_penalty: float | None
    frequency_penalty: float | None
    response_format: Mapping[str, Any] | None
    reasoning_effort: str | None
    top_k: int | None
    min_p: float | None
    repetition_penalty: float | None
    enable_thinking: bool | None
    reasoning: Literal["separate", "inline"] | None
    tools: Sequence[Mapping[str, Any]] | None
    tool_choice: str | Mapping[str, Any] | None
    parallel_tool_calls: bool | None
    logprobs: bool | None
    top_logprobs: int | None


NAMES = frozenset(BulkOptions.__annotations__)
DEFAULTS: Mapping[str, Any] = types.MappingProxyType(
    {"answer_column": "answer", "fields": True, "system_prompt": "", "replicas": 1, "num_gpus": 0, "num_cpus": 1}
    | dict.fromkeys(("row_settings", "skip_empty", "dedupe", "keep", "overwrite"), False)
)
"""The defaults that are not None."""


def takes_options(function: Callable[P, R]) -> Callable[P, R]:
    """Check the names of the options of a function, show them in its signature, and shorten its errors.

    An error of ours says all in its text; the lines of our code above it would fill a notebook's screen.
    """
    written = inspect.signature(function)

    @functools.wraps(function)
    def called(*args: P.args, **options: P.kwargs) -> R:
        check_names(function.__name__, options)
        try:
            return function(*args, **options)
        except PromptmillError as error:
            raise error.with_traceback(None) from None

    named = [one for one in written.parameters.values() if one.kind is not one.VAR_KEYWORD]
    called.__signature__ = written.replace(parameters=[*named, *_parameters()])  # type: ignore[attr-defined]
    return called


def check_names(function: str, options: Iterable[str]) -> None:
    """Raise `TypeError`, with the nearest name, for an argument that `function` does not have."""
    for name in {*options} - NAMES - {"rows", "output"}:
        near = close_matches(name, NAMES, 1)
        meant = f"; did you mean {near[0]}?" if near else ""
        raise TypeError(f"{function}() has no argument {name!r}{meant}")


def default_of(name: str) -> Any:
    """Return the default of an option."""
    return DEFAULTS.get(name)


def _parameters() -> list[inspect.Parameter]:
    found = []
    for name, hint in BulkOptions.__annotations__.items():
        text = hint.__forward_arg__ if isinstance(hint, ForwardRef) else hint
        found.append(inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default_of(name), annotation=text))
    return found
