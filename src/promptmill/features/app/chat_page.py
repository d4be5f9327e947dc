"""The page of the app: the table of a report, whose script gets the rows from the host instead of from the file.

`app.html` has the header of the job and the script that exchanges messages with the host. The table has the styles and
the script of `pages/rows.html`; on this page, the script is a function that starts when the rows have arrived.
"""

from __future__ import annotations

import functools
import re
from pathlib import Path

from promptmill.core.version import __version__
from promptmill.features.app import LONGEST, MOST_IN_WINDOW, MOST_PICTURES, SHORT
from promptmill.pages.page import HEAD, TEMPLATE, html_of

_APP = Path(__file__).with_name("app.html")
_FILE, _FILE_STYLES = "// --- only in this file", "/* --- only in this file"
"""The lines at which script and styles for the header, rows and charts of a report begin. The page leaves them out."""
_COLOURS = re.compile(r":root \{([^{}]*)\}")


@functools.cache
def html() -> str:
    """Return the page. It makes no requests: its policy permits only its own script and styles, and embedded images."""
    app, rows, head = (file.read_text(encoding="utf-8") for file in (_APP, TEMPLATE, HEAD))
    light, dark = _COLOURS.findall(head.replace("color-scheme: light dark;", ""))
    parts = {
        "styles": _between(rows, "<style>", _FILE_STYLES),
        "themes": f':root[data-theme="light"] {{{light}}}\n:root[data-theme="dark"] {{{dark}}}',
        "table": _between(rows, "<script>", _FILE),
        "most_pictures": str(MOST_PICTURES),
        "most_in_window": str(MOST_IN_WINDOW),
        "short": str(SHORT),
        "longest": str(LONGEST),
        "version": __version__,
    }
    for name, text in parts.items():
        app = app.replace(f"{{{{{name}}}}}", text)
    return html_of(app, "promptmill", {}).decode()


def _between(text: str, start: str, end: str) -> str:
    return text.partition(start)[2].rpartition(end)[0]
