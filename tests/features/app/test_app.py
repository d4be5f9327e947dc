"""The job inside the chat: what hosts of MCP Apps learn, and the page in a real browser, in a sandboxed frame."""

from __future__ import annotations

import base64
import csv
import io
import json
import math
import os
import re
from typing import Any

import pytest
from fastmcp import Client
from fastmcp.apps.config import UI_EXTENSION_ID
from fastmcp.exceptions import ToolError
from mcp.client import advertise
from PIL import Image

import browser
from all_features import ALL_FEATURES, need
from app_host import hosting
from bulk_calls import polled
from fakes import openai_configuration
from labellers import LABELS
from pdf_files import pdf_of_texts
from promptmill.features.app import MOST_PICTURES
from promptmill.features.app.chat_page import html
from promptmill.features.app.tools import ADDRESS, OWN_TOOLS, PICTURES, ROWS, TOOLS
from promptmill.jobs.run import runner
from promptmill.server import create_server
from promptmill.service.service import Service
from replies import answer, choose, late, status

HOSTILE = "<img src=x onerror='window.hacked=1'> <script>window.hacked=1</script> javascript:alert(1) \x07"


@pytest.fixture
def client(bench, closing, monkeypatch) -> Any:
    """Make clients of one server, whose working directory is the bench's."""
    monkeypatch.chdir(bench.path)
    server = create_server(closing(Service(openai_configuration(bench.upstream.url))))
    return lambda **options: Client(server, **options)


async def shown(page: Any, url: str, host: Any, tool: str, **arguments: Any) -> None:
    """Open the page, call a tool, and give its result to the page."""
    await page.visit(url)
    await page.until("window.ready")
    found = (await host.call_tool(tool, arguments)).structured_content
    result = json.dumps({"content": [], "structuredContent": found})
    await page.run(f"window.notify('ui/notifications/tool-result', {result})")


async def test_only_a_host_of_such_pages_learns_of_the_page(client):
    async with client() as plain, client(extensions=[advertise(UI_EXTENSION_ID)]) as host:
        without, tools = await plain.list_tools(), await host.list_tools()
        assert not any("ui" in (tool.meta or {}) for tool in without)
        assert ADDRESS not in {str(one.uri) for one in await plain.list_resources()}
        assert ADDRESS in {str(one.uri) for one in await host.list_resources()}
        named = {tool.name for tool in tools if (tool.meta or {}).get("ui") == {"resourceUri": ADDRESS}}
        assert named == TOOLS & {tool.name for tool in tools}
        assert "bulk_status" not in named, "each look of a model would add a page of the same job"
        assert not OWN_TOOLS & {tool.name for tool in without}
        own = [tool for tool in tools if tool.name in OWN_TOOLS]
        assert [(tool.meta or {})["ui"] for tool in own] == [{"visibility": ["app"]}] * 2, "hidden from the model"
        (page,) = await host.read_resource(ADDRESS)
        assert page.mime_type == "text/html;profile=mcp-app"


def test_the_page_is_one_small_file_that_makes_no_request():
    page = html()
    assert len(page.encode()) <= 85_000
    assert "{{" not in page
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)
    assert policy is not None
    assert policy[1].startswith("default-src 'none'; script-src 'sha256-")
    assert "innerHTML" not in page


@pytest.mark.skipif(not browser.BROWSER, reason="needs Chromium")
async def test_a_job_is_shown_live_paused_and_its_hostile_rows_do_nothing(bench, client):
    bench.write([{"prompt": f"row {n}"} if n != 3 else {"prompt": HOSTILE + "y" * 300_000} for n in range(600)])
    replies = {"row 7": status(400, HOSTILE)}
    bench.upstream.reply = late(
        0.02, choose(lambda seen: replies.get(seen.prompt) or answer(HOSTILE if "onerror" in seen.prompt else "fine"))
    )
    async with client() as host, hosting(host, ADDRESS, theme="dark") as url, browser.opened() as page:
        await shown(page, url, host, "bulk_generate", input_file="in.jsonl", output_file="out.jsonl")
        await page.inside("document.querySelectorAll('#table tbody tr:not(.space)').length > 2")
        await page.inside("(document.getElementById('hold').click(), true)")
        await page.inside("['paused', 'finished'].includes(document.getElementById('state').textContent)")
        if await page.run("document.getElementById('state').textContent === 'paused'", contextId=page.frame):
            await page.inside("(document.getElementById('hold').click(), true)")
        await page.inside("document.getElementById('state').textContent === 'finished'")
        await page.inside("document.getElementById('count').textContent.startsWith('600')")
        facts = await page.inside("document.getElementById('facts').textContent")
        assert facts.startswith("599 of 600 answered · 1 failed · in 0:")
        first = "document.querySelector('#table tbody tr:not(.space)').textContent"
        assert "window.hacked=1" in await page.inside(first), "the failed row is the first, with its words"
        assert await page.inside("String(window.hacked) + document.documentElement.dataset.theme") == "undefineddark"
        assert await page.run("window.hacked") is None
        pictures = f"window.calls.filter(each => each.name === '{PICTURES}').length"
        assert await page.run(pictures) <= 1, "a job without images is asked for pictures once"
        assert {re.sub(r"^http://[^/]*", "", each) for each in page.requests} <= {"/", "/app", "/call", "/favicon.ico"}


