"""Finds out from a request's parameters and model whether the endpoint may search the web."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from promptmill.config.model_config import named_models
from promptmill.core.values import JsonObject

SEARCHING_MODEL = r"-search-(?:preview|api)"
"""Matches OpenAI's models that search the web for each chat completion, without a count in `Usage.searches`. Other
models refuse `web_search_options`."""
_SEARCHES_OF_A_TOOL = re.compile(r"(?i)^(?!tool_search).*(?:search|fetch|url_?context)")
_WEB_SEARCH = re.compile(r"(?i)(?:web|google)_?search")
_SEARCHES_OF_A_MODEL = re.compile(rf"{SEARCHING_MODEL}|:online$|(?:^|/)sonar")
_SEARCHES_OF_A_BODY = ("web_search_options", "search_parameters", "enable_search")


def may_search(extra: JsonObject, model: str) -> bool:
    """Return whether the endpoint may search the web or read pages for a request with these parameters. The request
    goes to `model`, unless the parameters name other models.

    >>> may_search({"tools": [{"type": "web_search"}]}, "m"), may_search({"tools": [{"type": "function"}]}, "m")
    (True, False)
    """
    models = [model, *named_models(extra)] if extra else [model]
    if any(map(_SEARCHES_OF_A_MODEL.search, models)):
        return True
    if not extra:
        return False
    return any(map(_SEARCHES_OF_A_TOOL.search, tools_in(extra))) or has_web_search(extra)


def has_web_search(extra: JsonObject) -> bool:
    """Return whether these parameters ask for a web search. A search of files or the reading of a page does not count.

    >>> has_web_search({"tools": [{"googleSearch": {}}]}), has_web_search({"tools": [{"type": "file_search"}]})
    (True, False)
    """
    if any(extra.get(name) not in (None, False) for name in _SEARCHES_OF_A_BODY):
        return True
    is_plugin = any(plugin.get("id") == "web" for plugin in _objects(extra.get("plugins")))
    return is_plugin or any(map(_WEB_SEARCH.search, tools_in(extra)))


def tools_in(extra: JsonObject) -> list[str]:
    """Return the names of the tools that the endpoint itself runs."""
    return [name for tool in _objects(extra.get("tools")) for name in _names_of(tool)]


def _objects(listed: Any) -> list[JsonObject]:
    return [one for one in listed if isinstance(one, Mapping)] if isinstance(listed, list | tuple) else []


def _names_of(tool: JsonObject) -> list[str]:
    """Return the names of a tool that the endpoint runs: its type, the name of Moonshot's built-in function, or the
    field of Gemini's tools. A function of the caller has none."""
    match tool:
        case {"type": "builtin_function", "function": {"name": str(name)}}:
            return [name]
        case {"type": str(kind)}:
            return [kind]
        case {"input_schema": _} | {"function": _}:
            return []
    return [name for name in tool if isinstance(name, str) and name != "functionDeclarations"]
