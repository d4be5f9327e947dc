"""The page of rows (`rows.html`) in a browser: on a screen and on paper."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import pytest
from PIL import Image

import browser
from promptmill.pages import page
from promptmill.pages.page_rows import Column, PageRows

pytestmark = [pytest.mark.thorough, pytest.mark.skipif(not browser.BROWSER, reason="needs Chromium")]
DATA = {"state": "finished", "mood": "good", "summary": "all answered", "run": [("Job", "a-1")]}
ONE = MappingProxyType({"answer": "good"})
CROSSED = {"title": "A and B agree", "lines": (), "bars": (), "folded": True, "tables": []}


def written(path: Path, rows: int, labels: Mapping[str, str] = ONE, differ: int = 0, **data: object) -> Path:
    """Write a page with rows of an id, a text and the same answers. `differ`: the last rows, which differ."""
    shown = PageRows()
    shown.filters = [("differ", "Differ", 1, 1)] if differ else []
    for at, name in enumerate(("id", "text", *labels)):
        shown.add_column(Column(name, name, "answer" if name in labels else "own"), at)
    for at in range(rows):
        shown.add(
            at + 1, int(at >= rows - differ), {"id": f"id-{at}", "text": f"what guest {at} says of the soup", **labels}
        )
    shown.order_columns()
    target = path / "page.html"
    page.put(target, page.filled("in.csv", DATA | data, shown, rows))
    return target


async def test_a_printed_page_has_its_figures_and_200_rows_and_no_blank_page(tmp_path):
    file = written(tmp_path, 1200, sections=[{**CROSSED, "lines": ["seldom"]}], tiles=[("Answered", "1,200", "")])
    async with browser.opened() as shown:
        await shown.look(1280, 900, "dark")
        await shown.open(file)
        await shown.until("document.getElementById('count').textContent === 'All 1,200 rows.'")
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
        assert await shown.run("document.querySelectorAll('#table th button, details.fold:not([open])').length") == 6
        assert not shown.complaints


async def test_a_printed_page_of_few_rows_has_all_of_them(tmp_path):
    async with browser.opened() as shown:
        await shown.look(390, 844, "light")
        await shown.open(written(tmp_path, 3))
        await shown.until("document.getElementById('count').textContent === 'All 3 rows.'")
        (paper,) = await shown.printed()
        assert "what guest 2 says" in paper
        assert "more" not in paper


async def test_printed_answers_of_many_fields_begin_on_the_first_page(tmp_path):
    bars = [[f"level {at}", 7, ""] for at in range(8)]
    file = written(
        tmp_path, 3, counts=[[f"field {at}", "", bars, ""] for at in range(8)], tiles=[("Answered", "3", "")]
    )
    async with browser.opened() as shown:
        await shown.open(file)
        papers = await shown.printed()
        assert "field 0" in papers[0]
        assert "level 7" in papers[0]
        assert not any(text.rstrip().endswith("field 3") for text in papers)
        assert not shown.complaints


SLOW = """
const json = Response.prototype.json;
Response.prototype.json = async function () { await new Promise(act => setTimeout(act, 300)); return json.call(this); };
addEventListener("load", () => { window.atLoad = document.querySelectorAll("#table tbody tr[tabindex]").length; });
"""
BROKEN = "Response.prototype.json = async () => { throw new Error('too large'); };"


async def test_a_page_is_loaded_when_its_rows_are_shown(tmp_path):
    async with browser.opened() as shown:
        await shown.send("Page.addScriptToEvaluateOnNewDocument", source=SLOW)
        await shown.open(written(tmp_path, 3))
        assert await shown.run("window.atLoad") == 3
        assert "what guest 2 says" in " ".join(await shown.printed())
        assert not shown.complaints


async def test_a_page_without_its_rows_does_not_say_that_it_has_them(tmp_path):
    async with browser.opened() as shown:
        await shown.send("Page.addScriptToEvaluateOnNewDocument", source=BROKEN)
        await shown.open(written(tmp_path, 3))
        text = " ".join(" ".join(await shown.printed()).split())
        assert "This browser cannot unpack the rows: too large" in text
        assert "All 3 rows" not in text


@pytest.mark.parametrize(
    ("rows", "differ", "said"),
    [
        (400, 122, "The 122 rows that differ, of 400."),
        (700, 600, "The first 500 of 600 rows that differ, of 700."),
        (400, 1, "The 1 row that differs, of 400."),
        (400, 0, "The first 200 of 400 rows."),
    ],
)
async def test_a_printed_comparison_has_the_rows_that_differ_and_says_so(tmp_path, rows, differ, said):
    file = written(tmp_path, rows, differ=differ, state="comparison")
    async with browser.opened() as shown:
        await shown.look(1280, 900, "light")
        await shown.open(file)
        await shown.until(f"document.getElementById('count').textContent === 'All {rows} rows.'")
        text = " ".join(" ".join(await shown.printed()).split())
        assert said in text
        first = rows - differ if differ else 0
        places = [place for place in range(rows) if f"what guest {place} says" in text]
        assert places == [*range(first, first + min(differ or 200, 500))]
        assert f"All {rows} rows" not in text
        assert await shown.run("document.getElementById('count').textContent") == f"All {rows} rows."


async def test_paper_has_the_rows_that_a_reader_has_chosen(tmp_path):
    file = written(tmp_path, 400, differ=122, state="comparison")
    async with browser.opened() as shown:
        await shown.look(1280, 900, "light")
        await shown.open(file)
        await shown.until("document.getElementById('count').textContent === 'All 400 rows.'")
        await shown.run("change({is: {id: 'id-7'}})")
        await shown.until("document.getElementById('count').textContent === '1 of 400 rows.'")
        text = " ".join(" ".join(await shown.printed()).split())
        assert "The 1 row (id = id-7), of 400." in text
        assert "what guest 7 says" in text


@pytest.mark.parametrize("width", [390, 1024, 1280])
async def test_no_column_of_a_figure_is_cut(tmp_path, width):
    head = ["", "points", "95 % interval", "p", "", "only right"]
    line = ["a_long_field: B minus A", "-13.5", "-18.2 to -11.2", "< 0.0001", "may be chance", "A 153, B 139"]
    figures = [
        {"title": title, "lines": (), "bars": (), "folded": False, "tables": [{"head": names, "rows": [cells]}]}
        for title, names, cells in (("right", ["", "F1"], ["A", "0.9"]), ("differences", head, line))
    ]
    async with browser.opened() as shown:
        await shown.look(width, 900, "light")
        await shown.open(written(tmp_path, 3, sections=figures))
        await shown.until("document.getElementById('count').textContent === 'All 3 rows.'")
        boxes = "[...document.querySelectorAll('.scroll')]"
        assert await shown.run(f"{boxes}.every(one => one.scrollWidth <= one.clientWidth)")
        assert "139" in " ".join(await shown.printed())


@pytest.mark.parametrize("answers", [1, 2, 3])
async def test_at_360_pixels_a_text_stands_with_whole_labels(tmp_path, answers):
    labels = {f"by {at}": "negative" for at in range(answers)}
    file = written(tmp_path, 40, labels)
    async with browser.opened() as shown:
        await shown.look(360, 740, "dark")
        await shown.open(file)
        await shown.until("document.getElementById('count').textContent === 'All 40 rows.'")
        heads = "[...document.querySelectorAll('#table th')].map(th => th.textContent)"
        assert await shown.run(f"{heads}.map(text => text.slice(0, 4))") == ["row", "text", *[*labels][:2]]
        cells = "[...document.querySelectorAll('#table td.answer div')]"
        assert await shown.run(f"{cells}.length > 9 && {cells}.every(cell => cell.scrollHeight <= cell.clientHeight)")
        assert await shown.run("document.documentElement.scrollWidth") == 360
        assert not shown.complaints


BROKEN_WORDS = """
(() => {
  const broken = [], range = document.createRange();
  for (const box of document.querySelectorAll("#table th, #table td div, .bars .name, .scroll th, .scroll td")) {
    const walker = document.createTreeWalker(box, NodeFilter.SHOW_TEXT);
    const words = box.matches("th, .scroll td") ? /[^\\s_]+_?/g : /\\S+/g;
    while (walker.nextNode())
      for (const {0: word, index} of walker.currentNode.data.matchAll(words)) {
        if (word.length > 40 || /[\\u2e80-\\uffff]/.test(word)) continue;
        range.setStart(walker.currentNode, index);
        range.setEnd(walker.currentNode, index + word.length);
        if (new Set([...range.getClientRects()].map(one => one.top)).size > 1) broken.push(word);
      }
  }
  return broken;
})()
"""
CUT_HEADS = "[...document.querySelectorAll('#table th')].filter(th => th.scrollWidth > th.clientWidth).length"
WORDS = {
    "mood": "negative",
    "level_of_satisfaction": "very unsatisfied",
    "Zufriedenheitsangabe": "Kundenzufriedenheitsbefragung",
    "due": "2026-09-02",
    "amount": "123456.75",
    "id": "B-17",
    "urgent": "true",
    "topic": "delivery",
}


@pytest.mark.parametrize("width", [1280, 1024, 390])
@pytest.mark.parametrize("columns", [2, 8])
async def test_no_word_is_broken_and_a_table_that_is_too_wide_scrolls(tmp_path, width, columns):
    labels = dict(list(WORDS.items())[:columns])
    recall = "80.4 % (78.5\N{EN DASH}91.0)"
    table = {"head": ["class", "", "recall"], "rows": [[WORDS["Zufriedenheitsangabe"], "A", recall]]}
    counts = [["", "", [[value, 7, ""] for value in labels.values()], ""]]
    file = written(
        tmp_path, 40, labels, counts=counts, answers="-", sections=[{**CROSSED, "folded": False, "tables": [table]}]
    )
    async with browser.opened() as shown:
        await shown.look(width, 900, "light")
        await shown.open(file)
        await shown.until("document.getElementById('count').textContent === 'All 40 rows.'")
        for wanted in ("null", json.dumps(["text", *labels])):
            await shown.run(f"change({{columns: {wanted}}})")
            assert await shown.run(BROKEN_WORDS) == []
            assert await shown.run(CUT_HEADS) == 0
            assert await shown.run("document.documentElement.scrollWidth") <= width
            is_chosen = wanted != "null" and columns == 8
            assert await shown.run("tableBox.scrollWidth > tableBox.clientWidth") == is_chosen
        text = " ".join(await shown.printed())
        assert all(value in text for value in labels.values())
        assert not shown.complaints


async def test_a_word_of_a_late_row_and_an_address_do_not_break_a_table(tmp_path):
    shown = PageRows()
    shown.filters = []
    for at, name in enumerate(("text", "answer", "link")):
        shown.add_column(Column(name, name, "own" if name == "text" else "answer"), at)
    for at in range(900):
        late = "Rückerstattungsanforderung" if at == 890 else "no"
        texts = {"text": "fine 天気がとてもよいので散歩に行きます", "link": f"https://example.org/{'x' * 90}"}
        shown.add(at + 1, 0, texts | {"answer": late})
    page.put(tmp_path / "page.html", page.filled("in.csv", DATA, shown, 900))
    async with browser.opened() as opened:
        await opened.look(390, 844, "light")
        await opened.open(tmp_path / "page.html")
        await opened.until("document.getElementById('count').textContent === 'All 900 rows.'")
        await opened.run("mark(890)")
        await opened.until("!!document.querySelector('tr.here')")
        assert await opened.run(BROKEN_WORDS) == []
        assert await opened.run("tableBox.scrollWidth") < 700


CELLS = "[...document.querySelectorAll('#table tbody tr:not(.space) td')].map(td => td.textContent)"


async def test_lists_are_words_and_a_page_stands_behind_its_value(tmp_path):
    shown = PageRows()
    for at, name in enumerate(("text", "party", "amount")):
        shown.add_column(Column(name, name, "own" if name == "text" else "answer", source=name), at)
    shown.add_column(Column("sources", "sources", "variant", is_hidden=True, has_places=True), 3)
    rows = [
        ("[removed]", '["A","B"]', 7, '{"party":["page 3","page 9"],"amount":"page 2"}'),
        ("[[1]]", '["A"]', 8, '{"party":["page 3","page 9"],"text":"page 1"}'),
        ("[]", "", None, None),
    ]
    for number, values in enumerate(rows, 1):
        shown.add(number, 0, dict(zip(("text", "party", "amount", "sources"), values, strict=True)))
    page.put(tmp_path / "page.html", page.filled("in.csv", DATA, shown, 3))
    async with browser.opened() as opened:
        await opened.look(1280, 900, "light")
        await opened.open(tmp_path / "page.html")
        await opened.until("document.getElementById('count').textContent === 'All 3 rows.'")
        first = ["1", "[removed]", "A (page 3); B (page 9)", "7 (page 2)"]
        second, third = ["2", "[[1]] (page 1)", "A (page 3, page 9)", "8"], ["3", "[]", "", ""]
        assert await opened.run(CELLS) == [*first, *second, *third]
        await opened.run("opened(0)")
        assert "A (page 3); B (page 9)" in await opened.run("document.querySelector('dialog').textContent")
        assert not opened.complaints


async def test_quotes_are_marked_in_the_text_and_stand_at_their_values(tmp_path):
    shown = PageRows()
    for at, name in enumerate(("text", "number", "total")):
        shown.add_column(Column(name, name, "own" if name == "text" else "answer", source=name), at)
    shown.add_column(Column("sources", "sources", "variant", is_hidden=True, has_places=True), 3)
    found = {
        "number": {"quote": "R-7", "start": 17, "end": 20, "column": "text"},
        "total": {"quote": "EUR 9", "is_missing": True},
    }
    cited = [{"url": "https://example.com/a", "title": "A page"}, {"url": "javascript:alert(1)", "title": "No page"}]
    for number, sources in ((1, found), (2, cited)):
        shown.add(
            number, 0, {"text": "Not R-7 but this R-7.", "number": "R-7", "total": 9, "sources": json.dumps(sources)}
        )
    page.put(tmp_path / "page.html", page.filled("in.csv", DATA, shown, 2))
    async with browser.opened() as opened:
        await opened.look(1280, 900, "light")
        await opened.open(tmp_path / "page.html")
        await opened.until("document.getElementById('count').textContent === 'All 2 rows.'")
        assert (await opened.run(CELLS))[:4] == ["1", "Not R-7 but this R-7.", "R-7", "9 (quote not in the text)"]
        await opened.run("opened(0)")
        of_dialog = "[...document.querySelectorAll('dialog {}')].map(one => one.textContent)"
        assert await opened.run("document.querySelector('dialog .head b').textContent") == "Row 1"
        assert await opened.run(of_dialog.format("p")) == [
            "\u201cR-7\u201d ",
            "\u201cEUR 9\u201d quote not in the text",
        ]
        await opened.run("opened(1)")
        link = "one => [one.href, one.target, one.rel, one.nextElementSibling.textContent]"
        assert (
            await opened.run(f"[...document.querySelectorAll('dialog a')].map({link})")
            == [["https://example.com/a", "_blank", "noopener noreferrer", "(example.com)"]] * 2
        )
        assert not opened.complaints


@pytest.mark.parametrize("width", [1280, 360])
async def test_photos_have_80_pixels_and_no_row_is_lost_between_them(tmp_path, width):
    shown = PageRows()
    shown.add_column(Column("photo", "photo", "own", has_images=True), 0)
    shown.add_column(Column("answer", "answer", "answer"), 1)
    for number in range(1, 101):
        shown.add(number, 0, {"photo": "a.png", "answer": "red"})
    file = io.BytesIO()
    Image.new("RGB", (160, 90), "red").save(file, "JPEG")
    thumbnails = dict.fromkeys(map(str, range(1, 101)), base64.b64encode(file.getvalue()).decode())
    page.put(tmp_path / "page.html", page.filled("in.csv", DATA | {"thumbnails": thumbnails}, shown, 100))
    async with browser.opened() as opened:
        await opened.look(width, 900, "dark")
        await opened.open(tmp_path / "page.html")
        await opened.until("document.querySelectorAll('#table img').length > 3")
        image = "document.querySelector('#table img')"
        assert await opened.run(f"[{image}.offsetWidth, {image}.offsetHeight]") == [80, 80]
        assert await opened.run(f"{image}.closest('td').clientWidth") >= 92
        assert await opened.run(f"{image}.closest('tr').offsetHeight") == 92
        await opened.run("mark(99)")
        assert await opened.until("document.querySelector('tr.here td').textContent") == "100"
        assert await opened.run("document.documentElement.scrollWidth") <= width
        assert not opened.complaints


async def test_a_command_and_a_date_are_divided_only_between_words(tmp_path):
    command = "promptmill bulk a.csv /tmp/a-folder/out.csv --choices yes,no --answer-column mood --model a-small-model"
    text = "We stayed from 2026-04-15 to 2026-04-19 " * 5
    file = written(tmp_path, 3, {"answer": text}, run=[("Command", command)], summary=f"all answered, {text}")
    parts = "[...document.querySelectorAll('.whole')]"
    async with browser.opened() as shown:
        await shown.look(390, 844, "light")
        await shown.open(file)
        await shown.until("document.getElementById('count').textContent === 'All 3 rows.'")
        await shown.run("document.querySelector('details.fold').open = true")
        whole = await shown.run(f"{parts}.map(part => part.textContent)")
        assert {"--choices", "/tmp/a-folder/out.csv", "--answer-column", "a-small-model", "2026-04-15"} <= {*whole}
        assert await shown.run(f"{parts}.every(part => part.getClientRects().length === 1 && part.offsetHeight < 30)")
        assert await shown.run("document.querySelector('dl dd').textContent") == command


async def test_the_first_table_of_a_comparison_is_a_card_for_each_file_on_a_phone(tmp_path):
    head = ["file", "right", "", "model", "cost", "time"]
    files = [["A mood_small.csv", "94.0 %", "", "a-small-model", "$0.020", "2.1 s"], ["B b.csv", *"12345"]]
    file = written(tmp_path, 3, state="comparison", overview={"head": head, "rows": files})
    async with browser.opened() as shown:
        await shown.look(390, 844, "light")
        await shown.open(file)
        await shown.until("document.getElementById('count').textContent === 'All 3 rows.'")
        cells = "[...document.querySelectorAll('.overview td')].filter(td => td.offsetHeight)"
        assert await shown.run(f"{cells}.map(td => td.textContent).slice(0, 5)") == [t for t in files[0] if t]
        assert await shown.run(f"{cells}.every(td => td.offsetHeight < 30 && td.getBoundingClientRect().right < 390)")
        assert await shown.run(f"getComputedStyle({cells}[4], '::before').content") == '"time"'


async def test_bars_have_one_scale_and_an_edge_reports_the_width_that_keys_give_it(tmp_path):
    counts = [["a", "answer", [["a", 200, "and 20 failed"], ["b", 100, ""]], ""]]
    counts += [["b", "answer", [["a", 20, ""], ["b", 0, ""]], ""]]
    async with browser.opened() as shown:
        await shown.look(390, 844, "light")
        await shown.open(written(tmp_path, 3, counts=counts, answers="2 different answers."))
        await shown.until("document.getElementById('count').textContent === 'All 3 rows.'")
        wide = "[...document.querySelectorAll('.bar rect')].map(bar => bar.getBoundingClientRect().width)"
        one, other, *_ = await shown.run(wide)
        assert one == pytest.approx(2 * other, rel=0.01)
        assert await shown.run(f"{wide}.length") == 4
        assert (await shown.run(wide))[2] == pytest.approx(one / 10, rel=0.01)
        now = "Number(document.querySelector('.edge').getAttribute('aria-valuenow'))"
        before = await shown.run(now)
        key = "new KeyboardEvent('keydown', {key: 'ArrowRight'})"
        await shown.run(f"document.querySelector('.edge').dispatchEvent({key})")
        assert before < await shown.run(now) < 100
