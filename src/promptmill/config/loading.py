"""Load `parameter.yaml` into typed settings: find the file, apply a call's overrides, explain errors."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import yaml
from pydantic import ValidationError

from promptmill.config import backends, models
from promptmill.config.backends import AUTO, BACKENDS, BackendRecord
from promptmill.config.explain import explain, unknown_key
from promptmill.config.parameter_file import parsed, read
from promptmill.config.parameter_names import moved
from promptmill.config.settings import Block, Settings
from promptmill.core.errors import PromptmillError, config_error
from promptmill.core.sampling import BESIDE, Sampling
from promptmill.core.wording import shape

_VARIABLE = re.compile(r"\$?\$\{([A-Za-z_][A-Za-z0-9_]*)(:-([^}]*))?\}")  # as in shells; `$${name}` stays `${name}`
FILE_NAME = "parameter.yaml"
_FILE_VARIABLE = "PROMPTMILL_CONFIG"
TRUST_SWITCH = "set it in the configuration file, or start the server with `promptmill serve --trust-client`."
Values = Callable[[Mapping[str, Any]], Mapping[tuple[str, ...], Any]]
# Whoever may call over a network may neither read files nor keep the engine for ever, unless the operator says so.
HTTP_DEFAULTS: Mapping[str, Any] = MappingProxyType({"call_timeout": 3600, "allowed_roots": []})
_MOST_VALUES = 20_000  # of a call: each that is wrong would be an error of half a kilobyte


@dataclass(frozen=True, slots=True)
class Overrides:
    """What `generation_init` brings. Not the operator's word: nothing here is expanded or trusted."""

    backend: str | None = None
    backend_configs: Mapping[str, Any] = field(default_factory=dict)
    sampling_params: Mapping[str, Any] = field(default_factory=dict)
    extra_params: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ResolvedConfig:
    """What to load and how to run it.

    `from_call` names the keys of the chosen backend's block that a call set; `operator` is the configuration without
    the call, from which it is decided what a call may use (keys, headers, remote code).
    """

    settings: Settings
    operator: Settings
    from_call: frozenset[str] = frozenset()
    trust_client: bool = False
    warnings: tuple[str, ...] = ()
    """What is not done exactly as written."""
    chosen: str = ""
    """What was found out because the configuration leaves it open, and why: the backend, the model."""
    keyless: bool = False
    """Whether the endpoint was found and not named by the operator, so that no key from the environment goes there."""
    name: str = models.DEFAULT
    """The model's name, by which calls and rows ask for it."""
    file: Settings | None = None
    """The whole file's settings, where those of `operator` are one model's of it."""

    @property
    def fallback(self) -> list[str]:
        """The names of the models that answer, in this order, what this one cannot."""
        model = self.operator.models.get(self.name)
        return [] if model is None else [other for other in dict.fromkeys(model.fallback) if other != self.name]

    @property
    def backend(self) -> str:
        """The chosen backend's name."""
        return self.settings.backend

    @property
    def record(self) -> BackendRecord:
        """What is known of the chosen backend."""
        return BACKENDS.get(self.backend) or backends.record(self.backend)

    @property
    def block(self) -> Block | None:
        """The chosen backend's settings, None for `auto` and for a name that there is none of."""
        return getattr(self.settings.backend_configs, self.backend, None)

    @property
    def model(self) -> str:
        """The model that the chosen backend's block names; `""` when it names none."""
        return getattr(self.block, self.record.model_key, None) or ""

    @property
    def is_open(self) -> bool:
        """Whether something has to be found out before it can be used: the backend, the model."""
        return self.backend == AUTO or (bool(self.record.choice) and not self.model)

    @property
    def operator_model(self) -> str:
        """The model that the configuration names for the chosen backend."""
        return replace(self, settings=self.operator).model

    def with_sampling(self, changes: Mapping[str, Any]) -> ResolvedConfig:
        """Return the plan of a call that brings `changes` to `sampling_params`; null takes a parameter out.

        Tools and `logprobs` are taken here too. Raises `PromptmillError` (`invalid_config`).
        """
        if not changes:
            return self
        _check_size(changes)
        beside = {name: value for name, value in changes.items() if name in BESIDE}
        changes = {name: value for name, value in changes.items() if name not in beside}
        try:
            sampling = Sampling.model_validate({**self.settings.sampling_params.given(), **changes})
        except ValidationError as error:
            raise config_error("", explain(error, Sampling, "sampling_params.")) from None
        extra = {**self.settings.extra_params, **beside} if beside else self.settings.extra_params
        changed = {"sampling_params": sampling, "extra_params": extra}
        return replace(self, settings=self.settings.model_copy(update=changed))

    def within_limits(self, asked: Mapping[str, Any]) -> ResolvedConfig:
        """Return the plan of a call that asked for the sampling parameters `asked`, within `client_limits`.

        Raises `PromptmillError` (`invalid_config`) when it asked for more.
        """
        limits = self.operator.client_limits
        most, sampling = limits.max_tokens, self.settings.sampling_params
        if self.trust_client or most is None or (sampling.max_tokens or most + 1) <= most:
            return self
        if asked.get("max_tokens") is not None:
            raise config_error("sampling_params.max_tokens", f"a call may ask for at most {most} here.")
        capped = sampling.model_copy(update={"max_tokens": most})
        return replace(self, settings=self.settings.model_copy(update={"sampling_params": capped}))


