"""The FastMCP app: tools, instructions, capabilities and icon, and the resources for status and models."""

from __future__ import annotations

import base64
import hashlib
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import mcp_types
import orjson
import yaml
from fastmcp import FastMCP
from fastmcp.apps.config import UI_EXTENSION_ID
from fastmcp.server.extensions import MethodBinding, ServerExtension
from fastmcp.server.middleware import CallNext, Middleware, MiddlewareContext
from fastmcp.tools import Tool
from mcp.server.caching import CacheHint
from mcp.shared.exceptions import MCPError
from pydantic import BaseModel, SecretStr

from promptmill.config.backends import AUTO
from promptmill.config.model_config import ModelConfig
from promptmill.config.own_secrets import SECRET_NAME, secrets_in
from promptmill.config.settings import USUAL_KEYS
from promptmill.core.errors import config_error, redact
from promptmill.core.feature import features, part
from promptmill.core.version import __version__
from promptmill.core.wording import did_you_mean
from promptmill.server.arguments import PlainArguments
from promptmill.server.bulk_tools import add_bulk_tools
from promptmill.server.listed_tools import SKILL
from promptmill.server.tasks import Tasks
from promptmill.server.tool_calls import CallLog, PathsBelowRoots
from promptmill.server.tool_socket import ToolSocket
from promptmill.server.tools import add_answer_tools, add_engine_tools
from promptmill.service.observers import Observer
from promptmill.service.service import Service

_ANSWERING = """\
promptmill answers prompts with a language model of its own. Nothing has to be prepared.
- Up to about 50 independent prompts: `generate`, all in one list. With images: `multimodal_generate`. A conversation: \
`multiturn_generate`.
- A file, a folder, or more prompts: `bulk_generate`, so that rows and answers stay out of this conversation. First \
with `validate`, for the number of rows and the price; then without it. Then `bulk_status` with `wait_s: 60` until \
`state` is `finished`. `output_file` has all answers; `bulk_status` with `read` shows some.{features}
- A result with a `job_id` reached the time limit: do not send its prompts again, read them with `bulk_status`.
- Fixed labels: `choices`. Facts to extract: `schema`, or `fields` in bulk_generate.
promptmill://models lists the models for `model`, promptmill://status what is loaded.\
"""
_TOY = """
Without a configured model, small ones answer, which are toys: results say so, and so should you.\
"""
_CHOOSING = """
`generation_init` only to change backend, model or sampling, before the other calls. \
`vllm_shutdown` last, and only to free the memory of a model that runs on this machine.\
"""

_WEBSITE = "https://github.com/promptmill/promptmill"
_ICON = Path(__file__).with_name("icon.png")
_SKILL_FILE = Path(__file__).with_name("SKILL.md")
_NEVER_CHANGE = ("server/discover", "tools/list", "prompts/list", "resources/list", "resources/templates/list")
_ABSENT = "logging/setLevel"
_FRESH = CacheHint(ttl_ms=600_000, scope="public")  # the lists are equal for all clients; a new release may change them
_STATUS = "promptmill://status"
_MODELS = "promptmill://models"
_TASKS = mcp_types.ServerTasksCapability.model_validate(
    {"cancel": {}, "requests": {"tools": {"call": {}}}}
)  # announced only in the protocol 2025-11-25
_SET = "[set]"


def _icon() -> mcp_types.Icon:
    data = base64.b64encode(_ICON.read_bytes()).decode()  # works offline, unlike a web address
    return mcp_types.Icon(src=f"data:image/png;base64,{data}", mime_type="image/png", sizes=["48x48"])


def _announce_what_is_there(mcp: FastMCP) -> None:
    """Remove methods and capabilities that FastMCP adds but this server does not use.

    The lists of tools and resources never change while the server runs, so the server announces no changes, and clients
    may cache the lists.
    """
    sdk_server = mcp._mcp_server
    del sdk_server._request_handlers[_ABSENT]  # removed, because the SDK derives the capabilities from the handlers
    whole = sdk_server.get_capabilities

    def capabilities(*arguments: Any, **options: Any) -> mcp_types.ServerCapabilities:
        capabilities = whole(*arguments, **options)
        extensions = {name: what for name, what in (capabilities.extensions or {}).items() if name != UI_EXTENSION_ID}
        lists = {
            "tools": mcp_types.ToolsCapability(),
            "prompts": mcp_types.PromptsCapability(),
            "resources": mcp_types.ResourcesCapability(),
        }
        there = {**lists, "extensions": extensions or None, "tasks": _TASKS}
        return capabilities.model_copy(update=there)

    sdk_server.get_capabilities = capabilities  # type: ignore[method-assign]
    # This replaces FastMCP's own hint, which would also apply to contents of resources.
    sdk_server.cache_hints = dict.fromkeys(_NEVER_CHANGE, _FRESH)


