"""`promptmill cache`."""

from __future__ import annotations

from typing import Any

import orjson

from promptmill.cli.terminal import say
from promptmill.config.loading import Configuration
from promptmill.core.wording import counted
from promptmill.service.answer_cache import AnswerCache, path_of


def show(configuration: Configuration, *, clear: bool, as_json: bool) -> int:
    """Print what the cache of the configuration holds, or clear it first. Raises `PromptmillError` (`storage`)."""
    wanted = configuration.plan.operator.cache
    found: dict[str, Any] = {"in_use": bool(wanted)}
    path = path_of(wanted or True)
    if path.exists():
        cache = AnswerCache(path)
        try:
            if clear:
                found["cleared"] = cache.clear()
            found |= cache.summary()
        finally:
            cache.close()
    else:
        found |= {"path": str(path), "answers": 0, "bytes": 0, "oldest_s": None}
    if as_json:
        say(orjson.dumps(found).decode())
        return 0
    if clear:
        say(f"{counted(found.get('cleared', 0), 'answer')} forgotten")
    say(f"{counted(found['answers'], 'answer')}, {found['bytes'] / 2**20:.1f} MiB, in {found['path']}")
    if not wanted:
        say("not in use: set `cache: true`")
    return 0
