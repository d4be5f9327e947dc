"""The cost of answers: adds the cost to each outcome, and sends a request only if all budgets allow it.

Before an item is sent, the highest possible cost of one request is reserved. If a failed attempt may be billed, it uses
up this reservation, so the sender reserves the amount again before a retry (`Account.reserve_again`). If a budget does
not allow this, the item returns with its cost so far, and waits until other items have cost less than they reserved.

An answer without a limit may be bounded by its form (`Prices.longest`), unless the model thinks. A model's name does
not reliably show whether it thinks. So the first such request is sent alone. Each answer lets one more such request be
in flight if the rest of the budget allows `_UNLIMITED` tokens for each; otherwise, only one is in flight. The first
answer that is longer than its form ends this trial: from then on, no form bounds a request to this model, and the next
request fails because it has no limit.
"""

from __future__ import annotations

import asyncio
import bisect
import math
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial

import orjson

from promptmill.answers.choices import choices_of
from promptmill.backends import registry
from promptmill.backends.protocol import Call, Failure, Outcome, Spent, Totals, Usage, billed
from promptmill.backends.searches import may_search
from promptmill.config import model_config
from promptmill.core.bounds import MOST_TOKENS
from promptmill.core.errors import Code, Named, PromptmillError, Words, config_error, input_error
from promptmill.core.feature import features, later
from promptmill.core.money import Budget, dollars
from promptmill.core.request import Account, Conversation, FilePart, ImagePart, Request, TextPart, nested
from promptmill.core.values import JsonObject
from promptmill.core.wording import listed
from promptmill.steps.checked import LONGEST_COMPLAINT, is_checked
from promptmill.steps.decided import bytes_of, parts_of
from promptmill.steps.likely import LikelyLengths, most_tokens_of
from promptmill.steps.prices import (
    BATCH,
    FlatPrice,
    Price,
    Prices,
    Tiers,
    charge,
    keeps_for_hours,
    price_of,
    tier_of,
)
from promptmill.steps.step import Loading, Place, Step, path_of

_UNKNOWN_MODEL = "The cost leaves out answers of models whose price is not known; `models` gives each a `price`."
_UNKNOWN_SEARCHES = (
    "The cost leaves out answers with searches of the web, whose price is not known; `search` in `price` gives it, per "
    "1,000."
)
_UNKNOWN_USAGE = "The cost leaves out requests for which the endpoint reported no usage."
_AUDIO_AS_TEXT = "The cost counts audio at the price of text, which is lower at most providers."
# The most tokens of a prompt. A text has at most one token per byte; each turn adds roles and marks; an image has at
# most as many as the largest image in Qwen-VL (16,384; other models count fewer, even for a photo of 12 megapixels).
_PER_TURN, _PER_REQUEST, PER_IMAGE = 16, 64, 16_400
# The most tokens that precede a second attempt besides the invalid answer: a complaint, words around it, and two turns.
_PER_COMPLAINT = LONGEST_COMPLAINT + 200
# For an image, gpt-4o-mini counts 2,833 tokens, and 5,667 more for each of up to eight tiles, so that it costs as much
# as with gpt-4o (OpenAI, "Images and vision", calculating costs).
MINI, PER_IMAGE_OF_MINI = "4o-mini", 48_200
_BYTES_PER_TOKEN = 4  # estimated for English text; less accurate for other scripts
_BOUNDS = (*model_config.TOKEN_LIMITS, "n_predict")  # a request within a budget needs one of these
# Names of parameters for the number of answers. Some endpoints support them, and others ignore them.
_SEVERAL = re.compile(r"(?i)^n$|best_?of|sequences|generations|candidate|choices$|samples$")
# Fields of a request to `/responses`: for an earlier conversation or a stored prompt, and for files and audio. Pages of
# a PDF may share content, so a small PDF may have any number of tokens; audio tokens have another price.
_STORED = ("previous_response_id", "conversation", "prompt")
_FILES = ("file_id", "file_url", "file_data", "input_audio")
_OWN_TOOLS = frozenset({"function", "custom"})  # other tools add texts to the prompt
_RESERVES = "The budget has room for few requests at a time"
_ANSWERS_SEEN, _TIMES_AVERAGE = 10, 4  # after ten answers, four times their average length is advised
_BATCH = Tiers(BATCH)
AS_LIVE = (
    "The price of a batch is not known, so it is counted at the live price; `price: IN/OUT/0.5` makes a batch cost "
    "half of that."
)
"""A warning about the cost of a batch."""
_FREE = FlatPrice(0.0, 0.0, 0.0)
_THINKS = ", which thinks before it answers"
_UNLIMITED = 16_384  # tokens of the longest answer that endpoints usually give to a request without a limit
_FOR_THINKING = 4096
_ENOUGH_FOR_THINKING = Named("max_tokens", _FOR_THINKING)


