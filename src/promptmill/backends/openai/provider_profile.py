"""A provider's profile: address, parameter names, unsupported parameters, and the meaning of its errors."""

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
# Models that always reason at every provider (help.aliyun.com/zh/model-studio/deep-thinking, docs.sglang.io on
# separate reasoning).
_ALWAYS_THINKING = re.compile(r"(?i)\bqwq|\bqvq|(?<!non)[-:]thinking\b|deepseek-r1|deepseek-reasoner|minimax-m2")


def _no_names() -> Mapping[str, str]:
    return _NOTHING


def _no_causes() -> Mapping[str, Cause]:
    return _NO_CAUSES


@dataclass(frozen=True, slots=True)
class ProviderProfile:
    """One provider. `hosts` match the whole host or its end after a dot; `refused` are body keys that cause a 4xx.

    `thinking` is the form of `enable_thinking` (`type_object`: `thinking: {type: enabled}`; `effort`: off is
    `reasoning_effort: none`), `json_form` the form of a request for JSON. `reasoning_models` matches models that take
    `max_completion_tokens` and refuse `reasoning_refused`.
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
    """The address for `provider: NAME`."""
    key_env: str = ""
    """The variable that usually holds its key; that key is sent only to the provider's own hosts."""
    page: str = ""
    """The provider's own page with these facts."""
    read: str = ""
    """The date of the last comparison with that page."""
    images: Literal["url", "data"] = "url"
    """`url`: the provider downloads images from the web; `data`: it accepts them only inside the request."""
    thinking_on: str = "enabled"
    """The type that switches thinking on, where `thinking` is `type_object`."""
    always_thinking: re.Pattern[str] | None = None
    """Its models whose thinking cannot be switched off, in addition to those that always think at every provider."""
    codes: Mapping[str, Cause] = field(default_factory=_no_causes)
    """Its own error codes → cause. A code is `field=number`, or the lower-case word of `code` or `type`."""
    phrases: Mapping[str, Cause] = field(default_factory=_no_causes)
    """Its own phrases, in lower case, → cause, if other providers mean something else by them."""

    def always_thinks(self, model: str) -> bool:
        """Return whether thinking cannot be switched off."""
        own = self.always_thinking is not None and self.always_thinking.search(model)
        return bool(own or _ALWAYS_THINKING.search(model))

    def cause_of(self, body: ErrorBody) -> Cause | None:
        """Return the cause that this provider's own codes and phrases give for an error body, or None."""
        codes = [*(f"{name}={number}" for name, number in body.numbers.items()), *body.codes]
        if found := next((cause for code in codes if (cause := self.codes.get(code))), None):
            return found
        return next((cause for phrase, cause in self.phrases.items() if phrase in body.text), None)


def translate(profile: ProviderProfile, model: str, given: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Return `(body keys, names of unsupported parameters)` for `given`, the sampling and extra parameters together."""
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
