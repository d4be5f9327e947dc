"""The price of a token: the operator's, else that of `genai-prices`; never a guess."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import orjson

from promptmill.backends import registry
from promptmill.backends.protocol import Request
from promptmill.config.models import ResolvedConfig
from promptmill.core.conversation import ImagePart, TextPart
from promptmill.core.errors import PromptmillError, config_error
from promptmill.core.outcome import Completion, Outcome, Usage

_MILLION = 1_000_000
_LONG_CONTEXT = 100_000  # tokens; from some number above it on, several models cost more
# The worst that a prompt takes in tokens: no tokenizer makes more of a text than bytes; roles and marks per turn;
# the largest that a provider counts for an image of any size.
_PER_TURN, _PER_REQUEST, _PER_IMAGE = 16, 64, 6_000
_BYTES_PER_SOUND_TOKEN = 10  # even strongly compressed speech has more
_MOST_MODELS = 1000  # of a file: more are noise
_LONGEST_ANSWER = ("max_tokens", "max_completion_tokens", "max_output_tokens", "max_new_tokens", "n_predict")
_ANSWERS = ("n", "best_of")
_LONGEST = 1 << 40  # tokens; a larger limit is none
# Of the standard price, where only that is known: OpenAI's for most models. `fast` is the later name of `priority`.
_TIERS = {"flex": 0.5, "priority": 2.0, "fast": 2.0}


class Price(Protocol):
    """The price of one model, in US dollars."""

    def cost(self, usage: Usage, tier: str = "") -> float:
        """Return the cost of `usage` at a service tier: `flex`, `priority`; others cost the standard price."""
        ...


@dataclass(frozen=True, slots=True)
class FlatPrice:
    """So much per million tokens."""

    input: float
    output: float
    cached_input: float

    def cost(self, usage: Usage, tier: str = "") -> float:
        """Return the cost of `usage`."""
        cached = min(usage.cached_tokens, usage.prompt_tokens)
        fresh = usage.prompt_tokens - cached
        cost = fresh * self.input + cached * self.cached_input + usage.completion_tokens * self.output
        return cost * _TIERS.get(tier, 1.0) / _MILLION


class ListedPrice:
    """A model's price in `genai-prices`, which may rise with the length of a prompt."""

    def __init__(self, model: str, place: dict[str, Any]) -> None:
        """`place` says where the model is. Raises `LookupError` when it is not listed."""
        self._model, self._place = model, place
        self._usual = {tier: self._flat(tier) for tier in ("", *_TIERS)}

    def cost(self, usage: Usage, tier: str = "") -> float:
        """Return the cost of `usage`. A tier without a price of its own in the list costs the standard price."""
        tier = tier if tier in _TIERS else ""
        return self._usual[tier].cost(usage) if usage.prompt_tokens < _LONG_CONTEXT else self._exact(usage, tier)

    def _flat(self, tier: str) -> FlatPrice:
        one = 1000
        usages = Usage(one, 0), Usage(0, one), Usage(one, 0, cached_tokens=one)
        return FlatPrice(*(self._exact(usage, tier) / one * _MILLION for usage in usages))

    def _exact(self, usage: Usage, tier: str) -> float:
        from genai_prices import Usage as Tokens
        from genai_prices import calc_price

        tokens = Tokens(
            input_tokens=usage.prompt_tokens,
            output_tokens=usage.completion_tokens,
            cache_read_tokens=min(usage.cached_tokens, usage.prompt_tokens),
        )
        context = {"service_tier": tier} if tier else None
        return float(calc_price(tokens, self._model, price_context=context, **self._place).total_price)


def price_of(plan: ResolvedConfig) -> Price | None:
    """Return the price of the plan's model, None if unknown. Slow the first time."""
    settings = plan.settings
    if (said := settings.price) is not None:
        return FlatPrice(said.input, said.output, said.input if said.cached_input is None else said.cached_input)
    if not plan.record.needs_endpoint or not plan.model:
        return None
    return _listed(plan.model, plan)


def _listed(model: str, plan: ResolvedConfig) -> Price | None:
    try:
        prices = [ListedPrice(model, {"provider_api_url": url}) for url in registry.addresses(plan)]
    except (ImportError, LookupError):  # the extra is not installed; a host, a provider or a model that is not listed
        return None
    return prices[0] if len(prices) == 1 else None


