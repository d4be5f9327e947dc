"""The models of an endpoint, and the name of the server if it is one of the operator's own.

Forms: OpenAI's `GET /models`; vLLM and SGLang add `max_model_len`, llama.cpp `GET /props` (tools/server/README.md),
Ollama `GET /api/version`, `/api/tags` and `/api/ps` (docs/api.md), LM Studio `GET /api/v0/models`
(lmstudio.ai/docs/api/rest-api), text-generation-inference `GET /info`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol
from urllib.parse import urlsplit, urlunsplit

import orjson

from promptmill.backends.openai.endpoint import COMPLETIONS, Endpoint
from promptmill.backends.openai.refusals import classify_refusal, with_key_hint
from promptmill.backends.openai.retry import classify_exception
from promptmill.core.errors import Code, PromptmillError, without_controls

_LARGEST_PAGE = 8 << 20  # routers list hundreds of models with their descriptions
_MOST_SHOWN = 12
_LONGEST_NAME = 120
_NATIVE_S = 2.0
_OWNERS = {"vllm": "vLLM", "sglang": "SGLang", "llamacpp": "llama.cpp"}


@dataclass(frozen=True, slots=True)
class ListedModel:
    """A model that answers chats. `context` is its length in tokens; `loaded`: in memory now."""

    name: str
    context: int | None = None
    loaded: bool = False


@dataclass(frozen=True, slots=True)
class ModelList:
    """The models of one endpoint; `server` names the program, such as `Ollama 0.9.0`, where it is known."""

    models: tuple[ListedModel, ...]
    server: str = ""

    def get(self, name: str) -> ListedModel | None:
        """Return the model called `name`; Ollama's may leave out `:latest`, Google's are listed as `models/NAME`."""
        same = {name, f"{name}:latest", f"models/{name}"}
        return next((model for model in self.models if model.name in same), None)

    def only(self) -> ListedModel | None:
        """Return the model that is meant when none is named: the only one, or the only one that is loaded."""
        loaded = [model for model in self.models if model.loaded]
        candidates = loaded if len(loaded) == 1 else self.models
        return candidates[0] if len(candidates) == 1 else None

    def __str__(self) -> str:
        names = [model.name for model in self.models]
        more = f" and {len(names) - _MOST_SHOWN} more" if len(names) > _MOST_SHOWN else ""
        return ", ".join(names[:_MOST_SHOWN]) + more


class Pages(Protocol):
    """Fetches pages of an endpoint, with its key."""

    async def page(self, endpoint: Endpoint, url: str, largest: int) -> tuple[int, Mapping[str, str], bytes]:
        """Return status, headers and body. Raises what a transport and the system raise."""
        ...


def base_url(endpoint: Endpoint) -> str:
    """Return the URL that an endpoint's paths begin with, such as `http://localhost:8000/v1`."""
    parts = urlsplit(endpoint.url)
    return urlunsplit(parts._replace(path=parts.path.removesuffix(COMPLETIONS), query=""))


async def read_models(pages: Pages, endpoint: Endpoint) -> ModelList:
    """Return the models at `endpoint`. Raises `PromptmillError` with why they cannot be listed."""
    base = base_url(endpoint)
    try:
        status, headers, body = await pages.page(endpoint, f"{base}/models", _LARGEST_PAGE)
    except Exception as error:  # noqa: BLE001 (whatever the way there brings)
        raise classify_exception(error, endpoint).error from None
    payload = _json(body)
    entries = _entries(payload) if 200 <= status < 300 else None
    if status in {401, 403}:
        raise with_key_hint(endpoint, classify_refusal(status, headers, payload or _text(body), endpoint).error, status)
    if not endpoint.own:
        if entries is None:
            raise _no_list(endpoint, status)
        return ModelList(tuple(ListedModel(name) for entry in entries if (name := _name(entry))))
    found = await _own(pages, endpoint, base, entries or [])
    if entries is None and not found.models:
        raise _no_list(endpoint, status)
    return found


def _no_list(endpoint: Endpoint, status: int) -> PromptmillError:
    what = f"answered {status}" if status >= 300 else "sent no list of models"
    return PromptmillError(Code.NOT_FOUND, f"{endpoint.name} {what} for {urlsplit(base_url(endpoint)).path}/models.")


