"""`promptmill topics`: its jobs, its files, its money, and what is left after kills."""

from __future__ import annotations

import csv
import json
import re
import shlex
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

import promptmill
from hidden_topics import PROMPT, SHARES, Knowing, models, table, topic_in
from promptmill.core.errors import PromptmillError
from promptmill.core.feature import WITHOUT
from promptmill.jobs.inputs.any_format import objects_in
from promptmill.jobs.inputs.short_forms import labels_of
from replies import answer, choose, late, status
from waiting import eventually

ROWS = 1200


@pytest.fixture
def reviews(bench, monkeypatch):
    """Return a bench with a table of reviews, of which one has no text, and without an encoder."""
    monkeypatch.setenv(WITHOUT, "embeddings")
    bench.upstream.reply = models()
    bench.input = bench.path / "reviews.csv"
    written(bench.input, [*table(ROWS), {"id": ROWS, "text": " "}])
    return bench


def written(path: Path, rows: list[dict[str, Any]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [*rows[0]])
        writer.writeheader()
        writer.writerows(rows)


def command(bench: Any, *more: str, prompt: str = PROMPT, output: str = "topics.csv", **block: Any) -> list[str]:
    given = (str(bench.input), output, "--prompt", prompt, "--sample", "60", "--held-out", "60")
    found: list[str] = bench.command(*given, *more, command="topics", **block)
    return found


def topics(bench: Any, *more: str, code: int = 0, **options: Any) -> Any:
    done = bench.here(command(bench, *more, **options)[1:])
    assert done.returncode == code, done.stderr + done.stdout
    return done


def figures(bench: Any, *more: str, **options: Any) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(topics(bench, "--json", *more, **options).stdout)
    return found


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.mark.thorough
def test_topics_are_found_written_and_used(reviews):
    text = topics(reviews).stdout
    assert text.startswith("1,201 rows, 1 of them empty: topics from 60, tried on 60 others\ntopic")
    assert "\nthe shares of all rows are estimated from the 60 rows that were labelled\n\non 60 held-out rows " in text
    assert "asked again with the labels in another order, 100.0 % get the same label (95 %: 94.0 to 100.0 %)" in text
    assert "a topic of less than 4.9 % of the rows may be missing" in text
    found = read(reviews.path / "topics.csv")
    assert [*found[0]] == ["label", "definition", "share", "share_from", "share_to", "quote_1", "quote_2"]
    assert found[-1]["label"] == "other"
    assert sum(float(row["share"]) for row in found) == pytest.approx(1, abs=0.001)
    texts = [row["text"] for row in read(reviews.input)]
    assert all(row["quote_1"] in text for row in found[:-1] for text in texts if topic_in(row["label"]) in text)
    assert all(float(row["share_from"]) <= float(row["share"]) <= float(row["share_to"]) for row in found)
    assert [*labels_of(reviews.path / "topics.csv").texts] == [row["label"] for row in found]
    use = text.rpartition("\n  promptmill ")[2].strip()
    assert use.startswith(f"bulk {reviews.input} labels.csv --prompt '{PROMPT}' --choices topics.csv ")
    asked = Counter(seen.prompt for seen in reviews.upstream.seen)
    reviews.upstream.seen.clear()
    done = reviews.here(["promptmill", *shlex.split(use)])
    assert done.returncode == 0, done.stderr
    assert len(reviews.upstream.seen) == ROWS - 60
    assert not {prompt for prompt, times in asked.items() if times == 2} & {
        seen.prompt for seen in reviews.upstream.seen
    }
    labels = Counter(row["answer"] for row in read(reviews.path / "labels.csv") if row["answer"])
    assert labels.keys() <= {row["label"] for row in found}
    system = reviews.upstream.seen[0].json["messages"][0]["content"]
    assert f"- {found[0]['label']}: {found[0]['definition']}" in system
    assert "- other: none of the other labels fits" in system


def test_labels_of_all_rows_are_not_paid_twice_unless_the_list_is_edited(reviews):
    written(reviews.input, table(90))
    text = topics(reviews).stdout
    assert (
        "topics.csv has the topics; all 90 rows with text are labelled, and this command writes the labels:\n" in text
    )
    use = ["promptmill", *shlex.split(text.rpartition("\n  promptmill ")[2])]
    reviews.upstream.seen.clear()
    done = reviews.here(use)
    assert done.returncode == 0, done.stderr
    assert not reviews.upstream.seen
    assert "which are used, were made with another" not in done.stderr + done.stdout
    labels = [row["answer"] for row in read(reviews.path / "labels.csv")]
    file = reviews.path / "topics.csv"
    renamed = read(file)[0]["label"]
    file.write_text(file.read_text().replace(renamed, "renamed"))
    done = reviews.here([word.replace("labels.csv", "other.csv") for word in use])
    assert "which are used, were made with another system prompt" in done.stdout
    assert len(reviews.upstream.seen) == labels.count(renamed) > 0
    assert renamed not in {row["answer"] for row in read(reviews.path / "other.csv")}


def test_a_search_that_is_done_asks_nothing_and_says_the_same(reviews):
    first = figures(reviews)
    content = (reviews.path / "topics.csv").read_bytes()
    reviews.upstream.seen.clear()
    assert figures(reviews) == first
    assert (reviews.path / "topics.csv").read_bytes() == content
    assert not reviews.upstream.seen
    assert figures(reviews, "--set", "sampling_params.n=1") == first
    said = topics(reviews).stdout
    assert re.search(rf"\n0 requests now; the search took {first['requests']} in [\d.]+ s\n", said)
    assert "are those of" not in said
    estimate = topics(reviews, "--dry-run").stdout
    assert "\n0 requests" in estimate, "the answers of a finished search are known"
    assert first["requests"] == 3 + 1 + 1 + 60 + 60 + (5 + 60 if first["is_split"] else 0)


@pytest.mark.parametrize("suffix", [".tsv", ".json", ".jsonl", ".xlsx", ".parquet"])
def test_each_format_is_read_as_choices_and_written_once(reviews, suffix):
    file = reviews.path / f"topics{suffix}"
    found = figures(reviews, output=file.name)
    labels = labels_of(file)
    assert [*labels.texts] == [each["label"] for each in found["topics"]]
    assert labels.definitions["other"] == "none of the other labels fits"
    rows = [*objects_in(file)]
    assert float(rows[0]["share"]) == round(found["topics"][0]["share"], 4)
    assert isinstance(rows[0]["share"], str if suffix == ".tsv" else float)
    assert figures(reviews, output=file.name) == found, "two workbooks with the same cells have other bytes"


def test_a_dry_run_sends_nothing_and_names_each_step(reviews):
    price = ("--set", "price={input: 1, output: 5}", "--dry-run")
    text = topics(reviews, *price).stdout
    assert "topics of 60 rows" in text
    assert "labels of 60 held-out rows *" in text
    assert "* only if more than 5 % of the held-out rows fit no topic\n125 requests, about $" in text
    assert "with the steps * 190 requests, about $" in text
    limited = figures(reviews, *price, "--max-tokens", "20")
    assert 0 < limited["certain"]["estimated_cost"] < limited["certain"]["most_cost"] < limited["all"]["most_cost"]
    assert not reviews.upstream.seen
    assert not (reviews.path / "topics.csv").exists()
    assert "no price is known for test-model" in topics(reviews, "--dry-run").stdout
    estimate = figures(reviews, *price)
    found = figures(reviews, *price[:-1])
    assert found["requests"] in {estimate["certain"]["requests"], estimate["all"]["requests"]}


def test_a_dry_run_counts_what_is_sent_if_no_step_is_repeated(reviews):
    written(reviews.input, table(150))
    estimate = figures(reviews, "--dry-run")
    assert estimate["certain"]["requests"] == 3 + 1 + 1 + 60 + 60
    assert estimate["all"]["requests"] == 3 + 1 + 1 + 60 + 3 + 1 + 1 + 30 + 30 or len(estimate["steps"]) == 5
    found = figures(reviews)
    assert found["requests"] in {estimate["certain"]["requests"], estimate["all"]["requests"]}


@pytest.mark.thorough
def test_a_search_of_changed_rows_sends_what_has_changed(reviews):
    rows = table(ROWS)
    written(reviews.input, rows)
    first = figures(reviews)
    before = Counter(seen.prompt for seen in reviews.upstream.seen)
    reviews.upstream.seen.clear()
    labelled = [row for row in rows if before[PROMPT.replace("{{text}}", row["text"])] == 2]
    labelled[0]["text"] += "!"
    written(reviews.input, rows)
    found = figures(reviews, output="other.csv")
    assert found["stability"]["rows"] == first["stability"]["rows"]
    prompts = Counter(seen.prompt for seen in reviews.upstream.seen)
    assert prompts == {PROMPT.replace("{{text}}", labelled[0]["text"]): 2}, "a label in each order"


@pytest.mark.thorough
def test_a_search_that_takes_the_answers_of_another_one_names_it(reviews):
    first = figures(reviews)
    reviews.upstream.seen.clear()
    (reviews.path / "other").mkdir()
    said = " ".join(topics(reviews, output="other/topics.csv").stdout.split())
    assert not reviews.upstream.seen
    assert f" {first['requests']} answers are those of {reviews.path / 'topics.csv'} " in said


def test_the_jobs_of_a_search_lie_beside_its_output(reviews):
    first = figures(reviews)
    hidden = reviews.path / ".promptmill"
    jobs = {path.name for path in (hidden / "topics.csv.jobs").iterdir()}
    assert {*first["jobs"]} < jobs
    assert (hidden / ".gitignore").read_text() == "*\n"

    def of_search(*more: str, code: int = 0) -> Any:
        done = reviews.here(["promptmill", "jobs", "topics.csv", *more])
        assert done.returncode == code, done.stderr
        return done

    listed = json.loads(of_search("--json").stdout)["jobs"]
    assert {job["job_id"] for job in listed} == jobs
    assert first["jobs"][0] in of_search().stdout
    assert f"topics.csv has {len(jobs)} jobs; name one: " in of_search("--resume", code=2).stderr
    done = reviews.here(["promptmill", "jobs", first["jobs"][0], "--rows", "1"])
    assert "What do guests" in done.stdout, done.stderr
    reviews.upstream.seen.clear()
    moved = reviews.path / "moved"
    moved.mkdir()
    for name in ("topics.csv", ".promptmill"):
        (reviews.path / name).rename(moved / name)
    assert figures(reviews, output="moved/topics.csv") | {"output_file": ""} == first | {"output_file": ""}
    assert not reviews.upstream.seen, "jobs move with their output"
    assert reviews.here(["promptmill", "jobs", "moved/topics.csv", "--forget"]).returncode == 0
    assert not (moved / ".promptmill").exists()
    figures(reviews, "--overwrite", output="moved/topics.csv")
    assert len(reviews.upstream.seen) == first["requests"]


def test_the_proposed_output_is_free_or_has_labels_by_the_same_prompt(reviews):
    written(reviews.input, table(150))
    (reviews.path / "labels.csv").write_text("mine\n")
    text = topics(reviews).stdout
    assert f"bulk {reviews.input} labels-2.csv " in text
    (reviews.path / "labels.csv").unlink()
    use = ["promptmill", *shlex.split(topics(reviews).stdout.rpartition("\n  promptmill ")[2])]
    assert reviews.here(use).returncode == 0
    text = topics(reviews).stdout
    assert "; this command labels the rows that labels.csv lacks:\n" in text
    assert f"bulk {reviews.input} labels.csv " in text
    sent = len(reviews.upstream.seen)
    assert reviews.here(["promptmill", *shlex.split(text.rpartition("\n  promptmill ")[2])]).returncode == 0
    assert len(reviews.upstream.seen) == sent


def test_the_file_of_something_else_is_not_replaced(reviews):
    file = reviews.path / "topics.csv"
    file.write_text("mine\n")
    assert "topics.csv exists; name another file; --overwrite replaces it." in topics(reviews, code=2).stderr
    assert not reviews.upstream.seen
    file.unlink()
    topics(reviews)
    found = file.read_bytes()
    file.write_text("mine\n")
    done = topics(reviews, code=2)
    assert "exists and has another content" in done.stderr
    assert "on 60 held-out rows" in done.stdout, "what was paid for is shown"
    assert file.read_text() == "mine\n"
    sent = len(reviews.upstream.seen)
    done = topics(reviews, "--most", "5", code=2)
    assert "topics.csv exists; name another file; --overwrite replaces it." in done.stderr
    assert len(reviews.upstream.seen) == sent, "a step that is not paid yet is not begun"
    (reviews.path / "topics.csv.new").write_text("mine, too\n")
    topics(reviews, "--overwrite")
    assert file.read_bytes() == found
    assert len(reviews.upstream.seen) == sent
    assert (reviews.path / "topics.csv.new").read_text() == "mine, too\n"
    assert not [*reviews.path.glob(".promptmill-*")]


@pytest.mark.parametrize(
    "given", ["n=2", "together=4", "quote=true", "web=true", "response_format={type: json_object}"]
)
def test_another_form_of_answers_is_refused(reviews, given):
    done = topics(reviews, "--set", f"sampling_params.{given}", code=2)
    name = given.partition("=")[0]
    assert f"sampling_params.{name}: a search for topics decides itself about the form of answers" in done.stderr
    assert not reviews.upstream.seen


@pytest.mark.thorough
@pytest.mark.skipif(find_spec("openvino") is None, reason="needs OpenVINO")
@pytest.mark.features("embeddings")
def test_rows_that_cover_the_texts_are_chosen_once(reviews, monkeypatch):
    monkeypatch.delenv(WITHOUT)
    assert "topics of 60 rows, and of 30 that differ from them" in topics(reviews, "--dry-run").stdout
    done = topics(reviews)
    assert "vectors of 300 rows on this machine" in done.stderr
    assert done.stdout.startswith(
        "1,201 rows, 1 of them empty: topics from 60 random ones and 30 chosen to cover 300, tried on 60 others\n"
    )
    assert len(reviews.upstream.seen) in {3 + 2 + 1 + 1 + 120, 3 + 2 + 1 + 1 + 120 + 65}
    found, sent = figures(reviews), len(reviews.upstream.seen)
    assert found["may_miss"] > 0.02
    assert found["requests"] == sent, "a vector is no request"
    assert figures(reviews) == found
    assert len(reviews.upstream.seen) == sent


class Paid(Knowing):
    """Counts the words of its replies, each of which costs $0.01."""

    words = 0

    def list_for(self, prompt: str) -> list[dict[str, Any]]:
        found = super().list_for(prompt)
        self.words += len(json.dumps({"topics": found}).split())
        return found

    def label_for(self, prompt: str, labels: Sequence[str]) -> str:
        found = super().label_for(prompt, labels)
        self.words += len(json.dumps({"answer": found}).split())
        return found


@pytest.mark.thorough
def test_a_search_stops_at_its_budget_and_goes_on_later(reviews):
    price = ("--set", "price={input: 0, output: 10000}", "--max-tokens", "4", "--concurrency", "1")
    figures(reviews, *price, "--state", str(reviews.path / "other"), output="other.csv")
    once = asked(reviews)
    reviews.upstream.seen.clear()
    paid, stops, limit = Paid(), 0, 0.0
    reviews.upstream.reply = models(paid)
    while not (reviews.path / "topics.csv").exists():
        limit += 0.83 if limit else 50.0  # the longest list may cost $48.64
        done = reviews.here(command(reviews, *price, "--max-cost", f"{limit:.2f}")[1:])
        assert paid.words / 100 <= limit
        if done.returncode != 0:
            stops += 1
            assert done.returncode == 75, done.stderr
            assert f"the search stopped: ${paid.words / 100:.2f} are spent in all; the same command" in done.stderr
    assert stops > 2
    assert asked(reviews) == once
    assert f", ${paid.words / 100:.2f}\n" in done.stdout
    assert read(reviews.path / "topics.csv") == read(reviews.path / "other.csv")


def asked(bench: Any) -> Counter[str]:
    """Return how often each request was sent: a row is labelled with the labels in two orders."""
    return Counter(json.dumps(seen.json, sort_keys=True) for seen in bench.upstream.seen)


@pytest.mark.thorough
def test_failed_requests_are_named_and_sent_again_on_demand(reviews):
    reviews.upstream.reply = models(lost=lambda prompt: prompt.startswith("What do guests") and "7: not" in prompt)
    first = figures(reviews)
    assert first["rows"]["failed"] > 0
    assert any("rows failed in the step: labels of 60 held-out rows" in note for note in first["notes"])
    reviews.upstream.reply = models()
    reviews.upstream.seen.clear()
    assert figures(reviews) == first
    assert not reviews.upstream.seen
    again = figures(reviews, "--again", "failed")
    assert again["rows"]["failed"] == 0
    assert not again["notes"]
    assert [row["label"] for row in read(reviews.path / "topics.csv")] == [each["label"] for each in again["topics"]]


@pytest.mark.thorough
def test_a_list_that_was_edited_is_not_replaced_when_failed_requests_are_sent_again(reviews):
    reviews.upstream.reply = models(lost=lambda prompt: prompt.startswith("What do guests") and "7: not" in prompt)
    figures(reviews)
    file = reviews.path / "topics.csv"
    written_by_search = file.read_bytes()
    edited = written_by_search.replace(b"About", b"All about", 1)
    file.write_bytes(edited)
    sent = len(reviews.upstream.seen)
    said = "topics.csv exists, and is not as this search wrote it; name another file; --overwrite replaces it."
    assert said in topics(reviews, "--again", "failed", code=2).stderr
    assert (len(reviews.upstream.seen), file.read_bytes()) == (sent, edited)
    reviews.upstream.reply = models()
    topics(reviews, "--again", "failed", output="other.csv")
    file.write_bytes(written_by_search)
    topics(reviews, "--again", "failed")
    assert file.read_bytes() == (reviews.path / "other.csv").read_bytes() != written_by_search


def test_several_files_are_one_table(reviews):
    rows = table(ROWS)
    folder = reviews.path / "parts"
    folder.mkdir()
    for at in range(3):
        written(folder / f"{at}.csv", rows[at::3])
    reviews.input = folder
    found = figures(reviews, output="parts/topics.csv")
    assert found["rows"]["all"] == ROWS
    done = topics(reviews, "--json", output="parts/topics.csv")
    assert "1 file left out, as it is the output: " in done.stderr
    assert json.loads(done.stdout) == found, "the topics are no rows"
    names = [str(folder / f"{at}.csv") for at in range(3)]
    given = [*names, "several.csv", "--prompt", PROMPT, "--sample", "60", "--held-out", "60"]
    text = reviews.here(reviews.command(*given, command="topics")[1:]).stdout
    assert f"promptmill bulk {shlex.join(names)} labels.csv --prompt '{PROMPT}' --choices several.csv " in text
    assert read(reviews.path / "several.csv") == read(folder / "topics.csv"), "they are the same rows"


@pytest.mark.thorough
def test_a_step_of_which_most_requests_fail_ends_the_search(reviews):
    reviews.upstream.reply = models(lost=lambda prompt: "Records:" in prompt)
    done = topics(reviews, code=2)
    assert "3 of 3 requests failed in the step: topics of 60 rows; the first error: " in done.stderr
    assert done.stderr.count("No.") == 1, "the failure of a step is reported once"
    assert " answered 400: No. " in done.stderr
    assert "--again failed sends them again." in done.stderr
    reviews.upstream.reply = models()
    topics(reviews, "--again", "failed")


@pytest.mark.parametrize(
    ("reply", "problem"),
    [
        (answer("Noise, I think."), "it is not JSON, it begins with 'Noise, I think.'"),
        (answer('{"topics": [{"lab', finish_reason="length"), "it was cut off, and it is not JSON, "),
    ],
)
def test_a_reply_without_a_list_is_not_blamed_on_a_schema_of_the_user(reviews, reply, problem):
    reviews.upstream.reply = reply
    done = topics(reviews, "--set", "check_retries=0", code=2)
    assert f"the first error: the reply is no list of topics: {problem}" in done.stderr
    assert "; use a stronger model. --again failed sends them again." in done.stderr
    assert "chema" not in done.stderr


def test_a_model_that_cannot_be_asked_ends_the_search(reviews):
    reviews.upstream.reply = status(404, "The model `nix` does not exist", code="model_not_found")
    done = topics(reviews, code=1)
    assert "does not exist" in done.stderr
    assert not done.stdout


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"prompt": "About? {{txt}}"}, "--prompt: the input has no column 'txt'; did you mean text?"),
        ({"prompt": "What do guests complain about?"}, "--prompt names no column; write it in double braces"),
        ({"prompt": ""}, "--prompt is empty"),
        ({"more": ["--most", "0"]}, "--most: '0' must be at least 1"),
        ({"more": ["--most", "1000"]}, "--most is 1,000; a job takes at most 999 labels"),
        ({"more": ["--held-out", "many"]}, "--held-out: 'many' is not a whole number"),
        ({"more": ["--encoding", "nix"]}, "--encoding: 'nix' is no encoding; use cp1252"),
        ({"output": "topics.docx"}, "topics.docx is no name for topics: it ends in .jsonl, .json, .csv, .tsv"),
        ({"output": "topics.arrow"}, "topics.arrow is no name for topics: it ends in "),
        ({"output": "none/topics.csv"}, "of the output is missing; make it, or name another"),
        ({"output": "reviews.csv"}, "Input and output are the same file"),
        ({"more": ["--labels", "5"]}, "unknown option --labels"),
        ({"input": "missing.csv"}, "There is no input file "),
        ({"input": "empty.csv"}, "empty.csv"),
        (
            {"input": "latin.csv"},
            "60 rows are in another encoding, the first in line 2; --encoding cp1252 reads line 2",
        ),
        (
            {"input": "photos"},
            "--prompt has no {{content}}, which is the text of each file; topics are found in texts.",
        ),
        ({"input": "blank.csv"}, "The input has 0 rows with text, and 60 empty ones"),
        ({"input": "header.csv"}, "The input has no rows"),
        ({"input": "topics.docx"}, "--prompt has no {{content}}"),
        ({"input": "topics.docx", "prompt": "About? {{content}}"}, "topics.docx"),
    ],
)
def test_mistakes_are_named_before_anything_is_sent(reviews, given, said):
    (reviews.path / "empty.csv").write_text("")
    (reviews.path / "latin.csv").write_bytes("text\nübel\n".encode("latin-1") * 60)
    (reviews.path / "blank.csv").write_text("id,text\n" + "1,\n" * 60)
    (reviews.path / "header.csv").write_text("id,text\n")
    (reviews.path / "topics.docx").write_bytes(b"no document")
    (reviews.path / "photos").mkdir()
    (reviews.path / "photos" / "a.png").write_bytes(b"no photo")
    if "input" in given:
        reviews.input = reviews.path / given["input"]
    options = {name: value for name, value in given.items() if name in {"prompt", "output"}}
    assert said in topics(reviews, *given.get("more", ()), **options, code=2).stderr
    assert not reviews.upstream.seen


