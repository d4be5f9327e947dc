"""Wrong arguments of a tool in words: no quoted value, and where what was meant goes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from promptmill.config.settings import BackendConfigs
from promptmill.core.sampling import Sampling
from promptmill.core.wording import close_matches, shape

_MOST_PROBLEMS = 5
_IMAGES = frozenset({"image", "images", "image_path", "image_paths", "image_url", "image_urls", "pictures"})
_WANTED = {"string": "a text", "integer": "a whole number", "boolean": "true or false", "object": "an object"}


def missing(name: str, kinds: Sequence[str]) -> str:
    """Return what to say of an argument that is not there; `kinds` are the JSON types that it may have."""
    kind = "a list" if "array" in kinds else _WANTED.get(kinds[0], "it") if kinds else "it"
    return f"{name} is missing; send {kind}."


def of_another_kind(name: str, value: object, kind: str) -> str:
    """Return what to say of an argument that should be of the JSON type `kind`."""
    return f"{name} is {shape(value)}; send {_WANTED.get(kind, kind)}."


def unknown(name: str, properties: Mapping[str, Any]) -> str:
    """Return what to say of an argument that a tool with these `properties` does not have."""
    return f"{name:.100} is not an argument of this tool{_where(name, properties)}"


def _where(name: str, properties: Mapping[str, Any]) -> str:
    """Return where an argument goes that a tool does not have by itself, or which one was meant."""
    if name in Sampling.model_fields and "sampling_params" in properties:
        return f': it goes into sampling_params, {{"{name}": …}}.'
    if "backend_configs" in properties and any(
        name in block.annotation.model_fields
        for block in BackendConfigs.model_fields.values()
        if isinstance(block.annotation, type)
    ):
        return f': it goes into backend_configs, below the backend\'s name, {{"{name}": …}}.'
    if name in _IMAGES and "multimodal_path" in properties:
        return (
            ': images go into multimodal_path, a list of them for each prompt: {"prompt_ls": ["…"], '
            '"multimodal_path": [["a.png"]]}.'
        )
    if name in _IMAGES and "prompt_ls" in properties:
        return ": multimodal_generate takes images."
    if name == "messages" and "prompt_ls" in properties:
        return ": multiturn_generate takes messages."
    near = close_matches(name, properties, n=1, cutoff=0.5)
    return f"; did you mean {near[0]}?" if near else f"; it takes {', '.join(properties) or 'none'}."


def joined(lines: Sequence[str]) -> str:
    """Return the problems in one text: the first ones, and how many there are more."""
    more = len(lines) - _MOST_PROBLEMS
    return " ".join([*lines[:_MOST_PROBLEMS], f"And {more} more."] if more > 0 else lines)


def wrong_values(error: ValidationError) -> str:
    """Return what to say of the values that pydantic refused."""
    lines: dict[str, str] = {}
    for problem in error.errors(include_url=False):
        name, *inner = problem["loc"] or ("arguments",)
        place = str(name) + "".join(f"[{part}]" for part in inner if isinstance(part, int))
        expected = _expected(problem["type"], problem.get("ctx", {}))
        given = problem["input"]
        if problem["type"] == "value_error":  # of a validator of ours, in words
            lines.setdefault(place, str(problem["ctx"]["error"]))
            continue
        is_number = problem["type"].endswith("_than_equal")
        lines.setdefault(place, f"is {f'{given:g}' if is_number else shape(given)}; {expected}")
    return joined([f"{place:.100} {text}" for place, text in lines.items()])


def _expected(problem: str, bounds: Mapping[str, object]) -> str:
    if problem in {"list_type", "dict_type"}:
        return f"send a{' list' if problem == 'list_type' else 'n object'}."
    match problem:
        case "string_type":
            return "send a text."
        case "greater_than_equal":
            return f"send {bounds['ge']} or more."
        case "less_than_equal":
            return f"send {bounds['le']} or less."
        case "int_type" | "int_parsing" | "int_from_float":
            return "send a whole number."
        case "bool_type" | "bool_parsing":
            return "send true or false."
    return "see the tool's input schema."
