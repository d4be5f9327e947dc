"""The report that a call orders: whose images it shows, if the job is the operator's."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path

import pytest
from PIL import Image

pytestmark = pytest.mark.features("report")


@pytest.fixture
def pictured(bench, tmp_path_factory):
    """A bench with a finished job of the operator, whose rows have images that calls may read, and others."""
    outside = tmp_path_factory.mktemp("elsewhere") / "private.png"
    Image.new("RGB", (40, 20), "blue").save(outside)
    Image.new("RGB", (40, 20), "red").save(bench.path / "red.png")
    (bench.path / "link.png").symlink_to(outside)
    (bench.path / ".hidden.png").write_bytes(outside.read_bytes())
    held = f"data:image/png;base64,{base64.b64encode((bench.path / 'red.png').read_bytes()).decode()}"
    sources = ["red.png", str(outside), "link.png", ".hidden.png", held]
    bench.write(["path", *(f'"{each}"' for each in sources)], "in.csv")
    bench.output = bench.path / "out.csv"
    bench.succeed("--prompt", "Describe it.", "--image-column", "path", "--report", "own.html")
    return bench


@pytest.mark.rule("F2")
@pytest.mark.rule("F21")
async def test_the_report_of_a_call_has_pictures_of_files_that_calls_may_read(pictured, tools):
    assert thumbnails(pictured.path / "own.html") == ["1", "2", "3", "4", "5"], "the operator's report has all"
    async with tools() as call:
        await call("bulk_status", job_id="out.csv", report="of_call.html")
    assert thumbnails(pictured.path / "of_call.html") == ["1", "5"]


def thumbnails(report: Path) -> list[str]:
    """Return the numbers of the rows with a thumbnail in a report."""
    found = re.search(r'"thumbnails":(\{[^{}]*\})', report.read_text(encoding="utf-8"))
    assert found is not None
    return [*json.loads(found[1])]
