"""Real responses of providers and servers are classified correctly: no sockets, no waiting.

A row of `evidence.jsonl` has `provider`, `status`, `headers`, `body` (JSON, or the original text), and what it `means`:
`retry` (after `wait_s`, if the response names a wait), `item` (final for this item), `endpoint` (for all items: key,
account, model, address, a quota of a day), or `answer` with `text`, `reasoning` and `finish`. `code` is our code, where
it matters; `source` is the place where the body was found; `host` is set if only that host's profile explains the body,
`dialect` if it is a reply in another form than a chat completion.
"""

from __future__ import annotations

import re
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson
import pytest
from multidict import CIMultiDict

from promptmill.backends.openai.endpoint import Endpoint
from promptmill.backends.openai.failures import FailureKind, RetryDecision
from promptmill.backends.openai.providers import PLAIN, profile_named
from promptmill.backends.openai.reply import read_response, with_reasoning_apart
from promptmill.backends.protocol import Completion

_ROWS = [orjson.loads(line) for line in (Path(__file__).parent / "evidence.jsonl").read_bytes().splitlines()]
_NAMES = {"qwen": "dashscope", "gemini": "google"}
_NOW = re.compile(r"\$NOW_(MS|S|UTC)\+(\d+)")
_LONGEST_WAIT_S = 300.0  # ten times the default `max_delay`: no run waits longer

_KINDS = {
    "retry": {FailureKind.TRANSIENT, FailureKind.LOAD, FailureKind.LOST},
    "item": {FailureKind.ITEM},
    "endpoint": {FailureKind.ENDPOINT},
}


def _dated(text: str) -> str:
    """Replace the times in a body by times with the same distance from now as from the original request."""

    def written(found: re.Match[str]) -> str:
        when = time.time() + int(found[2]) / (1000 if found[1] == "MS" else 1)
        if found[1] == "UTC":
            return datetime.fromtimestamp(when, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
        return str(int(when * 1000 if found[1] == "MS" else when))

    return _NOW.sub(written, text)


def read(row: dict[str, Any], profile: Any = None, dialect: str = "") -> Completion | RetryDecision:
    """Return the answer or decision that `read_response` gives for a row."""
    body = row["body"] if isinstance(row["body"], str) else orjson.dumps(row["body"]).decode()
    headers = {name: _dated(value) for name, value in row.get("headers", {}).items()}
    profile = profile or profile_named(_NAMES.get(row["provider"], row["provider"]))
    dialect = dialect or row.get("dialect", "openai")
    endpoint = Endpoint("http://x/v1/chat/completions", row["provider"], {}, (), profile, dialect=dialect)
    found = read_response(row["status"], CIMultiDict(headers), _dated(body).encode(), endpoint)
    return with_reasoning_apart(found) if isinstance(found, Completion) else found


def check(row: dict[str, Any], found: Completion | RetryDecision) -> None:
    """Fail unless `found` is what the row means."""
    if row["means"] == "answer":
        assert isinstance(found, Completion), found
        assert (found.text, found.reasoning) == (row["text"], row.get("reasoning"))
        assert found.finish_reason == row["finish"]
        return
    assert isinstance(found, RetryDecision), found
    too_long = found.kind is FailureKind.LOAD and (found.wait_s or 0) > _LONGEST_WAIT_S
    assert found.kind in _KINDS[row["means"]] or (row["means"] == "endpoint" and too_long), found
    if row.get("code"):
        assert str(found.error.code) == row["code"], found
    if "wait_s" in row:
        assert found.wait_s == pytest.approx(row["wait_s"], abs=2 if "$NOW" in str(row) else 0.01)


def test_a_body_that_a_provider_really_sends_is_understood():
    for row in _ROWS:
        check(row, read(row))


def test_it_is_understood_through_a_gateway_of_another_name():
    for row in _ROWS:
        if not row.get("host") and not (row["provider"] == "sensenova" and row["status"] != 429):
            check(row, read(row, PLAIN))


def test_it_means_the_same_to_an_endpoint_in_the_providers_own_dialect():
    for row in _ROWS:
        if row["provider"] in {"anthropic", "gemini"}:
            check(row, read(row, dialect=row["provider"]))


def test_the_evidence_is_broad_and_each_of_it_has_a_source():
    assert len(_ROWS) >= 200
    assert len({row["provider"] for row in _ROWS}) >= 35
    assert all(row["source"] for row in _ROWS)
    for name in ("anthropic", "gemini"):  # not counting chat completions
        assert sum(row["provider"] == name and '"choices"' not in str(orjson.dumps(row)) for row in _ROWS) >= 40
