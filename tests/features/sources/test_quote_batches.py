"""Quotes by batch, also of the pieces of documents."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import pytest

import promptmill
from batch_server import BatchServer, prompt_of

pytestmark = pytest.mark.features("batches")


@pytest.fixture
def server():
    with BatchServer("openai") as started:
        started.answers = reply
        yield started


def reply(body: dict[str, Any]) -> str:
    """Return the party in a prompt with a quote in other letters."""
    found = re.search(r"Party (\w) pays", prompt_of(body))
    quote, value = (found[0].upper(), found[1]) if found else ("", None)
    return json.dumps({"party": {"quote": quote, "value": value}})


def bulk(folder: Path, server: BatchServer, texts: list[str], **options: Any) -> list[dict[str, Any]]:
    given: dict[str, Any] = {"prompt": "Who pays? {{text}}", "fields": "party", "quote": True, "batch": True}
    given |= {"poll": "0.1s", "model": "m", "base_url": server.base_url, "api_key": "k", "max_tokens": 50}
    given |= {"state": folder / "jobs", "progress": False}
    (folder / "in.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    promptmill.bulk(folder / "in.jsonl", folder / "out.csv", **given | options)
    with (folder / "out.csv").open(encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file))


def test_rows_by_batch_have_their_quotes(tmp_path, server):
    rows = bulk(tmp_path, server, [f"In {name}, Party {name} pays." for name in "ABC"])
    assert [row["party"] for row in rows] == [*"ABC"]
    assert [json.loads(row["sources"])["party"]["start"] for row in rows] == [6, 6, 6]


@pytest.mark.features("documents")
def test_pieces_by_batch_have_the_places_of_the_document(tmp_path, server):
    text = "\f".join(f"Page {at}. " + "Nothing here. " * 60 for at in range(1, 5)) + " Party X pays."
    (row,) = bulk(tmp_path, server, [text], split=500, overlap=0)
    source = json.loads(row["sources"])["party"]
    assert text[source["start"] : source["end"]] == "Party X pays"
    assert source["page"] == 4
