"""`promptmill run`: its steps, its money, and what is left after kills and changes."""

from __future__ import annotations

import csv
import json
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import openpyxl
import pytest

from hidden_topics import PROMPT, models, table
from promptmill.core.feature import WITHOUT
from replies import answer, choose, late, status
from waiting import eventually

ROWS = 12
RECIPE = """
steps:
  - bulk: [in.csv, facts.csv]
    prompt: 'Extract: {{text}}'
    schema: name,amount:number
  - bulk: [facts.csv, labels.csv]
    prompt: 'Urgent? {{name}} {{amount}}'
    choices: [yes, no]
  - bulk: [labels.csv, notes.jsonl]
    prompt: 'Note: {{name}} {{answer}}'
"""


def knowing(seen: Any) -> Any:
    """Answer each step as its model would: from the words of the row."""
    if seen.prompt.startswith("Extract: "):
        number = seen.prompt.rpartition(" ")[2]
        return answer(json.dumps({"name": f"n{number}", "amount": int(number)}))
    return answer("yes" if "1" in seen.prompt else "no") if seen.prompt.startswith("Urgent") else answer()


class Recipes:
    """A folder with a recipe, its input and its configuration."""

    def __init__(self, bench: Any) -> None:
        self.path, self.upstream, self._here = bench.path, bench.upstream, bench.here
        block = {"base_url": self.upstream.url, **bench.settings, "concurrency": 4}
        prices = {"price": {"input": 1000, "output": 1000}, "sampling_params": {"max_tokens": 20}}
        configuration = {"backend": "openai", "backend_configs": {"openai": block}, **prices}
        (self.path / "parameter.yaml").write_text(json.dumps(configuration))
        self.rows([f"order {n}" for n in range(ROWS)])
        self.write(RECIPE)
        self.upstream.reply = choose(knowing)

    def write(self, text: str) -> None:
        (self.path / "recipe.yaml").write_text(text)

    def rows(self, texts: Sequence[str]) -> None:
        written(self.path / "in.csv", [{"id": n, "text": text} for n, text in enumerate(texts)])

    def run(self, *more: str, code: int = 0, folder: Path | None = None, name: str = "recipe.yaml") -> Any:
        """Run the recipe in this process; return what it said."""
        done = self._here(["promptmill", "run", name, "--trust", *more], folder)
        assert done.returncode == code, done.stderr + done.stdout
        return done

    def figures(self, *more: str, code: int = 0) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.run("--json", *more, code=code).stdout)
        return found

    def refused(self, *more: str) -> str:
        """Run a recipe with a mistake; return the error. Nothing is sent."""
        before = len(self.upstream.seen)
        said = self.run(*more, code=2).stderr
        assert len(self.upstream.seen) == before
        return str(said)

    def asked(self) -> Counter[str]:
        """Return the prompts since the last call, by their first word."""
        found = Counter(seen.prompt.split()[0] for seen in self.upstream.seen)
        self.upstream.seen.clear()
        return found

    def read(self, name: str) -> list[dict[str, str]]:
        with (self.path / name).open(newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))


