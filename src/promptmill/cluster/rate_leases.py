"""`rpm` and `tpm` of an endpoint, leased in equal parts to the replicas that are there."""

from __future__ import annotations

import asyncio
from typing import Protocol


class LostError(Exception):
    """A replica is gone, with all that it held; it may be there again after `load`."""


class Lessee(Protocol):
    """Who keeps to a part of the rates."""

    async def lease(self, share: float) -> None:
        """Use no more than this part of `rpm` and `tpm` from now on. Raises `LostError`."""
        ...


class RateLeases:
    """Never more than the whole is out: who gets less is told before who gets more, and who is new waits.

    One that does not answer keeps its part until it is found to be lost; then the others get it.
    """

    def __init__(self) -> None:
        self._shares: dict[Lessee, float] = {}
        self._has_one: dict[Lessee, asyncio.Event] = {}
        self._changed = asyncio.Event()

    def joined(self, one: Lessee) -> asyncio.Event:
        """Note that a replica is there; it may send once the event is set."""
        self._shares[one] = 0
        self._has_one[one] = asyncio.Event()
        self._changed.set()
        return self._has_one[one]

    def left(self, one: Lessee) -> None:
        """Note that a replica is gone, if it was there."""
        if self._shares.pop(one, None) is not None:
            del self._has_one[one]
            self._changed.set()

    async def run(self) -> None:
        """Lease until cancelled."""
        while True:
            await self._changed.wait()
            self._changed.clear()
            share = 1 / max(1, len(self._shares))
            less = [one for one, has in self._shares.items() if has > share]
            more = [one for one, has in self._shares.items() if has < share]
            for told in (less, more):
                await asyncio.gather(*(self._tell(one, share) for one in told))

    async def _tell(self, one: Lessee, share: float) -> None:
        event = self._has_one.get(one)
        try:
            await one.lease(share)
        except LostError:  # who serves it finds out as well
            return
        if event is not None and self._has_one.get(one) is event:  # else it is another process by now
            self._shares[one] = share
            event.set()
