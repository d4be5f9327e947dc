"""Creates, tests and checks backends by their names. The module of a backend is imported when it is needed."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import os
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from typing import TYPE_CHECKING, NamedTuple, cast
from urllib.parse import SplitResult

from promptmill.answers.shown import shown_of
from promptmill.backends.model_ends import ModelEnd, listed_end
from promptmill.backends.protocol import Backend, CheckStage, KeyHolder
from promptmill.config.backends import AUTO, BACKENDS, installed, is_named
from promptmill.config.model_config import ModelConfig
from promptmill.config.own_secrets import CUSTOM_HEADERS
from promptmill.config.settings import KEY_SOURCE, OF_ACCOUNT, USUAL_KEYS, OpenAISettings
from promptmill.core.errors import Code, Named, PromptmillError, Words, config_error, redact
from promptmill.core.feature import in_place_of_embedded, part
from promptmill.core.request import NOT_SHOWN, OF_FORM, FileKind, Sampling, Shown
from promptmill.core.wording import close_matches, did_you_mean
from promptmill.images.files import NOUNS, UNLIMITED

if TYPE_CHECKING:
    from promptmill.backends.batches import BatchApi
    from promptmill.backends.openai.endpoint import FilesTaken
    from promptmill.backends.openai.providers import DecisionLimits, ProviderProfile
    from promptmill.backends.prompt_cache import ModelCache

_HUB_KEYS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
_BRING_A_KEY = OpenAISettings.marked(KEY_SOURCE, OF_ACCOUNT)
_OF_HF = frozenset({"transformers", "huggingface", "hugging-face"})


def check_name(name: str) -> None:
    """Raise `PromptmillError` (`invalid_config`) if no backend has this name."""
    if is_named(name):
        return
    shown, plain = f"{redact(name[:200]):.40}", name.lower()
    if plain in _OF_HF:
        raise config_error("backend", f"there is no backend {shown}; did you mean hf?")
    known = [*BACKENDS, *installed(), AUTO]
    rows = {row[0] for row in providers()} - BACKENDS.keys()
    is_backend = plain not in rows and close_matches(plain, known, 1)
    near = ["…"] if plain == "litellm" else [] if is_backend else close_matches(plain, rows, 1)
    if near:
        raise config_error(
            "backend",
            f"{shown} is not a backend but a server or provider, which the backend openai asks: `backend: openai` and "
            f"`backend_configs: {{openai: {{provider: {near[0]}, model_name: …}}}}`.",
        )
    meant = did_you_mean(plain, known, f"known backends: {', '.join(known)}.")
    raise config_error("backend", f"there is no backend {shown}; {meant}")


async def create(config: ModelConfig) -> Backend:
    """Return the backend that `config` names, not yet loaded. Its module is imported outside of the event loop.

    Raises `PromptmillError` (`invalid_config`) for an unknown name, a missing key, or settings that cannot work.
    """
    check_name(config.backend)
    check_key(config)
    module = await asyncio.to_thread(importlib.import_module, config.record.module)
    return cast("Backend", module.create(config))


async def diagnose(config: ModelConfig, report: Callable[[CheckStage], None]) -> bool:
    """Test the endpoints of `config` in stages, and `report` each stage. Return False if the backend has no test.

    Raises `PromptmillError` (`invalid_config`) for settings that cannot work.
    """
    if not config.record.diagnosis:
        return False
    module = await asyncio.to_thread(importlib.import_module, config.record.diagnosis)
    await module.diagnose(config, report)
    return True


def check_key(config: ModelConfig, environ: Mapping[str, str] = os.environ) -> None:
    """Raise `PromptmillError` (`invalid_config`), before any request, if `provider` needs a key and none is set."""
    block = config.settings.backend_configs.openai
    if not config.record.needs_endpoint or block.base_url or any(getattr(block, name) for name in _BRING_A_KEY):
        return
    wanted = next((row.key_env for row in providers() if row.provider == block.provider), "")
    if not wanted or any(environ.get(name, "").strip() for name in (wanted, *USUAL_KEYS)):
        return
    letters = wanted.replace("_API", "")
    set_ones = [name for name in environ if name != wanted and "KEY" in name.upper() and environ[name].strip()]
    others = [name for name in set_ones if name.upper().replace("_API", "") == letters]
    others += close_matches(wanted, set_ones, n=1, cutoff=0.85)
    meant = (f". {others[0]} is; if it is that one: ", Named("api_key_env", others[0])) if others else ()
    raise config_error(
        "",
        f"{block.provider} needs a key, and {wanted} is not set: `export {wanted}=…`, or name another variable: ",
        Named("api_key_env", "NAME"),
        *meant,
        ".",
    )


def keys_sent(config: ModelConfig) -> list[tuple[str, str]]:
    """Return the hosts that get a key from the environment, each with the name of the variable."""
    if not config.record.needs_endpoint:
        return []
    endpoints = importlib.import_module("promptmill.backends.openai.endpoint").endpoints(config, os.environ)
    sources = [(endpoint.name, endpoint.key_source) for endpoint in endpoints]
    return [(name, source.split()[0]) for name, source in sources if " in the environment" in source]


def renewed_key(config: ModelConfig) -> KeyHolder | None:
    """Return the holder of the endpoints' renewed key, without fetching the key; None if their keys do not change."""
    if not config.record.needs_endpoint or not config.settings.backend_configs.openai.api_key_command:
        return None
    endpoints = importlib.import_module("promptmill.backends.openai.endpoint").endpoints(config, os.environ)
    return next((endpoint.renewed for endpoint in endpoints if endpoint.renewed is not None), None)


