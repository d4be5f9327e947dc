"""`bulk --tier`: the service tier of a job, and how long one with `flex` waits."""

import json

import pytest

from promptmill.cli.command_options import add_bulk
from promptmill.cli.main import main
from promptmill.cli.options import configuration_of
from promptmill.cli.parser import Parser
from replies import answer, from_request, status


@pytest.fixture
def job(upstream, tmp_path):
    """Arguments of a job of five rows."""
    block = {"model_name": "m", "base_url": upstream.url, "base_delay": 0.01}
    sampling = {"max_tokens": 20, "temperature": 0}
    config = {"backend": "openai", "backend_configs": {"openai": block}, "sampling_params": sampling}
    (tmp_path / "p.yaml").write_text(json.dumps(config | {"price": {"input": 10.0, "output": 100.0}}))
    rows = tmp_path / "in.jsonl"
    rows.write_text("".join(json.dumps({"prompt": f"prompt {number}"}) + "\n" for number in range(5)))
    return ["bulk", str(rows), str(tmp_path / "out.jsonl"), "--config", str(tmp_path / "p.yaml"), "--json"]


def test_a_flex_job_costs_half_and_waits_for_capacity(job, upstream, capsys):
    """The refusal is free of charge, in OpenAI's words."""
    refusal = status(429, message="Resource Unavailable", retry_after="0.05")
    upstream.reply = from_request(10, answer(), refusal)
    assert main([*job, "--tier", "flex", "--set", "backend_configs.openai.max_delay=0.1"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {seen.json["service_tier"] for seen in upstream.seen} == {"flex"}
    assert found["cost"] == pytest.approx(0.5 * 5 * (2 * 10 + 3 * 100) / 1_000_000)
    assert found["done"] == 5


def _settings(job, *options):
    parser = Parser()
    add_bulk(parser)
    return configuration_of(parser.parse_args([*job[1:], *options])).config.settings.backend_configs.openai


def test_flex_waits_longer_unless_the_operator_says_how_long(job, tmp_path):
    usual, flex = _settings(job), _settings(job, "--tier", "flex")
    assert flex.timeout[1] > usual.timeout[1]
    assert flex.patience > 3600 > usual.patience
    assert _settings(job, "--tier", "priority").timeout == usual.timeout
    assert _settings(job, "--tier", "flex", "--set", "backend_configs.openai.patience=60").patience == 60
    config = json.loads((tmp_path / "p.yaml").read_text())
    config["backend_configs"]["openai"]["timeout"] = [5, 30]
    (tmp_path / "p.yaml").write_text(json.dumps(config))
    assert _settings(job, "--tier", "flex").timeout == (5, 30)


@pytest.mark.thorough
def test_a_job_goes_on_at_another_tier(job, upstream, capsys):
    upstream.reply = answer()
    assert main([*job, "--max-cost", "0.0035"]) != 0
    capsys.readouterr()
    before = len(upstream.seen)
    assert 0 < before < 5
    assert main([*job, "--tier", "flex"]) == 0
    assert [seen.json["service_tier"] for seen in upstream.seen[before:]] == ["flex"] * (5 - before)
    assert json.loads(capsys.readouterr().out)["done"] == 5


def test_an_engine_has_no_tiers(job, capsys):
    assert main([*job, "--backend", "hf", "--tier", "flex"]) == 2
    assert "--tier" in capsys.readouterr().err
