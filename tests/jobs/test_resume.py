"""What a job may go on with, and what it refuses to mix."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from typing import Any

import pytest

from half_done import answers
from promptmill.backends.protocol import Call, Failure
from promptmill.core.errors import Code, PromptmillError
from promptmill.jobs.store.progress import Progress
from promptmill.jobs.store.statistics import JobCounts
from replies import answer, attempts, by_prompt, choose, html, late, quota, reset, status
from waiting import PATIENCE_S, eventually

posix = pytest.mark.skipif(sys.platform == "win32", reason="signals")

LOST = 32 + 64  # in flight at a kill, and not written yet


def stop_halfway(bench: Any, rows: int = 200) -> None:
    """Have a job that was killed after half of its rows."""
    bench.prompts(rows)
    bench.half_done(answers(0, rows // 2))


def several_blocks(bench: Any) -> list[dict[str, Any]]:
    """Write and return rows that are read in several goes."""
    rows = [{"id": at, "prompt": f"prompt {at}", "carried": "x" * 500} for at in range(1500)]
    bench.write(rows)
    return rows


@pytest.mark.thorough
def test_a_finished_job_says_so_and_sends_nothing(bench: Any) -> None:
    bench.prompts(20)
    bench.succeed()
    result = bench.run()
    assert result.returncode == 0
    assert "finished already" in result.stderr
    assert len(bench.upstream.seen) == 20


@pytest.mark.thorough
def test_an_output_that_was_removed_is_made_again_from_the_answers(bench: Any) -> None:
    bench.prompts(20)
    bench.succeed()
    bench.output.unlink()
    bench.succeed()
    assert len(bench.answers()) == len(bench.upstream.seen) == 20


@pytest.mark.thorough
@pytest.mark.parametrize("change", ["longer", "same size"])
def test_a_changed_input_sends_what_is_new_in_it(bench: Any, change: str) -> None:
    stop_halfway(bench)
    answered = {record.row for record in bench.records()}
    text = bench.input.read_text()
    bench.input.write_text(
        text + '{"prompt": "more"}\n' if change == "longer" else text.replace('"prompt 7"', '"prompt x"')
    )
    sent = len(bench.upstream.seen)
    found = bench.succeed()
    again = 200 - len(answered) + (1 if change == "longer" else 7 in answered)
    assert len(bench.upstream.seen) - sent == again
    assert f"{len(answered) - (change != 'longer' and 7 in answered)} of" in found["warnings"][0]
    assert [row["answer"] for row in bench.answers()] == [f"echo: {row['prompt']}" for row in bench.answers()]


@pytest.mark.thorough
def test_a_round_that_sends_every_row_does_not_say_that_rows_keep_their_answers(bench: Any) -> None:
    bench.prompts(3)
    bench.succeed("--prompt", "Is {{prompt}} good?")
    assert not bench.succeed("--prompt", "Is {{prompt}} bad?", "--again", "all").get("warnings")
    assert len(bench.upstream.seen) == 6


@pytest.mark.thorough
def test_an_input_that_loses_most_answers_is_refused_unless_it_is_meant(bench: Any) -> None:
    rows = bench.prompts(40)
    bench.succeed()
    text, made = bench.input.read_text(), bench.output.read_bytes()
    bench.write([{"prompt": f"other {at}"} for at in range(30)] + rows[:10])
    said = bench.fail()
    assert "keeps 10 of the 40 answers of job" in said
    assert "--keep keeps the old answers, and asks the other rows" in said
    assert (bench.output.read_bytes(), len(bench.upstream.seen)) == (made, 40)
    changed = bench.input.read_text()
    bench.input.write_text(text)
    bench.succeed()
    assert (bench.output.read_bytes(), len(bench.upstream.seen)) == (made, 40)
    bench.input.write_text(changed)
    # the rows beyond a limit are not sent, new or not
    assert "10 of 40 rows keep their answers." in bench.succeed("--keep", "--limit", "20")["warnings"][0]
    assert len(bench.upstream.seen) == 60
    bench.succeed("--keep")
    assert len(bench.upstream.seen) == 70
    bench.input.write_text(text)  # its answers were spare
    assert "40 of 40 rows keep their answers, 0 are new" in bench.succeed()["warnings"][0]
    assert len(bench.upstream.seen) == 70
    bench.write(rows[:10])  # fewer rows send nothing
    bench.succeed()
    assert len(bench.upstream.seen) == 70


@pytest.mark.thorough
def test_an_input_that_was_only_touched_goes_on(bench: Any) -> None:
    stop_halfway(bench)
    answered = [record.row for record in bench.records()]
    os.utime(bench.input, (1, 1))
    found = bench.succeed()
    assert len(bench.upstream.seen) == 200 - len(answered), "no row is sent again"
    assert found["warnings"] == [], "it was not read and bound again"
    assert [row["answer"] for row in bench.answers()] == [f"echo: prompt {at}" for at in range(200)]


@pytest.mark.thorough
def test_deleting_the_input_during_the_run_loses_nothing(bench: Any) -> None:
    bench.upstream.reply = late(0.02, answer())
    rows = several_blocks(bench)
    process = bench.start("--json")
    eventually(lambda: len(bench.upstream.seen) > 100)
    bench.input.unlink()
    out, err = process.communicate(timeout=180)
    assert process.returncode == 0, err
    assert json.loads(out)["done"] == len(rows)
    assert [row["id"] for row in bench.answers()] == [row["id"] for row in rows]


@pytest.mark.thorough
def test_an_input_that_is_edited_during_the_run_changes_nothing(bench: Any) -> None:
    bench.upstream.reply = late(0.02, answer())
    rows = several_blocks(bench)
    process = bench.start()
    eventually(lambda: len(bench.upstream.seen) > 100)
    with bench.input.open("r+") as file:
        file.write('{"id": 7,')
    process.communicate(timeout=180)
    assert process.returncode == 0
    assert [row["id"] for row in bench.answers()] == [row["id"] for row in rows]


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--set", "backend_configs.openai.model_name=other"], "another model"),
        (["--set", "sampling_params.temperature=0.5"], "other settings"),
        (["--system", "Be brief."], "another system prompt"),
        (["--set", "backend_configs.openai.dialect=responses"], "another dialect"),
        (["--set", "backend_configs.openai.provider=vllm"], "another provider"),
    ],
)
def test_answers_of_different_settings_are_not_mixed(bench: Any, arguments: list[str], named: str) -> None:
    stop_halfway(bench)
    assert f"was begun with {named}" in bench.fail(*arguments)
    assert bench.succeed(*arguments, "--again", "all")["requests"] == 100 + 200
    assert len(bench.upstream.seen) == 200


def test_a_foreign_output_is_not_overwritten_unless_asked_for(bench: Any) -> None:
    bench.prompts(5)
    bench.output.write_text("precious")
    assert "is not this job's own output" in bench.fail()
    assert bench.output.read_text() == "precious"
    assert not bench.upstream.seen
    bench.succeed("--overwrite")
    assert len(bench.answers()) == 5


def test_an_output_that_was_edited_is_not_overwritten(bench: Any) -> None:
    bench.prompts(5)
    bench.succeed()
    bench.output.write_text("edited")
    assert "was changed after the job wrote it" in bench.fail()


@pytest.mark.thorough
def test_a_file_that_takes_the_name_during_the_run_is_not_overwritten(bench: Any) -> None:
    bench.upstream.reply = late(0.05, answer())
    bench.prompts(200)
    process = bench.start()
    eventually(lambda: len(bench.upstream.seen) > 50)
    bench.output.write_text("precious")
    process.communicate(timeout=180)
    assert process.returncode == 2
    assert bench.output.read_text() == "precious"
    assert not list(bench.path.glob(".*partial"))
    bench.output.unlink()
    bench.succeed()
    assert len(bench.upstream.seen) == 200


def test_two_processes_cannot_run_one_job(bench: Any) -> None:
    bench.upstream.reply = late(None)
    bench.prompts(50)
    first = bench.start()
    eventually(lambda: len(bench.upstream.seen) > 5)
    assert "is running already" in bench.fail()
    assert first.poll() is None
    assert bench.upstream.attempts.most_common(1)[0][1] == 1


@pytest.mark.thorough
def test_retryable_failures_are_taken_up_again_with_their_attempts(bench: Any) -> None:
    bench.upstream.reply = by_prompt({"prompt 3": attempts(*[status(500)] * 3, answer())})
    bench.prompts(10)
    result = bench.run("--json")
    assert result.returncode == 1
    assert json.loads(result.stdout)["errors"] == {"server_error": 1}
    assert bench.answers()[3]["error"]["attempts"] == 3
    assert bench.answers()[3]["answer"] == ""
    assert "finished already" in bench.fail(code=1)
    found = bench.succeed("--again", "failed")
    assert bench.answers()[3]["answer"] == "echo: prompt 3"
    assert len(bench.upstream.seen) == 9 + 3 + 1
    assert (found["requests"], found["retries"]) == (13, 3)


@pytest.mark.thorough
def test_a_round_that_was_killed_goes_on_with_any_command(bench: Any) -> None:
    bench.upstream.reply = by_prompt({f"prompt {at}": status(400) for at in (3, 4)})
    bench.prompts(10)
    bench.fail(code=1)
    bench.half_done(answers(3, 4), "--again", "failed")
    bench.upstream.reply = answer()
    assert bench.succeed()["failed"] == 0
    assert bench.upstream.attempts["prompt 3"] == 1
    assert bench.upstream.attempts["prompt 4"] == 2


def test_a_run_of_several_rounds_counts_each_request_once(bench: Any) -> None:
    bench.upstream.reply = by_prompt({"prompt 3": status(400)})
    bench.prompts(10)
    bench.fail("--limit", "5", code=1)
    bench.upstream.reply = by_prompt({"prompt 9": status(400)})
    bench.fail("--again", "failed", "--max-failures", "0", code=1, concurrency=1)
    found = bench.status()
    assert (found["state"], found["round"]) == ("stopped", "first")  # the second round of this run
    assert found["requests"] == len(bench.upstream.seen) == 5 + 1 + 5


@pytest.mark.thorough
def test_an_interrupted_job_takes_up_its_retryable_failures(bench: Any) -> None:
    bench.prompts(30)
    failed = Failure(PromptmillError(Code.SERVER_ERROR, "status 500"), attempts=3)
    bench.half_done({0: failed, **answers(1, 10)})
    found = bench.succeed()
    assert bench.upstream.attempts["prompt 0"] == 1
    assert len(bench.upstream.seen) == 21
    assert found["requests"] == 3 + 9 + 21


@pytest.mark.thorough
@pytest.mark.parametrize("refusal", [status(401), quota()])
def test_a_refused_key_stops_the_job_and_costs_no_row(bench: Any, refusal: Any) -> None:
    bench.upstream.reply = choose(lambda seen: answer() if seen.number <= 50 else refusal)
    bench.prompts(400)
    bench.fail(code=1)
    found = bench.status()
    assert found["state"] == "stopped"
    assert found["failed"] == 0
    assert len(bench.upstream.seen) < 200  # several refusals in a row, and what was in flight
    bench.upstream.reply = answer()
    bench.succeed()
    assert len(bench.answers()) == 400


@pytest.mark.thorough
@pytest.mark.parametrize("rows", [1, 2, 400])
@pytest.mark.parametrize(
    ("left", "said"),
    [(None, "refused the connection"), (reset(), "closed the connection"), (html(502), "502"), (status(503), "503")],
    ids=["none", "listener", "proxy", "gateway"],
)
def test_an_endpoint_that_is_gone_stops_a_job_of_any_length(bench: Any, left: Any, said: str, rows: int) -> None:
    """`left`: what still answers at its address."""
    bench.prompts(rows)
    if left is None:
        bench.upstream.vanish()
    else:
        bench.upstream.reply = left
    bench.fail(code=75)  # trying again may help
    found = bench.status()
    assert found["state"] == "stopped"
    assert said in found["reason"]
    assert (found["done"], found["failed"]) == (0, 0)
    if left is None:
        bench.upstream.come_back()
    else:
        bench.upstream.reply = answer()
    bench.succeed()


def test_a_row_that_always_loses_its_connection_costs_only_its_own_answer(bench: Any) -> None:
    bench.upstream.reply = by_prompt({"prompt 0": reset()}, answer())
    bench.prompts(3)
    bench.fail(code=1, concurrency=1)
    found = bench.status()
    assert (found["state"], found["done"], found["errors"]) == ("finished", 3, {"connection_lost": 1})
    bench.fail("--again", "failed", code=1)  # alone, it still is no sign that the endpoint is gone
    assert (bench.status()["state"], bench.status()["errors"]) == ("finished", {"connection_lost": 1})


@pytest.mark.thorough
def test_max_failures_stops_early(bench: Any) -> None:
    bench.upstream.reply = choose(lambda seen: answer() if seen.number % 3 == 0 else status(400, "malformed"))
    bench.prompts(1000)
    said = bench.fail("--max-failures", "20", code=1)
    assert "more than --max-failures allows" in said
    assert len(bench.upstream.seen) < 100
    bench.upstream.reply = answer()
    assert bench.succeed("--again", "failed")["done"] == 1000


def test_max_failures_as_a_share(bench: Any) -> None:
    bench.upstream.reply = choose(lambda seen: status(400) if seen.number % 4 == 0 else answer())
    bench.prompts(1000)
    bench.fail("--max-failures", "10%", code=1)
    assert len(bench.upstream.seen) < 120
    assert "neither a number nor a share" in bench.fail("--max-failures", "many")


@pytest.mark.thorough
def test_a_limit_can_be_raised_later(bench: Any) -> None:
    bench.prompts(50)
    bench.succeed("--limit", "10")
    assert [row["id"] for row in bench.answers()] == [f"r{at}" for at in range(10)]
    bench.succeed()
    assert len(bench.answers()) == len(bench.upstream.seen) == 50


@pytest.mark.thorough
@posix
@pytest.mark.parametrize("point", ["merging", "before-rename", "after-rename"])
def test_a_job_killed_while_it_replaces_its_own_output_goes_on(bench: Any, point: str) -> None:
    bench.prompts(50)
    bench.succeed("--limit", "10")
    for _ in range(2 if point != "after-rename" else 1):
        assert bench.run(killed_at=point).returncode == -signal.SIGKILL
    bench.succeed()
    assert len(bench.answers()) == len(bench.upstream.seen) == 50
    bench.output.write_text("precious")
    assert "was changed after the job wrote it" in bench.fail("--limit", "20")


@pytest.mark.thorough
@posix
def test_ctrl_c_sends_nothing_more_and_waits_for_what_is_in_flight(bench: Any) -> None:
    """One job lost its window of fifty at each Ctrl-C, and paid for it twice."""
    asked = threading.Event()
    bench.upstream.reply = choose(lambda seen: answer() if seen.number <= 100 or asked.is_set() else late(0.1))
    bench.prompts(5000)
    process = bench.start(adaptive=False)
    eventually(lambda: len(bench.upstream.seen) > 150)
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 130
    assert said.startswith("in.jsonl → out.jsonl: interrupted after ")
    assert bench.status()["done"] == len(bench.upstream.seen) < 5000
    asked.set()
    bench.succeed()
    assert len(bench.upstream.seen) == 5000


@pytest.mark.thorough
@posix
@pytest.mark.parametrize(("numbers", "code"), [([signal.SIGTERM], 143), ([signal.SIGINT, signal.SIGINT], 130)])
def test_a_signal_leaves_the_job_interrupted(bench: Any, numbers: list[int], code: int) -> None:
    bench.upstream.reply = choose(lambda seen: answer() if seen.number <= 100 else late(None))
    bench.prompts(500)
    process = bench.start()
    eventually(lambda: len(bench.upstream.seen) > 100)
    process.send_signal(numbers[0])
    for number in numbers[1:]:
        eventually(lambda: "finishing" in bench.status()["activity"])
        process.send_signal(number)
    said, _ = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == code
    assert said.startswith("in.jsonl → out.jsonl: interrupted after ")
    assert "answers are kept" in said
    assert bench.status()["state"] == "interrupted"
    eventually(lambda: not bench.upstream.open)  # the last requests of the process have arrived
    done = bench.status()["done"]
    sent = len(bench.upstream.seen)
    assert sent - done <= LOST
    bench.upstream.reply = answer()
    bench.succeed()
    assert len(bench.upstream.seen) == 500 + sent - done


@pytest.mark.thorough
@posix
def test_figures_of_a_job_hold_over_its_runs(bench: Any) -> None:
    bench.upstream.reply = choose(lambda seen: answer() if seen.number <= 100 else late(None))
    rows = bench.prompts(300)
    process = bench.start(adaptive=False)
    eventually(lambda: len(bench.upstream.seen) == 100 + 32)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=PATIENCE_S)
    assert bench.status()["done"] == 100
    text = bench.input.read_text()
    bench.write([{"id": row["id"], "prompt": row["prompt"].replace("prompt", "PROMPT")} for row in rows])
    said = bench.fail()
    assert "keeps 0 of the 100 answers" in said
    assert bench.status()["done"] == 100
    bench.input.write_text(text)
    bench.upstream.reply = answer()
    found = bench.succeed()
    assert found["requests"] == len(bench.upstream.seen) == 300 + 32
    assert found["retries"] == 0


def test_rates_are_those_of_this_run() -> None:
    progress = Progress(JobCounts(), Call())
    progress.total = 2_000_000
    progress.sample()
    progress.counts.done = 1_000_000  # by earlier runs, found in the journal
    progress.begin_rates()
    assert progress.rates() == (0.0, 0.0)
    assert progress.eta_s() is None


@pytest.mark.thorough
def test_a_row_that_moves_keeps_its_newest_answer(bench: Any) -> None:
    bench.upstream.reply = answer("old")
    bench.write([{"prompt": "a"}, {"prompt": "b"}])
    bench.succeed()
    bench.upstream.reply = answer("new")
    bench.succeed("--again", "all")
    bench.write([{"prompt": "c"}, {"prompt": "b"}, {"prompt": "a"}])
    bench.succeed()
    assert [row["answer"] for row in bench.answers()] == ["new", "new", "new"]
    assert len(bench.upstream.seen) == 5
