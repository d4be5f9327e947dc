"""Jobs by a provider's Batch API: nothing lost, nothing billed twice, no file left behind."""

from __future__ import annotations

import contextlib
import csv
import itertools
import json
import random
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

import promptmill
from batch_server import BatchServer, answer_to, prompt_of
from labellers import LABELS, label
from promptmill.backends.batches import BatchUnclearError
from promptmill.backends.openai.batches.families import AnthropicBatches
from promptmill.backends.openai.batches.openai_batches import Batches as OpenAIBatches
from promptmill.cli.main import main
from promptmill.core.errors import Code, PromptmillError
from promptmill.core.feature import WITHOUT
from promptmill.core.money import Budget
from promptmill.features.batches import batch_round, stored_batches
from promptmill.features.batches.batch_order import BatchOrder
from promptmill.jobs.run.planning import Situation, next_round
from promptmill.jobs.run.ways import RoundRun
from promptmill.jobs.store import rounds
from promptmill.jobs.store.database import JobDatabase
from promptmill.jobs.store.folder import Folder
from promptmill.jobs.store.order import JobOrder
from promptmill.jobs.store.rounds import Round
from promptmill.jobs.store.salvage import salvage
from renewed import ChangingKey

ROWS = 40
PRICE = {"price": {"input": 1.0, "output": 10.0, "batch": 0.5}}


@pytest.fixture
def server(tmp_path):
    """A provider, and a table of rows in the folder."""
    table(tmp_path)
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


@pytest.mark.parametrize("provider", ["openai", "anthropic", "gemini"])
def test_a_batch_goes_on_while_its_key_changes(tmp_path, provider):
    """At every third request, so in the middle of uploads, looks and downloads."""
    table(tmp_path)
    keys = ChangingKey(tmp_path / "keys")
    looked = itertools.count(1)

    def accepts(headers: dict[str, str]) -> bool:
        if next(looked) % 3 == 0:
            keys.change()
        return keys.is_now(headers)

    with BatchServer(provider) as server:
        server.accepts = accepts
        own = {"backend_configs.openai.api_key_command": keys.command, "backend_configs.openai.dialect": provider}
        done = bulk(tmp_path, server, api_key=None, settings=own)
        assert done.status["done"] == ROWS
        assert set(server.billed.values()) == {1}
        assert not server.left_files()
    assert 1 < keys.runs <= len(keys.all)
    assert not any(key.encode() in path.read_bytes() for key in keys.all for path in (tmp_path / "jobs").rglob("*.*"))


def bulk_without(folder: Path, server: BatchServer) -> Any:
    """Answer the rows live, while the feature is hidden."""
    return promptmill.bulk(
        folder / "in.csv",
        folder / "out.csv",
        prompt="Say {{text}}",
        model="m",
        base_url=server.base_url,
        api_key="k",
        max_tokens=20,
        state=folder / "jobs",
        progress=False,
        settings=PRICE,
    )


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


@pytest.mark.thorough
def test_all_rows_go_into_one_batch_at_the_price_of_a_batch(tmp_path, server):
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


@pytest.mark.thorough
@pytest.mark.parametrize(
    "faults",
    [
        {"missing": 9},
        {"errors": 7},
        {"finished": 0.6},
        {"damaged": 11, "shuffled": True},
        {"duplicates": 5},
        {"retried": 5},
        {"cut_downloads": 1},
        {"empty_errors": True, "capitals": True, "iso_times": True, "null_counts": True},
    ],
    ids=lambda faults: next(iter(faults)),
)
def test_what_a_batch_leaves_open_is_sent_live(tmp_path, server, faults):
    server.switches.set(faults)
    bulk(tmp_path, server)
    assert answers(tmp_path) == {f"text {n}": answer_to(f"Say text {n}") for n in range(ROWS)}
    assert server.creates == 1
    if "damaged" not in faults:  # a reply that cannot be read was billed
        check_whole(tmp_path, server)


def test_rows_are_divided_among_batches_by_the_provider_s_limit(tmp_path, server, monkeypatch):
    limits = batch_round.BatchRound._plan_slot

    async def of_fifteen(self, slot):
        self._most[slot] = 15
        return await limits(self, slot)

    monkeypatch.setattr(batch_round.BatchRound, "_plan_slot", of_fifteen)
    bulk(tmp_path, server)
    check_whole(tmp_path, server)
    assert server.creates == 3


def test_an_endpoint_without_batches_is_refused_before_anything_is_planned(tmp_path, server):
    server.switches.no_batches = True
    with pytest.raises(PromptmillError, match="runs no batches") as found:
        bulk(tmp_path, server)
    assert found.value.code is Code.UNSUPPORTED
    assert not server.uploads + server.creates + server.live
    assert not list(tmp_path.rglob("batch-*.jsonl"))
    bulk(tmp_path, server, batch=False, poll=None)  # as the error says
    check_whole(tmp_path, server)


