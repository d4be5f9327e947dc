"""Jobs by a provider's Batch API: nothing lost, nothing billed twice, no file left behind."""

from __future__ import annotations

import contextlib
import csv
import json
import random
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

import promptmill
from batch_server import BatchServer, answer_to
from promptmill.core.errors import Code, PromptmillError
from promptmill.core.money import Budget
from promptmill.jobs.run import batch_round, runner
from promptmill.jobs.store.order import BatchOrder, JobOrder
from promptmill.jobs.store.rounds import Round, Situation, next_round

ROWS = 40
PRICE = {"price": {"input": 1.0, "output": 10.0, "batch": 0.5}}


@pytest.fixture
def server():
    with BatchServer("openai") as started:
        yield started


def table(folder: Path, rows: int = ROWS) -> Path:
    path = folder / "in.csv"
    path.write_text("text\n" + "".join(f"text {n}\n" for n in range(rows)), encoding="utf-8")
    return path


def bulk(folder: Path, server: BatchServer, **options: Any) -> Any:
    """Answer the rows of the folder's table by batch."""
    given: dict[str, Any] = {
        "prompt": "Say {{text}}",
        "model": "m",
        "base_url": server.base_url,
        "api_key": "k",
        "max_tokens": 20,
    }
    given |= {"batch": True, "poll": "0.1s", "state": folder / "jobs", "progress": False} | options
    settings = PRICE | given.pop("settings", {})
    return promptmill.bulk(folder / "in.csv", folder / "out.csv", settings=settings, **given)


def answers(folder: Path) -> dict[str, str]:
    with (folder / "out.csv").open(encoding="utf-8-sig", newline="") as file:
        return {row["text"]: row["answer"] for row in csv.DictReader(file)}


def check_whole(folder: Path, server: BatchServer, rows: int = ROWS) -> None:
    """Check that every row is answered and billed once, and nothing is left at the provider."""
    assert answers(folder) == {f"text {n}": answer_to(f"Say text {n}") for n in range(rows)}
    assert set(server.billed.values()) == {1}
    assert len(server.billed) == rows
    assert not server.left_files()
    assert not server.running()


def test_all_rows_go_into_one_batch_at_the_price_of_a_batch(tmp_path, server):
    table(tmp_path)
    result = bulk(tmp_path, server)
    check_whole(tmp_path, server)
    assert (server.creates, server.live) == (1, 0)
    batch = result.status["batch"]
    assert (batch["by_batch"], batch["live"]) == (ROWS, 0)
    tokens = server.tokens
    live = (tokens["batch_prompt"] + 10 * tokens["batch_answer"]) / 1e6
    assert batch["cost"] == pytest.approx(live / 2, rel=1e-6)
    assert batch["live_price"] == pytest.approx(live, rel=1e-6)
    assert result.status["cost"] == pytest.approx(live / 2, rel=1e-6)


@pytest.mark.parametrize(
    "faults",
    [
        {"missing": 9},
        {"errors": 7},
        {"finished": 0.6},
        {"damaged": 11, "shuffled": True},
        {"duplicates": 5},
        {"cut_downloads": 1},
        {"empty_errors": True, "capitals": True, "iso_times": True, "null_counts": True},
    ],
    ids=lambda faults: next(iter(faults)),
)
def test_what_a_batch_leaves_open_is_sent_live(tmp_path, server, faults):
    table(tmp_path)
    server.switches.set(faults)
    bulk(tmp_path, server)
    assert answers(tmp_path) == {f"text {n}": answer_to(f"Say text {n}") for n in range(ROWS)}
    assert server.creates == 1
    if "damaged" not in faults:  # a reply that cannot be read was billed
        check_whole(tmp_path, server)


def test_rows_are_divided_among_batches_by_the_provider_s_limit(tmp_path, server, monkeypatch):
    table(tmp_path)
    limits = batch_round.BatchRound._plan_slot

    async def of_fifteen(self, slot):
        self._most[slot] = 15
        return await limits(self, slot)

    monkeypatch.setattr(batch_round.BatchRound, "_plan_slot", of_fifteen)
    bulk(tmp_path, server)
    check_whole(tmp_path, server)
    assert server.creates == 3


def test_an_endpoint_without_batches_is_refused_before_anything_is_planned(tmp_path, server):
    table(tmp_path)
    server.switches.no_batches = True
    with pytest.raises(PromptmillError, match="runs no batches") as found:
        bulk(tmp_path, server)
    assert found.value.code is Code.UNSUPPORTED
    assert not server.uploads + server.creates + server.live
    assert not list(tmp_path.rglob("batch-*.jsonl"))


@pytest.mark.parametrize(
    "faults",
    [{"full": 2}, {"refused_creates": 2}, {"lost_uploads": 1}, {"flaky": 3}],
    ids=lambda faults: next(iter(faults)),
)
def test_at_a_full_queue_smaller_batches_wait(tmp_path, server, faults, monkeypatch):
    table(tmp_path)
    server.switches.set(faults)
    bulk(tmp_path, server)
    check_whole(tmp_path, server)


