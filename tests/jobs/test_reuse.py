"""Paid answers belong to the user: exported in any state, kept when the input or the settings change."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
from typing import Any

import pytest

from half_done import answers
from promptmill.files.files import InputFiles
from replies import answer, by_prompt, choose, late, status
from waiting import eventually


def halfway(bench: Any, *arguments: str, rows: int = 40) -> None:
    """Have a job that was killed after some of its rows."""
    bench.prompts(rows)
    bench.half_done(answers(0, rows // 2), *arguments)


def test_answers_are_exported_from_a_job_that_is_not_done(bench):
    halfway(bench)
    done = {record.row for record in bench.records()}
    exported = bench.jobs(str(bench.output), "--export", "some.jsonl")
    assert exported.returncode == 0, exported.stderr
    rows = [json.loads(line) for line in (bench.path / "some.jsonl").read_text().splitlines()]
    assert [row["id"] for row in rows] == [f"r{at}" for at in sorted(done)]
    assert all(row["answer"] == f"echo: {row['prompt']}" for row in rows)
    assert "exists" in bench.jobs(bench.folder.job_id, "--export", "some.jsonl").stderr
    bench.jobs(bench.folder.job_id, "--export", "all.jsonl", "--all")
    rows = [json.loads(line) for line in (bench.path / "all.jsonl").read_text().splitlines()]
    assert len(rows) == 40
    assert {row["error"]["code"] for row in rows if row["error"]} == {"deferred"}


@pytest.mark.thorough
def test_tables_are_exported_without_the_rows_that_failed(bench):
    bench.upstream.reply = by_prompt({"b": status(400, "no")}, answer())
    bench.input = bench.path / "in.csv"
    bench.input.write_text("prompt,k\na,1\nb,2\nc,3\n")
    bench.output = bench.path / "out.csv"
    bench.fail(code=1)
    assert bench.jobs(str(bench.output), "--export", "some.csv").returncode == 0
    with (bench.path / "some.csv").open() as file:
        assert [(row["k"], row["answer"]) for row in csv.DictReader(file)] == [("1", "echo: a"), ("3", "echo: c")]


@pytest.mark.thorough
def test_of_a_changed_input_only_what_is_new_is_asked(bench):
    rows = bench.prompts(40)
    bench.succeed()
    rows[3]["prompt"] = "another"
    rows[5]["label"] = "carried along"
    del rows[7]
    bench.write([*rows, {"id": "r40", "prompt": "appended"}])
    bench.succeed()
    assert sorted(seen.prompt for seen in bench.upstream.seen[40:]) == ["another", "appended"]
    assert [row["answer"] for row in bench.answers()] == [f"echo: {row['prompt']}" for row in bench.answers()]
    assert [row["id"] for row in bench.answers()] == [row["id"] for row in rows] + ["r40"]
    assert bench.answers()[5]["label"] == "carried along"
    assert "finished already" in bench.run().stderr


@pytest.mark.thorough
def test_an_input_with_a_new_time_is_digested_once_and_not_again(bench, monkeypatch):
    digests, sha256 = [], InputFiles.sha256

    def counted(files, *halt):
        digests.append(files)
        return sha256(files, *halt)

    bench.prompts(3)
    bench.succeed()
    monkeypatch.setattr(InputFiles, "sha256", counted)
    os.utime(bench.input, (1, 1))
    for _ in range(2):
        assert "finished already" in bench.run().stderr
    assert len(digests) == 1
    bench.prompts(4)
    bench.succeed()
    assert (len(digests), len(bench.answers())) == (2, 4)


@pytest.mark.thorough
def test_a_run_with_new_rows_that_is_killed_goes_on_and_pays_nothing_twice(bench):
    rows = bench.prompts(300)
    bench.succeed()
    bench.upstream.reply = choose(lambda seen: late(None) if seen.prompt.startswith("new") else answer())
    bench.write([{"id": "n", "prompt": f"new {at}"} for at in range(20)] + rows)
    process = bench.start()
    eventually(lambda: len(bench.upstream.seen) >= 310)
    process.kill()
    process.communicate()
    bench.upstream.reply = answer()
    bench.succeed()
    assert all(seen.prompt.startswith("new") for seen in bench.upstream.seen[300:])
    assert [row["answer"] for row in bench.answers()] == [f"echo: {row['prompt']}" for row in bench.answers()]


@pytest.mark.thorough
def test_rows_that_ask_the_same_keep_an_answer_each(bench):
    bench.upstream.reply = choose(lambda seen: answer(f"answer {seen.number}"))
    bench.write([{"prompt": "same"}] * 5)
    bench.succeed()
    before = [row["answer"] for row in bench.answers()]
    assert len(set(before)) == 5
    bench.write([{"prompt": "new"}, *[{"prompt": "same"}] * 5])
    bench.succeed()
    assert sorted(row["answer"] for row in bench.answers()[1:]) == sorted(before)


@pytest.mark.thorough
def test_another_output_and_format_reuse_the_answers_of_a_job(bench):
    bench.input = bench.path / "in.csv"
    bench.input.write_text("prompt\na\nb\n")
    bench.output = bench.path / "out.csv"
    bench.succeed()
    first, bench.output = bench.output, bench.path / "other.jsonl"
    bench.succeed("--from", str(first))
    assert [row["answer"] for row in bench.answers()] == ["echo: a", "echo: b"]
    assert len(bench.upstream.seen) == 2
    stamp = bench.output.stat().st_mtime_ns
    bench.succeed("--from", str(first))
    assert bench.output.stat().st_mtime_ns == stamp, "no row lacks an answer"


def test_answers_without_a_new_field_are_asked_and_not_taken_from_another_job(bench):
    bench.upstream.reply = answer('{"mood": "good"}')
    bench.prompts(2)
    bench.succeed("--schema", "mood:good|bad")
    first, bench.output = bench.output, bench.path / "other.jsonl"
    bench.upstream.reply = answer('{"mood": "bad", "place": "sea"}')
    said = bench.run("--schema", "mood:good|bad,place", "--from", str(first))
    assert (said.returncode, "which are used" in said.stdout) == (0, False), said.stderr
    assert [row["answer"] for row in bench.answers()] == [{"mood": "bad", "place": "sea"}] * 2
    other, bench.output = bench.output, bench.path / "third.jsonl"
    said = bench.run("--schema", "mood:good|bad|so,place", "--from", str(first), "--from", str(other))
    assert re.findall("of job ([a-z]+)-.*, which are used, were made with another sampling", said.stdout) == ["other"]
    assert [row["answer"] for row in bench.answers()] == [{"mood": "bad", "place": "sea"}] * 2
    assert len(bench.upstream.seen) == 4


def test_another_jobs_answers_take_the_place_of_failures_of_an_unchanged_input(bench):
    rows = bench.prompts(3)
    own, bench.output = bench.output, bench.path / "other.jsonl"
    bench.succeed()
    other, bench.output = bench.output, own
    bench.upstream.reply = choose(lambda seen: status(400, "no") if seen.prompt == rows[1]["prompt"] else answer())
    bench.fail(code=1)
    sent = len(bench.upstream.seen)
    found = bench.succeed("--from", str(other))
    assert (found["answered"], found["failed"], len(bench.upstream.seen)) == (3, 0, sent)
    assert [row["answer"] for row in bench.answers()] == [f"echo: prompt {at}" for at in range(3)]


@pytest.mark.thorough
def test_overwrite_takes_the_place_of_a_foreign_file_and_goes_on(bench):
    halfway(bench)
    sent, done = len(bench.upstream.seen), len(bench.records())
    bench.output.write_text("precious")
    assert "is not this job's own output" in bench.fail()
    bench.succeed("--overwrite")
    assert len(bench.answers()) == 40
    assert len(bench.upstream.seen) == sent + 40 - done


@pytest.mark.thorough
def test_lines_that_are_appended_while_it_runs_are_left_and_done_later(bench):
    bench.upstream.reply = late(0.02, answer())
    rows = [{"id": at, "prompt": f"prompt {at}", "carried": "x" * 500} for at in range(1500)]
    bench.write(rows)
    process = bench.start("--json")
    eventually(lambda: len(bench.upstream.seen) > 100)
    with bench.input.open("a") as file:
        file.write('{"id": 1500, "prompt": "more"}\n')
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert json.loads(out)["total"] == 1500
    assert [row["id"] for row in bench.answers()] == [row["id"] for row in rows]
    sent = len(bench.upstream.seen)
    assert sent == 1500
    assert "1,500 of 1,501 rows keep their answers, 1 is new." in bench.succeed()["warnings"]
    assert len(bench.answers()) == 1501
    assert [seen.prompt for seen in bench.upstream.seen[sent:]] == ["more"]


@pytest.mark.parametrize(
    ("arguments", "said", "noted_as"),
    [
        (["--set", "sampling_params.temperature=0.5"], "other settings (temperature was not set, now 0.5)", "sampling"),
        (["--set", "backend_configs.openai.enable_thinking=true"], "another enable thinking", "enable_thinking"),
    ],
)
def test_a_change_of_settings_is_accepted_when_asked_for_and_noted(bench, arguments, said, noted_as):
    halfway(bench)
    done = {record.row for record in bench.records()}
    assert f"was begun with {said}" in " ".join(bench.fail(*arguments).split())
    bench.succeed(*arguments, "--keep")
    noted = {at for at, row in enumerate(bench.answers()) if row.get("changed") == [noted_as]}
    assert noted == set(range(40)) - done


@pytest.mark.thorough
def test_other_choices_are_named_before_the_command_that_sends_all(bench):
    bench.upstream.reply = answer('{"answer": "good"}')
    bench.prompts(2)
    bench.succeed("--choices", "good,bad")
    said = " ".join(bench.fail("--choices", "good,bad,new").split())
    assert "with other settings (the choices are others). `promptmill bulk" in said
    assert "--keep keeps the old answers" in said
    for options in [(), ("--keep",)]:
        said = " ".join(bench.fail("--choices", "bad,new", *options).split())
        assert "(the choices are others). Not all of its answers have the new form, so none can be kept." in said
    bench.succeed("--choices", "good,bad,new", "--keep")
    assert len(bench.upstream.seen) == 2


@pytest.mark.parametrize("options", [(), ("--keep",)])
def test_answers_without_a_new_column_are_not_kept_and_a_command_adds_the_column(bench, options):
    bench.upstream.reply = answer('{"mood": "good"}')
    bench.prompts(2)
    bench.output = bench.path / "out.csv"
    bench.succeed("--schema", "mood:good|bad")
    said = " ".join(bench.fail("--schema", "mood:good|bad,place", *options).split())
    assert "(the column place is new). Not all of its answers have the new form, so none can be kept." in said
    assert "--keep" not in said
    assert "--again all` asks all rows again. Another output leaves this one as it is." in said
    assert "out.csv as input, another output, --prompt" in said
    assert "--answer-column place" in said
    said = " ".join(bench.fail("--schema", "mood:good|so,place").split())
    assert "(the column place is new, the column mood has another form)" in said
    assert "--answer-column" not in said
    assert len(bench.upstream.seen) == 2


def test_rows_that_are_asked_with_another_prompt_beside_kept_answers_note_it(bench):
    bench.write([{"text": name} for name in "ab"])
    bench.succeed("--prompt", "Good? {{text}}")
    bench.write([{"text": name} for name in "abc"])
    bench.succeed("--prompt", "Really good? {{text}}", "--keep")
    noted = [(row["answer"], row.get("changed")) for row in bench.answers()]
    assert noted == [("echo: Good? a", None), ("echo: Good? b", None), ("echo: Really good? c", ["prompt"])]
    bench.succeed("--prompt", "Really good? {{text}}")
    assert len(bench.upstream.seen) == 3


@pytest.mark.thorough
def test_answers_that_were_cut_short_are_counted_and_done_again(bench):
    bench.upstream.reply = by_prompt({"prompt 3": answer("half", finish_reason="length")}, answer())
    bench.prompts(10)
    assert "truncated 1 by max_tokens" in bench.run().stdout
    bench.upstream.reply = answer()
    found = bench.succeed("--again", "truncated", "--max-tokens", "500")
    assert (found["truncated"], len(bench.upstream.seen)) == (0, 11)
    assert bench.upstream.seen[-1].json["max_tokens"] == 500
    assert bench.answers()[3]["answer"] == "echo: prompt 3"


@pytest.mark.parametrize("again", ["failed", "truncated"])
def test_answers_that_were_cut_before_their_first_word_fail_and_are_done_again_with_more_room(bench, again):
    cut = answer("", message={"reasoning_content": "hm"}, finish_reason="length")
    bench.upstream.reply = by_prompt({f"prompt {n}": cut for n in range(12)}, answer())
    bench.prompts(60)
    said = bench.fail(code=1)
    assert "12 truncated" in said
    assert "--max-tokens 4096 --again truncated gives the cut rows more room" in said
    assert "max_tokens" not in bench.upstream.seen[0].json, "the user set none"
    bench.upstream.reply = answer()
    found = bench.succeed("--again", again, "--max-tokens", "4096")
    assert (found["answered"], len(bench.upstream.seen)) == (60, 72)


@pytest.mark.thorough
@pytest.mark.parametrize(("cut", "is_told"), [(10, False), (11, True)])
def test_a_job_whose_first_answers_are_cut_says_so_while_it_runs(bench, cut, is_told):
    replies = {f"prompt {n}": answer("" if n % 2 else "half", finish_reason="length") for n in range(cut)}
    bench.upstream.reply = by_prompt(replies, answer())
    bench.prompts(51)
    said = bench.run(concurrency=1).stderr
    assert ("note: 11 of the first 50 answers were cut" in said) == is_told


@pytest.mark.thorough
@pytest.mark.parametrize(
    "change",
    [
        ("--max-tokens", "20"),
        ("--set", "extra_params.max_completion_tokens=20"),
        ("--set", "sampling_params.max_tokens=9"),
    ],
)
def test_the_longest_answer_is_no_part_of_a_question(bench, change):
    halfway(bench, "--max-tokens", "512")
    sent, done = len(bench.upstream.seen), len(bench.records())
    bench.succeed(*change)
    assert len(bench.upstream.seen) == sent + 40 - done, "no answer is paid twice"
    assert not any("changed" in row for row in bench.answers())


@pytest.mark.thorough
def test_a_job_moves_with_its_files(bench):
    halfway(bench)
    sent, done = len(bench.upstream.seen), len(bench.records())
    moved = bench.path.parent / "moved"
    job_id = bench.folder.job_id
    bench.path.rename(moved)
    bench.path, bench.input, bench.output = moved, moved / "in.jsonl", moved / "out.jsonl"
    assert bench.folder.job_id == job_id
    found = json.loads(bench.jobs("out.jsonl", "--json").stdout)
    assert (found["job_id"], found["input_file"]) == (job_id, str(bench.input))
    bench.succeed()
    assert len(bench.upstream.seen) == sent + 40 - done
    assert json.loads(bench.jobs("--json").stdout)["jobs"][0]["output_file"] == str(bench.output)


@pytest.mark.thorough
def test_a_copy_of_a_job_goes_on_as_a_job_of_its_own(bench):
    halfway(bench)
    original, sent, done = bench.path, len(bench.upstream.seen), len(bench.records())
    job_id, bench.path = bench.folder.job_id, bench.path.parent / "copy"
    shutil.copytree(original, bench.path)
    bench.input, bench.output = bench.path / "in.jsonl", bench.path / "out.jsonl"
    bench.succeed()
    assert len(bench.upstream.seen) == sent + 40 - done, "with the answers so far"
    found = {job["job_id"]: job["output_file"] for job in json.loads(bench.jobs("--json").stdout)["jobs"]}
    assert found.pop(job_id) == str(original / "out.jsonl")
    assert found == {bench.folder.job_id: str(bench.output)}


@pytest.mark.thorough
def test_a_state_folder_holds_the_job_instead(bench):
    bench.prompts(5)
    bench.succeed("--state", "state")
    assert not bench.folder.path.exists()
    (folder,) = (bench.path / "state" / "jobs").iterdir()
    assert (folder / "job.db").exists()
    assert "finished already" in bench.run("--state", "state").stderr
    listed = bench.jobs("--state", "state")
    assert folder.name in listed.stdout