def written(path: Path, rows: list[dict[str, Any]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [*rows[0]])
        writer.writeheader()
        writer.writerows(rows)


@pytest.fixture
def recipes(bench):
    """Return a recipe of three steps."""
    return Recipes(bench)


def test_each_step_answers_the_rows_of_the_step_before(recipes):
    done = recipes.run()
    assert recipes.asked() == {"Extract:": ROWS, "Urgent?": ROWS, "Note:": ROWS}
    assert [row["answer"] for row in recipes.read("labels.csv")] == [
        "yes" if "1" in str(n) else "no" for n in range(ROWS)
    ]
    titles = [line for line in done.stderr.splitlines() if line.startswith("[")]
    assert titles == ["[1/3] facts.csv", "[2/3] labels.csv", "[3/3] notes.jsonl"]
    head, *steps, total = done.stdout.splitlines()
    assert head.split() == ["step", "rows", "requests", "cost"]
    assert [line.split()[:4] for line in steps] == [
        ["1", "facts.csv", "12", "12"],
        ["2", "labels.csv", "12", "12"],
        ["3", "notes.jsonl", "12", "12"],
    ]
    assert re.match(r"36 requests in [\d.]+ s, \$", total)


@pytest.mark.thorough
def test_a_run_without_changes_sends_nothing_and_writes_nothing(recipes):
    recipes.run()
    recipes.asked()
    before = {path.name: path.stat().st_mtime_ns for path in recipes.path.iterdir()}
    done = recipes.run()
    assert not recipes.asked()
    assert done.stdout.count("unchanged") == 3
    assert "finished already" not in done.stderr
    after = {path.name: path.stat().st_mtime_ns for path in recipes.path.iterdir()}
    assert after == before | {".promptmill": after[".promptmill"]}


@pytest.mark.thorough
def test_a_changed_row_is_one_request_in_each_step(recipes):
    recipes.run()
    recipes.asked()
    recipes.rows([f"order {n if n != 5 else 77}" for n in range(ROWS)])
    found = recipes.figures()
    assert recipes.asked() == {"Extract:": 1, "Urgent?": 1, "Note:": 1}
    assert [step["requests"] for step in found["steps"]] == [1, 1, 1]
    assert recipes.read("labels.csv")[5]["name"] == "n77"


@pytest.mark.thorough
def test_a_change_that_no_later_step_sees_ends_there(recipes):
    recipes.run()
    recipes.asked()
    recipes.rows([f"{'an ' if n == 5 else ''}order {n}" for n in range(ROWS)])
    found = recipes.figures()
    assert recipes.asked() == {"Extract:": 1}
    assert [step["requests"] for step in found["steps"]] == [1, 0, 0]


def killed_after(recipes: Recipes, number: int) -> None:
    """Kill a run when the endpoint has got more than `number` requests, of which it answers so many."""
    recipes.upstream.reply = choose(lambda seen: knowing(seen) if seen.number <= number else late(None))
    command = [sys.executable, "-m", "promptmill", "run", "recipe.yaml", "--trust"]
    process = subprocess.Popen(command, cwd=recipes.path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        eventually(lambda: len(recipes.upstream.seen) > number)
    finally:
        process.kill()
        process.wait()
    eventually(lambda: not recipes.upstream.open)
    recipes.upstream.reply = choose(knowing)


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL")
@pytest.mark.parametrize("number", [pytest.param(ROWS, marks=pytest.mark.thorough), ROWS + 5])
def test_a_run_that_is_killed_in_a_step_or_before_one_resumes(recipes, number):
    killed_after(recipes, number)
    first = recipes.asked().total()
    found = recipes.figures()
    assert found["state"] == "finished"
    assert [step["unchanged"] for step in found["steps"]] == [number >= ROWS, number >= 2 * ROWS, False]
    assert first + recipes.asked().total() <= 3 * ROWS + 8, (
        "only requests in flight, and answers that were not stored yet"
    )
    assert len(recipes.read("labels.csv")) == ROWS


def test_one_budget_is_for_all_steps_and_all_runs(recipes):
    rows, files = 30, ["in.csv", "a.csv", "b.csv", "c.csv"]
    recipes.rows([f"{'word ' * 100}{n}" for n in range(rows)])
    steps = [f"  - bulk: [{files[at]}, {files[at + 1]}]\n    prompt: '{at} {{{{text}}}}'\n" for at in range(3)]
    text = "".join(["steps:\n", *steps])
    recipes.write(text)
    recipes.upstream.reply = answer("fine")
    whole = recipes.figures("--state", "other")["spent"]
    for name in files[1:]:
        (recipes.path / name).unlink()
    recipes.asked()
    limit = round(0.6 * whole, 2)
    recipes.write(f"max_cost: {limit}\n{text}")
    done = recipes.run(code=75)
    assert "step 2 of 3 (b.csv) stopped" in done.stderr
    assert f"promptmill run recipe.yaml --trust --max-cost {2 * limit:g}" in done.stderr
    assert "1 step of 3 did not begin" in done.stdout
    asked = recipes.asked()
    assert (asked["0"], asked["2"]) == (rows, 0)
    assert 0 < asked["1"] < rows
    found = recipes.figures(code=75)
    assert not recipes.asked()
    assert 0.3 * whole < found["spent"] <= limit
    found = recipes.figures("--max-cost", str(2 * whole))
    assert found["spent"] == pytest.approx(whole)
    assert found["max_cost"] == 2 * whole


def test_a_budget_without_a_price_is_refused_before_the_first_step(recipes):
    recipes.write(f"max_cost: 1\n{RECIPE}    set: ['price=null']\n")
    assert ": step 3: max_cost: the price of test-model is not known" in recipes.refused()


def test_a_budget_without_a_limit_of_the_answers_is_refused_before_the_first_step(recipes):
    recipes.write(f"max_cost: 100\n{RECIPE}    set: ['sampling_params.max_tokens=null']\n")
    assert "step 3: max_cost: nothing limits the answers of test-model; add `max_tokens: " in recipes.refused()


@pytest.mark.thorough
def test_the_cost_of_jobs_that_are_no_longer_used_counts(recipes):
    recipes.write(f"max_cost: 100\n{RECIPE}")
    spent = recipes.figures()["spent"]
    recipes.write(f"max_cost: 100\n{RECIPE.replace('notes.jsonl', 'other.jsonl')}")
    assert recipes.figures()["spent"] > 1.2 * spent


def test_what_a_job_has_cost_before_its_first_run_in_a_recipe_is_not_of_the_recipe(recipes):
    recipes.write(f"max_cost: 100\n{RECIPE}")
    whole = recipes.figures()
    (recipes.path / ".promptmill" / "recipe.yaml.recipe").unlink()
    assert recipes.figures()["spent"] == 0
    recipes.rows([f"order {n + (n == 5)}" for n in range(ROWS)])
    found = recipes.figures()
    assert 0 < found["spent"] < whole["spent"]
    assert found["spent"] == pytest.approx(sum(step["cost"] for step in found["steps"]))


def test_the_cost_of_a_removed_job_counts_beside_that_of_its_successor(recipes):
    recipes.write(f"max_cost: 100\n{RECIPE}")
    spent = recipes.figures()["spent"]
    for number in (2, 3):
        shutil.rmtree(recipes.path / ".promptmill" / "facts.csv.job")
        (recipes.path / "facts.csv").unlink()
        found = recipes.figures()
        spent += found["cost"]
        assert found["spent"] == pytest.approx(spent), number


SEARCH = f"""
steps:
  - topics: [in.csv, topics.csv]
    prompt: '{PROMPT}'
    sample: 60
    held_out: 60
  - bulk: [in.csv, labels.csv]
    prompt: '{PROMPT}'
    choices: topics.csv
"""


@pytest.fixture
def searching(recipes, monkeypatch):
    """Return a recipe that finds topics, and labels rows with them."""
    monkeypatch.setenv(WITHOUT, "embeddings")
    recipes.upstream.reply = models()
    written(recipes.path / "in.csv", table(400))
    recipes.write(SEARCH)
    return recipes


@pytest.mark.thorough
def test_labels_of_topics_are_choices_of_the_next_step(searching):
    searching.write(f"{SEARCH}    limit: 30\n  - compare: [labels.csv, labels.csv]\n")
    done = searching.run()
    assert "topics from 60, tried on 60 others" in done.stdout
    assert "promptmill bulk" not in done.stdout, "the next step labels the rows"
    labels = {row["label"] for row in searching.read("topics.csv")}
    assert {row["answer"] for row in searching.read("labels.csv")} <= labels
    stamp = (searching.path / "topics.csv").stat().st_mtime_ns
    searching.asked()
    done = searching.run()
    assert not searching.asked()
    assert "topics from 60" not in done.stdout, "the result of an unchanged step is not shown again"
    assert (searching.path / "topics.csv").stat().st_mtime_ns == stamp


def test_a_changed_row_begins_no_other_search(searching):
    searching.run()
    content = (searching.path / "topics.csv").read_bytes()
    searching.asked()
    written(
        searching.path / "in.csv",
        [{**row, "text": f"{row['text']}!"} if at == 7 else row for at, row in enumerate(table(400))],
    )
    assert searching.figures("--dry-run")["steps"][0]["requests"] == 0
    found = searching.figures()
    assert searching.asked().total() == 1
    assert [(step["requests"], step["unchanged"]) for step in found["steps"]] == [(0, True), (1, False)]
    assert (searching.path / "topics.csv").read_bytes() == content


def test_other_options_of_a_search_are_refused_until_the_user_accepts_them(searching):
    searching.run()
    searching.asked()
    searching.write(SEARCH.replace("held_out: 60", "held_out: 70\n    concurrency: 3"))
    said = searching.refused()
    assert (
        "line 3: topics.csv was found with other options. `promptmill run recipe.yaml --trust --again changed`" in said
    )
    searching.run("--again", "changed")
    assert searching.asked()
    assert not searching.run() or not searching.asked()
    searching.write(SEARCH.replace("held_out: 60", "held_out: 70\n    concurrency: 9"))
    searching.run()
    assert not searching.asked(), "an option that changes no answer"


def test_a_list_that_the_user_has_edited_is_used_and_stays(searching):
    searching.run()
    file, label = searching.path / "topics.csv", searching.read("topics.csv")[0]["label"]
    content = file.read_text().replace(label, f"my {label}")
    file.write_text(content)
    assert (
        "`promptmill run recipe.yaml --trust --again changed` sends the rows of such a step again"
        in searching.refused()
    )
    searching.run("--again", "changed")
    assert f"my {label}" in {row["answer"] for row in searching.read("labels.csv")}
    assert file.read_text() == content
    file.unlink()
    searching.run("--again", "changed")
    assert f"my {label}" not in file.read_text()


def test_a_list_that_no_search_of_the_recipe_found_is_not_replaced(searching):
    (searching.path / "topics.csv").write_text("label\nmine\nother\n")
    assert "topics.csv exists; name another file" in searching.refused()


@pytest.mark.thorough
def test_the_labels_of_a_search_are_not_paid_again_by_the_step_that_uses_its_topics(searching):
    _, labels = searching.figures()["steps"]
    assert (labels["rows"], labels["requests"]) == (400, 340)
    assert all(row["answer"] for row in searching.read("labels.csv"))
    stamp = (searching.path / "labels.csv").stat().st_mtime_ns
    assert all(step["unchanged"] for step in searching.figures()["steps"])
    assert (searching.path / "labels.csv").stat().st_mtime_ns == stamp
    searching.write(SEARCH.replace("labels.csv", "other.csv"))
    assert searching.figures()["steps"][1]["requests"] == 340, "of the search of an earlier run"
    searching.write(SEARCH.replace("labels.csv", "third.csv") + "    temperature: 0.5\n")
    assert searching.figures()["steps"][1]["requests"] == 400, "another setting may give other labels"


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ("    from: topics.csv\n", "line 10: topics.csv has no job whose answers could be used: step 1 is `topics`"),
        ("    columns: topics\n    answer_column: topic\n", "line 10: `columns`: the output has no column 'topics'"),
    ],
)
def test_a_step_is_checked_before_the_file_of_its_choices_is_written(searching, more, expected):
    searching.write(SEARCH + more)
    assert expected in searching.refused()