@pytest.mark.thorough
@pytest.mark.parametrize(
    "faults",
    [{"full": 2}, {"refused_creates": 2}, {"lost_uploads": 1}, {"flaky": 3}],
    ids=lambda faults: next(iter(faults)),
)
def test_at_a_full_queue_smaller_batches_wait(tmp_path, server, simulated, faults):
    server.switches.set(faults)
    bulk(tmp_path, server)
    check_whole(tmp_path, server)


@pytest.mark.parametrize("lost_by", ["close", "502"])
def test_a_batch_whose_creation_has_no_reply_is_found_in_the_list(tmp_path, server, lost_by, monkeypatch):
    monkeypatch.setattr(batch_round, "LIST_LAG_S", 0.3)
    server.switches.set({"lost_creates": 1, "lost_by": lost_by, "list_lag_s": 0.2})
    bulk(tmp_path, server)
    check_whole(tmp_path, server)
    assert server.creates == 1


def test_an_answer_that_is_no_choice_is_asked_again_live(tmp_path, server):
    with pytest.raises(PromptmillError):
        bulk(tmp_path, server, choices=["positive", "negative"], max_failures=1)
    assert server.creates == 1
    assert server.live > 0


@pytest.mark.parametrize("share", [40, 4, 1.01, 0.5])
def test_a_budget_is_never_exceeded(tmp_path, server, share):
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
    bulk(tmp_path, server, max_cost=1)
    check_whole(tmp_path, server)
    assert not server.live


def dollars_billed(server: BatchServer) -> float:
    """Return what the provider bills: batches at half the price."""
    tokens = server.tokens
    by_batch = tokens["batch_prompt"] + 10 * tokens["batch_answer"]
    return (by_batch / 2 + tokens["live_prompt"] + 10 * tokens["live_answer"]) / 1e6


@pytest.mark.thorough
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


def test_a_batch_of_unknown_price_counts_as_live(tmp_path, server):
    settings = {"price": {"input": 1.0, "output": 10.0}}
    with pytest.warns(UserWarning, match="counted at the live price"):
        found = bulk(tmp_path, server, settings=settings)
    usage = found.usage
    assert found.cost == pytest.approx((usage["prompt_tokens"] + 10 * usage["completion_tokens"]) / 1e6)


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

        def with_clock(run: RoundRun) -> batch_round.BatchRound:
            return made(run, clock=self.clock())

        monkeypatch.setattr(batch_round, "BatchRound", with_clock)


@pytest.fixture
def simulated(server, monkeypatch):
    """The clock of the job and its provider."""
    clock = Simulated(server)
    clock.patch(monkeypatch)
    return clock


@pytest.mark.thorough
def test_the_looks_at_a_batch_become_rarer(tmp_path, server, simulated):
    server.switches.set({"duration_s": 3 * 3600})
    bulk(tmp_path, server, poll=None)
    check_whole(tmp_path, server)
    looks = simulated.slept[1:]
    assert looks[0] == 30
    assert looks == sorted(looks)
    assert max(looks) == 900


@pytest.mark.thorough
def test_rows_that_are_open_at_a_given_time_are_sent_live(tmp_path, server, simulated):
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
        BatchOrder.of({"batch": True, "by": text, "poll": None if text else "0"}, now=NOON)


def rounds_after(known: list[Round], order: JobOrder, open_ways: set[str]) -> Round | None:
    return next_round(Situation(order, order.plan, known, 0, 1, lambda found: found.way in open_ways))


def test_a_batch_round_comes_before_the_live_round_which_takes_its_failures():
    order = JobOrder(inputs=(Path("/a"),), output=Path("/b"), parts={"batch": BatchOrder()})
    first = rounds_after([], order, {"batch", "live"})
    assert first == Round(1, "open", "batch", way="batch")
    second = rounds_after([replace(first, done=True)], order, {"live"})
    assert second == Round(2, "open", "first", since=1)
    assert "FROM batched" in first.condition([0])
    assert "FROM batched" not in second.condition([0])


@pytest.mark.thorough
def test_an_edited_input_keeps_the_replies_of_its_batch(tmp_path, server):
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


def test_a_repeated_command_keeps_the_time_of_its_job(tmp_path, server, monkeypatch):
    simulated = Simulated(server)
    interrupt_waiting(tmp_path, server, by="2h")
    server.advance(3 * 3600)
    simulated.patch(monkeypatch)
    server.switches.set({"duration_s": 20 * 3600})
    began = server.now
    with pytest.warns(UserWarning, match="sent live at"):
        bulk(tmp_path, server, by="8h", poll="1m")
    check_whole(tmp_path, server)
    assert server.now - began < 600


