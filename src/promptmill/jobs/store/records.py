"""Records of a job's database: the outcome of each row, its costs, its fields in an output, and counts of all rows."""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any, NamedTuple

import orjson

from promptmill.backends import rows
from promptmill.backends.protocol import COUNTERS, NO_USAGE, Call, Completion, Failure, Outcome, Usage
from promptmill.core.errors import Code, PromptmillError
from promptmill.core.wording import mended

ANSWER_FIELDS = ("answer", "error", "usage", "finish_reason")
RARE_FIELDS = ("answers", "reasoning", "tool_calls", "logprobs", "cost", "answered_by", "changed")
"""Fields that only some models or requests have."""
OURS = (*ANSWER_FIELDS, *RARE_FIELDS, "row", "surplus_cells")
"""The usual names of the columns that a job adds to a row; `row`, its number, only where rows are not in a file."""
FIELD = "answer."
"""The prefix of the key of a column that holds a field of the answers: the field may have the name of another one."""
_LARGEST_INT = 2**63 - 1
_CHECKED = 12  # columns before the checksum
_STEP = math.log(1.04)
_SHORTEST_S = 0.001
_STEPS = 450  # the last one is 13 hours
_SAMPLED = 8


class Made(NamedTuple):
    """The facts about a run in each of its records."""

    settings: int = 0
    round: int = 0
    changed: Sequence[str] = ()
    """Settings that have changed since the job's first run."""


FIRST = Made()


class Record(NamedTuple):
    """The columns of table `answer`, in their order; `code` is None for an answer."""

    row: int
    attempts: int
    latency_s: float
    prompt_tokens: int
    completion_tokens: int
    code: str | None
    retryable: int
    finish_reason: str | None
    text: str
    """The answer, or what the failure says."""
    reasoning: str | None
    more: str | None
    """JSON with `tool_calls`, `logprobs`, `details`, `answered_by`, `changed`, `wanted`; `response` of a failure."""
    asked: bytes | None
    """The digest of the row's own question (see `rows.digest`), by which its answer is found when the row moves."""
    checksum: int
    """Of the columns before it."""
    settings: int = 0
    """The id of the settings that it was made under."""
    round: int = 0
    """The round of the job that made it."""

    @property
    def is_sound(self) -> bool:
        """Whether every column is what was written."""
        try:
            return self.checksum == _checksum(self[:_CHECKED])
        except TypeError:  # not even of the kind that was written
            return False

    @property
    def extras(self) -> Mapping[str, Any]:
        """The content of `more`."""
        return orjson.loads(self.more) if self.more else {}

    def of(self, row: int, asked: bytes | None) -> Record:
        """Return the same record as that of `row`, which asks this."""
        fields = (row, *self[1 : _CHECKED - 1], asked)
        return Record._make((*fields, _checksum(fields), self.settings, self.round))

    def outcome(self) -> Outcome:
        """Return the recorded outcome."""
        extras = self.extras
        usage = Usage(self.prompt_tokens, self.completion_tokens, **extras.get("tokens", {}))
        if self.code is not None:
            error = PromptmillError(Code(self.code), self.text, "")
            error.said = extras.get("response")
            return Failure(
                error, self.attempts, self.latency_s, usage, cost=extras.get("cost"), wanted=extras.get("wanted", 1)
            )
        return Completion(
            self.text,
            self.finish_reason,
            usage,
            self.reasoning,
            tuple(extras.get("tool_calls", ())),
            self.attempts,
            self.latency_s,
            extras.get("logprobs"),
            extras.get("details"),
            extras.get("answered_by", ""),
            extras.get("cost"),
            tuple(extras.get("answers", ())),
        )


def record_of(row: int, outcome: Outcome, asked: bytes | None = None, made: Made = FIRST) -> Record:
    """Return the record of the outcome of `row`. Half a surrogate pair becomes the replacement character."""
    fields = _fields(row, outcome, asked, made.changed)
    try:
        return Record._make((*fields, _checksum(fields), made.settings, made.round))
    except TypeError:  # no file can hold half a surrogate pair
        fields = (*fields[:7], *map(mended, fields[7:11]), asked)
        return Record._make((*fields, _checksum(fields), made.settings, made.round))


def copied(outcome: Outcome, attempts: int = 0) -> Outcome:
    """Return the outcome of another row, or of another job, as one that cost this row no more than its `attempts`."""
    if not isinstance(outcome, Completion):
        return Failure(outcome.error, attempts)
    details = outcome.details
    if details is not None and "body" in details:
        details = {**details, "body": {name: value for name, value in details["body"].items() if name != "usage"}}
    cost = None if outcome.cost is None else 0.0
    return replace(outcome, usage=NO_USAGE, attempts=attempts, latency_s=0.0, details=details, cost=cost)


