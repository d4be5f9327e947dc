"""The feature of another package in examples/: a command and a format, found by its entry point."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml

from other_packages import Installed
from replies import answer, by_prompt

EXAMPLE = Path(__file__).parent.parent / "examples" / "acme"
_MOST_LINES = 100


@pytest.fixture
def run(tmp_path) -> Any:
    """Run promptmill in a folder, with the example installed as pip would install it."""
    return partial(Installed.of(EXAMPLE, tmp_path).run, "-m", "promptmill")


@pytest.mark.thorough
def test_a_package_adds_a_format_and_a_command(run, tmp_path, upstream):
    (tmp_path / "in.yaml").write_text("- {id: 1, text: a}\n- {id: 2, text: ß}\n")
    (tmp_path / "out.yml").write_text("theirs\n")
    asked = ("bulk", "in.yaml", "out.yml", "--prompt", "Say {{text}}", "--base-url", upstream.url, "--model", "m")
    assert "exists and is not this job's own output" in run(*asked, code=2)
    assert (tmp_path / "out.yml").read_text() == "theirs\n"
    run(*asked, "--overwrite")
    rows = yaml.safe_load((tmp_path / "out.yml").read_text(encoding="utf-8"))
    assert [(row["id"], row["answer"]) for row in rows] == [(1, "echo: Say a"), (2, "echo: Say ß")]
    assert "answer: in 2 rows" in run("yaml-fields", "out.yml")
    assert "acme" in run("features")
    assert json.loads(run("jobs", "out.yml", "--rows", "--json"))["total"] == 2


@pytest.mark.thorough
def test_without_the_feature_the_suffix_is_unknown(run, tmp_path, upstream):
    (tmp_path / "in.yaml").write_text("- {prompt: a}\n")
    asked = ("bulk", "in.yaml", "out.jsonl", "--base-url", upstream.url, "--model", "m")
    assert "in.yaml ends with '.yaml'" in run(*asked, code=2, PROMPTMILL_WITHOUT="acme")


def test_the_example_is_short():
    files = [EXAMPLE / "pyproject.toml", *EXAMPLE.rglob("*.py")]
    assert sum(len(file.read_text(encoding="utf-8").splitlines()) for file in files) < _MOST_LINES


def test_a_package_adds_an_option_and_a_plan(run, tmp_path, upstream):
    upstream.reply = by_prompt({"long": answer("x" * 501), "short": answer("y")})
    (tmp_path / "in.jsonl").write_text('{"prompt": "long"}\n{"prompt": "short"}\n')
    asked = ("bulk", "in.jsonl", "out.jsonl", "--base-url", upstream.url, "--model", "small", "--long-to", "large")
    run(*asked)
    sent = [(seen.json["model"], seen.prompt) for seen in upstream.seen]
    assert sorted(sent[:2]) == [("small", "long"), ("small", "short")]
    assert sent[2:] == [("large", "long")]
    run(*asked)
    assert len(upstream.seen) == 3, "a long answer of the other model is asked for once"
    assert "--long-to MODEL" in run("bulk", "--help", "all")
    without = run(*asked, code=2, PROMPTMILL_WITHOUT="acme")
    assert "unknown option --long-to" in without or "needs the feature acme" in without


@pytest.mark.thorough
@pytest.mark.features("labels")
def test_a_package_and_a_feature_cannot_both_plan_a_job(run, tmp_path, upstream):
    (tmp_path / "in.jsonl").write_text('{"prompt": "long"}\n')
    asked = ("bulk", "in.jsonl", "out.jsonl", "--base-url", upstream.url, "--model", "small", "--long-to", "large")
    both = run(*asked, "--choices", "x,y", "--votes", "3", code=2)
    assert "--long-to" in both
    assert "--votes" in both
    assert "cannot be used with --long-to" in both
    assert not upstream.seen
