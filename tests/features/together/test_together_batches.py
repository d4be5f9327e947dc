"""Several rows in a line of a batch: each row reads its own part of the reply, wherever it stands by then."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import promptmill
from batch_server import BatchServer, prompt_of
from packs import LABELS, Packs, cut, faults, label
from promptmill.core.errors import Code, PromptmillError
from promptmill.features.batches import batch_round
from waiting import PATIENCE_S

pytestmark = pytest.mark.features("batches")
ROWS = 300
PRICE = {"price": {"input": 1.0, "output": 4.0, "batch": 0.5}}
KILLED = Path(__file__).parents[2] / "support" / "killed.py"


@pytest.fixture
def server(tmp_path):
    """A provider, and a table of rows in the folder."""
    table(tmp_path, range(ROWS))
    with BatchServer("openai") as started:
        yield started


def answering(server: BatchServer, **options: Any) -> Packs:
    """Have the provider answer requests for several rows."""
    packs = Packs(**options)
    server.answers = lambda body: packs.said(prompt_of(body))[0]
    return packs


def table(folder: Path, numbers: Any) -> None:
    (folder / "in.csv").write_text("text\n" + "".join(f"text {n}\n" for n in numbers), encoding="utf-8")


def bulk(folder: Path, server: BatchServer, **options: Any) -> Any:
    """Have the folder's table answered by batch."""
    given: dict[str, Any] = {"prompt": "What is this about? {{text}}", "choices": [*LABELS], "together": 20}
    given |= {"model": "m", "base_url": server.base_url, "api_key": "k", "settings": PRICE, "max_tokens": 20}
    given |= {"batch": True, "poll": "0.1s", "state": folder / "jobs", "progress": False} | options
    return promptmill.bulk(folder / "in.csv", folder / "out.jsonl", **given)


def check_whole(folder: Path, server: BatchServer, numbers: Any = range(ROWS)) -> None:
    """Check that every row has its own label, and that nothing is left at the provider."""
    rows = [json.loads(line) for line in (folder / "out.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [(row["text"], row["answer"]) for row in rows] == [(f"text {n}", label(f"text {n}")) for n in numbers]
    assert not server.left_files() + server.running()


def tokens(server: BatchServer) -> tuple[int, int]:
    """Return the tokens of prompts and answers that the provider billed."""
    billed = server.tokens
    return billed["batch_prompt"] + billed["live_prompt"], billed["batch_answer"] + billed["live_answer"]


@pytest.mark.parametrize("provider", ["openai", "anthropic"])
def test_a_line_of_a_batch_is_for_several_rows(tmp_path, provider):
    table(tmp_path, range(ROWS))
    with BatchServer(provider) as server:
        packs = answering(server)
        status = bulk(tmp_path, server, provider=provider, max_cost=1).status
        check_whole(tmp_path, server)
        assert (server.creates, server.live, packs.sizes) == (1, 0, [20] * 15)
        assert (status["prompt_tokens"], status["completion_tokens"]) == tokens(server)
    assert status["together"]["requests"] == status["requests"] == 15
    assert status["batch"]["by_batch"] == ROWS
    assert status["cost"] == pytest.approx((tokens(server)[0] + 4 * tokens(server)[1]) * 0.5 / 1e6)


def test_a_row_without_its_part_of_a_reply_is_sent_live(tmp_path, server):
    packs = answering(server, change=faults(3, share=0.4), around=cut(4, share=0.2))
    status = bulk(tmp_path, server, max_cost=1).status
    check_whole(tmp_path, server)
    assert packs.sizes[:15] == [20] * 15
    assert server.live == status["requests"] - 15 > 0
    assert max(packs.asked.values()) <= 3
    assert (status["prompt_tokens"], status["completion_tokens"]) == tokens(server)
    assert 0 < status["together"]["alone"] < 40


def test_rows_that_were_moved_edited_or_removed_keep_their_parts(tmp_path, server, monkeypatch):
    packs = answering(server)
    interrupt_waiting(tmp_path, server, monkeypatch)
    kept = [n for n in range(1, ROWS) if n not in {7, 50, 51}]  # the row that carries the first request is gone
    changed = [*kept[:100], 1_000, *reversed(kept[100:]), 1_001]
    table(tmp_path, changed)
    status = bulk(tmp_path, server).status
    check_whole(tmp_path, server, changed)
    new = {"text 1000", "text 1001"}
    assert {text for text, times in packs.asked.items() if times != 1} == set()
    assert sum(packs.sizes) == ROWS + len(new)
    assert status["answered"] == len(changed)
    assert status["together"]["requests"] == 15 + 1, "those of the batch, and one for the new rows"
    table(tmp_path, range(ROWS))  # the rows return: their answers were paid
    bulk(tmp_path, server)
    check_whole(tmp_path, server)
    assert set(packs.asked.values()) == {1}


def test_a_shared_reply_is_divided_even_if_the_order_no_longer_wants_it(tmp_path, server, monkeypatch):
    packs = answering(server)
    interrupt_waiting(tmp_path, server, monkeypatch, choices=None)
    status = bulk(tmp_path, server, choices=None, together=None, keep=True).status
    check_whole(tmp_path, server)
    assert (status["requests"], server.live, packs.sizes) == (15, 0, [20] * 15)


def interrupt_waiting(folder: Path, server: BatchServer, monkeypatch: pytest.MonkeyPatch, **options: Any) -> None:
    """Send the batch, and end the run while it waits for it."""

    async def stopped(_seconds: float) -> None:
        raise PromptmillError(Code.SHUTDOWN, "stopped by the test")

    with monkeypatch.context() as patch:
        patch.setattr(batch_round.BatchRound, "_wait", lambda self: stopped(0))
        with pytest.raises(PromptmillError):
            bulk(folder, server, **options)


POINTS = [f"{side}-batch:{n}" for n in range(1, 8) for side in ("before", "after")]
POINTS += [f"{side}-{what}" for what in ("rows", "replies", "finish") for side in ("before", "after")]


@pytest.mark.thorough
@pytest.mark.parametrize("point", POINTS)
def test_a_killed_job_reads_each_row_its_part(tmp_path, server, point, monkeypatch):
    monkeypatch.setattr(batch_round, "LIST_LAG_S", 0.3)  # as in the killed process
    packs = answering(server, change=faults(random.Random(point).randrange(1_000)))
    block = {"base_url": server.base_url, "model_name": "m", "api_key": "k"}
    settings = {"backend": "openai", "backend_configs": {"openai": block}, "sampling_params": {"max_tokens": 20}}
    (tmp_path / "p.yaml").write_text(json.dumps(settings | PRICE), encoding="utf-8")
    words = [sys.executable, str(KILLED), point, "bulk", "in.csv", "out.jsonl", "--config", "p.yaml", "--quiet"]
    words += ["--prompt", "What is this about? {{text}}", "--choices", ",".join(LABELS), "--together", "20"]
    words += ["--batch", "--poll", "0.1s", "--max-cost", "1"]
    for at in (point, "never"):
        words[2] = at
        done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
        assert done.returncode in {0, -9}, done.stderr[-2000:] + done.stdout[-2000:]
    check_whole(tmp_path, server)
    assert server.billed.most_common(1)[0][1] == 1 or max(packs.asked.values()) <= 3
