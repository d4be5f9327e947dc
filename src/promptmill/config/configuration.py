"""The configuration: `parameter.yaml`, overridden by the command line; a call overrides both.

Parameters and blocks with the names of other programs are converted to promptmill's names, with a warning.

file (`${NAME}` expanded) ← command line (options, assignments) ← `generation_init` (never expanded or trusted)
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from pydantic import ValidationError

from promptmill.config import backends, model_config
from promptmill.config.assignments import SETTINGS, keys_in, put, set_key
from promptmill.config.backends import BACKENDS
from promptmill.config.explain import explain, unknown_key
from promptmill.config.litellm import without_litellm
from promptmill.config.model_config import ModelConfig, check_size
from promptmill.config.moved_parameters import move_parameters
from promptmill.config.own_secrets import secrets_in, secrets_of, without_secrets
from promptmill.config.parameter_file import FILE_NAME, expand, find, read, without_unset
from promptmill.config.settings import BY_CALL, BY_TRUSTED, BackendConfigs, Settings
from promptmill.core.errors import PromptmillError, config_error
from promptmill.core.request import ADDED, Sampling
from promptmill.core.values import JsonDict, JsonObject
from promptmill.core.wording import shape
from promptmill.system.call_files import FileRule
from promptmill.system.state import private_folders

TRUST_SWITCH = "set it in the configuration file, or start the server with `promptmill serve --trust-client`."
Values = Callable[[JsonObject], Mapping[tuple[str, ...], Any]]
# Network clients may neither read files nor occupy the engine forever, unless the operator allows it.
HTTP_DEFAULTS: JsonObject = MappingProxyType({"call_timeout": 3600, "allowed_roots": []})


@dataclass(frozen=True, slots=True)
class Overrides:
    """The arguments of `generation_init`. They come from a client, so they are never expanded or trusted."""

    backend: str | None = None
    backend_configs: JsonObject = field(default_factory=dict)
    sampling_params: JsonObject = field(default_factory=dict)
    extra_params: JsonObject = field(default_factory=dict)


class Configuration:
    """The operator's configuration, from file, environment and command line."""

    def __init__(
        self,
        raw: JsonObject,
        *,
        trust_client: bool = False,
        calls_replace: bool = False,
        origin: str = FILE_NAME,
        chosen: str = "",
        keyless: bool = False,
        call_files: FileRule | None = None,
    ) -> None:
        """`raw`: the content of the file, with `${…}` expanded.

        `calls_replace` is for pipelines: a call's blocks and parameters replace those of the file instead of being
        merged, unknown keys are dropped with a warning, and answers are not checked against `response_format`. For
        `chosen`, `keyless` and `call_files`, see `ModelConfig`. Raises `PromptmillError` (`invalid_config`).
        """
        self._raw = raw
        self._trust_client = trust_client
        self._calls_replace = calls_replace
        self.origin = origin
        self._chosen = chosen
        self._keyless = keyless
        self._call_files = call_files
        self.default = model_config.default_name(raw)
        """The model for calls that do not name one."""
        self.names = tuple(model_config.names(raw))
        """The names of all models, the default one first."""
        for key in () if model_config.DEFAULT in self.names else ("extra_params", "price"):
            if raw.get(key):
                raise config_error(key, f"no model uses it, because each has its own: models.{self.default}.{key}.")
        self.config = self.config_of(self.default)
        model_config.check_names(self.config.operator)

    @property
    def backend(self) -> str | None:
        """The backend that the file or the command line names."""
        named = model_config.raw_of(self._raw, self.default).get("backend")
        return named if isinstance(named, str) else None

    def config_of(self, name: str) -> ModelConfig:
        """Return the configuration of the model `name`, one of `names`. Raises `PromptmillError` (`invalid_config`)."""
        raw, file = model_config.raw_of(self._raw, name), None
        if name in model_config.named(raw):
            named = _backend_of(self._raw)
            # whether the file has a model `default` depends on the backend
            whole = {**self._raw, **({"backend": named} if self._raw.get("backend") else {})}
            file, _ = self._settings_of(whole, named)
        try:
            backend = _backend_of(raw)
            operator, warnings = self._settings_of({**raw, "backend": backend}, backend)
        except PromptmillError as error:
            raise error if file is None else config_error(f"models.{name}", error.message) from None
        chosen, keyless = (self._chosen, self._keyless) if file is None else ("", False)
        return ModelConfig(
            operator,
            operator,
            frozenset(),
            self._trust_client,
            warnings,
            chosen,
            keyless,
            name=name,
            file=file,
            call_files=self._call_files,
        )

    def with_choice(self, values: JsonObject, chosen: str, *, keyless: bool) -> Configuration:
        """Return a copy in which `values`, each at its dotted path, replace `backend: auto`."""
        raw = dict(self._raw)
        for path, value in values.items():
            put(raw, path.split("."), value)
        return self._copy(raw, chosen=chosen, keyless=keyless)

    def for_clients(self, secrets: Iterable[str] = (), *, is_shared: bool = False) -> Configuration:
        """Return the configuration for calls of clients, which may not use all files of this machine.

        `secrets`: secrets of the server in addition to the keys in configuration and environment. A trusted client may
        use the files that the operator may use. `is_shared`: see `FileRule`.
        """
        if self._trust_client:
            return self
        whole = self.config.file or self.config.operator
        keys = (*secrets_in(whole), *secrets_in(self.config.operator), *secrets_of(os.environ), *secrets)
        own = [Path(self.origin), *private_folders()]
        rule = FileRule.of_calls(whole.allowed_roots, own, keys, is_shared=is_shared)
        return self._copy(self._raw, call_files=rule)

    def _copy(self, raw: JsonObject, **changes: Any) -> Configuration:
        kept = {name: getattr(self, f"_{name}") for name in ("trust_client", "calls_replace", "chosen", "keyless")}
        return Configuration(raw, **{**kept, "origin": self.origin, "call_files": self._call_files, **changes})

    @classmethod
    def load(
        cls,
        path: Path | None = None,
        *,
        content: JsonObject | None = None,
        assignments: JsonObject = MappingProxyType({}),
        backend: str | None = None,
        values: Values = lambda _: {},
        trust_client: bool = False,
        calls_replace: bool = False,
        defaults: JsonObject = MappingProxyType({}),
        environ: Mapping[str, str] = os.environ,
    ) -> Configuration:
        """Read the file that `find` finds. `assignments`: values by key path (`"backend_configs.openai.concurrency"`).

        `content`: the file's content, if it was already read. `values` gets the content so far and returns further
        values by key path. Sampling parameters of `assignments` and `values` apply to all models. `defaults` replace
        the usual defaults of top-level keys that the file omits or sets to null.

        Raises `PromptmillError` (`invalid_config`), whose message has the path of the key and the remedy. The message
        begins with the file's name unless `values` set the key.
        """
        ADDED.check()
        backends.installed()  # checks the names of other packages' backends
        if path is None or content is None:
            path = find(path, environ)
            content = read(path)
        origin, raw = str(path), dict(content)
        assignments = {str(key): value for key, value in assignments.items()}
        for key in assignments.keys() & Sampling.model_fields.keys() - Settings.model_fields.keys():
            raise config_error(SETTINGS, f"{key} belongs below sampling_params: sampling_params.{key}=…")
        try:
            raw = without_litellm(raw)
            for path_, value in assignments.items():
                set_key(raw, path_.split("."), value)
            if backend is not None:
                raw["backend"] = backend
                raw["default_model"] = None  # so that the top-level backend is the default, not one of `models`
            options = values(raw)
            for keys, value in options.items():
                set_key(raw, keys, value)
            for path_, value in assignments.items():  # set again, because assignments override the options
                for keys, one in keys_in(tuple(path_.split(".")), value):
                    set_key(raw, keys, one)
            unset = [key for key, value in raw.items() if value is None and key in Settings.model_fields]
            raw = {**defaults, **{key: value for key, value in raw.items() if key not in unset}}
            raw = expand(raw, environ)
        except RecursionError:  # a YAML alias that contains itself
            blamed = SETTINGS if assignments and _is_right(content, environ) else origin
            raise config_error(blamed, " is nested too deeply.") from None
        try:
            return cls(raw, trust_client=trust_client, calls_replace=calls_replace, origin=origin)
        except PromptmillError as error:
            if str(error.parts[0]).startswith(tuple(f"{'.'.join(keys)}: " for keys in options)):
                raise
            blamed = SETTINGS if assignments and _is_right(content, environ) else origin
            raise config_error(blamed, *error.parts) from None

    def overlaid(self, overrides: Overrides) -> ModelConfig:
        """Return the configuration with a call's `overrides`.

        Blocks are merged key by key; `sampling_params` and `extra_params` replace the file's if they are not empty.
        With `calls_replace`, a call's blocks also replace the file's.
        """
        given = (overrides.backend_configs, overrides.sampling_params, overrides.extra_params)
        check_size(given)
        if overrides == Overrides():
            return self.config
        raw = model_config.raw_of(self._raw, self.default)
        raw["backend"] = name = _backend_of({"backend": overrides.backend or raw.get("backend")})
        self._check_other_backends(name, overrides)
        operator, _ = self._settings_of(raw, name)
        mine = dict(raw.get("backend_configs") or {})
        for block, values in overrides.backend_configs.items():
            if not isinstance(values, Mapping | None):
                if backends.is_named(block):
                    raise config_error(f"backend_configs.{block}", f"should be an object, not {shape(values)}.")
                shown, owner = f"{block:.60}", _owner_of(block, name)
                raise config_error(f"backend_configs.{shown}", f"belongs below a backend: {{{owner}: {{{shown}: …}}}}.")
            self._check_settable(block, values or {}, mine.get(block) or {})
            own = {} if self._calls_replace else mine.get(block) or {}
            added = values or {}
            if block in BACKENDS and BACKENDS[block].needs_endpoint:
                added = model_config.endpoint_over(own, added)
            mine[block] = {**own, **added}
        raw["backend_configs"] = mine
        for key in ("sampling_params", "extra_params"):
            if (given := getattr(overrides, key)) or self._calls_replace:
                raw[key] = given
        from_call = frozenset(overrides.backend_configs.get(name) or ())
        if not (self._trust_client or overrides.extra_params) and _is_elsewhere(name, mine.get(name) or {}, operator):
            raw["extra_params"] = without_secrets(raw.get("extra_params") or {})
        settings, warnings = self._settings_of(raw, name)
        config = replace(self.config, settings=settings, operator=operator, from_call=from_call, warnings=warnings)
        if name != self.backend or from_call & {"base_url", "provider"}:
            config = replace(config, chosen="", keyless=False)
        _check_limits(config, overrides)
        return config

    def _check_other_backends(self, name: str, overrides: Overrides) -> None:
        """Raise if a call chooses or configures another package's backend, and the operator has not allowed this.

        A call may choose a backend that the configuration names. Only a trusted client may set keys of such a backend,
        because promptmill does not know which keys are harmless.
        """
        operators = {_backend_of(model_config.raw_of(self._raw, model)) for model in self.names}
        operators |= (self._raw.get("backend_configs") or {}).keys()
        for other in {name, *overrides.backend_configs} & backends.installed().keys():
            if other not in operators:
                raise config_error("backend", f"a call may choose {other} only if the configuration file names it.")
            if overrides.backend_configs.get(other) and not self._trust_client:
                raise config_error(f"backend_configs.{other}", f"a call may not set this; {TRUST_SWITCH}")

    def _check_settable(self, block: str, given: JsonObject, own: JsonObject) -> None:
        """Raise if a call sets a key of `block` that it may not set. `own`: the operator's keys."""
        field = BackendConfigs.model_fields.get(block)
        if field is None or field.annotation is None:
            return
        settings = field.annotation
        for name in sorted(given.keys() & settings.model_fields.keys() - settings.marked(BY_CALL)):
            path = f"backend_configs.{block}.{name}"
            if name not in settings.marked(BY_TRUSTED):
                raise config_error(path, "only the operator may set this, in the configuration file.")
            if not self._trust_client and given[name] != own.get(name):
                raise config_error(path, f"a call may not set this; {TRUST_SWITCH}")

    def _settings_of(self, raw: JsonObject, backend: str) -> tuple[Settings, tuple[str, ...]]:
        placed, warnings = move_parameters(without_unset(dict(raw), backend), backend, of_pipeline=self._calls_replace)
        if not self._calls_replace:
            return _validate(placed), tuple(warnings)
        try:
            return Settings.model_validate(placed), tuple(warnings)
        except ValidationError as error:
            unknown = [problem["loc"] for problem in error.errors() if problem["type"] == "extra_forbidden"]
        for place in unknown:
            warnings.append(f"{'.'.join(map(str, place)):.200}: {unknown_key(list(place), Settings)} It was left out.")
            placed = _without(placed, place)
        if unknown and placed.get("unsupported") == "error":
            raise config_error("", " ".join(warnings))
        return _validate(placed), tuple(warnings)


