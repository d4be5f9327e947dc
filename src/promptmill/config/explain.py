"""Explains validation errors of the configuration: the path of each key, the problem, and the key that was meant."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from promptmill.config.settings import BackendConfigs, Settings
from promptmill.core.request import Sampling
from promptmill.core.wording import close_matches, shape, synonym

_NUMBER = re.compile(r"-?\d+(?:[.,]\d+)?(?:[eE][+-]?\d{1,2})?")
_THOUSANDS = re.compile(r"-?\d{1,3},\d{3}")
_BRANCH = re.compile(r"str|bool|int|float|(list|dict)\[.*\]")
_MODEL = (
    "the model is named below its backend: `backend_configs: {openai: {model_name: …}}`; for hf, vllm and openvino it "
    "is `model_name_or_path`."
)
_OLLAMA = "Ollama is an endpoint: `backend: openai` and `backend_configs: {openai: {base_url: localhost:11434}}`."
# Keys of other programs without an equivalent in promptmill, each with a hint.
_ALIASES = {
    "model_list": (
        "this key is LiteLLM's. Write `models: {NAME: {backend: openai, backend_configs: {openai: {base_url: …, "
        "model_name: …, api_key_env: …}}}}`."
    ),
    "tensor_parallel": "did you mean gpu_ids, or tensor_parallel_size of vllm?",
    "ollama": _OLLAMA,
}
_SHOULD = "should be "


def explain(error: ValidationError, model: type[BaseModel] = BaseModel, above: str = "") -> str:
    """Return the problems of `error`, key by key. Of the values, only numbers are quoted.

    For an unknown key, the most similar known key is named. `above`: the path of the block that `model` describes.
    """
    lines: dict[str, tuple[list[str], str]] = {}  # by path: the problems, and the kind of the value
    problems = error.errors(include_url=False, include_context=False)
    for problem in problems:
        if _is_other_branch(problem["loc"], [other["loc"] for other in problems]):
            continue
        location = list(problem["loc"])
        unknown = [location.pop()] if problem["type"] == "extra_forbidden" else []  # the name that the user wrote
        if not unknown and _names_branch(problem, problems):
            location.pop()
        location = [part for part in location if not (isinstance(part, str) and "[" in part)] + unknown
        path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location).lstrip(".")
        if problem["type"] == "extra_forbidden":
            lines[path] = [unknown_key(location, model)], ""
        else:
            message = problem["msg"].removeprefix("Value error, ").removeprefix("Input ")
            if problem["type"] == "model_type":
                message = "should hold keys and values"
            message = _plain(message)
            got = _got(problem["input"], problem["type"]) if problem["type"].endswith(("_type", "_parsing")) else ""
            if path == "backend_configs" and isinstance(problem["input"], list):
                got += '; remove the "- " before each name in it'
            said, _ = lines.setdefault(path, ([message], f"{got}."))
            if message not in said and all(one.startswith(_SHOULD) for one in (message, *said)):  # another branch's
                said.append(message)
    lines_shown = [
        f"{above}{path:.200}: {' or '.join([first, *(one.removeprefix(_SHOULD) for one in others)])}{got}"
        for path, ((first, *others), got) in list(lines.items())[:10]
    ]
    more = len(lines) - len(lines_shown)
    return " ".join([*lines_shown, f"And {more} more."] if more else lines_shown)


def _is_other_branch(location: Sequence[int | str], others: Sequence[Sequence[int | str]]) -> bool:
    """Return whether a problem is that the type of one branch of a union does not match, but another's type does."""
    *above, branch = location or ("",)
    is_branch = isinstance(branch, str) and _BRANCH.fullmatch(branch) is not None
    return is_branch and any(len(other) > len(location) and list(other[: len(above)]) == above for other in others)


def _names_branch(problem: ErrorDetails, problems: Sequence[ErrorDetails]) -> bool:
    """Return whether a problem's location ends with a type of a union instead of a key, because several types fail."""
    *above, branch = problem["loc"] or ("",)
    if _BRANCH.fullmatch(str(branch)) is None:
        return False
    values = [other["input"] for other in problems if list(other["loc"][:-1]) == above]
    return sum(value is problem["input"] for value in values) > 1