@dataclass(frozen=True, slots=True)
class _Unset:
    """Stands where `${name}` could not be read; an error only when the block is used."""

    name: str


class Configuration:
    """The operator's word: file, environment and command line."""

    def __init__(
        self,
        raw: Mapping[str, Any],
        *,
        trust_client: bool = False,
        calls_replace: bool = False,
        origin: str = FILE_NAME,
    ) -> None:
        """`raw` is the file's content with `${…}` expanded.

        `calls_replace`: what a call brings counts instead of the file's, not over it, and keys that nobody knows are
        left out and told. Raises `PromptmillError` (`invalid_config`).
        """
        self._raw = raw
        self._trust_client = trust_client
        self._calls_replace = calls_replace
        self.origin = origin
        self._chosen = ""
        self._keyless = False
        self.default = models.default_name(raw)
        """The name of the model that answers where none is named."""
        self.names = tuple(models.names(raw))
        """The names of all models, that one's first."""
        self.plan = self.plan_of(self.default)
        models.check_names(self.plan.operator)

    @property
    def backend(self) -> str | None:
        """The backend that the file or the command line names."""
        named = models.raw_of(self._raw, self.default).get("backend")
        return named if isinstance(named, str) else None

    def plan_of(self, name: str) -> ResolvedConfig:
        """Return the plan of the model `name`, one of `names`. Raises `PromptmillError` (`invalid_config`)."""
        raw, file = models.raw_of(self._raw, name), None
        if name in models.named(raw):
            whole = {**self._raw, "backend": _backend_of(self._raw)}
            file, _ = self._settled(whole, str(whole["backend"]))
        backend = _backend_of(raw)
        try:
            operator, warnings = self._settled({**raw, "backend": backend}, backend)
        except PromptmillError as error:
            raise error if file is None else config_error(f"models.{name}", error.message) from None
        chosen, keyless = (self._chosen, self._keyless) if file is None else ("", False)
        return ResolvedConfig(
            operator, operator, frozenset(), self._trust_client, warnings, chosen, keyless, name=name, file=file
        )

    def settled(self, values: Mapping[str, Any], chosen: str, *, keyless: bool) -> Configuration:
        """Return the configuration with `values`, by the paths of their keys, in place of `backend: auto`.

        `chosen` says why; see `ResolvedConfig` for it and `keyless`.
        """
        raw = dict(self._raw)
        for path, value in values.items():
            _put(raw, path.split("."), value)
        new = Configuration(raw, trust_client=self._trust_client, calls_replace=self._calls_replace, origin=self.origin)
        new._chosen, new._keyless = chosen, keyless
        new.plan = new.overlaid(Overrides())
        return new

    @classmethod
    def load(
        cls,
        path: Path | None = None,
        *,
        assignments: Iterable[str] = (),
        backend: str | None = None,
        values: Values = lambda _: {},
        trust_client: bool = False,
        calls_replace: bool = False,
        defaults: Mapping[str, Any] = MappingProxyType({}),
        environ: Mapping[str, str] = os.environ,
    ) -> Configuration:
        """Read the file that `find` finds; `assignments` are `key.path=value`, `value` in YAML.

        `values` is given the content so far and returns further values by the paths of their keys; sampling parameters
        among them count for all models.

        `defaults` are top keys that differ from the usual ones, for what the file does not set or sets to null.
        Raises `PromptmillError` (`invalid_config`) with the key's path and what to do.
        """
        file = find(path, environ)
        return cls.of(
            read(file),
            origin=str(file),
            assignments=assignments,
            backend=backend,
            values=values,
            trust_client=trust_client,
            calls_replace=calls_replace,
            defaults=defaults,
            environ=environ,
        )

    @classmethod
    def of(
        cls,
        raw: dict[str, Any],
        *,
        origin: str,
        assignments: Iterable[str] = (),
        backend: str | None = None,
        values: Values = lambda _: {},
        trust_client: bool = False,
        calls_replace: bool = False,
        defaults: Mapping[str, Any] = MappingProxyType({}),
        environ: Mapping[str, str] = os.environ,
    ) -> Configuration:
        """Return the configuration of a file's content, as `read` returns it; `origin` is the file's name."""
        assignments, alone = list(assignments), dict(raw)
        try:
            for assignment in assignments:
                _assign(raw, assignment)
            if backend is not None:
                raw["backend"] = backend
                raw["default_model"] = None  # the file's own, whatever it names
            for path, value in values(raw).items():
                _put(raw, path, value)
                if path[0] == "sampling_params":
                    models.leave_to_all(raw, path[1])
            for assignment in assignments:  # what names a key in full counts, whatever an option means for it
                _assign(raw, assignment)
            raw = {**defaults, **{key: value for key, value in raw.items() if value is not None}}
            expanded = _expanded(raw, environ)
        except RecursionError:  # an alias may stand inside what it stands for
            raise config_error("", f"{origin} is nested too deeply.") from None
        try:
            return cls(expanded, trust_client=trust_client, calls_replace=calls_replace, origin=origin)
        except PromptmillError as error:
            blamed = "--set" if assignments and _is_right(alone, environ) else origin
            raise config_error("", f"{blamed}: {error.message}") from None

    def overlaid(self, overrides: Overrides) -> ResolvedConfig:
        """Return the plan of the configuration with a call's `overrides` over it.

        Blocks merge key by key; `sampling_params` and `extra_params` replace the file's when not empty. With
        `calls_replace` all that a call brings replaces the file's.
        """
        given = (overrides.backend_configs, overrides.sampling_params, overrides.extra_params)
        _check_size(given)
        if overrides == Overrides():
            return self.plan_of(self.default)
        raw = models.raw_of(self._raw, self.default)
        raw["backend"] = name = _backend_of({"backend": overrides.backend or raw.get("backend")})
        self._check_other_backends(name, overrides)
        operator, _ = self._settled(raw, name)
        mine = dict(raw.get("backend_configs") or {})
        for block, values in overrides.backend_configs.items():
            if not isinstance(values, Mapping | None):
                if backends.is_named(block):
                    raise config_error(f"backend_configs.{block}", f"should be an object, not {shape(values)}.")
                shown = f"{block:.60}"
                raise config_error(f"backend_configs.{shown}", f"belongs below a backend: {{{name}: {{{shown}: …}}}}.")
            own = {} if self._calls_replace else mine.get(block) or {}
            added = values or {}
            if block in BACKENDS and BACKENDS[block].needs_endpoint:
                added = models.endpoint_over(own, added)
            mine[block] = {**own, **added}
        raw["backend_configs"] = mine
        for key in ("sampling_params", "extra_params"):
            if (given := getattr(overrides, key)) or self._calls_replace:
                raw[key] = given
        from_call = frozenset(overrides.backend_configs.get(name) or ())
        settings, warnings = self._settled(raw, name)
        kept = name == self.backend and "base_url" not in from_call and "provider" not in from_call
        chosen, keyless = (self._chosen, self._keyless) if kept else ("", False)
        file = self.plan_of(self.default).file
        plan = ResolvedConfig(
            settings,
            operator,
            from_call,
            self._trust_client,
            warnings,
            chosen,
            keyless,
            name=self.default,
            file=file,
        )
        _check_limits(plan, overrides)
        return plan

    def _check_other_backends(self, name: str, overrides: Overrides) -> None:
        """Raise when a call chooses or sets up a backend of another package without the operator's word.

        It may choose one that the configuration names, and only a trusted client may set its keys: which of them are
        harmless is not known here.
        """
        operators = {_backend_of(models.raw_of(self._raw, model)) for model in self.names}
        operators |= (self._raw.get("backend_configs") or {}).keys()
        for other in {name, *overrides.backend_configs} & backends.installed().keys():
            if other not in operators:
                raise config_error("backend", f"a call may choose {other} only where the configuration file names it.")
            if overrides.backend_configs.get(other) and not self._trust_client:
                raise config_error(f"backend_configs.{other}", f"a call may not set this; {TRUST_SWITCH}")

    def _settled(self, raw: Mapping[str, Any], backend: str) -> tuple[Settings, tuple[str, ...]]:
        placed, warnings = moved(_without_unset(dict(raw), backend), backend, lenient=self._calls_replace)
        if not self._calls_replace:
            return _validated(placed), tuple(warnings)
        try:
            return Settings.model_validate(placed), tuple(warnings)
        except ValidationError as error:
            unknown = [problem["loc"] for problem in error.errors() if problem["type"] == "extra_forbidden"]
        for place in unknown:
            warnings.append(f"{'.'.join(map(str, place)):.200}: {unknown_key(list(place), Settings)} It was left out.")
            placed = _without(placed, place)
        if unknown and placed.get("unsupported") == "error":
            raise config_error("", " ".join(warnings))
        return _validated(placed), tuple(warnings)


