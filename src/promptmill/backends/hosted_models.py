"""Finds the provider of models that no engine can run, by the models' names."""

from __future__ import annotations

import re
from typing import NamedTuple


class Host(NamedTuple):
    """The provider of a model: its name, the name of its profile, and the environment variable for its key."""

    owner: str
    provider: str
    key_env: str


_HOSTS = (
    (r"gpt-(?!oss|neo|j)|gpt[345]|chatgpt-|o[134](-|$)", Host("OpenAI", "openai", "OPENAI_API_KEY")),
    (r"claude-", Host("Anthropic", "anthropic", "ANTHROPIC_API_KEY")),
    (r"gemini-", Host("Google", "google", "GEMINI_API_KEY")),
    (
        r"(mistral|codestral|ministral|pixtral|magistral)-.*latest$",
        Host("Mistral", "mistral", "MISTRAL_API_KEY"),
    ),
    (r"deepseek-(chat|reasoner)$", Host("DeepSeek", "deepseek", "DEEPSEEK_API_KEY")),
    (r"grok-", Host("xAI", "xai", "XAI_API_KEY")),
)


def host_of(model: str) -> Host | None:
    """Return the provider of a model; None if the model's name does not show its provider.

    >>> host_of("gpt-6-luna").provider, host_of("gpt2")
    ('openai', None)
    """
    return next((host for form, host in _HOSTS if re.match(form, model)), None)
