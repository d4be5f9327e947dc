"""The outcome of one request: a completion or a failure, with usage and timing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from promptmill.core.errors import PromptmillError, without_frames


@dataclass(slots=True, unsafe_hash=True)
class Usage:
    """Token counts of the engine or endpoint; 0 if it reported none. Never changed."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    """Prompt tokens from the endpoint's cache, which cost less."""
    reasoning_tokens: int = 0
    """Completion tokens of the reasoning."""

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.prompt_tokens + other.prompt_tokens,
            self.completion_tokens + other.completion_tokens,
            self.cached_tokens + other.cached_tokens,
            self.reasoning_tokens + other.reasoning_tokens,
        )


NO_USAGE = Usage()


@dataclass(slots=True)
class Completion:
    """An answer. `text` never contains reasoning; `finish_reason` is OpenAI's value (`stop`, `length`, `tool_calls`).

    It is never changed after it is passed on. It is not frozen, because creating it would take six times longer.
    """

    text: str
    finish_reason: str | None = None
    usage: Usage = NO_USAGE
    reasoning: str | None = None
    tool_calls: tuple[Mapping[str, Any], ...] = ()
    attempts: int = 1
    latency_s: float = 0.0
    logprobs: Mapping[str, Any] | None = None
    """The endpoint's probabilities of tokens, if the request has `logprobs`."""
    details: Mapping[str, Any] | None = None
    """Further fields of the endpoint's response, for Batch output: see `extra_fields.details_of`."""
    answered_by: str = ""
    """The name of the model, if a call could use several."""
    cost: float | None = None
    """The cost in US dollars, including failed attempts; None for an unknown price."""
    answers: tuple[str, ...] = ()
    """All answers, if `n` is above 1; `text` is the first one."""
    tier: str = ""
    """The service tier that the endpoint reports, in lower case."""
    warnings: tuple[str, ...] = ()
    """Deviations from the request that its backend has reported to the call; they apply to each copy of the answer."""
    unmetered: int = 0
    """Requests without reported usage that may be billed all the same."""

    @property
    def is_metered(self) -> bool:
        """Whether its usage suffices for a cost: it has the tokens of the prompt, and of the answer if there is one."""
        says = self.text or self.tool_calls or self.reasoning
        return self.usage.prompt_tokens > 0 and (self.usage.completion_tokens > 0 or not says)

    @property
    def wanted(self) -> int:
        """The requested number of answers, which is the number of requests without retries."""
        return len(self.answers) or 1

    @property
    def is_empty(self) -> bool:
        """Whether it has neither text nor tool calls."""
        return not self.text.strip() and not self.tool_calls


@dataclass(frozen=True, slots=True)
class Failure:
    """An item without an answer. `attempts` counts the requests sent for it; `usage` is that of rejected answers.

    `text` is the rejected answer of the model, if any.
    `concerns_all`: all later items would fail in the same way (a refused key, an endpoint that is unusable).
    """

    error: PromptmillError
    attempts: int = 0
    latency_s: float = 0.0
    usage: Usage = field(default=NO_USAGE)
    text: str = ""
    concerns_all: bool = False
    cost: float | None = None
    wanted: int = 1
    """The requested number of answers."""
    unmetered: int = 0
    """As for a `Completion`."""

    def __post_init__(self) -> None:
        """Release the frames of the call that raised `error`."""
        without_frames(self.error)


Outcome: TypeAlias = Completion | Failure


def sum_of(one: float | None, other: float | None) -> float | None:
    """Return the sum of two costs; None if both are unknown."""
    return (one or 0.0) + (other or 0.0) if one is not None or other is not None else None
