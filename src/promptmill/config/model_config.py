"""Resolves the configuration of each named model, and applies choices from the command line to it."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from types import MappingProxyType
from typing import Any

from pydantic import ValidationError

from promptmill.config import backends
from promptmill.config.backends import AUTO, BackendRecord
from promptmill.config.explain import explain
from promptmill.config.settings import KEY_SOURCE, OF_ENDPOINT, Block, ModelSettings, OpenAISettings, Settings
from promptmill.core.bounds import LONGEST_SETTINGS
from promptmill.core.errors import Named, PromptmillError, config_error, input_error
from promptmill.core.money import prices_in
from promptmill.core.request import (
    BESIDE,
    OF_OPERATOR_NAMES,
    PROTECTING_NAMES,
    Sampling,
    check_of_data,
    nested,
    protected,
    replacing_choices,
)
from promptmill.core.values import JsonDict, JsonObject
from promptmill.core.wording import close_matches
from promptmill.system.call_files import FileRule
from promptmill.system.safe_open import roots_of

DEFAULT = "default"
_WHICH_ENDPOINT = frozenset({"base_url", "provider"})
OF_ANOTHER_ENDPOINT: JsonObject = MappingProxyType(
    {name: OpenAISettings.model_fields[name].default for name in OpenAISettings.marked(OF_ENDPOINT)}
)
"""The settings of an endpoint, all unset: another endpoint does not inherit them."""
_NO_KEY: JsonObject = MappingProxyType(dict.fromkeys(OpenAISettings.marked(KEY_SOURCE)))
_OWN = ("system_prompt", "image_tag", "idle_unload")
TOKEN_LIMITS = ("max_tokens", "max_completion_tokens", "max_output_tokens", "max_new_tokens")
"""The parameter names for the limit of answer tokens, at endpoints and engines."""
OTHER_LIMIT = re.compile(r"(?i)^(?!.*prompt).*(tokens|predict|max_?length)")
"""Names of limits that some endpoints support and others ignore."""


@dataclass(frozen=True)
class ModelConfig:
    """The settings of one model: the backend to load and how to run it.

    `from_call`: the keys in the chosen backend's block that a call set. `operator`: the settings without the call's
    changes; they limit the keys, headers and remote code that a call may use.
    """

    settings: Settings
    operator: Settings
    from_call: frozenset[str] = frozenset()
    trust_client: bool = False
    warnings: tuple[str, ...] = ()
    """Notes for the user about settings that promptmill does not follow exactly."""
    chosen: str = ""
    """The backend or model that promptmill chose because the configuration leaves it open, with the reason."""
    keyless: bool = False
    """Whether promptmill itself found the endpoint: then no key from the environment is sent to it."""
    name: str = DEFAULT
    """The model's name in calls and rows."""
    file: Settings | None = None
    """The settings of the whole file, if `operator` has only the settings of a single model."""
    call_files: FileRule | None = None
    """The rule for files in a client's calls; None for the operator's own programs."""
    files_to: frozenset[str] | None = None
    """Of a call's job on files: the endpoints chosen by calls that may get their text. None: any endpoint may."""

    @cached_property
    def file_rule(self) -> FileRule:
        """The rule for files in requests on this configuration."""
        return self.call_files or FileRule(roots_of(self.settings.allowed_roots))

    @cached_property
    def fallback(self) -> list[str]:
        """The models that, in this order, answer the items that this model could not answer."""
        model = self.operator.models.get(self.name)
        return [] if model is None else [other for other in dict.fromkeys(model.fallback) if other != self.name]

    @cached_property
    def backend(self) -> str:
        """The chosen backend's name."""
        return self.settings.backend

    @cached_property
    def record(self) -> BackendRecord:
        """The record of the chosen backend."""
        return backends.record(self.backend)

    @cached_property
    def block(self) -> Block | None:
        """The settings of the chosen backend; None for `auto` and for an unknown name."""
        return getattr(self.settings.backend_configs, self.backend, None)

    @cached_property
    def model(self) -> str:
        """The model in the chosen backend's block; `""` if the block names none."""
        return getattr(self.block, self.record.model_key, None) or ""

    @property
    def is_embedded(self) -> bool:
        """Whether the model is the embedded model."""
        return self.record.is_engine and self.model == backends.EMBEDDED

    def is_same_model(self, other: ModelConfig) -> bool:
        """Return whether both configurations have the same backend and model."""
        return (self.backend, self.model) == (other.backend, other.model)

    def key(self, name: str) -> str:
        """Return the path of a key that each model sets for itself, such as `models.fast.price`."""
        return name if self.file is None else f"models.{self.name}.{name}"

    def with_model(self, name: str) -> ModelConfig:
        """Return the configuration for another model of the same backend, without the configured price."""
        if name == self.model or self.block is None:
            return self
        settings = self.settings.with_block(self.backend, **{self.record.model_key: name})
        return replace(self, settings=settings.model_copy(update={"price": None}))

    @property
    def has_schema(self) -> bool:
        """Whether the answers follow a schema, or OpenAI's JSON mode."""
        return self.settings.sampling_params.response_format is not None

    @property
    def replicas(self) -> int:
        """The number of engines for the model, each on its part of the GPUs."""
        return getattr(self.block, "replicas", 1)

    @cached_property
    def is_open(self) -> bool:
        """Whether promptmill must choose the backend or the model before use."""
        return self.backend == AUTO or (bool(self.record.choice) and not self.model)

    @cached_property
    def operator_model(self) -> str:
        """The model that the configuration names for the chosen backend."""
        return replace(self, settings=self.operator).model

    def with_sampling(self, changes: JsonObject) -> ModelConfig:
        """Return the configuration for a call with `changes` to `sampling_params`. Null removes a parameter.

        `changes` may include tools and `logprobs`. Raises `PromptmillError` (`invalid_config`).
        """
        if not changes:
            return self
        check_size(changes)
        beside = {name: value for name, value in changes.items() if name in BESIDE}
        changes = {name: value for name, value in changes.items() if name not in beside}
        ours = self.settings.sampling_params.given()
        try:
            sampling = Sampling.model_validate(ours | replacing_choices(protected(changes, ours)))
        except ValidationError as error:
            raise config_error("", explain(error, Sampling, "sampling_params.")) from None
        extra = {**self.settings.extra_params, **beside} if beside else self.settings.extra_params
        changed = {"sampling_params": sampling, "extra_params": extra}
        return replace(self, settings=self.settings.model_copy(update=changed))

    @cached_property
    def capped(self) -> ModelConfig:
        """The configuration for a call without sampling parameters, within `client_limits`."""
        return self.within_limits({})

    def within_limits(self, asked: JsonObject) -> ModelConfig:
        """Return the configuration for a call with the sampling parameters `asked`, within `client_limits`.

        Raises `PromptmillError` (`invalid_config`) if `asked` exceeds them, or has a parameter for the operator alone.
        """
        limits, ours = self.operator.client_limits, self.operator.sampling_params
        check_of_data(asked, ours)
        for name in () if self.trust_client else sorted(OF_OPERATOR_NAMES & asked.keys()):
            if asked[name] is not None and not ours.sets([name]):
                raise config_error(
                    f"sampling_params.{name}",
                    "this server takes it only from its operator, whose configuration may set it.",
                )
        most, sampling = limits.max_tokens, self.settings.sampling_params
        if self.trust_client or most is None or (sampling.max_tokens or most + 1) <= most:
            return self
        if asked.get("max_tokens") is not None:
            raise config_error(
                "sampling_params.max_tokens", f"this server allows at most {most} tokens per answer; lower it."
            )
        capped = sampling.model_copy(update={"max_tokens": most})
        return replace(self, settings=self.settings.model_copy(update={"sampling_params": capped}))