@pytest.fixture
def pictured(bench, tmp_path_factory):
    """A bench with a finished job of the command line, whose rows have images inside and outside its folder."""
    outside = tmp_path_factory.mktemp("elsewhere") / "secret.png"
    Image.new("RGB", (40, 20), "blue").save(outside)
    (bench.path / "link.png").symlink_to(outside)
    noise = Image.frombytes("RGB", (900, 900), os.urandom(3 * 900 * 900)).resize((160, 160), Image.Resampling.NEAREST)
    noise.save(bench.path / "noise.png")
    held = f"data:image/png;base64,{base64.b64encode((bench.path / 'noise.png').read_bytes()).decode()}"
    sources = ["noise.png", str(outside), "link.png", "gone.png", f"{bench.upstream.url}/a.png", held]
    bench.write(["path", *(f'"{each}"' for each in sources)], "in.csv")
    bench.output = bench.path / "out.csv"
    bench.fail("--prompt", "Describe it.", "--image-column", "path", code=1)
    assert [row["error"] == "" for row in csv.DictReader(bench.output.open())] == [True, True, True, False, True, True]
    return bench


async def test_pictures_are_small_and_of_files_that_calls_may_read(pictured, client):
    before = len(pictured.upstream.seen)
    async with client(extensions=[advertise(UI_EXTENSION_ID)]) as host:
        result = await host.call_tool(PICTURES, {"job_id": "out.csv", "rows": [9, 6, 5, 4, 3, 2, 1]})
        found = result.structured_content
        assert sorted(found["pictures"]) == ["1", "6"]
        assert found["columns"][0] == "path"
        for picture in found["pictures"].values():
            assert len(f"data:image/jpeg;base64,{picture}") <= 8 << 10
            with Image.open(io.BytesIO(base64.b64decode(picture))) as image:
                assert (image.format, image.size) == ("JPEG", (112, 112)), "a size smaller"
        assert "".join(part.text for part in result.content) == "The pictures are in the structured content."
        for rows in ([*range(1, MOST_PICTURES + 2)], [0], []):
            with pytest.raises(ToolError, match="rows"):
                await host.call_tool(PICTURES, {"job_id": "out.csv", "rows": rows})
        with pytest.raises(ToolError, match="There is no job"):
            await host.call_tool(PICTURES, {"job_id": "other.csv", "rows": [1]})
    assert len(pictured.upstream.seen) == before, "no image is fetched"


@pytest.fixture
def conversed(bench):
    """A bench with a finished job of two rows, which have the same image in a message and as a file."""
    Image.new("RGB", (40, 20), "red").save(bench.path / "red.png")
    held = f"data:image/png;base64,{base64.b64encode((bench.path / 'red.png').read_bytes()).decode()}"
    parts = [{"type": "text", "text": "What is it?"}, {"type": "image_url", "image_url": {"url": held}}]
    bench.write([{"messages": [{"role": "user", "content": parts}]}, {"prompt": "And it?", "image": "red.png"}])
    bench.succeed()
    return bench


@pytest.mark.thorough
async def test_rows_of_requests_have_the_pictures_of_their_messages(conversed, client):
    async with client() as host:
        found = (await host.call_tool(PICTURES, {"job_id": "out.jsonl", "rows": [1, 2]})).structured_content
    assert {"messages", "image"} <= {*found["columns"]}
    assert found["pictures"]["1"] == found["pictures"]["2"]


@pytest.mark.skipif(not browser.BROWSER, reason="needs Chromium")
async def test_the_table_shows_the_pictures_of_its_rows(pictured, client):
    async with client() as host, hosting(host, ADDRESS) as url, browser.opened() as page:
        await shown(page, url, host, "bulk_status", job_id="out.csv")
        images = "[...document.querySelectorAll('#table td img')]"
        await page.inside(f"{images}.length === 2 && {images}.every(each => each.naturalWidth > 0)")
        rows = await page.inside(f"{images}.map(each => each.closest('tr').firstChild.textContent).join()")
        assert rows == "6,1"
        assert "[image]" in await page.inside(f"{images}[0].parentNode.title")
        await page.inside(f"({images}[0].click(), document.querySelector('dialog img').naturalWidth > 0)")
        assert not [each for each in page.complaints if "Content Security" in each or "exception" in each]