def _owner_of(key: str, chosen: str) -> str:
    """Return the backend whose block may have `key`: the chosen one if it knows the key, or the first one that does."""
    blocks = BackendConfigs()
    owners = [name for name in BackendConfigs.model_fields if key in type(getattr(blocks, name)).model_fields]
    return chosen if chosen in owners or not owners else owners[0]


def _is_elsewhere(backend: str, block: JsonObject, operator: Settings) -> bool:
    """Return whether a call's address differs from the operator's. Such an address does not get the operator's keys."""
    if backend not in BACKENDS or not BACKENDS[backend].needs_endpoint:
        return False
    own = operator.backend_configs.openai
    address = block.get("base_url") or []
    return (block.get("provider"), [address] if isinstance(address, str) else address) != (own.provider, own.base_url)


def _is_right(content: JsonObject, environ: Mapping[str, str]) -> bool:
    """Return whether a file's content alone is a valid configuration."""
    try:
        Configuration(expand(content, environ))
    except (PromptmillError, RecursionError):
        return False
    return True


def _backend_of(raw: JsonObject) -> str:
    """Return the backend's name. Raises `PromptmillError` (`invalid_config`) if it is not text."""
    name = raw.get("backend")
    if name is None or name == "":
        name = Settings.model_fields["backend"].default
    if not isinstance(name, str):
        without_unset({"backend": name}, "")  # raises if the value is an unset `${NAME}`
        raise config_error("backend", f"should be text, not {shape(name)}.")
    return name.strip().lower()


