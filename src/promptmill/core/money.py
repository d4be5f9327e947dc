"""Budgets: an amount is reserved before a request is sent, and charged afterwards. Also texts of amounts and prices."""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import Mapping

from promptmill.core.errors import input_error
from promptmill.core.values import JsonDict

_DIGITS = 2
_AMOUNT = r"(?:\d+(?:\.\d+)?|\.\d+)"
_IN_OUT = re.compile(rf"{_AMOUNT}/{_AMOUNT}(?:/{_AMOUNT})?")
_CLOSE = 1e-9  # the largest rounding error of a sum of amounts


class Budget:
    """One spending limit. It belongs to one event loop."""

    def __init__(self, limit: float, spent: float = 0.0, set_aside: float = 0.0) -> None:
        """`spent`: the amount that earlier runs spent. `set_aside`: the highest cost of requests that were lost."""
        self.limit = limit
        self.spent = spent
        self.set_aside = set_aside
        self._reserved = self._excess = 0.0
        self._waiting: list[asyncio.Future[None]] = []

    def reserve(self, amount: float, excess: float = 0.0) -> bool:
        """Reserve `amount`; return False if the limit does not allow it.

        `excess`: the additional cost if the model's answer is longer than its form allows. If the limit does not allow
        the excesses of all open requests together, only one request with an excess may be open.
        """
        room = self.limit + _CLOSE - self.spent - self.set_aside - self._reserved - amount
        if room < 0 or (excess and self._excess and self._excess + excess > room):
            return False
        self._reserved += amount
        self._excess += excess
        return True

    def charge(self, reserved: float, spent: float, excess: float = 0.0) -> None:
        """Release the reserved amount `reserved` and its `excess`, and charge the amount `spent`."""
        self._reserved = max(0.0, self._reserved - reserved)
        self._release(excess)
        self.spent += spent
        self._changed()

    def set_reserved_aside(self, amount: float, excess: float = 0.0) -> None:
        """Set aside an `amount` that was reserved, because the request's cost will be known only hours later. Release
        the reserved `excess`."""
        self._reserved = max(0.0, self._reserved - amount)
        self._release(excess)
        self.set_aside += amount
        self._changed()

    def lend(self, most: float | None) -> float:
        """Set aside up to `most`, or the whole free amount if `most` is None. Return the amount set aside."""
        room = max(0.0, self.limit - self.spent - self.set_aside - self._reserved)
        lent = room if most is None else min(room, max(0.0, most))
        self.set_aside += lent
        return lent

    def free(self, set_aside: float, spent: float) -> None:
        """Release the amount `set_aside` for requests, and charge `spent`, the amount that these requests cost."""
        self.set_aside = max(0.0, self.set_aside - set_aside)
        self.spent += spent
        self._changed()

    def _release(self, excess: float) -> None:
        rest = self._excess - excess
        self._excess = rest if rest > _CLOSE else 0.0

    def _changed(self) -> None:
        waiting, self._waiting = self._waiting, []
        for waiter in waiting:
            if not waiter.done():
                waiter.set_result(None)

    def fits(self, amount: float) -> bool:
        """Return whether the limit would allow `amount` if nothing were reserved."""
        return self.spent + self.set_aside + amount <= self.limit + _CLOSE

    @property
    def nothing_reserved(self) -> bool:
        """Whether no amount is reserved."""
        return self._reserved <= _CLOSE and not self._excess

    async def changed(self) -> None:
        """Wait until an amount is charged or released."""
        waiter = asyncio.get_running_loop().create_future()
        self._waiting.append(waiter)
        await waiter


def dollars(amount: float) -> str:
    """Return an amount of US dollars with two significant digits: `$1,234.50`, `$0.012`, `$0.000072`.

    >>> dollars(1234.5), dollars(0.0000721)
    ('$1,234.50', '$0.000072')
    """
    places = _DIGITS if amount <= 0 else max(_DIGITS, _DIGITS - 1 - math.floor(math.log10(amount)))
    return f"${amount:,.{places}f}"


def prices_in(given: object) -> JsonDict:
    """Return the prices in a value of the option `price`, by model. The price of the job's model has the key `""`.

    The value is `IN/OUT`, `IN/OUT/BATCH` (BATCH: the share of the price that a batch costs), `MODEL=IN/OUT`, a list of
    these, two numbers, or a mapping from models to prices. Raises `PromptmillError` (`invalid_input`).

    >>> prices_in("1/2"), prices_in(["small=0.1/0.4", "good=2/8"]), prices_in({"small": (0.1, 0.4)})
    ({'': '1/2'}, {'small': '0.1/0.4', 'good': '2/8'}, {'small': (0.1, 0.4)})
    """
    match given:
        case None:
            return {}
        case str():
            name, _, price = given.rpartition("=")
            if _IN_OUT.fullmatch(price):
                return {name: price}
        case {"input": _, "output": _}:
            return {"": given}
        case Mapping() if all([*prices_in(price)] == [""] for price in given.values()):
            return {str(name): prices_in(price)[""] for name, price in given.items()}
        case [float() | int(), float() | int()]:
            return {"": given}
        case [*entries]:
            return {name: price for entry in entries for name, price in prices_in(entry).items()}
    raise input_error(f"{str(given)[:60]!r} is no price; write IN/OUT or MODEL=IN/OUT, such as 0.25/2.")
