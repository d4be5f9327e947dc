"""Names that look alike."""

from __future__ import annotations

from pathlib import Path

import promptmill
from promptmill.core.wording import close_matches


def test_a_name_that_is_written_wrongly_finds_the_nearest_ones():
    assert close_matches("temprature", ["temperature", "top_p"]) == ["temperature"]
    assert close_matches("LABEL", ["text", "Label", "label"], n=1) == ["Label"]


def test_a_name_of_megabytes_and_a_list_of_millions_are_not_compared():
    assert close_matches("gpt-4o" * 1_500_000, ["gpt-4o", "gpt-4o" * 1_500_000]) == []
    assert close_matches("gpt-4o", ["x" * 200_000, *map(str, range(1_000_000)), "gpt-4o"]) == []


def test_names_are_compared_nowhere_else():
    found = [path for path in Path(promptmill.__file__).parent.rglob("*.py") if "difflib" in path.read_text("utf-8")]
    assert [path.name for path in found] == ["wording.py"]
