"""What is known of each backend without importing it: promptmill's own, and other packages' by their entry points."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from types import MappingProxyType
from typing import TYPE_CHECKING

from promptmill.core.errors import PromptmillError, config_error, redact

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

GROUP = "promptmill.backends"
OTHER_PATHS = frozenset({"/embeddings", "/completions", "/responses", "/score", "/rerank"})
"""Requests that an endpoint is sent as they are, and whose responses come back so."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BackendRecord:
    """What the rest of promptmill asks about a backend, in place of its name."""

    module: str
    """Has `create(plan)`, which returns a `promptmill.backends.protocol.Backend`."""
    model_key: str = "model_name"
    """The key of its block that names the model."""
    is_engine: bool = False
    """Runs on this machine: takes memory and devices, which `vllm_shutdown` frees, and its jobs end with the server."""
    needs_endpoint: bool = False
    """Its block has `base_url`, `provider` and keys; `--base-url` and the like go with it."""
    any_model: bool = False
    """A row may name a model of its own."""
    other_paths: frozenset[str] = frozenset()
    """Which requests other than those for a chat the lines of a Batch file may make, such as `/embeddings`."""
    choice: str = ""
    """The module that finds out which model there is, where none is named."""
    diagnosis: str = ""
    """The module that tries its endpoints stage by stage, for `promptmill check`."""
    takes_images: bool = True
    """Whether any of its models reads images; items with images are refused before they reach one that does not."""
    sampling: frozenset[str] | None = None
    """The sampling parameters that it takes, others are named as left out; None: it says so itself, per request."""


_ENGINE = BackendRecord(module="promptmill.backends.engines.host", model_key="model_name_or_path", is_engine=True)
AUTO = "auto"
"""Where the configuration leaves to promptmill what answers."""
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
        "vllm": replace(_ENGINE, other_paths=frozenset({"/embeddings"})),
        "hf": _ENGINE,
        "openvino": _ENGINE,
    }
)
_UNKNOWN = BackendRecord(module="")


def record(name: str) -> BackendRecord:
    """Return the record of the backend `name`, an empty one where there is none.

    Imports another package's backend, so it is for names that the operator wrote. Raises `PromptmillError`
    (`invalid_config`) when that fails.
    """
    return BACKENDS.get(name) or (_imported(name) if name in installed() else _UNKNOWN)


@cache  # what is installed does not change while a process runs
def installed() -> Mapping[str, EntryPoint]:
    """Return the backends of other packages by name, none of them imported. Our own names are ours."""
    from importlib.metadata import entry_points

    return {found.name: found for found in entry_points(group=GROUP) if found.name not in {*BACKENDS, AUTO}}


def is_named(name: object) -> bool:
    """Return whether there is a backend of this name, ours or another package's."""
    return isinstance(name, str) and (name in BACKENDS or name in installed())


def _imported(name: str) -> BackendRecord:
    entry = installed()[name]
    package = entry.dist.name if entry.dist is not None else entry.value
    try:
        found = entry.load()
    except PromptmillError:
        raise
    except Exception as error:  # noqa: BLE001 (whatever another package does when it is imported)
        why = redact(f"{type(error).__name__}: {error}".splitlines()[0])[:300]
        problem = f"{name} of the package {package} cannot be imported ({why}); update or remove that package."
        raise config_error("backend", problem) from None
    if not isinstance(found, BackendRecord):
        raise config_error(
            "backend", f"{name} of the package {package} is not a `BackendRecord`; update or remove that package."
        )
    return found
