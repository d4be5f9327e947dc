"""A live round: a source reads open rows, a service answers them, and a sink records the outcomes."""

from __future__ import annotations

import asyncio
import functools
import itertools
from collections import deque
from collections.abc import Sequence
from dataclasses import replace

from promptmill.backends.protocol import LOOKED_AT, Call, Failure, Source
from promptmill.config.model_config import ModelConfig
from promptmill.core.errors import Code, PromptmillError
from promptmill.core.request import Request
from promptmill.files import disk
from promptmill.jobs.run.commits import GATHER_S
from promptmill.jobs.run.open_rows import OpenRow, OpenRows
from promptmill.jobs.run.store_sink import StoreSink
from promptmill.service.driver import record_outcome
from promptmill.service.service import Service
from promptmill.steps.step import Step

_LARGE = 32 * 1024  # bytes; a larger question is parsed in a thread, not on the event loop


async def answer_rows(
    service: Service,
    rows: OpenRows,
    sink: StoreSink,
    call: Call,
    config: ModelConfig,
    *,
    steps: Sequence[Step] = (),
) -> None:
    """Answer every open row of a round. Rows that name no model are answered by the model of `config`. `steps`: see
    `PlanWork.steps`.

    Raises the `PromptmillError` that ends the run, and `DamagedError`.
    """
    commits = sink.commits
    syncing = asyncio.ensure_future(commits.keep_synced())
    source = RowSource(rows, sink, call)
    try:
        has_images = await source.has_images()
        call.facts = replace(
            call.facts,
            keep_raw=rows.requests[0].reader.keep_raw,
            has_images=has_images,
            checks=rows.checks,
            secret=functools.cache(rows.store.secret),
            vector_bytes=await asyncio.to_thread(rows.vector_bytes),
        )
        answering = asyncio.ensure_future(service.run(source, sink, call, config, steps=steps))
        commits.on_error = answering.cancel
        await answering
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if commits.error is None or (task is not None and task.cancelling()):
            raise
    finally:
        await source.aclose()
        syncing.cancel()
        try:
            await commits.aclose()
        finally:
            await asyncio.wait({syncing})
    if commits.error is not None:
        raise commits.error


class RowSource(Source):
    """Reads the open rows in a thread, one page ahead. Also records the failure of a row that has no valid request."""

    def __init__(self, rows_: OpenRows, sink: StoreSink, call: Call) -> None:
        """`sink` receives the rows that are taken, and the failures of rows without a valid request."""
        self._rows, self._sink, self._call = rows_, sink, call
        self._pages = rows_.in_groups() if rows_.sharing else rows_.pages()
        self._ready: deque[OpenRow] = deque()
        self._ahead: asyncio.Future[list[OpenRow] | None] | None = None
        self._has_ended = False

    async def take(self, n: int) -> list[Request]:
        """Return up to `n` requests. Raises `PromptmillError` (`storage`, or the sink's error) and `DamagedError`."""
        requests: list[Request] = []
        while not requests and await self._fill():
            while self._ready and len(requests) < n:
                row = self._ready[0]
                is_large = row.size > _LARGE
                if is_large and not await self._has_space(row, waits=not requests):
                    break
                self._ready.popleft()
                self._sink.taken[row.key] = row
                try:
                    requests.append(await asyncio.to_thread(self._request, row) if is_large else self._request(row))
                except PromptmillError as error:
                    outcome = Failure(error, row.attempts)
                    record_outcome(row.key, outcome, self._sink.without_request, self._call)
        return requests

    async def has_images(self) -> bool:
        """Return whether one of the first rows has an image. Raises the errors of `take`."""
        await self._fill()
        first = [*itertools.islice(self._ready, LOOKED_AT)]
        return await asyncio.to_thread(lambda: any(map(self._has_images, first)))

    async def aclose(self) -> None:
        """Wait until this source's thread has finished reading."""
        if self._ahead is not None:
            await asyncio.wait({self._ahead})

    def _has_images(self, row: OpenRow) -> bool:
        try:
            return bool(self._request(row).conversation.sourced)
        except PromptmillError:  # `take` records the failure
            return False

    def _request(self, row: OpenRow) -> Request:
        request = self._rows.requests[row.slot].request(row.n, row.line, row.cells, row.attempts)
        request.key, request.shared, request.question = row.key, row.shared, row.asked
        return request

    async def _has_space(self, row: OpenRow, *, waits: bool) -> bool:
        """Return whether another large row may be in flight now. If `waits`, wait until it may."""
        most = self._rows.held_bytes
        if most is None:
            return True
        while (held := sum(taken.size for taken in self._sink.taken.values() if taken.size > _LARGE)) and (
            held + row.size > most
        ):
            if not waits:
                return False
            for send in tuple(self._call.waits.starved):
                send()
            await asyncio.sleep(GATHER_S)
        return True

    async def _fill(self) -> bool:
        """Load open rows if none is ready. Return whether a row is ready now."""
        if self._rows.enough():
            self._ready.clear()
            return False
        while not self._ready and not self._has_ended:
            ahead = self._ahead or self._read_ahead()
            page = await asyncio.shield(ahead)
            self._has_ended = page is None
            self._ready.extend(page or ())
            self._ahead = None if self._has_ended else self._read_ahead()
        return bool(self._ready)

    def _read_ahead(self) -> asyncio.Future[list[OpenRow] | None]:
        future = asyncio.ensure_future(asyncio.to_thread(self._page))
        future.add_done_callback(lambda done: done.cancelled() or done.exception())
        return future

    def _page(self) -> list[OpenRow] | None:
        try:
            return next(self._pages, None)
        except OSError as error:
            unreadable = f"The job's database {self._rows.store.path} cannot be read: {disk.why(error)}."
            raise PromptmillError(Code.STORAGE, unreadable) from None