class BudgetedAnswers(Step):
    """Adds the cost to each outcome. `budget` limits the process; `Ledger.budget` limits the call or job."""

    place = Place.PRICED

    @classmethod
    async def of(cls, loading: Loading) -> Step | None:
        """Return the step. Raises `PromptmillError` (`invalid_config`) if the process has a budget but no price."""
        price = await asyncio.to_thread(price_of, loading.config)
        if price is not None:
            return cls(loading.config, price, loading.budget)
        if loading.budget is not None:
            raise unknown_price(loading.config)
        return None

    def __init__(self, config: model_config.ModelConfig, price: Price, budget: Budget | None) -> None:
        self._config, self._price, self._prices = config, price, Prices(config, price)
        self._budget, self._model = budget, config.model
        self._tier = tier_of(config.settings.extra_params)
        self._usual_tiers = Tiers("", self._tier)
        self._line = asyncio.Lock()
        """A queue, first come, first served: otherwise small requests could overtake a large one forever."""
        self._trial = asyncio.Semaphore(1)
        """The free places for requests that only their forms bound. Each answer adds a place, so that a model that
        thinks is noticed before many answers are paid. `Budget.reserve` bounds the cost of these requests."""
        self._no_room: tuple[tuple[float, ...], Failure] | None = None

    def enter(self, call: Call) -> None:
        """Begin to count the cost of a call. Raises `PromptmillError` (`invalid_config`) if there is a budget, and all
        requests of the call may search the web."""
        if call.exchange is not None and self._price.batch is None:
            call.warn(AS_LIVE)
        is_limited = self._budget is not None or call.ledger.budget is not None
        if is_limited and may_search(self._config.settings.extra_params, self._model):
            raise unbounded_search()
        call.counts.cost = call.counts.cost or 0.0

    def answer(self, request: Request, call: Call) -> Awaitable[Outcome]:
        """Answer a request within the budgets of the process and the call."""
        budgets = [budget for budget in (self._budget, call.ledger.budget) if budget is not None]
        if call.ledger.deferred is not None:
            return self._charged(request, call, budgets, call.ledger.deferred)
        if not budgets:
            return self._priced(request, call)
        if not self._is_bounded_by_form(request):
            return self._within_budget(request, call, budgets)
        return self._on_trial(request, call, budgets)

    def _is_bounded_by_form(self, request: Request) -> bool:
        if self._prices.decides or _limits(request):
            return False
        return self._prices.longest(request) is not None

    async def _on_trial(self, request: Request, call: Call, budgets: Sequence[Budget]) -> Outcome:
        """Answer a request that is bounded only by its form, once enough earlier answers have kept to their forms."""
        with call.hold():
            await self._trial.acquire()
        try:
            return await self._within_budget(request, call, budgets)
        finally:
            self._trial.release()

    async def _charged(
        self, request: Request, call: Call, budgets: Sequence[Budget], deferred: Callable[[Request], float]
    ) -> Outcome:
        """Answer a request of a batch. The request's highest cost was reserved when the batch was planned."""
        set_aside = deferred(request)
        outcome = await self._priced(request, call, set_aside)
        for budget in budgets:
            budget.free(set_aside, outcome.cost or 0.0)
        return outcome

    async def _priced(self, request: Request, call: Call, unmetered_cost: float = 0.0) -> Outcome:
        """Answer a request. Each attempt without a reported usage costs `unmetered_cost`."""
        outcome = await self.following(request, call)
        if isinstance(outcome, Failure) and outcome.error.code is Code.BATCHED and call.ledger.deferred is None:
            return self._batched(outcome, request, call)
        spent, unmetered = billed(outcome)
        if unmetered and not unmetered_cost:
            call.warn(_UNKNOWN_USAGE)
        price = self._prices.of(request)
        if price is None:
            call.warn(_UNKNOWN_MODEL)
            return outcome
        has_price = price.audio is not None and all(usage.audio_tokens for usage, _ in spent)
        if (not has_price and "audio" in request.conversation.file_kinds) or _wants_audio(request.extra):
            call.warn(_AUDIO_AS_TEXT)
        may = may_search(request.extra, self._model)
        known = charge(spent, price, self._tiers(request, call), may_search=may)
        if known is None:
            call.warn(_UNKNOWN_SEARCHES)
            call.counts.cost = call.counts.cost or None
            return outcome
        cost = known + unmetered * unmetered_cost
        call.charge(request, cost)
        if isinstance(outcome, Failure):
            return replace(outcome, cost=cost)
        outcome.cost = cost
        return outcome

    def _batched(self, outcome: Failure, request: Request, call: Call) -> Failure:
        """Return the outcome of a request that is added to a batch, with the request's highest cost if it is known."""
        price = self._prices.of(request)
        try:
            return outcome if price is None else replace(outcome, cost=self._worst(request, call, price)[1])
        except PromptmillError:
            return outcome

    def _worst(self, request: Request, call: Call, price: Price) -> tuple[Usage, float]:
        """Return the highest usage and cost of one attempt. Raises as `worst_case` does."""
        by_batch = call.exchange is not None
        most = worst_case(
            request,
            self._model,
            decides=self._prices.decides,
            by_form=partial(self._prices.longest, by_batch=by_batch),
            why=self._prices.why,
        )
        tiers = self._served(self._tiers(request, call))
        return most, _highest(price, most, request, tiers, by_batch=by_batch, writes=self._prices.writes)

    async def _within_budget(self, request: Request, call: Call, budgets: Sequence[Budget]) -> Outcome:
        tiers = self._tiers(request, call)
        try:
            if (price := self._prices.of(request)) is None:
                model = self._prices.unknown(request)[:60]
                raise input_error(f"The item names the model {model!r}, whose price is not known to the budget.")
            has_files = bool(request.conversation.file_kinds)
            bounded = await asyncio.to_thread(measured, request, self._config, price) if has_files else request
            most, worst = self._worst(bounded, call, price)
        except PromptmillError as error:
            return Failure(error, request.attempts)
        totals, has_limit = Totals(), not self._is_bounded_by_form(request)
        excess = 0.0 if has_limit else max(price.cost(Usage(0, _UNLIMITED), tier) for tier in self._served(tiers))
        while True:
            account = _BudgetAccount(budgets, worst, excess)
            if not account.reserve() or self._line.locked():
                full = account.never_fits()
                longest = most if has_limit else replace(most, completion_tokens=_UNLIMITED)
                why = f"its `max_tokens` of {longest.completion_tokens:,}" if has_limit else "an answer not of its form"
                advise = partial(_advise, call, longest, why, price.cost)
                fitting = partial(self._fitting, bounded, call, price)
                if full is None:
                    no_room = await self._wait_for_room(account, call, advise, fitting)
                else:
                    no_room = self._failure(full, worst, fitting)
                if no_room is not None and not request.attempts:
                    return no_room  # one object for all unsent items: there may be hundreds of thousands
                if no_room is not None:
                    return replace(totals.on(no_room), attempts=request.attempts)
            try:
                outcome = await self.following(replace(request, account=account), call)
            except BaseException:
                cut_off = account.open * worst
                account.charge(cut_off)
                call.cut_off(cut_off)
                raise
            if isinstance(outcome, Failure) and outcome.error.code is Code.BATCHED:
                account.defer()
                return replace(outcome, cost=worst)
            spent, unmetered = billed(outcome)
            known = charge(spent, price, tiers, most_audio=most.audio_tokens)
            if known is None:  # the endpoint may search without being asked
                call.warn(_UNKNOWN_SEARCHES)
                known = len(spent) * worst
            self._learn(spent, most, is_by_form=not has_limit)
            charged = known + unmetered * worst
            account.charge(charged)
            call.charge(request, charged)
            totals = totals.joined(Totals(outcome.usage, charged, outcome.shared))
            if not isinstance(outcome, Failure) or outcome.error.code is not Code.BUDGET:
                return totals.on(outcome)
            request = replace(request, attempts=outcome.attempts)

    def _learn(self, spent: Sequence[Spent], most: Usage, *, is_by_form: bool) -> None:
        """Learn whether the model keeps to forms. The request's form allows at most the usage `most`."""
        longest = max((usage.completion_tokens for usage, _ in spent), default=0)
        if longest and is_by_form:  # a failure before an answer shows nothing
            self._prices.compare(longest, most.completion_tokens)
            self._trial.release()

    def _served(self, tiers: Tiers) -> set[str]:
        return self._prices.served_at(tiers.charged())

    def _tiers(self, request: Request, call: Call) -> Tiers:
        if call.exchange is not None:
            return _BATCH
        return Tiers(tier_of(request.extra), self._tier) if request.extra else self._usual_tiers

    async def _wait_for_room(
        self, account: _BudgetAccount, call: Call, advise: Callable[[], None], fitting: Callable[[float], int]
    ) -> Failure | None:
        """Wait until the request's cost can be reserved. Return a failure if a budget will never allow it.

        While the budget is full, `advise` is called for the first waiting request.
        """
        if account.reserved:  # other requests are already waiting
            account.charge(0.0)
        with call.hold():
            async with self._line:
                while not account.reserve():
                    full = account.never_fits()
                    if full is not None:
                        return self._failure(full, account.worst, fitting)
                    advise()
                    await account.changed()
        if account.excess and self._prices.why:  # meanwhile, another answer was longer than its form
            account.charge(0.0)
            return Failure(_breaks_form(self._prices.why))
        return None

    def _fitting(self, request: Request, call: Call, price: Price, room: float) -> int:
        """Return the largest `max_tokens` with which a request costs at most `room`; 0 if there is none."""
        sampling = request.sampling
        if sampling.max_tokens is None:
            return 0  # another limit applies

        def cost(tokens: int) -> float:
            lower = request.changed(sampling=sampling.model_copy(update={"max_tokens": tokens}))
            return self._worst(lower, call, price)[1]

        return bisect.bisect_right(range(1, sampling.max_tokens), room, key=cost)

    def _failure(self, full: Budget, worst: float, fitting: Callable[[float], int]) -> Failure:
        """Return the failure for unsent items. All items get the same object until the state of the budget changes.

        `fitting` returns the largest `max_tokens` with which the item costs at most an amount; 0 if there is none.
        """
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
            hint: Words | None = None
            if state == (full.limit, 0.0, 0.0) and (tokens := fitting(full.limit)):  # even one request costs more
                fits = "or lower the limit of answers: one request fits with ", Named("max_tokens", tokens), "."
                hint = "Raise ", Named("max_cost"), ", ", *fits
            self._no_room = state, Failure(PromptmillError(Code.BUDGET, message, hint))
        return self._no_room[1]


