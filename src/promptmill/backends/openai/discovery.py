"""Finds the endpoint for `backend: auto`, and the model if `model_name` is missing."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urlsplit

import orjson

from promptmill.backends.model_ends import ModelEnd, listed_end, stated_end
from promptmill.backends.openai.endpoint import Endpoint, endpoints, ip_address_of
from promptmill.backends.openai.failures import TransportError, classify_exception
from promptmill.backends.openai.providers import PROFILES, ProviderProfile
from promptmill.backends.openai.refusals import classify_refusal, with_key_hint
from promptmill.backends.openai.transport import Pool
from promptmill.backends.protocol import AutoChoice
from promptmill.config.configuration import Configuration
from promptmill.config.model_config import OF_ANOTHER_ENDPOINT, ModelConfig
from promptmill.core.errors import Code, Named, PromptmillError, config_error, without_controls
from promptmill.core.values import JsonObject
from promptmill.core.wording import listed

_BLOCK = "backend_configs.openai"
_BY_NAME = Named("model_name", text=" ({})")
_LOCAL_S = 2.0
_PROVIDER_S = 5.0
_MODEL_S = 15.0
_NATIVE_S = 2.0
# Explicit page sizes: by default, Anthropic lists 20 models per page, Google 50.
_ALL = {"anthropic": "?limit=1000", "gemini": "?pageSize=1000"}
_OWNERS = {"vllm": "vLLM", "sglang": "SGLang", "llamacpp": "llama.cpp"}


@contextlib.asynccontextmanager
async def connected(config: ModelConfig) -> AsyncIterator[Pool]:
    """Open connections to the configuration's endpoints, for a few requests."""
    pool = Pool(config.settings.backend_configs.openai, 16)
    try:
        yield pool
    finally:
        await pool.aclose()


async def with_model(config: ModelConfig) -> ModelConfig:
    """Return `config` with the endpoint's model if the configuration names no model.

    Raises `PromptmillError` with the list of models if there are several, or with the reason why there is no list.
    """
    first = endpoints(config)[0]
    async with connected(config) as pool:
        try:
            models = await read_models(pool, first, _MODEL_S)
        except PromptmillError as error:
            if error.code is Code.TIMEOUT:
                raise PromptmillError(error.code, f"`model_name` is missing, and {error.message}") from None
            if error.code is not Code.NOT_FOUND:
                raise
            raise config_error(
                f"{_BLOCK}.model_name", "none is named; name one", _BY_NAME, f". {error.message}"
            ) from None
    model = models.only()
    if model is None:
        raise config_error(f"{_BLOCK}.model_name", "none is named; ", *which_models(first, models))
    if model.end is not None and model.end.is_near():
        config = replace(config, warnings=(*config.warnings, f"{model.name} {model.end.words()}."))
    return _naming(config, model.name, f"model {model.name}: the one that {_where(first, models)} has")


async def models_at(config: ModelConfig) -> dict[str, str]:
    """Return the models at the first endpoint, loaded models first, with their ends; `{}` if it lists no models."""
    first = endpoints(config)[0]
    try:
        async with connected(config) as pool:
            models = await read_models(pool, first, _PROVIDER_S)
    except PromptmillError:
        return {}
    ordered = sorted(models.models, key=lambda model: not model.loaded)
    return {model.name: "" if model.end is None else model.end.words() for model in ordered}


def which_models(endpoint: Endpoint, models: ModelList) -> Sequence[str | Named]:
    """Return the sentence that asks the user to choose a model."""
    if not models.models:
        return (f"{_where(endpoint, models)} has no model yet: load or pull a model there.",)
    return f"{_where(endpoint, models)} has {models}: name one of them", _BY_NAME, "."


def _undecided(models: ModelList) -> str:
    return f"it has {models}, and no `model_name` chooses one" if models.models else "it has no model yet"


def _where(endpoint: Endpoint, models: ModelList) -> str:
    return f"{models.server} at {endpoint.name}" if models.server else endpoint.name


def _naming(config: ModelConfig, model: str, why: str) -> ModelConfig:
    settings, operator = (each.with_block("openai", model_name=model) for each in (config.settings, config.operator))
    return replace(
        config, settings=settings, operator=operator, chosen=f"{config.chosen}; {why}" if config.chosen else why
    )


