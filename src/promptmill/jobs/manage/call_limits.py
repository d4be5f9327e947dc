"""Limits on the jobs of calls and on their open files. Without these, a client could start any number of jobs.

A job that sends requests has eight files open, so a server can run only some of its jobs at a time. The other jobs have
their files closed and wait for a place. A free place goes to the session with the fewest running jobs.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncGenerator
from weakref import WeakValueDictionary

from promptmill.core.bounds import MOST_OPEN, MOST_READERS, MOST_WAITING
from promptmill.core.errors import Code, PromptmillError
from promptmill.system.runtime import descriptors

_FILES = 8  # open files of a running job: lock, input, database (2), its log and index, ledger (2)
_FILES_SHARE = 4  # jobs get 1/4 of the descriptors: HTTP clients have 1/2 of them, and endpoints need some too


class JobPlaces:
    """The places for jobs that run in this process, and the queue for them.

    ```
    place = places.take(session)
    await place.entry.wait()
    ...  # the job runs
    place.leave()
    ```
    """

    def __init__(self, count: int, *, is_shared: bool = False) -> None:
        """`is_shared`: a session gets at most half of the places, so that its long jobs leave room for others."""
        self._count = count
        self._count_of_session = (count + 1) // 2 if is_shared else count
        self._places: list[JobPlace] = []
        """The places of running and waiting jobs, in order of arrival."""

    @classmethod
    def of_process(cls, *, is_shared: bool) -> JobPlaces:
        """Return the places for jobs: as many as the file descriptors of this process allow."""
        count = min(MOST_OPEN, descriptors(MOST_OPEN * _FILES * _FILES_SHARE) // _FILES_SHARE // _FILES)
        return cls(max(1, count), is_shared=is_shared)

    def take(self, session: str) -> JobPlace:
        """Return a place for a job of `session`. The place may still be in the queue.

        Raises `PromptmillError` (`rate_limited`) if too many jobs are in progress.
        """
        count = sum(place.session == session for place in self._places)
        is_full = len(self._places) >= MOST_WAITING
        if is_full or count >= MOST_WAITING // 2:
            whose, count = ("this server", len(self._places)) if is_full else ("this client", count)
            raise PromptmillError(
                Code.RATE_LIMITED,
                f"Too many tasks of {whose} are in progress ({count:,}); nothing was sent.",
                "Try again when some of them have ended.",
            )
        place = JobPlace(session, self)
        self._places.append(place)
        self._fill()
        return place

    def leave(self, place: JobPlace) -> None:
        """Remove a place."""
        if place in self._places:
            self._places.remove(place)
            self._fill()

    def _fill(self) -> None:
        while True:
            running = Counter(place.session for place in self._places if place.entry.is_set())
            waiting = [place for place in self._places if not place.entry.is_set()]
            allowed = [place for place in waiting if running[place.session] < self._count_of_session]
            if not allowed or running.total() >= self._count:
                return
            min(allowed, key=lambda place: running[place.session]).entry.set()  # on a tie, the oldest place


class JobPlace:
    """The place of one job, or its position in the queue, from `JobPlaces.take` until `leave`."""

    def __init__(self, session: str, places: JobPlaces) -> None:
        self.session, self._places = session, places
        self.entry = asyncio.Event()
        """Set when the job may open its files."""

    def leave(self) -> None:
        """Leave the place or the queue; a second call does nothing."""
        self._places.leave(self)


class Readers:
    """The turns of calls that read files: at any time, at most one call of each session and only a few sessions read.

    One process reads the documents of all calls, one after the other. The calls of a session wait for each other, and
    the documents of several sessions take turns, so that no session waits for all files of another one.
    """

    def __init__(self, count: int = MOST_READERS) -> None:
        """`count`: the most calls that read at a time, each in a thread."""
        self._of_session = WeakValueDictionary[str, asyncio.Lock]()
        self._all = asyncio.Semaphore(count)

    @contextlib.asynccontextmanager
    async def turn(self, session: str) -> AsyncGenerator[None]:
        """Wait until a call of a session may read. It may read until the context ends."""
        own = self._of_session.setdefault(session, asyncio.Lock())
        async with own, self._all:
            yield
