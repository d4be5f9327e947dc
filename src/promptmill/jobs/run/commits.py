"""Gathers outcomes, and writes them to the job's database in commits."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TypeAlias

from promptmill.backends.protocol import Outcome
from promptmill.core.errors import Code, PromptmillError
from promptmill.files import disk
from promptmill.jobs.store.database import DamagedError, JobDatabase

_LARGEST_COMMIT, _MOST_CHARACTERS = 64, 1 << 20
GATHER_S = 0.005
_SYNC_S = 0.9  # seconds between the starts of two syncs, so that answers reach the disk every second
KeyedOutcomes: TypeAlias = list[tuple[int, Outcome]]
"""Outcomes with the keys of their rows."""


class Commits:
    """Writes outcomes in commits of up to 64 outcomes. A commit has the outcomes of one turn of the event loop. If more
    than 64 rows are in flight, the next commit follows at least 5 ms after the last one, with all outcomes until then.
    So after a kill, only the requests in flight must be paid twice. If more than 64 are in flight and more than 200
    outcomes arrive per second, up to 64 outcomes of the last 5 ms must be paid twice, too. A commit takes as much CPU
    time as encoding 20 outcomes, so a commit in each turn would take 25 % more. If commits wait for the disk, a thread
    commits and the caller waits; outcomes that arrive meanwhile are in the next commit."""

    def __init__(
        self, store: JobDatabase, write: Callable[[KeyedOutcomes], None], written: Callable[[KeyedOutcomes], None]
    ) -> None:
        """`write` writes outcomes into the store, perhaps in a thread. `written` is then called in the event loop."""
        self._store, self._write_batch, self._written = store, write, written
        self._waiting = _Waiting()
        self._committing: asyncio.Task[None] | None = None
        self._flushed_at = 0.0
        self._loop = asyncio.get_running_loop()
        self.error: PromptmillError | DamagedError | None = None
        """The error because of which nothing more can be recorded."""
        self.on_error: Callable[[], object] = lambda: None
        """Called in the event loop after `error` was set."""

    def add(self, key: int, outcome: Outcome, in_flight: int) -> None:
        """Add an outcome to the next commit. `in_flight`: the number of rows in flight."""
        waiting = self._waiting
        batch = waiting.outcomes
        if not batch:
            is_soon = self._store.waits_for_disk or in_flight <= _LARGEST_COMMIT
            due = 0.0 if is_soon else max(0.0, self._flushed_at + GATHER_S - self._loop.time())
            self._loop.call_later(due, self._gathered, batch)
        batch.append((key, outcome))
        waiting.characters += len(outcome.text)
        is_full = len(batch) >= _LARGEST_COMMIT or waiting.characters >= _MOST_CHARACTERS
        if is_full and not self._store.waits_for_disk:
            self._flush()

    def committed(self) -> Awaitable[None] | None:
        """Return an awaitable that ends with the commit of all outcomes so far; None if commits need no wait."""
        if not self._store.waits_for_disk:
            return None
        waiting = self._waiting
        if waiting.committed is None:
            waiting.committed = self._loop.create_future()
        return asyncio.shield(waiting.committed)

    async def keep_synced(self) -> None:
        """Sync written outcomes to disk at least once a second, until cancelled."""
        while self.error is None:
            began = time.monotonic()
            syncing = asyncio.ensure_future(asyncio.to_thread(self._store.sync))
            try:
                await asyncio.shield(syncing)
            except asyncio.CancelledError:
                await asyncio.wait({syncing})  # the sync must end before the caller closes the database
                syncing.exception()
                raise
            except FileNotFoundError:
                self._break("was removed while the job ran", "Run the job again; it begins anew.")
            except OSError as error:
                self._break(f"cannot be kept: {disk.why(error)}")
            except DamagedError as error:
                self._end(error)
            await asyncio.sleep(max(0.0, began + _SYNC_S - time.monotonic()))

    async def aclose(self) -> None:
        """Write all outcomes that were added."""
        if self._committing is not None:
            await asyncio.wait({self._committing})
        self._flush()

    def _gathered(self, batch: KeyedOutcomes) -> None:
        if batch is not self._waiting.outcomes:  # the batch was full, so it is already written
            return
        if not self._store.waits_for_disk:
            self._flush()
        elif self._committing is None and self._waiting.outcomes:
            self._committing = self._loop.create_task(self._commit())

    async def _commit(self) -> None:
        """Write batches in a thread until no outcome is waiting."""
        while self._waiting.outcomes:
            waiting, self._waiting = self._waiting, _Waiting()
            await asyncio.to_thread(self._write, waiting.outcomes)
            if self.error is None:
                self._written(waiting.outcomes)
            if waiting.committed is not None:
                waiting.committed.set_result(None)
        self._committing = None

    def _flush(self) -> None:
        if batch := self._waiting.outcomes:
            self._waiting = _Waiting()
            self._flushed_at = self._loop.time()
            self._write(batch)
            if self.error is None:
                self._written(batch)

    def _write(self, batch: KeyedOutcomes) -> None:
        if self.error is not None:
            return
        try:
            self._write_batch(batch)
        except OSError as error:
            self._break(f"cannot be written: {disk.why(error)}")
        except DamagedError as error:
            self._end(error)

    def _break(self, reason: str, hint: str | None = None) -> None:
        self._end(PromptmillError(Code.STORAGE, f"The job's database {self._store.path} {reason}.", hint))

    def _end(self, error: PromptmillError | DamagedError) -> None:
        self.error = self.error or error
        self._loop.call_soon_threadsafe(self.on_error)


@dataclass(slots=True)
class _Waiting:
    """Outcomes that are not yet written. If commits wait for the disk, the callers await the future `committed`."""

    outcomes: KeyedOutcomes = field(default_factory=list)
    characters: int = 0
    """The total length of the outcomes' texts in characters."""
    committed: asyncio.Future[None] | None = None
