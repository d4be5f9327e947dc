"""Limits the requests started per event-loop iteration, so that pings, progress and other calls get their turn."""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Callable

# Half a millisecond of work. Without it, 256 answers that lie ready are all taken up in one turn of the loop, and a
# ping, which needs ten turns, waits for ten such batches (0.3 s). Small batches run a fifth faster, too, in the cache.
# Answers are handed out in such portions, too: twice as many may begin, so that what follows them need not queue.
ANSWERS_PER_TURN = 8
_PER_TURN = 2 * ANSWERS_PER_TURN
# The load is averaged over this long, so that one pause of the endpoint does not look like time to spare.
_MEMORY_S = 0.25
_SATURATED = 0.8


class LoopThrottle:
    """Lets at most `_PER_TURN` items begin in one turn of the event loop, over all calls, and measures its load.

    Times are seconds of `clock`.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock = clock
        self._left = _PER_TURN
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._ticking = False
        self._since = clock()  # the process sends since then, or does not
        self._idle_s = 0.0
        self._load = 0.0

    def pass_now(self) -> bool:
        """Return whether the caller may go on in this turn; if not, it awaits `turn`."""
        if not self._left:
            return False
        self._left -= 1
        if not self._ticking:
            self._note(self.clock())
            self._ticking = True
            asyncio.get_running_loop().call_soon(self._tick)
        return True

    async def turn(self) -> None:
        """Wait for a turn with room."""
        future = asyncio.get_running_loop().create_future()
        self._waiting.append(future)
        await future

    def idle_s(self, now: float) -> float:
        """Return for how many seconds until `now` there was nothing to send."""
        return self._idle_s if self._ticking else self._idle_s + now - self._since

    def is_limit(self, since: float, idle_s: float) -> bool:
        """Return whether this process, and not the endpoint, is what limits the rate: more in flight would only wait.

        `since` is when something was begun, `idle_s` what `idle_s` said then.
        """
        now = self.clock()
        if self.idle_s(now) - idle_s < (1 - _SATURATED) * (now - since):
            return True
        self._note(now)
        return self._load > _SATURATED

    def _note(self, now: float) -> None:
        """Add what has passed since the last note to the average load and to the idle time."""
        passed, self._since = now - self._since, now
        fading = math.exp(-passed / _MEMORY_S)
        self._load *= fading
        if self._ticking:
            self._load += 1 - fading
        else:
            self._idle_s += passed

    def _tick(self) -> None:
        idle = self._left == _PER_TURN
        self._left = _PER_TURN
        while self._waiting and self._left:
            future = self._waiting.popleft()
            if not future.done():
                future.set_result(None)
                self._left -= 1
        if not idle or self._left < _PER_TURN:
            asyncio.get_running_loop().call_soon(self._tick)
        else:
            self._note(self.clock())
            self._ticking = False