def test_a_dry_run_prices_what_it_can(recipes):
    recipes.write(f"max_cost: 100\n{RECIPE}")
    done = recipes.run("--dry-run")
    assert "step 2: no estimate before step 1 has written facts.csv" in done.stdout
    assert "for the steps with an estimate" in done.stdout
    assert not recipes.asked()
    assert {path.name for path in recipes.path.iterdir()} == {"in.csv", "parameter.yaml", "recipe.yaml"}
    recipes.run()
    recipes.asked()
    found = recipes.figures("--dry-run")
    assert [step["requests"] for step in found["steps"]] == [0] * 3
    assert found["estimated_cost"] == found["most_cost"] == 0
    assert 0 < found["spent"] < found["max_cost"] == 100
    assert not recipes.asked()


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL")
def test_a_dry_run_prices_the_rows_that_a_kill_left(recipes):
    whole = recipes.figures("--dry-run")["steps"][0]
    killed_after(recipes, 8)
    step = recipes.figures("--dry-run")["steps"][0]
    assert 0 < step["requests"] < whole["requests"] == ROWS
    assert step["estimated_cost"] < whole["estimated_cost"]
    assert step["most_cost"] == pytest.approx(whole["most_cost"] * step["requests"] / ROWS)


def test_the_output_of_a_step_may_be_an_option(recipes):
    recipes.write("""
steps:
  - improve: in.csv
    gold: text
    prompt: 'Good? {{text}}'
    choices: [yes, no]
    strong: better
    output: best.txt
  - bulk: [in.csv, labels.csv]
    prompt_file: best.txt
""")
    done = recipes.run("--dry-run")
    assert "step 1: improve has no estimate\n  step 2: no estimate before step 1 has written best.txt" in done.stdout
    assert "1 best.txt" in done.stdout


