"""The price of a model: the operator sets it, or `genai-prices` lists it; it is never guessed.

A batch or service tier costs a multiple of the model's price. This factor comes from the operator, the provider's
documents, or the table `tier_prices.json` (for some batches, `flex` and `priority`), written by `scripts/prices.py`.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple, dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import orjson

from promptmill.backends import registry
from promptmill.backends.model_ends import DATED
from promptmill.backends.protocol import TICKS, Spent, Usage
from promptmill.backends.searches import tools_in
from promptmill.config import model_config
from promptmill.config.settings import PriceSettings
from promptmill.core.errors import Named, Words
from promptmill.core.request import Request, Sampling
from promptmill.core.values import JsonObject
from promptmill.steps.likely import most_tokens_of

TABLE = Path(__file__).with_name("tier_prices.json")
TIERS = ("batches", "flex", "priority")
# US dollars for 1,000 web searches, by provider and beginnings of model names: the first match is used. Third parties
# quoted these pages until November 2026: developers.openai.com/api/docs/pricing, "Web search tool" of
# platform.claude.com, ai.google.dev/gemini-api/docs/pricing (without the free allowance),
# docs.perplexity.ai/docs/getting-started/pricing. `search` in `price` overrides them.
_SEARCHES: Mapping[str, Mapping[str, float]] = {
    "openai": {"gpt-4o-search": 25.0, "gpt-4o-mini-search": 25.0, "": 10.0},
    "anthropic": {"": 10.0},
    "google": {"gemini-1": 35.0, "gemini-2": 35.0, "": 14.0},
    "perplexity": {"": 2.5},
}
_A_THOUSAND = 1_000
_MILLION = 1_000_000
_AROUND_MEMBER = 24
"""The most tokens that an id and the JSON around one answer take, in a reply to several rows."""
_UNBOUNDED = frozenset({"tools", "functions", "reasoning", "thinking", "thinking_config", "chat_template_kwargs"})
"""Parameters in `extra_params` with which an answer may be longer than its form allows."""
_OF_THIS_MACHINE = frozenset({"localhost", "127.0.0.1", "::1"})
_LONG_CONTEXT = 100_000  # tokens; no provider charges more for prompts below this length
# The price of writing to the cache, relative to the input price: for five minutes (Anthropic) or thirty (OpenAI), and
# for an hour (Anthropic) or twelve (OpenAI). Sources: their pages on prompt caching.
_WRITTEN, _HOUR_WRITTEN = 1.25, 2.0
# OpenAI's hosts that process requests in one region cost 10 % more (its page of prices); the list lacks these hosts.
_REGION, _REGIONAL = re.compile(r"(?<=//)(?:eu|us)\.(?=api\.openai\.com(?:[:/]|$))"), 1.1
BATCH = "batch"
"""The tier of requests in batches. A request must not name it."""


def is_here(config: model_config.ModelConfig) -> bool:
    """Return whether all endpoints of the configuration are servers on this machine. Price lists omit such servers."""
    return all(url.hostname in _OF_THIS_MACHINE for url in registry.addresses(config))


def no_price_known(config: model_config.ModelConfig, names: Sequence[str]) -> Words:
    """Return a sentence which states that no price is known for the models `names`, and how to set a price. (It does
    not state how for a server on this machine, which seldom has a price.)
    """
    unknown = f"no price is known for {', '.join(names)}"
    if is_here(config):
        return unknown
    key = config.key("price") if len(names) == 1 else f"prices.{names[0]}"
    price = Named(key, "IN/OUT", otherwise=f"`{key}: IN/OUT` in the server's configuration")
    return unknown, "; ", price, " gives it, in US dollars for a million tokens in and out"


class Factors(NamedTuple):
    """Price factors for prompts, for answers, and for prompts in the provider's cache."""

    input: float
    output: float
    cached_input: float


def even(factor: float) -> Factors:
    """Return factors with the same value for each price."""
    return Factors(factor, factor, factor)


# Factors for models whose tier prices are not known, as at OpenAI for most models. `fast` is a new name of `priority`.
_TIERS = {"flex": even(0.5), "priority": even(2.0), "fast": even(2.0)}
_STANDARD = even(1.0)
_NAMES_OF = {"batches": (BATCH,), "flex": ("flex",), "priority": ("priority", "fast")}


