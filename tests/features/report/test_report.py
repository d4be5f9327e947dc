"""`promptmill jobs JOB --html` and `bulk --report`: one HTML file of a job."""

from __future__ import annotations

import base64
import io
import itertools
import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import browser
from job_specs import spec_of
from page_content import HOSTILE, column, counts_of, written
from pdf_files import pdf_of_texts
from promptmill.backends.protocol import Completion, Failure, Outcome, Usage
from promptmill.core.errors import Code, PromptmillError
from promptmill.features.report import job_page
from promptmill.files.files import InputFile, opened
from promptmill.jobs.ingest import ingest
from promptmill.jobs.inputs.any_format import input_of
from promptmill.jobs.store.database import Work
from promptmill.jobs.store.folder import Folder
from promptmill.jobs.store.index import JobFolders
from promptmill.jobs.store.records import record_of
from promptmill.jobs.store.spec import InputSpec, OutputSpec
from promptmill.pages import page
from replies import answer, choose, late, status
from waiting import eventually


def reported(bench: Any, *arguments: str, code: int = 0) -> str:
    """Return what `promptmill jobs` prints."""
    done = bench.here([sys.executable, "-m", "promptmill", "jobs", *arguments])
    assert done.returncode == code, done.stderr
    return str(done.stdout if code == 0 else done.stderr)


def test_a_job_with_several_models_is_listed_and_reported_with_all_of_them(bench):
    bench.prompts(4)
    bench.succeed("--model", "small", "--model", "good", "--report", "r.html")
    status = bench.status()
    assert (status["model"], status["variants"]) == ("small, good", ["small", "good"])
    assert "4 × 2" in bench.here([sys.executable, "-m", "promptmill", "jobs"]).stdout  # noqa: RUF001 (a product)
    data, rows = written(bench.path / "r.html")
    assert data["rows"]["note"] == "All 8 answers to 4 rows."
    assert rows["steps"] == [1, 0, 1, 0, 1, 0, 1, 0]
    assert column(data, rows, "model") == ["small", "good"] * 4
    assert counts_of(data, "Answers by model") == {"small": 4, "good": 4}
    assert dict(data["run"])["Model"].startswith("small, good (")
    shown = bench.here([sys.executable, "-m", "promptmill", "jobs", str(bench.output), "--rows=8"]).stdout
    assert shown.startswith("in.jsonl → out.jsonl: 8 of 8 answers to 4 rows\n")
    assert shown.count("model   small") == shown.count("model   good") == 4
    listed = bench.jobs(bench.folder.job_id).stdout
    assert listed.startswith("in.jsonl → out.jsonl: 4 rows × 2 answers: 8 answered in ")  # noqa: RUF001 (a product)
    assert listed.partition("\n")[0].endswith(" by small, good")


def test_a_report_counts_by_model_and_by_prompt(bench):
    bench.upstream.reply = choose(
        lambda seen: status(400, "no") if seen.json["model"] == "good" and "Rate" in seen.prompt else answer("yes")
    )
    bench.prompts(3)
    grid = ("--model", "small", "--model", "good", "--prompt", "ask=Is {{id}} good?", "--prompt", "rate=Rate {{id}}")
    bench.fail(*grid, "--report", "r.html", code=1)
    data, rows = written(bench.path / "r.html")
    bars = {title: [bar[:3] for bar in bars] for title, _, bars, _ in data["counts"]}
    assert bars["Answers by model"] == [["small", 6, ""], ["good", 3, "and 3 failed"]]
    assert bars["Answers by prompt"] == [["ask", 6, ""], ["rate", 3, "and 3 failed"]]
    assert bars["yes"] == [
        ["small/ask", 3, "(100.0 %)"],
        ["small/rate", 3, "(100.0 %)"],
        ["good/ask", 3, "(100.0 %)"],
        ["good/rate", 0, ""],
    ]
    where = {"answer": "yes", "model": "small", "prompt name": "rate"}
    assert next(bars for title, _, bars, _ in data["counts"] if title == "yes")[1][3] == where
    assert column(data, rows, "prompt name")[:4] == ["ask", "rate"] * 2
    facts = dict(data["run"])
    assert (facts["Prompt ask"], facts["Prompt rate"]) == ("Is {{id}} good?", "Rate {{id}}")