def _advise(call: Call, most: Usage, why: str, cost: Callable[[Usage], float]) -> None:
    """Warn once that reservations for long answers keep a budget full although answers are short.

    `most`: the highest usage of a request. `why`: the reason for this usage. `cost` returns the cost of a usage.
    """
    answered = call.counts.done - call.counts.failed
    if answered < _ANSWERS_SEEN or any(warning.startswith(_RESERVES) for warning in call.warnings):
        return
    enough = 10 * math.ceil(_TIMES_AVERAGE * call.counts.completion_tokens / answered / 10) or 10
    times = int(cost(most) / cost(Usage(most.prompt_tokens, enough)))  # divisor not 0: free answers always have room
    if times > 1:
        call.warn(
            f"{_RESERVES}: each reserves {dollars(cost(most))} for {why}; a `max_tokens` of {enough:,} lets {times:,} "
            "times as many run."
        )


class _BudgetAccount(Account):
    """The reservation for one item: the highest possible cost of one request at a time."""

    __slots__ = ("_budgets", "_excesses", "excess", "open", "reserved", "worst")

    def __init__(self, budgets: Sequence[Budget], worst: float, excess: float) -> None:
        """`excess`: see `Budget.reserve`."""
        self._budgets, self.worst, self.excess = budgets, worst, excess
        self.reserved = self._excesses = 0.0
        self.open = 0
        """The number of sent requests that may be billed even if the call is cancelled."""

    def reserve(self) -> bool:
        """Reserve the cost of one request. Return False if a budget does not allow it."""
        for place, budget in enumerate(self._budgets):
            if not budget.reserve(self.worst, self.excess):
                for before in self._budgets[:place]:
                    before.charge(self.worst, 0.0, self.excess)
                return False
        self.reserved += self.worst
        self._excesses += self.excess
        return True

    def sent(self) -> float:
        """Record that a request is sent. Return its highest possible cost."""
        self.open += 1
        return self.worst

    def not_billed(self) -> None:
        """Record that the last request was refused, which costs nothing."""
        self.open -= 1

    async def reserve_again(self) -> bool:
        """Reserve the cost of another request. Return False if a budget does not allow it."""
        return self.reserve()

    def charge(self, cost: float) -> None:
        """Charge `cost`, and release the rest of the reservation."""
        for budget in self._budgets:
            budget.charge(self.reserved, cost, self._excesses)
        self.reserved = self._excesses = 0.0

    def defer(self) -> None:
        """Set the reservation aside until a batch's reply shows the cost."""
        for budget in self._budgets:
            budget.set_reserved_aside(self.reserved, self._excesses)

    def never_fits(self) -> Budget | None:
        """Return a budget that would refuse the request even without other reservations; None if none would."""
        return next((budget for budget in self._budgets if not budget.fits(self.worst)), None)

    async def changed(self) -> None:
        """Wait until a reservation is released."""
        full = next(budget for budget in self._budgets if not budget.nothing_reserved)
        await full.changed()


