"""The FastMCP app: its tools, instructions, capabilities and icon, and the resources with its status and models."""

from __future__ import annotations

import base64
import os
import re
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import orjson
from fastmcp import FastMCP
from fastmcp.apps.config import UI_EXTENSION_ID
from mcp.server.caching import CacheHint
from mcp_types import Annotations, Icon, ResourcesCapability, ServerCapabilities, ToolsCapability
from pydantic import BaseModel, SecretStr

from promptmill import __version__
from promptmill.config.resolved_config import ResolvedConfig
from promptmill.config.settings import USUAL_KEYS
from promptmill.core.errors import redact
from promptmill.server.bulk_tools import add_bulk_tools, running_jobs_of
from promptmill.server.tool_calls import CallLog, PlainArguments
from promptmill.server.tools import add_answer_tools, add_engine_tools
from promptmill.service.service import Service

_ANSWERING = """\
promptmill answers prompts with a language model of its own. Order of use:
1. Nothing has to be prepared: call `generate` with all independent prompts in one list, `multimodal_generate` when \
images belong to them, `multiturn_generate` with one conversation. Answers come in `ans_ls`, in the order of the \
prompts; a failed item has the answer "" and an entry in `errors`.
2. A result with a `job_id` is not complete, because the time limit was reached: do not send the unanswered prompts \
again, read their answers with `bulk_results`.
3. For a file of prompts call `bulk_generate` with an input and an output file, then `bulk_status` until its `state` \
is `finished`; `bulk_results` reads answers, `bulk_cancel` ends the job.
The resource promptmill://status shows model, calls in progress and configuration.\
"""
_CHOOSING = """
Call `generation_init` first, and only to change backend, model or sampling. \
Call `vllm_shutdown` last, and only to free the memory of a model that runs on this machine.\
"""

_WEBSITE = "https://github.com/promptmill/promptmill"
_ICON = Path(__file__).with_name("icon.png")
_NEVER_CHANGE = ("server/discover", "tools/list", "resources/list", "resources/templates/list")
_ABSENT = ("prompts/list", "prompts/get", "logging/setLevel")
_FRESH = CacheHint(ttl_ms=600_000, scope="public")  # the same for all clients; a new process may be of another version
_STATUS = "promptmill://status"
_MODELS = "promptmill://models"
_SET = "[set]"
_SECRET_NAME = re.compile(r"(?i)key|token(?!iz)|secret|passw|pwd|auth|credential|cookie|signature|header")


def _icon() -> Icon:
    data = base64.b64encode(_ICON.read_bytes()).decode()  # a data URL also works offline
    return Icon(src=f"data:image/png;base64,{data}", mime_type="image/png", sizes=["48x48"])


def _announce_what_is_there(mcp: FastMCP) -> None:
    """Remove the methods and capabilities that FastMCP adds and this server does not use.

    The lists of tools and resources never change while the server runs: it announces no changes, and clients may cache
    the lists.
    """
    sdk_server = mcp._mcp_server
    for method in _ABSENT:
        del sdk_server._request_handlers[method]  # the SDK derives the capabilities from these handlers
    whole = sdk_server.get_capabilities

    def capabilities(*arguments: Any, **options: Any) -> ServerCapabilities:
        found = whole(*arguments, **options)
        extensions = {name: what for name, what in (found.extensions or {}).items() if name != UI_EXTENSION_ID}
        there = {"tools": ToolsCapability(), "resources": ResourcesCapability(), "extensions": extensions or None}
        return found.model_copy(update=there)

    sdk_server.get_capabilities = capabilities  # type: ignore[method-assign]
    # FastMCP's own hint would also apply to the contents of resources
    sdk_server.cache_hints = dict.fromkeys(_NEVER_CHANGE, _FRESH)


def create_server(service: Service, *, locked: bool = False) -> FastMCP:
    """Return the app over `service`, which the caller created and closes.

    `locked` leaves out the tools that change the model of the server, so that only the operator chooses it.
    """
    mcp = FastMCP(
        "promptmill",
        version=__version__,
        instructions=_ANSWERING if locked else _ANSWERING + _CHOOSING,
        mask_error_details=True,
        website_url=_WEBSITE,
        icons=[_icon()],
        middleware=[CallLog(), PlainArguments()],
        dereference_schemas=False,  # what a schema refers to stands in it
    )
    running_jobs = running_jobs_of(service)
    if not locked:
        add_engine_tools(mcp, service)
    add_answer_tools(mcp, service, running_jobs)
    add_bulk_tools(mcp, service, running_jobs)
    _add_status(mcp, service)
    _announce_what_is_there(mcp)
    return mcp


def _add_status(mcp: FastMCP, service: Service) -> None:
    """Add the resources of status and models to the app."""

    @mcp.resource(
        _STATUS,
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
