"""The step that requests the provider's own web search, in the form of the provider's API.

The search becomes a part of `Request.extra`, as if `extra_params` contained it. So its prices and sources are handled
like those of every search.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping

from promptmill.backends import registry
from promptmill.backends.protocol import Call, Failure, Outcome
from promptmill.backends.searches import SEARCHING_MODEL, has_web_search
from promptmill.config.model_config import ModelConfig
from promptmill.core.errors import Code, Named, PromptmillError
from promptmill.core.request import Made, Request, once
from promptmill.core.values import JsonDict, JsonObject
from promptmill.features.sources.parameters import Sourced
from promptmill.steps.costs import unbounded_search
from promptmill.steps.step import Loading, Place, Sent, Step

_CHAT = ("openai", "openai")
_OF_RESPONSES: JsonObject = {"tools": [{"type": "web_search"}]}
_SEARCHES: Mapping[tuple[str, str], JsonObject] = {
    ("openai", "responses"): _OF_RESPONSES,
    _CHAT: {"web_search_options": {}},
    # All models and platforms support this version of the tool.
    ("anthropic", "anthropic"): {"tools": [{"type": "web_search_20250305", "name": "web_search"}]},
    ("google", "gemini"): {"tools": [{"google_search": {}}]},
    ("openrouter", "openai"): {"tools": [{"type": "openrouter:web_search"}]},
    ("perplexity", "responses"): _OF_RESPONSES,
    ("xai", "responses"): _OF_RESPONSES,
}
"""The keys that add a search to a request, by provider and dialect. Sources: developers.openai.com/api/docs/guides/
tools-web-search; platform.claude.com/docs/en/agents-and-tools/tool-use/web-search-tool; ai.google.dev/gemini-api/docs/
google-search; openrouter.ai/docs/guides/features/server-tools; docs.perplexity.ai/docs/agent-api; docs.x.ai/developers/
tools (its Live Search, `search_parameters`, answers 410)."""
_OF_CHAT = re.compile(SEARCHING_MODEL)


class WebSearch(Step):
    """Adds the provider's web search to a request."""

    place = Place.FORMED
    wanted_by = ("web",)

    @classmethod
    async def of(cls, loading: Loading) -> Step | None:
        """Return the step."""
        return cls(loading.config, is_limited=loading.budget is not None)

    @classmethod
    def sending(cls, config: ModelConfig, *, by_batch: bool) -> Callable[[Request], Sent]:
        """Return a function that adds the search to a request. The function raises `PromptmillError` if the endpoint
        has no search."""
        del by_batch
        step = cls(config)
        return lambda request: Sent(step.searching(request))

    def __init__(self, config: ModelConfig, *, is_limited: bool = False) -> None:
        """`is_limited`: the process has a spending limit."""
        self._config, self._is_limited = config, is_limited
        self._extras: Made[JsonDict] = {}

    def answer(self, request: Request, call: Call) -> Awaitable[Outcome]:
        """Add the search to a request, and answer it."""
        try:
            searching = self.searching(request)
            if searching is not request and (self._is_limited or call.ledger.budget is not None):
                raise unbounded_search()
            return self.following(searching, call)
        except PromptmillError as error:
            return _failed(Failure(error, request.attempts, concerns_all=True))

    def searching(self, request: Request) -> Request:
        """Return the request with the search. Raises `PromptmillError` (`invalid_config`) if the endpoint has no
        search."""
        wanted = request.sampling
        assert isinstance(wanted, Sourced)
        if not wanted.web:  # the step is called for `web=False`, too
            return request
        extra = request.extra
        return request.changed(extra=once(self._extras, lambda: self._extra(extra), extra))

    def _extra(self, extra: JsonObject) -> JsonDict:
        wanted = _wanted(self._config, str(extra.get("model") or self._config.model))
        if has_web_search(extra):  # the caller already requests a search
            return {**extra}
        joined: JsonDict = {**extra, **wanted}
        if isinstance(tools := extra.get("tools"), list) and "tools" in wanted:
            joined["tools"] = [*tools, *wanted["tools"]]
        return joined


async def _failed(failure: Failure) -> Outcome:
    return failure


def _wanted(config: ModelConfig, model: str) -> JsonObject:
    """Return the keys that add a search to a request. Raises `PromptmillError` (`invalid_config`) if none is known."""
    apis = sorted(registry.apis_of(config))
    forms = [None if api == _CHAT and not _OF_CHAT.search(model) else _SEARCHES.get(api) for api in apis]
    if forms and forms[0] is not None and all(form == forms[0] for form in forms):
        return forms[0]
    providers = sorted({provider for provider, _ in apis})
    if len(providers) == 1 and (dialect := next((api for name, api in _SEARCHES if name == providers[0]), "")):
        raise PromptmillError(
            Code.INVALID_CONFIG,
            f"{model or 'The model'} searches the web at {providers[0]} only by another API.",
            ("Choose that API: ", Named("backend_configs.openai.dialect", dialect), "."),
        )
    others = ", ".join(dict.fromkeys(provider for provider, _ in sorted(_SEARCHES)))
    where = f"the endpoint ({', '.join(providers)})" if apis else f"the backend {config.backend}"
    where = where.removesuffix(" (plain)")
    own = Named("extra_params")
    raise PromptmillError(
        Code.INVALID_CONFIG,
        f"No web search is known of {where}.",
        (f"Choose one of these providers: {others}; or ask for the endpoint's own search with ", own, "."),
    )