def test_a_report_of_several_models_says_which_is_right_where_the_rows_have_labels(bench):
    good = choose(lambda seen: answer("yes" if seen.json["model"] == "good" or "0" in seen.prompt else "no"))
    bench.upstream.reply = good
    bench.write(["text,label,other", *(f"row {at},{'Yes' if at < 4 else 'no'},{at}" for at in range(5))], "in.csv")
    bench.output = bench.path / "out.csv"
    bench.succeed("--model", "small", "--model", "good", "--prompt", "{{text}}", "--report", "r.html")
    data, rows = written(bench.path / "r.html")
    assert counts_of(data, "Right, if label has the right answers") == {"small": 2, "good": 4}
    (bars,) = [bars for title, _, bars, _ in data["counts"] if title.startswith("Right")]
    assert bars[1] == ["good", 4, "(80.0 %)"]
    (mask,) = [mask for key, _, mask, _ in data["rows"]["filters"] if key == "wrong"]
    assert sum(state & mask == mask for state in rows["state"]) == 4
    bench.output = bench.path / "asked.csv"
    bench.succeed("--model", "small", "--model", "good", "--prompt", "{{text}} {{label}}", "--report", "s.html")
    assert not any(title.startswith("Right") for title, *_ in written(bench.path / "s.html")[0]["counts"])


def test_a_report_of_several_models_counts_no_empty_row_as_failed(bench):
    bench.upstream.reply = choose(lambda seen: status(400, "no") if "bad" in seen.prompt else answer("yes"))
    bench.write([{"text": text} for text in ("a", "", "bad", "b")])
    grid = ("--model", "small", "--model", "good", "--prompt", "{{text}}", "--set", "price={input: 1, output: 1}")
    bench.fail(*grid, "--skip-empty", "--report", "r.html", code=1)
    data, _ = written(bench.path / "r.html")
    (bars,) = [bars for title, _, bars, _ in data["counts"] if title == "Answers by model"]
    assert [bar[:3] for bar in bars] == [["small", 2, "and 1 failed"], ["good", 2, "and 1 failed"]]
    remarks = {label: remark for label, _, remark in data["tiles"]}
    assert remarks["Time"].endswith(" answers/s")
    assert remarks["Cost"].endswith(" per 1,000 answers")


@pytest.mark.thorough
def test_the_columns_of_a_report_begin_with_the_text_of_the_prompt(bench):
    bench.write(["id,name,team,text", f"{'x' * 30},{'n' * 40},a,What a soup!"], "in.csv")
    bench.output = bench.path / "out.csv"
    bench.succeed("--prompt", "{{team}}: {{text}}", "--model", "small", "--model", "good", "--report", "r.html")
    data, rows = written(bench.path / "r.html")
    names = [each["name"] for each in data["rows"]["columns"] if not each["hidden"]]
    assert names == ["text", "answer", "name", "team", "id", "model"]
    assert column(data, rows, "text") == ["What a soup!"] * 2
    bench.output = bench.path / "own.csv"
    bench.succeed("--prompt-column", "text", "--report", "s.html")
    data, _ = written(bench.path / "s.html")
    assert [each["name"] for each in data["rows"]["columns"]][:3] == ["prompt", "answer", "name"]


@pytest.mark.thorough
def test_an_item_of_lists_is_searched_because_no_cell_equals_it(bench):
    bench.upstream.reply = choose(lambda seen: answer(json.dumps({"tags": ["cold", "cold", seen.prompt[-1]]})))
    bench.prompts(3)
    schema = {"type": "object", "properties": {"tags": {"type": "array", "items": {"type": "string"}}}}
    bench.succeed("--schema", json.dumps(schema), "--report", "r.html")
    data, rows = written(bench.path / "r.html")
    ((title, searched, bars, _),) = data["counts"]
    assert (title, searched, bars[0][:2]) == ("tags", "", ["cold", 3])
    assert column(data, rows, "tags")[0] == '["cold","cold","0"]'