def factors_of(provider: str, model: str) -> dict[str, Factors]:
    """Return the known factors of `model` at a provider, by tier (see `TIERS`)."""
    # The name of a fine-tuned model consists of `ft:`, a model, an organisation and an id.
    name = ":".join(model.rpartition("/")[2].split(":")[:2])
    found: dict[str, Factors] = {}
    for tier, rows in _table().get(provider, {}).items():
        factor = next((rows[key] for key in (name, DATED.sub("", name), "*") if key in rows), None)
        if factor is not None:
            found[tier] = Factors(*factor) if isinstance(factor, list) else even(factor)
    return found


@functools.cache
def _table() -> dict[str, Any]:
    table: dict[str, Any] = orjson.loads(TABLE.read_bytes())
    return table


@dataclass(frozen=True, slots=True)
class FlatPrice:
    """Prices per million tokens of prompt and answer."""

    input: float
    output: float
    cached_input: float
    written_input: float | None = None
    """The price for prompt tokens written to the endpoint's cache; None for 1.25 times `input`."""
    hour_written_input: float | None = None
    """The price for prompt tokens that the cache keeps for an hour or longer; None for twice `input`."""
    tiers: Mapping[str, Factors] = field(default_factory=lambda: _TIERS)
    """The price factors of each tier; other tiers have the standard price."""
    search: float | None = None
    """The price of 1,000 searches of the web; None if it is unknown."""
    audio: float | None = None
    """The price for prompt tokens of recordings; None if it is unknown."""
    standard: Callable[[Usage], float] | None = None
    """The cost of a usage at the standard tier, if it depends on the prompt's length."""

    @property
    def batch(self) -> float | None:
        """The price of a request in a batch, as a share of the live price; None if it is unknown."""
        return self.tiers[BATCH].input if BATCH in self.tiers else None

    def cost(self, usage: Usage, tier: str = "") -> float:
        """Return the cost of `usage` at a service tier: `flex` or `priority`; others have the standard price."""
        of_input, of_output, of_cached = self.tiers.get(tier, _STANDARD)
        cached = usage.cached_tokens
        prompt = (usage.prompt_tokens - cached) * self.input
        if usage.written_tokens:
            hour = usage.hour_written_tokens
            written = _WRITTEN * self.input if self.written_input is None else self.written_input
            for_an_hour = _HOUR_WRITTEN * self.input if self.hour_written_input is None else self.hour_written_input
            prompt += (usage.written_tokens - hour) * (written - self.input) + hour * (for_an_hour - self.input)
        if usage.audio_tokens and self.audio is not None:
            prompt += usage.audio_tokens * (self.audio - self.input)
        cost = prompt * of_input + cached * self.cached_input * of_cached
        cost = (cost + usage.completion_tokens * self.output * of_output) / _MILLION
        if self.standard is None or usage.prompt_tokens < _LONG_CONTEXT or not cost:
            return cost
        return self.standard(usage) * cost / replace(self, standard=None).cost(usage)


def _listed_price(model: str, url: str, tiers: Mapping[str, Factors], search: float | None) -> FlatPrice:
    """Return a model's price at `url` in `genai-prices`. Raises `LookupError` if the list lacks the model."""
    from genai_prices import Usage as Tokens  # imported on use: it takes 0.1 s
    from genai_prices import calc_price

    place, regions = _REGION.subn("", url)
    calculated = functools.partial(calc_price, model_ref=model, provider_api_url=place)
    listed = calculated(Tokens()).model_price
    has_hours = listed.cache_write_1h_mtok is not None

    def standard(usage: Usage) -> float:
        hours = 0 if has_hours else usage.hour_written_tokens
        tokens = Tokens(
            input_tokens=usage.prompt_tokens,
            output_tokens=usage.completion_tokens,
            cache_read_tokens=usage.cached_tokens,
            cache_write_tokens=usage.written_tokens - hours,
            cache_write_1h_tokens=usage.hour_written_tokens - hours,
            input_audio_tokens=usage.audio_tokens,
        )
        cost = float(calculated(tokens).total_price)
        if hours:  # counted as input so far
            prompt = calculated(Tokens(input_tokens=usage.prompt_tokens)).input_price
            cost += (_HOUR_WRITTEN - 1) * hours * float(prompt) / usage.prompt_tokens
        return cost * _REGIONAL**regions

    one, has_audio = 1000, listed.input_audio_mtok is not None
    usages = (
        *(Usage(one, 0), Usage(0, one), Usage(one, 0, cached_tokens=one)),
        *(Usage(one, 0, written_tokens=one), Usage(one, 0, written_tokens=one, hour_written_tokens=one)),
        Usage(one, 0, audio_tokens=one),
    )
    prompt, answer, cached, written, an_hour, audio = (standard(usage) / one * _MILLION for usage in usages)
    audio_price = audio if has_audio else None
    return FlatPrice(prompt, answer, cached, written, an_hour, tiers, search, audio_price, standard)


