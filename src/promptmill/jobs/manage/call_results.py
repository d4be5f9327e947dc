"""The rows and answers that the results of calls show. No result has a row or answer that may hold a secret, because
the calling agent may have read a poisoned page. Pages have a bounded size."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any, Literal

import orjson

from promptmill.core.bounds import LARGEST_PAGE
from promptmill.core.secret_text import SecretFinder, find_field, may_hold_secrets
from promptmill.core.values import JsonDict, JsonObject, exact, json_text, read_json
from promptmill.files import json_values
from promptmill.jobs.columns.column_names import variant_values
from promptmill.jobs.columns.column_values import shown_fields
from promptmill.jobs.export.answered import AnsweredRow, answered_rows
from promptmill.jobs.export.text import OwnValues
from promptmill.jobs.store import status
from promptmill.jobs.store.database import JobDatabase, Row
from promptmill.jobs.store.folder import Folder
from promptmill.jobs.store.plan import JobSpec
from promptmill.jobs.store.records import SLOT, Record
from promptmill.system.call_files import MAY_HOLD_SECRETS, FileRule

_VALUE = 24  # one value costs the event loop as much time as this many characters; a page has up to 300,000 values
Only = Literal["all", "answers", "failed"]
LEFT_OUT = "left_out"
"""The field with the reason why a row's fields or answer are withheld."""
WITHHELD = "(withheld)"
"""The name under which the counts of equal answers include all answers that may hold secrets."""
_IDENTIFIES = frozenset({LEFT_OUT, "index", "id", "custom_id", "model", "path"})
"""The fields of the input that a row keeps if the other ones are left out."""


def results_page(
    folder: Folder, rule: FileRule, offset: int, limit: int, only: Only, *, with_input: bool, largest: int
) -> dict[str, Any]:
    """Return answered rows after the first `offset` rows, in input order. Blocks. See `VisibleJobs.results`.

    `largest`: the approximate number of bytes of rows to read. Without this limit, if a client read 3,000 long rows
    page by page, these would be searched for keys several hundred times.

    Whole numbers from 2^53 on are texts, because clients in JavaScript, such as Claude Code, read only the structured
    content, whose numbers they round."""
    shown_rows = list[dict[str, Any]]()
    with folder.reading() as store:
        spec = folder.spec_in(store)
        names = spec.output.names or {}
        shown = ShownRows(spec, rule)
        size, read, last, after = 0, 0, -1, None
        for each in answered_rows(store, spec, partial(_wanted, only), min(offset, SLOT), _end_of_answers(store, spec)):
            if each.row.n != last and (len(shown_rows) >= limit or size > LARGEST_PAGE or read > largest):
                after = each.row.n
                break
            answered = shown.answer(each)
            own = shown.own(each.row)
            if not with_input:
                own = {name: value for name, value in own.items() if name in _IDENTIFIES}
            own |= variant_values(spec, each.slot)
            shown_rows.append({names.get("row", "row"): each.row.n + 1} | own | answered)
            cells, text = (each.row.cells or b"") if with_input else b"", orjson.dumps(answered)
            size, read = size + _size(each.row.cells or b"") + _size(text), read + len(cells) + len(text)
            last = each.row.n
    now = status.read(folder)
    return {
        "job_id": now["job_id"],
        "state": now["state"],
        "done": now.get("done", 0),
        "total": now.get("total"),
        **({"columns": names} if names else {}),
        "rows": shown_rows,
        "next_offset": after,
    }


def shown_results(results: Mapping[str, Any], rule: FileRule) -> JsonDict:
    """Return the counts of the answers (see `statistics.results`) without answers that may hold secrets."""
    if not rule.is_guarded:
        return {**results}
    finder = rule.finder

    def shown(counts: Mapping[str, Any], name: str = "answer") -> JsonDict:
        values = counts.get("values", {})
        kept = {text: rows for text, rows in values.items() if not _is_secret(text, name, finder)}
        hidden = sum(values.values()) - sum(kept.values())
        return {**counts, **({"values": kept | {WITHHELD: hidden}} if hidden else {})}

    fields = {name: shown(counts, name) for name, counts in results.get("fields", {}).items()}
    return shown(results) | ({"fields": fields} if fields else {})


