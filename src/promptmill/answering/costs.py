"""The cost of answers: added to each outcome, and no request is sent that a budget has no room for.

Room for one request, at its worst case, is reserved before an item is sent. An attempt that may be billed although it
brought no answer uses that room up, so the sender reserves more before it sends again (`Account.reserve_again`). Where
there is none, the item comes back with its cost so far, and waits here until other items have been charged less than
they reserved.

A price is the operator's, else that of `genai-prices`; never a guess.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import orjson

from promptmill.backends import registry
from promptmill.backends.protocol import Account, Answer, Call, Request
from promptmill.config.resolved_config import ResolvedConfig
from promptmill.core.conversation import ImagePart, TextPart
from promptmill.core.errors import Code, PromptmillError, config_error, input_error
from promptmill.core.money import Budget, dollars
from promptmill.core.outcome import NO_USAGE, Completion, Failure, Outcome, Usage
from promptmill.system.installation import command_for

_UNKNOWN_MODEL = "The cost leaves out rows that name a model whose price is not known."
_UNKNOWN_USAGE = "The cost leaves out requests for which the endpoint reported no usage."
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


class BudgetedAnswers:
    """Adds the cost to each outcome. `budget` is the process's; a call's or job's own is `Call.budget`."""

    def __init__(self, following: Answer, plan: ResolvedConfig, price: Price, budget: Budget | None) -> None:
        self._following = following
        self._prices = Prices(plan, price)
        self._budget = budget
        self._tier = tier_of(plan.settings.extra_params)
        self._line = asyncio.Lock()
        """First come, first served: a large request is not passed by small ones for ever."""
        self._no_room: tuple[tuple[float, ...], Failure] | None = None

    def answer(self, request: Request, call: Call) -> Awaitable[Outcome]:
        """Answer a request, within the budgets that there are."""
        if self._budget is None and call.budget is None:
            return self._priced(request, call)
        return self._within_budget(request, call, [one for one in (self._budget, call.budget) if one is not None])

    async def _priced(self, request: Request, call: Call) -> Outcome:
        outcome = await self._following(request, call)
        if unmetered(outcome):
            call.warn(_UNKNOWN_USAGE)
        price = self._prices.of(request)
        if price is None:
            call.warn(_UNKNOWN_MODEL)
            return outcome
        cost = charge(outcome, price, self._tier, 0.0)
        if isinstance(outcome, Failure):
            return replace(outcome, cost=cost)
        outcome.cost = cost
        return outcome

    async def _within_budget(self, request: Request, call: Call, budgets: Sequence[Budget]) -> Outcome:
        tier = self._reserved_tier(request)
        try:
            if (price := self._prices.of(request)) is None:
                model = str(request.extra["model"])[:60]
                raise input_error(f"The item names the model {model!r}, whose price is not known to the budget.")
            worst = price.cost(worst_case(request), tier)
        except PromptmillError as error:
            return Failure(error, request.attempts)
        cost, usage = 0.0, NO_USAGE
        while True:
            account = _BudgetAccount(budgets, worst)
            if not account.reserve() or self._line.locked():
                full = account.never_fits()
                no_room = self._failure(full, worst) if full else await self._wait_for_room(account, call)
                if no_room is not None and not request.attempts:
                    return no_room  # one object for all items that were never sent: there may be hundreds of thousands
                if no_room is not None:
                    return replace(no_room, attempts=request.attempts, usage=usage, cost=cost or None)
            try:
                outcome = await self._following(replace(request, account=account), call)
            except BaseException:
                account.settle(account.reserved if account.is_sent else 0.0)
                raise
            charged = charge(outcome, price, tier, worst)
            account.settle(charged)
            cost, usage = cost + charged, usage + outcome.usage
            if not isinstance(outcome, Failure) or outcome.error.code is not Code.BUDGET:
                return replace(outcome, cost=cost, usage=usage)
            request = replace(request, attempts=outcome.attempts)

    def _reserved_tier(self, request: Request) -> str:
        """Return the tier that a request reserves: the requested one, but a row's discount only once it is reported.

        Endpoints without tiers ignore the parameter and bill the standard price.
        """
        tier = tier_of(request.extra)
        return "" if tier != self._tier and _TIERS.get(tier, 1.0) < 1.0 else tier

    async def _wait_for_room(self, account: _BudgetAccount, call: Call) -> Failure | None:
        """Reserve room for a request once there is some; return why there never will be."""
        if account.reserved:  # others came first
            account.settle(0.0)
        with call.hold():
            async with self._line:
                while not account.reserve():
                    full = account.never_fits()
                    if full is not None:
                        return self._failure(full, account.worst)
                    await account.changed()
        return None

    def _failure(self, full: Budget, worst: float) -> Failure:
        """Return why no further request is sent: one object for all items, until something else is spent."""
        state = full.limit, full.spent, full.set_aside
        if self._no_room is None or self._no_room[0] != state:
            aside = (
                f"{dollars(full.set_aside)} is set aside for jobs and for requests that a kill cut off, "
                if full.set_aside
                else ""
            )
            message = (
                f"The budget of {dollars(full.limit)} has no room for another request: {dollars(full.spent)} is spent, "
                f"{aside}and the next could cost {dollars(worst)}."
            )
            self._no_room = state, Failure(PromptmillError(Code.BUDGET, message))
        return self._no_room[1]


class _BudgetAccount(Account):
    """The reservation of one item: room for one request at a time, each at its worst case."""

    __slots__ = ("_budgets", "is_sent", "reserved", "worst")

    def __init__(self, budgets: Sequence[Budget], worst: float) -> None:
        self._budgets, self.worst = budgets, worst
        self.reserved = 0.0
        self.is_sent = False
        """Whether a request is on its way, which may be billed even if the call is cancelled."""

    def reserve(self) -> bool:
        """Reserve room for a request; return whether there was some."""
        for place, budget in enumerate(self._budgets):
            if not budget.reserve(self.worst):
                for before in self._budgets[:place]:
                    before.settle(self.worst, 0.0)
                return False
        self.reserved += self.worst
        return True

    def sent(self) -> float:
        """Note that a request is on its way; return the most that it can cost."""
        self.is_sent = True
        return self.worst

    def reserve_again(self) -> bool:
        """Reserve room for another request; return whether there was some."""
        return self.reserve()

    def settle(self, cost: float) -> None:
        """Charge `cost` and give the rest back."""
        for budget in self._budgets:
            budget.settle(self.reserved, cost)
        self.reserved = 0.0

    def never_fits(self) -> Budget | None:
        """Return the budget that would have no room even if all that is reserved were given back."""
        return next((budget for budget in self._budgets if not budget.fits(self.worst)), None)

    async def changed(self) -> None:
        """Wait until something is given back."""
        full = next(budget for budget in self._budgets if not budget.is_settled)
        await full.changed()


def unknown_price(model: str) -> PromptmillError:
    """Return why there can be no budget."""
    return config_error(
        "max_cost",
        f"the price of {model or 'this model'} is not known; say it per million tokens, "
        "--set 'price={input: 1, output: 2}' or `price:` in the file; or install the list of prices: "
        f"{command_for('prices')}.",
    )


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


class _ListedPrice:
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
        prices = [_ListedPrice(model, {"provider_api_url": url}) for url in registry.addresses(plan)]
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
    return Usage(_prompt_size(request), longest * answers)


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


def _prompt_size(request: Request) -> int:
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