def named(raw: JsonObject) -> JsonObject:
    """Return the block `models` of a file's content, by model name."""
    models = raw.get("models")
    return models if isinstance(models, Mapping) else {}


def default_name(raw: JsonObject) -> str:
    """Return the model for calls that name none. `raw`: the content of the file."""
    models = named(raw)
    if chosen := raw.get("default_model"):
        return str(chosen)
    if not models or DEFAULT in models:
        return DEFAULT
    return DEFAULT if raw.get("backend") or raw.get("backend_configs") else str(next(iter(models)))


def names(raw: JsonObject) -> list[str]:
    """Return the names of all models, the default one first."""
    first = default_name(raw)
    own = [DEFAULT] if raw.get("backend") or raw.get("backend_configs") else []
    return list(dict.fromkeys([first, *named(raw), *own]))


def raw_of(raw: JsonObject, name: str) -> JsonDict:
    """Return the content of the file as if `name` were its only model.

    A named model has its own block. It does not inherit the file's block, whose key and price are another model's.
    """
    model = named(raw).get(name)
    if not isinstance(model, Mapping):
        return dict(raw)
    own_keys = ModelSettings.model_fields.keys() - backends.BACKENDS.keys()
    block = next((key for key in model if key not in own_keys and backends.is_named(key)), None)
    backend = model.get("backend") or block
    own: JsonDict = {
        "backend": backend,
        "backend_configs": {backend: model.get(block) or {}} if block and isinstance(backend, str) else {},
        "sampling_params": _merged(raw.get("sampling_params"), model.get("sampling_params")),
        "extra_params": model.get("extra_params") or {},
        "price": model.get("price"),
    }
    return {**raw, **own, **{key: model[key] for key in _OWN if model.get(key) is not None}}