@pytest.mark.parametrize("lost_by", ["close", "502"])
def test_a_batch_whose_creation_has_no_reply_is_found_in_the_list(tmp_path, server, lost_by, monkeypatch):
    table(tmp_path)
    monkeypatch.setattr(batch_round, "LIST_LAG_S", 0.3)
    server.switches.set({"lost_creates": 1, "lost_by": lost_by, "list_lag_s": 0.2})
    bulk(tmp_path, server)
    check_whole(tmp_path, server)
    assert server.creates == 1


def test_an_answer_that_is_no_choice_is_asked_again_live(tmp_path, server):
    table(tmp_path)
    with pytest.raises(PromptmillError):
        bulk(tmp_path, server, choices=["positive", "negative"], max_failures=1)
    assert server.creates == 1
    assert server.live > 0


@pytest.mark.parametrize("share", [40, 4, 1.01, 0.5])
def test_a_budget_is_never_exceeded(tmp_path, server, share):
    table(tmp_path)
    each = 150e-6  # dollars, more than the highest cost of a request
    try:
        bulk(tmp_path, server, max_cost=share * each)
    except PromptmillError as error:
        has_room = error.code is not Code.BUDGET
    else:
        has_room = True
        check_whole(tmp_path, server)
    tokens = server.tokens
    assert has_room or share < 40
    assert (tokens["batch_prompt"] + 10 * tokens["batch_answer"]) / 2e6 <= share * each
    assert not server.running()


def dollars_billed(server: BatchServer) -> float:
    """Return what the provider bills: batches at half the price."""
    tokens = server.tokens
    by_batch = tokens["batch_prompt"] + 10 * tokens["batch_answer"]
    return (by_batch / 2 + tokens["live_prompt"] + 10 * tokens["live_answer"]) / 1e6


def test_the_bill_is_about_half_if_one_row_of_a_hundred_is_sent_live(tmp_path, server):
    table(tmp_path, 200)
    server.switches.set({"missing": 100})
    status = bulk(tmp_path, server).status
    assert status["batch"]["live"] == 2
    assert status["cost"] == pytest.approx(dollars_billed(server), rel=1e-6)
    live = status["batch"]["live_price"] + status["batch"]["live_cost"]
    assert status["cost"] <= 0.52 * live


@pytest.mark.thorough
def test_no_budget_is_exceeded_in_fifty_random_runs(tmp_path):
    for seed in range(50):
        chance = random.Random(seed)
        faults = {name: chance.choice([0, chance.randrange(2, 12)]) for name in ("missing", "errors", "damaged")}
        limit = chance.uniform(1, 60) * 150e-6
        folder = tmp_path / str(seed)
        folder.mkdir()
        table(folder)
        with BatchServer("openai", finished=chance.choice([1.0, 0.5]), **faults) as server:
            with contextlib.suppress(PromptmillError):
                bulk(folder, server, max_cost=limit)
            assert dollars_billed(server) <= limit, seed


def test_an_unknown_price_of_batches_is_an_error(tmp_path, server):
    table(tmp_path)
    with pytest.raises(PromptmillError, match="in a batch is not known"):
        bulk(tmp_path, server, settings={"price": {"input": 1.0, "output": 10.0}})
    assert not server.uploads


class Simulated:
    """A clock for a job and its provider: sleeping sets both forward."""

    def __init__(self, server: BatchServer) -> None:
        self.server, self.slept = server, [0.0]

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.server.advance(seconds)

    def clock(self) -> batch_round.Clock:
        return batch_round.Clock(lambda: self.server.now, self.sleep)

    def patch(self, monkeypatch: pytest.MonkeyPatch) -> None:
        made = batch_round.BatchRound

        def with_clock(*given: Any, **named: Any) -> batch_round.BatchRound:
            return made(*given, **named, clock=self.clock())

        monkeypatch.setattr(runner, "BatchRound", with_clock)


def test_the_looks_at_a_batch_become_rarer(tmp_path, server, monkeypatch):
    table(tmp_path)
    simulated = Simulated(server)
    simulated.patch(monkeypatch)
    server.switches.set({"duration_s": 3 * 3600})
    bulk(tmp_path, server, poll=None)
    check_whole(tmp_path, server)
    looks = simulated.slept[1:]
    assert looks[0] == 30
    assert looks == sorted(looks)
    assert max(looks) == 900


def test_rows_that_are_open_at_a_given_time_are_sent_live(tmp_path, server, monkeypatch):
    table(tmp_path)
    simulated = Simulated(server)
    simulated.patch(monkeypatch)
    server.switches.set({"duration_s": 20 * 3600, "cancelled": 0.5})
    began = server.now
    bulk(tmp_path, server, by="2h", poll=None)
    check_whole(tmp_path, server)
    assert server.live == ROWS // 2
    assert 2 * 3600 - 5 <= server.now - began <= 2 * 3600 + 600


