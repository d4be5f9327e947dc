"""The outcome of one request: a completion or a failure, with usage and timing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from promptmill.core.errors import PromptmillError, without_frames


@dataclass(slots=True, unsafe_hash=True)
class Usage:
    """Tokens as the engine or endpoint counted them; 0 where it said nothing. Never changed."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    """Of the prompt's: those that the endpoint had read before, and charges less for."""
    reasoning_tokens: int = 0
    """Of the completion's: those that are no part of the answer."""

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
    """An answer. `text` never holds reasoning; `finish_reason` is OpenAI's word (`stop`, `length`, `tool_calls`).

    Never changed once it is passed on. Not frozen: with so many fields that is six times slower to make.
    """

    text: str
    finish_reason: str | None = None
    usage: Usage = NO_USAGE
    reasoning: str | None = None
    tool_calls: tuple[Mapping[str, Any], ...] = ()
    attempts: int = 1
    latency_s: float = 0.0
    logprobs: Mapping[str, Any] | None = None
    """The tokens' probabilities as the endpoint gave them, where it was asked to."""
    details: Mapping[str, Any] | None = None
    """What else the endpoint said, where that is wanted: see `extra_fields.details_of`."""
    answered_by: str = ""
    """The name of the model, where a call had a choice of several."""
    cost: float | None = None
    """What it cost, attempts that became no answer included; None where nobody knows the price."""
    answers: tuple[str, ...] = ()
    """All answers, where several were asked for; `text` is the first."""
    tier: str = ""
    """The service tier that the endpoint reports, in lower case."""
    unmetered: int = 0
    """Requests sent for it that may be billed although no usage was reported for them."""

    @property
    def is_metered(self) -> bool:
        """Whether its usage can be billed by: it counts the prompt, and the answer if there is one."""
        says = self.text or self.tool_calls or self.reasoning
        return self.usage.prompt_tokens > 0 and (self.usage.completion_tokens > 0 or not says)

    @property
    def wanted(self) -> int:
        """How many answers were asked for: the requests that it takes when none has to be sent again."""
        return len(self.answers) or 1

    @property
    def is_empty(self) -> bool:
        """Whether it says nothing and calls no tool."""
        return not self.text.strip() and not self.tool_calls


@dataclass(frozen=True, slots=True)
class Failure:
    """No answer. `attempts` counts requests really sent for this item; `usage` what a refused answer still cost.

    `text` is what the model said where that could not be taken for an answer.
    `concerns_all`: whatever comes after it would fail alike (a refused key, an endpoint that was given up).
    """

    error: PromptmillError
    attempts: int = 0
    latency_s: float = 0.0
    usage: Usage = field(default=NO_USAGE)
    text: str = ""
    concerns_all: bool = False
    cost: float | None = None
    wanted: int = 1
    """How many answers were asked for."""
    unmetered: int = 0
    """As for a `Completion`."""

    def __post_init__(self) -> None:
        """Let go of the call that `error` came through."""
        without_frames(self.error)


Outcome: TypeAlias = Completion | Failure


def sum_of(one: float | None, other: float | None) -> float | None:
    """Return what two costs are together, None where neither is known."""
    return (one or 0.0) + (other or 0.0) if one is not None or other is not None else None
