"""Tools, options, keys, tables, error codes and Python names are as they were promised."""

import runpy
from pathlib import Path

import pytest

pytestmark = pytest.mark.features
ROOT = Path(__file__).parent.parent


def test_a_change_for_users_is_a_visible_change_of_the_list_of_promises():
    found = runpy.run_path(str(ROOT / "scripts" / "promises.py"))
    written = (ROOT / "tests" / "promises.json").read_text(encoding="utf-8")
    assert written == found["text"](), "if the change is meant: .venv/bin/python scripts/promises.py, and CHANGELOG.md"


def test_the_stubs_have_the_names_of_all_features():
    stubs = runpy.run_path(str(ROOT / "scripts" / "stubs.py"))["stubs"]()
    assert all(path.read_text(encoding="utf-8") == content for path, content in stubs.items()), (
        "run: .venv/bin/python scripts/stubs.py"
    )
