"""Names of models that no engine of this machine can load: a provider's, and Ollama's `name:tag`."""

from __future__ import annotations

import re

# How a provider's own models begin, with the provider's name, its row in the table of providers and its key.
_HOSTED = (
    (r"gpt-(?!oss|neo|j)|chatgpt-|o[134](-|$)", "OpenAI", "openai", "OPENAI_API_KEY"),
    (r"claude-", "Anthropic", "anthropic", "ANTHROPIC_API_KEY"),
    (r"gemini-", "Google", "google", "GEMINI_API_KEY"),
    (r"(mistral|codestral|ministral|pixtral|magistral)-.*latest$", "Mistral", "mistral", "MISTRAL_API_KEY"),
    (r"deepseek-(chat|reasoner)$", "DeepSeek", "deepseek", "DEEPSEEK_API_KEY"),
)
# LiteLLM writes PROVIDER/MODEL; of the hub's owners only `openai` has such a name.
_PREFIXES = frozenset({"openai", "anthropic", "gemini", "google", "mistral", "deepseek"})
_OLLAMA_PREFIXES = frozenset({"ollama", "ollama_chat"})
_OLLAMA = re.compile(r"[A-Za-z0-9][\w.-]+:[\w.-]+")


def advice(name: str) -> tuple[str, str] | None:
    """Return whose model `name` is and what to do for it, None for a name that may be a model of the hub."""
    prefix, _, own = name.partition("/")
    if prefix in _OLLAMA_PREFIXES and own:
        return f"{name} is a model of Ollama:", f"add --base-url localhost:11434 --model {own}"
    if prefix in _PREFIXES and (found := advice(own)) and "--provider" in found[1]:
        return found[0], found[1].replace(" (", f" --model {own} (", 1)
    for form, owner, provider, key_env in _HOSTED:
        if re.match(form, name):
            return f"{name} is a model of {owner}:", f"add --provider {provider} (key in {key_env})"
    if _OLLAMA.fullmatch(name):
        return f"{name} looks like an Ollama model:", "add --base-url localhost:11434"
    return None
