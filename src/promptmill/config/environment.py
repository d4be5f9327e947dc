"""Variables of the environment that are ours, and those that look as if they should be."""

from __future__ import annotations

import difflib
from collections.abc import Mapping

from promptmill.core.errors import config_error
from promptmill.system import logs

USUAL_KEYS = ("LLM_API_KEY", "OPENAI_API_KEY")
"""Where a key is looked for that no setting names, in this order."""
# Those of deploy/ and scripts/, which configuration files there read, among them.
_KNOWN = tuple(
    f"PROMPTMILL_{name}"
    for name in (
        *("CONFIG", "STATE", "CACHE", "SCRATCH", "ENDPOINTS", "HTTP_TOKEN", "LOG_LEVEL", "PYTHON"),
        *("BASE_URL", "MODEL", "API_KEY", "TORCH_INDEX"),
    )
)
_NEAR = 0.88  # PROMPTMILL_PROVIDER, which a file of the user's may read, is none


def misspelled(environ: Mapping[str, str]) -> list[str]:
    """Return a note about each variable whose name is nearly one of ours, and so is read by nobody."""
    ours = [name for name in environ if name.upper().startswith("PROMPTMI") and name not in _KNOWN]
    return [
        f"{name:.60} is read by nobody; did you mean {near[0]}?"
        for name in sorted(ours)
        if (near := difflib.get_close_matches(name.upper(), _KNOWN, n=1, cutoff=_NEAR))
    ]


def check_log_level(environ: Mapping[str, str]) -> None:
    """Raise `PromptmillError` (`invalid_config`) for a level of PROMPTMILL_LOG_LEVEL that there is none of."""
    level = environ.get(logs.LEVEL, "").strip().lower()
    if level and level not in logs.LEVELS:
        raise config_error(
            logs.LEVEL,
            f"{level[:20]!r} is no level; write {', '.join(logs.LEVELS[:-1])} or {logs.LEVELS[-1]}.",
        )
