"""Vectors by a provider's Batch API: the same as those of live requests, at the price of a batch."""

from __future__ import annotations

import json
import subprocess
import sys
from array import array
from pathlib import Path
from typing import Any

import pytest

import promptmill
from batch_server import BatchServer
from embedding import vector
from promptmill.backends.openai.batches.openai_batches import Batches as OpenAIBatches
from promptmill.cli.main import main
from promptmill.core.errors import Code, PromptmillError
from promptmill.features.batches import batch_round
from waiting import PATIENCE_S

pytestmark = pytest.mark.features("embeddings")
ROWS = 300
PRICE = {"price": {"input": 1.0, "output": 1.0, "batch": 0.5}}
KILLED = Path(__file__).parents[2] / "support" / "killed.py"


@pytest.fixture
def server(tmp_path):
    """A provider, and a table of rows in the folder."""
    table(tmp_path, range(ROWS))
    with BatchServer("openai") as started:
        yield started


def table(folder: Path, numbers: Any) -> None:
    (folder / "in.csv").write_text("text\n" + "".join(f"text {n}\n" for n in numbers), encoding="utf-8")


def bulk(folder: Path, server: BatchServer, **options: Any) -> Any:
    """Have the vectors of the folder's table made by batch."""
    given: dict[str, Any] = {"embed": "{{text}}", "model": "m", "base_url": server.base_url, "api_key": "k"}
    given |= {"batch": True, "poll": "0.1s", "state": folder / "jobs", "progress": False, "settings": PRICE} | options
    return promptmill.bulk(folder / given.pop("input", "in.csv"), folder / "out.jsonl", **given)


def vectors(folder: Path) -> dict[str, list[float]]:
    rows = map(json.loads, (folder / "out.jsonl").read_text(encoding="utf-8").splitlines())
    return {row["text"]: [*array("f", row["embedding"])] for row in rows}


def check_whole(folder: Path, server: BatchServer, numbers: Any = range(ROWS)) -> None:
    """Check that every row has its vector, bit for bit, and was billed once, and that nothing is left."""
    assert vectors(folder) == {f"text {n}": vector(f"text {n}") for n in numbers}
    assert dict(server.billed) == {f"text {n}": 1 for n in numbers}
    assert not server.left_files() + server.running()


@pytest.mark.parametrize(
    ("family", "provider"),
    [("openai", "openai"), ("openai", "dashscope"), ("mistral", "mistral"), ("openrouter", "openrouter")],
)
def test_vectors_by_batch_are_bit_for_bit_those_of_live_requests(tmp_path, family, provider):
    table(tmp_path, range(ROWS))
    with BatchServer(family, missing=60) as server:
        status = bulk(tmp_path, server, provider=provider, max_cost=1).status
        check_whole(tmp_path, server)
    assert (server.creates, server.live) == (1, 1), "rows without a result are one live request"
    batch = status["batch"]
    assert (batch["by_batch"], batch["live"]) == (295, 5)
    assert batch["cost"] == pytest.approx(server.tokens["batch_prompt"] / 2e6)
    assert batch["live_price"] == pytest.approx(server.tokens["batch_prompt"] / 1e6)
    assert status["results"] == {"vectors": ROWS, "dimensions": 8}


def test_a_killed_job_collects_the_vectors_of_its_batch(tmp_path, server, monkeypatch):
    monkeypatch.setattr(batch_round, "LIST_LAG_S", 0.3)  # as in the killed processes
    words = ["bulk", "in.csv", "out.jsonl", "--embed", "{{text}}", "-m", "m", "--base-url", server.base_url, "--batch"]
    words += ["--poll", "0.1s", "--set", "backend_configs.openai.api_key=k", "--quiet"]
    for point in ("before-batch:6", "after-replies"):  # the batch was created, and its id is not stored; it is read
        command = [sys.executable, str(KILLED), point, *words]
        ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
        assert ended.returncode == -9, ended.stderr
    monkeypatch.chdir(tmp_path)
    assert main(words) == 0
    check_whole(tmp_path, server)
    assert (server.creates, server.live) == (1, 0)


@pytest.mark.thorough
def test_edited_rows_go_into_another_batch(tmp_path, server):
    def interrupt(status: dict[str, Any]) -> None:
        if status.get("batch", {}).get("ids"):
            raise KeyboardInterrupt

    server.switches.set({"polls": 10_000})
    with pytest.raises(KeyboardInterrupt):
        bulk(tmp_path, server, progress=interrupt)
    server.switches.set({"polls": 1})
    numbers = [*reversed(range(3, ROWS)), ROWS, ROWS + 1]
    table(tmp_path, numbers)
    bulk(tmp_path, server)
    assert vectors(tmp_path) == {f"text {n}": vector(f"text {n}") for n in numbers}
    assert dict(server.billed) == {f"text {n}": 1 for n in range(ROWS + 2)}
    assert sorted(batch.total for batch in server.batches.values()) == [2, ROWS]
    assert server.live == 0


