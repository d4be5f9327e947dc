"""A person's minute: the rows that are worth it, and the labels that return."""

from __future__ import annotations

import asyncio
import csv
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

import browser
import killed
import promptmill
from all_features import need
from labellers import LABELS, label, labellers, named, sent
from page_content import written
from promptmill.core.values import text_of
from promptmill.features.review import review_page
from promptmill.features.review.reviewed import review
from promptmill.jobs.inputs.any_format import objects_in
from promptmill.jobs.store.lock import Lock
from promptmill.jobs.store.records import PERSON, SLOT
from replies import answer, choose, status
from waiting import PATIENCE_S

ROWS = 60
LABELLED = (
    *("--prompt", "Is it positive? {{text}}", "--choices", ",".join(LABELS), "--model", "small"),
    *("--set", "sampling_params.seed=0"),  # so that a request says which vote it is: 1, 2, or 3
)
POINTS = ("before-put", "after-put", "before-write", "after-write", "merging:20", "before-rename", "after-rename")


def ballots(number: int) -> list[str]:
    """Return the votes on a row: every tenth row has a tie, every other fifth row a vote that differs."""
    first = LABELS[number % 3]
    return list(LABELS) if number % 10 == 9 else [first, first, LABELS[1] if number % 5 == 0 else first]


@pytest.fixture
def voted(bench):
    need("labels")
    bench.upstream.reply = choose(
        lambda seen: answer(ballots(int(seen.prompt.rpartition(" ")[2]))[seen.json["seed"] - 1])
    )
    bench.write([{"id": f"r{n}", "text": f"review {n}"} for n in range(ROWS)])
    bench.succeed(*LABELLED, *named(bench), "--votes", "3")
    bench.upstream.seen.clear()
    return bench