async def _own(pages: Pages, endpoint: Endpoint, base: str, entries: Sequence[Mapping[str, Any]]) -> ModelList:
    """Return the models of a server of the operator's own, with what its own pages say about them."""
    owner = next((str(entry.get("owned_by")) for entry in entries), "")
    whole = {name for entry in entries if not entry.get("parent") and (name := _name(entry))}  # else LoRA adapters
    models = [ListedModel(name, _context(entry)) for entry in entries if (name := _name(entry)) in whole]
    root = base.removesuffix("/v1")

    async def native(path: str) -> Any:
        try:
            async with asyncio.timeout(_NATIVE_S):
                status, _, body = await pages.page(endpoint, f"{root}{path}", _LARGEST_PAGE)
        except Exception:  # noqa: BLE001 (a page that another server would have)
            return None
        return _json(body) if status == 200 else None

    if server := _OWNERS.get(owner):
        if server != "llama.cpp":
            return ModelList(tuple(models), server)
        props = await native("/props")
        context = _count(_field(_field(props, "default_generation_settings"), "n_ctx"))
        return ModelList(tuple(replace(model, context=context or model.context) for model in models), server)
    ollama, studio, info = await asyncio.gather(native("/api/version"), native("/api/v0/models"), native("/info"))
    if isinstance(version := _field(ollama, "version"), str):
        tags, running = await asyncio.gather(native("/api/tags"), native("/api/ps"))
        return ModelList(_of_ollama(models, tags, running), f"Ollama {version:.20}")
    if (found := _entries(studio)) and any("state" in entry for entry in found):
        return ModelList(_of_lm_studio(found), "LM Studio")
    if isinstance(_field(info, "model_id"), str):
        context = _count(_field(info, "max_total_tokens"))
        listed = models or [ListedModel(str(_field(info, "model_id"))[:_LONGEST_NAME])]
        return ModelList(tuple(replace(model, context=context) for model in listed), "text-generation-inference")
    return ModelList(tuple(models))


def _of_ollama(models: Sequence[ListedModel], tags: Any, running: Any) -> tuple[ListedModel, ...]:
    """Return Ollama's models: those of embeddings left out, and with their context as they are loaded."""
    loaded = {str(_field(entry, "name")): _count(_field(entry, "context_length")) for entry in _listed(running)}
    tagged = {str(_field(entry, "name")): _field(_field(entry, "details"), "family") for entry in _listed(tags)}
    names = [name for name in tagged if "bert" not in str(tagged[name])] or [model.name for model in models]
    return tuple(ListedModel(name[:_LONGEST_NAME], loaded.get(name), name in loaded) for name in names)


def _of_lm_studio(entries: Sequence[Mapping[str, Any]]) -> tuple[ListedModel, ...]:
    return tuple(
        ListedModel(
            name,
            _count(entry.get("loaded_context_length")) or _count(entry.get("max_context_length")),
            entry.get("state") == "loaded",
        )
        for entry in entries
        if (name := _name(entry)) and entry.get("type") != "embeddings"
    )


def _entries(payload: Any) -> list[Mapping[str, Any]] | None:
    """Return the entries of a list of models: OpenAI's form, or Together's, which is the bare list."""
    found = payload.get("data") if isinstance(payload, dict) else payload
    return [entry for entry in found if isinstance(entry, dict)] if isinstance(found, list) else None


def _listed(payload: Any) -> list[Any]:
    found = _field(payload, "models")
    return found if isinstance(found, list) else []


def _name(entry: Mapping[str, Any]) -> str:
    name = entry.get("id")
    return without_controls(name)[:_LONGEST_NAME] if isinstance(name, str) else ""


def _context(entry: Mapping[str, Any]) -> int | None:
    return _count(entry.get("max_model_len")) or _count(_field(entry.get("meta"), "n_ctx_train"))


def _count(value: Any) -> int | None:
    return value if type(value) is int and value > 0 else None


def _field(value: Any, name: str) -> Any:
    return value.get(name) if isinstance(value, dict) else None


def _json(body: bytes) -> Any:
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        return None


def _text(body: bytes) -> str:
    return body[:4096].decode("utf-8", "replace")