@dataclass(frozen=True, slots=True)
class _Candidate:
    """A candidate endpoint. `values`: the settings that name it in the block `openai` of the configuration."""

    name: str
    values: JsonObject
    config: ModelConfig
    is_local: bool


async def choose(
    configuration: Configuration,
    environ: Mapping[str, str] = os.environ,
    profiles: Sequence[ProviderProfile] = PROFILES,
) -> AutoChoice:
    """Return the settings of the first candidate that works, if any, and the reasons against earlier candidates.

    Candidates are tried in this order: the configuration's endpoint; servers at their usual addresses on this machine;
    providers whose key is set and that have the named model.
    """
    block = configuration.config.settings.backend_configs.openai
    against: list[str] = []
    providers = _providers(configuration, environ, profiles)
    if not block.model_name and providers:
        names = ", ".join(candidate.name for candidate in providers)
        against.append(f"{names}: a key is set, but `{_BLOCK}.model_name` names no model")
        providers = []
    groups = [(_local(configuration, environ, profiles), _LOCAL_S), (providers, _PROVIDER_S)]
    if block.base_url or block.provider:
        groups.insert(0, ([_candidate(configuration, "the endpoint of the configuration", {})], _PROVIDER_S))
    async with connected(configuration.config) as pool:
        for candidates, limit_s in groups:
            answers = await asyncio.gather(*(_ask(pool, candidate, limit_s, environ) for candidate in candidates))
            for candidate, answer in zip(candidates, answers, strict=True):
                choice = _judge(candidate, answer, block.model_name, against)
                if choice is not None:
                    return choice
    return AutoChoice({}, "", tuple(against), keyless=False)


async def around(configuration: Configuration, environ: Mapping[str, str] = os.environ) -> tuple[str, str]:
    """Return the address of a server that answers on this machine, and a provider with a key; each may be `""`."""
    servers = _local(configuration, environ, PROFILES)
    async with connected(configuration.config) as pool:
        answers = await asyncio.gather(*(_ask(pool, server, _LOCAL_S, environ) for server in servers))
    urls = [
        server.values["base_url"][0]
        for server, answer in zip(servers, answers, strict=True)
        if not isinstance(answer, PromptmillError)
    ]
    names = [provider.name for provider in _providers(configuration, environ, PROFILES)]
    return next(iter(urls), ""), next(iter(names), "")


def _judge(
    candidate: _Candidate, answer: tuple[Endpoint, ModelList] | PromptmillError, wanted: str | None, against: list[str]
) -> AutoChoice | None:
    """Return the choice if the candidate works; otherwise append the reason to `against`."""
    if isinstance(answer, PromptmillError):
        if not candidate.is_local or answer.code is not Code.UNREACHABLE:
            against.append(f"{candidate.name}: {answer.message}".rstrip("."))
        return None
    endpoint, models = answer
    model = models.get(wanted) if wanted else models.only()
    if model is None:
        reason = f"it has no {wanted}" if wanted else _undecided(models)
        against.append(f"{candidate.name}: {reason}")
        return None
    name = wanted or model.name
    values = {f"{_BLOCK}.{key}": value for key, value in candidate.values.items()}
    values |= {f"{_BLOCK}.model_name": name, "backend": "openai"}
    why = f"openai with {name}: {_where(endpoint, models)} has it"
    return AutoChoice(values, why, tuple(against), keyless=candidate.is_local)


def _local(
    configuration: Configuration, environ: Mapping[str, str], profiles: Sequence[ProviderProfile]
) -> list[_Candidate]:
    candidates = []
    for profile in profiles:
        if profile.site.public or not profile.site.base_url:
            continue
        url = profile.site.base_url
        if profile.name == "ollama" and (named := environ.get("OLLAMA_HOST", "").strip()):
            url = _ollama_url(named)
        values = {**OF_ANOTHER_ENDPOINT, "base_url": [url], "provider": profile.name}
        candidates.append(_candidate(configuration, profile.name, values, is_local=True))
    return candidates


def _ollama_url(named: str) -> str:
    """Return Ollama's URL for a value of OLLAMA_HOST: a host, a port, both, or a URL (docs/faq.md of Ollama)."""
    host = (named.partition("://")[2] or named).partition("/")[0]
    name, colon, port = host.rpartition(":") if not host.endswith("]") else (host, "", "")
    if not colon:
        name, port = host, "11434"
    address = ip_address_of(name.strip("[]"))
    if not name or (address is not None and address.is_unspecified):  # `0.0.0.0` or `::`
        name = "127.0.0.1"
    return f"http://{name}:{port}/v1"


