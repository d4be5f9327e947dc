"""Links to pages that an answer cites, with the script of the pages run by Node without a browser."""

from __future__ import annotations

import json
import shutil
import subprocess
from typing import Any

import pytest

from promptmill.pages.page import TEMPLATE

NODE = shutil.which("node")
pytestmark = pytest.mark.skipif(not NODE, reason="needs Node")
_CITED = """
function add(parent, tag, name, text) {
  const one = {tag, text, append(words) { parent.parts.push(words); }, parts: parent.parts};
  parent.parts.push(one); return one; }
const where = () => "no link", parent = {parts: []};
cited(parent, JSON.parse(process.argv[1]));
console.log(JSON.stringify(parent.parts.filter(part => part.tag && part.tag !== "p")
  .map(({tag, text, href, target, rel}) => ({tag, text, href, target, rel}))));
"""
_CLICKED = """
const seen = [], listeners = {};
const document = {addEventListener(kind, listener, capture) { listeners[kind] = [listener, capture]; }};
const ask = async (method, params) => {
  seen.push([method, params]);
  if (params.url.endsWith("refused")) throw new Error(); return {}; };
const say = words => seen.push(["say", words]);
"""
_CLICK = """
for (const [kind, button, href] of JSON.parse(process.argv[1])) {
  const link = href && {href};
  const event = {button, target: {closest: () => link}, preventDefault() { seen.push(["prevented"]); }};
  listeners[kind][0](event);
}
setTimeout(() => console.log(JSON.stringify(seen)));
"""


def _part(text: str, start: str, end: str) -> str:
    assert start in text
    return start + text.partition(start)[2].partition(end)[0]


def _ran(script: str, given: Any) -> Any:
    done = subprocess.run([NODE or "", "-e", script, json.dumps(given)], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


@pytest.mark.rule("E9")
@pytest.mark.parametrize(
    ("url", "host"),
    [
        ("https://example.com/a", "example.com"),
        ("HTTP://Example.com:8080/a", "example.com:8080"),
        ("https://bank.example@evil.example/", "evil.example"),
        ("https://b\u00e4nk.example/", "xn--bnk-qla.example"),
        ("https:\\\\evil.example", "evil.example"),
    ],
)
def test_a_cited_page_opens_beside_the_report_and_its_host_is_shown(url, host):
    script = _part(TEMPLATE.read_text(encoding="utf-8"), "function cited", "// --- keys")
    link, shown = _ran(script + _CITED, [{"url": url, "title": "https://bank.example"}])
    assert (link["href"], link["target"], link["rel"]) == (url, "_blank", "noopener noreferrer")
    assert shown["text"] == f"({host})"


@pytest.mark.rule("E9")
@pytest.mark.parametrize(
    "url",
    [
        *("javascript:alert(1)", "JAVASCRIPT:alert(1)", " javascript:alert(1)", "java\nscript:alert(1)", "vbscript:x"),
        *(
            "data:text/html,<b>",
            "file:///etc/passwd",
            "blob:https://a.example/1",
            "//a.example",
            "a.example",
            "https://",
        ),
    ],
)
def test_no_other_address_is_a_link(url):
    script = _part(TEMPLATE.read_text(encoding="utf-8"), "function cited", "// --- keys")
    assert _ran(script + _CITED, [{"url": url, "title": "A page"}]) == []


@pytest.mark.rule("E9")
@pytest.mark.features("app")
def test_in_a_chat_the_host_opens_links_and_the_frame_stays(html_script):
    clicks = [("click", 0, "https://a.example/"), ("auxclick", 1, "https://b.example/"), ("click", 0, None)]
    assert _ran(_CLICKED + html_script + _CLICK, clicks) == [
        ["prevented"],
        ["ui/open-link", {"url": "https://a.example/"}],
        ["prevented"],
        ["ui/open-link", {"url": "https://b.example/"}],
    ]


@pytest.mark.rule("E9")
@pytest.mark.features("app")
def test_an_address_that_the_host_refuses_is_shown(html_script):
    found = _ran(_CLICKED + html_script + _CLICK, [("click", 0, "https://a.example/refused")])
    assert found[-1] == ["say", "This program opens no links: https://a.example/refused"]


@pytest.fixture
def html_script():
    from promptmill.features.app.chat_page import html

    return _part(html(), 'for (const kind of ["click", "auxclick"])', "const HIGHEST")
