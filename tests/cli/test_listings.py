"""`promptmill features`: what each feature lets one type."""

from __future__ import annotations

import json

import pytest

from promptmill.cli import main as cli
from promptmill.cli.listings import uses_of
from promptmill.core import feature
from promptmill.core.feature import WITHOUT, Command, Face, Feature, Format, Observation


@pytest.mark.features("duckdb", "batches")
def test_each_feature_is_listed_with_what_one_types_and_hidden_ones_are_named(capsys, monkeypatch):
    assert cli.main(["features"]) == 0
    lines = capsys.readouterr().out.splitlines()
    at = next(at for at, line in enumerate(lines) if line.startswith("batches "))
    assert lines[at + 1].split() == ["--batch,", "--by,", "--poll,", "--keep-files"]
    assert not any("sockets" in line or "order_parts" in line for line in lines)
    monkeypatch.setenv(WITHOUT, "duckdb")
    assert cli.main(["features"]) == 0
    assert capsys.readouterr().out.endswith("Hidden here: duckdb.\n")
    assert cli.main(["features", "--json"]) == 0
    found = {each["name"]: each for each in json.loads(capsys.readouterr().out)}
    assert found["duckdb"] == {
        "name": "duckdb",
        "words": "databases of DuckDB, and its queries over files and URLs as rows",
        "hidden": True,
        "options": ["--sql"],
        "files": [".duckdb"],
    }
    assert found["batches"]["hidden"] is False


def test_a_backend_of_a_feature_with_the_name_of_ours_is_reported(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(feature, "backends", lambda: {"mill": "acme:MILL", "hf": "acme:HF"})
    error = "A package (acme:HF) has a backend with the name of promptmill's own, 'hf'. Give it another name, or"
    for words in (["features"], ["models"]):
        assert cli.main(words) == 2
        assert error in " ".join(capsys.readouterr().err.split())


def test_the_uses_of_a_feature_are_those_of_all_its_parts():
    lake = Feature(
        words="lakes",
        commands=[Command("fish", "fish in a lake", "lakes:fish")],
        tools="lakes:add",
        instructions="`fish` fishes, and `swim` swims.",
        faces=[Face("lake", "The lake at /lake", "lakes:App")],
        formats=[Format(names=(".lake", "lake://"), only_read=(".pond",))],
        names={"fish": "lakes:fish", "Fish": "lakes:Fish", "api.Boat": "lakes:Boat"},
        backends={"frog": "lakes:BACKEND"},
        observation=Observation("LAKE_", "lakes"),
        query="lakes:query",
    )
    assert uses_of(lake) == {
        "commands": ["promptmill fish"],
        "options": ["--sql"],
        "backends": ["frog"],
        "files": [".lake", "lake://", ".pond"],
        "apis": ["The lake at /lake"],
        "tools": ["fish", "swim"],
        "python": ["promptmill.fish", "promptmill.api.Boat"],
        "variables": ["LAKE_…"],
    }


def test_models_name_a_next_step_where_only_the_embedded_model_is_known(capsys, monkeypatch, tmp_path):
    pytest.importorskip("openvino")
    monkeypatch.chdir(tmp_path)
    assert cli.main(["models"]) == 0
    assert capsys.readouterr().err.endswith("promptmill init\n")
    assert cli.main(["models", "--model", "m", "--base-url", "http://127.0.0.1:1/v1", "--backend", "openai"]) != 0
    assert "promptmill init" not in capsys.readouterr().err


def test_the_models_of_an_endpoint_are_listed_with_their_ends(capsys, upstream):
    entries = [{"id": "new", "shutdown_date": None}, {"id": "old", "shutdown_date": "2026-11-01"}]
    upstream.gets = {"/v1/models": {"data": entries}}
    assert cli.main(["models", "--base-url", upstream.url]) == 0
    assert capsys.readouterr().out.splitlines() == ["new", "old  was switched off on 2026-11-01"]
    assert cli.main(["models", "--base-url", upstream.url, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == [
        {"name": "new"},
        {"name": "old", "end": "was switched off on 2026-11-01"},
    ]


def test_a_configured_model_is_listed_with_its_end(capsys, tmp_path):
    file = tmp_path / "parameter.yaml"
    block = {"openai": {"provider": "openai", "model_name": "gpt-4"}}
    file.write_text(json.dumps({"backend": "openai", "backend_configs": block}))
    assert cli.main(["models", "--config", str(file)]) == 0
    end = "at openai; it was switched off on 2026-10-23; its successor is gpt-5.6-sol"
    assert end in " ".join(capsys.readouterr().out.split())
    assert cli.main(["models", "--config", str(file), "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert found["end"] == "was switched off on 2026-10-23; its successor is gpt-5.6-sol"


def test_models_show_their_prices_and_where_they_answer(capsys, tmp_path):
    file = tmp_path / "parameter.yaml"
    own = {"backend": "openai", "backend_configs": {"openai": {"base_url": "http://127.0.0.1:1/v1", "model_name": "m"}}}
    models = {"good": {"openai": {"provider": "openai", "model_name": "gpt-6-luna"}}}
    file.write_text(json.dumps({**own, "prices": {"m": {"input": 0.1, "output": 0.4}}, "models": models}))
    assert cli.main(["models", "--config", str(file)]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first.split()[2:] == ["openai", "m", "$0.1/$0.4", "at", "http://127.0.0.1:1"]
    assert second.split() == ["good", "openai", "gpt-6-luna", "$0.1/$0.5", "at", "openai"]
    assert cli.main(["models", "--config", str(file), "--json"]) == 0
    first, second = json.loads(capsys.readouterr().out)
    assert first["price"] == {"input": 0.1, "output": 0.4}
    assert (first["addresses"], second["provider"]) == (["http://127.0.0.1:1"], "openai")