def _without(values: JsonObject, place: Sequence[int | str]) -> JsonDict:
    key, *rest = place
    if rest:
        return {**values, str(key): _without(values[str(key)], rest)}
    return {name: value for name, value in values.items() if name != key}


def _check_limits(config: ModelConfig, overrides: Overrides) -> None:
    limits = config.operator.client_limits
    if config.trust_client:
        config.within_limits(overrides.sampling_params)
        return
    asked = [(f"backend_configs.{config.backend}", config.model)]
    asked += [("extra_params", name) for name in model_config.named_models(overrides.extra_params)]
    for path, name in asked:
        if limits.models is not None and name not in {*limits.models, config.operator_model}:
            known = ", ".join(limits.models) or "none"
            raise config_error(path, f"a call may choose only these models: {known}.")
    config.within_limits(overrides.sampling_params)
    if limits.max_tokens is not None:
        for name in model_config.TOKEN_LIMITS:
            if name in overrides.extra_params:
                raise config_error(
                    f"extra_params.{name}", "write it as `max_tokens` in `sampling_params`: this server limits it."
                )
        for name, limit in model_config.numbers_of(overrides.extra_params, model_config.OTHER_LIMIT):
            if limit > limits.max_tokens:
                raise config_error(f"extra_params.{name:.60}", f"must be at most {limits.max_tokens} on this server.")


def _validate(raw: JsonObject) -> Settings:
    try:
        return Settings.model_validate(dict(raw))
    except ValidationError as error:
        raise config_error("", explain(error, Settings)) from None
    except RecursionError:
        raise config_error("", "The configuration is nested too deeply.") from None