def _is_right(raw: dict[str, Any], environ: Mapping[str, str]) -> bool:
    """Return whether a file's content by itself is a configuration."""
    try:
        Configuration(_expanded(raw, environ))
    except (PromptmillError, RecursionError):
        return False
    return True


def _backend_of(raw: Mapping[str, Any]) -> Any:
    name = raw.get("backend") or Settings.model_fields["backend"].default
    return name.strip().lower() if isinstance(name, str) else name


def _without(values: Mapping[str, Any], place: Sequence[int | str]) -> dict[str, Any]:
    """Return `values` without what is at `place`."""
    key, *rest = place
    if rest:
        return {**values, str(key): _without(values[str(key)], rest)}
    return {name: value for name, value in values.items() if name != key}


def _check_limits(plan: ResolvedConfig, overrides: Overrides) -> None:
    """Raise when a call chooses what `client_limits` does not allow."""
    limits = plan.operator.client_limits
    if plan.trust_client:
        return
    if limits.models is not None and plan.model != plan.operator_model and plan.model not in limits.models:
        known = ", ".join(limits.models) or "none"
        raise config_error(f"backend_configs.{plan.backend}", f"a call may choose these models here: {known}.")
    if limits.max_tokens is not None:
        plan.within_limits(overrides.sampling_params)
        for name in ("max_tokens", "max_completion_tokens", "max_new_tokens"):
            if name in overrides.extra_params:
                raise config_error(f"extra_params.{name}", "a call gives `max_tokens` in `sampling_params` here.")


