"""`promptmill jobs JOB --rows`: rows of a job and of any other file."""

from __future__ import annotations

import json
import os
import pty
import sys
from typing import Any

import pytest

from forked import started
from replies import answer, choose, late, status
from waiting import PATIENCE_S, eventually


def shown(bench: Any, *arguments: str, code: int = 0) -> str:
    """Return what `promptmill jobs JOB --rows` prints."""
    done = bench.here([sys.executable, "-m", "promptmill", "jobs", arguments[0], "--rows", *arguments[1:]])
    assert done.returncode == code, done.stderr
    return str(done.stdout if code == 0 else done.stderr)


def rows(bench: Any, *arguments: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(shown(bench, *arguments, "--json"))["rows"]
    return found


@pytest.mark.thorough
def test_each_prompt_is_above_its_answer_and_a_seed_gives_the_same_rows(bench):
    bench.prompts(100)
    bench.succeed()
    text = shown(bench, str(bench.output), "--seed", "7")
    title, *lines = [line for line in text.splitlines() if line]
    assert title == "in.jsonl → out.jsonl: 5 of 100 rows, at random (--seed 7)"
    assert [line.split()[0] for line in lines] == ["row", "prompt", "answer"] * 5
    for row, prompt, reply in zip(*[iter(lines)] * 3, strict=True):
        number = int(row.split()[1]) - 1
        assert prompt.split(maxsplit=1)[1] == f"prompt {number}"
        assert reply.split(maxsplit=1)[1] == f"echo: prompt {number}"
    assert shown(bench, bench.folder.job_id, "--seed", "7") == text
    samples = {tuple(row["row"] for row in rows(bench, str(bench.output), "--seed", str(seed))) for seed in range(9)}
    assert len(samples) == 9
    assert len(rows(bench, str(bench.output), "--rows", "200")) == 100


@pytest.mark.thorough
def test_failed_rows_come_first(bench):
    bench.upstream.reply = choose(lambda seen: status(400, "no") if seen.prompt.endswith("7") else answer())
    bench.prompts(30)
    bench.fail(code=1)
    found = rows(bench, str(bench.output), "--failed", "--rows", "4")
    assert [row["row"] for row in found[:3]] == [8, 18, 28]
    assert [row["error"]["code"] for row in found[:3]] == ["bad_request"] * 3
    assert found[3]["error"] is None
    text = shown(bench, str(bench.output), "--failed", "--rows", "1")
    assert "row 8\n  prompt  prompt 7\n  error   bad_request: " in text


def test_the_rows_of_a_running_job(bench):
    bench.upstream.reply = choose(lambda seen: answer() if seen.number <= 50 else late(None))
    bench.write(["id,text", *(f"{at},word {at}" for at in range(200))], "in.csv")
    bench.output = bench.path / "out.csv"
    bench.start("--prompt", "Is it good? {{text}}")
    eventually(lambda: len(bench.upstream.seen) > 60)
    eventually(lambda: len(bench.records()) == 50)
    found = rows(bench, str(bench.output), "--rows", "60")
    assert len(found) == 50
    assert {row["prompt"] for row in found} <= {f"Is it good? word {at}" for at in range(200)}
    assert all(row["answer"] == f"echo: {row['prompt']}" for row in found)


def test_turns_images_and_settings_of_rows(bench):
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Name one."}]
    bench.write([{"messages": turns}, {"prompt": "What is it?", "image": "data:image/png;base64,xx"}])
    bench.run()
    first, second = rows(bench, str(bench.output))
    assert first["prompt"] == turns
    assert second["error"]["code"] == "invalid_image"
    text = shown(bench, str(bench.output))
    assert "  system  Be brief.\n  user    Name one.\n  answer  " in text


@pytest.mark.thorough
@pytest.mark.parametrize("is_deleted", [False, True])
def test_a_changed_or_deleted_input_leaves_questions_and_answers(bench, is_deleted):
    bench.prompts(3)
    bench.succeed()
    if is_deleted:
        bench.input.unlink()
    else:
        bench.input.write_text("{}\n")
    done = bench.here([sys.executable, "-m", "promptmill", "jobs", str(bench.output), "--rows"])
    assert (done.returncode, done.stderr) == (0, "")
    for at in range(3):
        assert f"row {at + 1}\n  prompt  prompt {at}\n  answer  echo: prompt {at}\n" in done.stdout


@pytest.mark.parametrize("name", ["labels.csv", "labels.jsonl", "labels.json"])
def test_a_file_that_no_job_made(bench, name):
    found = [{"text": f"text {at}", "answer": f"answer {at}", "error": ""} for at in range(20)]
    found[12] |= {"answer": "", "error": "timeout: too slow"}
    path = bench.path / name
    if name.endswith("csv"):
        path.write_text("text,answer,error\n" + "".join(",".join(row.values()) + "\n" for row in found))
    elif name.endswith("jsonl"):
        path.write_text("".join(json.dumps(row) + "\n" for row in found))
    else:
        path.write_text(json.dumps(found))
    text = shown(bench, str(path), "--rows", "2", "--failed", "--seed", "1")
    assert text.startswith(
        f"{name}: 2 of 20 rows, failed ones first, at random (--seed 1)\n\nrow 13\n  text    text 12\n"
    )
    assert "  error   timeout: too slow\n\nrow " in text
    assert len(rows(bench, str(path), "--rows", "50")) == 20


@pytest.mark.thorough
def test_the_text_of_a_row_is_above_its_answer_and_its_id_comes_last(bench):
    bench.write(["id,team,text,answer", f"{'x' * 40},a,short,yes", f"{'x' * 40},{'b' * 30},{'long ' * 9},no"], "in.csv")
    lines = shown(bench, str(bench.input)).splitlines()
    assert [line.split()[0] for line in lines if line.startswith("  ")] == ["text", "answer", "team", "id"] * 2
    bench.output = bench.path / "out.csv"
    bench.succeed("--prompt", "{{text}}", "--model", "small", "--model", "good")
    lines = shown(bench, str(bench.output)).splitlines()
    assert [line.split()[0] for line in lines if line.startswith("  ")] == ["prompt", "answer", "model", "variant"] * 4


def test_a_list_in_a_file_is_shown_as_people_write_it(bench):
    bench.write([{"text": "It was a soup of the day.", "tags": ["Alpha", "Beta"], "answer": '["Gamma",5]'}], "in.jsonl")
    text = shown(bench, str(bench.input))
    assert "  answer  Gamma; 5\n  tags    Alpha; Beta\n" in text


def test_what_is_neither_file_nor_job(bench):
    assert "There is no file nix.csv, and no job with this output: check the path." in shown(bench, "nix.csv", code=2)
    assert "There is no job 'nix'; there are no jobs." in shown(bench, "nix", code=2)


def test_a_misspelt_job_is_suggested_and_else_those_of_the_folder_are_named(bench):
    bench.prompts(1)
    bench.output = bench.path / "labels.csv"
    bench.succeed()
    assert "There is no job 'lables.csv'; did you mean labels.csv?" in bench.jobs("lables.csv").stderr
    assert "There is no job 'nix'; jobs of this folder: labels.csv." in bench.jobs("nix").stderr
    other = bench.path / "other"
    other.mkdir()
    said = bench.here(bench.command("nix", command="jobs"), other).stderr
    assert "There is no job 'nix'; `promptmill jobs` lists the jobs of other folders." in said


@pytest.mark.skipif(sys.platform == "win32", reason="a terminal")
def test_a_terminal_gets_a_pager_and_no_control_sequences(bench):
    bench.upstream.reply = answer("\x1b[2Jwords " * 60)
    bench.prompts(4)
    bench.succeed()
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "PAGER": "sed s/^/P/", "LINES": "12", "COLUMNS": "60"}
    command = [sys.executable, "-m", "promptmill", "jobs", str(bench.output), "--rows"]
    process = started(command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment, cwd=bench.path)
    os.close(theirs)
    text = b""
    try:
        while data := os.read(ours, 65536):
            text += data
    except OSError:
        pass
    assert process.wait(timeout=PATIENCE_S) == 0
    os.close(ours)
    lines = text.decode().splitlines()
    assert len(lines) > 20
    assert all(line.startswith("P") for line in lines), "all of it went through the pager"
    assert "\x1b[2J" not in text.decode()
