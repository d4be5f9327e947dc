"""The lines of a batch: of its file, as rows of a job; and the outcomes of those rows, as lines of its results.

A row is a line of OpenAI's format whose body is the request that the same body would become at its path, with all
settings of the model. `metadata`, which is no part of a question, keeps what the reply repeats: the model's name as
the client wrote it, and the body's fields without the texts; and the names of its parameters, of which the backend may
leave one out.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import orjson

from promptmill.backends import rows
from promptmill.backends.batch_lines import CHAT
from promptmill.backends.protocol import Completion
from promptmill.core.bounds import LONGEST_ROW, MOST_BATCH_ERRORS, MOST_BATCH_LINES, MOST_VALUES
from promptmill.core.errors import Code, PromptmillError
from promptmill.core.values import JsonDict
from promptmill.jobs import disk
from promptmill.jobs.export.answered import AnsweredRow, answered_rows, outcomes_so_far
from promptmill.jobs.store.folder import Folder
from promptmill.openai_server.api_errors import ApiError, error_of
from promptmill.openai_server.bodies import reply_body
from promptmill.openai_server.endpoints import Endpoints, check_whole

INPUT, REFUSED = "input.jsonl", "refused.jsonl"
_TEXTS = frozenset({"messages", "input", "model"})
_BLOCK = 1 << 20
_UNDONE: Mapping[str, tuple[str, str]] = {
    "expired": ("batch_expired", "This request could not be executed before the completion window expired."),
    "cancelled": ("batch_cancelled", "The batch was cancelled before this request was executed."),
}
"""The error of a line without an outcome, by the last state of its batch."""


class _LineError(Exception):
    """A line that makes the whole file invalid."""

    def __init__(self, code: str, message: str, param: str | None = None) -> None:
        super().__init__(code, message, param)
        self.code, self.message, self.param = code, message, param


class FileCheck:
    """Reads a batch file. Errors of the file end the batch; refused lines are part of its error file."""

    def __init__(self, endpoint: str, endpoints: Endpoints, owner: str) -> None:
        self._endpoint, self._endpoints, self._owner = endpoint, endpoints, owner
        self._names_model = endpoints.has_several
        self.count = self.refused = 0
        self.errors: list[JsonDict] = []
        self.models: list[str] = []
        """The names of models in the lines: two at most."""
        self._ids: set[bytes] = set()
        self._line = 0

    async def run(self, source: Path, place: Path, halts: Callable[[], bool]) -> None:
        """Write `INPUT` and `REFUSED` in the folder `place`. Raises `FileNotFoundError`."""
        await asyncio.to_thread(disk.make_private_folder, place)
        with source.open("rb") as lines, _new(place / INPUT) as good, _new(place / REFUSED) as bad:
            while some := await asyncio.to_thread(_some_lines, lines):
                for line in some:
                    self._line += 1
                    if line.strip() and not halts():
                        await self._take(line, good, bad)
                        await asyncio.sleep(0)
                if len(self.errors) >= MOST_BATCH_ERRORS or self.count > MOST_BATCH_LINES or halts():
                    break
        if self.count > MOST_BATCH_LINES:
            self.note("too_many_tasks", f"A batch has at most {MOST_BATCH_LINES:,} lines.", None)
        if not self.count:
            self.note("empty_file", "The file has no lines.", None)

    def note(self, code: str, message: str, line: int | None, param: str | None = None) -> None:
        """Add an error of the file."""
        if len(self.errors) < MOST_BATCH_ERRORS:
            self.errors.append({"code": code, "message": message, "line": line, "param": param})

    async def _take(self, line: bytes, good: IO[bytes], bad: IO[bytes]) -> None:
        self.count += 1
        try:
            own, body = self._read(line.removeprefix(rows.BOM))
        except _LineError as error:
            self.note(error.code, error.message, self._line, error.param)
            return
        try:
            good.write(_line(own, await self._asked(body)))
        except ApiError as error:
            self.refused += 1
            number = f"refused-{self.count}"
            bad.write(_json_line({"id": f"batch_req_{number}", "custom_id": own} | _refused(number, error)))

    def _read(self, line: bytes) -> tuple[str, JsonDict]:
        """Return the id and the body of a line. Raises `_LineError`."""
        if rows.may_exceed(MOST_VALUES, line):
            raise _LineError("invalid_request", f"This line may hold more than {MOST_VALUES:,} values.")
        try:
            value = orjson.loads(line)
        except orjson.JSONDecodeError:
            raise _LineError("invalid_json_line", "This line is not parseable as valid JSON.") from None
        own = value.get("custom_id") if isinstance(value, dict) else None
        if not isinstance(own, str):
            raise _LineError("invalid_request", "custom_id must be a text.", "custom_id")
        if (digest := hashlib.blake2b(own.encode(), digest_size=16).digest()) in self._ids:
            raise _LineError("duplicate_custom_id", "An earlier line has this custom_id.", "custom_id")
        self._ids.add(digest)
        if value.get("method", "POST") != "POST":
            raise _LineError("invalid_method", "method must be POST.", "method")
        if value.get("url", self._endpoint) != self._endpoint:
            raise _LineError("url_mismatch", f"url must be the batch's, {self._endpoint}.", "url")
        if not isinstance(body := value.get("body"), dict):
            raise _LineError("invalid_request", "body must be an object.", "body")
        return own, body

    async def _asked(self, body: JsonDict) -> JsonDict:
        """Return a row without its id. Raises `ApiError`."""
        asked = await self._endpoints.asked(self._endpoint, body, self._owner)
        if asked.model not in self.models:
            self.models = [*self.models, asked.model][:2]
        request = asked.request
        own: JsonDict = {**request.extra}
        if not request.path:
            own |= {**request.sampling.given(), "messages": request.conversation.as_messages()}
        if self._names_model:
            own["model"] = asked.plan.name
        repeated = {name: value for name, value in body.items() if name not in _TEXTS}
        kept = {"model": asked.model, "body": repeated, "given": sorted(asked.given)}
        return {"method": "POST", "url": f"/v1{request.path or CHAT}", "body": own, "metadata": kept}


class Results:
    """Writes the output file and the error file of a batch from the rows of its job."""

    def __init__(self, endpoint: str, place: Path, folder: Folder, last: str) -> None:
        """`last`: the last state of the batch."""
        self._endpoint, self._refused, self._folder, self._last = endpoint, place / REFUSED, folder, last
        self._unread = place / INPUT
        self.completed = self.failed = 0
        self._tokens = dict.fromkeys(("prompt_tokens", "cached_tokens", "completion_tokens", "reasoning_tokens"), 0)

    @property
    def usage(self) -> JsonDict:
        """The tokens of all rows, as `BatchUsage` in OpenAI's packages."""
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
            # the batch has ended before its job has read the rows
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
            asked = row["metadata"]
            try:
                check_whole(asked.get("given", ()), outcome.warnings)  # an older release kept no `given`
            except ApiError as error:
                self.failed += 1
                errors.write(_json_line(found | _refused(number, error)))
                return
            self.completed += 1
            body = reply_body(self._endpoint, asked["body"], outcome, asked["model"])
            response = {"status_code": 200, "request_id": f"req_{number}", "body": body}
            out.write(_json_line(found | {"response": response, "error": None}))
        else:
            self.failed += 1
            errors.write(_json_line(found | self._failed(number, outcome.error)))

    def _undone(self) -> JsonDict:
        code, message = _UNDONE[self._last]
        return {"response": None, "error": {"code": code, "message": message}}

    def _failed(self, number: str, error: PromptmillError) -> JsonDict:
        """Return `response` and `error` of a row that failed."""
        if error.code is Code.DEFERRED:
            return self._undone()
        if error.said is not None:
            body = {"error": {"message": str(error), "type": None, "param": None, "code": None, **error.said["error"]}}
            response = {"status_code": error.said["status_code"], "request_id": f"req_{number}", "body": body}
            return {"response": response, "error": None}
        return _refused(number, error_of(error))