def test_what_is_left_at_the_provider_is_named_when_a_job_is_removed_or_cannot_be_cancelled(
    tmp_path, server, monkeypatch, capsys, caplog
):
    interrupt_waiting(tmp_path, server)
    (batch_id,) = server.batches
    monkeypatch.setenv("PROMPTMILL_STATE", str(tmp_path / "jobs"))
    job = next(tmp_path.rglob("job.db")).parent
    assert main(["jobs", job.name, "--cancel"]) == 0
    assert f"{batch_id} continues at the provider" in capsys.readouterr().err
    assert main(["jobs", "--prune", "0m", "--unfinished"]) == 0
    assert f"{batch_id} continues at the provider" in caplog.text
    assert not job.exists()


class CutOffError(Exception):
    """Ends a run at a point of a test."""


def interrupt_waiting(folder: Path, server: BatchServer, **options: Any) -> None:
    """Interrupt a job whose batch is at the provider, which answers it from now on."""
    server.switches.set({"polls": 10_000})
    with pytest.raises(KeyboardInterrupt):
        bulk(folder, server, progress=_interrupts_when(lambda status: status.get("batch", {}).get("ids")), **options)
    server.switches.set({"polls": 1})


@pytest.mark.thorough
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
    interrupt_waiting(tmp_path, server, **before)
    server.switches.set({"errors": 7})
    bulk(tmp_path, server, **after)
    check_whole(tmp_path, server)
    assert server.creates == 1


def check_questions(folder: Path, server: BatchServer, questions: int) -> None:
    """Check that every row has the answer to its question, and every question is billed once."""
    with (folder / "out.csv").open(encoding="utf-8-sig", newline="") as file:
        rows = [(row["text"], row["answer"]) for row in csv.DictReader(file)]
    assert rows == [(f"text {n % questions}", answer_to(f"Say text {n % questions}")) for n in range(ROWS)]
    assert dict(server.billed) == {f"Say text {n}": 1 for n in range(questions)}
    assert not server.running()


@pytest.mark.thorough
@pytest.mark.parametrize("faults", [{}, {"errors": 7}, {"missing": 3}], ids=["whole", "errors", "missing"])
def test_a_question_of_several_rows_is_one_request_of_a_batch(tmp_path, server, faults):
    (tmp_path / "in.csv").write_text("text\n" + "".join(f"text {n % 8}\n" for n in range(ROWS)), encoding="utf-8")
    server.switches.set(faults)
    result = bulk(tmp_path, server, dedupe=True, temperature=0)
    check_questions(tmp_path, server, 8)
    assert (server.creates, bool(server.live)) == (1, bool(faults))
    assert result.status["batch"]["by_batch"] + result.status["batch"]["live"] == 8
    if not faults:
        assert result.status["cached"] == ROWS - 8


@pytest.mark.parametrize(
    "after", [{}, {"batch": False, "poll": None}, {"again": "failed"}], ids=["same", "live", "again"]
)
def test_the_rows_of_a_question_wait_for_the_batch_that_has_it(tmp_path, server, after):
    (tmp_path / "in.csv").write_text("text\n" + "".join(f"text {n % 8}\n" for n in range(ROWS)), encoding="utf-8")
    given = {"dedupe": True, "temperature": 0}
    interrupt_waiting(tmp_path, server, **given)
    bulk(tmp_path, server, **given | after)
    check_questions(tmp_path, server, 8)
    assert (server.creates, server.live) == (1, 0)


