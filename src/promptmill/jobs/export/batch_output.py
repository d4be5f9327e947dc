"""The output for a Batch file: lines in OpenAI's format; and a check whether the ids of rows are unique."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from promptmill.core.errors import PromptmillError
from promptmill.core.values import JsonDict, JsonObject
from promptmill.files import json_values
from promptmill.jobs.store.database import JobDatabase
from promptmill.jobs.store.plan import JobSpec
from promptmill.jobs.store.records import Record

_IDS = (
    "SELECT n, nullif(CASE WHEN json_valid(own) THEN CAST({} AS TEXT) END, '') AS id "
    "FROM (SELECT n, CAST(cells AS TEXT) AS own FROM row WHERE n < ?)"
)
_MISSING = "SELECT count(*) FROM ({}) WHERE id IS NULL"
# The query has a window function, which sorts the ids, because an index on random ids is ten times slower.
_REPEATED = (
    "SELECT n, first, count(*) OVER () FROM (SELECT n, min(n) OVER (PARTITION BY id) AS first FROM ({}) "
    "WHERE id IS NOT NULL) WHERE n != first ORDER BY n LIMIT ?"
)


def batch_output(line: bytes, record: Record, *, job_id: str, model: str, created: int, takes_model: bool) -> JsonDict:
    """Return the output of a Batch line.

    `takes_model`: whether the model that the line names, if any, has answered the line.
    """
    try:
        asked = json_values.load(line.strip(), "")
    except PromptmillError:
        asked = None
    asked = asked if isinstance(asked, dict) else {}
    number = f"{job_id[-10:]}-{record.row + 1}"
    body = asked.get("body")
    named = str((takes_model and isinstance(body, dict) and body.get("model")) or model)
    answered = _answer_of(record, number, named, created)
    return {"id": f"batch_req_{number}", "custom_id": asked.get("custom_id")} | answered


@dataclass(frozen=True, slots=True)
class _Answer:
    index: int
    text: str
    finish_reason: str | None
    reasoning: str | None
    tool_calls: Sequence[JsonObject]
    logprobs: JsonObject | None
    details: JsonObject


def _answers(record: Record) -> list[_Answer]:
    """Return the answers to a line, several if the line requested several (`n`). Failed answers are left out."""
    extras = record.extras
    details = extras.get("details", {})
    if choices := details.get("choices"):
        return [_Answer(**choice) for choice in choices]
    calls, logprobs = extras.get("tool_calls", ()), extras.get("logprobs")
    return [_Answer(0, record.text, record.finish_reason, record.reasoning, calls, logprobs, details)]


def _answer_of(record: Record, number: str, model: str, created: int) -> JsonDict:
    """Return `response` and `error` (platform.openai.com/docs/api-reference/batch/request-output)."""
    extras = record.extras
    if record.code is not None:
        error = {"code": record.code, "message": record.text}
        said = extras.get("response")
        if said is None:
            return {"response": None, "error": error}
        body = {"error": {"message": record.text, "type": None, "param": None, "code": None} | said["error"]}
        return {
            "response": {"status_code": said["status_code"], "request_id": f"req_{number}", "body": body},
            "error": error,
        }
    prompt, completion = record.prompt_tokens, record.completion_tokens
    details = extras.get("details", {})
    if "payload" in details:
        return {"response": _response(number, details["payload"]), "error": None}
    said = details.get("body", {})
    if not isinstance(said.get("usage", {}), dict):
        said = {name: value for name, value in said.items() if name != "usage"}
    answered = {
        "id": f"chatcmpl-{number}",
        "object": "chat.completion",
        "created": created,
        "model": model,
        "choices": list(map(_openai_choice, _answers(record))),
        "usage": {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion},
    }
    # `said` comes last: the endpoint's own body may have an id, a model and usage
    return {"response": _response(number, answered | said), "error": None}


def _response(number: str, body: JsonObject) -> JsonDict:
    return {"status_code": 200, "request_id": f"req_{number}", "body": body}


def _openai_choice(answer: _Answer) -> JsonDict:
    said = answer.details.get("message", {})
    message: JsonDict = {"role": "assistant", "content": answer.text, "refusal": None, **said}
    if message["refusal"] == answer.text:  # the text is a refusal, for which OpenAI has a separate field
        message["content"] = None
    if answer.reasoning is not None:
        message["reasoning_content"] = answer.reasoning
    if answer.tool_calls:
        message["tool_calls"] = answer.tool_calls
        message["content"] = answer.text or None
    details: JsonDict = answer.details.get("choice", {})
    return details | {
        "index": answer.index,
        "message": message,
        "logprobs": answer.logprobs,
        "finish_reason": answer.finish_reason or "stop",
    }


class Ids(NamedTuple):
    """The ids of an input's rows, such as the `custom_id`s of a Batch file."""

    missing: int
    """The number of rows without an id."""
    repeated: int
    """The number of rows that repeat the id of an earlier row."""
    examples: Sequence[tuple[int, int]]
    """Examples of rows that repeat an id: the row's number, and the number of the first row with the same id."""

    @classmethod
    def of(cls, store: JobDatabase, spec: JobSpec, end: int, most: int = 1) -> Ids:
        """Check the ids of rows before number `end`. Return the counts and at most `most` examples. Blocks."""
        if spec.input.format == "batch":
            path = "own ->> '$.custom_id'"
        elif not spec.input.header:
            path = "own ->> '$.id'"
        elif "id" in spec.input.header:
            path = f"own ->> '$[{spec.input.header.index('id')}]'"
        else:
            return cls(0, 0, ())
        ids = _IDS.format(path)
        ((missing,),) = store.read(_MISSING.format(ids), end)
        repeated = store.read(_REPEATED.format(ids), end, max(1, most))
        return cls(missing, repeated[0][2] if repeated else 0, [(row, first) for row, first, _ in repeated[:most]])

    @property
    def warning(self) -> str:
        """A sentence about repeated and missing `custom_id`s; `""` if there are none."""
        sentences = [f"{self.missing} row(s) have no `custom_id`."] if self.missing else []
        if self.repeated:
            row, first = self.examples[0]
            sentences.append(
                f"{self.repeated} line(s) repeat the `custom_id` of an earlier one, line {row + 1} that of line "
                f"{first + 1} first: only the order of their answers tells them apart."
            )
        return " ".join(sentences)
