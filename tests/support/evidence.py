"""A sample of what providers really answer, as replies of an upstream: one prompt for each body."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson

from replies import answer, attempts, by_prompt, late, raw
from upstream import Reply

_FILE = Path(__file__).parents[1] / "backends" / "openai" / "evidence.jsonl"
ROWS: list[dict[str, Any]] = [orjson.loads(line) for line in _FILE.read_bytes().splitlines()]


def sample(means: str, n: int, longest_wait_s: float = 0.5) -> list[dict[str, Any]]:
    """Return about `n` rows of a meaning, none of which asks to wait for long or names a date."""
    rows = [
        row
        for row in ROWS
        if row["means"] == means
        and "dialect" not in row
        and "$NOW" not in str(row)
        and row.get("wait_s", 0) < longest_wait_s
    ]
    return rows[:: max(1, len(rows) // n)]


def reply_of(row: dict[str, Any]) -> Reply:
    """Return the row's response as a reply."""
    body = row["body"].encode() if isinstance(row["body"], str) else orjson.dumps(row["body"])
    return raw(body, code=row["status"], headers=row.get("headers"))


def mixed() -> tuple[dict[str, dict[str, Any]], list[str], Reply]:
    """Return rows by prompt, all prompts (healthy ones between), and the reply.

    What may pass has passed when its prompt comes for the second time.
    """
    meanings = ("retry", "item", "answer")
    rows = {f"{means} {at}": row for means in meanings for at, row in enumerate(sample(means, 15))}
    table = {
        prompt: attempts(reply_of(row), answer()) if row["means"] == "retry" else reply_of(row)
        for prompt, row in rows.items()
    }
    prompts = [prompt for at, each in enumerate(rows) for prompt in (f"healthy {at}", each)]
    return rows, prompts, late(0.005, by_prompt(table))


def check(row: dict[str, Any], prompt: str, text: str, code: str | None) -> None:
    """Fail unless the answer `text`, or the error `code`, is what the row means."""
    if row["means"] == "item":
        assert (text, code) == ("", row.get("code", code)), row
        assert code is not None, row
    else:
        assert code is None, row
        assert text == (row["text"] if row["means"] == "answer" else f"echo: {prompt}"), row