def _instructions(service: Service, *, locked: bool) -> str:
    may_be_a_toy = service.config.is_embedded or service.config.backend == AUTO
    more = "".join(f" {feature.instructions}" for feature in features().values() if feature.instructions)
    return _ANSWERING.replace("{features}", more) + (_TOY if may_be_a_toy else "") + ("" if locked else _CHOOSING)


def create_server(
    service: Service,
    *,
    locked: bool = False,
    tools: Sequence[str] = (),
    observer: Observer | None = None,
    secrets: Iterable[str] = (),
) -> FastMCP:
    """Return the app for `service`, which the caller creates and closes. This restricts the files that clients may use.

    `locked`: leave out tools that change the server's model, so that only the operator chooses it. `tools`: the only
    tools that clients get; `()` for all. `observer`: observes each tool call. `secrets`: secrets in addition to the
    keys in configuration and environment; no file that contains one is sent.

    Raises `PromptmillError` (`invalid_config`) for an unknown name in `tools`.
    """
    service.serve_clients(secrets)
    mcp = FastMCP(
        "promptmill",
        version=__version__,
        instructions=_instructions(service, locked=locked),
        mask_error_details=True,
        website_url=_WEBSITE,
        icons=[_icon()],
        middleware=[CallLog(observer), PathsBelowRoots(service), PlainArguments()],
        dereference_schemas=False,  # references are kept: a schema contains what they refer to
    )
    socket = ToolSocket.of(mcp, service)
    if not locked:
        add_engine_tools(mcp, service)
    add_answer_tools(socket)
    add_bulk_tools(socket)
    _add_prompts(socket)
    for feature in features().values():
        if feature.tools:
            part(feature.tools)(socket)
    _keep(mcp, tools)
    mcp.add_extension(long_calls := Tasks(service, socket.server_jobs))
    mcp._mcp_server.middleware.append(long_calls.in_old_form)
    _add_status(mcp, service)
    _add_skill(mcp)
    _announce_what_is_there(mcp)
    return mcp


def _keep(mcp: FastMCP, tools: Sequence[str]) -> None:
    """Keep only these tools; `()` keeps all. Raises `PromptmillError` (`invalid_config`) for an unknown name."""
    known = [tool.name for tool in mcp.local_provider._components.values() if isinstance(tool, Tool)]
    for name in tools:
        if name not in known:
            meant = did_you_mean(name, known, f"the tools: {', '.join(known)}.")
            raise config_error("tools", f"there is no tool {name!r}; {meant}")
    for name in known if tools else ():
        if name not in tools:
            mcp.local_provider.remove_tool(name)


def _add_status(mcp: FastMCP, service: Service) -> None:
    @mcp.resource(
        _STATUS,
        name="status",
        title="Status of promptmill",
        description="Backend and model, engine state, calls in progress, totals since the start, configuration without "
        "secrets. JSON; read it again for current values.",
        mime_type="application/json",
        annotations=mcp_types.Annotations(audience=["user", "assistant"]),
    )
    def status() -> str:
        return orjson.dumps(describe(service), option=orjson.OPT_INDENT_2).decode()

    @mcp.resource(
        _MODELS,
        name="models",
        title="Models of promptmill",
        description="The models that a call may name in `model`, the default one first. JSON.",
        mime_type="application/json",
        annotations=mcp_types.Annotations(audience=["user", "assistant"]),
    )
    def models() -> str:
        models = {"models": service.described(service.offered)}
        return orjson.dumps(_Shown(service.config).value(models), option=orjson.OPT_INDENT_2).decode()


class _Skills(ServerExtension):
    """Methods for clients that load skills over MCP (SEP-2640). For other clients, the skill is a plain resource."""

    identifier = "io.modelcontextprotocol/skills"

    def methods(self) -> Sequence[MethodBinding]:
        """Return the methods that list the skill."""
        return [
            MethodBinding("skills/list", mcp_types.PaginatedRequestParams, self._list),
            MethodBinding("skills/get", mcp_types.ReadResourceRequestParams, self._get),
        ]

    async def _list(self, _: Any, __: mcp_types.PaginatedRequestParams) -> dict[str, object]:
        return {"skills": [_skill_entry()], **_SKILL_CACHE}

    async def _get(self, _: Any, params: mcp_types.ReadResourceRequestParams) -> dict[str, object]:
        if str(params.uri) != SKILL:
            raise MCPError(mcp_types.INVALID_PARAMS, f"Unknown skill; the skill here is {SKILL}.")
        return {"skill": _skill_entry(), **_SKILL_CACHE}


_SKILL_CACHE = {"ttlMs": _FRESH.ttl_ms, "cacheScope": _FRESH.scope}


def _skill_entry() -> dict[str, object]:
    """Return the skill's address, its front matter, and the digest of its only file."""
    content = _SKILL_FILE.read_bytes()
    file = {"uri": SKILL, "digest": f"sha256:{hashlib.sha256(content).hexdigest()}", "size": len(content)}
    return {"uri": SKILL, "frontmatter": _skill_head(), "resources": [file]}


