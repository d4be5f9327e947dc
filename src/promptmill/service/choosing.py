"""Chooses, once per process, the backend for `backend: auto`, and the model if the configuration names none."""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import logging
from collections.abc import Awaitable, Callable, Collection
from typing import Any, TypeAlias

from promptmill.backends.protocol import AutoChoice
from promptmill.config.backends import AUTO, BACKENDS, EMBEDDED
from promptmill.config.configuration import Configuration
from promptmill.config.model_config import ModelConfig
from promptmill.core.errors import Code, PromptmillError
from promptmill.core.wording import close_matches, listed

# Engines, each with the package that it needs. The first one whose package is installed runs the embedded model.
_ENGINES = (("openvino", "openvino_genai"), ("hf", "torch"))
_LOG = logging.getLogger("promptmill.choice")


Choose: TypeAlias = Callable[[Configuration], Awaitable[AutoChoice]]


async def decided(configuration: Configuration, choose: Choose | None = None) -> Configuration:
    """Return `configuration`, choosing backend and model if it leaves them open. Raises the errors of `with_model`.

    `choose`: the function that makes the choice; by default, the function of the openai backend.
    """
    if configuration.config.backend == AUTO:
        choice = await (choose or (await _module(BACKENDS["openai"].choice)).choose)(configuration)
        if not choice.values:
            choice = _embedded(configuration, choice)
        why = f"backend auto: {choice.why}"
        configuration = configuration.with_choice(choice.values, why, keyless=choice.keyless)
        _LOG.warning("%s%s", why, "".join(f"; not {one}" for one in choice.against))
    configuration.config = await with_model(configuration.config)
    return configuration


async def with_model(config: ModelConfig) -> ModelConfig:
    """Return `config` with the only model of its endpoint, if the configuration names no model.

    Raises `PromptmillError` if the endpoint does not list its models, or does not list exactly one.
    """
    if config.model or not (choice := config.record.choice):
        return config
    config_with_model: ModelConfig = await (await _module(choice)).with_model(config)
    _LOG.info("%s", config_with_model.chosen)
    return config_with_model


async def models_at(config: ModelConfig) -> dict[str, str]:
    """Return the models at the configuration's endpoint, loaded models first, each with the announced end of the model
    as words, or `""`; `{}` if it lists none.

    Raises `PromptmillError` (`invalid_config`) for settings that cannot work.
    """
    if not (choice := config.record.choice):
        return {}
    models: dict[str, str] = await (await _module(choice)).models_at(config)
    return models


async def around() -> tuple[str, str]:
    """Return the address of a server on this machine, and a provider whose key is set; `""` for a missing one."""
    words: tuple[str, str] = await (await _module(BACKENDS["openai"].choice)).around(Configuration({"backend": AUTO}))
    return words


async def meant_model(config: ModelConfig, error: PromptmillError, how: str, asked: Collection[str] = ()) -> str:
    """If `error` means that the endpoint lacks a model, return a hint with the endpoint's models; else `""`.

    `how`: the way to name a model, such as an option. `asked`: the job's models; by default, the configuration's model.
    """
    if error.code is not Code.NOT_FOUND or not config.model:
        return ""
    names = [*await models_at(config)]
    missing = next((name for name in asked or [config.model] if name not in names), None)
    if not names or missing is None:
        return ""
    if near := close_matches(missing, names, n=3, cutoff=0.4):
        return f"did you mean {' or '.join(near)}? {how} chooses it."
    return f"the endpoint has {listed(names)}: name one with {how}."


def local_engine() -> str:
    """Return the engine that can run the embedded model with the installed packages; `openvino` if there is none."""
    return next((name for name, _ in _ENGINES if is_installed(name)), _ENGINES[0][0])


def is_installed(engine: str) -> bool:
    """Return whether the package that `engine` needs is installed."""
    return any(name == engine and importlib.util.find_spec(package) for name, package in _ENGINES)


def _embedded(configuration: Configuration, choice: AutoChoice) -> AutoChoice:
    """Return the choice for the case that no endpoint works: a local engine with the embedded model."""
    engine = local_engine()
    block = getattr(configuration.config.settings.backend_configs, engine)
    model = block.model_name_or_path or EMBEDDED
    values = {"backend": engine, f"backend_configs.{engine}.model_name_or_path": model}
    return AutoChoice(values, f"{engine} with {model}: no endpoint can be used", choice.against, keyless=False)


async def _module(name: str) -> Any:
    return await asyncio.to_thread(importlib.import_module, name)
