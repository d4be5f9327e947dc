"""The FastMCP app: its tools, instructions, capabilities and icon."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

from fastmcp import FastMCP
from fastmcp.apps.config import UI_EXTENSION_ID
from mcp.server.caching import CacheHint
from mcp_types import Icon, ResourcesCapability, ServerCapabilities, ToolsCapability

from promptmill import __version__
from promptmill.server.bulk_tools import add_bulk_tools, running_jobs_of
from promptmill.server.engine_tools import add_engine_tools
from promptmill.server.status import add_status
from promptmill.server.tool_calls import CallLog, PlainArguments
from promptmill.server.tools import add_answer_tools
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
    add_status(mcp, service)
    _announce_what_is_there(mcp)
    return mcp
