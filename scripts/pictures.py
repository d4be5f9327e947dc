"""Draw docs/killed-light.svg and docs/killed-dark.svg: a real job, killed in the middle and gone on with.

    .venv/bin/python scripts/pictures.py

They show what the commands wrote to a terminal and when, against an endpoint on loopback that takes 50 ms. CSS alone
moves them, since GitHub runs no script in an image. Where it does not run, they show the last screen: the loop starts
with it, too, for programs that draw its first moment. Linux and macOS.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.sax.saxutils import escape

from aiohttp import web
from rich.text import Text

ROOT = Path(__file__).resolve().parents[1]
ROWS = 20_000
KILL_AT = 8_000
COMMAND = "promptmill bulk reviews.csv labels.csv --prompt 'Positive? {{text}}' --choices yes,no"
COUNT = "wc -l reviews.csv labels.csv"
ALT = f"A job of {ROWS:,} rows is killed in the middle; the same command resumes it. No answer is lost."

COLUMNS = 92
CELL, LINE, MARGIN, TOP = 8.4, 20, 16, 48  # of the picture, in pixels; a cell is what a character takes
STILL_S = 2.5  # of the last screen, at the beginning of the loop and again at its end
READ_S = 1.0  # to read a command before its output
RUN_S = 4.5  # a run is played so fast that it takes no longer
FRAME_S = 0.2
BAR = "━╸╺"  # how rich draws a bar; the picture has rectangles
# Colours of rich's bars on a terminal of 256 colours.
STYLES = {"color(197)": "bar", "color(70)": "done", "color(237)": "rest"}
THEMES = {
    "light": {
        "text": "#24292f", "back": "#fff", "title": "#57606a", "prompt": "#0969da", "killed": "#cf222e",
        "done": "#1a7f37", "bar": "#bf3989", "rest": "#d0d7de",
    },
    "dark": {
        "text": "#e6edf3", "back": "#0d1117", "title": "#8b949e", "prompt": "#58a6ff", "killed": "#ff7b72",
        "done": "#3fb950", "bar": "#f778ba", "rest": "#30363d",
    },
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Shown:
    """A line in a row of the screen, from one time to another; without an end, to that of the recording."""

    row: int
    text: Text
    begin_s: float
    end_s: float | None = None


async def _answer(request: web.Request) -> web.Response:
    asked = await request.read()
    await asyncio.sleep(0.05)
    answer = json.dumps({"answer": ("yes", "no")[len(asked) % 2]})
    choice = {"message": {"role": "assistant", "content": answer}, "finish_reason": "stop"}
    return web.json_response({"choices": [choice], "usage": {"prompt_tokens": 14, "completion_tokens": 5}})


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


def recorded(folder: Path, kill_at: int | None) -> Iterator[tuple[float, str]]:
    """Run the job on a terminal, to `kill_at` rows if given; yield what it writes, and after how many seconds."""
    terminal, its = os.openpty()
    begun = time.monotonic()
    command = [sys.executable, "-m", *shlex.split(COMMAND)]
    with subprocess.Popen(command, cwd=folder, stdin=its, stdout=its, stderr=its) as running:
        os.close(its)
        while written := _read(terminal):
            yield time.monotonic() - begun, written
            done = re.search(r"([\d,]+) of [\d,]+ answered", written)
            if kill_at and done and int(done[1].replace(",", "")) >= kill_at:
                running.send_signal(signal.SIGKILL)
                break
    os.close(terminal)


def _read(terminal: int) -> str:
    try:
        return os.read(terminal, 1 << 16).decode()
    except OSError:  # how Linux reports that nothing has the terminal open
        return ""


class Screen:
    """The lines that the terminal showed."""

    def __init__(self) -> None:
        self.lines: list[Shown] = []
        self.now_s = STILL_S
        self._row = 0

    def type(self, command: str) -> None:
        """Show a command, and leave time to read it."""
        self._add(Text.assemble(("$ ", "prompt"), command))
        self.now_s += READ_S

    def add(self, text: str, style: str = "") -> None:
        """Show lines of text."""
        for line in text.splitlines():
            self._add(Text(line, style))

    def play(self, chunks: Sequence[tuple[float, str]], speed: float) -> None:
        """Show what a command wrote: a bar that each of its states replaces, and lines."""
        begun_s, bar, last = self.now_s - chunks[0][0] / speed, None, Text()
        for at, chunk in chunks:
            self.now_s = begun_s + at / speed
            for written in re.split(r"(?=\r\x1b\[2K)|\n", chunk):
                is_bar = "\x1b[2K" in written
                text = Text.from_ansi(re.sub(r"\x1b\[(?:\?25[lh]|2K|1A)|\r", "", written))
                last = text if is_bar else last
                if not text.plain or (is_bar and bar and self.now_s - bar.begin_s < FRAME_S):
                    continue
                if bar is not None:
                    self.lines.append(Shown(self._row, bar.text, bar.begin_s, self.now_s))
                    bar = None
                if is_bar:
                    bar = Shown(self._row, text, self.now_s)
                else:
                    self._add(text)
        if bar is not None:  # it was killed
            self.lines.append(Shown(self._row, bar.text, bar.begin_s, self.now_s))
            self._add(last)

    def svg(self, title: str, colours: Mapping[str, str]) -> str:
        """Return the picture."""
        whole = self.now_s + STILL_S
        width = round(COLUMNS * CELL + 2 * MARGIN)
        height = TOP + self._row * LINE + MARGIN
        rules = [
            "text{font:14px ui-monospace,SFMono-Regular,Menlo,Consolas,'Liberation Mono',monospace;white-space:pre}",
            *(f"{'text' if name == 'text' else f'.{name}'}{{fill:{colour}}}" for name, colour in colours.items()),
            f"g{{animation:{whole:.2f}s step-end infinite}}",
            "@media(prefers-reduced-motion:reduce){g{animation:none!important}}",
        ]
        groups = []
        for number, line in enumerate(self.lines):
            begin, end = line.begin_s / whole * 100, (line.end_s or 0) / whole * 100
            if line.end_s is None:
                frames, still = f"0%{{opacity:1}}{STILL_S / whole:.2%}{{opacity:0}}{begin:.2f}%{{opacity:1}}", 1
            else:
                frames, still = f"0%{{opacity:0}}{begin:.2f}%{{opacity:1}}{end:.2f}%{{opacity:0}}", 0
            rules.append(f"@keyframes k{number}{{{frames}}}#l{number}{{opacity:{still};animation-name:k{number}}}")
            groups.append(f'<g id="l{number}">{_drawn(line)}</g>')
        circles = "".join(
            f'<circle cx="{24 + 20 * at}" cy="20" r="6" fill="{colour}"/>'
            for at, colour in enumerate(("#ff5f57", "#febc2e", "#28c840"))
        )
        return "\n".join(
            [
                f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img">',
                f"<title>{ALT}</title>",
                f"<style>{chr(10).join(rules)}</style>",
                f'<rect class="back" x=".5" y=".5" width="{width - 1}" height="{height - 1}" rx="8" '
                f'stroke="{colours["rest"]}"/>{circles}',
                f'<text class="title" x="{width / 2}" y="25" text-anchor="middle">{title}</text>',
                *groups,
                "</svg>\n",
            ]
        )

    def _add(self, text: Text) -> None:
        self.lines.append(Shown(self._row, text, self.now_s))
        self._row += 1


def _drawn(line: Shown) -> str:
    """Return a line as texts, and rectangles for a bar."""
    spans = ((str(span.style), span.start, span.end) for span in line.text.spans)
    styled = [(STYLES.get(style, style), start, end) for style, start, end in spans]
    styles = [str(line.text.style)] * len(line.text)
    for style, start, end in styled:
        styles[start:end] = [style] * (end - start)
    parts = []
    for (style, is_bar), of in itertools.groupby(
        range(len(styles)), lambda at: (styles[at], line.text.plain[at] in BAR)
    ):
        places = list(of)
        x, y = MARGIN + places[0] * CELL, TOP + line.row * LINE
        text = line.text.plain[places[0] : places[-1] + 1]
        wide = len(text) * CELL
        named = f' class="{style}"' if style else ""
        if is_bar:
            half = CELL / 2
            x, wide = x + half * text.startswith("╺"), wide - half * (text.count("╸") + text.count("╺"))
            parts.append(f'<rect{named} x="{x:.1f}" y="{y + 8}" width="{wide:.1f}" height="3"/>')
        elif text.strip():
            parts.append(f'<text{named} x="{x:.1f}" y="{y + 14}" textLength="{wide:.1f}">{escape(text)}</text>')
    return "".join(parts)


def main() -> None:
    """Run the job twice and draw what was seen."""
    screen = Screen()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = "".join(f"{number},Review {number}\n" for number in range(ROWS))
        (folder / "reviews.csv").write_text(f"id,text\n{rows}")
        block = {"base_url": endpoint(), "model_name": "qwen3:8b", "api_key": "none", "concurrency": 128}
        (folder / "parameter.yaml").write_text(json.dumps({"backend": "openai", "backend_configs": {"openai": block}}))
        terminal = {"TERM": "xterm-256color", "COLUMNS": str(COLUMNS), "LINES": "24"}
        os.environ |= {"PROMPTMILL_STATE": str(folder / "state"), **terminal}
        runs = list(recorded(folder, KILL_AT)), list(recorded(folder, None))
        speed = max(1.0, max(run[-1][0] - run[0][0] for run in runs) / RUN_S)
        screen.type(COMMAND)
        screen.play(runs[0], speed)
        screen.add("Killed", "killed")
        screen.now_s += READ_S
        screen.type(COMMAND)
        screen.play([(at, text.replace(f"{name}/", "")) for at, text in runs[1]], speed)
        screen.now_s += READ_S
        screen.type(COUNT)
        screen.add(subprocess.run(shlex.split(COUNT), cwd=folder, capture_output=True, text=True, check=True).stdout)
        answered = [line.split(",") for line in (folder / "labels.csv").read_text().splitlines()[1:]]
    assert [(row[0], row[2] in {"yes", "no"}) for row in answered] == [(str(number), True) for number in range(ROWS)]
    title = "killed in the middle: no answer is lost" + (f" (played {speed:.1f} times as fast)" if speed > 1 else "")
    for theme, colours in THEMES.items():
        (ROOT / "docs" / f"killed-{theme}.svg").write_text(screen.svg(title, colours))


if __name__ == "__main__":
    main()
