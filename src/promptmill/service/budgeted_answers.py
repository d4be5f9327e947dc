"""What answers cost: counted, and nothing is sent that a budget has no room for."""

from __future__ import annotations

import asyncio
import re
from collections import deque
from dataclasses import dataclass, replace
from pathlib import Path

import orjson

from promptmill.backends.protocol import CallStats, Request, Sink, Source
from promptmill.config.models import ResolvedConfig
from promptmill.core.errors import Code, PromptmillError, config_error, input_error
from promptmill.core.money import Budget, dollars
from promptmill.core.outcome import NO_USAGE, Failure, Outcome, Usage
from promptmill.service.prices import Price, Prices, charge, tier_of, unmetered, worst_case
from promptmill.service.wrapped_call import RunCall, WrappedCall
from promptmill.system.installation import command_for

_LONGEST = 1 << 20  # bytes of a line that are read at once
_UNKNOWN_MODEL = "The cost leaves out rows that name a model whose price is not known."
_UNKNOWN_USAGE = "The cost leaves out requests for which the endpoint reported no usage."


class BudgetedAnswers:
    """Counts into `CallStats.cost`. `budget` is the process's; a call's or job's own is `CallStats.budget`."""

    def __init__(self, run: RunCall, plan: ResolvedConfig, price: Price, budget: Budget | None) -> None:
        self._run = run
        self._prices = Prices(plan, price)
        self._budget = budget
        self._tier = tier_of(plan.settings.extra_params)

    async def run(self, source: Source, sink: Sink, stats: CallStats) -> None:
        """Run the backend as long as there is room; what is left then fails with code `budget`."""
        budgets = [budget for budget in (self._budget, stats.budget) if budget is not None]
        stats.cost = stats.cost or 0.0
        if not budgets:
            counting = _Counting(source, sink, stats, self._prices, self._tier)
            await self._run(counting if await self._names_others(source) else source, counting, stats)
            return
        call = _Call(source, sink, stats, self._prices, budgets)
        stats.charges = call
        try:
            await self._run(call, call, stats)
            while await call.goes_on():
                await self._run(call, call, stats)
        finally:
            stats.charges = None
            call.leave()

    async def _names_others(self, source: Source) -> bool:
        """Return whether rows of a file may name another model; a gigabyte takes about a second."""
        if source.reading is None or source.path is None:
            return source.reading is not None
        own = re.escape(orjson.dumps(self._prices.model))
        other = re.compile(rb'"model"\s*:(?!\s*%b\s*[,}])' % own)
        return await asyncio.to_thread(_finds, source.path, other)


def _finds(path: Path, pattern: re.Pattern[bytes]) -> bool:
    with path.open("rb") as file:
        return any(b'"model"' in line and pattern.search(line) for line in iter(lambda: file.readline(_LONGEST), b""))


def unknown_price(model: str) -> PromptmillError:
    """Return why there can be no budget."""
    return config_error(
        "max_cost",
        f"the price of {model or 'this model'} is not known; say it per million tokens, "
        "--set 'price={input: 1, output: 2}' or `price:` in the file; or install the list of prices: "
        f"{command_for('prices')}.",
    )


class _Counting(WrappedCall):
    """Counts what answers cost; as the source too, by the models that its requests name."""

    def __init__(self, source: Source, sink: Sink, stats: CallStats, prices: Prices, tier: str) -> None:
        super().__init__(source, sink, stats)
        self._prices, self._tier = prices, tier
        self._others: dict[int, Price | None] = {}

    async def take(self, n: int) -> list[Request]:
        """Return requests, having noted which of them name another model."""
        requests = await self._source.take(n)
        for request in requests:
            if (price := self._prices.of(request)) is not self._prices.own:
                self._others[request.key] = price
        return requests

    async def put(self, key: int, outcome: Outcome) -> None:
        """Count and pass on."""
        if unmetered(outcome):
            self._stats.warn(_UNKNOWN_USAGE)
        price = self._others.pop(key, self._prices.own)
        if price is None:
            self._stats.warn(_UNKNOWN_MODEL)
            await self._sink.put(key, outcome)
            return
        cost = charge(outcome, price, self._tier, 0.0)
        self._stats.cost = (self._stats.cost or 0.0) + cost
        await self._sink.put(key, replace(outcome, cost=cost))


@dataclass(slots=True)
class _Account:
    """One item of a call: what a request for it can cost, what is reserved for it, and what it cost before."""

    request: Request
    price: Price
    worst: float
    tier: str
    reserved: float = 0.0
    sent: bool = False
    cost: float = 0.0
    usage: Usage = NO_USAGE