def lacking(configs: Iterable[model_config.ModelConfig], *, rows_set: bool = False) -> PromptmillError | None:
    """Return the error that names the prices and token limits that a budget lacks; None if nothing is missing. Blocks.
    `rows_set`: rows may set limits."""
    by_name = {_named(config): config for config in configs}
    unpriced = {name: config for name, config in by_name.items() if price_of(config) is None}
    unlimited = {name: config for name, config in by_name.items() if _lacks_limit(config)}
    if not unpriced and (rows_set or not unlimited):
        return None
    add = [Named("max_tokens", max(map(advised_limit, unlimited.values())))] if unlimited else []
    are_thinking = any(map(_thinks, unlimited.values()))
    limit = f"nothing limits the answers of {listed([*unlimited])}{_THINKS if are_thinking else ''}"
    if not unpriced:
        return config_error("max_cost", f"{limit}; add ", *add, ".")
    is_only = len(by_name) == 1
    keys = [config.key("price") if is_only else f"prices.{name}" for name, config in unpriced.items()]
    return _unpriced(unpriced, keys, f", and {limit}" if unlimited else "", add)


def unknown_price(config: model_config.ModelConfig) -> PromptmillError:
    """Return the error for a budget on a model whose price is unknown."""
    return _unpriced({_named(config): config}, [config.key("price")])


