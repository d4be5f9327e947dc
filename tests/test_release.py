"""What a release says about itself agrees everywhere."""

import json
import re
import tomllib
from pathlib import Path

import yaml

import promptmill

ROOT = Path(__file__).parents[1]


def test_one_version_stands_in_every_place_that_names_one():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    server = json.loads((ROOT / "server.json").read_text())
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    versions = {project["version"], server["version"], server["packages"][0]["version"], citation["version"]}
    assert versions == {promptmill.__version__}


def test_the_registrys_name_stands_in_the_readme_as_pypi_shows_it():
    name = json.loads((ROOT / "server.json").read_text())["name"]
    assert f"mcp-name: {name}" in (ROOT / "README.md").read_text()


def test_the_registrys_description_is_no_longer_than_it_allows():
    assert len(json.loads((ROOT / "server.json").read_text())["description"]) <= 100


def test_the_workflows_are_valid_yaml_and_publish_only_what_scripts_release_builds():
    workflows = {file.name: yaml.safe_load(file.read_text()) for file in (ROOT / ".github/workflows").iterdir()}
    steps = [step.get("run", "") for step in workflows["release.yaml"]["jobs"]["build"]["steps"]]
    assert "scripts/release" in steps
    assert not re.search(r"secrets\.|password", (ROOT / ".github/workflows/release.yaml").read_text())
