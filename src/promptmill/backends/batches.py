"""The interface between a job and a provider's Batch API.

    async with open_batches(endpoint, settings, path) as api:   # `connect.open_batches`
        await api.check()                                   # before a batch is planned
        ...                                                 # write `api.line(custom_id, body)` of each row into a file
        file_id = await api.upload(batch)                   # store `file_id`, then
        state = await api.create(batch)                     # store `state.id`
        while not state.is_ended:
            state = await api.state(state.id)
        async for reply in api.replies(state):
            ...
        await api.delete(batch, state)

If the process ended before `upload` or `create` returned, `find_file` returns the file id, and `find` the batch.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

from promptmill.core.errors import PromptmillError

LIST_LAG_S = 30.0
"""Seconds after an unclear `create` until `find` is reliable, because providers list a new batch late."""
CLOCK_SKEW_S = 3600.0
"""`find` accepts a batch that was created up to this long before it was planned, because clocks differ."""


@dataclass(frozen=True, slots=True)
class PlannedBatch:
    """A batch as the job's database stores it before anything is sent."""

    key: str
    """promptmill's label, `[A-Za-z0-9-]{1,48}`, unique for each submission."""
    model: str
    requests: int
    file: Path
    """The file with lines from `BatchApi.line`, each with a line feed at its end."""
    planned: float
    """The Unix time at which the batch was planned."""
    file_id: str = ""
    """The id of the uploaded file; empty before the upload, and for providers without files."""


@dataclass(frozen=True, slots=True)
class BatchState:
    """A batch as the provider reports it."""

    id: str
    is_ended: bool
    """Whether the batch is completed, failed, expired or cancelled. In all four cases, results may be read."""
    said: str
    """The provider's word for the state, in lower case."""
    done: int | None = None
    """The number of answered requests. Counts are None if the provider does not report them."""
    failed: int | None = None
    total: int | None = None
    created: float | None = None
    """The Unix time of the batch's creation."""
    expires: float | None = None
    """The Unix time at which the batch expires."""
    key: str = ""
    """promptmill's label; empty if the provider stores no label."""
    results: tuple[str, ...] = ()
    """The provider's names for the results: ids of the output and error files, or a path. Empty without results."""
    problem: PromptmillError | None = None
    """The reason why the provider refused the whole batch."""
    is_full: bool = False
    """Whether the provider refused the batch because a queue is full. Submit its rows again later, with another key."""


class Reply(NamedTuple):
    """The result of one request in a batch."""

    custom_id: str
    status: int
    """The HTTP status; 0 if the request was not run, because the batch expired or was cancelled."""
    body: bytes
    """The body of the corresponding live reply, in the endpoint's dialect; empty with status 0."""

    @property
    def is_answer(self) -> bool:
        """Whether the request succeeded, and is billed."""
        return 200 <= self.status < 300


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """The limits of one batch; the defaults are OpenAI's."""

    requests: int = 50_000
    file_bytes: int = 200_000_000
    """The maximum size of all lines together, in bytes."""
    window_s: float = 86_400.0
    """The time after which the provider may end an unfinished batch, in seconds."""
    poll_s: float = 30.0
    """The shortest time, in seconds, that the provider recommends between two requests for a batch's state."""
    takes_local_images: bool = True
    """Whether requests may contain images; otherwise they may only contain URLs of images."""


class BatchUnclearError(PromptmillError):
    """The provider may have created the batch, but sent no confirmation.

    Wait `LIST_LAG_S`, then call `find`. Create the batch again only if it is missing.
    """


class QueueFullError(PromptmillError):
    """The provider created nothing, because a queue or rate limit is full. Wait, then submit fewer requests.

    `wait_s`: the wait that the provider requested, if any. `is_rate`: only the rate limit was exceeded.
    """

    wait_s: float | None = None
    is_rate: bool = False


class BatchApi(Protocol):
    """The Batch API of one endpoint.

    Methods raise `PromptmillError`. All methods except `create` retry temporary failures.
    """

    limits: BatchLimits
    """The limits of one batch."""

    def line(self, custom_id: str, body: bytes) -> bytes:
        """Return the line for a request. `custom_id`: `[A-Za-z0-9_-]{1,64}`. `body`: the body of a live request."""

    async def check(self) -> None:
        """Raise `unsupported` if the endpoint has no Batch API."""

    async def upload(self, batch: PlannedBatch) -> str:
        """Upload the file and return its id; `""` if `create` sends the requests itself."""

    async def find_file(self, batch: PlannedBatch) -> str:
        """Return the id of the file that was uploaded for this batch before a crash; `""` if none is complete."""

    async def create(self, batch: PlannedBatch) -> BatchState:
        """Create the batch without retries. Raises `BatchUnclearError`, `QueueFullError`, or the provider's refusal."""

    async def find(self, batch: PlannedBatch, known: Collection[str] = ()) -> BatchState | None:
        """Return the batch that an unclear `create` has created. `known`: ids of other batches, which are ignored.

        The batch has promptmill's label or file. If the provider stores neither, the batch is the only unknown one with
        equally many requests that was created since `batch.planned`. Raises `BatchUnclearError` if there are several.
        """

    async def state(self, batch_id: str) -> BatchState:
        """Return the current state."""

    def replies(self, state: BatchState) -> AsyncIterator[Reply | None]:
        """Yield the existing results, in any order. Yield None for a damaged result, which may be billed, too.

        After a lost connection, replies may be repeated.

        Raises `not_found` at the end if the provider no longer has a part of the results.
        """

    async def cancel(self, batch_id: str) -> BatchState:
        """Cancel the batch and return its state, which may stay `running` for minutes. Ended batches are not changed.

        Raises `unsupported` if the provider cannot cancel.
        """

    async def delete(self, batch: PlannedBatch, state: BatchState | None) -> None:
        """Delete the uploaded files and the results of the batch. `state` is None if the batch was never created."""