def reviewed(bench: Any, *options: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    result = bench.here([sys.executable, "-m", "promptmill", "review", "out.jsonl", *options], bench.path)
    assert result.returncode == code, result.stderr + result.stdout
    return result


def table(bench: Any, *options: str, name: str = "review.xlsx") -> list[dict[str, str]]:
    (bench.path / name).unlink(missing_ok=True)
    reviewed(bench, "-o", name, *options)
    return [{name: text_of(value) for name, value in row.items()} for row in objects_in(bench.path / name)]


def decide(bench: Any, labels: dict[int, str], rows: list[dict[str, str]] | None = None) -> Path:
    """Write decisions by the number of the row."""
    path: Path = bench.path / "decisions.csv"
    keys = {record.row + 1: (record.asked or b"").hex()[:12] for record in bench.records() if not record.slot}
    keys |= {int(row["row"]): row["key"] for row in rows or ()}
    with path.open("w", encoding="utf-8", newline="") as file:
        out = csv.writer(file)
        out.writerow(["row", "label", "key"])
        out.writerows([number, text, keys.get(number)] for number, text in labels.items())
    return path


def spare(bench: Any) -> list[tuple[int, str]]:
    with bench.folder.reading() as store:
        return [(key, text) for key, text in store.read("SELECT key, text FROM spare ORDER BY place")]


# ---- the rows


def test_ties_come_first_then_the_lowest_scores(voted):
    rows = table(voted)
    assert [row["why"] for row in rows] == ["tie"] * 6 + ["votes differ"] * (len(rows) - 6)
    assert [int(row["row"]) for row in rows[:6]] == [10, 20, 30, 40, 50, 60]
    differ = [n + 1 for n in range(ROWS) if n % 10 != 9 and len({*ballots(n)}) == 2]
    assert [int(row["row"]) for row in rows[6:]] == differ
    first = rows[0]
    assert (first["id"], first["text"], first["label"], first["score"]) == ("r9", "review 9", "", "0.3333")
    assert [first[f"vote {at}"] for at in (1, 2, 3)] == list(LABELS)
    assert not voted.upstream.seen


def test_only_so_many_rows_are_listed_and_a_file_is_not_replaced(voted):
    assert len(table(voted, "--rows", "4")) == 4
    assert "name another file" in reviewed(voted, "-o", "review.xlsx", code=2).stderr


def test_a_review_is_no_csv_whose_formulas_excel_would_run(voted):
    assert "ends in .html or .xlsx" in reviewed(voted, "-o", "review.csv", code=2).stderr


@pytest.mark.thorough
def test_a_workbook_offers_the_labels(voted):
    import openpyxl

    reviewed(voted, "-o", "review.xlsx")
    sheet = openpyxl.load_workbook(voted.path / "review.xlsx").worksheets[0]
    assert [cell.value for cell in sheet[1]][:5] == ["row", "label", "answer", "why", "score"]
    (rule,) = sheet.data_validations.dataValidation
    assert {*rule.formula1.strip('"').split(",")} == set(LABELS)
    sheet["B2"] = "neutral"
    sheet.parent.save(voted.path / "review.xlsx")
    assert "1 label taken" in reviewed(voted, "--take", "review.xlsx").stdout
    assert voted.answers()[9]["sure"] == "person"


@pytest.mark.thorough
@pytest.mark.features("labels")
def test_a_sure_job_lists_confident_disagreements_and_rows_near_the_cut(bench):
    rows = 600
    bench.upstream.reply = labellers()
    bench.write([{"id": f"r{n}", "text": f"review {n}"} for n in range(rows)])
    bench.succeed(*LABELLED, *named(bench), "--sure", "strong")
    found, delivered = table(bench, "--rows", str(rows)), bench.answers()
    kinds = [row["why"] for row in found]
    assert kinds == sorted(kinds, key=["the models disagree", "near the cut"].index)
    near = [row for row in found if row["why"] == "near the cut"]
    assert len(near) == sum(row["sure"] == "cheap" for row in delivered)
    scores = [float(row["score"]) for row in near]
    assert scores == sorted(scores)
    for row in found[: kinds.index("near the cut")]:
        assert delivered[int(row["row"]) - 1]["sure"] == "sample"
        assert row["small"] != row["answer"] == label("strong", row["text"])[0]


def test_a_job_with_several_models_lists_where_they_differ(bench):
    bench.upstream.reply = labellers()
    bench.write([{"id": f"r{n}", "text": f"review {n}"} for n in range(ROWS)])
    bench.succeed(*LABELLED, "--model", "strong", *named(bench))
    rows = table(bench, "--rows", "100")
    differ = [n + 1 for n in range(ROWS) if label("small", f"review {n}")[0] != label("strong", f"review {n}")[0]]
    assert [int(row["row"]) for row in rows] == differ
    decide(bench, {differ[0]: "neutral"})
    assert "takes no labels" in reviewed(bench, "--take", "decisions.csv", code=2).stderr


@pytest.mark.thorough
def test_log_probabilities_order_the_rows_of_a_plain_job(bench):
    bench.upstream.reply = labellers()
    bench.write([{"id": f"r{n}", "text": f"review {n}"} for n in range(ROWS)])
    bench.succeed(*LABELLED, *named(bench), "--set", "sampling_params.logprobs=true")
    scores = [float(row["score"]) for row in table(bench)]
    assert scores == sorted(scores)
    assert len(scores) == 50


def test_without_scores_there_is_nothing_to_review(bench):
    bench.upstream.reply = labellers()
    bench.write([{"id": f"r{n}", "text": f"review {n}"} for n in range(3)])
    bench.succeed(*LABELLED, *named(bench))
    assert "Doubt shows with --votes, --sure, several models or log probabilities" in reviewed(bench).stdout
    assert json.loads(reviewed(bench, "--json").stdout)["file"] is None
    reviewed(bench, "-o", "review.xlsx")
    assert not [*bench.path.glob("*review*")]


@pytest.mark.features("compare")
def test_a_random_sample_gives_the_shares_of_all_rows(voted):
    rows = table(voted, "--sample", "30")
    assert len({row["row"] for row in rows}) == 30
    assert {row["why"] for row in rows} == {"at random"}
    assert [row["row"] for row in table(voted, "--sample", "30")] == [row["row"] for row in rows]
    right = {row["id"]: LABELS[(int(row["row"]) - 1) % 3] for row in rows}
    with (voted.path / "review.csv").open("w", encoding="utf-8", newline="") as file:
        out = csv.DictWriter(file, rows[0].keys())
        out.writeheader()
        out.writerows({**row, "label": right[row["id"]]} for row in rows)
    found = promptmill.compare(str(voted.path / "out.jsonl"), gold=f"{voted.path / 'review.csv'}:label")
    gold = found.figures["gold"]
    assert (gold["rows"], gold["of"], gold["matched"]) == (30, ROWS, "by id")
    assert gold["files"][0]["shares"].keys() == set(LABELS)
    reviewed(voted, "--take", "review.csv")
    after = promptmill.compare(str(voted.path / "out.jsonl"), gold=f"{voted.path / 'review.csv'}:label")
    assert "shares" not in after.figures["gold"]["files"][0], "rows of a person do not stand for the others"


# ---- the labels


@pytest.mark.thorough
def test_a_label_of_a_person_becomes_the_answer_and_the_old_one_is_kept(voted):
    rows, before = table(voted), voted.answers()
    decide(voted, {10: "neutral", 20: before[19]["answer"]}, rows)
    assert "2 labels taken, 1 of them changes the answer" in reviewed(voted, "--take", "decisions.csv").stdout
    after = voted.answers()
    assert (after[9]["answer"], after[9]["sure"], after[9]["score"]) == ("neutral", "person", 0.3333)
    assert (after[19]["answer"], after[19]["sure"]) == (before[19]["answer"], "person")
    assert [row for n, row in enumerate(after) if n not in {9, 19}] == [
        row for n, row in enumerate(before) if n not in {9, 19}
    ]
    assert spare(voted) == [(9, before[9]["answer"]), (19, before[19]["answer"])]
    assert not voted.upstream.seen
    values = voted.folder.status["results"]["values"]
    assert sum(values.values()) == ROWS
    assert values["neutral"] == sum(row["answer"] == "neutral" for row in after)
    assert {row["row"] for row in table(voted)} == {row["row"] for row in rows} - {"10", "20"}


def test_the_same_labels_are_taken_once_and_another_one_replaces_it(voted):
    decide(voted, {10: "neutral"})
    reviewed(voted, "--take", "decisions.csv")
    assert "0 labels taken" in reviewed(voted, "--take", "decisions.csv").stdout
    decide(voted, {10: "negative"})
    assert "1 label taken" in reviewed(voted, "--take", "decisions.csv").stdout
    assert voted.answers()[9]["answer"] == "negative"
    assert [text for _, text in spare(voted)][-1] == "neutral"


@pytest.mark.thorough
@pytest.mark.parametrize("nothing", ["-", ""])
def test_a_label_that_is_taken_back_gives_its_row_the_earlier_answer(voted, nothing):
    before = (voted.path / "out.jsonl").read_bytes()
    for text in ("neutral", "negative"):
        reviewed(voted, "--take", str(decide(voted, {10: text, 20: "neutral"})))
    found = reviewed(voted, "--take", str(decide(voted, {10: nothing, 20: nothing, 30: nothing})))
    assert "0 labels taken, 2 labels taken back" in found.stdout
    assert (voted.path / "out.jsonl").read_bytes() == before
    assert not spare(voted)
    assert {"10", "20"} <= {row["row"] for row in table(voted)}, "they are worth a look again"
    assert not voted.upstream.seen


@pytest.mark.thorough
def test_a_label_is_taken_back_after_its_row_has_moved(voted):
    before = voted.answers()[9]["answer"]
    reviewed(voted, "--take", str(decide(voted, {10: "neutral"})))
    voted.write([{"id": "new", "text": "review 100"}, *({"id": f"r{n}", "text": f"review {n}"} for n in range(ROWS))])
    voted.succeed(*LABELLED, *named(voted), "--votes", "3")
    reviewed(voted, "--take", str(decide(voted, {11: "-"})))
    assert (voted.answers()[10]["id"], voted.answers()[10]["answer"]) == ("r9", before)


def test_a_failed_row_whose_label_is_taken_back_has_failed_again(bench):
    bench.upstream.reply = choose(lambda _: status(400, "No.", code="content_filter"))
    bench.write([{"id": 1, "text": "review 1"}])
    bench.run(*LABELLED, *named(bench))
    before = bench.answers()
    reviewed(bench, "--take", str(decide(bench, {1: "neutral"})))
    assert bench.answers()[0]["answer"] == "neutral"
    reviewed(bench, "--take", str(decide(bench, {1: "-"})))
    assert bench.answers() == before
    assert bench.folder.status["failed"] == 1


def test_a_label_of_another_job_that_is_taken_back_leaves_the_row_to_the_next_run(voted):
    reviewed(voted, "--take", str(decide(voted, {10: "neutral"})))
    before = voted.output
    voted.output = voted.path / "other.jsonl"
    voted.succeed(*LABELLED, *named(voted), "--votes", "3", "--from", str(before))
    decide(voted, {10: "-"})
    command = [sys.executable, "-m", "promptmill", "review", "other.jsonl", "--take", "decisions.csv"]
    voted.here(command, voted.path)
    voted.succeed(*LABELLED, *named(voted), "--votes", "3")
    assert voted.answers()[9]["sure"] != "person"


@pytest.mark.thorough
def test_a_table_has_the_labels_that_the_rows_have(voted):
    reviewed(voted, "--take", str(decide(voted, {10: "neutral"})))
    reviewed(voted, "-o", "review.xlsx", "--sample", str(ROWS))
    rows = [*objects_in(voted.path / "review.xlsx")]
    assert [row["row"] for row in rows if row["label"]] == [10]
    assert "0 labels taken.\n" in reviewed(voted, "--take", "review.xlsx").stdout
    reviewed(voted, "--sample", str(ROWS))
    page = (voted.path / "out.jsonl.review.html").read_text(encoding="utf-8")
    assert page.count('"label":"neutral"') == 1


@pytest.mark.thorough
def test_the_page_shows_how_many_votes_a_label_has(voted):
    reviewed(voted)
    page = (voted.path / "out.jsonl.review.html").read_text(encoding="utf-8")
    assert '"score":"1 of 3 votes"' in page
    assert '"score":"2 of 3 votes"' in page


@pytest.mark.thorough
def test_a_dash_that_is_a_label_stays_one(voted):
    reviewed(voted, "--take", str(decide(voted, {10: "-"})), "--choices=-,+")
    assert voted.answers()[9]["answer"] == "-"


def test_a_decision_without_the_key_of_its_question_is_refused(voted):
    decide(voted, {10: "neutral"}, [{"row": "10", "key": ""}])
    assert "row 10 has no `key`; copy it from the review" in reviewed(voted, "--take", "decisions.csv", code=2).stderr


@pytest.mark.thorough
@pytest.mark.parametrize("again", ["all", "failed"])
def test_no_order_replaces_the_label_of_a_person_silently(voted, again):
    decide(voted, {10: "neutral", 1: "neutral"})
    reviewed(voted, "--take", "decisions.csv")
    found = voted.succeed(*LABELLED, *named(voted), "--votes", "3", "--again", again)
    rows = voted.answers()
    assert [rows[n]["answer"] for n in (9, 0)] == ["neutral", "neutral"]
    assert [rows[n]["sure"] for n in (9, 0)] == ["person", "person"]
    assert "2 labels of a person stay as they are." in found["warnings"]


def test_a_person_labels_rows_of_a_plain_job_and_rows_that_failed(bench):
    def reply(seen: Any) -> Any:
        return status(400, "No.", code="content_filter") if seen.prompt.endswith("3") else answer("positive")

    bench.upstream.reply = choose(reply)
    bench.write([{"id": f"r{n}", "text": f"review {n}"} for n in range(10)])
    assert json.loads(bench.run(*LABELLED, *named(bench), "--json").stdout)["failed"] == 1
    rows = table(bench)
    assert [(row["row"], row["why"]) for row in rows] == [("4", "failed: content_filter")]
    decide(bench, {4: "negativ", 5: "neutra"})
    assert "has the label 'negativ'; did you mean" in reviewed(bench, "--take", "decisions.csv", code=2).stderr
    assert not spare(bench)
    decide(bench, {4: "negative", 5: "neutral"})  # no answer has them, but the job's choices do
    reviewed(bench, "--take", "decisions.csv")
    labels = bench.answers()
    assert [(labels[n]["answer"], labels[n]["answered_by"], labels[n]["error"]) for n in (3, 4)] == [
        ("negative", "person", None),
        ("neutral", "person", None),
    ]
    assert bench.folder.status["failed"] == 0
    bench.succeed(*LABELLED, *named(bench), "--again", "all")
    assert [row["answer"] for row in bench.answers()][3:5] == ["negative", "neutral"]


@pytest.mark.thorough
def test_labels_stay_with_their_questions_when_the_input_changes(voted):
    decide(voted, {10: "neutral"})
    reviewed(voted, "--take", "decisions.csv")
    voted.write([{"id": "new", "text": "review 100"}, *({"id": f"r{n}", "text": f"review {n}"} for n in range(ROWS))])
    voted.succeed(*LABELLED, *named(voted), "--votes", "3")
    row = next(row for row in voted.answers() if row["id"] == "r9")
    assert (row["answer"], row["sure"]) == ("neutral", "person")
    assert len(voted.upstream.seen) == 3


def test_another_job_takes_the_labels_over(voted):
    decide(voted, {10: "neutral"})
    reviewed(voted, "--take", "decisions.csv")
    voted.upstream.seen.clear()
    before = voted.output
    voted.output = voted.path / "other.jsonl"
    for more in (("--from", str(before)), ("--again", "all")):
        voted.succeed(*LABELLED, *named(voted), "--votes", "3", *more)
        row = voted.answers()[9]
        assert (row["answer"], row["sure"], row["answered_by"]) == ("neutral", "person", "person")
        assert len(voted.upstream.seen) == (0 if more[0] == "--from" else 3 * ROWS)


@pytest.mark.thorough
@pytest.mark.features("labels")
def test_labels_of_rows_drawn_at_random_tell_the_shares_of_all_rows(bench):
    rows = 600
    bench.upstream.reply = labellers()
    bench.write([{"id": f"r{n}", "text": f"review {n}"} for n in range(rows)])
    bench.succeed(*LABELLED, *named(bench), "--sure", "strong")
    found = table(bench, "--sample", "120")
    decide(bench, {int(row["row"]): label("strong", row["text"])[0] for row in found}, found)
    reviewed(bench, "--take", "decisions.csv")
    its = bench.folder.status["shares"][""]
    right = Counter(label("strong", f"review {n}")[0] for n in range(rows))
    assert its.keys() == set(LABELS)
    for name, one in its.items():
        assert one["low"] <= one["share"] <= one["high"]
        assert abs(one["share"] - right[name] / rows) < 0.15, "far beyond the interval"
    assert sum(one["share"] for one in its.values()) == pytest.approx(1, abs=0.1)
    said = bench.jobs(bench.folder.job_id).stdout
    assert "as the person would label every row" in said
    assert "tell no shares" not in said
    assert bench.jobs(bench.folder.job_id, "--html", "r.html").returncode == 0
    data, _ = written(bench.path / "r.html")
    estimates = next(each for each in data["sections"] if each["title"] == "Estimated shares of labels")
    assert {name: bar for name, *bar in estimates["bars"]} == {
        name: [one["share"], one["low"], one["high"]] for name, one in its.items()
    }
    assert estimates["lines"] == ["As the person would label every row: estimates, with their 95 % intervals."]
    more = next(
        row for row in table(bench, name="more.xlsx") if int(row["row"]) not in {int(one["row"]) for one in found}
    )
    decide(bench, {int(more["row"]): label("strong", more["text"])[0]}, [more])
    reviewed(bench, "--take", "decisions.csv")
    assert "shares" not in bench.folder.status, "a doubtful row was added"
    assert "121 labels by a person; not of rows drawn at random" in bench.jobs(bench.folder.job_id).stdout


@pytest.mark.features("labels")
def test_the_labels_of_a_person_count_as_right_in_a_sure_job(bench):
    rows = 600
    bench.upstream.reply = labellers()
    bench.write([{"id": f"r{n}", "text": f"review {n}"} for n in range(rows)])
    bench.succeed(*LABELLED, *named(bench), "--sure", "strong")
    found = table(bench, "--rows", "30")
    decide(bench, {int(row["row"]): label("strong", row["text"])[0] for row in found}, found)
    before = bench.folder.status["sure"]
    reviewed(bench, "--take", "decisions.csv")
    sure = bench.folder.status["sure"]
    assert bench.folder.status["person"] == 30
    assert "30 labels by a person" in bench.jobs(bench.folder.job_id).stdout
    assert sure["cheap"] + sure["strong"] + 30 == rows == before["cheap"] + before["strong"]
    assert "shares" in before
    assert "shares" not in sure, "the corrected rows stand no longer for the others"
    sent_before = sent(bench)
    bench.succeed(*LABELLED, *named(bench), "--sure", "strong")
    assert sent(bench) == sent_before


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("labels", "problem"),
    [
        ({10: "neutrl"}, "no answer of the job has the label 'neutrl'; did you mean neutral?"),
        ({999: "neutral"}, "the job has no answered row '999'."),
    ],
)
def test_the_good_lines_are_taken_and_the_wrong_ones_are_named(voted, labels, problem):
    before = (voted.path / "out.jsonl").read_bytes()
    decide(voted, labels)
    assert f"Row 1 of decisions.csv: {problem}" in reviewed(voted, "--take", "decisions.csv", code=2).stderr
    assert (voted.path / "out.jsonl").read_bytes() == before, "no line is right"
    assert not spare(voted)
    decide(voted, {20: "neutral", **labels, 30: "negative"})
    found = reviewed(voted, "--take", "decisions.csv", code=1)
    assert found.stdout.startswith("2 labels taken")
    assert "1 line refused" in found.stdout
    assert found.stderr.strip() == f"Row 2 of decisions.csv: {problem}"
    assert [voted.answers()[n]["answer"] for n in (19, 29)] == ["neutral", "negative"]