def _voted(bench, *form: str, field: str = "") -> None:
    """Run a job of six rows, whose three votes all differ; in answers with `field`, the vote is its value."""
    need("labels", "review")

    def vote(seen: Any) -> Any:
        label = LABELS[seen.json["seed"] - 1]
        return answer(json.dumps({field: label}) if field else label)

    bench.upstream.reply = choose(vote)
    bench.write([{"id": f"r{n}", "text": f"review {n}"} for n in range(6)])
    bench.succeed("--prompt", "Is it positive? {{text}}", *form, "--votes", "3", "--set", "sampling_params.seed=0")


@pytest.fixture
def doubtful(bench):
    """A bench with a finished job of six rows, whose three votes all differ."""
    _voted(bench, "--choices", ",".join(LABELS))
    return bench


@pytest.fixture
def doubtful_fields(bench):
    """A bench with such a job, whose answers have one field."""
    _voted(bench, "--fields", f"tone:{'|'.join(LABELS)}", field="tone")
    return bench


async def test_the_values_of_the_only_field_are_offered_as_labels(doubtful_fields, client):
    async with client() as host:
        found = (await host.call_tool(ROWS, {"job_id": "out.jsonl"})).structured_content
        assert found["labels"] == [*LABELS]
        doubts = (await host.call_tool("review", {"job_id": "out.jsonl"})).structured_content
        assert (doubts["labels"], doubts["rows"][0]["answer"]) == ([*LABELS], LABELS[0])
        row = {"row": 1, "key": found["rows"]["key"][found["rows"]["number"].index(1)], "label": LABELS[2]}
        await host.call_tool("review", {"job_id": "out.jsonl", "decisions": [row]})
    assert doubtful_fields.answers()[0]["answer"] == {"tone": LABELS[2]}


@pytest.mark.skipif(not browser.BROWSER, reason="needs Chromium")
async def test_labels_of_a_person_are_stored_from_the_page(doubtful, client):
    async with client() as host, hosting(host, ADDRESS) as url, browser.opened() as page:
        await shown(page, url, host, "bulk_status", job_id="out.jsonl")
        await page.inside("!document.getElementById('unsure').hidden")
        await page.inside("(document.getElementById('unsure').click(), true)")
        await page.inside("document.querySelectorAll('#review section').length === 6")
        pressed = "document.querySelectorAll('#review [aria-pressed=true]').length"
        assert await page.run(pressed, contextId=page.frame) == 0, "the model's label is not the person's"
        label = await page.inside("document.querySelector('#review .labels').lastChild.textContent")
        key = f"dispatchEvent(new KeyboardEvent('keydown', {{key: '{len(LABELS)}', bubbles: true}}))"
        await page.inside(f"document.body.{key}")
        await page.inside(f"document.activeElement.{key}")
        last = "[...document.querySelectorAll('#review section')][2].querySelector('.labels').lastChild"
        await page.inside(f"({last}.click(), {pressed} === 3)")
        place = "document.getElementById('store').getBoundingClientRect()"
        assert await page.inside(f"0 < {place}.top && {place}.bottom <= innerHeight"), "the button stays in sight"
        assert await page.inside("document.getElementById('store').textContent") == "Store 3 labels"
        await page.inside("(document.getElementById('store').click(), true)")
        await page.inside("document.getElementById('note').textContent === '3 labels are stored.'")
    assert [row["sure"] for row in doubtful.answers()].count("person") == 3
    assert [row["answer"] for row in doubtful.answers() if row["sure"] == "person"] == [label] * 3


@pytest.mark.thorough
@pytest.mark.skipif(not browser.BROWSER, reason="needs Chromium")
async def test_the_end_of_a_job_has_bars_of_its_labels_and_one_click_labels_the_row_that_is_opened(doubtful, client):
    async with client() as host, hosting(host, ADDRESS) as url, browser.opened() as page:
        await shown(page, url, host, "bulk_status", job_id="out.jsonl")
        bars = "[...document.querySelectorAll('.bar')].map(each => each.textContent)"
        before = await page.inside(f"{bars}.length && {bars}")
        assert sum(int(text[-1]) for text in before) == 6
        assert await page.inside("document.getElementById('file').textContent") == f"All answers: {doubtful.output}"
        assert " answered · in 0:0" in await page.inside("document.getElementById('facts').textContent")
        row = "document.querySelector('#table tbody tr:not(.space)')"
        was = await page.inside(f"{row}.querySelector('td.answer').textContent")
        await page.inside(f"({row}.click(), document.querySelector('dialog .labels') !== null)")
        label = f"[...document.querySelectorAll('dialog .labels button')].find(each => each.textContent !== '{was}')"
        given = await page.inside(f"{label}.textContent")
        await page.inside(f"({label}.click(), document.querySelector('dialog[open] #store').offsetHeight > 0)")
        await page.inside("(document.getElementById('store').click(), true)")
        await page.inside("document.getElementById('note').textContent === '1 label is stored.'")
        await page.inside(f"{row}.textContent.includes('{given}')")
        await page.inside("(document.querySelector('.bar').click(), true)")
        await page.inside("/^[1-5] of 6 rows$/.test(document.getElementById('count').textContent)")
    assert [row["answer"] for row in doubtful.answers() if row["sure"] == "person"] == [given]


