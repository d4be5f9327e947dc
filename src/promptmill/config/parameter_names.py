"""Move parameters and blocks with names of other programs to their places here, and report the moves."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from promptmill.config import backends
from promptmill.core.errors import config_error
from promptmill.core.sampling import Sampling
from promptmill.core.wording import close_matches, shape

_SAMPLING = frozenset(Sampling.model_fields)
# Options of the `openai` package's methods, not of a request. `extra_body` is both.
_CLIENT_OPTIONS = {
    "timeout": "set `backend_configs.openai.timeout`",
    "extra_headers": "set `backend_configs.openai.headers`",
    "extra_query": "put it into `backend_configs.openai.base_url`",
}
_BODY = "extra_body"
# In `extra_params` the endpoint defines the meaning of `enable_thinking` and `reasoning`.
_STAY = frozenset({"enable_thinking", "reasoning", "response_format"})
_MOST_NAMES = 8
# Names too different from ours for a close match: transformers, Ollama, llama.cpp, OpenAI's Responses API.
_MEANT = dict.fromkeys(("max_new_tokens", "num_predict", "n_predict", "max_output_tokens"), "max_tokens")


def move_parameters(
    raw: Mapping[str, Any], backend: str, *, of_pipeline: bool = False
) -> tuple[dict[str, Any], list[str]]:
    """Return `raw`, the content of a configuration, with every parameter in its place, and warnings about the moves.

    Unknown `sampling_params` move to `extra_params`, whose own values win. For an engine of this machine, known
    parameters move the other way, too. Raises `PromptmillError` (`invalid_config`) under `unsupported: error`, and,
    unless `of_pipeline`, for a name that is nearly one of ours (in `extra_params` such a name is allowed).

    A pipeline's `response_format` moves to `extra_params`: the endpoint gets it, and answers are not checked.
    """
    sampling, extra = raw.get("sampling_params"), raw.get("extra_params")
    if not isinstance(sampling, Mapping | None) or not isinstance(extra, Mapping | None):
        return dict(raw), []  # the types of the settings refuse it
    ours, others, body = dict(sampling or {}), {}, {}
    for name in [name for name in ours if not _is_ours(name, ours[name])]:
        others[str(name)] = ours.pop(name)
    if isinstance(others.get(_BODY), Mapping):
        body = dict(others.pop(_BODY))
    left_out = {name: _CLIENT_OPTIONS[name] for name in _CLIENT_OPTIONS if others.pop(name, None) is not None}
    warnings = [
        f"sampling_params.{name} is an option of the `openai` package, not of a request, and was left out; {instead}."
        for name, instead in left_out.items()
    ]
    if not of_pipeline and (near := next(((name, meant) for name in others if (meant := _nearest(name))), None)):
        raise config_error(
            f"sampling_params.{near[0]:.60}",
            f"unknown parameter; did you mean {near[1]}? A parameter in `extra_params` is sent on unchanged.",
        )
    if others:
        warnings.append(f"sampling_params: {_listed(others)} unknown; sent on unchanged, as in `extra_params`.")
    if warnings and raw.get("unsupported") == "error":
        raise config_error("", " ".join(warnings))
    passed = {**others, **body, **(extra or {})}
    to_endpoint = backends.record(backend).needs_endpoint
    if of_pipeline and to_endpoint and (wanted := ours.pop("response_format", None)) is not None:
        passed.setdefault("response_format", wanted)
    for name in ({"n"} if to_endpoint else _SAMPLING) & passed.keys() - _STAY:
        ours[name] = passed.pop(name)
    return {**raw, "sampling_params": ours, "extra_params": passed}, warnings


def _is_ours(name: object, value: object) -> bool:
    # OpenRouter's own parameter `reasoning` is an object
    return name in _SAMPLING and (name != "reasoning" or isinstance(value, str | None))


def _nearest(name: str) -> str:
    if name in _SAMPLING:
        return ""  # the name is right, but the value is OpenRouter's
    return next(iter(close_matches(name, _SAMPLING, n=1, cutoff=0.85)), "")


def _listed(names: Iterable[str]) -> str:
    shown = []
    for name in names:
        near = _nearest(name) or _MEANT.get(name, "")
        shown.append(f"{name:.60}" + (f" (did you mean {near}?)" if near else ""))
    more = f", and {len(shown) - _MOST_NAMES} more" if len(shown) > _MOST_NAMES else ""
    return ", ".join(shown[:_MOST_NAMES]) + more + (" is" if len(shown) == 1 else " are")


# UltraRAG's fourth backend (0.3.0.3): https://github.com/OpenBMB/UltraRAG/pull/496
_LITELLM = "litellm"
# Prefixes of LiteLLM's model names (litellm 1.109) → our providers; both send the same name to the same host.
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
# LiteLLM's addresses that differ from our provider's: a region refuses the keys of another one.
_ADDRESSES = {
    "dashscope": "https://dashscope-intl.aliyuncs.com/compatible-mode/v1",
    "moonshot": "https://api.moonshot.ai/v1",
    "zai": "https://api.z.ai/api/paas/v4",
}
# Prefixes for any OpenAI-compatible server; these need `base_url`.
_ANY_SERVER = frozenset({"custom_openai", "hosted_vllm", "litellm_proxy", "lm_studio", "openai_like"})


def without_litellm(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return `values`, which may have `backend` and `backend_configs`, with `openai` in place of `litellm`.

    The block `litellm` is dropped if another backend is used. `drop_params` has no counterpart: parameters that a
    provider refuses are always dropped with a warning. Raises `PromptmillError` (`invalid_config`) for a model whose
    provider does not speak OpenAI's protocol.
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


def _endpoint_of(name: object, *, has_address: bool) -> dict[str, Any]:
    """Return the keys of `openai` for a model's name in LiteLLM. Raises `PromptmillError` (`invalid_config`)."""
    path = f"backend_configs.{_LITELLM}"
    prefix, slash, model = name.partition("/") if isinstance(name, str) else ("", "", "")
    if not slash or not model:
        raise config_error(f"{path}.model_name", "should be `provider/name`, such as openai/gpt-5-mini.")
    if prefix in _ANY_SERVER and not has_address:
        raise config_error(f"{path}.base_url", f"is missing: {prefix} is your own server; give its address.")
    if prefix not in _PROVIDERS and prefix not in _ANY_SERVER:
        raise config_error(
            f"{path}.model_name",
            f"promptmill does not know {prefix:.40}. If this provider has an OpenAI-compatible address, use "
            "`backend: openai` and `backend_configs: {openai: {base_url: …, model_name: …, api_key: …}}`. Known "
            f"prefixes: {', '.join(sorted({*_PROVIDERS, *_ANY_SERVER}))}.",
        )
    if has_address:  # the provider is found by the address
        return {"model_name": model}
    address = {"base_url": _ADDRESSES[prefix]} if prefix in _ADDRESSES else {}
    return {"model_name": model, "provider": _PROVIDERS[prefix], **address}