def test_steps_fill_columns_of_one_sheet(recipes):
    book = openpyxl.Workbook()
    for row in (["text"], *([f"order {n}"] for n in range(ROWS))):
        book.active.append(row)
    book.save(recipes.path / "b.xlsx")
    steps = [
        f"  - bulk: [b.xlsx, b.xlsx]\n    prompt: '{name}? {asked}'\n    answer_column: {name}\n"
        for name, asked in (("Mood", "{{text}}"), ("Topic", "{{Mood}} {{text}}"))
    ]
    recipes.write("".join(["steps:\n", *steps]))
    recipes.upstream.reply = answer("fine")
    recipes.run()
    assert recipes.asked() == {"Mood?": ROWS, "Topic?": ROWS}
    head, first, *_ = openpyxl.load_workbook(recipes.path / "b.xlsx").active.values
    assert {"text": "order 0", "Mood": "fine", "Topic": "fine"}.items() <= dict(zip(head, first, strict=True)).items()
    recipes.run()
    assert not recipes.asked()
    recipes.write("".join(["steps:\n", steps[0], steps[0]]))
    assert "b.xlsx is the output of step 1, too; name another" in recipes.refused()


def test_failed_rows_do_not_stop_a_recipe_and_a_failed_step_does(recipes):
    recipes.upstream.reply = choose(lambda seen: status(400) if seen.prompt == "Extract: order 3" else knowing(seen))
    found = recipes.figures(code=1)
    assert found["state"] == "finished"
    assert found["steps"][0]["failed"] == 1
    recipes.asked()
    recipes.upstream.reply = choose(knowing)
    assert [step["failed"] for step in recipes.figures("--again", "failed")["steps"]] == [0, 0, 0]
    assert recipes.asked()["Extract:"] == 1
    recipes.upstream.reply = choose(lambda seen: status(400) if seen.prompt.startswith("Urgent") else knowing(seen))
    for name in ("facts.csv", "labels.csv", "notes.jsonl"):
        (recipes.path / name).unlink()
    done = recipes.run("--state", "new", code=1)
    assert "step 2 of 3 (labels.csv) stopped; the same command resumes the recipe" in done.stderr
    assert "promptmill run recipe.yaml --trust --state new" in done.stderr
    assert not (recipes.path / "notes.jsonl").exists()