@pytest.mark.skipif(not (browser.BROWSER and browser.AXE.exists()), reason="needs Chromium and axe-core")
@pytest.mark.parametrize(("width", "theme"), [(1200, "light"), (360, "dark")])
async def test_the_page_has_no_barriers_in_any_state(doubtful, client, width, theme):
    need("compare")
    for name in ("a.jsonl", "b.jsonl"):
        doubtful.write([{"id": at, "answer": name[at % 2], "gold": "a"} for at in range(4)], name)
    check = {"input_file": "in.jsonl", "output_file": "new.jsonl", "prompt": "{{text}}", "validate": True}
    table = "document.querySelectorAll('#table tbody tr:not(.space)').length > 1"
    opened = (
        "(document.querySelector('#table tbody tr:not(.space)').click(), !!document.querySelector('dialog .labels'))"
    )
    review, labels = "(document.getElementById('unsure').click(), true)", "!!document.querySelector('#review .labels')"
    states: dict[str, tuple[str, dict[str, Any], list[str]]] = {
        "job": ("bulk_status", {"job_id": "out.jsonl"}, [table]),
        "row": ("bulk_status", {"job_id": "out.jsonl"}, [table, opened]),
        "review": ("bulk_status", {"job_id": "out.jsonl"}, [table, review, labels]),
        "comparison": ("compare", {"files": ["a.jsonl", "b.jsonl"], "gold": "gold"}, [table]),
        "check": ("bulk_generate", check, ["document.getElementById('state').textContent === 'checked'"]),
    }
    async with client() as host, hosting(host, ADDRESS, theme=theme) as url:
        for state, (tool, arguments, steps) in states.items():
            async with browser.opened() as page:
                await page.look(width, 800, theme)
                await shown(page, url, host, tool, **arguments)
                for step in steps:
                    await page.inside(step)
                assert await page.barriers() == [], state


@pytest.mark.skipif(not browser.BROWSER, reason="needs Chromium")
async def test_a_comparison_shows_its_figures_and_the_rows_that_differ(bench, client):
    need("compare")
    for name, answers in (("a.csv", "xyz"), ("b.csv", "xxz")):
        rows = "".join(f"{n},{text},xyz\n" for n, text in enumerate(answers))
        (bench.path / name).write_text(f"id,answer,gold\n{rows}".replace("2,z,xyz", "2,z,z").replace("xyz", "x"))
    async with client() as host, hosting(host, ADDRESS) as url, browser.opened() as page:
        await shown(page, url, host, "compare", files=["a.csv", "b.csv"], gold="gold")
        assert await page.inside("document.getElementById('name').textContent") == "A a.csv · B b.csv"
        assert await page.inside("document.getElementById('facts').textContent") == "3 rows · 1 differ"
        sections = "[...document.querySelectorAll('section')].map(each => each.textContent)"
        right, agreement, files, _ = await page.inside(sections)
        assert right.startswith(
            "Right, by goldA a.csv66.7 % (20.8\N{EN DASH}93.9)B b.csv100.0 % (43.9\N{EN DASH}100.0)"
            "points95 % intervalpB minus A+33.3"
        )
        assert right.endswith("may be chance")
        assert agreement == "AgreementA and B66.7 % (20.8\N{EN DASH}93.9)"
        assert "A a.csv66.7 % (20.8 % to 93.9 %)0.833B" in files, "a mean F1 of 0.83, 3 answered"
        visible = "[...document.querySelectorAll('section')].every(each => each.offsetHeight > 40)"
        assert await page.inside(visible)
        assert await page.inside("document.querySelector('.scroll').tabIndex + 1"), "a keyboard scrolls a wide table"
        assert await page.inside(_cells(0)) == "2|1|y|x|x"
        wrong = "[...document.querySelectorAll('#table td.bad')].map(each => each.textContent).join()"
        assert await page.inside(wrong) == "y"


def _cells(row: int) -> str:
    line = f"document.querySelectorAll('#table tbody tr:not(.space)')[{row}]"
    return f"[...{line}.children].map(each => each.textContent).join('|')"


_HEADS = "[...document.querySelectorAll('#table th')].map(each => each.textContent.trim()).join('|')"


@pytest.fixture
def two_models(bench):
    """A bench with a finished job of two rows, each answered by two models."""
    bench.write(["text", "tea", "milk"], "in.csv")
    bench.output = bench.path / "out.csv"
    bench.upstream.reply = choose(lambda seen: answer(f"{seen.json['model']}: {seen.prompt}"))
    bench.succeed("--prompt", "Say {{text}}", "--model", "a", "--model", "b")
    return bench


