"""A page with figures and rows, as a single HTML file.

The file makes no requests, and only its own script can run:

* `head.html` and `rows.html` form the page. The page's policy permits only its own script and styles, by their digests.
* The data is JSON in two elements that browsers do not execute. The script inserts it as text nodes, never as HTML.
* The rows are stored column by column, as deflated JSON that the browser itself inflates. `LARGEST_REPORT` limits the
  file: long texts are shortened first, then rows are left out. The page reports both.
"""

from __future__ import annotations

import base64
import hashlib
import html
import os
import re
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import orjson

from promptmill.core.bounds import LARGEST_REPORT
from promptmill.core.errors import Code, PromptmillError, input_error
from promptmill.core.values import JsonDict
from promptmill.core.version import __version__
from promptmill.core.wording import counted, cut
from promptmill.files import disk
from promptmill.pages.page_rows import PageRows

_SPARE = 1_000  # bytes that stay free for the note about omitted rows
_LEAST = 100_000  # min bytes for deflated rows, even if the other content is large
_MARK = b'<meta name="generator" content="promptmill report">'
_HEAD = 4096  # the first bytes of a file, which contain the mark if the file is a report
TEMPLATE = Path(__file__).with_name("rows.html")
"""The template of a report's page."""
HEAD = Path(__file__).with_name("head.html")
"""The head of every page, with the page's colours."""
_PARTS = dict.fromkeys(("notes", "counts", "failures", "sections", "spreads", "footnotes"), ())
_EMPTY: dict[str, object] = {**_PARTS, "tiles": (), "overview": None, "answers": "", "thumbnails": {}, "course": {}}
_PLACE = re.compile(r"\{\{(\w+)\}\}")


@dataclass(frozen=True, slots=True)
class Report:
    """A written report."""

    path: Path
    rows: int
    total: int
    """The number of rows with an answer or a failure, of which the report shows `rows`."""
    noun: str = "row"
    """The noun for a row; `answer` if a row has several answers."""

    def __str__(self) -> str:
        some = f"{self.rows:,} of " if self.rows < self.total else ""
        return f"report of {some}{counted(self.total, self.noun)}: {self.path}"

    def as_dict(self) -> JsonDict:
        """Return the file's path and the numbers of rows as data for programs."""
        return {"file": str(self.path.absolute()), "rows": self.rows, "total": self.total}

    def show(self) -> None:
        """Open the report in the browser."""
        import webbrowser  # imported on use

        webbrowser.open(self.path.absolute().as_uri())


def check(target: Path, title: str = "") -> None:
    """Raise `PromptmillError` unless a report can be written to `target`. It may replace one with the same title."""
    try:
        with target.open("rb") as file:
            head = file.read(_HEAD)
    except FileNotFoundError:
        if target.parent.is_dir():
            return
        raise input_error(f"There is no folder {target.parent} for the report.") from None
    except OSError as error:
        raise _not_written(target, error) from None
    if _MARK not in head:
        raise input_error(f"{target} exists and is no report; name another file for the report, or remove it.")
    earlier = html.unescape(head.partition(b"<title>")[2].partition(b"</title>")[0].decode("utf-8", "replace"))
    if title and earlier != _title(title):
        raise input_error(f"{target} is the report of {earlier!r}; name another file for this one, or remove it.")


def put(target: Path, text: bytes) -> None:
    """Write a page atomically. Raises `PromptmillError`."""
    beside = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
    try:
        with os.fdopen(disk.created(beside, 0o666), "wb") as file:
            file.write(text)
        disk.replace(beside, target)
    except OSError as error:
        raise _not_written(target, error) from None
    finally:
        beside.unlink(missing_ok=True)


def _not_written(target: Path, error: OSError) -> PromptmillError:
    return PromptmillError(Code.STORAGE, f"The page {target} cannot be written: {disk.why(error)}.", "")


def filled(title: str, data: Mapping[str, object], rows: PageRows, total: int, so_far: str = "") -> bytes:
    """Return the page with its data, and with as many of its `total` rows as fit."""
    room = LARGEST_REPORT - len(_page_of(title, {**data, "rows": rows.facts(total, so_far)}, b"")) - _SPARE
    packed = rows.packed(max(_LEAST, room * 3 // 4))
    return _page_of(title, {**data, "rows": rows.facts(total, so_far)}, packed)


def _page_of(title: str, data: Mapping[str, object], packed: bytes) -> bytes:
    return html_of(TEMPLATE.read_text(encoding="utf-8"), title, {**_EMPTY, **data}, packed)


def html_of(template: str, title: str, data: Mapping[str, object], packed: bytes = b"") -> bytes:
    """Return the page for a template, with its data and, if any, its deflated rows."""
    template = template.replace("{{head}}", HEAD.read_text(encoding="utf-8"))
    styles = " ".join(_source(part.partition("</style>")[0]) for part in template.split("<style>")[1:])
    script = template.rpartition("<script>")[2].partition("</script>")[0]
    policy = f"default-src 'none'; script-src {_source(script)}; style-src {styles}; img-src data:"
    made = f"Made by promptmill {__version__} on {when(time.time())}. This file makes no request to any host."
    parts = {
        "policy": f"{policy}; base-uri 'none'; form-action 'none'",
        "title": html.escape(_title(title)),
        "data": orjson.dumps({**data, "made": made}, default=str).decode().replace("<", "\\u003c"),
        "rows": base64.b64encode(packed).decode(),
    }
    return _PLACE.sub(lambda found: parts[found[1]], template).encode("utf-8", "replace")


def _title(text: str) -> str:
    return cut(" ".join(text.split()), 300)


def _source(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def when(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))
