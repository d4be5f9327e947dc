"""What answers cost: counted, and nothing is sent that a budget has no room for."""

from __future__ import annotations

from collections import deque
from dataclasses import replace

from promptmill.backends.protocol import CallStats, Request, Sink, Source
from promptmill.config.models import ResolvedConfig
from promptmill.core.errors import Code, PromptmillError, config_error
from promptmill.core.money import Budget, dollars
from promptmill.core.outcome import Failure, Outcome, Usage
from promptmill.service.prices import Price, worst_case
from promptmill.service.wrapped_call import RunCall, WrappedCall
from promptmill.system.installation import command_for

# The endpoint may have written, and charge, an answer that nobody waited for.
_PERHAPS_CHARGED = frozenset({Code.TIMEOUT, Code.ITEM_TIMEOUT})


class BudgetedAnswers:
    """Counts into `CallStats.cost`. `budget` is the process's; a call's or job's own is `CallStats.budget`."""

    def __init__(self, run: RunCall, price: Price, budget: Budget | None) -> None:
        self._run = run
        self._price = price
        self._budget = budget

    async def run(self, source: Source, sink: Sink, stats: CallStats) -> None:
        """Run the backend as long as there is room; what is left then fails with code `budget`."""
        budgets = [budget for budget in (self._budget, stats.budget) if budget is not None]
        stats.cost = stats.cost or 0.0
        if not budgets:
            await self._run(source, _Counting(sink, stats, self._price), stats)
            return
        call = _Call(source, sink, stats, self._price, budgets)
        try:
            await self._run(call, call, stats)
            while await call.goes_on():
                await self._run(call, call, stats)
        finally:
            call.leave()


def unknown_price(plan: ResolvedConfig) -> PromptmillError:
    """Return why there can be no budget."""
    return config_error(
        "max_cost",
        f"the price of {plan.model or 'this model'} is not known; say it per million tokens, "
        "--set 'price={input: 1, output: 2}' or `price:` in the file; or install the list of prices: "
        f"{command_for('prices')}.",
    )


class _Counting:
    """A sink that counts what answers cost."""

    def __init__(self, sink: Sink, stats: CallStats, price: Price) -> None:
        self._sink, self._stats, self._price = sink, stats, price

    async def put(self, key: int, outcome: Outcome) -> None:
        """Count and pass on."""
        await self._sink.put(key, replace(outcome, cost=self.count(outcome)))

    def count(self, outcome: Outcome) -> float:
        """Return what has been spent since the last outcome, for this one and for attempts that became none."""
        stats, priced = self._stats, self._stats.priced
        grown = Usage(
            max(0, stats.prompt_tokens - priced.prompt_tokens),
            max(0, stats.completion_tokens - priced.completion_tokens),
        )
        stats.priced = priced + grown + outcome.usage
        cost = self._price.cost(outcome.usage) + self._price.cost(grown)
        stats.cost = (stats.cost or 0.0) + cost
        return cost


class _Call(WrappedCall):
    """Source and sink around a call's own."""

    def __init__(self, source: Source, sink: Sink, stats: CallStats, price: Price, budgets: list[Budget]) -> None:
        super().__init__(source, sink, stats)
        self._price, self._budgets = price, budgets
        self._counting = _Counting(sink, stats, price)
        self._held: deque[Request] = deque()
        self._reserved: dict[int, float] = {}
        self._is_full = self._goes_on = False
        self._first: Request | None = None
        self._attempts: dict[int, int] = {}
        self._sent_before, self._settled_attempts = stats.requests, 0

    @property
    def is_rest(self) -> bool:
        """Whether what it brings now is little, for which no workers are worth their start."""
        return self._goes_on or self._source.is_rest

    async def take(self, n: int) -> list[Request]:
        """Return up to `n` requests that there is room for; `[]` when there is none, until `goes_on`."""
        taken = [] if self._first is None else [self._first]
        self._first = None
        while len(taken) < n and not self._is_full:
            if not self._held:
                if taken:
                    break  # a source that waits for more is not to hold these up
                self._held.extend(await self._source.take(n))
                if not self._held:
                    break
            request = self._held[0]
            try:
                worst = self._price.cost(worst_case(request))
            except PromptmillError as error:
                self._held.popleft()
                await self._fail(request, error)
                continue
            if self._reserve(worst):
                self._held.popleft()
                self._note(request, worst)
                taken.append(request)
            else:
                self._is_full = True
        return taken

    async def put(self, key: int, outcome: Outcome) -> None:
        """Settle what was reserved for `key`."""
        reserved, spent = self._reserved.pop(key, 0.0), self._counting.count(outcome)
        self._settled_attempts += outcome.attempts - self._attempts.pop(key, 0)
        cost = spent
        if isinstance(outcome, Failure) and outcome.error.code in _PERHAPS_CHARGED:
            cost = max(cost, reserved)
        for budget in self._budgets:
            budget.settle(reserved, cost)
        await self._sink.put(key, replace(outcome, cost=spent))

    async def goes_on(self) -> bool:
        """Return whether there is more to send, once there is room for it; when there never will be, fail the rest."""
        while self._held:
            worst = self._price.cost(worst_case(self._held[0]))
            if not all(budget.fits(worst) for budget in self._budgets):
                await self._fail_rest(worst)
                return False
            # a few large rounds instead of many small ones
            if all(budget.is_settled for budget in self._budgets) and self._reserve(worst):
                self._first = self._held.popleft()
                self._note(self._first, worst)
                self._is_full, self._goes_on = False, True
                return True
            await next(budget for budget in self._budgets if not budget.is_settled).changed()
        return False

    def leave(self) -> None:
        """Give back what is still reserved, but charge what was on its way when the call was cancelled."""
        in_flight = self._stats.requests - self._sent_before - self._settled_attempts
        for place, reserved in enumerate(sorted(self._reserved.values(), reverse=True)):
            self._settle(reserved, reserved if place < in_flight else 0.0)
        self._reserved.clear()

    def _note(self, request: Request, worst: float) -> None:
        self._reserved[request.key] = worst
        self._attempts[request.key] = request.attempts

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
        error = PromptmillError(
            Code.BUDGET,
            f"The budget of {dollars(full.limit)} has no room for another request: {dollars(full.spent)} is spent, and "
            f"the next could cost {dollars(worst)}.",
        )
        while self._held or (requests := await self._source.take(256)):
            if not self._held:
                self._held.extend(requests)
            await self._fail(self._held.popleft(), error)

    async def _fail(self, request: Request, error: PromptmillError) -> None:
        failure = Failure(error, request.attempts)
        await self._sink.put(request.key, failure)
        self._stats.settle(failure)