def line_count(path: Path) -> int:
    """Return the number of lines of a file; 0 if it is missing. Blocks."""
    with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
        return sum(1 for _ in file)
    return 0


def _line(own: str, asked: JsonDict) -> bytes:
    try:
        return _json_line({"custom_id": own} | asked)
    except TypeError:
        raise ApiError(400, "The body holds a value that JSON cannot hold, such as half a surrogate pair.") from None


def _refused(number: str, error: ApiError) -> JsonDict:
    response = {"status_code": error.status, "request_id": f"req_{number}", "body": error.body()}
    return {"response": response, "error": None}


def _json_line(value: Any) -> bytes:
    return orjson.dumps(value, option=orjson.OPT_APPEND_NEWLINE)


def _some_lines(file: IO[bytes]) -> list[bytes]:
    """Return the next lines. A line that is longer than any row comes in pieces, which are not valid JSON."""
    found, size = list[bytes](), 0
    while size < _BLOCK and (line := file.readline(LONGEST_ROW)):
        found.append(line)
        size += len(line)
    return found


@contextlib.contextmanager
def _new(path: Path) -> Iterator[IO[bytes]]:
    """Yield a file in place of a killed server's."""
    path.unlink(missing_ok=True)
    with os.fdopen(disk.created(path), "wb") as file:
        yield file
