"""Converts UltraRAG's parameters (its file, and the arguments of `generation_init`) to promptmill's."""

from __future__ import annotations

import os
from collections.abc import Mapping

from promptmill.backends import registry
from promptmill.config.backends import is_named
from promptmill.config.litellm import without_litellm
from promptmill.core.values import JsonDict, JsonObject

_AT_LEAST_ONE = ("concurrency", "retries")
# UltraRAG's `retries` are attempts, in each of which the openai package makes up to three requests.
_ATTEMPTS_OF_A_RETRY = 3
_MOST_RETRIES = 100  # the largest `retries` that promptmill permits
_OPENAI = "https://api.openai.com/v1"


def as_ultrarag(values: JsonObject) -> tuple[JsonDict, list[str]]:
    """Convert `values`, a parameter file or the arguments of `generation_init`; also return notes about changes.

    `backend` and `backend_configs` mean the same as in UltraRAG and in its forks that have a backend per provider.
    """
    adapted, notes = _with_provider(without_litellm(values)), list[str]()
    blocks = adapted.get("backend_configs")
    block = blocks.get("openai") if isinstance(blocks, Mapping) else None
    if not isinstance(blocks, Mapping) or not isinstance(block, Mapping):
        return adapted, notes
    block = {
        key: value for key, value in block.items() if value is not None and (key != "base_url" or _is_given(value))
    }
    for key in _AT_LEAST_ONE:
        if (number := _number(block.get(key))) is not None and number < 1:
            block[key] = 1
            notes.append(f"backend_configs.openai.{key}: 0 would send no requests; 1 is used.")
    if (number := _number(block.get("retries"))) is not None:
        block["retries"] = max(number, min(number * _ATTEMPTS_OF_A_RETRY, _MOST_RETRIES))
    if adapted.get("backend") == "openai" and not {"base_url", "provider"} & block.keys():
        block["base_url"] = os.environ.get("OPENAI_BASE_URL") or _OPENAI
        notes.append(f"backend_configs.openai.base_url: is missing, so requests go to {block['base_url']}.")
    return {**adapted, "backend_configs": {**blocks, "openai": block}}, notes


def _with_provider(values: JsonDict) -> JsonDict:
    """If the backend is a provider's name, replace it by `openai`, and keep only this provider's block."""
    backend, blocks = values.get("backend"), values.get("backend_configs") or {}
    if not isinstance(backend, str) or not isinstance(blocks, Mapping) or is_named(backend.strip().lower()):
        return values
    provider = registry.provider_named(backend)
    given = blocks.get(backend) or {}
    if provider is None or not isinstance(given, Mapping):
        return values
    others = {name: block for name, block in blocks.items() if name not in {backend, "openai"}}
    return {**values, "backend": "openai", "backend_configs": {**others, "openai": {**given, "provider": provider}}}


def _is_given(address: object) -> bool:
    """Return whether an address, or a list of them, is not empty."""
    return bool(address.strip() if isinstance(address, str) else address)


def _number(value: object) -> int | None:
    try:
        return int(str(value))
    except ValueError:
        return None