NOON = datetime.fromisoformat("2026-03-01T12:00:00+00:00")


@pytest.mark.parametrize("text", ["25:00", "yesterday", "2026-02-28", "-3h", "6 hours", ""])
def test_a_time_that_cannot_be_meant_is_refused(text):
    with pytest.raises(PromptmillError):
        BatchOrder.of({"batch": True, "by": text, "poll": None if text else "0"}, NOON)


def test_options_of_batches_need_batch():
    with pytest.raises(PromptmillError, match="goes with"):
        BatchOrder.of({"by": "6h"}, NOON)


def rounds_after(known: list[Round], order: JobOrder, open_ways: set[str]) -> Round | None:
    return next_round(Situation(order, known, 0, 1, lambda found: found.way in open_ways))


def test_a_batch_round_comes_before_the_live_round_which_takes_its_failures():
    order = JobOrder(inputs=(Path("/a"),), output=Path("/b"), batch=BatchOrder())
    first = rounds_after([], order, {"batch", "live"})
    assert first == Round(1, "open", "batch", way="batch")
    second = rounds_after([replace(first, done=True)], order, {"live"})
    assert second == Round(2, "open", "first", since=1)
    assert "batched" in first.condition([0])
    assert "batched" not in second.condition([0])


def test_an_edited_input_keeps_the_replies_of_its_batch(tmp_path, server):
    table(tmp_path)
    server.switches.set({"polls": 10_000})
    with pytest.raises(KeyboardInterrupt):
        bulk(tmp_path, server, progress=_interrupts_when(lambda status: status.get("batch", {}).get("ids")))
    assert server.creates == 1
    path = tmp_path / "in.csv"
    lines = path.read_text(encoding="utf-8").splitlines()
    path.write_text("\n".join([lines[0], "a new text", *reversed(lines[5:])]) + "\n", encoding="utf-8")
    server.switches.set({"polls": 1})
    bulk(tmp_path, server)
    texts = {"a new text", *(f"text {n}" for n in range(4, ROWS))}
    assert answers(tmp_path) == {text: answer_to(f"Say {text}") for text in texts}
    assert server.billed["Say a new text"] == 1
    assert max(server.billed.values()) == 1
    assert not server.left_files()


def interrupt_waiting(folder: Path, server: BatchServer, **options: Any) -> None:
    """Interrupt a job whose batch is at the provider, which answers it from now on."""
    server.switches.set({"polls": 10_000})
    with pytest.raises(KeyboardInterrupt):
        bulk(folder, server, progress=_interrupts_when(lambda status: status.get("batch", {}).get("ids")), **options)
    server.switches.set({"polls": 1})


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({}, {"again": "failed"}),
        ({}, {"again": "all"}),
        ({}, {"batch": False, "poll": None}),
        ({}, {"batch": False, "poll": None, "again": "failed"}),
        ({}, {"dedupe": True}),
        ({"dedupe": True}, {}),
    ],
    ids=lambda options: "-".join(options) or "plain",
)
def test_another_order_first_collects_the_batch_that_is_there(tmp_path, server, before, after):
    table(tmp_path)
    interrupt_waiting(tmp_path, server, **before)
    server.switches.set({"errors": 7})
    bulk(tmp_path, server, **after)
    check_whole(tmp_path, server)
    assert server.creates == 1


def test_answers_beyond_the_limit_of_a_later_order_are_kept(tmp_path, server):
    table(tmp_path)
    interrupt_waiting(tmp_path, server)
    bulk(tmp_path, server, limit=10)
    assert len(answers(tmp_path)) == 10
    bulk(tmp_path, server)
    check_whole(tmp_path, server)
    assert server.creates == 1


def test_an_order_for_which_the_answers_of_a_batch_do_not_count_is_refused_until_they_are_stored(tmp_path, server):
    table(tmp_path)
    interrupt_waiting(tmp_path, server)
    with pytest.raises(PromptmillError, match="has a batch at the provider"):
        bulk(tmp_path, server, model="m2", again="all")
    assert server.running()
    bulk(tmp_path, server)
    check_whole(tmp_path, server)


def _interrupts_when(seen: Any) -> Any:
    def watch(status: dict[str, Any]) -> None:
        if seen(status):
            raise KeyboardInterrupt

    return watch


def test_money_that_is_set_aside_is_charged_as_it_was_spent():
    budget = Budget(10.0)
    assert budget.reserve(6.0)
    budget.set_reserved_aside(6.0)
    assert not budget.reserve(5.0)
    budget.free(6.0, 2.0)
    assert budget.spent == 2.0
    assert budget.reserve(8.0)


def test_status_names_the_batches(tmp_path, server):
    table(tmp_path)
    server.switches.set({"polls": 9})
    seen: list[str] = []
    bulk(tmp_path, server, progress=lambda status: seen.append(json.dumps(status.get("batch", {}))))
    shown = [json.loads(text) for text in seen]
    assert any(batch.get("ids") and batch.get("requests") == ROWS for batch in shown)