@pytest.mark.parametrize(
    ("count", "total", "shown"),
    [
        (1, 1, "100 %"),
        (9997, 10_000, "99.97 %"),
        (996, 1000, "99.6 %"),
        (1, 3, "33 %"),
        (2, 10_000_000, "0.00002 %"),
        (0, 9, ""),
    ],
)
def test_the_share_of_a_tile_is_100_percent_only_of_all_rows(count, total, shown):
    assert job_page._share(count, total) == shown


def test_a_report_has_the_run_its_figures_and_its_rows(bench):
    words = ["positive", "negative", "positive"]
    bench.upstream.reply = choose(
        lambda seen: status(400, "no") if "row 9" in seen.prompt else answer(words[int(seen.prompt.split()[-2]) % 3])
    )
    bench.write(["id,text", *(f"{at},row {at}" for at in range(20))], "in.csv")
    bench.output = bench.path / "out.csv"
    bench.fail("--prompt", "Is it good? {{text}} now", "--system", "Be brief.", "--report", "r.html", code=1)
    data, rows = written(bench.path / "r.html")
    assert data["state"] == "finished"
    assert data["summary"].startswith("19 answered, 1 failed in ")
    tiles = {label: value for label, value, _ in data["tiles"]}
    assert tiles["Answered"] == "19"
    assert tiles["Failed"] == "1"
    assert tiles["Requests"] == "20"
    assert counts_of(data) == {"positive": 12, "negative": 7}
    ((code, count, example, advice),) = data["failures"]
    assert (code, count) == ("bad_request", 1)
    assert "400" in example
    assert advice == PromptmillError(Code.BAD_REQUEST, "").hint
    assert advice not in example
    facts = dict(data["run"])
    assert facts["Prompt"] == "Is it good? {{text}} now"
    assert facts["System prompt"] == "Be brief."
    assert facts["Model"] == "test-model (openai)"
    assert facts["Command"].startswith("promptmill bulk ")
    assert facts["Version"].startswith("promptmill ")
    assert data["spreads"] == [], "19 answers make no histogram"
    samples = data["course"]["samples"]
    assert len(samples) >= 2
    assert samples[-1][1:3] == [20, 1]
    assert data["rows"]["templates"] == [["Is it good? ", "text", " now"]]
    assert data["rows"]["note"] == "All 20 rows."
    assert column(data, rows, "prompt") == [0] * 20
    assert column(data, rows, "text") == [f"row {at}" for at in range(20)]
    assert rows["state"] == [int(at == 9) for at in range(20)]
    assert column(data, rows, "answer")[0] == "positive"
    assert column(data, rows, "answer")[9] is None
    assert column(data, rows, "error")[9].startswith("bad_request: ")


def test_the_values_of_the_fields_of_a_schema(bench):
    bench.upstream.reply = choose(
        lambda seen: answer(json.dumps({"mood": "ab"[seen.number % 2], "stars": seen.number}))
    )
    fields = {"mood": {"type": "string"}, "stars": {"type": "integer"}}
    schema = {"type": "object", "properties": fields, "required": ["mood", "stars"]}
    (bench.path / "schema.json").write_text(json.dumps(schema))
    bench.prompts(10)
    bench.succeed("--schema", "schema.json", "--report", "r.html")
    data, rows = written(bench.path / "r.html")
    assert data["counts"][0] == ["mood", "mood", [["a", 5, "(50.0 %)"], ["b", 5, "(50.0 %)"]], ""]
    assert data["counts"][1][:2] == ["stars", "stars"]
    assert len(data["counts"]) == 2
    assert sorted(column(data, rows, "stars")) == list(range(1, 11))


def test_the_levels_of_a_scale_have_bars_in_their_order_and_fields_no_line_about_lengths(bench):
    levels = "very unsatisfied<unsatisfied<satisfied"
    bench.upstream.reply = choose(
        lambda seen: answer(json.dumps({"mood": "satisfied" if seen.number % 3 else "very unsatisfied"}))
    )
    bench.prompts(9)
    bench.succeed("--fields", f"mood:{levels}", "--model", "a", "--report", "r.html")
    listed = bench.jobs(bench.folder.job_id).stdout
    assert "answers   mood: very unsatisfied 3, unsatisfied 0, satisfied 6\n" in listed
    data, _ = written(bench.path / "r.html")
    assert [*counts_of(data, "mood").items()] == [("very unsatisfied", 3), ("unsatisfied", 0), ("satisfied", 6)]
    assert data["answers"] == ""
    bench.output = bench.path / "two.jsonl"
    bench.succeed("--fields", f"mood:{levels}", "--model", "a", "--model", "b", "--report", "s.html")
    data, _ = written(bench.path / "s.html")
    assert [title for title, *_ in data["counts"]][1:] == [f"mood: {level}" for level in levels.split("<")]
    assert set(counts_of(data, "mood: unsatisfied").values()) == {0}