def _merged(below: Any, above: Any) -> Any:
    """Return `above` merged over `below`. If one of them is no mapping, return it: the settings refuse it later."""
    wrong = [value for value in (above, below) if not isinstance(value, Mapping | None)]
    return wrong[0] if wrong else {**(below or {}), **protected(above or {}, below or {})}


def endpoint_over(own: JsonObject, given: JsonObject) -> JsonDict:
    """Return the keys of `openai` by which `given` overrides the file's block `own`.

    A provider in `given` replaces the file's address by the provider's address; an address in `given` replaces the
    file's provider. Then the file's key and headers are not sent: they belong to the file's endpoint. `given` may have
    both a provider and an address. A key in `given` replaces the file's key, whatever the source of that key.
    """
    provider, address = given.get("provider"), given.get("base_url")
    other_provider = provider and not address and provider != own.get("provider")
    other_address = address and not provider and own.get("provider") and not own.get("base_url")
    none = OF_ANOTHER_ENDPOINT if other_provider or other_address else {}
    no_key = _NO_KEY if any(given.get(source) for source in _NO_KEY) else {}
    return {**none, **no_key, **given}


# The timeouts for flex: an answer may take a quarter of an hour, and capacity may be missing for hours ("429 Resource
# Unavailable", which costs nothing).
_FLEX = {"timeout": [10, 900], "patience": 86_400, "max_delay": 300}


def settings_of(
    raw: JsonObject,
    *,
    backend: str | None,
    endpoint: JsonObject,
    model: str | None,
    sampling: JsonObject,
    tier: str | None = None,
    price: object = None,
) -> dict[tuple[str, ...], Any]:
    """Return the settings that result from choices on the command line, by path.

    `raw`: the file's content. `endpoint`: keys of `openai`. `tier`: a service tier. `price`: see `prices_in`. `model`:
    a name in the file's `models`; if `backend` or `endpoint` is set, or the file has no `models`, a model of the
    backend.

    Raises `PromptmillError`: `invalid_config` for a key that the backend lacks, `invalid_input` for an unknown model.
    """
    values: dict[tuple[str, ...], Any] = {}
    of_backend = backend or endpoint.keys() & _WHICH_ENDPOINT
    name = default_name(raw) if of_backend or model not in names(raw) else model
    if name == model:
        values["default_model",] = name
        model = None
    elif of_backend and name != DEFAULT:
        values["default_model",] = name = DEFAULT
    is_named = name in named(raw)
    model_raw = raw_of(raw, name)
    own = str(model_raw.get("backend") or Settings.model_fields["backend"].default)
    chosen = backend or ("openai" if endpoint.keys() & _WHICH_ENDPOINT else own)
    if chosen != own:
        values["backend",] = chosen
    if model is not None and named(raw) and not of_backend:
        raise unknown_model(model, names(raw), Named("model"))
    answering = "openai" if chosen == backends.AUTO else chosen  # `auto` may resolve to openai
    record = backends.record(answering)
    if (endpoint or tier) and not record.needs_endpoint:
        raise config_error(
            Named(next(iter(endpoint), "tier")), f"works with the backend openai only, and the backend is {chosen}."
        )
    above = ("models", name) if is_named else ("backend_configs",)
    block = (*above, answering)
    own_blocks = model_raw.get("backend_configs")
    own_block = own_blocks.get(answering) if isinstance(own_blocks, Mapping) else None
    given = endpoint_over(own_block if isinstance(own_block, Mapping) else {}, endpoint)
    values.update({(*block, key): value for key, value in given.items()})
    if model is not None:
        values[*block, record.model_key] = model
    if tier is not None:
        values[*(("models", name) if is_named else ()), "extra_params", "service_tier"] = tier
    if tier == "flex":
        values.update({(*block, key): value for key, value in _FLEX.items() if key not in (own_block or {})})
    for priced, value in prices_in(price).items():
        of_model = priced or (name if is_named else model or given.get(record.model_key) or _own(own_block, record))
        values[("prices", of_model) if of_model else ("price",)] = value
    for key, value in replacing_choices(sampling).items():
        if key not in BESIDE:
            values["sampling_params", key] = value
        else:  # stored with a named model, which inherits none of these parameters from the file
            values[*(("models", name) if is_named else ()), "extra_params", key] = value
    return values