def _check_size(given: Any) -> None:
    if _has_more_values(given, _MOST_VALUES):
        raise config_error("", f"The call brings more than {_MOST_VALUES:,} values; send fewer.")


def _has_more_values(value: Any, most: int) -> bool:
    """Return whether `value` holds more than `most` values, without looking at more of them than that."""
    waiting = [value]
    while waiting:
        value = waiting.pop()
        if isinstance(value, Mapping | list | tuple):
            if len(waiting) + len(value) > most:
                return True
            most -= len(value)
            waiting += value.values() if isinstance(value, Mapping) else value
    return False


def find(path: Path | None = None, environ: Mapping[str, str] = os.environ) -> Path:
    """Return the configuration file: `path`, `PROMPTMILL_CONFIG`, `./parameter.yaml`, the user's, the shipped one."""
    named = path or (Path(environ[_FILE_VARIABLE]).expanduser() if environ.get(_FILE_VARIABLE) else None)
    if named is not None and not named.is_file():
        where = "" if path else _FILE_VARIABLE
        if (named / FILE_NAME).is_file():
            raise config_error(where, f"{named} is a folder; name the file in it: {named / FILE_NAME}.")
        file = named / FILE_NAME if named.is_dir() else named
        raise config_error(
            where,
            f"There is no configuration file at {file.absolute()}; correct the path, or have `promptmill init -o "
            f"{file}` write one.",
        )
    if named is not None:
        return named
    import platformdirs

    here = Path(__file__).parents[1]
    shipped = [here / FILE_NAME, here.parent.parent / FILE_NAME]  # in a wheel, in a checkout
    for candidate in (Path(FILE_NAME), platformdirs.user_config_path("promptmill") / FILE_NAME, *shipped):
        if candidate.is_file():
            return candidate
    raise config_error("", f"There is no {FILE_NAME}; name one with --config.")