def with_replies(monkeypatch: pytest.MonkeyPatch, changed: Any) -> None:
    """Change the replies to a batch: `changed` gets the number of each, and the reply."""
    replies = OpenAIBatches.replies

    async def change(self: OpenAIBatches, state: Any) -> Any:
        number = 0
        async for reply in replies(self, state):
            yield changed(number, reply)
            number += 1

    monkeypatch.setattr(OpenAIBatches, "replies", change)


def refusal(status: int, message: str) -> dict[str, Any]:
    return {"status": status, "body": json.dumps({"error": {"message": message}}).encode()}


_NO_BASE64 = "encoding_format: only float is supported"
_DATA = json.dumps({"data": [{"index": 0, "embedding": [0.5, 0.25]}], "usage": {"prompt_tokens": 2}}).encode()
UNUSABLE = {
    "none": {"body": b'{"data": [], "usage": {"prompt_tokens": 2}}'},
    "length": {"body": _DATA},
    "encoding": refusal(400, _NO_BASE64),
}


@pytest.mark.parametrize("how", UNUSABLE)
def test_a_line_without_a_usable_vector_is_sent_live(tmp_path, server, monkeypatch, how):
    with_replies(monkeypatch, lambda number, reply: reply if number != 7 else reply._replace(**UNUSABLE[how]))
    status = bulk(tmp_path, server).status
    assert vectors(tmp_path) == {f"text {n}": vector(f"text {n}") for n in range(ROWS)}
    assert (status["batch"]["by_batch"], status["batch"]["live"]) == (ROWS - 1, 1)
    assert (server.creates, server.live) == (1, 1)


@pytest.mark.thorough
def test_if_all_lines_are_refused_for_their_encoding_all_rows_are_sent_live(tmp_path, server, monkeypatch):
    with_replies(monkeypatch, lambda _, reply: reply._replace(**refusal(400, _NO_BASE64)))
    assert bulk(tmp_path, server).status["batch"]["live"] == ROWS
    assert vectors(tmp_path) == {f"text {n}": vector(f"text {n}") for n in range(ROWS)}


@pytest.mark.thorough
def test_refused_lines_are_failures_of_their_rows_and_the_batch_is_done(tmp_path, server, monkeypatch):
    with monkeypatch.context() as patched:
        with_replies(patched, lambda _, reply: reply._replace(**refusal(404, "The model `m` does not exist")))
        assert bulk(tmp_path, server).status["failed"] == ROWS
    server.billed.clear()
    bulk(tmp_path, server, model="another", again="all")
    check_whole(tmp_path, server)


def test_rows_of_another_model_are_sent_live_to_it(tmp_path, server):
    models: list[str] = []
    server.answers = lambda body: models.append(body["model"]) or "vectors"
    lines = [{"text": f"text {n}", "model": "m" if n % 3 else "another"} for n in range(ROWS)]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    bulk(tmp_path, server, input="in.jsonl", row_settings=True)
    check_whole(tmp_path, server)
    assert (server.live, models) == (1, ["m"] * 200 + ["another"])


def test_a_provider_without_batches_of_vectors_is_refused_before_anything_is_uploaded(tmp_path, server):
    with pytest.raises(PromptmillError, match="takes no requests to /embeddings in a batch") as refused:
        bulk(tmp_path, server, provider="groq")
    assert refused.value.code is Code.UNSUPPORTED
    assert not server.uploads + server.creates + server.live
    bulk(tmp_path, server, provider="groq", batch=False, poll=None)
    check_whole(tmp_path, server)


def test_a_dry_run_shows_the_requests_and_the_price_of_the_batch(tmp_path, server, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["bulk", "in.csv", "out.jsonl", "--embed", "{{text}}", "-m", "m", "--base-url", server.base_url]
    words += ["--set", "price={input: 1, output: 1, batch: 0.5}", "--dry-run", "--json"]
    shown: list[dict[str, Any]] = []
    for more in ((), ("--batch",)):
        assert main([*words, *more]) == 0
        shown.append(json.loads(capsys.readouterr().out))
    live, by_batch = shown
    assert (live["requests"], by_batch["requests"]) == (2, ROWS)
    assert by_batch["estimated_cost"] == 2 * by_batch["batch_estimated_cost"] == pytest.approx(600e-6)

    status = bulk(tmp_path, server, max_cost=by_batch["batch_most_cost"]).status

    assert (server.creates, server.live) == (1, 0)
    assert status["cost"] == pytest.approx(by_batch["batch_estimated_cost"])
