"""`promptmill improve`: its jobs, its files, its money, and what is left after kills."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections import Counter
from typing import Any

import pytest

import killed
import promptmill
from prompt_writers import LABELS, models, truth
from promptmill.core.errors import PromptmillError
from promptmill.jobs.store.index import JobFolders
from replies import choose, late, status
from waiting import eventually

ROWS = 200
PROMPT = "Is it positive? {{text}}"
ONE_KILL = 64 + 8
"""The requests that a kill may have sent twice: outcomes that were not committed, and requests in flight."""


@pytest.fixture
def rows(bench):
    """Return a bench with `ROWS` gold rows, and 10 rows without a label."""
    bench.upstream.reply = models()
    labelled = [{"id": n, "text": f"review {n}", "label": truth(n)} for n in range(ROWS)]
    bench.write([*labelled, *({"id": n, "text": f"review {n}", "label": ""} for n in range(ROWS, ROWS + 10))])
    return bench


def command(bench: Any, *more: str, prompt: str = PROMPT, **block: Any) -> list[str]:
    given = (str(bench.input), "--gold", "label", "--prompt", prompt, "--choices", ",".join(LABELS))
    found: list[str] = bench.command(*given, "--strong", "strong", *more, command="improve", **block)
    return found


def improve(bench: Any, *more: str, code: int = 0, **options: Any) -> Any:
    done = bench.here(command(bench, *more, **options)[1:])
    assert done.returncode == code, done.stderr + done.stdout
    return done


def figures(bench: Any, *more: str, **options: Any) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(improve(bench, "--json", *more, **options).stdout)
    return found


def killed_at(bench: Any, point: str) -> int:
    python, *words = command(bench, "--json", concurrency=8)
    done = subprocess.run(
        [python, killed.__file__, point, *words[2:]], cwd=bench.path, capture_output=True, timeout=120, check=False
    )
    return done.returncode


def asked(bench: Any) -> Counter[tuple[str, str]]:
    return Counter((seen.json["model"], seen.prompt) for seen in bench.upstream.seen)


@pytest.mark.thorough
def test_a_better_prompt_is_found_written_and_used(rows):
    done = improve(rows)
    text, file = done.stdout, rows.path / "in-prompt.txt"
    assert re.search(r"^200 rows with right labels: (\d+) seen by the search, (\d+) held out; left out: 10", text)
    assert re.search(r"^gain: \+\d\d\.\d points, 95 % interval \+\d\d\.\d to \+\d\d\.\d$", text, re.MULTILINE)
    assert "definition" in file.read_text()
    assert "{{text}}" in file.read_text()
    held_out = figures(rows)["test"]["rows"]
    seen = ROWS - held_out
    by_model = Counter(one.json["model"] for one in rows.upstream.seen)
    assert by_model["strong"] == 10
    assert by_model["test-model"] <= 11 * seen + 2 * held_out
    assert max(asked(rows).values()) == 1
    assert all(one.json.get("temperature") is None for one in rows.upstream.seen)
    (use,) = re.findall(r"^  promptmill (bulk .*)$", text, re.MULTILINE)
    assert use.startswith(f"bulk {rows.input} labels.csv --prompt-file in-prompt.txt ")
    sent = len(rows.upstream.seen)
    assert rows.here(["promptmill", *use.split()]).returncode == 0
    assert len(rows.upstream.seen) == sent + ROWS + 10
    assert rows.upstream.seen[-1].prompt.startswith(file.read_text().partition("{{")[0])


@pytest.mark.thorough
def test_a_search_that_is_done_asks_nothing_and_says_the_same(rows):
    first = figures(rows)
    rows.upstream.seen.clear()
    assert figures(rows) == first
    assert first["prompt_file"] == "in-prompt.txt"
    assert first["test"]["level"] == 0.05
    assert not rows.upstream.seen


@pytest.mark.thorough
def test_a_second_search_on_the_same_rows_is_tested_at_half_the_level(rows):
    first = figures(rows)
    assert "exists; name another file" in improve(rows, prompt="How does it sound? {{text}}", code=2).stderr
    second = figures(rows, "--overwrite", prompt="How does it sound? {{text}}")
    assert (second["test"]["level"], second["test"]["earlier_tests"]) == (0.025, 1)
    assert figures(rows, "--overwrite")["test"] == first["test"], "the first test stays what it was"
    done = improve(rows, "--overwrite", prompt="How does it sound? {{text}}")
    assert "1 earlier test used these held-out rows: so this one is at 2.5 % instead of 5 %" in done.stdout


def test_without_a_real_gain_none_is_reported(rows):
    rows.upstream.reply = models(helps=False)
    found = figures(rows)
    assert (found["outcome"], found["winner"]) == ("cannot tell", "yours")
    assert "test" not in found
    assert not (rows.path / "in-prompt.txt").exists()
    assert "the held-out rows were not used" in improve(rows).stdout


def test_the_prompt_file_of_something_else_is_not_replaced(rows):
    file = rows.path / "in-prompt.txt"
    file.write_text("mine\n")
    assert "in-prompt.txt exists; name another file; --overwrite replaces it." in improve(rows, code=2).stderr
    assert not rows.upstream.seen
    improve(rows, "--output", "other.txt")
    done = improve(rows, code=2)
    assert "exists and has another content" in done.stderr
    assert "gain: +" in done.stdout, "what was paid for is shown"
    assert file.read_text() == "mine\n"
    sent = len(rows.upstream.seen)
    improve(rows, "--overwrite")
    assert "definition" in file.read_text()
    assert (rows.path / "other.txt").read_text() == file.read_text()
    assert len(rows.upstream.seen) == sent


PRICE = ("--set", "price={input: 0, output: 100000}", "--max-tokens", "2", "--concurrency", "1")
"""Of 10 cents for each word."""


@pytest.mark.thorough
def test_one_budget_for_all_steps(rows):
    done = improve(rows, *PRICE, "--max-cost", "15", code=75)
    assert "has no room for another request" in done.stderr
    assert "the search stopped: $9.20 are spent in all; the same command resumes it" in done.stderr
    assert not done.stdout
    sent = asked(rows)
    found = figures(rows, *PRICE, "--max-cost", "1e6")
    assert found["outcome"] == "gain"
    assert max(asked(rows).values()) == 1
    assert found["requests"] == asked(rows).total() > sent.total()
    assert found["cost"] > 100


@pytest.mark.thorough
def test_failed_rows_count_as_wrong_and_can_be_sent_again(rows):
    rows.upstream.reply = models(lost=lambda prompt: prompt.endswith("7") and "Your task" not in prompt)
    first = figures(rows, code=0)
    rows.upstream.reply = models()
    rows.upstream.seen.clear()
    assert figures(rows)["candidates"] == first["candidates"]
    assert not rows.upstream.seen
    again = figures(rows, "--again", "failed")
    assert again["candidates"][0]["right"] > first["candidates"][0]["right"]


@pytest.mark.thorough
def test_the_strong_model_writes_other_prompts_on_request(rows):
    figures(rows)
    rows.upstream.seen.clear()
    file = rows.path / "in-prompt.txt"
    written_by_search = file.read_bytes()
    file.write_text("mine\n")
    said = "in-prompt.txt exists, and is not as this search wrote it; name another file; --overwrite replaces it."
    assert said in improve(rows, "--again", "prompts", code=2).stderr
    assert not rows.upstream.seen
    file.write_bytes(written_by_search)
    figures(rows, "--again", "prompts")
    assert {seen.json["model"] for seen in rows.upstream.seen} == {"strong"}


def test_a_model_that_cannot_be_asked_ends_the_search(rows):
    rows.upstream.reply = status(404, "The model `nix` does not exist", code="model_not_found")
    done = improve(rows, code=1)
    assert "does not exist" in done.stderr
    assert not done.stdout


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("--gold", "lable"), "--gold: the input has no column 'lable'; did you mean label?"),
        (("--choices", "positive,negative"), "labels that are not among the --choices: 'neutral' ("),
        (("--strong", ""), "--strong needs the name of the model that writes better prompts"),
        (("--encoding", "cp1252"), "--encoding works only for csv, tsv, txt files"),
    ],
)
def test_arguments_that_do_not_fit(rows, given, said):
    assert said in improve(rows, *given, code=2).stderr
    assert not rows.upstream.seen


def test_few_rows_are_refused(rows):
    rows.write([{"text": f"review {n}", "label": truth(n)} for n in range(50)])
    assert "50 rows with a label in label: with fewer than 100" in improve(rows, code=2).stderr
    assert not rows.upstream.seen


@pytest.mark.thorough
def test_definitions_are_of_each_labelled_row_and_of_the_request_for_prompts(rows):
    lines = "".join(f"{label},It is {label}.\n" for label in LABELS)
    (rows.path / "labels.csv").write_text(f"label,definition\n{lines}")
    improve(rows, "--choices", "labels.csv", "--system", "Be brief.")
    words = "Be brief.\n\nThe labels:" + "".join(f"\n- {label}: It is {label}." for label in LABELS)
    for seen in rows.upstream.seen:
        system = seen.json["messages"][0]["content"]
        is_written = seen.json["model"] == "strong"
        assert (f">\n{words}\n</system-" in seen.prompt) if is_written else (system == words)
    assert any(seen.json["model"] == "strong" for seen in rows.upstream.seen)


def test_in_python(rows, monkeypatch):
    monkeypatch.chdir(rows.path)
    given: dict[str, Any] = {
        "gold": "label",
        "choices": LABELS,
        "strong": "strong",
        "output": "better.txt",
        "base_url": rows.upstream.url,
        "api_key": "key",
        "model": "small",
        "progress": False,
    }
    table = [json.loads(line) for line in rows.input.read_text().splitlines()]
    found = promptmill.improve(table, PROMPT, **given)
    assert found.outcome == "gain"
    assert (rows.path / "better.txt").read_text() == found.prompt + "\n"
    assert "gain: +" in str(found)
    rows.upstream.seen.clear()
    assert promptmill.improve(str(rows.input), PROMPT, **given).figures == found.figures
    assert repr(found) == f"<Improvement: gain, {found.figures['winner']}>"
    assert not rows.upstream.seen
    with pytest.raises(PromptmillError, match="`prompt` names no column"):
        promptmill.improve(table, "x", **given)
    (rows.path / "rows.csv").write_text("text,label\n")
    with pytest.raises(PromptmillError, match="`encoding`: no is no encoding"):
        promptmill.improve(rows.path / "rows.csv", PROMPT, **given, encoding="no")
    with pytest.raises(PromptmillError, match="`model` is one model"):
        promptmill.improve(table, PROMPT, **{**given, "model": ["a", "b"]})
    (rows.path / "own.txt").write_text("mine\n")
    with pytest.raises(PromptmillError, match="exists; name another file; `overwrite` replaces it"):
        promptmill.improve(table, "Good or bad? {{text}}", **{**given, "output": "own.txt"})
    assert not rows.upstream.seen


ALONE = ["after-write:3", "before-write:8", "after-write:20", "after-put:40", "before-put:54", "before-put:55"]
POINTS = ["before-write:1", "after-write:1", "before-put:2", "after-put:3"]
REQUESTS = [60, 104, 300, 500, 640, 800, 1000, 1150]
"""In the base, between it and the strong model, in the first and second generation, and in the test."""


def killed_after(bench: Any, requests: int) -> None:
    """Kill a search when the endpoint has got so many requests, and at least one, the last of which it does not
    answer."""
    known, requests = bench.upstream.reply, max(requests, len(bench.upstream.seen))
    bench.upstream.reply = choose(lambda seen: known if seen.number <= requests else late(None))
    process = subprocess.Popen(
        command(bench, concurrency=8), cwd=bench.path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        eventually(lambda: len(bench.upstream.seen) > requests)
    finally:
        process.kill()
        process.wait()
    eventually(lambda: not bench.upstream.open)
    bench.upstream.reply = known


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL")
@pytest.mark.thorough
def test_a_search_that_is_killed_a_dozen_times_finds_the_same(rows):
    whole = figures(rows, "--state", str(rows.path / "other"), "--output", "whole.txt", concurrency=8)
    once = asked(rows)
    rows.upstream.seen.clear()
    for at, requests in enumerate(REQUESTS):
        killed_after(rows, requests)
        if at < len(POINTS):
            assert killed_at(rows, POINTS[at]) == -9
    found = figures(rows, concurrency=8)
    same = {"seconds": 0, "requests": 0, "prompt_file": ""}
    assert found | same == whole | same
    assert asked(rows).keys() == once.keys(), "the same candidates"
    assert asked(rows).total() - once.total() <= (len(REQUESTS) + len(POINTS)) * ONE_KILL
    tests = [folder for folder in JobFolders.from_environ().all() if folder.path.name.startswith("improve-held-out")]
    assert len(tests) == 1


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL")
@pytest.mark.thorough
@pytest.mark.parametrize("point", ALONE)
def test_a_kill_costs_what_is_in_flight(rows, point):
    assert killed_at(rows, point) in {-9, 0}, "how often a status is stored depends on the time"
    assert figures(rows, concurrency=8)["test"]["level"] == 0.05
    assert sum(count - 1 for count in asked(rows).values()) <= ONE_KILL
    asked_of_strong = [count for (model, _), count in asked(rows).items() if model == "strong"]
    assert len(asked_of_strong) == 10