def price_of(config: model_config.ModelConfig) -> FlatPrice | None:
    """Return the price of the configuration's model; None if unknown. The first call is slow."""
    said = _said(config, config.model) or config.settings.price
    return _listed(config.model, config) if said is None else _flat(said, config.model, config)


def _said(config: model_config.ModelConfig, model: str) -> PriceSettings | None:
    """Return the price that the operator has set for a model's name, or None."""
    prices = config.settings.prices
    return (prices.get(config.name) if model == config.operator_model else None) or prices.get(model)


def _flat(said: PriceSettings, model: str, config: model_config.ModelConfig) -> FlatPrice:
    cached = said.input if said.cached_input is None else said.cached_input
    tiers = _tiers_at(config, model)
    if said.batch is not None:
        tiers[BATCH] = even(said.batch)
    search = _search_price(config, model) if said.search is None else said.search
    return FlatPrice(said.input, said.output, cached, tiers=tiers, search=search, audio=said.audio)


def _tiers_at(config: model_config.ModelConfig, model: str) -> dict[str, Factors]:
    """Return the tier prices of a model at its provider, from the table or from the provider's documents."""
    tiers = dict(_TIERS)
    if not config.record.needs_endpoint:
        return tiers
    if (rate := registry.batch_rate(config)) is not None:
        tiers[BATCH] = even(rate)
    for tier, factors in factors_of(registry.provider_of(config), model).items():
        tiers |= dict.fromkeys(_NAMES_OF[tier], factors)
    return tiers


def _search_price(config: model_config.ModelConfig, model: str) -> float | None:
    """Return the price of 1,000 searches by a model at the configuration's provider; None if unknown."""
    if _has_preview(config.settings.extra_params):
        return None
    prices = _SEARCHES.get(registry.known_provider(config), {})
    return next((price for start, price in prices.items() if model.rpartition("/")[2].startswith(start)), None)


def _listed(model: str, config: model_config.ModelConfig) -> FlatPrice | None:
    if config.record.needs_endpoint and (read := registry.decision_price(config, model)) is not None:
        return FlatPrice(read, 0.0, read, read, read)
    try:
        tiers, search = _tiers_at(config, model), _search_price(config, model)
        prices = [_listed_price(model, url.geturl(), tiers, search) for url in registry.addresses(config)]
    except LookupError:  # the list lacks the host, provider or model
        return None
    return prices[0] if len(prices) == 1 else None