def _unpriced(
    unpriced: Mapping[str, model_config.ModelConfig],
    keys: Sequence[str],
    limit: str = "",
    add: Sequence[Named] = (),
) -> PromptmillError:
    """Return the error for a budget on models without a price. `keys`: the configuration keys of the prices. `limit`: a
    text about a missing limit of answers. `add`: the options that set this limit."""
    prices = [Named(key, "IN/OUT", "{} ", f"`{key}: IN/OUT` ") for key in keys]
    its = f"`{keys[-1]}: IN/OUT` to the server's configuration, as only its operator can{', and ' if add else ''}"
    prices[-1] = Named(keys[-1], "IN/OUT", "{} " if add else "{}", its)
    return config_error(
        "max_cost",
        f"the price of {listed([*unpriced])} is not known{limit}; add ",
        *prices,
        *add,
        ". IN/OUT are the US dollars for a million tokens of prompts and of answers.",
    )


def _named(config: model_config.ModelConfig) -> str:
    is_named = config.file is not None and config.model == config.operator_model
    return config.name if is_named else config.model or "this model"


def _lacks_limit(config: model_config.ModelConfig) -> bool:
    sampling = config.settings.sampling_params
    request = Request(0, Conversation(()), sampling, config.settings.extra_params, path=path_of(sampling))
    return not request.texts and not _limits(request) and Prices(config, _FREE).longest(request) is None


