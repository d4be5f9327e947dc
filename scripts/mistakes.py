"""Make some sixty mistakes that people make, and print what each is told: for a reader to judge, 0 to 3.

    .venv/bin/python scripts/mistakes.py

3: says what is wrong, where, and what to do. 2: two of these. 1: one. 0: none, or a traceback. Nothing here pins the
wording; a test only sees to it that each is told in words, without a traceback, with the right exit code.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from aiohttp import web

REFUSALS = {
    "unauthorized": (401, '{"error": {"message": "Incorrect API key provided.", "code": "invalid_api_key"}}'),
    "quota": (429, '{"error": {"message": "You exceeded your current quota.", "code": "insufficient_quota"}}'),
    "model": (404, '{"error": {"message": "The model `gpt-55` does not exist", "code": "model_not_found"}}'),
    "html": (200, "<html><body>Welcome to nginx!</body></html>"),
    "path": (404, "404 page not found"),
}


class Mistake(NamedTuple):
    """What somebody does: a command in a folder with `files`, `URL` in it being an endpoint's."""

    about: str
    command: str
    files: dict[str, str | bytes] = {}  # noqa: RUF012 (never changed)
    stdin: bytes = b""


OPENAI = "backend: openai\nbackend_configs:\n  openai: {model_name: m, base_url: URL}\n"
MISTAKES = (
    # the command line
    Mistake("a command is misspelled", "genrate hi"),
    Mistake("an option is misspelled", "generate --temprature 1 hi"),
    Mistake("an option of another program", "generate --api-base URL hi"),
    Mistake("an option of another program", "generate --n 2 hi"),
    Mistake("a value is missing", "generate hi --model"),
    Mistake("a number is a word", "generate --temperature hot hi"),
    Mistake("a temperature out of range", "generate --base-url URL --model m --temperature -1 hi"),
    Mistake("no tokens at all", "generate --base-url URL --model m --max-tokens 0 hi"),
    Mistake("an unknown provider", "generate --provider opnai --model m hi"),
    Mistake("an unknown backend", "generate --backend olama hi"),
    Mistake("Ollama as a backend", "generate --backend ollama hi"),
    Mistake("no model", "generate --base-url URL hi"),
    Mistake("a key's variable that is not set", "generate --base-url URL --model m --key-env NOT_SET hi"),
    Mistake("an unknown client", "install claude"),
    Mistake("a job that is not there", "jobs no-such-job"),
    Mistake("cancel without a job", "jobs --cancel"),
    Mistake("--set without a value", "generate --set temperature hi"),
    Mistake("--set at a wrong path", "generate --set temperature=1 --base-url URL --model m hi"),
    Mistake("a schema that is not there", "generate --schema no.json --base-url URL --model m hi"),
    Mistake(
        "a schema that is not JSON", "generate --schema s.json --base-url URL --model m hi", {"s.json": "{'a': 1}"}
    ),
    Mistake("a picture that is not there", "generate --image cat.png --base-url URL --model m hi"),
    Mistake("a picture that is text", "generate --image cat.png --base-url URL --model m hi", {"cat.png": "meow"}),
    Mistake("text that is not UTF-8", "generate --base-url URL --model m", stdin=b"caf\xe9"),
    Mistake("a prompt without quotes", "generate Tell me a joke --base-url URL --model m"),
    Mistake(
        "an example as a schema",
        "generate --schema s.json --base-url URL --model m hi",
        {"s.json": '{"name": "Ann", "age": 3}'},
    ),
    # the file
    Mistake("a file that is not there", "models --check --config nowhere.yaml"),
    Mistake("a tab in YAML", "models --check", {"parameter.yaml": "backend: openai\nbackend_configs:\n\topenai: {}\n"}),
    Mistake("a list instead of keys", "models --check", {"parameter.yaml": "- backend: openai\n"}),
    Mistake("an unknown key", "models --check", {"parameter.yaml": OPENAI + "sytem_prompt: x\n"}),
    Mistake("api_base", "models --check", {"parameter.yaml": OPENAI.replace("base_url", "api_base")}),
    Mistake("model instead of model_name", "models --check", {"parameter.yaml": OPENAI.replace("model_name", "model")}),
    Mistake("temperature at the top", "models --check", {"parameter.yaml": OPENAI + "temperature: 0\n"}),
    Mistake("temperature in the backend", "models --check", {"parameter.yaml": OPENAI[:-2] + ", temperature: 0}\n"}),
    Mistake("a number as text", "models --check", {"parameter.yaml": OPENAI[:-2] + ", concurrency: many}\n"}),
    Mistake("a backend's block missing", "models --check", {"parameter.yaml": "backend: openai\n"}),
    Mistake("a key twice", "models --check", {"parameter.yaml": OPENAI + "backend: hf\n"}),
    Mistake("a variable that is not set", "models --check", {"parameter.yaml": OPENAI.replace("m,", "${NOT_SET},")}),
    Mistake("a base_url that is no URL", "models --check", {"parameter.yaml": OPENAI.replace("URL", "'ht tp://x'")}),
    Mistake("a base_url that is empty", "models --check", {"parameter.yaml": OPENAI.replace("URL", "''")}),
    Mistake(
        "a base_url with one slash", "models --check", {"parameter.yaml": OPENAI.replace("URL", "http:/127.0.0.1:8000")}
    ),
    Mistake("a provider as a backend", "models --check", {"parameter.yaml": "backend: groq\n"}),
    Mistake("a timeout with a unit", "models --check", {"parameter.yaml": OPENAI[:-2] + ", timeout: 5m}\n"}),
    # the endpoint
    Mistake("a scheme mistyped", "models --check --base-url htp://127.0.0.1:8000 --model m"),
    Mistake("a port alone", "models --check --base-url 8000 --model m"),
    Mistake("the path of another request", "models --check --base-url URL/v1/completions --model m"),
    Mistake("nobody listens", "models --check --base-url http://127.0.0.1:9 --model m"),
    Mistake("a host that does not exist", "models --check --base-url http://no-such-host.invalid --model m"),
    Mistake("https at a plain port", "models --check --base-url TLSURL --model m"),
    Mistake("a refused key", "models --check --base-url URL/unauthorized --model m"),
    Mistake("a quota used up", "models --check --base-url URL/quota --model m"),
    Mistake("a model that the endpoint lacks", "models --check --base-url URL/model --model gpt-55"),
    Mistake("a web page instead of an API", "models --check --base-url URL/html --model m"),
    Mistake("a wrong path", "models --check --base-url URL/path/api --model m"),
    # files of prompts
    Mistake("an input that is not there", "bulk no.jsonl out.jsonl --base-url URL --model m"),
    Mistake("an unknown suffix", "bulk in.docx out.jsonl --base-url URL --model m", {"in.docx": "x"}),
    Mistake(
        "an output that exists",
        "bulk in.jsonl out.jsonl --base-url URL --model m",
        {"in.jsonl": '{"prompt": "x"}\n', "out.jsonl": "mine\n"},
    ),
    Mistake(
        "a row without a prompt",
        "bulk in.jsonl out.jsonl --quiet --base-url URL --model m",
        {"in.jsonl": '{"question": "x"}\n'},
    ),
    Mistake(
        "a line that is not JSON",
        "bulk in.jsonl out.jsonl --quiet --base-url URL --model m",
        {"in.jsonl": "What is 2+2?\n"},
    ),
    Mistake(
        "a CSV without the column", "bulk in.csv out.csv --quiet --base-url URL --model m", {"in.csv": "text\nhello\n"}
    ),
    Mistake("an empty input", "bulk in.jsonl out.jsonl --quiet --base-url URL --model m", {"in.jsonl": ""}),
)


