"""Lines of a batch: the lines of its file become rows of a job, and the rows' outcomes become lines of result files.

A row is a line in OpenAI's format. A POST of the line's body would be converted to a request: the row's body is this
request, with all settings of the model. The reply repeats the model's name as the client wrote it, and the fields of
the client's body except its texts. The row keeps both in `metadata`, which is not part of the question.
"""

from __future__ import annotations

import asyncio
import codecs
import contextlib
import functools
import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import orjson

from promptmill.backends.protocol import Completion
from promptmill.core.bounds import LONGEST_ROW, MOST_BATCH_LINES, MOST_ROWS, MOST_VALUES
from promptmill.core.errors import Code, PromptmillError
from promptmill.core.request import conversation_from_messages
from promptmill.core.values import JsonDict, JsonObject
from promptmill.features.openai_server.api_errors import ApiError, as_api_error, as_written, error_of
from promptmill.features.openai_server.bodies import reply_body
from promptmill.features.openai_server.endpoints import Endpoints
from promptmill.features.openai_server.stored_files import check_disk
from promptmill.files import disk
from promptmill.jobs.export.answered import AnsweredRow, answered_rows, outcomes_so_far
from promptmill.jobs.rows import row_lines
from promptmill.jobs.rows.batch_lines import CHAT
from promptmill.jobs.store.folder import Folder
from promptmill.system.call_files import FileRule

INPUT, REFUSED = "input.jsonl", "refused.jsonl"
_TEXTS = frozenset({"messages", "input", "model"})
_BLOCK = 1 << 20
_UNDONE: Mapping[str, tuple[str, str]] = {
    "expired": ("batch_expired", "This request could not be executed before the completion window expired."),
    "cancelled": ("batch_cancelled", "The batch was cancelled before this request was executed."),
}
"""The error of a line without an outcome, by the final state of its batch."""