def test_a_report_has_letters_where_answers_and_rows_have_escapes(bench):
    bench.upstream.reply = answer(r'{"name":"Ren\u00e9","tags":["\u00e9"]}')
    bench.write([r'{"id": 1, "tags": ["\u00e9t\u00e9"], "prompt": "Qui?"}'])
    bench.succeed("--report", "r.html")
    data, rows = written(bench.path / "r.html")
    assert column(data, rows, "answer") == ['{"name":"René","tags":["é"]}']
    assert counts_of(data) == {'{"name":"René","tags":["é"]}': 1}
    assert column(data, rows, "tags") == ['["été"]']
    schema = {"properties": {"name": {"type": "string"}, "tags": {"type": "array", "items": {"type": "string"}}}}
    (bench.path / "schema.json").write_text(json.dumps(schema))
    bench.output = bench.path / "fields.jsonl"
    bench.succeed("--schema", "schema.json", "--report", "s.html")
    data, rows = written(bench.path / "s.html")
    assert column(data, rows, "name") == ["René"]
    assert column(data, rows, "tags_1") == ['["é"]']
    assert "u00e9" not in (bench.path / "s.html").read_text()
    shown = bench.here([sys.executable, "-m", "promptmill", "jobs", str(bench.output), "--rows"]).stdout
    assert "René" in shown


@pytest.mark.thorough
def test_images_are_thumbnails(bench):
    Image.new("RGB", (900, 600), "red").save(bench.path / "red.png")
    bench.write(["path", "red.png", "gone.png", "https://example.com/a.png"], "in.csv")
    bench.output = bench.path / "out.csv"
    bench.fail("--prompt", "Describe it.", "--image-column", "path", "--report", "r.html", code=1)
    data, rows = written(bench.path / "r.html")
    assert list(data["thumbnails"]) == ["1"]
    assert [one["name"] for one in data["rows"]["columns"] if one["images"]] == ["path"]
    with Image.open(io.BytesIO(base64.b64decode(data["thumbnails"]["1"]))) as image:
        assert (image.format, image.size) == ("JPEG", (160, 107))
    assert rows["state"] == [0, 1, 0]


def test_thumbnails_and_rows_share_the_size_of_the_file(bench, monkeypatch):
    monkeypatch.setattr(page, "LARGEST_REPORT", 150_000)
    monkeypatch.setattr(page, "_LEAST", 1_000)
    monkeypatch.setattr(job_page, "_PICTURES", 60_000)
    for at in range(12):
        Image.frombytes("RGB", (160, 160), os.urandom(160 * 160 * 3)).save(bench.path / f"{at}.png")
    bench.upstream.reply = choose(lambda seen: answer(base64.b64encode(os.urandom(300)).decode()))
    bench.write(["path,text", *(f"{at % 12}.png,{os.urandom(150).hex()}" for at in range(150))], "in.csv")
    bench.output = bench.path / "out.csv"
    assert bench.run("--prompt", "{{text}}", "--image-column", "path", "--report", "r.html").returncode == 0
    data, rows = written(bench.path / "r.html")
    assert 2 <= len(data["thumbnails"]) < 12
    assert sum(map(len, data["thumbnails"].values())) <= 60_000
    assert 0 < len(rows["state"]) <= 150
    assert "are cut off" in data["rows"]["note"]
    assert (bench.path / "r.html").stat().st_size <= 150_000


