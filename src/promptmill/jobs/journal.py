"""What is answered, crash-safe: an append-only file of checksummed lines, `<crc32 hex> <JSON>\n`.

There is one writer, the process that runs the job: outcomes of worker processes come to it through the sink. Segments
per worker would save nothing (a record costs about 3 µs, a request 60) and would need an order between files
when a row is answered twice. A later record of a row replaces an earlier one.

Written once per turn of the event loop (the sink's doing), so a killed process loses next to nothing;
`sync` every second bounds what a power loss costs. What no checksum covers is not trusted: the row is done again.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import orjson

from promptmill.core.outcome import Completion, Outcome
from promptmill.jobs.disk import RandomFile

_BLOCK = 1 << 20
_CRC_SIZE = 9
_HEAD = re.compile(
    rb'\{"row":(\d+),"attempts":(\d+),"latency_s":([0-9.e+-]+),"usage":\[(\d+),(\d+)\],'
    rb'"code":(?:null|"(\w+)"),"retryable":(true|false)'
)
_LONGEST_HEAD = 512


class Head(NamedTuple):
    """What a record begins with: enough to count it. `code` is None for an answer."""

    row: int
    attempts: int
    latency_s: float
    prompt_tokens: int
    completion_tokens: int
    code: str | None
    retryable: bool
    reasoning: bool = False
    tool_calls: bool = False
    logprobs: bool = False
    """Whether the record holds any; `Journal.head`, which reads the beginning alone, does not say."""


def head_of(record: Mapping[str, Any]) -> Head:
    """Return the head of a record."""
    prompt, completion = record["usage"]
    return Head(
        record["row"],
        record["attempts"],
        record["latency_s"],
        prompt,
        completion,
        record["code"],
        record["retryable"],
        "reasoning" in record,
        "tool_calls" in record,
        "logprobs" in record,
    )


def encode(row: int, outcome: Outcome) -> bytes:
    """Return the journal's line for the outcome of `row`."""
    usage = outcome.usage
    value: dict[str, Any]
    if isinstance(outcome, Completion):
        value = {
            "row": row,
            "attempts": outcome.attempts,
            "latency_s": outcome.latency_s,
            "usage": (usage.prompt_tokens, usage.completion_tokens),
            "code": None,
            "retryable": False,
            "finish_reason": outcome.finish_reason,
            "text": outcome.text,
        }
        if outcome.reasoning is not None:
            value["reasoning"] = outcome.reasoning
        if outcome.tool_calls:
            value["tool_calls"] = outcome.tool_calls
        if outcome.logprobs is not None:
            value["logprobs"] = outcome.logprobs
        if outcome.details is not None:
            value["details"] = outcome.details
    else:
        value = {
            "row": row,
            "attempts": outcome.attempts,
            "latency_s": outcome.latency_s,
            "usage": (usage.prompt_tokens, usage.completion_tokens),
            "code": str(outcome.error.code),
            "retryable": outcome.error.retryable,
            "message": str(outcome.error),
        }
    try:
        body = orjson.dumps(value)
    except (
        TypeError
    ):  # half a surrogate pair in an answer: no file can hold it, so it becomes the replacement character
        body = orjson.dumps(_mended(value))
    return b"%08x %b\n" % (zlib.crc32(body), body)


def _mended(value: Any) -> Any:
    match value:
        case str():
            return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        case dict():
            return {_mended(str(key)): _mended(inner) for key, inner in value.items()}
        case list() | tuple():
            return [_mended(inner) for inner in value]
    return value


def _body(line: bytes) -> bytes | None:
    """Return the JSON of a line without its newline, None when the checksum is not its own."""
    body = line[_CRC_SIZE:]
    return body if line[:_CRC_SIZE] == b"%08x " % zlib.crc32(body) else None


class ScanReport:
    """What `scan` found that cannot be trusted. `end` is where the next record belongs."""

    def __init__(self) -> None:
        self.records = 0
        self.torn_bytes = 0
        self.end = 0


class Journal:
    """The journal of one job."""

    def __init__(self, file: RandomFile, *, crash: Callable[[str], None] | None = None) -> None:
        """`file` is the caller's. `crash` is called at named points; tests end the process there."""
        self._file = file
        self._crash = crash
        self._end = 0

    def begin(self) -> None:
        """Write the first line, so that no record lies at offset 0. Raises `OSError`."""
        body = orjson.dumps({"promptmill_journal": 1})
        line = b"%08x %b\n" % (zlib.crc32(body), body)
        self._file.write_at(0, line)
        self._end = len(line)

    def scan(self, damage: ScanReport) -> Iterator[tuple[int, Head]]:
        """Yield `(offset, head)` of every sound record, oldest first, and then cut off what is torn at the end."""
        offset = 0
        rest = b""
        while block := self._file.read_at(offset + len(rest), _BLOCK):
            *lines, rest = (rest + block).split(b"\n")
            for line in lines:
                body = _body(line)
                found = _HEAD.match(body) if body else None
                if body and found is not None:
                    # a quote inside a text is escaped, so these bytes are a key
                    more = body[-2:] != b'"}'  # what is no text is written behind all texts
                    calls, logprobs = more and b'"tool_calls":' in body, more and b'"logprobs":' in body
                    yield offset, _head(found, b'"reasoning":' in body, calls, logprobs)
                elif body is None:
                    damage.records += 1
                offset += len(line) + 1
        damage.torn_bytes = len(rest)
        damage.end = offset
        if rest:
            self._file.truncate(offset)
        self._end = offset

    def write(self, lines: list[bytes]) -> int:
        """Hand lines to the operating system, in one write; return the offset of the first.

        Raises `OSError` when they do not fit; the file then ends where it ended before.
        """
        start, data = self._end, b"".join(lines)
        if self._crash:
            self._crash("before-write")
        try:
            self._file.write_at(start, data)
        except OSError:
            self._file.truncate(start)
            raise
        self._end = start + len(data)
        if self._crash:
            self._crash("after-write")
        return start

    def sync(self) -> None:
        """Return when everything flushed is on the disk."""
        self._file.sync()

    def read(self, offset: int, row: int) -> dict[str, Any] | None:
        """Return the record at `offset`, None when it is damaged or another row's."""
        return read_record(self._file, offset, row)

    def head(self, offset: int, row: int) -> Head | None:
        """Return the head of the record at `offset`, None when it is not `row`'s."""
        found = _HEAD.match(self._file.read_at(offset, _LONGEST_HEAD), _CRC_SIZE)
        return _head(found) if found and int(found[1]) == row else None


def read_record(file: RandomFile, offset: int, row: int) -> dict[str, Any] | None:
    """Return the record of `row` at `offset`, None when there is no sound one; for readers beside the writer."""
    size = 4096
    while b"\n" not in (data := file.read_at(offset, size)):
        if len(data) < size:
            return None
        size *= 8
    body = _body(data[: data.index(b"\n")])
    if body is None:
        return None
    record: dict[str, Any] = orjson.loads(body)
    return record if record.get("row") == row else None


def _head(found: re.Match[bytes], *has: bool) -> Head:
    row, attempts, latency_s, prompt, completion, code, retryable = found.groups()
    counts = int(row), int(attempts), float(latency_s), int(prompt), int(completion)
    return Head(*counts, code.decode() if code else None, retryable == b"true", *has)