@pytest.mark.thorough
@pytest.mark.parametrize("text", ["Neutral ", "NEUTRAL", " neutral"])
def test_a_label_may_differ_in_its_case_and_in_blanks(voted, text):
    reviewed(voted, "--take", str(decide(voted, {10: text})))
    assert voted.answers()[9]["answer"] == "neutral"


def test_a_label_in_another_case_that_could_be_two_is_refused(voted):
    decide(voted, {10: "NEUTRAL", 20: "Neutral"})
    said = reviewed(voted, "--take", "decisions.csv", "--choices", "neutral,Neutral", code=1)
    assert "no answer of the job has the label 'NEUTRAL'" in said.stderr
    assert voted.answers()[19]["answer"] == "Neutral"


def test_the_first_of_two_labels_of_a_row_is_taken(voted):
    decide(voted, {10: "neutral", 20: "neutral"})
    with (voted.path / "decisions.csv").open("a") as file:
        file.write((voted.path / "decisions.csv").read_text().splitlines()[1].replace("neutral", "negative") + "\n")
    said = reviewed(voted, "--take", "decisions.csv", code=1)
    assert said.stderr.strip() == "Row 3 of decisions.csv: row 10 has another label above."
    assert voted.answers()[9]["answer"] == "neutral"


def test_decisions_about_other_questions_are_refused(voted):
    rows = table(voted)
    decide(voted, {10: "neutral"}, [{**row, "key": "0" * 12} for row in rows])
    assert "has another question now" in reviewed(voted, "--take", "decisions.csv", code=2).stderr
    (voted.path / "decisions.csv").write_text("id,label\nr9,neutral\n", encoding="utf-8")
    assert (
        "Row 1 of decisions.csv has no `row` and no `key`" in reviewed(voted, "--take", "decisions.csv", code=2).stderr
    )


