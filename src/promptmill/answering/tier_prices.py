"""The prices of batches and service tiers, as shares of a model's standard price, from `tier_prices.json`.

`scripts/prices.py` writes the table. It lists models whose batch price differs from the provider's documents, and
models with the tiers `flex` and `priority`.
"""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import Any, NamedTuple

import orjson

TABLE = Path(__file__).with_name("tier_prices.json")
TIERS = ("batches", "flex", "priority")
DATED = re.compile(r"-\d{4}-\d\d-\d\d$|-\d{8}$")


class Factors(NamedTuple):
    """Price factors for prompts, for answers, and for prompts in the provider's cache."""

    input: float
    output: float
    cached_input: float


def even(factor: float) -> Factors:
    """Return factors with the same value for each price."""
    return Factors(factor, factor, factor)


def factors_of(provider: str, model: str) -> dict[str, Factors]:
    """Return the known factors of `model` at a provider, by tier (see `TIERS`)."""
    name = model.rpartition("/")[2]
    if name.startswith("ft:"):  # an organisation and an id follow
        name = ":".join(name.split(":")[:2])
    found: dict[str, Factors] = {}
    for tier, rows in _table().get(provider, {}).items():
        factor = next((rows[key] for key in (name, DATED.sub("", name), "*") if key in rows), None)
        if factor is not None:
            found[tier] = Factors(*factor) if isinstance(factor, list) else even(factor)
    return found


@functools.cache
def _table() -> dict[str, Any]:
    return {name: rows for name, rows in orjson.loads(TABLE.read_bytes()).items() if isinstance(rows, dict)}