@pytest.mark.skipif(not browser.BROWSER, reason="needs Chromium")
async def test_several_models_stand_side_by_side_and_their_review_is_not_offered(two_models, client):
    async with client() as host, hosting(host, ADDRESS) as url, browser.opened() as page:
        await shown(page, url, host, "bulk_status", job_id="out.csv")
        await page.inside("document.querySelectorAll('#table tbody tr:not(.space)').length === 2")
        assert await page.inside(_cells(0)) == "2|milk|a: Say milk|b: Say milk"
        assert "4 of 4 answered (2 rows" in await page.inside("document.getElementById('facts').textContent")
        assert await page.inside("document.getElementById('unsure').hidden")
        found = (await host.call_tool("review", {"job_id": "out.csv"})).structured_content
    assert found["labels"] == []
    assert "stores no labels" in found["note"]


@pytest.fixture
def same_names(bench):
    """A bench with a finished job, whose input has columns with the names of the job's."""
    bench.write(["row,answer,error,text", "7,yes,none,tea"], "in.csv")
    bench.output = bench.path / "out.csv"
    bench.succeed("--prompt", "Say {{text}}")
    return bench


@pytest.mark.thorough
@pytest.mark.skipif(not browser.BROWSER, reason="needs Chromium")
async def test_columns_of_the_input_keep_their_values_whatever_their_names(same_names, client):
    async with client() as host, hosting(host, ADDRESS) as url, browser.opened() as page:
        await shown(page, url, host, "bulk_status", job_id="out.csv")
        await page.inside("document.querySelectorAll('#table tbody tr:not(.space)').length === 1")
        assert {*(await page.inside(_cells(0))).split("|")} >= {"1", "7", "yes", "echo: Say tea"}
        assert "1 of 1 answered" in await page.inside("document.getElementById('facts').textContent")


@pytest.fixture
def reviews(bench):
    """A bench with a finished job of 400 rows in a table, of which 2 have failed."""
    lines = [
        f"{n},{'é' if n == 300 else 'tea'} {n} {'y' * 900 if n == 399 else ''},{(n * 7) % 400}" for n in range(400)
    ]
    bench.write(["id,text,size", *lines], "in.csv")
    bench.output = bench.path / "out.csv"
    failed = {"tea 7 ": status(400, "no"), "tea 250 ": status(400, "no")}
    labelled = choose(
        lambda seen: failed.get(seen.prompt) or answer("odd" if int(seen.prompt.split()[1]) % 2 else "even")
    )
    bench.upstream.reply = labelled
    bench.fail("--prompt", "{{text}}", code=1)
    return bench


_VIEWS: list[tuple[dict[str, Any], int, list[int]]] = [
    ({}, 400, [251, 8, 400, 399]),
    ({"offset": 2, "limit": 2}, 400, [400, 399]),
    ({"down": True}, 400, [1, 2, 3, 4]),
    ({"show": "failed"}, 2, [251, 8]),
    ({"show": "answered"}, 398, [400, 399, 398, 397]),
    ({"search": "TEA 39"}, 11, [400, 399, 398, 397]),
    ({"search": " É 300"}, 1, [301]),
    ({"search": "no such row"}, 0, []),
    ({"sort": "size"}, 400, [1, 344, 287, 230]),
    ({"sort": "size", "down": True, "show": "failed"}, 2, [251, 8]),
    ({"sort": "answer"}, 400, [1, 3, 5, 7]),
    ({"wanted": {"answer": "odd", "size": "2"}}, 0, []),
    ({"wanted": {"answer": "odd", "size": "7"}}, 1, [2]),
    ({"row": 17}, 1, [17]),
]


async def test_a_window_has_the_rows_of_a_view_in_its_order(reviews, client):
    async with client() as host:
        for view, found, numbers in _VIEWS:
            window = (await host.call_tool(ROWS, {"job_id": "out.csv", "limit": 4, **view})).structured_content
            assert (window["found"], window["all"], window["rows"]["number"]) == (found, 400, numbers), view
            assert [column["name"] for column in window["columns"]][:3] == ["text", "answer", "size"]


async def test_the_figures_of_a_look_are_those_of_its_rows(bench, client, monkeypatch):
    monkeypatch.setattr(runner, "_STATUS_S", math.inf)  # no status is stored after the start
    bench.upstream.reply = choose(
        lambda seen: late(None) if seen.number > 4 else status(400) if seen.number == 2 else answer()
    )
    bench.prompts(6)
    async with client() as host:
        files = {"input_file": "in.jsonl", "output_file": "out.jsonl"}
        job_id = (await host.call_tool("bulk_generate", files)).structured_content["job_id"]

        async def look() -> Any:
            return (await host.call_tool(ROWS, {"job_id": job_id})).structured_content

        found = await polled(look, lambda found: found["all"] == 4)
        assert (found["state"], found["done"], found["answered"], found["failed"]) == ("running", 4, 3, 1)
        assert len(found["rows"]["number"]) == 4
        for _ in range(2):
            await host.call_tool("bulk_status", {"job_id": job_id, "action": "cancel"})


