"""Provider profile: what one provider calls things, what it does not accept, and what its errors mean."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal, TypeAlias

from promptmill.backends.openai.error_body import Cause, ErrorBody

JsonForm: TypeAlias = Literal["strict", "schema", "object", "words"]
"""`strict`: a schema in OpenAI's strict subset; `schema`: any; `object`: JSON mode; `words`: no `response_format`."""

_NOTHING: Mapping[str, str] = MappingProxyType({})


_NO_CAUSES: Mapping[str, Cause] = MappingProxyType({})


# By name, whoever serves them (help.aliyun.com/zh/model-studio/deep-thinking, docs.sglang.io on separate reasoning).
_ALWAYS_THINKING = re.compile(r"(?i)\bqwq|\bqvq|(?<!non)[-:]thinking\b|deepseek-r1|deepseek-reasoner|minimax-m2")


def _no_names() -> Mapping[str, str]:
    return _NOTHING


def _no_causes() -> Mapping[str, Cause]:
    return _NO_CAUSES


@dataclass(frozen=True, slots=True)
class ProviderProfile:
    """One provider. `hosts` match the whole host or its end after a dot; `refused` are body keys that bring a 4xx.

    `thinking` says where `enable_thinking` goes (`type_object`: `thinking: {type: enabled}`; `effort`: off is
    `reasoning_effort: none`), `json_form` how JSON is asked for. `reasoning_models` names models
    that take `max_completion_tokens` and refuse `reasoning_refused`.
    """

    name: str
    hosts: tuple[str, ...] = ()
    ports: tuple[int, ...] = ()
    public: bool = True
    renamed: Mapping[str, str] = field(default_factory=_no_names)
    refused: frozenset[str] = frozenset()
    thinking: Literal["template", "top_level", "type_object", "effort", "refused"] = "template"
    json_form: JsonForm = "schema"
    reasoning_models: re.Pattern[str] | None = None
    reasoning_refused: frozenset[str] = frozenset()
    base_url: str = ""
    """Where `provider: NAME` sends requests."""
    key_env: str = ""
    """The variable that usually holds its key; that key goes to its own hosts alone."""
    page: str = ""
    """The provider's own documentation of this."""
    read: str = ""
    """The day on which the profile was last compared with that page."""
    images: Literal["url", "data"] = "url"
    """Whether it fetches images from the web, or takes them only in the request."""
    thinking_on: str = "enabled"
    """The type that switches thinking on, where `thinking` is `type_object`."""
    always_thinking: re.Pattern[str] | None = None
    """Its models whose thinking cannot be switched off, beside those of every provider."""
    codes: Mapping[str, Cause] = field(default_factory=_no_causes)
    """What its own error codes mean: `field=number`, or a word in lower case as `code` or `type` holds it → cause."""
    phrases: Mapping[str, Cause] = field(default_factory=_no_causes)
    """What its own words mean, in lower case, where other providers mean something else."""

    def always_thinks(self, model: str) -> bool:
        """Return whether thinking cannot be switched off."""
        own = self.always_thinking is not None and self.always_thinking.search(model)
        return bool(own or _ALWAYS_THINKING.search(model))

    def cause_of(self, body: ErrorBody) -> Cause | None:
        """Return what an error body means by this provider's own codes and words, or None."""
        said = [*(f"{name}={number}" for name, number in body.numbers.items()), *body.codes]
        if found := next((cause for code in said if (cause := self.codes.get(code))), None):
            return found
        return next((cause for phrase, cause in self.phrases.items() if phrase in body.text), None)


def translate(profile: ProviderProfile, model: str, given: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Return `(body keys, names the endpoint cannot take)` for `given`: sampling and extra parameters together."""
    body = dict(given)
    refused: list[str] = []
    thinking = body.pop("enable_thinking", None)
    if thinking is not None and profile.always_thinks(model):
        if not thinking:
            refused.append("enable_thinking")
    elif thinking is not None:
        if profile.thinking == "template":
            body["chat_template_kwargs"] = {**(body.get("chat_template_kwargs") or {}), "enable_thinking": thinking}
        elif profile.thinking == "top_level":
            body["enable_thinking"] = thinking
        elif profile.thinking == "type_object":
            body["thinking"] = {"type": profile.thinking_on if thinking else "disabled"}
        elif profile.thinking == "effort":
            if not thinking:
                body["reasoning_effort"] = "none"
        else:
            refused.append("enable_thinking")
    off = profile.refused
    if profile.reasoning_models and profile.reasoning_models.search(model):
        off |= profile.reasoning_refused
        if "max_tokens" in body:
            body.setdefault("max_completion_tokens", body.pop("max_tokens"))
    refused += [name for name in body if name in off]
    return {profile.renamed.get(name, name): value for name, value in body.items() if name not in off}, refused