@pytest.mark.thorough
def test_labels_of_a_schema_must_fit_it(bench, tmp_path):
    fields = {"tone": {"enum": list(LABELS)}, "reason": {"type": "string"}}
    schema = {"type": "object", "properties": fields, "required": ["tone"]}
    path = tmp_path / "schema.json"
    path.write_text(json.dumps(schema), encoding="utf-8")
    bench.upstream.reply = choose(lambda _: answer('{"tone": "positive"}'))
    bench.write([{"id": n, "text": f"review {n}"} for n in range(4)])
    bench.succeed("--prompt", "{{text}}", "--schema", str(path))
    decide(bench, {1: '{"tone": "sad"}'})
    assert "does not fit the schema" in reviewed(bench, "--take", "decisions.csv", code=2).stderr
    decide(bench, {1: '{"tone": "negative"}'})
    reviewed(bench, "--take", "decisions.csv")
    assert bench.answers()[0]["answer"] == {"tone": "negative"}


_ONE_FIELD = {
    "type": "object",
    "properties": {"tone": {"$ref": "#/$defs/Tone"}},
    "$defs": {"Tone": {"enum": [*LABELS]}},
}


@pytest.mark.parametrize("form", ["fields", pytest.param("schema", marks=pytest.mark.thorough)])
def test_the_values_of_the_only_field_are_labels_as_choices_are(bench, form):
    need("labels")
    votes = ("negative", "positive", "negative")
    bench.upstream.reply = choose(lambda seen: answer(json.dumps({"tone": votes[seen.json["seed"] - 1]})))
    bench.write([{"id": n, "text": f"review {n}"} for n in range(4)])
    tone = f"tone:{'|'.join(LABELS)}" if form == "fields" else json.dumps(_ONE_FIELD)
    bench.succeed("--prompt", "{{text}}", f"--{form}", tone, "--votes", "3", "--set", "sampling_params.seed=0")
    found = review(bench.folder)
    assert [*found.labels] == [*LABELS]
    assert (found.rows[0].answer, [*found.rows[0].answers.values()]) == ("negative", [*votes])
    decide(bench, {1: "Positive", 2: '{"tone": "positive"}'})
    assert "2 labels taken" in reviewed(bench, "--take", "decisions.csv").stdout
    assert [row["answer"] for row in bench.answers()][:2] == [{"tone": "positive"}] * 2
    assert [row.label for row in review(bench.folder, at_random=True).rows if row.label] == ["positive"] * 2
    decide(bench, {3: "sad"})
    said = reviewed(bench, "--take", "decisions.csv", code=2).stderr
    assert "no answer of the job has the label 'sad'; there are positive, negative, neutral" in said
    assert "--choices" not in said, "the schema has no other values"


