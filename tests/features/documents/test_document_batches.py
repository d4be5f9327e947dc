"""Long rows by batch: pieces are requests of a batch, the last request of a row is in the next one, and kills."""

from __future__ import annotations

import contextlib
import csv
import json
import random
import subprocess
import sys
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import pytest

import promptmill
from batch_server import BatchServer, prompt_of
from long_texts import FACT, document
from promptmill.cli.main import main
from promptmill.core.errors import PromptmillError
from promptmill.jobs.store.folder import Folder
from waiting import PATIENCE_S

pytestmark = pytest.mark.features("batches")
PRICE = {"input": 1, "output": 10, "batch": 0.5}
LAST = "gave different values"
KILLED = Path(__file__).parents[2] / "support" / "killed.py"


@pytest.fixture
def server():
    with BatchServer("openai") as started:
        started.answers = reader
        yield started


def reader(body: dict[str, Any]) -> str | None:
    """Return the parties in a prompt, and the amount that one of them pays; a long prompt is too long."""
    prompt = prompt_of(body)
    if len(prompt) > 6000:
        return None
    found = FACT.findall(prompt)
    amount = 7.0 if LAST in prompt else float(found[0][1]) if found else None
    fields = {"party": [name for name, _ in found], "amount": amount}
    wanted = body["response_format"]["json_schema"]["schema"]["properties"]
    return json.dumps({name: fields[name] for name in wanted})


def write(folder: Path, *texts: str) -> None:
    with (folder / "in.csv").open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["text"])
        rows.writerows([text] for text in texts)


def bulk(folder: Path, server: BatchServer, **options: Any) -> Any:
    given: dict[str, Any] = {"prompt": "List the parties. {{text}}", "fields": "party:list", "split": 900}
    given |= {"batch": True, "poll": "0.1s", "model": "m", "base_url": server.base_url, "api_key": "k"}
    given |= {"max_tokens": 20, "state": folder / "jobs", "progress": False, "settings": {"price": PRICE}}
    return promptmill.bulk(folder / "in.csv", folder / "out.csv", **given | options)


def out(folder: Path) -> list[dict[str, str]]:
    with (folder / "out.csv").open(encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file))


def check(folder: Path, server: BatchServer, *documents: tuple[str, dict[str, int]]) -> None:
    """Check that each row has the facts of its document with their pages, and that nothing was billed twice."""
    for row, (_, places) in zip(out(folder), documents, strict=True):
        found = json.loads(row["party"])
        assert sorted(found) == sorted(places)
        if row["sources"]:
            assert json.loads(row["sources"])["party"] == [f"page {places[name]}" for name in found]
    assert set(server.billed.values()) == {1}
    assert not server.left_files()
    assert not server.running()
    assert not server.never_read()


def dollars_billed(server: BatchServer) -> float:
    tokens = server.tokens
    by_batch = tokens["batch_prompt"] + 10 * tokens["batch_answer"]
    return (by_batch / 2 + tokens["live_prompt"] + 10 * tokens["live_answer"]) / 1e6


def test_the_pieces_of_all_rows_are_one_batch_at_its_price(tmp_path, server):
    documents = [document(12, 6, seed=seed) for seed in range(2)]
    write(tmp_path, *(text for text, _ in documents), "Party P0 pays 1 euros.")
    status = bulk(tmp_path, server).status
    check(tmp_path, server, *documents, ("", {"P0": 1}))
    assert (server.creates, server.live) == (1, 0)
    assert len(server.billed) > 12
    assert status["cost"] == pytest.approx(dollars_billed(server), rel=1e-6)
    assert (status["requests"], status["retries"]) == (len(server.billed), 0)
    assert status["batch"]["by_batch"] == 3


@pytest.mark.thorough
def test_values_that_differ_are_decided_by_a_second_batch(tmp_path, server):
    write(tmp_path, document(12, 4)[0], document(12, 5, seed=1)[0])
    shown: list[tuple[int, int]] = []
    status = bulk(
        tmp_path,
        server,
        fields="party:list,amount:number",
        progress=lambda status: shown.append((status["done"], status["failed"])),
    ).status
    assert all(done <= 2 and not failed for done, failed in shown)
    assert [float(row["amount"]) for row in out(tmp_path)] == [7.0, 7.0]
    assert (server.creates, server.live) == (2, 0)
    assert sum(LAST in prompt for prompt in server.billed) == 2
    assert set(server.billed.values()) == {1}
    assert status["cost"] == pytest.approx(dollars_billed(server), rel=1e-6)
    assert status["requests"] == len(server.billed)
    assert status["prompt_tokens"] == server.tokens["batch_prompt"]


