"""Batches on a local engine: what must hold on each of them."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import openai
from openai.types import Batch

from openai_clients import client_of, ended, line, results, started, text_of
from served import Served
from waiting import eventually

RESPONSES = "/v1/responses"
MODEL = "smollm2-135m-instruct"


def configured(backend: str, model: str = MODEL, **block: Any) -> dict[str, Any]:
    """Return a configuration of a local engine, whose answers do not end by themselves."""
    return {
        "backend": backend,
        "backend_configs": {backend: {"model_name_or_path": model, **block}},
        "sampling_params": {"temperature": 0, "max_tokens": 3},
        "extra_params": {"ignore_eos": True},
    }


def check_chats(client: openai.OpenAI) -> None:
    """Each line has its own settings; lines that cannot be answered fail alone."""
    lines = [
        line("plain", "What is the capital of France?", model=MODEL),
        line("long", "What is the capital of France?", model=MODEL, max_tokens=5),
        line("drawn", "What is the capital of France?", model=MODEL, temperature=1.5, seed=4, max_tokens=4, n=2),
        line("left out", "Think!", model=MODEL, reasoning_effort="low"),
        line("refused", "Sing!", model=MODEL, audio={"voice": "x"}),
        line("too long", "word " * 9000, model=MODEL),
    ]
    batch = ended(client, started(client, lines))
    assert batch.status == "completed"
    assert batch.request_counts.to_dict() == {"total": 6, "completed": 3, "failed": 3}
    bodies = {own: each["response"]["body"] for own, each in results(client, batch.output_file_id).items()}
    tokens = {own: body["usage"]["completion_tokens"] for own, body in bodies.items()}
    assert tokens == {"plain": 3, "long": 5, "drawn": 8}
    texts = {own: [choice["message"]["content"] for choice in body["choices"]] for own, body in bodies.items()}
    assert texts["long"][0].startswith(texts["plain"][0])
    assert len({*texts["drawn"], *texts["plain"]}) == 3
    errors = {own: each["response"] for own, each in results(client, batch.error_file_id).items()}
    assert {own: (each["status_code"], each["body"]["error"]["param"]) for own, each in errors.items()} == {
        "left out": (400, "reasoning_effort"),
        "refused": (400, "audio"),
        "too long": (400, "messages"),
    }
    assert errors["too long"]["body"]["error"]["code"] == "context_length_exceeded"


def check_responses(client: openai.OpenAI) -> None:
    """A line of the Responses API has its form and its settings."""
    body = {"model": MODEL, "input": "Hi!", "instructions": "Be brief.", "max_output_tokens": 4}
    lines = [{"custom_id": "a", "method": "POST", "url": RESPONSES, "body": body}]
    batch = ended(client, started(client, lines, endpoint=RESPONSES))
    found = results(client, batch.output_file_id)["a"]["response"]["body"]
    assert (found["object"], found["status"], found["usage"]["output_tokens"]) == ("response", "incomplete", 4)
    assert found["output"][0]["content"][0]["text"]


class Killed(NamedTuple):
    """A batch whose server was killed, and the server after that one."""

    server: Served
    batch: Batch
    kept: dict[str, str]
    """The answers that there were at the kill."""


_ROWS = {f"{n}": 8 + 2 * n for n in range(16)}
"""The rows of the batch, and the tokens of each answer."""


def killed(folder: Path, serve: Callable[[], Served]) -> Killed:
    """Kill a server in the middle of a batch, and start another. Its answers are drawn: no row gets one again."""
    server = serve()
    client = client_of(server)
    lines = [line(own, "Hi!", model=MODEL, temperature=2.0, max_tokens=tokens) for own, tokens in _ROWS.items()]
    batch = started(client, lines)
    eventually(lambda: _answers(folder, batch))  # the counts of a batch are up to a second late
    server.kill()
    return Killed(serve(), batch, _answers(folder, batch))


def _answers(folder: Path, batch: Batch) -> dict[str, str]:
    """Return the answers in the job's database, which may not be there yet."""
    file = folder / "state" / "jobs" / batch.id.replace("_", "-") / "job.db"
    with (
        contextlib.suppress(sqlite3.OperationalError),
        contextlib.closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True)) as database,
    ):
        return {f"{n}": text for n, text in database.execute("SELECT key, text FROM answer WHERE code IS NULL")}
    return {}


def check_resumed(killed: Killed) -> None:
    """The next server keeps the answers there were, and answers the other rows."""
    assert 0 < len(killed.kept) < len(_ROWS)
    client = client_of(killed.server)
    batch = ended(client, killed.batch)
    assert batch.request_counts.to_dict() == {"total": len(_ROWS), "completed": len(_ROWS), "failed": 0}
    found = results(client, batch.output_file_id)
    tokens = {own: each["response"]["body"]["usage"]["completion_tokens"] for own, each in found.items()}
    assert tokens == _ROWS
    assert {own: text_of(found[own]) for own in killed.kept} == killed.kept


def check_cancellation(client: openai.OpenAI) -> None:
    """A batch that is cancelled keeps its answers, and leaves its engine to others."""
    lines = [line(f"{n}", "Hi!", model=MODEL, max_tokens=200 if n else 1) for n in range(40)]
    batch = started(client, lines)
    eventually(lambda: client.batches.retrieve(batch.id).request_counts.completed)
    assert client.batches.cancel(batch.id).status == "cancelling"
    batch = ended(client, batch)
    assert batch.status == "cancelled"
    found, errors = results(client, batch.output_file_id), results(client, batch.error_file_id)
    assert "0" in found
    assert len(found) + len(errors) == 40
    assert {each["error"]["code"] for each in errors.values()} == {"batch_cancelled"}
    hi = [{"role": "user", "content": "Hi!"}]
    assert client.chat.completions.create(model=MODEL, messages=hi).choices[0].message.content
