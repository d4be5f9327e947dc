"""README and docs, and the commands and blocks of code that they show."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

ROOT = Path(__file__).parents[2]
READMES = ("README.md", "README.zh-CN.md")
PAGES = sorted(str(page.relative_to(ROOT)) for page in (*map(ROOT.joinpath, READMES), *(ROOT / "docs").rglob("*.md")))
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)


def blocks(page: str, *languages: str) -> list[str]:
    """Return the fenced blocks of a page in these languages, `""` for none named."""
    return [
        text for language, text in FENCE.findall((ROOT / page).read_text(encoding="utf-8")) if language in languages
    ]


def commands(page: str) -> list[list[str]]:
    """Return the words of every promptmill command that a page shows, in a block or amid its text."""
    text = (ROOT / page).read_text(encoding="utf-8")
    lines = [
        line for block in blocks(page, "", "bash", "sh", "console") for line in block.replace("\\\n", " ").splitlines()
    ]
    found = []
    for line in [*lines, *re.findall(r"`([^`\n]+)`", FENCE.sub("", text))]:
        said = re.match(r"(?:\$ )?(?:[A-Z_]+=\S+ )*(?:\S*/)?promptmill ([a-z].*)", line.strip())
        if said and "…" not in said[1]:
            found.append(shlex.split(said[1], comments=True))
    return found
