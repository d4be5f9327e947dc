"""`promptmill.review`: the rows as a list, and the labels of a person."""

import json
from pathlib import Path

import pytest

import promptmill
from fakes import KEY
from promptmill.core.errors import PromptmillError
from replies import answer, choose


@pytest.fixture
def labelled(upstream, tmp_path, monkeypatch):
    """The result of a job with an output."""
    monkeypatch.setenv("PROMPTMILL_STATE", str(tmp_path / "state"))
    upstream.reply = choose(lambda seen: answer(json.dumps({"answer": seen.prompt})))
    rows = [{"text": text} for text in ("good", "bad", "good", "bad")]
    options = {"base_url": upstream.url, "model": "m", "api_key": KEY, "progress": False}
    return promptmill.bulk(rows, tmp_path / "out.jsonl", prompt="{{text}}", choices=["good", "bad"], **options)


def answers_of(result):
    return [json.loads(line)["answer"] for line in Path(result.output).read_text().splitlines()]


def test_rows_with_labels_are_stored(labelled):
    rows = promptmill.review(labelled, sample=4)
    assert [(row["row"], row["answer"], row["text"]) for row in rows][:2] == [(1, "good", "good"), (2, "bad", "bad")]
    rows[0]["label"] = "Bad "
    assert promptmill.review(labelled.output, decisions=rows) == []
    assert answers_of(labelled) == ["bad", "bad", "good", "bad"]


def test_labels_that_are_refused_have_their_problem(labelled):
    rows = promptmill.review(str(labelled.output), sample=4)
    rows[0]["label"], rows[1]["label"] = "bad", "none of them"
    (refused,) = promptmill.review(labelled, decisions=rows)
    assert refused["problem"].startswith("Row 2 of decisions.jsonl: no answer of the job has the label")
    assert answers_of(labelled)[:2] == ["bad", "bad"]
    assert promptmill.review(labelled, decisions=rows, choices=["none of them", "good"]) == []
    assert answers_of(labelled)[1] == "none of them"


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"rows": 0}, "whole numbers from 1"),
        ({"rows": "x"}, "whole numbers from 1"),
        ({"decisions": [{"row": 1}]}, "Row 1 of decisions.jsonl has no `label` and no `key`; take rows"),
        ({"decisions": 5}, "send a list of rows"),
        ({"decisions": "gone.csv"}, "There is no input file"),
        ({"choices": 5}, "The choices should be a list"),
    ],
)
def test_every_mistake_is_a_promptmill_error(labelled, wrong, said):
    with pytest.raises(PromptmillError, match=said):
        promptmill.review(labelled, **wrong)


def test_a_result_without_an_output_has_no_job(labelled):
    with pytest.raises(PromptmillError, match="call `bulk` with one"):
        promptmill.review(promptmill.BulkResult({}, []))