def test_a_report_while_the_job_runs_and_one_in_place_of_it(bench):
    bench.upstream.reply = choose(lambda seen: answer() if seen.number <= 50 else late(None))
    bench.prompts(200)
    bench.start()
    eventually(lambda: len(bench.records()) == 50 and bench.folder.status["state"] == "running")
    assert (
        reported(bench, str(bench.output), "--html").strip().endswith(f"report of 50 rows: {bench.output}.report.html")
    )
    data, rows = written(Path(f"{bench.output}.report.html"))
    assert data["state"] == "running"
    assert "the job was running" in data["summary"]
    assert len(rows["state"]) == 50
    found = json.loads(reported(bench, bench.folder.job_id, "--html", "--json"))
    assert found == {"file": f"{bench.output}.report.html", "rows": 50, "total": 50}


def test_a_file_that_is_no_report_stays_and_nothing_is_sent(bench):
    bench.prompts(3)
    (bench.path / "notes.html").write_text("mine")
    assert "exists and is no report" in bench.fail("--report", "notes.html", code=2)
    assert "There is no folder" in bench.fail("--report", "no/r.html", code=2)
    assert "cannot be used with --detach" in bench.fail("--report", "r.html", "--detach", code=2)
    assert not bench.upstream.seen
    bench.succeed()
    assert "exists and is no report" in reported(bench, str(bench.output), "--html", "notes.html", code=2)
    assert (bench.path / "notes.html").read_text() == "mine"
    assert "There is no job" in reported(bench, "nothing", "--html", code=2)


def test_the_report_of_another_job_stays(bench):
    bench.prompts(3)
    bench.succeed("--report", "r.html")
    before = (bench.path / "r.html").read_bytes()
    reported(bench, str(bench.output), "--html", "r.html")
    bench.output = bench.path / "other.jsonl"
    bench.succeed()
    said = reported(bench, str(bench.output), "--html", "r.html", code=2)
    assert "is the report of 'in.jsonl → out.jsonl'; name another file" in said
    assert len((bench.path / "r.html").read_bytes()) == pytest.approx(len(before), rel=0.1)


def test_a_report_after_a_stop_and_its_runs(bench):
    bench.upstream.reply = choose(lambda seen: answer() if seen.number <= 20 else status(401, "no key"))
    bench.prompts(40)
    bench.fail("--report", "r.html", code=1)
    data, _ = written(bench.path / "r.html")
    assert data["state"] == "stopped"
    assert len(data["course"]["runs"]) == 1
    bench.upstream.reply = answer()
    bench.succeed("--report", "r.html")
    data, rows = written(bench.path / "r.html")
    assert len(data["course"]["runs"]) == 2
    assert len(rows["state"]) == 40
    seconds = [sample[0] for sample in data["course"]["samples"]]
    assert seconds == sorted(seconds)


def made(path: Path, outcomes: list[Outcome], prompts: list[str]) -> Folder:
    """Return the folder of a job with these outcomes."""
    source, output = path / "in.jsonl", path / "out.jsonl"
    source.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts))
    folder = JobFolders(path / "jobs", beside_outputs=True).of(output)
    folder.make()
    folder.open()
    files = opened([InputFile(source)])
    own = {"input": InputSpec(path=source, format="jsonl"), "output": OutputSpec(path=output, format="jsonl")}
    spec, _ = ingest(folder.store, spec_of("jsonl").model_copy(update=own), input_of(files, "jsonl"), Work(), files)
    folder.put(spec=spec, status={"state": "finished", "total": len(outcomes)})
    asked = [row.asked for row in folder.store.rows()]
    folder.store.write([record_of(at, outcome, asked[at]) for at, outcome in enumerate(outcomes)])
    folder.close()
    return folder


@pytest.mark.thorough
@pytest.mark.parametrize("length", [1, 300])
def test_a_large_report_cuts_texts_first_and_then_leaves_out_rows(tmp_path, monkeypatch, length):
    monkeypatch.setattr(page, "LARGEST_REPORT", 98_000)
    monkeypatch.setattr(page, "_LEAST", 1_000)
    texts = [base64.b64encode(os.urandom(length)).decode() for _ in range(600 if length > 1 else 20_000)]
    folder = made(tmp_path, [Completion(text) for text in texts], texts)
    target = tmp_path / "r.html"
    found = job_page.write(folder, target)
    data, rows = written(target)
    assert 50_000 < target.stat().st_size <= 98_000
    assert len(rows["state"]) == found.rows < found.total == len(texts)
    assert f"A random sample of {found.rows:,} of {found.total:,} rows" in data["rows"]["note"]
    assert ("Texts of more than 80 characters" in data["rows"]["note"]) == (length == 300)
    assert found.rows > 200


