"""The interface between a job and a provider's Batch API.

    async with open_batches(endpoint, settings) as api:     # `connect.open_batches`
        await api.check()                                   # before anything is planned
        ...                                                 # write `api.line(custom_id, body)` of each row into a file
        file_id = await api.upload(batch)                   # store it, then
        state = await api.create(batch)                     # store its id
        while not state.is_ended:
            state = await api.state(state.id)
        async for reply in api.replies(state):
            ...
        await api.delete(batch, state)

After a crash, `find_file` returns the id that `upload` could not report, and `find` the batch that `create` made.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

from promptmill.core.errors import PromptmillError

LIST_LAG_S = 30.0
"""The time after an unclear `create` until `find` is reliable: providers' lists lag behind."""
CLOCK_SKEW_S = 3600.0
"""`find` accepts a batch created this long before it was planned, because clocks differ."""


@dataclass(frozen=True, slots=True)
class PlannedBatch:
    """A batch as the job's database knows it before anything is sent."""

    key: str
    """Our own label, `[A-Za-z0-9-]{1,48}`, unique for each submission."""
    model: str
    requests: int
    file: Path
    """Lines written by `BatchApi.line`, each with a line feed at its end."""
    planned: float
    """Unix time."""
    file_id: str = ""
    """The id of the uploaded file; empty before the upload, and for providers without files."""


@dataclass(frozen=True, slots=True)
class BatchState:
    """A batch as the provider reports it."""

    id: str
    is_ended: bool
    """Whether it is completed, failed, expired or cancelled: all alike, its results may be read."""
    said: str
    """The provider's own word in lower case."""
    done: int | None = None
    """Answered requests. Counts are None where the provider reports none."""
    failed: int | None = None
    total: int | None = None
    created: float | None = None
    """Unix time."""
    expires: float | None = None
    """Unix time."""
    key: str = ""
    """Our label; empty where the provider stores none."""
    results: tuple[str, ...] = ()
    """The provider's names for the results: ids of an output and an error file, or a path. Empty without results."""
    problem: PromptmillError | None = None
    """The reason why the provider refused the batch as a whole."""
    is_full: bool = False
    """Whether the reason was a full queue: submit the same rows again later, under another key."""


class Reply(NamedTuple):
    """The result of one request."""

    custom_id: str
    status: int
    """The HTTP status; 0: the request was not run, because the batch expired or was cancelled."""
    body: bytes
    """The body that a live request would have got, in the endpoint's dialect; empty with status 0."""


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """The limits of one batch; the defaults are OpenAI's."""

    requests: int = 50_000
    file_bytes: int = 200_000_000
    """The most bytes of all lines together."""
    window_s: float = 86_400.0
    """The time after which the provider may end the batch unfinished."""
    poll_s: float = 30.0
    """The shortest time between two requests for its state that the provider recommends."""
    takes_local_images: bool = True
    """Whether requests may contain images; otherwise only URLs of images."""


class BatchUnclearError(PromptmillError):
    """The provider may have created the batch, although no confirmation arrived.

    Wait `LIST_LAG_S`, then `find` it; only if it is missing, create it again.
    """


class QueueFullError(PromptmillError):
    """The provider created nothing, because a queue or a rate is full: wait, then submit again, perhaps less at a time.

    `wait_s` is the wait that the provider requested, if any. `is_rate`: too many requests, whatever their batches have.
    """

    wait_s: float | None = None
    is_rate: bool = False


class BatchApi(Protocol):
    """The Batch API of one endpoint.

    Methods raise `PromptmillError`. Except `create`, they repeat a request that failed for a passing reason.
    """

    limits: BatchLimits
    """The bounds of one batch."""

    def line(self, custom_id: str, body: bytes) -> bytes:
        """Return the line of a request, with its line feed. `body` is a live request's; `[A-Za-z0-9_-]{1,64}` an id."""

    async def check(self) -> None:
        """Raise `unsupported` if the endpoint has no Batch API."""

    async def upload(self, batch: PlannedBatch) -> str:
        """Upload the file and return its id; empty where `create` sends the requests itself."""

    async def find_file(self, batch: PlannedBatch) -> str:
        """Return the id of the file that was uploaded whole for this batch before a crash; empty without one."""

    async def create(self, batch: PlannedBatch) -> BatchState:
        """Create the batch, never twice. Raises `BatchUnclearError`, `QueueFullError`, or a refusal."""

    async def find(self, batch: PlannedBatch, known: Collection[str] = ()) -> BatchState | None:
        """Return the batch that a `create` with an unclear end made. `known`: ids of other batches, to be ignored.

        It has our label or our file. At a provider that stores neither, it is the only unknown batch with as many
        requests since it was planned; raises `BatchUnclearError` if there are several.
        """

    async def state(self, batch_id: str) -> BatchState:
        """Return the current state."""

    def replies(self, state: BatchState) -> AsyncIterator[Reply | None]:
        """Yield the results that exist, in any order; None for a damaged one, which may be billed all the same.

        After a lost connection, the same replies may be repeated.

        Raises `not_found` at its end if the provider no longer has a part of the results.
        """

    async def cancel(self, batch_id: str) -> BatchState:
        """Cancel the batch and return its state, which may be running for some minutes; ended batches stay as they are.

        Raises `unsupported` if the provider cannot cancel.
        """

    async def delete(self, batch: PlannedBatch, state: BatchState | None) -> None:
        """Delete the uploaded files and the results of the batch. `state` is None if it was never created."""
