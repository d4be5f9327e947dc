"""How a run of a job ends early: whatever it works on at that moment is ended with it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from promptmill.core.errors import PromptmillError

T = TypeVar("T")


class JobStopped(Exception):  # noqa: N818 (how a run ends early, told to the runner alone)
    """The job's new `state`, and why when it is an `error`."""

    def __init__(self, state: str, error: PromptmillError | None = None) -> None:
        super().__init__(state)
        self.state = state
        self.error = error


class Cancellation:
    """The end that a run comes to before its work is done. Needs a running event loop."""

    def __init__(self) -> None:
        self.halt = threading.Event()
        """Set when a thread is to leave what it does."""
        self._come: asyncio.Future[JobStopped] = asyncio.get_running_loop().create_future()

    def end(self, ended: JobStopped) -> None:
        """End the run; the first reason counts."""
        if not self._come.done():
            self._come.set_result(ended)

    async def or_done(self, work: Coroutine[Any, Any, T]) -> T:
        """Return what `work` returns, unless the run ends before; `work` is ended then. Raises `JobStopped`."""
        task = asyncio.ensure_future(work)
        try:
            return await self._result(task)
        finally:
            task.cancel()
            await _settled(task)

    async def or_left(self, work: Callable[[], T]) -> T:
        """Run what blocks in a thread, which `halt` asks to leave when the run ends before. Raises `JobStopped`."""
        thread = asyncio.ensure_future(asyncio.to_thread(work))
        try:
            return await self._result(thread)
        finally:
            if not thread.done():
                self.halt.set()
            await _settled(thread)

    async def _result(self, work: asyncio.Future[T]) -> T:
        both: set[asyncio.Future[Any]] = {work, self._come}
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        if self._come.done():
            raise self._come.result()
        return await work


async def _settled(work: asyncio.Future[Any]) -> None:
    await asyncio.wait({work})
    work.cancelled() or work.exception()  # told before, or of no interest any more
