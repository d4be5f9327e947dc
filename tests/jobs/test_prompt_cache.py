"""Jobs whose prompts share long beginnings: the provider reads them from its cache."""

from __future__ import annotations

import csv
import json
import random
from pathlib import Path
from typing import Any

import pytest

import promptmill
from prompt_cache import PromptCache
from promptmill.jobs.store.status_words import summary
from replies import choose, completion
from sure import sure
from upstream import Reply, Seen, Upstream

PROMPT = "Answer from this document:\n{{document}}\n\nQuestion: {{question}}"
PROVIDERS = ("openai", "anthropic")


def documents(count: int, tokens: int) -> list[str]:
    """Return different texts of this length."""
    return [f"document {n} " + f"w{n:03} ".join([""] * (tokens * 4 // 5)) for n in range(count)]


def asked(
    folder: Path, upstream: Upstream, provider: str, rows: list[tuple[str, str]], *, workers: int = 0, **options: Any
) -> Any:
    """Ask a question about the document of each row; return the result."""
    with (folder / "in.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["document", "question"])
        writer.writerows(rows)
    block = {"provider": provider, "base_url": upstream.url, "api_key": "k", "model_name": "m", "concurrency": 32}
    block |= {"num_workers": workers} if workers else {}
    settings = {"backend": "openai", "backend_configs": {"openai": block}}
    settings |= {"price": {"input": 1.0, "cached_input": 0.1, "output": 10.0}}
    given: dict[str, Any] = {"prompt": PROMPT, "max_tokens": 20, "state": folder / "jobs", "progress": False} | options
    return promptmill.bulk(folder / "in.csv", folder / "out.csv", settings=settings, **given)


def share_read(cache: PromptCache, upstream: Upstream, texts: list[str]) -> float:
    """Return the part of the tokens of documents that came from the cache."""
    return cache.read / (len([seen for seen in upstream.seen if seen.json]) * len(texts[0]) / 4)


@pytest.mark.thorough
@pytest.mark.parametrize("models", [["small", "strong"], ["strong", "small"], ["small"]])
def test_what_the_cache_saved_is_at_the_price_of_each_model(tmp_path, models):
    usage = {"prompt_tokens": 1000, "completion_tokens": 1, "prompt_tokens_details": {"cached_tokens": 900}}

    def reply(seen: Seen) -> Reply:
        body = json.dumps(completion(seen, "a", {}, {}) | {"usage": usage}).encode()
        return lambda exchange: exchange.respond(200, {}, body)

    prices = {"small": 1.0, "strong": 100.0}
    with Upstream() as upstream:
        upstream.reply = choose(reply)
        block = {"base_url": upstream.url, "api_key": "k"}
        settings = {
            "models": {
                name: {
                    "openai": block | {"model_name": name},
                    "price": {"input": price, "cached_input": price / 10, "output": price},
                }
                for name, price in prices.items()
            }
        }
        given = {"model": models, "state": tmp_path, "progress": False}
        found = promptmill.bulk([f"row {n}" for n in range(10)], settings=settings, **given).status
    assert found["cache_saved"] == pytest.approx(sum(10 * 900 * 0.9e-6 * prices[name] for name in models))
    assert found["cost"] == pytest.approx(sum(10 * (100 + 90 + 1) * 1e-6 * prices[name] for name in models))


@pytest.mark.thorough
@pytest.mark.parametrize("order", ["grouped", "mixed"])
@pytest.mark.parametrize("provider", PROVIDERS)
def test_questions_about_the_same_documents_read_them_from_the_cache(tmp_path, provider, order):
    texts = documents(5, 1500)
    rows = [(text, f"{n}?") for text in texts for n in range(60)]
    if order == "mixed":
        random.Random(1).shuffle(rows)
    with Upstream() as upstream:
        cache = upstream.reply = PromptCache(provider)
        found = asked(tmp_path, upstream, provider, rows).status
        assert share_read(cache, upstream, texts) >= 0.9
        assert cache.written <= 1.01 * 5 * len(texts[0]) / 4  # each document once
        assert found["cached_tokens"] == cache.read
        writing = cache.written * 0.25e-6 if provider == "anthropic" else 0.0  # the others report no writes
        assert found["cache_saved"] == pytest.approx(cache.read * 0.9e-6 - writing, rel=1e-3)
        assert f"{cache.read:,} of them from the provider's cache (saved $0." in summary(found)
    with (tmp_path / "out.csv").open(encoding="utf-8-sig", newline="") as file:
        written = list(csv.DictReader(file))
    assert [(row["document"], row["question"]) for row in written] == rows
    assert {row["answer"] for row in written} == {"yes"}


@pytest.mark.thorough
@pytest.mark.parametrize("provider", PROVIDERS)
def test_a_long_system_prompt_is_read_by_all_rows_but_the_first(tmp_path, provider):
    rows = [(f"text {n}", f"{n}?") for n in range(50)]
    with Upstream() as upstream:
        cache = upstream.reply = PromptCache(provider)
        (system,) = documents(1, 1500)
        asked(tmp_path, upstream, provider, rows, system=system)
        assert cache.read >= 0.9 * 49 * 1500
        first, *others = [seen for seen in upstream.seen if seen.json]
        assert all(seen.at >= sure(first.ended) for seen in others)


@pytest.mark.parametrize("provider", PROVIDERS)
def test_short_prompts_are_sent_as_without_a_cache(tmp_path, provider):
    with Upstream() as upstream:
        upstream.reply = PromptCache(provider)
        asked(tmp_path, upstream, provider, [(f"text {n}", f"{n}?") for n in range(20)])
        bodies = [seen.raw for seen in upstream.seen if seen.json]
    assert len(bodies) == 20
    assert not [body for body in bodies if b"cache" in body]


@pytest.mark.thorough
def test_worker_processes_mark_the_same_beginning(tmp_path):
    texts = documents(2, 1500)
    with Upstream() as upstream:
        cache = upstream.reply = PromptCache("anthropic")
        rows = [(text, f"{n}?") for text in texts for n in range(30)]
        asked(tmp_path, upstream, "anthropic", rows, workers=2)
        assert share_read(cache, upstream, texts) >= 0.9


@pytest.mark.thorough
@pytest.mark.parametrize("provider", PROVIDERS)
def test_ten_thousand_rows_of_twenty_documents_read_nine_tenths_from_the_cache(tmp_path, provider):
    texts = documents(20, 4000)
    rows = [(text, f"{n}?") for text in texts for n in range(500)]
    random.Random(2).shuffle(rows)
    with Upstream() as upstream:
        cache = upstream.reply = PromptCache(provider, late_s=0.005)
        asked(tmp_path, upstream, provider, rows)
        assert share_read(cache, upstream, texts) >= 0.9
        print(f"{provider}: {share_read(cache, upstream, texts):.3%} read")