class Prices:
    """The prices at one backend: of its own model, and of models that rows name."""

    def __init__(self, config: model_config.ModelConfig, own: Price) -> None:
        self._config, self._own = config, own
        self._ours = {config.model, config.name, *model_config.named_models(config.settings.extra_params)}
        self._others: dict[str, Price | None] = {}
        self.why = ""
        """The reason why forms no longer bound answers of this model; `""` if they do."""
        self._last: tuple[Sampling, int | None] | None = None
        """The last sampling parameters, which many requests share, and the most tokens of an answer in their form."""

    def of(self, request: Request) -> Price | None:
        """Return the price of the model in `request`, None if unknown. Of several models, the most expensive is used.

        The operator's price applies only to the model and the alternatives in the configuration.
        """
        extra = request.extra
        if not extra or not (others := self._others_in(extra)):
            return replace(self._own, search=None) if extra and self._is_preview(extra) else self._own
        prices = [self._of_other(model) for model in others]
        if extra.get("model") not in others:
            prices.append(self._own)
        known = [price for price in prices if price is not None]
        if len(known) < len(prices):
            return None
        price = known[0] if len(known) == 1 else _DearestPrice.of(known)
        return replace(price, search=None) if self._is_preview(extra) else price

    def _is_preview(self, extra: JsonObject) -> bool:
        """Return whether a request has a search whose price only the operator can give."""
        said = _said(self._config, self._config.model) or self._config.settings.price
        return (said is None or said.search is None) and _has_preview(extra)

    @functools.cached_property
    def decides(self) -> bool:
        """Whether the backend's models decide, and write no text."""
        return registry.decides(self._config)

    @functools.cached_property
    def questions(self) -> int:
        """The most questions of a request to deciding models; 0 for other models."""
        limits = registry.decisions_of(self._config) if self.decides else None
        return 0 if limits is None else limits.questions

    def longest(self, request: Request, *, by_batch: bool = False) -> int | None:
        """Return the most tokens of an answer in the form that `request` asks for; None if the endpoint takes no
        schemas, or if the model is known to think. `by_batch`: whether a batch gives the answer. Such an answer comes
        too late to show whether forms are kept, so the endpoint must promise to keep to schemas."""
        if request.members:
            sizes = [self.longest(one, by_batch=by_batch) for one in request.members]
            known = [size + _AROUND_MEMBER for size in sizes if size is not None]
            return sum(known) + _AROUND_MEMBER if len(known) == len(sizes) else None
        sampling, extra = request.sampling, request.extra
        if (
            self.why
            or request.path
            or not (self._keeps_schemas if by_batch else self._takes_schemas)
            or not _UNBOUNDED.isdisjoint(extra)
        ):
            return None
        if self._last is None or self._last[0] is not sampling:
            is_certain = not registry.may_think(self._config, self._config.model, sampling)
            self._last = sampling, most_tokens_of(sampling) if is_certain else None
        others = self._others_in(extra) if extra else ()
        return None if any(registry.may_think(self._config, model, sampling) for model in others) else self._last[1]

    def compare(self, tokens: int, most: int) -> None:
        """If an answer has more `tokens` than `most`, the bound of its form, stop the use of forms as bounds."""
        if tokens > most:
            self.why = (
                f"An answer of {self._config.model} had {tokens:,} tokens where its form has {most:,} at most, as if "
                "the model thinks: no form bounds what it costs."
            )

    @functools.cached_property
    def _keeps_schemas(self) -> bool:
        return registry.keeps_schemas(self._config)

    @functools.cached_property
    def _takes_schemas(self) -> bool:
        return registry.takes_schemas(self._config)

    def named(self, extra: JsonObject) -> dict[str, Price | None]:
        """Return the prices of the other models that a request's parameters name."""
        return {model: self._of_other(model) for model in self._others_in(extra)}

    def unknown(self, request: Request) -> str:
        """Return the first model in `request` whose price is unknown."""
        return next(model for model, price in self.named(request.extra).items() if price is None)

    def served_at(self, tier: str) -> set[str]:
        """Return the tiers that may serve a request for `tier`."""
        return {tier, self._dearest.get(tier, tier)}

    @functools.cached_property
    def _dearest(self) -> Mapping[str, str]:
        """For a requested tier, the most expensive tier that may serve the request. With `auto`, the provider's account
        decides about the tier, and at OpenAI and Azure, `auto` is the default."""
        return dict.fromkeys(("auto", "") if registry.account_decides_tier(self._config) else ("auto",), "priority")

    @functools.cached_property
    def writes(self) -> bool:
        """Whether the provider writes whole prompts to its cache and charges for this. (A job can prevent this.)"""
        cache = registry.prompt_cache_of(self._config)
        return cache is not None and cache.way == "breakpoints"

    def _others_in(self, extra: JsonObject) -> list[str]:
        return [model for model in model_config.named_models(extra) if model not in self._ours]

    def _of_other(self, model: str) -> Price | None:
        if model not in self._others:
            said = _said(self._config, model)
            self._others[model] = _listed(model, self._config) if said is None else _flat(said, model, self._config)
        return self._others[model]