def test_in_python(reviews, monkeypatch):
    monkeypatch.chdir(reviews.path)
    given: dict[str, Any] = {
        "sample": 60,
        "held_out": 60,
        "output": "topics.csv",
        "base_url": reviews.upstream.url,
        "api_key": "key",
        "model": "small",
        "progress": False,
    }
    rows = read(reviews.input)
    found = promptmill.topics(rows, PROMPT, **given)
    assert {topic_in(topic.label) for topic in found.topics} - {""} <= SHARES.keys()
    assert [*found.choices] == [*labels_of(Path("topics.csv")).texts]
    assert {*found.choices} == {topic.label for topic in found.topics}
    shares = [topic.share.share for topic in found.topics[:-1] if topic.share is not None]
    assert shares == sorted(shares, reverse=True)
    first = found.topics[0]
    assert first.share is not None
    assert first.share.interval[0] < first.share.share < first.share.interval[1]
    assert first.definition == f"About {first.label}."
    assert any(first.quotes[0] in row["text"] for row in rows)
    assert found.no_label is not None
    assert found.stability == (1.0, found.stability.interval if found.stability else (), 60)
    assert found.cost is None
    assert str(found).startswith("1,201 rows, 1 of them empty")
    assert repr(found).startswith("<Topics: ")
    reviews.upstream.seen.clear()
    assert promptmill.topics(rows, PROMPT, **given).figures == found.figures
    assert not reviews.upstream.seen
    used = {name: given[name] for name in ("base_url", "api_key", "model", "progress")}
    promptmill.bulk(rows[:-1], "l.csv", prompt=PROMPT, choices=found.choices, from_job=found.jobs, **used)
    assert len(reviews.upstream.seen) == ROWS - 60
    for wrong, said in (
        ({"most": 0}, "`most` is 0; it is a whole number from 1 on."),
        ({"sample": 1.5}, "`sample` is 1.5"),
        ({"model": ["a", "b"]}, "`model` is one model"),
        ({"output": "topics.xls"}, "is no name for topics"),
        ({"most": 5}, "exists; name another file; `overwrite` replaces it"),
        ({"settings": {"sampling_params.n": 2}}, "sampling_params.n: a search for topics decides itself"),
    ):
        with pytest.raises(PromptmillError, match=said):
            promptmill.topics(rows, PROMPT, **{**given, **wrong})
    with pytest.raises(PromptmillError, match="`prompt` names no column"):
        promptmill.topics(rows, "x", **given)
    Path("own.csv").write_text("mine\n")
    with pytest.raises(PromptmillError, match="exists; name another file; `overwrite` replaces it"):
        promptmill.topics(rows, "Topic? {{text}}", **{**given, "output": "own.csv"})


