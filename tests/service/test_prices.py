"""Where a model's price comes from."""

from __future__ import annotations

import pytest

from promptmill.config import models
from promptmill.config.loading import Configuration
from promptmill.core.outcome import Usage
from promptmill.service.prices import price_of


@pytest.mark.parametrize("endpoint", [{"provider": "openai"}, {"base_url": "https://api.openai.com/v1"}])
def test_a_listed_price_is_found_by_the_provider_and_by_its_address(endpoint):
    pytest.importorskip("genai_prices")

    def values(raw):
        return models.settings_of(raw, backend=None, endpoint=endpoint, model="gpt-5-mini", sampling={})

    price = price_of(Configuration.load(None, values=values).plan)
    assert price is not None
    assert price.cost(Usage(1_000_000, 0)) > 0