def test_a_piece_that_is_too_long_is_cut_and_its_halves_are_a_second_batch(tmp_path, server):
    long = document(12, 6)
    write(tmp_path, long[0])
    bulk(tmp_path, server, split=2500)
    check(tmp_path, server, long)
    assert (server.creates, server.live) == (2, 0)


@pytest.mark.thorough
@pytest.mark.parametrize("faults", [{"missing": 5}, {"errors": 5}, {"finished": 0.6}, {"damaged": 7}], ids=str)
def test_pieces_that_a_batch_leaves_open_are_sent_live(tmp_path, server, faults):
    documents = [document(12, 6, seed=seed) for seed in range(3)]
    write(tmp_path, *(text for text, _ in documents))
    server.switches.set(faults)
    status = bulk(tmp_path, server).status
    if "damaged" not in faults:  # a reply that cannot be read was billed
        check(tmp_path, server, *documents)
        assert status["cost"] == pytest.approx(dollars_billed(server), rel=1e-6)
    assert [sorted(json.loads(row["party"])) for row in out(tmp_path)] == [sorted(places) for _, places in documents]
    assert server.creates == 1
    assert 0 < server.live < len(server.billed) / 2 + 1


def test_a_failed_piece_is_named_and_the_next_run_sends_it_alone(tmp_path, server):
    text, places = document(12, 6)
    write(tmp_path, text)

    def refuse(body: dict[str, Any]) -> str | None:
        return None if "Party P0 pays" in prompt_of(body) else reader(body)

    server.answers = refuse
    bulk(tmp_path, server, overlap=0)
    (row,) = out(tmp_path)
    assert f"page {places['P0']}: " in row["error"]
    assert {*places} - {"P0"} >= {*json.loads(row["party"])} > set()
    server.answers, sent = reader, len(server.billed)
    bulk(tmp_path, server, overlap=0, again="failed")
    check(tmp_path, server, (text, places))
    assert len(server.billed) == sent + 1
    assert server.live == 0


@pytest.mark.thorough
def test_all_rows_again_sends_all_pieces_again(tmp_path, server):
    text, _ = document(12, 4)
    write(tmp_path, text)
    asked = {"fields": "party:list,amount:number"}
    bulk(tmp_path, server, **asked)
    sent = server.billed.copy()
    bulk(tmp_path, server, **asked, again="all")
    assert server.billed == sent + sent
    assert server.live == 0


@pytest.mark.thorough
@pytest.mark.parametrize("limit", [6e-3, 2e-3])
def test_a_budget_is_kept_and_more_money_pays_for_the_other_pieces_alone(tmp_path, server, limit):
    documents = [document(12, 6, seed=seed) for seed in range(3)]
    write(tmp_path, *(text for text, _ in documents))
    with pytest.raises(PromptmillError, match="no room"):
        bulk(tmp_path, server, max_cost=limit)
    assert dollars_billed(server) <= limit
    bulk(tmp_path, server, max_cost=1)
    check(tmp_path, server, *documents)
    assert server.live == 0


