"""The parts of `scripts/site` around the generator."""

import runpy
import subprocess
from pathlib import Path

import pytest

import browser

ROOT = Path(__file__).parent.parent
SITE = runpy.run_path(str(ROOT / "scripts" / "web_site.py"))


@pytest.fixture
def built(monkeypatch, tmp_path):
    """Let `check` read pages of the test, and give a function that writes one."""
    for name in ("ROOT", "HTML"):
        monkeypatch.setitem(SITE["check"].__globals__, name, tmp_path)
    monkeypatch.setitem(SITE["check"].__globals__, "_write_texts", lambda: None)

    def write(name, text):
        (tmp_path / name).write_text(text)

    return write


def test_links_of_a_page_lead_to_pages_of_the_site_or_to_github():
    readme = ROOT / "README.md"
    text = "[a](docs/bulk.md#from-python) [b](tests/jobs/test_proof.py) [c](deploy) [d](https://x.test/y) `[e](f.md)`"
    github = "https://github.com/promptmill/promptmill"
    assert SITE["adapted"](readme, text) == (
        f"[a](bulk.md#from-python) [b]({github}/blob/main/tests/jobs/test_proof.py) [c]({github}/tree/main/deploy) "
        "[d](https://x.test/y) `[e](f.md)`"
    )
    row = ROOT / "docs" / "maintainers" / "release.md"
    assert SITE["adapted"](row, "[a](../../README.md) [b](../bulk.md)") == "[a](../index.md) [b](../bulk.md)"


def test_a_picture_for_two_colour_schemes_follows_the_site_s_own_switch():
    sources = '<source srcset="docs/killed-dark.svg">\n<img alt="A\n  job" src="docs/killed-light.svg">'
    found = SITE["adapted"](ROOT / "README.md", f"<picture>\n{sources}\n</picture>")
    assert found == "![A job](killed-light.svg#only-light) ![A job](killed-dark.svg#only-dark)"


def test_a_page_is_named_by_its_title_and_a_block_of_commands_has_their_language():
    page = ROOT / "docs" / "bulk.md"
    assert SITE["adapted"](page, "see [documents.md](documents.md#limits), `[cost.md](cost.md)`") == (
        "see [Long documents](documents.md#limits), `[cost.md](cost.md)`"
    )
    shown = "```\nKEY=x .venv/bin/promptmill jobs\n```\n\n```\nvariant  model\n```\n"
    assert SITE["adapted"](page, shown) == shown.replace("```\nKEY", "```sh\nKEY")


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        ('<a href="b.html">', "b.html does not exist"),
        ('<a href="a.html#y">', "has no such anchor"),
        ('<img src="https://x.test/a.png">', "from another host"),
        ("<p>Text:\n* a list</p>", "not read as Markdown"),
        ('<a href="a.html"><b>docs/bulk.md</b></a>', "the text of a link is a file: docs/bulk.md"),
        ("<table><tr><th>option</th><th> </th></tr></table>", "a column of a table has no head"),
    ],
)
def test_a_wrong_page_is_reported(built, body, problem):
    built("a.html", body)
    with pytest.raises(SystemExit, match=problem):
        SITE["check"]()


def test_a_right_page_passes(built, capsys):
    built("a.html", '<h2 id="x">Title</h2><p>Text <code>* x</code></p><a href="#x"></a><a href="https://x.test"></a>')
    SITE["check"]()
    assert "1 pages, 2 links checked" in capsys.readouterr().out


@pytest.mark.thorough
@pytest.mark.skipif(not browser.BROWSER, reason="needs Chromium")
async def test_a_visit_asks_no_other_host_and_no_command_is_cut():
    done = subprocess.run([ROOT / "scripts" / "site"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    html = ROOT / "build" / "site" / "html"
    async with browser.opened() as page:
        for width in (1280, 390):
            await page.look(width, 844, "light")
            for name in ("index.html", "why-not-a-loop.html", "tasks/web-search.html"):
                await page.open(html / name)
                cut = "[...document.querySelectorAll('.language-sh code')].filter(e => e.scrollWidth > e.clientWidth)"
                assert await page.run(f"{cut}.map(each => each.textContent)") == [], (width, name)
                assert await page.run("document.documentElement.scrollWidth") <= width, (width, name)
                assert await page.run("document.querySelectorAll('.language-sh code').length"), name
        assert [url for url in page.requests if not url.startswith(("file:", "data:", "blob:"))] == []