STEPS = {"lists": 2, "merged": 4, "defined": 5, "labels": 30, "again": 90}
"""For each step a request in it, by its number."""


def killed_at(bench: Any, number: int) -> None:
    """Kill a search when the endpoint has got so many requests, the last of which it does not answer."""
    bench.upstream.reply = choose(lambda seen: models() if seen.number < number else late(None))
    process = subprocess.Popen(
        command(bench, concurrency=1), cwd=bench.path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        eventually(lambda: len(bench.upstream.seen) >= number)
    finally:
        process.kill()
        process.wait()
    eventually(lambda: not bench.upstream.open)
    bench.upstream.reply = models()


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL")
def test_after_a_kill_answers_that_are_stored_count_for_the_earlier_run(reviews):
    killed_at(reviews, STEPS["labels"])
    estimate = figures(reviews, "--dry-run")
    reviews.upstream.seen.clear()
    said = topics(reviews).stdout
    sent = len(reviews.upstream.seen)
    told = re.search(r"\n(\d+) requests now; the search took (\d+) in", said)
    assert told is not None
    assert sent <= int(told[1]) <= sent + 1, "and the request that the kill cut off"
    assert {
        step["step"]: step["requests"] for step in estimate["steps"] if 0 < step["requests"] < 60 and step["is_certain"]
    } == {"labels of 60 held-out rows": 60 - 24}


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL")
@pytest.mark.thorough
def test_a_search_that_is_killed_in_each_step_pays_for_nothing_twice(reviews):
    whole = figures(reviews, "--state", str(reviews.path / "other"), output="other.csv")
    once = asked(reviews)
    reviews.upstream.seen.clear()
    for kills, number in enumerate(STEPS.values()):
        killed_at(reviews, number + kills)
    found = figures(reviews)
    same = {"seconds": 0, "requests": 0, "output_file": ""}
    assert found | same == whole | same
    assert read(reviews.path / "topics.csv") == read(reviews.path / "other.csv")
    twice = (asked(reviews) - once).total()
    assert len(STEPS) <= twice <= 2 * len(STEPS), "the request in flight, and an answer that was not stored yet"