def key_variables(config: ModelConfig) -> set[str]:
    """Return the environment variables from which the configuration's backend may read a key, or further headers."""
    block = config.block
    if config.backend == AUTO:
        return {*USUAL_KEYS, *(row[2] for row in providers()), *_header_variables()} - {""}
    if config.record.needs_endpoint:
        of_provider = {row[2] for row in providers() if row[0] == getattr(block, "provider", None)} - {""}
        sources = [getattr(block, name, None) for name in OpenAISettings.marked(KEY_SOURCE)]
        named = getattr(block, "api_key_env", None)
        keys = {named} if named else set[str]() if any(sources) else {*USUAL_KEYS, *of_provider}
        return keys | _header_variables()
    return set(_HUB_KEYS) if config.record.is_engine else set()


def _header_variables() -> set[str]:
    profiles = importlib.import_module("promptmill.backends.openai.providers").PROFILES
    return {CUSTOM_HEADERS, *(variable for profile in profiles for variable in profile.site.header_env.values())}


class Listed(NamedTuple):
    """A provider, as listed for users."""

    provider: str
    base_url: str
    key_env: str
    """The environment variable that usually holds the provider's key."""
    key_is_set: bool
    batches: bool
    """Whether the provider's Batch API is known."""
    batch_discount: float | None
    """The discount of a batch, as a share of the live price; None if it varies by model, or if there are no batches."""


def providers() -> list[Listed]:
    """Return every provider that the openai backend knows, in the order of its table."""
    profiles = importlib.import_module("promptmill.backends.openai.providers").PROFILES
    return [
        Listed(
            profile.name,
            profile.site.base_url,
            profile.site.key_env,
            bool(os.environ.get(profile.site.key_env, "").strip()),
            profile.batch is not None and profile.batch.is_open,
            None if profile.batch is None else profile.batch.discount,
        )
        for profile in profiles
    ]


def provider_named(name: str) -> str | None:
    """Return the provider whose name or alias (such as `claude`) is `name`, or None."""
    module = importlib.import_module("promptmill.backends.openai.providers")
    try:
        return str(module.profile_of(name).name)
    except KeyError:
        return None


