"""The report of a job as the tool `bulk_status` writes it, and for jobs with sure labels."""

from __future__ import annotations

import re
import sys

import pytest
from fastmcp.exceptions import ToolError

from all_features import need
from bulk_calls import ran
from foreign_status import WRONG, write_wrong
from labellers import LABELS, labellers, named
from page_content import written
from promptmill.features.report import job_page

SURE = ("--prompt", "Is it positive? {{text}}", "--choices", ",".join(LABELS), "--model", "small", "--sure", "strong")


@pytest.fixture
def sure(bench):
    need("labels")
    bench.upstream.reply = labellers()
    bench.write([{"id": f"r{n}", "text": f"review {n}"} for n in range(600)])
    return bench


async def test_an_agent_writes_the_report_of_a_job(bench, tools, tmp_path):
    bench.prompts(3)
    async with tools() as call:
        found = await ran(call, input_file="in.jsonl", output_file="out.jsonl")
        shown = await call("bulk_status", job_id=found["job_id"], report="out.report.html")
        page = bench.path / "out.report.html"
        assert shown["report"] == {"file": str(page), "rows": 3, "total": 3}
        assert shown["state"] == "finished"
        assert b"promptmill report" in page.read_bytes()
        shown = page.read_text(encoding="utf-8")
        title = "<title>a report of another job</title>"
        (bench.path / "both.html").write_text(re.sub("<title>.*</title>", title, shown), encoding="utf-8")
        both = (bench.path / "both.html").read_bytes()
        for report, problem in (
            ("both.html", "is the report of"),
            ("out.jsonl", r"no \.html file"),
            (str(tmp_path / "x.html"), "report is outside"),
            (".hidden.html", "report is hidden"),
        ):
            with pytest.raises(ToolError, match=problem):
                await call("bulk_status", job_id="out.jsonl", report=report)
        assert (bench.path / "both.html").read_bytes() == both


def test_the_report_has_the_promise_the_classes_and_the_curve(sure):
    sure.succeed(*SURE, *named(sure))
    report = sure.path / "report.html"
    done = sure.here(["promptmill", "jobs", str(sure.output), "--html", str(report)])
    assert done.returncode == 0, done.stderr
    text = report.read_text()
    assert "Sure labels" in text
    assert '"curve":[[1.0,1.0],' in text
    assert '"where":"at the strong model"' in text
    (part,) = sure.folder.known_spec().plan.parts
    scores = [row["score"] for row in sure.answers() if row["score"] is not None]
    is_near = part.pays and any(abs(score - part.cut.place[0]) <= 0.05 for score in scores)
    assert ("Near the cut" in text) is is_near


def test_the_report_shows_the_shares_of_the_labels(sure):
    share = sure.succeed(*SURE, *named(sure))["sure"]["shares"][""]["positive"]["share"]
    path = sure.path / "report.html"
    job_page.write(sure.folder, path)
    data, _ = written(path)
    (part,) = [part for part in data["sections"] if part["title"] == "Estimated shares of labels"]
    assert {name: round(at, 6) for name, at, *_ in part["bars"]}["positive"] == round(share, 6)
    assert part["lines"] == ["As strong would label every row: estimates, with their 95 % intervals."]
    assert all(remark.endswith(" %)") for _, _, bars, _ in data["counts"] for _, _, remark in bars)


@pytest.mark.thorough
@pytest.mark.parametrize("value", WRONG)
def test_a_job_whose_status_is_damaged_has_a_report(bench, value):
    bench.prompts(2)
    bench.succeed()
    write_wrong(bench.folder.database, value)
    done = bench.here([sys.executable, "-m", "promptmill", "jobs", str(bench.output), "--html"])
    assert done.returncode == 0, done.stderr
