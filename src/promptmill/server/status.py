"""The resource `promptmill://status`: the server's model, state and totals, without secrets."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import orjson
from fastmcp import FastMCP
from mcp_types import Annotations
from pydantic import BaseModel, SecretStr

from promptmill import __version__
from promptmill.config.resolved_config import ResolvedConfig
from promptmill.config.settings import USUAL_KEYS
from promptmill.core.errors import redact
from promptmill.service.service import Service

URI = "promptmill://status"
_MODELS = "promptmill://models"
_SET = "[set]"
_SECRET_NAME = re.compile(r"(?i)key|token(?!iz)|secret|passw|pwd|auth|credential|cookie|signature|header")


def add_status(mcp: FastMCP, service: Service) -> None:
    """Add the resource to the app."""

    @mcp.resource(
        URI,
        name="status",
        title="Status of promptmill",
        description="Backend and model, engine state, calls in progress, totals since the start, configuration without "
        "secrets. JSON; read it again for current values.",
        mime_type="application/json",
        annotations=Annotations(audience=["user", "assistant"]),
    )
    def status() -> str:
        return orjson.dumps(describe(service), option=orjson.OPT_INDENT_2).decode()

    @mcp.resource(
        _MODELS,
        name="models",
        title="Models of promptmill",
        description="The models that a call may name in `model`, the default one first. JSON.",
        mime_type="application/json",
        annotations=Annotations(audience=["user", "assistant"]),
    )
    def models() -> str:
        found = {"models": service.described(service.offered)}
        return orjson.dumps(_Shown(service.plan).value(found), option=orjson.OPT_INDENT_2).decode()


def describe(service: Service) -> dict[str, Any]:
    """Return the status as a JSON object. It contains no key, header, password or prompt."""
    plan, calls = service.plan, service.calls
    shown = _Shown(plan)
    return {
        "version": __version__,
        "uptime_s": round(time.time() - calls.started, 1),
        "backend": shown.value(plan.backend),
        "model": shown.value(plan.model) or None,
        **({"chosen": shown.value(plan.chosen)} if plan.chosen else {}),
        "engine": {"state": service.state, "activity": shown.value(service.activity)},
        "calls_in_progress": calls.in_progress(),
        "totals": calls.totals(),
        "configuration": shown.configuration(),
    }


class _Shown:
    """Values of a plan's settings without secrets, for any reader."""

    def __init__(self, plan: ResolvedConfig) -> None:
        self._plan, self._settings = plan, plan.settings
        named = plan.settings.backend_configs.openai.api_key_env, plan.operator.backend_configs.openai.api_key_env
        variables = [os.environ.get(name, "") for name in (*USUAL_KEYS, *named) if name]
        self._secrets = (*_secrets_in(plan.settings), *_secrets_in(plan.operator), *filter(None, variables))

    def configuration(self) -> dict[str, Any]:
        """Return the settings in use, with the block of the chosen backend only."""
        settings = self._settings
        block = self._plan.block
        top = {
            name: value
            for name, value in settings
            if name not in {"backend", "backend_configs", "sampling_params", "extra_params", "system_prompt", "models"}
        }
        return {
            **self.value(top),
            "system_prompt": f"[{len(settings.system_prompt)} characters]" if settings.system_prompt else "",
            "sampling_params": self.value(settings.sampling_params.given()),
            "extra_params": self.value(settings.extra_params, secret=True),  # any of its texts may be a secret
            "backend_configs": {self.value(settings.backend): self.value(dict(block) if block else {})},
        }

    def value(self, value: Any, *, secret: bool = False) -> Any:
        """Return `value` without secrets; all texts of a `secret` value are replaced."""
        match value:
            case SecretStr():
                return _SET
            case str():
                return self._text(value) if not secret else _SET if value else ""
            case BaseModel():
                return self.value(dict(value), secret=secret)
            case Mapping():
                return {
                    self._text(str(name)): self.value(inner, secret=secret or bool(_SECRET_NAME.search(str(name))))
                    for name, inner in value.items()
                }
            case list() | tuple() | set() | frozenset():
                return [self.value(inner, secret=secret) for inner in value]
            case None | bool() | int() | float():
                return value
        return _SET

    def _text(self, text: str) -> str:
        return redact(_bare(text) if "://" in text else text, self._secrets)


def _bare(url: str) -> str:
    """Return `url` without user, password, query and fragment, where people put keys."""
    try:
        parts = urlsplit(url)
        host = parts.netloc.rpartition("@")[2]
        return urlunsplit((parts.scheme, host, parts.path, "", ""))
    except ValueError:
        return _SET


def _secrets_in(value: Any) -> Iterator[str]:
    if isinstance(value, SecretStr):
        yield value.get_secret_value()
    elif isinstance(value, BaseModel):
        for _, inner in value:
            yield from _secrets_in(inner)
        yield from _secrets_in(value.model_extra or {})
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from _secrets_in(inner)