@pytest.fixture
def labelled(bench):
    """A bench with a finished job of three rows, whose answers have two of four labels."""
    bench.upstream.reply = choose(lambda seen: answer("poor" if seen.prompt.startswith("bad") else "fine"))
    bench.write([{"text": text} for text in ("good", "bad", "good too")])
    bench.succeed("--prompt", "{{text}}", "--choices", "great,fine,poor,awful")


@pytest.mark.thorough
@pytest.mark.usefixtures("labelled")
async def test_all_labels_of_a_job_are_offered_in_its_order(client):
    async with client() as host:
        window = (await host.call_tool(ROWS, {"job_id": "out.jsonl"})).structured_content
        assert window["labels"] == ["great", "fine", "poor", "awful"]
        if "review" in ALL_FEATURES:
            found = (await host.call_tool("review", {"job_id": "out.jsonl", "sample": 3})).structured_content
            assert found["labels"] == window["labels"]


KEY = "sk-proj-0123456789abcdefghij"


@pytest.fixture
def with_keys(bench):
    """A bench with a finished job, a row and an answer of which hold a key."""
    bench.write([{"prompt": "tea"}, {"prompt": f"the key {KEY}"}, {"prompt": "milk"}])
    bench.upstream.reply = choose(lambda seen: answer(f"it is {KEY}" if seen.prompt == "milk" else "fine"))
    bench.succeed()
    return bench


@pytest.mark.usefixtures("with_keys")
async def test_a_search_finds_no_row_that_is_withheld(client):
    async with client() as host:
        rows = {
            name: (await host.call_tool(ROWS, {"job_id": "out.jsonl", "search": name})).structured_content
            for name in ("sk-proj", "the key", "it is", "tea", "")
        }
    assert {name: window["found"] for name, window in rows.items()} == {
        "sk-proj": 0,
        "the key": 0,
        "it is": 0,
        "tea": 1,
        "": 3,
    }
    assert KEY not in json.dumps([window["rows"] for window in rows.values()])
    assert "may hold secrets" in json.dumps(rows[""]["rows"])


_FIELDS = ('{"password": "hunter22", "tone": "calm"}', ("--fields", "password,tone"))


@pytest.fixture(params=[(*said, models) for said in ((KEY, ()), _FIELDS) for models in (("a",), ("a", "b"))])
def with_equal_keys(bench, request):
    """A bench with a finished job of one or two models, whose answers are equal and hold a key."""
    said, options, models = request.param
    bench.write([{"prompt": f"tea {at}"} for at in range(4)])
    bench.upstream.reply = answer(said)
    bench.succeed(*options, *(word for model in models for word in ("--model", model)))
    return bench


@pytest.mark.usefixtures("with_equal_keys")
async def test_no_bar_names_an_answer_that_is_withheld(client):
    async with client() as host:
        window = (await host.call_tool(ROWS, {"job_id": "out.jsonl"})).structured_content
    assert window["all"]
    assert KEY not in json.dumps(window)
    assert "hunter22" not in json.dumps(window)


@pytest.mark.thorough
@pytest.mark.skipif(not browser.BROWSER, reason="needs Chromium")
async def test_the_page_gets_the_rows_that_it_shows_and_asks_for_others(reviews, client):
    lines = "[...document.querySelectorAll('#table tbody tr:not(.space)')]"
    count = "document.getElementById('count')?.textContent"
    async with client() as host, hosting(host, ADDRESS) as url, browser.opened() as page:
        await shown(page, url, host, "bulk_status", job_id="out.csv")
        await page.inside(f"{count} === '400 rows' && {lines}.length > 5")
        looks = f"window.calls.filter(each => each.name === '{ROWS}')"
        assert await page.run(f"{looks}.length") == 1, "the job has ended, and one window is shown"
        await page.inside(
            f"(scrollTo(0, 150 * 52), {lines}.length > 5 && {lines}.every(each => /^[12]/.test(each.textContent)))"
        )
        assert await page.run(f"{looks}.length") < 5
        search = "Object.assign(document.getElementById('search'), {value: '%s'}).dispatchEvent(new Event('input'))"
        await page.inside(search % "tea 123")
        await page.inside(f"{count} === '1 of 400 rows' && {lines}.length === 1")
        assert (await page.inside(f"{lines}[0].textContent")).startswith("124tea 123")
        await page.inside("(document.querySelector('#table th:last-child button').click(), true)")
        await page.inside(search % "yyy")
        await page.inside(f"{count} === '1 of 400 rows' && {lines}[0].textContent.startsWith('400')")
        await page.inside(f"({lines}[0].click(), true)")
        await page.inside("document.querySelector('dialog').textContent.includes('y'.repeat(900))")
        assert len(await page.inside(f"{lines}[0].textContent")) < 900, "the table has the beginning of a long text"


