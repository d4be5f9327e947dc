"""How much is done before the event loop looks elsewhere: pings, progress and other calls come in between."""

from __future__ import annotations

import asyncio
from collections import deque

# Half a millisecond of work. Without it, 256 answers that lie ready are all taken up in one turn of the loop, and a
# ping, which needs ten turns, waits for ten such batches (0.3 s). Small batches run a fifth faster, too, in the cache.
_PER_TURN = 8


class Pace:
    """Lets at most `_PER_TURN` items begin in one turn of the event loop, over all calls."""

    def __init__(self) -> None:
        self._left = _PER_TURN
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._ticking = False

    def pass_now(self) -> bool:
        """Return whether the caller may go on in this turn; if not, it awaits `turn`."""
        if not self._left:
            return False
        self._left -= 1
        if not self._ticking:
            self._ticking = True
            asyncio.get_running_loop().call_soon(self._tick)
        return True

    async def turn(self) -> None:
        """Wait for a turn that has room."""
        future = asyncio.get_running_loop().create_future()
        self._waiting.append(future)
        await future

    def _tick(self) -> None:
        idle = self._left == _PER_TURN
        self._left = _PER_TURN
        while self._waiting and self._left:
            future = self._waiting.popleft()
            if not future.done():
                future.set_result(None)
                self._left -= 1
        self._ticking = not idle or self._left < _PER_TURN
        if self._ticking:
            asyncio.get_running_loop().call_soon(self._tick)
