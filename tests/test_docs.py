"""The reference pages say what the code says."""

import re
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = runpy.run_path(str(ROOT / "scripts" / "docs.py"))["PAGES"]

_OF_FASTMCP = {"DebugTokenVerifier", "StaticTokenVerifier"}


@pytest.mark.features  # their options are on the pages
@pytest.mark.parametrize("name", PAGES)
def test_a_reference_page_is_up_to_date(name):
    written = (ROOT / "docs" / name).read_text(encoding="utf-8")
    assert written == PAGES[name](), "run: .venv/bin/python scripts/docs.py"


@pytest.mark.features  # their files are on the page
def test_the_page_of_the_architecture_names_what_there_is():
    files = [file for name in ("src", "tests", "scripts") for file in (ROOT / name).rglob("*.py")]
    code = "".join(file.read_text(encoding="utf-8") for file in files)
    for named in re.findall(r"`([^`\n]+)`", (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")):
        if named.endswith(".py"):
            assert any(file.as_posix().endswith(f"/{named}") for file in files), named
        else:
            assert all(word in code for word in re.findall(r"[A-Za-z_]\w+", named) if word not in _OF_FASTMCP), named