@pytest.mark.skipif(not browser.BROWSER, reason="needs Chromium")
async def test_a_screen_reader_hears_the_state_and_a_keyboard_moves_widths_on_a_phone_too(reviews, client):
    async with client() as host, hosting(host, ADDRESS) as url, browser.opened() as page:
        await page.look(360, 740, "dark")
        await shown(page, url, host, "bulk_status", job_id="out.csv")
        await page.inside("document.querySelectorAll('#table tbody tr:not(.space)').length > 5")
        spoken = "[...document.querySelectorAll('[role=status]')].map(each => each.id).join()"
        assert await page.inside(spoken) == "spoken,count", "not the numbers that change at each look"
        assert (await page.inside("document.getElementById('spoken').textContent")).startswith("finished: 398 of 400")
        edge = "document.querySelector('#table .edge')"
        before = int(await page.inside(f"{edge}.getAttribute('aria-valuenow')"))
        await page.inside(f"!{edge}.dispatchEvent(new KeyboardEvent('keydown', {{key: 'ArrowLeft'}})) || true")
        assert 0 < int(await page.inside(f"{edge}.getAttribute('aria-valuenow')")) < before
        assert await page.inside("document.getElementById('bar').getAttribute('aria-label')")
        assert await page.inside("document.documentElement.scrollWidth <= innerWidth"), "nothing stands beside the page"


@pytest.fixture
def with_ids(bench):
    """A bench with a finished job whose rows have ids, teams and texts."""
    bench.write(["id,team,text", *(f"{'x' * 30}{at},north,What a soup it was!" for at in range(3))], "in.csv")
    bench.output = bench.path / "out.csv"
    bench.succeed("--prompt", "{{team}}: {{text}}")
    return bench


@pytest.mark.skipif(not browser.BROWSER, reason="needs Chromium")
async def test_the_text_of_the_prompt_and_its_answer_come_first(with_ids, client):
    heads = "[...document.querySelectorAll('#table th')].map(th => th.textContent).join()"
    async with client() as host, hosting(host, ADDRESS) as url, browser.opened() as page:
        await page.look(1200, 800, "light")
        await shown(page, url, host, "bulk_status", job_id="out.csv")
        await page.inside(f"{heads}.startsWith('row,text,answer,team')")
        await page.look(360, 740, "light")
        await page.inside(f"{heads} === 'row,text,answer'")
        rows: list[dict[str, Any]] = [{"id": at, "text": f"soup {at}", "answer": "ab"[at % 2]} for at in range(4)]
        for name, every in (("a.jsonl", 1), ("b.jsonl", 2)):
            with_ids.write([row | {"answer": "a" if row["id"] % every else row["answer"]} for row in rows], name)
        await shown(page, url, host, "compare", files=["a.jsonl", "b.jsonl"])
        await page.inside(f"{heads} === 'row,text,A a.jsonl,B b.jsonl'")


@pytest.fixture
def folder_of_pictures(bench):
    """A bench with a finished job on a folder of two pictures."""
    (bench.path / "pics").mkdir()
    for colour in ("red", "blue"):
        Image.new("RGB", (40, 20), colour).save(bench.path / "pics" / f"{colour}.png")
    bench.input, bench.output = bench.path / "pics", bench.path / "out.csv"
    bench.succeed("--prompt", "Which colour?")
    return bench


@pytest.mark.thorough
@pytest.mark.skipif(not browser.BROWSER, reason="needs Chromium")
async def test_a_folder_of_pictures_shows_them(folder_of_pictures, client):
    async with client() as host, hosting(host, ADDRESS) as url, browser.opened() as page:
        await shown(page, url, host, "bulk_status", job_id="out.csv")
        images = "[...document.querySelectorAll('#table td img')]"
        await page.inside(f"{images}.length === 2 && {images}.every(each => each.naturalWidth > 0)")


@pytest.fixture
def conflicting(bench):
    """A bench with a finished job about a long text, whose pieces have different values of two fields."""
    need("documents", "review")
    text = "\n\n".join(f"Part {at}. {'Nothing is said here. ' * 60}" for at in range(1, 4))

    def reply(seen: Any) -> Any:
        part = next((at for at in range(1, 4) if f"Part {at}." in seen.prompt), 0)
        own = {"buyer": "Ann"} if part else {}  # the last request asks for the two fields alone
        return answer(json.dumps({**own, "total": (part or 3) * 100, "end": f"2026-0{part or 3}-01"}))

    bench.upstream.reply = choose(reply)
    bench.write([{"text": text}])
    bench.succeed("--prompt", "{{text}}", "--fields", "buyer,total:number,end", "--split", "500", "--overlap", "0")
    return bench