def _own(block: Any, record: BackendRecord) -> str:
    """Return the model that a block of the file names; `""` if it names none."""
    named_model = block.get(record.model_key) if isinstance(block, Mapping) else None
    return named_model if isinstance(named_model, str) and "$" not in named_model else ""


def leave_to_all(raw: JsonDict, parameter: str) -> None:
    """Remove a sampling parameter from the block of every model, so that the file's value applies. What a parameter
    protects stays protected."""
    if parameter not in PROTECTING_NAMES and (models := named(raw)):
        raw["models"] = {name: _without(model, parameter) for name, model in models.items()}


def _without(model: Any, parameter: str) -> Any:
    own = model.get("sampling_params") if isinstance(model, Mapping) else None
    if not isinstance(own, Mapping) or parameter not in own:
        return model
    return {**model, "sampling_params": {name: value for name, value in own.items() if name != parameter}}


def check_names(settings: Settings) -> None:
    """Raise `PromptmillError` (`invalid_config`) if `default_model`, `fallback` or a token names an unknown model."""
    known = [*settings.models, DEFAULT]
    if settings.default_model is not None and settings.default_model not in known:
        raise config_error("default_model", _unknown(settings.default_model, known))
    for holder, token in settings.client_limits.tokens.items():
        for name in token.models or ():
            if name not in known:
                raise config_error(f"client_limits.tokens.{holder}.models", _unknown(name, known))
    for name, model in settings.models.items():
        for at, other in enumerate(model.fallback):
            if other not in known:
                raise config_error(f"models.{name}.fallback[{at}]", _unknown(other, known))


def unknown_model(name: str, known: Iterable[str], where: str | Named = "model") -> PromptmillError:
    """Return the error for a call that names an unknown model. It lists the known models, the most similar first."""
    return input_error(where, f": {_unknown(name, list(known))}")


def _unknown(name: str, known: Sequence[str]) -> str:
    near = close_matches(name, known, n=len(known) or 1)
    ordered = [*near, *(other for other in known if other not in near)]
    return f"there is no model {name[:60]!r}; models here: {', '.join(ordered[:50])}."


def named_models(extra: JsonObject) -> list[str]:
    """Return the models that a request's body names: `model`, and alternatives that routers support."""
    model_names = [extra.get("model")]
    for name in ("models", "fallbacks"):  # OpenRouter and LiteLLM
        model_names += others if isinstance(others := extra.get(name), list) else [others]
    model_names = [one.get("model") if isinstance(one, Mapping) else one for one in model_names]
    return [str(name) for name in model_names if name is not None]


def numbers_of(body: JsonObject, names: re.Pattern[str]) -> Iterator[tuple[str, int]]:
    """Yield the numbers whose names match `names`, from a request's body or from an object in it, such as `options`.

    `metadata` is ignored, because it has the user's labels.
    """
    inner = (value for name, value in body.items() if name != "metadata" and isinstance(value, Mapping))
    for one in (body, *inner):
        for name, value in one.items():
            if names.search(str(name)) and (number := whole_number(value)) is not None:
                yield str(name), number


def whole_number(value: object) -> int | None:
    """Return a limit as an integer of at least 1 (some endpoints accept `"300"` and 300.0); None for other values."""
    try:
        return max(1, math.ceil(float(value))) if isinstance(value, int | float | str) else None
    except (ValueError, OverflowError):
        return None


def check_size(given: Any) -> None:
    """Raise `PromptmillError` (`invalid_config`) if a call's settings have too many values or too much text."""
    left = LONGEST_SETTINGS
    for value in nested(given):
        left -= 50 + (len(value) if isinstance(value, str | list | tuple) else 0)
        if left < 0:
            most = f"{LONGEST_SETTINGS:,} characters, or too many values"
            raise config_error("", f"The settings of the call have more than {most}; send shorter ones.")