def _thinks(config: model_config.ModelConfig) -> bool:
    return registry.may_think(config, config.model, config.settings.sampling_params)


def advised_limit(config: model_config.ModelConfig) -> int:
    """Return a `max_tokens` that is enough for most answers: for a model that thinks, `_FOR_THINKING`; for others, the
    most tokens of the form, or four times the likely length if the form has no bound."""
    if _thinks(config):
        return _FOR_THINKING
    sampling = config.settings.sampling_params
    longest = (
        most_tokens_of(sampling) or _TIMES_AVERAGE * LikelyLengths().of(Request(0, Conversation(()), sampling)).tokens
    )
    return 10 * math.ceil(longest / 10)


def unbounded_search() -> PromptmillError:
    """Return the error for a budget on a request that may search the web."""
    return config_error(
        Named("max_cost"),
        "no amount bounds a search of the web, which the model repeats as it wants and whose pages have any length. "
        "Leave it out, and see the cost of a few rows first: ",
        Named("limit", 20),
        ".",
    )


def _highest(
    price: Price, most: Usage, request: Request, tiers: Iterable[str], *, by_batch: bool = False, writes: bool
) -> float:
    """Return the highest cost of an attempt with the usage `most`, at any of `tiers`. `writes`: see `Prices`.

    If the provider writes the shared beginning of a request to its cache, this may cost more than the prompt itself. A
    batch at Anthropic requests that it is kept for an hour.
    """
    usages, hours = [most], keeps_for_hours(request.extra)
    if hours or request.shared or (writes and request.shared is None):
        long = most.prompt_tokens if hours or (by_batch and not writes) else 0
        usages.append(replace(most, written_tokens=most.prompt_tokens, hour_written_tokens=long))
    return max(price.cost(usage, tier) for usage in usages for tier in tiers)


def most_of(
    request: Request,
    config: model_config.ModelConfig,
    prices: Prices,
    *,
    by_batch: bool = False,
    has_check: bool = False,
    asks_again: bool = True,
) -> float:
    """Return the highest cost of a request, as a budget reserves it: the cost of all its `n` answers and, with
    `asks_again`, of attempts after a check refused an answer. The cost is infinite without a limit or a price. It does
    not include failed attempts.

    `has_check`: whether a function of the calling program checks the answers, too.
    """
    price, sampling = prices.of(request), request.sampling
    live = prices.served_at(Tiers(tier_of(request.extra), tier_of(config.settings.extra_params)).charged())
    if sampling.choices is not None:  # sent as a schema
        form = choices_of(tuple(sampling.choices)).response_format
        request = request.changed(sampling=sampling.model_copy(update={"response_format": form}))
    try:
        first = worst_case(
            request,
            config.model,
            decides=prices.decides,
            questions=prices.questions,
            by_form=partial(prices.longest, by_batch=by_batch),
        )
    except PromptmillError:
        return math.inf
    if price is None:
        return math.inf
    invalid = _BYTES_PER_TOKEN * first.completion_tokens  # a budget counts each byte of the invalid answer as a token
    again = replace(first, prompt_tokens=first.prompt_tokens + invalid + _PER_COMPLAINT)
    tiers = {BATCH} if by_batch else live
    cost = _highest(price, first, request, tiers, by_batch=by_batch, writes=prices.writes)
    if asks_again and (has_check or is_checked(sampling)) and not prices.decides:
        cost += config.settings.check_retries * _highest(price, again, request, live, writes=prices.writes)
    return (sampling.n or 1) * cost