class Told(NamedTuple):
    """What came of a mistake."""

    mistake: Mistake
    code: int
    text: str


def make(mistake: Mistake, url: str) -> Told:
    """Make a mistake in a folder of its own."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)

        def filled(text: str) -> str:
            return text.replace("TLSURL", url.replace("http", "https")).replace("URL", url)

        for file, content in mistake.files.items():
            (folder / file).write_bytes(content if isinstance(content, bytes) else filled(content).encode())
        environment = {key: value for key, value in os.environ.items() if not key.endswith("_API_KEY")}
        environment |= {"PROMPTMILL_STATE": name, "PROMPTMILL_CONFIG": "", "OPENAI_API_KEY": "sk-not-a-key"}
        command = [sys.executable, "-m", "promptmill", *filled(mistake.command).split()]
        done = subprocess.run(
            command, cwd=folder, env=environment, input=mistake.stdin, capture_output=True, timeout=60, check=False
        )
        text = (done.stdout + done.stderr).decode("utf-8", "replace").replace(f"{name}/", "").replace(url, "URL")
        return Told(mistake, done.returncode, text.strip())


def endpoint() -> tuple[str, Callable[[], None]]:
    """Start an endpoint in a thread that refuses by the first word of its path; return its URL and what ends it."""
    loop = asyncio.new_event_loop()

    async def reply(request: web.Request) -> web.Response:
        await request.read()
        code, text = REFUSALS.get(request.path.split("/")[1], (200, ""))
        if text:
            kind = "application/json" if text.startswith("{") else "text/html"
            return web.Response(status=code, text=text, content_type=kind)
        choice = {"message": {"role": "assistant", "content": "yes"}, "finish_reason": "stop"}
        return web.json_response({"choices": [choice], "usage": {"prompt_tokens": 1, "completion_tokens": 1}})

    async def start() -> str:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", reply)
        runner = web.AppRunner(app, handle_signals=False)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        return f"http://127.0.0.1:{runner.addresses[0][1]}"

    def stop() -> None:
        loop.call_soon_threadsafe(loop.stop)

    url = loop.run_until_complete(start())
    threading.Thread(target=loop.run_forever, daemon=True).start()
    return url, stop


def all_told(workers: int = 2) -> list[Told]:
    """Make all mistakes; return what each was told."""
    url, stop = endpoint()
    with ThreadPoolExecutor(workers) as pool:
        try:
            return list(pool.map(lambda mistake: make(mistake, url), MISTAKES))
        finally:
            stop()


if __name__ == "__main__":
    for number, told in enumerate(all_told(), 1):
        print(f"\n{number}. {told.mistake.about}: $ promptmill {told.mistake.command}  ({told.code})")
        print("\n".join(f"   {line}" for line in told.text.splitlines()[-12:]))
