"""Draw docs/killed-light.svg and docs/killed-dark.svg: a real job, killed in the middle and gone on with.

    .venv/bin/python scripts/pictures.py

What stands in them is what the commands printed, against an endpoint on loopback that takes 50 ms.
"""

from __future__ import annotations

import asyncio
import io
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

from aiohttp import web
from rich.console import Console
from rich.terminal_theme import MONOKAI, TerminalTheme
from rich.text import Text

ROOT = Path(__file__).resolve().parents[1]
ROWS = 20_000
KILL_AT = 8_000
LIGHT = TerminalTheme(
    (255, 255, 255),
    (36, 41, 47),
    [
        (36, 41, 47),
        (207, 34, 46),
        (17, 99, 41),
        (77, 45, 0),
        (9, 105, 218),
        (130, 80, 223),
        (27, 124, 131),
        (110, 119, 129),
    ],
)
THEMES = {"dark": MONOKAI, "light": LIGHT}


async def _answer(request: web.Request) -> web.Response:
    await request.read()
    await asyncio.sleep(0.05)
    choice = {"message": {"role": "assistant", "content": "Paris."}, "finish_reason": "stop"}
    return web.json_response({"choices": [choice], "usage": {"prompt_tokens": 14, "completion_tokens": 3}})


def endpoint() -> str:
    """Start the endpoint in a thread; return its URL."""
    ready: list[str] = []
    started = threading.Event()

    def serve() -> None:
        async def run() -> None:
            app = web.Application()
            app.router.add_post("/v1/chat/completions", _answer)
            runner = web.AppRunner(app)
            await runner.setup()
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            ready.append(f"http://127.0.0.1:{runner.addresses[0][1]}/v1")
            started.set()
            await asyncio.Event().wait()

        asyncio.run(run())

    threading.Thread(target=serve, daemon=True).start()
    started.wait()
    return ready[0]


def job(folder: Path, kill_at: int | None) -> list[str]:
    """Run the job in `folder`, to `kill_at` rows if given; return the last line of its progress, or its summary."""
    command = [sys.executable, "-m", "promptmill", "bulk", "prompts.jsonl", "answers.jsonl"]
    lines: list[str] = []
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as running:
        assert running.stdout is not None
        for line in running.stdout:
            lines.append(line.rstrip("\n"))
            done = re.search(r"([\d,]+) of [\d,]+ done", line)
            if kill_at and done and int(done[1].replace(",", "")) >= kill_at:
                running.send_signal(signal.SIGKILL)
                return lines
    return lines


def main() -> None:
    """Run the job twice and draw what was seen."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = (json.dumps({"id": number, "prompt": f"Capital of country {number}?"}) for number in range(ROWS))
        (folder / "prompts.jsonl").write_text("\n".join(rows) + "\n")
        block = {"base_url": endpoint(), "model_name": "qwen3:8b", "api_key": "none", "concurrency": 128}
        (folder / "parameter.yaml").write_text(json.dumps({"backend": "openai", "backend_configs": {"openai": block}}))
        os.environ["PROMPTMILL_STATE"] = str(folder / "state")
        before = job(folder, KILL_AT)
        after = job(folder, None)
        answered = [json.loads(line) for line in (folder / "answers.jsonl").read_text().splitlines()]
        assert [row["id"] for row in answered] == list(range(ROWS))
    text = Text()
    _prompt(text, "wc -l prompts.jsonl")
    text.append(f"{ROWS} prompts.jsonl\n")
    _prompt(text, "promptmill bulk prompts.jsonl answers.jsonl")
    for line in before[-2:]:
        text.append(f"{line}\n", style="bright_black")
    text.append("Killed\n", style="bold red")
    _prompt(text, "promptmill bulk prompts.jsonl answers.jsonl")
    progress = [line for line in after if re.match(r"\d\d:\d\d:\d\d ", line)]
    for line in progress[1:3]:
        text.append(f"{line}\n", style="bright_black")
    for line in (shown.replace(f"{name}/", "") for shown in after[len(progress) :]):
        text.append(f"{line}\n", style="green" if line.endswith("finished") else "")
    _prompt(text, "wc -l answers.jsonl")
    text.append(f"{len(answered)} answers.jsonl")
    for name, theme in THEMES.items():
        console = Console(record=True, width=112, file=io.StringIO())
        console.print(text, soft_wrap=False, overflow="crop", no_wrap=True)
        svg = console.export_svg(title="killed in the middle: no answer is lost", theme=theme, unique_id="killed")
        (ROOT / "docs" / f"killed-{name}.svg").write_text(svg)


def _prompt(text: Text, command: str) -> None:
    text.append("$ ", style="bold blue")
    text.append(f"{command}\n", style="bold")


if __name__ == "__main__":
    main()