def test_only_a_sample_of_very_many_rows(tmp_path, monkeypatch):
    monkeypatch.setattr(job_page, "MOST_REPORT_ROWS", 50)
    folder = made(tmp_path, [Completion("yes", usage=Usage(1, 1))] * 70, [f"prompt {at}" for at in range(70)])
    found = job_page.write(folder, tmp_path / "r.html")
    data, rows = written(tmp_path / "r.html")
    assert (found.rows, found.total) == (50, 70)
    assert data["rows"]["note"].startswith("A random sample of 50 of 70 rows; counts and charts are of all.")
    assert counts_of(data) == {"yes": 70}
    assert len(rows["state"]) == 50


def hostile(path: Path) -> Path:
    """Return a report whose every text is hostile."""
    outcomes: list[Outcome] = [Completion(text) for text in HOSTILE for _ in range(3)]
    outcomes += [Failure(PromptmillError(Code.BAD_REQUEST, text, ""), 1) for text in HOSTILE]
    folder = made(path, outcomes, [f"{HOSTILE[at % len(HOSTILE)]} {at}" for at in range(len(outcomes))])
    job_page.write(folder, path / "r.html")
    return path / "r.html"


def test_hostile_texts_are_data_alone(tmp_path):
    text = hostile(tmp_path).read_text(encoding="utf-8")
    assert len(re.findall(r"<script", text)) == 3
    assert "<img" not in text
    assert "<svg onload" not in text
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', text)
    assert policy is not None
    assert re.fullmatch(
        r"default-src 'none'; script-src 'sha256-\S{44}'; style-src 'sha256-\S{44}' 'sha256-\S{44}'; img-src data:; "
        r"base-uri 'none'; form-action 'none'",
        policy[1],
    )
    assert not re.search(r"(src|href)=[\"']?(https?:)?//", text)


def test_200_answers_have_histograms(tmp_path):
    answers: list[Outcome] = [
        Completion(f"word {at}", usage=Usage(1, 1 + at % 2), latency_s=0.0996 + at / 50_000) for at in range(200)
    ]
    job_page.write(made(tmp_path, answers, ["a"] * 200), tmp_path / "r.html")
    data, _ = written(tmp_path / "r.html")
    assert [one["title"] for one in data["spreads"]] == ["Latency", "Length of answers", "Tokens of answers"]
    assert all(sum(one["counts"]) == 200 for one in data["spreads"])
    assert data["spreads"][0]["words"] == "half up to 0.102, 95 % up to 0.103, longest 0.104 s"


def test_labels_and_equal_times_have_no_histograms(tmp_path):
    answers: list[Outcome] = [
        Completion(("yes", "maybe")[at % 2], usage=Usage(1, 1 + at % 2), latency_s=1) for at in range(200)
    ]
    job_page.write(made(tmp_path, answers, ["a"] * 200), tmp_path / "r.html")
    data, _ = written(tmp_path / "r.html")
    assert data["spreads"] == []
    assert data["counts"][0][2] == [["maybe", 100, "(50.0 %)"], ["yes", 100, "(50.0 %)"]]


@pytest.mark.thorough
def test_no_folder_is_named_outside_of_the_command(bench):
    bench.prompts(2)
    bench.succeed("--report", "r.html")
    data, _ = written(bench.path / "r.html")
    facts = dict(data.pop("run"))
    assert (facts["Input"], facts["Output"]) == ("in.jsonl", "out.jsonl")
    assert str(bench.path) not in json.dumps(data)


async def press(page: browser.Page, key: str) -> None:
    """Press a key, in whatever has the focus."""
    text = {"text": "\r" if key == "Enter" else key} if len(key) == 1 or key == "Enter" else {}
    code = {"Enter": 13, "Escape": 27, "ArrowRight": 39}.get(key, 0)
    await page.send("Input.dispatchKeyEvent", type="keyDown", key=key, windowsVirtualKeyCode=code, **text)
    await page.send("Input.dispatchKeyEvent", type="keyUp", key=key)