@pytest.mark.skipif(not browser.BROWSER, reason="needs Chromium")
async def test_a_conflict_of_pieces_is_decided_by_field_on_the_page(conflicting, client):
    async with client() as host, hosting(host, ADDRESS) as url, browser.opened() as page:
        await shown(page, url, host, "bulk_status", job_id="out.jsonl")
        await page.inside("!document.getElementById('unsure').hidden")
        await page.inside("(document.getElementById('unsure').click(), true)")
        names = "[...document.querySelectorAll('#review h4')].map(each => each.textContent).join()"
        await page.inside(f"{names} === 'total,end'")
        assert "(characters " in await page.inside("document.querySelector('#review .labels button').textContent")
        await page.inside("(document.querySelectorAll('#review .labels button')[1].click(), true)")
        assert await page.inside("document.getElementById('store').textContent") == "Store 1 label"
        await page.inside("(document.getElementById('store').click(), true)")
        await page.inside("document.getElementById('note').textContent.startsWith('1 label is stored')")
        assert not [each for each in page.complaints if "exception" in each]
    assert conflicting.answers()[0]["answer"] == {"buyer": "Ann", "total": 200, "end": "2026-03-01"}


@pytest.fixture
def quoted(bench):
    """A bench with a finished job on two PDFs, whose values have quotes."""
    need("sources")
    (bench.path / "pdfs").mkdir()
    for number in (80, 81):
        pdf_of_texts(bench.path / "pdfs" / f"{number}.pdf", ["Terms.", f"Total: {number} EUR"])

    def reply(seen: Any) -> Any:
        number = seen.prompt.partition("Total: ")[2][:2]
        return answer(json.dumps({"total": {"quote": f"Total: {number}", "value": number}}))

    bench.upstream.reply = choose(reply)
    bench.input, bench.output = bench.path / "pdfs", bench.path / "out.csv"
    bench.succeed("--prompt", "Read it.", "--fields", "total", "--quote")
    return bench


async def test_a_row_has_the_pages_with_its_quotes(quoted, client):
    async with client() as host:
        asked = {"job_id": "out.csv", "rows": [2], "pages": True}
        found = (await host.call_tool(PICTURES, asked)).structured_content
    (picture,) = found["pages"]["2"]
    assert (picture["page"], [*found["pages"]], found["pictures"]) == (2, ["2"], {})


@pytest.mark.thorough
@pytest.mark.skipif(not browser.BROWSER, reason="needs Chromium")
async def test_an_opened_row_shows_its_pages_with_boxes(quoted, client):
    async with client() as host, hosting(host, ADDRESS) as url, browser.opened() as page:
        await shown(page, url, host, "bulk_status", job_id="out.csv")
        await page.inside("document.querySelectorAll('#table tbody tr[tabindex]').length === 2")
        await page.inside("(document.querySelector('#table tbody tr[tabindex]').click(), 1)")
        await page.inside("document.querySelector('dialog .sheet img')?.naturalWidth > 500")
        assert await page.inside("document.querySelector('dialog .sheet span').title") == "Total: 81"
        pages = f"window.calls.filter(each => each.name === '{PICTURES}' && each.arguments.pages).length"
        assert await page.run(pages) == 1
        assert not [each for each in page.complaints if "Content Security" in each or "exception" in each]


@pytest.fixture
def two_rows(bench):
    """A bench with a finished job of two rows."""
    bench.write([{"prompt": "a"}, {"prompt": "b"}])
    bench.succeed()
    return bench


@pytest.mark.thorough
@pytest.mark.skipif(not browser.BROWSER, reason="needs Chromium")
@pytest.mark.parametrize("result", ["checked", "failed"])
async def test_a_result_that_is_no_job_is_shown_and_ends(two_rows, client, result):
    async with client() as host, hosting(host, ADDRESS) as url, browser.opened() as page:
        await page.visit(url)
        await page.until("window.ready")
        if result == "failed":
            given: Any = {"isError": True, "content": [{"type": "text", "text": "There is no job 'x'."}]}
        else:
            check = {"input_file": "in.jsonl", "output_file": "new.jsonl", "validate": True}
            found = (await host.call_tool("bulk_generate", check)).structured_content
            found |= {"estimated_cost": 0.25, "most_cost": 3.0, "estimated_completion_tokens": 400}
            given = {"content": [], "structuredContent": found}
        await page.run(f"window.notify('ui/notifications/tool-result', {json.dumps(given)})")
        await page.inside(f"document.getElementById('state').textContent === '{result}'")
        assert await page.inside("getComputedStyle(document.getElementById('bar')).display === 'none'")
        if result == "checked":
            facts = await page.inside("document.getElementById('facts').textContent")
            price = "about $0.25 with answers of 200 tokens, an assumption, at most $3.00"
            assert facts == f"2 rows · 2 requests · about 14 prompt tokens · {price}"
            assert (
                await page.inside("document.getElementById('file').textContent")
                == "Columns: prompt, answer, error, usage, finish_reason"
            )
            shown_prompts = "[...document.querySelectorAll('#table tbody tr:not(.space)')].map(row => row.innerText)"
            assert await page.inside(f"{shown_prompts}.join(' ')") == "1\t\na 2\t\nb"
        else:
            assert await page.inside("document.getElementById('note').textContent") == "There is no job 'x'."
