"""The Responses API by a provider's Batch API: schemas, failed rows, and providers that take none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import promptmill
from batch_server import BatchServer, prompt_of
from promptmill.core.errors import Code, PromptmillError

ROWS = 30
RESPONSES = {"backend_configs.openai.dialect": "responses", "price": {"input": 1.0, "output": 10.0, "batch": 0.5}}


def bulk(folder: Path, server: BatchServer, **options: Any) -> dict[str, Any]:
    """Answer the folder's rows by batch; return the job's status."""
    given: dict[str, Any] = {"model": "m", "base_url": server.base_url, "api_key": "k", "max_tokens": 20}
    given |= {"batch": True, "poll": "0.1s", "state": folder / "jobs", "progress": False, "settings": RESPONSES}
    done = promptmill.bulk(folder / given.pop("input", "in.jsonl"), folder / "out.jsonl", **given | options)
    return dict(done.status)


def test_a_schema_and_a_failed_row_of_responses_come_back_from_a_batch(tmp_path):
    (tmp_path / "in.jsonl").write_text("".join(json.dumps({"n": n}) + "\n" for n in range(ROWS)), encoding="utf-8")
    forms: list[Any] = []

    def answered(body: dict[str, Any]) -> str | None:
        forms.append(body["text"]["format"])
        return None if prompt_of(body) == "Double 7." else json.dumps({"double": 2 * int(prompt_of(body)[7:-1])})

    with BatchServer("openai") as server:
        server.answers = answered
        status = bulk(tmp_path, server, prompt="Double {{n}}.", fields="double:integer", max_cost=1)
    rows = {row["n"]: row for row in map(json.loads, (tmp_path / "out.jsonl").read_text().splitlines())}
    doubles = {n: row["answer"]["double"] for n, row in rows.items() if not row["error"]}
    assert doubles == {n: 2 * n for n in range(ROWS) if n != 7}
    assert (status["done"], status["failed"], rows[7]["error"]["code"]) == (ROWS, 1, "context_length")
    assert {(form["type"], form["schema"]["required"][0]) for form in forms} == {("json_schema", "double")}
    assert (server.creates, server.live, set(server.billed.values())) == (1, 0, {1})
    tokens = server.tokens
    assert status["cost"] == pytest.approx((tokens["batch_prompt"] + 10 * tokens["batch_answer"]) / 2e6)
    assert not server.left_files()


def test_a_provider_without_batches_of_responses_is_refused_before_anything_is_uploaded(tmp_path):
    (tmp_path / "in.jsonl").write_text('{"n": 1}\n', encoding="utf-8")
    settings = RESPONSES | {"backend_configs.openai.provider": "groq"}
    with BatchServer("openai") as server:
        with pytest.raises(PromptmillError, match="takes no requests to /responses in a batch") as refused:
            bulk(tmp_path, server, prompt="Double {{n}}.", settings=settings)
        assert refused.value.code is Code.UNSUPPORTED
        assert not server.uploads + server.live
