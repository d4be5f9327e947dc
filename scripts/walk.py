"""Count the source files that a warm prompt, a job of one CSV row, and each further row pass: fewer are easier to follow.

    .venv/bin/python scripts/walk.py           # the files
    .venv/bin/python scripts/walk.py --check   # fails above the numbers of `tool.promptmill.walk` in pyproject.toml,
                                               # or if docs/architecture.md has other numbers

A prompt goes from the MCP tool `generate` to the socket and back; a row from a CSV file through `promptmill bulk` into
the output. Counted are the files of the package in which some function ran, after a first call has loaded everything;
for a further row, those with at least one more call for each row.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
import tempfile
import threading
import tomllib
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import FrameType
from typing import Any

from fastmcp import Client

from promptmill.cli.main import main
from promptmill.config.configuration import Configuration
from promptmill.jobs.run import runner
from promptmill.server import create_server
from promptmill.service.service import Service

FURTHER = 30
ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "promptmill"
_ON_PAGE = re.compile(
    r"a prompt passes \((\d+)\), a job of one CSV row \((\d+),[^()]*\), and each further row \((\d+)\)"
)


class Echo(BaseHTTPRequestHandler):
    """Answers every chat completion with the same word."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        """Answer a request."""
        self.rfile.read(int(self.headers["content-length"]))
        body = json.dumps(
            {
                "choices": [{"message": {"role": "assistant", "content": "yes"}, "finish_reason": "stop"}],
                "usage": {"prompt_tokens": 1, "completion_tokens": 1},
            }
        ).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.send_header("content-type", "application/json")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Log nothing."""


class Walk:
    """The calls in each file of the package, in all threads."""

    def __init__(self) -> None:
        self.calls = Counter[Path]()

    def _called(self, frame: FrameType, event: str, _: object) -> None:
        if event == "call":
            file = Path(frame.f_code.co_filename)
            if file.is_relative_to(PACKAGE):
                self.calls[file.relative_to(PACKAGE)] += 1

    def __enter__(self) -> Walk:
        threading.setprofile(self._called)
        sys.setprofile(self._called)
        return self

    def __exit__(self, *_: object) -> None:
        sys.setprofile(None)
        threading.setprofile(None)


async def prompt(url: str) -> set[Path]:
    """Return the files that a warm prompt passes."""
    block = {"base_url": url, "model_name": "m", "api_key": "k"}
    service = Service(Configuration({"backend": "openai", "backend_configs": {"openai": block}}))
    try:
        async with Client(create_server(service)) as client:
            await client.call_tool("generate", {"prompt_ls": ["warm"]})
            with Walk() as walk:
                await client.call_tool("generate", {"prompt_ls": ["walk"]})
    finally:
        await service.aclose()
    return {*walk.calls}


def rows(url: str, folder: Path, count: int) -> Counter[Path]:
    """Return the calls in each file by a job of CSV rows, from its command to its output."""
    source = folder / "in.csv"
    source.write_text("prompt\n" + "walk\n" * count)
    options = [
        "--backend",
        "openai",
        "--base-url",
        url,
        "--model",
        "m",
        "--set",
        "backend_configs.openai.api_key=k",
        "--concurrency",
        "1",
    ]
    arguments = ["bulk", str(source), *options]
    runner._LOOK_S = 3600.0  # a job looks at its commands by time: on a slow machine, as often as it has rows
    output = folder / f"{count}.csv"
    with Walk() as walk:
        main([*arguments, str(output), "--quiet"])
    assert output.read_text().count("yes") == count
    return walk.calls


def check(what: str, files: set[Path], most: int) -> bool:
    """Print how many files were passed, and which unless only their number is checked; return whether they are few."""
    is_checked = "--check" in sys.argv
    if not is_checked or len(files) > most:
        print(f"walk: {what} passes {len(files)} files; at most {most}", file=sys.stderr if is_checked else sys.stdout)
        for file in sorted(files):
            print(f"  {file}")
    return len(files) <= most


def has_numbers(walk: dict[str, int]) -> bool:
    """Return whether docs/architecture.md has the numbers of pyproject.toml, and print where it has not."""
    page = ROOT / "docs" / "architecture.md"
    found = _ON_PAGE.search(" ".join(page.read_text(encoding="utf-8").split()))
    numbers = [walk[name] for name in ("prompt", "row", "further")]
    if found is not None and [*map(int, found.groups())] == numbers:
        return True
    print(f"walk: {page.relative_to(ROOT)} should have the numbers of files {numbers}", file=sys.stderr)
    return False


def run() -> int:
    """Send a prompt and a row, and return the exit code."""
    most = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["promptmill"]
    server = ThreadingHTTPServer(("127.0.0.1", 0), Echo)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    is_short = has_numbers(most["walk"])
    is_short &= check("a warm prompt", asyncio.run(prompt(url)), most["walk"]["prompt"])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows(url, folder, 2)  # loads everything
        one, more = rows(url, folder, 1), rows(url, folder, 1 + FURTHER)
        is_short &= check("a job of one CSV row", {*one}, most["walk"]["row"])
        further = {file for file, calls in more.items() if calls - one[file] >= FURTHER}
        is_short &= check("each further row", further, most["walk"]["further"])
    return 0 if is_short else 1


if __name__ == "__main__":
    sys.exit(run())
