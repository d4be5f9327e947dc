"""Provider profiles: what each provider calls things and what it does not accept, as one table of data.

Sources: the providers' API references for chat completions. A host that is not listed gets everything as it was given.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Literal
from urllib.parse import SplitResult

from promptmill.backends.openai.json_form import JsonForm

_VLLM_ONLY = frozenset({"top_k", "min_p", "repetition_penalty", "chat_template_kwargs"})
_NOTHING: Mapping[str, str] = MappingProxyType({})


def _no_names() -> Mapping[str, str]:
    return _NOTHING


@dataclass(frozen=True, slots=True)
class ProviderProfile:
    """One row. `hosts` match the whole host or its end after a dot; `refused` are body keys that bring a 4xx.

    `thinking` says where `enable_thinking` goes, `json_form` how JSON is asked for. `reasoning_models` names models
    that take `max_completion_tokens` and refuse `reasoning_refused`.
    """

    name: str
    hosts: tuple[str, ...] = ()
    ports: tuple[int, ...] = ()
    public: bool = True
    renamed: Mapping[str, str] = field(default_factory=_no_names)
    refused: frozenset[str] = frozenset()
    thinking: Literal["template", "top_level", "refused"] = "template"
    json_form: JsonForm = "schema"
    reasoning_models: re.Pattern[str] | None = None
    reasoning_refused: frozenset[str] = frozenset()


_OPENAI = ProviderProfile(
    "openai",
    ("api.openai.com",),
    refused=_VLLM_ONLY,
    thinking="refused",
    json_form="strict",
    reasoning_models=re.compile(r"(?:^|/)(?:o\d|gpt-[5-9](?!.*chat))"),
    reasoning_refused=frozenset({"temperature", "top_p", "presence_penalty", "frequency_penalty"}),
)

DIALECTS = (
    _OPENAI,
    # not public: anyone can have a host there, so no key goes to it unasked
    replace(_OPENAI, name="azure", hosts=("openai.azure.com",), public=False),
    ProviderProfile(
        "mistral",
        ("api.mistral.ai",),
        renamed=MappingProxyType({"seed": "random_seed"}),
        refused=_VLLM_ONLY,
        thinking="refused",
    ),
    ProviderProfile("groq", ("api.groq.com",), refused=_VLLM_ONLY, thinking="refused", json_form="object"),
    ProviderProfile("google", ("generativelanguage.googleapis.com",), refused=_VLLM_ONLY, thinking="refused"),
    ProviderProfile(
        "dashscope", ("dashscope.aliyuncs.com", "dashscope-intl.aliyuncs.com"), thinking="top_level", json_form="object"
    ),
    ProviderProfile(
        "siliconflow", ("api.siliconflow.cn", "api.siliconflow.com"), thinking="top_level", json_form="object"
    ),
    ProviderProfile("anthropic", ("api.anthropic.com",), refused=_VLLM_ONLY, thinking="refused", json_form="words"),
    ProviderProfile("deepseek", ("api.deepseek.com",), refused=_VLLM_ONLY, thinking="refused", json_form="object"),
    ProviderProfile("xai", ("api.x.ai",), refused=_VLLM_ONLY, thinking="refused"),
    ProviderProfile("cerebras", ("api.cerebras.ai",), refused=_VLLM_ONLY, thinking="refused", json_form="strict"),
    ProviderProfile("openrouter", ("openrouter.ai",), refused=frozenset({"chat_template_kwargs"}), thinking="refused"),
    ProviderProfile("together", ("api.together.xyz", "api.together.ai")),
    ProviderProfile("fireworks", ("api.fireworks.ai",)),
    ProviderProfile("nvidia", ("integrate.api.nvidia.com",)),
    ProviderProfile("huggingface", ("router.huggingface.co",)),
    ProviderProfile("ollama", ports=(11434,), public=False, refused=frozenset({"repetition_penalty"})),
    ProviderProfile("lmstudio", ports=(1234,), public=False),
)
PLAIN = ProviderProfile(
    "plain", public=False
)  # vLLM, SGLang, llama.cpp and every host that is not listed: sent as given


def dialect_of(url: SplitResult) -> ProviderProfile:
    """Return the dialect of the endpoint at `url`, by its host or well-known local port."""
    host, port = url.hostname or "", url.port
    for profile in DIALECTS:
        if any(host == known or host.endswith("." + known) for known in profile.hosts):
            return profile
        if port in profile.ports:
            return profile
    return PLAIN


def dialect_named(name: str) -> ProviderProfile:
    """Return the dialect called `name`."""
    return next((profile for profile in DIALECTS if profile.name == name), PLAIN)


def translate(profile: ProviderProfile, model: str, given: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Return `(body keys, names the endpoint cannot take)` for `given`: sampling and extra parameters together."""
    body = dict(given)
    refused: list[str] = []
    thinking = body.pop("enable_thinking", None)
    if thinking is not None:
        if profile.thinking == "template":
            body["chat_template_kwargs"] = {**(body.get("chat_template_kwargs") or {}), "enable_thinking": thinking}
        elif profile.thinking == "top_level":
            body["enable_thinking"] = thinking
        else:
            refused.append("enable_thinking")
    off = profile.refused
    if profile.reasoning_models and profile.reasoning_models.search(model):
        off |= profile.reasoning_refused
        if "max_tokens" in body:
            body["max_completion_tokens"] = body.pop("max_tokens")
    refused += [name for name in body if name in off]
    return {profile.renamed.get(name, name): value for name, value in body.items() if name not in off}, refused
