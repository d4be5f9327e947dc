"""Limits on the jobs of calls, of which a client can start any number: how many are in progress and have open files.

A job that sends requests has eight files open, so only a part of a server's jobs can run at a time. The others wait for
a place, with their files closed. A free place goes to the session with the fewest running jobs.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable

from promptmill.core.errors import Code, PromptmillError
from promptmill.system.runtime import descriptors

_FILES = 8  # open files of a running job: lock, input, database (2), its log and index, ledger (2)
_FILES_SHARE = 4  # jobs take 1/4 of the descriptors: over HTTP clients have 1/2, and endpoints need some
_MOST_OPEN = 256  # each takes a megabyte of memory
# Bounds of the queue: a waiting job takes a few kilobytes of memory, and one session may fill half of it.
_MOST_OF_SESSION, _MOST_IN_PROGRESS = 1000, 2000


class Places:
    """The places for jobs that run in this process, and the queue for them.

    ```
    place = places.take(session)
    await place.entry.wait()
    ...  # the job runs
    place.leave()
    ```
    """

    def __init__(self, count: int, *, count_of_session: int | None = None) -> None:
        """`count_of_session`: the most places of one session; None: all."""
        self._count = count
        self._count_of_session = count if count_of_session is None else count_of_session
        self._taken: dict[Place, None] = {}
        self._queue: dict[Place, None] = {}

    @classmethod
    def of_process(cls, *, is_shared: bool) -> Places:
        """Return as many places as the descriptors of this process allow.

        `is_shared`: each session gets at most half of them, so that one client's long jobs leave room for others.
        """
        count = min(_MOST_OPEN, descriptors(_MOST_OPEN * _FILES * _FILES_SHARE) // _FILES_SHARE // _FILES)
        count = max(1, count)
        return cls(count, count_of_session=(count + 1) // 2 if is_shared else count)

    def take(self, session: str) -> Place:
        """Return a place for a job of `session`, which may be in the queue still.

        Raises `PromptmillError` (`rate_limited`) if too many jobs are in progress.
        """
        sessions = [place.session for place in (*self._taken, *self._queue)]
        for count, most, whose in (
            (sessions.count(session), _MOST_OF_SESSION, "this client"),
            (len(sessions), _MOST_IN_PROGRESS, "this server"),
        ):
            if count >= most:
                raise PromptmillError(
                    Code.RATE_LIMITED,
                    f"Too many tasks of {whose} are in progress ({count:,}); nothing was sent.",
                    "Try again when some of them have ended.",
                )
        place = Place(session, self._left)
        self._queue[place] = None
        self._fill()
        return place

    def _left(self, place: Place) -> None:
        self._queue.pop(place, None)
        self._taken.pop(place, None)
        self._fill()

    def _fill(self) -> None:
        """Give the free places to jobs in the queue."""
        while len(self._taken) < self._count:
            running = Counter(place.session for place in self._taken)
            allowed = [place for place in self._queue if running[place.session] < self._count_of_session]
            if not allowed:
                break
            place = min(allowed, key=lambda place: running[place.session])  # the oldest of them
            del self._queue[place]
            self._taken[place] = None
            place.entry.set()


class Place:
    """The place of one job, from `Places.take` until `leave`."""

    def __init__(self, session: str, leave: Callable[[Place], None]) -> None:
        self.session = session
        self.entry = asyncio.Event()
        """Set when the job may open its files."""
        self._leave = leave

    def leave(self) -> None:
        """Leave the place or the queue; a second call does nothing."""
        self._leave(self)
