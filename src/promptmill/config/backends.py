"""A record of each backend's properties, for backends of promptmill and of features. Imports no backend."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from promptmill.core import feature
from promptmill.core.errors import PromptmillError, config_error, words_of

EMBEDDED = "smollm2-135m-instruct"
"""The default model, see `promptmill.backends.engines.embedded_model`."""
OTHER_PATHS = frozenset({"/embeddings", "/completions", "/responses", "/score", "/rerank"})
"""Paths whose requests and responses are passed on to an endpoint unchanged."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BackendRecord:
    """Properties of a backend. Other code reads these instead of comparing backend names."""

    module: str
    """A module with `create(config)`, which returns a `promptmill.backends.protocol.Backend`."""
    model_key: str = "model_name"
    """The key for the model in the backend's block."""
    is_engine: bool = False
    """Whether the backend runs on this machine: `vllm_shutdown` unloads it, and its jobs end with the server."""
    needs_endpoint: bool = False
    """Whether the backend's block has `base_url`, `provider` and keys."""
    any_model: bool = False
    """Whether each row may name its own model."""
    other_paths: frozenset[str] = frozenset()
    """Paths, other than chat completions, that lines of a Batch file may use, such as `/embeddings`."""
    choice: str = ""
    """The module that finds the model if the configuration does not name one."""
    diagnosis: str = ""
    """The module that tests the endpoints stage by stage for `promptmill models --check`."""
    takes_images: bool = True
    """Whether any model of the backend reads images. If not, items with images do not reach the backend."""
    weighs_choices: bool = False
    """Whether the backend itself reports the probability of each choice, without log probabilities."""
    decides: bool = False
    """Whether the backend answers all questions of a closed `Request.form` at once, with each option's probability."""
    compares: bool = False
    """Whether the backend compares texts and follows no instructions, so that yes and no need descriptions.
    Its module has `answerer(config)`, see `registry.answerer`."""
    keeps_schemas: bool = False
    """Whether every answer of an engine follows the schema of its request."""
    shows_forms: bool = True
    """Whether the backend's model sees the schema or the choices of a request. If not, the prompt names them."""
    sampling: frozenset[str] | None = None
    """The supported sampling parameters; others are dropped with a warning. None if the backend reports them itself."""


_ENGINE = BackendRecord(
    module="promptmill.backends.engines.host",
    model_key="model_name_or_path",
    is_engine=True,
    decides=True,
    keeps_schemas=True,
    shows_forms=False,
)
AUTO = "auto"
"""The name by which the user leaves the choice of the backend to promptmill."""
BACKENDS: Mapping[str, BackendRecord] = MappingProxyType(
    {
        "openai": BackendRecord(
            module="promptmill.backends.openai.backend",
            needs_endpoint=True,
            any_model=True,
            other_paths=OTHER_PATHS,
            choice="promptmill.backends.openai.discovery",
            diagnosis="promptmill.backends.openai.diagnosis",
        ),
        "vllm": replace(_ENGINE, other_paths=frozenset({"/embeddings"}), weighs_choices=True),
        "hf": replace(_ENGINE, weighs_choices=True),
        "openvino": _ENGINE,
    }
)
_UNKNOWN = BackendRecord(module="")


def record(name: str) -> BackendRecord:
    """Return the record of the backend `name`; an empty record for an unknown name.

    This imports a feature's backend, perhaps of another package, so call it only with names from the operator. Raises
    `PromptmillError` (`invalid_config`) if the import fails.
    """
    return BACKENDS.get(name) or (_imported(name) if name in installed() else _UNKNOWN)


def installed() -> Mapping[str, str]:
    """Return the backends of features by name, each as `"module:name"`. Nothing is imported.

    Raises `PromptmillError` (`invalid_config`) if a feature's backend has the name of a backend of promptmill.
    """
    found = feature.backends()
    for name in found.keys() & {*BACKENDS, AUTO}:
        problem = f"A package ({found[name]}) has a backend with the name of promptmill's own, {name!r}"
        raise config_error("", f"{problem}. Give it another name, or uninstall the package.")
    return found


def is_named(name: object) -> bool:
    """Return whether a backend of this name exists, in promptmill or in a feature."""
    return isinstance(name, str) and (name in BACKENDS or name in installed())


def _imported(name: str) -> BackendRecord:
    where = installed()[name]
    try:
        loaded = feature.part(where)
    except PromptmillError:
        raise
    except Exception as error:  # noqa: BLE001 (another package may raise anything at import)
        problem = f"{name} ({where}) cannot be imported ({words_of(error, 300)}); update or remove its package."
        raise config_error("backend", problem) from None
    if not isinstance(loaded, BackendRecord):
        raise config_error("backend", f"{name} ({where}) is not a `BackendRecord`; update or remove its package.")
    return loaded
