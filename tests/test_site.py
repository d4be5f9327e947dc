"""The parts of `scripts/site` around the generator."""

import runpy
from pathlib import Path

import pytest

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


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        ('<a href="b.html">', "b.html does not exist"),
        ('<a href="a.html#y">', "has no such anchor"),
        ('<img src="https://x.test/a.png">', "from another host"),
        ("<p>Text:\n* a list</p>", "not read as Markdown"),
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
