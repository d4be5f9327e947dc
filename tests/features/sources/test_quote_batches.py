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
from pdf_files import pdf_of_texts

pytestmark = pytest.mark.features("batches")


@pytest.fixture
def server():
    with BatchServer("openai") as started:
        started.answers = reply
        yield started


def reply(body: dict[str, Any]) -> str:
    return answer(prompt_of(body))


def answer(text: str) -> str:
    """Return the party in a text with a quote in other letters."""
    found = re.search(r"Party (\w) pays", text)
    quote, value = (found[0].upper(), found[1]) if found else ("", None)
    return json.dumps({"party": {"quote": quote, "value": value}})


def bulk(folder: Path, server: BatchServer, texts: list[str], **options: Any) -> list[dict[str, Any]]:
    (folder / "in.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return bulk_of(folder / "in.jsonl", folder / "out.csv", server, prompt="Who pays? {{text}}", **options)


def bulk_of(asked: Path, output: Path, server: BatchServer, **options: Any) -> list[dict[str, Any]]:
    given: dict[str, Any] = {"fields": "party", "quote": True, "model": "m", "base_url": server.base_url}
    given |= {"api_key": "k", "max_tokens": 50, "state": output.parent / "jobs", "progress": False}
    given |= {"batch": True, "poll": "0.1s"} if options.pop("by_batch", True) else {}
    promptmill.bulk(asked, output, **given | options)
    with output.open(encoding="utf-8-sig", newline="") as file:
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


@pytest.mark.parametrize(
    "options",
    [
        {"prompt": "Who pays?"},
        pytest.param({"prompt": "Who pays?", "split": 300, "overlap": 0}, marks=pytest.mark.features("documents")),
        pytest.param({"prompt": "Who pays?", "pdf": "file"}, marks=pytest.mark.thorough),
    ],
    ids=["text", "pieces", "file"],
)
def test_answers_by_batch_have_the_boxes_of_live_answers(tmp_path, server, options):
    asked = tmp_path / "pdfs"
    asked.mkdir()
    for name in "AB":
        filling = [f"Page {at}. {'Nothing. ' * 12}" for at in range(4)]
        pdf_of_texts(asked / f"{name}.pdf", [*filling, f"As agreed, Party {name} pays."])
    if "pdf" in options:  # the model reads the files
        server.answers = lambda body: answer(f"Party {re.findall(r'(.).pdf', json.dumps(body))[0]} pays")
        options |= {"settings": {"backend_configs.openai.files": ["pdf"]}}
    by_batch = bulk_of(asked, tmp_path / "batch.csv", server, **options)
    assert server.live == 0 < server.creates
    live = bulk_of(asked, tmp_path / "live.csv", server, by_batch=False, **options)
    assert server.live > 0
    boxes = [json.loads(row["sources"])["party"]["box"] for row in by_batch]
    assert [[box["page"] for box in each] for each in boxes] == [[5], [5]]
    assert [row["sources"] for row in by_batch] == [row["sources"] for row in live]
