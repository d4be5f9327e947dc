"""Converts parameters that have names or places of other programs to promptmill's names and places, with a warning."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from promptmill.config import backends
from promptmill.core.errors import config_error
from promptmill.core.feature import hidden, part
from promptmill.core.request import BESIDE, Sampling
from promptmill.core.values import JsonDict, JsonObject
from promptmill.core.wording import close_matches, listed, synonym

_SAMPLING = frozenset(Sampling.model_fields)
_KNOWN = _SAMPLING | BESIDE
# Options of the `openai` package's methods that are not sent in a request, unlike `extra_body`.
_CLIENT_OPTIONS = {
    "timeout": "set `backend_configs.openai.timeout`",
    "extra_headers": "set `backend_configs.openai.headers`",
    "extra_query": "put it into `backend_configs.openai.base_url`",
}
_BODY = "extra_body"
# Parameters that remain in `extra_params`, where the endpoint defines their meaning.
_STAY = frozenset({"enable_thinking", "reasoning", "response_format"})


def move_parameters(raw: JsonObject, backend: str, *, of_pipeline: bool = False) -> tuple[JsonDict, list[str]]:
    """Return `raw`, a configuration's content, with every parameter in its place; also return warnings about the moves.

    Unknown `sampling_params` move to `extra_params`, unless they are already set there. For a local engine, known
    parameters move from `extra_params` to `sampling_params`. Raises `PromptmillError` (`invalid_config`) for a misspelt
    parameter in `sampling_params` unless `of_pipeline` is set, and, with `unsupported: error`, instead of each warning.

    A pipeline's `response_format` moves to `extra_params`, so answers are not checked against it.
    """
    sampling, extra = raw.get("sampling_params"), raw.get("extra_params")
    if not isinstance(sampling, Mapping | None) or not isinstance(extra, Mapping | None):
        return dict(raw), []  # refused later, by the types of the settings
    ours, others, body = dict(sampling or {}), {}, {}
    for name in [name for name in ours if not _is_ours(name, ours[name])]:
        others[str(name)] = ours.pop(name)
    if isinstance(others.get(_BODY, {}), Mapping | None):
        body = dict(others.pop(_BODY, None) or {})
    left_out = {name: _CLIENT_OPTIONS[name] for name in _CLIENT_OPTIONS if others.pop(name, None) is not None}
    warnings = [
        f"sampling_params.{name} is an option of the `openai` package, not of a request, and was left out; {instead}."
        for name, instead in left_out.items()
    ]
    for feature, each in hidden().items():
        parameters = part(each.sampling).model_fields if each.sampling else {}
        if name := next((name for name in parameters if name in others), ""):  # refused: an endpoint may ignore it
            raise config_error(f"sampling_params.{name}", f"needs the feature {feature}, which is hidden here.")
    if not of_pipeline and (near := next(((name, meant) for name in others if (meant := _nearest(name))), None)):
        raise config_error(
            f"sampling_params.{near[0]:.60}",
            f"unknown parameter; did you mean {near[1]}? A parameter in `extra_params` is sent on unchanged.",
        )
    if unknown := [name for name in others if name not in BESIDE]:
        warnings.append(f"sampling_params: {_listed(unknown)} unknown; sent on unchanged, as in `extra_params`.")
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
    # OpenRouter's parameter `reasoning` is an object, so it is not promptmill's parameter.
    return name in _SAMPLING and (name != "reasoning" or isinstance(value, str | None))


def _nearest(name: str) -> str:
    if name in _KNOWN:
        return ""  # a known name is right, and so is OpenRouter's `reasoning`
    return next(iter(close_matches(name, _KNOWN, n=1, cutoff=0.85)), "")


def _listed(names: Iterable[str]) -> str:
    shown = []
    for name in names:
        near = _nearest(name) or synonym(name, _SAMPLING)
        shown.append(f"{name:.60}" + (f" (did you mean {near}?)" if near else ""))
    return listed(shown, 8) + (" is" if len(shown) == 1 else " are")