def check_batches(config: ModelConfig) -> None:
    """Raise `PromptmillError` (`unsupported`) if the backend of `config` has no Batch API; `auto` may have one."""
    if config.backend != AUTO and not config.record.needs_endpoint:
        raise PromptmillError(
            Code.UNSUPPORTED, f"The {config.backend} backend has no Batch API.", "Leave `batch` out: it answers live."
        )


def check_files(config: ModelConfig, kind: FileKind) -> None:
    """Raise `PromptmillError` (`unsupported`) unless the endpoints of `config` are known to take files of this kind
    (with a schema or choices, if these are set). `auto` is not checked, because it may find such endpoints."""
    if config.backend == AUTO:
        return
    noun = NOUNS[kind]
    if not config.record.needs_endpoint:
        raise _takes_no_files(f"The {config.backend} backend takes no {noun} as it is", kind)
    block = config.settings.backend_configs.openai
    if (limits := _files_taken(block).get(kind)) is None:
        remedy = Named("backend_configs.openai.files", [kind], ", or say that it takes them: {}")
        is_unknown = kind in _files_taken(block.model_copy(update={"files": [kind]}))
        text = f"{config.model} is not known to take a {noun} as it is"
        raise _takes_no_files(text, kind, *((remedy,) if is_unknown else ()))
    if not limits.takes_schema and config.settings.sampling_params.sets(OF_FORM):
        text = f"{config.model} takes no schema and no choices beside a {noun}."
        raise PromptmillError(Code.UNSUPPORTED, text, "Ask for a text, or choose another endpoint.")


def file_limits(config: ModelConfig) -> FilesTaken:
    """Return the limits of files of each kind in a request to the endpoints of `config`."""
    known = _files_taken(config.settings.backend_configs.openai) if config.record.needs_endpoint else {}
    return {**UNLIMITED, **known}


def _files_taken(block: OpenAISettings) -> FilesTaken:
    module = importlib.import_module("promptmill.backends.openai.endpoint")
    return cast("FilesTaken", module.files_taken(block))


def _takes_no_files(text: str, kind: FileKind, *more: Named) -> PromptmillError:
    ways: Words = ("Send ", Named("pdf", "text"), " or ", Named("pdf", "images"))
    words = ways if kind == "pdf" else ("Choose an endpoint that takes it",)
    return PromptmillError(Code.UNSUPPORTED, f"{text}.", (*words, *more, "."))


@contextlib.asynccontextmanager
async def batches(config: ModelConfig, path: str) -> AsyncIterator[BatchApi]:
    """Open the Batch API of the first endpoint of `config`, for requests with this `Request.path`.

    Raises `PromptmillError` (`unsupported`) for an engine, and for an endpoint without such batches.
    """
    check_batches(config)
    module = importlib.import_module("promptmill.backends.openai.endpoint")
    connect = importlib.import_module("promptmill.backends.openai.batches.connect")
    endpoint = module.endpoints(config, os.environ)[0]
    async with connect.open_batches(endpoint, config.settings.backend_configs.openai, path) as api:
        yield api


def batch_rate(config: ModelConfig) -> float | None:
    """Return the batch price at the provider of `config`, as a share of the live price; None if it is unknown."""
    known = {profile.batch.discount for profile in _answering(config) if profile.batch is not None}
    discount = known.pop() if len(known) == 1 else None
    return None if discount is None else 1.0 - discount


def prompt_cache_of(config: ModelConfig) -> ModelCache | None:
    """Return how an endpoint of `config` caches the beginnings of prompts for its model; None if that is unknown."""
    if not config.record.needs_endpoint:
        return None
    try:
        return next(filter(None, (profile.prompt_cache.of(config.model) for profile in _profiles(config))), None)
    except PromptmillError:  # an unknown provider or a missing URL: creating the endpoint reports it
        return None


