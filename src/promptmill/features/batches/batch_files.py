"""The files of a batch round: each batch has a file with one line for each request."""

from __future__ import annotations

import hashlib
import os
import secrets
import time
from collections.abc import Awaitable, Callable, Collection
from typing import IO

from promptmill.backends.batches import BatchApi
from promptmill.backends.protocol import Failure
from promptmill.core.errors import Code, PromptmillError
from promptmill.core.request import Portion, Request
from promptmill.features.batches import stored_batches
from promptmill.features.batches.stored_batches import AtProvider, Batch, BatchRow
from promptmill.files import disk
from promptmill.jobs.store.folder import Folder

_ROWS_AT_ONCE = 512
_ALONE = Portion("", 0, 1)
_WAITS = Failure(PromptmillError(Code.BATCHED, "The row waits for a batch."))


def waits(request: Request) -> Failure:
    """Return the failure of a request that waits for a batch, or that is sent live after the batch."""
    return Failure(_WAITS.error, request.attempts) if request.attempts else _WAITS


def new_key() -> str:
    """Return a random label by which a batch can be found in the provider's list."""
    return f"promptmill-{secrets.token_hex(8)}"


class BatchFiles:
    """Writes the requests of open rows into files. `exchange` receives them, see `backends.protocol.Exchange`.

    A batch becomes `planned` when its file is complete and its highest cost is known. If the process is killed earlier,
    the batch keeps the state `planning`.
    """

    def __init__(
        self,
        folder: Folder,
        api: BatchApi,
        of: Batch,
        asked_of: Callable[[int], bytes | None],
        *,
        most: int,
        names: Collection[str],
        path: str,
    ) -> None:
        """New batches take their round and slot from the batch `of`. `asked_of` returns the digest of a row's question.

        `most`: the most requests in a batch. `names`: the names by which rows may refer to the model. `path`: the
        `Request.path` of all requests in the batches.
        """
        of = of.changed(mark=f"{secrets.token_hex(4)}-")
        self._folder, self._api, self._of, self._asked_of = folder, api, of, asked_of
        self._names, self._path = {None, *names}, path
        self._limits, self._most = api.limits, most
        self._file: IO[bytes] | None = None
        self._batch = of
        self._complete: list[Batch] = []
        """Batches with complete files, which become planned when the highest cost of each is known."""
        self._bytes = 0
        self._digest = hashlib.sha256()
        self._rows: list[BatchRow] = []
        self._reserved: dict[int, float] = {}
        """The highest possible cost of each batch."""
        self._batches_of: dict[int, list[int]] = {}
        """By the key of a row: the ids of the batches with its requests, until the row's cost is known."""

    async def exchange(self, request: Request, body_of: Callable[[Request], Awaitable[bytes]]) -> Failure:
        """Add a request to a file. A row for another path or model stays open and is sent live after the batch."""
        if request.path != self._path or request.extra.get("model") not in self._names:
            return waits(request)
        if request.conversation.sourced and not self._limits.takes_local_images:
            text = "The provider's batches take no images and no files."
            raise PromptmillError(Code.UNSUPPORTED, text, "Send them live.")
        custom = stored_batches.custom_of(request)
        line = self._api.line(f"{self._of.mark}{custom}", await body_of(request))
        if len(line) > self._limits.file_bytes:
            raise PromptmillError(Code.REQUEST_TOO_LARGE, f"The request has {len(line):,} bytes, too many for a batch.")
        try:
            if self._batch.requests >= self._most or self._bytes + len(line) > self._limits.file_bytes:
                self.complete()
            if self._file is None:
                self._begin()
            assert self._file is not None
            self._file.write(line)
        except OSError as error:
            raise disk.unusable(error, self._folder.path) from None
        self._digest.update(line)
        self._bytes += len(line)
        self._batch = self._batch.changed(requests=self._batch.requests + 1)
        for one in request.members or (request,):
            own = stored_batches.custom_of(one)
            self._rows.append(BatchRow(own, one.key, self._asked_of(one.key), custom, *(one.portion or _ALONE)))
            self._batches_of.setdefault(one.key, []).append(self._batch.id)
        if len(self._rows) >= _ROWS_AT_ONCE:
            self._store_rows()
        return waits(request)

    def reserve(self, key: int, most: float) -> None:
        """Record the highest possible cost of a row, divided among the batches of its requests."""
        batches = self._batches_of.pop(key, [])
        for batch in batches:
            self._reserved[batch] = self._reserved.get(batch, 0.0) + most / len(batches)

    def complete(self) -> None:
        """Complete the present file, if any. Raises the errors of `JobDatabase`."""
        if self._file is None:
            return
        disk.sync_file(self._file)
        self._file.close()
        self._file = None
        self._store_rows()
        self._complete.append(self._batch.changed(state="planned", sha256=self._digest.hexdigest()))

    def store_planned(self) -> None:
        """Store the batches, each with its highest possible cost. The cost of every row must be known."""
        planned = [batch.changed(most=self._reserved.get(batch.id, 0.0)) for batch in self._complete]
        stored_batches.put(self._folder.store, *planned)

    def close(self) -> None:
        """Close the file without completing it."""
        if self._file is not None:
            self._file.close()

    def _begin(self) -> None:
        store = self._folder.store
        id_ = stored_batches.next_id(store)
        self._batch = self._of.changed(id=id_, key=new_key(), there=AtProvider(since=time.time()))
        stored_batches.put(store, self._batch)
        self._file = _created(self._batch, self._folder)
        self._bytes, self._digest = 0, hashlib.sha256()

    def _store_rows(self) -> None:
        stored_batches.add_rows(self._folder.store, self._batch, self._rows)
        self._rows = []


def _created(batch: Batch, folder: Folder) -> IO[bytes]:
    path = batch.file(folder.path)
    path.unlink(missing_ok=True)
    return os.fdopen(disk.created(path), "wb")


def is_whole(batch: Batch, folder: Folder) -> bool:
    """Return whether the file of a planned batch is unchanged. Blocks."""
    try:
        with batch.file(folder.path).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == batch.sha256
    except OSError:
        return False
