"""The rows of a file that have no answer yet, as a source of requests."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from promptmill.backends import rows
from promptmill.backends.protocol import InputFile, Request, RowPlace, Source
from promptmill.backends.rows import RowReader
from promptmill.config.resolved_config import ResolvedConfig
from promptmill.core.errors import Code, PromptmillError, input_error
from promptmill.core.outcome import Failure, Outcome
from promptmill.jobs.files import formats
from promptmill.jobs.files.disk import TOO_LONG, Line, Lines, RandomFile, why
from promptmill.jobs.run.sink import Taken
from promptmill.jobs.store.answers import DamagedError, JobStore
from promptmill.jobs.store.binding import Twins
from promptmill.jobs.store.spec import above_rows

_LARGE = 32 * 1024  # bytes of a line that are not parsed on the event loop
Settle = Callable[[int, Outcome], Awaitable[None]]


def row_reader(
    plan: ResolvedConfig,
    input_format: str,
    *,
    system_prompt: str,
    prompt_column: str | None,
    row_settings: bool,
    begun_in: Path | None = None,
    may_name: frozenset[str] | None = None,
) -> RowReader:
    """Return how rows become requests to the model of `plan`; `begun_in` is where relative paths of images start.

    `may_name` are the models that a row may name, None: any.
    """
    settings = plan.settings
    return RowReader(
        formats.row_kind(input_format),
        settings.sampling_params,
        settings.extra_params,
        above_rows(plan, system_prompt, input_format),
        settings.image_tag,
        "" if begun_in is None or begun_in == Path.cwd() else str(begun_in),
        "" if plan.record.any_model else plan.model or plan.backend,
        plan.record.other_paths,
        keep_raw=input_format == "batch",
        image_position=settings.image_position,
        prompt_column=prompt_column if input_format == "jsonl" else None,
        row_settings=row_settings,
        may_name=may_name,
        most_tokens=None if plan.trust_client else plan.operator.client_limits.max_tokens,
    )


@dataclass(frozen=True, slots=True)
class Rows:
    """A file of lines as one job sees it. `guard` raises when the file is not what it was (`PromptmillError`)."""

    file: RandomFile
    path: Path
    reading: RowReader
    store: JobStore
    again: str
    """Which records are to be replaced, as a condition for `store`."""
    limit: int | None
    guard: Callable[[], None]
    first: tuple[int, int] = (0, 0)
    """The first line and where it begins; the last one is where `file` ends."""
    enough: Callable[[], bool] = bool
    """Whether no further row is to be taken."""


class FileSource(Source):
    """Reads in a thread, one block of lines ahead of what was taken. A line that is wrong is settled here."""

    def __init__(
        self,
        rows_: Rows,
        taken: dict[int, Taken],
        settle: Settle,
        give_up: Callable[[PromptmillError], None],
        twins: Twins | None = None,
    ) -> None:
        """`taken` gets what is known of the rows that were taken.

        `settle` takes the failure of a line that cannot be asked; `give_up` why reading cannot go on. The `twins` of
        other rows are not taken.
        """
        self.taken = taken
        self.rows = 0
        """Rows seen so far, answered ones included, blank lines not."""
        self.exhausted = False
        self._rows = rows_
        self._twins = twins
        self._settle = settle
        self._give_up = give_up
        self._lines = Lines(rows_.file, *rows_.first)
        self._ready: deque[tuple[Line, Taken]] = deque()
        self._ahead: asyncio.Future[list[tuple[Line, Taken]]] | None = None

    @property
    def file(self) -> InputFile:
        """The file, for processes that read its rows by themselves."""
        return InputFile(self._rows.file.shared_path() or self._rows.path, self._rows.reading.packed())

    async def take(self, n: int) -> list[Request]:
        """Return up to `n` requests."""
        taken: list[Request] = []
        while not taken and await self._fill():
            while self._ready and len(taken) < n:
                line, about = self._ready.popleft()
                self.taken[line.row] = about
                try:
                    large = line.length > _LARGE
                    taken.append(
                        await asyncio.to_thread(self._request, line, about.attempts)
                        if large
                        else self._request(line, about.attempts)
                    )
                except PromptmillError as error:
                    await self._settle(line.row, Failure(error, about.attempts))
        return taken

    async def aclose(self) -> None:
        """Wait until no thread reads the file any more."""
        if self._ahead is not None:
            await asyncio.wait({self._ahead})

    async def _fill(self) -> bool:
        """Have lines without an answer ready; return whether there are any."""
        if self._rows.enough():
            self._ready.clear()
            return False
        while not self._ready and not self.exhausted:
            ahead = self._ahead or self._read_ahead()
            try:
                self._ready.extend(await asyncio.shield(ahead))
            except PromptmillError as error:
                self._give_up(error)
                raise asyncio.CancelledError from None  # `give_up` is cancelling this run
            self._ahead = None if self.exhausted else self._read_ahead()
        return bool(self._ready)

    def _read_ahead(self) -> asyncio.Future[list[tuple[Line, Taken]]]:
        future = asyncio.ensure_future(asyncio.to_thread(self._read))
        future.add_done_callback(lambda done: done.cancelled() or done.exception())
        return future

    def _read(self) -> list[tuple[Line, Taken]]:
        job = self._rows
        job.guard()
        lines = self._lines.read()
        job.guard()  # the lines between the two are those of the unchanged input
        if not lines:
            self.exhausted = True
            return []
        try:
            return self._unsettled(lines)
        except (OSError, DamagedError) as error:
            said = why(error) if isinstance(error, OSError) else "it is damaged"
            raise PromptmillError(
                Code.STORAGE, f"The job's database {job.store.path} cannot be read: {said}."
            ) from None

    def _unsettled(self, lines: list[Line]) -> list[tuple[Line, Taken]]:
        job = self._rows
        known = job.store.known(lines[0].row, lines[-1].row, job.again)
        twins = self._twins.left_out([line.row for line in lines]) if self._twins is not None else ()
        found: list[tuple[Line, Taken]] = []
        for line in lines:
            if line.blank:
                continue
            if job.limit is not None and self.rows >= job.limit:
                self.exhausted = True
                break
            self.rows += 1
            settled, attempts, answered = known.get(line.row, (False, 0, False))
            if not settled and line.row not in twins:
                asked = None if line.data is None else self._rows.reading.digest(line.data)
                # what an answer took stays with it
                found.append((line, Taken(0 if answered else attempts, asked, answered)))
        return found

    def _request(self, line: Line, attempts: int) -> Request:
        if line.data is None:
            raise input_error(f"{rows.place(self._rows.reading.kind, line.row)} {TOO_LONG}.")
        request = self._rows.reading.request(line.row, line.data, attempts)
        request.row = RowPlace(line.offset, line.length)
        return request
