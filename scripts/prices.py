"""Writes `steps/tier_prices.json`: what batches and service tiers cost, as parts of each model's standard price.

    scripts/prices.py            downloads litellm's newest list from PyPI
    scripts/prices.py LIST.json  reads this list

litellm's `model_prices_and_context_window` has, beside a price such as `input_cost_per_token`, the same price with
`_batches`, `_flex` and `_priority`. A batch price that equals the provider's documented discount is left out, and so is
a dated model that costs the same as its undated name.
"""

from __future__ import annotations

import datetime as dt
import json
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

from promptmill.backends.model_ends import DATED
from promptmill.backends.openai.providers import profile_named
from promptmill.steps.prices import TABLE, TIERS

PROVIDERS = {
    "openai": "openai",
    "azure": "azure",
    "anthropic": "anthropic",
    "gemini": "google",
    "xai": "xai",
    "fireworks_ai": "fireworks",
}
"""litellm's name of a provider → ours."""
DOCUMENTED = {"groq": {"flex": {"*": 1.0}}}
"""What the list lacks: at Groq, flex costs the standard price (console.groq.com/docs/flex-processing)."""
_LIST = "litellm/model_prices_and_context_window_backup.json"
_PRICES = ("input_cost_per_token", "output_cost_per_token", "cache_read_input_token_cost")
_REGIONS = ("azure/eu/", "azure/us/", "azure/global/", "azure/global-standard/")


def downloaded() -> tuple[str, dict[str, Any]]:
    """Return the name of the newest release and its list."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder, "litellm"]
        subprocess.run(command, check=True)
        (wheel,) = Path(folder).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            return "litellm " + wheel.name.split("-")[1], json.loads(archive.read(_LIST))


def factors(model: dict[str, Any], tier: str) -> float | list[float] | None:
    """Return the parts of the prices of prompts, answers and cached prompts; one number if all are the same."""
    found = [
        round(model[f"{price}_{tier}"] / model[price], 4) if model.get(price) and f"{price}_{tier}" in model else None
        for price in _PRICES
    ]
    known = [factor for factor in found if factor is not None]
    if found[0] is None:
        return None
    return known[0] if len(set(known)) == 1 else [found[0] if factor is None else factor for factor in found]


def table(models: dict[str, Any]) -> dict[str, dict[str, dict[str, Any]]]:
    """Return `{provider: {tier: {model: factors}}}`."""
    found: dict[str, dict[str, dict[str, Any]]] = json.loads(json.dumps(DOCUMENTED))
    for name, model in models.items():
        provider = PROVIDERS.get(model.get("litellm_provider", ""))
        if provider is None or name.startswith(_REGIONS):
            continue
        for tier in TIERS:
            if (factor := factors(model, tier)) is not None:
                found.setdefault(provider, {}).setdefault(tier, {})[name.rpartition("/")[2]] = factor
    return {provider: kept for provider, tiers in sorted(found.items()) if (kept := _kept(provider, tiers))}


def _kept(provider: str, tiers: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return the rows of a provider without those that follow from another row, or from the documented discount."""
    batch = profile_named(provider).batch
    usual = {} if batch is None or batch.discount is None else {"batches": round(1 - batch.discount, 4)}
    kept = {}
    for tier, rows in sorted(tiers.items()):
        if tier == "batches" and batch is not None and not batch.is_open:
            continue
        implied = {name: rows.get(DATED.sub("", name), usual.get(tier)) for name in rows if DATED.search(name)}
        left = {name: factor for name, factor in sorted(rows.items()) if factor != implied.get(name, usual.get(tier))}
        if left:
            kept[tier] = left
    return kept


def written(source: str, models: dict[str, Any]) -> str:
    """Return the text of the table, with one line for each model."""
    lines = []
    for provider, tiers in table(models).items():
        blocks = [
            f'    "{tier}": {{\n'
            + ",\n".join(f"      {json.dumps(name)}: {json.dumps(factor)}" for name, factor in rows.items())
            + "\n    }"
            for tier, rows in tiers.items()
        ]
        lines.append(f'  "{provider}": {{\n' + ",\n".join(blocks) + "\n  }")
    head = {"source": f"{source}, {_LIST.partition('/')[2]}", "read": f"{dt.datetime.now(dt.UTC):%Y-%m-%d}"}
    start = "".join(f"  {json.dumps(name)}: {json.dumps(value)},\n" for name, value in head.items())
    return "{\n" + start + ",\n".join(lines) + "\n}\n"


if __name__ == "__main__":
    if len(sys.argv) > 1:
        source, models = Path(sys.argv[1]).stem, json.loads(Path(sys.argv[1]).read_bytes())
    else:
        source, models = downloaded()
    TABLE.write_text(written(source, models), encoding="utf-8")
    print(f"wrote {TABLE.name} from {source}")