@pytest.mark.thorough
def test_a_batch_without_dedupe_is_read_whole_by_an_order_with_it(tmp_path, server):
    (tmp_path / "in.csv").write_text("text\n" + "".join(f"text {n % 8}\n" for n in range(ROWS)), encoding="utf-8")
    interrupt_waiting(tmp_path, server, temperature=0)
    result = bulk(tmp_path, server, temperature=0, dedupe=True)
    assert set(server.billed.values()) == {ROWS // 8}
    assert result.status["batch"]["by_batch"] == ROWS
    tokens = server.tokens
    cost = (tokens["batch_prompt"] + 10 * tokens["batch_answer"]) / 2e6
    assert result.status["cost"] == pytest.approx(cost, rel=1e-6)


@pytest.mark.thorough
def test_answers_beyond_the_limit_of_a_later_order_are_kept(tmp_path, server):
    interrupt_waiting(tmp_path, server)
    bulk(tmp_path, server, limit=10)
    assert len(answers(tmp_path)) == 10
    bulk(tmp_path, server)
    check_whole(tmp_path, server)
    assert server.creates == 1


def test_an_order_for_which_the_answers_of_a_batch_do_not_count_is_refused_until_they_are_stored(tmp_path, server):
    interrupt_waiting(tmp_path, server)
    with pytest.raises(PromptmillError, match="has a batch at the provider"):
        bulk(tmp_path, server, model="m2", again="all")
    assert server.running()
    bulk(tmp_path, server)
    check_whole(tmp_path, server)


def test_rows_that_come_back_into_the_input_get_the_answers_of_their_batch(tmp_path, server):
    interrupt_waiting(tmp_path, server)
    path = tmp_path / "in.csv"
    whole = path.read_text(encoding="utf-8")
    path.write_text("text\ntext 0\n", encoding="utf-8")
    bulk(tmp_path, server)
    path.write_text(whole, encoding="utf-8")
    bulk(tmp_path, server)
    check_whole(tmp_path, server)
    assert server.creates == 1


@pytest.mark.thorough
def test_answers_to_rows_that_the_input_no_longer_has_are_charged(tmp_path, server):
    interrupt_waiting(tmp_path, server, max_cost=1)
    (tmp_path / "in.csv").write_text("text\ntext 0\n", encoding="utf-8")
    assert bulk(tmp_path, server, max_cost=1).status["cost"] >= dollars_billed(server)


def not_found_for(monkeypatch: pytest.MonkeyPatch, method: str, simulated: Simulated, seconds: float) -> None:
    """Have the provider answer 404 to a request about a batch until so much time has passed."""
    was, until = getattr(OpenAIBatches, method), simulated.server.now + seconds

    def missing(self: OpenAIBatches, about: Any) -> Any:
        if simulated.server.now < until:
            raise PromptmillError(Code.NOT_FOUND, "The provider answered 404: No batch found.")
        return was(self, about)

    monkeypatch.setattr(OpenAIBatches, method, missing)


@pytest.mark.parametrize("method", ["state", "replies"])
def test_a_passing_404_on_a_batch_is_waited_out(tmp_path, server, simulated, monkeypatch, method):
    not_found_for(monkeypatch, method, simulated, 200)
    bulk(tmp_path, server, poll="30s")
    check_whole(tmp_path, server)
    assert (server.creates, server.live) == (1, 0)
    assert sum(simulated.slept) >= 200


def test_a_job_with_a_batch_and_no_answer_is_not_empty(tmp_path, server):
    interrupt_waiting(tmp_path, server)
    with contextlib.closing(JobDatabase(next(tmp_path.rglob("job.db")))) as store:
        assert not rounds.is_empty(store), "the command line would remove it after an error"


@pytest.mark.thorough
def test_a_job_has_tables_for_batches_only_if_it_uses_them(tmp_path, server):
    for options, tables in (
        ({"batch": False, "poll": None}, set()),
        ({}, {"batch", "batched", "batched_rows", "batched_lines"}),
    ):
        bulk(tmp_path, server, again="all", **options)
        with contextlib.closing(JobDatabase(next(tmp_path.rglob("job.db")))) as store:
            assert store.added.keys() == tables


def test_without_the_feature_a_batch_is_neither_lost_nor_paid_again(tmp_path, server, monkeypatch):
    interrupt_waiting(tmp_path, server)
    with monkeypatch.context() as hidden:
        hidden.setenv(WITHOUT, "batches")
        with contextlib.closing(JobDatabase(next(tmp_path.rglob("job.db")))) as store:
            assert not rounds.is_empty(store)
        with pytest.raises(PromptmillError, match="`batch` needs a feature that is not installed"):
            bulk_without(tmp_path, server)
        assert server.live == 0
        salvage(next(tmp_path.rglob("job.db")))
    bulk(tmp_path, server)
    check_whole(tmp_path, server)
    assert (server.creates, server.live) == (1, 0)
    with monkeypatch.context() as hidden:
        hidden.setenv(WITHOUT, "batches")
        table(tmp_path, ROWS + 1)
        assert bulk_without(tmp_path, server).status["answered"] == ROWS + 1
    assert (server.creates, server.live) == (1, 1)


@pytest.mark.parametrize("method", ["state", "replies"])
def test_after_a_long_404_the_same_command_collects_the_batch(tmp_path, server, simulated, monkeypatch, method):
    with monkeypatch.context() as patched:
        not_found_for(patched, method, simulated, 86_400)
        with pytest.raises(PromptmillError, match=r"looks at batch batch_\d+ again, and sends no row twice") as found:
            bulk(tmp_path, server, poll="30s")
    assert found.value.retryable
    bulk(tmp_path, server)
    check_whole(tmp_path, server)
    assert (server.creates, server.live) == (1, 0)


def test_a_batch_that_is_missing_at_the_given_time_is_charged_and_its_rows_are_sent_live(tmp_path, server, monkeypatch):
    interrupt_waiting(tmp_path, server)
    Simulated(server).patch(monkeypatch)
    server.batches.clear()
    status = bulk(tmp_path, server, by="1m", poll="30s").status
    assert answers(tmp_path) == {f"text {n}": answer_to(f"Say text {n}") for n in range(ROWS)}
    assert status["cost"] > dollars_billed(server) + ROWS * 20 * 5e-6  # the longest answers, by batch


@pytest.mark.thorough
def test_a_completed_batch_without_a_result_file_is_waited_for(tmp_path, server, simulated, monkeypatch):
    state, until = OpenAIBatches.state, server.now + 200

    async def without_files(self: OpenAIBatches, batch_id: str) -> Any:
        found = await state(self, batch_id)
        return replace(found, results=()) if server.now < until else found

    monkeypatch.setattr(OpenAIBatches, "state", without_files)
    bulk(tmp_path, server, poll="30s")
    check_whole(tmp_path, server)
    assert (server.creates, server.live) == (1, 0)


@pytest.mark.thorough
def test_results_that_are_fewer_than_the_provider_counts_are_read_again(tmp_path, server, simulated, monkeypatch):
    replies, reads = OpenAIBatches.replies, iter(range(9))

    async def half(self: OpenAIBatches, about: Any) -> Any:
        is_short = next(reads) == 0
        left = ROWS // 2
        async for reply in replies(self, about):
            left -= 1
            if left >= 0 or not is_short:
                yield reply

    monkeypatch.setattr(OpenAIBatches, "replies", half)
    bulk(tmp_path, server, poll="30s")
    check_whole(tmp_path, server)
    assert (server.creates, server.live) == (1, 0)


@pytest.mark.thorough
def test_failed_results_that_the_provider_counts_as_completed_are_not_waited_for(tmp_path, server, monkeypatch):
    """As some gateways: lines of failed requests, and counts by which none failed."""
    state = OpenAIBatches.state

    async def counted(self: OpenAIBatches, batch_id: str) -> Any:
        return replace(await state(self, batch_id), done=ROWS, failed=0)

    monkeypatch.setattr(OpenAIBatches, "state", counted)
    server.switches.set({"errors": 10})
    bulk(tmp_path, server)
    assert answers(tmp_path) == {f"text {n}": answer_to(f"Say text {n}") for n in range(ROWS)}


@pytest.mark.parametrize("is_counted_twice", [False, True])
def test_failed_requests_without_a_result_are_not_waited_for(tmp_path, server, monkeypatch, is_counted_twice):
    """A batch of 3,000 whose 73 failed requests had no line in the error file stopped the job after 15 minutes."""
    server.switches.set({"missing": 9})
    state = OpenAIBatches.state

    async def counted(self: OpenAIBatches, batch_id: str) -> Any:
        found = await state(self, batch_id)
        return replace(found, done=ROWS if is_counted_twice else ROWS - 4, failed=4)

    monkeypatch.setattr(OpenAIBatches, "state", counted)
    bulk(tmp_path, server, max_cost=1)
    check_whole(tmp_path, server)
    assert (server.creates, server.live) == (1, 4)


@pytest.mark.thorough
def test_answers_that_are_there_are_stored_while_others_are_missing(tmp_path, server, simulated, monkeypatch):
    replies = OpenAIBatches.replies

    async def without_three(self: OpenAIBatches, about: Any) -> Any:
        left = 3
        async for reply in replies(self, about):
            left -= 1
            if left < 0:
                yield reply

    with monkeypatch.context() as patched:
        patched.setattr(OpenAIBatches, "replies", without_three)
        for _ in range(2):
            with pytest.raises(PromptmillError, match="40 requests done, but has 37 results"):
                bulk(tmp_path, server, poll="30s", max_cost=1)
            folder = Folder(next(tmp_path.rglob("job.db")).parent)
            assert folder.status["answered"] == 37
            assert folder.status["cost"] == pytest.approx(dollars_billed(server) * 37 / 40, rel=0.05)
    status = bulk(tmp_path, server, poll="30s", max_cost=1).status
    check_whole(tmp_path, server)
    assert (server.creates, server.live) == (1, 0)
    assert status["cost"] == pytest.approx(dollars_billed(server))
    assert "cost_set_aside" not in status or status["cost_set_aside"] == 0


def test_an_invalid_answer_that_is_stored_while_others_are_missing_is_paid_once(
    tmp_path, server, simulated, monkeypatch
):
    replies, reads = OpenAIBatches.replies, iter(range(9))

    async def late(self: OpenAIBatches, about: Any) -> Any:
        is_short, number = next(reads) < 2, 0
        async for reply in replies(self, about):
            number += 1
            if number < ROWS or not is_short:
                yield reply

    monkeypatch.setattr(OpenAIBatches, "replies", late)
    server.switches.set({"choices": "yes,no,perhaps"})
    status = bulk(tmp_path, server, poll="30s", max_cost=1, choices=["yes", "no"]).status
    assert status["cost"] == pytest.approx(dollars_billed(server))


@pytest.mark.thorough
def test_results_that_appear_after_the_others_were_read_are_not_deleted(tmp_path, server, monkeypatch):
    server.switches.set({"errors": 2, "null_counts": True})
    state, reads = OpenAIBatches.state, iter(range(9))

    async def only_errors(self: OpenAIBatches, batch_id: str) -> Any:
        found = await state(self, batch_id)
        only = replace(found, said="expired", results=found.results[1:])
        return only if found.is_ended and next(reads) < 2 else found

    monkeypatch.setattr(OpenAIBatches, "state", only_errors)
    bulk(tmp_path, server)
    assert [name for name in server.left_files() if "output" in name]


@pytest.mark.parametrize("counts", [None, 0])
def test_a_completed_batch_without_counts_has_a_result_for_each_row(tmp_path, server, simulated, monkeypatch, counts):
    state, replies, reads = OpenAIBatches.state, OpenAIBatches.replies, iter(range(9))

    async def uncounted(self: OpenAIBatches, batch_id: str) -> Any:
        return replace(await state(self, batch_id), done=counts, failed=counts)

    async def three(self: OpenAIBatches, about: Any) -> Any:
        left = 3 if next(reads) == 0 else ROWS
        async for reply in replies(self, about):
            left -= 1
            if left >= 0:
                yield reply

    monkeypatch.setattr(OpenAIBatches, "state", uncounted)
    monkeypatch.setattr(OpenAIBatches, "replies", three)
    bulk(tmp_path, server, poll="30s")
    check_whole(tmp_path, server)
    assert (server.creates, server.live) == (1, 0)


@pytest.mark.thorough
def test_a_result_that_counts_as_done_and_has_no_answer_is_charged_and_stays_at_the_provider(
    tmp_path, server, monkeypatch
):
    replies = OpenAIBatches.replies

    async def with_empty(self: OpenAIBatches, about: Any) -> Any:
        left = 3
        async for reply in replies(self, about):
            left -= 1
            yield reply._replace(status=0, body=b"") if reply and left >= 0 else reply

    monkeypatch.setattr(OpenAIBatches, "replies", with_empty)
    assert bulk(tmp_path, server, max_cost=1).status["cost"] >= dollars_billed(server)
    assert server.live == 3
    assert [name for name in server.left_files() if "output" in name]


def test_a_batch_whose_results_are_all_damaged_is_not_paid_again(tmp_path, server, monkeypatch):
    replies = OpenAIBatches.replies

    async def damaged(self: OpenAIBatches, about: Any) -> Any:
        async for _ in replies(self, about):
            yield None

    monkeypatch.setattr(OpenAIBatches, "replies", damaged)
    with pytest.raises(PromptmillError, match=rf"{ROWS} results of batch batch_\d+ name no row"):
        bulk(tmp_path, server, max_cost=1)
    assert (server.creates, server.live) == (1, 0)


@pytest.mark.thorough
@pytest.mark.parametrize("failed", [ROWS, 3])
def test_failures_that_name_no_row_cost_nothing_and_other_requests_are_sent_for_their_rows(
    tmp_path, server, monkeypatch, failed
):
    replies = OpenAIBatches.replies

    async def without_ids(self: OpenAIBatches, about: Any) -> Any:
        left = failed
        async for reply in replies(self, about):
            left -= 1
            yield reply if reply is None or left < 0 else reply._replace(custom_id="", status=500)

    monkeypatch.setattr(OpenAIBatches, "replies", without_ids)
    assert bulk(tmp_path, server).failed == 0
    assert (server.creates, server.live) == (1, failed)


@pytest.mark.parametrize("renamed", [ROWS, 3])
def test_results_of_no_row_stop_the_job_and_are_charged_once(tmp_path, server, monkeypatch, renamed):
    replies = OpenAIBatches.replies

    async def with_other_ids(self: OpenAIBatches, about: Any) -> Any:
        left = renamed
        async for reply in replies(self, about):
            left -= 1
            yield reply if reply is None or left < 0 else reply._replace(custom_id=f"request-{left}")

    with monkeypatch.context() as patched:
        patched.setattr(OpenAIBatches, "replies", with_other_ids)
        for _ in range(2):
            with pytest.raises(PromptmillError, match=rf"{renamed} results of batch batch_\d+ name no row"):
                bulk(tmp_path, server, max_cost=1)
    assert (server.creates, server.live) == (1, 0)
    cost = Folder(next(tmp_path.rglob("job.db")).parent).status["cost"] or 0.0
    assert 0 < dollars_billed(server) < cost < 2 * ROWS * 150e-6
    bulk(tmp_path, server, max_cost=1)  # the gateway is mended
    check_whole(tmp_path, server)


@pytest.mark.thorough
def test_a_batch_without_usage_is_charged_its_reservation(tmp_path, server, monkeypatch):
    replies = OpenAIBatches.replies
    usages = [b"null", b'{"prompt_tokens":-5,"completion_tokens":3}', b'{"prompt_tokens":10,"completion_tokens":1e15}']

    async def without_usage(self: OpenAIBatches, about: Any) -> Any:
        async for reply in replies(self, about):
            assert reply is not None
            body = json.loads(reply.body)
            body["usage"] = json.loads(usages[int(reply.custom_id.rpartition("-")[2]) % 3])
            yield reply._replace(body=json.dumps(body).encode())

    monkeypatch.setattr(OpenAIBatches, "replies", without_usage)
    status = bulk(tmp_path, server, max_cost=1).status
    check_whole(tmp_path, server)
    assert ROWS * 20 * 5e-6 < status["cost"] < ROWS * 150e-6


def test_a_damaged_result_is_charged_and_stays_at_the_provider(tmp_path, server):
    server.switches.set({"damaged": 10})
    assert bulk(tmp_path, server).status["cost"] >= dollars_billed(server)
    assert [name for name in server.left_files() if "output" in name]


def test_a_file_that_the_provider_has_lost_is_uploaded_again(tmp_path, server, monkeypatch):
    put = stored_batches.put

    def put_until_created(store: Any, *batches: Any) -> None:
        put(store, *batches)
        if any(batch.state == "uploaded" for batch in batches):
            raise CutOffError

    with monkeypatch.context() as patched:
        patched.setattr(stored_batches, "put", put_until_created)
        with pytest.raises(CutOffError):
            bulk(tmp_path, server)
    server.files.clear()
    with pytest.raises(PromptmillError, match="404"):
        bulk(tmp_path, server)
    bulk(tmp_path, server)
    check_whole(tmp_path, server)


def test_a_kill_while_rows_are_planned_leaves_no_batch_without_its_highest_cost(tmp_path, server, monkeypatch):
    put, limit = stored_batches.put, 20 * 150e-6
    room: list[float] = []

    def put_until_planned(store: Any, *batches: Any) -> None:
        put(store, *batches)
        if any(batch.state == "planned" for batch in batches):
            room.append(limit - stored_batches.most_cost(store))
            raise CutOffError

    monkeypatch.setattr(stored_batches, "put", put_until_planned)
    with pytest.raises(CutOffError):
        bulk(tmp_path, server, max_cost=limit)
    assert room[0] < limit / 2


def test_too_many_requests_make_no_smaller_batches(tmp_path, server, simulated):
    server.switches.set({"refused_creates": 4})
    bulk(tmp_path, server)
    check_whole(tmp_path, server)
    assert server.creates == 1


def test_a_full_queue_never_makes_batches_of_single_requests(tmp_path, server, simulated):
    server.switches.set({"full": 9})
    bulk(tmp_path, server)
    check_whole(tmp_path, server)
    assert min(batch.total for batch in server.batches.values()) >= 8


def test_a_batch_goes_on_while_its_provider_has_an_outage(tmp_path, server, simulated, monkeypatch):
    state, outage = OpenAIBatches.state, iter(range(30))

    async def failing(self: OpenAIBatches, batch_id: str) -> Any:
        if next(outage, None) is not None:
            raise PromptmillError(Code.SERVER_ERROR, "The provider answered 503.")
        return await state(self, batch_id)

    monkeypatch.setattr(OpenAIBatches, "state", failing)
    bulk(tmp_path, server, poll=None)
    check_whole(tmp_path, server)
    assert sum(simulated.slept) > 4 * 3600


def test_an_outage_of_a_day_ends_the_run(tmp_path, server, simulated, monkeypatch):

    async def failing(self: OpenAIBatches, batch_id: str) -> Any:
        raise PromptmillError(Code.SERVER_ERROR, "The provider answered 503.")

    with monkeypatch.context() as patched:
        patched.setattr(OpenAIBatches, "state", failing)
        with pytest.raises(PromptmillError, match="503"):
            bulk(tmp_path, server, poll=None)
    bulk(tmp_path, server)
    check_whole(tmp_path, server)


def test_a_state_without_content_does_not_lose_the_results(tmp_path, server, monkeypatch):
    state, looks = OpenAIBatches.state, iter(range(100))

    async def empty(self: OpenAIBatches, batch_id: str) -> Any:
        found = await state(self, batch_id)
        return self._read({}) if next(looks) == 2 else found  # the first one after the end

    monkeypatch.setattr(OpenAIBatches, "state", empty)
    bulk(tmp_path, server)
    check_whole(tmp_path, server)
    assert not server.live


def test_an_unclear_creation_is_looked_for_after_the_lists_lag_also_when_it_is_late(tmp_path, server, simulated):
    server.switches.set({"lost_creates": 1, "list_lag_s": 20, "duration_s": 7200})
    bulk(tmp_path, server, by="5s", poll="2s")
    check_whole(tmp_path, server)
    assert server.creates == 1


def test_a_late_job_deletes_the_file_of_an_upload_that_was_cut_off(tmp_path, server, monkeypatch):
    upload = OpenAIBatches.upload

    async def cut_off(self: OpenAIBatches, batch: Any) -> str:
        await upload(self, batch)
        raise CutOffError

    with monkeypatch.context() as patched:
        patched.setattr(OpenAIBatches, "upload", cut_off)
        with pytest.raises(CutOffError):
            bulk(tmp_path, server)
    assert server.left_files()
    Simulated(server).patch(monkeypatch)
    server.advance(7200)
    bulk(tmp_path, server, by="1h")
    check_whole(tmp_path, server)


@pytest.mark.thorough
def test_the_looks_of_a_late_job_do_not_wait_for_a_long_poll(tmp_path, server, simulated, monkeypatch):
    server.switches.set({"duration_s": 20 * 3600})
    began, look = server.now, server.look
    cancelled: list[float] = []

    def ends_a_minute_later(batch: Any) -> None:
        cancelled.extend([server.now] if batch.cancelling else [])
        if not cancelled or server.now - cancelled[0] > 60:
            look(batch)

    monkeypatch.setattr(server, "look", ends_a_minute_later)
    bulk(tmp_path, server, by="2h", poll="5h")
    check_whole(tmp_path, server)
    assert server.now - began <= 2 * 3600 + 600


def test_an_equal_batch_of_another_job_is_not_taken_for_ours(tmp_path, monkeypatch):
    monkeypatch.setattr(batch_round, "LIST_LAG_S", 0.3)
    folders = [tmp_path / name for name in ("theirs", "ours")]
    with BatchServer("anthropic") as server:
        for folder in folders:
            folder.mkdir()
            table(folder)
        interrupt_waiting(folders[0], server, provider="anthropic", prompt="Shout {{text}}")
        create, lost = AnthropicBatches.create, iter([True])

        async def unclear(self: AnthropicBatches, batch: Any) -> Any:
            if next(lost, False):
                raise BatchUnclearError(Code.CONNECTION_LOST, "Lost.", "")
            return await create(self, batch)

        monkeypatch.setattr(AnthropicBatches, "create", unclear)
        bulk(folders[1], server, provider="anthropic")
        assert answers(folders[1]) == {f"text {n}": answer_to(f"Say text {n}") for n in range(ROWS)}
        bulk(folders[0], server, provider="anthropic", prompt="Shout {{text}}")
        assert answers(folders[0]) == {f"text {n}": answer_to(f"Shout text {n}") for n in range(ROWS)}
        assert set(server.billed.values()) == {1}
        assert not server.left_files()


def test_several_answers_are_refused_with_the_remedy(tmp_path, server):
    with pytest.raises(PromptmillError, match="leave out `n`, or send the rows live"):
        bulk(tmp_path, server, settings={"sampling_params.n": 3})
    assert not [*tmp_path.rglob("job.db")], "it is refused before there is a job"


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


@pytest.mark.thorough
def test_status_names_the_batches(tmp_path, server):
    server.switches.set({"polls": 9})
    seen: list[str] = []
    bulk(tmp_path, server, progress=lambda status: seen.append(json.dumps(status.get("batch", {}))))
    shown = [json.loads(text) for text in seen]
    assert any(batch.get("ids") and batch.get("requests") == ROWS for batch in shown)


@pytest.mark.features("labels")
def test_the_rows_that_a_strong_model_labels_go_by_batch(tmp_path, server):
    """The sample is sent live, because the next step follows from it."""
    table(tmp_path, 400)
    server.answers = lambda body: label(body["model"], prompt_of(body))[0]
    block = {"base_url": server.base_url, "api_key": "k"}
    models = {name: {"openai": {**block, "model_name": name}, **PRICE} for name in ("small", "strong")}
    given = {"model": "small", "sure": "strong", "choices": [*LABELS], "base_url": None, "api_key": None}

    found = bulk(tmp_path, server, **given, settings={"models": models}).status["sure"]

    assert server.creates == 1
    assert server.tokens["batch_answer"] == found["strong"] - found["sample"]["drawn"] > 0
    assert answers(tmp_path) == {f"text {n}": label("strong", f"text {n}")[0] for n in range(400)}
    assert not server.left_files()
    billed = server.billed.total()
    bulk(tmp_path, server, **given, settings={"models": models})
    assert server.billed.total() == billed
