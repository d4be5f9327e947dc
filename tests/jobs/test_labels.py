"""A table answered into a labelled table: choices, fields of a schema as columns, images of a column."""

from __future__ import annotations

import csv
from typing import Any

from replies import answer, by_prompt


def read_csv(bench: Any) -> list[dict[str, str]]:
    with bench.output.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_choices_label_a_table_with_the_word_alone(bench: Any) -> None:
    bench.input, bench.output = bench.path / "reviews.csv", bench.path / "labels.csv"
    bench.input.write_text("id,text\n1,Fine\n2,Bad\n3,Hm\n")
    bench.upstream.reply = by_prompt(
        {"Mood: Fine": answer('{"answer": "positive"}'), "Mood: Bad": answer("Negative.")},
        otherwise=answer("It is neither positive nor negative."),
    )
    options = ["--prompt", "Mood: {{text}}", "--choices", "positive,negative, neutral"]
    assert "1 failed" in bench.fail(*options, code=1)
    rows = read_csv(bench)
    assert [(row["id"], row["answer"]) for row in rows] == [("1", "positive"), ("2", "negative"), ("3", "")]
    assert "is none of the choices positive, negative, neutral" in rows[2]["error"]
    schema = bench.upstream.seen[0].json["response_format"]["json_schema"]["schema"]
    assert schema["properties"]["answer"]["enum"] == ["positive", "negative", "neutral"]


def test_other_choices_are_another_sampling(bench: Any) -> None:
    bench.prompts(2)
    bench.upstream.reply = answer("a")
    bench.succeed("--choices", "a,b")
    assert "sampling" in bench.fail("--choices", "a,c")
    bench.upstream.reply = answer("c")
    bench.succeed("--choices", "a,c", "--again", "all")
    assert [row["answer"] for row in bench.answers()] == ["c", "c"]


def test_choices_that_cannot_be_used_are_refused_by_the_options_name(bench: Any) -> None:
    bench.prompts(2)
    assert "--choices: should be at least two different texts" in bench.fail("--choices", "a")
    assert "not allowed with" in bench.fail("--choices", "a,b", "--schema", "x.json")
    assert not bench.upstream.seen
