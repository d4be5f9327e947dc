"""The content of a page of one HTML file, as its script reads it."""

from __future__ import annotations

import base64
import json
import re
import zlib
from pathlib import Path
from typing import Any

HOSTILE = (
    "</script><script>hacked=1</script>",
    "<img src=x onerror='hacked=1'>",
    "<svg onload='hacked=1'>",
    "<!--<script>",
    "javascript:hacked=1",
    "{{rows}} {{data}} \u2028 \u202e",
    "]]><style>*{display:none}</style>",
)


QUOTED = re.compile(r'<script type="(?:application/json|text/plain)" id="(\w+)">(.*?)</script>', re.DOTALL)


def written(file: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the data of a report, and its rows."""
    found = dict(QUOTED.findall(file.read_text(encoding="utf-8")))
    return json.loads(found["data"]), json.loads(zlib.decompress(base64.b64decode(found["packed"])))


def column(data: dict[str, Any], rows: dict[str, Any], name: str) -> list[Any]:
    """Return the cells of a column."""
    names = [each["name"] for each in data["rows"]["columns"]]
    return list(rows["cells"][names.index(name)])


def counts_of(data: dict[str, Any], title: str = "") -> dict[str, int]:
    """Return the numbers of the bars with this title."""
    (bars,) = (bars for name, _, bars, _ in data["counts"] if name == title)
    return {name: count for name, count, *_ in bars}
