"""What somebody chooses beside the configuration file: a model, a backend, an endpoint, sampling parameters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from promptmill.config import backends, models
from promptmill.config.settings import Settings
from promptmill.core.errors import config_error
from promptmill.core.sampling import BESIDE

_WHICH_ENDPOINT = frozenset({"base_url", "provider"})


def settings_of(
    raw: Mapping[str, Any],
    *,
    backend: str | None,
    endpoint: Mapping[str, Any],
    model: str | None,
    sampling: Mapping[str, Any],
) -> dict[tuple[str, ...], Any]:
    """Return the settings that this means, by their paths; `raw` is the file's content, `endpoint` keys of `openai`.

    `model` is one of the file's `models`; with `backend` or `endpoint`, or where the file has no `models`, a model
    there. Raises `PromptmillError`: `invalid_config` for a key that the backend does not have, `invalid_input` for a
    model that there is none of.
    """
    found: dict[tuple[str, ...], Any] = {}
    of_backend = backend or endpoint.keys() & _WHICH_ENDPOINT
    name = models.default_name(raw) if of_backend or model not in models.names(raw) else model
    if name == model:
        found["default_model",] = name
        model = None
    elif of_backend and name != models.DEFAULT:
        found["default_model",] = name = models.DEFAULT
    is_named = name in models.named(raw)
    own = str(models.raw_of(raw, name).get("backend") or Settings.model_fields["backend"].default)
    chosen = backend or ("openai" if endpoint.keys() & _WHICH_ENDPOINT else own)
    if chosen != own:
        found["backend",] = chosen
    if model is not None and models.named(raw) and not of_backend:
        raise models.unknown_model(model, models.names(raw), "--model")
    record = backends.record(
        "openai" if chosen == backends.AUTO else chosen
    )  # which `auto` may come to, with what is said
    if endpoint and not record.needs_endpoint:
        option = next(iter(endpoint)).removeprefix("api_").replace("_", "-")
        raise config_error(f"--{option}", f"goes with the backend openai, and this one is {chosen}.")
    above = ("models", name) if is_named else ("backend_configs",)
    block = (*above, "openai" if chosen == backends.AUTO else chosen)
    found.update({(*block, key): value for key, value in endpoint.items()})
    if model is not None:
        found[*block, record.model_key] = model
    for key, value in sampling.items():
        if key not in BESIDE:
            found["sampling_params", key] = value
        else:  # which a named model does not take from the file
            found[*(("models", name) if is_named else ()), "extra_params", key] = value
    return found