def _fields(row: int, outcome: Outcome, asked: bytes | None, changed: Sequence[str]) -> tuple[Any, ...]:
    usage = outcome.usage
    spent = (
        outcome.attempts,
        float(outcome.latency_s),
        min(usage.prompt_tokens, _LARGEST_INT),
        min(usage.completion_tokens, _LARGEST_INT),
    )
    more: dict[str, Any] = {} if outcome.cost is None else {"cost": round(outcome.cost, 9)}
    if usage.cached_tokens or usage.reasoning_tokens:
        apart = {"cached_tokens": usage.cached_tokens, "reasoning_tokens": usage.reasoning_tokens}
        more["tokens"] = {name: min(count, _LARGEST_INT) for name, count in apart.items() if count}
    if outcome.wanted > 1:
        more["wanted"] = outcome.wanted
    if not isinstance(outcome, Completion):
        error = outcome.error
        if error.said is not None:
            more["response"] = error.said
        text = _json(more) if more else None
        return (row, *spent, str(error.code), int(error.retryable), None, str(error), None, text, asked)
    if changed:
        more["changed"] = list(changed)
    if outcome.tool_calls:
        more["tool_calls"] = outcome.tool_calls
    if outcome.logprobs is not None:
        more["logprobs"] = outcome.logprobs
    if outcome.details is not None:
        more["details"] = outcome.details
    if outcome.answers:
        more["answers"] = outcome.answers
    if outcome.answered_by:
        more["answered_by"] = outcome.answered_by
    text = _json(more) if more else None
    return (row, *spent, None, 0, outcome.finish_reason, outcome.text, outcome.reasoning, text, asked)


def _checksum(fields: tuple[Any, ...]) -> int:
    return zlib.crc32(fields[11] or b"", zlib.crc32(orjson.dumps(fields[:11])))


def _json(value: Any) -> str:
    try:
        return orjson.dumps(value).decode()
    except TypeError:
        return orjson.dumps(mended(value)).decode()


def answer_fields(record: Record, columns: Mapping[str, str] = MappingProxyType({})) -> dict[str, Any]:
    """Return `answer`, `error`, `usage`, `finish_reason`; of `RARE_FIELDS` those that there are.

    `columns`: the names of those that have another one in this job.
    """
    failed = record.code is not None
    found: dict[str, Any] = {
        "answer": "" if failed else record.text,
        "error": {
            "code": record.code,
            "message": record.text,
            "retryable": bool(record.retryable),
            "attempts": record.attempts,
        }
        if failed
        else None,
        "usage": {"prompt_tokens": record.prompt_tokens, "completion_tokens": record.completion_tokens},
        "finish_reason": record.finish_reason,
    }
    if record.reasoning is not None:
        found["reasoning"] = record.reasoning
    if record.more is not None:
        extras = record.extras
        found["usage"] |= extras.get("tokens", {})
        found |= {name: extras[name] for name in RARE_FIELDS if name in extras}
    return {columns.get(name, name): value for name, value in found.items()} if columns else found


def jsonl_line(line: bytes, fields: Mapping[str, Any]) -> bytes:
    """Return the output line of an input line: its own bytes, with the answer's `fields` behind them."""
    line = line.removeprefix(rows.BOM).strip()
    try:
        value = rows.load(line, "")
    except PromptmillError:
        value = None
    if not isinstance(value, dict):  # the error says which line it is
        return rows.json_line(fields)
    return b"%b%b%b" % (line[:-1].rstrip(), b"," if value else b"", rows.json_line(fields)[1:])


def cells(found: Mapping[str, Any], names: Iterable[str]) -> list[str]:
    """Return the answer's fields named as CSV cells: an error as `code: message`, what has parts as JSON."""
    error = found["error"]
    said = f"{error['code']}: {error['message']}" if error else ""
    return [said if name == "error" else cell(found.get(name)) for name in names]