FIRST_CELLS = "[...document.querySelectorAll('#table tbody tr[tabindex] td:nth-child(2)')].map(td => td.textContent)"


@pytest.mark.thorough
@pytest.mark.skipif(not browser.BROWSER, reason="needs Chromium")
async def test_the_table_sorts_hides_and_finds_by_address_and_keys(tmp_path):
    prompts = [f"{name} {at}" for at, name in enumerate(("zebra", "Éclair", "apple", "10", "echo"))]
    job_page.write(
        made(tmp_path, [Completion(text) for text in ("9", "10", "", "-1", "2.5")], prompts), tmp_path / "r.html"
    )
    async with browser.opened() as page:
        await page.look(1280, 900, "light")
        await page.open(tmp_path / "r.html")
        assert await page.until("document.getElementById('count').textContent") == "All 5 rows."
        await page.run("rowsBox.scrollIntoView()")
        await page.run("document.querySelectorAll('#table th button')[1].click()")
        assert await page.run(FIRST_CELLS) == ["10 3", "apple 2", "echo 4", "Éclair 1", "zebra 0"]
        await page.run("document.querySelectorAll('#table th button')[2].click()")
        second = FIRST_CELLS.replace("child(2)", "child(3)")
        assert await page.run(second) == ["-1", "2.5", "9", "10", ""]
        await page.run("document.querySelectorAll('#table th button')[2].click()")
        assert await page.run(second) == ["10", "9", "2.5", "-1", ""]
        await page.run("boxes[columns.findIndex(column => column.name === 'prompt')].click()")
        assert await page.run(FIRST_CELLS) == ["10", "9", "2.5", "-1", ""]
        assert await page.run("location.hash") == "#sort=answer&down=1&column=answer"

        await page.run("document.body.focus()")
        await press(page, "/")
        assert await page.run("document.activeElement.id") == "search"
        for letter in "ÉCLAIR":
            await page.send("Input.insertText", text=letter)
        await page.until("document.getElementById('count').textContent === '1 of 5 rows.'")
        address = await page.run("location.href")
        await press(page, "Escape")
        assert await page.run("document.getElementById('count').textContent") == "All 5 rows."

        for key in "jjkj":
            await press(page, key)
        assert await page.run("document.querySelector('tr.here td:nth-child(2)').textContent") == "9"
        await press(page, "Enter")
        assert await page.run("title.textContent") == "Row 1"
        await press(page, "j")
        assert await page.run("title.textContent") == "Row 5"
        await press(page, "Escape")
        assert not await page.run("dialog.open")
        before = await page.run("seen.map(share)")
        assert len(before) == 1

        await page.run(f"location.href = {address!r}")
        await page.until("document.getElementById('count').textContent === '1 of 5 rows.'")
        assert await page.run("[search.value, seen.length]") == ["ÉCLAIR", 1]
        await page.run("change({search: 'no such text', columns: null})")
        assert await page.run("document.querySelector('.nothing').textContent") == "Nothing found. Show all rows"
        await page.run("document.querySelector('.nothing button').click()")
        wide = "[...document.querySelectorAll('#table th')].map(th => th.offsetWidth)"
        _, left, right = await page.run(wide)
        await page.run("document.querySelector('.edge').focus()")
        await press(page, "ArrowRight")
        assert [each - was for each, was in zip((await page.run(wide))[1:], (left, right), strict=True)] == [16, -16]
        inner = "[...main.querySelectorAll('*')].filter(one => /auto|scroll/.test(getComputedStyle(one).overflowY))"
        assert await page.run(f"{inner}.length") == 0
        assert not page.complaints


@pytest.mark.thorough
@pytest.mark.skipif(not (browser.BROWSER and browser.AXE.exists()), reason="needs Chromium and axe-core")
async def test_a_report_has_no_barriers(tmp_path):
    file = hostile(tmp_path)
    async with browser.opened() as page:
        for width, scheme in itertools.product((1200, 360), ("light", "dark")):
            await page.look(width, 844, scheme)
            await page.open(file)
            await page.until("document.getElementById('count').textContent === 'All 28 rows.'")
            assert await page.barriers() == []
            await page.run("choice.open = true; opened(0)")
            assert await page.barriers() == []