def _providers(
    configuration: Configuration, environ: Mapping[str, str], profiles: Sequence[ProviderProfile]
) -> list[_Candidate]:
    return [
        _candidate(
            configuration,
            profile.name,
            {**OF_ANOTHER_ENDPOINT, "provider": profile.name, "base_url": [profile.site.base_url]},
        )
        for profile in profiles
        if profile.site.public and profile.site.base_url and environ.get(profile.site.key_env, "").strip()
        if profile.decisions is None  # a provider of deciding models answers no prompts
    ]


def _candidate(configuration: Configuration, name: str, values: JsonObject, *, is_local: bool = False) -> _Candidate:
    put = {f"{_BLOCK}.{key}": value for key, value in values.items()} | {"backend": "openai"}
    return _Candidate(name, values, configuration.with_choice(put, "", keyless=is_local).config, is_local)


async def _ask(
    pool: Pool, candidate: _Candidate, limit_s: float, environ: Mapping[str, str]
) -> tuple[Endpoint, ModelList] | PromptmillError:
    try:
        endpoint = endpoints(candidate.config, environ)[0]
        return endpoint, await read_models(pool, endpoint, limit_s)
    except PromptmillError as error:
        return error


@dataclass(frozen=True, slots=True)
class ListedModel:
    """A chat model. `context`: its context length in tokens. `loaded`: whether the server has it in memory."""

    name: str
    context: int | None = None
    loaded: bool = False
    end: ModelEnd | None = None


@dataclass(frozen=True, slots=True)
class ModelList:
    """The models of one endpoint. `server`: the name of the server program, such as `Ollama 0.9.0`, if known."""

    models: tuple[ListedModel, ...]
    server: str = ""

    def get(self, name: str) -> ListedModel | None:
        """Return the model called `name`. Ollama's names may omit `:latest`; Google lists models as `models/NAME`."""
        same = {name, f"{name}:latest", f"models/{name}"}
        return next((model for model in self.models if model.name in same), None)

    def only(self) -> ListedModel | None:
        """Return the only loaded model, or else the only model; None if there is neither."""
        loaded = [model for model in self.models if model.loaded]
        candidates = loaded if len(loaded) == 1 else self.models
        return candidates[0] if len(candidates) == 1 else None

    def __str__(self) -> str:
        return listed([model.name for model in self.models])


async def read_models(pool: Pool, endpoint: Endpoint, limit_s: float | None = None) -> ModelList:
    """Return the models at `endpoint`. Raises `PromptmillError` if `limit_s` seconds are not enough to list them.

    Formats: `GET /models` of OpenAI, Anthropic and Google; vLLM and SGLang add `max_model_len`. The operator's own
    servers are also read in their own formats: llama.cpp `GET /props` (tools/server/README.md), Ollama `GET
    /api/version`, `/api/tags` and `/api/ps` (docs/api.md), LM Studio `GET /api/v0/models`
    (lmstudio.ai/docs/api/rest-api), text-generation-inference `GET /info`.
    """
    try:
        async with asyncio.timeout(limit_s):
            return await _models(pool, endpoint)
    except TimeoutError:
        text = f"{endpoint.name} did not list its models within {limit_s:g} s."
        raise PromptmillError(Code.TIMEOUT, text) from None


async def _models(pool: Pool, endpoint: Endpoint) -> ModelList:
    base = endpoint.base_url
    try:
        status, headers, body = await pool.page(endpoint, f"{base}/models{_ALL.get(endpoint.dialect, '')}")
    except (TransportError, OSError, ValueError) as error:
        raise classify_exception(error, endpoint).error from None
    payload = _json(body)
    entries = _entries(payload) if 200 <= status < 300 else None
    if status in {401, 403}:
        raise with_key_hint(endpoint, classify_refusal(status, headers, payload or _text(body), endpoint).error, status)
    if not endpoint.own:
        if entries is None:
            raise _no_list(endpoint, status)
        return ModelList(_of_provider(entries, endpoint.profile.name))
    own_models = await _own(pool, endpoint, base, entries or [])
    if entries is None and not own_models.models:
        raise _no_list(endpoint, status)
    return own_models