@dataclass(frozen=True, slots=True)
class _DearestPrice:
    """The highest price of several models, one of which will serve the request; None if one of them is unknown."""

    prices: Sequence[Price]
    batch: float | None
    search: float | None
    audio: float | None

    @classmethod
    def of(cls, prices: Sequence[Price]) -> _DearestPrice:
        """Return the highest of `prices`."""
        of_each = ([getattr(price, name) for price in prices] for name in ("batch", "search", "audio"))
        return cls(prices, *(None if None in known else max(known) for known in of_each))

    def cost(self, usage: Usage, tier: str = "") -> float:
        """Return the cost of `usage`."""
        return max(price.cost(usage, tier) for price in self.prices)


Price: TypeAlias = FlatPrice | _DearestPrice
"""The price of a request, in US dollars."""


def of_a_million(price: Price | None) -> dict[str, float] | None:
    """Return the price of a million tokens as `input` and `output`; None for an unknown price."""
    tokens = {"input": Usage(prompt_tokens=1000), "output": Usage(completion_tokens=1000)}
    return None if price is None else {name: round(1000 * price.cost(usage), 6) for name, usage in tokens.items()}


def cost_of_many(price: Price, usage: Usage, rows: int, tier: str = "") -> float:
    """Return the cost of `rows` rows that share `usage` equally. (Their sum must not be priced as one long prompt.)"""
    counts = astuple(usage)
    each, rest = zip(*(divmod(count, rows) for count in counts), strict=True) if rows else ((), counts)
    return rows * price.cost(Usage(*each), tier) + price.cost(Usage(*rest), tier)


def keeps_for_hours(extra: JsonObject) -> bool:
    """Return whether a request's parameters let OpenAI's cache keep the prompt for twelve hours."""
    options = extra.get("prompt_cache_options")
    return isinstance(options, Mapping) and options.get("ttl") == "12h"


def tier_of(extra: JsonObject) -> str:
    """Return the service tier in a request's parameters, in lower case; `""` without a tier."""
    tier = extra.get("service_tier")
    return tier.lower() if isinstance(tier, str) else ""


class Tiers(NamedTuple):
    """The service tier that the request names, and the one that the operator names; `""` if there is none."""

    requested: str = ""
    operators: str = ""

    def charged(self, served: str = "") -> str:
        """Return the tier whose price applies. `served`: the tier that the answer reports, or `""`.

        A discount applies only if the request or the operator named the tier. If only the request named it, the answer
        must report it, too, because endpoints without tiers ignore the parameter and bill the standard price.
        """
        if self.requested == BATCH:  # the tier in the reply does not count
            return BATCH
        tier = served or self.requested
        is_named = tier in self if served else tier == self.operators
        return tier if is_named or _TIERS.get(tier, _STANDARD).input >= 1.0 else ""


def charge(
    spent: Sequence[Spent], price: Price, tiers: Tiers, *, may_search: bool = False, most_audio: int = 0
) -> float | None:
    """Return the cost of requests, each at the tier that its reply reports. None if one of them searched the web at an
    unknown price. `may_search`: requests may have searched without reporting a number of searches. `most_audio`: the
    tokens of recordings that are charged if a reply does not report their number."""
    cost = 0.0
    for usage, served in spent:
        if usage.stated_cost and (usage.searches or may_search):  # the endpoint's own cost includes tools
            cost += usage.stated_cost / TICKS
            continue
        audio = usage.audio_tokens or min(most_audio, usage.prompt_tokens)
        cost += price.cost(replace(usage, audio_tokens=audio) if audio else usage, tiers.charged(served))
        if usage.searches:
            if price.search is None:
                return None
            cost += usage.searches * price.search / _A_THOUSAND
    return cost


_PREVIEW = "web_search_preview"  # at OpenAI, its price depends on the model, and differs from the price of `web_search`


def _has_preview(extra: JsonObject) -> bool:
    return any(name.startswith(_PREVIEW) for name in tools_in(extra))