class Prices:
    """The prices of the models that requests to one backend name: its own, and others that rows name themselves."""

    def __init__(self, plan: ResolvedConfig, own: Price) -> None:
        self._plan, self.own, self.model = plan, own, plan.model
        self._others: dict[str, Price | None] = {}

    def of(self, request: Request) -> Price | None:
        """Return the price of the model that `request` names, None if unknown.

        The operator's price is for one model.
        """
        model = request.extra.get("model")
        if not isinstance(model, str) or model in {self._plan.model, self._plan.name}:
            return self.own
        if model not in self._others:
            if len(self._others) >= _MOST_MODELS:
                return None
            self._others[model] = _listed(model, self._plan)
        return self._others[model]


def tier_of(extra: Mapping[str, Any]) -> str:
    """Return the service tier that the parameters of a request ask for, in lower case; `""` for none."""
    tier = extra.get("service_tier")
    return tier.lower() if isinstance(tier, str) else ""


def worst_case(request: Request) -> Usage:
    """Return the most tokens that answering `request` once can take.

    The longest answer is the largest of all limits that it names: which of them an endpoint obeys is not known. Raises
    `PromptmillError` (`invalid_config`) when it names none.
    """
    sampling, extra = request.sampling, request.extra
    limits = [_whole_number(extra[name]) for name in _LONGEST_ANSWER if name in extra]
    if sampling.max_tokens is not None and extra.get("max_tokens", 0) is not None:
        limits.append(sampling.max_tokens)
    longest = max((limit for limit in limits if limit is not None), default=None)
    if request.path == "/embeddings":
        longest = 0
    elif longest is None or longest > _LONGEST:
        raise _unbounded()
    answers = max(1, *(_whole_number(extra.get(name)) or 1 for name in _ANSWERS)) * _prompts(request)
    return Usage(prompt_size(request), longest * answers)


def _whole_number(value: object) -> int | None:
    """Return a limit as an endpoint may read it, at least 1: some take `"300"` and 300.0; None for none."""
    try:
        return max(1, math.ceil(float(value))) if isinstance(value, int | float | str) else None
    except (ValueError, OverflowError):
        return None


def _prompts(request: Request) -> int:
    """Return how many prompts a request for completions has, each of which is answered."""
    prompts = request.extra.get("prompt") if request.path else None
    is_several = isinstance(prompts, list) and any(isinstance(prompt, str | list) for prompt in prompts)
    return len(prompts) if prompts and is_several else 1


def prompt_size(request: Request) -> int:
    """Return the most tokens that the request's prompt can have."""
    extra = _as_json(request.extra) if request.extra else b""
    size = _PER_REQUEST + len(extra) + _PER_IMAGE * extra.count(b"image_url")
    for message in request.conversation.messages:
        parts = message.content if isinstance(message.content, tuple) else (TextPart(message.content or ""),)
        size += _PER_TURN + (len(str(message.extra).encode()) if message.extra else 0)
        for part in parts:
            if isinstance(part, TextPart):
                size += len(part.text.encode("utf-8", "replace"))
            else:
                size += _PER_IMAGE if isinstance(part, ImagePart) else len(part.data) // _BYTES_PER_SOUND_TOKEN
    form = request.sampling.response_format
    return size + (len(str(form).encode("utf-8", "replace")) if form else 0)


def _as_json(extra: Mapping[str, Any]) -> bytes:
    try:
        return orjson.dumps(extra, default=str, option=orjson.OPT_NON_STR_KEYS)
    except TypeError:  # numbers beyond 64 bits, half a surrogate pair
        return str(extra).encode("utf-8", "replace")


def charge(outcome: Outcome, price: Price, tier: str, worst: float) -> float:
    """Return the cost of the requests for `outcome`: by the tier that the answer reports, else by the requested `tier`.

    `worst` is what one of them can cost at most, which is charged for each whose usage is not known.
    """
    served = (outcome.tier if isinstance(outcome, Completion) else "") or tier
    return price.cost(outcome.usage, served) + unmetered(outcome) * worst


def unmetered(outcome: Outcome) -> int:
    """Return how many requests for `outcome` may be billed although their usage is not known."""
    unknown = isinstance(outcome, Completion) and outcome.attempts > 0 and not outcome.is_metered
    return outcome.unmetered or int(unknown)


def _unbounded() -> PromptmillError:
    return config_error("max_cost", "needs `max_tokens` in `sampling_params`: it bounds what a request can cost.")