def _got(value: object, kind: str) -> str:
    """Return the kind of a wrong value; if a text looks like a number, return the number to write."""
    if not isinstance(value, str) or not kind.startswith(("int", "float")) or not _NUMBER.fullmatch(value):
        return f", not {shape(value)}"
    thousands = kind.startswith("int") and _THOUSANDS.fullmatch(value)
    number = float(value.replace(",", "" if thousands else "."))
    if kind.startswith("int") and not number.is_integer():
        return f", not {value}"
    return f", not {value!r}; write {number:.0f}" if number.is_integer() else f", not {value!r}; write {number!r}"


_PLAIN = (
    (r"should be a valid integer.*", "should be a whole number"),
    (r"should be a valid number.*", "should be a number"),
    (r"should be a valid boolean.*", "should be true or false"),
    (r"should be a valid string", "should be text"),
    (r"should be a valid (list|tuple)", "should be a list"),
    (r"should be a valid dictionary", "should hold keys and values"),
    (r"should be greater than or equal to ", "should be at least "),
    (r"should be less than or equal to ", "should be at most "),
)


def _plain(message: str) -> str:
    """Return pydantic's message in YAML's terms."""
    for words, plain in _PLAIN:
        message = re.sub(words, plain, message)
    return message


def _model_in(annotation: object) -> type[BaseModel] | None:
    """Return the pydantic model in a field's annotation (`Model`, `Model | None`, `dict[str, Model]`), if any."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for part in get_args(annotation) if (found := _model_in(part))), None)


def _elsewhere(key: str, known: list[str]) -> str:
    """Return the right place for a key that is in the wrong block; `""` if no block has such a key."""
    if key in Sampling.model_fields and key not in known:
        return f"it belongs below sampling_params: `sampling_params: {{{key}: …}}`."
    if key in Settings.model_fields and key not in known:
        return "it belongs at the top level of the file."
    if key in BackendConfigs.model_fields and key not in known:
        return f"it belongs below backend_configs: `backend_configs: {{{key}: …}}`, or `backend_configs.{key}.…=…`."
    blocks = [
        name
        for name, field in BackendConfigs.model_fields.items()
        if (block := _model_in(field.annotation)) is not None and key in block.model_fields and key not in known
    ]
    return f"it belongs below backend_configs.{' or '.join(blocks)}." if blocks else ""


def unknown_key(location: list[int | str], model: type[BaseModel]) -> str:
    """Explain the key at `location`, which `model` lacks: name the key that was probably meant, or all known keys."""
    *parents, key = location
    for parent in parents:
        field = model.model_fields.get(str(parent))  # None if the user chose the name, as in `models`
        model = model if field is None else _model_in(field.annotation) or model
    known = list(model.model_fields)
    if key == "model":
        names = [name for name in ("model_name", "model_name_or_path") if name in known]
        return f"unknown key; {f'did you mean {names[0]}?' if names else _MODEL}"
    if hint := _ALIASES.get(str(key)) or _elsewhere(str(key), known):
        return f"unknown key; {hint}"
    meant = {name: name for name in known}
    if model is not Sampling:
        meant = {name: f"sampling_params.{name}" for name in Sampling.model_fields} | meant
    if same := synonym(str(key), meant) or synonym(str(key), _of_blocks()):
        return f"unknown key; did you mean {meant.get(same, same)}?"
    near = close_matches(str(key), meant, n=1)
    return "unknown key; " + (f"did you mean {meant[near[0]]}?" if near else f"known keys: {', '.join(known)}.")


def _of_blocks() -> Iterator[str]:
    """Yield the keys of all blocks in `backend_configs`."""
    for field in BackendConfigs.model_fields.values():
        if (block := _model_in(field.annotation)) is not None:
            yield from block.model_fields
