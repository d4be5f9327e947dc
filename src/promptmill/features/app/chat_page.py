"""The page of the app: the table of a report, with a script that gets its rows from the host in place of the file.

`app.html` has the header of the job and the script that speaks with the host. The styles and the script of the table
are those of `pages/rows.html`; here the script is a function, which begins once there are rows.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import re
from pathlib import Path

from promptmill import pages
from promptmill.core.version import __version__

_APP = Path(__file__).with_name("app.html")
_PAGES = Path(pages.__file__).parent
_COLOURS = re.compile(r":root \{([^{}]*)\}")
_PLACE = re.compile(r"\{\{(\w+)\}\}")


@functools.cache
def html() -> str:
    """Return the page. It makes no request: its policy permits its own script and styles, and images in the page."""
    app, rows, head = (file.read_text(encoding="utf-8") for file in (_APP, _PAGES / "rows.html", _PAGES / "head.html"))
    styles, table = _between(rows, "<style>", "</style>"), _between(rows, "<script>", "</script>")
    light, dark = _COLOURS.findall(head.replace("color-scheme: light dark;", ""))
    themes = f':root[data-theme="light"] {{{light}}}\n:root[data-theme="dark"] {{{dark}}}\n'
    script = _between(app, "<script>", "</script>")
    script = script.replace("{{table}}", f"function beginTable() {{{table}\nreturn take;\n}}")
    script = script.replace("{{version}}", __version__)
    head_styles = _between(head, "<style>", "</style>")
    styles = f"{styles}{themes}{_between(app, '<style>', '</style>')}"
    policy = f"default-src 'none'; script-src {_source(script)}; style-src {_source(head_styles)} {_source(styles)}"
    body = f"<body>{_between(app, '<body>', '<script>')}<script>{script}</script>\n</body>\n</html>\n"
    parts = {"policy": f"{policy}; img-src data:; base-uri 'none'; form-action 'none'", "title": "promptmill"}
    return _PLACE.sub(lambda found: parts[found[1]], head) + f"<style>{styles}</style>\n</head>\n{body}"


def _between(text: str, start: str, end: str) -> str:
    return text.partition(start)[2].rpartition(end)[0]


def _source(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