class FileCheck:
    """Reads a batch file. An error of the file fails the batch; refused lines go into the batch's error file."""

    def __init__(self, endpoint: str, endpoints: Endpoints, owner: str) -> None:
        self._endpoint, self._endpoints, self._owner = endpoint, endpoints, owner
        self._names_model = endpoints.has_several
        self.count = self.refused = 0
        self.errors: list[JsonDict] = []
        self.models: list[str] = []
        """The names of models in the lines; at most two are kept."""
        self._ids: set[bytes] = set()
        self._line = 0

    async def run(self, source: Path, place: Path, halts: Callable[[], bool]) -> None:
        """Write `INPUT` and `REFUSED` into the folder `place`. `halts` returns whether to stop; it blocks.

        Raises `FileNotFoundError`; `PromptmillError` (`storage`) if the files need more than their share of the disk.
        """
        with source.open("rb") as lines, _new(place / INPUT) as good, _new(place / REFUSED) as bad:
            numbered = enumerate(iter(functools.partial(lines.readline, LONGEST_ROW), b""), 1)
            while (some := await asyncio.to_thread(_some_lines, numbered)) is not None:
                for number, line in some:
                    self._line = number
                    await self._take(line, good, bad)
                    await asyncio.sleep(0)
                written = good.tell() + bad.tell()
                await asyncio.to_thread(check_disk, place, written, written)
                is_full = len(self.errors) >= MOST_ROWS or self.count > MOST_BATCH_LINES
                if is_full or await asyncio.to_thread(halts):
                    break
        for path in (place / INPUT, place / REFUSED):  # the rows must survive a power loss after the next state
            await asyncio.to_thread(disk.sync_path, path)
        await asyncio.to_thread(disk.sync_folder, place)
        if self.count > MOST_BATCH_LINES:
            self.note("too_many_tasks", f"A batch has at most {MOST_BATCH_LINES:,} lines.", None)
        if not self.count:
            self.note("empty_file", "The file has no lines.", None)

    def note(self, code: str, message: str, line: int | None, param: str | None = None) -> None:
        """Record an error of the file."""
        if len(self.errors) < MOST_ROWS:
            self.errors.append({"code": code, "message": message, "line": line, "param": param})

    async def _take(self, line: bytes, good: IO[bytes], bad: IO[bytes]) -> None:
        self.count += 1
        try:
            is_large = len(line) > _BLOCK  # parsed in a thread, because other requests wait while the event loop parses
            own, body = await asyncio.to_thread(self._read, line) if is_large else self._read(line)
        except ApiError as error:
            self.note(str(error.code), error.message, self._line, error.param)
            return
        try:
            row = _json_line({"custom_id": own} | await self._asked(body))
        except Exception as error:  # a bug fails only this line
            self.refused += 1
            number = f"refused-{self.count}"
            refused = _refused(number, as_api_error(error))
            bad.write(_json_line({"id": f"batch_req_{number}", "custom_id": own} | refused))
        else:
            good.write(row)

    def _read(self, line: bytes) -> tuple[str, JsonDict]:
        """Return the id and the body of a line. Raises `ApiError`, which makes the whole file invalid."""
        line = line.removeprefix(codecs.BOM_UTF8)
        if row_lines.may_exceed(MOST_VALUES, line):
            raise ApiError(400, f"This line may hold more than {MOST_VALUES:,} values.", None, "invalid_request")
        try:
            value = orjson.loads(line)
        except orjson.JSONDecodeError:
            raise ApiError(400, "This line is not parseable as valid JSON.", None, "invalid_json_line") from None
        own = value.get("custom_id") if isinstance(value, dict) else None
        if not isinstance(own, str):
            raise ApiError(400, "custom_id must be a text.", "custom_id", "invalid_request")
        if (digest := hashlib.blake2b(own.encode(), digest_size=16).digest()) in self._ids:
            raise ApiError(400, "An earlier line has this custom_id.", "custom_id", "duplicate_custom_id")
        self._ids.add(digest)
        if value.get("method", "POST") != "POST":
            raise ApiError(400, "method must be POST.", "method", "invalid_method")
        if value.get("url", self._endpoint) != self._endpoint:
            raise ApiError(400, f"url must be the batch's, {self._endpoint}.", "url", "url_mismatch")
        if not isinstance(body := value.get("body"), dict):
            raise ApiError(400, "body must be an object.", "body", "invalid_request")
        return own, body

    async def _asked(self, body: JsonDict) -> JsonDict:
        """Return the row for a body, without the line's id. Raises `ApiError`."""
        asked = await self._endpoints.asked(self._endpoint, body, self._owner)
        if asked.model not in self.models:
            self.models = [*self.models, asked.model][:2]
        request = asked.request
        own: JsonDict = {**request.extra}
        if not request.path:
            own |= {**request.sampling.given(), "messages": request.conversation.as_messages()}
        if self._names_model:
            own["model"] = asked.config.name
        repeated = {name: value for name, value in body.items() if name not in _TEXTS}
        url = f"/v1{request.path or CHAT}"
        return {"method": "POST", "url": url, "body": own, "metadata": {"model": asked.model, "body": repeated}}


