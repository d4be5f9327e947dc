"""The early end of a run: either at once, or after the requests in flight have ended."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from promptmill.core.errors import PromptmillError
from promptmill.core.wording import counted
from promptmill.jobs.store import progress as states
from promptmill.jobs.store.control import Control
from promptmill.jobs.store.progress import Progress

_DROPPED = " in flight ended with the job, and may be charged; when it is resumed, their rows are sent again."


class Stopped(Exception):  # noqa: N818 (it ends a run early, and is never raised to the run's caller)
    """Ends a run early. `state` is the job's new state, and `error` the error that ended the run, if there is one."""

    def __init__(self, state: str, error: PromptmillError | None = None) -> None:
        super().__init__(state)
        self.state = state
        self.error = error


class Ending:
    """The early end of one run. If there are several reasons to end it, the first one counts.

    After `leave`, the run takes no new rows, and waits at most `leaving_s` seconds for its requests in flight, because
    these must be paid in any case.
    """

    def __init__(self, progress: Progress, leaving_s: float, shown: Callable[[], None]) -> None:
        """`shown` is called when the run begins to wait for its requests in flight."""
        self.stopped: Stopped | None = None
        """The early end of the run; None if the run has not been ended early."""
        self.after_flight: Stopped | None = None
        """The early end of the run, while it still waits for its requests in flight."""
        self._progress, self._shown = progress, shown
        self._leaving_s = leaving_s
        self._working: asyncio.Task[None] | None = None
        self._waiting: asyncio.TimerHandle | None = None
        """The timer that ends the wait for the requests in flight."""

    async def until_stopped(self, work: Coroutine[Any, Any, None]) -> None:
        """Do the work of the run. Raises `Stopped` if the run is ended early."""
        working = self._working = asyncio.ensure_future(work)
        try:
            await asyncio.wait({working})
        except asyncio.CancelledError:
            if self.stopped is None:  # cancelled only if the run is not already ending
                working.cancel()
            await asyncio.wait({working})
            raise
        finally:
            if self._waiting is not None:
                self._waiting.cancel()
        try:
            working.result()
        except BaseException as error:
            self.stopped = self.stopped or (error if isinstance(error, Stopped) else None)
            if self.stopped is None:
                raise
            raise self.stopped from None

    def stop(self, stopped: Stopped) -> None:
        """End the run at once."""
        if self.stopped is None and self._working is not None:
            self.stopped = stopped
            self._working.cancel()

    def give_up(self, error: PromptmillError) -> None:
        """End the run at once, with the state `stopped` and an error."""
        self.stop(Stopped(states.STOPPED, error))

    def end_without_room(self, error: PromptmillError) -> None:
        """End the run after its requests in flight, because the budget has no room for more."""
        if self.after_flight is None:
            self._end_after_flight(Stopped(states.STOPPED, error))

    def leave(self, state: str = states.INTERRUPTED) -> bool:
        """End the run in `state` after its requests in flight. If there are none, do nothing, and return False."""
        if self._progress.state != states.RUNNING or not self._progress.call.in_flight:
            return False
        if self._waiting is None:
            self._end_after_flight(stopped := Stopped(state))
            self._waiting = asyncio.get_running_loop().call_later(self._leaving_s, self._leave_flight, stopped)
        return True

    def follow(self, control: Control) -> None:
        """Obey a command to cancel the job."""
        if control.cancel and (control.at_once or not self.leave(states.CANCELLED)):
            self._leave_flight(Stopped(states.CANCELLED))
        stopped = self.after_flight
        if stopped is not None and self._progress.is_paused and not self._progress.call.in_flight:
            self.stop(stopped)  # a paused round does not end by itself

    @property
    def is_cancelled(self) -> bool:
        """Whether the user has cancelled the job."""
        return self.stopped is not None and self.stopped.state == states.CANCELLED

    @property
    def words(self) -> str:
        """The activity of a run that ends and waits for its requests in flight; `""` for any other run."""
        if self.after_flight is None:
            return ""
        again = {
            states.INTERRUPTED: "; Ctrl-C again stops at once",
            states.CANCELLED: "; a second cancel ends them at once",
            states.STOPPED: ", as the budget has no more room",
        }[self.after_flight.state]
        return f"finishing {self._progress.call.in_flight} in flight{again}"

    def _end_after_flight(self, stopped: Stopped) -> None:
        self.after_flight = stopped
        self._shown()

    def _leave_flight(self, stopped: Stopped) -> None:
        """End the run without waiting for its requests in flight."""
        notes, in_flight = self._progress.notes, self._progress.call.in_flight
        if in_flight and not any(_DROPPED in note for note in notes):
            notes.append(f"{counted(in_flight, 'request')}{_DROPPED}")
        self.stop(stopped)