def cost_of(config: model_config.ModelConfig, requests: Iterable[Request]) -> tuple[float | None, float | None]:
    """Return the likely cost and the highest cost of all requests together; each None if unknown.

    The highest cost is also None if answers have no limit. It does not include failed attempts.
    """
    own = price_of(config)
    if own is None:
        return None, None
    prices, tier = Prices(config, own), tier_of(config.settings.extra_params)
    least = cache.least if (cache := registry.prompt_cache_of(config)) else 0
    estimated, most, lengths = 0.0, 0.0, LikelyLengths()
    for request in (measured(request, config, own) for request in requests):
        if (price := prices.of(request)) is None or may_search(request.extra, config.model):
            return None, None
        prompt = bytes_of(request, prices.questions) if prices.decides else _prompt_size(request, PER_IMAGE)
        files, audio = of_files(request)
        tokens = prompt // _BYTES_PER_TOKEN + files
        written = tokens if prices.writes and prompt >= least else 0
        usage = Usage(tokens, lengths.of(request).tokens, written_tokens=written, audio_tokens=audio)
        estimated += (request.sampling.n or 1) * price.cost(usage, tier)
        most += most_of(request, config, prices)
    return estimated, None if math.isinf(most) else most


def _limits(request: Request) -> list[int]:
    """Return the limits of the answer to a request."""
    sampling, extra = request.sampling, request.extra
    limits = [model_config.whole_number(extra[name]) for name in _BOUNDS if name in extra]
    if "max_tokens" not in extra or extra["max_tokens"] is not None:
        limits.append(sampling.max_tokens)
    return [limit for limit in limits if limit is not None]


def _unbounded(_: Request) -> int | None:
    return None


def worst_case(
    request: Request,
    model: str = "",
    *,
    decides: bool = False,
    questions: int = 0,
    by_form: Callable[[Request], int | None] = _unbounded,
    why: str = "",
) -> Usage:
    """Return the highest usage of one attempt at `request`. The request is sent to `model` unless it names other
    models. `decides`: whether the model decides, and writes no text. `questions`: see `bytes_of`. `by_form`: see
    `Prices.longest`. `why`: the reason why no form bounds an answer.

    An answer may have as many tokens as the request's largest limit, because endpoints use different limits. Without a
    limit, the form may bound the answer. Raises `PromptmillError` for a request that neither a limit nor a form bounds
    (`invalid_config`), or with a prompt of unlimited length or unknown price (`invalid_input`).
    """
    extra = request.extra
    if may_search(extra, model):
        raise unbounded_search()
    if decides:
        images = PER_IMAGE * len(request.conversation.images)
        around = _PER_REQUEST + len(_as_json(extra)) + images
        return Usage(2 * bytes_of(request, questions) + parts_of(request, questions) * around)
    if request.path == "/responses" and _is_unbounded(extra):
        raise input_error(
            "The item has a file or audio, names content at the endpoint, or names a tool that runs there: it can be "
            "of any length, which `max_cost` cannot bound. Send texts and images, or leave `max_cost` out."
        )
    if _wants_audio(extra) or any("audio" in (message.extra or ()) for message in request.conversation.messages):
        raise input_error("The item has audio of unknown length, which `max_cost` cannot bound; leave `max_cost` out.")
    files, audio = of_files(request, at_most=True)
    bounds = _limits(request)
    if not bounds and (by_its_form := by_form(request)) is not None:
        bounds = [by_its_form]
    answers, models = 1, [model]
    if extra:  # skipped for most requests, which have no own parameters
        bounds += [_largest(extra, model_config.OTHER_LIMIT)] if bounds else []
        answers = max(1, _largest(extra, _SEVERAL)) * _prompts(request)
        models += model_config.named_models(extra)
    longest = 0 if request.texts else max(bounds, default=MOST_TOKENS + 1)
    if longest > MOST_TOKENS:
        if why:
            raise _breaks_form(why)
        raise config_error("max_cost", "needs ", _ENOUGH_FOR_THINKING, ", which bounds what a request can cost.")
    is_mini = any(MINI in one for one in models)
    prompt = files + _prompt_size(request, PER_IMAGE_OF_MINI if is_mini else PER_IMAGE)
    return Usage(prompt, longest * answers, audio_tokens=audio)


