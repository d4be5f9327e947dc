"""What a token costs: the operator's price, else that of `genai-prices`; never a guess."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from promptmill.backends.protocol import Request
from promptmill.config.models import ResolvedConfig
from promptmill.core.conversation import ImagePart, TextPart
from promptmill.core.errors import PromptmillError, config_error
from promptmill.core.outcome import Usage
from promptmill.service import registry

_MILLION = 1_000_000
_LONG_CONTEXT = 100_000  # tokens; from some number above it on, several models cost more
# The worst that a prompt takes in tokens: no tokenizer makes more of a text than bytes; roles and marks per turn;
# the largest that a provider counts for an image of any size.
_PER_TURN, _PER_REQUEST, _PER_IMAGE = 16, 64, 6_000
_BYTES_PER_SOUND_TOKEN = 10  # even strongly compressed speech has more
_LONGEST_ANSWER = ("max_tokens", "max_completion_tokens", "max_output_tokens")


class Price(Protocol):
    """What one model costs, in US dollars."""

    def cost(self, usage: Usage) -> float:
        """Return what `usage` cost."""
        ...


@dataclass(frozen=True, slots=True)
class FlatPrice:
    """So much per million tokens."""

    input: float
    output: float
    cached_input: float

    def cost(self, usage: Usage) -> float:
        """Return what `usage` cost."""
        cached = min(usage.cached_tokens, usage.prompt_tokens)
        fresh = usage.prompt_tokens - cached
        return (fresh * self.input + cached * self.cached_input + usage.completion_tokens * self.output) / _MILLION


class ListedPrice:
    """A model's price in `genai-prices`, which may rise with the length of a prompt."""

    def __init__(self, model: str, place: dict[str, Any]) -> None:
        """`place` says where the model is. Raises `LookupError` when it is not listed."""
        self._model, self._place = model, place
        one = 1000
        self._usual = FlatPrice(
            self._exact(Usage(one, 0)) / one * _MILLION,
            self._exact(Usage(0, one)) / one * _MILLION,
            self._exact(Usage(one, 0, cached_tokens=one)) / one * _MILLION,
        )

    def cost(self, usage: Usage) -> float:
        """Return what `usage` cost."""
        return self._usual.cost(usage) if usage.prompt_tokens < _LONG_CONTEXT else self._exact(usage)

    def _exact(self, usage: Usage) -> float:
        from genai_prices import Usage as Tokens
        from genai_prices import calc_price

        tokens = Tokens(
            input_tokens=usage.prompt_tokens,
            output_tokens=usage.completion_tokens,
            cache_read_tokens=min(usage.cached_tokens, usage.prompt_tokens),
        )
        return float(calc_price(tokens, self._model, **self._place).total_price)


def price_of(plan: ResolvedConfig) -> Price | None:
    """Return the price of the plan's model, None when nobody says. Slow the first time."""
    settings = plan.settings
    if (said := settings.price) is not None:
        return FlatPrice(said.input, said.output, said.input if said.cached_input is None else said.cached_input)
    if not plan.record.needs_endpoint or not plan.model:
        return None
    try:
        prices = [ListedPrice(plan.model, {"provider_api_url": url}) for url in registry.addresses(plan)]
    except (ImportError, LookupError):  # the extra is not installed; a host, a provider or a model that is not listed
        return None
    return prices[0] if len(prices) == 1 else None


def worst_case(request: Request) -> Usage:
    """Return the most tokens that answering `request` once can take.

    Raises `PromptmillError` (`invalid_config`) when it does not say how long its answer may be.
    """
    longest = request.sampling.max_tokens
    for name in _LONGEST_ANSWER:
        if longest is None and isinstance(value := request.extra.get(name), int):
            longest = value
    if longest is None:
        raise _unbounded()
    answers = request.extra.get("n")
    return Usage(prompt_size(request), longest * (answers if isinstance(answers, int) and answers > 0 else 1))


def prompt_size(request: Request) -> int:
    """Return the most tokens that the request's prompt can have."""
    size = _PER_REQUEST
    for message in request.conversation.messages:
        parts = message.content if isinstance(message.content, tuple) else (TextPart(message.content or ""),)
        size += _PER_TURN + (len(str(message.extra).encode()) if message.extra else 0)
        for part in parts:
            if isinstance(part, TextPart):
                size += len(part.text.encode("utf-8", "replace"))
            else:
                size += _PER_IMAGE if isinstance(part, ImagePart) else len(part.data) // _BYTES_PER_SOUND_TOKEN
    for told in (request.sampling.response_format, request.extra.get("tools")):
        size += len(str(told).encode("utf-8", "replace")) if told else 0
    return size


def _unbounded() -> PromptmillError:
    return config_error("max_cost", "needs `max_tokens` in `sampling_params`: it bounds what a request can cost.")
