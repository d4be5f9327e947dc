"""The figures of a job whose rows share requests, and their text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from typing_extensions import TypedDict

from promptmill.core.wording import counted
from promptmill.jobs.rows.plain_template import PlainTemplate
from promptmill.jobs.store.database import JobDatabase
from promptmill.jobs.store.plan import JobSpec
from promptmill.jobs.store.records import SLOT
from promptmill.jobs.store.statistics import CAME, SHARED

_BYTES_PER_TOKEN = 4
_COUNTS = f"""
    SELECT total({CAME} = 'shared'), total({CAME} = 'shared' AND attempts > {SHARED}),
        total({CAME} = '' AND attempts > 0), total({CAME} = '' AND {SHARED} > 0)
    FROM answer WHERE key BETWEEN ? AND ? AND vector IS NULL
"""  # noqa: S608 (fixed names of columns)


class TogetherStatus(TypedDict):
    """How many rows shared requests."""

    rows: int
    """Rows whose answer came in a reply to several."""
    requests: int
    """The requests for these rows."""
    alone: int
    """Rows whose answer came in a reply of their own."""
    unread: bool
    """Whether no reply to several rows had an answer that could be read."""
    saved: int
    """About how many tokens of the prompt's own words and of its system prompt were not sent again."""


def count(store: JobDatabase, spec: JobSpec, labels: Sequence[str], before: int) -> Mapping[str, object]:
    """Return the figures of the rows below `before`; none for a job whose rows share no requests. Blocks."""
    del labels
    found, left_out = TogetherStatus(rows=0, requests=0, alone=0, unread=False, saved=0), 0
    order = store.get("order") or {}
    system = len(str(order.get("system_prompt") or "").encode("utf-8", "replace")) // _BYTES_PER_TOKEN
    slots = [slot for slot, target in enumerate(spec.targets) if (target.sampling or {}).get("together")]
    for slot in slots:
        ((rows, requests, alone, without),) = store.read(_COUNTS, slot * SLOT, slot * SLOT + before - 1)
        found["rows"] += int(rows)
        found["requests"] += int(requests)
        found["alone"] += int(alone)
        left_out += int(without)
        prompts = spec.question.templates
        own = "" if not prompts else prompts[spec.targets[slot].prompt]
        found["saved"] += int(rows - requests) * (_own_tokens(own) + system)
    found["unread"] = bool(left_out) and not found["rows"]
    return {"together": found} if found["rows"] or found["alone"] else {}


def _own_tokens(prompt: str) -> int:
    """Return about how many tokens the words of a prompt have, without its fields."""
    template = PlainTemplate.of(prompt)
    return 0 if template is None else sum(len(part.encode()) for part in template.parts[::2]) // _BYTES_PER_TOKEN


def facts(found: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield how many rows shared how many requests, as text."""
    its: TogetherStatus = found["together"]
    if its["unread"]:
        alone = counted(its["alone"], "row")
        yield "together", f"{alone} sent alone: no reply to several had answers that could be read"
        return
    saved = f", about {its['saved']:,} prompt tokens saved" if its["saved"] else ""
    rows, requests = counted(its["rows"], "row"), counted(its["requests"], "request")
    yield "together", f"{rows} in {requests}, {its['alone']:,} sent alone{saved}"
