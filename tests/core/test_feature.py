"""Features: found in the folder and in other packages, hidden by a variable, missing with what they need."""

import importlib.metadata
import subprocess
import sys
from typing import Any

import pytest

from promptmill.core import feature
from promptmill.core.errors import PromptmillError
from promptmill.core.feature import WITHOUT, Feature, Format
from waiting import PATIENCE_S


@pytest.fixture
def installed(monkeypatch):
    """Have these features, instead of those of the folder."""

    def have(**known: Feature) -> None:
        monkeypatch.setattr(feature, "_installed", lambda: iter(known.items()))

    feature._features.cache_clear()
    yield have
    feature._features.cache_clear()


def test_a_feature_is_missing_without_what_it_needs(installed, monkeypatch):
    monkeypatch.setenv(WITHOUT, "")
    installed(b=Feature(words="", needs=("a",)), c=Feature(words="", needs=("b",)), d=Feature(words=""))

    assert [*feature.features()] == ["d"]


@pytest.mark.parametrize(("without", "left"), [("", ["a", "b"]), ("a", ["b"]), ("b, a", []), ("all", [])])
def test_a_variable_hides_features(installed, monkeypatch, without, left):
    monkeypatch.setenv(WITHOUT, without)
    installed(a=Feature(words=""), b=Feature(words=""))

    assert [*feature.features()] == left


def test_a_package_that_cannot_be_imported_is_named(monkeypatch):
    class Broken:
        name = "toy"

        def load(self) -> None:
            raise ImportError("no module")

    feature._features.cache_clear()
    monkeypatch.setattr(feature, "entry_points", lambda: [Broken()])
    with pytest.raises(PromptmillError, match="'toy' of another package cannot be imported"):
        feature.features()
    feature._features.cache_clear()


@pytest.mark.features("checks")
def test_a_package_does_not_replace_a_feature_of_ours(monkeypatch):
    taken = importlib.metadata.EntryPoint("checks", "acme:FEATURE", feature.GROUP)
    feature._features.cache_clear()
    monkeypatch.setattr(feature, "entry_points", lambda: [taken])
    with pytest.raises(PromptmillError, match=r"acme:FEATURE.*'checks'\. Give its entry point another name"):
        feature.features()
    feature._features.cache_clear()


def test_entry_points_are_those_of_the_first_package_of_a_name(tmp_path, monkeypatch):
    for folder, name, points in (
        ("first", "acme", "[promptmill.features]\nacme = acme:FEATURE\nlake = acme.lake:FEATURE\n"),
        ("first", "bare", "[console_scripts]\nbare = bare:main\n"),
        ("first", "none", ""),
        ("second", "acme", "[promptmill.features]\nold = acme:FEATURE\n"),
        ("second", "bare", "[promptmill.features]\nbare = bare:FEATURE\n"),
    ):
        about = tmp_path / folder / f"{name}-1.dist-info"
        about.mkdir(parents=True)
        (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1\n")
        if points:
            (about / "entry_points.txt").write_text(points)
    monkeypatch.setattr(sys, "path", [str(tmp_path / "first"), str(tmp_path / "second")])

    found = feature.entry_points()

    assert [(entry.name, entry.value) for entry in found] == [("acme", "acme:FEATURE"), ("lake", "acme.lake:FEATURE")]
    assert found == [*importlib.metadata.entry_points(group=feature.GROUP)]


def test_a_part_that_a_package_lacks_is_named():
    with pytest.raises(PromptmillError, match="json:no_such, a part of a feature, cannot be imported"):
        feature.part("json:no_such")


def test_no_code_of_a_feature_is_imported_to_list_them():
    code = f"import os, sys; os.environ['{WITHOUT}'] = ''; from promptmill.core import feature; feature.features(); "
    code += "print(*(name for name in sys.modules if name.startswith('promptmill.features.') and name.count('.') > 2))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=PATIENCE_S)
    assert done.stdout.split() == []


def test_formats_are_those_of_all_features_with_the_names_of_these(installed, monkeypatch):
    monkeypatch.setenv(WITHOUT, "")
    table, lake = Format(names=(".tab",), read="m:f"), Format(names=("lake://",), store="m:s")
    installed(a=Feature(words="", formats=(table,)), b=Feature(words="", formats=(lake,)))

    assert feature.formats() == [("a", table), ("b", lake)]
    assert (table.key, table.is_read, table.is_written, lake.is_read) == ("tab", True, False, False)


def test_a_query_without_a_feature_that_answers_it_is_refused(installed, monkeypatch):
    monkeypatch.setenv(WITHOUT, "a")
    installed(a=Feature(words="", query="module:name"))

    with pytest.raises(PromptmillError, match=f"need a feature that is not installed or hidden by {WITHOUT}"):
        feature.query()


def test_backends_are_those_of_all_features(installed, monkeypatch):
    monkeypatch.setenv(WITHOUT, "b")
    installed(a=Feature(words="", backends={"mill": "m:MILL"}), b=Feature(words="", backends={"sea": "m:SEA"}))

    assert feature.backends() == {"mill": "m:MILL"}


def test_names_of_features_are_those_of_a_module(installed, monkeypatch):
    monkeypatch.setenv(WITHOUT, "")
    installed(a=Feature(words="", names={"solve": "m:solve", "api.Solver": "m:Solver"}))

    assert feature.names() == {"solve": "m:solve"}
    assert feature.names("api") == {"Solver": "m:Solver"}


def test_a_bug_is_told_of_the_package_that_has_it(monkeypatch):
    point = importlib.metadata.EntryPoint("acme", "acme_package.feature:FEATURE", feature.GROUP)
    monkeypatch.setattr(feature, "entry_points", lambda: [point])

    def raised(*modules: str) -> BaseException:
        spaces: list[dict[str, Any]] = [{"__name__": module} for module in modules]
        exec("def run(): raise KeyError(1)", spaces[-1])
        for outer, inner in zip(spaces[-2::-1], spaces[:0:-1], strict=True):
            outer["inner"] = inner["run"]
            exec("def run(): inner()", outer)
        with pytest.raises(KeyError) as caught:
            spaces[0]["run"]()
        return caught.value

    theirs = "A bug in the package acme_package (KeyError); please report it to its authors."
    ours = "A bug in promptmill (KeyError); please report it."
    assert feature.bug(raised("promptmill.service", "acme_package.step")) == theirs
    assert feature.bug(raised("promptmill.service", "acme_package.step", "json.decoder")) == theirs
    assert feature.bug(raised("acme_package.command", "promptmill.service", "json.decoder")) == ours
    assert feature.bug(raised("elsewhere")) == ours