def test_a_running_job_takes_no_labels(voted):
    decide(voted, {10: "neutral"})
    lock = Lock.take(voted.folder.lock)
    assert lock is not None
    try:
        assert "is running; take the labels after its end" in reviewed(voted, "--take", "decisions.csv", code=2).stderr
    finally:
        lock.release()


def test_a_job_that_is_not_finished_keeps_the_labels_for_its_output(bench):
    bench.upstream.reply = choose(lambda _: answer("positive"))
    bench.write([{"id": f"r{n}", "text": f"review {n}"} for n in range(100)])
    bench.run(*LABELLED, *named(bench), concurrency=2, killed_at="after-write:1")
    done = [record.row for record in bench.records()]
    decide(bench, {done[0] + 1: "neutral"})
    found = reviewed(bench, "--take", "decisions.csv", "--choices", "positive,neutral")
    assert "; the next run of the job writes the output" in found.stdout
    assert not bench.output.exists()
    bench.succeed(*LABELLED, *named(bench))
    assert [n for n, row in enumerate(bench.answers()) if row["answer"] == "neutral"] == done[:1]


def test_an_output_that_somebody_changed_is_not_replaced(voted):
    with (voted.path / "out.jsonl").open("a", encoding="utf-8") as file:
        file.write("\n")
    decide(voted, {10: "neutral"})
    assert "has changed since the job wrote it" in reviewed(voted, "--take", "decisions.csv", code=2).stderr


