"""The rest of a call that returns before its end: its prompts on disk as a job, its running work made that job's."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import secrets
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import orjson

from promptmill.backends.protocol import CallStats
from promptmill.config.loading import ResolvedConfig
from promptmill.core.conversation import Conversation
from promptmill.core.errors import Code, PromptmillError
from promptmill.core.outcome import Outcome
from promptmill.images import load as images
from promptmill.images.load import ImageRules
from promptmill.jobs import admission, disk, status
from promptmill.jobs.admission import Job
from promptmill.jobs.disk import RandomFile
from promptmill.jobs.folder import Folder, JobSpec
from promptmill.jobs.job_request import JobRequest
from promptmill.jobs.ledger import Ledger
from promptmill.jobs.lock import Lock
from promptmill.jobs.sink import JournalSink
from promptmill.service.lists import DivertedSink

_BUFFER = 1 << 20
_FORMAT = "messages"


def new_id() -> str:
    """Return a job id that nobody can guess: it is all that is needed to read the answers."""
    return f"call-{secrets.token_hex(8)}"


def write(
    job_id: str, items: Sequence[tuple[int, Conversation]], system_prompt: str, plan: ResolvedConfig, root: Path
) -> Job:
    """Write `items`, each with its position in the call, as a job that any process can take up. Blocks.

    Everything is on the disk itself and readable by this user alone when it returns. Raises `PromptmillError`
    (`storage`); nothing is left behind then.
    """
    folder = Folder(root / job_id)
    with contextlib.ExitStack() as undo:
        try:
            disk.make_private_folder(root)
            disk.make_private_folder(folder.path)
            undo.callback(shutil.rmtree, folder.path, ignore_errors=True)
            lock = Lock.take(folder.lock)
            assert lock is not None, "nobody else knows this folder"
            undo.callback(lock.release)
            digest = _write_lines(folder.prompts, items, system_prompt, plan)
            file = RandomFile(folder.prompts)
            undo.callback(file.close)
            size, mtime_ns = file.stamp()
            source, target = folder.prompts.resolve(), folder.answers.resolve()
            folder.spec = spec = JobSpec(
                job_id=job_id,
                input=source,
                output=target,
                input_format=_FORMAT,
                output_format="jsonl",
                size=size,
                mtime_ns=mtime_ns,
                sha256=digest,
                lines=len(items),
                fingerprint=admission.fingerprint(plan, "", _FORMAT),
                backend=plan.backend,
                model=plan.model,
                created=int(time.time()),
            )
            status.write_starting(folder)
        except OSError as error:
            raise PromptmillError(
                Code.STORAGE, f"The folder of jobs {root} cannot be written: {disk.why(error)}.", ""
            ) from None
        undo.pop_all()
    return Job(folder, spec, JobRequest(input=source, output=target), plan, file, lock)


def discard(job: Job) -> None:
    """Remove a job that is not needed after all."""
    job.close()
    shutil.rmtree(job.folder.path, ignore_errors=True)


def _write_lines(
    path: Path, items: Sequence[tuple[int, Conversation]], system_prompt: str, plan: ResolvedConfig
) -> str:
    settings = plan.settings
    shared = {"sampling": settings.sampling_params.given(), "extra": dict(settings.extra_params)}
    allowed = ImageRules.of(settings.allowed_roots, settings.max_image_pixels).allowed_roots
    digest = hashlib.sha256()
    with os.fdopen(disk.created(path), "wb", _BUFFER) as file:
        for index, conversation in items:
            line = _line(index, conversation.with_system(system_prompt), shared, allowed)
            digest.update(line)
            file.write(line)
        file.flush()
        os.fsync(file.fileno())
    return digest.hexdigest()


def _line(index: int, conversation: Conversation, shared: Mapping[str, Any], roots: Sequence[Path] | None) -> bytes:
    try:
        messages = _portable(conversation, roots)
    except PromptmillError as error:
        return orjson.dumps({"index": index, "problem": str(error)}, option=orjson.OPT_APPEND_NEWLINE)
    value = {"index": index, "messages": messages, **shared}
    try:
        return orjson.dumps(value, option=orjson.OPT_APPEND_NEWLINE | orjson.OPT_NON_STR_KEYS)
    except TypeError:  # half a surrogate pair and the like: asking for it will say so
        return json.dumps(value, default=str).encode() + b"\n"


def _portable(conversation: Conversation, roots: Sequence[Path] | None) -> list[dict[str, Any]]:
    """Return the messages as another process can ask them: from another folder, with no wider rights to files."""
    messages = conversation.as_messages()
    for message in messages:
        for part in message["content"] if isinstance(message["content"], list) else ():
            if part["type"] != "image_url" or (path := _resolved(part["image_url"]["url"])) is None:
                continue
            if roots is not None and not any(path.is_relative_to(root) for root in roots):
                raise PromptmillError(Code.INVALID_IMAGE, "An image is outside the folders of `allowed_roots`.", "")
            part["image_url"]["url"] = str(path)
    return messages


def _resolved(source: str) -> Path | None:
    if images.is_web(source) or source[:5].lower() == "data:":
        return None
    try:
        return images.local_path(source).resolve()
    except (OSError, RuntimeError, ValueError):
        raise PromptmillError(Code.INVALID_IMAGE, "An image has a path that cannot be used.", "") from None


class CallAsJob(Protocol):
    """A call whose outcomes become records of a job."""

    stats: CallStats

    def end(self) -> None:
        """End its work."""

    async def journal(self, ledger: Ledger, give_up: Callable[[PromptmillError], None]) -> int:
        """Journal all outcomes; returns how many rows there are."""


class RunningCall:
    """The running work of a call, whose outcomes become records of a job."""

    def __init__(
        self, work: asyncio.Future[PromptmillError | None], sink: DivertedSink, keys: Sequence[int], stats: CallStats
    ) -> None:
        """`work` says at its end why it left items; `keys` are the positions of the job's rows in the call.

        `stats` counts the job's rows alone.
        """
        self.stats = stats
        self._work = work
        self._sink = sink
        self._keys = keys

    def end(self) -> None:
        """End the work if nobody has, as when its job could not begin."""
        self._work.cancel()

    async def journal(self, ledger: Ledger, give_up: Callable[[PromptmillError], None]) -> int:
        """Journal what has come and what comes, until the end of the work; returns how many rows there are.

        Cancelling ends the work. Raises `PromptmillError` when it left rows unanswered.
        """
        journal = JournalSink(ledger.journal, ledger.index, ledger.tally, give_up)
        onward = _Renumbered(journal, {key: row for row, key in enumerate(self._keys)})
        try:
            for key, outcome in self._sink.divert(onward, self._keys):
                await onward.put(key, outcome)
            reason = await self._work
            if reason is not None:
                raise reason
            return len(self._keys)
        finally:
            self._work.cancel()
            await asyncio.wait({self._work})
            journal.flush()
            ledger.index.flush()


class _Renumbered:
    """A sink under other keys."""

    def __init__(self, sink: JournalSink, rows: Mapping[int, int]) -> None:
        self._sink = sink
        self._rows = rows

    async def put(self, key: int, outcome: Outcome) -> None:
        await self._sink.put(self._rows[key], outcome)