class BatchResults:
    """Writes the output file and the error file of a batch from the rows of its job."""

    def __init__(self, endpoint: str, place: Path, folder: Folder, last: str, files: FileRule) -> None:
        """`last`: the final state of the batch. `files`: the rule for files that rows name."""
        self._files = files
        self._endpoint, self._refused, self._folder, self._last = endpoint, place / REFUSED, folder, last
        self._unread = place / INPUT
        self.completed = self.failed = 0
        self._tokens = dict.fromkeys(("prompt_tokens", "cached_tokens", "completion_tokens", "reasoning_tokens"), 0)

    @property
    def usage(self) -> JsonDict:
        """The tokens of all rows, in the form of `BatchUsage` in OpenAI's packages."""
        prompt, cached, completion, reasoning = self._tokens.values()
        return {
            "input_tokens": prompt,
            "input_tokens_details": {"cached_tokens": cached},
            "output_tokens": completion,
            "output_tokens_details": {"reasoning_tokens": reasoning},
            "total_tokens": prompt + completion,
        }

    def write(self, out: IO[bytes], errors: IO[bytes]) -> None:
        """Write both files. Blocks."""
        with contextlib.suppress(FileNotFoundError), self._refused.open("rb") as refused:
            for line in refused:
                errors.write(line)
                self.failed += 1
        refused_count = self.failed
        if (spec := self._folder.spec) is not None:
            with self._folder.reading() as store:
                for answered in answered_rows(store, spec, outcomes_so_far):
                    self._add(answered, out, errors)
        if self.completed + self.failed == refused_count and self._unread.exists():
            # the rows were never read, because the batch ended before its job began
            with self._unread.open("rb") as lines:
                for number, line in enumerate(lines, 1):
                    self.failed += 1
                    found = {"id": f"batch_req_{number}", "custom_id": orjson.loads(line)["custom_id"]}
                    errors.write(_json_line(found | self._undone()))
        out.flush()
        errors.flush()

    def _add(self, answered: AnsweredRow, out: IO[bytes], errors: IO[bytes]) -> None:
        row, outcome = orjson.loads(answered.row.cells or b"{}"), answered.record.outcome()
        for name in self._tokens:
            self._tokens[name] += getattr(outcome.usage, name)
        number = f"{self._folder.job_id[-10:]}-{answered.row.n + 1}"
        found: JsonDict = {"id": f"batch_req_{number}", "custom_id": row["custom_id"]}
        if isinstance(outcome, Completion):
            try:
                asked, sent = row["metadata"], row["body"]
                texts = {"input": sent["input"]} if "input" in sent else {}  # the texts of an embeddings request
                body = reply_body(self._endpoint, asked["body"] | texts, outcome, asked["model"])
                response = {"status_code": 200, "request_id": f"req_{number}", "body": body}
                line = _json_line(found | {"response": response, "error": None})
            except Exception as error:  # a bug fails only this line
                found |= _refused(number, as_api_error(error))
            else:
                self.completed += 1
                out.write(line)
                return
        else:
            found |= self._failed(number, self._as_written(outcome.error, row))
        self.failed += 1
        errors.write(_json_line(found))

    def _as_written(self, error: PromptmillError, row: JsonObject) -> PromptmillError:
        """Return the error of a row, with the image paths spelled as in the row's messages."""
        with contextlib.suppress(PromptmillError, LookupError, TypeError):
            return as_written(error, conversation_from_messages(row["body"]["messages"], "messages"), self._files)
        return error

    def _undone(self) -> JsonDict:
        code, message = _UNDONE[self._last]
        return {"response": None, "error": {"code": code, "message": message}}

    def _failed(self, number: str, error: PromptmillError) -> JsonDict:
        """Return the fields `response` and `error` of the result line for a failed row."""
        if error.code is Code.DEFERRED:
            return self._undone()
        if error.said is not None:
            body = {"error": {"message": str(error), "type": None, "param": None, "code": None, **error.said["error"]}}
            response = {"status_code": error.said["status_code"], "request_id": f"req_{number}", "body": body}
            return {"response": response, "error": None}
        return _refused(number, error_of(error, self._endpoint))


def _refused(number: str, error: ApiError) -> JsonDict:
    response = {"status_code": error.status, "request_id": f"req_{number}", "body": error.body()}
    return {"response": response, "error": None}


def _json_line(value: Any) -> bytes:
    return orjson.dumps(value, option=orjson.OPT_APPEND_NEWLINE)


def _some_lines(numbered: Iterator[tuple[int, bytes]]) -> list[tuple[int, bytes]] | None:
    """Return the next non-blank lines with their numbers; None at the end. Blocks long for millions of blank lines.

    A line that is longer than any valid row is split into pieces, which are not valid JSON.
    """
    found, size = list[tuple[int, bytes]](), 0
    for number, line in numbered:
        size += len(line)
        if line.strip():
            found.append((number, line))
        if size >= _BLOCK:
            return found
    return found or None


@contextlib.contextmanager
def _new(path: Path) -> Iterator[IO[bytes]]:
    """Yield a new file, replacing a file that a killed server left."""
    path.unlink(missing_ok=True)
    with os.fdopen(disk.created(path), "wb") as file:
        yield file