class ShownRows:
    """The rows of a job and their answers, as fields that can be sent to a caller. Possible secrets are left out."""

    def __init__(self, spec: JobSpec, rule: FileRule) -> None:
        """Rows are searched for secrets, unless `rule` (the file rule) is the rule of the operator's own programs."""
        self._spec, self._names, self._own = spec, spec.output.names or {}, OwnValues(spec)
        self._finder = rule.finder if rule.is_guarded else None

    def may_show(self, text: str, name: str = "answer") -> bool:
        """Return whether `text` (an answer, or the value of its field `name`) seems to hold no secret."""
        return self._finder is None or not _is_secret(text, name, self._finder)

    def own(self, row: Row) -> dict[str, Any]:
        """Return the fields of a row of the input; `{}` if the row is unreadable or too large for a page."""
        if _size(row.cells or b"") > LARGEST_PAGE:
            return {}
        text = json_values.json_line(self._own.in_json(row))
        value: dict[str, Any] = exact(read_json(text))
        if self._finder is not None and (find_field(value) or self._finder.find(text)):
            return {LEFT_OUT: f"The row's fields {MAY_HOLD_SECRETS}."}
        return value

    def answer(self, answered: AnsweredRow) -> dict[str, Any]:
        """Return the fields of an answer, by their names in the output; with `left_out` if fields are withheld."""
        spec, names = self._spec, self._names
        fields = _answer_fields(answered.record, names)
        given = spec.plan.marks(spec, answered.record, answered.beside)
        marks = {names.get(name, name): value for name, value in given.items()}
        answer = fields[names.get("answer", "answer")]
        if self._finder is not None and _holds_secret(fields | marks, answer, self._finder):
            return _withheld(fields, names) | dict.fromkeys(marks)
        return fields | marks


def left_out(row: int, names: Iterable[object], fields: JsonObject, finder: SecretFinder | None) -> JsonDict:
    """If a row's fields or the `names` of its columns may hold a secret, return the row's number `row` and the reason
    why it is left out; else `{}`. `finder`: None for the operator's own programs."""
    if finder is None or not may_hold_secrets(finder, names, json_text(fields)):
        return {}
    return {"row": row, LEFT_OUT: f"The row {MAY_HOLD_SECRETS}."}


def _is_secret(text: str, name: str, finder: SecretFinder) -> bool:
    """Return whether `text` may be a secret as the value of a field named `name`. The rules are those for rows."""
    return bool(find_field([name])) or _holds_secret({name: text}, text, finder)


def _holds_secret(fields: JsonObject, answer: object, finder: SecretFinder) -> bool:
    """Return whether an answer's fields may hold a key or password. The rules are those for rows of the input."""
    if isinstance(answer, str) and answer.lstrip()[:1] == "{":
        with contextlib.suppress(ValueError):
            answer = read_json(answer.encode())
    return bool((isinstance(answer, Mapping) and find_field(answer)) or finder.find(json_values.json_line(fields)))


def _withheld(fields: JsonObject, names: Mapping[str, str]) -> dict[str, Any]:
    """Return the fields of an answer without its texts."""
    kept = {names.get(name, name) for name in ("usage", "finish_reason", "cost")}
    shown = {name: value for name, value in fields.items() if name in kept}
    told = f"The row's answer {MAY_HOLD_SECRETS}; the job's output has it."
    return {names.get("answer", "answer"): None, names.get("error", "error"): None, **shown, LEFT_OUT: told}


def _answer_fields(record: Record, names: Mapping[str, str]) -> dict[str, Any]:
    """Return the fields of an answer as in the output, but without logprobs and similar fields if these take megabytes.

    In memory, such fields would take many times their size; and they would block the event loop for seconds.
    """
    size = len(record.more or "")
    if _size((record.more or "").encode()) <= LARGEST_PAGE // 8:
        return shown_fields(record, names)
    left_out = f"`logprobs`, `tool_calls` and the like take {size:,} bytes; they are in the job's output file."
    return shown_fields(record._replace(more=None), names) | {LEFT_OUT: left_out}


def _end_of_answers(store: JobDatabase, spec: JobSpec) -> int:
    """Return the number after the last answered row, so that the rest of a large input need not be read."""
    query = "SELECT coalesce(max(key), -1) FROM answer WHERE key BETWEEN ? AND ?"
    firsts = [slot * SLOT for slot in range(spec.delivered)]
    return max(int(store.read(query, first, first + SLOT - 1)[0][0]) - first for first in firsts) + 1


def _wanted(only: Only, key: int, record: Record | None) -> Record | None:
    del key
    if record is None or (only != "all" and (record.code is None) != (only == "answers")):
        return None
    return record


def _size(text: bytes) -> int:
    """Return the cost of a JSON text on a page: its number of bytes, and more if it has many values."""
    return len(text) + _VALUE * text.count(b",")