def keeps_schemas(config: ModelConfig) -> bool:
    """Return whether every answer follows its request's schema, which engines and some providers guarantee."""
    if not config.record.needs_endpoint:
        return config.record.keeps_schemas
    profiles = _working(config)
    return bool(profiles) and all(profile.json.form in {"strict", "grammar"} for profile in profiles)


def takes_schemas(config: ModelConfig) -> bool:
    """Return whether the configuration's endpoints get the schema of a request as a schema, not only in the prompt."""
    return bool(profiles := _working(config)) and all(not profile.json.is_in_words for profile in profiles)


def may_think(config: ModelConfig, model: str, sampling: Sampling) -> bool:
    """Return whether models at the endpoints of `config` are known to think before they answer such a request."""
    wanted, effort = sampling.enable_thinking, sampling.reasoning_effort
    return any(profile.may_think(model, wanted=wanted, effort=effort) for profile in _working(config))


def shows_forms(config: ModelConfig) -> bool:
    """Return whether the model of `config` sees the schema of a request, or its backend reads `Request.form`."""
    if not config.record.needs_endpoint:
        return config.record.shows_forms
    module = importlib.import_module("promptmill.backends.openai.endpoint")
    try:
        return cast("bool", module.shows_forms(config.block))
    except PromptmillError:  # an unknown provider or a missing URL: creating the endpoint reports it
        return True


def shown_by(config: ModelConfig, sampling: Sampling | None = None) -> Shown:
    """Return the words by which prompts show the model its answer's form. `sampling` replaces the configured one."""
    sampling = sampling or config.settings.sampling_params
    if not sampling.sets(OF_FORM) or decides(config):
        return NOT_SHOWN
    return shown_of(sampling, shows=shows_forms(config))


def account_decides_tier(config: ModelConfig) -> bool:
    """Return whether the account at a provider of `config` determines the tier of a request that names no tier."""
    return any(profile.account_tier for profile in _profiles(config))


def _profiles(config: ModelConfig) -> list[ProviderProfile]:
    """Return the profiles of the configuration's endpoints and of the provider that it names."""
    module = importlib.import_module("promptmill.backends.openai.providers")
    provider = getattr(config.block, "provider", None)
    return [*map(module.profile_at, addresses(config)), *([module.profile_of(provider)] if provider else [])]


def _answering(config: ModelConfig) -> list[ProviderProfile]:
    """Return the profile of the named provider; if no provider is named, the profiles of the configured addresses."""
    module = importlib.import_module("promptmill.backends.openai.providers")
    provider = getattr(config.block, "provider", None)
    return [module.profile_of(provider)] if provider else [*map(module.profile_at, addresses(config))]


def _working(config: ModelConfig) -> list[ProviderProfile]:
    """Return the profiles of `_answering`; an empty list if a provider is unknown or a URL is missing. (The creation
    of the endpoint reports this.)"""
    try:
        return _answering(config)
    except (PromptmillError, KeyError):
        return []


def known_provider(config: ModelConfig) -> str:
    """Return the provider that the configuration names, or the only one at its addresses; `""` if it is unknown."""
    names = {profile.name for profile in _answering(config)}
    return names.pop() if len(names) == 1 and names != {"plain"} else ""


def end_of(config: ModelConfig) -> ModelEnd | None:
    """Return the end of the configuration's model in the table of ends, or None."""
    profiles = _working(config) if config.record.needs_endpoint else []
    return next((end for one in profiles if one.site.public and (end := listed_end(one.name, config.model))), None)


def ends_soon(configs: Iterable[ModelConfig]) -> list[str]:
    """Return a sentence for each model that a job may outlast, by the table of ends."""
    ends = {config.model: end for config in configs if not config.chosen and (end := end_of(config)) is not None}
    return [f"{model} {end.words()}." for model, end in ends.items() if end.is_near()]