@pytest.mark.thorough
def test_the_file_of_something_else_is_not_replaced(recipes):
    (recipes.path / "facts.csv").write_text("mine\n")
    assert "recipe.yaml, line 3: " in recipes.refused()
    assert (recipes.path / "facts.csv").read_text() == "mine\n"


def test_another_prompt_is_refused_until_the_user_accepts_it(recipes):
    recipes.run()
    recipes.asked()
    recipes.write(RECIPE.replace("Extract: {{text}}", "Extract: this {{text}}"))
    said = recipes.refused()
    assert "recipe.yaml, line 4: The prompt of job facts-" in said
    assert "`promptmill run recipe.yaml --trust --again changed` sends the rows of such a step again" in said
    said = recipes.refused("--dry-run")
    assert "`promptmill run recipe.yaml --trust --dry-run --again changed` sends the rows of such a step again" in said
    assert recipes.figures("--dry-run", "--again", "changed")["steps"][0]["requests"] == ROWS
    assert not recipes.asked()
    recipes.run("--again", "changed")
    assert recipes.asked() == {"Extract:": ROWS}, "the later steps get what they got"


def test_rows_that_an_earlier_step_changed_are_sent_whatever_their_number(recipes):
    recipes.rows([f"order {n}" for n in range(40)])
    recipes.run()
    recipes.asked()
    recipes.rows([f"order {n + 100}" for n in range(40)])
    assert "in.csv has changed since, and keeps 0 of the 40 answers" in recipes.refused()
    recipes.run("--again", "changed")
    assert recipes.asked() == {"Extract:": 40, "Urgent?": 40, "Note:": 40}


def test_paths_start_at_the_folder_of_the_recipe(recipes, tmp_path):
    recipes.run("--state", "kept", folder=tmp_path, name=f"{recipes.path.name}/recipe.yaml")
    assert len(recipes.read("labels.csv")) == ROWS
    assert (tmp_path / "kept" / "recipes").is_dir()
    assert "missing.yaml is missing; name a recipe" in recipes.run(code=2, name="missing.yaml").stderr


