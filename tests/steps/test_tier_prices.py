"""The table of what batches and service tiers cost: its form, and the prices that it gives."""

from __future__ import annotations

import datetime as dt
from dataclasses import replace

import orjson
import pytest

from fakes import openai_config
from promptmill.backends.model_ends import DATED
from promptmill.backends.openai.providers import PROFILES
from promptmill.backends.protocol import Usage
from promptmill.config.settings import PriceSettings
from promptmill.steps.prices import TABLE, TIERS, FlatPrice, Prices, factors_of, price_of
from sure import sure


def test_the_table_has_a_source_and_factors_of_known_providers():
    table = orjson.loads(TABLE.read_bytes())
    assert table.pop("source").startswith("litellm ")
    assert dt.date.fromisoformat(table.pop("read")) > dt.date(2025, 1, 1)
    assert table.keys() <= {profile.name for profile in PROFILES}
    for tiers in table.values():
        assert tiers.keys() <= set(TIERS)
        for rows in tiers.values():
            assert rows
            for name, factor in rows.items():
                parts = factor if isinstance(factor, list) else [factor]
                assert len(parts) in {1, 3}, name
                assert all(0.0 < part <= 4.0 for part in parts), name


def test_a_dated_model_has_a_row_only_if_it_costs_another_part_than_its_undated_name():
    for tiers in orjson.loads(TABLE.read_bytes()).values():
        for rows in tiers.values() if isinstance(tiers, dict) else ():
            assert not [name for name in rows if DATED.search(name) and rows[name] == rows.get(DATED.sub("", name))]


@pytest.mark.parametrize(
    ("provider", "model", "tier", "factors"),
    [
        ("openai", "gpt-5.4-2026-03-05", "batches", (0.5, 0.5, 0.52)),
        ("openai", "gpt-3.5-turbo-1106", "batches", (1.0, 1.0, 1.0)),
        ("openai", "ft:gpt-4o-2024-08-06:acme::x1", "batches", (0.5933, 0.8333, 0.48)),
        ("openai", "gpt-5.5", "priority", (2.5, 2.5, 2.5)),
        ("google", "models/gemini-2.5-flash", "batches", (0.5, 0.5, 1.0)),
        ("google", "gemini-2.5-pro", "priority", (1.8, 1.8, 1.8)),
        ("fireworks", "accounts/fireworks/models/glm-5p2", "priority", (1.25, 1.25, 1.25)),
        ("groq", "any", "flex", (1.0, 1.0, 1.0)),
        ("openai", "gpt-5", "batches", None),  # the documented discount
        ("nobody", "gpt-5", "flex", None),
    ],
)
def test_a_model_is_found_by_its_name_at_the_provider(provider, model, tier, factors):
    assert factors_of(provider, model).get(tier) == factors


@pytest.mark.parametrize(
    ("url", "model", "tier", "usage", "factor"),
    [
        ("https://api.openai.com/v1", "gpt-5", "batch", Usage(1000, 100), 0.5),
        ("https://api.openai.com/v1", "gpt-5.5", "fast", Usage(1000, 100), 2.5),
        ("https://api.openai.com/v1", "gpt-5.4", "batch", Usage(1000, 0, cached_tokens=1000), 0.52),
        ("https://generativelanguage.googleapis.com/v1beta", "gemini-2.5-flash", "batch", Usage(150_000, 0), 0.5),
        ("https://generativelanguage.googleapis.com/v1beta", "gemini-2.5-flash", "batch", Usage(9, 0, 9), 1.0),
        ("https://api.anthropic.com/v1", "claude-sonnet-4-5", "batch", Usage(1000, 9, written_tokens=1000), 0.5),
    ],
)
def test_a_listed_price_in_a_batch_or_tier_is_a_part_of_the_standard_price(url, model, tier, usage, factor):
    price = sure(price_of(openai_config(url, model_name=model)))
    assert price.cost(usage, tier) == pytest.approx(factor * price.cost(usage))


def test_the_operators_batch_price_comes_before_the_table_and_the_table_before_the_documents():
    config = openai_config("https://api.openai.com/v1", model_name="gpt-3.5-turbo-1106")

    def batch(**said):
        settings = config.settings.model_copy(update={"price": PriceSettings(input=1, output=2, **said)})
        return sure(price_of(replace(config, settings=settings)))

    assert (batch(batch=0.25).batch, batch().batch) == (0.25, 1.0)


def test_without_a_provider_the_batch_price_is_unknown():
    assert FlatPrice(1, 2, 1).batch is None


@pytest.mark.parametrize(("provider", "served"), [("openai", {"", "priority"}), ("deepseek", {""})])
def test_an_account_may_have_a_request_served_by_the_dearest_tier(provider, served):
    config = openai_config("http://127.0.0.1:1/v1", provider=provider)
    prices = Prices(config, FlatPrice(1.0, 2.0, 1.0))
    assert prices.served_at("") == served
    assert prices.served_at("auto") == {"auto", "priority"}
    assert prices.served_at("flex") == {"flex"}