def _assign(raw: dict[str, Any], assignment: str) -> None:
    path, equals, text = assignment.partition("=")
    if not equals or not path.strip():
        raise config_error("--set", "write key.path=value, such as backend_configs.openai.concurrency=8.")
    if (key := path.strip()) in Sampling.model_fields and key not in Settings.model_fields:
        raise config_error("--set", f"{key} is below sampling_params: --set sampling_params.{key}=…")
    try:
        value = parsed(text)
    except (yaml.YAMLError, ValueError):
        value = text  # text that is not valid YAML is taken literally
    _put(raw, path.strip().split("."), value)


def _put(raw: dict[str, Any], path: Sequence[str], value: Any) -> None:
    """Set the key at `path`, making the objects above it."""
    *parents, last = path
    block = raw
    for key in parents:
        below = block.get(key)
        block[key] = block = dict(below) if isinstance(below, dict) else {}
    block[last] = value


def _expanded(value: Any, environ: Mapping[str, str]) -> Any:
    if isinstance(value, dict):
        return {key: _expanded(inner, environ) for key, inner in value.items()}
    if isinstance(value, list):
        return [_expanded(inner, environ) for inner in value]
    if not isinstance(value, str) or "${" not in value:
        return value
    for found in _VARIABLE.finditer(value):
        if not _is_literal(found) and found[1] not in environ and not found[2]:
            return _Unset(found[1])
    return _VARIABLE.sub(
        lambda found: found[0][1:] if _is_literal(found) else environ.get(found[1]) or found[3] or "", value
    )


def _is_literal(found: re.Match[str]) -> bool:
    return found[0].startswith("$$")


def _without_unset(raw: dict[str, Any], backend: str) -> dict[str, Any]:
    """Return `raw` where unset variables of other backends' blocks are left out; in use they are an error."""
    blocks, named = raw.get("backend_configs"), raw.get("models")
    if isinstance(blocks, dict):
        raw = {**raw, "backend_configs": {name: _pruned(block, name, backend) for name, block in blocks.items()}}
    if isinstance(named, dict):  # the one in use stands above them, too
        raw = {**raw, "models": {name: _emptied(model) for name, model in named.items()}}
    _refuse_unset(raw, "")
    return raw


def _emptied(value: Any) -> Any:
    """Return `value` without what holds unset variables."""
    if isinstance(value, Mapping):
        return {key: _emptied(inner) for key, inner in value.items() if not isinstance(inner, _Unset)}
    if isinstance(value, list):
        return [_emptied(inner) for inner in value if not isinstance(inner, _Unset)]
    return value


def _pruned(block: Any, name: str, backend: str) -> Any:
    if name == backend or not isinstance(block, dict):
        return block
    return {key: value for key, value in block.items() if not _holds_unset(value)}


def _holds_unset(value: Any) -> bool:
    if isinstance(value, Mapping | list):
        return any(map(_holds_unset, value.values() if isinstance(value, Mapping) else value))
    return isinstance(value, _Unset)


def _refuse_unset(value: Any, path: str) -> None:
    if isinstance(value, _Unset):
        raise config_error(
            path, f"the environment variable {value.name} is not set: `export {value.name}=…` in this shell."
        )
    if isinstance(value, Mapping):
        for key, inner in value.items():
            _refuse_unset(inner, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            _refuse_unset(inner, f"{path}[{index}]")


def _validated(raw: Mapping[str, Any]) -> Settings:
    try:
        return Settings.model_validate(dict(raw))
    except ValidationError as error:
        raise config_error("", explain(error, Settings, raw=raw)) from None
    except RecursionError:
        raise config_error("", "The configuration is nested too deeply.") from None
