"""What may be spent: a budget, reserved before a request is sent and settled after, and amounts as text."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable

_SHARE = 0.02  # of the limit, granted at a time: so often a grant has to be noted, and so much is lost by a kill
_DIGITS = 2
_CLOSE = 1e-9  # sums of floats differ by less


class Budget:
    """One limit. Belongs to one event loop."""

    def __init__(self, limit: float, spent: float = 0.0, *, grant: Callable[[float], None] | None = None) -> None:
        """`spent` was spent before, by earlier runs.

        `grant` notes how much may have been spent should this process be killed, always before that much can be.
        """
        self.limit = limit
        self.spent = spent
        self._reserved = 0.0
        self._grant = grant
        self._granted = spent
        self._waiting: list[asyncio.Future[None]] = []

    def reserve(self, amount: float) -> bool:
        """Set `amount` aside; return whether there was room for it."""
        if self.spent + self._reserved + amount > self.limit + _CLOSE:
            return False
        self._reserved += amount
        if self._grant is not None and self.spent + self._reserved > self._granted:
            self._granted = min(self.limit, self.spent + self._reserved + self.limit * _SHARE)
            self._grant(self._granted)
        return True

    def settle(self, reserved: float, spent: float) -> None:
        """Give back what was reserved and note what was spent of it."""
        self._reserved = max(0.0, self._reserved - reserved)
        self.spent += spent
        waiting, self._waiting = self._waiting, []
        for waiter in waiting:
            if not waiter.done():
                waiter.set_result(None)

    def fits(self, amount: float) -> bool:
        """Return whether there would be room for `amount` if all that is reserved were given back."""
        return self.spent + amount <= self.limit + _CLOSE

    @property
    def is_settled(self) -> bool:
        """Whether nothing is reserved."""
        return self._reserved <= _CLOSE

    async def changed(self) -> None:
        """Wait until something is settled."""
        waiter = asyncio.get_running_loop().create_future()
        self._waiting.append(waiter)
        await waiter


def dollars(amount: float) -> str:
    """Return an amount of US dollars with two digits that count: `$1,234.50`, `$0.012`, `$0.000072`."""
    places = _DIGITS if amount <= 0 else max(_DIGITS, _DIGITS - 1 - math.floor(math.log10(amount)))
    return f"${amount:,.{places}f}"
