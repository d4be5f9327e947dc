"""`compare --report`: the page of a comparison."""

from __future__ import annotations

import itertools
import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import pytest

import browser
from page_content import HOSTILE, column, written
from promptmill.features.compare import comparison_page
from replies import answer, choose


def compared(bench: Any, files: dict[str, list[dict[str, Any]]], *arguments: str) -> str:
    """Write files of rows, compare them into `r.html`, and return what is printed."""
    for name, rows in files.items():
        (bench.path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    python, *command = bench.command(*files, *arguments, "--report", "r.html", command="compare")
    done = bench.here([python, *command])
    assert done.returncode == 0, done.stderr
    return str(done.stdout)


def labelled(rows: int = 90) -> dict[str, list[dict[str, Any]]]:
    """Return two files: the first is wrong in every third row, the second in every tenth and silent in one."""
    right = ["yes" if at % 2 else "no" for at in range(rows)]
    ours = [{"text": f"row {at}", "label": its, "answer": its} for at, its in enumerate(right)]
    theirs = [dict(row) for row in ours]
    for at in range(rows):
        if not at % 3:
            ours[at]["answer"] = "maybe"
        if not at % 10:
            theirs[at]["answer"] = "maybe"
    theirs[7]["answer"] = ""
    return {"a.jsonl": ours, "b.jsonl": theirs}


def test_the_page_of_a_comparison_has_the_figures_of_its_text(bench):
    bench.upstream.reply = choose(
        lambda seen: answer("second" if re.search(r"<first-\w+>\nmaybe", seen.prompt) else "first")
    )
    options = ("--gold", "label", "--criterion", "is right")
    files = labelled()
    text = compared(bench, files, *options)
    figures = json.loads(compared(bench, files, *options, "--json"))
    data, rows = written(bench.path / "r.html")
    printed = [line.strip() for line in text.splitlines()]
    _, labels, _, judge, agreement = data["sections"]
    assert [part["folded"] for part in data["sections"]] == [False, False, False, False, True]
    assert judge["title"] == "judged by test-model: is right"
    for part in data["sections"]:
        assert part["title"] in printed
        assert not {line.strip() for line in part["lines"]} - set(printed)
    assert any(line.startswith("B wins ") or ", B wins " in line for line in judge["lines"])
    (crossed,) = agreement["tables"]
    cells = {
        (one, other): crossed["rows"][down][across + 1]
        for down, one in enumerate(crossed["answers"]["values"])
        for across, other in enumerate(crossed["answers"]["values"])
    }
    changes = {(one["from"], one["to"]): f"{one['rows']:,}" for one in figures["pairs"][0]["changes"]}
    assert {pair: count for pair, count in cells.items() if count != "·"} == changes
    assert [row[3] for row in labels["tables"][0]["rows"][:2]] == [
        f"{file['classes'][0]['precision']:.2f}" for file in figures["gold"]["files"]
    ]
    assert data["tiles"] == []
    (mean,) = (note for note in data["footnotes"] if note.startswith("mean F1: "))
    assert "each counted once, however rare" in mean, "in plain words"
    overview = data["overview"]
    assert overview["head"] == ["file", "right", "", "mean F1", "answered", "better than A"]
    assert [[row[0], row[1][:6], row[2], row[-1]] for row in overview["rows"]] == [
        ["A a.jsonl", "66.7 %", "", ""],
        ["B b.jsonl", "88.9 %", "best", "27 to 6"],
    ]
    assert figures["judge"]["pairs"][0]["wins"] == [6, 27]
    assert [one["name"] for one in data["rows"]["columns"]] == ["text", "A", "B", "label", "judge"]
    assert [cells[3] for cells in rows["cells"]] == ["row 3", "maybe", "yes", "yes", "B is better"]
    counts = {
        key: sum((state & mask) == wanted for state in rows["state"])
        for key, _, mask, wanted in data["rows"]["filters"]
    }
    assert counts["differ"] == figures["differ"]
    assert [counts["wrongA"], counts["wrongB"]] == [90 - file["right"] for file in figures["gold"]["files"]]
    assert [counts["betterA"], counts["betterB"]] == [6, 27]
    assert dict(data["run"])["A"] == f"file: {bench.path}/a.jsonl"


def test_the_page_of_a_comparison_of_one_file_and_one_of_very_many_rows(bench, monkeypatch):
    files = labelled()
    del files["b.jsonl"]
    compared(bench, files, "--gold", "label")
    data, _ = written(bench.path / "r.html")
    assert [part["title"] for part in data["sections"]] == [
        "right, by label",
        "precision, recall and F1 of 2 labels",
    ]
    assert [key for key, *_ in data["rows"]["filters"]] == ["wrong"]
    monkeypatch.setattr(comparison_page, "MOST_REPORT_ROWS", 50)
    (bench.path / "r.html").unlink()
    compared(bench, labelled())
    data, rows = written(bench.path / "r.html")
    assert "A random sample of 50 of 90 rows" in data["rows"]["note"]
    assert len(rows["state"]) == 50
    (bench.path / "r.html").write_text("mine")
    done = bench.here([sys.executable, "-m", "promptmill", "compare", "a.jsonl", "b.jsonl", "--report", "r.html"])
    assert "exists and is no report" in done.stderr
    assert (bench.path / "r.html").read_text() == "mine"


@pytest.mark.features("report")
def test_of_a_row_with_very_many_columns_or_turns_some_are_shown(bench):
    columns = {f"column {at}": "x" * 50_000 for at in range(100)}
    compared(bench, {name: [columns | {"answer": name, "id": 1}] for name in ("a.jsonl", "b.jsonl")})
    data, rows = written(bench.path / "r.html")
    names = [one["name"] for one in data["rows"]["columns"]]
    assert names == ["column 0", "A", "B", *(f"column {at}" for at in range(1, 49)), "id"]
    assert data["rows"]["note"].endswith("51 further columns of the input are left out.")
    assert {len(cells[0]) for cells in rows["cells"][3:-1]} == {20_000}
    turns = [{"role": ("user", "assistant")[at % 2], "content": f"turn {at}"} for at in range(101)]
    bench.write([{"messages": turns}])
    bench.succeed("--report", "s.html")
    (asked,) = column(*written(bench.path / "s.html"), "prompt")
    assert asked[0] == ["…", "51 more"]
    assert asked[-1] == ["user", "turn 100"]


@pytest.fixture
def hostile_comparison(bench: Any) -> Path:
    """Return the page of a comparison whose every text is hostile."""
    hostile_rows = [HOSTILE[at % len(HOSTILE)] for at in range(42)]
    files = {
        name: [
            {"text": f"{at} {text}", text: text, "label": text, "answer": text if at % step else HOSTILE[0]}
            for at, text in enumerate(hostile_rows)
        ]
        for name, step in (("a.jsonl", 5), ("b.jsonl", 9))
    }
    bench.upstream.reply = choose(lambda seen: answer("first"))
    compared(bench, files, "--gold", "label", "--criterion", HOSTILE[0])
    return Path(bench.path / "r.html")


@pytest.mark.thorough
@pytest.mark.skipif(not browser.BROWSER, reason="needs Chromium")
async def test_a_browser_shows_a_comparison_side_by_side_and_runs_nothing(hostile_comparison):
    async with browser.opened() as page:
        await page.open(hostile_comparison)
        assert await page.until("document.getElementById('count').textContent") == "All 42 rows."
        for width, scheme in itertools.product((1200, 390), ("light", "dark")):
            await page.look(width, 844, scheme)
            await page.run("rowsBox.scrollIntoView()")
            await page.until("document.querySelectorAll('#table tbody tr[tabindex]').length > 5")
            assert await page.run("document.documentElement.scrollWidth") <= width
            if folder := os.environ.get("REPORT_PICTURES"):
                (Path(folder) / f"comparison-{scheme}-{width}.png").write_bytes(await page.picture())
        await page.run("buttons.differ.click()")
        differ = await page.run("document.getElementById('count').textContent")
        assert re.fullmatch(r"\d+ of 42 rows.", differ)
        await page.run("document.querySelector('#table tbody tr[tabindex]').click()")
        assert await page.run("document.querySelectorAll('dialog .beside > div').length") == 4
        assert "contradicts itself" in await page.run("document.querySelector('dialog').textContent")
        await page.run("document.querySelector('dialog [aria-label=close]').click()")
        await page.run("search.value = 'ONERROR'; search.dispatchEvent(new Event('input'))")
        await page.until(f"document.getElementById('count').textContent !== '{differ}'")
        assert await page.run("document.querySelectorAll('details.fold[open]').length") == 0
        assert await page.run("document.querySelector('td button').closest('details.fold') !== null")
        await page.run("document.querySelectorAll('details.fold').forEach(fold => fold.open = true)")
        await page.look(390, 844, "light")
        figure = "document.querySelector('.overview tr:nth-child(2) td:nth-child(2)')"
        edges = f"[{figure}, {figure}.closest('.scroll')].map(one => one.getBoundingClientRect().right)"
        assert await page.run(f"{edges}[0] <= {edges}[1]"), "the key figure is seen without a move"
        assert await page.run("document.documentElement.scrollWidth") <= 390
        assert await page.run("document.querySelector('td button').closest('.scroll').scrollWidth") > 390
        await page.run("document.querySelector('td button').click()")
        assert re.fullmatch(r"\d+ of 42 rows.", await page.run("document.getElementById('count').textContent"))
        assert not await page.run("'hacked' in window")
        assert await page.run("document.querySelectorAll('img, iframe, object').length") == 0
        assert not page.complaints
        assert len([url for url in page.requests if url.startswith("file:")]) == 1
        assert {url.partition(":")[0] for url in page.requests} <= {"file", "data"}


@pytest.mark.thorough
@pytest.mark.skipif(not (browser.BROWSER and browser.AXE.exists()), reason="needs Chromium and axe-core")
async def test_a_comparison_has_no_barriers(hostile_comparison):
    async with browser.opened() as page:
        for width, scheme in itertools.product((1200, 360), ("light", "dark")):
            await page.look(width, 844, scheme)
            await page.open(hostile_comparison)
            await page.until("document.getElementById('count').textContent === 'All 42 rows.'")
            assert await page.barriers() == []
            await page.run("document.querySelectorAll('details').forEach(each => each.open = true); opened(0)")
            assert await page.barriers() == []