def cell(value: Any) -> str:
    """Return a value as a CSV cell; one that is no text is JSON, bytes are base64."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, float) and not math.isfinite(value):
        return json.dumps(value)
    text = rows.json_line(value)[:-1].decode()
    return text[1:-1] if text[0] == '"' else text  # a date, a decimal or bytes of Parquet, which JSON has as texts


class Latencies:
    """A histogram of the latencies of answers, in steps of 4 % from 1 ms up."""

    def __init__(self) -> None:
        self._steps = [0] * _STEPS
        self._unsampled = 0

    def count(self, latency_s: float) -> None:
        """Count the latency of an answer."""
        if latency_s > _SHORTEST_S:
            self._steps[min(_STEPS - 1, int(math.log(latency_s / _SHORTEST_S) / _STEP))] += 1
        elif latency_s:  # a copy of another answer took no time
            self._steps[0] += 1

    def sample(self, latency_s: float) -> None:
        """Count one latency of so many, which is enough while a job runs; all are counted at its end."""
        self._unsampled += 1
        if self._unsampled == _SAMPLED:
            self._unsampled = 0
            self.count(latency_s)

    def add(self, other: Latencies) -> None:
        """Add the latencies that `other` has counted."""
        self._steps = [mine + its for mine, its in zip(self._steps, other._steps, strict=True)]

    def quantile(self, share: float) -> float | None:
        """Return the latency that `share` (0 to 1) of the answers did not exceed, within 4 %; None without answers."""
        total = sum(self._steps)
        if not total:
            return None
        wanted, seen = math.ceil(share * total), 0
        for step, count in enumerate(self._steps):
            seen += count
            if seen >= wanted:
                return round(_SHORTEST_S * math.exp((step + 0.5) * _STEP), 4)
        return None


class JobCounts:
    """Counts of settled rows, failures by code, requests, tokens, and latencies of answers."""

    def __init__(self, *, skips_empty: bool = False) -> None:
        """`skips_empty`: rows that ask nothing are no failures."""
        self.skips_empty = skips_empty
        self.skipped = 0
        """Rows that ask nothing and are left out."""
        self.done = 0
        self.truncated = 0
        """Answers that `max_tokens` cut short."""
        self.empty = 0
        """Answers without text that call no tool."""
        self.requests = 0
        self.retries = 0
        self.prompt_tokens = 0
        self.completion_tokens = 0
        self.cached_tokens = 0
        """Those of the prompt tokens that came from the provider's own cache."""
        self._codes: dict[str, int] = {}
        self.latencies = Latencies()

    @property
    def failed(self) -> int:
        """Rows that failed."""
        return sum(tuple(self._codes.values()))

    @property
    def answered(self) -> int:
        """Rows with an answer."""
        return self.done - self.failed - self.skipped

    def skips(self, code: str) -> bool:
        """Return whether rows that failed with `code` are left out."""
        return self.skips_empty and code == Code.EMPTY_PROMPT

    def count(self, outcome: Outcome) -> None:
        """Count the outcome of a row of this run: all but its requests and tokens, which a `Call` counts."""
        self.done += 1
        if isinstance(outcome, Failure):
            self.fail(str(outcome.error.code))
            return
        self.latencies.sample(outcome.latency_s)
        self.truncated += outcome.finish_reason == "length"
        self.empty += outcome.is_empty

    def fail(self, code: str, count: int = 1) -> None:
        """Count failures."""
        if self.skips(code):
            self.skipped += count
            return
        self._codes[code] = self._codes.get(code, 0) + count

    def add(self, other: JobCounts) -> None:
        """Add the counts of `other`."""
        for name in ("done", "skipped", "truncated", "empty", *COUNTERS):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for code, count in other.codes.items():
            self.fail(code, count)
        self.latencies.add(other.latencies)

    def replace(self, found: JobCounts) -> None:
        """Take over what `found` counts of rows; requests and tokens stay."""
        self.done, self.skipped, self._codes = found.done, found.skipped, found.codes
        self.truncated, self.empty = found.truncated, found.empty

    @property
    def codes(self) -> dict[str, int]:
        """Failures by code, the commonest first."""
        found = tuple(self._codes.items())  # at once: a thread may be counting
        return dict(sorted(found, key=lambda item: (-item[1], item[0])))

    def as_dict(self, stats: Call) -> dict[str, Any]:
        """Return the counts for people and programs, with what the present run costs, which `stats` counts."""
        return {
            "done": self.done,
            "answered": self.answered,
            "failed": self.failed,
            "errors": self.codes,
            **({"skipped": self.skipped} if self.skipped else {}),
            "truncated": self.truncated,
            **({"empty": self.empty} if self.empty else {}),
            **{name: getattr(self, name) + getattr(stats, name) for name in COUNTERS},
            "latency_s": {
                name: self.latencies.quantile(share) for name, share in (("p50", 0.5), ("p95", 0.95), ("p99", 0.99))
            },
        }
