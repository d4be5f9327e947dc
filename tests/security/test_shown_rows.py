"""Rows with keys or passwords of the operator's jobs: no result and no file of a call shows them."""

from __future__ import annotations

import base64
import json
import re
import zlib
from pathlib import Path

import pytest

from all_features import need
from planted import VENDOR_KEY
from replies import answer, choose


def _page(path: Path) -> str:
    """Return the text of a page and of its packed rows."""
    text = path.read_text(encoding="utf-8")
    packed = re.search(r'id="packed">([^<]*)<', text)
    assert packed is not None
    return text + json.dumps(json.loads(zlib.decompress(base64.b64decode(packed[1]))))


@pytest.fixture
def rows(bench, monkeypatch):
    """A finished job of the operator; rows 2 to 5 hold a secret in a column, the prompt, the answer and a long text."""
    monkeypatch.chdir(bench.path)
    bench.upstream.reply = choose(lambda seen: answer(f"key {VENDOR_KEY}" if "row 4" in seen.prompt else "fine"))
    texts = ["row 1", "row 2", f"row 3 {VENDOR_KEY}", "row 4", f"row 5 {'y' * 1500} {VENDOR_KEY}", "row 6"]
    bench.write([{"text": text, "note": VENDOR_KEY if text == "row 2" else "n"} for text in texts])
    bench.succeed("--prompt", "Read {{text}}")
    return bench


@pytest.mark.rule("F22")
@pytest.mark.usefixtures("protocol")
@pytest.mark.features("report")
async def test_the_report_that_a_call_writes_shows_no_row_with_a_secret(rows, tools):
    need("report")
    async with tools() as call:
        found = await call("bulk_status", job_id="out.jsonl", report="out.report.html")
    assert found["report"]["rows"] == 6
    page = _page(rows.path / "out.report.html")
    assert VENDOR_KEY not in page
    assert page.count("The row may hold secrets.") == 4
    assert "row 6" in page
    done = rows.here(["promptmill", "jobs", str(rows.output), "--html", "own.html"])
    assert done.returncode == 0, done.stderr
    assert VENDOR_KEY in _page(Path("own.html")), "the operator's own report has all rows"


@pytest.mark.rule("F22")
@pytest.mark.usefixtures("protocol")
@pytest.mark.features("compare")
async def test_the_comparison_that_a_call_writes_shows_no_row_with_a_secret(rows, tools):
    need("compare")
    first = rows.output.read_bytes().replace(f"key {VENDOR_KEY}".encode(), b"fine")
    (rows.path / "a.jsonl").write_bytes(first)
    (rows.path / "b.jsonl").write_bytes(first.replace(b"fine", b"good"))
    async with tools() as call:
        await call("compare", files=["a.jsonl", "b.jsonl"], report="both.html")
    page = _page(rows.path / "both.html")
    assert VENDOR_KEY not in page
    assert page.count("The row may hold secrets.") == 3