def limit_batches(monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    """Put at most so many requests into a batch."""
    files = resolve_name("promptmill.features.batches.batch_files:BatchFiles.__init__")

    def limited(self: Any, *given: Any, **named: Any) -> None:
        files(self, *given, **named | {"most": most})

    monkeypatch.setattr("promptmill.features.batches.batch_files.BatchFiles.__init__", limited)


@pytest.mark.thorough
def test_a_row_in_several_batches_has_one_answer(tmp_path, server, monkeypatch):
    documents = [document(12, 6, seed=seed) for seed in range(2)]
    write(tmp_path, *(text for text, _ in documents))
    limit_batches(monkeypatch, 5)
    bulk(tmp_path, server, fields="party:list,amount:number")
    assert [float(row["amount"]) for row in out(tmp_path)] == [7.0, 7.0]
    assert set(server.billed.values()) == {1}
    assert server.creates > 5
    assert server.live == 0


@pytest.mark.thorough
@pytest.mark.parametrize("seed", range(30))
def test_random_faults_batches_and_budgets_cost_no_answer_and_no_more_than_the_budget(tmp_path, monkeypatch, seed):
    chance = random.Random(seed)
    faults = {name: chance.choice([0, chance.randrange(2, 12)]) for name in ("missing", "errors")}
    documents = [document(chance.randrange(3, 14), 4, seed=4 * seed + n) for n in range(chance.randrange(1, 4))]
    write(tmp_path, *(text for text, _ in documents))
    limit = chance.uniform(1e-4, 2e-2)
    limit_batches(monkeypatch, chance.choice([5, 17, 1000]))
    asked = {
        "split": chance.choice([600, 900, 2000]),
        "fields": chance.choice(["party:list", "party:list,amount:number"]),
    }
    with BatchServer("openai", finished=chance.choice([1.0, 0.5]), shuffled=True, **faults) as server:
        server.answers = reader
        with contextlib.suppress(PromptmillError):
            bulk(tmp_path, server, max_cost=limit, **asked)
        assert dollars_billed(server) <= limit + 1e-9
        status = bulk(tmp_path, server, max_cost=1, **asked).status
        check(tmp_path, server, *documents)
        assert status["cost"] == pytest.approx(dollars_billed(server), rel=1e-6)


def test_rows_with_the_same_document_are_charged_as_billed(tmp_path, server, monkeypatch):
    write(tmp_path, *[document(3, 2)[0]] * 2)
    limit_batches(monkeypatch, 1)
    status = bulk(tmp_path, server).status
    assert set(server.billed.values()) == {2}
    assert status["cost"] == pytest.approx(dollars_billed(server), rel=1e-6)
    assert status["requests"] == server.billed.total()


@pytest.mark.thorough
@pytest.mark.parametrize("most", [3, 17])
@pytest.mark.parametrize("fields", ["party:list", "party:list,amount:number"])
@pytest.mark.parametrize("cached", [False, True])
def test_equal_documents_in_several_batches_are_charged_as_billed(tmp_path, server, monkeypatch, most, fields, cached):
    documents = [document(6, 4, seed=seed) for seed in range(2)]
    write(tmp_path, *[text for text, _ in documents] * 3)
    limit_batches(monkeypatch, most)
    settings = {"price": PRICE, "cache": str(tmp_path / "cache") if cached else False}
    status = bulk(tmp_path, server, fields=fields, temperature=0, settings=settings).status
    assert {*server.billed.values()} == {3}
    assert status["cost"] == pytest.approx(dollars_billed(server), rel=1e-6)
    assert status["requests"] == server.billed.total()
    assert [sorted(json.loads(row["party"])) for row in out(tmp_path)] == [
        sorted(places) for _, places in documents * 3
    ]


@pytest.mark.thorough
def test_rows_with_the_same_document_share_its_pieces(tmp_path, server):
    long = document(12, 6)
    write(tmp_path, long[0])
    bulk(tmp_path, server)
    write(tmp_path, long[0], long[0])
    with pytest.warns(UserWarning, match="keep their answers"):
        status = bulk(tmp_path, server).status
    check(tmp_path, server, long, long)
    assert status["cost"] == pytest.approx(dollars_billed(server), rel=1e-6)
    assert status["prompt_tokens"] == server.tokens["batch_prompt"]


def interrupt_waiting(folder: Path, server: BatchServer, **options: Any) -> None:
    """Interrupt a job while its batch is at the provider."""
    server.switches.polls = 10_000

    def watch(status: Any) -> None:
        if status.get("batch", {}).get("ids"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        bulk(folder, server, progress=watch, **options)
    server.switches.polls = 1


def test_an_edited_input_keeps_the_pieces_of_its_batch(tmp_path, server):
    documents = [document(12, 6, seed=seed) for seed in range(3)]
    write(tmp_path, *(text for text, _ in documents))
    interrupt_waiting(tmp_path, server)
    rows = [document(12, 6, seed=9), documents[2], documents[0]]
    write(tmp_path, *(text for text, _ in rows))
    bulk(tmp_path, server)
    check(tmp_path, server, *rows)


@pytest.mark.thorough
@pytest.mark.parametrize("more", [{"batch": False, "poll": None}, {"again": "failed"}, {"again": "all"}], ids=str)
def test_another_order_collects_the_pieces_first(tmp_path, server, more):
    documents = [document(12, 4, seed=seed) for seed in range(2)]
    write(tmp_path, *(text for text, _ in documents))
    asked = {"fields": "party:list,amount:number"}
    interrupt_waiting(tmp_path, server, **asked)
    status = bulk(tmp_path, server, **asked | more).status
    check(tmp_path, server, *documents)
    assert server.live == (0 if "again" in more else 2)
    assert status["cost"] == pytest.approx(dollars_billed(server), rel=1e-6)


@pytest.mark.parametrize(
    "several",
    [{"model": ["m", "b"]}, {"prompt": {"one": "Parties? {{text}}", "two": "Which parties? {{text}}"}}],
    ids=str,
)
def test_several_models_or_prompts_each_have_their_pieces(tmp_path, server, several):
    write(tmp_path, document(12, 4)[0], document(12, 5, seed=1)[0])
    status = bulk(tmp_path, server, fields="party:list,amount:number", **several).status
    assert (status["answered"], status["failed"], server.live) == (4, 0, 0)
    assert status["requests"] == sum(server.billed.values())


def test_sizes_are_tried_live_alone(tmp_path, server):
    write(tmp_path, "text")
    with pytest.raises(PromptmillError, match="write tokens"):
        bulk(tmp_path, server, split="auto")
    assert not server.uploads


# ---- kills


def command(folder: Path, server: BatchServer, *more: str) -> list[str]:
    """Return the command line, after writing its configuration."""
    block = {"base_url": server.base_url, "model_name": "m", "api_key": "k", "provider": "openai"}
    settings = {"backend": "openai", "backend_configs": {"openai": block}, "price": PRICE}
    (folder / "p.yaml").write_text(json.dumps(settings | {"sampling_params": {"max_tokens": 20}}), encoding="utf-8")
    words = ["bulk", "in.csv", "out.csv", "--config", "p.yaml", "--prompt", "List the parties. {{text}}"]
    words += ["--fields", "party:list,amount:number", "--split", "900", "--batch", "--poll", "0.1s", *more]
    return [*words, "--max-cost", "1", "--quiet"]


WHERE = [f"batch:{n}" for n in (2, 3, 6, 7, 9)] + ["rows", "replies", "finish", "rows:2", "replies:2"]
WHERE += [f"put:{n}" for n in (5, 9, 16, 22)] + ["write:1", "write:2"]
POINTS = [f"{side}-{where}" for where in WHERE for side in ("before", "after")]


def test_a_dry_run_counts_the_requests_of_the_batch(tmp_path, server, monkeypatch, capsys):
    write(tmp_path, document(12, 6)[0])
    monkeypatch.chdir(tmp_path)
    assert main(command(tmp_path, server, "--dry-run")) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert not server.uploads
    assert main(command(tmp_path, server)) == 0
    assert f"about {len(server.billed)} requests" in said


@pytest.mark.processes
@pytest.mark.thorough
@pytest.mark.parametrize("point", POINTS)
def test_a_killed_job_resumes_at_the_pieces_of_its_batch(tmp_path, server, monkeypatch, point):
    documents = [document(12, 4, seed=seed) for seed in range(2)]
    write(tmp_path, *(text for text, _ in documents))
    words = [sys.executable, str(KILLED), point, *command(tmp_path, server)]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert done.returncode in {0, -9}, done.stderr[-2000:] + done.stdout[-2000:]
    monkeypatch.setattr("promptmill.features.batches.batch_round.LIST_LAG_S", 0.3)
    monkeypatch.chdir(tmp_path)
    assert main(command(tmp_path, server)) == 0
    assert [float(row["amount"]) for row in out(tmp_path)] == [7.0, 7.0]
    check(tmp_path, server, *documents)
    assert server.live == 0
    assert not list(tmp_path.rglob("batch-*.jsonl"))
    status = Folder(next(path for path in tmp_path.rglob("job.db")).parent).status
    assert status["cost"] == pytest.approx(dollars_billed(server), rel=1e-6)
    assert status["requests"] == len(server.billed)
    assert status["prompt_tokens"] == server.tokens["batch_prompt"]


@pytest.mark.processes
@pytest.mark.thorough
@pytest.mark.parametrize("point", [f"before-{where}" for where in ("write:1", "write:2", "put:9", "put:16", "finish")])
def test_equal_documents_of_a_killed_job_are_charged_as_billed(tmp_path, server, monkeypatch, point):
    write(tmp_path, *[document(12, 4)[0], document(12, 4, seed=1)[0]] * 2)
    words = [sys.executable, str(KILLED), point, *command(tmp_path, server)]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert done.returncode == -9, done.stderr[-2000:] + done.stdout[-2000:]
    monkeypatch.chdir(tmp_path)
    assert main(command(tmp_path, server)) == 0
    status = Folder(next(path for path in tmp_path.rglob("job.db")).parent).status
    assert set(server.billed.values()) == {2}
    assert status["cost"] == pytest.approx(dollars_billed(server), rel=1e-6)
    assert status["requests"] == len(server.billed) * 2
