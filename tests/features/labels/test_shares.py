"""The shares of labels that can be published: of a job with `sure`, and from a reviewed sample."""

from __future__ import annotations

import json
import math
from collections import Counter
from typing import Any

import pytest

import promptmill
from labellers import LABELS, label, labellers, named
from replies import answer, choose

ROWS = 600
SURE = ("--prompt", "Is it positive? {{text}}", "--model", "small", "--sure", "strong")


@pytest.fixture
def sure(bench):
    bench.upstream.reply = labellers()
    bench.write([{"id": f"r{n}", "text": f"review {n}"} for n in range(ROWS)])
    return bench


@pytest.mark.thorough
def test_a_sure_job_states_the_shares_of_the_strong_model(sure):
    found = sure.succeed(*SURE, "--choices", ",".join(LABELS), *named(sure))
    its = found["sure"]["shares"][""]
    assert its.keys() == set(LABELS)
    assert sum(one["share"] for one in its.values()) == pytest.approx(1, abs=0.02)
    counts, rows = Counter(row["answer"] for row in sure.answers()), sure.answers()
    cheap = sum(row["sure"] == "cheap" for row in rows) / ROWS
    for name, one in its.items():
        assert one["low"] <= one["share"] <= one["high"]
        assert one["high"] - one["low"] < 0.3 * cheap, "rows of the strong model add no doubt"
        truth = sum(label("strong", row["text"])[0] == name for row in rows) / ROWS
        assert abs(one["share"] - truth) < 0.12, "far beyond the interval"
        assert abs(one["counted"] - counts[name] / ROWS) < 0.06, "the sample has other labels before it is reviewed"


def test_a_python_program_gets_them(upstream, tmp_path):
    upstream.reply = labellers()
    models = {name: {"openai": {"base_url": upstream.url, "model_name": name}} for name in ("small", "strong")}
    found = promptmill.bulk(
        [f"review {n}" for n in range(ROWS)],
        prompt="Is it positive? {{text}}",
        choices=list(LABELS),
        model="small",
        sure="strong",
        base_url=upstream.url,
        settings={"models": models},
        state=tmp_path,
        progress=False,
    )
    assert found.shares.keys() == set(LABELS)
    assert promptmill.bulk(["review 1"], base_url=upstream.url, model="small", state=tmp_path).shares == {}


def test_they_are_those_of_each_field_of_a_schema(sure, tmp_path):
    def reply(seen: Any) -> Any:
        text, chance = label(seen.json["model"], seen.prompt)
        return answer(
            json.dumps({"tone": text, "short": text == "neutral"}),
            logprobs={"content": [{"token": text, "logprob": math.log(chance)}]},
        )

    sure.upstream.reply = choose(reply)
    fields = {"tone": {"type": "string"}, "short": {"type": "boolean"}}
    schema = {"type": "object", "properties": fields, "required": [*fields], "additionalProperties": False}
    path = tmp_path / "schema.json"
    path.write_text(json.dumps(schema))
    found = sure.succeed(*SURE, "--schema", str(path), *named(sure))["sure"]["shares"]
    assert found["tone"].keys() == set(LABELS)
    assert found["short"].keys() == {"true", "false"}
    assert found["short"]["true"]["share"] == pytest.approx(found["tone"]["neutral"]["share"])


@pytest.mark.thorough
def test_the_summary_shows_them(sure):
    result = sure.run(*SURE, "--choices", ",".join(LABELS), *named(sure))
    line = next(line for line in result.stdout.splitlines() if line.startswith("  shares"))
    assert all(f"{name} " in line for name in LABELS)
    assert "% (95 %: " in line
    assert "as strong would label every row" in result.stdout
    text = sure.folder.status["sure"]["shares"][""]["positive"]["share"] * 100
    assert f"positive {text:.1f} %" in line


@pytest.mark.thorough
def test_rows_added_later_have_their_own_stratum(sure):
    options = (*SURE, "--choices", ",".join(LABELS), *named(sure))
    first = sure.succeed(*options)["sure"]["shares"][""]
    sure.write([{"id": f"r{n}", "text": f"review {n}"} for n in range(2 * ROWS)])
    found = sure.succeed(*options)["sure"]["shares"][""]
    assert sum(one["share"] for one in found.values()) == pytest.approx(1, abs=0.02)
    width = found["positive"]["high"] - found["positive"]["low"]
    before = first["positive"]["high"] - first["positive"]["low"]
    assert width < 1.4 * before, "two samples say more than one, whatever their draws"


def test_a_job_whose_rows_the_strong_model_answers_has_no_doubt(sure):
    sure.write([{"id": n, "text": f"review {n}"} for n in range(150)])
    assert "shares" not in sure.succeed(*SURE, "--choices", ",".join(LABELS), *named(sure))["sure"]
