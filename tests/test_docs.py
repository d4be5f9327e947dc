"""The reference pages say what the code says."""

import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = runpy.run_path(str(ROOT / "scripts" / "docs.py"))["PAGES"]


@pytest.mark.features  # their options are on the pages
@pytest.mark.parametrize("name", PAGES)
def test_a_reference_page_is_up_to_date(name):
    written = (ROOT / "docs" / name).read_text(encoding="utf-8")
    assert written == PAGES[name](), "run: .venv/bin/python scripts/docs.py"
