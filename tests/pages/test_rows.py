"""The page of rows (`rows.html`) in a browser: on a screen and on paper."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import pytest

import browser
from promptmill.pages import page
from promptmill.pages.page_rows import Column, PageRows

pytestmark = [pytest.mark.thorough, pytest.mark.skipif(not browser.BROWSER, reason="needs Chromium")]
DATA = {"state": "finished", "mood": "good", "summary": "all answered", "run": [("Job", "a-1")]}
ONE = MappingProxyType({"answer": "good"})
CROSSED = {"title": "A and B agree", "lines": (), "bars": (), "folded": True, "tables": []}


def written(path: Path, rows: int, answers: Mapping[str, str] = ONE, **data: object) -> Path:
    """Write a page with rows of an id, a text and the same answers."""
    shown = PageRows()
    for at, name in enumerate(("id", "text", *answers)):
        shown.add_column(Column(name, name, "answer" if name in answers else "own"), at)
    for at in range(rows):
        shown.add(at + 1, 0, {"id": f"id-{at}", "text": f"what guest {at} says of the soup", **answers})
    shown.order_columns()
    target = path / "page.html"
    page.put(target, page.filled("in.csv", DATA | data, shown, rows))
    return target


async def test_a_printed_page_has_its_figures_and_200_rows_and_no_blank_page(tmp_path):
    file = written(tmp_path, 1200, sections=[{**CROSSED, "lines": ["seldom"]}], tiles=[("Answered", "1,200", "")])
    async with browser.opened() as shown:
        await shown.look(1280, 900, "dark")
        await shown.open(file)
        await shown.until("document.getElementById('count').textContent === '1,200 rows'")
        await shown.run("scrollTo(0, 30000)")
        papers = await shown.printed()
        assert len(papers) < 15
        assert all(len(text) > 100 for text in papers)
        text = " ".join(papers)
        assert "Answered" in papers[0]
        assert "seldom" in text
        assert [f"what guest {at} says" in text for at in (0, 199, 200)] == [True, True, False]
        assert "and 1,000 more" in papers[-1]
        assert all("answer" in each for each in papers[1:])  # the names of the columns are on each page
        await shown.run("document.getElementById('table').scrollIntoView()")
        assert await shown.run("document.querySelectorAll('#table tbody tr[tabindex]').length") < 60
        assert await shown.run("document.querySelectorAll('#table th button, details.fold:not([open])').length") == 5
        assert not shown.complaints


async def test_a_printed_page_of_few_rows_has_all_of_them(tmp_path):
    async with browser.opened() as shown:
        await shown.look(390, 844, "light")
        await shown.open(written(tmp_path, 3))
        await shown.until("document.getElementById('count').textContent === '3 rows'")
        (paper,) = await shown.printed()
        assert "what guest 2 says" in paper
        assert "more" not in paper


@pytest.mark.parametrize("answers", [1, 2, 3])
async def test_at_360_pixels_a_text_stands_with_whole_labels(tmp_path, answers):
    labels = {f"by {at}": "negative" for at in range(answers)}
    file = written(tmp_path, 40, answers=labels)
    async with browser.opened() as shown:
        await shown.look(360, 740, "dark")
        await shown.open(file)
        await shown.until("document.getElementById('count').textContent === '40 rows'")
        heads = "[...document.querySelectorAll('#table th')].map(th => th.textContent)"
        assert await shown.run(f"{heads}.map(text => text.slice(0, 4))") == ["row", "text", *[*labels][:2]]
        cells = "[...document.querySelectorAll('#table td.answer div')]"
        assert await shown.run(f"{cells}.length > 9 && {cells}.every(cell => cell.scrollHeight <= cell.clientHeight)")
        assert await shown.run("document.documentElement.scrollWidth") == 360
        assert not shown.complaints