def addresses(config: ModelConfig) -> list[SplitResult]:
    """Return the addresses of `config`; none for an engine. Raises `PromptmillError` (`invalid_config`)."""
    if not config.record.needs_endpoint:
        return []
    module = importlib.import_module("promptmill.backends.openai.endpoint")
    return cast("list[SplitResult]", module.addresses(config.block))


def endpoints_of_call(config: ModelConfig) -> list[str]:
    """Return the endpoints that a call chose and the operator did not name; none for an engine."""
    if not config.record.needs_endpoint or not config.from_call or config.trust_client:
        return []
    module = importlib.import_module("promptmill.backends.openai.endpoint")
    return cast("list[str]", module.endpoints_of_call(config, os.environ))


def apis_of(config: ModelConfig) -> set[tuple[str, str]]:
    """Return the provider (`plain` if unknown) and the dialect of each endpoint of `config`; empty for an engine.

    Raises `PromptmillError` (`invalid_config`) for an endpoint that cannot work.
    """
    if not config.record.needs_endpoint:
        return set()
    module = importlib.import_module("promptmill.backends.openai.endpoint")
    return cast("set[tuple[str, str]]", module.apis(config.block))


def decisions_of(config: ModelConfig) -> DecisionLimits | None:
    """Return the limits of a request to the endpoints of `config` if their models decide; None for an engine, and
    if the models write. Raises `PromptmillError` (`invalid_config`) if some models decide and others write."""
    if not config.record.needs_endpoint:
        return None
    module = importlib.import_module("promptmill.backends.openai.endpoint")
    return cast("DecisionLimits | None", module.decisions(config.block))


def decides(config: ModelConfig) -> bool:
    """Return whether the models at the configuration's endpoints decide, and write no text."""
    try:
        return decisions_of(config) is not None
    except PromptmillError:  # an endpoint that cannot work: creating it reports the error
        return False


def decision_price(config: ModelConfig, model: str) -> float | None:
    """Return the price of a million input tokens of a deciding model, in US dollars; None if it is unknown."""
    module = importlib.import_module("promptmill.backends.openai.providers")
    try:
        rows = [module.profile_named(name).decisions for name, _ in apis_of(config)]
    except PromptmillError:  # an endpoint that cannot work: creating it reports the error
        return None
    prices = {None if row is None else row.price(model) for row in rows}
    return cast("float | None", prices.pop()) if len(prices) == 1 else None


def answerer(config: ModelConfig) -> str:
    """Return the model that answers requests with the parameters of `config`. It is not the configured model if an
    encoder answers them. Raises the error that such a request would get, if it would certainly be refused."""
    if config.record.compares:
        return str(part(f"{config.record.module}:answerer")(config))
    others = (each.answerer(config) for each in in_place_of_embedded()) if config.is_embedded else ()
    return next(filter(None, others), config.model)


def other_paths(config: ModelConfig) -> frozenset[str]:
    """Return the paths, other than chat completions, that the backend of `config` answers, such as `/embeddings`."""
    others = [each.OTHER_PATHS for each in in_place_of_embedded()] if config.is_embedded else []
    return config.record.other_paths.union(*others)


def check_path(config: ModelConfig, path: str) -> None:
    """Raise `PromptmillError` (`unsupported`) if the backend of `config` does not answer requests with this `path`."""
    if path and path not in other_paths(config):
        remedy = "Choose an endpoint with embeddings, or `backend: encoder`, which runs on this machine."
        raise PromptmillError(Code.UNSUPPORTED, f"The backend {config.backend} makes no embeddings.", remedy)


def provider_of(config: ModelConfig) -> str:
    """Return the name of the provider at the configured addresses; for engines and other hosts, the backend's name."""
    module = importlib.import_module("promptmill.backends.openai.providers")
    try:
        profiles = {module.profile_at(url).name for url in addresses(config)}
    except PromptmillError:  # an unknown provider or a missing URL
        return config.backend
    return profiles.pop() if len(profiles) == 1 and module.PLAIN.name not in profiles else config.backend