def test_options_of_all_steps_go_to_those_that_take_them(recipes):
    recipes.write(
        f"model: one\nmax_tokens: 7\nprompt: never\n{RECIPE}    model: two\n  - compare: [labels.csv, labels.csv]\n"
    )
    done = recipes.run()
    asked = Counter((seen.json["model"], seen.json["max_tokens"]) for seen in recipes.upstream.seen)
    assert asked == {("one", 7): 2 * ROWS, ("two", 7): ROWS}
    assert "4 compare labels.csv labels.csv" in done.stdout


@pytest.mark.thorough
def test_a_running_recipe_does_not_run_twice(recipes):
    def again(seen: Any) -> Any:
        if seen.number == 0:
            assert "is running already" in recipes.run(code=2).stderr
        return knowing(seen)

    recipes.upstream.reply = choose(again)
    recipes.run()


WRONG: Sequence[tuple[Callable[[str], str], str]] = [
    (lambda _: "", ": the recipe is empty"),
    (lambda text: text.replace("steps", "stepz"), "line 2: unknown key stepz; did you mean steps?"),
    (lambda text: text.replace("bulk: [in", "bluk: [in"), "line 3: unknown command bluk; did you mean bulk?"),
    (lambda text: text.replace("bulk: [in", "serve: [in"), "line 3: serve is no command for a step; the commands of"),
    (lambda text: f"{text}  - prompt: 'x'\n", "line 11: the first key of a step is its command, not the option prompt"),
    (lambda text: text.replace("schema", "shema"), "line 5: bulk has no option shema; did you mean schema?"),
    (lambda text: f"modle: x\n{text}", "line 1: bulk has no option modle; did you mean model?"),
    (lambda text: f"json: true\n{text}", "line 1: json is an option of a run, not of a step"),
    (lambda text: f"{text}    max-tokens: many\n", "line 11: max_tokens: 'many' is not a whole number"),
    (lambda text: f"{text}    skip_empty: perhaps\n", "line 11: skip_empty should be true or false."),
    (lambda text: f"{text}    limit: [1]\n", "line 11: limit should be a text or a number, not a list."),
    (lambda text: f"{text}    limit: 3\n    limit: 4\n", "line 12: the key limit occurs twice"),
    (lambda text: text.replace("{{text}}", "{{txt}}"), "line 4: `prompt`: the input has no column 'txt'"),
    (lambda text: text.replace("[in.csv", "[labels.csv"), "line 3: labels.csv is the output of step 2; put that step"),
    (lambda text: text.replace("notes.jsonl", "facts.csv"), "line 9: facts.csv is the output of step 1, too"),
    (lambda text: text.replace("[facts.csv, ", "[fact.csv, "), "there is no file fact.csv; did you mean facts.csv?"),
    (lambda text: text.replace("[in.csv", "['-'"), "line 3: a step has no standard input and output"),
    (lambda text: f"max_cost: much\n{text}", "line 1: max_cost: 'much' is not a number"),
    (lambda text: f"{text}   limit: 3\n", "Line 11 does not fit the block from line 3"),
    (lambda text: text.replace("in.csv, facts.csv", "in.csv"), "line 3: the following arguments are required: OUTPUT"),
]


@pytest.mark.parametrize(("changed", "expected"), WRONG)
def test_a_mistake_is_named_with_its_line_before_anything_runs(recipes, changed, expected):
    recipes.write(changed(RECIPE))
    said = recipes.refused()
    assert said.startswith("error: recipe.yaml")
    assert expected in said


def untrusted(recipes: Recipes, *more: str, code: int = 2) -> str:
    """Run the recipe without `--trust`; return what it said."""
    done = recipes._here(["promptmill", "run", "recipe.yaml", *more], recipes.path)
    assert done.returncode == code, done.stderr + done.stdout
    return " ".join(done.stderr.split())


