"""Jobs whose prompts share long beginnings: the provider reads them from its cache."""

from __future__ import annotations

import csv
import random
from pathlib import Path
from typing import Any

import pytest

import promptmill
from prompt_cache import PromptCache
from upstream import Upstream

PROMPT = "Answer from this document:\n{{document}}\n\nQuestion: {{question}}"
PROVIDERS = ("openai", "anthropic")


def documents(count: int, tokens: int) -> list[str]:
    """Return different texts of this length."""
    return [f"document {n} " + f"w{n:03} ".join([""] * (tokens * 4 // 5)) for n in range(count)]


def asked(folder: Path, upstream: Upstream, provider: str, rows: list[tuple[str, str]], **options: Any) -> Any:
    """Ask a question about the document of each row; return the result."""
    with (folder / "in.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["document", "question"])
        writer.writerows(rows)
    block = {"provider": provider, "base_url": upstream.url, "api_key": "k", "model_name": "m", "concurrency": 32}
    settings = {"backend": "openai", "backend_configs": {"openai": block}}
    settings |= {"price": {"input": 1.0, "cached_input": 0.1, "output": 10.0}}
    given = {"prompt": PROMPT, "max_tokens": 20, "state": folder / "jobs", "progress": False} | options
    return promptmill.bulk(folder / "in.csv", folder / "out.csv", settings=settings, **given)


def share_read(cache: PromptCache, upstream: Upstream, texts: list[str]) -> float:
    """Return the part of the tokens of documents that came from the cache."""
    return cache.read / (len([seen for seen in upstream.seen if seen.json]) * len(texts[0]) / 4)


@pytest.mark.parametrize("order", ["grouped", "mixed"])
@pytest.mark.parametrize("provider", PROVIDERS)
def test_questions_about_the_same_documents_read_them_from_the_cache(tmp_path, provider, order):
    texts = documents(5, 1500)
    rows = [(text, f"{n}?") for text in texts for n in range(60)]
    if order == "mixed":
        random.Random(1).shuffle(rows)
    with Upstream() as upstream:
        cache = upstream.reply = PromptCache(provider)
        asked(tmp_path, upstream, provider, rows)
        assert share_read(cache, upstream, texts) >= 0.9
    with (tmp_path / "out.csv").open(encoding="utf-8-sig", newline="") as file:
        found = list(csv.DictReader(file))
    assert [(row["document"], row["question"]) for row in found] == rows
    assert {row["answer"] for row in found} == {"yes"}