def measured(request: Request, config: model_config.ModelConfig, price: Price | None) -> Request:
    """Return the request with the tokens of its PDFs and recordings, as far as they are known. Blocks."""
    measures = next((each.file_tokens for each in features().values() if each.file_tokens), "")
    if not measures or not request.conversation.file_kinds:
        return request
    priced: Request = later(measures)(request, config, is_audio_priced=price is not None and price.audio is not None)
    return priced


def of_files(request: Request, *, at_most: bool = False) -> tuple[int, int]:
    """Return the likely tokens (`at_most`: the most) of all files in a measured request, and of its recordings. Raises
    the error of a file that has no bound."""
    tokens = audio = 0
    for part in request.conversation.sourced:
        if isinstance(part, FilePart):
            count = part.tokens.most if at_most else part.tokens.likely
            if not isinstance(count, int):
                raise input_error(*count)
            tokens, audio = tokens + count, audio + count * (part.kind == "audio")
    return tokens, audio


def _breaks_form(why: str) -> PromptmillError:
    """Return the error for a request that no form bounds any more. The job still awaits its paid requests in flight."""
    return PromptmillError(Code.BUDGET, why, ("Limit the answers: ", _ENOUGH_FOR_THINKING, "."))


def _wants_audio(extra: JsonObject) -> bool:
    """Return whether parameters request an audio answer."""
    wanted = extra.get("modalities")
    return isinstance(wanted, list) and "audio" in wanted


def _is_unbounded(body: JsonObject) -> bool:
    """Return whether a request for `/responses` has a file, audio, or content that the endpoint stores or finds."""
    tools = body.get("tools")
    if any(body.get(name) for name in _STORED) or (
        isinstance(tools, list)
        and any(not (isinstance(one, Mapping) and one.get("type") in _OWN_TOOLS) for one in tools)
    ):
        return True
    return any(
        any(value.get(name) for name in _FILES) or ("id" in value and value.keys() <= {"id", "type"})
        for value in nested(body.get("input"))
        if isinstance(value, Mapping)
    )


def _largest(extra: JsonObject, names: re.Pattern[str]) -> int:
    """Return the largest number under any of `names` in a body, or in an object of the body such as `options`."""
    return max((number for _, number in model_config.numbers_of(extra, names)), default=0)


def _prompts(request: Request) -> int:
    """Return the number of prompts in a request for completions. The endpoint answers each of them."""
    prompts = request.extra.get("prompt") if request.path else None
    if not isinstance(prompts, list) or not any(isinstance(prompt, str | list) for prompt in prompts):
        return 1  # a text, or the tokens of a single text
    return len(prompts)


def _prompt_size(request: Request, per_image: int) -> int:
    """Return the most tokens that the request's prompt may have without files, with `per_image` tokens per image."""
    extra = _as_json(request.extra) if request.extra else b""
    size = _PER_REQUEST + len(extra) + per_image * extra.count(b"image_url")
    for message in request.conversation.messages:
        parts = message.content if isinstance(message.content, tuple) else (TextPart(message.content or ""),)
        size += _PER_TURN + (len(str(message.extra).encode()) if message.extra else 0)
        for part in parts:
            if isinstance(part, TextPart):
                size += len(part.text.encode("utf-8", "replace"))
            elif isinstance(part, ImagePart):
                size += per_image
    form = request.sampling.response_format
    return size + (len(str(form).encode("utf-8", "replace")) if form else 0)


def _as_json(extra: JsonObject) -> bytes:
    try:
        return orjson.dumps(extra)
    except TypeError:  # a number beyond 64 bits, a decimal, or a lone surrogate
        return str(extra).encode("utf-8", "replace")
