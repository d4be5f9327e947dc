"""Renew what README and docs show as printed: the answers of `$ promptmill …` in ```console blocks and of tool calls.

    .venv/bin/python scripts/transcripts.py            # writes; tests/test_transcripts.py compares

Answered by the shipped configuration's model in float32, where processors differ least.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from mcp import Client, StdioServerParameters

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "README.zh-CN.md", *sorted((ROOT / "docs").glob("*.md"))]
MODEL = {"model_name_or_path": "smollm2-135m-instruct", "precision": "float32"}
SETTINGS = {"backend": "openvino", "backend_configs": {"openvino": MODEL}, "sampling_params": {"max_tokens": 512}}
# A tool's name opens the paragraph above; the block holds its arguments, and its result where it has one.
_CALL = re.compile(r"(?<=^`)(\w+)(` [^\n]*\n\n```json\n)(\{[^\n]*\})\n(\{[^\n]*\}\n)?(?=```)", re.MULTILINE)
_CONSOLE = re.compile(r"(?<=^```console\n)(.*?)(?=^```)", re.MULTILINE | re.DOTALL)


def main() -> None:
    """Renew all pages."""
    for page, text in renewed().items():
        if text != page.read_text(encoding="utf-8"):
            page.write_text(text, encoding="utf-8")
            print(f"{page.relative_to(ROOT)} is renewed")


def renewed() -> dict[Path, str]:
    """Return the pages that show something printed, each with what is printed now."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "settings.yaml").write_text(json.dumps(SETTINGS))
        shutil.copyfile(ROOT / "src" / "promptmill" / "server" / "icon.png", folder / "chart.png")
        return {page: text for page in PAGES if (text := _page(page.read_text(encoding="utf-8"), folder))}


def _page(text: str, folder: Path) -> str:
    """Return `text` with what is printed now, "" when nothing printed is in it."""
    environment = os.environ | {"PROMPTMILL_CONFIG": str(folder / "settings.yaml")}

    def console(block: re.Match[str]) -> str:
        return "".join(_run(line, folder, environment) for line in block[1].splitlines() if line.startswith("$ "))

    calls = list(_CALL.finditer(text))
    results = iter(asyncio.run(_called([(call[1], json.loads(call[3])) for call in calls], folder, environment)))
    if calls:
        text = _CALL.sub(lambda call: f"{call[1]}{call[2]}{call[3]}\n{next(results)}", text)
    return _CONSOLE.sub(console, text) if calls or _CONSOLE.search(text) else ""


def _run(line: str, folder: Path, environment: dict[str, str]) -> str:
    program, *words = shlex.split(line.removeprefix("$ "))
    assert Path(program).name == "promptmill", f"a command of another program is not run: {line}"
    command = [sys.executable, "-m", "promptmill", *words]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=True)
    return f"{line}\n{done.stdout}"


async def _called(calls: list[tuple[str, dict[str, Any]]], folder: Path, environment: dict[str, str]) -> list[str]:
    """Return the result of each call as a line, "" where it has none."""
    if not calls:
        return []
    command = ["-m", "promptmill", "serve"]
    server = StdioServerParameters(command=sys.executable, args=command, cwd=folder, env=environment)
    async with Client(server) as client:
        found = [(await client.call_tool(name, arguments)).structured_content for name, arguments in calls]
    return [f"{json.dumps(result, separators=(',', ':'), ensure_ascii=False)}\n" if result else "" for result in found]


if __name__ == "__main__":
    main()