@pytest.mark.thorough
@pytest.mark.parametrize("point", POINTS)
def test_a_killed_call_loses_nothing(voted, point):
    before = voted.answers()
    decide(voted, {10: "neutral", 20: "neutral"})
    command = [sys.executable, killed.__file__, point, "review", "out.jsonl", "--take", "decisions.csv"]
    assert subprocess.run(command, cwd=voted.path, capture_output=True, check=False).returncode == -9
    labels = [record.text for record in voted.records() if record.settings == PERSON]
    assert labels in ([], ["neutral", "neutral"])
    assert len(voted.answers()) == ROWS, "an output is there at any time"
    if labels and POINTS.index(point) % 2:
        voted.succeed(*LABELLED, *named(voted), "--votes", "3")
    else:
        reviewed(voted, "--take", "decisions.csv")
    after = voted.answers()
    assert [after[n]["answer"] for n in (9, 19)] == ["neutral", "neutral"]
    assert [after[n]["sure"] for n in (9, 19)] == ["person", "person"]
    assert [row for n, row in enumerate(after) if n not in {9, 19}] == [
        row for n, row in enumerate(before) if n not in {9, 19}
    ]
    assert {text for _, text in spare(voted)} <= {before[9]["answer"], before[19]["answer"]}
    assert len(spare(voted)) == 2
    assert not voted.upstream.seen
    assert not [path for path in voted.path.iterdir() if path.name.endswith(".partial")]
    assert sum(record.key < SLOT for record in voted.records()) == ROWS


