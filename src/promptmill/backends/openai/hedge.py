"""`hedge: true`: a request that takes much longer than others is sent a second time. The first answer is used."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import replace

from promptmill.backends.openai.sender import Billed, Item
from promptmill.backends.protocol import Completion, Outcome, billed

# A request is late if it takes `_STRAGGLER` times as long as the `_PERCENTILE` quantile of recent requests.
_STRAGGLER = 2
_PERCENTILE = 0.95
_KEPT_TIMES = 200
_FEWEST_ANSWERS = 20
_TWIN_SHARE = 0.05


class Hedge:
    """Wraps the function `answer`, which returns the outcome of an item of one call."""

    def __init__(self, answer: Callable[[Item], Awaitable[Outcome]]) -> None:
        self._answer = answer
        self._times: deque[float] = deque(maxlen=_KEPT_TIMES)
        self._sent = self._twins = 0

    async def answer(self, item: Item) -> Outcome:
        """Return the first answer to `item` or its copy; if neither is answered, the failure of `item`."""
        self._sent += 1
        times = sorted(self._times)
        slow_s = _STRAGGLER * times[int(_PERCENTILE * len(times))] if len(times) >= _FEWEST_ANSWERS else None
        winner = asyncio.ensure_future(self._answer(item))
        racing, attempts = {winner: item}, 0
        try:
            done, _ = await asyncio.wait(racing, timeout=slow_s)
            may_race = not done and self._twins < _TWIN_SHARE * self._sent
            if may_race and (twin := await _twin_of(item)) is not None and not winner.done():
                self._twins += 1
                attempts = twin.attempts
                racing[asyncio.ensure_future(self._answer(twin))] = twin
            for when in (asyncio.FIRST_COMPLETED, asyncio.ALL_COMPLETED):
                done, _ = await asyncio.wait(racing, return_when=when)
                if answered := [task for task in done if isinstance(task.result(), Completion)]:
                    winner = answered[0]
                    break
        finally:
            for task in racing:
                task.cancel()
            await asyncio.gather(*racing, return_exceptions=True)
        outcome = winner.result()
        if len(racing) == 1:
            if isinstance(outcome, Completion):
                self._times.append(outcome.latency_s)
            return outcome
        ((lost, loser),) = ((task, entrant) for task, entrant in racing.items() if task is not winner)
        spent, unmetered = billed(outcome)
        own = loser.billed or Billed()
        lost_spent, lost_unmetered = (own.spent, own.unmetered) if lost.cancelled() else billed(lost.result())
        return replace(
            outcome,
            attempts=sum(entrant.attempts for entrant in racing.values()) - attempts,
            usage=sum((usage for usage, _ in lost_spent), outcome.usage),
            spent=(*spent, *lost_spent),
            unmetered=unmetered + lost_unmetered,
        )


async def _twin_of(item: Item) -> Item | None:
    """Return a copy of `item`, for another endpoint if possible; None if it has had no permit, or no budget is left."""
    account = item.request.account
    if item.permit is None or not (account is None or await account.reserve_again()):
        return None
    twin, slow = Item(item.request), item.permit.endpoint_state
    twin.attempts, twin.failed_at, twin.failed_serial = item.attempts, slow, slow.load.sent
    return twin
