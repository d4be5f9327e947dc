"""What README and docs show as printed is what is printed today."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.thorough
@pytest.mark.engine
def test_what_pages_show_as_printed_is_printed():
    pytest.importorskip("openvino_genai")
    pages = runpy.run_path(str(ROOT / "scripts" / "transcripts.py"))["renewed"]()
    assert {"README.md", "README.zh-CN.md", "docs/tools.md"} <= {str(page.relative_to(ROOT)) for page in pages}
    for page, text in pages.items():
        assert page.read_text(encoding="utf-8") == text, f"{page.name}: .venv/bin/python scripts/transcripts.py"