@pytest.mark.thorough
@pytest.mark.skipif(not browser.BROWSER, reason="needs Chromium")
async def test_a_browser_shows_searches_and_filters_and_runs_nothing(tmp_path):
    file = hostile(tmp_path)
    async with browser.opened() as page:
        await page.open(file)
        assert await page.until("document.getElementById('count').textContent") == "All 28 rows."
        for width, scheme in itertools.product((1200, 390), ("light", "dark")):
            await page.look(width, 844, scheme)
            await page.run("rowsBox.scrollIntoView()")
            await page.until("document.querySelectorAll('#table tbody tr[tabindex]').length > 5")
            assert await page.run("document.documentElement.scrollWidth") <= width
            colour = await page.run("getComputedStyle(document.body).backgroundColor")
            assert colour == ("rgb(15, 18, 21)" if scheme == "dark" else "rgb(246, 247, 249)")
            if folder := os.environ.get("REPORT_PICTURES"):
                (Path(folder) / f"report-{scheme}-{width}.png").write_bytes(await page.picture())
        await page.run("buttons.failed.click()")
        assert await page.run("document.getElementById('count').textContent") == "7 of 28 rows."
        await page.run("document.querySelector('#table tbody tr[tabindex]').click()")
        assert HOSTILE[0] in await page.run("document.querySelector('dialog').textContent")
        await page.run("document.querySelector('dialog [aria-label=close]').click()")
        await page.run("buttons.all.click()")
        await page.run("search.value = 'ONERROR'; search.dispatchEvent(new Event('input'))")
        assert await page.until("document.getElementById('count').textContent === '7 of 28 rows.'")
        await page.run("document.querySelector('.bar').click()")
        assert await page.run("document.getElementById('count').textContent") == "3 of 28 rows."
        assert not await page.run("'hacked' in window")
        assert await page.run("document.querySelectorAll('img').length") == 0
        injected = "const made = document.createElement('div'); made.innerHTML = '<img src=x onerror=hacked()>'; 1"
        assert not page.complaints
        assert page.requests[0].startswith("file:")
        assert {url.partition(":")[0] for url in page.requests} <= {"file", "data"}
        assert len([url for url in page.requests if url.startswith("file:")]) == 1
        await page.run(
            f"{{ {injected}; document.body.append(made); 1 }}"
        )  # the policy stops what a mistake would let in
        assert await page.until("document.querySelectorAll('img').length")
        assert not await page.run("'hacked' in window")


@pytest.fixture
def invoices(bench):
    (bench.path / "pdfs").mkdir()
    for number in range(3):
        pdf_of_texts(bench.path / "pdfs" / f"{number}.pdf", ["Terms.", f"Total: 8{number} EUR"])

    def reply(seen: Any) -> Any:
        number = seen.prompt.partition("Total: ")[2][:2]
        return answer(json.dumps({"total": {"quote": f"Total: {number}", "value": number}}))

    bench.upstream.reply = choose(reply)
    bench.input, bench.output = bench.path / "pdfs", bench.path / "out.csv"
    return bench


@pytest.mark.features("sources")
def test_a_report_has_the_pages_with_quotes(invoices, monkeypatch):
    asked = ("--prompt", "Read it.", "--fields", "total", "--quote", "--report", "r.html")
    invoices.succeed(*asked)
    data, _ = written(invoices.path / "r.html")
    assert [*data["pages"]] == ["1", "2", "3"]
    ((picture,),) = [data["pages"]["1"]]
    with Image.open(io.BytesIO(base64.b64decode(picture["png"]))) as image:
        assert (image.format, max(image.size)) == ("PNG", 1000)
    assert (picture["page"], picture["width"], picture["height"]) == (2, 595.3, 841.9)
    monkeypatch.setattr(job_page, "_PAGES", 2 * len(picture["png"]) + 100)
    job_page.write(invoices.folder, invoices.path / "r.html")
    data, _ = written(invoices.path / "r.html")
    assert [*data["pages"]] == ["1", "2"]