STEP = "steps:\n  - bulk: [in.csv, out.csv]\n    prompt: 'Note: {{text}}'\n"


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("then: touch ran", "then: touch ran"),
        ("set: backend_configs.openai.api_key_command=touch ran", "set: backend_configs.openai.api_key_command=touch"),
        ("config: other.yaml", "config: other.yaml"),
        ("base_url: http://evil.example", "base_url: http://evil.example"),
        ("provider: deepseek", "provider: deepseek"),
        ("key_env: AWS_SECRET_ACCESS_KEY", "key_env: AWS_SECRET_ACCESS_KEY"),
        ("backend: hf", "backend: hf"),
        ("ray: evil.example:10001", "ray: evil.example:10001"),
        ("sql: select 1", "sql: select 1"),
        ("choices: /etc/passwd", "choices: /etc/passwd"),
        ("schema: ../schema.json", "schema: ../schema.json"),
        ("prompt_file: /etc/passwd", "prompt_file: /etc/passwd"),
        ("report: /tmp/report.html", "report: /tmp/report.html"),
        ("from: /tmp/other.csv", "from: /tmp/other.csv"),
        ("model: /tmp/model", "model: /tmp/model"),
    ],
)
def test_what_a_recipe_sets_of_the_operator_is_listed_before_it_does_anything(recipes, monkeypatch, line, named):
    monkeypatch.setenv("PROMPTMILL_CONFIG", str(recipes.path / "parameter.yaml"))
    recipes.path = recipes.path / "received"
    recipes.path.mkdir()
    recipes.rows(["a"])
    step = STEP.partition("    prompt:")[0] if line.startswith("prompt_file") else STEP
    for text in (f"{line}\n{step}", f"{step}    {line}\n"):
        recipes.write(text)
        for more in ((), ("--dry-run",)):
            said = untrusted(recipes, *more)
            assert f"the recipe sets what only you may set: {named}" in said
            assert "--trust runs it" in said
    assert {path.name for path in recipes.path.iterdir()} == {"in.csv", "recipe.yaml"}
    assert not recipes.upstream.seen


@pytest.mark.parametrize("files", ["[/etc/hosts, out.csv]", "[in.csv, /tmp/out.csv]", "[in.csv, 's3://evil/out.csv']"])
def test_files_outside_of_a_recipes_folder_are_listed(recipes, monkeypatch, files):
    monkeypatch.setenv("PROMPTMILL_CONFIG", str(recipes.path / "parameter.yaml"))
    recipes.write(f"steps:\n  - bulk: {files}\n    prompt: 'Note: {{{{text}}}}'\n")
    assert "file: " in untrusted(recipes)


def test_a_recipe_that_sets_nothing_of_the_operator_needs_no_trust(recipes, monkeypatch):
    elsewhere = recipes.path.parent / f"{recipes.path.name}-config.yaml"
    (recipes.path / "parameter.yaml").rename(elsewhere)
    monkeypatch.setenv("PROMPTMILL_CONFIG", str(elsewhere))
    (recipes.path / "labels.csv").write_text("label\nyes\nno\n")
    recipes.write(f"{STEP}    choices: labels.csv\n    report: report.html\n    max_tokens: 5\n")
    recipes.upstream.reply = answer("yes")
    untrusted(recipes, code=0)
    assert len(recipes.read("out.csv")) == ROWS


def test_an_accepted_recipe_is_asked_about_again_only_after_a_change(recipes):
    recipes.write(STEP)
    configuration = recipes.path / "parameter.yaml"
    assert "config: parameter.yaml in the folder of the recipe" in untrusted(recipes)
    recipes.run()
    untrusted(recipes, code=0)
    recipes.write(STEP.replace("Note:", "Remark:"))
    assert "Another" not in untrusted(recipes, "--again", "changed", code=0)
    configuration.write_text(configuration.read_text() + " ")
    assert "config: parameter.yaml" in untrusted(recipes)
    recipes.run()
    recipes.write(f"then: touch ran\n{STEP}")
    assert "then: touch ran" in untrusted(recipes)
    assert not list(recipes.path.glob("ran"))


@pytest.mark.parametrize(("said", "code"), [("y", 0), ("", 2), ("n", 2)])
def test_a_user_at_a_terminal_is_asked(recipes, monkeypatch, said, code):
    recipes.write(STEP)
    monkeypatch.setattr("promptmill.features.recipes.trust.is_terminal", lambda: True)
    monkeypatch.setattr("builtins.input", lambda: said)
    found = untrusted(recipes, code=code)
    assert "Run it? (y/N)" in found
    assert len(recipes.upstream.seen) == (0 if code else ROWS)
