"""Request options shared by the local engines: template options, unsupported parameters."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from typing import Any

from promptmill.backends.engines.chat_template import NO_TEMPLATE
from promptmill.core.errors import Code, PromptmillError, input_error
from promptmill.core.wording import shape

CHARACTERS_PER_TOKEN = 16
"""More than texts have, so that what is longer is known to be too long from its beginning."""

DEFAULT_MAX_TOKENS = 1024
"""Longest answer when neither the request nor the model's generation defaults say."""

LONGEST = ("max_tokens", "max_completion_tokens", "max_new_tokens")
"""Names in `extra_params` for the longest answer; the second is OpenAI's newer word, the third transformers'."""

_TEMPLATES = ("enable_thinking", "reasoning_effort")
"""Sampling parameters that are switches of chat templates."""
_OURS = frozenset({"tokenize", "return_dict", "return_tensors", "padding", "truncation", "max_length", "chat_template"})


def longest_answer(sampling: Mapping[str, Any], extra: Mapping[str, Any]) -> int | None:
    """Return the most tokens that a request wants, None when it does not say. Raises `PromptmillError`."""
    if (said := sampling.get("max_tokens")) is not None:
        return int(said)
    for name in LONGEST:
        if (value := extra.get(name)) is None:
            continue
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            found = "less than 1" if isinstance(value, int) and not isinstance(value, bool) else shape(value)
            raise input_error(f"extra_params.{name} is {found}; send a whole number, at least 1.")
        return value
    return None


def not_known(extra: Mapping[str, Any], known: Container[str]) -> list[str]:
    """Return the names in `extra_params` that are not `known`; null asks for nothing, and so does one answer."""
    asked = (name for name, value in extra.items() if value is not None and not (name == "n" and value == 1))
    return sorted(name for name in asked if name not in known)


def template_options(
    sampling: Mapping[str, Any],
    extra: Mapping[str, Any],
    left_out: list[str],
    knows: Callable[[str], bool],
    takes: Container[str],
) -> dict[str, Any]:
    """Return what the chat template is given; `knows` says whether it has a switch of that name.

    `takes` are the sampling parameters that the engine itself maps. `left_out` gets the names of what neither can
    take. Raises `PromptmillError` (`invalid_input`).
    """
    left_out += [name for name in sampling if name not in takes and name not in _TEMPLATES]
    options = extra.get("chat_template_kwargs") or {}
    if not isinstance(options, dict):
        raise input_error(f"extra_params.chat_template_kwargs is {shape(options)}; send an object.")
    left_out += [f"chat_template_kwargs.{name}" for name in sorted(_OURS & set(options))]
    options = {name: value for name, value in options.items() if name not in _OURS}
    for name in _TEMPLATES:
        if (value := sampling.get(name)) is None:
            continue
        if knows(name):
            options[name] = value
        elif value is not False:  # not to think is what a model without that switch does
            left_out.append(name)
    return {"add_generation_prompt": True, **options}


def is_known_format(wanted: Mapping[str, Any] | None) -> bool:
    """Return whether `response_format` is one of OpenAI's."""
    return (wanted or {}).get("type", "text") in {"text", "json_object", "json_schema"}


def split_stops(
    wanted: Sequence[str], special: Mapping[str, int], warnings: list[str]
) -> tuple[list[str], frozenset[int]]:
    """Return the stop strings, and the tokens that end an answer: a stop that is a special token is one."""
    stops = [stop for stop in wanted if stop]
    if len(stops) < len(wanted):
        warnings.append("An empty stop string was left out.")
    return [stop for stop in stops if stop not in special], frozenset(
        special[stop] for stop in stops if stop in special
    )


def draws(sampling: Mapping[str, Any], *, by_default: bool) -> bool:
    """Return whether a request without a temperature wants tokens drawn: who says how to choose wants a choice."""
    return by_default or any((sampling.get(name) or 0) > 0 for name in ("top_p", "top_k", "min_p"))


def special_tokens(tokenizer: Any) -> dict[str, int]:
    """Return the tokens that are left out of every answer's text, by name: a stop string cannot be found there."""
    named = {token: tokenizer.convert_tokens_to_ids(token) for token in getattr(tokenizer, "all_special_tokens", ())}
    marked = getattr(tokenizer, "added_tokens_decoder", None) or {}
    return named | {str(token): number for number, token in marked.items() if token.special}


def warn_of_left_out(names: Iterable[str], engine: str, warnings: list[str]) -> None:
    """Add to `warnings` what `engine` was asked and does not do."""
    warnings += [f"The {engine} backend cannot take {name:.60} with this model; it was left out." for name in names]


def refuse(warnings: Iterable[str]) -> None:
    """Raise `PromptmillError` (`unsupported`) when something was not done as asked, as `unsupported: error` wants."""
    if refused := [text for text in warnings if text is not NO_TEMPLATE]:
        raise PromptmillError(Code.UNSUPPORTED, " ".join(refused))


def check_length(text: str, context: int | None, encode: Callable[[str], Sequence[int]]) -> None:
    """Raise `PromptmillError` (`context_length`) for a text whose beginning alone is too long.

    Megabytes take seconds and gigabytes to split into tokens.
    """
    if context is not None and len(text) > (enough := context * CHARACTERS_PER_TOKEN):
        found = len(encode(text[:enough]))
        if found > context:
            raise too_long(f"at least {found}", context)


def too_long(found: str, context: int, *, images: bool = False) -> PromptmillError:
    """Return the error of a prompt of `found` tokens for a model that takes `context`."""
    counted = ", images included" if images else ""
    return PromptmillError(
        Code.CONTEXT_LENGTH,
        f"The prompt has {found} tokens{counted}; the model takes {context}, prompt and answer together.",
        "Send fewer or smaller images, or less text." if images else None,
    )


def empty_prompt() -> PromptmillError:
    """Return the error of a prompt without a token."""
    return input_error("The prompt is empty, and the model's format adds nothing to it; send some text.")
