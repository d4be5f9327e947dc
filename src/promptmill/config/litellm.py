"""Converts the block `litellm` of a configuration to the block `openai`."""

from __future__ import annotations

from collections.abc import Mapping

from promptmill.core.errors import config_error
from promptmill.core.values import JsonDict, JsonObject
from promptmill.core.wording import shape

# The server of a RAG framework has LiteLLM as a fourth backend: https://github.com/OpenBMB/UltraRAG/pull/496
_LITELLM = "litellm"
# LiteLLM's (1.109) prefixes of model names → promptmill's providers. Both programs send the same name to the same host.
_PROVIDERS = {
    **{name: name for name in ("anthropic", "cerebras", "cohere", "dashscope", "deepinfra", "deepseek", "groq")},
    **{name: name for name in ("minimax", "mistral", "nebius", "novita", "ollama", "openai", "openrouter")},
    **{name: name for name in ("perplexity", "sambanova", "xai")},
    "bigmodel": "glm",
    "cohere_chat": "cohere",
    "fireworks_ai": "fireworks",
    "gemini": "google",
    "moonshot": "kimi",
    "nvidia_nim": "nvidia",
    "ollama_chat": "ollama",
    "together_ai": "together",
    "volcengine": "doubao",
    "zai": "glm",
}
# LiteLLM's addresses that differ from promptmill's: a region refuses keys of other regions.
_ADDRESSES = {
    "dashscope": "https://dashscope-intl.aliyuncs.com/compatible-mode/v1",
    "moonshot": "https://api.moonshot.ai/v1",
    "zai": "https://api.z.ai/api/paas/v4",
}
# Prefixes for any OpenAI-compatible server, which need a `base_url`.
_ANY_SERVER = frozenset({"custom_openai", "hosted_vllm", "litellm_proxy", "lm_studio", "openai_like"})


def without_litellm(values: JsonObject) -> JsonDict:
    """Return `values`, which may have `backend` and `backend_configs`, with `litellm` replaced by `openai`.

    The block `litellm` is dropped if another backend is used. `drop_params` has no equivalent: parameters that a
    provider refuses are always dropped with a warning. Raises `PromptmillError` (`invalid_config`) if the model's
    provider does not support OpenAI's protocol.
    """
    blocks, backend = values.get("backend_configs"), values.get("backend")
    is_used = isinstance(backend, str) and backend.strip().lower() == _LITELLM
    blocks = blocks if isinstance(blocks, Mapping) else {}
    if not is_used and _LITELLM not in blocks:
        return dict(values)
    kept = {name: block for name, block in blocks.items() if name != _LITELLM}
    if not is_used:
        return {**values, "backend_configs": kept}
    given = blocks.get(_LITELLM) or {}
    if not isinstance(given, Mapping):
        raise config_error(f"backend_configs.{_LITELLM}", f"should be an object, not {shape(given)}.")
    block = {name: value for name, value in given.items() if value is not None and name != "drop_params"}
    block |= _endpoint_of(block.get("model_name"), has_address=bool(block.get("base_url")))
    return {**values, "backend": "openai", "backend_configs": {**kept, "openai": block}}


def _endpoint_of(name: object, *, has_address: bool) -> JsonDict:
    """Return the keys of `openai` for a LiteLLM model name. Raises `PromptmillError` (`invalid_config`)."""
    path = f"backend_configs.{_LITELLM}"
    prefix, slash, model = name.partition("/") if isinstance(name, str) else ("", "", "")
    if not slash or not model:
        raise config_error(f"{path}.model_name", "should be `provider/name`, such as openai/gpt-6-luna.")
    if prefix in _ANY_SERVER and not has_address:
        raise config_error(f"{path}.base_url", f"is missing: {prefix} is your own server; give its address.")
    if prefix not in _PROVIDERS and prefix not in _ANY_SERVER:
        raise config_error(
            f"{path}.model_name",
            f"promptmill does not know {prefix:.40}. If this provider has an OpenAI-compatible address, use "
            "`backend: openai` and `backend_configs: {openai: {base_url: …, model_name: …, api_key: …}}`. Known "
            f"prefixes: {', '.join(sorted({*_PROVIDERS, *_ANY_SERVER}))}.",
        )
    if has_address:  # the address identifies the provider
        return {"model_name": model}
    address = {"base_url": _ADDRESSES[prefix]} if prefix in _ADDRESSES else {}
    return {"model_name": model, "provider": _PROVIDERS[prefix], **address}
