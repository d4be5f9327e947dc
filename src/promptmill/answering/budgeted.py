"""The cost of answers: added to each outcome, and no request is sent that a budget has no room for.

Room for one request is reserved before an item is sent. An attempt that may be billed although it brought no answer
uses that room up, so the sender reserves more before it sends again (`Account.reserve_again`). Where there is none, the
item comes back with its cost so far, and waits here until other items have been charged less than they reserved.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Sequence
from dataclasses import replace

from promptmill.answering.prices import Price, Prices, charge, tier_of, unmetered, worst_case
from promptmill.backends.protocol import Account, Answer, Call, Request
from promptmill.config.models import ResolvedConfig
from promptmill.core.errors import Code, PromptmillError, config_error, input_error
from promptmill.core.money import Budget, dollars
from promptmill.core.outcome import NO_USAGE, Failure, Outcome
from promptmill.system.installation import command_for

_UNKNOWN_MODEL = "The cost leaves out rows that name a model whose price is not known."
_UNKNOWN_USAGE = "The cost leaves out requests for which the endpoint reported no usage."


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
        tier = tier_of(request.extra)
        try:
            if (price := self._prices.of(request)) is None:
                model = str(request.extra["model"])[:60]
                raise input_error(f"The item names the model {model!r}, whose price is not known to the budget.")
            worst = price.cost(worst_case(request), tier)
        except PromptmillError as error:
            return Failure(error, request.attempts)
        cost, usage = 0.0, NO_USAGE
        while True:
            account = BudgetAccount(budgets, worst)
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

    async def _wait_for_room(self, account: BudgetAccount, call: Call) -> Failure | None:
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


class BudgetAccount(Account):
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