def _skill_head() -> dict[str, str]:
    head: dict[str, str] = yaml.safe_load(_SKILL_FILE.read_text(encoding="utf-8").split("---\n")[1])
    return head


def _add_skill(mcp: FastMCP) -> None:
    head = _skill_head()

    @mcp.resource(
        SKILL,
        name=head["name"],
        description=head["description"],
        title="Work with promptmill: files, labels, comparisons",
        mime_type="text/markdown",
        annotations=mcp_types.Annotations(audience=["assistant"]),
    )
    def skill() -> str:
        return _SKILL_FILE.read_bytes().decode()

    mcp.add_extension(_Skills())
    mcp.add_middleware(_SkillAnnounced())


class _SkillAnnounced(Middleware):
    """Announces the extension for skills to clients of protocols before 2026-07-28, because the SDK does not."""

    async def on_initialize(
        self,
        context: MiddlewareContext[mcp_types.InitializeRequest],
        call_next: CallNext[mcp_types.InitializeRequest, mcp_types.InitializeResult | None],
    ) -> mcp_types.InitializeResult | None:
        """Add the extension for skills to the reply."""
        result = await call_next(context)
        if result is not None:
            result.capabilities.extensions = {_Skills.identifier: {}}
        return result


_FILE_PROMPT = """\
Answer this question for each row of the file {file} with promptmill: {question}

1. Call `bulk_generate` with this `input_file`, a new `output_file` in the same folder, `validate: true`, and a \
`prompt` that asks the question and names the columns that it needs as {{{{column}}}}. Use `choices` if the answers \
are a few labels, `schema` if they are fields.
2. Report the number of rows, the problems, `estimated_cost` and `most_cost`, and ask whether to start.
3. Make the same call without `validate`, then call `bulk_status` with `wait_s: 60` until `state` is `finished`.
4. Show the first five answers with `bulk_status` and `read`, the number of failed rows with their reasons, and the \
path of the output. The resource {skill} explains more.\
"""


def _add_prompts(socket: ToolSocket) -> None:
    def bulk(file: str, question: str) -> str:
        return _FILE_PROMPT.format(file=file, question=question, skill=SKILL)

    socket.add_prompt(bulk, "Answer a question for each row of a file", "Estimates the cost first.")


def describe(service: Service) -> dict[str, object]:
    """Return the status as a JSON object, without keys, headers, passwords and prompts."""
    config, calls = service.config, service.calls
    shown = _Shown(config)
    return {
        "version": __version__,
        "uptime_s": round(time.time() - calls.started, 1),
        "backend": shown.value(config.backend),
        "model": shown.value(config.model) or None,
        **({"chosen": shown.value(config.chosen)} if config.chosen else {}),
        "engine": {"state": service.state, "activity": shown.value(service.activity)},
        "calls_in_progress": calls.in_progress(),
        "totals": calls.totals(),
        "configuration": shown.configuration(),
    }


class _Shown:
    """Shows values of a model's settings without secrets."""

    def __init__(self, config: ModelConfig) -> None:
        self._config, self._settings = config, config.settings
        named = config.settings.backend_configs.openai.api_key_env, config.operator.backend_configs.openai.api_key_env
        variables = [os.environ.get(name, "") for name in (*USUAL_KEYS, *named) if name]
        self._secrets = (*secrets_in(config.settings), *secrets_in(config.operator), *filter(None, variables))

    def configuration(self) -> dict[str, object]:
        """Return the settings in use, with only the block of the chosen backend."""
        settings = self._settings
        block = self._config.block
        top = {
            name: value
            for name, value in settings
            if name not in {"backend", "backend_configs", "sampling_params", "extra_params", "system_prompt", "models"}
        }
        return {
            **self.value(top),
            "system_prompt": f"[{len(settings.system_prompt)} characters]" if settings.system_prompt else "",
            "sampling_params": self.value(settings.sampling_params.given()),
            "extra_params": self.value(settings.extra_params, secret=True),  # any text in it may be a secret
            "backend_configs": {self.value(settings.backend): self.value(dict(block) if block else {})},
        }

    def value(self, value: Any, *, secret: bool = False) -> Any:
        """Return `value` without secrets. In a `secret` value, all texts are replaced."""
        match value:
            case SecretStr():
                return _SET
            case str():
                return self._text(value) if not secret else _SET if value else ""
            case BaseModel():
                return self.value(dict(value), secret=secret)
            case Mapping():
                return {
                    self._text(str(name)): self.value(inner, secret=secret or bool(SECRET_NAME.search(str(name))))
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
    """Return `url` without user, password, query and fragment, which may contain keys."""
    try:
        parts = urlsplit(url)
        host = parts.netloc.rpartition("@")[2]
        return urlunsplit((parts.scheme, host, parts.path, "", ""))
    except ValueError:
        return _SET