# ---- the page


HOSTILE = (
    "</script><script>window.hit = 1</script>",
    "<img src=x onerror='window.hit = 1'>",
    "{{data}}",
    "=1+1",
    "a,b\n",
)


@pytest.fixture
def hostile(bench):
    need("labels")
    bench.upstream.reply = choose(lambda seen: answer(LABELS[seen.json["seed"] - 1]))
    bench.write([{"id": n, "text": f"{HOSTILE[n % len(HOSTILE)]} {n}"} for n in range(12)])
    bench.succeed(*LABELLED, *named(bench), "--votes", "3")
    reviewed(bench)
    return bench


def press(key: str) -> str:
    return f"dispatchEvent(new KeyboardEvent('keydown', {{key: {json.dumps(key)}, bubbles: true, cancelable: true}}))"


@pytest.mark.thorough
@pytest.mark.skipif(not browser.BROWSER, reason="needs Chromium")
async def test_keys_choose_labels_and_the_saved_decisions_are_taken(hostile):
    file, downloads = hostile.path / "out.jsonl.review.html", hostile.path / "downloads"
    async with browser.opened() as page:
        await page.send("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(downloads))
        await page.open(file)
        assert await page.run("document.getElementById('count').textContent") == "0 of 12 rows decided"
        order = await page.run("rows.map(row => row.number)")
        names = await page.run("data.labels")
        for key in ("2", "1", "j", "3", "k", "k", "k"):
            await page.run(press(key))
        assert await page.run("at") == 1
        await page.run(press("u"))
        await page.run(press("t"))
        assert await page.run("document.activeElement.id") == "other"
        await page.run("document.getElementById('other').value = 'odd, \"label\"'")
        await page.run(f"document.getElementById('other').{press('Enter')}")
        assert await page.run("document.getElementById('count').textContent") == "3 of 12 rows decided"
        await page.open(file)
        async with asyncio.timeout(PATIENCE_S):  # the browser keeps the decisions; its next process may get them later
            while await page.run("decisions.size") < 3:
                await asyncio.sleep(0.02)
                await page.open(file)
        for width, scheme in ((1200, "light"), (390, "dark")):
            await page.look(width, 844, scheme)
            assert await page.run("document.documentElement.scrollWidth") <= width
            if folder := os.environ.get("REPORT_PICTURES"):
                (Path(folder) / f"review-{scheme}-{width}.png").write_bytes(await page.picture())
        await page.run(press("s"))
        while not (saved := list(downloads.glob("*.csv"))):
            await page.run("new Promise(done => setTimeout(done, 20))")
        text = await page.run("decided()")
        assert not await page.run("window.hit")
        assert not page.complaints
        assert not [url for url in page.requests if not url.startswith(("file:", "data:", "blob:"))]
    assert saved[0].name == f"{hostile.folder.job_id}.decisions.csv"
    assert saved[0].read_text(encoding="utf-8") == text
    with saved[0].open(encoding="utf-8", newline="") as taken:
        rows = list(csv.DictReader(taken))
    assert [(int(row["row"]), row["label"]) for row in rows] == [
        (order[0], names[1]),
        (order[1], 'odd, "label"'),
        (order[3], names[2]),
    ]
    assert "no answer of the job has the label" in reviewed(hostile, "--take", str(saved[0]), code=1).stderr
    (hostile.path / "more.csv").write_text('label\n"odd, ""label"""\nanother\n', encoding="utf-8")
    reviewed(hostile, "--take", str(saved[0]), "--choices", "more.csv")
    delivered = hostile.answers()
    assert [delivered[order[at] - 1]["answer"] for at in (0, 1, 3)] == [names[1], 'odd, "label"', names[2]]


@pytest.fixture
def certain(bench):
    bench.upstream.reply = labellers()
    bench.write([{"id": "a", "text": "review 1"}])
    bench.succeed(*LABELLED, *named(bench))
    review_page.write(bench.path / "out.jsonl.review.html", review(bench.folder), "")  # as a call with a file does
    return bench


@pytest.mark.thorough
@pytest.mark.skipif(not browser.BROWSER, reason="needs Chromium")
async def test_a_page_without_rows_says_so(certain):
    async with browser.opened() as page:
        await page.open(certain.path / "out.jsonl.review.html")
        assert "There is nothing to review" in await page.run("document.body.textContent")
        await page.run(press("1"))
        assert not page.complaints


@pytest.fixture
def contract(bench):
    """A bench with a job about a long text, whose pieces have different values of two fields."""
    need("documents")
    text = "\n\n".join(f"Part {at}. {'Nothing is said here. ' * 60}" for at in range(1, 5))

    def reply(seen: Any) -> Any:
        part = next((at for at in range(1, 5) if f"Part {at}." in seen.prompt), 0)
        given = {"buyer": "Ann", "total": part * 100, "end": f"2026-0{part}-01"}
        decided = {"total": 400, "end": "2026-04-01"}
        return answer(json.dumps(given if part else decided))

    bench.upstream.reply = choose(reply)
    bench.write([{"text": text}])
    bench.succeed("--prompt", "{{text}}", "--fields", "buyer,total:number,end", "--split", "500", "--overlap", "0")
    return bench


def fields_of(bench: Any) -> Any:
    (row,) = objects_in(bench.output)
    return row["answer"]


def test_a_conflict_is_decided_by_field(contract):
    (row,) = table(contract)
    assert [name for name in row if name.startswith("label")] == ["label", "label: total", "label: end"]
    contract.path.joinpath("decided.jsonl").write_text(json.dumps({**row, "label: total": "200"}))
    assert "1 label taken, 1 of them changes the answer" in reviewed(contract, "--take", "decided.jsonl").stdout
    assert fields_of(contract) == {"buyer": "Ann", "total": 200, "end": "2026-04-01"}
    contract.path.joinpath("decided.jsonl").write_text(json.dumps({**row, "label": '{"end": "2026-01-01"}'}))
    reviewed(contract, "--take", "decided.jsonl")
    assert fields_of(contract) == {"buyer": "Ann", "total": 200, "end": "2026-01-01"}


@pytest.mark.parametrize(
    ("label", "said"),
    [
        ({"label: totl": "5"}, "has no field 'totl'"),
        ({"label: total": "many"}, "does not fit the schema"),
        ({"label: total": ["5"]}, "does not fit the schema"),
        ({"label": "Ann", "label: total": "5"}, "has a label of the whole answer and of its fields; keep one"),
    ],
)
def test_a_value_of_a_field_is_checked(contract, label, said):
    (row,) = table(contract)
    contract.path.joinpath("decided.jsonl").write_text(json.dumps({**row, **label}))
    assert said in reviewed(contract, "--take", "decided.jsonl", code=2).stderr
    assert fields_of(contract)["total"] == 400


def test_a_value_of_a_field_takes_no_label_back(voted):
    row, *_ = table(voted)
    voted.path.joinpath("decided.jsonl").write_text(json.dumps({**row, "label: total": "5"}))
    assert "has no field 'total'" in reviewed(voted, "--take", "decided.jsonl", code=2).stderr


@pytest.mark.thorough
@pytest.mark.skipif(not browser.BROWSER, reason="needs Chromium")
async def test_the_page_shows_the_values_of_each_field_with_their_places(contract):
    await asyncio.to_thread(reviewed, contract)
    async with browser.opened() as page:
        await page.open(contract.path / "out.jsonl.review.html")
        assert (
            await page.run("[...document.querySelectorAll('#row h2')].map(each => each.textContent).join()")
            == "total,end"
        )
        assert "characters 1 to" in await page.run("document.querySelector('#row .labels').textContent")
        await page.run(press("3"))
        assert await page.run("decisions.values().next().value") == '{"total":300}'
        await page.run("document.querySelectorAll('#row input')[1].value = '2027-01-01'")
        await page.run(f"document.querySelectorAll('#row input')[1].{press('Enter')}")
        saved = await page.run("decided()")
        assert not page.complaints
    (contract.path / "decided.csv").write_text(saved)
    await asyncio.to_thread(reviewed, contract, "--take", "decided.csv")
    assert fields_of(contract) == {"buyer": "Ann", "total": 300, "end": "2027-01-01"}