class _Call(WrappedCall):
    """Source and sink around a call's own."""

    def __init__(self, source: Source, sink: Sink, stats: CallStats, prices: Prices, budgets: list[Budget]) -> None:
        super().__init__(source, sink, stats)
        self._prices, self._budgets = prices, budgets
        self._held: deque[_Account] = deque()
        self._open: dict[int, _Account] = {}
        self._is_full = self._goes_on = False
        self._first: Request | None = None

    @property
    def is_rest(self) -> bool:
        """Whether what it brings now is little, for which no workers are worth their start."""
        return self._goes_on or self._source.is_rest

    async def take(self, n: int) -> list[Request]:
        """Return up to `n` requests that there is room for; `[]` when there is none, until `goes_on`."""
        taken = [] if self._first is None else [self._first]
        self._first = None
        while len(taken) < n and not self._is_full:
            if not self._held and (taken or not await self._hold(n)):
                break  # a source that waits for more is not to hold these up
            if self._held and self._open_next():
                taken.append(self._held.popleft().request)
        return taken

    async def put(self, key: int, outcome: Outcome) -> None:
        """Charge the outcome of `key`, and pass it on unless the item is to be sent again."""
        account = self._open.pop(key)
        cost = charge(outcome, account.price, account.tier, account.worst)
        self._settle(account.reserved, cost)
        self._stats.cost = (self._stats.cost or 0.0) + cost
        account.cost += cost
        if isinstance(outcome, Failure) and outcome.error.code is Code.BUDGET:
            account.usage += outcome.usage
            account.request = replace(account.request, attempts=outcome.attempts)
            account.reserved, account.sent = 0.0, False
            self._held.append(account)
            self._stats.done -= 1  # the backend is about to count it
            self._stats.forgive(Code.BUDGET)
            return
        await self._sink.put(key, replace(outcome, cost=account.cost, usage=outcome.usage + account.usage))

    def sent(self, key: int) -> float:
        """Note that a request for `key` is on its way; return the most that it can cost."""
        account = self._open[key]
        account.sent = True
        return account.worst

    def again(self, key: int) -> bool:
        """Reserve room for another request for `key`; return whether there was some."""
        account = self._open[key]
        if not self._reserve(account.worst):
            return False
        account.reserved += account.worst
        return True

    async def goes_on(self) -> bool:
        """Return whether there is more to send, once there is room for it; when there never will be, fail the rest."""
        while self._held:
            worst = self._held[0].worst
            if not all(budget.fits(worst) for budget in self._budgets):
                await self._fail_rest(worst)
                return False
            # a few large rounds instead of many small ones
            if all(budget.is_settled for budget in self._budgets) and self._open_next():
                self._first = self._held.popleft().request
                self._is_full, self._goes_on = False, True
                return True
            await next(budget for budget in self._budgets if not budget.is_settled).changed()
        return False

    def leave(self) -> None:
        """Give back what is still reserved, but charge what was on its way when the call was cancelled."""
        for account in self._open.values():
            self._settle(account.reserved, account.reserved if account.sent else 0.0)
        self._open.clear()

    async def _hold(self, n: int) -> bool:
        """Take requests from the source; return whether it had some."""
        requests = await self._source.take(n)
        for request in requests:
            try:
                if (price := self._prices.of(request)) is None:
                    model = str(request.extra["model"])[:60]
                    raise input_error(f"The item names the model {model!r}, whose price is not known to the budget.")
                tier = tier_of(request.extra)
                self._held.append(_Account(request, price, price.cost(worst_case(request), tier), tier))
            except PromptmillError as error:
                await self._fail(request, error)
        return bool(requests)

    def _open_next(self) -> bool:
        """Reserve room for a request of the first held item; return whether there was some."""
        account = self._held[0]
        self._is_full = not self._reserve(account.worst)
        if not self._is_full:
            account.reserved = account.worst
            self._open[account.request.key] = account
        return not self._is_full

    def _reserve(self, amount: float) -> bool:
        for place, budget in enumerate(self._budgets):
            if not budget.reserve(amount):
                for before in self._budgets[:place]:
                    before.settle(amount, 0.0)
                return False
        return True

    def _settle(self, amount: float, spent: float) -> None:
        for budget in self._budgets:
            budget.settle(amount, spent)

    async def _fail_rest(self, worst: float) -> None:
        full = next(budget for budget in self._budgets if not budget.fits(worst))
        aside = (
            f"{dollars(full.set_aside)} is set aside for jobs and for requests that a kill cut off, "
            if full.set_aside
            else ""
        )
        error = PromptmillError(
            Code.BUDGET,
            f"The budget of {dollars(full.limit)} has no room for another request: {dollars(full.spent)} is spent, "
            f"{aside}and the next could cost {dollars(worst)}.",
        )
        while self._held:
            account = self._held.popleft()
            await self._fail(account.request, error, account)
        failure = Failure(error)  # one object for all items that were never sent
        while requests := await self._source.take(256):
            for request in requests:
                if request.attempts:
                    await self._fail(request, error)
                else:
                    await self._sink.put(request.key, failure)
                    self._stats.settle(failure)
            await asyncio.sleep(0)  # there may be hundreds of thousands

    async def _fail(self, request: Request, error: PromptmillError, account: _Account | None = None) -> None:
        """Settle an item that is not sent, or not sent again: `account` has what it cost and what is counted of it."""
        failure = Failure(error, request.attempts)
        spent = failure if account is None else replace(failure, usage=account.usage, cost=account.cost or None)
        await self._sink.put(request.key, spent)
        self._stats.settle(failure)
