"""Amounts of money as text."""

from __future__ import annotations

import math

_DIGITS = 2


def dollars(amount: float) -> str:
    """Return an amount of US dollars with two digits that count: `$1,234.50`, `$0.012`, `$0.000072`."""
    places = _DIGITS if amount <= 0 else max(_DIGITS, _DIGITS - 1 - math.floor(math.log10(amount)))
    return f"${amount:,.{places}f}"
