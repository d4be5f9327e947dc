"""Names that look alike."""

from __future__ import annotations

from pathlib import Path

import pytest

import promptmill
from promptmill.core.wording import close_matches, did_you_mean, no_column, synonym


def test_a_name_that_is_written_wrongly_finds_the_nearest_ones():
    assert close_matches("temprature", ["temperature", "top_p"]) == ["temperature"]
    assert close_matches("LABEL", ["text", "Label", "label"], n=1) == ["Label"]


@pytest.mark.parametrize(
    ("name", "known", "meant"),
    [
        ("file", ["input_file", "output_file"], "input_file"),
        ("labels", ["model", "choices"], "choices"),
        ("--labels", ["--label-column", "--choices"], "--choices"),
        ("labels", ["files", "gold"], "gold"),
        ("system", ["system_prompt"], "system_prompt"),
        ("Instructions", ["system", "prompt"], "system"),
        ("max-new-tokens", ["max_tokens"], "max_tokens"),
        ("labels", ["model"], ""),
        ("temperature", ["choices"], ""),
    ],
)
def test_a_name_that_means_the_same_is_found(name, known, meant):
    assert synonym(name, known) == meant
    assert not meant or did_you_mean(name, known) == f"did you mean {meant}?"


def test_a_name_of_megabytes_and_a_list_of_millions_are_not_compared():
    assert close_matches("gpt-4o" * 1_500_000, ["gpt-4o", "gpt-4o" * 1_500_000]) == []
    assert close_matches("gpt-4o", ["x" * 200_000, *map(str, range(1_000_000)), "gpt-4o"]) == []


def test_names_are_compared_nowhere_else():
    found = [path for path in Path(promptmill.__file__).parent.rglob("*.py") if "difflib" in path.read_text("utf-8")]
    assert [path.name for path in found] == ["wording.py"]


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("Guest-Review", "guest_review"),
        ("gest_revieww", "guest_review"),
        ("guest", "guest_review"),
        ("sites", "site"),
        ("stie", "site"),
        ("sitename", "site"),
        ("text", ""),
        ("vote", ""),
        ("review", ""),
    ],
)
def test_only_a_near_name_of_a_column_is_suggested(name, meant):
    said = f"did you mean {meant}?" if meant else "its columns: id, site, guest_review."
    assert no_column(name, columns=["id", "site", "guest_review"]) == f"the input has no column {name!r}; {said}"
