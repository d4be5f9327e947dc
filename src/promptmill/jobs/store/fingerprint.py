"""Digests of the settings that affect answers. They differ for different settings, but do not reveal the settings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from promptmill.answers.shown import shown_of
from promptmill.backends import registry
from promptmill.config.model_config import DEFAULT, TOKEN_LIMITS, ModelConfig
from promptmill.core.request import with_words
from promptmill.files.format_table import of_input
from promptmill.jobs.store.spec import digest

_DECIDES = {"model_name", "model_name_or_path", "gguf_file", "base_url", "provider", "dialect", "enable_thinking"}
"""The keys of a model's configuration block that affect its answers."""


def system_prompt_of(config: ModelConfig, given: str, input_format: str) -> str:
    """Return the system prompt of every row: `given`, or else the configuration's system prompt.

    A row of a Batch file or of a call is a whole request, which does not get the configuration's system prompt.
    """
    return given or ("" if of_input(input_format).rows == "requests" else config.settings.system_prompt)


def fingerprint(
    config: ModelConfig, given_prompt: str, input_format: str, model: str = "", *, has_check: bool = False
) -> dict[str, object]:
    """Return digests of the settings that affect answers. (A row's own settings are part of its question.)

    `model` replaces the model of `config`. Limits of an answer's length are left out: a shortened answer has the finish
    reason `length`, and `again: truncated` sends its row again. In the result, `models` has digests of the
    configuration's other models, which rows may name. `has_check`: whether a function of the calling program checks the
    answers; no digest can identify the function."""
    settings, system = config.settings, system_prompt_of(config, given_prompt, input_format)
    if settings.sampling_params.definitions and of_input(input_format).rows != "requests":
        system = with_words(system, shown_of(settings.sampling_params, shows=True).words)
    digests: dict[str, object] = {"model": digest(model or config.model), "system_prompt": digest(system)}
    digests["backend"] = digest(config.backend)
    if config.record.needs_endpoint:
        digests["endpoint"] = digest(getattr(config.block, "base_url", None))
        digests["provider"], digests["dialect"] = map(digest, registry.apis(config))
        digests["enable_thinking"] = digest(getattr(config.block, "enable_thinking", None))
    if of_input(input_format).rows != "requests":
        digests["sampling"] = sampling_digest(config)
        digests["image_tag"] = digest(settings.image_tag, *(["before"] if settings.image_position == "before" else []))
    return digests | {"check": has_check, "models": _other_models(config)}


def sampling_digest(config: ModelConfig) -> str:
    """Return the digest of the sampling parameters, without limits of an answer's length."""
    return digest(*map(without_lengths, _sampling(config)))


def plain_sampling(config: ModelConfig) -> dict[str, bool | int | float | str]:
    """Return the sampling parameters that are neither lists nor objects, without limits of an answer's length."""
    given = without_lengths(config.settings.sampling_params.given())
    return {name: value for name, value in given.items() if isinstance(value, bool | int | float | str)}


def _sampling(config: ModelConfig) -> tuple[dict[str, object], dict[str, object]]:
    settings = config.settings
    extra = {name: value for name, value in settings.extra_params.items() if name != "service_tier"}
    return settings.sampling_params.beside_prompt(), extra


def without_lengths(values: Mapping[str, object]) -> dict[str, object]:
    """Return the parameters without the limits of an answer's length."""
    return {name: value for name, value in values.items() if name not in TOKEN_LIMITS}


def _other_models(config: ModelConfig) -> dict[str, str]:
    file = config.file or config.operator
    blocks: dict[str, tuple[str, object, Any]] = {
        name: (model.backend or "", getattr(model, model.backend or "", None), model)
        for name, model in file.models.items()
    }
    blocks.setdefault(DEFAULT, (file.backend, getattr(file.backend_configs, file.backend, None), file))
    return {
        name: digest(
            backend,
            block.model_dump(mode="json", include=_DECIDES) if isinstance(block, BaseModel) else None,
            without_lengths(file.sampling_params.beside_prompt() | own.sampling_params.beside_prompt()),
            without_lengths(own.extra_params),
            own.system_prompt if own.system_prompt is not None else file.system_prompt,
            own.image_tag or file.image_tag,
            *([own.sampling_params.definitions] if own is not file and own.sampling_params.definitions else []),
        )
        for name, (backend, block, own) in blocks.items()
        if name != config.name
    }
