"""OpenAI's client for a server of ours, and what the tests of files and batches do with it."""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import openai
from openai.types import Batch, FileObject

from served import TOKEN, Asked, Served
from server_process import written
from waiting import PATIENCE_S, eventually

CHAT = "/v1/chat/completions"
ENDED = {"completed", "failed", "expired", "cancelled"}


@contextlib.contextmanager
def servers(folder: Path, url: str, kind: Callable[..., Any] = Served) -> Iterator[Callable[..., Any]]:
    """Yield a function that starts a server; each one after the first finds the state of those before it."""
    with contextlib.ExitStack() as started:

        def start(top: dict[str, Any] | None = None, *arguments: str, **block: Any) -> Any:
            environ = {"PROMPTMILL_STATE": str(folder / "state"), "PROMPTMILL_HTTP_TOKEN": TOKEN}
            return started.enter_context(kind(written(folder, url, top, **block), *arguments, environ=environ))

        yield start


def client_of(server: Asked, token: str = TOKEN, **options: Any) -> openai.OpenAI:
    """Return a client that repeats nothing, unless `options` say so."""
    given = {"timeout": PATIENCE_S, "max_retries": 0} | options
    return openai.OpenAI(base_url=f"http://127.0.0.1:{server.port}/v1", api_key=token, **given)


def line(own: str, text: str, url: str = CHAT, **body: Any) -> dict[str, Any]:
    """Return a line of a batch file."""
    asked = {"input": text} if url.endswith("embeddings") else {"messages": [{"role": "user", "content": text}]}
    return {"custom_id": own, "method": "POST", "url": url, "body": {"model": "m", **asked, **body}}


def uploaded(client: openai.OpenAI, lines: Sequence[Any]) -> FileObject:
    """Upload a batch file; a text is a line as it is."""
    text = "".join(f"{each if isinstance(each, str) else json.dumps(each)}\n" for each in lines)
    return client.files.create(file=("in.jsonl", text.encode()), purpose="batch")


def started(client: openai.OpenAI, lines: Sequence[Any], **options: Any) -> Batch:
    """Start a batch of lines."""
    given = {"endpoint": CHAT, "completion_window": "24h", **options}
    return client.batches.create(input_file_id=uploaded(client, lines).id, **given)


def ended(client: openai.OpenAI, batch: Batch) -> Batch:
    """Wait until a batch has ended; return it as it is then."""
    eventually(lambda: client.batches.retrieve(batch.id).status in ENDED)
    return client.batches.retrieve(batch.id)


def results(client: openai.OpenAI, file: str | None) -> dict[str, dict[str, Any]]:
    """Return the lines of an output or error file by their `custom_id`; each is there once."""
    if file is None:
        return {}
    found = [json.loads(text) for text in client.files.content(file).text.splitlines()]
    assert len({each["custom_id"] for each in found}) == len(found)
    return {each["custom_id"]: each for each in found}


def text_of(found: dict[str, Any]) -> str:
    """Return the answer in a line of an output file."""
    text = found["response"]["body"]["choices"][0]["message"]["content"]
    assert isinstance(text, str)
    return text


def changed(folder: Path, query: str, *values: object) -> None:
    """Change the database of files and batches, while no server runs."""
    with contextlib.closing(sqlite3.connect(folder / "state" / "openai" / "objects.db")) as database, database:
        database.execute(query, values)