def _no_list(endpoint: Endpoint, status: int) -> PromptmillError:
    what = f"answered {status}" if status >= 300 else "sent no list of models"
    return PromptmillError(Code.NOT_FOUND, f"{endpoint.name} {what} for {urlsplit(endpoint.base_url).path}/models.")


async def _own(pool: Pool, endpoint: Endpoint, base: str, entries: Sequence[JsonObject]) -> ModelList:
    """Return the models of an operator's own server, with the context lengths and states that the server reports."""
    owner = next((str(entry.get("owned_by")) for entry in entries), "")
    whole = {name for entry in entries if not entry.get("parent") and (name := _name(entry))}  # without LoRA adapters
    models = [model for model in _of_provider(entries, endpoint.profile.name) if model.name in whole]
    root = base.removesuffix("/v1")

    async def native(path: str) -> Any:
        try:
            async with asyncio.timeout(_NATIVE_S):
                status, _, body = await pool.page(endpoint, f"{root}{path}")
        except (TransportError, OSError, ValueError):  # only some kinds of servers have this page
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
    if (studio_models := _entries(studio)) and any("state" in entry for entry in studio_models):
        return ModelList(_of_lm_studio(studio_models), "LM Studio")
    if isinstance(_field(info, "model_id"), str):
        context = _count(_field(info, "max_total_tokens"))
        served = models or [ListedModel(_short(str(_field(info, "model_id"))))]
        return ModelList(tuple(replace(model, context=context) for model in served), "text-generation-inference")
    return ModelList(tuple(models))


def _of_provider(entries: Iterable[JsonObject], provider: str) -> tuple[ListedModel, ...]:
    return tuple(
        ListedModel(name, _context(entry), end=stated_end(entry, listed_end(provider, name)))
        for entry in entries
        if (name := _name(entry))
    )


def _of_ollama(models: Sequence[ListedModel], tags: Any, running: Any) -> tuple[ListedModel, ...]:
    """Return Ollama's models without embedding models; loaded models get their context length."""
    loaded = {str(_field(entry, "name")): _count(_field(entry, "context_length")) for entry in _listed(running)}
    tagged = {str(_field(entry, "name")): _field(_field(entry, "details"), "family") for entry in _listed(tags)}
    names = [name for name in tagged if "bert" not in str(tagged[name])] or [model.name for model in models]
    return tuple(ListedModel(_short(name), loaded.get(name), name in loaded) for name in names)


def _of_lm_studio(entries: Sequence[JsonObject]) -> tuple[ListedModel, ...]:
    return tuple(
        ListedModel(
            name,
            _count(entry.get("loaded_context_length")) or _count(entry.get("max_context_length")),
            entry.get("state") == "loaded",
        )
        for entry in entries
        if (name := _name(entry)) and entry.get("type") != "embeddings"
    )


def _entries(payload: Any) -> list[JsonObject] | None:
    """Return the entries of a list of models in the format of OpenAI (also Anthropic's), of Google, or of Together.

    An entry may be only a name. A model that a load balancer lists once for each replica is returned once.
    """
    entries = payload.get("data", payload.get("models")) if isinstance(payload, dict) else payload
    if not isinstance(entries, list):
        return None
    objects = ({"id": entry} if isinstance(entry, str) else entry for entry in entries)
    return list({str(one.get("id", one.get("name"))): one for one in objects if isinstance(one, dict)}.values())


def _listed(payload: Any) -> list[Any]:
    models = _field(payload, "models")
    return models if isinstance(models, list) else []


def _name(entry: JsonObject) -> str:
    """Return the name of a model; `""` if the entry is not a chat model."""
    if "generateContent" not in entry.get("supportedGenerationMethods", ("generateContent",)):
        return ""
    name = entry.get("id", str(entry.get("name", "")).removeprefix("models/"))
    return _short(without_controls(name)) if isinstance(name, str) else ""


def _context(entry: JsonObject) -> int | None:
    names = ("max_model_len", "max_input_tokens", "inputTokenLimit")  # vLLM, Anthropic, Google
    counts = (_count(entry.get(name)) for name in names)
    return next(filter(None, counts), None) or _count(_field(entry.get("meta"), "n_ctx_train"))


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


def _short(name: str) -> str:
    return name[:120]
