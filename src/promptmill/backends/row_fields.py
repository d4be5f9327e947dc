"""What a plain row asks for beside its prompt: model, sampling, tools, a system prompt, images."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

import orjson
from pydantic import ValidationError

from promptmill.answers.schema import asking_for
from promptmill.core.errors import Code, PromptmillError, input_error
from promptmill.core.sampling import Sampling
from promptmill.core.wording import shape

# `reasoning` is also what an answer has, and outputs are inputs of the next run.
_SAMPLING = frozenset(Sampling.model_fields) - {"reasoning", "n"}
_BODY = frozenset({"model", "tools", "tool_choice", "max_completion_tokens"})
_SYSTEM = ("system_prompt", "system")
IMAGES = ("image", "images")
_SCHEMA = "answer_schema"
_STRUCTURED = frozenset({_SCHEMA, "response_format", "tools", "tool_choice", "stop"})
NAMES = frozenset({"prompt", "messages", "n", _SCHEMA, *_SAMPLING, *_BODY, *_SYSTEM, *IMAGES})
"""All fields that say what a row asks; every other one is the caller's own and is ignored."""
CONTENT = frozenset({"prompt", "messages", *IMAGES})
"""Those of `NAMES` that are sent as the prompt."""
SETTINGS = NAMES - CONTENT
"""The others: model, sampling, system prompt, …"""

# The first bytes of images, in base64; shorter texts are paths.
_BASE64 = re.compile(r"(?:iVBORw0KGgo|/9j/|R0lGOD|UklGR|Qk|SUkq|TU0A)[A-Za-z0-9+/\s]*={0,2}", re.ASCII)
_SHORTEST_BASE64 = 64


def own_parameters(row: Mapping[str, Any], where: str, loaded_model: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the sampling parameters that a row brings, valid ones, and what of it goes into the request's body.

    `loaded_model`: the only one there is; `""` where the endpoint has several. Raises `PromptmillError`
    (`invalid_input`, `unsupported`) naming the field.
    """
    given = {name: row[name] for name in row if name in NAMES and not is_null(row[name])}
    if given.get("n", 1) not in {1, "1"}:
        raise PromptmillError(
            Code.UNSUPPORTED,
            f"{where}: n asks for several answers.",
            "Set `sampling_params: {n: …}` for all rows, or rename the column if it means something else.",
        )
    body = {name: _structured(name, given[name], where) for name in _BODY & given.keys()}
    if loaded_model and "model" in body and body.pop("model") != loaded_model:
        raise PromptmillError(
            Code.UNSUPPORTED,
            f"{where} asks for another model than the one that is loaded.",
            "Rename the column if it means something else.",
        )
    sampling = {name: _structured(name, given[name], where) for name in _SAMPLING & given.keys()}
    if _SCHEMA in given:
        schema = _structured(_SCHEMA, given[_SCHEMA], where)
        if not isinstance(schema, Mapping):
            raise input_error(f"{where}: {_SCHEMA} is {shape(schema)}; send a JSON Schema object.")
        sampling["response_format"] = asking_for(schema)
    if not sampling:
        return {}, body
    try:
        return Sampling.model_validate(sampling).given(), body
    except ValidationError as error:
        problem = error.errors(include_url=False, include_context=False, include_input=False)[0]
        name = ".".join(str(part) for part in problem["loc"])
        raise input_error(f"{where}: {name}: {problem['msg'].removeprefix('Input ')}.") from None


def own_system_prompt(row: Mapping[str, Any], where: str) -> str:
    """Return the row's own system prompt, `""` for none. Raises `PromptmillError` (`invalid_input`)."""
    for name in _SYSTEM:
        value = row.get(name)
        if value is not None and not isinstance(value, str):
            raise input_error(f"{where}: {name} is {shape(value)}, not a text.")
        if value:
            return str(value)
    return ""


def own_images(row: Mapping[str, Any], where: str) -> list[str]:
    """Return the sources of a row's images: paths, URLs, `data:` URLs. Raises `PromptmillError` (`invalid_input`)."""
    return [source for name in IMAGES for source in _sources(row.get(name), f"{where}: {name}")]


def _sources(value: Any, where: str) -> Iterator[str]:
    if value is None or value in ("", []):
        return
    if isinstance(value, list):
        for at, inner in enumerate(value):
            if isinstance(inner, list):
                raise input_error(f"{where}[{at}] is {shape(inner)}; send one list of images.")
            yield from _sources(inner, f"{where}[{at}]")
        return
    match value:
        case str():
            yield f"data:;base64,{_joined(value)}" if _is_base64(value) else value
        case {"bytes": str(data)} if data:  # how the library `datasets` keeps an image
            yield data if data[:5] == "data:" else f"data:;base64,{_joined(data)}"
        case {"path": str(path)} | {"url": str(path)} | {"image_url": str(path) | {"url": str(path)}} if path:
            yield path
        case _:
            raise input_error(f"{where} is {shape(value)}; send a path, a URL, base64, or a list of those.")


def _is_base64(text: str) -> bool:
    return len(text) >= _SHORTEST_BASE64 and _BASE64.fullmatch(text) is not None


def _joined(text: str) -> str:
    return text if text.isalnum() else re.sub(r"\s+", "", text)


def _structured(name: str, value: Any, where: str) -> Any:
    """Return `value`, from a table's cell with JSON as what that says."""
    if name in _STRUCTURED and isinstance(value, str) and value.lstrip()[:1] in {"{", "["}:
        try:
            return orjson.loads(value)
        except orjson.JSONDecodeError as error:
            if name != "stop":
                raise input_error(f"{where}: {name} is not valid JSON: {error.msg}.") from None
    return value


def is_null(value: Any) -> bool:
    """Return whether a cell holds nothing: null, NaN or an empty text."""
    return value is None or value == "" or (isinstance(value, float) and math.isnan(value))
