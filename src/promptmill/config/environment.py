"""Environment variables: our own, and those that a configuration names as `${NAME}`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from promptmill.core.errors import config_error
from promptmill.core.wording import close_matches
from promptmill.system import logs

USUAL_KEYS = ("LLM_API_KEY", "OPENAI_API_KEY")
"""Variables that may hold an API key if no setting names one, in this order."""
# Includes the variables that configuration files in deploy/ and scripts/ read.
_KNOWN = tuple(
    f"PROMPTMILL_{name}"
    for name in (
        *("CONFIG", "STATE", "CACHE", "SCRATCH", "ENDPOINTS", "HTTP_TOKEN", "LOG_LEVEL", "PYTHON"),
        *("BASE_URL", "MODEL", "API_KEY", "TORCH_INDEX"),
    )
)
_NEAR = 0.88  # PROMPTMILL_PROVIDER, which a user's file may read, is below it
_NAMED = re.compile(
    r"\$?\$\{([A-Za-z_][A-Za-z0-9_]*)(:-([^}]*))?(?:\}|(\Z))"
)  # as in shells; `$${name}` stays `${name}`


def misspelled(environ: Mapping[str, str]) -> list[str]:
    """Return a note about each variable whose name is nearly one of ours."""
    ours = [name for name in environ if name.upper().startswith("PROMPTMI") and name not in _KNOWN]
    return [
        f"Unknown variable {name:.60}; did you mean {near[0]}?"
        for name in sorted(ours)
        if (near := close_matches(name.upper(), _KNOWN, n=1, cutoff=_NEAR))
    ]


def check_log_level(environ: Mapping[str, str]) -> None:
    """Raise `PromptmillError` (`invalid_config`) if PROMPTMILL_LOG_LEVEL holds an unknown level."""
    level = environ.get(logs.LEVEL, "").strip().lower()
    if level and level not in logs.LEVELS:
        raise config_error(
            logs.LEVEL,
            f"{level[:20]!r} is not a log level; write {', '.join(logs.LEVELS[:-1])} or {logs.LEVELS[-1]}.",
        )


@dataclass(frozen=True, slots=True)
class _Unset:
    """Replaces `${name}` of an unset variable: an error only if its block is used."""

    name: str


def expand(value: Any, environ: Mapping[str, str]) -> Any:
    """Return `value`, a part of a configuration, with each `${NAME}` replaced. For unset ones see `without_unset`."""
    if isinstance(value, dict):
        return {key: expand(inner, environ) for key, inner in value.items()}
    if isinstance(value, list):
        return [expand(inner, environ) for inner in value]
    if not isinstance(value, str) or "${" not in value:
        return value
    for found in _NAMED.finditer(value):
        if found[4] is None and not _is_literal(found) and found[1] not in environ and not found[2]:
            return _Unset(found[1])
    return _NAMED.sub(lambda found: _value_of(found, environ), value)


def _value_of(found: re.Match[str], environ: Mapping[str, str]) -> str:
    if found[4] is not None:  # it has no closing brace
        return found[0]
    return found[0][1:] if _is_literal(found) else environ.get(found[1]) or found[3] or ""


def _is_literal(found: re.Match[str]) -> bool:
    return found[0].startswith("$$")


def without_unset(raw: dict[str, Any], backend: str) -> dict[str, Any]:
    """Return `raw`, a result of `expand`, without the unset variables in blocks of other backends than `backend`.

    Raises `PromptmillError` (`invalid_config`) for an unset variable elsewhere.
    """
    blocks, named = raw.get("backend_configs"), raw.get("models")
    if isinstance(blocks, dict):
        others = {name: _drop_unset(block) for name, block in blocks.items() if name != backend}
        raw = {**raw, "backend_configs": {**blocks, **others}}
    if isinstance(named, dict):  # the model in use is also outside of `models`
        raw = {**raw, "models": {name: _drop_unset(model) for name, model in named.items()}}
    _refuse_unset(raw, "")
    return raw


def _drop_unset(value: Any) -> Any:
    """Return `value` without keys whose value is, or whose list contains, an unset variable."""
    if not isinstance(value, Mapping):
        return value
    return {
        key: _drop_unset(inner) for key, inner in value.items() if isinstance(inner, Mapping) or not _holds_unset(inner)
    }


def _holds_unset(value: Any) -> bool:
    if isinstance(value, Mapping | list):
        return any(map(_holds_unset, value.values() if isinstance(value, Mapping) else value))
    return isinstance(value, _Unset)


def _refuse_unset(value: Any, path: str) -> None:
    if isinstance(value, _Unset):
        raise config_error(path, f"the environment variable {value.name} is not set; set it: `export {value.name}=…`.")
    if isinstance(value, Mapping):
        for key, inner in value.items():
            _refuse_unset(inner, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            _refuse_unset(inner, f"{path}[{index}]")
